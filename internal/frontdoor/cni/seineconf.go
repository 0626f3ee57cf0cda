package cni

import (
	"bytes"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
)

// delegation is a request to seine, validated.
type delegation struct {
	r    *request
	conf seineConf
	daemon
	// networks are the daemon's networks that may be meant; the first that exists is.
	networks []string
	aliases  []string
}

// loadSeine validates the configuration; for DEL and GC it takes what can be read of it.
func loadSeine(r *request) (*delegation, error) {
	d := &delegation{r: r, daemon: daemon{r.host.Daemon}}
	back := r.verb == verbDel || r.verb == verbGC
	if err := decode(r.stdin, &d.conf); err != nil && !(back && lenient(err) == nil) {
		return nil, err
	}
	if s := d.conf.Socket; s != "" {
		path := strings.TrimPrefix(s, "unix://")
		if filepath.IsAbs(path) {
			d.socket = path
		} else if !back {
			return nil, invalid("socket", s, "is no path of a socket", "an absolute path such as /run/seine/seine.sock")
		}
	}
	d.networks = []string{r.conf.Name, fallbackNetwork}
	if d.conf.Network != "" {
		d.networks = []string{d.conf.Network}
	}
	for _, n := range d.networks {
		if err := (&api.Network{Name: n}).Validate(); err == nil {
			continue
		} else if d.conf.Network != "" && !back {
			return nil, invalid("network", n, "is no name of a network", "one of those that `seine network ls` lists")
		}
		d.networks = slices.DeleteFunc(slices.Clone(d.networks), func(s string) bool { return s == n })
	}
	if back {
		return d, nil
	}
	if given(r.conf.IPAM) {
		var c struct {
			Type string `json:"type"`
		}
		if err := decode(r.conf.IPAM, &c); err != nil {
			return nil, fmt.Errorf("key %q: %w", "ipam", err)
		}
		if c.Type != "" {
			return nil, unsupported("ipam.type", c.Type, "has no meaning here: the daemon gives addresses from the network's subnets; want none")
		}
	}
	if r.verb == verbAdd && r.prev != nil {
		return nil, errorf(CodeConfig, "prevResult: is of a plugin before this one, which makes the container's interface itself; want it first in plugins")
	}
	return d, d.loadAliases()
}

// loadAliases collects the names that the container is to have beside its endpoint's own.
func (d *delegation) loadAliases() error {
	add := func(key string, names ...string) error {
		for _, n := range names {
			if !validName(n) || len(n) > 253 {
				return invalid(key, n, "is no name for a container", "at most 253 letters, digits, '-', '_' and '.', the first a letter or digit")
			}
			if !slices.Contains(d.aliases, n) {
				d.aliases = append(d.aliases, n)
			}
		}
		return nil
	}
	if err := add("aliases", d.conf.Aliases...); err != nil {
		return err
	}
	// A list as CNI's conventions have it, or, as Podman writes it, one for each network.
	if raw := bytes.TrimSpace(d.conf.RuntimeConfig.Aliases); given(raw) {
		var names []string
		var err error
		if raw[0] == '{' {
			var of map[string][]string
			err = decode(raw, &of)
			names = of[d.r.conf.Name]
		} else {
			err = decode(raw, &names)
		}
		if err != nil {
			return fmt.Errorf("runtimeConfig.aliases: %w", err)
		}
		if err := add("runtimeConfig.aliases", names...); err != nil {
			return err
		}
	}
	pod := d.r.args.Pod
	if pod == "" {
		return nil
	}
	if err := add("CNI_ARGS "+podPrefix+"NAME", pod); err != nil || d.r.args.PodNamespace == "" {
		return err
	}
	return add("CNI_ARGS "+podPrefix+"NAMESPACE", pod+"."+d.r.args.PodNamespace)
}

// endpointName is the attachment's own: what people know the container by, cut so that it stays a label of DNS, and a
// hash of network, container and interface.
func (r *request) endpointName() string {
	name := r.args.Pod
	if !validName(name) {
		name = r.containerID[:min(len(r.containerID), 12)]
	}
	return name[:min(len(name), 52)] + "-" + short(10, r.conf.Name, r.containerID, r.ifname)
}

func (d *delegation) labels() map[string]string {
	return map[string]string{labelNetwork: d.r.conf.Name, labelContainer: d.r.containerID, labelInterface: d.r.ifname}
}

// endpoint is what the daemon is asked for, all but its network.
func (d *delegation) endpoint() (*api.Endpoint, error) {
	r := d.r
	if r.argsErr != nil {
		return nil, r.argsErr
	}
	netns, err := filepath.Abs(r.netns)
	if err != nil {
		return nil, errorf(CodeEnvironment, "CNI_NETNS %q: %w", r.netns, err)
	}
	e := &api.Endpoint{Meta: api.Meta{Labels: d.labels()}, Name: r.endpointName(), Aliases: d.aliases,
		Sandbox: api.Sandbox{Netns: netns, Interface: r.ifname, PID: processOf(netns)}}
	if e.MAC, err = validMAC(r.askedMAC("")); err != nil {
		return nil, err
	}
	if e.Addresses, err = askedAddrs(r); err != nil {
		return nil, err
	}
	for i, m := range r.conf.RuntimeConfig.PortMappings {
		x, err := m.parse(fmt.Sprintf("runtimeConfig.portMappings[%d].", i))
		if err != nil {
			return nil, err
		}
		p := api.Port{Protocol: x.protocol, HostIP: x.addr, HostPort: x.host, ContainerPort: x.container}
		switch {
		case x.addr.IsValid():
		case !x.v6:
			p.HostIP = netip.IPv4Unspecified()
		case !x.v4:
			p.HostIP = netip.IPv6Unspecified()
		}
		e.Ports = append(e.Ports, p)
	}
	return e, nil
}

// askedAddrs gives the addresses that the runtime asks for, at most one of each family.
func askedAddrs(r *request) ([]netip.Addr, error) {
	for _, l := range []struct {
		field string
		list  []string
	}{{"runtimeConfig.ips", r.conf.RuntimeConfig.IPs}, {"args.cni.ips", r.conf.Args.CNI.IPs}, {"CNI_ARGS IP", splitList(r.args.IP)}} {
		addrs, err := parseAddrs(l.field, l.list)
		if err != nil {
			return nil, err
		}
		if len(addrs) > 2 || len(addrs) == 2 && addrs[0].Is4() == addrs[1].Is4() {
			return nil, invalid(l.field, strings.Join(l.list, ","), "has two addresses of one family", "at most one IPv4 and one IPv6 address")
		}
		if len(addrs) > 0 {
			return addrs, nil
		}
	}
	return nil, nil
}

// processOf gives the process that a namespace is known by, 0 for none: the daemon detaches when it ends, before the
// number is another's.
func processOf(netns string) int {
	rest, ok := strings.CutPrefix(netns, "/proc/")
	number, ok2 := strings.CutSuffix(rest, "/ns/net")
	pid, err := strconv.Atoi(number)
	if !ok || !ok2 || err != nil {
		return 0
	}
	return pid
}
