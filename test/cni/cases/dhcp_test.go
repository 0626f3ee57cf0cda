package cases_test

import (
	"bytes"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

// seined builds the daemon once, where the plugins are.
var seined = sync.OnceValue(func() error {
	dir, err := bin()
	if err != nil {
		return err
	}
	return testkit.BuildProgram(dir, "seined")
})

const dhcpSocket = "/run/cni/dhcp.sock"

// dhcp starts a server outside, which has one address to give, and the daemon that goes with the plugins.
func (r *run) dhcp() error {
	if slices.Contains(r.Needs, "dhcp-server") {
		// In the foreground, without a configuration of the machine's, and without DNS.
		server := exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=ext0", "--bind-interfaces",
			"--user=root", "--dhcp-authoritative", "--no-ping", "--dhcp-range=198.18.0.100,198.18.0.100,1h", "--pid-file=", "--log-facility=-",
			"--dhcp-leasefile="+filepath.Join(r.cache, "leases"))
		if err := r.background(server, r.machine.ext.Start); err != nil {
			return err
		}
	}
	if !slices.Contains(r.Needs, "dhcp-daemon") {
		return nil
	}
	daemon, sockets := exec.Command(filepath.Join(r.bin, "dhcp"), "daemon"), []string{dhcpSocket}
	if *reference == "" {
		if err := seined(); err != nil {
			return err
		}
		sockets = append(sockets, filepath.Join(r.cache, "seine.sock")) // comes last
		daemon = exec.Command(filepath.Join(r.bin, "seined"), "-state", filepath.Join(r.cache, "state.db"),
			"-socket", sockets[1], "-dns-port", "0", "-quiet")
	}
	if err := r.background(daemon, func(cmd *exec.Cmd) error { return r.machine.do(cmd.Start) }); err != nil {
		return err
	}
	for _, socket := range sockets {
		if err := r.awaitSocket(socket); err != nil {
			return err
		}
	}
	return nil
}

// awaitSocket waits until somebody answers at a socket on the machine.
func (r *run) awaitSocket(path string) error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := r.machine.do(func() error {
			c, err := net.Dial("unix", path)
			if err == nil {
				err = c.Close()
			}
			return err
		})
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// background runs a program until the test ends; what it says is told where the test fails.
func (r *run) background(cmd *exec.Cmd, start func(*exec.Cmd) error) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := start(cmd); err != nil {
		return err
	}
	r.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if r.Failed() {
			r.Logf("%s: %s", filepath.Base(cmd.Path), out.String())
		}
	})
	return nil
}
