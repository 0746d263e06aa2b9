package endpoint

import (
	"context"

	"github.com/diskrsync/diskrsync/merkle/session"
)

// A Report tells what a sync did. Remote is what rclone calls the target.
type Report struct {
	Remote string
	session.Result
}

type reportKey struct{}

// WithReports has each Upload that succeeds within the context tell what it did: rclone
// hands back no more than an error. Several may do so at once.
func WithReports(ctx context.Context, tell func(Report)) context.Context {
	return context.WithValue(ctx, reportKey{}, tell)
}

// report tells who asked for it what a sync did.
func report(ctx context.Context, remote string, r session.Result) {
	if tell, ok := ctx.Value(reportKey{}).(func(Report)); ok {
		tell(Report{remote, r})
	}
}
