package cases_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

// probe asks who answers at an address, and which source address is seen there.
type probe struct {
	Proto, From string
	// To is NAME:PORT: HOST and EXT for their addresses, LOCALHOST for 127.0.0.1 or ::1, or a container.
	To     string
	Family int // 4 or 6
}

// servedPorts are the ports that everybody answers on.
var servedPorts = []int{53, 80, 3868, 7000}

// serve makes everybody answer; the machine only where somebody asks, for its ports count as taken otherwise.
func (r *run) serve() error {
	if len(r.Probes) == 0 || r.mode != "normal" {
		return nil
	}
	for _, n := range append(r.machine.all(), r.machine.ext) {
		for _, port := range servedPorts {
			for _, network := range []string{"tcp", "udp"} {
				if _, err := n.Echo(network, fmt.Sprintf("[::]:%d", port)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// probe makes all probes at once.
func (r *run) probe() {
	lines := make([]string, len(r.Probes))
	var wg sync.WaitGroup
	for i, p := range r.Probes {
		wg.Go(func() { lines[i] = r.ask(p) })
	}
	wg.Wait()
	r.lines = append(r.lines, lines...)
}

// ask asks again while the answer is another one than will have to come: with the reference, IPv6 works seconds after
// ADD only, and a busy machine may need longer than a probe waits.
func (r *run) ask(p probe) (line string) {
	what := fmt.Sprintf("%s%d %s to %s: ", p.Proto, p.Family, p.From, p.To)
	to, ok := r.address(p)
	if !ok {
		return what + "has no address"
	}
	for range 4 {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		a, err := r.machine.named(p.From).Ask(ctx, p.Proto, to, "who")
		cancel()
		line = what + r.answer(a, err)
		if r.want == nil && err == nil || r.want != nil && r.want.more(line) {
			return line
		}
	}
	return line
}

// answer says what came of asking.
func (r *run) answer(a testkit.Answer, err error) string {
	var timeout net.Error
	switch {
	case err == nil:
		return fmt.Sprintf("%s answers, source %s", a.Server, r.owner(a.Source.Addr()))
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "unreachable"
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return "no answer"
	}
	return "no answer: " + err.Error()
}

func (r *run) address(p probe) (netip.AddrPort, bool) {
	name, digits, _ := strings.Cut(p.To, ":")
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	v4 := p.Family == 4
	of := map[bool]int{true: 0, false: 1}[v4]
	var addr netip.Addr
	switch name {
	case "HOST":
		addr = hostAddrs[of].Addr()
	case "EXT":
		addr = extAddrs[of].Addr()
	case "LOCALHOST":
		addr = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}[of]
	default:
		addr, _ = netip.ParseAddr(r.addr(name, v4))
	}
	return netip.AddrPortFrom(addr, uint16(port)), addr.IsValid()
}

// owner names whose an address is.
func (r *run) owner(a netip.Addr) string {
	for i := range hostAddrs {
		switch a {
		case hostAddrs[i].Addr():
			return "HOST"
		case extAddrs[i].Addr():
			return "EXT"
		}
	}
	for _, name := range r.machine.names {
		if s := a.String(); r.addr(name, true) == s || r.addr(name, false) == s {
			return name
		}
	}
	return a.String()
}
