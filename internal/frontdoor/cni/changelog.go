package cni

import (
	"context"
	"errors"

	"github.com/seine-net/seine/internal/kernel"
)

// changeLog carries out changes of what others made in a container, and can take them back.
type changeLog struct {
	kernel kernel.Kernel
	done   []kernel.Change
}

// do carries out changes in the order that they need. The error is that of the first that failed.
func (l *changeLog) do(ctx context.Context, changes []kernel.Change) error {
	var first error
	for i, err := range applyAll(ctx, l.kernel, changes) { // in the order that applyAll gave them
		if err == nil {
			l.done = append(l.done, changes[i])
		} else if first == nil {
			first = err
		}
	}
	return first
}

// undo takes back what was done, last first. What is deleted is made as it was, and the other way round.
func (l *changeLog) undo(ctx context.Context) error {
	var back []kernel.Change
	for i := len(l.done) - 1; i >= 0; i-- {
		c := l.done[i]
		if c.Op == kernel.Delete {
			back = append(back, kernel.Change{Op: kernel.Create, New: c.Old})
		} else {
			back = append(back, kernel.Change{Op: kernel.Delete, Old: c.New})
		}
	}
	l.done = nil
	if len(back) == 0 {
		return nil
	}
	return errors.Join(l.kernel.Apply(context.WithoutCancel(ctx), back)...)
}

func creations(objs ...kernel.Object) []kernel.Change {
	var out []kernel.Change
	for _, o := range objs {
		out = append(out, kernel.Change{Op: kernel.Create, New: o})
	}
	return out
}

func deletions(objs ...kernel.Object) []kernel.Change {
	var out []kernel.Change
	for _, o := range objs {
		out = append(out, kernel.Change{Op: kernel.Delete, Old: o})
	}
	return out
}
