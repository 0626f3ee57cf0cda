package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seine-net/seine/api"
)

// Retry times of what a plugin refused, as those of the kernel's refusals but slower: each try may start programs.
const (
	pluginRetryMin = time.Second
	pluginRetryMax = 5 * time.Minute
	pluginsAtOnce  = 8
)

// refusedPlugins is what plugins did not do so far, by the ID of an entry or by a noun.
type refusedPlugins struct {
	mu   sync.Mutex
	by   map[string]*refusal
	wake chan struct{}
}

type refusal struct {
	err   error
	delay time.Duration
	next  time.Time
}

func (r *refusedPlugins) note(what string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := &refusal{err: err, delay: pluginRetryMin}
	if old := r.by[what]; old != nil {
		x.delay = min(2*old.delay, pluginRetryMax)
	}
	x.next = time.Now().Add(x.delay)
	r.by[what] = x
	r.poke()
}

// poke has RunPlugins look what is to be done.
func (r *refusedPlugins) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *refusedPlugins) clear(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.by, what)
}

// due says when something is to be tried again: at once where it was not tried yet.
func (r *refusedPlugins) due(what string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.by[what]; x != nil {
		return x.next
	}
	return time.Time{}
}

// why says what a plugin refused.
func (r *refusedPlugins) why(what string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.by[what]; x != nil {
		return x.err.Error()
	}
	return "its plugin has not been asked yet"
}

// pluginProblems gives what is not taken back yet, for people.
func (e *Engine) pluginProblems() []string {
	var out []string
	entries := e.entries()
	e.plugins.mu.Lock()
	defer e.plugins.mu.Unlock()
	for what, x := range e.plugins.by {
		if t := entries[what]; t != nil {
			what = "removal of " + t.noun() + " by its plugin"
		}
		out = append(out, fmt.Sprintf("%s: %v", what, x.err))
	}
	return out
}

// RunPlugins finishes with the plugins of others what was begun: after a restart, and what they refused. It works until
// ctx ends; Load must have returned.
func (e *Engine) RunPlugins(ctx context.Context) {
	for ctx.Err() == nil {
		timer := time.NewTimer(time.Until(e.TurnPlugins(ctx)))
		select {
		case <-ctx.Done():
		case <-e.plugins.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// TurnPlugins does what is due once and says when to come again.
func (e *Engine) TurnPlugins(ctx context.Context) time.Time {
	jobs := e.pluginJobs()
	next := time.Now().Add(time.Hour)
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, pluginsAtOnce)
	for _, what := range slices.Sorted(maps.Keys(jobs)) {
		if due := e.plugins.due(what); time.Now().Before(due) {
			if due.Before(next) {
				next = due
			}
			continue
		}
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			if err := jobs[what](ctx); err != nil && ctx.Err() == nil {
				e.plugins.note(what, err)
				e.Log.Warn("a plugin did not do what it was asked", "what", what, "err", err)
			} else {
				e.plugins.clear(what)
			}
		})
	}
	return next
}

// pluginJobs gives what is to be done: entries that nobody names are undone, endpoints before their networks; networks
// and endpoints that their plugins don't know are made.
func (e *Engine) pluginJobs() map[string]func(context.Context) error {
	jobs := map[string]func(context.Context) error{}
	used := map[string]bool{}
	entries := e.entries()
	for _, t := range entries {
		used[t.Of] = true
	}
	for id, t := range entries {
		if !e.named(id, t) && !used[id] {
			jobs[id] = func(ctx context.Context) error {
				return e.locked(ctx, t.noun(), func() error {
					if now, err := e.entry(id); err != nil || now == nil || e.named(id, now) {
						return err
					}
					return e.undo(ctx, id)
				})
			}
		}
	}
	for _, n := range e.Store.Networks() {
		if len(e.parties(n)) > 0 && n.Plugin == "" {
			jobs[api.NetworkNoun(n.Name)] = func(ctx context.Context) error { return e.resumeNetwork(ctx, n.Name) }
		}
	}
	for _, ep := range e.Store.Endpoints() {
		if n, ok := e.Store.Network(ep.Network); ok && len(e.parties(n)) > 0 && n.Plugin != "" && ep.Plugin == nil {
			jobs[api.EndpointNoun(ep.Network, ep.Name)] = func(ctx context.Context) error { return e.resumeEndpoint(ctx, ep.Key()) }
		}
	}
	return jobs
}

// named says whether the noun of an entry goes by it.
func (e *Engine) named(id string, t *entry) bool {
	if t.Endpoint == "" {
		n, ok := e.Store.Network(t.Network)
		return ok && n.Plugin == id
	}
	ep, ok := e.Store.Endpoint(t.Network + "/" + t.Endpoint)
	return ok && ep.Plugin != nil && ep.Plugin.ID == id
}

func (e *Engine) locked(ctx context.Context, noun string, f func() error) error {
	unlock, err := e.busy.lock(ctx, noun)
	if err != nil {
		return err
	}
	defer unlock()
	return f()
}

func (e *Engine) resumeNetwork(ctx context.Context, name string) error {
	return e.locked(ctx, api.NetworkNoun(name), func() error {
		n, ok := e.Store.Network(name)
		if !ok || n.Plugin != "" {
			return nil
		}
		n, err := e.setup(ctx, n, "", nil)
		if err != nil {
			return err
		}
		e.plugins.poke() // its endpoints can be attached now
		return e.applyNetwork(ctx, n)
	})
}

func (e *Engine) resumeEndpoint(ctx context.Context, key string) error {
	network, name, _ := strings.Cut(key, "/")
	return e.locked(ctx, api.EndpointNoun(network, name), func() error {
		ep, ok := e.Store.Endpoint(key)
		if !ok || ep.Plugin != nil {
			return nil
		}
		if ep.Sandbox.Netns != "" {
			if _, err := e.Machine.CheckNetns(ep.Sandbox.Netns); err != nil {
				e.Log.Info("the namespace is gone: endpoint is detached", "endpoint", key)
				return e.dropEndpoint(ctx, ep)
			}
		}
		ep, err := e.attach(ctx, ep)
		if err != nil {
			return err
		}
		keys, err := e.setEndpoint(ep)
		if err == nil {
			err = e.Loop.Sync(ctx, keys)
		}
		e.announce(ep)
		return err
	})
}
