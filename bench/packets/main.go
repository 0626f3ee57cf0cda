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
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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

// inside marks the process that runs in namespaces of its own.
const inside = "SEINE_BENCH_INSIDE"

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role))
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if os.Getenv(inside) == "" {
		os.Exit(reexec(ctx))
	}
	if err := run(ctx); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "bench/packets:", err)
		os.Exit(1)
	}
}

// reexec runs this program again in namespaces of its own. It is process 1 there: when it ends, all others do.
func reexec(ctx context.Context) int {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it cleans up, and this one waits
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("needs root: %w", err)
	}
	fmt.Fprintln(os.Stderr, "bench/packets:", err)
	return 1
}

// prepare makes the mounts private and gives /proc and /run to this process and its children alone.
func prepare() (dir string, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return "", fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return "", fmt.Errorf("mount /run: %w", err)
	}
	dir = "/run/bench"
	return dir, os.Mkdir(dir, 0o700)
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
	dir, err := prepare()
	if err != nil {
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
