package session

import (
	"context"
	"sync"
)

// A queue hands values from many goroutines to many others without ever making
// a sender wait. What it may come to hold is for the senders to bound.
type queue[T any] struct {
	mu    sync.Mutex
	items []T
	ready chan struct{} // holds a token while there are items
}

func newQueue[T any]() *queue[T] { return &queue[T]{ready: make(chan struct{}, 1)} }

func (q *queue[T]) push(v T) {
	q.mu.Lock()
	q.items = append(q.items, v)
	q.mu.Unlock()
	q.signal()
}

func (q *queue[T]) signal() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// pop returns the oldest value, waiting for one, and whether there are more.
func (q *queue[T]) pop(ctx context.Context) (v T, more bool, err error) {
	for {
		q.mu.Lock()
		if len(q.items) > 0 {
			var zero T
			v, q.items[0] = q.items[0], zero
			q.items = q.items[1:]
			more = len(q.items) > 0
			q.mu.Unlock()
			if more {
				q.signal() // for the others
			}
			return v, more, nil
		}
		q.items = nil // let go of what the popped values took
		q.mu.Unlock()
		select {
		case <-q.ready:
		case <-ctx.Done():
			return v, false, ctx.Err()
		}
	}
}

// A mark is a number that grows, and that others can wait for.
type mark struct {
	mu      sync.Mutex
	value   int64
	changed chan struct{} // closed and replaced when value grows
}

func newMark() *mark { return &mark{changed: make(chan struct{})} }

func (m *mark) set(v int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v > m.value {
		m.value = v
		close(m.changed)
		m.changed = make(chan struct{})
	}
}

func (m *mark) get() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.value
}

// reach waits until the value is at least v.
func (m *mark) reach(ctx context.Context, v int64) error {
	for {
		m.mu.Lock()
		value, changed := m.value, m.changed
		m.mu.Unlock()
		if value >= v {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
