package main

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/seine-net/seine/bench/internal/rig"
)

// load watches how busy the machine is with other things.
type load struct {
	others []float64 // shares of the machine that were used while nothing of the bench ran, 0 to 1
}

const (
	lookFor = 200 * time.Millisecond
	busy    = 0.1 // of the machine: from there on the figures say more about it than about the paths
)

func newLoad() *load { return &load{} }

// look measures for a moment what others use. Nothing of the bench may run meanwhile.
func (l *load) look() {
	used, total := busyTime()
	<-time.After(lookFor)
	used2, total2 := busyTime()
	if total2 > total {
		l.others = append(l.others, (used2-used)/(total2-total))
	}
}

// start looks once and says what it saw.
func (l *load) start() string {
	l.look()
	return fmt.Sprintf("load average %s, others use %.0f %% of the machine%s", rig.LoadAverage(), 100*l.others[0], warning(l.others[0]))
}

// end says what all looks saw together. A few disturbed rounds do no harm.
func (l *load) end() string {
	return fmt.Sprintf("\nload average %s, this bench included; before the rounds others used %.0f %% of the machine (median; %.0f %% at most)%s",
		rig.LoadAverage(), 100*rig.Quantile(l.others, .5), 100*rig.Quantile(l.others, 1), warning(rig.Quantile(l.others, .75)))
}

func warning(share float64) string {
	if math.IsNaN(share) || share < busy {
		return ""
	}
	return "\nWARNING: the machine is busy with other things: run this again when it is not"
}

// busyTime gives the time that all cores together have worked, and have been there, since the machine started, in ticks
// (proc_stat(5)). Time that the hypervisor gave to others counts as worked: it was not to be had.
func busyTime() (used, total float64) {
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line) {
		v, err := strconv.ParseFloat(f, 64)
		if err != nil || i > 8 { // 9 and 10 are guests, which user and nice include
			continue
		}
		total += v
		if i != 4 && i != 5 { // idle, and idle with a disk to wait for
			used += v
		}
	}
	return used, total
}
