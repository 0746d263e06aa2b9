package image

import (
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"time"
)

const (
	crashPage   = 4096 // what a hole is made of
	crashSector = 512  // what a disk writes wholly or not at all
)

// A crashVolume is what lies on a disk: files by inode, and names that lead to them.
type crashVolume struct {
	nodes map[uint64]*crashNode
	names map[string]uint64 // path to inode; folders too
}

// crashPages are the pages of a file, by number. One that is in the map is not
// changed any more, so that volumes can share it.
type crashPages map[int64]*[crashPage]byte

// A crashNode is a file or a folder.
type crashNode struct {
	mode     fs.FileMode
	size     int64
	modified time.Time
	pages    crashPages // holes have none
}

// A changeKind is what a diskChange does.
type changeKind int

const (
	didWrite changeKind = iota
	didPunch
	didTruncate
	didStamp      // the modification time was set
	didSync       // everything before is durable
	failedSync    // nothing before will be durable by a later sync
	didMake       // an inode was made, and given a name
	didLink       // a name was given to an inode
	didRename     // a name was taken from an inode and another given to it
	didRemove     // a name was taken away
	didSyncFolder // the names in a folder are durable
)

// A diskChange is one operation that altered what lies on the disk.
type diskChange struct {
	kind     changeKind
	inode    uint64
	mode     fs.FileMode // of an inode that was made
	name     string      // that was given or taken away, or of the folder synced
	from     string      // the name that a rename took away
	off, end int64
	data     []byte
	size     int64     // of the file from then on
	modified time.Time // of the file from then on
}

// The parts of a change besides the sectors it touches.
const (
	namePart  = -1
	sizePart  = -2
	stampPart = -3
)

// A fate decides whether a part of change i that was not synced survives. A part
// is a sector of the file, or one of those above.
type fate func(i int, part int64) bool

func keepNone(int, int64) bool { return false }
func keepAll(int, int64) bool  { return true }

// keepSubset keeps the changes of which the bit in mask is set, wholly.
func keepSubset(mask uint64, bits map[int]int) fate {
	return func(i int, _ int64) bool { return mask>>bits[i]&1 == 1 }
}

// keepAtRandom keeps changes wholly, not at all or in part. How many, and whether
// rather names or what is in files, is chosen once.
func keepAtRandom(r *rand.Rand) fate {
	chances := []float64{0, 0.1, 0.5, 0.9, 1}
	bias := map[bool]float64{true: chances[r.IntN(5)], false: chances[1+r.IntN(3)]}
	modes := map[int]float64{} // the chance of each part of a change
	return func(i int, part int64) bool {
		chance, known := modes[i]
		if !known {
			switch {
			case r.IntN(4) == 0 && part != namePart:
				chance = 0.5
			case r.Float64() < bias[part == namePart]:
				chance = 1
			}
			modes[i] = chance
		}
		return r.Float64() < chance
	}
}

// surviving tells for each of the changes whether it survives in any case.
func surviving(log []diskChange) []bool {
	sure := make([]bool, len(log))
	files, folders := map[uint64][]int{}, map[string][]int{}
	settle := func(pending []int) {
		for _, i := range pending {
			sure[i] = true
		}
	}
	for i, c := range log {
		switch c.kind {
		case didWrite, didPunch, didTruncate, didStamp:
			files[c.inode] = append(files[c.inode], i)
		case didMake, didLink, didRename, didRemove:
			folders[path.Dir(c.name)] = append(folders[path.Dir(c.name)], i)
		case didSync:
			settle(files[c.inode])
			delete(files, c.inode)
		case failedSync:
			files[c.inode] = slices.DeleteFunc(files[c.inode], func(i int) bool { return log[i].kind == didWrite })
		case didSyncFolder:
			settle(folders[c.name])
			delete(folders, c.name)
		}
	}
	return sure
}

// undecided returns the changes that may be lost, each with a number from 0 up.
func undecided(log []diskChange) map[int]int {
	open := map[int]int{}
	for i, sure := range surviving(log) {
		if k := log[i].kind; !sure && k != didSync && k != failedSync && k != didSyncFolder {
			open[i] = len(open)
		}
	}
	return open
}

func newCrashVolume() *crashVolume {
	return &crashVolume{
		nodes: map[uint64]*crashNode{1: {mode: fs.ModeDir | 0o700, pages: crashPages{}}},
		names: map[string]uint64{".": 1},
	}
}

func (v *crashVolume) clone() *crashVolume {
	w := &crashVolume{nodes: make(map[uint64]*crashNode, len(v.nodes)), names: maps.Clone(v.names)}
	for inode, n := range v.nodes {
		copied := *n
		copied.pages = maps.Clone(n.pages)
		w.nodes[inode] = &copied
	}
	return w
}

// crashed returns what a crash after the changes in log leaves of a disk that
// held v before them.
func (v *crashVolume) crashed(log []diskChange, f fate) *crashVolume {
	w := v.clone()
	re := crashReplay{crashVolume: w, fate: f, sure: surviving(log), lost: map[uint64]*losses{}}
	for i := range log {
		re.apply(i, &log[i])
	}
	for _, n := range w.nodes {
		n.clip()
	}
	for name := range w.names {
		if !w.leads(name) {
			delete(w.names, name)
		}
	}
	// What has no name is gone, and its space given back.
	for inode := range w.nodes {
		if !w.named(inode) {
			delete(w.nodes, inode)
		}
	}
	return w
}

// leads reports whether every folder on the way to a name exists.
func (v *crashVolume) leads(name string) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := v.names[dir]; !ok {
			return false
		}
	}
	return true
}

func (v *crashVolume) named(inode uint64) bool {
	for _, n := range v.names {
		if n == inode {
			return true
		}
	}
	return false
}

// clip drops what lies behind the end of a file.
func (n *crashNode) clip() {
	for at := range n.pages {
		if at*crashPage >= n.size {
			delete(n.pages, at)
		}
	}
	if n.size%crashPage != 0 {
		n.clear(n.size, (n.size/crashPage+1)*crashPage)
	}
}

// put writes data, into new pages where there were none.
func (n *crashNode) put(off int64, data []byte) {
	for len(data) > 0 {
		page := new([crashPage]byte)
		if old := n.pages[off/crashPage]; old != nil {
			*page = *old
		}
		did := copy(page[off%crashPage:], data)
		n.pages[off/crashPage] = page
		off, data = off+int64(did), data[did:]
	}
}

// clear writes zeros into the pages that there are.
func (n *crashNode) clear(off, end int64) {
	for at, stop := off, int64(0); at < end; at = stop {
		stop = min(end, (at/crashPage+1)*crashPage)
		if n.pages[at/crashPage] != nil {
			n.put(at, make([]byte, stop-at))
		}
	}
}

// losses is what an inode has lost so far in a replay. What builds upon it is
// lost as well: a sector, a size and a time go to the disk as they are, with all
// that happened to them before.
type losses struct {
	sectors    map[int64]bool
	size, time bool
}

// A crashReplay applies changes to a volume, or those parts that survive.
type crashReplay struct {
	*crashVolume
	fate fate
	sure []bool
	lost map[uint64]*losses
}

func (re *crashReplay) survives(i int, part int64) bool { return re.sure[i] || re.fate(i, part) }

func (re *crashReplay) apply(i int, c *diskChange) {
	switch c.kind {
	case didMake, didLink, didRename, didRemove:
		if c.kind == didMake {
			re.nodes[c.inode] = &crashNode{mode: c.mode, modified: c.modified, pages: crashPages{}}
		}
		if re.survives(i, namePart) {
			re.rename(c)
		}
	case didWrite, didPunch, didTruncate, didStamp:
		re.content(i, c, re.nodes[c.inode])
	}
}

// rename applies a change of names. What happened to a name before does not
// matter for what it is now, so one that was taken away is gone, whatever it led
// to in what is left.
func (re *crashReplay) rename(c *diskChange) {
	delete(re.names, c.from)
	delete(re.names, c.name)
	if c.kind != didRemove {
		re.names[c.name] = c.inode
	}
}

// content applies a change to a file.
func (re *crashReplay) content(i int, c *diskChange, n *crashNode) {
	l := re.lost[c.inode]
	if l == nil {
		l = &losses{sectors: map[int64]bool{}}
		re.lost[c.inode] = l
	}
	l.size = c.size != n.size && !re.sure[i] && (l.size || !re.fate(i, sizePart))
	l.time = !re.sure[i] && (l.time || !re.fate(i, stampPart))
	switch c.kind {
	case didWrite:
		re.write(i, c, n, l)
	case didPunch:
		re.punch(i, c, n, l)
	case didTruncate:
		re.truncate(c, n, l)
	}
	if !l.size {
		n.size = c.size
	}
	if !l.time {
		n.modified = c.modified
	}
}

// sector decides about one sector, of which a change covers all or a part.
func (re *crashReplay) sector(i int, sector int64, whole bool, l *losses) bool {
	keep := re.survives(i, sector) && (whole || re.sure[i] || !l.sectors[sector])
	if keep {
		delete(l.sectors, sector)
	} else {
		l.sectors[sector] = true
	}
	return keep
}

func (re *crashReplay) write(i int, c *diskChange, n *crashNode, l *losses) {
	end := c.off + int64(len(c.data))
	from := c.off // of what is kept and not yet put
	for at, stop := c.off, int64(0); at < end; at = stop {
		sector := at / crashSector
		stop = min(end, (sector+1)*crashSector)
		whole := at%crashSector == 0 && (stop%crashSector == 0 || stop == c.size)
		if !re.sector(i, sector, whole, l) {
			n.put(from, c.data[from-c.off:at-c.off])
			from = stop
		}
	}
	n.put(from, c.data[from-c.off:])
}

func (re *crashReplay) punch(i int, c *diskChange, n *crashNode, l *losses) {
	for at := c.off; at < c.end; at += crashPage {
		var gone []int64
		for s := at; s < at+crashPage; s += crashSector {
			if re.sector(i, s/crashSector, true, l) {
				gone = append(gone, s)
			}
		}
		if len(gone) == crashPage/crashSector {
			delete(n.pages, at/crashPage)
			continue
		}
		for _, s := range gone {
			n.clear(s, s+crashSector)
		}
	}
}

// truncate gives up what lies behind the new end if the new size survives, and
// not otherwise: a file system does both or neither.
func (re *crashReplay) truncate(c *diskChange, n *crashNode, l *losses) {
	if !l.size {
		size := n.size
		n.size = c.size
		n.clip()
		n.size = size
		maps.DeleteFunc(l.sectors, func(s int64, _ bool) bool { return s*crashSector >= c.size })
		return
	}
	for at := range n.pages {
		for s := at * crashPage; s < (at+1)*crashPage; s += crashSector {
			if s+crashSector > c.size {
				l.sectors[s/crashSector] = true
			}
		}
	}
}
