package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/seine-net/seine/api"
)

// The times of a Watcher.
const (
	firstPause = time.Second
	maxPause   = 15 * time.Second // between two tries to reach Docker, doubled from firstPause; a call of Docker's ends it
	listAgain  = 30 * time.Second // after a container that could not be read
	listEvery  = 10 * time.Minute // in case that Docker told nothing
)

// lookers is how many containers are read at a time: one that is being started keeps its reader waiting.
const lookers = 4

// Watcher learns from Docker's own API what the plugin protocol does not carry: names, aliases and labels of containers
// and networks. It asks while no call of Docker's waits for it, and no call ever waits for it.
//
//	          first call or network of Docker's
//	asleep ───────────────────────────────────► reach: version, events ─► list, then look at what events touch
//	                                              ▲                              │
//	                                              └── pause, doubled ◄── any failure, the end of events
//
// Events say only what to look at; the answer to the look is what counts. So it does not matter which events are missed
// before the list, or come twice. Machines without Docker are not asked anything.
type Watcher struct {
	door *Door
	api  engineAPI
	path string
	log  *slog.Logger

	mu      sync.Mutex
	asked   bool   // it has been tried
	version string // Docker's, while it is listened to
	cause   error  // why it is not
}

// Watch makes the door's Watcher, which asks at a socket that ParseAPI gave. It starts nothing.
func (d *Door) Watch(path string) *Watcher {
	d.watcher = &Watcher{door: d, api: engineAPI{NewDaemon(path)}, path: path, log: d.log}
	return d.watcher
}

// called notes that Docker called: there is one to ask.
func (d *Door) called() {
	select {
	case d.calls <- struct{}{}:
	default:
	}
}

// Run follows Docker until ctx ends. A Docker that can't be reached is tried again.
func (w *Watcher) Run(ctx context.Context) {
	if !w.hasNetworks(ctx) {
		select {
		case <-ctx.Done():
		case <-w.door.calls:
		}
	}
	pause := firstPause
	for ctx.Err() == nil {
		reached, err := w.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		w.lost(err)
		if reached {
			pause = firstPause
			sleep(ctx, 0, w.door.calls) // those of before are not news
		}
		if sleep(ctx, pause, w.door.calls) {
			pause = firstPause // a daemon that starts calls before it can be asked
			sleep(ctx, pause, nil)
		} else {
			pause = min(2*pause, maxPause)
		}
	}
}

// sleep waits for a time or the end of ctx, and no longer than until there is a call, which it tells.
func sleep(ctx context.Context, d time.Duration, calls <-chan struct{}) (called bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-calls:
		return true
	}
	return false
}

// hasNetworks reports whether there is anything of Docker's here.
func (w *Watcher) hasNetworks(ctx context.Context) bool {
	nets, err := w.networks(ctx)
	return err != nil || len(nets) > 0
}

// networks gives the networks that are Docker's, by its identities.
func (w *Watcher) networks(ctx context.Context) (map[string]api.Network, error) {
	all, err := w.door.engine.Networks(ctx)
	out := map[string]api.Network{}
	for _, n := range all {
		if id := n.Labels[LabelNetwork]; id != "" {
			out[id] = n
		}
	}
	return out, err
}

// found and lost note what became of Docker. It is logged when it changes, not at every try.
func (w *Watcher) found(version string) {
	w.mu.Lock()
	news := w.version == ""
	w.version, w.cause, w.asked = version, nil, true
	w.mu.Unlock()
	if news {
		w.log.Info("names are learnt from Docker", "socket", w.path, "version", version)
	}
}

func (w *Watcher) lost(err error) {
	w.mu.Lock()
	news := w.version != "" || !w.asked
	w.version, w.cause, w.asked = "", err, true
	w.mu.Unlock()
	if news {
		w.log.Warn("Docker can't be asked for names; it is tried again", "socket", w.path, "err", err)
	}
}

func (w *Watcher) listens() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.version != ""
}

// Finding says for the doctor whether Docker is listened to.
func (w *Watcher) Finding() api.Finding {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := api.Finding{Level: "ok", Topic: "docker"}
	switch {
	case w.version != "":
		f.Found = fmt.Sprintf("names of containers and networks are learnt from Docker %s at %s", w.version, w.path)
	case w.asked:
		f.Level, f.Found = "note", fmt.Sprintf("Docker can't be asked for names at %s: %v", w.path, w.cause)
		f.Done = "names that are known stay, new containers have none but docker- and their endpoint's ID; it is tried again all the time"
	default:
		f.Found = fmt.Sprintf("Docker has no network here, so it is not asked for names at %s", w.path)
	}
	return f
}

// listener is a Watcher while it has Docker's events.
type listener struct {
	*Watcher
	running sync.WaitGroup
	slots   chan struct{} // lookers
	again   chan struct{} // something could not be read

	mu   sync.Mutex
	jobs map[string]bool // containers that are being looked at, with whether they are to be once more
}

// follow reaches Docker, lists what there is, and looks at what its events touch, until something fails. reached tells
// whether it came to the list.
func (w *Watcher) follow(ctx context.Context) (reached bool, err error) {
	version, err := w.api.version(ctx)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	events, err := w.api.events(ctx)
	if err != nil {
		return false, err
	}
	l := &listener{Watcher: w, slots: make(chan struct{}, lookers), again: make(chan struct{}, 1), jobs: map[string]bool{}}
	defer l.running.Wait()
	defer cancel(nil)
	defer events.close()
	// Docker drops who does not read its events, so the list is made meanwhile.
	l.running.Go(func() { cancel(l.keepListed(ctx, version)) })
	for {
		e, err := events.next()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return w.listens(), err
		}
		l.touch(ctx, e)
	}
}

// keepListed looks at everything now and, in case that something was missed, now and then.
func (l *listener) keepListed(ctx context.Context, version string) error {
	tick := time.NewTicker(listEvery)
	defer tick.Stop()
	for {
		if err := l.list(ctx); err != nil {
			return err
		}
		l.found(version)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-l.again:
			sleep(ctx, listAgain, nil)
		}
	}
}

// list looks at all networks and containers that have to do with us.
func (l *listener) list(ctx context.Context) error {
	ours, err := l.networks(ctx)
	if err != nil || len(ours) == 0 {
		return err
	}
	all, err := l.api.networks(ctx)
	if err != nil {
		return err
	}
	for _, dn := range all {
		if _, ok := ours[dn.ID]; ok {
			l.callNetwork(ctx, dn)
		}
	}
	running, err := l.api.containers(ctx)
	if err != nil {
		return err
	}
	for _, c := range running {
		for _, at := range c.NetworkSettings.Networks {
			if at != nil && ours[at.NetworkID].Name != "" {
				l.look(ctx, c.ID)
				break
			}
		}
	}
	return nil
}

// touch has looked at what an event touched.
func (l *listener) touch(ctx context.Context, e dockerEvent) {
	container, network := e.touched()
	if network != "" {
		if _, err := l.door.network(ctx, network); err != nil {
			return // another driver's
		}
	}
	switch {
	case container != "":
		l.look(ctx, container)
	case network != "":
		l.running.Go(func() {
			dn, err := l.api.network(ctx, network)
			if err == nil {
				l.callNetwork(ctx, dn)
			} else if !isAbsent(err) {
				l.failed("network", network, err)
			}
		})
	}
}

func (l *listener) failed(what, id string, err error) {
	l.log.Debug("Docker was asked in vain", what, id, "err", err)
	select {
	case l.again <- struct{}{}:
	default:
	}
}

// look has a container read and its endpoints called as it says, one time after the other.
func (l *listener) look(ctx context.Context, id string) {
	if checkID("container", id) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, busy := l.jobs[id]; busy {
		l.jobs[id] = true // what it reads now may be from before
		return
	}
	l.jobs[id] = false
	l.running.Go(func() {
		for l.once(ctx, id); l.more(ctx, id); l.once(ctx, id) {
		}
	})
}

// more reports whether a container has to be looked at once more; if not, its job is over.
func (l *listener) more(ctx context.Context, id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if again := l.jobs[id]; again && ctx.Err() == nil {
		l.jobs[id] = false
		return true
	}
	delete(l.jobs, id)
	return false
}

func (l *listener) once(ctx context.Context, id string) {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	c, err := l.api.container(ctx, id)
	<-l.slots
	if isAbsent(err) {
		return
	}
	if err == nil {
		err = l.callContainer(ctx, c)
	}
	if err != nil && ctx.Err() == nil {
		l.failed("container", id, err)
	}
}

// callContainer gives a container's endpoints their names. Endpoints that are gone, or another driver's, are none.
func (w *Watcher) callContainer(ctx context.Context, c dockerContainer) error {
	callings, dropped := c.callings()
	var errs []error
	news := false
	for _, to := range callings {
		n, err := w.door.network(ctx, to.network)
		if err == nil {
			var changed bool
			changed, err = w.door.engine.AmendEndpoint(ctx, n.Name, endpointName(to.endpoint), to.call)
			news = news || changed
		}
		if err != nil && api.CodeOf(err) != api.NotFound {
			errs = append(errs, err)
		}
	}
	if news && len(dropped) > 0 {
		w.log.Warn("not all that Docker calls a container can be taken over", "container", c.Name, "dropped", dropped)
	}
	return errors.Join(errs...)
}

// callNetwork gives a network the name and the labels that it has with Docker.
func (w *Watcher) callNetwork(ctx context.Context, dn dockerNetwork) {
	n, err := w.door.network(ctx, dn.ID)
	if err != nil {
		return
	}
	var dropped []string
	changed, err := w.door.engine.AmendNetwork(ctx, n.Name, func(n *api.Network) { dropped = dn.call(n) })
	if err != nil && api.CodeOf(err) != api.NotFound && ctx.Err() == nil {
		w.log.Warn("a network is not called as Docker does", "network", n.Name, "docker", dn.Name, "err", err)
	}
	if changed && len(dropped) > 0 {
		w.log.Warn("not all that Docker calls a network can be taken over", "network", n.Name, "dropped", dropped)
	}
}

// has asks Docker which of the endpoints it has, by its identities. Those that are missing in the answer are not known:
// Docker can't be asked, or it does not know their network. It is not asked where it was out of reach before.
func (w *Watcher) has(ctx context.Context, eps []api.Endpoint) map[string]bool {
	if w == nil || !w.listens() {
		return nil
	}
	ours, err := w.networks(ctx)
	if err != nil {
		return nil
	}
	ids := map[string]string{} // networks' by our names
	for id, n := range ours {
		ids[n.Name] = id
	}
	running, err := w.api.containers(ctx)
	if err != nil {
		w.log.Debug("Docker was asked in vain", "err", err)
		return nil
	}
	have := map[string]bool{}
	for _, c := range running {
		for _, at := range c.NetworkSettings.Networks {
			if at != nil {
				have[at.EndpointID] = true
			}
		}
	}
	lost := map[string][]string{} // endpoints that no container has, by network: Docker may be about to give them one
	for _, ep := range eps {
		if id := ep.Labels[LabelEndpoint]; id != "" && !have[id] && ids[ep.Network] != "" {
			lost[ids[ep.Network]] = append(lost[ids[ep.Network]], id)
		}
	}
	for id, endpoints := range lost {
		dn, err := w.api.network(ctx, id)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return nil
		}
		for _, ep := range endpoints {
			have[ep] = false
		}
		for _, at := range dn.Containers {
			have[at.EndpointID] = true
		}
	}
	return have
}

// forgotten gives the networks, by Docker's identities, that Docker once called by a name and has no longer.
func (w *Watcher) forgotten(ctx context.Context) (ids []string) {
	if w == nil || !w.listens() {
		return nil
	}
	ours, err := w.networks(ctx)
	if err != nil || len(ours) == 0 {
		return nil
	}
	all, err := w.api.networks(ctx)
	if err != nil {
		return nil
	}
	has := map[string]bool{}
	for _, dn := range all {
		has[dn.ID] = true
	}
	for id, n := range ours {
		if !has[id] && n.Labels[LabelName] != "" {
			ids = append(ids, id)
		}
	}
	return ids
}
