package engine_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/builtin"
	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/engine"
	"github.com/seine-net/seine/internal/ipam/pool"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/reconcile"
	"github.com/seine-net/seine/internal/state"
)

// willing is a kernel that does all that it is asked and remembers nothing, to see what the engine itself costs.
type willing struct{}

func (willing) List(context.Context, kernel.Scope) ([]kernel.Object, error) { return nil, nil }
func (willing) Apply(_ context.Context, c []kernel.Change) []error          { return make([]error, len(c)) }

type anywhere struct{}

func (anywhere) CheckNetns(string) (uint64, error) { return 0, nil }
func (anywhere) ProcessStart(int) (uint64, error)  { return 1, nil }
func (anywhere) CheckMovable(string) error         { return nil }
func (anywhere) WatchProcess(int, uint64, func())  {}

// BenchmarkAttach is the engine's own share of an attach and a detach at a number of endpoints that are there, and the
// memory that one of these takes.
func BenchmarkAttach(b *testing.B) {
	for _, n := range []int{10, 1000, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			store, err := state.Open(filepath.Join("/dev/shm", fmt.Sprintf("seine-bench-%d.db", n)))
			if err != nil {
				b.Skip("skip: needs /dev/shm: ", err)
			}
			log := slog.New(slog.NewTextHandler(io.Discard, nil))
			want := desired.New()
			loop := reconcile.New(willing{}, want, log)
			ctx, cancel := context.WithCancel(context.Background())
			var running sync.WaitGroup
			running.Go(func() { loop.Run(ctx) })
			defer func() { _ = store.Close(); cancel(); running.Wait() }()
			e := engine.New(engine.Config{Store: store, Want: want, Loop: loop, Drivers: builtin.Drivers(), Addons: builtin.Addons(),
				Machine: anywhere{}, Log: log, DNSPort: 5380,
				Pools: pool.Subnets{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Bits: 20}, {Prefix: netip.MustParsePrefix("fd00:5e::/48"), Bits: 64}},
			}, kernel.Facts{})
			if err := e.Load(ctx); err != nil {
				b.Fatal(err)
			}
			for i := range 10 {
				if _, err := e.PutNetwork(ctx, api.Network{Name: fmt.Sprint("n", i)}, 0); err != nil {
					b.Fatal(err)
				}
			}
			put := func(i int, ports ...api.Port) {
				name := fmt.Sprint("c", i)
				if _, err := e.PutEndpoint(ctx, api.Endpoint{Network: fmt.Sprint("n", i%10), Name: name, Ports: ports,
					Sandbox: api.Sandbox{Netns: "/run/netns/" + name}}, 0); err != nil {
					b.Fatal(err)
				}
			}
			before := heap()
			for i := range n {
				put(i)
			}
			perEndpoint := float64(heap()-before) / float64(n)
			b.ReportAllocs()
			for b.Loop() {
				put(n, api.Port{HostPort: 80, ContainerPort: 80}, api.Port{HostPort: 81, ContainerPort: 81})
				if err := e.DeleteEndpoint(ctx, fmt.Sprint("n", n%10), fmt.Sprint("c", n), 0); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(perEndpoint, "B/endpoint")
			_ = e.Reset(ctx)
		})
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
