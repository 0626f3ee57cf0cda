package client_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
	httpdoor "github.com/seine-net/seine/internal/frontdoor/http"
	"github.com/seine-net/seine/internal/frontdoor/http/fakeengine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The client has the verbs of the engine, and of the machine's part in a cluster.
var _ httpdoor.Engine = (*client.Client)(nil)
var _ httpdoor.Cluster = (*client.Client)(nil)

// daemon is a door on a socket that can be stopped and started again.
type daemon struct {
	t      *testing.T
	engine *fakeengine.Engine
	socket string
	stop   func()
}

func newDaemon(t *testing.T) *daemon {
	d := &daemon{t: t, engine: fakeengine.New(), socket: filepath.Join(t.TempDir(), "s")}
	d.start()
	t.Cleanup(func() { d.stop() })
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l, err := httpdoor.Listen(d.socket, httpdoor.SocketMode)
	if err != nil {
		d.t.Fatal(err)
	}
	done := make(chan error, 1)
	door := httpdoor.New(d.engine, httpdoor.Options{Cluster: d.engine, Log: slog.New(slog.DiscardHandler)})
	go func() { done <- httpdoor.Serve(ctx, l, door) }()
	d.stop = func() {
		cancel()
		if err := <-done; err != nil {
			d.t.Error(err)
		}
		d.stop = func() {}
	}
}

func (d *daemon) client() *client.Client {
	d.t.Helper()
	c, err := client.New(d.socket)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(c.Close)
	return c
}

func codeOf(t *testing.T, err error) api.Code {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) {
		t.Errorf("%v is no api.Error", err)
		return ""
	}
	return e.Code
}

func TestVerbs(t *testing.T) {
	ctx := t.Context()
	d := newDaemon(t)
	c := d.client()
	n, err := c.PutNetwork(ctx, api.Network{Name: "a", Meta: api.Meta{Labels: map[string]string{"x": "<&>"}}}, api.CreateOnly)
	if err != nil || n.Revision != 1 || n.Labels["x"] != "<&>" || n.Subnet6() == nil {
		t.Fatalf("%+v %v", n, err)
	}
	if _, err := c.PutNetwork(ctx, n, api.CreateOnly); codeOf(t, err) != api.Conflict {
		t.Errorf("create again: %v", err)
	}
	if n, err = c.PutNetwork(ctx, n, n.Revision); err != nil || n.Revision != 2 {
		t.Errorf("change: %+v %v", n, err)
	}
	if _, err := c.PutNetwork(ctx, n, 1); codeOf(t, err) != api.Stale {
		t.Errorf("stale: %v", err)
	}
	got, err := c.Network(ctx, "a")
	if err != nil || !reflect.DeepEqual(got, n) {
		t.Errorf("\n got %+v %v\nwant %+v", got, err, n)
	}
	e := api.Endpoint{Network: "a", Name: "web", Sandbox: api.Sandbox{Netns: "/run/netns/x"},
		Ports: []api.Port{{HostIP: netip.MustParseAddr("::1"), HostPort: 80, ContainerPort: 8080}}}
	if e, err = c.PutEndpoint(ctx, e, 0); err != nil || e.Status.State != api.Attached || len(e.Addresses) != 2 {
		t.Fatalf("%+v %v", e, err)
	}
	if got, err := c.Endpoint(ctx, "a", "web"); err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("\n got %+v %v\nwant %+v", got, err, e)
	}
	if all, err := c.Endpoints(ctx); err != nil || len(all) != 1 {
		t.Errorf("%v %v", all, err)
	}
	if all, err := c.NetworkEndpoints(ctx, "a"); err != nil || len(all) != 1 {
		t.Errorf("%v %v", all, err)
	}
	if all, err := c.Networks(ctx); err != nil || len(all) != 1 || all[0].Status.Endpoints != 1 {
		t.Errorf("%v %v", all, err)
	}
	if all, err := c.Ports(ctx); err != nil || len(all) != 1 || all[0].Endpoint != "web" || all[0].Protocol != "tcp" {
		t.Errorf("%v %v", all, err)
	}
	d.engine.Changes = []api.Change{{Op: "+", Object: "o", Owner: "endpoint/a/web"}, {Op: "-", Object: "p"}}
	if p, err := c.Plan(ctx, "endpoint/a/web"); err != nil || len(p.Changes) != 1 {
		t.Errorf("%v %v", p, err)
	}
	if p, err := c.Plan(ctx, ""); err != nil || len(p.Changes) != 2 {
		t.Errorf("%v %v", p, err)
	}
	d.engine.Findings = []api.Finding{{Level: "ok"}}
	if f, err := c.Doctor(ctx); err != nil || len(f) != 1 {
		t.Errorf("%v %v", f, err)
	}
	if err := c.DeleteNetwork(ctx, "a", 0); codeOf(t, err) != api.InUse {
		t.Errorf("in use: %v", err)
	}
	if err := c.DeleteEndpoint(ctx, "a", "web", e.Revision+1); codeOf(t, err) != api.Stale {
		t.Errorf("stale: %v", err)
	}
	if err := c.DeleteEndpoint(ctx, "a", "web", e.Revision); err != nil {
		t.Error(err)
	}
	if err := c.DeleteEndpoint(ctx, "a", "web", 0); codeOf(t, err) != api.NotFound {
		t.Errorf("absent: %v", err)
	}
	if err := c.Reset(ctx); err != nil {
		t.Error(err)
	}
	if node, err := c.Node(ctx); err != nil || node.Networks != 0 {
		t.Errorf("%+v %v", node, err)
	}
}

// TestNames: a name that is none of a path's segments never reaches another noun.
func TestNames(t *testing.T) {
	ctx := t.Context()
	c := newDaemon(t).client()
	for _, name := range []string{"", ".", "..", "a/b", "a b", "%2e", "a?b", "a#b", "-", "ä"} {
		if _, err := c.PutNetwork(ctx, api.Network{Name: name}, 0); codeOf(t, err) != api.Invalid {
			t.Errorf("put %q: %v", name, err)
		}
		if _, err := c.PutEndpoint(ctx, api.Endpoint{Network: "a", Name: name}, 0); codeOf(t, err) != api.Invalid {
			t.Errorf("put endpoint %q: %v", name, err)
		}
		if n, err := c.Network(ctx, name); codeOf(t, err) != api.NotFound {
			t.Errorf("get %q: %v %v", name, n, err)
		}
		if err := c.DeleteEndpoint(ctx, name, "x", 0); codeOf(t, err) != api.NotFound {
			t.Errorf("delete %q: %v", name, err)
		}
	}
}

func TestErrorIsWhole(t *testing.T) {
	d := newDaemon(t)
	want := api.FieldError("network \"a\"", "subnets[0].prefix", "10.0.0.0/7", "overlaps <it>", "another")
	want.Code = api.Conflict
	d.engine.Fail = func(string) error { return want }
	_, err := d.client().Network(t.Context(), "a")
	if !reflect.DeepEqual(err, error(want)) {
		t.Errorf("\n got %#v\nwant %#v", err, want)
	}
}

func TestUnreachable(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none")
	c, err := client.New("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Node(t.Context())
	if codeOf(t, err) != api.Unavailable || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "start it with `seined`") ||
		!errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err = c.Watch(t.Context(), 0); codeOf(t, err) != api.Unavailable {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = c.Node(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
}

func TestAnswersOfSomebodyElse(t *testing.T) {
	var body string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body == "redirect" {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
			return
		}
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte(body))
	}))
	defer srv.Close()
	c, err := client.New(srv.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, body = range []string{"", "<html>", `{"error":{}}`, `{"error":null}`, "redirect"} {
		if _, err := c.Node(t.Context()); codeOf(t, err) != api.Internal {
			t.Errorf("%q: %v", body, err)
		}
	}
}

// TestAnswerBreaksOff: half an answer is an error that can be tried again.
func TestAnswerBreaksOff(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 4096))
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"name\":"))
		conn.Close()
	}()
	c, err := client.New("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Node(t.Context()); codeOf(t, err) != api.Unavailable {
		t.Error(err)
	}
	l.Close()
	<-done
	c.Close()
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		address, socket string
		ok              bool
	}{
		{"", client.DefaultSocket, true}, {"/a/b", "/a/b", true}, {"unix:///a/b", "/a/b", true}, {"http://h:1", "", true},
		{"a/b", "", false}, {"unix://", "", false}, {"unix://a", "", false}, {"http://", "", false}, {"http://h/x", "", false},
		{"http://u@h", "", false}, {"https://h", "", false}, {"http://h:1?x", "", false}, {"http://[", "", false},
	} {
		got, err := client.New(c.address)
		if (err == nil) != c.ok || err == nil && got.Socket() != c.socket {
			t.Errorf("%q: %v %v", c.address, got, err)
		}
		if err != nil && codeOf(t, err) != api.Invalid {
			t.Errorf("%q: %v", c.address, err)
		}
	}
}

// next waits for the next event.
func next(t *testing.T, ch <-chan api.Event) api.Event {
	t.Helper()
	select {
	case ev, ok := <-ch:
		if !ok {
			t.Fatal("the watch ended")
		}
		return ev
	case <-time.After(20 * time.Second):
		t.Fatal("no event came")
	}
	return api.Event{}
}

func putNetwork(t *testing.T, e *fakeengine.Engine, name string) {
	t.Helper()
	if _, err := e.PutNetwork(t.Context(), api.Network{Name: name}, 0); err != nil {
		t.Fatal(err)
	}
}

// TestWatch goes through a loss of the connection, with and without a history, and ends with its context.
func TestWatch(t *testing.T) {
	d := newDaemon(t)
	putNetwork(t, d.engine, "a")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch, err := d.client().Watch(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if ev := next(t, ch); ev.Revision != 1 || ev.Type != api.EventPut || ev.Network.Name != "a" {
		t.Errorf("%+v", ev)
	}
	d.stop()
	putNetwork(t, d.engine, "b")
	d.start()
	if ev := next(t, ch); ev.Revision != 2 || ev.Network.Name != "b" {
		t.Errorf("after the loss: %+v", ev)
	}
	d.stop()
	putNetwork(t, d.engine, "c")
	d.engine.Forget()
	d.start()
	if ev := next(t, ch); ev.Type != api.EventReset {
		t.Errorf("after the loss of history: %+v", ev)
	}
	for _, name := range []string{"a", "b", "c"} {
		if ev := next(t, ch); ev.Network == nil || ev.Network.Name != name {
			t.Errorf("want %s: %+v", name, ev)
		}
	}
	putNetwork(t, d.engine, "d")
	if ev := next(t, ch); ev.Revision != 4 {
		t.Errorf("%+v", ev)
	}
	cancel()
	for range ch {
	}
}

// TestWatchStale: an engine that refuses an old revision is asked for the present state instead.
func TestWatchStale(t *testing.T) {
	d := newDaemon(t)
	putNetwork(t, d.engine, "a")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch, err := d.client().Watch(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	next(t, ch)
	d.stop()
	refused := false
	d.engine.Fail = func(verb string) error {
		if verb == "Watch" && !refused {
			refused = true
			return api.Errorf(api.Stale, "watch", "the history begins later")
		}
		return nil
	}
	d.start()
	if ev := next(t, ch); ev.Type != api.EventReset {
		t.Errorf("%+v", ev)
	}
	if ev := next(t, ch); ev.Revision != 1 {
		t.Errorf("%+v", ev)
	}
	cancel()
	for range ch {
	}
}
