package dhcp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/ipam/dhcprpc"
	"github.com/seine-net/seine/internal/testkit"
)

var options = []string{"--dhcp-option=option:router," + server4, "--dhcp-option=option:dns-server,10.66.0.1,10.66.0.2",
	"--dhcp-option=option:domain-name,a.example", "--dhcp-option=option:domain-search,b.example,c.b.example",
	"--dhcp-option=option:mtu,1400", "--dhcp-option=option:ntp-server,10.66.0.9",
	"--dhcp-option=option:classless-static-route,10.200.0.0/16,10.66.0.3,0.0.0.0/0,10.66.0.1"}

// A lease is taken, told again, checked, given back; and the server was asked what the reference asks.
func TestLease(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dnsmasq")
	r.dnsmasq(120, append([]string{"--dhcp-authoritative"}, options...)...)
	r.run()
	res := r.take(conf4, "c", r.c)
	if len(res.IPs) != 1 || !netip.MustParsePrefix("10.66.0.0/24").Contains(res.IPs[0].Address.Addr()) || res.IPs[0].Address.Bits() != 24 ||
		res.IPs[0].Gateway != netip.MustParseAddr(server4) {
		t.Errorf("addresses %+v", res.IPs)
	}
	if want := `[{"Dst":"0.0.0.0/0","GW":"10.66.0.1","MTU":0,"AdvMSS":0,"Priority":0,"Table":null,"Scope":null}]`; text(res.Routes) != want {
		t.Errorf("routes %s, want %s", text(res.Routes), want)
	}
	if want := `{"Nameservers":["10.66.0.1","10.66.0.2"],"Search":["b.example","c.b.example"],"Options":null,"Domain":"a.example"}`; text(res.DNS) != want {
		t.Errorf("dns %s, want %s", text(res.DNS), want)
	}
	for _, method := range []string{dhcprpc.Allocate, dhcprpc.Check} {
		if again := r.must(method, conf4, "c", r.c); text(again) != text(res) {
			t.Errorf("%s: got %s, want %s", method, text(again), text(res))
		}
	}
	r.must(dhcprpc.Status, conf4, "c", r.c)
	log := r.heard()
	contains(r, "the server's log", log, "requested options: 3:router, 1:netmask, 6:dns-server, 15:domain-name", "119:domain-search")
	if n := strings.Count(log, "DHCPDISCOVER"); n != 1 {
		t.Errorf("%d DISCOVERs, want 1:\n%s", n, log)
	}
	if _, err := r.call(dhcprpc.Check, conf4, "d", r.c); err == nil || !strings.Contains(err.Error(), "no lease is held for d/net/eth0") {
		t.Errorf("CHECK of another: %v", err)
	}
	for range 2 {
		r.must(dhcprpc.Release, conf4, "c", nil)
	}
	r.eventually("RELEASE", func() bool {
		return strings.Contains(r.heard(), "DHCPRELEASE(br0) "+res.IPs[0].Address.Addr().String())
	})
	if n := len(r.svc.kept()) + len(r.store.m) + len(r.svc.slots); n != 0 {
		t.Errorf("left behind: %+v %v %v", r.svc.kept(), r.store.m, r.svc.slots)
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dnsmasq")
	r.dnsmasq(120, "--dhcp-authoritative", "--dhcp-option=option:T1,3", "--dhcp-option=option:T2,100")
	r.run()
	res := r.take(conf4, "c", r.c)
	r.eventually("two renewals", func() bool { return strings.Count(r.heard(), "DHCPACK") >= 3 })
	if log := r.heard(); strings.Count(log, "DHCPDISCOVER") != 1 {
		t.Errorf("renewed by DISCOVER:\n%s", log)
	}
	if got := r.must(dhcprpc.Check, conf4, "c", r.c); got.IPs[0] != res.IPs[0] {
		t.Errorf("after renewal %v, want %v", got.IPs, res.IPs)
	}
}

// A killed daemon's successor keeps the leases, renews them, and gives them back.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dnsmasq")
	r.dnsmasq(120, "--dhcp-authoritative", "--dhcp-option=option:T1,3", "--dhcp-option=option:T2,100")
	r.run()
	res := r.take(conf4, "c", r.c)
	other := r.container("other")
	gone := r.take(conf4, "other", other)
	r.end()
	r.end = nil
	other.Close()
	time.Sleep(3 * time.Second) // the lease's first renewal comes due while nobody is there
	r.run()
	if got := r.must(dhcprpc.Check, conf4, "c", r.c); got.IPs[0] != res.IPs[0] {
		t.Errorf("after the restart %v, want %v", got.IPs, res.IPs)
	}
	r.eventually("a renewal", func() bool { return strings.Count(r.heard(), "DHCPACK") >= 3 })
	r.eventually("forgetting the one that is gone", func() bool { return len(r.svc.kept()) == 1 })
	if _, err := r.call(dhcprpc.Check, conf4, "other", r.c); err == nil {
		t.Errorf("the lease %v of a container that is gone is kept", gone.IPs)
	}
	if log := r.heard(); strings.Count(log, "DHCPDISCOVER") != 2 {
		t.Errorf("taken up by DISCOVER:\n%s", log)
	}
	r.must(dhcprpc.Release, conf4, "c", r.c)
	r.eventually("RELEASE", func() bool {
		return strings.Contains(r.heard(), "DHCPRELEASE(br0) "+res.IPs[0].Address.Addr().String())
	})
}

// The server goes away and comes back, without memory: before the lease's end that is no matter.
func TestServerComesBack(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]string{"answers NAK": "--dhcp-authoritative", "keeps quiet": "--dhcp-option=option:T1,2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "dnsmasq")
			more := []string{more, "--dhcp-option=option:T1,2", "--dhcp-option=option:T2,4", "--leasefile-ro"}
			stop := r.dnsmasq(120, more...)
			r.run()
			res := r.take(conf4, "c", r.c)
			stop()
			r.eventually("a renewal that fails", func() bool { return strings.Contains(r.log.String(), "can't be extended yet") })
			before := strings.Count(r.heard(), "DHCPACK")
			r.dnsmasq(120, more...)
			r.eventually("a renewal", func() bool { return strings.Count(r.heard(), "DHCPACK") > before })
			r.eventually("the lease", func() bool {
				got, err := r.call(dhcprpc.Check, conf4, "c", r.c)
				return err == nil && got.IPs[0] == res.IPs[0]
			})
			if !r.up(r.c) {
				t.Error("the interface is down")
			}
		})
	}
}

// A lease that ends sets the interface down, and CHECK says why at once.
func TestExpiry(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dnsmasq")
	stop := r.dnsmasq(120)
	r.run()
	r.take(conf4, "c", r.c)
	stop()
	// dnsmasq gives no lease of less than two minutes.
	if err := r.svc.change(r.svc.slots["c/net/eth0"].held, func(l *lease) {
		b := *l.V4
		b.last(time.Now(), 6, 0, 0)
		l.V4 = &b
	}); err != nil {
		t.Fatal(err)
	}
	r.run()
	r.eventually("the end", func() bool { return !r.up(r.c) })
	_, err := r.call(dhcprpc.Check, conf4, "c", r.c)
	if err == nil || !strings.Contains(err.Error(), "was lost") || !strings.Contains(err.Error(), "expired") {
		t.Errorf("CHECK: %v", err)
	}
	if _, err := r.call(dhcprpc.Allocate, conf4, "c", r.c); err == nil {
		t.Error("ADD gives a lease that was lost")
	}
	r.run() // what was lost stays lost
	if _, err := r.call(dhcprpc.Check, conf4, "c", r.c); err == nil || !strings.Contains(err.Error(), "was lost") {
		t.Errorf("CHECK after a restart: %v", err)
	}
	r.must(dhcprpc.Release, conf4, "c", r.c)
	if len(r.store.m) != 0 {
		t.Errorf("left behind %v", r.store.m)
	}
}

// A namespace that ended is noticed; nothing of it is kept from ending.
func TestContainerEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dnsmasq")
	r.dnsmasq(120)
	r.run()
	other := r.container("other")
	path := other.Path()
	r.take(conf4, "other", other)
	other.Close()
	r.eventually("the interface's other end to vanish with the namespace", func() bool {
		_, err := r.server.Netlink().LinkByName("p-other")
		return err != nil
	})
	// An attachment of the same name in another namespace takes the place.
	if _, err := r.call(dhcprpc.Allocate, conf4, "other", r.c); err != nil {
		t.Errorf("%s is gone, but: %v", path, err)
	}
	if l := r.svc.kept(); len(l) != 1 {
		t.Errorf("%d leases, want 1", len(l))
	}
}

// No server: ADD fails in time; so it does when the caller hangs up, or DEL comes meanwhile.
func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.opts.ResendTimeout = 2 * time.Second
	r.run()
	began := time.Now()
	_, err := r.call(dhcprpc.Allocate, conf4, "c", r.c)
	if err == nil || !strings.Contains(err.Error(), errNoAnswer.Error()) || !strings.Contains(err.Error(), "eth0") || time.Since(began) > 5*time.Second {
		t.Errorf("ADD: %v after %s", err, time.Since(began))
	}
	r.opts.ResendTimeout = time.Minute
	r.run()
	failed := make(chan error, 1)
	go func() {
		_, err := r.call(dhcprpc.Allocate, conf4, "c", r.c)
		failed <- err
	}()
	r.eventually("the ADD", func() bool { return len(r.svc.slotNames()) > 0 })
	began = time.Now()
	r.must(dhcprpc.Release, conf4, "c", r.c)
	if err := <-failed; err == nil || !strings.Contains(err.Error(), errReleased.Error()) || time.Since(began) > 3*time.Second {
		t.Errorf("ADD with a DEL beside it: %v after %s", err, time.Since(began))
	}
	if _, err := r.call(dhcprpc.Allocate, conf4, "c", nil); err == nil {
		t.Error("ADD without a namespace succeeds")
	}
	other := testkit.Namespace(t, "bare")
	if _, err := r.call(dhcprpc.Allocate, conf4, "c", other); err == nil || !strings.Contains(err.Error(), errGone.Error()) {
		t.Errorf("ADD without an interface: %v", err)
	}
	if n := r.svc.slotNames(); len(n) != 0 {
		t.Errorf("left behind %v", n)
	}
}

func (s *Service) slotNames() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for k := range s.slots {
		out = append(out, k)
	}
	return out
}

func TestCollect(t *testing.T) {
	t.Parallel()
	r := newRig(t, "dnsmasq")
	r.dnsmasq(120)
	r.run()
	r.take(conf4, "a", r.c)
	b := r.container("b")
	r.take(conf4, "b", b)
	r.take(strings.Replace(conf4, `"net"`, `"two"`, 1), "b", b)
	for conf, want := range map[string]int{
		conf4: 3,
		strings.Replace(conf4, "{", `{"cni.dev/valid-attachments": [{"containerID": 1}],`, 1):                     3,
		strings.Replace(conf4, "{", `{"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}],`, 1): 2,
	} {
		_, err := r.call(dhcprpc.Collect, conf, "", nil)
		if got := len(r.svc.kept()); (err == nil) != (want == 2) || want == 2 && got != want {
			t.Errorf("GC %s: %v, %d leases left, want %d", conf, err, got, want)
		}
	}
	if _, err := r.call(dhcprpc.Check, conf4, "b", b); err != nil {
		t.Error(err)
	}
	if _, err := r.call(dhcprpc.Check, conf4, "a", r.c); err == nil || errors.Is(err, dhcprpc.ErrNoDaemon) {
		t.Errorf("the lease that is not valid: %v", err)
	}
}
