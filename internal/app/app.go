// Package app wires the daemon: it builds store, kernel, reconciler, engine, name server and doors in order, runs them,
// and stops them in reverse.
package app

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/builtin"
	"github.com/seine-net/seine/internal/cli/sandbox"
	"github.com/seine-net/seine/internal/cluster/node"
	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/dns"
	"github.com/seine-net/seine/internal/engine"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/frontdoor/docker"
	doors "github.com/seine-net/seine/internal/frontdoor/http"
	"github.com/seine-net/seine/internal/handover"
	"github.com/seine-net/seine/internal/ipam/dhcp"
	"github.com/seine-net/seine/internal/ipam/dhcprpc"
	"github.com/seine-net/seine/internal/ipam/pool"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
	"github.com/seine-net/seine/internal/loopback"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/state"
)

// The defaults of Options.
const (
	DefaultState   = "/var/lib/seine/state.db"
	DefaultSocket  = "/run/seine/seine.sock"
	DefaultDNSPort = 5380
	// DefaultNetwork is a bridge that every daemon makes at its first start.
	DefaultNetwork = "default"
)

// gcPercent trades a little time for memory: the daemon keeps a few kilobytes per endpoint and makes little garbage.
const gcPercent = 40

// Options are the daemon's settings.
type Options struct {
	State, Socket, Node, LogLevel string
	DNSPort                       int
	// DNSFixed4 and DNSFixed6 are where the name server is found from any network; the zero Addr for not at all.
	DNSFixed4, DNSFixed6 netip.Addr
	// DNSUpstreams are asked in place of the machine's resolvers, where there are any.
	DNSUpstreams []netip.AddrPort
	Pools        pool.Subnets
	// DHCPSocket is where CNI's dhcp plugin asks; "" for not at all.
	DHCPSocket string
	DHCP       dhcp.Options
	// DockerSocket is where Docker asks its network and IPAM driver; "" for not at all.
	DockerSocket string
	// DockerAPI is where Docker is asked for the names of its containers, in the form of DOCKER_HOST; "" for not at all.
	DockerAPI string
	// DefaultNetwork is the network of containers whose maker names none; "" is DefaultNetwork.
	DefaultNetwork string
	Quiet          bool
	// Hold has the program be its own service manager; see the function Hold.
	Hold    bool
	Version string
}

// Flags declares the settings as flags.
func (o *Options) Flags(fs *flag.FlagSet) {
	host, _ := os.Hostname()
	fs.StringVar(&o.State, "state", DefaultState, "`file` that keeps networks and endpoints")
	fs.StringVar(&o.Socket, "socket", DefaultSocket, "unix `socket` of the API")
	fs.StringVar(&o.Node, "node", host, "`name` of this machine")
	fs.StringVar(&o.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.IntVar(&o.DNSPort, "dns-port", DefaultDNSPort, "`port` that the name server listens on; containers ask at port 53 of their gateway; 0 takes any")
	o.DNSFixed4, o.DNSFixed6 = defaultFixed4, defaultFixed6
	fs.Func("dns-fixed", "`address` of the machine's lo at which the name server is found from any network (default "+defaultFixed4.String()+"); \"\" for none", fixedAddr(&o.DNSFixed4, true))
	fs.Func("dns-fixed6", "the same for IPv6 (default "+defaultFixed6.String()+"); \"\" for none", fixedAddr(&o.DNSFixed6, false))
	fs.Func("dns-upstream", "`address[:port]` of a resolver that is asked for names outside, in place of those in "+dns.ResolvConf+"; may be repeated", func(s string) error {
		up, err := parseUpstream(s)
		o.DNSUpstreams = append(o.DNSUpstreams, up)
		return err
	})
	o.DHCP = dhcp.DefaultOptions()
	fs.StringVar(&o.DHCPSocket, "dhcp-socket", dhcprpc.DefaultSocket, "unix `socket` that the CNI plugin dhcp asks at, unless somebody else listens there; \"\" for none")
	fs.DurationVar(&o.DHCP.Timeout, "dhcp-timeout", o.DHCP.Timeout, "how `long` one exchange with a DHCP server is tried")
	fs.DurationVar(&o.DHCP.ResendMax, "dhcp-resend-max", o.DHCP.ResendMax, "the largest `pause` between two exchanges for a lease")
	fs.DurationVar(&o.DHCP.ResendTimeout, "dhcp-resend-timeout", o.DHCP.ResendTimeout, "after what `time` without a lease an ADD fails")
	fs.BoolVar(&o.DHCP.Broadcast, "dhcp-broadcast", false, "have DHCP servers answer to everybody, for interfaces that share a hardware address")
	fs.StringVar(&o.DHCP.HostPrefix, "dhcp-host-prefix", "", "`path` under which the daemon sees the machine's files, and so containers' namespaces")
	fs.StringVar(&o.DockerSocket, "docker-socket", docker.DefaultSocket, "unix `socket` that Docker asks its network and IPAM driver at, which have the name of the file; \"\" for none")
	fs.StringVar(&o.DockerAPI, "docker-api", docker.DefaultAPI, "unix `socket`, as unix:///PATH, at which Docker is asked for the names of its containers and networks once it uses the driver; \"\" for not at all")
	fs.BoolVar(&o.Hold, "hold", false, "start the daemon again when it is killed, and keep its sockets meanwhile, where no service manager does that")
	fs.StringVar(&o.DefaultNetwork, "default-network", DefaultNetwork, "`network` of containers whose maker names none: host, none, default, or one of your own")
	fs.BoolVar(&o.Quiet, "quiet", false, "don't print what to try next")
	fs.Func("pool", "`prefix:bits` that networks without subnets are cut from; may be repeated (default "+poolsText(defaultPools(""))+")", func(s string) error {
		src, err := parsePool(s)
		o.Pools = append(o.Pools, src)
		return err
	})
}

func parsePool(s string) (pool.Source, error) {
	const want = `want a prefix, a colon and the length of the subnets, such as 10.200.0.0/14:24`
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return pool.Source{}, errors.New(want)
	}
	p, err := netip.ParsePrefix(s[:i])
	bits, err2 := strconv.Atoi(s[i+1:])
	if err != nil || err2 != nil || p != p.Masked() || bits < p.Bits() || bits > p.Addr().BitLen()-2 {
		return pool.Source{}, errors.New(want)
	}
	return pool.Source{Prefix: p, Bits: bits}, nil
}

// defaultPools are ranges that common software does not use by itself, and a range of unique local addresses
// (RFC 4193) that is this machine's own.
func defaultPools(machineID string) pool.Subnets {
	return pool.Subnets{
		{Prefix: netip.MustParsePrefix("10.200.0.0/16"), Bits: 22}, // as many addresses as a bridge has ports
		{Prefix: netip.MustParsePrefix("10.201.0.0/16"), Bits: 24},
		{Prefix: netip.MustParsePrefix("10.202.0.0/15"), Bits: 24},
		{Prefix: netip.MustParsePrefix("172.28.0.0/14"), Bits: 24},
		{Prefix: netip.MustParsePrefix("192.168.192.0/18"), Bits: 24},
		{Prefix: pool.UniqueLocal(machineID), Bits: 64},
	}
}

func poolsText(p pool.Subnets) string {
	var out []string
	for _, s := range p {
		out = append(out, fmt.Sprintf("%s:%d", s.Prefix, s.Bits))
	}
	return strings.Join(out, ", ")
}

// Run runs the daemon until ctx ends. When it returns, running containers go on as they are.
func Run(ctx context.Context, o Options) error {
	log, err := logger(o.LogLevel)
	if err != nil {
		return err
	}
	if _, err := docker.ParseAPI(o.DockerAPI); err != nil {
		return err
	}
	o.DefaultNetwork = cmp.Or(o.DefaultNetwork, DefaultNetwork)
	if n := (api.Network{Name: o.DefaultNetwork}); n.Validate() != nil {
		return fmt.Errorf("default-network %q: is no name of a network; want host, none, default, or one that `seine network ls` lists", o.DefaultNetwork)
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: it changes the machine's network")
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	store, err := state.Open(o.State)
	if err != nil {
		return err
	}
	defer store.Close()
	k := linux.New(linux.Options{PrivateProc: true})
	defer k.Close()
	facts, err := k.Facts(ctx)
	if err != nil {
		return fmt.Errorf("reading the machine's state: %w", err)
	}
	if len(o.Pools) == 0 {
		o.Pools = defaultPools(facts.MachineID)
	}
	d, err := build(ctx, o, log, store, k, facts)
	if err != nil {
		return err
	}
	return d.run(ctx)
}

func logger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log-level %q: is not known; want debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

// daemon is the parts that run.
type daemon struct {
	opts    Options
	log     *slog.Logger
	kernel  *linux.Kernel
	loop    *reconcile.Reconciler
	engine  *engine.Engine
	machine *machine
	names   *dns.Server
	relays  *loopback.Proxy
	leases  *dhcp.Service
	want    *desired.Set
	docker  *dockerDoor
	fabrics map[string]fabric.Fabric
	node    *node.Node
	sockets *sockets
}

func build(_ context.Context, o Options, log *slog.Logger, store *state.Store, k *linux.Kernel, facts kernel.Facts) (*daemon, error) {
	// What a `seine run` that was killed left beside the socket.
	sweep := func() {
		if err := sandbox.Sweep(filepath.Join(filepath.Dir(o.Socket), "netns")); err != nil {
			log.Warn("clearing away namespaces of programs that ended", "err", err)
		}
	}
	sweep()
	m, err := newMachine(log, sweep)
	if err != nil {
		return nil, err
	}
	m.facts = k.Facts
	m.links = func(ctx context.Context) ([]kernel.Object, error) { return k.List(ctx, kernel.Scope{Links: true}) }
	d := &daemon{opts: o, log: log, kernel: k, machine: m, want: desired.New(), relays: loopback.New(log)}
	manager, err := handover.Start()
	if err != nil {
		return nil, err
	}
	d.sockets = &sockets{manager: manager, log: log}
	on, err := d.sockets.listenDNS(uint16(o.DNSPort))
	if err != nil {
		return nil, err
	}
	table := dns.NewTable()
	d.names = nameServer(o, on, table, log)
	d.leases = dhcp.New(k, leases{store}, log.With("part", "dhcp"), o.DHCP)
	d.loop = reconcile.New(k, d.want, log)
	key, err := wireGuardKey(store)
	if err != nil {
		return nil, err
	}
	if d.fabrics, err = builtin.Fabrics(key, log); err != nil {
		return nil, err
	}
	d.engine = engine.New(engine.Config{Fabrics: d.fabrics,
		Store: store, Want: d.want, Loop: d.loop, Drivers: builtin.Drivers(), IPAMs: builtin.IPAMs(), Addons: builtin.Addons(), Machine: m,
		Names: names{table}, Relays: relays{d.relays}, Log: log, DNSPort: d.names.Port(), DNSFixed: o.fixed(), Pools: o.Pools, Fallback: o.DefaultNetwork, Node: o.Node,
		Version: o.Version, Boot: bootID(), Findings: func() []api.Finding { return append(d.docker.findings(), d.part().findings()...) },
	}, facts)
	if d.node, err = newNode(o, d.engine, log); err != nil {
		return nil, err
	}
	d.docker = newDockerDoor(o, d.sockets, docker.New(d.engine, store, log.With("part", "docker")), log)
	return d, nil
}

// run starts everything that runs, loads the state, opens the door, and waits for ctx.
func (d *daemon) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	var failed error
	var once sync.Once
	start := func(what string, f func(context.Context) error) {
		running.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				once.Do(func() { failed = fmt.Errorf("%s: %w", what, err) })
				cancel()
			}
		})
	}
	start("reconciler", func(ctx context.Context) error { d.loop.Run(ctx); return nil })
	start("processes", func(ctx context.Context) error { d.machine.Run(ctx); return nil })
	start("loopback proxy", d.relays.Run)
	start("DHCP", d.keepLeases)
	for name, f := range d.fabrics {
		if c, ok := f.(fabric.Carrier); ok {
			start("fabric "+name, c.Run)
		}
	}
	started := time.Now()
	d.engine.Refresh = d.refreshFacts
	d.engine.Named = func() { start("name server", d.names.Serve) }
	if err := d.engine.Load(ctx); err != nil {
		return err
	}
	part := make(chan struct{})
	start("cluster", func(ctx context.Context) error { return d.node.Run(ctx, func() { close(part) }) })
	<-part
	if err := d.engine.DefaultNetwork(ctx); err != nil {
		d.log.Error("default network", "err", err)
	}
	// A CNI DEL that found no daemon relies on it.
	if err := d.engine.Collect(ctx); err != nil {
		d.log.Warn("collecting lost endpoints", "err", err)
	}
	start("plugins of others", func(ctx context.Context) error { d.engine.RunPlugins(ctx); return nil })
	start("kernel notifications", d.watchKernel)
	door, err := d.sockets.listen(sockAPI, d.opts.Socket, doors.SocketMode)
	if err != nil {
		return err
	}
	start("API", func(ctx context.Context) error {
		return doors.Serve(ctx, door, doors.New(whole{d.engine, d.node}, doors.Options{Cluster: d.part(), Log: d.log, Version: d.opts.Version}))
	})
	if l := d.docker.listen(); l != nil {
		start("Docker's driver", func(ctx context.Context) error { return d.docker.serve(ctx, l) })
	}
	d.sockets.ready()
	start("watchdog", d.watchdog)
	d.log.Info("ready", "socket", d.opts.Socket, "took", time.Since(started).Round(time.Millisecond).String())
	d.greet()
	<-ctx.Done()
	running.Wait()
	return failed
}

// watchdog tells the service manager that the daemon is well, as long as it is: who holds the engine's or the store's locks
// for good would keep it from that.
func (d *daemon) watchdog(ctx context.Context) error {
	every := d.sockets.manager.Watchdog() / 2
	if every == 0 {
		return nil
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		_ = d.engine.Facts()
		_, err := d.engine.Networks(ctx)
		if err == nil {
			err = d.sockets.manager.Tell("WATCHDOG=1")
		}
		if err != nil && ctx.Err() == nil {
			d.log.Warn("telling the service manager that all is well", "err", err)
		}
	}
}

// The times of the loop that watches over the kernel.
const (
	factsDelay = 200 * time.Millisecond // lets a burst of changes end before the machine is looked at again
	fullEvery  = 10 * time.Minute       // everything is compared with the kernel, containers' namespaces included
	lostEvery  = time.Minute            // endpoints whose namespace is gone are collected
)

// watchKernel mends what others change, as the kernel tells it, and on a slow tick what it does not tell. When the
// kernel stops telling it asks anew: that is no reason to end.
func (d *daemon) watchKernel(ctx context.Context) error {
	for ctx.Err() == nil {
		events, err := d.kernel.Watch(ctx)
		if err == nil {
			d.watchEvents(ctx, events)
		}
		if ctx.Err() != nil {
			return nil
		}
		d.log.Warn("the kernel's notifications ended; asking for them again", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		d.loop.Touch() // what was missed
	}
	return nil
}

func (d *daemon) watchEvents(ctx context.Context, events <-chan linux.Event) {
	full, lost := time.NewTicker(fullEvery), time.NewTicker(lostEvery)
	defer full.Stop()
	defer lost.Stop()
	refresh, pending := time.NewTimer(0), true
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case ev, ok := <-events:
			if !ok {
				return
			}
			d.log.Debug("kernel changed", "keys", ev.Keys, "down", ev.Down, "all", ev.All, "facts", ev.Facts)
			if err := d.engine.CollectReplaced(ctx, d.wanted(append(links(ev.Keys), ev.Down...))); err != nil {
				d.log.Warn("detaching endpoints of replaced namespaces", "err", err)
			}
			if ev.All || len(d.wanted(ev.Down)) > 0 {
				d.loop.Touch()
			} else if keys := d.wanted(ev.Keys); len(keys) > 0 {
				d.loop.Touch(keys...)
			}
			if ev.Facts && !pending {
				refresh.Reset(factsDelay)
				pending = true
			}
		case <-refresh.C:
			pending = false
			d.refreshFacts(ctx)
		case <-full.C:
			d.loop.Touch()
		case <-lost.C:
			if err := d.engine.Collect(ctx); err != nil {
				d.log.Warn("collecting lost endpoints", "err", err)
			}
			d.machine.ended() // a program that was killed may have held its lock when it was looked for
		}
	}
}

func links(keys []kernel.Key) []kernel.Key {
	return slices.DeleteFunc(slices.Clone(keys), func(k kernel.Key) bool { return k.Kind != kernel.KindLink })
}

// wanted keeps the keys that somebody wants: the others are not ours to mend.
func (d *daemon) wanted(keys []kernel.Key) []kernel.Key {
	var out []kernel.Key
	for _, k := range keys {
		if d.want.OwnerOf(k) != "" {
			out = append(out, k)
		}
	}
	return out
}

func (d *daemon) refreshFacts(ctx context.Context) {
	f, err := d.kernel.Facts(ctx)
	if err == nil {
		err = d.engine.SetFacts(ctx, f)
	}
	if err != nil && ctx.Err() == nil {
		d.log.Warn("reading the machine's state", "err", err)
	}
}

// greet says what to try first.
func (d *daemon) greet() {
	if d.opts.Quiet {
		return
	}
	bin := "seine"
	if self, err := os.Executable(); err == nil {
		bin = filepath.Join(filepath.Dir(self), "seine")
	}
	if d.opts.Socket != DefaultSocket {
		bin += " --socket " + d.opts.Socket
	}
	fmt.Printf(`
seined is ready. In a second terminal, as root, try:

  %[1]s run --name web --publish 8080:80 -- %[2]s
  %[1]s run -- %[3]s
  %[1]s status

Ctrl-C here ends the daemon; running containers keep their network.
`, bin, firstOf("python3 -m http.server 80 --bind ::", "busybox httpd -f -p 80", "nc -lk -p 80"),
		firstOf("curl -s http://web/", "wget -qO- http://web/", "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://web/\").read().decode())'", "getent ahosts web"))
}
