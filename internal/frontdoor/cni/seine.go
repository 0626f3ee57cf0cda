package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/ipam/pool"
)

// seine is the plugin "seine": it has the daemon attach the container to one of its networks.
type seine struct{}

// seineConf is the configuration of the plugin "seine".
type seineConf struct {
	Network       string   `json:"network"`
	Socket        string   `json:"socket"`
	Aliases       []string `json:"aliases"`
	RuntimeConfig struct {
		Aliases json.RawMessage `json:"aliases"`
	} `json:"runtimeConfig"`
}

// The labels by which the daemon's endpoints are known as attachments.
const (
	labelNetwork   = "cni/network"
	labelContainer = "cni/container"
	labelInterface = "cni/interface"
)

// fallbackNetwork is used where the configuration names none and none is named as the configuration is.
const fallbackNetwork = "default"

// createOnly has the daemon refuse an endpoint that is there already.
const createOnly = "If-None-Match: *"

// How long the daemon may take. It answers within milliseconds unless the kernel is very busy.
var seinePatience = map[string]time.Duration{verbAdd: time.Minute, verbDel: time.Minute, verbCheck: 20 * time.Second,
	verbGC: 5 * time.Minute, verbStatus: 5 * time.Second}

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
	if t := ipamType(r); t != "" {
		return nil, unsupported("ipam.type", t, "has no meaning here: the daemon gives addresses from the network's subnets")
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

// each calls do for the networks that may be meant until one has what it looks for. The error is the last one's.
func (d *delegation) each(do func(network string) error) error {
	err := error(api.Errorf(api.NotFound, "", "no network is named"))
	for _, n := range d.networks {
		if err = do(n); !isNotFound(err) {
			return err
		}
	}
	return err
}

func isNotFound(err error) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Code == api.NotFound
}

// noNetwork says what to do where none of the networks exists.
func (d *delegation) noNetwork() error {
	if d.conf.Network != "" {
		return invalid("network", d.conf.Network, "does not exist", "one of those that `seine network ls` lists")
	}
	return errorf(CodeConfig, "key %q: is missing, and there is no network %s; want one of those that `seine network ls` lists",
		"network", strings.Join(d.networks, " or "))
}

func endpointPath(network, name string) string {
	return "/v1/networks/" + network + "/endpoints/" + name
}

// daemonError gives what the daemon said, or did not say, its code.
func daemonError(err error) error {
	var e *api.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoDaemon), errors.Is(err, errBrokeOff):
		return errorf(CodeTryAgain, "%w", err)
	case !errors.As(err, &e):
	case e.Code == api.Exhausted || e.Code == api.Unavailable:
		return errorf(CodeTryAgain, "%w", err)
	case e.Code == api.Conflict || e.Code == api.NotFound:
		return errorf(CodeConfig, "%w", err)
	}
	return err
}

func (seine) add(ctx context.Context, r *request) (*Result, error) {
	d, err := loadSeine(r)
	if err != nil {
		return nil, err
	}
	e, err := d.endpoint()
	if err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, seinePatience[verbAdd])
	defer cancel()
	var out api.Endpoint
	err = d.each(func(network string) error {
		e.Network = network
		return d.ask(wait, "PUT", endpointPath(network, e.Name), createOnly, e, &out)
	})
	switch {
	case isNotFound(err):
		return nil, d.noNetwork()
	case errors.Is(err, errBrokeOff):
		// It may be attached. The endpoint is new, or this would have been refused.
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), seinePatience[verbStatus])
		defer cancel()
		if undo := d.detach(back); undo != nil {
			err = fmt.Errorf("%w; to take it back: %w", err, undo)
		}
		return nil, daemonError(err)
	case err != nil:
		return nil, daemonError(err)
	}
	return d.result(&out), nil
}

// result tells what the daemon gave.
func (d *delegation) result(e *api.Endpoint) *Result {
	res := &Result{}
	st := e.Status
	if st == nil {
		st = &api.EndpointStatus{}
	}
	if st.HostInterface != "" {
		res.Interfaces = append(res.Interfaces, Interface{Name: st.HostInterface, MTU: st.MTU})
	}
	index := len(res.Interfaces)
	res.Interfaces = append(res.Interfaces, Interface{Name: e.Sandbox.Interface, MAC: e.MAC, MTU: st.MTU, Sandbox: d.r.netns})
	for _, p := range st.Prefixes {
		ip := IP{Address: p, Interface: &index}
		for _, gw := range st.Gateways {
			if gw.Is4() == p.Addr().Is4() {
				ip.Gateway = gw
			}
		}
		res.IPs = append(res.IPs, ip)
	}
	for _, gw := range st.Gateways {
		all := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if gw.Is4() {
			all = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		res.Routes = append(res.Routes, Route{Dst: prefix{all}, GW: gw})
	}
	for _, a := range st.DNS {
		res.DNS.Nameservers = append(res.DNS.Nameservers, a.String())
	}
	if !d.r.conf.DNS.empty() {
		res.DNS = d.r.conf.DNS
	}
	return res
}

// del has the daemon detach. While no daemon answers it succeeds only where the namespace is gone: the daemon drops such
// an endpoint by itself when it is back. One whose container lives it would keep, and nobody would tell it.
func (seine) del(ctx context.Context, r *request) error {
	d, err := loadSeine(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, seinePatience[verbDel])
	defer cancel()
	err = d.detach(ctx)
	if errors.Is(err, errNoDaemon) && r.netns == "" {
		fmt.Fprintf(r.host.Stderr, "%v; the container's namespace is gone, so the daemon drops the endpoint when it is back\n", err)
		return nil
	}
	return daemonError(err)
}

// detach deletes the attachment's endpoint, by its name or, where configuration or CNI_ARGS were others at ADD, by its
// labels. None is success.
func (d *delegation) detach(ctx context.Context) error {
	name := d.r.endpointName()
	err := d.each(func(network string) error { return d.ask(ctx, "DELETE", endpointPath(network, name), "", nil, nil) })
	if !isNotFound(err) {
		return err
	}
	return d.drop(ctx, func(labels map[string]string) bool {
		for k, v := range d.labels() {
			if labels[k] != v {
				return false
			}
		}
		return true
	})
}

// drop deletes all endpoints with labels that match, and goes on past failures.
func (d *delegation) drop(ctx context.Context, match func(labels map[string]string) bool) error {
	var all api.List[api.Endpoint]
	if err := d.ask(ctx, "GET", "/v1/endpoints", "", nil, &all); err != nil {
		return err
	}
	var errs []error
	for _, e := range all.Items {
		if !match(e.Labels) {
			continue
		}
		if err := d.ask(ctx, "DELETE", endpointPath(e.Network, e.Name), "", nil, nil); !isNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (seine) gc(ctx context.Context, r *request) error {
	valid, err := r.valid()
	if err != nil {
		return err
	}
	d, err := loadSeine(r)
	if err != nil {
		return err
	}
	keep := map[attachment]bool{}
	for _, a := range valid {
		keep[a] = true
	}
	ctx, cancel := context.WithTimeout(ctx, seinePatience[verbGC])
	defer cancel()
	return daemonError(d.drop(ctx, func(labels map[string]string) bool {
		return labels[labelNetwork] == r.conf.Name && !keep[attachment{labels[labelContainer], labels[labelInterface]}]
	}))
}

// check asks whether the endpoint is as ADD told, and whether the kernel holds it. What a later plugin may have changed
// about the interface itself (tuning's MAC and MTU) is none of it.
func (seine) check(ctx context.Context, r *request) error {
	if err := r.needPrev(); err != nil {
		return err
	}
	d, err := loadSeine(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, seinePatience[verbCheck])
	defer cancel()
	var e api.Endpoint
	name := r.endpointName()
	err = d.each(func(network string) error { return d.ask(ctx, "GET", endpointPath(network, name), "", nil, &e) })
	if err != nil {
		return daemonError(err)
	}
	noun := api.EndpointNoun(e.Network, e.Name)
	if e.Status != nil && e.Status.State != api.Attached {
		return errorf(CodeInternal, "%s: is %s: %s", noun, e.Status.State, e.Status.Error)
	}
	for _, a := range e.Addresses {
		if !slices.Contains(r.prev.addrs(), a) {
			return errorf(CodeInternal, "%s: has %s, which prevResult has not", noun, a)
		}
	}
	var plan api.Plan
	err = d.ask(ctx, "GET", "/v1/plan?owner=endpoint/"+e.Network+"/"+e.Name, "", nil, &plan)
	if err != nil && !isNotFound(err) { // it is not found where it wants nothing
		return daemonError(err)
	}
	var differs []string
	for _, c := range plan.Changes {
		if c.Op != "~" || !strings.HasPrefix(c.Object, "link ") {
			differs = append(differs, c.Op+" "+c.Object)
		}
	}
	if len(differs) > 0 {
		return errorf(CodeInternal, "%s: the kernel differs: %s", noun, strings.Join(differs, "; "))
	}
	return nil
}

func (seine) status(ctx context.Context, r *request) error {
	d, err := loadSeine(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, seinePatience[verbStatus])
	defer cancel()
	var n api.Network
	err = d.each(func(network string) error { return d.ask(ctx, "GET", "/v1/networks/"+network, "", nil, &n) })
	if isNotFound(err) {
		err = d.noNetwork()
	}
	if err == nil && n.Status != nil && n.Status.Error != "" {
		err = api.Errorf(api.Unavailable, api.NetworkNoun(n.Name), "%s", n.Status.Error)
	}
	if err != nil {
		return &Error{Code: CodeUnavailable, Msg: err.Error(), cause: err}
	}
	return d.room(ctx, n)
}

// room asks whether every subnet of a network has an address left. The endpoints are listed only where their number
// leaves that open.
func (d *delegation) room(ctx context.Context, n api.Network) error {
	if n.Status == nil || !slices.ContainsFunc(n.Subnets, func(s api.Subnet) bool { return mayBeFull(s, n.Status.Endpoints) }) {
		return nil
	}
	var all api.List[api.Endpoint]
	if err := d.ask(ctx, "GET", "/v1/networks/"+n.Name+"/endpoints", "", nil, &all); err != nil {
		return &Error{Code: CodeUnavailable, Msg: err.Error(), cause: err}
	}
	for _, s := range n.Subnets {
		p := pool.New(s)
		for i := range all.Items {
			if a := all.Items[i].Address(s.Prefix.Addr().Is4()); a.IsValid() {
				_, _ = p.Reserve(a, all.Items[i].Key()) // it has it, whatever the pool thinks
			}
		}
		if _, err := p.Reserve(netip.Addr{}, "one more"); err != nil {
			return errorf(CodeExhausted, "%s: %w", api.NetworkNoun(n.Name), err)
		}
	}
	return nil
}

// mayBeFull reports whether so many endpoints could hold all addresses of a subnet; up to three are nobody's (its own,
// the gateway, broadcast).
func mayBeFull(s api.Subnet, endpoints int) bool {
	r := s.Range
	if !r.IsValid() {
		r = s.Prefix
	}
	bits := r.Addr().BitLen() - r.Bits()
	return bits < 32 && endpoints+len(s.Reserved)+3 >= 1<<bits
}
