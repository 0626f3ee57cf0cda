package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a plugin whose answers the test writes.
type script struct {
	*testing.T
	plugins *Plugins
	server  *httptest.Server

	mu      sync.Mutex
	calls   []string // method and body
	answers map[string]func(w http.ResponseWriter)
}

func say(text string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { _, _ = w.Write([]byte(text)) }
}

func status(code int, text string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { w.WriteHeader(code); _, _ = w.Write([]byte(text)) }
}

func newScript(t *testing.T) *script {
	dir, err := os.MkdirTemp("", "p") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &script{T: t, answers: map[string]func(http.ResponseWriter){
		"Plugin.Activate":                    say(`{"Implements": ["NetworkDriver", "IpamDriver"]}`),
		"NetworkDriver.GetCapabilities":      say(`{"Scope": "local"}`),
		"NetworkDriver.CreateEndpoint":       say(`{"Interface": {"MacAddress": "02:42:0A:01:00:02"}}`),
		"NetworkDriver.Join":                 say(`{"InterfaceName": {"SrcName": "vx1", "DstPrefix": "net"}, "Gateway": "10.1.0.1", "StaticRoutes": [{"Destination": "10.2.0.0/16", "RouteType": 0, "NextHop": "10.1.0.9"}, {"Destination": "10.3.0.0/16", "RouteType": 1}]}`),
		"NetworkDriver.EndpointOperInfo":     say(`{"Value": {}}`),
		"IpamDriver.GetCapabilities":         status(404, "404 page not found"),
		"IpamDriver.GetDefaultAddressSpaces": say(`{"LocalDefaultAddressSpace": "here", "GlobalDefaultAddressSpace": "there"}`),
		"IpamDriver.RequestPool":             say(`{"PoolID": "p1", "Pool": "10.1.0.0/24"}`),
		"IpamDriver.RequestAddress":          say(`{"Address": "10.1.0.7/24"}`),
	}}
	s.plugins = NewPlugins()
	s.plugins.Sockets, s.plugins.Specs = dir, []string{filepath.Join(dir, "etc"), filepath.Join(dir, "usr")}
	s.plugins.Timeout, s.plugins.Pauses = time.Second, []time.Duration{10 * time.Millisecond}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *script) start() {
	l, err := net.Listen("unix", filepath.Join(s.plugins.Sockets, "x.sock"))
	if err != nil {
		s.Fatal(err)
	}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.answer))
	s.server.Listener.Close()
	s.server.Listener = l
	s.server.Start()
}

func (s *script) stop() {
	s.server.CloseClientConnections()
	s.server.Close()
}

func (s *script) answer(w http.ResponseWriter, r *http.Request) {
	var body json.RawMessage
	_ = json.NewDecoder(r.Body).Decode(&body)
	method := strings.TrimPrefix(r.URL.Path, "/")
	s.mu.Lock()
	s.calls = append(s.calls, method+" "+string(body))
	f := s.answers[method]
	s.mu.Unlock()
	if r.Method != "POST" || !strings.Contains(r.Header.Get("Accept"), "vnd.docker.plugins") {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if f == nil {
		f = say("{}")
	}
	f(w)
}

// took gives the calls since it was asked last.
func (s *script) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.calls
	s.calls = nil
	return out
}

func methods(calls []string) string {
	var out []string
	for _, c := range calls {
		m, _, _ := strings.Cut(c, " ")
		_, m, _ = strings.Cut(m, ".")
		out = append(out, m)
	}
	return strings.Join(out, " ")
}

func keep(into *[]byte) driver.Keep {
	return func(v any) (err error) {
		*into, err = json.Marshal(v)
		return err
	}
}

func theNetwork() api.Network {
	return api.Network{Name: "net", Driver: "docker:x", IPAM: "docker:x", Options: map[string]string{"k": "v", "dns.search": "."},
		Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1")}}}
}

func theEndpoint() api.Endpoint {
	return api.Endpoint{Network: "net", Name: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.2")}, Plugin: &api.Plugin{ID: "e1"},
		Sandbox: api.Sandbox{Netns: "/run/netns/web"}, Ports: []api.Port{{HostPort: 8080, ContainerPort: 80}}}
}

// attached sets a network up and attaches an endpoint.
func (s *script) attached() (api.Endpoint, []byte, []byte, error) {
	s.Helper()
	d := New(s.plugins)
	var net, ep []byte
	n, e := theNetwork(), theEndpoint()
	if err := d.Setup(s.Context(), &n, driver.Call{ID: "n1", Keep: keep(&net)}); err != nil {
		return e, net, nil, err
	}
	err := d.Attach(s.Context(), n, net, &e, driver.Call{ID: "e1", Keep: keep(&ep)})
	return e, net, ep, err
}

func TestLife(t *testing.T) {
	s := newScript(t)
	d := New(s.plugins)
	e, net, ep, err := s.attached()
	if err != nil {
		t.Fatal(err)
	}
	calls := s.took()
	if got, want := methods(calls), "Activate GetCapabilities CreateNetwork CreateEndpoint Join ProgramExternalConnectivity EndpointOperInfo"; got != want {
		t.Errorf("calls are %s, want %s", got, want)
	}
	for _, want := range []string{
		`NetworkDriver.CreateNetwork {"IPv4Data":[{"AddressSpace":"LocalDefault","Pool":"10.1.0.0/24","Gateway":"10.1.0.1/24"}],"IPv6Data":[],"NetworkID":"n1","Options":{"com.docker.network.enable_ipv4":true,"com.docker.network.enable_ipv6":false,"com.docker.network.generic":{"k":"v"}}}`,
		`NetworkDriver.CreateEndpoint {"EndpointID":"e1","Interface":{"Address":"10.1.0.2/24","AddressIPv6":"","MacAddress":""},"NetworkID":"n1","Options":{"com.docker.network.endpoint.exposedports":[{"Proto":6,"Port":80}],"com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}]}}`,
	} {
		if !slices.Contains(calls, want) {
			t.Errorf("calls are\n%s\nwhich lack\n%s", strings.Join(calls, "\n"), want)
		}
	}
	e.Sandbox.Interface = "net0"
	objects, err := d.Objects(theNetwork(), e, kernel.Facts{})
	var text []string
	for _, o := range objects {
		text = append(text, o.String())
	}
	want := `link net0 of the machine's vx1 netns /run/netns/web
link net0 address 02:42:0a:01:00:02 netns /run/netns/web
link lo up netns /run/netns/web
link net0 up netns /run/netns/web
addr 10.1.0.2/24 dev net0 netns /run/netns/web
route 10.2.0.0/16 via 10.1.0.9 dev net0 netns /run/netns/web
route 10.3.0.0/16 dev net0 netns /run/netns/web
route default via 10.1.0.1 dev net0 netns /run/netns/web`
	if got := strings.Join(text, "\n"); err != nil || got != want {
		t.Errorf("objects are\n%s\nwant\n%s\n%v", got, want, err)
	}
	if err := errors.Join(d.Detach(t.Context(), ep, nil), d.Teardown(t.Context(), net, nil)); err != nil {
		t.Error(err)
	}
	if got, want := methods(s.took()), "RevokeExternalConnectivity Leave DeleteEndpoint DeleteNetwork"; got != want {
		t.Errorf("calls are %s, want %s", got, want)
	}
}

// TestFaults has each call of an attach go wrong in each way, and looks what is taken back.
func TestFaults(t *testing.T) {
	all := []string{"CreateEndpoint", "Join", "ProgramExternalConnectivity"}
	back := map[string]string{"CreateEndpoint": "DeleteEndpoint", "Join": "Leave DeleteEndpoint", "ProgramExternalConnectivity": "RevokeExternalConnectivity Leave DeleteEndpoint"}
	for _, method := range all {
		for name, c := range map[string]struct {
			answer func(http.ResponseWriter)
			want   string
			said   bool
		}{
			"error with 200": {say(`{"Err": "out of luck"}`), "out of luck", true},
			"error with 500": {status(500, `{"Error": "out of luck"}`), "out of luck", true},
			"500 with text":  {status(500, "panic!"), "panic!", true},
			"404":            {status(404, "404 page not found"), "no such method", true},
			"redirect":       {status(302, ""), "status 302", true},
			"no JSON":        {say("hello"), "not as specified", false},
			"breaks off": {func(w http.ResponseWriter) {
				c, _, _ := w.(http.Hijacker).Hijack()
				c.Close()
			}, "EOF", false},
			"hangs": {func(http.ResponseWriter) { time.Sleep(1500 * time.Millisecond) }, "did not answer within 1s", false},
			"endless": {func(w http.ResponseWriter) {
				for range 20 {
					_, _ = w.Write(make([]byte, 100<<10))
				}
			}, "longer than", false},
		} {
			t.Run(method+" "+name, func(t *testing.T) {
				t.Parallel()
				s := newScript(t)
				s.answers["NetworkDriver."+method] = c.answer
				_, _, ep, err := s.attached()
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), method) {
					t.Fatalf("error is %v, want %q", err, c.want)
				}
				if n := strings.Count(methods(s.took()), method); n != 1 {
					t.Errorf("it was called %d times", n)
				}
				if method == "CreateEndpoint" && c.said {
					if string(ep) != "null" {
						t.Errorf("there is something to take back: %s", ep)
					}
					return
				}
				if err := New(s.plugins).Detach(t.Context(), ep, nil); err != nil {
					t.Error(err)
				}
				if got := methods(s.took()); got != back[method] {
					t.Errorf("taken back by %s, want %s", got, back[method])
				}
			})
		}
	}
}

func TestHostileAnswers(t *testing.T) {
	join := func(fields string) map[string]string {
		return map[string]string{"NetworkDriver.Join": `{"InterfaceName": {"SrcName": "vx1", "DstPrefix": "eth"}` + fields + `}`}
	}
	for name, c := range map[string]map[string]string{
		"no interface":        {"NetworkDriver.Join": `{}`},
		"path as interface":   {"NetworkDriver.Join": `{"InterfaceName": {"SrcName": "../x"}}`},
		"long interface":      {"NetworkDriver.Join": `{"InterfaceName": {"SrcName": "abcdefghijklmnopq"}}`},
		"path as prefix":      {"NetworkDriver.Join": `{"InterfaceName": {"SrcName": "vx1", "DstPrefix": "a/b"}}`},
		"long prefix":         {"NetworkDriver.Join": `{"InterfaceName": {"SrcName": "vx1", "DstPrefix": "abcdefghijklmn"}}`},
		"gateway":             join(`, "Gateway": "nowhere"`),
		"gateway of IPv6":     join(`, "Gateway": "fd00::1"`),
		"route":               join(`, "StaticRoutes": [{"Destination": "x", "RouteType": 1}]`),
		"route without a hop": join(`, "StaticRoutes": [{"Destination": "10.9.0.0/16", "RouteType": 0}]`),
		"route of IPv6":       join(`, "StaticRoutes": [{"Destination": "10.9.0.0/16", "RouteType": 0, "NextHop": "fd00::1"}]`),
		"kind of route":       join(`, "StaticRoutes": [{"Destination": "10.9.0.0/16", "RouteType": 7}]`),
		"types":               {"NetworkDriver.Join": `{"InterfaceName": 7}`},
		"address repeated":    {"NetworkDriver.CreateEndpoint": `{"Interface": {"Address": "10.1.0.2/24"}}`},
		"another family":      {"NetworkDriver.CreateEndpoint": `{"Interface": {"AddressIPv6": "fd00::2/64"}}`},
		"MAC":                 {"NetworkDriver.CreateEndpoint": `{"Interface": {"MacAddress": "02:42"}}`},
		"scope":               {"NetworkDriver.GetCapabilities": `{"Scope": "global"}`},
		"not a driver":        {"Plugin.Activate": `{"Implements": ["VolumeDriver"]}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			for method, answer := range c {
				s.answers[method] = say(answer)
			}
			if e, _, _, err := s.attached(); err == nil {
				t.Errorf("it was believed: %+v", e.Plugin)
			}
		})
	}
}

func TestPluginThatComesAndGoes(t *testing.T) {
	s := newScript(t)
	d := New(s.plugins)
	_, net, ep, err := s.attached()
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	for _, err := range []error{d.Detach(t.Context(), ep, nil), d.Teardown(t.Context(), net, nil)} {
		if !errors.Is(err, errUnsent) {
			t.Errorf("a plugin that is away: %v", err)
		}
	}
	var again []byte
	e := theEndpoint()
	if err := d.Attach(t.Context(), theNetwork(), net, &e, driver.Call{ID: "e2", Keep: keep(&again)}); !errors.Is(err, errUnsent) || string(again) != "null" {
		t.Errorf("attached by a plugin that is away: %v, note %s", err, again)
	}
	s.plugins.Pauses = []time.Duration{50 * time.Millisecond, 50 * time.Millisecond, time.Second}
	time.AfterFunc(70*time.Millisecond, s.start)
	if err := d.Detach(t.Context(), ep, nil); err != nil {
		t.Errorf("it comes back while it is tried: %v", err)
	}
	s.answers["NetworkDriver.DeleteNetwork"] = say(`{"Err": "network n1 does not exist"}`)
	if err := d.Teardown(t.Context(), net, nil); err != nil {
		t.Errorf("what the plugin has forgotten: %v", err)
	}
	s.answers["NetworkDriver.DeleteNetwork"] = say(`{"Err": "network has active endpoints"}`)
	if err := d.Teardown(t.Context(), net, nil); err == nil {
		t.Error("what the plugin refuses counts as done")
	}
}

func TestIPAM(t *testing.T) {
	s := newScript(t)
	m := NewIPAM(s.plugins)
	given := []string{"10.8.0.0/24", "10.1.0.0/24"}
	s.answers["IpamDriver.RequestPool"] = func(w http.ResponseWriter) {
		fmt.Fprintf(w, `{"PoolID": "pool-%s", "Pool": %q}`, given[0], given[0])
		given = given[1:]
	}
	s.answers["IpamDriver.RequestAddress"] = say(`{"Address": "10.1.0.254/24"}`)
	var net, ep []byte
	n := api.Network{Name: "net", IPAM: "docker:x", IPAMOptions: map[string]string{"o": "1"}}
	free := func(p netip.Prefix) bool { return p.Addr() != netip.MustParseAddr("10.8.0.0") }
	if err := m.Setup(t.Context(), &n, driver.Call{ID: "n1", Keep: keep(&net), Free: free}); err != nil {
		t.Fatal(err)
	}
	if len(n.Subnets) != 1 || n.Subnets[0].Prefix.String() != "10.1.0.0/24" || n.Subnets[0].Gateway.String() != "10.1.0.254" {
		t.Errorf("subnets are %+v", n.Subnets)
	}
	got := strings.Join(s.took(), "\n")
	want := `Plugin.Activate 
IpamDriver.GetCapabilities 
IpamDriver.GetDefaultAddressSpaces 
IpamDriver.RequestPool {"AddressSpace":"here","Options":{"o":"1"},"Pool":"","SubPool":"","V6":false}
IpamDriver.RequestPool {"AddressSpace":"here","Options":{"o":"1"},"Pool":"","SubPool":"","V6":false}
IpamDriver.ReleasePool {"PoolID":"pool-10.8.0.0/24"}
IpamDriver.RequestAddress {"Address":"","Options":{"RequestAddressType":"com.docker.network.gateway"},"PoolID":"pool-10.1.0.0/24"}`
	if got != want {
		t.Errorf("calls are\n%s\nwant\n%s", got, want)
	}
	s.answers["IpamDriver.RequestAddress"] = say(`{"Address": "10.1.0.7/24"}`)
	e := theEndpoint()
	e.Addresses = nil
	if err := m.Attach(t.Context(), n, net, &e, driver.Call{ID: "e1", Keep: keep(&ep)}); err != nil || fmt.Sprint(e.Addresses) != "[10.1.0.7]" {
		t.Fatalf("%v, %v", e.Addresses, err)
	}
	s.took()
	// Releasing fails after the address was released: it is not released again.
	s.answers["IpamDriver.ReleasePool"] = status(500, `{"Err": "busy"}`)
	if err := m.Detach(t.Context(), ep, keep(&ep)); err != nil {
		t.Error(err)
	}
	if err := m.Teardown(t.Context(), net, keep(&net)); err == nil {
		t.Error("a pool that could not be released is forgotten")
	}
	delete(s.answers, "IpamDriver.ReleasePool")
	if err := m.Teardown(t.Context(), net, keep(&net)); err != nil {
		t.Error(err)
	}
	if err := m.Teardown(t.Context(), net, keep(&net)); err != nil {
		t.Error(err)
	}
	if got, want := methods(s.took()), "ReleaseAddress ReleaseAddress ReleasePool ReleasePool"; got != want {
		t.Errorf("calls are %s, want %s", got, want)
	}
}

func TestHostileIPAM(t *testing.T) {
	for name, c := range map[string]map[string]string{
		"no pool":              {"RequestPool": `{}`},
		"IPv6 pool":            {"RequestPool": `{"PoolID": "p", "Pool": "fd00::/64"}`},
		"host bits":            {"RequestPool": `{"PoolID": "p", "Pool": "10.1.0.1/24"}`},
		"everything":           {"RequestPool": `{"PoolID": "p", "Pool": "0.0.0.0/0"}`},
		"gateway elsewhere":    {"RequestPool": `{"PoolID": "p", "Pool": "10.1.0.0/24", "Data": {"com.docker.network.gateway": "10.2.0.1/24"}}`},
		"address elsewhere":    {"RequestAddress": `{"Address": "10.2.0.7/24"}`},
		"address without size": {"RequestAddress": `{"Address": "10.1.0.7"}`},
		"no address":           {"RequestAddress": `{}`},
		"refused":              {"RequestAddress": `{"Error": "full"}`},
		"spaces":               {"GetDefaultAddressSpaces": `[]`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			for method, answer := range c {
				s.answers["IpamDriver."+method] = say(answer)
			}
			m := NewIPAM(s.plugins)
			var net []byte
			n := api.Network{Name: "net", IPAM: "docker:x"}
			if err := m.Setup(t.Context(), &n, driver.Call{ID: "n1", Keep: keep(&net)}); err == nil {
				t.Fatalf("it was believed: %+v", n.Subnets)
			}
			asked := strings.Count(methods(s.took()), "RequestPool")
			if net != nil {
				if err := m.Teardown(t.Context(), net, keep(&net)); err != nil {
					t.Error(err)
				}
			}
			if got := methods(s.took()); asked > 0 && strings.Count(got, "ReleasePool") != asked {
				t.Errorf("%d pools were asked for, taken back by %q", asked, got)
			}
		})
	}
}

func TestDiscovery(t *testing.T) {
	s := newScript(t)
	tcp := httptest.NewTLSServer(http.HandlerFunc(s.answer))
	defer tcp.Close()
	plain := httptest.NewServer(http.HandlerFunc(s.answer))
	defer plain.Close()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(s.plugins.Sockets, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	sock := filepath.Join(s.plugins.Sockets, "x.sock")
	write("etc/spec.spec", "unix://"+sock+"\n")
	write("usr/folder/folder.spec", strings.Replace(plain.URL, "http", "tcp", 1))
	write("etc/tls.json", fmt.Sprintf(`{"Name": "tls", "Addr": %q, "TLSConfig": {"InsecureSkipVerify": true}}`, tcp.URL))
	write("etc/untrusted.json", fmt.Sprintf(`{"Addr": %q}`, tcp.URL))
	write("etc/ca.json", fmt.Sprintf(`{"Addr": %q, "TLSConfig": {"CAFile": "/nowhere"}}`, tcp.URL))
	write("etc/bad.spec", "ftp://x")
	write("etc/relative.spec", "unix://x.sock")
	write("etc/json.json", "{")
	if err := os.MkdirAll(filepath.Join(s.plugins.Sockets, "inner"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(sock, filepath.Join(s.plugins.Sockets, "inner", "inner.sock")); err != nil {
		t.Fatal(err)
	}
	for name, good := range map[string]bool{"x": true, "inner": true, "spec": true, "folder": true, "tls": true, "untrusted": false, "ca": false,
		"bad": false, "relative": false, "json": false, "nosuch": false, "": false, "..": false, "../x": false, "inner/inner": false} {
		err := s.plugins.activate(t.Context(), name, "NetworkDriver")
		if (err == nil) != good {
			t.Errorf("plugin %q: %v", name, err)
		}
	}
}

// FuzzAnswer has plugins answer anything to Join, CreateEndpoint and RequestPool.
func FuzzAnswer(f *testing.F) {
	f.Add(200, `{"Err": ""}`)
	f.Add(404, "404 page not found")
	f.Add(500, `{"Error": 7}`)
	f.Add(200, `{"InterfaceName": {"SrcName": "a"}, "StaticRoutes": [{}]}`)
	f.Fuzz(func(t *testing.T, code int, text string) {
		var out struct {
			InterfaceName struct{ SrcName, DstPrefix string }
			StaticRoutes  []struct{ Destination string }
			Data          map[string]string
		}
		if err := read(code, []byte(text), &out); err == nil && code != 200 {
			t.Errorf("status %d with %q is no error", code, text)
		}
		_, _ = readJSON([]byte(text))
		if a, err := readSpec([]byte(text)); err == nil && a.network == "unix" && !filepath.IsAbs(a.host) {
			t.Errorf("%q leads to %q", text, a.host)
		}
	})
}

var (
	_ driver.Attacher = Driver{}
	_ driver.Attacher = IPAM{}
)
