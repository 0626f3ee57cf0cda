// Package docker is Docker's door: the plugin protocol by which dockerd uses a network driver and an IPAM driver that are
// programs of their own (libnetwork's docs/remote.md and docs/ipam.md).
//
//	dockerd ──POST /NetworkDriver.Join──► ServeHTTP (size, time, recover) ──► call ──► Engine
//	                                                                  error ──► {"Err": …, "Error": …}, status 500
//
// A network that is made through Docker is a network like any other, with Docker's identity in a label; so is an
// endpoint, whose interface Docker takes and moves itself (api.Sandbox.Handoff). No second book is kept of them. Only
// what the IPAM driver promised before a network or an endpoint exists is kept beside them, see ipam.go.
//
// The protocol has its traps, and each shapes something here: a call that hangs blocks Docker for good, so each has an
// end; a call whose connection broke comes again with an empty body, which is refused; errors of Leave and Delete are
// forgotten, so Collect clears up; after a restart of dockerd or of this daemon nothing is repeated, so nothing is kept
// in memory that matters.
//
// Docker's names, aliases and labels are not in the protocol, and Docker must not be asked inside of a call: it waits.
// Watcher learns them from Docker's own API.
package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/seine-net/seine/api"
)

// DefaultSocket is where dockerd looks for a plugin named seine.
const DefaultSocket = "/run/docker/plugins/seine.sock"

// SocketMode lets root ask, and nobody else: who may ask can do to the machine's network what root can.
const SocketMode = 0o600

// Engine is what the door needs of the engine. Errors have an *api.Error in their chain where the caller is to blame.
type Engine interface {
	PutNetwork(ctx context.Context, n api.Network, match uint64) (api.Network, error)
	Network(ctx context.Context, name string) (api.Network, error)
	Networks(ctx context.Context) ([]api.Network, error)
	// DropNetwork and DropEndpoint return when it is on disk: Docker's user need not wait for the kernel.
	DropNetwork(ctx context.Context, name string, match uint64) error
	PutEndpoint(ctx context.Context, e api.Endpoint, match uint64) (api.Endpoint, error)
	Endpoint(ctx context.Context, network, name string) (api.Endpoint, error)
	Endpoints(ctx context.Context) ([]api.Endpoint, error)
	// AmendEndpoint and AmendNetwork change names and labels, at once and without the kernel.
	AmendEndpoint(ctx context.Context, network, name string, edit func(*api.Endpoint)) (changed bool, err error)
	AmendNetwork(ctx context.Context, name string, edit func(*api.Network)) (changed bool, err error)
	DropEndpoint(ctx context.Context, network, name string, match uint64) error
	// HandsOff reports whether a driver is known and leaves interfaces to the caller to move.
	HandsOff(driver string) bool
	// FreeSubnet gives a range of the default pools that nothing uses and that shares nothing with given; bits is its
	// length, 0 for that of the pool.
	FreeSubnet(v4 bool, bits int, given []netip.Prefix) (netip.Prefix, error)
	// Holder names the endpoint that has an address, or what else keeps it from being given out; "" for nothing.
	Holder(a netip.Addr) string
}

// Book keeps short texts under names, on disk before SetValue returns; "" removes one.
type Book interface {
	Value(name string) string
	Values(prefix string) map[string]string
	SetValue(name, value string) error
}

// maxBody is the size of a request's body, in bytes; one with thousands of ports is far below.
const maxBody = 1 << 20

// The times of a call. Docker itself waits for good.
const (
	callTime = 20 * time.Second // of the engine, which takes a few seconds more to go back where that is over
	bodyTime = 5 * time.Second  // until a body has come
)

// Door is an http.Handler.
type Door struct {
	engine Engine
	log    *slog.Logger
	mux    *http.ServeMux
	ipam   ipam

	mu   sync.Mutex
	nets map[string]string // Docker's identity to the network's name; labels have the truth
	// indexed says that nets has all networks.
	indexed bool

	watcher *Watcher      // nil for none
	calls   chan struct{} // has one when Docker called

	absent map[string]time.Time // since when Collect has found something without its use; it is Collect's alone
}

// New makes the handler. It starts nothing.
func New(e Engine, b Book, log *slog.Logger) *Door {
	d := &Door{engine: e, log: log, mux: http.NewServeMux(), nets: map[string]string{}, calls: make(chan struct{}, 1), absent: map[string]time.Time{},
		ipam: ipam{engine: e, book: b}}
	d.ipam.load()
	d.answer("Plugin.Activate", map[string]any{"Implements": []string{"NetworkDriver", "IpamDriver"}})
	d.answer("NetworkDriver.GetCapabilities", map[string]any{"Scope": "local", "ConnectivityScope": "local", "GwAllocChecker": true})
	call(d, "NetworkDriver.GwAllocCheck", func(_ context.Context, r networkRequest) (any, error) { return d.gwAllocCheck(r) })
	call(d, "NetworkDriver.AllocateNetwork", notGlobal)
	call(d, "NetworkDriver.FreeNetwork", notGlobal)
	call(d, "NetworkDriver.CreateNetwork", d.createNetwork)
	call(d, "NetworkDriver.DeleteNetwork", d.deleteNetwork)
	call(d, "NetworkDriver.CreateEndpoint", d.createEndpoint)
	call(d, "NetworkDriver.EndpointOperInfo", d.endpointInfo)
	call(d, "NetworkDriver.DeleteEndpoint", d.deleteEndpoint)
	call(d, "NetworkDriver.Join", d.join)
	call(d, "NetworkDriver.Leave", d.leave)
	call(d, "NetworkDriver.ProgramExternalConnectivity", d.publish)
	call(d, "NetworkDriver.RevokeExternalConnectivity", d.unpublish)
	d.answer("NetworkDriver.DiscoverNew", map[string]any{})
	d.answer("NetworkDriver.DiscoverDelete", map[string]any{})
	d.answer("IpamDriver.GetCapabilities", map[string]any{"RequiresMACAddress": false, "RequiresRequestReplay": false})
	d.answer("IpamDriver.GetDefaultAddressSpaces", map[string]any{"LocalDefaultAddressSpace": addressSpace, "GlobalDefaultAddressSpace": addressSpace})
	call(d, "IpamDriver.RequestPool", d.ipam.requestPool)
	call(d, "IpamDriver.ReleasePool", d.ipam.releasePool)
	call(d, "IpamDriver.RequestAddress", d.ipam.requestAddress)
	call(d, "IpamDriver.ReleaseAddress", d.ipam.releaseAddress)
	return d
}

// ServeHTTP implements http.Handler.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("a call of Docker's panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			fail(w, fmt.Errorf("the daemon met a bug (%v); its log has more", p))
		}
		d.log.Debug("Docker called", "path", r.URL.Path, "duration", time.Since(start))
	}()
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		reply(w, http.StatusMethodNotAllowed, problem("want POST"))
		return
	}
	d.called()
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	// A recorder in a test has none. It stays for what is left of a bad body.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	d.mux.ServeHTTP(w, r)
}

// answer has a call that asks for nothing answered with a constant.
func (d *Door) answer(name string, v any) {
	d.mux.HandleFunc("/"+name, func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, v) })
}

// call has a call answered by f.
func call[T any](d *Door, name string, f func(context.Context, T) (any, error)) {
	d.mux.HandleFunc("/"+name, func(w http.ResponseWriter, r *http.Request) {
		var in T
		limits := http.NewResponseController(w)
		err := read(r.Body, &in)
		var out any
		if err == nil {
			_ = limits.SetReadDeadline(time.Time{})
			// Docker may have gone; what is half done is better finished.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), callTime)
			defer cancel()
			out, err = f(ctx, in)
		}
		if err != nil {
			d.log.Info("refused Docker's call", "call", name, "err", err)
			fail(w, err)
			return
		}
		t, ok := out.(told)
		if ok {
			out = none
		}
		reply(w, http.StatusOK, out)
		if !ok {
			return
		}
		_ = limits.Flush() // a recorder in a test has it all
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), callTime)
		defer cancel()
		if err := t.then(ctx); err != nil && api.CodeOf(err) != api.NotFound {
			d.log.Warn("after a call of Docker's", "call", name, "err", err)
		}
	})
}

// told is an answer without content, after which there is something to do.
type told struct{ then func(context.Context) error }

// read decodes a body. Fields that are not known are left alone: newer versions of Docker send more.
func read(body io.Reader, into any) error {
	data, err := io.ReadAll(body)
	if err == nil && len(bytes.TrimSpace(data)) == 0 {
		return errors.New("the body is empty: Docker repeats a call that broke without its body; try again")
	}
	if err == nil && !utf8.Valid(data) {
		err = errors.New("it is not UTF-8")
	}
	if err == nil {
		err = onceEach(data)
	}
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("the body is not what was expected: %w", err)
	}
	return nil
}

// onceEach refuses what is not one JSON value, and objects that have a key twice: which of the two is meant nobody can
// say. On the first level that is so whatever the case, as that is how fields are found.
func onceEach(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var open []map[string]bool // the keys of each object that is open; nil for an array
	key := false               // whether a key comes next
	for {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		switch t := tok.(type) {
		case json.Delim:
			switch t {
			case '{':
				open = append(open, map[string]bool{})
			case '[':
				open = append(open, nil)
			default:
				open = open[:len(open)-1]
			}
			key = len(open) > 0 && open[len(open)-1] != nil
		case string:
			if key {
				if len(open) == 1 {
					t = strings.ToLower(t)
				}
				if open[len(open)-1][t] {
					return fmt.Errorf("%q is there twice", t)
				}
				open[len(open)-1][t] = true
				key = false
				continue
			}
			key = len(open) > 0 && open[len(open)-1] != nil
		default:
			key = len(open) > 0 && open[len(open)-1] != nil
		}
		if len(open) > maxDepth {
			return fmt.Errorf("it is more than %d deep", maxDepth)
		}
		if len(open) == 0 {
			if _, err := dec.Token(); !errors.Is(err, io.EOF) {
				return errors.New("it goes on after its end")
			}
			return nil
		}
	}
}

// maxDepth is how deep a body may be; Docker's are four deep.
const maxDepth = 32

// problem is an error in the words of both drivers: the network driver's caller reads Err, the IPAM driver's Error, or
// Err where the status is not 200.
func problem(text string) map[string]string { return map[string]string{"Err": text, "Error": text} }

func fail(w http.ResponseWriter, err error) {
	reply(w, http.StatusInternalServerError, problem(err.Error()))
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"Err":"no answer can be written"}`)
	}
	w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.1+json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// notGlobal answers what only a swarm's manager asks of drivers whose scope is global.
func notGlobal(context.Context, struct{}) (any, error) {
	return nil, errors.New("the scope of driver seine is local: it has no networks of a swarm")
}

// none is an answer without content.
var none = map[string]any{}
