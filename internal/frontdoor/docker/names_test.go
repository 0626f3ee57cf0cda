package docker

import (
	"bufio"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
)

// The identities of what dockerd 20.10.24 was recorded with: web on net_1, made with --hostname front, --network-alias
// www and all, --label com.example.who=me and cni/network=x, and second, renamed third.
const (
	webID     = "39f1f6c498e24ca8d7ff6767cb493b2976e2fab61af81eff00f58308e6947a25"
	webEP     = "f231b016ca1cb30f78ef36d81b94e3f24511539e1f2e542eee0940a1b19ca95e"
	net1ID    = "d5ceaacd493babe33d6c1fdd629724ee2a64a03f4b0461c04e69c6652d00fbeb"
	secondID  = "32462c8f8d0ca235dfae802f628383657a3808e2dfb6e394767f382e37f695e6"
	bridgeNet = "199d84e4b1f2e8996b9b0b35bb4a1564cf9ec9c056c22d75e10425c8214301ba"
)

func recorded(t testing.TB, name string, into any) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err == nil && into != nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// newer is a container as Docker 28 gives it: without the settings of the default network, with DNSNames, and with more
// that is not read.
const newer = `{"Id":"` + webID + `","Name":"/web","State":{"Status":"running"},"Config":{"Hostname":"39f1f6c498e2","Labels":{"a":"b"}},
	"NetworkSettings":{"SandboxID":"74","Ports":{},"Networks":{
	"net_1":{"IPAMConfig":{},"Links":null,"Aliases":["www"],"DriverOpts":{},"GwPriority":0,"NetworkID":"` + net1ID + `","EndpointID":"` + webEP + `",
		"Gateway":"10.77.0.1","IPAddress":"10.77.0.2","MacAddress":"02:5e:0a:4d:00:02","IPPrefixLen":24,"DNSNames":["web","www","39f1f6c498e2"]},
	"late":{"Aliases":null,"NetworkID":"","EndpointID":"","DNSNames":null},
	"bridge":{"Aliases":null,"NetworkID":"` + bridgeNet + `","EndpointID":"aa5f3e0b9d7c1f2e","DNSNames":null},
	"nothing":null}}}`

func TestCallings(t *testing.T) {
	var c dockerContainer
	recorded(t, "20.10-container.json", &c)
	got, dropped := c.callings()
	want := []calling{{network: net1ID, endpoint: webEP, container: api.Container{ID: webID, Name: "web"},
		aliases: []string{"39f1f6c498e2", "all", "front", "www"}, labels: map[string]string{"com.example.who": "me"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("20.10: %+v, want %+v", got, want)
	}
	if len(dropped) != 1 || !strings.Contains(dropped[0], `"cni/network"`) {
		t.Errorf("20.10: dropped is %q", dropped)
	}

	c = dockerContainer{}
	if err := json.Unmarshal([]byte(newer), &c); err != nil {
		t.Fatal(err)
	}
	got, dropped = c.callings()
	who, labels := api.Container{ID: webID, Name: "web"}, map[string]string{"a": "b"}
	want = []calling{{bridgeNet, "aa5f3e0b9d7c1f2e", who, []string{"39f1f6c498e2"}, labels},
		{net1ID, webEP, who, []string{"39f1f6c498e2", "www"}, labels}}
	if !reflect.DeepEqual(got, want) || len(dropped) > 0 {
		t.Errorf("28: %+v, %q, want %+v", got, dropped, want)
	}
}

// TestCallingsDrop: what can't be taken over is left out, and told; the rest is taken.
func TestCallingsDrop(t *testing.T) {
	many := make([]string, maxNames+3)
	for i := range many {
		many[i] = "n" + strings.Repeat("x", i)
	}
	for what, change := range map[string]func(c *dockerContainer){
		`has ' '`:           func(c *dockerContainer) { c.Config.Hostname = "no name" },
		"is one too many":   func(c *dockerContainer) { c.NetworkSettings.Networks["net_1"].Aliases = many },
		"is no label":       func(c *dockerContainer) { c.Config.Labels["x"] = strings.Repeat("x", 5000) },
		"are Seine's own":   func(c *dockerContainer) { c.Config.Labels[LabelEndpoint] = "mine" },
		"is too long":       func(c *dockerContainer) { c.Name = "/" + strings.Repeat("x", 200) },
		"has no identity":   func(c *dockerContainer) { c.ID = "../x" },
		"has '\\u00e4'":     func(c *dockerContainer) { c.NetworkSettings.Networks["net_1"].DNSNames = []string{"wäb"} },
		"labels that begin": func(c *dockerContainer) { c.Config.Labels["docker.x"] = "" },
	} {
		var c dockerContainer
		recorded(t, "20.10-container.json", &c)
		delete(c.Config.Labels, "cni/network")
		change(&c)
		got, dropped := c.callings()
		text := strings.Join(dropped, "; ")
		if !strings.Contains(text, what) && !strings.Contains(text, "has 'ä'") {
			t.Errorf("dropped is %q, want %q", dropped, what)
		}
		if c.ID != webID {
			if len(got) > 0 {
				t.Errorf("%s: %+v", what, got)
			}
			continue
		}
		if len(got) != 1 || got[0].labels["com.example.who"] != "me" || !slices.Contains(got[0].aliases, "39f1f6c498e2") && what != "is one too many" {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

func TestEventsTouch(t *testing.T) {
	text := recorded(t, "20.10-events.json", nil)
	var got []string
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		var e dockerEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if c, n := e.touched(); c+n != "" {
			got = append(got, e.Action+" "+c+" "+n)
		}
	}
	want := []string{"connect " + secondID + " " + net1ID, "rename " + secondID + " ", "rename " + webID + " ", "rename " + webID + " "}
	if !slices.Equal(got, want) {
		t.Errorf("touched:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestNetworkIsCalled(t *testing.T) {
	var dn dockerNetwork
	recorded(t, "20.10-network.json", &dn)
	if dn.Containers[webID].EndpointID != webEP {
		t.Errorf("containers are %v", dn.Containers)
	}
	was := api.Network{Name: "shop", Aliases: []string{"own"}, Meta: api.Meta{Labels: map[string]string{LabelNetwork: net1ID, "tier": "mine"}}}
	dn.Labels["b"] = "c"
	n := was
	if dropped := dn.call(&n); len(dropped) > 0 {
		t.Errorf("dropped is %q", dropped)
	}
	want := map[string]string{LabelNetwork: net1ID, LabelName: "net_1", "tier": "mine", "b": "c"}
	if !slices.Equal(n.Aliases, []string{"own", "net_1"}) || !reflect.DeepEqual(n.Labels, want) {
		t.Errorf("network is %+v", n)
	}
	if len(was.Labels) != 2 || len(was.Aliases) != 1 {
		t.Errorf("what was given is changed: %+v", was)
	}
	again := n
	if dn.call(&again); !reflect.DeepEqual(n, again) {
		t.Errorf("the same again gives %+v, not %+v", again, n)
	}
	disown(&n)
	if !slices.Equal(n.Aliases, []string{"own"}) || n.Labels[LabelName]+n.Labels[LabelNetwork] != "" || n.Labels["tier"] != "mine" {
		t.Errorf("without Docker it is %+v", n)
	}

	kept := api.Network{Name: "net_1", Meta: api.Meta{Labels: map[string]string{LabelNetwork: net1ID, LabelKept: "true"}}}
	dn.call(&kept)
	if len(kept.Aliases) > 0 || len(kept.Labels) != 3 || kept.Labels[LabelName] != "net_1" {
		t.Errorf("a network that was there before is %+v", kept)
	}
	other := api.Network{Name: "x", Meta: api.Meta{Labels: map[string]string{LabelNetwork: bridgeNet}}}
	if dn.call(&other); len(other.Labels) != 1 {
		t.Errorf("another network is %+v", other)
	}
	dn.Name = strings.Repeat("x", 200)
	long := was
	if dropped := dn.call(&long); len(dropped) != 1 || len(long.Aliases) != 1 {
		t.Errorf("with a long name it is %+v, dropped %q", long, dropped)
	}
}

func TestParseAPI(t *testing.T) {
	for s, want := range map[string]string{"": "", "unix:///run/docker.sock": "/run/docker.sock", DefaultAPI: DaemonSocket} {
		if got, err := ParseAPI(s); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", s, got, err, want)
		}
	}
	for _, s := range []string{"tcp://127.0.0.1:2375", "/run/docker.sock", "unix://", "unix://docker.sock", "unix:///run/../docker.sock"} {
		if got, err := ParseAPI(s); err == nil || !strings.Contains(err.Error(), s) || !strings.Contains(err.Error(), "; want ") {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
}

// FuzzNames: whatever Docker answers, what comes of it is valid, is the same each time, and leaves the door's labels.
func FuzzNames(f *testing.F) {
	f.Add(recorded(f, "20.10-container.json", nil))
	f.Add(recorded(f, "20.10-network.json", nil))
	f.Add(newer)
	for line := range strings.Lines(recorded(f, "20.10-events.json", nil)) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var c dockerContainer
		if json.Unmarshal([]byte(text), &c) == nil {
			got, _ := c.callings()
			again, _ := c.callings()
			if !reflect.DeepEqual(got, again) {
				t.Errorf("%+v, then %+v", got, again)
			}
			for _, to := range got {
				ep := api.Endpoint{Network: "n", Name: endpointName(to.endpoint), Meta: api.Meta{Labels: map[string]string{LabelEndpoint: to.endpoint, LabelSandbox: "/x"}}}
				to.call(&ep)
				if err := ep.Validate(); err != nil || ep.Labels[LabelEndpoint] != to.endpoint || ep.Labels[LabelSandbox] != "/x" || ep.Labels[LabelNetwork] != "" {
					t.Errorf("endpoint is %+v, %v", ep, err)
				}
				if len(ep.Aliases) > maxNames || len(ep.Labels) > maxLabels+2 {
					t.Errorf("endpoint has %d aliases and %d labels", len(ep.Aliases), len(ep.Labels))
				}
			}
		}
		var dn dockerNetwork
		if json.Unmarshal([]byte(text), &dn) == nil && checkID("NetworkID", dn.ID) == nil {
			n := api.Network{Name: "n", Meta: api.Meta{Labels: map[string]string{LabelNetwork: dn.ID}}}
			if dn.call(&n); n.Validate() != nil || n.Labels[LabelNetwork] != dn.ID || n.Labels[LabelKept] != "" {
				t.Errorf("network is %+v, %v", n, n.Validate())
			}
		}
		var e dockerEvent
		if json.Unmarshal([]byte(text), &e) == nil {
			e.touched()
		}
	})
}
