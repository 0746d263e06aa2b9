package session

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"
)

// Pair carries out both roles, for two images that are here, over the two ends of
// a connection within this process. The error is that of the side where something
// went wrong, rather than what the other has heard of it.
func Pair(ctx context.Context, near, far Carrier, src Source, dst Target, timeout time.Duration, opt Options) (Result, error) {
	opt.Plain = true // it crosses no wire
	var result Result
	var sendErr error
	var group errgroup.Group
	group.Go(func() error {
		result, sendErr = talk(ctx, near, timeout, func(c *Conn) (Result, error) { return Send(ctx, c, src, opt) })
		return nil
	})
	// Its own monitor: in one process, each side would overwrite what the other
	// counts.
	_, receiveErr := talk(ctx, far, timeout, func(c *Conn) (Result, error) {
		return Receive(ctx, c, dst, Options{Sequential: opt.Sequential})
	})
	if err := group.Wait(); err != nil {
		return result, err
	}
	return result, ownError(sendErr, receiveErr)
}

func talk(ctx context.Context, way Carrier, timeout time.Duration, role func(*Conn) (Result, error)) (Result, error) {
	c, err := NewConn(ctx, way, timeout)
	if err != nil {
		return Result{}, err
	}
	return role(c)
}

// ownError returns the first error that is not just what one side heard of the
// other.
func ownError(errs ...error) error {
	var heard error
	for _, err := range errs {
		var peer *PeerError
		var lost *LostError
		switch {
		case err == nil:
		case errors.As(err, &peer), errors.As(err, &lost):
			heard = err
		default:
			return err
		}
	}
	return heard
}
