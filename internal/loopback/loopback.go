// Package loopback carries what programs of the machine send to published ports at an address where the kernel can't
// redirect it to the container: [::1] while bridge netfilter is on for IPv6. It is a plain proxy for TCP and UDP, in
// this process, and meant for that gap only: what can be redirected is carried by the kernel, at its speed and with
// the client's own address.
//
//	program ── [::1]:8080 ──► Proxy ── from the machine's address in the network ──► container:80
//
// It decides nothing: which ports are served, and whether any, is told to it.
package loopback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// Listener is one port to serve.
type Listener struct {
	// Protocol is "tcp" or "udp".
	Protocol string
	// Listen is the address and port of the machine, both of them set: an answer by UDP has to come from the address
	// that was asked.
	Listen netip.AddrPort
	// Target is the container's address and port.
	Target netip.AddrPort
}

func (l Listener) id() id { return id{l.Protocol, l.Listen} }

// validate says what is wrong with a Listener.
func (l Listener) validate() error {
	switch {
	case l.Protocol != "tcp" && l.Protocol != "udp":
		return fmt.Errorf("listener %q: protocol %q: want \"tcp\" or \"udp\"", l.Listen, l.Protocol)
	case !l.Listen.IsValid() || l.Listen.Addr().IsUnspecified() || l.Listen.Port() == 0:
		return fmt.Errorf("listener %q: want an address and a port", l.Listen)
	case !l.Target.IsValid() || l.Target.Port() == 0:
		return fmt.Errorf("listener %q: target %q: want an address and a port", l.Listen, l.Target)
	}
	return nil
}

// id is what a socket can't share.
type id struct {
	protocol string
	at       netip.AddrPort
}

func (i id) String() string { return fmt.Sprintf("%s port %s", i.protocol, i.at) }

// Proxy serves the listeners of all keys. Make it with New. Its methods may be called from several goroutines.
type Proxy struct {
	log *slog.Logger
	wg  sync.WaitGroup
	// places bounds the TCP connections of all ports together.
	places chan struct{}

	mu    sync.Mutex
	ctx   context.Context // Run's, nil before it
	ended bool
	keys  map[string][]*port
	ports map[id]*port
}

// port is one open listener.
type port struct {
	id
	proxy  *Proxy
	target atomic.Pointer[netip.AddrPort]
	tcp    *net.TCPListener
	udp    *udpPort
	ctx    context.Context // ends when the port is closed
	cancel context.CancelFunc
}

// New makes a Proxy; it starts nothing. log may be nil.
func New(log *slog.Logger) *Proxy {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Proxy{log: log, places: make(chan struct{}, maxConns), keys: map[string][]*port{}, ports: map[id]*port{}}
}

// Set makes the listeners those of key, in place of what they were before. What stays the same goes on undisturbed; a
// new target holds for new connections. The ports are taken when Set returns, and served while Run runs. If one can't
// be had, nothing has changed; the error of one that is taken, by another key or another program, is kernel.ErrInUse.
func (p *Proxy) Set(key string, want []Listener) error {
	for i, l := range want {
		if err := l.validate(); err != nil {
			return err
		}
		if slices.ContainsFunc(want[:i], func(m Listener) bool { return m.id() == l.id() }) {
			return fmt.Errorf("%s is asked for twice", l.id())
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return errors.New("loopback proxy has ended")
	}
	old := p.keys[key]
	var all, opened []*port
	for _, l := range want {
		if i := slices.IndexFunc(old, func(o *port) bool { return o.id == l.id() }); i >= 0 {
			all = append(all, old[i])
			continue
		}
		o, err := p.openLocked(l)
		if err != nil {
			for _, o := range opened {
				o.close()
			}
			return err
		}
		all, opened = append(all, o), append(opened, o)
	}
	for i, o := range all {
		o.aim(want[i].Target)
	}
	for _, o := range old {
		if !slices.Contains(all, o) {
			p.closeLocked(o)
		}
	}
	for _, o := range opened {
		p.ports[o.id] = o
		if p.ctx != nil {
			p.startLocked(o)
		}
	}
	if p.keys[key] = all; len(all) == 0 {
		delete(p.keys, key)
	}
	return nil
}

// Drop closes the listeners of key and the connections through them. There need not be any.
func (p *Proxy) Drop(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.keys[key] {
		p.closeLocked(o)
	}
	delete(p.keys, key)
}

// Run serves until ctx ends; then all ports are closed for good, and everything that was started has ended. It may be
// called once.
func (p *Proxy) Run(ctx context.Context) error {
	p.mu.Lock()
	if p.ctx != nil {
		p.mu.Unlock()
		return errors.New("loopback proxy runs already")
	}
	p.ctx = ctx
	for _, o := range p.ports {
		p.startLocked(o)
	}
	p.mu.Unlock()
	<-ctx.Done()
	p.mu.Lock()
	p.ended = true
	for _, o := range p.ports {
		p.closeLocked(o)
	}
	clear(p.keys)
	p.mu.Unlock()
	p.wg.Wait()
	return nil
}

// openLocked opens a port without serving it.
func (p *Proxy) openLocked(l Listener) (*port, error) {
	o := &port{id: l.id(), proxy: p}
	if p.ports[o.id] != nil {
		return nil, fmt.Errorf("%s: %w", o.id, kernel.ErrInUse)
	}
	lc := net.ListenConfig{Control: shareWithHold}
	lc.SetMultipathTCP(false) // splice(2) does not work on it
	var err error
	if l.Protocol == "tcp" {
		var c net.Listener
		if c, err = lc.Listen(context.Background(), "tcp", l.Listen.String()); err == nil {
			o.tcp = c.(*net.TCPListener)
		}
	} else {
		var c net.PacketConn
		if c, err = lc.ListenPacket(context.Background(), "udp", l.Listen.String()); err == nil {
			o.udp = newUDPPort(c.(*net.UDPConn))
		}
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		err = kernel.ErrInUse
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.id, err)
	}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	return o, nil
}

// shareWithHold lets the port be opened although this process keeps it from others by a bound socket (kernel.Hold): both
// have SO_REUSEPORT, which the kernel grants among sockets of one user. A port that a program without the option has is
// refused as ever. Of two UDP sockets the one with the more exact address gets the packets; on the very same address
// the kernel would share them out, unless the holding socket is connected (to itself, say).
func shareWithHold(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}

func (p *Proxy) startLocked(o *port) {
	p.wg.Go(func() {
		if o.tcp != nil {
			o.serveTCP()
		} else {
			o.serveUDP()
		}
	})
}

func (p *Proxy) closeLocked(o *port) {
	delete(p.ports, o.id)
	o.close()
}

// aim changes the target. Connections that exist keep theirs.
func (o *port) aim(to netip.AddrPort) {
	if was := o.target.Swap(&to); o.udp != nil && was != nil && *was != to {
		o.udp.forget()
	}
}

// close gives the port back and ends what goes through it.
func (o *port) close() {
	o.cancel()
	if o.tcp != nil {
		_ = o.tcp.Close()
	} else {
		o.udp.close()
	}
}
