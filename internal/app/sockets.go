package app

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/seine-net/seine/internal/dns"
	doors "github.com/seine-net/seine/internal/frontdoor/http"
	"github.com/seine-net/seine/internal/handover"
)

// The names of the sockets that the service manager keeps. Those of unix sockets have the file's identity behind them,
// after an @, so that one is told whose file is gone.
const (
	sockDNSUDP = "dns-udp"
	sockDNSTCP = "dns-tcp"
	sockAPI    = "api"
	sockDocker = "docker"
)

// sockets are the daemon's own that outlive it, where a service manager keeps them.
type sockets struct {
	manager *handover.Manager
	log     *slog.Logger
}

// keep gives the manager a socket; without it a restart is noticed, and nothing else.
func (s *sockets) keep(name string, c syscall.Conn) bool {
	if !s.manager.Keeps() {
		return false
	}
	if err := s.manager.Keep(name, c); err != nil {
		s.log.Warn("a socket does not outlive a restart", "err", err)
		return false
	}
	return true
}

// listen gives the unix socket at path: the one that was kept, or a new one.
func (s *sockets) listen(name, path string, mode fs.FileMode) (net.Listener, error) {
	if id, err := doors.Identity(path); err == nil {
		// Without an identity in its name it was opened by the manager, at the path that it is told (systemd.socket(5)).
		for _, known := range []string{name + "@" + id, name} {
			f := s.manager.Take(known)
			if f == nil {
				continue
			}
			l, err := doors.Adopt(path, f, id)
			f.Close()
			if err == nil {
				return l, nil
			}
			s.log.Warn("a socket that was kept is of no use", "err", err)
		}
	}
	l, err := doors.Listen(path, mode)
	if err != nil {
		return nil, err
	}
	if id, err := doors.Identity(path); err == nil {
		if c, ok := l.(syscall.Conn); ok && s.keep(name+"@"+id, c) {
			doors.Kept(l)
		}
	}
	return l, nil
}

// listenDNS gives the name server's sockets: those that were kept, if they are at the port that is asked for, or new ones.
// Where the port is taken, any other does: the rules lead to it.
func (s *sockets) listenDNS(port uint16) (*dns.Sockets, error) {
	udp, tcp := s.manager.Take(sockDNSUDP), s.manager.Take(sockDNSTCP)
	if on := adoptDNS(udp, tcp); on != nil {
		if port == 0 || on.Port() == port {
			return on, nil
		}
		_ = on.Close()
	}
	any := netip.IPv6Unspecified()
	on, err := dns.Open(netip.AddrPortFrom(any, port))
	if errors.Is(err, syscall.EADDRINUSE) && port != 0 {
		s.log.Warn("the name server's port is taken; another is used", "port", port)
		on, err = dns.Open(netip.AddrPortFrom(any, 0))
	}
	if err != nil {
		return nil, err
	}
	for name, c := range map[string]syscall.Conn{sockDNSUDP: on.UDP, sockDNSTCP: on.TCP} {
		if udp != nil || tcp != nil {
			if err := s.manager.Forget(name); err != nil {
				s.log.Warn("an old socket is kept", "err", err)
			}
		}
		s.keep(name, c)
	}
	return on, nil
}

// adoptDNS makes the pair of sockets of two files, which it closes; nil where they are none.
func adoptDNS(udp, tcp *os.File) *dns.Sockets {
	defer udp.Close() // of nil it is an error that means nothing
	defer tcp.Close()
	if udp == nil || tcp == nil {
		return nil
	}
	l, err := net.FileListener(tcp)
	if err != nil {
		return nil
	}
	p, err := net.FilePacketConn(udp)
	if err != nil {
		l.Close()
		return nil
	}
	on := &dns.Sockets{}
	on.TCP, _ = l.(*net.TCPListener)
	on.UDP, _ = p.(*net.UDPConn)
	if on.TCP == nil || on.UDP == nil || on.UDP.LocalAddr().(*net.UDPAddr).Port != int(on.Port()) {
		l.Close()
		p.Close()
		return nil
	}
	return on
}

// ready tells the manager that questions are answered.
func (s *sockets) ready() {
	err := errors.Join(s.manager.Discard(), s.manager.Tell("READY=1"))
	if err != nil {
		s.log.Warn("the service manager can't be told", "err", err)
	}
}

// Hold runs the daemon with the arguments of this program as a program of its own that is started again when it is killed,
// and keeps its sockets meanwhile: what systemd does for the unit seined.service. It returns when the daemon has ended by
// its own will, or with ctx.
func Hold(ctx context.Context, o Options) error {
	log, err := logger(o.LogLevel)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return handover.Hold(ctx, log, self, os.Args[1:]...)
}

// Held reports whether Hold runs already and started this program.
func Held() bool { return handover.Held() }
