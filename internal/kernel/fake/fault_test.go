package fake_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/fake"
)

const ns = "/run/netns/a"

var ports = &kernel.Set{Name: "port4", Key: []kernel.Type{kernel.TypeProto, kernel.TypeService},
	Data: []kernel.Type{kernel.TypeIPv4, kernel.TypeService}}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

func element(port int) *kernel.Element {
	return &kernel.Element{Table: "seine", Set: ports, Item: fmt.Sprintf("tcp . %d", port), Data: "10.1.0.2 . 80", Comment: "a"}
}

// world is a small network with one endpoint, in the order in which it is made.
func world() []kernel.Object {
	return []kernel.Object{
		&kernel.Table{Name: "seine", Sets: []*kernel.Set{ports}, Chains: []*kernel.Chain{{Name: "publish", Rules: []string{
			"dnat ip to meta l4proto . th dport map @port4"}}}},
		&kernel.Accept{Family: "ip", Table: "filter", Chain: "FORWARD", Rule: `iifname "sn-*"`},
		&kernel.Hold{Protocol: "tcp", Addr: ip("0.0.0.0"), Port: 8080},
		&kernel.Link{Name: "sn-a", Type: kernel.Bridge, Alias: "seine:network/a"},
		&kernel.Link{Name: "sv-a", Type: kernel.Veth, MTU: 1400, Alias: "seine:endpoint/a/a", Master: "sn-a",
			Peer: &kernel.Peer{NS: ns, Name: "eth0", MTU: 1400, MAC: "02:00:00:00:00:02", Alias: "seine:endpoint/a/a"}},
		&kernel.Sysctl{Name: "net/ipv4/conf/sn-a/route_localnet", Value: "1", Before: "0"},
		&kernel.Addr{Link: "sn-a", Prefix: pfx("10.1.0.1/24")},
		&kernel.Addr{Link: "sn-a", Prefix: pfx("fd00:1::1/64")},
		&kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("10.1.0.2/24")},
		&kernel.Addr{NS: ns, Link: "eth0", Prefix: pfx("fd00:1::2/64")},
		&kernel.LinkUp{NS: ns, Link: "eth0"},
		&kernel.LinkUp{Link: "sn-a"},
		&kernel.LinkUp{Link: "sv-a"},
		&kernel.Route{NS: ns, Dst: pfx("0.0.0.0/0"), Via: ip("10.1.0.1"), Link: "eth0"},
		&kernel.Route{NS: ns, Dst: pfx("::/0"), Via: ip("fd00:1::1"), Link: "eth0", Metric: 1024},
		element(8080),
		element(8081),
	}
}

const worldDump = `addr 10.1.0.1/24 dev sn-a
addr 10.1.0.2/24 dev eth0 netns /run/netns/a
addr fd00:1::1/64 dev sn-a
addr fd00:1::2/64 dev eth0 netns /run/netns/a
element inet seine port4 { tcp . 8080 : 10.1.0.2 . 80 }
element inet seine port4 { tcp . 8081 : 10.1.0.2 . 80 }
hold tcp 0.0.0.0:8080
link eth0 up netns /run/netns/a
link sn-a type bridge alias seine:network/a
link sn-a up
link sv-a type veth mtu 1400 master sn-a alias seine:endpoint/a/a peer eth0 mtu 1400 address 02:00:00:00:00:02 netns /run/netns/a
link sv-a up
other's chain ip filter FORWARD { drop }
route default (v6) via fd00:1::1 dev eth0 metric 1024 netns /run/netns/a
route default via 10.1.0.1 dev eth0 netns /run/netns/a
rule ip filter FORWARD iifname "sn-*" accept
sysctl net/ipv4/conf/sn-a/route_localnet = 1
table inet seine (1 sets, 1 chains)
`

const emptyDump = "other's chain ip filter FORWARD { drop }\n"

func machine() *fake.Kernel {
	k := fake.New()
	k.AddNamespace(ns)
	k.AddForeignChain("ip", "filter", "FORWARD", "drop")
	return k
}

// pass makes one pass towards want and gives its errors.
func pass(t *testing.T, k *fake.Kernel, want, drop []kernel.Object) error {
	t.Helper()
	ctx := context.Background()
	have, err := k.List(ctx, kernel.Scope{Objects: append(append([]kernel.Object(nil), want...), drop...), All: true})
	if err != nil {
		return err
	}
	if want == nil { // sysctls go with their link
		have = without(have, kernel.KindSysctl)
	}
	return errors.Join(k.Apply(ctx, kernel.Diff(want, have))...)
}

func without(objs []kernel.Object, kind kernel.Kind) []kernel.Object {
	var rest []kernel.Object
	for _, o := range objs {
		if o.Key().Kind != kind {
			rest = append(rest, o)
		}
	}
	return rest
}

func TestDump(t *testing.T) {
	k := machine()
	if got := k.Dump(); got != emptyDump {
		t.Fatalf("at first:\n%s", got)
	}
	if err := pass(t, k, world(), nil); err != nil {
		t.Fatal(err)
	}
	if got := k.Dump(); got != worldDump {
		t.Fatalf("got:\n%s\nwant:\n%s", got, worldDump)
	}
	if rules := strings.Join(k.ForeignRules("ip", "filter", "FORWARD"), "; "); rules != `iifname "sn-*" accept; drop` {
		t.Errorf("the foreign chain has %s", rules)
	}
	if err := pass(t, k, nil, world()); err != nil {
		t.Fatal(err)
	}
	if got := k.Dump(); got != emptyDump {
		t.Fatalf("at the end:\n%s", got)
	}
}

// TestFaults lets each change of an attach and of a detach fail, and in another run end the process there; a pass or
// two later everything is as if nothing had been.
func TestFaults(t *testing.T) {
	errFault := errors.New("fault")
	for _, way := range []struct {
		name       string
		begin, end []kernel.Object
		dump       string
	}{{"attach", nil, world(), worldDump}, {"detach", world(), nil, emptyDump}} {
		for _, crash := range []bool{false, true} {
			for n := 1; ; n++ {
				k := machine()
				if err := pass(t, k, way.begin, nil); err != nil {
					t.Fatal(err)
				}
				ops := k.Ops()
				want := errFault
				if crash {
					want = fake.ErrCrashed
					k.CrashAt(n)
				} else {
					k.FailAt(n, errFault)
				}
				err := pass(t, k, way.end, way.begin)
				if err == nil && k.Ops()-ops < n {
					break // there are fewer than n changes
				}
				if !errors.Is(err, want) || crash != k.Crashed() {
					t.Fatalf("%s, change %d: got %v, want %v", way.name, n, err, want)
				}
				if crash {
					if _, err := k.List(context.Background(), kernel.Scope{All: true}); !errors.Is(err, fake.ErrCrashed) {
						t.Fatalf("%s, change %d: List after the end gave %v", way.name, n, err)
					}
					k.Restart()
				}
				for range 2 {
					if err := pass(t, k, way.end, way.begin); err != nil {
						t.Fatalf("%s, after the fault at change %d: %v", way.name, n, err)
					}
				}
				if got := k.Dump(); got != way.dump {
					t.Fatalf("%s, after the fault at change %d:\n%s", way.name, n, got)
				}
				if n > 100 {
					t.Fatal("there is no end of changes")
				}
			}
		}
	}
}

func TestCrashKeepsNoTransaction(t *testing.T) {
	k := machine()
	objs := world()
	if err := pass(t, k, objs[:3], nil); err != nil {
		t.Fatal(err)
	}
	before := k.Snapshot()
	k.CrashAt(2)
	errs := k.Apply(context.Background(), []kernel.Change{{Op: kernel.Create, New: element(1)}, {Op: kernel.Create, New: element(2)}})
	for _, err := range errs {
		if !errors.Is(err, fake.ErrCrashed) {
			t.Errorf("got %v", err)
		}
	}
	k.Restart()
	if d := before.Diff(k.Snapshot()); d != "- hold tcp 0.0.0.0:8080" {
		t.Errorf("the end of the process left:\n%s", d)
	}
}

func TestFailIf(t *testing.T) {
	k := machine()
	k.FailIf(func(c kernel.Change) error {
		if c.Key().Kind == kernel.KindHold {
			return kernel.ErrInUse
		}
		return nil
	})
	for range 2 {
		if err := pass(t, k, world(), nil); !errors.Is(err, kernel.ErrInUse) {
			t.Fatalf("got %v", err)
		}
	}
	k.FailIf(nil)
	if err := pass(t, k, world(), nil); err != nil {
		t.Fatal(err)
	}
}

// TestRefused wants one refused change of a transaction to be the only one that looks like the cause.
func TestRefused(t *testing.T) {
	k := machine()
	if err := pass(t, k, world(), nil); err != nil {
		t.Fatal(err)
	}
	before := k.Snapshot()
	other := *element(8080)
	other.Data = "10.1.0.9 . 80"
	errs := k.Apply(context.Background(), []kernel.Change{
		{Op: kernel.Delete, Old: element(8081)}, {Op: kernel.Create, New: &other}, {Op: kernel.Create, New: element(1)},
	})
	for i, err := range errs {
		if err == nil || errors.Is(err, kernel.ErrExists) != (i == 1) {
			t.Errorf("change %d: got %v", i, err)
		}
	}
	if d := before.Diff(k.Snapshot()); d != "" {
		t.Errorf("a refused transaction changed:\n%s", d)
	}
}

func TestSnapshotDiff(t *testing.T) {
	k := machine()
	if err := pass(t, k, world(), nil); err != nil {
		t.Fatal(err)
	}
	before := k.Snapshot()
	k.AddForeign(&kernel.Link{Name: "ext0", Type: kernel.Bridge})
	k.AddForeign(&kernel.Rule{Priority: 7, Table: 100})
	k.Break(element(8080).Key())
	k.Break(kernel.Key{Kind: kernel.KindSysctl, Name: "net/ipv4/conf/sn-a/route_localnet"})
	l := *world()[4].(*kernel.Link)
	l.MTU = 1300
	if err := k.Apply(context.Background(), []kernel.Change{{Op: kernel.Update, Old: world()[4], New: &l}})[0]; err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"+ other's link ext0 type bridge",
		"+ other's rule v4 priority 7 lookup 100",
		"- element inet seine port4 { tcp . 8080 : 10.1.0.2 . 80 }",
		"- sysctl net/ipv4/conf/sn-a/route_localnet = 1",
		"~ " + l.String() + "  (was: " + world()[4].String() + ")",
	}, "\n")
	if got := before.Diff(k.Snapshot()); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if k.Break(element(8080).Key()) || k.Break(kernel.Key{Kind: kernel.KindLink, NS: "/nope", Name: "lo"}) {
		t.Error("what is not there was broken")
	}
}

func TestAddForeignRefuses(t *testing.T) {
	for _, o := range []kernel.Object{
		&kernel.Link{Name: "x", Type: kernel.Bridge, Alias: "seine:network/x"},
		&kernel.Addr{Link: "nope", Prefix: pfx("10.1.0.1/24")},
		&kernel.LinkUp{NS: "/nope", Link: "lo"},
		element(80),
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was taken for foreign", o)
				}
			}()
			machine().AddForeign(o)
		}()
	}
}

func TestConcurrent(t *testing.T) {
	k := machine()
	if err := pass(t, k, world(), nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			e := element(9000 + n)
			for range 50 {
				k.Apply(context.Background(), []kernel.Change{{Op: kernel.Create, New: e}})
				if objs, err := k.List(context.Background(), kernel.Scope{Objects: []kernel.Object{e}}); err != nil || len(objs) != 1 {
					t.Errorf("listed %v, %v", objs, err)
				}
				k.Dump()
				k.Apply(context.Background(), []kernel.Change{{Op: kernel.Delete, Old: e}})
			}
		})
	}
	wg.Wait()
	if got := k.Dump(); got != worldDump {
		t.Errorf("afterwards:\n%s", got)
	}
}

func TestDumpLeavesOutTheKernelsOwn(t *testing.T) {
	k := fake.New()
	k.AddNamespace(ns)
	b := &kernel.Link{NS: ns, Name: "sn-a", Type: kernel.Bridge, Alias: "seine:network/a"}
	for _, o := range []kernel.Object{
		&kernel.LinkUp{NS: ns, Link: "lo"}, b, &kernel.LinkUp{NS: ns, Link: "sn-a"},
		&kernel.Addr{NS: ns, Link: "sn-a", Prefix: pfx("10.1.0.1/24")},
		&kernel.Sysctl{NS: ns, Name: "net/ipv6/conf/sn-a/accept_ra", Value: "1"},
	} {
		if err := k.Apply(context.Background(), []kernel.Change{{Op: kernel.Create, New: o}})[0]; err != nil {
			t.Fatal(err)
		}
	}
	const want = `addr 10.1.0.1/24 dev sn-a netns /run/netns/a
link lo up netns /run/netns/a
link sn-a type bridge alias seine:network/a netns /run/netns/a
link sn-a up netns /run/netns/a
`
	if got := k.Dump(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	k.RemoveNamespace("")
	k.RemoveNamespace(ns)
	k.RemoveNamespace(ns)
	if got := k.Dump(); got != "" {
		t.Errorf("with the namespace gone there is:\n%s", got)
	}
	if objs, err := k.List(context.Background(), kernel.Scope{Objects: []kernel.Object{b, &kernel.Link{Name: "lo", Type: kernel.Loopback}}}); err != nil ||
		len(objs) != 1 || objs[0].Key().Name != "lo" {
		t.Errorf("listed %v, %v", objs, err)
	}
}

// TestListedElement wants no more from a listing than a kernel knows.
func TestListedElement(t *testing.T) {
	k := machine()
	if err := pass(t, k, world(), nil); err != nil {
		t.Fatal(err)
	}
	e := element(8082)
	e.Flush = &kernel.Flow{Protocol: "udp", Port: 8082}
	if err := k.Apply(context.Background(), []kernel.Change{{Op: kernel.Create, New: e}})[0]; err != nil {
		t.Fatal(err)
	}
	objs, err := k.List(context.Background(), kernel.Scope{Objects: []kernel.Object{e}})
	if err != nil || len(objs) != 1 {
		t.Fatalf("listed %v, %v", objs, err)
	}
	if got := objs[0].(*kernel.Element); got.Flush != nil || got.Comment != "a" || got.Data != e.Data {
		t.Errorf("listed as %+v", got)
	}
}

// TestOtherSets wants a table with other sets to start empty: that is the worst that a backend may do.
func TestOtherSets(t *testing.T) {
	k := machine()
	if err := pass(t, k, world(), nil); err != nil {
		t.Fatal(err)
	}
	other := *world()[0].(*kernel.Table)
	other.Sets = append([]*kernel.Set{{Name: "more", Key: []kernel.Type{kernel.TypeIPv4}}}, other.Sets...)
	// One more set leaves the elements where they are, one less is another table.
	for _, c := range []struct {
		from, to kernel.Object
		want     []string
	}{
		{world()[0], &other, []string{"~ table inet seine (2 sets, 1 chains)  (was: table inet seine (1 sets, 1 chains))"}},
		{&other, world()[0], []string{"- " + element(8080).String(), "- " + element(8081).String(),
			"~ table inet seine (1 sets, 1 chains)  (was: table inet seine (2 sets, 1 chains))"}},
	} {
		before := k.Snapshot()
		if err := k.Apply(context.Background(), []kernel.Change{{Op: kernel.Update, Old: c.from, New: c.to}})[0]; err != nil {
			t.Fatal(err)
		}
		if got, want := before.Diff(k.Snapshot()), strings.Join(c.want, "\n"); got != want {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
	}
}
