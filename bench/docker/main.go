// Command docker measures what Docker's networks cost with Seine as their driver. It has parts, which -part chooses from:
//
//   - protocol: our own share of each of Docker's calls, measured at the plugin's socket with this program in Docker's
//     place, at 1, 100 and 1,000 networks and endpoints and up to 10,000 published ports, beside the goals.
//   - dockerd: what Docker's user waits for, with a real dockerd (Debian's package docker.io) and its own bridge driver
//     beside ours: networks, connecting a running container, start and removal with and without published ports; and the
//     memory of a published port, beside that of docker-proxy.
//
// It runs in namespaces of its own for network, mounts and processes; nothing of the machine is touched. Needs root.
package main

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/seine-net/seine/bench/internal/rig"
)

var (
	bin  = flag.String("bin", "bin", "`folder` with seined")
	part = flag.String("part", "", "the parts to run, with commas between them; \"\" for all")
)

// parts are run in this order. Each cleans up after itself.
var parts = []struct {
	name string
	run  func(context.Context) error
}{
	{"protocol", protocol},
	{"dockerd", asUser},
}

func main() { rig.Main("bench/docker", run) }

func run(ctx context.Context) error {
	var names, chosen []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	if chosen = names; *part != "" {
		chosen = strings.Split(*part, ",")
	}
	for _, c := range chosen {
		if !slices.Contains(names, c) {
			return fmt.Errorf("flag part: %q is none; want some of %s", c, strings.Join(names, ","))
		}
	}
	if err := rig.Private("/run"); err != nil {
		return err
	}
	if err := rig.Up("lo"); err != nil {
		return err
	}
	for _, p := range parts {
		if !slices.Contains(chosen, p.name) {
			continue
		}
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}
