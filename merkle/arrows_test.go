package merkle

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestArrowsGoDown holds the layers of the house apart: what a package may
// import of this module, and what it must never import at all.
func TestArrowsGoDown(t *testing.T) {
	const module = "github.com/diskrsync/diskrsync/"
	allowed := map[string][]string{
		"merkle":           {},
		"merkle/image":     {"merkle"},
		"merkle/wire":      {"merkle"},
		"merkle/session":   {"merkle", "merkle/image", "merkle/wire"},
		"merkle/transport": {},
	}
	root := ".."
	seen := map[string]bool{}
	err := filepath.WalkDir(filepath.Join(root, "merkle"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(rel)
		may, known := allowed[pkg]
		if !known {
			t.Errorf("%s: package %s is not part of the house", path, pkg)
		}
		seen[pkg] = true
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			own, isOwn := strings.CutPrefix(name, module)
			switch {
			case isOwn && !slices.Contains(may, own):
				t.Errorf("%s imports %s", path, name)
			case strings.HasPrefix(name, "github.com/rclone/"):
				t.Errorf("%s imports %s: nothing here knows rclone", path, name)
			case pkg == "merkle" && (name == "os" || name == "net" || name == "log"):
				t.Errorf("%s imports %s: the tree is pure", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) != len(allowed) {
		t.Errorf("found %d packages of %d", len(seen), len(allowed))
	}
}
