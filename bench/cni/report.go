package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// verbs by index, as in series.
var verbs = [2]string{"ADD", "DEL"}

// series are samples by verb and implementation.
type series [2][2][]cost

// bench keeps what is printed at the end.
type bench struct {
	levels  []int
	plugins [2]string // folders, by implementation
	growth  []string
	counts  []string
	rss     [2]int
}

// chain measures one chain at all levels.
func (b *bench) chain(ctx context.Context, c chain) (err error) {
	var ms [2]*machine
	defer func() {
		for _, m := range ms {
			if m != nil {
				err = errors.Join(err, m.stop(c.IfName))
			}
		}
	}()
	for i := range ms {
		if ms[i], err = startMachine(ctx, setup{Impl: impls[i], Plugins: b.plugins[i], Chain: c}); err != nil {
			return err
		}
	}
	var first, last series
	have := 0
	for n, level := range b.levels {
		if err := fill(ms, have, level); err != nil {
			return err
		}
		have = level
		if last, err = b.level(ctx, ms, level); err != nil {
			return err
		}
		fmt.Println(last.row(c, level))
		if n == 0 {
			first = last
		}
	}
	fmt.Println()
	if len(b.levels) > 1 {
		b.growth = append(b.growth, growth(c, &first, &last))
	}
	return b.counted(ms, c)
}

// fill attaches containers from to to-1 to both machines at the same time.
func fill(ms [2]*machine, from, to int) error {
	errs := make(chan error)
	for _, m := range ms {
		go func() {
			_, err := m.do(request{From: from, Count: to - from, Width: 2})
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs)
}

func (b *bench) level(ctx context.Context, ms [2]*machine, level int) (s series, err error) {
	for n := -warmUps; n < *samples && err == nil; n++ {
		for k := range ms {
			impl := (k + n + warmUps) % 2
			for verb := range verbs {
				costs, err := ms[impl].do(request{Del: verb == 1, From: b.levels[len(b.levels)-1], Count: *parallel, Width: *parallel})
				if err != nil {
					return s, err
				}
				if n >= 0 {
					s[verb][impl] = append(s[verb][impl], costs...)
				}
			}
		}
		err = ctx.Err()
	}
	return s, err
}

// counted takes what does not depend on the clock: system calls, processes and memory.
func (b *bench) counted(ms [2]*machine, c chain) error {
	_, noStrace := exec.LookPath("strace")
	var got [2][2]cost
	for impl, m := range ms {
		for _, h := range []how{traced, resident} {
			if h == traced && noStrace != nil {
				continue
			}
			for verb := range verbs {
				costs, err := m.do(request{Del: verb == 1, From: b.levels[len(b.levels)-1], Count: 1, Width: 1, How: h})
				if err != nil {
					return err
				}
				if h == resident {
					b.rss[impl] = max(b.rss[impl], costs[0].RSS)
				} else {
					got[verb][impl] = costs[0]
				}
			}
		}
	}
	if noStrace == nil {
		line := fmt.Sprintf("%-20s", c.Name)
		for verb := range verbs {
			r, o := got[verb][refImpl], got[verb][ourImpl]
			line += fmt.Sprintf(" %9d %5d %9d %6d %6.2f", r.Procs, o.Procs, r.Calls, o.Calls, float64(o.Calls)/float64(r.Calls))
		}
		b.counts = append(b.counts, line)
	}
	return nil
}

func header(levels []int) string {
	var s strings.Builder
	fmt.Fprintf(&s, "CNI ADD and DEL, whole plugin processes: seine-cni beside the reference plugins in %s\n", *reference)
	fmt.Fprintf(&s, "%d samples per row and implementation, alternating, %d at once; ms are p50 and p90 of each, x is seine to reference, median over the samples;\n", *samples, *parallel)
	fmt.Fprintf(&s, "IPv4, host-local addresses, bridge with isGateway, ports are one of TCP and one of UDP; attached: containers that are there already; load average %s\n\n", loadavg())
	fmt.Fprintf(&s, "%-20s %8s", "", "")
	for _, v := range verbs {
		fmt.Fprintf(&s, " | %-33s %6s", v+" ms", v)
	}
	fmt.Fprintf(&s, "\n%-20s %8s", "chain", "attached")
	for range verbs {
		fmt.Fprintf(&s, " | %7s %7s %5s %6s %6s %5s", "ref", "seine", "x", "ref90", "se90", "cpu x")
	}
	fmt.Fprintf(&s, " | goal x")
	return s.String()
}

func (s *series) row(c chain, level int) string {
	line := fmt.Sprintf("%-20s %8d", c.Name, level)
	for verb := range verbs {
		r, o := walls(s[verb][refImpl]), walls(s[verb][ourImpl])
		line += fmt.Sprintf(" | %7.2f %7.2f %5.2f %6.1f %6.1f %5.2f", median(r), median(o), median(ratios(o, r)), quantile(r, .9), quantile(o, .9),
			median(ratios(cpus(s[verb][ourImpl]), cpus(s[verb][refImpl]))))
	}
	return line + " | " + c.Goal
}

// growth compares the last level with the first: by the clock, and by processor time, which others' load blurs less.
func growth(c chain, first, last *series) string {
	line := fmt.Sprintf("%-20s", c.Name)
	for verb := range verbs {
		for _, impl := range []int{refImpl, ourImpl} {
			f, l := first[verb][impl], last[verb][impl]
			line += fmt.Sprintf(" %9.2f %5.2f", median(walls(l))/median(walls(f)), median(cpus(l))/median(cpus(f)))
		}
	}
	goal := "1.15"
	if c.IfName == "lo" {
		goal = "flat"
	}
	return line + fmt.Sprintf(" %6s", goal)
}

func (b *bench) footer() {
	if len(b.growth) > 0 {
		fmt.Printf("growth: p50 with %d attached to p50 with %d, by the clock and in processor time\n", b.levels[len(b.levels)-1], b.levels[0])
		fmt.Printf("%-20s %15s %15s %15s %15s %6s\n", "chain", "ADD ref    cpu", "ADD seine  cpu", "DEL ref    cpu", "DEL seine  cpu", "goal")
		fmt.Println(strings.Join(b.growth, "\n") + "\n")
	}
	if len(b.counts) > 0 {
		fmt.Printf("one ADD and one DEL with %d attached: programs that the plugins started (goal: 0) and system calls of all\n", b.levels[len(b.levels)-1])
		fmt.Printf("%-20s", "chain")
		for _, v := range verbs {
			fmt.Printf(" %9s %5s %9s %6s %6s", v+" progs", "seine", "calls", "seine", "x")
		}
		fmt.Println("\n" + strings.Join(b.counts, "\n") + "\n")
	} else {
		fmt.Println("programs and system calls: skipped: strace is not installed (apt-get install strace)")
	}
	size := int64(-1)
	if st, err := os.Stat(filepath.Join(*bin, "seine-cni")); err == nil {
		size = st.Size()
	}
	fmt.Printf("seine-cni: %.1f MB (goal: at most 10), %.1f MB resident at most (goal: at most 12; reference: %.1f, without the programs it starts)\n",
		float64(size)/1e6, float64(b.rss[ourImpl])/1e6, float64(b.rss[refImpl])/1e6)
}

func walls(c []cost) []float64 { return each(c, func(c cost) time.Duration { return c.Wall }) }
func cpus(c []cost) []float64  { return each(c, func(c cost) time.Duration { return c.CPU }) }

// each gives milliseconds.
func each(c []cost, of func(cost) time.Duration) []float64 {
	out := make([]float64, len(c))
	for i := range c {
		out[i] = float64(of(c[i])) / 1e6
	}
	return out
}

// quantile gives the smallest value that at least the share q of all values does not exceed; NaN where there is none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	return s[max(0, min(int(math.Ceil(q*float64(len(s))))-1, len(s)-1))]
}

// median is the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	return (quantile(values, .5) + quantile(values, math.Nextafter(.5, 1))) / 2
}

// ratios divides sample by sample: what one had to suffer, both had.
func ratios(a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = a[i] / b[i]
	}
	return out
}
