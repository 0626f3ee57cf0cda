// Command daemon measures what an attach and a detach through the daemon's API cost at 1, 10, 100, 1,000 and 5,000
// endpoints on ten networks, beside the floor (the same kernel operations by a bare program, bench/internal/floor) on the
// same bridges in turns, what processor time and memory the daemon takes for it, and how long its restart takes with all
// of them.
//
// It runs seined in namespaces of its own for network, mounts and processes; nothing of the machine is touched. Needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/bench/internal/rig"
	"github.com/seine-net/seine/client"
)

var (
	bin      = flag.String("bin", "bin", "`folder` with seined")
	levels   = flag.String("levels", "1,10,100,1000,5000", "numbers of endpoints to measure at, rising")
	networks = flag.Int("networks", 10, "networks that they are spread over")
	samples  = flag.Int("samples", 100, "attach and detach pairs per level, of the daemon and of the floor")
	driver   = flag.String("driver", "bridge", "driver of the networks: bridge or ptp")
	ports    = flag.Int("ports", 2, "published ports per measured endpoint")
)

func main() { rig.Main("bench/daemon", run) }

// bench is one run. The state lies in memory files: it is the code that is measured, not a disk.
type bench struct {
	dir    string
	daemon *exec.Cmd
	client *client.Client
	floor  floors
}

func run(ctx context.Context) error {
	lv, err := rig.ParseLevels(*levels)
	if err != nil {
		return err
	}
	if lv[0] < 1 || *networks < 1 || *samples < 1 || *ports < 0 || *driver != "bridge" && *driver != "ptp" {
		return errors.New("flags levels, networks, samples, ports, driver: want at least 1, 1, 1, 0, and bridge or ptp")
	}
	b := &bench{dir: "/run/bench"}
	if err := rig.Private("/run"); err != nil {
		return err
	}
	if err := errors.Join(rig.Up("lo"), os.MkdirAll(filepath.Join(b.dir, "netns"), 0o755)); err != nil {
		return err
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	for i := range *networks {
		n := api.Network{Name: network(i), Driver: *driver}
		if *driver == "bridge" {
			n.Interface = bridge(i)
		}
		if _, err := b.client.PutNetwork(ctx, n, 0); err != nil {
			return err
		}
	}
	return b.levels(ctx, lv)
}

// levels fills up to each level, measures there, and restarts the daemon at the last one.
func (b *bench) levels(ctx context.Context, lv []int) error {
	fmt.Println(header())
	var all []*sampled
	have := 0
	for _, level := range lv {
		for ; have < level-1; have++ {
			if _, err := b.attach(ctx, fmt.Sprint("c", have), have%*networks, 0); err != nil {
				return err
			}
		}
		if b.floor.netns == "" {
			if err := b.prepareFloor(ctx); err != nil {
				return err
			}
		}
		s, err := b.measure(ctx, level)
		if err != nil {
			return err
		}
		all = append(all, s)
		fmt.Println(s.row(all[0]))
	}
	summary(all)
	return b.restart(ctx, have)
}

func network(i int) string { return fmt.Sprint("n", i) }
func bridge(i int) string  { return fmt.Sprint("br-n", i) }

func (b *bench) start(ctx context.Context) error {
	socket := filepath.Join(b.dir, "seine.sock")
	b.daemon = exec.Command(filepath.Join(*bin, "seined"), "--state", filepath.Join(b.dir, "state.db"), "--socket", socket, "--docker-socket", "", "--quiet", "--log-level", "warn")
	b.daemon.Stdout, b.daemon.Stderr = os.Stderr, os.Stderr
	if err := b.daemon.Start(); err != nil {
		return err
	}
	var err error
	if b.client, err = client.New(socket); err != nil {
		return err
	}
	return rig.Ready(ctx, b.client, 30*time.Second)
}

func (b *bench) netns(name string) string { return filepath.Join(b.dir, "netns", name) }

func (b *bench) attach(ctx context.Context, name string, net, ports int) (time.Duration, error) {
	path := b.netns(name)
	if err := rig.MakeNetns(path); err != nil {
		return 0, err
	}
	ep := api.Endpoint{Network: network(net), Name: name, Sandbox: api.Sandbox{Netns: path}}
	for i := range ports {
		ep.Ports = append(ep.Ports, api.Port{HostPort: uint16(30000 + i), ContainerPort: uint16(80 + i)})
	}
	t := time.Now()
	_, err := b.client.PutEndpoint(ctx, ep, 0)
	return time.Since(t), err
}

// pair attaches and detaches one endpoint.
func (b *bench) pair(ctx context.Context, i int) (attach, detach time.Duration, err error) {
	net, name := i%*networks, fmt.Sprint("sample", i)
	if attach, err = b.attach(ctx, name, net, *ports); err != nil {
		return 0, 0, err
	}
	t := time.Now()
	if err := b.client.DeleteEndpoint(ctx, network(net), name, 0); err != nil {
		return 0, 0, err
	}
	return attach, time.Since(t), rig.DropNetns(b.netns(name))
}

// restart kills the daemon as kill -9 does and measures until the next one answers, having adopted everything.
func (b *bench) restart(ctx context.Context, n int) error {
	_ = b.daemon.Process.Kill()
	_ = b.daemon.Wait()
	t := time.Now()
	if err := b.start(ctx); err != nil {
		return err
	}
	took := time.Since(t)
	node, err := b.client.Node(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\nrestart after SIGKILL with %d endpoints to adopt: %s until it answers; %d objects, %d problems, %d MB\n", n,
		took.Round(time.Millisecond), node.Objects, len(node.Problems), b.memory()>>20)
	_ = b.daemon.Process.Signal(syscall.SIGTERM)
	return b.daemon.Wait()
}
