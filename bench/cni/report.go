package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/seine-net/seine/bench/internal/rig"
)

func (b *bench) header() string {
	var s strings.Builder
	fmt.Fprintf(&s, "CNI ADD and DEL, whole plugin processes: seine-cni beside the reference plugins in %s and the floor, load average %s\n", *reference, rig.LoadAverage())
	fmt.Fprintf(&s, "%d samples per row and implementation, alternating, one at once; ms are p50; x and cpu are seine to reference (goal) and seine to floor,\n", *samples)
	s.WriteString("by the clock and in processor time, medians over the samples; IPv4, host-local addresses, bridge with isGateway,\n")
	s.WriteString("ports are one of TCP and one of UDP; a line that begins with + has all that is above it from bridge on;\n")
	s.WriteString("attached: containers that are there already; floor: the same kernel operations by a bare program and nothing else,\n")
	s.WriteString("started once per plugin, as CNI wants it\n\n")
	fmt.Fprintf(&s, "%-13s %8s", "", "")
	for _, v := range verbs {
		fmt.Fprintf(&s, " | %-22s %-18s %-11s", v+" ms", v+" : reference", ": floor")
	}
	fmt.Fprintf(&s, "\n%-13s %8s", "chain", "attached")
	for range verbs {
		fmt.Fprintf(&s, " | %7s %7s %6s %5s %-6s %5s %5s %5s", "ref", "seine", "floor", "x", "(goal)", "cpu", "x", "cpu")
	}
	return s.String()
}

// row is one line of the main table.
func (s *series) row(name string, level int, goal [2]float64) string {
	line := fmt.Sprintf("%-13s %8d", name, level)
	for verb := range verbs {
		r, o, f := s.walls(verb, refImpl), s.walls(verb, ourImpl), s.walls(verb, floorImpl)
		cr, co, cf := s.cpus(verb, refImpl), s.cpus(verb, ourImpl), s.cpus(verb, floorImpl)
		line += fmt.Sprintf(" | %7.2f %7.2f %6.2f %5.2f (%.2f) %5.2f %5.2f %5.2f", rig.Median(r), rig.Median(o), rig.Median(f),
			rig.Median(rig.Ratios(o, r)), goal[verb], rig.Median(rig.Ratios(co, cr)), rig.Median(rig.Ratios(o, f)), rig.Median(rig.Ratios(co, cf)))
	}
	return line
}

func (s *series) walls(verb, impl int) []float64 {
	return rig.Millis(s[verb][impl], func(c cost) time.Duration { return c.Wall })
}

func (s *series) cpus(verb, impl int) []float64 {
	return rig.Millis(s[verb][impl], func(c cost) time.Duration { return c.CPU })
}

// growth compares the last level with the first: by the clock, and by processor time, which others' load blurs less.
func growth(c chain, first, last *series) []string {
	row := []string{c.Name}
	for verb := range verbs {
		for impl := range impls {
			row = append(row, fmt.Sprintf("%.2f %5.2f", rig.Median(last.walls(verb, impl))/rig.Median(first.walls(verb, impl)),
				rig.Median(last.cpus(verb, impl))/rig.Median(first.cpus(verb, impl))))
		}
	}
	goal := "1.15"
	if c.IfName == "lo" {
		goal = "flat"
	}
	return append(row, goal)
}

// counts compares what does not depend on the clock.
func counts(name string, got [2][len(impls)]cost) []string {
	row := []string{name}
	for verb := range verbs {
		r, o, f := got[verb][refImpl], got[verb][ourImpl], got[verb][floorImpl]
		row = append(row, "|", fmt.Sprint(r.Procs), fmt.Sprint(o.Procs), fmt.Sprint(r.Calls), fmt.Sprint(o.Calls), fmt.Sprint(f.Calls),
			quotient(o.Calls, f.Calls), fmt.Sprint(r.Trips), fmt.Sprint(o.Trips), fmt.Sprint(f.Trips), quotient(o.Trips, f.Trips))
	}
	return row
}

func quotient(a, b int) string { return fmt.Sprintf("%.1f", float64(a)/float64(b)) }

func (b *bench) footer() {
	last := b.levels[len(b.levels)-1]
	if len(b.growth) > 0 {
		fmt.Printf("\ngrowth: p50 with %d attached to p50 with %d, by the clock and in processor time; goal of seine's", last, b.levels[0])
		rig.Table(os.Stdout, append([][]string{{"chain", "ADD ref   cpu", "ADD seine   cpu", "ADD floor   cpu",
			"DEL ref   cpu", "DEL seine   cpu", "DEL floor   cpu", "goal"}}, b.growth...))
	}
	if len(b.counts) > 0 {
		fmt.Printf("\none ADD and one DEL with %d attached: programs that the plugins started (goal of seine's: 0), system calls of all of them,\n", last)
		fmt.Printf("and netlink round trips; x is seine to floor (goal: at most 2.0); each start of a Go program is %d calls of them", b.empty)
		head := []string{"chain"}
		for _, v := range verbs {
			head = append(head, "|", v+" progs", "seine", "calls", "seine", "floor", "x", "trips", "seine", "floor", "x")
		}
		rig.Table(os.Stdout, append([][]string{head}, b.counts...))
	} else {
		fmt.Println("\nprograms, system calls and round trips: SKIPPED: strace is not installed (apt-get install strace)")
	}
	size := int64(-1)
	if st, err := os.Stat(filepath.Join(*bin, "seine-cni")); err == nil {
		size = st.Size()
	}
	fmt.Printf("\nseine-cni: %.1f MB (goal: at most 10), %.1f MB resident at most (goal: at most 12; reference: %.1f, without the programs it starts)\n",
		float64(size)/1e6, float64(b.rss[ourImpl])/1e6, float64(b.rss[refImpl])/1e6)
}
