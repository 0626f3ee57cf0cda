package loopback

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// udpIdle ends a flow on which nothing came or went.
	udpIdle = 60 * time.Second
	// maxFlows bounds the flows of one port; the one that was silent for longest makes room.
	maxFlows = 1024
	maxUDP   = 65535
)

// udpPort is a UDP socket with a flow for each client: a socket of its own to the target, so that answers find back.
type udpPort struct {
	conn  *net.UDPConn
	idle  time.Duration
	most  int
	mu    sync.Mutex
	shut  bool
	flows map[netip.AddrPort]*flow
}

type flow struct {
	client netip.AddrPort
	conn   *net.UDPConn
	used   atomic.Int64 // Unix nanoseconds of the last packet of either direction
}

func newUDPPort(c *net.UDPConn) *udpPort {
	return &udpPort{conn: c, idle: udpIdle, most: maxFlows, flows: map[netip.AddrPort]*flow{}}
}

// buffers are shared: a flow that waits for a packet has none.
var buffers = sync.Pool{New: func() any { b := make([]byte, maxUDP); return &b }}

func (o *port) serveUDP() {
	u := o.udp
	buf := make([]byte, maxUDP)
	for {
		n, from, err := u.conn.ReadFromUDPAddrPort(buf)
		if o.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			pause(o.ctx, 10*time.Millisecond)
			continue
		}
		f := u.flow(from, o)
		if f == nil {
			continue
		}
		f.used.Store(time.Now().UnixNano())
		// A packet that can't be sent is lost, as it would be on any wire. ECONNREFUSED says that an earlier one was
		// not wanted, and keeps this one from going out; the second try goes out.
		if _, err := f.conn.Write(buf[:n]); errors.Is(err, syscall.ECONNREFUSED) {
			_, _ = f.conn.Write(buf[:n])
		}
	}
}

// flow gives the client's flow, a new one if need be; nil if there can be none.
func (u *udpPort) flow(client netip.AddrPort, o *port) *flow {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.flows[client]; f != nil || u.shut {
		return f
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(*o.target.Load()))
	if err != nil {
		return nil
	}
	if len(u.flows) >= u.most {
		u.evictLocked()
	}
	f := &flow{client: client, conn: conn}
	f.used.Store(time.Now().UnixNano())
	u.flows[client] = f
	o.proxy.wg.Go(func() { u.answer(f) })
	return f
}

// answer carries packets from the target back to the client until the flow ends.
func (u *udpPort) answer(f *flow) {
	defer u.remove(f)
	raw, err := f.conn.SyscallConn()
	if err != nil {
		return
	}
	for {
		until := time.Unix(0, f.used.Load()).Add(u.idle)
		if !time.Now().Before(until) {
			return
		}
		_ = f.conn.SetReadDeadline(until)
		var failed error
		// The buffer is taken only for the read itself, which comes when there is something to read.
		err := raw.Read(func(fd uintptr) bool {
			b := buffers.Get().(*[]byte)
			defer buffers.Put(b)
			var n int
			n, _, failed = syscall.Recvfrom(int(fd), *b, syscall.MSG_DONTWAIT)
			switch {
			case failed == syscall.EAGAIN:
				return false
			case failed == nil:
				f.used.Store(time.Now().UnixNano())
				_, _ = u.conn.WriteToUDPAddrPort((*b)[:n], f.client)
			}
			return true
		})
		var ne net.Error
		switch {
		case errors.As(err, &ne) && ne.Timeout():
		case err != nil:
			return
		case failed == syscall.ECONNREFUSED, failed == syscall.EINTR: // nobody listens there now; somebody may soon
		case failed != nil:
			return
		}
	}
}

func (u *udpPort) remove(f *flow) {
	_ = f.conn.Close()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.flows[f.client] == f {
		delete(u.flows, f.client)
	}
}

func (u *udpPort) evictLocked() {
	var oldest *flow
	for _, f := range u.flows {
		if oldest == nil || f.used.Load() < oldest.used.Load() {
			oldest = f
		}
	}
	if oldest != nil {
		delete(u.flows, oldest.client)
		_ = oldest.conn.Close()
	}
}

// forget ends all flows; the next packet of each client starts a new one.
func (u *udpPort) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range u.flows {
		_ = f.conn.Close()
	}
	clear(u.flows)
}

func (u *udpPort) close() {
	u.mu.Lock()
	u.shut = true
	u.mu.Unlock()
	u.forget()
	_ = u.conn.Close()
}
