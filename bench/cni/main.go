// Command cni measures what a CNI ADD and DEL cost from the start of the plugin's process to its end, seine-cni beside
// the reference plugins of Debian's package containernetworking-plugins and beside the floor (the same kernel operations
// by a bare program, bench/internal/floor), with 1, 100 and 500 containers attached.
//
// It plays the runtime: environment, stdin, prevResult from plugin to plugin, DEL in reverse. Each implementation has a
// machine of its own (namespaces for network and mounts) in which all containers are its own; every sample is taken of
// all before the next one, in alternating order, and ratios are taken within a sample, so whatever else the machine
// does meets all alike. The containers' namespaces are made beforehand. Addresses are IPv4 only: the reference waits
// seconds for IPv6's duplicate address detection. It runs in namespaces of its own for network, mounts and processes:
// nothing of the machine is touched, nothing is left. Needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/seine-net/seine/bench/internal/rig"
)

var (
	bin       = flag.String("bin", "bin", "`folder` with seine-cni and bench-cni-floor")
	reference = flag.String("reference", "/usr/lib/cni", "`folder` with the reference plugins")
	levels    = flag.String("levels", "1,100,500", "numbers of containers that are attached already, rising")
	samples   = flag.Int("samples", 15, "ADD and DEL pairs per row and implementation")
	atOnce    = flag.Int("at-once", 8, "containers that are attached, and then detached, at once in a row of the longest chain; 0 leaves it out")
	only      = flag.String("only", "", "measure only chains whose name in the tables matches this regular `expression`")
)

const (
	// maxContainers keeps within the ports of a Linux bridge.
	maxContainers = 1000
	warmUps       = 2
)

func main() {
	if os.Getenv(machineEnv) != "" {
		os.Exit(playMachine())
	}
	rig.Main("bench/cni", run)
}

func run(ctx context.Context) error {
	lv, err := rig.ParseLevels(*levels)
	if err != nil {
		return err
	}
	most := lv[len(lv)-1] + max(1, *atOnce)
	if *samples < 1 || *atOnce < 0 || most > maxContainers {
		return fmt.Errorf("flags samples, at-once and levels: want samples, and at most %d containers in all", maxContainers)
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("flag only: %w", err)
	}
	todo := slices.DeleteFunc(slices.Clone(chains), func(c chain) bool { return !match.MatchString(c.Name) })
	if len(todo) == 0 {
		return fmt.Errorf("flag only: %q matches none of the chains", *only)
	}
	if *bin, err = filepath.Abs(*bin); err != nil {
		return err
	}
	if err := installed(todo); err != nil {
		return err
	}
	if err := rig.Private("/run", "/var/lib"); err != nil {
		return err
	}
	if err := os.Mkdir("/var/lib/cni", 0o755); err != nil {
		return err
	}
	ours, err := linkOurs(todo)
	if err != nil {
		return err
	}
	for _, impl := range impls {
		if err := makeNetns(impl, most); err != nil {
			return err
		}
	}
	start := time.Now()
	b := &bench{levels: lv, programs: [...]string{*reference, ours, filepath.Join(*bin, floorProgram)}}
	fmt.Println(b.header())
	for _, c := range todo {
		several := 0
		if c.Name == chains[len(chains)-1].Name {
			several = *atOnce
		}
		if err := b.chain(ctx, c, several); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	b.footer()
	fmt.Printf("took %s; load average now %s\n", time.Since(start).Round(time.Second), rig.LoadAverage())
	return nil
}

// floorProgram is built beside this one: see hack/bench.sh.
const floorProgram = "bench-cni-floor"

// installed looks for all programs before anything is begun.
func installed(todo []chain) error {
	for _, p := range []string{"seine-cni", floorProgram} {
		if _, err := os.Stat(filepath.Join(*bin, p)); err != nil {
			return fmt.Errorf("%w: \"make bench\" builds it, -bin says where it is", err)
		}
	}
	for _, c := range todo {
		for _, p := range c.programs() {
			if _, err := os.Stat(filepath.Join(*reference, p)); err != nil {
				return fmt.Errorf("reference plugin: %w: \"apt-get install containernetworking-plugins\" installs it, -reference says where it is", err)
			}
		}
		if _, err := exec.LookPath("iptables"); c.iptables() && err != nil {
			return fmt.Errorf("the reference plugins need it for chain %q: %w: \"apt-get install iptables\" installs it", c.Name, err)
		}
	}
	return nil
}

// linkOurs gives seine-cni the names of the plugins, as make install-cni does.
func linkOurs(todo []chain) (string, error) {
	dir := "/var/lib/bench/plugins"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, c := range todo {
		for _, p := range c.programs() {
			if err := os.Symlink(filepath.Join(*bin, "seine-cni"), filepath.Join(dir, p)); err != nil && !errors.Is(err, os.ErrExist) {
				return "", err
			}
		}
	}
	return dir, nil
}
