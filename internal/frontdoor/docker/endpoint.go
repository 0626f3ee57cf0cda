package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/seine-net/seine/api"
)

type endpointRequest struct {
	NetworkID, EndpointID string
	Interface             *netInterface
	SandboxKey            string
	Options               struct {
		PortMap []portBinding `json:"com.docker.network.portmap"`
	}
}

type netInterface struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

// portBinding is one -p. HostPort 0 leaves the choice to the driver, HostPortEnd gives it one.
type portBinding struct {
	Proto       int
	Port        uint16
	HostIP      string
	HostPort    uint16
	HostPortEnd uint16
}

// endpoint finds an endpoint by Docker's identities.
func (d *Door) endpoint(ctx context.Context, r endpointRequest) (api.Endpoint, error) {
	n, err := d.network(ctx, r.NetworkID)
	if err != nil {
		return api.Endpoint{}, err
	}
	if err := checkID("EndpointID", r.EndpointID); err != nil {
		return api.Endpoint{}, err
	}
	ep, err := d.engine.Endpoint(ctx, n.Name, endpointName(r.EndpointID))
	if err == nil && ep.Labels[LabelEndpoint] != r.EndpointID {
		err = api.Errorf(api.NotFound, api.EndpointNoun(n.Name, ep.Name), "is not Docker's endpoint %s", r.EndpointID)
	}
	return ep, err
}

func endpointName(id string) string { return "docker-" + id[:12] }

func (d *Door) createEndpoint(ctx context.Context, r endpointRequest) (any, error) {
	n, err := d.network(ctx, r.NetworkID)
	if err != nil {
		return nil, err
	}
	if err := checkID("EndpointID", r.EndpointID); err != nil {
		return nil, err
	}
	ep := api.Endpoint{Network: n.Name, Name: endpointName(r.EndpointID), Sandbox: api.Sandbox{Handoff: true},
		Meta: api.Meta{Labels: map[string]string{LabelEndpoint: r.EndpointID}}}
	asked := netInterface{}
	if r.Interface != nil {
		asked = *r.Interface
	}
	for _, s := range []string{asked.Address, asked.AddressIPv6} {
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("address %q: is no address with a length", s)
		}
		ep.Addresses = append(ep.Addresses, p.Addr())
	}
	if asked.MacAddress != "" {
		hw, err := net.ParseMAC(asked.MacAddress)
		if err != nil {
			return nil, fmt.Errorf("MAC address %q: is no hardware address", asked.MacAddress)
		}
		ep.MAC = hw.String()
	}
	if was, err := d.engine.Endpoint(ctx, ep.Network, ep.Name); err == nil {
		if was.Labels[LabelEndpoint] != r.EndpointID {
			return nil, fmt.Errorf("endpoint %q: has the name of Docker's endpoint %s; want another name for it", was.Key(), r.EndpointID)
		}
		ep.Labels = was.Labels // it may have joined since
	}
	if ep, err = d.engine.PutEndpoint(ctx, ep, 0); err != nil {
		return nil, err
	}
	// What Docker gave may not be repeated to it.
	var give netInterface
	for _, p := range ep.Status.Prefixes {
		if p.Addr().Is4() && asked.Address == "" {
			give.Address = p.String()
		} else if p.Addr().Is6() && asked.AddressIPv6 == "" {
			give.AddressIPv6 = p.String()
		}
	}
	if asked.MacAddress == "" {
		give.MacAddress = ep.MAC
	}
	if give == (netInterface{}) {
		return none, nil
	}
	return map[string]any{"Interface": give}, nil
}

func (d *Door) endpointInfo(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err != nil {
		return nil, err
	}
	return map[string]any{"Value": map[string]string{"seine.endpoint": ep.Key()}}, nil
}

func (d *Door) deleteEndpoint(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err == nil {
		err = d.drop(ctx, ep)
	}
	if err != nil && api.CodeOf(err) != api.NotFound {
		return nil, err
	}
	return none, nil
}

func (d *Door) drop(ctx context.Context, ep api.Endpoint) error {
	if err := d.engine.DeleteEndpoint(ctx, ep.Network, ep.Name, 0); err != nil && api.CodeOf(err) != api.NotFound {
		return err
	}
	return nil
}

// join tells Docker which interface to take. It has been there since CreateEndpoint.
func (d *Door) join(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err != nil {
		return nil, err
	}
	if ep.Status.State != api.Attached {
		return nil, fmt.Errorf("endpoint %q: is %s: %s", ep.Key(), ep.Status.State, ep.Status.Error)
	}
	if ep, err = d.label(ctx, ep, r.SandboxKey); err != nil {
		return nil, err
	}
	out := map[string]any{"InterfaceName": map[string]string{"SrcName": ep.Sandbox.Interface, "DstPrefix": "eth"}}
	for _, g := range ep.Status.Gateways {
		if g.Is4() {
			out["Gateway"] = g.String()
		} else {
			out["GatewayIPv6"] = g.String()
		}
	}
	if len(ep.Status.Gateways) == 0 {
		out["DisableGatewayService"] = true // or Docker leads a way out of an internal network by a bridge of its own
	}
	return out, nil
}

// label notes which sandbox an endpoint is in, "" for none.
func (d *Door) label(ctx context.Context, ep api.Endpoint, sandbox string) (api.Endpoint, error) {
	if ep.Labels[LabelSandbox] == sandbox {
		return ep, nil
	}
	ep.Labels = maps.Clone(ep.Labels)
	if ep.Labels[LabelSandbox] = sandbox; sandbox == "" {
		delete(ep.Labels, LabelSandbox)
		ep.Ports = []api.Port{}
	}
	return d.engine.PutEndpoint(ctx, ep, 0)
}

// leave takes the ports back, too: after its own restart, Docker does not ask for that.
func (d *Door) leave(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err == nil {
		_, err = d.label(ctx, ep, "")
	}
	if err != nil && api.CodeOf(err) != api.NotFound {
		return nil, err
	}
	return none, nil
}

func (d *Door) unpublish(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err == nil && len(ep.Ports) > 0 {
		ep.Ports = []api.Port{}
		_, err = d.engine.PutEndpoint(ctx, ep, 0)
	}
	if err != nil && api.CodeOf(err) != api.NotFound {
		return nil, err
	}
	return none, nil
}

// publish publishes the ports of an endpoint. Where Docker leaves the host's port open, what is taken is passed over.
func (d *Door) publish(ctx context.Context, r endpointRequest) (any, error) {
	ep, err := d.endpoint(ctx, r)
	if err != nil {
		return nil, err
	}
	if len(r.Options.PortMap) == 0 {
		return none, nil
	}
	was := ep.Ports
	for try := range maxTries {
		open := false
		ep.Ports = make([]api.Port, 0, len(r.Options.PortMap))
		for _, b := range r.Options.PortMap {
			p, choice, err := b.port(was, try)
			if err != nil {
				return nil, err
			}
			ep.Ports, open = append(ep.Ports, p), open || choice
		}
		if _, err = d.engine.PutEndpoint(ctx, ep, 0); err == nil || !open || ctx.Err() != nil {
			break
		}
		if code := api.CodeOf(err); code != api.Conflict && code != api.Invalid {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return none, nil
}

// maxTries is how many ports are tried where Docker leaves the choice.
const maxTries = 64

// The ports that are chosen from: those that RFC 6335 section 6 leaves to everybody.
const firstDynamic, dynamic = 49152, 16384

var protocols = map[int]string{6: "tcp", 17: "udp", 132: "sctp"} // IANA's protocol numbers

// port is a binding as a port to publish. Where there is a choice, the first try takes what was published before: the
// call may be a repetition.
func (b portBinding) port(was []api.Port, try int) (p api.Port, choice bool, err error) {
	if p.Protocol = protocols[b.Proto]; p.Protocol == "" {
		return p, false, fmt.Errorf("port %d: protocol %d has no ports to publish; want 6 (TCP), 17 (UDP) or 132 (SCTP)", b.Port, b.Proto)
	}
	if b.HostIP != "" {
		if p.HostIP, err = netip.ParseAddr(b.HostIP); err != nil {
			return p, false, fmt.Errorf("port %d: %q is no address of the machine", b.Port, b.HostIP)
		}
		p.HostIP = p.HostIP.Unmap()
	}
	p.ContainerPort, p.HostPort = b.Port, b.HostPort
	first, n := int(b.HostPort), int(b.HostPortEnd)-int(b.HostPort)+1
	if b.HostPort == 0 {
		first, n = firstDynamic, dynamic
	}
	if n <= 1 {
		return p, false, nil
	}
	if try == 0 {
		for _, w := range was {
			if w.ContainerPort == p.ContainerPort && w.ProtocolOrTCP() == p.Protocol && w.HostIP == p.HostIP && int(w.HostPort) >= first && int(w.HostPort) < first+n {
				return w, true, nil
			}
		}
	}
	at := try % n
	if b.HostPort == 0 {
		at = rand.IntN(n)
	}
	p.HostPort = uint16(first + at)
	return p, true, nil
}

// How long something may be without its use before Collect takes it for forgotten.
const (
	lostAfter   = time.Minute      // an endpoint whose sandbox's file is gone: Docker 20.10 makes it only after Join
	unusedAfter = 10 * time.Minute // an endpoint that no sandbox joined, or that left; an address without an endpoint
)

// Collect removes what Docker has forgotten: it drops errors of Leave and Delete, and calls that it was killed before.
// It is called now and then, by one goroutine.
func (d *Door) Collect(ctx context.Context) error {
	eps, err := d.engine.Endpoints(ctx)
	if err != nil {
		return err
	}
	now, found := time.Now(), map[string]time.Time{}
	gone := func(key string, after time.Duration) bool {
		since, ok := d.absent[key]
		if !ok {
			since = now
		}
		found[key] = since
		return now.Sub(since) >= after
	}
	var errs []error
	for _, ep := range eps {
		if ep.Labels[LabelEndpoint] == "" {
			continue
		}
		after := lostAfter
		if path := ep.Labels[LabelSandbox]; path == "" {
			after = unusedAfter
		} else if _, err := os.Lstat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if gone(ep.Key()+" "+ep.Labels[LabelSandbox], after) {
			d.log.Info("Docker forgot an endpoint: it is removed", "endpoint", ep.Key())
			errs = append(errs, d.drop(ctx, ep))
		}
	}
	nets, err := d.engine.Networks(ctx)
	errs = append(errs, err)
	for _, l := range d.ipam.unused(nets) {
		if gone(l, unusedAfter) {
			d.log.Info("Docker forgot an address: it is free again", "lease", l)
			errs = append(errs, d.ipam.forget(l))
		}
	}
	d.absent = found
	return errors.Join(errs...)
}
