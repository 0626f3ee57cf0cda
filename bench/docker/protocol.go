package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/seine-net/seine/bench/internal/rig"
)

var (
	levels  = flag.String("levels", "1,100,1000", "protocol: numbers of networks, with an endpoint each, to measure at, rising")
	filled  = flag.Int("ports", 10, "protocol: published ports of each of these endpoints")
	samples = flag.Int("samples", 100, "protocol: samples per level")
)

// measuredPorts is how many ports a measured endpoint publishes.
const measuredPorts = 5

// step is something that a user of Docker's does, and the calls that it is made of.
type step struct {
	name  string
	goal  float64 // ms; 0 for none
	calls []string
}

var steps = []step{
	{"a call that does nothing", 0, []string{"NetworkDriver.GetCapabilities"}},
	{"network create + rm", 10, []string{"IpamDriver.RequestPool", "gateway", "NetworkDriver.CreateNetwork", "gateway back", "IpamDriver.ReleasePool", "NetworkDriver.DeleteNetwork"}},
	{"  create", 0, []string{"IpamDriver.RequestPool", "gateway", "NetworkDriver.CreateNetwork"}},
	{"  rm", 0, []string{"gateway back", "IpamDriver.ReleasePool", "NetworkDriver.DeleteNetwork"}},
	{"Join", 3, []string{"NetworkDriver.Join"}},
	{"  and before it RequestAddress", 0, []string{"IpamDriver.RequestAddress"}},
	{"  and CreateEndpoint", 0, []string{"NetworkDriver.CreateEndpoint"}},
	{fmt.Sprintf("publishing %d ports", measuredPorts), 2, []string{"NetworkDriver.ProgramExternalConnectivity"}},
	{"removal", 3, []string{"NetworkDriver.RevokeExternalConnectivity", "NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint", "IpamDriver.ReleaseAddress"}},
	{"  ports are free after Revoke", 0, []string{"NetworkDriver.RevokeExternalConnectivity"}},
	{"  the kernel follows rm within", 0, []string{gone}},
}

// gone is the time from the last answer until the machine has none of the sample's interfaces any more: removal is answered
// when it is on disk. The next sample waits for that.
const gone = "gone"

// sample has the time of each call, in milliseconds.
type sample map[string]float64

// protocol is the part that plays Docker.
func protocol(ctx context.Context) (err error) {
	lv, err := rig.ParseLevels(*levels)
	if err != nil {
		return err
	}
	if lv[0] < 1 || *samples < 1 || *filled < 0 || *filled*lv[len(lv)-1] > 20000 {
		return errors.New("flags levels, samples, ports: want at least 1, 1 and 0, and at most 20000 ports in all")
	}
	p, err := startPlugin(ctx, "/run/bench-protocol")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	path := "/run/bench-netns"
	if err := rig.MakeNetns(path); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rig.DropNetns(path)) }()
	d := &docker{plugin: p}
	if d.home, err = netns.Get(); err != nil {
		return err
	}
	defer d.home.Close()
	if d.inside, err = netns.GetFromPath(path); err != nil {
		return err
	}
	defer d.inside.Close()
	fmt.Printf("our own share of Docker's calls, at the plugin's socket; %d samples per level, load average %s; times in ms;\n"+
		"n: networks, with an endpoint and %d published ports each\n", *samples, rig.LoadAverage(), *filled)
	rows := [][]string{{"", "goal"}}
	for _, s := range steps {
		goal := ""
		if s.goal > 0 {
			goal = fmt.Sprint(s.goal)
		}
		rows = append(rows, []string{s.name, goal})
	}
	for _, level := range lv {
		for ; d.have < level; d.have++ {
			if err := d.fill(ctx, d.have); err != nil {
				return err
			}
		}
		now, err := netlink.LinkList()
		if err != nil {
			return err
		}
		d.links = len(now)
		var all []sample
		for i := range *samples {
			s, err := d.sample(ctx, i)
			if err != nil {
				return fmt.Errorf("at %d networks: %w", level, err)
			}
			all = append(all, s)
		}
		rows[0] = append(rows[0], "|", fmt.Sprintf("n=%d p50", level), "p99")
		for i, s := range steps {
			t := s.times(all)
			rows[i+1] = append(rows[i+1], "|", fmt.Sprintf("%.2f", rig.Quantile(t, .5)), fmt.Sprintf("%.2f", rig.Quantile(t, .99)))
		}
	}
	rig.Table(os.Stdout, rows)
	return nil
}

// times adds up the calls of a step, sample by sample.
func (s step) times(all []sample) []float64 {
	out := make([]float64, len(all))
	for i, x := range all {
		for _, c := range s.calls {
			out[i] += x[c]
		}
	}
	return out
}

// docker makes the calls in dockerd's order.
type docker struct {
	plugin       *plugin
	home, inside netns.NsHandle // the machine's namespace, and the one that measured interfaces go to
	have         int
	links        int // that the machine has besides a sample's
}

// timed makes a call and notes its time under a name of its own, if it has one.
func (d *docker) timed(ctx context.Context, s sample, name, as string, in object) (object, error) {
	out, took, err := d.plugin.call(ctx, name, in)
	if as == "" {
		as = name
	}
	s[as] += float64(took) / 1e6
	return out, err
}

func id(kind string, i int) string {
	return fmt.Sprintf("%s%08x", kind, i) + strings.Repeat("0", 64-8-len(kind))
}

// network makes a network and gives its pool.
func (d *docker) network(ctx context.Context, s sample, netID string) (pool string, gateway string, err error) {
	out, err := d.timed(ctx, s, "IpamDriver.RequestPool", "", object{"AddressSpace": "seine", "Pool": "", "SubPool": "", "Options": nil, "V6": false})
	if err != nil {
		return "", "", err
	}
	pool, _ = out["PoolID"].(string)
	gw, err := d.timed(ctx, s, "IpamDriver.RequestAddress", "gateway", object{"PoolID": pool, "Address": "", "Options": object{"RequestAddressType": "com.docker.network.gateway"}})
	if err != nil {
		return "", "", err
	}
	gateway, _ = gw["Address"].(string)
	_, err = d.timed(ctx, s, "NetworkDriver.CreateNetwork", "", object{"NetworkID": netID, "Options": object{"com.docker.network.enable_ipv6": false, "com.docker.network.generic": object{}},
		"IPv4Data": []object{{"AddressSpace": "seine", "Pool": out["Pool"], "Gateway": gateway}}, "IPv6Data": []object{}})
	return pool, gateway, err
}

// endpoint makes an endpoint, and gives its address and the name of its interface.
func (d *docker) endpoint(ctx context.Context, s sample, netID, epID, pool string, ports []object) (address, link string, err error) {
	out, err := d.timed(ctx, s, "IpamDriver.RequestAddress", "", object{"PoolID": pool, "Address": "", "Options": nil})
	if err != nil {
		return "", "", err
	}
	address, _ = out["Address"].(string)
	ids := func(more object) object { more["NetworkID"], more["EndpointID"] = netID, epID; return more }
	options := object{"com.docker.network.portmap": ports, "com.docker.network.endpoint.exposedports": []object{}}
	if _, err = d.timed(ctx, s, "NetworkDriver.CreateEndpoint", "", ids(object{"Interface": object{"Address": address, "AddressIPv6": "", "MacAddress": ""}, "Options": options})); err != nil {
		return "", "", err
	}
	join, err := d.timed(ctx, s, "NetworkDriver.Join", "", ids(object{"SandboxKey": "/var/run/docker/netns/" + epID[:12], "Options": options}))
	if err != nil {
		return "", "", err
	}
	name, _ := join["InterfaceName"].(object)
	link, _ = name["SrcName"].(string)
	if len(ports) > 0 {
		_, err = d.timed(ctx, s, "NetworkDriver.ProgramExternalConnectivity", "", ids(object{"Options": options}))
	}
	return address, link, err
}

func portmap(first, n int) []object {
	out := make([]object, n)
	for i := range out {
		out[i] = object{"Proto": 6, "IP": "", "Port": 80 + i, "HostIP": "", "HostPort": first + i, "HostPortEnd": first + i}
	}
	return out
}

// fill adds one network with one endpoint, which stay. Its interface stays on the machine.
func (d *docker) fill(ctx context.Context, i int) error {
	netID := id("f", i)
	pool, _, err := d.network(ctx, sample{}, netID)
	if err != nil {
		return err
	}
	_, _, err = d.endpoint(ctx, sample{}, netID, id("e", i), pool, portmap(10000+i**filled, *filled))
	return err
}

// sample makes a network and an endpoint and removes them.
func (d *docker) sample(ctx context.Context, i int) (sample, error) {
	s := sample{}
	netID, epID := id("a", i), id("b", i)
	if _, err := d.timed(ctx, s, "NetworkDriver.GetCapabilities", "", object{}); err != nil {
		return s, err
	}
	pool, gateway, err := d.network(ctx, s, netID)
	if err != nil {
		return s, err
	}
	address, link, err := d.endpoint(ctx, s, netID, epID, pool, portmap(40000, measuredPorts))
	if err != nil {
		return s, err
	}
	if err := d.take(link); err != nil {
		return s, err
	}
	ids := object{"NetworkID": netID, "EndpointID": epID}
	bare := func(a string) string { b, _, _ := strings.Cut(a, "/"); return b }
	for _, c := range []struct {
		name, as string
		in       object
	}{
		{"NetworkDriver.RevokeExternalConnectivity", "", ids}, {"NetworkDriver.Leave", "", ids}, {"NetworkDriver.DeleteEndpoint", "", ids},
		{"IpamDriver.ReleaseAddress", "", object{"PoolID": pool, "Address": bare(address)}},
		{"IpamDriver.ReleaseAddress", "gateway back", object{"PoolID": pool, "Address": bare(gateway)}},
		{"IpamDriver.ReleasePool", "", object{"PoolID": pool}},
		{"NetworkDriver.DeleteNetwork", "", object{"NetworkID": netID}},
	} {
		if _, err := d.timed(ctx, s, c.name, c.as, c.in); err != nil {
			return s, err
		}
	}
	start := time.Now()
	for {
		links, err := netlink.LinkList()
		if err == nil && len(links) == d.links {
			break
		}
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // it goes on changing
			return s, err
		}
		if time.Since(start) > 5*time.Second {
			return s, fmt.Errorf("%d links are there, want %d: something is left", len(links), d.links)
		}
		time.Sleep(5 * time.Millisecond)
	}
	s[gone] = float64(time.Since(start)) / 1e6
	return s, nil
}

// take moves an interface into the namespace and back, as dockerd does between Join and Leave.
func (d *docker) take(name string) error {
	for _, way := range [][2]netns.NsHandle{{d.home, d.inside}, {d.inside, d.home}} {
		h, err := netlink.NewHandleAt(way[0])
		if err != nil {
			return err
		}
		link, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkSetNsFd(link, int(way[1]))
		}
		h.Close()
		if err != nil {
			return fmt.Errorf("interface %q: %w", name, err)
		}
	}
	return nil
}
