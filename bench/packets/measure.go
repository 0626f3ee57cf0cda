package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

// bench is one run.
type bench struct {
	dir  string // for files of the run; gone with it
	load *load
}

// measure takes one sample of every metric of every path, round by round.
func (b *bench) measure(ctx context.Context, paths []*path, metrics []metric) error {
	var each time.Duration
	for _, m := range metrics {
		each += length(m) + 30*time.Millisecond // to start the processes
	}
	fmt.Printf("%d paths, %d rounds: about %s\n", len(paths), *rounds, (each * time.Duration(len(paths)**rounds)).Round(time.Second))
	for round := range *rounds {
		b.load.look()
		order := slices.Clone(paths)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, m := range metrics {
			for _, p := range order {
				r, err := b.sample(ctx, p, m, round)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", p.title(), m, err)
				}
				p.samples[m] = append(p.samples[m], r)
			}
		}
	}
	return nil
}

func length(m metric) time.Duration {
	if m == throughput {
		return *bulk
	}
	return *latency
}

// sample starts a server and a client, both new for every sample: what one process happens to get then is chance in a
// sample and not a property of a path.
func (b *bench) sample(ctx context.Context, p *path, m metric, round int) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, length(m)+20*time.Second)
	defer cancel()
	var said, answer bytes.Buffer
	server, err := child(ctx, "server", order{Metric: m, At: netip.AddrPortFrom(p.addr, servicePort), Core: core(round)})
	if err != nil {
		return result{}, err
	}
	server.Stderr = &said
	out, err := server.StdoutPipe()
	if err == nil {
		err = p.server.Start(server)
	}
	if err != nil {
		return result{}, err
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return result{}, fmt.Errorf("server does not start: %w", err)
	}
	client, err := child(ctx, "client", order{Metric: m, At: p.target, Core: core(round), Length: length(m)})
	if err != nil {
		return result{}, err
	}
	client.Stdout, client.Stderr = &answer, &said
	if err = p.client.Start(client); err == nil {
		err = client.Wait()
	}
	if err != nil {
		return result{}, fmt.Errorf("%w: %s", err, &said)
	}
	var r result
	err = json.Unmarshal(answer.Bytes(), &r)
	return r, err
}

// core says on which core both ends run. In turns, as with requests, one core does, and where the scheduler spreads them
// is worth a factor of five (waking an idle core); with a bulk transfer it is worth two. Either would drown what the path
// costs. On one core, throughput says how much work a bit is. Rounds use the cores in turn, for others may sit on one.
func core(round int) int {
	if !*pin {
		return -1
	}
	return round % runtime.NumCPU()
}

// child is this program as one of the two ends. Without asynchronous preemption no signal breaks a system call off.
func child(ctx context.Context, role string, o order) (*exec.Cmd, error) {
	in, err := json.Marshal(o)
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Stdin = bytes.NewReader(in)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, "GODEBUG=asyncpreemptoff=1")
	return cmd, err
}

// containers measures between two containers of one machine.
func (b *bench) containers(ctx context.Context, match *regexp.Regexp) error {
	paths := b.wanted(match)
	if len(paths) == 0 {
		fmt.Println("\nno path between two containers was asked for, or is left to measure")
		return nil
	}
	for _, p := range paths {
		defer p.close()
		if err := p.set(ctx, b); err != nil {
			return err
		}
	}
	fmt.Print("\nbetween two containers of one machine: ")
	if err := b.measure(ctx, paths, []metric{requests, datagrams, connecting, throughput}); err != nil {
		return err
	}
	report(os.Stdout, paths)
	return nil
}

// The names of the paths, which the ratios refer to.
const (
	bare      = "bare veth pair"
	refBridge = "reference bridge"
	refMasq   = "reference bridge, ipMasq"
	refPtp    = "reference ptp, ipMasq"
	ourBridge = "seine bridge"
	ourPtp    = "seine ptp"
	cniBridge = "seine-cni bridge"
	cniMasq   = "seine-cni bridge, ipMasq"
)

// The values of path.filter.
const (
	filterOff = "0"
	filterOn  = "1"
	noBridge  = ""
)

// wanted lists the paths that can be measured here, and says loudly which can't.
func (b *bench) wanted(match *regexp.Regexp) []*path {
	theirs := func() string { return *reference }
	noTheirs, noOurs, noFilter := referencePlugins(), b.ownPlugins(), testkit.Lacks("bridge-netfilter")
	var paths []*path
	add := func(lack error, name, filter string, build func(context.Context, *bench, *path) error) {
		p := &path{name: name, filter: filter, build: build, samples: map[metric][]result{}}
		switch {
		case !match.MatchString(p.title()):
		case lack != nil:
			warn("SKIPPED: %s: %v", p.title(), lack)
		default:
			paths = append(paths, p)
		}
	}
	add(nil, bare, noBridge, direct)
	filters := []string{filterOff, filterOn}
	if noFilter != nil {
		warn("SKIPPED: every path with the bridge filter on: %v", noFilter)
		filters = []string{noBridge} // a kernel that can't do it is one where it is off
	}
	for _, f := range filters {
		add(noTheirs, refBridge, f, plugin(theirs, "bridge", false))
		add(noTheirs, refMasq, f, plugin(theirs, "bridge", true))
		add(nil, ourBridge, f, seine("bridge"))
		add(noOurs, cniBridge, f, plugin(b.plugins, "bridge", false))
		add(noOurs, cniMasq, f, plugin(b.plugins, "bridge", true))
	}
	add(noTheirs, refPtp, noBridge, plugin(theirs, "ptp", true))
	add(nil, ourPtp, noBridge, seine("ptp"))
	return paths
}

// warn says what is left out, to those who read only what went wrong.
func warn(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench/packets: "+format+"\n", args...)
}
