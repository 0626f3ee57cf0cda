package linux

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// TestFlushIsExact: of entries that differ in port, address or protocol only those that were meant go, whether the
// kernel finds them by itself or by a dump.
func TestFlushIsExact(t *testing.T) {
	for _, to := range []string{"127.0.0.2", "fd00:9::2"} {
		for _, filtered := range []bool{true, false} {
			for _, a := range []netip.Addr{addr(to), {}} {
				t.Run(fmt.Sprintf("%s/filtered=%v/address=%v", to, filtered, a.IsValid()), func(t *testing.T) {
					flushOne(t, addr(to), kernel.Flow{Protocol: "udp", Addr: a, Port: 5353}, filtered)
				})
			}
		}
	}
}

func flushOne(t *testing.T, to netip.Addr, flow kernel.Flow, filtered bool) {
	k, ns := newKernel(t)
	run(t, ns, "ip", "link", "set", "lo", "up")
	for _, a := range []string{"fd00:9::2", "fd00:9::3"} {
		run(t, ns, "ip", "addr", "add", a+"/128", "dev", "lo", "nodad")
	}
	converge(t, k, []kernel.Object{testTable}) // entries are made only where something looks at them
	var want []string
	for _, proto := range []string{"udp", "tcp"} {
		for _, a := range []netip.Addr{to, to.Next()} {
			for _, port := range []uint16{5353, 5454} {
				at := netip.AddrPortFrom(a, port)
				within(t, ns, func() error { return talk(t, proto, at.String()) })
				if proto != "udp" || port != flow.Port || flow.Addr.IsValid() && flow.Addr != a {
					want = append(want, proto+" "+at.String())
				}
			}
		}
	}
	s := k.session()
	defer s.close()
	sp, err := s.space("")
	if err != nil {
		t.Fatal(err)
	}
	so, err := sp.nft()
	if err != nil {
		t.Fatal(err)
	}
	if filtered {
		if !dropFiltered(so, family(to), []kernel.Flow{flow}) {
			if flow.Addr.Is6() {
				return // left to the dump
			}
			t.Skip("skip: needs deletion of conntrack entries by a filter (kernel 6.9)")
		}
	} else if err := dropDumped(so, family(to), []kernel.Flow{flow}); err != nil {
		t.Error(err)
	}
	rs, err := so.dump(newMsg(unix.NFNL_SUBSYS_CTNETLINK<<8|ctGet, 0, []byte{family(to), 0, 0, 0}))
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, r := range rs {
		have = append(have, original(attrOf(r.rest(nfgenLen), ctaTupleOrig)))
	}
	slices.Sort(want)
	slices.Sort(have)
	have = slices.Compact(have) // a flow that had to be begun twice
	if !slices.Equal(have, want) {
		t.Errorf("left are %v, want %v", have, want)
	}
}

// original gives protocol and destination of an entry's first direction.
func original(tuple []byte) string {
	name := "?"
	if num := attrOf(attrOf(tuple, ctaTupleProto), ctaProtoNum); len(num) == 1 {
		name = map[uint8]string{unix.IPPROTO_UDP: "udp", unix.IPPROTO_TCP: "tcp"}[num[0]]
	}
	return name + " " + destination(tuple).String()
}

// talk has an entry made for a flow to an address of the machine itself: it goes on until something has arrived, as an
// IPv6 address is reachable only a moment after it was added.
func talk(t *testing.T, proto, at string) error {
	arrived := make(chan error, 1)
	if proto == "udp" {
		server, err := net.ListenPacket(proto, at)
		if err != nil {
			return err
		}
		t.Cleanup(func() { server.Close() })
		go func() {
			_, _, err := server.ReadFrom(make([]byte, 1))
			arrived <- err
		}()
	} else {
		server, err := net.Listen(proto, at)
		if err != nil {
			return err
		}
		t.Cleanup(func() { server.Close() })
		go func() {
			c, err := server.Accept()
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
			arrived <- err
		}()
	}
	for end := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial(proto, at)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			_, err = c.Write([]byte("x"))
		}
		if err != nil && time.Now().After(end) {
			return err
		}
		select {
		case err := <-arrived:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}
