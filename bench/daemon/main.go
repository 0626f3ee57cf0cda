// Command daemon measures what an attach and a detach through the daemon's API cost at 1, 100, 1,000 and 5,000
// endpoints on ten networks, what the daemon's memory is then, and how long its restart takes with all of them.
//
// It runs seined in network and mount namespaces of its own; nothing of the machine is touched. Needs root.
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
)

var (
	bin      = flag.String("bin", "bin", "folder with seined")
	levels   = flag.String("levels", "1,10,100,1000,5000", "numbers of endpoints to measure at")
	networks = flag.Int("networks", 10, "networks that they are spread over")
	samples  = flag.Int("samples", 60, "attach and detach pairs per level")
	driver   = flag.String("driver", "bridge", "driver of the networks")
	ports    = flag.Int("ports", 2, "published ports per measured endpoint")
)

const inside = "SEINE_BENCH_INSIDE"

func main() {
	flag.Parse()
	if os.Getenv(inside) == "" {
		os.Exit(reexec())
	}
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench/daemon:", err)
		os.Exit(1)
	}
}

// reexec runs this program again in namespaces of its own.
func reexec() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench/daemon:", err)
		return 1
	}
	return 0
}

type bench struct {
	dir    string
	daemon *exec.Cmd
	client *client.Client
}

func run(ctx context.Context) error {
	b := &bench{}
	if err := b.prepare(); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if err := b.start(ctx); err != nil {
		return err
	}
	for i := range *networks {
		if _, err := b.client.PutNetwork(ctx, api.Network{Name: network(i), Driver: *driver}, 0); err != nil {
			return err
		}
	}
	fmt.Printf("attach and detach through the API, driver %s, %d networks, %d published ports each, %d samples per row\n\n", *driver, *networks, *ports, *samples)
	fmt.Printf("%9s %12s %12s %12s %12s %10s %12s\n", "endpoints", "attach p50", "attach p99", "detach p50", "detach p99", "memory", "per endpoint")
	var rest int
	have := 0
	for _, s := range strings.Split(*levels, ",") {
		level, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("level %q: is no number", s)
		}
		for ; have < level-1; have++ {
			if _, err := b.attach(ctx, fmt.Sprint("c", have), have%*networks, 0); err != nil {
				return err
			}
		}
		at, dt, err := b.measure(ctx)
		if err != nil {
			return err
		}
		rss := b.memory()
		if rest == 0 {
			rest = rss
		}
		fmt.Printf("%9d %12s %12s %12s %12s %7d MB %9d B\n", level, quantile(at, .5), quantile(at, .99), quantile(dt, .5), quantile(dt, .99),
			rss>>20, (rss-rest)/max(level-1, 1))
	}
	return b.restart(ctx, have)
}

func network(i int) string { return fmt.Sprint("n", i) }

// prepare makes the mounts private, puts lo up, and keeps the state in memory files as a test of the code, not of a disk.
func (b *bench) prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return err
	}
	if err := up("lo"); err != nil {
		return err
	}
	b.dir = "/run/bench"
	return os.MkdirAll(filepath.Join(b.dir, "netns"), 0o755)
}

// up sets a link of the present namespace up.
func up(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(link)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func (b *bench) start(ctx context.Context) error {
	socket := filepath.Join(b.dir, "seine.sock")
	b.daemon = exec.Command(filepath.Join(*bin, "seined"), "--state", filepath.Join(b.dir, "state.db"), "--socket", socket, "--quiet", "--log-level", "warn")
	b.daemon.Stdout, b.daemon.Stderr = os.Stderr, os.Stderr
	b.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.daemon.Start(); err != nil {
		return err
	}
	var err error
	if b.client, err = client.New(socket); err != nil {
		return err
	}
	for range 3000 {
		if _, err := b.client.Node(ctx); err == nil {
			return nil
		}
		wait(10 * time.Millisecond)
	}
	return fmt.Errorf("seined does not answer on %s", socket)
}

func wait(d time.Duration) { <-time.After(d) }

// netns makes a network namespace at a path.
func (b *bench) netns(name string) (string, error) {
	path := filepath.Join(b.dir, "netns", name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return "", err
	}
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // and never given back: the thread ends in the new namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		errs <- err
	}()
	return path, <-errs
}

func (b *bench) drop(path string) {
	_ = unix.Unmount(path, unix.MNT_DETACH)
	_ = os.Remove(path)
}

func (b *bench) attach(ctx context.Context, name string, net, ports int) (time.Duration, error) {
	path, err := b.netns(name)
	if err != nil {
		return 0, err
	}
	ep := api.Endpoint{Network: network(net), Name: name, Sandbox: api.Sandbox{Netns: path}}
	for i := range ports {
		ep.Ports = append(ep.Ports, api.Port{HostPort: uint16(30000 + i), ContainerPort: uint16(80 + i)})
	}
	t := time.Now()
	_, err = b.client.PutEndpoint(ctx, ep, 0)
	return time.Since(t), err
}

func (b *bench) measure(ctx context.Context) (attach, detach []time.Duration, err error) {
	for i := range *samples {
		net := i % *networks
		name := fmt.Sprint("sample", i)
		d, err := b.attach(ctx, name, net, *ports)
		if err != nil {
			return nil, nil, err
		}
		attach = append(attach, d)
		t := time.Now()
		if err := b.client.DeleteEndpoint(ctx, network(net), name, 0); err != nil {
			return nil, nil, err
		}
		detach = append(detach, time.Since(t))
		b.drop(filepath.Join(b.dir, "netns", name))
	}
	return attach, detach, nil
}

func quantile(d []time.Duration, q float64) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[min(int(math.Ceil(q*float64(len(s))))-1, len(s)-1)].Round(10 * time.Microsecond)
}

// memory is the daemon's own memory in bytes: resident and not backed by a file (the store's file is mapped, and the
// kernel may drop it at any time).
func (b *bench) memory() int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.daemon.Process.Pid))
	for line := range strings.Lines(string(data)) {
		if kb, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(kb), " kB"))
			return n << 10
		}
	}
	return 0
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
