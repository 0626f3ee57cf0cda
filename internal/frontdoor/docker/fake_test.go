package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
)

// memory is an Engine that only remembers.
type memory struct {
	Engine
	mu        sync.Mutex
	networks  map[string]api.Network
	endpoints map[string]api.Endpoint
}

func (m *memory) Network(_ context.Context, name string) (api.Network, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.networks[name]
	if !ok {
		return n, api.Errorf(api.NotFound, name, "does not exist")
	}
	n.Status = &api.NetworkStatus{Endpoints: len(m.endpoints)} // there is one network that has any
	return n, nil
}

func (m *memory) Networks(context.Context) ([]api.Network, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.networks)), nil
}

func (m *memory) DropNetwork(_ context.Context, name string, _ uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.networks, name)
	return nil
}

func (m *memory) Endpoints(context.Context) ([]api.Endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.endpoints)), nil
}

func (m *memory) DropEndpoint(_ context.Context, network, name string, _ uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.endpoints, network+"/"+name)
	return nil
}

func (m *memory) AmendEndpoint(_ context.Context, network, name string, edit func(*api.Endpoint)) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ep, ok := m.endpoints[network+"/"+name]
	if !ok {
		return false, api.Errorf(api.NotFound, name, "does not exist")
	}
	edit(&ep)
	m.endpoints[ep.Key()] = ep
	return true, ep.Validate()
}

func (m *memory) AmendNetwork(_ context.Context, name string, edit func(*api.Network)) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.networks[name]
	if !ok {
		return false, api.Errorf(api.NotFound, name, "does not exist")
	}
	edit(&n)
	m.networks[name] = n
	return true, n.Validate()
}

// Values and SetValue make it a Book without pages.
func (m *memory) Value(string) string               { return "" }
func (m *memory) Values(string) map[string]string   { return nil }
func (m *memory) SetValue(name, value string) error { return nil }

// daemon is a Docker daemon that has networks and containers and nothing else. It is reached through pipes, so that time
// in a synctest bubble goes on while it is silent.
type daemon struct {
	mu         sync.Mutex
	down       bool
	hung       map[string]chan struct{} // paths that are not answered until the channel is closed
	networks   map[string]dockerNetwork
	containers map[string]dockerContainer
	asked      []string
	listeners  map[chan string]bool
	cut        chan struct{} // closed when connections break
	conns      sync.WaitGroup
}

func newDaemon() *daemon {
	return &daemon{hung: map[string]chan struct{}{}, networks: map[string]dockerNetwork{}, containers: map[string]dockerContainer{},
		listeners: map[chan string]bool{}, cut: make(chan struct{})}
}

// dial is a connection to the daemon, each with a server of its own.
func (d *daemon) dial(context.Context, string, string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, errors.New("connection refused")
	}
	near, far := net.Pipe()
	s := &http.Server{Handler: d}
	cut := d.cut
	l := &oneConn{conn: far, closed: make(chan struct{})}
	ended := make(chan struct{})
	s.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			close(ended)
		}
	}
	d.conns.Go(func() { _ = s.Serve(l) })
	d.conns.Go(func() {
		select {
		case <-cut:
		case <-ended:
		}
		_ = s.Close()
		far.Close()
	})
	return near, nil
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	conn   net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *oneConn) Accept() (c net.Conn, err error) {
	if c, l.conn = l.conn, nil; c != nil {
		return c, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{} }

// restart breaks every connection, and has those that come next refused while it is down.
func (d *daemon) restart(down bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = down
	close(d.cut)
	d.cut = make(chan struct{})
}

// change changes the daemon and tells its listeners of an event, if there is one.
func (d *daemon) change(f func(), event string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
	for l := range d.listeners {
		if event != "" {
			l <- event
		}
	}
}

func (d *daemon) count(path string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.asked {
		if strings.HasPrefix(p, path) {
			n++
		}
	}
	return n
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.asked = append(d.asked, r.URL.Path)
	hung, cut := d.hung[r.URL.Path], d.cut
	answer := d.answer(r.URL) // what comes late is of before
	d.mu.Unlock()
	if hung != nil {
		select {
		case <-hung:
		case <-r.Context().Done():
			return
		}
	}
	if r.URL.Path == "/events" {
		d.serveEvents(w, r, cut)
		return
	}
	if answer == nil {
		w.WriteHeader(http.StatusNotFound)
		answer = map[string]string{"message": "no such thing"}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (d *daemon) answer(u *url.URL) any {
	kind, id, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	switch {
	case kind == "version":
		return map[string]string{"Version": "20.10.24"}
	case kind == "networks" && id == "":
		var all []dockerNetwork
		for _, n := range d.networks {
			n.Containers = nil
			all = append(all, n)
		}
		return all
	case kind == "networks" && d.networks[id].ID != "":
		return d.networks[id]
	case id == "json":
		all := []dockerContainer{}
		for _, c := range d.containers {
			c.Name = ""
			all = append(all, c)
		}
		return all
	case kind == "containers":
		if c, ok := d.containers[strings.TrimSuffix(id, "/json")]; ok {
			return c
		}
	}
	return nil
}

func (d *daemon) serveEvents(w http.ResponseWriter, r *http.Request, cut chan struct{}) {
	mine := make(chan string, 100)
	d.mu.Lock()
	d.listeners[mine] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.listeners, mine)
		d.mu.Unlock()
	}()
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case e := <-mine:
			fmt.Fprintln(w, e)
			_ = http.NewResponseController(w).Flush()
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// watched is a door with its watcher, in a bubble.
type watched struct {
	*testing.T
	memory *memory
	daemon *daemon
	door   *Door
	w      *Watcher
	logged *bytes.Buffer
}

// newWatched makes a door that has Docker's network net_1 as shop; it is watched until stop.
func newWatched(t *testing.T) (x *watched, stop func()) {
	return newWatchedOn(t, &memory{
		networks:  map[string]api.Network{"shop": {Name: "shop", Meta: api.Meta{Labels: map[string]string{LabelNetwork: net1ID}}}},
		endpoints: map[string]api.Endpoint{}})
}

func newWatchedOn(t *testing.T, m *memory) (x *watched, stop func()) {
	x = &watched{T: t, daemon: newDaemon(), logged: &bytes.Buffer{}, memory: m}
	x.door = New(x.memory, x.memory, slog.New(slog.NewTextHandler(x.logged, nil)))
	x.w = x.door.Watch("/nowhere")
	x.w.api.daemon.http.Transport = &http.Transport{DialContext: x.daemon.dial, DisableKeepAlives: true, ResponseHeaderTimeout: daemonHeader}
	x.daemon.networks[net1ID] = dockerNetwork{ID: net1ID, Name: "net_1", Labels: map[string]string{"tier": "front"}}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { x.w.Run(ctx) })
	return x, func() {
		cancel()
		running.Wait()
		x.daemon.restart(true)
		x.daemon.conns.Wait()
	}
}

// start has Docker start a container: our endpoint is there before Docker tells of it.
func (x *watched) start(name string, at byte, aliases ...string) (id string) {
	id, ep := strings.Repeat(string(at), 64), strings.Repeat(string(at), 60)+"beef"
	x.memory.mu.Lock()
	e := api.Endpoint{Network: "shop", Name: endpointName(ep), Meta: api.Meta{Labels: map[string]string{LabelEndpoint: ep}}}
	x.memory.endpoints[e.Key()] = e
	x.memory.mu.Unlock()
	var c dockerContainer
	text := fmt.Sprintf(`{"Id":%q,"Name":%q,"NetworkSettings":{"Networks":{"net_1":{"NetworkID":%q,"EndpointID":%q}}}}`, id, "/"+name, net1ID, ep)
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		x.Fatal(err)
	}
	c.NetworkSettings.Networks["net_1"].Aliases = aliases
	x.daemon.change(func() { x.daemon.containers[id] = c },
		fmt.Sprintf(`{"Type":"network","Action":"connect","Actor":{"ID":%q,"Attributes":{"container":%q}}}`, net1ID, id))
	return id
}

func (x *watched) rename(id, name string) {
	x.daemon.change(func() {
		c := x.daemon.containers[id]
		c.Name = "/" + name
		x.daemon.containers[id] = c
	}, fmt.Sprintf(`{"Type":"container","Action":"rename","Actor":{"ID":%q}}`, id))
}

// called wants the names of all containers that are known.
func (x *watched) called(after time.Duration, want ...string) {
	x.Helper()
	time.Sleep(after)
	var got []string
	eps, _ := x.memory.Endpoints(x.Context())
	for _, e := range eps {
		got = append(got, e.Container.Name)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		x.Errorf("containers are called %q, want %q", got, want)
	}
}
