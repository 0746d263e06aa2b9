package session

import (
	"time"

	"github.com/diskrsync/diskrsync/merkle/image"
)

// At returns img as a source that was modified when somebody says, in nanoseconds since
// 1970. If that is 0, nobody does, and it is the image itself that knows.
func At(img image.Image, modified int64) Source {
	if modified == 0 {
		return img
	}
	return dated{img, time.Unix(0, modified)}
}

type dated struct {
	image.Image
	modified time.Time
}

func (d dated) Modified() time.Time { return d.modified }
