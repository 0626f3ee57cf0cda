package api

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
)

// Endpoint is an interface of a sandbox on a network.
type Endpoint struct {
	Meta
	// Network is the name of the network; with Name it makes the key "network/name".
	Network string `json:"network"`
	// Name is unique within the network, and a DNS name there. Endpoints of one container carry one name.
	Name string `json:"name"`
	// Aliases are further DNS names; several endpoints may share one.
	Aliases []string `json:"aliases,omitempty"`
	// Container is what the runtime that made the container calls it, where Name is not that: Docker's. Its name is a DNS
	// name of the endpoint too, the one that a reverse look-up gives; lists show it.
	Container Container `json:"container,omitzero"`
	// Sandbox is where the interface goes.
	Sandbox Sandbox `json:"sandbox"`
	// Addresses are at most one of each family. What is not asked for is given out from the network's subnets.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// MAC is the hardware address, unicast, as "02:…". Default: made from the first address, so it stays the same.
	MAC string `json:"mac,omitempty"`
	// Ports are published on the machine.
	Ports []Port `json:"ports,omitempty"`
	// Index orders the sandbox's endpoints: it makes the default interface name (eth0, eth1, …) and the metric of the
	// default route, so that the lowest one is used and the next takes over. Given out by the daemon.
	Index int `json:"index"`
	// Plugin is what the network's driver or IPAM gave where that is somebody else's program; nil before it has answered.
	// Filled in by the daemon; it is ignored in a PUT.
	Plugin *Plugin `json:"plugin,omitempty"`
	// Status is what the daemon saw last; it is ignored in a PUT.
	Status *EndpointStatus `json:"status,omitempty"`
}

// Container is a container in the words of its runtime.
type Container struct {
	// ID is the same for all endpoints of the container; at most 128 bytes.
	ID string `json:"id,omitempty"`
	// Name may change, and go to another container later.
	Name string `json:"name,omitempty"`
}

// Plugin is what a program that is somebody else's gave to an endpoint.
type Plugin struct {
	// ID is what the program knows the endpoint by: 64 hexadecimal digits, others each time that it is attached.
	ID string `json:"id"`
	// Interface is the machine's interface that the program left to be moved into the sandbox; "" where it did that itself.
	Interface string `json:"interface,omitempty"`
	// Prefix is what the name of the interface in the sandbox begins with, a number follows; "" for eth.
	Prefix string `json:"prefix,omitempty"`
	// Prefixes are all addresses with the lengths of their subnets, where the program chose both.
	Prefixes []netip.Prefix `json:"prefixes,omitempty"`
	// Gateways are those of the sandbox's default routes.
	Gateways []netip.Addr `json:"gateways,omitempty"`
	// Routes are the sandbox's further routes.
	Routes []PluginRoute `json:"routes,omitempty"`
	// DNS are the name servers that the program names.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// PluginRoute is a route of a sandbox that a plugin asked for.
type PluginRoute struct {
	// To is the destination.
	To netip.Prefix `json:"to"`
	// Via is the gateway; the zero Addr where the destination is on the link.
	Via netip.Addr `json:"via,omitzero"`
}

// Sandbox is a network namespace.
type Sandbox struct {
	// Netns is the absolute path of the namespace, such as /run/netns/a or /proc/123/ns/net.
	Netns string `json:"netns,omitempty"`
	// Interface is the name inside. Default: eth and the Index.
	Interface string `json:"interface,omitempty"`
	// Handoff leaves the interface on the machine, under the name Interface that the daemon gives it, for the caller to move
	// into a namespace and to give addresses and routes there; Netns is empty. Docker works this way. The daemon keeps the
	// machine's end alone.
	Handoff bool `json:"handoff,omitempty"`
	// Taken says that an interface with no end on the machine was made for Handoff, and is the caller's from then on.
	// Filled in by the daemon.
	Taken bool `json:"taken,omitempty"`
	// PID, where set, ties the endpoint to a process: it is detached when the process ends. PIDStart is the
	// process's start time (proc_pid_stat(5), field 22), filled in by the daemon, against reuse of the number.
	PID      int    `json:"pid,omitempty"`
	PIDStart uint64 `json:"pidStart,omitempty"`
	// Cookie is the namespace's identity (SO_NETNS_COOKIE in socket(7), Linux 5.14), filled in by the daemon, against
	// another namespace under the same path; 0 where the kernel does not tell it.
	Cookie uint64 `json:"cookie,omitempty"`
}

// Port publishes a container's port on the machine.
type Port struct {
	// Protocol is "tcp" (the default), "udp" or "sctp".
	Protocol string `json:"protocol,omitempty"`
	// HostIP is the machine's address to publish on. Default: every address of both families.
	HostIP netip.Addr `json:"hostIP,omitzero"`
	// HostPort and ContainerPort are 1 to 65535.
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
}

// State is what became of an endpoint.
type State string

// The states.
const (
	Attached State = "attached" // the kernel holds all that the endpoint needs
	Pending  State = "pending"  // it was asked for and is not there yet
	Failed   State = "failed"   // the kernel refused; Error says what; it is tried again
	Lost     State = "lost"     // its namespace is gone
)

// EndpointStatus is what the daemon knows about an endpoint beyond what was asked for.
type EndpointStatus struct {
	State State `json:"state"`
	// Error is the first cause of a State that is not "attached".
	Error string `json:"error,omitempty"`
	// HostInterface is the machine's end.
	HostInterface string `json:"hostInterface,omitempty"`
	// Prefixes are the addresses with the lengths of their subnets, Gateways the network's gateways.
	Prefixes []netip.Prefix `json:"prefixes,omitempty"`
	Gateways []netip.Addr   `json:"gateways,omitempty"`
	// DNS are the addresses at which the endpoint finds the name server.
	DNS []netip.Addr `json:"dns,omitempty"`
	// Search and DNSOptions are what the network's options dns.search and dns.options ask for in the container's
	// resolv.conf(5); a Search of "." alone stands for none.
	Search     []string `json:"search,omitempty"`
	DNSOptions []string `json:"dnsOptions,omitempty"`
	MTU        int      `json:"mtu,omitempty"`
}

// ContainerName is the container's name with its runtime, or the endpoint's own.
func (e *Endpoint) ContainerName() string {
	if e.Container.Name != "" {
		return e.Container.Name
	}
	return e.Name
}

// Key is "network/name".
func (e *Endpoint) Key() string { return e.Network + "/" + e.Name }

// EndpointNoun is how errors name an endpoint.
func EndpointNoun(network, name string) string { return fmt.Sprintf("endpoint %q", network+"/"+name) }

// Address gives the endpoint's address of a family; the zero Addr for none.
func (e *Endpoint) Address(v4 bool) netip.Addr {
	for _, a := range e.Addresses {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// Validate checks every field by itself; what needs the network or the machine is the engine's to check.
func (e *Endpoint) Validate() error {
	noun := EndpointNoun(e.Network, e.Name)
	if err := checkName(noun, "network", e.Network, 63); err != nil {
		return err
	}
	if err := checkName(noun, "name", e.Name, 128); err != nil {
		return err
	}
	for i, a := range e.Aliases {
		if err := checkName(noun, fmt.Sprintf("aliases[%d]", i), a, 253); err != nil {
			return err
		}
	}
	for _, c := range []struct{ field, value string }{{"container.id", e.Container.ID}, {"container.name", e.Container.Name}} {
		if c.value == "" {
			continue
		}
		if err := checkName(noun, c.field, c.value, 128); err != nil {
			return err
		}
	}
	if err := e.Sandbox.validate(noun); err != nil {
		return err
	}
	seen := map[bool]bool{}
	for i, a := range e.Addresses {
		f := fmt.Sprintf("addresses[%d]", i)
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return FieldError(noun, f, a, "is no address for a container", "an IPv4 or IPv6 unicast address of the network")
		}
		if seen[a.Is4()] {
			return FieldError(noun, f, a, "is a second address of its family", "at most one IPv4 and one IPv6 address")
		}
		seen[a.Is4()] = true
	}
	if e.MAC != "" {
		hw, err := net.ParseMAC(e.MAC)
		if err != nil || len(hw) != 6 || hw[0]&1 != 0 || hw.String() == "00:00:00:00:00:00" {
			return FieldError(noun, "mac", e.MAC, "is no unicast hardware address", "six bytes such as 02:00:00:00:00:01, the first one even")
		}
	}
	if err := validatePorts(noun, e.Ports); err != nil {
		return err
	}
	return checkLabels(noun, e.Labels)
}

func (s *Sandbox) validate(noun string) error {
	if s.Netns != "" && (!filepath.IsAbs(s.Netns) || filepath.Clean(s.Netns) != s.Netns || strings.ContainsAny(s.Netns, "\x00\n")) {
		return FieldError(noun, "sandbox.netns", s.Netns, "is no clean absolute path", "a path such as /run/netns/a")
	}
	if s.Handoff && s.Netns != "" {
		return FieldError(noun, "sandbox.handoff", true, fmt.Sprintf("does not go with sandbox.netns %q", s.Netns), "one of the two")
	}
	if s.PID < 0 {
		return FieldError(noun, "sandbox.pid", s.PID, "is no process number", "a positive number, or 0 for none")
	}
	if s.Interface != "" {
		return checkIfname(noun, "sandbox.interface", s.Interface)
	}
	return nil
}

func validatePorts(noun string, ports []Port) error {
	type key struct {
		protocol string
		port     uint16
	}
	seen := make(map[key][]int, len(ports))
	for i, p := range ports {
		f := func(name string) string { return fmt.Sprintf("ports[%d].%s", i, name) }
		switch p.Protocol {
		case "", "tcp", "udp", "sctp":
		default:
			return FieldError(noun, f("protocol"), p.Protocol, "is no protocol that has ports", `"tcp", "udp" or "sctp"`)
		}
		if p.HostPort == 0 {
			return FieldError(noun, f("hostPort"), p.HostPort, "is out of range", "1 to 65535")
		}
		if p.ContainerPort == 0 {
			return FieldError(noun, f("containerPort"), p.ContainerPort, "is out of range", "1 to 65535")
		}
		if a := p.HostIP; a.IsValid() && (a.IsMulticast() || a.Zone() != "" || a.Is4In6()) {
			return FieldError(noun, f("hostIP"), a, "is no address to publish on", "an address of the machine without a zone")
		}
		k := key{p.ProtocolOrTCP(), p.HostPort}
		for _, j := range seen[k] {
			if overlap(p.HostIP, ports[j].HostIP) {
				return FieldError(noun, f("hostPort"), p.HostPort, fmt.Sprintf("is published twice (see ports[%d])", j),
					"each host port once per protocol and address")
			}
		}
		seen[k] = append(seen[k], i)
	}
	return nil
}

// overlap reports whether two host addresses publish on a common address.
func overlap(a, b netip.Addr) bool {
	if !a.IsValid() || !b.IsValid() || a == b {
		return true
	}
	return a.Is4() == b.Is4() && (a.IsUnspecified() || b.IsUnspecified())
}

// ProtocolOrTCP is the protocol with its default.
func (p *Port) ProtocolOrTCP() string {
	if p.Protocol == "" {
		return "tcp"
	}
	return p.Protocol
}

// String gives the port as the command line writes it: 127.0.0.1:8080:80/udp.
func (p Port) String() string {
	s := fmt.Sprintf("%d:%d", p.HostPort, p.ContainerPort)
	if p.HostIP.IsValid() {
		h := p.HostIP.String()
		if p.HostIP.Is6() {
			h = "[" + h + "]"
		}
		s = h + ":" + s
	}
	if p.ProtocolOrTCP() != "tcp" {
		s += "/" + p.Protocol
	}
	return s
}
