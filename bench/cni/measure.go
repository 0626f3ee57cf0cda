package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
)

// verbs by index, as in series.
var verbs = [2]string{"ADD", "DEL"}

// series are samples by verb and implementation.
type series [2][len(impls)][]cost

// bench keeps what is printed at the end.
type bench struct {
	levels   []int
	programs [len(impls)]string // see setup.Programs
	growth   [][]string
	counts   [][]string
	empty    int // system calls of a program that does nothing
	rss      [len(impls)]int
}

// machines are by implementation.
type machines [len(impls)]*machine

// chain measures one chain at all levels; several at once too, if that is asked for.
func (b *bench) chain(ctx context.Context, c chain, atOnce int) (err error) {
	var ms machines
	defer func() {
		for _, m := range ms {
			if m != nil {
				err = errors.Join(err, m.stop(c.IfName))
			}
		}
	}()
	for i := range ms {
		if ms[i], err = startMachine(ctx, setup{Impl: impls[i], Programs: b.programs[i], Chain: c}); err != nil {
			return err
		}
	}
	var first, last series
	have := 0
	for n, level := range b.levels {
		if err := ms.fill(have, level); err != nil {
			return err
		}
		have = level
		if last, err = b.level(ctx, &ms, 1, *samples); err != nil {
			return err
		}
		fmt.Println(last.row(c.Name, level, c.Goal))
		if n == 0 {
			first = last
		}
		if n == 0 && atOnce > 0 {
			many, err := b.level(ctx, &ms, atOnce, max(1, *samples/3))
			if err != nil {
				return err
			}
			fmt.Println(many.row(fmt.Sprintf("  %d at once", atOnce), level, goalAtOnce))
		}
	}
	if len(b.levels) > 1 {
		b.growth = append(b.growth, growth(c, &first, &last))
	}
	return b.counted(&ms, c)
}

// fill attaches containers from to to-1 to all machines at the same time.
func (ms *machines) fill(from, to int) error {
	errs := make(chan error)
	for _, m := range ms {
		go func() {
			_, err := m.do(request{From: from, Count: to - from, Width: 2})
			errs <- err
		}()
	}
	var all error
	for range ms {
		all = errors.Join(all, <-errs)
	}
	return all
}

// level takes samples of all implementations, in an order that changes from sample to sample.
func (b *bench) level(ctx context.Context, ms *machines, width, samples int) (s series, err error) {
	order := []int{refImpl, ourImpl, floorImpl}
	for n := -warmUps; n < samples; n++ {
		for _, impl := range order {
			for verb := range verbs {
				costs, err := ms[impl].do(request{Del: verb == 1, From: b.free(), Count: width, Width: width})
				if err != nil {
					return s, err
				}
				if n >= 0 {
					s[verb][impl] = append(s[verb][impl], costs...)
				}
			}
		}
		slices.Reverse(order)
		if err := ctx.Err(); err != nil {
			return s, err
		}
	}
	return s, nil
}

// free is the first container that no level attaches.
func (b *bench) free() int { return b.levels[len(b.levels)-1] }

// counted takes what does not depend on the clock: system calls, processes and memory.
func (b *bench) counted(ms *machines, c chain) error {
	_, noStrace := exec.LookPath("strace")
	var got [2][len(impls)]cost
	for impl, m := range ms {
		for _, h := range []how{traced, resident} {
			if h == traced && noStrace != nil {
				continue
			}
			for verb := range verbs {
				costs, err := m.do(request{Del: verb == 1, From: b.free(), Count: 1, Width: 1, How: h})
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
	if noStrace != nil {
		return nil
	}
	b.counts = append(b.counts, counts(c.Name, got))
	empty, _, err := start(traced, []string{b.programs[floorImpl]}, nil, nil)
	b.empty = empty.Calls
	return err
}
