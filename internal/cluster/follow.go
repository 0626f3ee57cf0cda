package cluster

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cluster/agreed"
)

// Definitions is what Follow tells of the networks that the cluster agrees on.
type Definitions interface {
	AdoptNetwork(ctx context.Context, n api.Network) error
	ForgetNetwork(ctx context.Context, name, id string) error
	// Networks gives the networks that the machine knows.
	Networks(ctx context.Context) ([]api.Network, error)
}

// retryEvery is how often a definition that this machine can't use is tried again.
const retryEvery = 10 * time.Second

// follower is what Follow has not been able to do yet.
type follower struct {
	to      Definitions
	log     *slog.Logger
	want    map[string]api.Network // by name; with an empty ID: it was abolished
	said    map[string]string
	present map[string]bool // while the present state comes: what was named
	failed  map[string]string
}

// Follow keeps a machine's networks as the cluster agrees on, until ctx ends. problems, where not nil, is told once the present
// state was taken up, and then whenever they change, by network, what keeps definitions from being used here.
func Follow(ctx context.Context, s agreed.Store, to Definitions, log *slog.Logger, problems func(map[string]string)) {
	f := &follower{to: to, log: log, want: map[string]api.Network{}, said: map[string]string{}, present: map[string]bool{}, failed: map[string]string{}}
	events := s.Watch(ctx, NetworkPrefix)
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	synced, told := false, false
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				return
			}
			f.event(ctx, ev)
			synced = synced || ev.Synced
		case <-retry.C:
		case <-ctx.Done():
			return
		}
		f.apply(ctx)
		if problems != nil && synced && (!told || !maps.Equal(f.said, f.failed)) {
			told = true
			f.said = maps.Clone(f.failed)
			problems(maps.Clone(f.failed))
		}
	}
}

func (f *follower) event(ctx context.Context, ev agreed.Event) {
	switch {
	case ev.Reset:
		f.present = map[string]bool{}
	case ev.Synced:
		f.gone(ctx)
		f.present = nil
	case ev.Value == nil:
		name := strings.TrimPrefix(ev.Key, NetworkPrefix)
		f.want[name] = api.Network{Name: name}
	default:
		n, err := ParseNetwork(ev.KV)
		if err != nil {
			f.log.Error("a definition in the cluster's store is left out", "err", err)
			return
		}
		if f.present != nil {
			f.present[n.Name] = true
		}
		f.want[n.Name] = n
	}
}

// gone finds what was abolished while nobody looked.
func (f *follower) gone(ctx context.Context) {
	all, err := f.to.Networks(ctx)
	if err != nil {
		return
	}
	for _, n := range all {
		if n.Shared() && !f.present[n.Name] {
			f.want[n.Name] = api.Network{Name: n.Name}
		}
	}
}

// apply does what is wanted. What fails stays wanted.
func (f *follower) apply(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(f.want)) {
		n := f.want[name]
		var err error
		if n.ID != "" {
			err = f.to.AdoptNetwork(ctx, n)
		} else {
			err = f.forget(ctx, name)
		}
		if err == nil {
			delete(f.want, name)
			delete(f.failed, name)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if f.failed[name] != err.Error() {
			f.failed[name] = err.Error()
			f.log.Warn("a network of the cluster is not as agreed on this machine; it is tried again", "network", name, "err", err)
		}
	}
}

func (f *follower) forget(ctx context.Context, name string) error {
	all, err := f.to.Networks(ctx)
	if err != nil {
		return err
	}
	for _, n := range all {
		if n.Name == name && n.Shared() {
			return f.to.ForgetNetwork(ctx, name, n.ID)
		}
	}
	return nil
}
