package rig

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideEnv marks the process that has namespaces of its own.
const insideEnv = "SEINE_BENCH_INSIDE"

// Main is the main function of a bench: it reads the flags and runs the bench in namespaces of its own for network,
// mounts and processes, where it is process 1: when it ends, all others do, and nothing is left. name begins what is said
// on standard error. It doesn't return.
func Main(name string, run func(context.Context) error) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := inside(ctx, run)
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit) && exit.ExitCode() > 0: // it has said why
		os.Exit(exit.ExitCode())
	case ctx.Err() != nil:
		err = errors.New("interrupted")
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	os.Exit(1)
}

func inside(ctx context.Context, run func(context.Context) error) error {
	if os.Getenv(insideEnv) != "" {
		return run(ctx)
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it cleans up, and this one waits
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("needs root: %w", err)
	}
	return err
}

// Private makes the mounts private and gives this process and its children a /proc of their own, and an empty folder in
// memory in the place of each of dirs.
func Private(dirs ...string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range dirs {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return nil
}

// ParseLevels reads a flag such as 1,100,500.
func ParseLevels(s string) ([]int, error) {
	var out []int
	for w := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(w)
		if err != nil || n < 0 || len(out) > 0 && n <= out[len(out)-1] {
			return nil, fmt.Errorf("flag levels: %q: want rising numbers such as 1,100,500", s)
		}
		out = append(out, n)
	}
	return out, nil
}

// LoadAverage gives the three of proc_loadavg(5).
func LoadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	return strings.Join(f[:min(3, len(f))], " ")
}
