package fake_test

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/fake"
	"github.com/seine-net/seine/internal/kernel/kerneltest"
)

func TestConformance(t *testing.T) {
	kerneltest.Run(t, newRig)
}

func newRig(*testing.T) kerneltest.Rig {
	k := fake.New()
	return kerneltest.Rig{Kernel: k, Hands: &hands{k: k}}
}

// hands are kerneltest.Hands by the fake's own means.
type hands struct {
	k    *fake.Kernel
	next atomic.Int32
}

func (h *hands) AddNamespace(testing.TB) string {
	path := fmt.Sprintf("/run/netns/t%d", h.next.Add(1))
	h.k.AddNamespace(path)
	return path
}

func (h *hands) RemoveNamespace(_ testing.TB, path string) { h.k.RemoveNamespace(path) }

func (h *hands) Remove(t testing.TB, o kernel.Object) {
	t.Helper()
	if !h.k.Break(o.Key()) {
		t.Fatalf("%s: is not there to be removed", o)
	}
}

func (h *hands) Move(t testing.TB, link, to, name string) {
	t.Helper()
	if !h.k.Move("", link, to, name) {
		t.Fatalf("link %q can't be moved to %q", link, to)
	}
}

func (h *hands) AddForeign(_ testing.TB, o kernel.Object) { h.k.AddForeign(o) }

func (h *hands) AddForeignTarget(_ testing.TB, family, table, chain string, rules ...string) {
	h.k.AddForeignTarget(family, table, chain, rules...)
}

func (h *hands) AddForeignChain(_ testing.TB, family, table, chain string, rules ...string) {
	h.k.AddForeignChain(family, table, chain, rules...)
}

func (h *hands) ForeignRules(_ testing.TB, family, table, chain string) []string {
	return h.k.ForeignRules(family, table, chain)
}

func (h *hands) AddRule(t testing.TB, ns, table, chain, rule string) {
	t.Helper()
	if !h.k.AddRule(ns, table, chain, rule) {
		t.Fatalf("chain %q: is not there", chain)
	}
}

func (h *hands) Occupy(_ testing.TB, protocol string, at netip.AddrPort) (func(), error) {
	err := h.k.Occupy(protocol, at)
	return func() { h.k.Vacate(protocol, at) }, err
}

func (h *hands) Usable(_ testing.TB, ns string, ip netip.Addr) bool { return h.k.Usable(ns, ip) }

func (h *hands) Settle() {}
