package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
	res := d.result(&out)
	if _, err := res.encode(r.version); err != nil { // old versions can't tell of a container without addresses
		return nil, errors.Join(err, d.detach(wait))
	}
	return res, nil
}

// result tells what the daemon gave.
func (d *delegation) result(e *api.Endpoint) *Result {
	res := &Result{}
	st := e.Status
	if st == nil || len(st.Prefixes) == 0 { // a network that gives nothing but a namespace
		return res
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
	if len(st.DNS) > 0 {
		res.DNS.Options = st.DNSOptions
		if !slices.Equal(st.Search, []string{"."}) {
			res.DNS.Search = st.Search
		}
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
		return &Error{Code: CodeUnavailable, Msg: err.Error(), cause: err}
	}
	if err == nil && n.Status != nil && n.Status.Error != "" {
		err = api.Errorf(api.Unavailable, api.NetworkNoun(n.Name), "%s", n.Status.Error)
	}
	if err != nil { // without the daemon no names are found either
		return &Error{Code: CodeLimited, Msg: err.Error(), cause: err}
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
			return errorf(CodeUnavailable, "%s: %w", api.NetworkNoun(n.Name), err)
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
