package dhcp

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

var mac = [6]byte{2, 0, 0, 0, 0, 1}

// ack is a good ACK with further options, of which an empty one takes one away.
func ack(options ...option4) *packet4 {
	p := &packet4{reply: true, xid: 7, your: netip.MustParseAddr("10.1.0.2"), mac: mac}
	p.set(optMessage, msgACK)
	p.set(optServer, 10, 1, 0, 1)
	p.set(optMask, 255, 255, 255, 0)
	p.set(optLeaseTime, 0, 0, 14, 16)
	for _, o := range options {
		p.set(o.code, o.value...)
	}
	return p
}

func TestMessage4(t *testing.T) {
	p := ack(option4{optSearch, bytes.Repeat([]byte("x"), 600)}, option4{optDomain, nil})
	p.client, p.secs, p.broadcast = netip.MustParseAddr("10.1.0.3"), 9, true
	got, err := parse4(p.marshal())
	if err != nil || len(got.options) != len(p.options) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range p.options {
		if got.options[i].code != p.options[i].code || !bytes.Equal(got.options[i].value, p.options[i].value) {
			t.Errorf("option %d: %v", p.options[i].code, got.options[i].value)
		}
	}
	got.options, p.options = nil, nil
	if !reflect.DeepEqual(got, p) {
		t.Errorf("got %+v, want %+v", got, p)
	}
	if n := len((&packet4{}).marshal()); n != minSize4 {
		t.Errorf("the smallest message has %d bytes, want %d", n, minSize4)
	}
	for name, bad := range map[string]func([]byte) []byte{
		"short":          func(b []byte) []byte { return b[:239] },
		"operation":      func(b []byte) []byte { b[0] = 3; return b },
		"token ring":     func(b []byte) []byte { b[1] = 6; return b },
		"long addresses": func(b []byte) []byte { b[2] = 16; return b },
		"cookie":         func(b []byte) []byte { b[236]++; return b },
		"cut off":        func(b []byte) []byte { return append(b[:240], 12, 5, 'a') },
		"no length":      func(b []byte) []byte { return append(b[:240], 12) },
	} {
		if got, err := parse4(bad(ack().marshal())); err == nil {
			t.Errorf("%s: %+v is taken", name, got)
		}
	}
}

// Options may go on in the fields for file (1) and server names (2), and be cut in parts.
func TestOverload(t *testing.T) {
	for overload, want := range map[byte]string{0: "a", 1: "af", 2: "as", 3: "afs"} {
		p := ack(option4{optDomain, []byte("a")}, option4{optOverload, []byte{overload}})
		b := p.marshal()
		copy(b[108:], []byte{optDomain, 1, 'f', optEnd})
		copy(b[44:], []byte{0, optDomain, 1, 's', optEnd})
		got, err := parse4(b)
		if err != nil || string(got.option(optDomain)) != want {
			t.Errorf("overload %d: %q, %v; want %q", overload, got.option(optDomain), err, want)
		}
	}
}

func TestFrame4(t *testing.T) {
	from, to := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.1")
	b := frame4([]byte("odd"), from, to)
	if sum16(b[:20], 0) != 0xffff || sum16(b[20:], uint32(sum16(b[12:20], 17+11))) != 0xffff {
		t.Errorf("sums of %x", b)
	}
	if _, ok := unframe4(b); ok {
		t.Error("a packet to a server is taken")
	}
	b[23], b[9] = clientPort4, 17
	if msg, ok := unframe4(append(b, 0, 0)); !ok || string(msg) != "odd" { // frames are padded
		t.Errorf("%q, %v", msg, ok)
	}
	for name, at := range map[string]struct{ i, v int }{"version": {0, 0x65}, "header": {0, 0x44}, "protocol": {9, 6}, "fragment": {7, 1},
		"more fragments": {6, 0x20}, "length": {3, 200}, "short": {3, 27}, "UDP's length": {25, 200}, "UDP's shortness": {25, 7}, "port": {23, 67}} {
		c := bytes.Clone(b)
		c[at.i] = byte(at.v)
		if _, ok := unframe4(c); ok {
			t.Errorf("%s: taken", name)
		}
	}
}

// Every option that a binding is made from: right, wrong, and left out.
func TestBind4(t *testing.T) {
	since := time.Unix(1000, 0)
	const def = "0.0.0.0/0 via 10.1.0.1"
	for _, c := range []struct {
		name   string
		option option4
		want   string // of describe, or the beginning of an error
	}{
		{"nothing more", option4{optNTP, nil}, "10.1.0.2/24 T1800 T3150 T3600"},
		{"no mask", option4{optMask, nil}, "error server 10.1.0.1: gives no subnet mask"},
		{"mask with holes", option4{optMask, []byte{255, 0, 255, 0}}, "error server 10.1.0.1: subnet mask 255.0.255.0: has holes"},
		{"single address", option4{optMask, []byte{255, 255, 255, 255}}, "10.1.0.2/32 T1800 T3150 T3600"},
		{"no server", option4{optServer, nil}, "error server: names itself"},
		{"server of all", option4{optServer, []byte{224, 0, 0, 1}}, "error server: names itself"},
		{"routers", option4{optRouters, []byte{10, 1, 0, 1, 10, 1, 0, 9}}, "10.1.0.2/24 gw 10.1.0.1 " + def + " T1800 T3150 T3600"},
		{"router cut off", option4{optRouters, []byte{10, 1, 0}}, "10.1.0.2/24 T1800 T3150 T3600"},
		{"router nowhere", option4{optRouters, []byte{0, 0, 0, 0}}, "10.1.0.2/24 T1800 T3150 T3600"},
		{"DNS", option4{optDNS, []byte{8, 8, 8, 8, 0, 0, 0, 0, 8, 8, 8, 8, 9, 9, 9, 9, 1}}, "10.1.0.2/24 dns 8.8.8.8 9.9.9.9 T1800 T3150 T3600"},
		{"NTP", option4{optNTP, []byte{1, 2, 3, 4}}, "10.1.0.2/24 ntp 1.2.3.4 T1800 T3150 T3600"},
		{"domain", option4{optDomain, []byte("a.example\x00")}, "10.1.0.2/24 domain a.example T1800 T3150 T3600"},
		{"domain with a line's end", option4{optDomain, []byte("a\nnameserver 6.6.6.6")}, "10.1.0.2/24 T1800 T3150 T3600"},
		{"search", option4{optSearch, []byte("\x01a\x02bc\x00\x01d\xc0\x02\x00")}, "10.1.0.2/24 search a.bc d.bc T1800 T3150 T3600"},
		{"search that goes round", option4{optSearch, []byte("\xc0\x00")}, "10.1.0.2/24 T1800 T3150 T3600"},
		{"static routes", option4{optStaticRoute, []byte{10, 9, 9, 9, 10, 1, 0, 3, 172, 16, 1, 1, 10, 1, 0, 3, 192, 168, 1, 1, 10, 1, 0, 3, 0, 0, 0, 0, 10, 1, 0, 3, 240, 0, 0, 1, 10, 1, 0, 3, 1}},
			"10.1.0.2/24 10.0.0.0/8 via 10.1.0.3 172.16.0.0/16 via 10.1.0.3 192.168.1.0/24 via 10.1.0.3 T1800 T3150 T3600"},
		{"classless routes", option4{optClassless, []byte{0, 10, 1, 0, 1, 12, 172, 31, 10, 1, 0, 3, 32, 1, 2, 3, 4, 0, 0, 0, 0}},
			"10.1.0.2/24 0.0.0.0/0 via 10.1.0.1 172.16.0.0/12 via 10.1.0.3 1.2.3.4/32 link T1800 T3150 T3600"},
		{"classless route too long", option4{optClassless, []byte{8, 10, 10, 1, 0, 3, 33, 1, 2, 3, 4, 5, 10, 1, 0, 3}}, "10.1.0.2/24 10.0.0.0/8 via 10.1.0.3 T1800 T3150 T3600"},
		{"classless route cut off", option4{optClassless, []byte{24, 10, 1}}, "10.1.0.2/24 T1800 T3150 T3600"},
		{"no lease time", option4{optLeaseTime, nil}, "10.1.0.2/24 T1800 T3150 T3600"},
		{"lease time cut off", option4{optLeaseTime, []byte{1}}, "10.1.0.2/24 T1800 T3150 T3600"},
		{"forever", option4{optLeaseTime, []byte{255, 255, 255, 255}}, "10.1.0.2/24"},
		{"T1", option4{optRenewTime, []byte{0, 0, 0, 100}}, "10.1.0.2/24 T100 T3150 T3600"},
		{"T1 after T2", option4{optRenewTime, []byte{0, 0, 13, 0}}, "10.1.0.2/24 T1800 T3150 T3600"},
		{"T2", option4{optRebindTime, []byte{0, 0, 1, 0}}, "10.1.0.2/24 T146 T256 T3600"},
		{"T2 after the end", option4{optRebindTime, []byte{1, 0, 0, 0}}, "10.1.0.2/24 T1800 T3150 T3600"},
	} {
		p := ack(c.option)
		if c.option.value == nil {
			p.options = p.options[:len(p.options)-1]
		}
		b, err := bind4(p, mac, since)
		if got := describe(b, err); !strings.HasPrefix(got, c.want) || len(got) != len(c.want) && err == nil {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	for _, bad := range []string{"127.0.0.1", "224.0.0.1", "255.255.255.255"} {
		p := ack()
		p.your = netip.MustParseAddr(bad)
		if b, err := bind4(p, mac, since); err == nil {
			t.Errorf("%s is taken: %s", bad, describe(b, nil))
		}
	}
	p := ack(option4{optClassless, []byte{0, 10, 1, 0, 1}}, option4{optStaticRoute, []byte{10, 9, 9, 9, 10, 1, 0, 3}}, option4{optRouters, []byte{10, 1, 0, 9}}, option4{optMTU, []byte{5, 120}})
	b, err := bind4(p, mac, since)
	if got, want := describe(b, err), "10.1.0.2/24 gw 10.1.0.9 "+def+" mtu 1400 T1800 T3150 T3600"; got != want {
		t.Errorf("all kinds of routes: %s, want %s", got, want)
	}
}

func describe(b *binding, err error) string {
	if err != nil {
		return "error " + err.Error()
	}
	w := []string{b.Addr.String()}
	if b.Gateway.IsValid() {
		w = append(w, "gw", b.Gateway.String())
	}
	for _, r := range b.Routes {
		s := r.Dst.String()
		if r.GW.IsValid() {
			s += " via " + r.GW.String()
		}
		if r.Scope != nil {
			s += " link"
		}
		if r.MTU != 0 {
			s += fmt.Sprint(" mtu ", r.MTU)
		}
		w = append(w, s)
	}
	for what, l := range map[string][]netip.Addr{"dns": b.DNS, "ntp": b.NTP} {
		if len(l) > 0 {
			w = append(w, what, strings.Trim(fmt.Sprint(l), "[]"))
		}
	}
	if b.Domain != "" {
		w = append(w, "domain", b.Domain)
	}
	if len(b.Search) > 0 {
		w = append(w, "search", strings.Join(b.Search, " "))
	}
	for _, at := range []time.Time{b.Renew, b.Rebind, b.Expire} {
		if !at.IsZero() {
			w = append(w, fmt.Sprintf("T%d", int(at.Sub(b.Since)/time.Second)))
		}
	}
	return strings.Join(w, " ")
}

func TestDomain(t *testing.T) {
	for in, want := range map[string]bool{"a": true, "a.b.": true, "A-b_c.9": true, "": false, ".": false, "a..b": false, "-a": false, "a b": false,
		"a\tb": false, "ä": false, strings.Repeat("a", 63): true, strings.Repeat("a", 64): false, strings.Repeat("a.", 200): false} {
		if _, ok := domain(in); ok != want {
			t.Errorf("%q: %v, want %v", in, ok, want)
		}
	}
}

func ia(addr string, valid byte, more ...byte) []byte {
	in := append(netip.MustParseAddr(addr).AsSlice(), 0, 0, 0, valid, 0, 0, 0, valid)
	return append6([]byte{0, 0, 0, iaid, 0, 0, 0, 0, 0, 0, 0, 0}, opt6Addr, append(in, more...))
}

func TestAssigned6(t *testing.T) {
	status := func(code byte) []byte { return append6(nil, opt6Status, []byte{0, code, 'n', 'o'}) }
	for _, c := range []struct {
		name    string
		options []option6
		want    string
	}{
		{"good", []option6{{opt6IANA, ia("fd00::2", 100)}}, "fd00::2 refused false"},
		{"no association", nil, "invalid IP refused true"},
		{"another association", []option6{{opt6IANA, append([]byte{9}, ia("fd00::2", 100)[1:]...)}}, "invalid IP refused true"},
		{"no time left", []option6{{opt6IANA, ia("fd00::2", 0)}}, "invalid IP refused true"},
		{"link-local", []option6{{opt6IANA, ia("fe80::2", 100)}}, "invalid IP refused true"},
		{"all", []option6{{opt6IANA, ia("ff02::1", 100)}}, "invalid IP refused true"},
		{"mapped", []option6{{opt6IANA, ia("::ffff:10.0.0.1", 100)}}, "invalid IP refused true"},
		{"status of the address", []option6{{opt6IANA, ia("fd00::2", 100, status(1)...)}}, "invalid IP refused true"},
		{"status of the association", []option6{{opt6IANA, append(ia("fd00::2", 100), status(2)...)}}, "invalid IP refused false error"},
		{"no binding", []option6{{opt6IANA, append(ia("fd00::2", 100), status(3)...)}}, "invalid IP refused true"},
		{"status of all", []option6{{opt6Status, []byte{0, 1}}, {opt6IANA, ia("fd00::2", 100)}}, "invalid IP refused false error"},
		{"success said", []option6{{opt6Status, []byte{0, 0}}, {opt6IANA, ia("fd00::2", 100, status(0)...)}}, "fd00::2 refused false"},
		{"cut off", []option6{{opt6IANA, ia("fd00::2", 100)[:20]}}, "invalid IP refused false error"},
		{"the second is good", []option6{{opt6IANA, ia("fd00::2", 0)}, {opt6IANA, ia("fd00::3", 9)}}, "fd00::3 refused false"},
	} {
		p, err := parse6((&packet6{kind: msg6Reply, xid: 5, options: c.options}).marshal())
		if err != nil {
			t.Fatal(err)
		}
		a, err := p.assigned(iaid)
		refused := err != nil && strings.Contains(err.Error(), errRefused.Error())
		got := fmt.Sprintf("%s refused %v", a.addr, refused)
		if err != nil && !refused {
			got += " error"
		}
		if got != c.want {
			t.Errorf("%s: %s (%v), want %s", c.name, got, err, c.want)
		}
	}
}

func TestAnswer6(t *testing.T) {
	l := &lease{Container: "c", Network: "n", Interface: "i"}
	good := func() *packet6 {
		return &packet6{kind: msg6Reply, xid: 5, options: []option6{{opt6Client, l.duid()}, {opt6Server, []byte("s")}}}
	}
	x := &exchange6{l: l, server: []byte("s")}
	if answer6(good().marshal(), 5, msg6Reply, x) == nil {
		t.Error("a good answer is passed over")
	}
	for name, f := range map[string]func(*packet6){
		"number": func(p *packet6) { p.xid++ }, "kind": func(p *packet6) { p.kind = msg6Advertise },
		"client": func(p *packet6) { p.options[0].value = []byte("other") }, "no client": func(p *packet6) { p.options = p.options[1:] },
		"server": func(p *packet6) { p.options[1].value = []byte("t") }, "no server": func(p *packet6) { p.options = p.options[:1] },
	} {
		p := good()
		if f(p); answer6(p.marshal(), 5, msg6Reply, x) != nil {
			t.Errorf("%s: an answer to somebody else is taken", name)
		}
	}
}

func TestAdvert(t *testing.T) {
	prefix := func(flags, valid byte) []byte {
		b := []byte{ndPrefix, 4, 56, flags, 0, 0, 0, valid, 0, 0, 0, 0, 0, 0, 0, 0}
		return append(b, netip.MustParseAddr("fd00::").AsSlice()...)
	}
	header := func(life byte, options ...byte) []byte {
		return append([]byte{icmpAdvert, 0, 0, 0, 64, 0, 0, life, 0, 0, 0, 0, 0, 0, 0, 0}, options...)
	}
	dns := append([]byte{ndDNS, 3, 0, 0, 0, 0, 0, 9}, netip.MustParseAddr("fd00::53").AsSlice()...)
	search := []byte{ndSearch, 2, 0, 0, 0, 0, 0, 9, 1, 'a', 2, 'b', 'c', 0, 0, 0}
	mtu := []byte{5, 1, 0, 0, 0, 0, 5, 220} // is passed over: kernels heed it themselves
	router := netip.MustParseAddr("fe80::1")
	for _, c := range []struct {
		name string
		in   []byte
		from netip.Addr
		want string
	}{
		{"all", header(9, slicesOf(prefix(0x80, 9), dns, search, mtu)...), router, "fd00::2/56 gw fe80::1 ::/0 via fe80::1 dns fd00::53 search a.bc"},
		{"no router", header(0, prefix(0x80, 9)...), router, "fd00::2/56"},
		{"not on the link", header(9, prefix(0x40, 9)...), router, "fd00::2/128 gw fe80::1 ::/0 via fe80::1"},
		{"prefix that ended", header(0, prefix(0x80, 0)...), router, "fd00::2/128"},
		{"from afar", header(9), netip.MustParseAddr("fd00::1"), "error"},
		{"an option without length", header(9, 1, 0, 0, 0, 0, 0, 0, 0), router, "error"},
		{"an option cut off", header(9, 1, 2, 0, 0, 0, 0, 0, 0), router, "error"},
		{"another message", append([]byte{136}, header(9)[1:]...), router, "error"},
	} {
		b := &binding{Addr: netip.MustParsePrefix("fd00::2/128")}
		a, err := parseAdvert(c.in, c.from)
		got := "error"
		if err == nil {
			b.learn(a)
			got = describe(b, nil)
		}
		if got != c.want {
			t.Errorf("%s: %s (%v), want %s", c.name, got, err, c.want)
		}
	}
}

func slicesOf(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// What is stored is read back; what was tampered with is an error, never half a lease.
func TestStoredLease(t *testing.T) {
	b, err := bind4(ack(option4{optRouters, []byte{10, 1, 0, 1}}), mac, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l := &lease{Container: "c", Network: "n", Interface: "i", Netns: "/x", Space: "1:2", MAC: mac, V4: b}
	s, err := l.text()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseLease("dhcp/c/n/i", s)
	if err != nil || text(got) != text(l) || got.V4.Renew.Compare(b.Renew) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	for name, bad := range map[string]string{"JSON": "{", "another's": strings.Replace(s, `"c"`, `"d"`, 1), "no path": strings.Replace(s, "/x", "", 1),
		"no lease": `{"container":"c","network":"n","interface":"i","netns":"/x"}`, "family": strings.Replace(s, "v4", "v6", 1),
		"no server": strings.Replace(s, `"server":"10.1.0.1"`, `"server":""`, 1)} {
		if got, err := parseLease("dhcp/c/n/i", bad); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzPacket4(f *testing.F) {
	f.Add(ack(option4{optSearch, []byte("\x01a\xc0\x00")}, option4{optClassless, []byte{8, 10, 1, 2, 3, 4}}, option4{optOverload, []byte{3}}).marshal())
	f.Fuzz(func(t *testing.T, data []byte) {
		unframe4(data)
		p, err := parse4(data)
		if err != nil {
			return
		}
		if b, err := bind4(p, mac, time.Now()); err == nil {
			bound(t, b)
		}
	})
}

func FuzzPacket6(f *testing.F) {
	f.Add((&packet6{kind: msg6Reply, options: []option6{{opt6IANA, ia("fd00::2", 9)}, {opt6Server, []byte("s")}, {opt6Search, []byte("\x01a\x00")}, {opt6NTP, make([]byte, 20)}}}).marshal())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parse6(data)
		if err != nil {
			return
		}
		if a, err := p.assigned(iaid); err == nil {
			bound(t, p.bind6(a, time.Now()))
		}
	})
}

func FuzzAdvert(f *testing.F) {
	f.Add([]byte{icmpAdvert, 0, 0, 0, 64, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, ndSearch, 2, 0, 0, 0, 0, 0, 9, 1, 'a', 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if a, err := parseAdvert(data, netip.MustParseAddr("fe80::1")); err == nil {
			b := &binding{Addr: netip.MustParsePrefix("fd00::2/128")}
			b.learn(a)
			bound(t, b)
		}
	})
}

func FuzzStored(f *testing.F) {
	f.Add(`{"container":"c","network":"n","interface":"i","netns":"/x","v4":{"addr":"10.1.0.2/24","server":"10.1.0.1"}}`)
	f.Fuzz(func(t *testing.T, s string) {
		if l, err := parseLease("dhcp/c/n/i", s); err == nil {
			l.result()
			l.expires()
		}
	})
}

func FuzzCall(f *testing.F) {
	f.Add([]byte(`{"name": "n", "cni.dev/valid-attachments": [{"containerID": "a"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) { _, _, _ = nameAndValid(data) })
}

// bound holds a binding to what the others rely on.
func bound(t *testing.T, b *binding) {
	t.Helper()
	if !b.Addr.IsValid() || b.Addr.Addr().IsUnspecified() || b.Renew.After(b.Rebind) || b.Rebind.After(b.Expire) {
		t.Fatalf("%+v", b)
	}
	for _, r := range b.Routes {
		if !r.Dst.IsValid() || r.Dst != r.Dst.Masked() || r.GW.IsValid() && r.GW.Is4() != r.Dst.Addr().Is4() {
			t.Fatalf("route %+v", r)
		}
	}
	for _, s := range append(b.Search, b.Domain) {
		if strings.ContainsAny(s, "\n\r\t #;") {
			t.Fatalf("domain %q", s)
		}
	}
}
