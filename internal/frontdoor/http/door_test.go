package httpdoor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/frontdoor/http/fakeengine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// exchange is a request and what is to come back.
type exchange struct {
	method, path string
	header       string // "If-Match: x; …"
	body         string
	status       int
	want         string // part of the body, or "" for anything
}

func (x exchange) request() *http.Request {
	r := httptest.NewRequest(x.method, x.path, strings.NewReader(x.body))
	if x.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range strings.Split(x.header, "; ") {
		if k, v, ok := strings.Cut(h, ": "); ok {
			r.Header.Set(k, v)
		}
	}
	return r
}

func (x exchange) run(t *testing.T, h http.Handler) *httptest.ResponseRecorder {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, x.request())
	if rec.Code != x.status || !strings.Contains(rec.Body.String(), x.want) {
		t.Errorf("%s %s [%s] %.80s\n  got  %d %s  want %d …%s…", x.method, x.path, x.header, x.body, rec.Code, rec.Body, x.status, x.want)
	}
	return rec
}

// story is every kind of request in an order in which each finds what it needs.
var story = []exchange{
	{"GET", "/v1/networks", "", "", 200, `{"items":[]}`},
	{"GET", "/v1/networks?x=1", "", "", 400, `"field":"x"`},
	{"PUT", "/v1/networks/a", "", `{"labels":{"k":"v"}}`, 201, `"name":"a"`},
	{"PUT", "/v1/networks/a", "If-Match: \"1\"", `{"name":"a","icc":false}`, 200, `"icc":false`},
	{"PUT", "/v1/networks/a", "If-Match: \"1\"", `{}`, 412, `"code":"stale"`},
	{"PUT", "/v1/networks/a", "If-None-Match: *", `{}`, 409, `"code":"conflict"`},
	{"PUT", "/v1/networks/b", "If-None-Match: *", `{}`, 201, ``},
	{"PUT", "/v1/networks/c", "If-Match: \"1\"", `{}`, 404, `"code":"not-found"`},
	{"PUT", "/v1/networks/a", "If-Match: *", `{}`, 400, `"field":"If-Match"`},
	{"PUT", "/v1/networks/a", "If-Match: \"1\", \"2\"", `{}`, 400, `"field":"If-Match"`},
	{"PUT", "/v1/networks/a", "If-Match: W/\"1\"", `{}`, 400, `"field":"If-Match"`},
	{"PUT", "/v1/networks/a", "If-Match: \"0\"", `{}`, 400, `"field":"If-Match"`},
	{"PUT", "/v1/networks/a", "If-Match: \"18446744073709551615\"", `{}`, 400, `"field":"If-Match"`},
	{"PUT", "/v1/networks/a", "If-None-Match: \"1\"", `{}`, 400, `"field":"If-None-Match"`},
	{"PUT", "/v1/networks/a", "If-None-Match: *; If-Match: \"1\"", `{}`, 400, `"field":"If-None-Match"`},
	{"PUT", "/v1/networks/a", "Content-Type: text/plain", `{}`, 415, `"field":"Content-Type"`},
	{"PUT", "/v1/networks/a", "Content-Type: application/json; charset=utf-8", `{}`, 200, ``},
	{"PUT", "/v1/networks/a", "", "", 415, `"field":"Content-Type"`},
	{"PUT", "/v1/networks/a", "", `{"name":"b"}`, 400, `"field":"name","value":"b","want":"a"`},
	{"PUT", "/v1/networks/a", "", `{"labels":{"k":"` + strings.Repeat("x", maxBody) + `"}}`, 413, `"field":"body"`},
	{"PUT", "/v1/networks/a", "", `{"mtu":12}`, 400, `"field":"mtu"`},
	{"PUT", "/v1/networks/-", "", `{}`, 400, `"field":"name"`},
	{"GET", "/v1/networks", "", "", 200, `"name":"b"`},
	{"GET", "/v1/networks/a", "", "", 200, `"name":"a"`},
	{"HEAD", "/v1/networks/a", "", "", 200, ``},
	{"GET", "/v1/networks/a", "If-None-Match: \"7\", W/\"4\"", "", 304, ``},
	{"GET", "/v1/networks/a", "If-None-Match: *", "", 304, ``},
	{"GET", "/v1/networks/a", "If-None-Match: \"1\"", "", 200, `"name":"a"`},
	{"GET", "/v1/networks/a", "If-Match: \"1\"", "", 400, `"field":"If-Match"`},
	{"GET", "/v1/networks/zz", "", "", 404, `"noun":"network \"zz\""`},
	{"GET", "/v1/networks/a%2Fb", "", "", 404, `network \"a/b\"`},

	{"PUT", "/v1/networks/a/endpoints/web", "", `{"sandbox":{"netns":"/run/netns/x"},"ports":[{"hostPort":8080,"containerPort":80}]}`, 201, `"state":"attached"`},
	{"PUT", "/v1/networks/a/endpoints/web", "", `{"sandbox":{"netns":"/run/netns/x"},"addresses":["10.1.0.9"]}`, 200, `"10.1.0.9"`},
	{"PUT", "/v1/networks/a/endpoints/web", "If-Match: \"1\"", `{"sandbox":{}}`, 412, ``},
	{"PUT", "/v1/networks/a/endpoints/web", "If-None-Match: *", `{"sandbox":{}}`, 409, ``},
	{"PUT", "/v1/networks/zz/endpoints/web", "", `{"sandbox":{}}`, 404, `network \"zz\"`},
	{"PUT", "/v1/networks/a/endpoints/web", "", `{"network":"b"}`, 400, `"field":"network"`},
	{"PUT", "/v1/networks/a/endpoints/web", "", `{"name":"b"}`, 400, `"field":"name"`},
	{"PUT", "/v1/networks/a/endpoints/web", "Content-Type: text/json", `{}`, 415, ``},
	{"PUT", "/v1/networks/a/endpoints/web", "", `{"mac":"` + strings.Repeat("x", maxBody) + `"}`, 413, ``},
	{"PUT", "/v1/networks/a/endpoints/dns", "", `{"sandbox":{"netns":"/run/netns/y"},"ports":[{"protocol":"udp","hostIP":"::1","hostPort":53,"containerPort":53}]}`, 201, ``},
	{"GET", "/v1/networks/a/endpoints/web", "", "", 200, `"revision":6`},
	{"GET", "/v1/networks/a/endpoints/web", "If-None-Match: \"5\"", "", 200, ``},
	{"GET", "/v1/networks/a/endpoints/web", "If-None-Match: \"6\"", "", 304, ``},
	{"GET", "/v1/networks/a/endpoints/web?x", "", "", 400, ``},
	{"GET", "/v1/networks/a/endpoints/zz", "", "", 404, `endpoint \"a/zz\"`},
	{"GET", "/v1/networks/a/endpoints", "", "", 200, `"name":"dns"`},
	{"GET", "/v1/networks/b/endpoints", "", "", 200, `{"items":[]}`},
	{"GET", "/v1/networks/zz/endpoints", "", "", 404, ``},
	{"GET", "/v1/networks/a/endpoints?x", "", "", 400, ``},
	{"GET", "/v1/endpoints", "", "", 200, `"name":"web"`},
	{"GET", "/v1/endpoints?network=a", "", "", 400, `"field":"network"`},
	{"GET", "/v1/ports", "", "", 200, `"hostIP":"::1"`},
	{"GET", "/v1/ports?x", "", "", 400, ``},
	{"GET", "/v1/node", "", "", 200, `"endpoints":2`},
	{"GET", "/v1/node?x", "", "", 400, ``},
	{"GET", "/v1/plan", "", "", 200, `"op":"~"`},
	{"GET", "/v1/plan?owner=endpoint/a/web", "", "", 200, `{"changes":[]}`},
	{"GET", "/v1/plan?owners=a", "", "", 400, `"field":"owners"`},
	{"GET", "/v1/plan?owner=a&owner=b", "", "", 400, `given twice`},
	{"GET", "/v1/doctor", "", "", 200, `"level":"note"`},
	{"GET", "/v1/doctor?x", "", "", 400, ``},
	{"GET", "/v1/openapi.json", "", "", 200, `"openapi": "3.1.0"`},
	{"GET", "/v1/openapi.json?x", "", "", 400, ``},
	{"HEAD", "/v1/watch", "", "", 200, ``},
	{"GET", "/v1/watch?since=x", "", "", 400, `"field":"since"`},
	{"GET", "/v1/watch?since=1", "Last-Event-ID: -1", "", 400, `"field":"Last-Event-ID"`},

	{"DELETE", "/v1/networks/a", "", "", 409, `"code":"in-use"`},
	{"DELETE", "/v1/networks/a/endpoints/web", "If-Match: \"1\"", "", 412, ``},
	{"DELETE", "/v1/networks/a/endpoints/web", "If-None-Match: *", "", 400, ``},
	{"DELETE", "/v1/networks/a/endpoints/web", "If-Match: \"6\"", "", 204, ``},
	{"DELETE", "/v1/networks/a/endpoints/web", "", "", 404, ``},

	{"PUT", "/v1/endpoints/own", "", `{"sandbox":{"netns":"/run/netns/z"}}`, 404, `network \"default\"`},
	{"PUT", "/v1/networks/default", "", `{}`, 201, ``},
	{"PUT", "/v1/endpoints/own", "If-None-Match: *", `{"sandbox":{"netns":"/run/netns/z"}}`, 201, `"network":"default"`},
	{"PUT", "/v1/endpoints/own", "", `{"network":"default","sandbox":{"netns":"/run/netns/z"},"labels":{"a":"b"}}`, 200, `"a":"b"`},
	{"PUT", "/v1/endpoints/own", "If-None-Match: *", `{"sandbox":{"netns":"/run/netns/z"}}`, 409, ``},
	{"PUT", "/v1/endpoints/own", "If-Match: \"1\"", `{"sandbox":{}}`, 412, ``},
	{"PUT", "/v1/endpoints/own", "", `{"network":"b"}`, 400, `"field":"network"`},
	{"PUT", "/v1/endpoints/own", "Content-Type: text/json", `{}`, 415, ``},
	{"PUT", "/v1/endpoints/own", "", `{"mac":"` + strings.Repeat("x", maxBody) + `"}`, 413, ``},
	{"GET", "/v1/endpoints/own", "", "", 405, `"field":"method"`},
	{"DELETE", "/v1/networks/default/endpoints/own", "", "", 204, ``},
	{"DELETE", "/v1/networks/default", "", "", 204, ``},
	{"DELETE", "/v1/networks/b", "If-Match: 3", "", 400, ``},
	{"DELETE", "/v1/networks/b", "If-Match: \"1\"", "", 412, ``},
	{"DELETE", "/v1/networks/b", "", "", 204, ``},
	{"DELETE", "/v1/networks/b", "", "", 404, ``},
	{"DELETE", "/v1/node?x", "", "", 400, ``},
	{"DELETE", "/v1/node", "", "", 204, ``},
	{"GET", "/v1/node", "", "", 200, `"networks":0`},

	{"GET", "/v1/nodes", "", "", 200, `"name":"n1"`},
	{"GET", "/v1/cluster", "", "", 409, `is in none`},
	{"POST", "/v1/cluster/token", "", "", 409, ``},
	{"DELETE", "/v1/cluster", "", "", 409, ``},
	{"POST", "/v1/nodes/n1/drain", "", "", 409, ``},
	{"POST", "/v1/cluster", "", "", 415, ``},
	{"POST", "/v1/cluster", "", `{"port":"x"}`, 400, `"field":"port"`},
	{"POST", "/v1/cluster", "", `{"name":"` + strings.Repeat("x", maxBody) + `"}`, 413, ``},
	{"POST", "/v1/cluster", "", `{"name":"lab","address":"192.0.2.1","etcd":["https://e:2379"]}`, 200, `"store":"etcd","endpoints":["https://e:2379"]`},
	{"POST", "/v1/cluster", "", `{}`, 409, `leave it first`},
	{"GET", "/v1/cluster", "", "", 200, `"name":"lab"`},
	{"POST", "/v1/cluster/token?rotate=true", "", "", 200, `"token":"`},
	{"POST", "/v1/cluster/token?rotate=perhaps", "", "", 400, `"field":"rotate"`},
	{"POST", "/v1/cluster/token?force=true", "", "", 400, `"field":"force"`},
	{"GET", "/v1/cluster?force=true", "", "", 400, `"field":"force"`},
	{"POST", "/v1/nodes/n1/drain", "", "", 204, ``},
	{"GET", "/v1/nodes/n1", "", "", 200, `"drained":true`},
	{"GET", "/v1/nodes/id-n1", "", "", 200, `"name":"n1"`},
	{"POST", "/v1/nodes/n1/undrain", "", "", 204, ``},
	{"GET", "/v1/nodes/zz", "", "", 404, `node \"zz\"`},
	{"DELETE", "/v1/nodes/n1", "", "", 409, `this machine`},
	{"DELETE", "/v1/nodes/n2", "", "", 409, `"code":"in-use"`},
	{"DELETE", "/v1/nodes/n2?force=1x", "", "", 400, `"field":"force"`},
	{"DELETE", "/v1/nodes/n2?force=true", "", "", 204, ``},
	{"DELETE", "/v1/nodes/n2", "", "", 404, ``},
	{"GET", "/v1/fabric/paths", "", "", 200, `"fabric":"vxlan"`},
	{"DELETE", "/v1/cluster?force=maybe", "", "", 400, `"field":"force"`},
	{"DELETE", "/v1/cluster?force=true", "", "", 204, ``},
	{"POST", "/v1/cluster/join", "", `{"address":"192.0.2.1","tokn":"x"}`, 400, `"field":"tokn"`},
	{"POST", "/v1/cluster/join", "", "", 415, ``},
	{"POST", "/v1/cluster/join", "", `{"token":"` + strings.Repeat("x", maxBody) + `"}`, 413, ``},
	{"POST", "/v1/cluster/join", "", `{"address":"192.0.2.1","token":"good"}`, 200, `"name":"joined"`},
	{"POST", "/v1/cluster/join", "", `{"address":"192.0.2.1","token":"good"}`, 409, ``},
	{"DELETE", "/v1/cluster", "", "", 204, ``},
	{"GET", "/v1/cluster/join", "", "", 405, `"want":"POST"`},

	{"GET", "/", "", "", 404, `"code":"not-found"`},
	{"GET", "/v1", "", "", 404, ``},
	{"GET", "/v1/networks/", "", "", 404, ``},
	{"GET", "/v1/networks//endpoints", "", "", 404, ``},
	{"GET", "/v1/../v1/node", "", "", 404, ``},
	{"GET", "/v1/networks/%2e%2e", "", "", 404, ``},
	{"GET", "/v1/networks/a/endpoints/b/c", "", "", 404, ``},
	{"POST", "/v1/networks", "", `{}`, 405, `"want":"GET, HEAD"`},
	{"PUT", "/v1/networks", "", `{}`, 405, ``},
	{"PATCH", "/v1/networks/a", "", `{}`, 405, `"want":"DELETE, GET, HEAD, PUT"`},
	{"PUT", "/v1/node", "", `{}`, 405, ``},
	{"OPTIONS", "/v1/node", "", ``, 405, ``},
	{"CONNECT", "/v1/node", "", ``, 405, ``},
}

// TestStory runs the story through the conformer, then has the engine refuse in every way at every operation; after
// that every documented status must have been answered.
func TestStory(t *testing.T) {
	fake := fakeengine.New()
	fake.Findings = []api.Finding{{Level: "note", Topic: "forward-chain", Found: "a chain drops", Done: "it accepts now"}}
	fake.Changes = []api.Change{{Op: "~", Object: "link sn-a mtu 1500", Was: "link sn-a mtu 1400", Owner: "network/a"}, {Op: "-", Object: "link sn-old"}}
	fake.Ways = []api.Path{{Network: "a", Node: "n2", Fabric: "vxlan", Reason: "it is the first choice"}}
	h := newConformer(t, New(fake, Options{Log: quiet, Cluster: fake}))
	for _, x := range story {
		rec := x.run(t, h)
		if rec.Code == 405 && rec.Header().Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", x.method, x.path)
		}
		if x.method != "GET" && rec.Code == 304 {
			t.Errorf("%s %s: 304", x.method, x.path)
		}
	}
	h.runRefusals(fake)
	h.runWatch(fake)
	for _, k := range h.unseen() {
		t.Errorf("documented and not seen: %s", k)
	}
}

// runRefusals has every engine verb answer with every status that its operation documents.
func (c *conformer) runRefusals(fake *fakeengine.Engine) {
	codes := []api.Code{api.Invalid, api.NotFound, api.Conflict, api.Stale, api.InUse, api.Exhausted, api.Unsupported, api.Unavailable, api.Internal}
	for tmpl, item := range c.doc.Paths {
		for method := range item {
			if method == "parameters" || tmpl == "/v1/openapi.json" {
				continue
			}
			op, _ := c.doc.operation(c.t, method, tmpl)
			for _, code := range codes {
				if op.Responses[fmt.Sprint(code.HTTPStatus())] == nil {
					continue
				}
				fake.Fail = func(verb string) error {
					if method != "put" || strings.HasPrefix(verb, "Put") {
						return fmt.Errorf("outer: %w", api.Errorf(code, "noun", "on purpose"))
					}
					return nil
				}
				x := exchange{method: strings.ToUpper(method), path: strings.NewReplacer("{network}", "a", "{name}", "b", "{node}", "n1").Replace(tmpl), status: code.HTTPStatus()}
				if op.RequestBody != nil {
					x.body = "{}"
				}
				rec := httptest.NewRecorder()
				c.ServeHTTP(rec, x.request())
				if rec.Code != x.status || !strings.Contains(rec.Body.String(), string(code)) {
					c.t.Errorf("%s %s: %d %s, want %d", method, tmpl, rec.Code, rec.Body, x.status)
				}
			}
		}
	}
	fake.Fail = nil
}

// runWatch reads a few events of every type.
func (c *conformer) runWatch(fake *fakeengine.Engine) {
	ctx, cancel := context.WithCancel(context.Background())
	n, err := fake.PutNetwork(ctx, api.Network{Name: "w"}, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	fake.Forget()
	if _, err = fake.PutEndpoint(ctx, api.Endpoint{Network: "w", Name: "x"}, 0); err != nil {
		c.t.Fatal(err)
	}
	if err := fake.DeleteEndpoint(ctx, "w", "x", 0); err != nil {
		c.t.Fatal(err)
	}
	rec := &cancelAfter{ResponseRecorder: httptest.NewRecorder(), text: `"kind":"network"`, cancel: cancel}
	r := httptest.NewRequest("GET", "/v1/watch?since="+fmt.Sprint(n.Revision-1), nil).WithContext(ctx)
	New(fake, Options{Log: quiet}).ServeHTTP(rec, r)
	if err := c.check(r, rec.ResponseRecorder); err != nil {
		c.t.Error(err)
	}
	if text := rec.Body.String(); !strings.Contains(text, "event: reset\ndata: {\"revision\":0") || !strings.Contains(text, fmt.Sprintf("id: %d\nevent: put\n", n.Revision)) {
		c.t.Errorf("watch: %s", text)
	}
}

// cancelAfter ends the request when a text was written.
type cancelAfter struct {
	*httptest.ResponseRecorder
	text   string
	cancel func()
}

func (c *cancelAfter) Write(b []byte) (int, error) {
	if strings.Contains(string(b), c.text) {
		defer c.cancel()
	}
	return c.ResponseRecorder.Write(b)
}

func TestPanicIsAnswered(t *testing.T) {
	fake := fakeengine.New()
	fake.Fail = func(string) error { panic("on purpose") }
	var log strings.Builder
	h := New(fake, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	exchange{"GET", "/v1/node", "", "", 500, `"code":"internal"`}.run(t, h)
	if !strings.Contains(log.String(), "on purpose") || !strings.Contains(log.String(), "fakeengine.go") {
		t.Errorf("the log has no panic with its stack: %s", log.String())
	}
	fake.Fail = nil
	exchange{"GET", "/v1/node", "", "", 200, ``}.run(t, h)
}

// TestPanicAfterHeader: half an answer must not look like a whole one.
func TestPanicAfterHeader(t *testing.T) {
	fake := fakeengine.New()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := New(fake, Options{Log: quiet})
		d.mux.HandleFunc("/half", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"items":[`)
			panic("on purpose")
		})
		d.ServeHTTP(w, r)
	}))
	defer srv.Close()
	defer http.DefaultClient.CloseIdleConnections()
	resp, err := http.Get(srv.URL + "/half")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("the answer ended as if it were whole")
	}
}

func TestErrorsOfOthers(t *testing.T) {
	fake := fakeengine.New()
	h := New(fake, Options{Log: quiet})
	for _, c := range []struct {
		err    error
		status int
		want   string
	}{
		{errors.New("disk full"), 500, `{"error":{"code":"internal","message":"disk full"}}`},
		{fmt.Errorf("attach: %w", context.DeadlineExceeded), 503, `"code":"unavailable"`},
		{fmt.Errorf("attach: %w", context.Canceled), 503, `"code":"unavailable"`},
		{api.FieldError("n", "f", 1, "m", "w"), 400, `{"error":{"code":"invalid","noun":"n","field":"f","value":"1","want":"w","message":"m"}}`},
		{api.Errorf("new-code", "", "x"), 500, `"new-code"`},
	} {
		fake.Fail = func(string) error { return c.err }
		exchange{"GET", "/v1/node", "", "", c.status, c.want}.run(t, h)
	}
}

func TestAccessLog(t *testing.T) {
	var log strings.Builder
	h := New(fakeengine.New(), Options{Log: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	exchange{"GET", "/v1/networks/zz", "", "", 404, ``}.run(t, h)
	var line struct {
		Msg, Method, Path, Error string
		Status, Bytes            int
	}
	if err := json.Unmarshal([]byte(log.String()), &line); err != nil {
		t.Fatalf("%v: %s", err, log.String())
	}
	if line.Msg != "request" || line.Method != "GET" || line.Path != "/v1/networks/zz" || line.Error != "not-found" || line.Status != 404 || line.Bytes == 0 {
		t.Errorf("%+v", line)
	}
}
