package cases_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/testkit"
)

// The machine and the world outside, which has no route to anything behind the machine:
//
//	HOST up0 ───────────── ext0 EXT, the machine's gateway
//	198.18.0.1/24          198.18.0.2/24
//	fd00:18::1/64          fd00:18::2/64
var (
	hostAddrs = []netip.Prefix{netip.MustParsePrefix("198.18.0.1/24"), netip.MustParsePrefix("fd00:18::1/64")}
	extAddrs  = []netip.Prefix{netip.MustParsePrefix("198.18.0.2/24"), netip.MustParsePrefix("fd00:18::2/64")}
	hostMAC   = net.HardwareAddr{2, 0, 0, 0, 0x18, 1}
	extMAC    = net.HardwareAddr{2, 0, 0, 0, 0x18, 2}
)

const netnsDir = "/run/netns"

// machine is a machine of its own: a network namespace, and a mount namespace with an empty /run and /var/lib, where the
// plugins keep their files, and containers, whose network namespaces have names in netnsDir.
type machine struct {
	host, ext *testkit.NS
	names     []string // of the containers, in order
	inside    map[string]*testkit.NS
	calls     chan func() // to the thread that is in both namespaces
}

// newMachine makes a machine. The caller closes it.
func newMachine(containers []string) (m *machine, err error) {
	m = &machine{names: containers, inside: map[string]*testkit.NS{}, calls: make(chan func())}
	if m.host, err = testkit.NewNS("HOST"); err != nil {
		return nil, err
	}
	if m.ext, err = testkit.NewNS("EXT"); err != nil {
		m.host.Close()
		return nil, err
	}
	go func() {
		runtime.LockOSThread() // for good: the mount namespace ends with the thread
		for f := range m.calls {
			f()
		}
	}()
	err = errors.Join(m.do(m.enter), m.connect())
	for _, name := range containers {
		if err == nil {
			err = m.newContainer(name)
		}
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *machine) close() {
	close(m.calls)
	for _, n := range m.inside {
		n.Close()
	}
	m.ext.Close()
	m.host.Close()
}

// do runs f in the machine's namespaces; what it starts stays there.
func (m *machine) do(f func() error) error {
	errs := make(chan error)
	m.calls <- func() { errs <- f() }
	return <-errs
}

// enter is the first thing that the thread does.
func (m *machine) enter() error {
	if err := unix.Setns(m.host.Fd(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	mounts := map[string]string{"/sys": "sysfs", "/run": "tmpfs", "/var/lib": "tmpfs"}
	if _, err := os.Stat("/etc/cni"); err == nil {
		mounts["/etc/cni"] = "tmpfs" // tuning reads a list of what is allowed there
	}
	for dir, fs := range mounts {
		err := os.MkdirAll(dir, 0o755) // any machine has them, the VM lab has not
		if err == nil {
			err = unix.Mount(fs, dir, fs, 0, "")
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return errors.Join(os.MkdirAll(netnsDir, 0o755), os.MkdirAll("/run/cni", 0o755), os.MkdirAll("/var/lib/cni", 0o755))
}

func (m *machine) connect() error {
	a := netlink.NewLinkAttrs()
	a.Name, a.HardwareAddr = "up0", hostMAC
	err := m.host.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "ext0", PeerHardwareAddr: extMAC,
		PeerNamespace: netlink.NsFd(m.ext.Fd())})
	if err != nil {
		return fmt.Errorf("veth to the outside: %w", err)
	}
	ends := []struct {
		ns    *testkit.NS
		link  string
		addrs []netip.Prefix
	}{{m.ext, "ext0", extAddrs}, {m.host, "up0", hostAddrs}}
	for _, end := range ends {
		l, err := end.ns.Netlink().LinkByName(end.link)
		if err == nil {
			err = end.ns.Netlink().LinkSetUp(l)
		}
		if err != nil {
			return fmt.Errorf("%s up: %w", end.link, err)
		}
	}
	for _, end := range ends {
		for _, p := range end.addrs {
			if err := end.ns.AddAddr(end.link, p); err != nil {
				return err
			}
		}
	}
	return errors.Join(m.host.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), extAddrs[0].Addr()),
		m.host.AddRoute(netip.MustParsePrefix("::/0"), extAddrs[1].Addr()))
}

func (m *machine) newContainer(name string) error {
	n, err := testkit.NewNS(name)
	if err != nil {
		return err
	}
	m.inside[name] = n
	return m.do(func() error {
		path := m.path(name)
		if err := os.WriteFile(path, nil, 0o444); err != nil {
			return err
		}
		return unix.Mount(n.Path(), path, "", unix.MS_BIND, "")
	})
}

// path is the container's CNI_NETNS.
func (m *machine) path(container string) string { return filepath.Join(netnsDir, container) }

// end ends a container: its namespace goes, with everything in it, and its path too.
func (m *machine) end(container string) error {
	n := m.inside[container]
	if n == nil {
		return nil
	}
	delete(m.inside, container)
	n.Close()
	return m.do(func() error {
		return errors.Join(unix.Unmount(m.path(container), unix.MNT_DETACH), os.Remove(m.path(container)))
	})
}

// all are the namespaces that there are, the machine first, without the outside.
func (m *machine) all() []*testkit.NS {
	all := []*testkit.NS{m.host}
	for _, name := range m.names {
		if n := m.inside[name]; n != nil {
			all = append(all, n)
		}
	}
	return all
}

// named finds a namespace by the name that probes use.
func (m *machine) named(name string) *testkit.NS {
	switch name {
	case "HOST":
		return m.host
	case "EXT":
		return m.ext
	}
	return m.inside[name]
}

// shell runs a command on the machine.
func (m *machine) shell(ctx context.Context, line string) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	var out []byte
	err := m.do(func() (err error) { out, err = cmd.CombinedOutput(); return err })
	if err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}
