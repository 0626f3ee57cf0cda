package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
	httpdoor "github.com/seine-net/seine/internal/frontdoor/http"
	"github.com/seine-net/seine/internal/frontdoor/http/fakeengine"
)

// TestSeineSearch: what a network asks for in its containers' resolv.conf is in the result.
func TestSeineSearch(t *testing.T) {
	s := newServed(t)
	for name, c := range map[string]struct{ search, want string }{
		"a": {"a.test,b.test", `"search": ["a.test", "b.test"], "options": ["ndots:2"]`},
		"b": {".", `"options": ["ndots:2"]`},
	} {
		if _, err := s.engine.PutNetwork(t.Context(), api.Network{Name: name, Options: map[string]string{"dns.search": c.search, "dns.options": "ndots:2"}}, 0); err != nil {
			t.Fatal(err)
		}
		var got, want struct{ DNS DNS }
		if err := json.Unmarshal([]byte(s.fine("ADD", with(seine1, "network", name), "CNI_IFNAME="+name)), &got); err != nil {
			t.Fatal(err)
		}
		_ = json.Unmarshal([]byte(`{"dns": {`+c.want+`}}`), &want)
		if want.DNS.Nameservers = got.DNS.Nameservers; len(got.DNS.Nameservers) == 0 || !reflect.DeepEqual(got, want) {
			t.Errorf("result has %+v, want %+v", got.DNS, want.DNS)
		}
	}
	own := with(seine1, "network", "a")
	own = strings.Replace(own, "{", `{"dns": {"nameservers": ["192.0.2.1"]}, `, 1)
	if out := s.fine("ADD", own, "CNI_IFNAME=c"); strings.Contains(out, "a.test") {
		t.Errorf("the configuration's own dns is not the result's: %s", out)
	}
}

// served is a node with the daemon's real door on a socket and an engine in memory behind it.
type served struct {
	*node
	engine *fakeengine.Engine
	stop   func()
}

func newServed(t testing.TB, networks ...string) *served {
	s := &served{node: newNode(t), engine: fakeengine.New()}
	for _, name := range networks {
		if _, err := s.engine.PutNetwork(t.Context(), api.Network{Name: name}, 0); err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *served) start() {
	s.Helper()
	l, err := httpdoor.Listen(filepath.Join(s.data, "s"), httpdoor.SocketMode)
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- httpdoor.Serve(ctx, l, httpdoor.New(s.engine, httpdoor.Options{Log: slog.New(slog.DiscardHandler)}))
	}()
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
		s.stop = func() {}
	}
}

// endpoints gives the keys of all endpoints.
func (s *served) endpoints() []string {
	s.Helper()
	all, err := s.engine.Endpoints(context.Background())
	if err != nil {
		s.Fatal(err)
	}
	var out []string
	for _, e := range all {
		out = append(out, e.Key())
	}
	slices.Sort(out)
	return out
}

// wrong calls the plugin seine and wants an error.
func (s *served) wrong(verb, conf string, code Code, names string, env ...string) {
	s.Helper()
	out, status := s.call("seine", verb, conf, env...)
	var got struct{ Code Code }
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 1 || got.Code != code || !strings.Contains(out, names) {
		s.Errorf("%s %s %v: status %d, %s; want code %d that names %q", verb, conf, env, status, out, code, names)
	}
}

func (s *served) fine(verb, conf string, env ...string) string {
	s.Helper()
	out, status := s.call("seine", verb, conf, env...)
	if status != 0 {
		s.Fatalf("%s %s %v: %s", verb, conf, env, out)
	}
	return out
}

const seine1 = `{"cniVersion": "1.1.0", "name": "net", "type": "seine", "socket": "DATA/s"}`

func TestSeineAdd(t *testing.T) {
	s := newServed(t, "default", "blue")
	conf := strings.Replace(seine1, `"socket"`, `"network": "blue", "aliases": ["www"], "runtimeConfig": {"aliases": {"net": ["db"], "other": ["x"]}, "mac": "02:00:00:00:00:07", "ips": ["10.2.0.9/24"],
		"portMappings": [{"HostPort": 8080, "ContainerPort": 80, "HostIP": "0.0.0.0"}, {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"}]}, "socket"`, 1)
	out := s.fine("ADD", conf, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=prod;FOO=1")
	name := "web-0-" + short(10, "net", "c", "eth0")
	e, err := s.engine.Endpoint(t.Context(), "blue", name)
	if err != nil {
		t.Fatalf("%v; there are %v", err, s.endpoints())
	}
	if fmt.Sprint(e.Aliases) != "[www db web-0 web-0.prod]" || e.MAC != "02:00:00:00:00:07" || e.Sandbox != (api.Sandbox{Netns: netns, Interface: "eth0"}) ||
		fmt.Sprint(e.Ports) != "[0.0.0.0:8080:80 192.0.2.1:53:5353/udp]" || fmt.Sprint(e.Labels) != "map[cni/container:c cni/interface:eth0 cni/network:net]" {
		t.Errorf("asked for %+v", e)
	}
	want := `{"cniVersion":"1.1.0","dns":{"nameservers":["10.2.0.1","fd00:2::1"]},"interfaces":[{"mtu":1500,"name":"sp-` + name + `"},` +
		`{"mac":"02:00:00:00:00:07","mtu":1500,"name":"eth0","sandbox":"/run/netns/c"}],` +
		`"ips":[{"address":"10.2.0.9/24","gateway":"10.2.0.1","interface":1},{"address":"fd00:2::2/64","gateway":"fd00:2::1","interface":1}],` +
		`"routes":[{"dst":"0.0.0.0/0","gw":"10.2.0.1"},{"dst":"::/0","gw":"fd00:2::1"}]}`
	var v any
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatal(err)
	}
	if got, _ := json.Marshal(v); string(got) != want {
		t.Errorf("result\n%s\nwant\n%s", got, want)
	}
	s.wrong("ADD", conf, CodeConfig, "exists already", "CNI_ARGS=K8S_POD_NAME=web-0")
	// A second attachment of the container is another one, and one of another network of CNI too.
	s.fine("ADD", with(seine1, "network", "blue"), "CNI_IFNAME=net1")
	s.fine("ADD", with(with(seine1, "network", "blue"), "name", "net2"))
	if got := s.endpoints(); len(got) != 3 {
		t.Errorf("endpoints %q", got)
	}
	// DEL finds by labels what was added with another name, in another network.
	s.fine("DEL", seine1)
	s.fine("DEL", seine1)
	if got := s.endpoints(); slices.Contains(got, "blue/"+name) || len(got) != 2 {
		t.Errorf("after DEL: endpoints %q", got)
	}
}

// Which network it is: the one that is named, else the one named as the configuration is, else default.
func TestSeineNetwork(t *testing.T) {
	s := newServed(t, "default", "net")
	for conf, network := range map[string]string{seine1: "net/", with(seine1, "name", "unknown"): "default/", with(seine1, "network", "default"): "default/"} {
		s.fine("ADD", conf)
		if got := s.endpoints(); len(got) != 1 || !strings.HasPrefix(got[0], network) {
			t.Errorf("%s: endpoints %q, want one of %s", conf, got, network)
		}
		s.fine("DEL", conf)
	}
	s.wrong("ADD", with(seine1, "network", "green"), CodeConfig, "green")
	s.wrong("STATUS", with(seine1, "network", "green"), CodeUnavailable, "green")
	s = newServed(t)
	s.wrong("ADD", seine1, CodeConfig, "no network net or default")
	s.fine("DEL", seine1)
	s.fine("DEL", with(seine1, "name", strings.Repeat("n", 70)))
}

// Every version's form of the result; what can't be told in it leaves nothing.
func TestSeineVersions(t *testing.T) {
	s := newServed(t, "net")
	if _, err := s.engine.PutNetwork(t.Context(), api.Network{Name: "none", Driver: "null"}, 0); err != nil {
		t.Fatal(err)
	}
	for _, v := range versions {
		conf := with(seine1, "cniVersion", v)
		out := s.fine("ADD", conf)
		if old := !atLeast(v, "0.3.0"); strings.Contains(out, `"ip4"`) != old || strings.Contains(out, `"ips"`) == old || !strings.Contains(out, "10.1.0.1") {
			t.Errorf("%s: %s", v, out)
		}
		s.fine("DEL", conf)
		if conf = with(conf, "network", "none"); atLeast(v, "0.3.0") {
			if out := s.fine("ADD", conf); strings.Contains(out, "interfaces") {
				t.Errorf("%s: without an interface: %s", v, out)
			}
			s.fine("DEL", conf)
		} else {
			s.wrong("ADD", conf, CodeConfig, "without addresses")
		}
		if got := s.endpoints(); len(got) > 0 {
			t.Errorf("%s: left behind: %q", v, got)
		}
	}
}

func TestSeineErrors(t *testing.T) {
	s := newServed(t, "net")
	rc := func(text string) string { return with(seine1, "runtimeConfig", json.RawMessage(text)) }
	for _, c := range []struct {
		conf, env string
		code      Code
		names     string
	}{
		{with(seine1, "network", 7), "", CodeDecode, "network"},
		{with(seine1, "network", "a/b"), "", CodeConfig, `network \"a/b\"`},
		{with(seine1, "socket", "s"), "", CodeConfig, `socket \"s\"`},
		{with(seine1, "aliases", []string{"a b"}), "", CodeConfig, `aliases \"a b\"`},
		{rc(`{"aliases": 7}`), "", CodeDecode, "runtimeConfig.aliases"},
		{rc(`{"aliases": [""]}`), "", CodeConfig, "runtimeConfig.aliases"},
		{rc(`{"mac": "01:00:00:00:00:01"}`), "", CodeConfig, "01:00:00:00:00:01"},
		{rc(`{"ips": ["10.1.0.9", "10.1.0.10"]}`), "", CodeConfig, "runtimeConfig.ips"},
		{rc(`{"portMappings": [{"hostPort": 0, "containerPort": 1}]}`), "", CodeConfig, "portMappings[0].hostPort"},
		{rc(`{"portMappings": [{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2}]}`), "", CodeConfig, "published twice"},
		{with(seine1, "ipam", map[string]string{"type": "host-local"}), "", CodeUnsupported, `ipam.type \"host-local\"`},
		{with(seine1, "prevResult", map[string]string{"cniVersion": "1.1.0"}), "", CodeConfig, "first in plugins"},
		{seine1, "CNI_ARGS=FOO=1", CodeEnvironment, "FOO"},
		{seine1, "CNI_ARGS=IP=nonsense", CodeConfig, "CNI_ARGS IP"},
		{seine1, "CNI_ARGS=K8S_POD_NAME=a b", CodeConfig, "K8S_POD_NAME"},
		{with(seine1, "cniVersion", "0.9.0"), "", CodeVersion, "0.9.0"},
	} {
		s.wrong("ADD", c.conf, c.code, c.names, c.env)
		if c.code != CodeVersion && c.names != `socket \"s\"` {
			s.fine("DEL", c.conf, c.env)
		}
		if got := s.endpoints(); len(got) > 0 {
			t.Errorf("%s %s: left behind: %q", c.conf, c.env, got)
		}
	}
	s.wrong("CHECK", seine1, CodeConfig, "prevResult")
	s.wrong("GC", seine1, CodeConfig, "cni.dev/valid-attachments")
	for code, want := range map[api.Code]Code{api.Exhausted: CodeTryAgain, api.Unavailable: CodeTryAgain, api.Conflict: CodeConfig, api.Invalid: CodeConfig,
		api.Unsupported: CodeUnsupported, api.Internal: CodeInternal} {
		s.engine.Fail = func(verb string) error {
			if verb == "PutEndpoint" {
				return api.Errorf(code, "", "on purpose")
			}
			return nil
		}
		s.wrong("ADD", seine1, want, "on purpose")
	}
}

// DEL without a daemon succeeds where nothing of the container is left, and is to be tried again where there is.
func TestSeineWithoutDaemon(t *testing.T) {
	s := newServed(t, "net")
	s.fine("ADD", seine1)
	s.stop()
	s.wrong("ADD", seine1, CodeTryAgain, "start seined", "CNI_CONTAINERID=late")
	s.wrong("DEL", seine1, CodeTryAgain, "start seined")
	s.fine("DEL", seine1, "CNI_NETNS=")
	s.fine("DEL", seine1, "CNI_NETNS=/run/netns/ended")
	s.wrong("STATUS", seine1, CodeLimited, "start seined")
	s.wrong("GC", with(seine1, "cni.dev/valid-attachments", []any{}), CodeTryAgain, "start seined")
	s.start()
	s.fine("STATUS", seine1)
	s.fine("DEL", seine1)
	if got := s.endpoints(); len(got) > 0 {
		t.Errorf("after DEL: endpoints %q", got)
	}
}

// An ADD whose answer does not come takes back what the daemon did.
func TestSeineAnswerLost(t *testing.T) {
	s := newServed(t, "net")
	s.hangUp(t, "PUT")
	s.wrong("ADD", seine1, CodeTryAgain, "did not come")
	if got := s.endpoints(); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
}

func TestSeineCheck(t *testing.T) {
	s := newServed(t, "net")
	conf := with(seine1, "prevResult", json.RawMessage(s.fine("ADD", seine1)))
	key := s.endpoints()[0]
	s.fine("CHECK", conf)
	s.engine.Changes = []api.Change{{Op: "~", Object: "link eth0 mtu 1500", Was: "link eth0 mtu 1400", Owner: "endpoint/" + key}, {Op: "+", Object: "addr 10.9.0.1/24", Owner: "endpoint/other/x"}}
	s.fine("CHECK", conf) // tuning may have done that
	s.engine.Changes = append(s.engine.Changes, api.Change{Op: "+", Object: "addr 10.1.0.2/24 dev eth0", Owner: "endpoint/" + key})
	s.wrong("CHECK", conf, CodeInternal, "addr 10.1.0.2/24 dev eth0")
	s.engine.Changes = nil
	s.engine.SetState(key, api.Lost, "the namespace is gone")
	s.wrong("CHECK", conf, CodeInternal, "is lost: the namespace is gone")
	s.engine.SetState(key, api.Attached, "")
	s.wrong("CHECK", strings.Replace(conf, "10.1.0.2/24", "10.1.0.3/24", 1), CodeInternal, "10.1.0.2")
	s.fine("DEL", seine1)
	s.wrong("CHECK", conf, CodeConfig, "does not exist")
}

func TestSeineGC(t *testing.T) {
	s := newServed(t, "net", "blue")
	var valid []attachment
	for i := range 20 {
		id := fmt.Sprintf("c%d", i)
		conf := seine1
		if i%3 == 0 {
			conf = with(seine1, "network", "blue") // what the configuration said then
		}
		s.fine("ADD", conf, "CNI_CONTAINERID="+id)
		if i%2 == 0 {
			valid = append(valid, attachment{id, "eth0"})
		}
	}
	s.fine("ADD", seine1, "CNI_CONTAINERID=c0", "CNI_IFNAME=eth1")
	s.fine("ADD", with(with(seine1, "name", "net2"), "network", "net"), "CNI_CONTAINERID=c1")
	if _, err := s.engine.PutEndpoint(t.Context(), api.Endpoint{Network: "net", Name: "run", Sandbox: api.Sandbox{Netns: netns}}, 0); err != nil {
		t.Fatal(err)
	}
	s.fine("GC", with(seine1, "cni.dev/valid-attachments", valid))
	got := s.endpoints()
	if len(got) != 12 || !slices.Contains(got, "net/run") {
		t.Errorf("after GC: %q", got)
	}
	for _, a := range valid {
		if name := a.ContainerID + "-" + short(10, "net", a.ContainerID, "eth0"); !slices.Contains(got, "net/"+name) && !slices.Contains(got, "blue/"+name) {
			t.Errorf("GC took %s", name)
		}
	}
}

// STATUS tells a network that is full from one that is not, at exactly that address.
func TestSeineStatus(t *testing.T) {
	s := newServed(t)
	_, err := s.engine.PutNetwork(t.Context(), api.Network{Name: "net", Subnets: []api.Subnet{
		{Prefix: netip.MustParsePrefix("10.1.0.0/29"), Reserved: []netip.Addr{netip.MustParseAddr("10.1.0.6")}}, {Prefix: netip.MustParsePrefix("fd00:1::/64")}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := 2; i < 6; i++ { // .1 is the gateway, .6 reserved, .7 broadcast
		s.fine("STATUS", seine1)
		s.fine("ADD", seine1, fmt.Sprintf("CNI_CONTAINERID=c%d", i), fmt.Sprintf("CNI_ARGS=IP=10.1.0.%d", i))
	}
	s.wrong("STATUS", seine1, CodeUnavailable, "no address is left")
	s.fine("DEL", seine1, "CNI_CONTAINERID=c3", "CNI_ARGS=IP=10.1.0.3")
	s.fine("STATUS", seine1)
	s.engine.Fail = func(string) error { return errors.New("disk full") }
	s.wrong("STATUS", seine1, CodeLimited, "disk full")
}

func TestProcessOf(t *testing.T) {
	for path, want := range map[string]int{"/proc/12/ns/net": 12, "/proc/self/ns/net": 0, "/run/netns/12": 0, "/proc/12/fd/3": 0, "/proc/12/task/13/ns/net": 0} {
		if got := processOf(path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}
