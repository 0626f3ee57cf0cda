package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
)

// program stands for somebody else's: what it has made lives on when the daemon ends.
type program struct {
	mu   sync.Mutex
	made map[string]string // what it has, by ID
	step int               // calls so far
	fail func(step int, verb string) (before, after error)
}

func newProgram() *program { return &program{made: map[string]string{}} }

// do is one call of the program: it may fail before or after it had its effect.
func (p *program) do(verb string, f func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step++
	var before, after error
	if p.fail != nil {
		before, after = p.fail(p.step, verb)
	}
	if before != nil {
		return before
	}
	f()
	return after
}

type note struct{ ID, Key string }

// plugin is a driver and an IPAM of that program.
type plugin struct {
	*program
	ipam bool
}

func (p *plugin) Setup(_ context.Context, n *api.Network, c driver.Call) error {
	id := fmt.Sprint(p.ipam, c.ID)
	if err := c.Keep(note{id, n.Name}); err != nil {
		return err
	}
	err := p.do("setup", func() {
		if p.made[id] != "" {
			panic("asked twice under one ID")
		}
		p.made[id] = n.Name
	})
	if err == nil && p.ipam && len(n.Subnets) == 0 {
		n.Subnets = []api.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Gateway: netip.MustParseAddr("10.9.0.1")}}
	}
	return err
}

func (p *plugin) Attach(_ context.Context, _ api.Network, net []byte, e *api.Endpoint, c driver.Call) error {
	var of note
	if json.Unmarshal(net, &of) != nil || of.ID == "" {
		return errors.New("has no note of its network")
	}
	id := fmt.Sprint(p.ipam, c.ID)
	if err := c.Keep(note{id, e.Key()}); err != nil {
		return err
	}
	return p.do("attach", func() {
		if p.made[id] != "" {
			panic("asked twice under one ID")
		}
		if p.ipam {
			for i := byte(2); ; i++ {
				a := netip.AddrFrom4([4]byte{10, 9, 0, i})
				if !slices.Contains(p.values(), a.String()) {
					e.Addresses = []netip.Addr{a}
					p.made[id] = a.String()
					return
				}
			}
		}
		p.made[id] = e.Key()
		e.Plugin.Prefixes = []netip.Prefix{netip.PrefixFrom(e.Addresses[0], 24)}
	})
}

func (p *plugin) values() (out []string) {
	for _, v := range p.made {
		out = append(out, v)
	}
	return out
}

func (p *plugin) Teardown(ctx context.Context, raw []byte, keep driver.Keep) error {
	return p.Detach(ctx, raw, keep)
}

func (p *plugin) Detach(_ context.Context, raw []byte, _ driver.Keep) error {
	var x note
	if err := json.Unmarshal(raw, &x); err != nil {
		return err
	}
	return p.do("detach", func() { delete(p.made, x.ID) })
}

func (p *plugin) Network(api.Network, kernel.Facts) ([]kernel.Object, error) { return nil, nil }
func (p *plugin) Objects(_ api.Network, e api.Endpoint, _ kernel.Facts) ([]kernel.Object, error) {
	return []kernel.Object{&kernel.LinkUp{NS: e.Sandbox.Netns, Link: "lo", Keep: true}}, nil
}
func (p *plugin) Interfaces(api.Network, api.Endpoint) (via, end string) { return "", "" }
func (p *plugin) Uses() driver.Uses {
	return driver.Uses{Sandbox: true, Subnets: true, Ports: true, Named: true, AnyOption: true}
}

// liar is a driver whose answers the test changes.
type liar struct {
	*plugin
	r *rig
}

func (l *liar) Attach(ctx context.Context, n api.Network, net []byte, e *api.Endpoint, c driver.Call) error {
	err := l.plugin.Attach(ctx, n, net, e, c)
	if l.r.lie != nil && err == nil {
		l.r.lie(e)
	}
	return err
}

// pluginRig has a daemon whose driver "theirs" and IPAM "theirs" are the program's.
func pluginRig(t testing.TB) (*rig, *program) {
	p := newProgram()
	r := newRig(t)
	r.foreign = p
	r.stop()
	r.start()
	return r, p
}

var theirNetwork = api.Network{Name: "net", Driver: "theirs:x", IPAM: "theirs:x"}

// pluginStory makes and removes everything, and may be cut short anywhere.
func pluginStory(r *rig) error {
	ctx := context.Background()
	if _, err := r.PutNetwork(ctx, theirNetwork, 0); err != nil {
		return err
	}
	if _, err := r.PutNetwork(ctx, api.Network{Name: "own", IPAM: "theirs:x"}, 0); err == nil {
		return errors.New("an IPAM that gave a range twice was believed")
	}
	for _, name := range []string{"a", "b"} {
		if _, err := r.tryAttach("net", name); err != nil {
			return err
		}
	}
	return r.DeleteEndpoint(ctx, "net", "a", 0)
}

// turn has the daemon try everything that is left, without waiting for its time.
func (r *rig) turn() {
	for range 4 {
		r.PluginsNow()
		r.TurnPlugins(context.Background())
	}
}

// finish has the daemon do what is left, and checks that the program has what the store says and nothing else.
func finish(t *testing.T, r *rig, p *program) {
	t.Helper()
	r.turn()
	want := map[string]string{}
	for _, n := range r.store.Networks() {
		if n.Plugin == "" {
			t.Fatalf("network %q is not made", n.Name)
		}
		for _, ipam := range []bool{true, false} {
			want[fmt.Sprint(ipam, n.Plugin)] = n.Name
		}
	}
	for _, ep := range r.store.Endpoints() {
		if ep.Plugin == nil || len(ep.Addresses) != 1 {
			t.Fatalf("endpoint is %+v", ep)
		}
		want["true"+ep.Plugin.ID], want["false"+ep.Plugin.ID] = ep.Addresses[0].String(), ep.Key()
	}
	if fmt.Sprint(want) != fmt.Sprint(p.made) {
		t.Fatalf("the program has %v, the store says %v", p.made, want)
	}
	r.settled()
}

func TestPluginFailsAtEveryCall(t *testing.T) {
	for _, after := range []bool{false, true} {
		for k := 1; ; k++ {
			r, p := pluginRig(t)
			boom := errors.New("boom")
			p.fail = func(step int, _ string) (error, error) {
				if step != k {
					return nil, nil
				}
				if after {
					return nil, boom
				}
				return boom, nil
			}
			err := pluginStory(r)
			reached := p.step >= k
			if reached && err == nil && k != 3 && k != 4 { // these are of the network that is refused anyway
				t.Fatalf("call %d failed and nobody was told", k)
			}
			finish(t, r, p)
			r.stop()
			r.stop = func() {}
			if !reached {
				break
			}
		}
	}
}

func TestProcessEndsAtEveryCallOfAPlugin(t *testing.T) {
	for _, after := range []bool{false, true} {
		for k := 1; ; k++ {
			r, p := pluginRig(t)
			ended := errors.New("the daemon has ended")
			var err error
			over := false
			var disk []byte // as the dead daemon left it: whatever it goes on writing is not
			p.fail = func(step int, _ string) (before, _ error) {
				switch {
				case over:
					return ended, nil // a dead daemon calls nobody
				case step != k:
					return nil, nil
				}
				over = true
				if disk, err = os.ReadFile(r.path); err != nil {
					t.Fatal(err)
				}
				if after {
					return nil, ended
				}
				return ended, nil
			}
			_ = pluginStory(r)
			r.stop()
			if over {
				if err := os.WriteFile(r.path, disk, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r.kernel.Restart()
			r.start()
			p.fail = nil
			finish(t, r, p)
			_ = pluginStory(r)
			finish(t, r, p)
			r.stop()
			r.stop = func() {}
			if !over {
				break
			}
		}
	}
}

func TestPluginThatIsAwayIsShownAndAskedAgain(t *testing.T) {
	r, p := pluginRig(t)
	ctx := context.Background()
	r.network(theirNetwork)
	r.attach("net", "a")
	away := errors.New("connection refused")
	p.fail = func(int, string) (error, error) { return away, nil }
	if err := r.DeleteEndpoint(ctx, "net", "a", 0); !errors.Is(err, away) {
		t.Fatalf("detach: %v", err)
	}
	if _, err := r.Endpoint(ctx, "net", "a"); api.CodeOf(err) != api.NotFound {
		t.Errorf("the endpoint is there: %v", err)
	}
	if _, err := r.tryAttach("net", "a"); api.CodeOf(err) != api.Unavailable {
		t.Errorf("attached anew before it was detached: %v", err)
	}
	if err := r.DeleteNetwork(ctx, "net", 0); err == nil {
		t.Error("the network was removed by a plugin that is away")
	}
	if n, _ := r.Node(ctx); len(n.Problems) == 0 {
		t.Error("the node has no problems")
	}
	if found, _ := r.Doctor(ctx); !slices.ContainsFunc(found, func(f api.Finding) bool { return f.Topic == "plugins" && f.Level == "problem" }) {
		t.Errorf("doctor says %+v", found)
	}
	if next := r.TurnPlugins(ctx); time.Until(next) > 10*time.Second {
		t.Errorf("it is tried again in %s", time.Until(next))
	}
	p.fail = nil
	finish(t, r, p)
	if n, _ := r.Node(ctx); len(n.Problems) > 0 || len(p.made) > 0 {
		t.Errorf("problems %v, the program has %v", n.Problems, p.made)
	}
}

func TestPluginGivesWhatCannotBe(t *testing.T) {
	for name, change := range map[string]func(*api.Endpoint){
		"interface of the machine": func(e *api.Endpoint) { e.Plugin.Interface = "nosuch0" },
		"address":                  func(e *api.Endpoint) { e.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")} },
		"address outside":          func(e *api.Endpoint) { e.Addresses = []netip.Addr{netip.MustParseAddr("10.10.0.7")} },
		"gateway's address":        func(e *api.Endpoint) { e.Addresses = []netip.Addr{netip.MustParseAddr("10.9.0.1")} },
		"two of a family": func(e *api.Endpoint) {
			e.Addresses = append(e.Addresses, netip.MustParseAddr("10.9.0.77"))
		},
		"prefix":  func(e *api.Endpoint) { e.Plugin.Prefixes = []netip.Prefix{{}} },
		"gateway": func(e *api.Endpoint) { e.Plugin.Gateways = []netip.Addr{netip.MustParseAddr("224.0.0.1")} },
		"route":   func(e *api.Endpoint) { e.Plugin.Routes = []api.PluginRoute{{}} },
		"MAC":     func(e *api.Endpoint) { e.MAC = "01:00:00:00:00:00" },
	} {
		t.Run(name, func(t *testing.T) {
			r, p := pluginRig(t)
			r.network(theirNetwork)
			r.lie = change
			if _, err := r.tryAttach("net", "a"); err == nil {
				t.Fatal("it was believed")
			}
			r.lie = nil
			finish(t, r, p)
			if len(r.store.Endpoints()) > 0 {
				t.Error("an endpoint is left")
			}
		})
	}
}

func TestPluginOfARebootedMachineIsToldToDetach(t *testing.T) {
	r, p := pluginRig(t)
	r.network(theirNetwork)
	r.attach("net", "a")
	r.boot = "another boot"
	r.restart()
	finish(t, r, p)
	if len(r.store.Endpoints()) > 0 || len(p.made) != 2 {
		t.Errorf("endpoints %v, the program has %v", r.store.Endpoints(), p.made)
	}
}

func TestResetTakesBackFromPlugins(t *testing.T) {
	r, p := pluginRig(t)
	r.network(theirNetwork)
	r.attach("net", "a")
	if err := r.Reset(context.Background()); err != nil || len(p.made) > 0 {
		t.Errorf("%v, the program has %v", err, p.made)
	}
}

func TestWhatAPluginWasToldStays(t *testing.T) {
	r, _ := pluginRig(t)
	r.network(theirNetwork)
	ep := r.attach("net", "a")
	ep.Aliases = []string{"alias"}
	if _, err := r.PutEndpoint(context.Background(), ep, 0); err != nil {
		t.Errorf("an alias: %v", err)
	}
	_, err := r.tryAttach("net", "a", api.Port{HostPort: 80, ContainerPort: 80})
	code(t, err, api.Conflict, "ports")
	for _, n := range []api.Network{{Name: "x", Driver: "theirs"}, {Name: "x", Driver: "bridge:x"}, {Name: "x", Driver: "theirs:../x"}, {Name: "x", Driver: "nosuch:x"}} {
		_, err := r.PutNetwork(context.Background(), n, 0)
		code(t, err, api.Invalid, "driver")
	}
	for _, n := range []api.Network{{Name: "x", IPAM: "theirs"}, {Name: "x", IPAM: "theirs:a/b"}, {Name: "x", IPAM: "nosuch:x"}, {Name: "x", Driver: "host", IPAM: "theirs:x"}} {
		_, err := r.PutNetwork(context.Background(), n, 0)
		code(t, err, api.Invalid, "ipam")
	}
}
