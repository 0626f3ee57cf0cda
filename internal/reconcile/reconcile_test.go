package reconcile_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/fake"
	"github.com/seine-net/seine/internal/reconcile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func bridge(name string, mtu int) []kernel.Object {
	return []kernel.Object{
		&kernel.Link{Name: name, Type: kernel.Bridge, MTU: mtu, Alias: "seine:" + name},
		&kernel.LinkUp{Link: name},
		&kernel.Addr{Link: name, Prefix: netip.MustParsePrefix("10.1.0.1/24")},
		&kernel.Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.1.0.9"), Link: name},
	}
}

func TestApplyIsIdempotentAndRemoves(t *testing.T) {
	ctx, k := context.Background(), fake.New()
	before := k.Dump()
	for range 2 {
		if err := reconcile.Apply(ctx, k, bridge("br", 1500), nil); err != nil {
			t.Fatal(err)
		}
		if diff, err := reconcile.Check(ctx, k, bridge("br", 1500)); err != nil || len(diff) > 0 {
			t.Fatalf("differs: %v, %v", diff, err)
		}
	}
	for range 2 {
		if err := reconcile.Apply(ctx, k, nil, bridge("br", 1500)); err != nil {
			t.Fatal(err)
		}
	}
	if k.Dump() != before {
		t.Errorf("left:\n%s", k.Dump())
	}
}

func TestApplyReturnsTheCauseNotWhatFollowsFromIt(t *testing.T) {
	k, cause := fake.New(), errors.New("no memory")
	k.FailIf(func(c kernel.Change) error {
		if c.Key().Kind == kernel.KindLink {
			return cause
		}
		return nil
	})
	if err := reconcile.Apply(context.Background(), k, bridge("br", 1500), nil); !errors.Is(err, cause) {
		t.Errorf("error is %v", err)
	}
}

func TestWhatIsNotOursIsNeverTouched(t *testing.T) {
	k := fake.New()
	k.AddForeign(&kernel.Link{Name: "br", Type: kernel.Bridge, MTU: 1400})
	before := k.Dump()
	if err := reconcile.Apply(context.Background(), k, bridge("br", 1500)[:1], nil); !errors.Is(err, kernel.ErrExists) {
		t.Errorf("error is %v", err)
	}
	if k.Dump() != before {
		t.Errorf("a link of somebody else was changed:\n%s", k.Dump())
	}
}

func TestElementOfAnotherIsNeverOverwritten(t *testing.T) {
	ctx, k := context.Background(), fake.New()
	set := &kernel.Set{Name: "m", Key: []kernel.Type{kernel.TypeService}, Data: []kernel.Type{kernel.TypeMark}}
	table := &kernel.Table{Name: "seine_t", Sets: []*kernel.Set{set}}
	el := func(data, by string) kernel.Object {
		return &kernel.Element{Table: "seine_t", Set: set, Item: "80", Data: data, Comment: by}
	}
	if err := reconcile.Apply(ctx, k, []kernel.Object{table, el("1", "a")}, nil); err != nil {
		t.Fatal(err)
	}
	if err := reconcile.Apply(ctx, k, []kernel.Object{el("2", "b")}, nil); !errors.Is(err, kernel.ErrExists) {
		t.Errorf("error is %v", err)
	}
	if err := reconcile.Apply(ctx, k, []kernel.Object{el("2", "a")}, nil); err != nil {
		t.Errorf("its own owner may change it: %v", err)
	}
}

// loop runs a Reconciler until the test ends.
func loop(t *testing.T, k kernel.Kernel, want *desired.Set) *reconcile.Reconciler {
	r := reconcile.New(k, want, quiet)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func TestNothingIsPrunedBeforeTheStateIsLoaded(t *testing.T) {
	ctx, k := context.Background(), fake.New()
	if err := reconcile.Apply(ctx, k, append(bridge("old", 1500), bridge("kept", 1500)[:2]...), nil); err != nil {
		t.Fatal(err)
	}
	want := desired.New()
	r := loop(t, k, want)
	dump := k.Dump()
	if err := r.SyncAll(ctx); err != nil {
		t.Fatal(err)
	}
	if k.Dump() != dump {
		t.Fatalf("a daemon that knows nothing yet changed the kernel:\n%s", k.Dump())
	}
	if _, err := want.Set("n", bridge("kept", 1500)[:2]...); err != nil {
		t.Fatal(err)
	}
	r.Loaded()
	if err := r.SyncAll(ctx); err != nil {
		t.Fatal(err)
	}
	objs, _ := k.List(ctx, kernel.Scope{All: true})
	for _, o := range objs {
		if l, ok := o.(*kernel.Link); ok && l.Name == "old" {
			t.Errorf("what nobody wants is still there: %s", l)
		}
	}
	if diff, err := reconcile.Check(ctx, k, bridge("kept", 1500)[:2]); err != nil || len(diff) > 0 {
		t.Errorf("what is wanted differs: %v, %v", diff, err)
	}
}

func TestReplacedLinkGetsItsThingsBack(t *testing.T) {
	ctx, k, want := context.Background(), fake.New(), desired.New()
	r := loop(t, k, want)
	k.AddNamespace("/n1")
	k.AddNamespace("/n2")
	veth := func(ns string) []kernel.Object {
		return []kernel.Object{
			&kernel.Link{Name: "sv-1", Type: kernel.Veth, Alias: "seine:e", Peer: &kernel.Peer{NS: ns, Name: "eth0", Alias: "seine:e"}},
			&kernel.LinkUp{Link: "sv-1"}, &kernel.LinkUp{NS: ns, Link: "eth0"},
			&kernel.Addr{Link: "sv-1", Prefix: netip.MustParsePrefix("10.1.0.1/24")},
			&kernel.Addr{NS: ns, Link: "eth0", Prefix: netip.MustParsePrefix("10.1.0.2/24")},
			&kernel.Route{NS: ns, Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.1.0.1"), Link: "eth0"},
		}
	}
	for _, ns := range []string{"/n1", "/n2", "/n1"} {
		keys, err := want.Set("e", veth(ns)...)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Sync(ctx, keys); err != nil {
			t.Fatal(err)
		}
		if diff, err := reconcile.Check(ctx, k, veth(ns)); err != nil || len(diff) > 0 {
			t.Fatalf("moved to %s it differs: %v, %v", ns, diff, err)
		}
	}
}

func TestRefusalIsTriedAgainAndKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		k, want := fake.New(), desired.New()
		r := reconcile.New(k, want, quiet)
		done := make(chan struct{})
		go func() { r.Run(ctx); close(done) }()
		boom := errors.New("boom")
		k.FailIf(func(kernel.Change) error { return boom })
		keys, _ := want.Set("n", bridge("br", 1500)...)
		if err := r.Sync(ctx, keys); !errors.Is(err, boom) {
			t.Fatalf("error is %v", err)
		}
		if !errors.Is(r.Cause(keys), boom) || len(r.Problems()) == 0 {
			t.Error("the failure is not kept")
		}
		k.FailIf(nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if p := r.Problems(); len(p) != 0 {
			t.Errorf("two seconds later there are problems: %v", p)
		}
		if diff, err := reconcile.Check(ctx, k, bridge("br", 1500)); err != nil || len(diff) > 0 {
			t.Errorf("it was not tried again: %v, %v", diff, err)
		}
		ops := k.Ops()
		time.Sleep(time.Hour)
		synctest.Wait()
		if k.Ops() != ops {
			t.Errorf("an idle hour did %d kernel operations", k.Ops()-ops)
		}
		cancel()
		<-done
	})
}

func TestWhoWaitsIsToldThatTheLoopEnded(t *testing.T) {
	k, want := fake.New(), desired.New()
	r := reconcile.New(k, want, quiet)
	keys, _ := want.Set("n", bridge("br", 1500)...)
	early := make(chan error)
	go func() { early <- r.Sync(context.Background(), keys) }()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r.Run(ctx)
	if err := <-early; err != nil && !errors.Is(err, reconcile.ErrEnded) && !errors.Is(err, context.Canceled) {
		t.Errorf("who waited: %v", err)
	}
	if err := r.Sync(context.Background(), keys); !errors.Is(err, reconcile.ErrEnded) {
		t.Errorf("who came later: %v", err)
	}
}

func TestMovedLinkGoesBackHome(t *testing.T) {
	ctx, k, want := context.Background(), fake.New(), desired.New()
	r := loop(t, k, want)
	k.AddNamespace("/n1")
	if err := errors.Join(k.Apply(ctx, []kernel.Change{{Op: kernel.Create, New: &kernel.Link{Name: "vx1", Type: kernel.Dummy}}})...); err != nil {
		t.Fatal(err)
	}
	before := k.Dump()
	if _, err := want.Set("e", &kernel.Link{NS: "/n1", Name: "eth0", Home: "vx1"}); err != nil {
		t.Fatal(err)
	}
	for _, keys := range [][]kernel.Key{want.Keys("e"), want.Drop("e")} {
		if err := r.Sync(ctx, keys); err != nil {
			t.Fatal(err)
		}
		if len(keys) == 0 || want.OwnerOf(keys[0]) != "" && k.Dump() == before {
			t.Error("the link was not moved")
		}
	}
	if after := k.Dump(); after != before {
		t.Errorf("the kernel is\n%s\nwas\n%s", after, before)
	}
}

// TestRoutesFollowANexthop: a change to another link that can't be made takes the routes along with the link of before;
// going back brings them back.
func TestRoutesFollowANexthop(t *testing.T) {
	ctx, k, want := context.Background(), fake.New(), desired.New()
	r := loop(t, k, want)
	by := func(link string) []kernel.Object {
		return []kernel.Object{
			&kernel.Link{Name: link, Type: kernel.Dummy, Alias: "seine:e"},
			&kernel.LinkUp{Link: link},
			&kernel.Addr{Link: link, Prefix: netip.MustParsePrefix("10.1.0.1/24")},
			&kernel.Nexthop{ID: 7, Via: netip.MustParseAddr("10.1.0.9"), Link: link},
			&kernel.Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Nexthop: 7},
		}
	}
	for _, link := range []string{"a", "b", "a", "c", "a"} {
		k.FailIf(func(c kernel.Change) error {
			if l, ok := c.New.(*kernel.Link); ok && l.Name == "b" {
				return kernel.ErrUnsupported
			}
			return nil
		})
		keys, err := want.Set("e", by(link)...)
		if err != nil {
			t.Fatal(err)
		}
		err = r.Sync(ctx, keys)
		if link == "b" {
			if !errors.Is(err, kernel.ErrUnsupported) {
				t.Fatalf("error is %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if diff, err := reconcile.Check(ctx, k, by(link)); err != nil || len(diff) > 0 {
			t.Fatalf("by %s it differs: %v, %v", link, diff, err)
		}
	}
}
