// Command cni measures what a CNI ADD and DEL cost from the start of the plugin's process to its end, seine-cni beside
// the reference plugins of Debian's package containernetworking-plugins, with 1, 100 and 500 containers attached.
//
// It plays the runtime: environment, stdin, prevResult from plugin to plugin, DEL in reverse. Each implementation has a
// machine of its own (namespaces for network and mounts) in which all containers are its own; every sample is taken of
// both before the next one, in alternating order, and ratios are taken within a sample, so whatever else the machine
// does meets both alike. The containers' namespaces are made beforehand. Addresses are IPv4 only: the reference waits
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
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	bin       = flag.String("bin", "bin", "`folder` with seine-cni")
	reference = flag.String("reference", "/usr/lib/cni", "`folder` with the reference plugins")
	levels    = flag.String("levels", "1,100,500", "numbers of containers that are attached already, rising")
	samples   = flag.Int("samples", 15, "ADD and DEL pairs per row and implementation")
	parallel  = flag.Int("parallel", 1, "containers that are attached, and then detached, at once in a sample")
	only      = flag.String("only", "", "measure only chains whose name in the tables matches this regular `expression`")
)

const (
	inside = "SEINE_BENCH_INSIDE" // set in the process that has namespaces of its own
	// maxContainers keeps within the ports of a Linux bridge.
	maxContainers = 1000
	warmUps       = 2
)

func main() {
	if os.Getenv(machineEnv) != "" {
		os.Exit(playMachine())
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
		fmt.Fprintln(os.Stderr, "bench/cni:", err)
		os.Exit(1)
	}
}

// reexec runs this program again in namespaces of its own. It is process 1 there: when it ends, all others do.
func reexec(ctx context.Context) int {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
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
	fmt.Fprintln(os.Stderr, "bench/cni:", err)
	return 1
}

// parseLevels reads -levels.
func parseLevels(s string) ([]int, error) {
	var out []int
	for _, w := range strings.Split(s, ",") {
		n, err := strconv.Atoi(w)
		if err != nil || n < 0 || len(out) > 0 && n <= out[len(out)-1] {
			return nil, fmt.Errorf("flag levels: %q: want rising numbers such as 1,100,500", s)
		}
		out = append(out, n)
	}
	return out, nil
}

// prepare makes the mounts private and gives this process and its children a /proc, /run and /var/lib of their own.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range []string{"/run", "/var/lib"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return os.Mkdir("/var/lib/cni", 0o755)
}

func run(ctx context.Context) error {
	lv, err := parseLevels(*levels)
	if err != nil {
		return err
	}
	most := lv[len(lv)-1]
	if *samples < 1 || *parallel < 1 || most+*parallel > maxContainers {
		return fmt.Errorf("flags samples, parallel and levels: want at least 1, and at most %d containers in all", maxContainers)
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
	if err := prepare(); err != nil {
		return err
	}
	ours, err := linkOurs(todo)
	if err != nil {
		return err
	}
	for _, impl := range impls {
		if err := makeNetns(impl, most+*parallel); err != nil {
			return err
		}
	}
	start := time.Now()
	fmt.Println(header(lv))
	b := &bench{levels: lv, plugins: [2]string{*reference, ours}}
	for _, c := range todo {
		if err := b.chain(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	b.footer()
	fmt.Printf("took %s; load average now %s\n", time.Since(start).Round(time.Second), loadavg())
	return nil
}

// installed looks for all programs before anything is begun.
func installed(todo []chain) error {
	if _, err := os.Stat(filepath.Join(*bin, "seine-cni")); err != nil {
		return fmt.Errorf("%w: \"make build\" builds it, -bin says where it is", err)
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

func loadavg() string {
	data, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(data))[:3], " ")
}
