// Package cni is the driver that has CNI plugins attach containers: any plugin, or chain of plugins, that keeps to the
// specification (https://www.cni.dev/docs/spec/, versions 0.1.0 to 1.1.0). Seine plays the runtime: ADD when an endpoint is
// attached, DEL when it is detached, CHECK for `seine check`.
//
// What the chain made is the chain's: nothing of it is changed or removed here. The endpoint has the addresses that the
// result says.
package cni

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
)

// The options of a network.
const (
	OptConfig  = "cni.config"
	OptNetwork = "cni.network"
	OptConfDir = "cni.confdir"
	OptPath    = "cni.path"
	OptTimeout = "cni.timeout"
)

// The defaults of the options.
const (
	DefaultConfDir = "/etc/cni/net.d"
	DefaultPath    = "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni"
	DefaultTimeout = 60 * time.Second
)

// Driver is the driver.
type Driver struct{}

// New makes the driver; it has no state.
func New() Driver { return Driver{} }

// Uses implements driver.Driver.
func (Driver) Uses() driver.Uses {
	return driver.Uses{Sandbox: true, Ports: true, PluginAddresses: true, Options: map[string]string{
		OptConfig:  "file with the network's configuration (.conf, .conflist)",
		OptNetwork: "name of a network in the folder of configurations, instead of a file",
		OptConfDir: "the folder of configurations, default " + DefaultConfDir,
		OptPath:    "folders of the plugins, with colons between, default " + DefaultPath,
		OptTimeout: "how long one plugin may take, default " + DefaultTimeout.String(),
	}}
}

// Interfaces implements driver.Driver: what there is on the machine is the plugins'.
func (Driver) Interfaces(api.Network, api.Endpoint) (via, end string) { return "", "" }

// Network implements driver.Driver: nothing.
func (Driver) Network(api.Network, kernel.Facts) ([]kernel.Object, error) { return nil, nil }

// Objects implements driver.Driver: only that loopback and interface are up, so that it is noticed when they are gone.
func (Driver) Objects(_ api.Network, e api.Endpoint, _ kernel.Facts) ([]kernel.Object, error) {
	out := []kernel.Object{&kernel.LinkUp{NS: e.Sandbox.Netns, Link: "lo", Keep: true}}
	if e.Plugin != nil && len(e.Plugin.Prefixes) > 0 {
		out = append(out, &kernel.LinkUp{NS: e.Sandbox.Netns, Link: e.Sandbox.Interface, Keep: true})
	}
	return out, nil
}

// network is the note of a network: the configuration as it was when the network was made. Changes of the file don't
// matter, as DEL needs what ADD had.
type network struct {
	Config  json.RawMessage
	Path    string
	Timeout time.Duration
}

// Setup implements driver.Attacher: it reads the configuration. No plugin is called.
func (Driver) Setup(_ context.Context, n *api.Network, c driver.Call) error {
	note := network{Path: cmp.Or(n.Options[OptPath], DefaultPath), Timeout: DefaultTimeout}
	noun := api.NetworkNoun(n.Name)
	if s := n.Options[OptTimeout]; s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < time.Second || d > time.Hour {
			return api.FieldError(noun, "options."+OptTimeout, s, "is no time that can be waited", "one from 1s to 1h")
		}
		note.Timeout = d
	}
	if err := checkPath(noun, note.Path); err != nil {
		return err
	}
	file, err := find(noun, n.Options)
	if err != nil {
		return err
	}
	l, err := parse(file.data)
	if err != nil {
		return api.FieldError(noun, "options."+file.option, file.value, err.Error(), "a network configuration of CNI")
	}
	for _, p := range l.Plugins {
		if _, err := look(p.kind, note.Path); err != nil {
			return api.FieldError(noun, "options."+file.option, file.value, err.Error(), "plugins that are there; option "+OptPath+" says where")
		}
	}
	note.Config = file.data
	return c.Keep(note)
}

// Teardown implements driver.Attacher: no plugin has anything of a network.
func (Driver) Teardown(context.Context, []byte, driver.Keep) error { return nil }

// attachment is the note of an endpoint.
type attachment struct {
	network
	ID, Netns, Interface string
	// Runtime are the arguments of the call for plugins that have the capability (runtimeConfig).
	Runtime map[string]json.RawMessage
	// Result is that of ADD; empty where it did not return one.
	Result json.RawMessage
}

// Attach implements driver.Attacher: ADD.
func (Driver) Attach(ctx context.Context, n api.Network, network []byte, e *api.Endpoint, c driver.Call) error {
	noun := api.EndpointNoun(n.Name, e.Name)
	a := attachment{ID: c.ID, Netns: e.Sandbox.Netns, Interface: e.Sandbox.Interface}
	if err := json.Unmarshal(network, &a.network); err != nil {
		return err
	}
	l, err := parse(a.Config)
	if err != nil {
		return err
	}
	if a.Runtime, err = runtimeConfig(noun, l, *e); err != nil {
		return err
	}
	if err := c.Keep(a); err != nil {
		return err
	}
	var result json.RawMessage
	for i := range l.Plugins {
		out, err := a.exec(ctx, l, i, "ADD", result)
		if err != nil {
			return err
		}
		if len(out) > 0 {
			result = out
		}
	}
	a.Result = result
	if err := c.Keep(a); err != nil {
		return err
	}
	return given(result, e)
}

// Detach implements driver.Attacher: DEL of every plugin, last first. Where ADD did not end, it is called all the same.
func (Driver) Detach(ctx context.Context, note []byte, _ driver.Keep) error {
	var a attachment
	if err := json.Unmarshal(note, &a); err != nil {
		return err
	}
	l, err := parse(a.Config)
	if err != nil {
		return err
	}
	a.forgetNetns()
	for i := range slices.Backward(l.Plugins) {
		if _, err := a.exec(ctx, l, i, "DEL", a.Result); err != nil {
			return err
		}
	}
	return nil
}

// Check implements driver.Checker: CHECK.
func (Driver) Check(ctx context.Context, note []byte) error {
	var a attachment
	if err := json.Unmarshal(note, &a); err != nil {
		return err
	}
	l, err := parse(a.Config)
	if err != nil || l.noCheck || older(l.version, "0.4.0") {
		return err
	}
	if len(a.Result) == 0 {
		return errors.New("there is no result of ADD to check against")
	}
	for i := range l.Plugins {
		if _, err := a.exec(ctx, l, i, "CHECK", a.Result); err != nil {
			return err
		}
	}
	return nil
}

// runtimeConfig gives the arguments for the plugins that have the capability (CNI's CONVENTIONS.md). What no plugin of the
// chain would take is an error: it would be ignored.
func runtimeConfig(noun string, l *list, e api.Endpoint) (map[string]json.RawMessage, error) {
	out := map[string]json.RawMessage{}
	add := func(capability, field string, given bool, must bool, v any) error {
		switch has := l.capable(capability); {
		case !given || !has && !must:
			return nil
		case !has:
			return api.FieldError(noun, field, fmt.Sprint(v), "can't be asked for: no plugin of the network's configuration has the capability "+capability, "none, or a plugin that has it")
		}
		b, err := json.Marshal(v)
		out[capability] = b
		return err
	}
	type mapping struct {
		HostPort      uint16 `json:"hostPort"`
		ContainerPort uint16 `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP,omitempty"`
	}
	ports := []mapping{}
	for _, p := range e.Ports {
		m := mapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.ProtocolOrTCP()}
		if p.HostIP.IsValid() {
			m.HostIP = p.HostIP.String()
		}
		ports = append(ports, m)
	}
	return out, errors.Join(
		add("portMappings", "ports", len(ports) > 0, true, ports),
		add("ips", "addresses", len(e.Addresses) > 0, true, e.Addresses),
		add("mac", "mac", e.MAC != "", true, e.MAC),
		add("aliases", "aliases", true, false, append([]string{e.Name}, e.Aliases...)),
	)
}

// result is what of a result matters here, in the forms of all versions.
type result struct {
	Interfaces []struct{ Name, Sandbox string }
	IPs        []struct {
		Address   netip.Prefix
		Gateway   netip.Addr
		Interface *int
	}
	Routes   []route
	IP4, IP6 *oldIP
	DNS      struct{ Nameservers []string }
}

// oldIP is the form of an address in versions 0.1.0 and 0.2.0.
type oldIP struct {
	IP      netip.Prefix
	Gateway netip.Addr
	Routes  []route
}

type route struct {
	Dst netip.Prefix
	GW  netip.Addr
}

// given puts what a result says into the endpoint.
func given(raw json.RawMessage, e *api.Endpoint) error {
	if len(raw) == 0 {
		raw = []byte("{}") // a chain that makes no interface
	}
	var r result
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("the result is not as specified: %w", err)
	}
	p := e.Plugin
	for i, ip := range r.IPs {
		if at := ip.Interface; at != nil {
			if *at < 0 || *at >= len(r.Interfaces) {
				return fmt.Errorf("the result's address ips[%d] is on interfaces[%d], which is not there", i, *at)
			}
			if in := r.Interfaces[*at]; in.Sandbox == "" || in.Name != e.Sandbox.Interface {
				continue
			}
		}
		p.Prefixes = append(p.Prefixes, ip.Address)
		if ip.Gateway.IsValid() {
			p.Gateways = append(p.Gateways, ip.Gateway)
		}
	}
	for _, ip := range []*oldIP{r.IP4, r.IP6} {
		if ip == nil {
			continue
		}
		p.Prefixes = append(p.Prefixes, ip.IP)
		if ip.Gateway.IsValid() {
			p.Gateways = append(p.Gateways, ip.Gateway)
		}
		r.Routes = append(r.Routes, ip.Routes...)
	}
	for _, x := range r.Routes {
		p.Routes = append(p.Routes, api.PluginRoute{To: x.Dst, Via: x.GW})
	}
	for _, s := range r.DNS.Nameservers {
		if a, err := netip.ParseAddr(s); err == nil {
			p.DNS = append(p.DNS, a)
		}
	}
	asked := e.Addresses
	e.Addresses = nil
	for _, x := range p.Prefixes {
		if !e.Address(x.Addr().Is4()).IsValid() {
			e.Addresses = append(e.Addresses, x.Addr())
		}
	}
	for _, a := range asked {
		if !slices.ContainsFunc(p.Prefixes, func(x netip.Prefix) bool { return x.Addr() == a }) {
			return fmt.Errorf("the plugins gave %v, not the address %s that was asked for", p.Prefixes, a)
		}
	}
	return nil
}
