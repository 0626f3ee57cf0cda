package udp

import (
	"log/slog"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/fabric"
)

// Carrier is the fabric with what carries its packets.
type Carrier struct {
	Fabric
	*Runner
}

var _ fabric.Carrier = Carrier{}

// NewCarrier makes the fabric of a node with its Runner; see New.
func NewCarrier(secret []byte, port uint16, log *slog.Logger) Carrier {
	f := New(secret, port)
	return Carrier{f, NewRunner(f, log)}
}

// Carry implements fabric.Carrier.
func (c Carrier) Carry(self, peer api.Node, networks []fabric.Network) error {
	if len(networks) == 0 {
		c.DropPeer(peer.ID)
		return nil
	}
	p, err := c.PeerOf(self, peer, networks)
	if err != nil {
		return err
	}
	return c.SetPeer(peer.ID, p)
}
