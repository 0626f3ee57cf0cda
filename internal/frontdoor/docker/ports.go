package docker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
)

// portBinding is one -p. HostPort 0 leaves the choice to the driver, HostPortEnd gives it one.
type portBinding struct {
	Proto       int
	Port        uint16
	HostIP      string
	HostPort    uint16
	HostPortEnd uint16
}

// The ports that are chosen from where Docker names none: those that RFC 6335 section 6 leaves to everybody.
const firstDynamic, dynamic = 49152, 16384

var protocols = map[int]string{6: "tcp", 17: "udp", 132: "sctp"} // IANA's protocol numbers

// choice is the host's ports that a binding may have, one after the other.
type choice struct {
	first, n int
	at       int // the offset of the present one
	left     int // how many others have not been tried
}

// binding gives a binding as a port to publish, with what it may be instead.
func (b portBinding) binding() (p api.Port, c choice, err error) {
	if p.Protocol = protocols[b.Proto]; p.Protocol == "" {
		return p, c, fmt.Errorf("port %d: protocol %d has no ports to publish; want 6 (TCP), 17 (UDP) or 132 (SCTP)", b.Port, b.Proto)
	}
	if b.HostIP != "" {
		if p.HostIP, err = netip.ParseAddr(b.HostIP); err != nil {
			return p, c, fmt.Errorf("port %d: %q is no address of the machine", b.Port, b.HostIP)
		}
		p.HostIP = p.HostIP.Unmap()
	}
	p.ContainerPort = b.Port
	c = choice{first: int(b.HostPort), n: max(int(b.HostPortEnd)-int(b.HostPort)+1, 1)}
	if b.HostPort == 0 {
		c = choice{first: firstDynamic, n: dynamic, at: rand.IntN(dynamic)}
	}
	c.left = c.n - 1
	return p, c, nil
}

func (c *choice) port() uint16 { return uint16(c.first + c.at) }

// next goes on to a port that has not been tried; false where there is none.
func (c *choice) next() bool {
	if c.left == 0 {
		return false
	}
	c.at, c.left = (c.at+1)%c.n, c.left-1
	return true
}

// resume begins with a port that was published before for the same binding, as the call may be a repetition, and gives
// those that are left for the other bindings.
func (c *choice) resume(was []api.Port, p api.Port) []api.Port {
	i := slices.IndexFunc(was, func(w api.Port) bool {
		at := int(w.HostPort) - c.first
		return w.ContainerPort == p.ContainerPort && w.ProtocolOrTCP() == p.Protocol && w.HostIP == p.HostIP && at >= 0 && at < c.n
	})
	if i < 0 {
		return was
	}
	c.at = int(was[i].HostPort) - c.first
	return slices.Delete(was, i, i+1)
}

// publish publishes the ports of an endpoint. Where Docker leaves the host's port open, those that are taken are passed
// over, one by one; what is wrong otherwise is not mended by another port.
func (d *Door) publish(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err != nil {
		return nil, err
	}
	if len(r.ports) == 0 {
		return none, nil
	}
	was := slices.Clone(ep.Ports)
	ports, choices := make([]api.Port, len(r.ports)), make([]choice, len(r.ports))
	for i, b := range r.ports {
		if ports[i], choices[i], err = b.binding(); err != nil {
			return nil, err
		}
		was = choices[i].resume(was, ports[i])
	}
	for {
		if err := settle(ports, choices); err != nil {
			return nil, err
		}
		if err = d.setPorts(ctx, ep, slices.Clone(ports)); err == nil {
			return none, nil
		}
		i, ok := takenPort(err)
		if !ok || i >= len(choices) || ctx.Err() != nil {
			return nil, err
		}
		if !choices[i].next() {
			if choices[i].n > 1 {
				err = fmt.Errorf("port %d: none of the machine's ports %d to %d is free: %w", ports[i].ContainerPort, choices[i].first, choices[i].first+choices[i].n-1, err)
			}
			return nil, err
		}
	}
}

// settle gives each port its present choice, such that none takes what another one of the same endpoint has: the fixed
// ones first, as they have no other.
func settle(ports []api.Port, choices []choice) error {
	type use struct {
		protocol string
		port     uint16
	}
	used := make(map[use]bool, len(ports))
	for i := range ports {
		if ports[i].HostPort = choices[i].port(); choices[i].n == 1 {
			used[use{ports[i].Protocol, ports[i].HostPort}] = true
		}
	}
	for i := range ports {
		if choices[i].n == 1 {
			continue
		}
		for used[use{ports[i].Protocol, choices[i].port()}] {
			if !choices[i].next() {
				return fmt.Errorf("port %d: the machine's ports %d to %d are fewer than what is published on them", ports[i].ContainerPort, choices[i].first, choices[i].first+choices[i].n-1)
			}
		}
		ports[i].HostPort = choices[i].port()
		used[use{ports[i].Protocol, ports[i].HostPort}] = true
	}
	return nil
}

// takenPort gives the place, in the endpoint's list, of the port that an error says somebody else has.
func takenPort(err error) (int, bool) {
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.Conflict {
		return 0, false
	}
	place, ok := strings.CutPrefix(e.Field, "ports[")
	place, rest, _ := strings.Cut(place, "]")
	i, err := strconv.Atoi(place)
	return i, ok && err == nil && rest == ".hostPort"
}

// setPorts has an endpoint publish these ports, and leaves the rest of it as it is stored. It makes none anew that went
// meanwhile; that somebody gave it another name is no hindrance.
func (d *Door) setPorts(ctx context.Context, ep api.Endpoint, ports []api.Port) error {
	if len(ep.Ports) == 0 && len(ports) == 0 {
		return nil
	}
	for {
		_, err := d.engine.PutEndpoint(ctx, api.Endpoint{Network: ep.Network, Name: ep.Name, Sandbox: api.Sandbox{Handoff: true}, Ports: ports}, ep.Revision)
		if api.CodeOf(err) != api.Stale {
			return err
		}
		id := ep.Labels[LabelEndpoint]
		if ep, err = d.engine.Endpoint(ctx, ep.Network, ep.Name); err != nil {
			return err
		}
		if ep.Labels[LabelEndpoint] != id {
			return api.Errorf(api.NotFound, api.EndpointNoun(ep.Network, ep.Name), "is another one now")
		}
	}
}

// unpublish takes all ports of an endpoint back.
func (d *Door) unpublish(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err == nil {
		err = d.setPorts(ctx, ep, []api.Port{})
	}
	if err != nil && api.CodeOf(err) != api.NotFound {
		return nil, err
	}
	return none, nil
}
