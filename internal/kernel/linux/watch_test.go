package linux

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/kernel"
)

// gather puts together what Watch tells until nothing more comes for a while.
func gather(t *testing.T, events <-chan Event) Event {
	t.Helper()
	var all Event
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				t.Fatal("the channel is closed")
			}
			all.merge(ev)
		case <-time.After(300 * time.Millisecond):
			return all
		}
	}
}

func TestWatch(t *testing.T) {
	needs(t, "nft", "ip")
	k, ns := newKernel(t)
	run(t, ns, "nft", "add table inet other { chain f { type filter hook forward priority 0; policy drop; }; }")
	accept := &kernel.Accept{Family: "inet", Table: "other", Chain: "f", Rule: `iifname "sn-*"`}
	ctx, cancel := context.WithCancel(t.Context())
	events, err := k.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	in := newNetns(t)
	want := append(append(bridge("sn-br"), attachment("sn-br", in, 0)...), accept,
		&kernel.Route{Dst: prefix("10.99.0.0/24"), Via: addr("10.9.0.7"), Link: "sn-br"},
		&kernel.Rule{Priority: 99, From: prefix("10.9.0.0/24"), Table: 99})
	converge(t, k, want)
	if ev := gather(t, events); !ev.empty() {
		t.Errorf("our own changes were told: %+v", ev)
	}
	find := func(key string) kernel.Object {
		for _, o := range want {
			if o.Key().String() == key {
				return o
			}
		}
		t.Fatalf("no object %q", key)
		return nil
	}
	host := want[7].(*kernel.Link).Name
	for _, c := range []struct {
		cmd   []string
		key   string // what has to be told
		all   bool
		down  bool
		facts bool
	}{
		{cmd: []string{"ip", "link", "set", host, "mtu", "1300"}, key: "link " + host},
		{cmd: []string{"ip", "link", "set", host, "nomaster"}, key: "link " + host},
		{cmd: []string{"ip", "link", "set", host, "down"}, key: "up " + host, down: true},
		{cmd: []string{"ip", "addr", "del", "10.9.0.1/16", "dev", "sn-br"}, key: "addr sn-br 10.9.0.1/16"},
		{cmd: []string{"ip", "addr", "del", "fd00:9::1/64", "dev", "sn-br"}, key: "addr sn-br fd00:9::1/64"},
		{cmd: []string{"ip", "route", "del", "10.99.0.0/24"}, key: "route 254 10.99.0.0/24 metric 0"},
		{cmd: []string{"ip", "rule", "del", "priority", "99"}, key: "rule v4 priority 99 from 10.9.0.0/24 lookup 99"},
		{cmd: []string{"ip", "link", "del", host}, key: "link " + host, down: true},
		{cmd: []string{"nft", "delete", "element", "inet", "seine", "port4", "{ tcp . 1000 }"}, key: "element seine port4 tcp . 1000"},
		{cmd: []string{"nft", "delete", "element", "inet", "seine", "masq4", "{ 10.9.0.0/16 }"}, key: "element seine masq4 10.9.0.0/16"},
		{cmd: []string{"nft", "flush", "map", "inet", "seine", "port6"}, key: "element seine port6 tcp . 1000"},
		{cmd: []string{"nft", "flush", "chain", "inet", "seine", "forward"}, key: "table seine"},
		{cmd: []string{"nft", "delete", "table", "inet", "seine"}, all: true},
		{cmd: []string{"nft", "flush", "chain", "inet", "other", "f"}, key: accept.Key().String(), facts: true},
		{cmd: []string{"nft", "delete", "table", "inet", "other"}, key: accept.Key().String(), facts: true},
		{cmd: []string{"ip", "link", "add", "x0", "type", "bridge"}, facts: true},
		{cmd: []string{"ip", "addr", "add", "192.0.2.1/24", "dev", "x0"}, facts: true},
		{cmd: []string{"ip", "link", "set", "x0", "up"}, facts: true},
	} {
		run(t, ns, c.cmd...)
		ev := gather(t, events)
		if c.key != "" && !touches(ev, find(c.key)) {
			t.Errorf("%q: %s is not told: %v", c.cmd, c.key, ev)
		}
		if c.all != ev.All {
			t.Errorf("%q: all is %v", c.cmd, ev.All)
		}
		if c.down != (len(ev.Down) > 0) {
			t.Errorf("%q: down is %v", c.cmd, ev.Down)
		}
		if c.facts != ev.Facts {
			t.Errorf("%q: facts is %v", c.cmd, ev.Facts)
		}
		if slices.Equal(c.cmd, []string{"nft", "delete", "table", "inet", "other"}) {
			want = slices.DeleteFunc(want, func(o kernel.Object) bool { return o == accept })
		}
		converge(t, k, want) // mending it is our own doing again
		ev = gather(t, events)
		if update := slices.Contains(c.cmd, "mtu") || slices.Contains(c.cmd, "nomaster"); update {
			ev.Keys = nil // who changes a link in place the kernel does not tell
		}
		if !ev.empty() {
			t.Errorf("mending after %q was told: %+v", c.cmd, ev)
		}
	}
	cancel()
	for range events {
		continue
	}
}

func touches(ev Event, objs ...kernel.Object) bool {
	return slices.ContainsFunc(objs, func(o kernel.Object) bool { return slices.Contains(ev.Keys, o.Key()) })
}

// TestWatchTunnels: what somebody does to a tunnel and to what is on it is told; what the kernel says of neighbours that
// it learns and forgets is not.
func TestWatchTunnels(t *testing.T) {
	needs(t, "ip", "bridge")
	k, ns := newKernel(t)
	events, err := k.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := uint32(1 << 31)
	base := far(id)
	nh, route := base[2], &kernel.Route{Dst: prefix("10.9.0.0/24"), Nexthop: id}
	neigh := &kernel.Neigh{Link: "sx-a", Addr: addr("fe80::2"), MAC: "02:00:00:00:00:02"}
	fdb := &kernel.FDB{Link: "sx-a", MAC: "02:00:00:00:00:02", Dst: addr("192.0.2.2")}
	every := &kernel.FDB{Link: "sx-a", MAC: kernel.EveryMAC, Dst: addr("192.0.2.2")}
	want := append(base, route, neigh, fdb, every, &kernel.Addr{Link: "sx-a", Prefix: prefix("10.9.1.1/24")})
	converge(t, k, want)
	if ev := gather(t, events); !ev.empty() {
		t.Errorf("our own changes were told: %+v", ev)
	}
	for _, c := range []struct {
		cmd  []string
		want []kernel.Object
		down bool
	}{
		{cmd: []string{"ip", "route", "del", "10.9.0.0/24"}, want: []kernel.Object{route}},
		{cmd: []string{"ip", "neigh", "del", "fe80::2", "dev", "sx-a"}, want: []kernel.Object{neigh}},
		{cmd: []string{"ip", "neigh", "flush", "dev", "sx-a", "nud", "permanent"}, want: []kernel.Object{neigh}},
		{cmd: []string{"ip", "neigh", "replace", "fe80::2", "dev", "sx-a", "lladdr", "02:00:00:00:00:09", "proto", "83"}, want: []kernel.Object{neigh}},
		{cmd: []string{"bridge", "fdb", "del", "02:00:00:00:00:02", "dev", "sx-a"}, want: []kernel.Object{fdb}},
		{cmd: []string{"bridge", "fdb", "del", kernel.EveryMAC, "dst", "192.0.2.2", "dev", "sx-a"}, want: []kernel.Object{every}},
		{cmd: []string{"ip", "nexthop", "del", "id", "2147483648"}, want: []kernel.Object{nh}, down: true},
		{cmd: []string{"ip", "nexthop", "replace", "id", "2147483648", "dev", "sx-a", "proto", "83"}, want: []kernel.Object{nh}},
		{cmd: []string{"ip", "nexthop", "flush", "proto", "83"}, want: []kernel.Object{nh}, down: true},
		{cmd: []string{"ip", "link", "del", "sx-a"}, want: []kernel.Object{base[0], base[1]}, down: true},
		{cmd: []string{"ip", "neigh", "replace", "10.9.1.7", "dev", "sx-a", "lladdr", "02:00:00:00:00:09", "nud", "reachable"}},
		{cmd: []string{"ip", "neigh", "replace", "10.9.1.7", "dev", "sx-a", "lladdr", "02:00:00:00:00:08", "nud", "stale"}},
		{cmd: []string{"ip", "neigh", "del", "10.9.1.7", "dev", "sx-a"}},
	} {
		run(t, ns, c.cmd...)
		ev := gather(t, events)
		for _, o := range c.want {
			if !touches(ev, o) {
				t.Errorf("%q: %s is not told: %v", c.cmd, o.Key(), ev)
			}
		}
		if len(c.want) == 0 && !ev.empty() {
			t.Errorf("%q is told: %+v", c.cmd, ev)
		}
		if c.down != (len(ev.Down) > 0) {
			t.Errorf("%q: down is %v", c.cmd, ev.Down)
		}
		converge(t, k, want)
		gather(t, events)
	}
}
