//go:build !race

package gossip

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/seine-net/seine/internal/cluster/gossip/gossiptest"
)

// standIns take memberlist's place where it would take most of the time: they carry the messages of many nodes, with
// latency, loss and cuts, and know who is up. Who is cut off is down for the others after detect; after a cut, who has
// been heard is up at once, and all others for all after spread. These times are what memberlist itself was seen to take.
type standIns struct {
	latency, detect, spread time.Duration
	loss                    float64

	mu     sync.Mutex
	nodes  map[string]*standIn
	side   func(netip.AddrPort) int
	counts gossiptest.Counts
	spoken bool // after the cut somebody has been heard across it
}

// overhead is what memberlist adds to a message: type, label, encryption.
const overhead = 1 + 2 + 4 + 29

type standIn struct {
	all  *standIns
	g    *Gossip
	addr netip.AddrPort
}

func (s *standIns) create(g *Gossip, addr netip.AddrPort) *standIn {
	x := &standIn{s, g, addr}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil {
		s.nodes = map[string]*standIn{}
	}
	s.nodes[addr.String()] = x
	return x
}

func (s *standIn) node() *memberlist.Node {
	return &memberlist.Node{Name: s.g.conf.Node, Addr: s.addr.Addr().AsSlice(), Port: s.addr.Port()}
}

// find gives the node at an address, nil if it can't be reached.
func (s *standIn) find(addr string, bytes int, stream bool) *standIn {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if c := &s.all.counts; stream {
		c.Streams++
		c.StreamBytes += int64(bytes)
	} else {
		c.Packets++
		c.PacketBytes += int64(bytes)
	}
	to := s.all.nodes[addr]
	if to == nil || s.all.side != nil && s.all.side(s.addr) != s.all.side(to.addr) {
		return nil
	}
	return to
}

func (s *standIn) SendToAddress(a memberlist.Address, b []byte) error {
	if to := s.find(a.Addr, len(b)+overhead, false); to != nil && rand.Float64() >= s.all.loss {
		time.AfterFunc(s.all.latency+rand.N(s.all.latency), func() { to.g.receive(b) })
	}
	return nil
}

func (s *standIn) SendReliable(n *memberlist.Node, b []byte) error {
	time.Sleep(3 * s.all.latency)
	to := s.find(n.Address(), len(b)+overhead, true)
	if to == nil {
		return errors.New("i/o timeout")
	}
	to.g.receive(b)
	return nil
}

func (s *standIn) Join(addrs []string) (int, error) {
	to := s.find(addrs[0], 0, true)
	if to == nil {
		return 0, errors.New("i/o timeout")
	}
	s.meet(to)
	s.all.mu.Lock()
	first := !s.all.spoken
	s.all.spoken = true
	s.all.mu.Unlock()
	if first {
		time.AfterFunc(s.all.spread, s.all.meet)
	}
	return 1, nil
}

func (s *standIn) meet(to *standIn) {
	s.g.joined(to.node())
	to.g.joined(s.node())
}

// meet makes all up for all.
func (s *standIns) meet() {
	s.pairs(func(a, b *standIn) { a.g.joined(b.node()) })
}

func (s *standIns) pairs(f func(a, b *standIn)) {
	s.mu.Lock()
	var all []*standIn
	for _, x := range s.nodes {
		all = append(all, x)
	}
	s.mu.Unlock()
	for _, a := range all {
		for _, b := range all {
			if a != b {
				f(a, b)
			}
		}
	}
}

// Cut divides the nodes; nil heals.
func (s *standIns) Cut(side func(netip.AddrPort) int) {
	s.mu.Lock()
	s.side, s.spoken = side, false
	s.mu.Unlock()
	if side != nil {
		time.AfterFunc(s.detect, func() {
			s.pairs(func(a, b *standIn) {
				if side(a.addr) != side(b.addr) {
					a.g.lost(b.g.conf.Node)
				}
			})
		})
	}
}

func (s *standIns) Counts() gossiptest.Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

func (s *standIn) Leave(time.Duration) error      { return nil }
func (s *standIn) UpdateNode(time.Duration) error { return nil }
func (s *standIn) Shutdown() error {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if s.all.nodes[s.addr.String()] == s {
		delete(s.all.nodes, s.addr.String())
	}
	return nil
}
