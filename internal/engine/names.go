package engine

import (
	"net/netip"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

// announceNames tells the name server about an endpoint.
func (e *Engine) announceNames(ep api.Endpoint) {
	if e.Names == nil || len(ep.Addresses) == 0 {
		return
	}
	n, _ := e.Store.Network(ep.Network)
	names := append([]string{ep.ContainerName(), ep.Name}, ep.Aliases...)
	e.Names.Set(ep.Key(), NameRecord{Names: names, Network: ep.Network, Aliases: n.Aliases, Container: container(ep),
		Addrs: ep.Addresses, Internal: n.Internal})
}

// announce tells the name server and the loopback proxy about an endpoint that is attached. A port that the proxy can't
// have is logged: the endpoint works without it.
func (e *Engine) announce(ep api.Endpoint) {
	e.announceNames(ep)
	if e.Relays == nil {
		return
	}
	n, _ := e.Store.Network(ep.Network)
	relays := relays(ep, e.Facts())
	if e.attacher("driver", n.Driver) != nil {
		relays = nil // publishing is up to the plugin
	}
	if len(relays) > 0 {
		if err := e.Relays.Set(ep.Key(), relays); err != nil {
			e.Log.Warn("published port is not reachable at [::1]", "endpoint", ep.Key(), "err", err)
		}
	} else {
		e.Relays.Drop(ep.Key())
	}
}

// container tells the sandboxes apart. Which one has an interface that somebody else moved is known where he said whose
// it is; else it counts as one of its own.
func container(ep api.Endpoint) string {
	if ep.Sandbox.Handoff {
		if ep.Container.ID != "" {
			return "container " + ep.Container.ID
		}
		return "endpoint " + ep.Key()
	}
	return ep.Sandbox.Netns
}

// unannounce takes an endpoint out of the name server and the loopback proxy.
func (e *Engine) unannounce(ep api.Endpoint) {
	if e.Names != nil {
		e.Names.Drop(ep.Key())
	}
	if e.Relays != nil {
		e.Relays.Drop(ep.Key())
	}
}

// relays gives the ports of [::1] that the kernel can't lead to the endpoint: all of them while bridge netfilter
// translates replies before the kernel has accepted them.
func relays(ep api.Endpoint, f kernel.Facts) []Relay {
	if !f.BridgeFilter6 || f.NoIPv6 {
		return nil
	}
	to := ep.Address(false)
	if !to.IsValid() {
		return nil
	}
	var out []Relay
	for _, p := range ep.Ports {
		on := p.HostIP
		if p.ProtocolOrTCP() == "sctp" || on.IsValid() && on != netip.IPv6Unspecified() && on != netip.IPv6Loopback() {
			continue
		}
		out = append(out, Relay{Protocol: p.ProtocolOrTCP(), Listen: netip.AddrPortFrom(netip.IPv6Loopback(), p.HostPort),
			To: netip.AddrPortFrom(to, p.ContainerPort)})
	}
	return out
}
