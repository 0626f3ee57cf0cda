package udp

import (
	"log/slog"
	"net/netip"
	"testing"

	"go.uber.org/goleak"

	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/fabric/fabrictest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func node(i int) fabric.Fabric { return New([]byte{byte(i)}, 0) }

func TestFabric(t *testing.T) { fabrictest.Run(t, Name, node(0), node) }

func TestSetPeer(t *testing.T) {
	r := NewRunner(New(nil, 0), slog.New(slog.DiscardHandler))
	good := Peer{Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddrPort("192.0.2.2:8286"), Tag: "AAECAwQF", Blocks: prefixes("10.2.0.7/24")}
	for what, change := range map[string]func(*Peer){
		"no address":        func(p *Peer) { p.Remote = netip.AddrPort{} },
		"no port":           func(p *Peer) { p.Remote = netip.AddrPortFrom(p.Remote.Addr(), 0) },
		"another family":    func(p *Peer) { p.Local = netip.MustParseAddr("2001:db8::1") },
		"no local address":  func(p *Peer) { p.Local = netip.Addr{} },
		"a short tag":       func(p *Peer) { p.Tag = "AAEC" },
		"a tag of no base":  func(p *Peer) { p.Tag = "!!!!!!!!" },
		"a block of no use": func(p *Peer) { p.Blocks = []netip.Prefix{{}} },
	} {
		p := good
		change(&p)
		if err := r.SetPeer("a", p); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	if n := len(r.table.Load().at); n != 0 {
		t.Fatalf("%d peers after refusals", n)
	}
	if err := r.SetPeer("a", good); err != nil {
		t.Fatal(err)
	}
	tab := r.table.Load()
	if got := tab.find(netip.MustParseAddr("10.2.0.9")); got == nil || got.id != "a" {
		t.Errorf("10.2.0.9 leads to %v", got)
	}
	if err := r.SetPeer("a", good); err != nil || r.table.Load() != tab {
		t.Errorf("the same again made a change, or %v", err)
	}
	if err := r.SetPeer("b", good); err == nil {
		t.Error("two peers at one place")
	}
	b := good
	b.Remote, b.Blocks = netip.MustParseAddrPort("192.0.2.3:8286"), prefixes("10.2.0.9/32", "10.2.0.0/24")
	if err := r.SetPeer("b", b); err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]string{"10.2.0.9": "b", "10.2.0.10": "b"} { // it was set last
		if got := r.table.Load().find(netip.MustParseAddr(a)); got == nil || got.id != want {
			t.Errorf("%s leads to %v, want %s", a, got, want)
		}
	}
	r.DropPeer("b")
	r.DropPeer("b")
	if got := r.table.Load().find(netip.MustParseAddr("10.2.0.9")); got == nil || got.id != "a" {
		t.Errorf("10.2.0.9 leads to %v after its peer went", got)
	}
}
