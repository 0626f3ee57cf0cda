package linux

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// held is a port that this process keeps from others.
type held struct {
	*kernel.Hold
	fd int // -1 where the kernel has no such protocol, so that nobody else can have the port either
}

func (s *session) applyHold(sp *space, c kernel.Change) error {
	if sp.path != "" {
		return errNoMessage // kernel.Hold has no NS
	}
	key := c.Key()
	s.k.mu.Lock()
	old := s.k.holds[key]
	s.k.mu.Unlock()
	if c.Op == kernel.Delete {
		if old == nil {
			return nil
		}
		s.k.mu.Lock()
		delete(s.k.holds, key)
		s.k.mu.Unlock()
		if old.fd >= 0 {
			return unix.Close(old.fd)
		}
		return nil
	}
	if old != nil {
		return nil
	}
	want := c.New.(*kernel.Hold)
	h := &held{Hold: want}
	err := sp.do(func() (err error) {
		h.fd, err = bindPort(want)
		if isErrno(err, unix.EADDRINUSE) {
			err = fmt.Errorf("port %d/%s is %w%s", want.Port, want.Protocol, kernel.ErrInUse, user(want))
		}
		return err
	})
	if err != nil {
		return err
	}
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.k.holds[key] = h
	return nil
}

func (s *session) listHolds(_ *space, want []kernel.Object, f *found) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	for _, o := range want {
		if h := s.k.holds[o.Key()]; h != nil {
			f.add(h.Hold)
		}
	}
	return nil
}

func (s *session) allHolds(f *found) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	for _, h := range s.k.holds {
		f.add(h.Hold)
	}
	return nil
}

// bindPort binds a port in the namespace of the calling thread. Without SO_REUSEADDR nobody else can bind it then; it
// does not listen, so a connection to it is refused as if it were free.
func bindPort(h *kernel.Hold) (int, error) {
	if !h.Addr.IsValid() || h.Port == 0 {
		return -1, fmt.Errorf("no address or port to hold")
	}
	typ, proto := unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch h.Protocol {
	case "tcp":
	case "udp":
		typ, proto = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case "sctp":
		proto = unix.IPPROTO_SCTP
	default:
		return -1, fmt.Errorf("protocol %q has no ports: %w", h.Protocol, kernel.ErrUnsupported)
	}
	fd, err := unix.Socket(int(family(h.Addr)), typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		if isErrno(err, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT) && h.Protocol == "sctp" {
			return -1, nil
		}
		return -1, fmt.Errorf("socket: %w", err)
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(h.Port), Addr: [4]byte(h.Addr.AsSlice())}
	if h.Addr.Is6() {
		sa = &unix.SockaddrInet6{Port: int(h.Port), Addr: h.Addr.As16()}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("only IPv6: %w", err)
		}
		// Where the kernel can't redirect [::1], this process serves the port there (internal/loopback): its sockets
		// may share the port, those of programs without the option may not.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("share the port with itself: %w", err)
		}
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		if err == unix.EADDRNOTAVAIL {
			err = fmt.Errorf("the machine has no address %s: %w", h.Addr, kernel.ErrAbsent)
		}
		return -1, err
	}
	if h.Protocol == "udp" && h.Addr.IsLoopback() {
		// The kernel spreads packets over sockets that share an address; one that is connected, to itself, gets none.
		if err := unix.Connect(fd, sa); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// userTime bounds the search for the program that has a port: it is only a help for people.
var userTime = 200 * time.Millisecond

// user names the program that has a port, as " (nginx, process 12)"; "" where that is not found soon. It runs on a
// thread in the namespace.
func user(h *kernel.Hold) string {
	stop := time.Now().Add(userTime)
	inodes := map[string]bool{}
	for _, suffix := range []string{"", "6"} {
		portInodes("/proc/thread-self/net/"+h.Protocol+suffix, h, inodes)
	}
	if len(inodes) == 0 {
		return ""
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		if time.Now().After(stop) {
			return ""
		}
		dir := filepath.Join("/proc", p.Name())
		fds, err := os.ReadDir(dir + "/fd")
		if errors.Is(err, os.ErrNotExist) || err != nil {
			continue
		}
		for _, fd := range fds {
			if l, err := os.Readlink(dir + "/fd/" + fd.Name()); err == nil && inodes[l] {
				name, _ := os.ReadFile(dir + "/comm")
				return fmt.Sprintf(" (%s, process %s)", strings.TrimSpace(string(name)), p.Name())
			}
		}
	}
	return ""
}

// portInodes adds the sockets that are bound to a port, as the links in /proc/PID/fd name them.
func portInodes(path string, h *kernel.Hold, out map[string]bool) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	wantPort := fmt.Sprintf(":%04X", h.Port)
	for sc := bufio.NewScanner(f); sc.Scan(); {
		c := strings.Fields(sc.Text())
		if len(c) < 10 || !strings.HasSuffix(c[1], wantPort) || c[9] == "0" {
			continue
		}
		if h.Protocol == "tcp" && c[3] != "0A" && c[3] != "07" { // listening, or bound only
			continue
		}
		out["socket:["+c[9]+"]"] = true
	}
}
