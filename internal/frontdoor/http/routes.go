package httpdoor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/seine-net/seine/api"
)

// handler answers a request, or returns the error that is to be answered.
type handler func(http.ResponseWriter, *http.Request) error

// route is one path with what can be done to it.
type route struct {
	path string
	// query are the parameters that each method takes.
	query   map[string][]string
	methods map[string]handler
}

// routes is all that the door serves. HEAD goes with GET.
func (d *Door) routes() []route {
	return append([]route{
		{"/v1/networks", nil, map[string]handler{"GET": d.networks}},
		{"/v1/networks/{network}", nil, map[string]handler{"GET": d.network, "PUT": d.putNetwork, "DELETE": d.deleteNetwork}},
		{"/v1/networks/{network}/endpoints", nil, map[string]handler{"GET": d.endpoints}},
		{"/v1/networks/{network}/endpoints/{name}", nil, map[string]handler{"GET": d.endpoint, "PUT": d.putEndpoint, "DELETE": d.deleteEndpoint}},
		{"/v1/endpoints", nil, map[string]handler{"GET": d.endpoints}},
		{"/v1/endpoints/{name}", nil, map[string]handler{"PUT": d.putOnDefault}},
		{"/v1/ports", nil, map[string]handler{"GET": d.ports}},
		{"/v1/node", nil, map[string]handler{"GET": d.node, "DELETE": d.reset}},
		{"/v1/plan", map[string][]string{"GET": {"owner"}}, map[string]handler{"GET": d.plan}},
		{"/v1/doctor", nil, map[string]handler{"GET": d.doctor}},
		{"/v1/watch", map[string][]string{"GET": {"since"}}, map[string]handler{"GET": d.watch}},
		{"/v1/openapi.json", nil, map[string]handler{"GET": d.openAPI}},
	}, d.clusterRoutes()...)
}

// serve finds the method's handler and answers its error.
func (d *Door) serve(w http.ResponseWriter, r *http.Request, to route) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	h := to.methods[method]
	if h == nil {
		allow := slices.Collect(maps.Keys(to.methods))
		if to.methods["GET"] != nil {
			allow = append(allow, "HEAD")
		}
		slices.Sort(allow)
		w.Header().Set("Allow", strings.Join(allow, ", "))
		d.fail(w, r, statusError{http.StatusMethodNotAllowed,
			api.FieldError(fmt.Sprintf("path %q", r.URL.Path), "method", r.Method, "can't be used here", strings.Join(allow, ", "))})
		return
	}
	err := checkQuery(r, to.query[method])
	if err == nil {
		err = h(w, r)
	}
	if err != nil {
		d.fail(w, r, err)
	}
}

// checkQuery refuses parameters that would be ignored, and one that is given twice.
func checkQuery(r *http.Request, known []string) error {
	for k, v := range r.URL.Query() {
		if !slices.Contains(known, k) {
			want := "no parameters"
			if len(known) > 0 {
				want = strings.Join(known, ", ")
			}
			return api.FieldError("query", k, strings.Join(v, ","), "is no parameter of "+r.URL.Path, want)
		}
		if len(v) > 1 {
			return api.FieldError("query", k, strings.Join(v, ","), "is given twice", "one value")
		}
	}
	return nil
}

// statusError is an error with an HTTP status of its own: what HTTP tells apart and api.Code does not.
type statusError struct {
	status int
	err    *api.Error
}

func (s statusError) Error() string { return s.err.Error() }
func (s statusError) Unwrap() error { return s.err }

// fail answers an error.
func (d *Door) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		return // nobody is there to read it
	}
	e := asError(err)
	status := e.Code.HTTPStatus()
	var s statusError
	if errors.As(err, &s) {
		status = s.status
	}
	if rec, ok := w.(*recorder); ok {
		rec.code = e.Code
	}
	if e.Code == api.Internal {
		d.opts.Log.Error("request", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	w.Header().Del("ETag")
	w.Header().Set("Cache-Control", "no-store")
	if werr := answer(w, status, api.ErrorBody{Error: e}); werr != nil {
		d.opts.Log.Debug("answer", "path", r.URL.Path, "err", werr)
	}
}

// asError gives the error as it travels.
func asError(err error) *api.Error {
	var e *api.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return api.Errorf(api.Unavailable, "", "took too long: %w", err)
	case errors.Is(err, context.Canceled):
		return api.Errorf(api.Unavailable, "", "was broken off: %w", err)
	}
	return api.Errorf(api.Internal, "", "%w", err)
}

// answer sends a body as JSON. An error says that it could not be sent.
func answer(w http.ResponseWriter, status int, body any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	// A browser must not revalidate by ETag on its own: that is the revision of what was asked for, and a noun's status
	// changes without it.
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", fmt.Sprint(b.Len()))
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // a recorder in a test has none
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // a caller that is gone is no error of ours
	return nil
}

// answerList sends a list of nouns, empty rather than null.
func answerList[T any](w http.ResponseWriter, items []T) error {
	if items == nil {
		items = []T{}
	}
	return answer(w, http.StatusOK, api.List[T]{Items: items})
}
