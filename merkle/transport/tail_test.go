package transport

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestEscape(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{`plain "text" with \ and größe`, `plain "text" with \ and größe`},
		{"a\tb", "a b"},
		{"\x1b]0;title\x07", `\x1b]0;title\a`},
		{"50%\r100%", `50%\r100%`},
		{"\xff\xfe\x80", `\xff\xfe\x80`},
		{"\u202egnp\u2066", `\u202egnp\u2066`},
		{"\u009b2J", `\u009b2J`},
		{"\ufffd", "\ufffd"},
		{"\x00", `\x00`},
	}
	for _, tt := range tests {
		if got := escape(tt.in); got != tt.want {
			t.Errorf("escape(%q) = %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestTail(t *testing.T) {
	long := strings.Repeat("x", maxTail)
	tests := []struct {
		name  string
		parts []string
		want  []string
	}{
		{"nothing", nil, nil},
		{"one line without an end", []string{"a", "b"}, []string{"ab"}},
		{"blank lines", []string{"\n \r\n a \r\n\n\nb\n"}, []string{"a", "b"}},
		{"exactly what fits", []string{long[:maxTail-2], "\nb"}, []string{long[:maxTail-2], "b"}},
		{"one byte too many", []string{"a\n", long[:maxTail-3], "\nbc"}, []string{"...", "bc"}},
		{"one endless line", []string{long, "y"}, []string{"...", long[1:] + "y"}},
		{"one endless line, ended", []string{long, "y\n"}, []string{"...", long[2:] + "y"}},
		{"more than all at once", []string{long + long + "\nend"}, []string{"...", "end"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var end Tail
			for _, part := range tt.parts {
				_, _ = end.Write([]byte(part)) // never fails
			}
			if got := end.Lines(); !slices.Equal(got, tt.want) {
				t.Errorf("got %.100q, want %.100q", got, tt.want)
			}
		})
	}
}

// TestTailIsBounded adds much more than is kept, in pieces of every kind.
func TestTailIsBounded(t *testing.T) {
	var end Tail
	for i := range 5000 {
		fmt.Fprintf(&end, "line %d%s\n", i, strings.Repeat(" ", i%97))
		if len(end.buf) > maxTail {
			t.Fatalf("%d bytes are kept", len(end.buf))
		}
	}
	lines := end.Lines()
	if lines[0] != "..." || lines[len(lines)-1] != "line 4999" {
		t.Errorf("kept %q to %q", lines[0], lines[len(lines)-1])
	}
}
