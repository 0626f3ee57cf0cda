package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/bench/internal/floor"
	"github.com/seine-net/seine/bench/internal/rig"
)

// prepareFloor gives the floor a container and a table of its own, and every network the bridge that it will attach to:
// one is there as soon as its network has had an endpoint.
func (b *bench) prepareFloor(ctx context.Context) error {
	for i := range *networks {
		if _, _, err := b.pair(ctx, i); err != nil {
			return err
		}
	}
	b.floor.netns = b.netns("floor")
	return errors.Join(rig.MakeNetns(b.floor.netns), floor.Machine("", netip.Prefix{}))
}

// floors attaches beside the daemon.
type floors struct {
	netns string // of its container; "" before prepareFloor
	host  floor.Host
}

// halfMade is the group that kernel/linux gives to links of ours that are not finished. With it the daemon takes no notice
// of the floor's; at those of others it looks at all links of the machine anew, which would be measured as its own work.
const halfMade = 0x5e14e

// spec is an attachment such as the daemon's: two families, and as many elements for masquerading and ports.
func (f *floors) spec(i int) *floor.Spec {
	a4, a6 := netip.MustParsePrefix("198.18.0.2/16"), netip.MustParsePrefix("2001:db8::2/64")
	s := &floor.Spec{Netns: f.netns, IfName: "eth0", Host: "floor0", Group: halfMade, Addrs: []netip.Prefix{a4, a6},
		Gateways: []netip.Addr{a4.Addr().Prev(), a6.Addr().Prev()}}
	if *driver == "bridge" {
		s.Bridge = bridge(i % *networks)
	}
	for n, a := range []netip.Addr{a4.Addr(), a4.Addr().Next()} { // the second one stands for IPv6's
		s.Elements = append(s.Elements, floor.Address(floor.MasqueradeSet, a))
		for p := range *ports {
			s.Elements = append(s.Elements, floor.Port(unix.IPPROTO_TCP, uint16(40000+2*p+n), netip.AddrPortFrom(a, uint16(80+p))))
		}
	}
	return s
}

// pair attaches and detaches once, on a thread that goes back to the machine's namespace in between.
func (f *floors) pair(i int) (attach, detach, cpu time.Duration, err error) {
	err = rig.OnThread(func() error {
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(home)
		s, before := f.spec(i), threadTime()
		t := time.Now()
		if err := s.Add(&f.host); err != nil {
			return fmt.Errorf("floor: attach: %w", err)
		}
		attach = time.Since(t)
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			return err
		}
		t = time.Now()
		if err := s.Del(&f.host); err != nil {
			return fmt.Errorf("floor: detach: %w", err)
		}
		detach, cpu = time.Since(t), threadTime()-before
		return nil
	})
	return attach, detach, cpu, err
}

// threadTime is the processor time of the calling thread.
func threadTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &u) // fails for a wrong argument only
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// sampled is what was found at one level, times in milliseconds.
type sampled struct {
	level                    int
	attach, detach           []float64
	floorAttach, floorDetach []float64
	cpu, floorCPU            float64 // of a pair
	memory                   int
}

// measure takes samples of the daemon and of the floor in turns.
func (b *bench) measure(ctx context.Context, level int) (*sampled, error) {
	s := &sampled{level: level}
	var ourCPU, floorCPU time.Duration
	for i := range *samples {
		before := b.cpu()
		at, dt, err := b.pair(ctx, i)
		if err != nil {
			return nil, err
		}
		ourCPU += b.cpu() - before
		fa, fd, cpu, err := b.floor.pair(i)
		if err != nil {
			return nil, err
		}
		for _, x := range []struct {
			to *[]float64
			d  time.Duration
		}{{&s.attach, at}, {&s.detach, dt}, {&s.floorAttach, fa}, {&s.floorDetach, fd}} {
			*x.to = append(*x.to, float64(x.d)/1e6)
		}
		floorCPU += cpu
	}
	n := float64(*samples) * 1e6
	s.cpu, s.floorCPU, s.memory = float64(ourCPU)/n, float64(floorCPU)/n, b.memory()
	return s, nil
}

// pairs gives the times of attach and detach together.
func (s *sampled) pairs() []float64 { return sums(s.attach, s.detach) }

func (s *sampled) floorPairs() []float64 { return sums(s.floorAttach, s.floorDetach) }

func sums(a, b []float64) []float64 {
	out := slices.Clone(a)
	for i := range out {
		out[i] += b[i]
	}
	return out
}

func header() string {
	return fmt.Sprintf(`attach and detach through the API, driver %s, %d networks, %d published ports each, %d samples per row, load average %s;
times in ms; floor: the same kernel operations by a bare program on the same bridges, in turns with the daemon's; x: daemon to floor,
median over the samples; cpu: processor time of an attach and a detach

%9s | %7s %7s %7s %5s | %7s %7s %7s %5s | %6s %6s %5s | %9s %12s
%9s | %7s %7s %7s %5s | %7s %7s %7s %5s | %6s %6s %5s |`, *driver, *networks, *ports, *samples, rig.LoadAverage(),
		"", "attach", "attach", "floor", "", "detach", "detach", "floor", "", "cpu", "floor", "", "memory", "per endpoint",
		"endpoints", "p50", "p99", "p50", "x", "p50", "p99", "p50", "x", "", "", "x")
}

// row is one line of the table. What an endpoint takes is counted from the first level on.
func (s *sampled) row(first *sampled) string {
	line := fmt.Sprintf("%9d", s.level)
	for _, x := range [][2][]float64{{s.attach, s.floorAttach}, {s.detach, s.floorDetach}} {
		line += fmt.Sprintf(" | %7.2f %7.2f %7.2f %5.2f", rig.Quantile(x[0], .5), rig.Quantile(x[0], .99), rig.Quantile(x[1], .5),
			rig.Median(rig.Ratios(x[0], x[1])))
	}
	return line + fmt.Sprintf(" | %6.2f %6.2f %5.2f | %6d MB %10d B", s.cpu, s.floorCPU, s.cpu/s.floorCPU, s.memory>>20,
		(s.memory-first.memory)/max(s.level-first.level, 1))
}

// summary compares the last level with that of ten endpoints, or with the first where there is none.
func summary(all []*sampled) {
	last, base := all[len(all)-1], all[0]
	for _, s := range all {
		if s.level == 10 {
			base = s
		}
	}
	if last == base {
		return
	}
	quotient := func(of func(*sampled) []float64, q float64) float64 {
		return rig.Quantile(of(last), q) / rig.Quantile(of(base), q)
	}
	fmt.Printf("\nattach and detach at %d to those at %d: p99 %.2f (goal: at most 1.20), p50 %.2f, cpu %.2f; the floor's: p99 %.2f, p50 %.2f, cpu %.2f\n",
		last.level, base.level, quotient((*sampled).pairs, .99), quotient((*sampled).pairs, .5), last.cpu/base.cpu,
		quotient((*sampled).floorPairs, .99), quotient((*sampled).floorPairs, .5), last.floorCPU/base.floorCPU)
}

// cpu is the processor time that the daemon has taken: its process's clock, as clock_getcpuclockid(3) names it.
func (b *bench) cpu() time.Duration {
	const processTotal = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	_ = unix.ClockGettime(int32(^b.daemon.Process.Pid<<3|processTotal), &t) // it fails only where there is no such process
	return time.Duration(t.Nano())
}

// memory is the daemon's own memory in bytes: resident and not backed by a file (the store's file is mapped, and the
// kernel may drop it at any time).
func (b *bench) memory() int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.daemon.Process.Pid))
	for line := range strings.Lines(string(data)) {
		if kb, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(kb), " kB"))
			return n << 10
		}
	}
	return 0
}
