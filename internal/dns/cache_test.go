package dns

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"net/netip"

	miekg "github.com/miekg/dns"
)

func reply(q question, rcode int, soa uint32, answers ...miekg.RR) *miekg.Msg {
	m := &miekg.Msg{Question: []miekg.Question{{Name: q.name, Qtype: q.qtype, Qclass: q.class}}, Answer: answers}
	m.Response, m.Rcode = true, rcode
	if soa > 0 {
		m.Ns = denial(0, "test.").Ns
		m.Ns[0].Header().Ttl, m.Ns[0].(*miekg.SOA).Minttl = soa, soa+5
	}
	return m
}

func TestCacheLifetime(t *testing.T) {
	q := askA("a.test")
	cname := &miekg.CNAME{Hdr: miekg.RR_Header{Name: q.name, Rrtype: miekg.TypeCNAME, Class: miekg.ClassINET, Ttl: 300}, Target: "b.test."}
	cut := reply(q, 0, 0, record(q.name, "192.0.2.1", 60))
	cut.Truncated = true
	for name, c := range map[string]struct {
		m    *miekg.Msg
		want time.Duration
	}{
		"least of all":          {reply(q, 0, 0, record(q.name, "192.0.2.1", 60), record(q.name, "192.0.2.2", 20)), 20 * time.Second},
		"zero":                  {reply(q, 0, 0, record(q.name, "192.0.2.1", 0)), 0},
		"too long":              {reply(q, 0, 0, record(q.name, "192.0.2.1", 86400)), maxPositive},
		"no such name":          {reply(q, miekg.RcodeNameError, 15), 15 * time.Second},
		"no such name for long": {reply(q, miekg.RcodeNameError, 3600), maxNegative},
		"no such type":          {reply(q, 0, 15), 15 * time.Second},
		"alias without target":  {reply(q, 0, 15, cname), 15 * time.Second},
		"denial without SOA":    {reply(q, miekg.RcodeNameError, 0), 0},
		"failure":               {reply(q, miekg.RcodeServerFailure, 15), 0},
		"cut short":             {cut, 0},
	} {
		if got := lifetime(c.m); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestCacheCountsDownAndGoesStale(t *testing.T) {
	c := cache{most: cacheBytes}
	q, now := askA("a.test"), time.Now()
	c.put(q, reply(q, 0, 0, record(q.name, "192.0.2.1", 60)), now)
	for age, w := range map[time.Duration]struct {
		ttl   int
		fresh bool
	}{
		0: {60, true}, 10 * time.Second: {50, true}, 59*time.Second + 900*time.Millisecond: {1, true},
		60 * time.Second: {staleTTL, false}, 89 * time.Second: {staleTTL, false}, 90 * time.Second: {-1, false}, time.Hour: {-1, false},
	} {
		got := c.get(q, now.Add(age))
		ttl := -1
		if got.msg != nil {
			ttl = int(got.msg.Answer[0].Header().Ttl)
		}
		if ttl != w.ttl || got.fresh != w.fresh {
			t.Errorf("after %v: ttl %d, fresh %v, want %d, %v", age, ttl, got.fresh, w.ttl, w.fresh)
		}
	}
	if got := c.get(question{name: q.name, qtype: q.qtype, class: q.class, do: true}, now); got.msg != nil {
		t.Error("an answer without signatures was given to one who wants them")
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := cache{most: 16 << 10}
	now := time.Now()
	for i := range 1000 {
		q := askA(fmt.Sprintf("n%d.test", i))
		c.put(q, reply(q, 0, 0, record(q.name, "192.0.2.1", 60)), now)
		c.get(askA("n0.test"), now) // in use, so it stays
		c.fail(askA(fmt.Sprintf("f%d.test", i)), now)
		sum := 0
		for el := c.order.Front(); el != nil; el = el.Next() {
			sum += el.Value.(*cached).cost()
		}
		if sum != c.bytes || c.bytes > c.most || len(c.m) != c.order.Len() {
			t.Fatalf("step %d: %d bytes counted as %d of %d, %d and %d entries", i, sum, c.bytes, c.most, len(c.m), c.order.Len())
		}
	}
	if c.get(askA("n0.test"), now).msg == nil {
		t.Error("what was in use left")
	}
	if c.get(askA("n1.test"), now).msg != nil {
		t.Error("what was not in use stayed")
	}
	var many []miekg.RR
	for range 200 {
		many = append(many, record("big.test.", "192.0.2.1", 60))
	}
	c.put(askA("big.test"), reply(askA("big.test"), 0, 0, many...), now)
	if c.get(askA("big.test"), now).msg != nil {
		t.Error("an answer that takes a sixteenth of the cache was kept")
	}
	c.flush()
	if c.bytes != 0 || c.order.Len() != 0 || c.get(askA("n0.test"), now).msg != nil {
		t.Error("flush left something")
	}
}

func TestParseResolvConf(t *testing.T) {
	text := "# nameserver 9.9.9.9\n;x\nsearch a b\nnameserver 192.0.2.1 # c\n\tnameserver\t2001:db8::1\nnameserver x\nnameserver\n" +
		"nameserver 10.1.0.1\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 0.0.0.0\nnameserver 127.0.0.53\nnameserver 224.0.0.1\nNameserver 192.0.2.9"
	got := parseResolvConf(text, func(a netip.Addr) bool { return a == ip("10.1.0.1") })
	var names []string
	for _, s := range got {
		names = append(names, s.String())
	}
	want := []string{"192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%eth0]:53", "127.0.0.1:53", "127.0.0.53:53"}
	if !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	f := NewForwarder(ForwarderConfig{ResolvConf: file})
	now, tick := time.Now(), 0
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		tick++
		if err := os.Chtimes(file, now, now.Add(time.Duration(tick)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	servers := func() string {
		now = now.Add(statEvery)
		list, _ := f.servers.get(now)
		out := ""
		for _, u := range list {
			out += u.addr.String() + " "
		}
		return out
	}
	keep := func() {
		f.cache.put(askA("a.test"), reply(askA("a.test"), 0, 0, record("a.test.", "192.0.2.1", 60)), now)
	}
	kept := func() bool { return f.cache.get(askA("a.test"), now).msg != nil }

	if got := servers(); got != "" {
		t.Errorf("without a file: %q", got)
	}
	write("nameserver 192.0.2.1\n")
	if got := servers(); got != "192.0.2.1:53 " {
		t.Errorf("after the file came: %q", got)
	}
	keep()
	write("nameserver 192.0.2.1\nsearch x\n")
	if got := servers(); got != "192.0.2.1:53 " || !kept() {
		t.Errorf("after a change of something else: %q, answers kept %v", got, kept())
	}
	write("nameserver 192.0.2.2\nnameserver 192.0.2.1\n")
	if got := servers(); got != "192.0.2.2:53 192.0.2.1:53 " || kept() {
		t.Errorf("after a change: %q, answers kept %v", got, kept())
	}
	f.servers.list[0].sickTill.Store(now.Add(time.Minute).UnixNano())
	if got := servers(); got != "192.0.2.1:53 192.0.2.2:53 " {
		t.Errorf("with the first one sick: %q", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got := servers(); got != "" {
		t.Errorf("after the file went: %q", got)
	}
}
