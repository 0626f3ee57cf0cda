package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	miekg "github.com/miekg/dns"
)

// Bounds of what clients can make the server do at once, in all and each.
const (
	maxForwards     = 1024
	maxForwardsEach = 128
	maxConns        = 512
	maxConnsEach    = 32
	// tcpIdle ends a connection on which nothing is asked, tcpMessage one on which a message comes or leaves too
	// slowly (RFC 7766 section 6.2.3).
	tcpIdle    = 10 * time.Second
	tcpMessage = 5 * time.Second
)

// Sockets is the pair of sockets that a Server answers on: UDP and TCP on one port. They may also be ones that
// another process opened and handed over.
type Sockets struct {
	UDP *net.UDPConn
	TCP *net.TCPListener
}

// Open opens Sockets. An unspecified address stands for all addresses of both families (of IPv4 alone where the
// kernel has no IPv6), port 0 for any port that is free for both. The error of a port that is taken is
// syscall.EADDRINUSE.
func Open(at netip.AddrPort) (*Sockets, error) {
	host := at.Addr().String()
	if !at.Addr().IsValid() || at.Addr().IsUnspecified() {
		host = "" // package net picks [::] with IPV6_V6ONLY off, or 0.0.0.0
	}
	port := at.Port()
	for tries := 0; ; tries++ {
		s, err := open(net.JoinHostPort(host, fmt.Sprint(port)))
		if err == nil || port != 0 || tries == 10 || !errors.Is(err, syscall.EADDRINUSE) {
			return s, err
		}
	}
}

func open(addr string) (*Sockets, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("name server on %q: %w", addr, err)
	}
	s := &Sockets{TCP: l.(*net.TCPListener)}
	host, _, _ := net.SplitHostPort(addr)
	pc, err := net.ListenPacket("udp", net.JoinHostPort(host, fmt.Sprint(s.Port())))
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("name server on %q: %w", addr, err)
	}
	s.UDP = pc.(*net.UDPConn)
	roomy(s.UDP)
	return s, nil
}

// readBuffer is room for what is asked within a second or two while nobody reads, in bytes; a question takes about 1 KiB.
const readBuffer = 4 << 20

// roomy makes a socket's queue long: at once for who may go beyond the machine's limit (net.core.rmem_max), else as far as
// the kernel allows.
func roomy(c *net.UDPConn) {
	raw, err := c.SyscallConn()
	var forced error
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			forced = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, readBuffer)
		})
	}
	if err != nil || forced != nil {
		_ = c.SetReadBuffer(readBuffer)
	}
}

// Port is the port of both sockets.
func (s *Sockets) Port() uint16 { return uint16(s.TCP.Addr().(*net.TCPAddr).Port) }

// Close closes both; not needed where a Server serves on them.
func (s *Sockets) Close() error { return errors.Join(s.UDP.Close(), s.TCP.Close()) }

// tellDestination makes the kernel say with every packet which of our addresses it was sent to. On a socket of both
// families each option speaks for its own.
func tellDestination(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var err4, err6 error
	err = raw.Control(func(fd uintptr) {
		err4 = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1)
		err6 = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_RECVPKTINFO, 1)
	})
	if err == nil && err4 != nil && err6 != nil {
		err = err4
	}
	return err
}

// Stats counts what a Server did since it was made.
type Stats struct {
	// Queries is all that was asked, Local what was answered from the zone, Kept from the cache, Forwarded what
	// upstreams were asked for.
	Queries, Local, Kept, Forwarded uint64
	// Failed is what ended in SERVFAIL, Full the part of it that was turned away because too much was under way, or
	// the connections that were.
	Failed, Full uint64
	// Bad is what could not be read.
	Bad uint64
}

// Config is what a Server is made of.
type Config struct {
	Zone Zone
	// On are the sockets to answer on.
	On *Sockets
	// Forwarder is asked for what the zone does not have; nil answers that with SERVFAIL.
	Forwarder *Forwarder
	// Log gets what an operator should know; nil for nowhere.
	Log *slog.Logger
}

// Server answers containers. Make it with New or Listen.
type Server struct {
	zone     Zone
	on       *Sockets
	forward  *Forwarder
	log      *slog.Logger
	turn     atomic.Uint32
	forwards gate
	conns    gate

	queries, answered, kept, forwarded, failed, full, bad atomic.Uint64
}

// New makes a Server; it starts nothing.
func New(c Config) *Server {
	s := &Server{zone: c.Zone, on: c.On, forward: c.Forwarder, log: c.Log}
	if s.forward == nil {
		s.forward = NewForwarder(ForwarderConfig{ResolvConf: os.DevNull})
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.forwards = gate{most: maxForwards, each: maxForwardsEach}
	s.conns = gate{most: maxConns, each: maxConnsEach}
	return s
}

// Listen makes a Server on a port of all of the machine's addresses (0 for any port) that asks the machine's own
// resolvers. It starts nothing, but the port is taken.
func Listen(port uint16, zone Zone, log *slog.Logger) (*Server, error) {
	on, err := Open(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		return nil, err
	}
	return New(Config{Zone: zone, On: on, Forwarder: NewForwarder(ForwarderConfig{Log: log}), Log: log}), nil
}

// Port is the port that the server answers on.
func (s *Server) Port() uint16 { return s.on.Port() }

// Stats gives the counters.
func (s *Server) Stats() Stats {
	return Stats{Queries: s.queries.Load(), Local: s.answered.Load(), Kept: s.kept.Load(), Forwarded: s.forwarded.Load(),
		Failed: s.failed.Load(), Full: s.full.Load(), Bad: s.bad.Load()}
}

// Serve answers on the server's sockets until ctx ends, or a socket fails for good, and closes them. It returns when
// everything that it started has ended; nil if ctx was the reason.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	on := s.on
	stop := context.AfterFunc(ctx, func() { _ = on.Close() })
	defer stop()
	if err := tellDestination(on.UDP); err != nil {
		return errors.Join(fmt.Errorf("name server: packet info: %w", err), on.Close())
	}
	var wg sync.WaitGroup
	var errs [2]error
	wg.Go(func() { errs[0] = s.serveUDP(ctx, on.UDP, &wg); cancel() })
	wg.Go(func() { errs[1] = s.serveTCP(ctx, on.TCP, &wg); cancel() })
	wg.Wait()
	return errors.Join(errs[:]...)
}

// serveUDP answers at once what is known here; a goroutine is made only for what has to be waited for.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn, wg *sync.WaitGroup) error {
	buf := make([]byte, maxPayload)
	for bad := 0; ; {
		n, session, err := miekg.ReadFromSessionUDP(conn, buf)
		if err != nil {
			if bad++; ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if bad == 100 {
				return fmt.Errorf("name server: udp: %w", err)
			}
			pause(ctx, 10*time.Millisecond)
			continue
		}
		bad = 0
		from := session.RemoteAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		send := func(b []byte) {
			if b == nil {
				return
			}
			if _, err := miekg.WriteToSessionUDP(conn, b, session); err != nil && ctx.Err() == nil {
				s.log.Debug("answer not sent", "to", from, "err", err)
			}
		}
		reply, later := s.handle(from, false, buf[:n])
		if later == nil {
			send(reply)
			continue
		}
		wg.Go(func() { send(later(ctx)) })
	}
}

func (s *Server) serveTCP(ctx context.Context, l *net.TCPListener, wg *sync.WaitGroup) error {
	for bad := 0; ; {
		conn, err := l.AcceptTCP()
		if err != nil {
			if bad++; ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if bad == 100 {
				return fmt.Errorf("name server: tcp: %w", err)
			}
			pause(ctx, 10*time.Millisecond) // out of file descriptors, most likely: it passes
			continue
		}
		bad = 0
		from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !s.conns.enter(from) {
			s.full.Add(1)
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			defer s.conns.leave(from)
			s.serveConn(ctx, conn, from)
		})
	}
}

// serveConn answers the questions on one connection in their order, until the client is silent for tcpIdle.
func (s *Server) serveConn(ctx context.Context, conn *net.TCPConn, from netip.Addr) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var size [2]byte
	for {
		_ = conn.SetReadDeadline(time.Now().Add(tcpIdle))
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		packet := make([]byte, min(binary.BigEndian.Uint16(size[:]), maxPayload))
		if binary.BigEndian.Uint16(size[:]) > maxPayload {
			s.bad.Add(1)
			return // no question is that long
		}
		_ = conn.SetDeadline(time.Now().Add(tcpMessage))
		if _, err := io.ReadFull(conn, packet); err != nil {
			return
		}
		reply, later := s.handle(from, true, packet)
		if later != nil {
			reply = later(ctx)
		}
		if reply == nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(tcpMessage))
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// handle gives the reply to a packet, nil for none; or, where others have to be asked, a function that blocks until
// there is one. The function must be called.
func (s *Server) handle(from netip.Addr, tcp bool, packet []byte) (reply []byte, later func(context.Context) []byte) {
	r, bad := parse(from, tcp, packet)
	if r == nil {
		s.bad.Add(1)
		if bad != nil {
			reply, _ = bad.Pack()
		}
		return reply, nil
	}
	s.queries.Add(1)
	if name := r.name(); strings.HasSuffix(name, "."+loopDomain) {
		s.forward.sawProbe(name)
	}
	if m, note := local(s.zone, r, s.turn.Add(1)); m != nil {
		s.answered.Add(1)
		return r.reply(m, note), nil
	}
	q := r.question()
	if a, ok := s.forward.kept(q); ok {
		s.kept.Add(1)
		return s.forwardedReply(r, a), nil
	}
	if !s.forwards.enter(from) {
		s.full.Add(1)
		return s.forwardedReply(r, answer{nil, ede(miekg.ExtendedErrorCodeNotReady, "too many questions are under way")}), nil
	}
	s.forwarded.Add(1)
	return nil, func(ctx context.Context) []byte {
		defer s.forwards.leave(from)
		return s.forwardedReply(r, s.forward.resolve(ctx, q))
	}
}

func (s *Server) forwardedReply(r *request, a answer) []byte {
	m := a.msg
	if m == nil {
		s.failed.Add(1)
		m = &miekg.Msg{MsgHdr: miekg.MsgHdr{Rcode: miekg.RcodeServerFailure}}
	}
	m.Authoritative = false
	return r.reply(m, a.note)
}

// pause waits, but not beyond ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
