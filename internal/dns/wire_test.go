package dns

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/seine-net/seine/internal/testkit"
)

// TestServerAnswersFromTheAddressAsked has a machine with several addresses of each family on one interface, as a
// bridge with several subnets has. The asker's socket takes answers from the address that it asked only.
func TestServerAnswersFromTheAddressAsked(t *testing.T) {
	box := testkit.NewSandbox(t)
	extra := []netip.Prefix{netip.MustParsePrefix("192.0.2.50/24"), netip.MustParsePrefix("192.0.2.51/24")}
	if box.Machine.V6.IsValid() {
		extra = append(extra, netip.MustParsePrefix("2001:db8::50/64"), netip.MustParsePrefix("2001:db8::51/64"))
	}
	at := box.Machine.Addrs()
	for _, p := range extra {
		if err := box.Machine.AddAddr(testkit.Interface, p); err != nil {
			t.Fatal(err)
		}
		at = append(at, p.Addr())
	}
	var socks *Sockets
	if err := box.Machine.Do(func() (err error) { socks, err = Open(netip.AddrPort{}); return err }); err != nil {
		t.Fatal(err)
	}
	z := NewTable()
	z.Set("a", Record{Names: []string{"web"}, Network: "net", Addrs: box.Outside.Addrs()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(Config{Zone: z, On: socks}).Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for _, addr := range at {
		for _, network := range []string{"udp", "tcp"} {
			c, err := box.Outside.DialWith(ctx, net.Dialer{Timeout: 2 * time.Second}, network, netip.AddrPortFrom(addr, socks.Port()).String())
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			x := &miekg.Conn{Conn: c}
			err = x.WriteMsg(new(miekg.Msg).SetQuestion("web.", miekg.TypeA))
			if err != nil {
				t.Fatal(err)
			}
			if m, err := x.ReadMsg(); err != nil || rrs(m) != box.Outside.V4.String() {
				t.Errorf("%s %s: %v %v", network, addr, m, err)
			}
			_ = c.Close()
		}
	}
}
