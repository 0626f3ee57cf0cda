package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/seine-net/seine/bench/internal/rig"
)

// column is a figure in a table.
type column struct {
	head   string
	metric metric
	value  func(result) float64
	scale  float64
	format string
	rate   bool // more is better; for the others less is
}

func p50(r result) float64 { return r.P50 }
func p99(r result) float64 { return r.P99 }

var columns = []column{
	{"TCP Gbit/s", throughput, p50, 1e-9, "%.1f", true},
	{"TCP request µs", requests, p50, 1e-3, "%.1f", false},
	{"its p99", requests, p99, 1e-3, "%.0f", false},
	{"UDP request µs", datagrams, p50, 1e-3, "%.1f", false},
	{"connect + request µs", connecting, p50, 1e-3, "%.1f", false},
}

// values gives what each round found for a column, in the order of the rounds.
func (c column) values(p *path) []float64 {
	out := make([]float64, 0, len(p.samples[c.metric]))
	for _, r := range p.samples[c.metric] {
		out = append(out, c.value(r)*c.scale)
	}
	return out
}

// best is what the rounds had that suffered the least from whatever else the machine did: one in ten was better still,
// and may have been luck.
func (c column) best(values []float64) float64 {
	if c.rate {
		return rig.Quantile(values, .9)
	}
	return rig.Quantile(values, .1)
}

// speed says how fast p is beside q, 1 as fast, 2 twice as fast: the median of the rounds, and the best rounds of the
// one beside the best of the other.
func (c column) speed(p, q *path) (mid, best float64) {
	a, b := c.values(p), c.values(q)
	if !c.rate {
		a, b = b, a
	}
	return rig.Median(rig.Ratios(a, b)), c.best(a) / c.best(b)
}

// peers says which of the reference's paths each of ours is held against; the setting of the bridge filter is the same.
var peers = []struct{ ours, reference string }{
	{ourBridge, refBridge},
	{ourBridge, refMasq}, // does the same work: both masquerade
	{cniBridge, refBridge},
	{cniMasq, refMasq},
	{ourPtp, refPtp},
}

// report prints what was found between containers, and the ratios.
func report(w io.Writer, paths []*path) {
	absolutes(w, paths, columns)
	var limit, reference [][2]*path
	for _, p := range paths {
		for _, q := range paths {
			if q.name == bare && q != p {
				limit = append(limit, [2]*path{p, q})
			}
		}
	}
	for _, x := range peers {
		for _, p := range paths {
			for _, q := range paths {
				if p.name == x.ours && q.name == x.reference && p.filter == q.filter {
					reference = append(reference, [2]*path{p, q})
				}
			}
		}
	}
	speeds(w, "speed beside the bare veth pair (more is faster)", limit, columns)
	speeds(w, "speed beside the reference plugins (more is faster)", reference, columns)
}

// reportPublished prints what was found at published ports: the second half of the paths has many of them.
func reportPublished(w io.Writer, one, many []*path) {
	c := []column{columns[1], columns[2], columns[4]}
	absolutes(w, slices.Concat(one, many), c)
	var pairs [][2]*path
	for i := range many {
		pairs = append(pairs, [2]*path{many[i], one[i]})
	}
	speeds(w, "speed with many published ports : with one", pairs, c)
}

// absolutes prints the median of the rounds and the best ones.
func absolutes(w io.Writer, paths []*path, columns []column) {
	rows := [][]string{header("median | best of the rounds", columns)}
	for _, p := range paths {
		row := []string{p.title()}
		for _, c := range columns {
			v := c.values(p)
			row = append(row, fmt.Sprintf(c.format+" | "+c.format, rig.Median(v), c.best(v)))
		}
		rows = append(rows, row)
	}
	rig.Table(w, rows)
}

// speeds prints how fast the first path of each pair is beside the second.
func speeds(w io.Writer, head string, pairs [][2]*path, columns []column) {
	if len(pairs) == 0 {
		return
	}
	rows := [][]string{header(head, columns)}
	for _, x := range pairs {
		row := []string{x[0].title()}
		if x[1].name != bare {
			row[0] += " : " + x[1].name
		}
		for _, c := range columns {
			mid, best := c.speed(x[0], x[1])
			row = append(row, fmt.Sprintf("%.2f | %.2f", mid, best))
		}
		rows = append(rows, row)
	}
	rig.Table(w, rows)
}

func header(first string, columns []column) []string {
	row := []string{first}
	for _, c := range columns {
		row = append(row, c.head)
	}
	return row
}
