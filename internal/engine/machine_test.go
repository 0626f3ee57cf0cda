package engine_test

import (
	"slices"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/engine"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/ruleset"
)

// TestDockersBridgesAreApart: containers of ours don't reach those of Docker's own networks, as far as the bridges' names tell.
func TestDockersBridgesAreApart(t *testing.T) {
	r := newRig(t)
	if _, err := r.PutNetwork(t.Context(), api.Network{Name: "net"}, 0); err != nil {
		t.Fatal(err)
	}
	apart := func(names ...string) []string {
		t.Helper()
		var f kernel.Facts
		for _, name := range names {
			f.Links = append(f.Links, kernel.LinkFact{Name: name})
		}
		if err := r.SetFacts(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, o := range r.want.Objects(r.want.Keys(engine.MachineOwner)) {
			if el, ok := o.(*kernel.Element); ok && el.Set == ruleset.Apart {
				out = append(out, el.Item)
			}
		}
		slices.Sort(out)
		return out
	}
	got := apart("eth0", "docker0", "br-0123456789ab", "br-lan", "br-0123456789abc", "br-ex0123456789", "docker1")
	if want := []string{"br-0123456789ab", "docker0"}; !slices.Equal(got, want) {
		t.Errorf("apart are %q, want %q", got, want)
	}
	if got := apart("eth0"); len(got) > 0 {
		t.Errorf("apart are %q after the bridges are gone", got)
	}
}
