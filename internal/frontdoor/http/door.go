// Package httpdoor is the HTTP door: it serves the nouns of package api under /v1, with ETags and conditional requests,
// a watch as server-sent events, one form of error, and the OpenAPI document that describes it all.
//
//	request ──► ServeHTTP (recover, access log) ──► route (404, 405, query) ──► handler ──► Engine
//	                                                                     error ──► api.Error as JSON
//
// It holds no state and decides nothing about networks: what a request means is the engine's to say. It does not
// authenticate; who may speak to it is settled by the permissions of the socket.
package httpdoor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/seine-net/seine/api"
)

// Engine has the verbs behind the door. Errors that have an *api.Error in their chain reach the caller as that error,
// others as "internal". A match is the revision that the noun must have: 0 for any, api.CreateOnly for "none yet".
type Engine interface {
	PutNetwork(ctx context.Context, n api.Network, match uint64) (api.Network, error)
	Network(ctx context.Context, name string) (api.Network, error)
	Networks(ctx context.Context) ([]api.Network, error)
	DeleteNetwork(ctx context.Context, name string, match uint64) error

	// PutEndpoint attaches; it returns when the kernel holds the endpoint.
	PutEndpoint(ctx context.Context, e api.Endpoint, match uint64) (api.Endpoint, error)
	Endpoint(ctx context.Context, network, name string) (api.Endpoint, error)
	Endpoints(ctx context.Context) ([]api.Endpoint, error)
	// DeleteEndpoint detaches; of one that is absent it returns NotFound.
	DeleteEndpoint(ctx context.Context, network, name string, match uint64) error

	Node(ctx context.Context) (api.Node, error)
	// Plan gives what would change now for one owner, with "" for all.
	Plan(ctx context.Context, owner string) (api.Plan, error)
	Doctor(ctx context.Context) ([]api.Finding, error)
	// Reset removes all that is ours, nouns and kernel objects.
	Reset(ctx context.Context) error

	// Watch gives every change after revision since until ctx ends, then closes the channel. With since 0 it begins
	// with the present state as puts, in the order of their revisions, so that a watcher that is cut off on the way
	// can go on from the last one it saw. An engine that does not know any more what happened after since begins with
	// an api.EventReset and the present state.
	Watch(ctx context.Context, since uint64) (<-chan api.Event, error)
}

// Options are what a Door can be told; but for Cluster the zero value is good.
type Options struct {
	// Cluster is behind the paths of clusters, nodes and fabrics, which must not be asked for without it.
	Cluster Cluster
	// Log gets the access log at debug level and panics at error level. Default: slog.Default().
	Log *slog.Logger
	// Version is the daemon's, for the header Server. Default: "dev".
	Version string
	// Heartbeat is the pause after which a silent watch sends a comment, so that both sides notice a dead
	// connection. Default: 15 s, which client.Client counts on.
	Heartbeat time.Duration
}

const (
	maxBody      = 1 << 20 // bytes of a request's body; the largest honest one, with thousands of ports, is far below
	bodyTimeout  = 30 * time.Second
	writeTimeout = 30 * time.Second // for one answer, and for one event of a watch
	shutdownTime = 10 * time.Second // that requests under way have when Serve is to end
)

// Door is an http.Handler.
type Door struct {
	engine Engine
	opts   Options
	mux    *http.ServeMux
}

// New makes the handler for an engine. It starts nothing.
func New(e Engine, o Options) *Door {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Version == "" {
		o.Version = "dev"
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = 15 * time.Second
	}
	d := &Door{engine: e, opts: o, mux: http.NewServeMux()}
	for _, r := range d.routes() {
		d.mux.HandleFunc(r.path, func(w http.ResponseWriter, req *http.Request) { d.serve(w, req, r) })
	}
	return d
}

// ServeHTTP implements http.Handler.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := &recorder{ResponseWriter: w}
	defer func() {
		p := recover()
		if p != nil && p != http.ErrAbortHandler {
			d.opts.Log.Error("a request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			if rec.status == 0 {
				d.fail(rec, r, api.Errorf(api.Internal, "", "the daemon met a bug (%v); its log has more", p))
				p = nil
			}
		}
		d.opts.Log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "bytes", rec.bytes,
			"duration", time.Since(start), "error", rec.code)
		if p != nil {
			panic(http.ErrAbortHandler) // half an answer is out: the caller must not take it for a whole one
		}
	}()
	rec.Header().Set("Server", "seined/"+d.opts.Version)
	rec.Header().Set("X-Content-Type-Options", "nosniff")
	// ServeMux redirects paths that aren't clean; nothing of ours has such a path.
	if p := r.URL.Path; !strings.HasPrefix(p, "/") || path.Clean(p) != p && path.Clean(p)+"/" != p {
		d.notFound(rec, r)
		return
	}
	if _, pattern := d.mux.Handler(r); pattern == "" {
		d.notFound(rec, r)
		return
	}
	d.mux.ServeHTTP(rec, r)
}

func (d *Door) notFound(w http.ResponseWriter, r *http.Request) {
	d.fail(w, r, api.Errorf(api.NotFound, fmt.Sprintf("path %q", r.URL.Path), "does not exist; /v1/openapi.json lists those that do"))
}

// recorder notes what was answered, for the access log.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
	code   api.Code // of the error that was answered, if one was
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController find the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

type stopKey struct{}

// stopped is closed when the server that got the request is about to end; nil, which never is, outside of Serve.
func stopped(r *http.Request) <-chan struct{} {
	ch, _ := r.Context().Value(stopKey{}).(<-chan struct{})
	return ch
}

// Serve has d answer the requests that come in on l until ctx ends; then watches end at once, other requests under way
// get ten seconds to finish, and l is closed. It returns nil when that was how it ended.
func Serve(ctx context.Context, l net.Listener, d *Door) error {
	return ServeHandler(ctx, l, d, d.opts.Log)
}

// ServeHandler is Serve for any handler, such as another door's.
func ServeHandler(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	// Requests outlive ctx: an attach that is half done is better finished.
	base := context.WithValue(context.WithoutCancel(ctx), stopKey{}, ctx.Done())
	srv := &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: bodyTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("http door %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		log.Warn("requests under way were cut off", "after", shutdownTime)
		err = srv.Close()
	}
	<-served
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("http door %s: %w", l.Addr(), err)
	}
	return nil
}
