// Package gossiptest is a network in memory for tests of what gossips: with latency, loss and cuts, and counters of what
// was sent. It needs no sockets, so that it runs in virtual time (testing/synctest).
package gossiptest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Network joins hosts. Its fields are not to be changed once hosts send.
type Network struct {
	Latency time.Duration // of every packet, and of a stream's beginning in each direction
	Jitter  time.Duration // up to so much more, by chance: packets overtake each other
	Loss    float64       // the part of packets that is lost

	mu     sync.Mutex
	hosts  map[string]*Host
	side   func(netip.AddrPort) int
	counts Counts
	conns  map[*conn]struct{}
}

// Counts says what was sent: payloads, without headers of UDP, TCP or IP. What was lost counts too.
type Counts struct {
	Packets, PacketBytes, Streams, StreamBytes int64
}

// Sub gives what was sent since an earlier count.
func (c Counts) Sub(d Counts) Counts {
	return Counts{c.Packets - d.Packets, c.PacketBytes - d.PacketBytes, c.Streams - d.Streams, c.StreamBytes - d.StreamBytes}
}

// Bytes gives all bytes that were sent.
func (c Counts) Bytes() int64 { return c.PacketBytes + c.StreamBytes }

// Host is a place in the network: a memberlist.Transport.
type Host struct {
	net     *Network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
}

// Host puts a host at an address, in place of one that was there.
func (n *Network) Host(addr netip.AddrPort) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts == nil {
		n.hosts, n.conns = map[string]*Host{}, map[*conn]struct{}{}
	}
	h := &Host{n, addr, make(chan *memberlist.Packet, 4096), make(chan net.Conn, 256)}
	n.hosts[addr.String()] = h
	return h
}

// Cut divides the network: only hosts of the same side hear each other. nil heals it. Streams across a cut break.
func (n *Network) Cut(side func(netip.AddrPort) int) {
	n.mu.Lock()
	n.side = side
	var broken []*conn
	for c := range n.conns {
		if !n.joined(c.from, c.to) {
			broken = append(broken, c)
		}
	}
	n.mu.Unlock()
	for _, c := range broken {
		_ = c.Conn.Close()
	}
}

// Counts gives what was sent so far.
func (n *Network) Counts() Counts {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.counts
}

func (n *Network) joined(a, b netip.AddrPort) bool { return n.side == nil || n.side(a) == n.side(b) }

// find gives the host at an address, nil if there is none or it can't be reached from another.
func (n *Network) find(from netip.AddrPort, to string) *Host {
	h := n.hosts[to]
	if h == nil || !n.joined(from, h.addr) {
		return nil
	}
	return h
}

func (n *Network) delay() time.Duration {
	if n.Jitter <= 0 {
		return n.Latency
	}
	return n.Latency + rand.N(n.Jitter)
}

// WriteTo sends a packet, which arrives later, or does not.
func (h *Host) WriteTo(b []byte, addr string) (time.Time, error) {
	h.net.mu.Lock()
	h.net.counts.Packets++
	h.net.counts.PacketBytes += int64(len(b))
	to := h.net.find(h.addr, addr)
	h.net.mu.Unlock()
	now := time.Now()
	if to == nil || rand.Float64() < h.net.Loss {
		return now, nil
	}
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(h.addr)}
	time.AfterFunc(h.net.delay(), func() {
		p.Timestamp = time.Now()
		h.net.mu.Lock()
		defer h.net.mu.Unlock()
		if h.net.hosts[addr] == to {
			select {
			case to.packets <- p:
			default: // a full buffer, as with sockets
			}
		}
	})
	return now, nil
}

// PacketCh gives the packets that arrive.
func (h *Host) PacketCh() <-chan *memberlist.Packet { return h.packets }

// StreamCh gives the streams that others open.
func (h *Host) StreamCh() <-chan net.Conn { return h.streams }

// FinalAdvertiseAddr gives the host's address.
func (h *Host) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return h.addr.Addr().AsSlice(), int(h.addr.Port()), nil
}

// Shutdown takes the host off the network.
func (h *Host) Shutdown() error {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if k := h.addr.String(); h.net.hosts[k] == h {
		delete(h.net.hosts, k)
	}
	return nil
}

var errTimeout = errors.New("i/o timeout")

// DialTimeout opens a stream. Where no host answers it takes the whole timeout to find out.
func (h *Host) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	find := func() *Host {
		h.net.mu.Lock()
		defer h.net.mu.Unlock()
		return h.net.find(h.addr, addr)
	}
	if find() == nil {
		time.Sleep(timeout)
		return nil, fmt.Errorf("dial %s: %w", addr, errTimeout)
	}
	time.Sleep(2 * h.net.Latency)
	to := find()
	if to == nil {
		return nil, fmt.Errorf("dial %s: %w", addr, errTimeout)
	}
	near, far := net.Pipe()
	a, b := &conn{Conn: near, net: h.net, from: h.addr, to: to.addr}, &conn{Conn: far, net: h.net, from: to.addr, to: h.addr}
	h.net.mu.Lock()
	h.net.counts.Streams++
	h.net.conns[a], h.net.conns[b] = struct{}{}, struct{}{}
	h.net.mu.Unlock()
	select {
	case to.streams <- b:
		return a, nil
	default:
		_, _ = a.Close(), b.Close()
		return nil, fmt.Errorf("dial %s: connection refused", addr)
	}
}

// conn is one end of a stream.
type conn struct {
	net.Conn
	net      *Network
	from, to netip.AddrPort
	once     sync.Once
}

func (c *conn) Write(b []byte) (int, error) {
	c.once.Do(func() { time.Sleep(c.net.Latency) })
	c.net.mu.Lock()
	c.net.counts.StreamBytes += int64(len(b))
	c.net.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *conn) Close() error {
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	return c.Conn.Close()
}
