package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/seine-net/seine/api"
)

// TestRandomSequences runs random verbs, kills, restarts, damage and faults, and compares with a fresh application of
// what is then wanted. SEINE_SEQUENCES sets how many sequences; the seed is in the name of a failed one.
func TestRandomSequences(t *testing.T) {
	count := sequences
	if s := os.Getenv("SEINE_SEQUENCES"); s != "" {
		count, _ = strconv.Atoi(s)
	}
	const workers = 4
	for w := range workers {
		t.Run(fmt.Sprint("worker", w), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			for i := w; i < count; i += workers {
				if !sequence(t, r, uint64(i)) {
					t.Fatalf("sequence %d failed", i)
				}
			}
		})
	}
}

// sequence is ten random steps on what the sequences before left; it ends in a check.
func sequence(t *testing.T, r *rig, seed uint64) bool {
	rnd := rand.New(rand.NewPCG(seed, 1))
	ctx := context.Background()
	nets := []string{"a", "b", "c"}
	pick := func() string { return nets[rnd.IntN(len(nets))] }
	name := func() string { return fmt.Sprint("c", rnd.IntN(6)) }
	for range 10 {
		switch rnd.IntN(14) {
		case 0:
			n := api.Network{Name: pick()}
			if n.Name == "b" {
				n.Driver = "ptp"
			}
			on := rnd.IntN(2) == 0
			n.ICC, n.Masquerade = &on, &on
			_, _ = r.PutNetwork(ctx, n, 0)
		case 1:
			_ = r.DeleteNetwork(ctx, pick(), 0)
		case 2, 3, 4, 5:
			var ports []api.Port
			for range rnd.IntN(3) {
				ports = append(ports, api.Port{Protocol: []string{"tcp", "udp", "sctp"}[rnd.IntN(3)], HostPort: uint16(8000 + rnd.IntN(5)), ContainerPort: 80})
			}
			_, _ = r.tryAttach(pick(), name(), ports...)
		case 6, 7:
			_ = r.DeleteEndpoint(ctx, pick(), name(), 0)
		case 8:
			r.restart()
		case 9:
			r.kernel.CrashAt(1 + rnd.IntN(8))
			_, _ = r.tryAttach(pick(), name())
			_ = r.DeleteEndpoint(ctx, pick(), name(), 0)
			r.restart()
		case 10:
			r.kernel.FailAt(1+rnd.IntN(12), errFault)
			_, _ = r.tryAttach(pick(), name(), api.Port{HostPort: 8000, ContainerPort: 80})
			r.kernel.FailAt(0, nil)
		case 11:
			if ks := r.want.Keys(""); len(ks) > 0 {
				r.kernel.Break(ks[rnd.IntN(len(ks))])
			}
		case 12:
			r.kernel.RemoveNamespace("/run/netns/" + name())
		case 13:
			_ = r.Collect(ctx)
		}
	}
	r.restart()
	_ = r.Collect(ctx)
	r.settled()
	return !t.Failed()
}

var errFault = errors.New("injected fault")
