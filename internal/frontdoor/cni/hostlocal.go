package cni

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/seine-net/seine/internal/ipam/hostlocal"
)

// rangeConf is one range in runtimeConfig.ipRanges.
type rangeConf = hostlocal.RangeConfig

// hostLocalConf is the "ipam" object of host-local.
type hostLocalConf struct {
	rangeConf                // the old form of a configuration with one range
	Ranges     [][]rangeConf `json:"ranges"`
	Routes     []routeConf   `json:"routes"`
	DataDir    string        `json:"dataDir"`
	ResolvConf string        `json:"resolvConf"`
}

// hostLocal is the host-local address plugin.
type hostLocal struct {
	r         *request
	store     *hostlocal.Store
	owner     hostlocal.Owner
	sets      []hostlocal.RangeSet
	requested []netip.Addr
	routes    []Route
	resolv    string
	// thorough has every reservation read for one of the same attachment: when somebody else's interface plugin calls,
	// nothing else tells that the attachment exists already.
	thorough bool
}

func newHostLocal(r *request) (ipam, error) {
	var c hostLocalConf
	err := decode(r.conf.IPAM, &c)
	h := &hostLocal{r: r, owner: hostlocal.Owner{ContainerID: r.containerID, Interface: r.ifname}, resolv: c.ResolvConf}
	h.store = hostlocal.New(c.DataDir, r.conf.Name)
	if r.verb == verbDel || r.verb == verbGC {
		if err = lenient(err); err != nil {
			return nil, fmt.Errorf("key %q: %w", "ipam", err)
		}
		return h, nil // what else is written there does not matter for giving back
	}
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", "ipam", err)
	}
	if r.argsErr != nil && r.verb == verbAdd {
		return nil, r.argsErr
	}
	return h, h.load(&c)
}

func (h *hostLocal) load(c *hostLocalConf) error {
	rc := &h.r.conf.RuntimeConfig
	var confs [][]rangeConf
	confs = append(confs, rc.IPRanges...)
	if c.Subnet != "" {
		confs = append(confs, []rangeConf{c.rangeConf})
	}
	confs = append(confs, c.Ranges...)
	if len(confs) == 0 {
		return invalid("ipam.ranges", "", "is missing", `range sets such as [[{"subnet": "10.1.0.0/16"}]]`)
	}
	path := "ipam.ranges"
	if len(rc.IPRanges) > 0 || c.Subnet != "" {
		path = "ipam.ranges (after runtimeConfig.ipRanges and ipam.subnet)"
	}
	var err error
	if h.sets, err = hostlocal.ParseSets(path, confs); err != nil {
		return err
	}
	n4 := 0
	for _, s := range h.sets {
		if s[0].Subnet.Addr().Is4() {
			n4++
		}
	}
	if err := checkFamilies(h.r.version, n4, len(h.sets)-n4); err != nil {
		return err
	}
	for _, f := range []struct {
		field string
		list  []string
	}{{"CNI_ARGS IP", splitList(h.r.args.IP)}, {"args.cni.ips", h.r.conf.Args.CNI.IPs}, {"runtimeConfig.ips", rc.IPs}} {
		addrs, err := parseAddrs(f.field, f.list)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := h.request(f.field, a); err != nil {
				return err
			}
		}
	}
	h.routes, err = parseRoutes(c.Routes)
	return err
}

// request notes an address that is asked for by name. The same one may be asked for in several places.
func (h *hostLocal) request(field string, a netip.Addr) error {
	for _, b := range h.requested {
		if a == b {
			return nil
		}
	}
	for _, s := range h.sets {
		if s.Contains(a) {
			h.requested = append(h.requested, a)
			return nil
		}
	}
	var ranges []string
	for _, s := range h.sets {
		ranges = append(ranges, s.String())
	}
	return invalid(field, a, "lies in no range", "an address of "+strings.Join(ranges, " or "))
}

func (h *hostLocal) add(context.Context) (*Result, func(context.Context) error, error) {
	res := &Result{Routes: h.routes}
	if h.resolv != "" {
		dns, err := readResolvConf(h.resolv)
		if err != nil {
			return nil, nil, err
		}
		res.DNS = dns
	}
	leases, err := h.store.Reserve(h.owner, h.sets, h.requested, h.thorough)
	if err != nil {
		return nil, nil, fmt.Errorf("host-local: %w", err)
	}
	for _, l := range leases {
		res.IPs = append(res.IPs, IP{Address: l.Address, Gateway: l.Gateway})
	}
	return res, func(context.Context) error { return h.store.Return(h.owner, leases) }, nil
}

func (h *hostLocal) del(context.Context) error { return h.store.Release(h.owner, h.r.prev.addrs()) }

func (h *hostLocal) check(context.Context) error {
	held, err := h.store.Held(h.owner, h.r.prev.addrs())
	if err == nil && len(held) == 0 {
		err = fmt.Errorf("host-local: container %q interface %q holds no address", h.owner.ContainerID, h.owner.Interface)
	}
	return err
}

func (h *hostLocal) gc(_ context.Context, valid []attachment) error {
	var keep []hostlocal.Owner
	for _, a := range valid {
		keep = append(keep, hostlocal.Owner{ContainerID: a.ContainerID, Interface: a.IfName})
	}
	return h.store.Collect(keep)
}

func (h *hostLocal) status(context.Context) error {
	err := h.store.Free(h.sets)
	if errors.Is(err, hostlocal.ErrExhausted) {
		return errorf(CodeUnavailable, "host-local: %w", err)
	}
	return err
}

func (h *hostLocal) held() []netip.Addr {
	held, err := h.store.Held(h.owner, h.r.prev.addrs())
	if err != nil {
		return nil // the release that follows gives the error
	}
	return held
}

// readResolvConf reads a file in the form of resolv.conf(5).
func readResolvConf(path string) (DNS, error) {
	var dns DNS
	f, err := os.Open(path)
	if err != nil {
		return dns, invalid("ipam.resolvConf", path, err.Error(), "a file in the form of resolv.conf(5)")
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0][0] == '#' || words[0][0] == ';' {
			continue
		}
		switch words[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, words[1])
		case "domain":
			dns.Domain = words[1]
		case "search":
			dns.Search = append(dns.Search, words[1:]...)
		case "options":
			dns.Options = append(dns.Options, words[1:]...)
		}
	}
	if err := lines.Err(); err != nil {
		return dns, errorf(CodeIO, "ipam.resolvConf %q: %w", path, err)
	}
	return dns, nil
}

// newHostLocalPlugin is newHostLocal for a call by the plugin's own name.
func newHostLocalPlugin(r *request) (ipam, error) {
	i, err := newHostLocal(r)
	if h, ok := i.(*hostLocal); ok {
		h.thorough = true
	}
	return i, err
}
