package main

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/bench/internal/floor"
	"github.com/seine-net/seine/bench/internal/rig"
)

// impls are the implementations; their index is used for whatever there is one of for each.
var impls = [...]string{"reference", "seine", "floor"}

const (
	refImpl = iota
	ourImpl
	floorImpl
)

// netnsDir holds the containers' namespaces of all machines.
const netnsDir = "/var/lib/bench/netns"

func netnsPath(impl string, i int) string { return filepath.Join(netnsDir, impl, strconv.Itoa(i)) }

// makeNetns makes an implementation's namespaces. They serve all chains, one after another.
func makeNetns(impl string, n int) error {
	if err := os.MkdirAll(filepath.Join(netnsDir, impl), 0o755); err != nil {
		return err
	}
	paths := make([]string, n)
	for i := range paths {
		paths[i] = netnsPath(impl, i)
	}
	return rig.MakeNetns(paths...)
}

// hasLink reports whether a container's namespace holds a link.
func hasLink(path, name string) (found bool, err error) {
	err = rig.OnThread(func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		links, err := net.Interfaces()
		for _, l := range links {
			found = found || l.Name == name
		}
		return err
	})
	return found, err
}

// request asks a machine to run the plugins for containers From to From+Count-1, Width of them at once.
type request struct {
	Del                bool
	From, Count, Width int
	How                how
}

// reply tells what each container's took.
type reply struct {
	Costs []cost
	Err   string
}

// setup is the first message to a machine.
type setup struct {
	Impl string
	// Programs is the folder of the plugins; of the floor, which is one, the program itself.
	Programs string
	Chain    chain
}

// machine is a process in a network and a mount namespace of its own that starts the plugins.
type machine struct {
	impl string
	cmd  *exec.Cmd
	in   io.Closer
	enc  *gob.Encoder
	dec  *gob.Decoder
}

// machineEnv marks the process that is a machine.
const machineEnv = "SEINE_BENCH_MACHINE"

func init() {
	gob.Register(object{})
	gob.Register([]object{})
	gob.Register([][]object{})
}

func startMachine(ctx context.Context, s setup) (*machine, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), machineEnv+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	m := &machine{impl: s.Impl, cmd: cmd, in: in, enc: gob.NewEncoder(in), dec: gob.NewDecoder(out)}
	if err := m.enc.Encode(s); err != nil {
		return nil, errors.Join(err, m.stop(""))
	}
	return m, nil
}

func (m *machine) do(r request) ([]cost, error) {
	if r.Count == 0 {
		return nil, nil
	}
	var rep reply
	if err := m.enc.Encode(r); err != nil {
		return nil, fmt.Errorf("%s: %w", m.impl, err)
	}
	if err := m.dec.Decode(&rep); err != nil {
		return nil, fmt.Errorf("%s: %w", m.impl, err)
	}
	if rep.Err != "" {
		return nil, fmt.Errorf("%s: %s", m.impl, rep.Err)
	}
	return rep.Costs, nil
}

// stop ends the machine and waits until the kernel has taken its end of the containers' interface apart, which would
// disturb what is measured next, and keep the name from the next chain.
func (m *machine) stop(ifname string) error {
	_ = m.in.Close()
	err := m.cmd.Wait()
	for deadline := time.Now().Add(time.Minute); ifname != "" && ifname != "lo"; <-time.After(50 * time.Millisecond) {
		here, err := hasLink(netnsPath(m.impl, 0), ifname)
		if err != nil || !here {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %s of the first container is there a minute after its machine ended", m.impl, ifname)
		}
	}
	return err
}

// playMachine is the machine's side: it obeys until its stdin ends.
func playMachine() int {
	enc, dec := gob.NewEncoder(os.Stdout), gob.NewDecoder(os.Stdin)
	var s setup
	err := dec.Decode(&s)
	if err == nil {
		err = isolate()
	}
	if err == nil && s.Impl == impls[floorImpl] {
		err = s.floorMachine()
	}
	for err == nil {
		var r request
		if err = dec.Decode(&r); err == nil {
			err = enc.Encode(s.serve(r))
		}
	}
	if !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, "bench/cni: machine:", err)
		return 1
	}
	return 0
}

// isolate gives the machine files of its own wherever the plugins keep state, and puts lo up.
func isolate() error {
	for _, m := range []struct{ fs, dir string }{{"tmpfs", "/run"}, {"tmpfs", "/var/lib/cni"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return rig.Up("lo")
}

// floorMachine makes what the first ADD of a plugin makes for all that come after it.
func (s setup) floorMachine() error {
	bridge := ""
	if s.Chain.bridged() {
		bridge = bridgeName
	}
	return floor.Machine(bridge, gateway)
}
