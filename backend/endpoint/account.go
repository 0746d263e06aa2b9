package endpoint

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/accounting"
	"github.com/rclone/rclone/lib/atexit"

	"github.com/diskrsync/diskrsync/merkle/session"
)

// An account is where rclone counts a transfer, or nil.
type account struct{ *accounting.Account }

// release returns what in reads from without being counted, and where to count.
func release(in io.Reader) (io.Reader, account) {
	if acc, ok := in.(*accounting.Account); ok {
		return acc.OldStream(), account{acc}
	}
	if stream, acc := accounting.UnWrapAccounting(in); acc != nil {
		return stream, account{acc}
	}
	return in, account{}
}

// Abandon stops reading ahead, as nothing will be read.
func (a account) Abandon() {
	if a.Account != nil {
		a.Account.Abandon()
	}
}

// reportEvery is how often rclone is told how far a sync is. It shows that twice a
// second at most.
const reportEvery = 100 * time.Millisecond

// A following counts what a session does for as long as it runs.
type following struct {
	ctx     context.Context // ends with the one it was made from, or at --max-transfer
	cancel  context.CancelCauseFunc
	account account
	mon     *session.Monitor
	counted int64
	budget  *Budget
	rest    int64 // of what it was promised
	stop    chan struct{}
	stopped chan struct{}
}

// follow counts what is compared of an image, for which size bytes of the budget were
// taken.
func (a account) follow(ctx context.Context, mon *session.Monitor, budget *Budget, size int64) *following {
	f := &following{account: a, mon: mon, budget: budget, rest: size, stop: make(chan struct{}), stopped: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancelCause(ctx)
	go func() {
		defer close(f.stopped)
		tick := time.NewTicker(reportEvery)
		defer tick.Stop()
		for {
			select {
			case <-f.stop:
				return
			case <-tick.C:
				f.count(mon.Snapshot().Source.Scanned)
				if overLimit(ctx) {
					f.cancel(accounting.ErrorMaxTransferLimitReachedFatal)
				}
			}
		}
	}()
	return f
}

// count brings the account up to what has been compared.
func (f *following) count(scanned int64) {
	n := scanned - f.counted
	if n <= 0 || f.account.Account == nil {
		return
	}
	promised := min(n, f.rest)
	f.budget.give(promised) // first: what is counted twice could keep another from its share
	f.rest -= promised
	f.account.AccountReadN(n)
	f.counted = scanned
}

// end stops counting, and returns the error that the sync ends with.
func (f *following) end(r session.Result, err error) error {
	close(f.stop)
	<-f.stopped
	defer f.cancel(nil)
	defer func() { f.budget.leave(f.rest) }()
	if err == nil {
		f.count(r.Size)
		return nil
	}
	if f.account.Account != nil {
		f.account.AccountReadN(-f.counted) // it is counted anew when it is tried again
	}
	if cause := context.Cause(f.ctx); cause != nil && errors.Is(err, context.Canceled) {
		return cause
	}
	return err
}

// overLimit reports whether there is too much, for --max-transfer with --cutoff-mode
// hard.
func overLimit(ctx context.Context) bool {
	most, ok := limit(ctx)
	return ok && accounting.Stats(ctx).GetBytes() > most
}

func limit(ctx context.Context) (int64, bool) {
	ci := fs.GetConfig(ctx)
	return int64(ci.MaxTransfer), ci.MaxTransfer >= 0 && ci.CutoffMode == fs.CutoffModeHard
}

// A Budget keeps syncs that run at once from exceeding together what --max-transfer
// allows: each is compared to its end, or cut off. The zero Budget is ready for use.
type Budget struct {
	mu       sync.Mutex
	running  int           // syncs that are under way
	promised int64         // bytes that are yet to be counted of them
	ended    chan struct{} // is closed when one ends, if someone waits for that
}

// take promises size bytes to a sync. If there are not as many left it waits for those
// that are under way, so that they are not ended with it, and fails then.
func (b *Budget) take(ctx context.Context, size int64) error {
	if b == nil {
		b = new(Budget)
	}
	for {
		ok, ended := b.try(ctx, size)
		switch {
		case ok:
			return nil
		case ended == nil:
			return accounting.ErrorMaxTransferLimitReachedFatal
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// try takes what is left. If that is too little, it returns what is closed when more may
// be known, nil if nothing else is under way.
func (b *Budget) try(ctx context.Context, size int64) (ok bool, ended chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	most, limited := limit(ctx)
	switch {
	case !limited || accounting.Stats(ctx).GetBytes()+b.promised+size <= most:
		b.promised += size
		b.running++
		return true, nil
	case b.running == 0:
		return false, nil
	case b.ended == nil:
		b.ended = make(chan struct{})
	}
	return false, b.ended
}

// give takes back a promise, because the bytes are counted.
func (b *Budget) give(size int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.promised -= size
}

// leave ends a sync, of which so many bytes will not come.
func (b *Budget) leave(rest int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.promised -= rest
	b.running--
	if b.ended != nil {
		close(b.ended)
		b.ended = nil
	}
}

// Interruptible ends ctx when rclone is told to end, and has it wait until stop was
// called: what has arrived is made durable for the next run, and a far agent ends.
func Interruptible(ctx context.Context) (context.Context, func()) {
	const patience = 10 * time.Second
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	handle := atexit.Register(func() {
		cancel()
		select {
		case <-over:
		case <-time.After(patience):
		}
	})
	return ctx, func() {
		close(over)
		cancel()
		if !atexit.Signalled() {
			atexit.Unregister(handle)
		}
	}
}
