package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
)

// Import is a network of Docker's and what equals it here.
type Import struct {
	// Name and ID are Docker's.
	Name string `json:"name"`
	ID   string `json:"id"`
	// Network is the equal; nil where there is none.
	Network *api.Network `json:"network,omitempty"`
	// Reason is why there is none.
	Reason string `json:"reason,omitempty"`
	// Notes say what of the network has no equal, or another one than its user may expect.
	Notes []string `json:"notes,omitempty"`
	// Containers are the names of the containers on it, where Docker tells.
	Containers []string `json:"containers,omitempty"`
}

// inspected is a network as Docker tells about it: GET /networks/ID, `docker network inspect` (versions 20.10 to 29).
type inspected struct {
	Name, Scope, Driver string
	ID                  string `json:"Id"`
	EnableIPv6          bool
	Internal            bool
	Ingress             bool
	ConfigOnly          bool
	IPAM                struct {
		Driver  string
		Options map[string]string
		Config  []inspectedRange
	}
	Options    map[string]string
	Labels     map[string]string
	Containers map[string]struct{ Name string }
}

type inspectedRange struct {
	Subnet, IPRange, Gateway string
	AuxiliaryAddresses       map[string]string
}

// ParseImport reads what `docker network inspect` prints, or one answer of GET /networks, and gives what equals each
// network here, by name. It asks nobody: what is on the machine is not known to it.
func ParseImport(text []byte) ([]Import, error) {
	var all []inspected
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("is not what `docker network inspect` prints: %w", err)
	}
	out := make([]Import, 0, len(all))
	for _, n := range all {
		if n.Name == "" || n.Driver == "" {
			return nil, errors.New("is not what `docker network inspect` prints: a network has no name or no driver")
		}
		out = append(out, n.equal())
	}
	slices.SortFunc(out, func(a, b Import) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// equal says what a network is here.
func (in inspected) equal() Import {
	out := Import{Name: in.Name, ID: in.ID}
	for _, c := range in.Containers {
		out.Containers = append(out.Containers, c.Name)
	}
	slices.Sort(out.Containers)
	if out.Reason = in.without(); out.Reason != "" {
		return out
	}
	n := api.Network{Name: in.Name, Driver: in.Driver, Internal: in.Internal, Meta: api.Meta{Labels: in.Labels}}
	note := func(format string, args ...any) { out.Notes = append(out.Notes, fmt.Sprintf(format, args...)) }
	if in.IPAM.Driver != "" && in.IPAM.Driver != "default" {
		note("addresses are Seine's own to give out, not those of the IPAM driver %q", in.IPAM.Driver)
	}
	for _, r := range in.IPAM.Config {
		s, err := r.subnet()
		if err != nil {
			out.Reason = err.Error()
			return out
		}
		n.Subnets = append(n.Subnets, s)
	}
	if len(n.Subnets) == 0 {
		out.Reason = "it has no subnet"
		return out
	}
	for _, key := range slices.Sorted(maps.Keys(in.Options)) {
		if text := in.option(&n, key, in.Options[key]); text != "" {
			note("%s", text)
		}
	}
	if n.Internal {
		n.Masquerade = nil // there is nothing to masquerade
	}
	if err := n.Validate(); err != nil {
		out.Reason = "it can't be had here: " + err.Error()
		return out
	}
	out.Network = &n
	return out
}

// without says why a network has no equal; "" where it may have one.
func (in inspected) without() string {
	switch {
	case in.ConfigOnly:
		return "it has settings for other networks and is none; those that were made of it are imported by themselves"
	case in.Ingress, in.Scope != "" && in.Scope != "local":
		return "it is a network of a swarm"
	case in.Driver == "host":
		return `Seine has a network "host" from its first start on`
	case in.Driver == "null":
		return `Seine has a network "none" from its first start on`
	case in.Options["com.docker.network.bridge.default_bridge"] == "true":
		return `it is Docker's default, which can't be removed while dockerd runs; Seine has a network "default" in its place`
	case in.Driver == "seine":
		return "it is Seine's already"
	case in.Driver == "bridge", in.Driver == "macvlan", in.Driver == "ipvlan":
		return ""
	case in.Driver == "overlay":
		return "overlay networks are a swarm's"
	}
	return fmt.Sprintf("its driver %q is somebody else's program", in.Driver)
}

func (r inspectedRange) subnet() (s api.Subnet, err error) {
	p, err := netip.ParsePrefix(r.Subnet)
	if err != nil {
		return s, fmt.Errorf("its subnet %q is no address range", r.Subnet)
	}
	s.Prefix = p.Masked()
	if r.Gateway != "" {
		// Old versions give it with the subnet's length.
		text, _, _ := strings.Cut(r.Gateway, "/")
		if s.Gateway, err = netip.ParseAddr(text); err != nil {
			return s, fmt.Errorf("its gateway %q is no address", r.Gateway)
		}
	}
	if r.IPRange != "" {
		if s.Range, err = netip.ParsePrefix(r.IPRange); err != nil {
			return s, fmt.Errorf("its range %q is no address range", r.IPRange)
		}
		s.Range = s.Range.Masked()
	}
	for _, name := range slices.Sorted(maps.Keys(r.AuxiliaryAddresses)) {
		a, err := netip.ParseAddr(r.AuxiliaryAddresses[name])
		if err != nil {
			return s, fmt.Errorf("its auxiliary address %q is no address", r.AuxiliaryAddresses[name])
		}
		if !slices.Contains(s.Reserved, a) {
			s.Reserved = append(s.Reserved, a)
		}
	}
	return s, nil
}

// option carries an option of Docker's over, and says what of it has no equal.
func (in inspected) option(n *api.Network, key, value string) (note string) {
	short := strings.TrimPrefix(key, "com.docker.network.")
	none := fmt.Sprintf("-o %s=%s has no equal", key, value)
	if key == "parent" && in.Driver != "bridge" {
		return setOption(n, key, value)
	}
	ours := driverOptions[key]
	if key == optPrefix {
		ours = api.OptIfacePrefix
	}
	if ours != "" {
		if value == "" || ours == api.OptHostBinding && value == "0.0.0.0" { // as without it
			return ""
		}
		return setOption(n, ours, value)
	}
	switch short {
	case "driver.mtu":
		v, err := strconv.Atoi(value)
		if err != nil {
			return none
		}
		n.MTU = v
	case "bridge.name":
		n.Interface = value
	case "bridge.enable_icc", "bridge.enable_ip_masquerade":
		v, err := strconv.ParseBool(value)
		if err != nil {
			return none
		}
		if short == "bridge.enable_icc" {
			n.ICC = &v
		} else {
			n.Masquerade = &v
		}
	default:
		return none
	}
	return ""
}

func setOption(n *api.Network, key, value string) string {
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	n.Options[key] = value
	return ""
}
