// Command packets measures what packets between two containers of one machine pay: TCP throughput, TCP and UDP
// request/response and new connections, over a bare veth pair (the limit), the reference CNI plugins bridge and ptp,
// Seine's networks and seine-cni. A second part measures published ports: one against ten thousand of them.
//
// Every path has a machine of its own: a network namespace, with two more for the containers. All of them exist at the
// same time, and every round takes one short sample of each before the next round begins, in the opposite order. So
// whatever else the machine does meets all of them alike, and ratios are taken within a round. It runs in namespaces of
// its own for network, mounts and processes: nothing of the machine is touched, nothing is left. Needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/seine-net/seine/bench/internal/rig"
)

var (
	bin       = flag.String("bin", "bin", "`folder` with seined and seine-cni")
	reference = flag.String("reference", "/usr/lib/cni", "`folder` with the reference CNI plugins")
	rounds    = flag.Int("rounds", 16, "samples of each path and figure")
	bulk      = flag.Duration("bulk", 250*time.Millisecond, "length of a sample of throughput")
	latency   = flag.Duration("latency", 60*time.Millisecond, "length of a sample of requests or connections")
	pin       = flag.Bool("pin", true, "run both ends on one core, each round on the next one; otherwise where the scheduler likes")
	ports     = flag.Int("ports", 10000, "published ports that are compared with one; 0 leaves that part out")
	ipv6      = flag.Bool("6", false, "measure over IPv6 rather than IPv4")
	only      = flag.String("only", "", "measure only paths whose name in the tables matches this regular `expression`; \"published\" stands for all published ports")
)

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role))
	}
	rig.Main("bench/packets", run)
}

func run(ctx context.Context) error {
	if *rounds < 1 || *bulk <= 0 || *latency <= 0 {
		return errors.New("flags rounds, bulk and latency: want more than 0")
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("flag only: %w", err)
	}
	for _, folder := range []*string{bin, reference} {
		if *folder, err = filepath.Abs(*folder); err != nil {
			return err
		}
	}
	if err := rig.Private("/run"); err != nil {
		return err
	}
	const dir = "/run/bench"
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	l := newLoad()
	fmt.Println(l.start())
	b := &bench{dir: dir, load: l}
	if err := b.containers(ctx, match); err != nil {
		return err
	}
	if *ports > 0 {
		if err := b.published(ctx, match); err != nil {
			return err
		}
	}
	fmt.Println(l.end())
	return nil
}
