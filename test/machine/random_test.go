package machine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/builtin"
	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/engine"
	"github.com/seine-net/seine/internal/ipam/pool"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/state"
	"github.com/seine-net/seine/internal/testkit"
)

// parts is the daemon's inside on the real kernel, which can be ended in the midst of a verb.
type parts struct {
	t       *testing.T
	machine *testkit.NS
	path    string
	boxes   map[string]*testkit.NS

	*engine.Engine
	kernel *dying
	want   *desired.Set
	store  *state.Store
	stop   func()
}

// dying is a kernel whose user ends after a number of further changes: nothing reaches it any more.
type dying struct {
	*linux.Kernel
	mu   sync.Mutex
	left int // -1: for ever
}

func (d *dying) Apply(ctx context.Context, changes []kernel.Change) []error {
	d.mu.Lock()
	n := len(changes)
	if d.left >= 0 {
		n = min(n, d.left)
		d.left -= n
	}
	d.mu.Unlock()
	errs := d.Kernel.Apply(ctx, changes[:n])
	for range changes[n:] {
		errs = append(errs, context.Canceled)
	}
	return errs
}

func (p *parts) start() {
	p.t.Helper()
	var err error
	if p.store, err = state.Open(p.path); err != nil {
		p.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	p.kernel = &dying{Kernel: linux.New(linux.Options{Netns: p.machine.Path()}), left: -1}
	facts, err := p.kernel.Facts(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	p.want = desired.New()
	loop := reconcile.New(p.kernel, p.want, log)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { loop.Run(ctx) })
	p.stop = func() {
		cancel()
		running.Wait()
		p.store.Close()
		p.kernel.Close()
	}
	p.Engine = engine.New(engine.Config{Store: p.store, Want: p.want, Loop: loop, Drivers: builtin.Drivers(), Addons: builtin.Addons(),
		Machine: p, Log: log, DNSPort: 5380, Boot: "b",
		Pools: pool.Subnets{{Prefix: netip.MustParsePrefix("10.200.0.0/14"), Bits: 24}, {Prefix: netip.MustParsePrefix("fd00:5e::/48"), Bits: 64}}}, facts)
	if err := p.Load(ctx); err != nil {
		p.t.Fatal(err)
	}
}

func (p *parts) restart() { p.stop(); p.start() }

func (p *parts) CheckNetns(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return 0, errors.New("is no namespace")
	}
	return 0, nil
}

// leave gives a container's namespace up. Its path is a descriptor of this process: it is taken by something else, so
// that no other namespace gets the path.
func (p *parts) leave(name string) {
	fd := p.boxes[name].Fd()
	p.boxes[name].Close()
	delete(p.boxes, name)
	for range 100 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { f.Close() })
		if int(f.Fd()) >= fd {
			return
		}
	}
}
func (p *parts) ProcessStart(int) (uint64, error) { return 1, nil }
func (p *parts) CheckMovable(string) error        { return nil }
func (p *parts) WatchProcess(int, uint64, func()) {}
func (p *parts) box(name string) string {
	if p.boxes[name] == nil {
		ns, err := testkit.NewNS(name)
		if err != nil {
			p.t.Fatal(err)
		}
		p.boxes[name] = ns
	}
	return p.boxes[name].Path()
}

// settled checks that the real kernel holds exactly what is wanted, and no address is with two endpoints.
func (p *parts) settled(what string) {
	p.t.Helper()
	plan, err := p.Plan(context.Background(), "")
	if err != nil {
		p.t.Fatal(what, err)
	}
	for _, c := range plan.Changes {
		p.t.Errorf("%s: %s %s (was %s)", what, c.Op, c.Object, c.Was)
	}
	seen := map[netip.Addr]string{}
	for _, ep := range p.store.Endpoints() {
		for _, a := range ep.Addresses {
			if by := seen[a]; by != "" {
				p.t.Errorf("%s: %s is with %s and with %s", what, a, by, ep.Key())
			}
			seen[a] = ep.Key()
		}
	}
	if p.t.Failed() {
		p.t.FailNow()
	}
}

// TestRandomSequencesOnTheRealKernel is the short form of the engine's own test of that name.
func TestRandomSequencesOnTheRealKernel(t *testing.T) {
	testkit.Need(t, "root", "bridge", "veth", "nft", "ipv6")
	machine := testkit.Namespace(t, "machine")
	p := &parts{t: t, machine: machine, path: filepath.Join(t.TempDir(), "state.db"), boxes: map[string]*testkit.NS{}}
	p.start()
	t.Cleanup(func() {
		p.stop()
		for _, b := range p.boxes {
			b.Close()
		}
	})
	ctx := context.Background()
	for seed := range uint64(25) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		name := func() string { return fmt.Sprint("c", rnd.IntN(4)) }
		net := func() string { return []string{"a", "b"}[rnd.IntN(2)] }
		attach := func() {
			ep := api.Endpoint{Network: net(), Name: name()}
			ep.Sandbox.Netns = p.box(ep.Name)
			for range rnd.IntN(3) {
				ep.Ports = append(ep.Ports, api.Port{Protocol: []string{"tcp", "udp"}[rnd.IntN(2)], HostPort: uint16(8000 + rnd.IntN(4)), ContainerPort: 80})
			}
			_, _ = p.PutEndpoint(ctx, ep, 0)
		}
		var steps []string
		for range 8 {
			step := rnd.IntN(9)
			steps = append(steps, fmt.Sprint(step))
			switch step {
			case 0:
				on := rnd.IntN(2) == 0
				_, _ = p.PutNetwork(ctx, api.Network{Name: "a", ICC: &on}, 0)
				_, _ = p.PutNetwork(ctx, api.Network{Name: "b", Driver: "ptp", Masquerade: &on}, 0)
			case 1, 2, 3:
				attach()
			case 4:
				_ = p.DeleteEndpoint(ctx, net(), name(), 0)
			case 5:
				p.restart()
			case 6:
				p.kernel.mu.Lock()
				p.kernel.left = rnd.IntN(14)
				p.kernel.mu.Unlock()
				attach()
				_ = p.DeleteEndpoint(ctx, net(), name(), 0)
				p.restart()
			case 7:
				p.damage(rnd)
				p.restart()
			case 8:
				if n := name(); p.boxes[n] != nil {
					p.leave(n)
				}
			}
		}
		p.restart()
		_ = p.Collect(ctx)
		p.settled(fmt.Sprintf("sequence %d (steps %s)", seed, strings.Join(steps, " ")))
	}
	if err := p.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if rules, _ := machine.Exec(ctx, "nft", "list", "ruleset"); strings.TrimSpace(rules) != "" {
		t.Errorf("left after a reset:\n%s", rules)
	}
	if links, _ := machine.Netlink().LinkList(); len(links) != 1 {
		t.Errorf("%d links are left after a reset, want only lo", len(links))
	}
}

// damage breaks something of the machine by hand.
func (p *parts) damage(rnd *rand.Rand) {
	links, err := p.machine.Netlink().LinkList()
	if err != nil {
		p.t.Fatal(err)
	}
	cmds := []string{"nft flush chain inet seine forward", "nft delete table inet seine", "nft flush map inet seine port4", "ip -6 route flush proto 83", "ip route flush proto 83"}
	if l := links[rnd.IntN(len(links))].Attrs().Name; l != "lo" {
		cmds = append(cmds, "ip link del "+l, "ip link set "+l+" down", "ip addr flush dev "+l)
	}
	f := strings.Fields(cmds[rnd.IntN(len(cmds))])
	_, _ = p.machine.Exec(context.Background(), f[0], f[1:]...) // there may be nothing to break
}
