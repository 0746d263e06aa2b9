package session

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestOwnError(t *testing.T) {
	own := errors.New("no space left on device")
	heard := fmt.Errorf("wrapped: %w", &PeerError{Text: own.Error()})
	lost := fmt.Errorf("wrapped: %w", &LostError{Err: io.ErrUnexpectedEOF})
	for _, tt := range []struct {
		name         string
		source, sink error
		want         error
	}{
		{"none", nil, nil, nil},
		{"the source's", own, heard, own},
		{"the target's", heard, own, own},
		{"the target's, and the source lost it", lost, own, own},
		{"the source's alone", own, nil, own},
		{"both have their own", own, io.ErrClosedPipe, own},
		{"only what was heard", heard, nil, heard},
		{"only that it was lost", nil, lost, lost},
	} {
		if got := ownError(tt.source, tt.sink); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
