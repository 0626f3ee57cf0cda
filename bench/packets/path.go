package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"github.com/seine-net/seine/internal/testkit"
)

// servicePort is where every server listens.
const servicePort = 7000

// path is a way for packets from a client to a server. What is measured on it is kept with it.
type path struct {
	name string
	// filter is the machine's net.bridge.bridge-nf-call-ip(6)tables; noBridge where no bridge is on the path.
	filter string
	build  func(context.Context, *bench, *path) error

	machine, server, client *testkit.NS
	// addr is the server's own address, target what the client asks.
	addr   netip.Addr
	target netip.AddrPort
	// closers undo what was built, the last one first.
	closers []func()
	// samples holds what each round found.
	samples map[metric][]result
}

// title names the path in tables.
func (p *path) title() string {
	switch p.filter {
	case filterOff:
		return p.name + ", filter off"
	case filterOn:
		return p.name + ", filter on"
	}
	return p.name
}

func (p *path) onClose(f func()) { p.closers = append(p.closers, f) }

func (p *path) close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i]()
	}
	p.closers = nil
}

// set makes the machine, the two containers and then what joins them.
func (p *path) set(ctx context.Context, b *bench) error {
	for _, n := range []struct {
		ns   **testkit.NS
		name string
	}{{&p.machine, "machine"}, {&p.server, "server"}, {&p.client, "client"}} {
		if *n.ns != nil {
			continue
		}
		ns, err := testkit.NewNS(n.name)
		if err != nil {
			return err
		}
		p.onClose(ns.Close)
		*n.ns = ns
	}
	if p.filter != noBridge {
		for _, s := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
			if err := p.machine.Sysctl(s, p.filter); err != nil {
				return err
			}
		}
	}
	if err := p.build(ctx, b, p); err != nil {
		return fmt.Errorf("%s: %w", p.title(), err)
	}
	if !p.target.IsValid() {
		p.target = netip.AddrPortFrom(p.addr, servicePort)
	}
	return nil
}

// direct joins the two containers by a veth pair and nothing else: the limit.
func direct(_ context.Context, _ *bench, p *path) error {
	a := netlink.NewLinkAttrs()
	a.Name = testkit.Interface
	v := &netlink.Veth{LinkAttrs: a, PeerName: testkit.Interface, PeerNamespace: netlink.NsFd(p.server.Fd())}
	if err := p.client.Netlink().LinkAdd(v); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	for _, n := range []*testkit.NS{p.client, p.server} {
		l, err := n.Netlink().LinkByName(testkit.Interface)
		if err == nil {
			err = n.Netlink().LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("veth: %w", err)
		}
	}
	prefixes := map[*testkit.NS]string{p.client: "192.0.2.1/24", p.server: "192.0.2.2/24"}
	if *ipv6 {
		prefixes = map[*testkit.NS]string{p.client: "2001:db8::1/64", p.server: "2001:db8::2/64"}
	}
	for n, prefix := range prefixes {
		if err := n.AddAddr(testkit.Interface, netip.MustParsePrefix(prefix)); err != nil {
			return err
		}
	}
	p.addr = netip.MustParsePrefix(prefixes[p.server]).Addr()
	return nil
}

// plugin attaches both containers by the CNI plugin kind ("bridge", "ptp") of a folder, with host-local.
func plugin(folder func() string, kind string, masquerade bool) func(context.Context, *bench, *path) error {
	return func(ctx context.Context, b *bench, p *path) error {
		data, err := os.MkdirTemp(b.dir, "cni")
		if err != nil {
			return err
		}
		conf := map[string]any{
			"cniVersion": "1.0.0", "name": "bench", "type": kind, "ipMasq": masquerade,
			"ipam": map[string]any{
				"type": "host-local", "dataDir": data,
				"ranges": [][]map[string]string{{{"subnet": "10.88.0.0/24"}}, {{"subnet": "fd00:88::/64"}}},
				"routes": []map[string]string{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
			},
		}
		if kind == "bridge" {
			conf["bridge"], conf["isGateway"] = "cni0", true
		}
		for _, n := range []*testkit.NS{p.client, p.server} {
			addr, err := add(ctx, folder(), kind, conf, p.machine, n)
			if err != nil {
				return err
			}
			p.addr = addr // that of the last one, the server, stays
		}
		return nil
	}
}

// add runs a CNI plugin's ADD on the machine and gives the container's address.
func add(ctx context.Context, folder, kind string, conf any, machine, container *testkit.NS) (netip.Addr, error) {
	in, err := json.Marshal(conf)
	if err != nil {
		return netip.Addr{}, err
	}
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(folder, kind))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &problems
	cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+container.Name, "CNI_IFNAME="+testkit.Interface,
		"CNI_NETNS="+container.Path(), "CNI_PATH="+folder)
	if err := machine.Start(cmd); err != nil {
		return netip.Addr{}, err
	}
	if err := cmd.Wait(); err != nil {
		return netip.Addr{}, fmt.Errorf("plugin %q: %w: %s%s", kind, err, out.Bytes(), problems.Bytes())
	}
	var res struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		return netip.Addr{}, fmt.Errorf("plugin %q: answer %q: %w", kind, out.Bytes(), err)
	}
	for _, ip := range res.IPs {
		if ip.Address.Addr().Is6() == *ipv6 {
			return ip.Address.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("plugin %q: answer %q: has no address of the family", kind, out.Bytes())
}

// referencePlugins says where the reference plugins are, or why they can't be measured.
func referencePlugins() error {
	var errs []error
	for _, name := range []string{"bridge", "ptp", "host-local"} {
		if _, err := os.Stat(filepath.Join(*reference, name)); err != nil {
			errs = append(errs, fmt.Errorf("reference plugin: %w (Debian package containernetworking-plugins)", err))
		}
	}
	if err := testkit.Lacks("program:iptables"); err != nil {
		errs = append(errs, fmt.Errorf("the reference plugins' ipMasq runs iptables: %w", err))
	}
	return errors.Join(errs...)
}

// ownPlugins links seine-cni under the names of the plugins, into a folder of the bench.
func (b *bench) ownPlugins() error {
	program := filepath.Join(*bin, "seine-cni")
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("seine-cni: %w (make build)", err)
	}
	if err := os.MkdirAll(b.plugins(), 0o755); err != nil {
		return err
	}
	for _, name := range []string{"bridge", "host-local"} {
		if err := os.Symlink(program, filepath.Join(b.plugins(), name)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) plugins() string { return filepath.Join(b.dir, "plugins") }
