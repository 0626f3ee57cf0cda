package fake_test

import (
	"context"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/fake"
	"github.com/seine-net/seine/internal/kernel/kerneltest"
)

// TestRandom wants that a kernel which went through many wanted sets ends as a fresh one does that only saw the last.
func TestRandom(t *testing.T) {
	runs, steps := uint64(200), 10
	if testing.Short() {
		runs = 20
	}
	for seed := range runs {
		k := fake.New()
		want := kerneltest.Random(t, kerneltest.Rig{Kernel: k, Hands: &hands{k: k}}, seed, steps)

		fresh := fake.New()
		for _, path := range []string{"/run/netns/t1", "/run/netns/t2", "/run/netns/t3"} {
			fresh.AddNamespace(path)
		}
		changes := kernel.Diff(want, nil)
		for i, err := range fresh.Apply(context.Background(), changes) {
			if err != nil {
				t.Fatalf("seed %d: a fresh kernel refuses %s: %v", seed, changes[i], err)
			}
		}
		for _, path := range []string{"/run/netns/t1", "/run/netns/t2", "/run/netns/t3"} {
			for _, k := range []*fake.Kernel{k, fresh} { // lo stays up once it was, and a link's sysctls go with it
				k.Apply(context.Background(), []kernel.Change{{Op: kernel.Create, New: &kernel.LinkUp{NS: path, Link: "lo"}}})
			}
		}
		if d := fresh.Snapshot().Diff(k.Snapshot()); d != "" {
			t.Fatalf("seed %d: it is not as a fresh kernel would be:\n%s", seed, d)
		}
	}
}
