package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/seine-net/seine/internal/kernel"
)

// Host is everything outside that the plugins touch. SystemHost fills it in; tests put their own in place.
type Host struct {
	// Args is the command line; the plugin is the base name of Args[0], or Args[1] where that is none.
	Args []string
	// Getenv and Environ give the environment; the latter is handed on to other address plugins.
	Getenv  func(string) string
	Environ func() []string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	// Kernel is called once, before the first use.
	Kernel func() kernel.Kernel
	// Netns says what a path names: see netnsKind. The error says why it is netnsGone.
	Netns func(path string) (netnsKind, error)
	// Namespaces gives the paths of the network namespaces that the machine's runtimes keep.
	Namespaces func() []string
	// Lock keeps other plugins of ours on this machine from changing what attachments share: bridges, their addresses,
	// the nftables table's chains. Those that change it take it exclusively, those that rely on it shared.
	Lock func(exclusive bool) (unlock func(), err error)
	// LockNetns keeps other plugins, those of the reference included, from changing a container's routing and VRFs. It
	// gives kernel.ErrNamespaceGone where the path names no file.
	LockNetns func(path string) (unlock func(), err error)
	// Allowlist is the path of the file that says which sysctls the plugin tuning may set.
	Allowlist string
	// Daemon is the path of the socket where seined listens unless a configuration says otherwise.
	Daemon string
	// Random fills b with random bytes, for hardware addresses.
	Random func(b []byte)
	// Firewalld connects to firewalld; nil where it does not run, with an error where the bus can't be asked.
	Firewalld func(context.Context) (Firewalld, error)
	// IPv6 reports whether the kernel has IPv6.
	IPv6 func() bool
	// SELinux reports whether the kernel runs SELinux.
	SELinux func() bool
	// Sysfs is the folder that has the machine's devices (sysfs(5)).
	Sysfs string
}

// netnsKind is what CNI_NETNS can turn out to be.
type netnsKind uint8

const (
	netnsGone  netnsKind = iota // nothing, or no network namespace
	netnsOwn                    // the one that the plugin runs in
	netnsOther                  // another
)

const ownNetns = "/proc/thread-self/ns/net"

// nsfsMagic is the type of the file system that namespaces lie in (statfs(2)).
const nsfsMagic = 0x6e736673

// SystemHost is the machine that the process runs on; newKernel makes the kernel's backend.
func SystemHost(newKernel func() kernel.Kernel) *Host {
	return &Host{Args: os.Args, Getenv: os.Getenv, Environ: os.Environ, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Kernel: newKernel, Netns: systemNetns, Namespaces: systemNamespaces, Lock: systemLock, LockNetns: systemLockNetns,
		Allowlist: allowlist, Daemon: "/run/seine/seine.sock", Random: systemRandom,
		Firewalld: systemFirewalld, IPv6: systemIPv6, SELinux: systemSELinux, Sysfs: "/sys"}
}

func systemNetns(path string) (netnsKind, error) {
	var own, other syscall.Stat_t
	if err := syscall.Stat(path, &other); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return netnsGone, errors.New("there is no such file; want the path of the container's network namespace")
		}
		return netnsGone, err
	}
	var fsys syscall.Statfs_t
	if err := syscall.Statfs(path, &fsys); err != nil {
		return netnsGone, err
	}
	// The path of a namespace that ended may be left over as a plain file.
	if int64(fsys.Type) != nsfsMagic {
		return netnsGone, errors.New("is a file but no namespace; want the path of the container's network namespace")
	}
	if err := syscall.Stat(ownNetns, &own); err != nil {
		return netnsGone, fmt.Errorf("own network namespace: %w", err)
	}
	if own.Dev == other.Dev && own.Ino == other.Ino {
		return netnsOwn, nil
	}
	return netnsOther, nil
}

// systemNamespaces gives what is where ip-netns(8), CNI's runtimes and Docker keep namespaces. Those that are known by a
// process alone (/proc/PID/ns/net) are not among them.
func systemNamespaces() []string {
	var out []string
	for _, dir := range []string{"/run/netns", "/run/docker/netns"} {
		entries, _ := os.ReadDir(dir) // none is as good as empty
		for _, e := range entries {
			path := dir + "/" + e.Name()
			if kind, _ := systemNetns(path); kind == netnsOther {
				out = append(out, path)
			}
		}
	}
	return out
}

// systemLock locks the network namespace that the process runs in: its inode is one that all processes that work on it
// share, whatever directories they see, and the lock ends with the process.
func systemLock(exclusive bool) (func(), error) {
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	unlock, err := flock(ownNetns, how)
	if err != nil {
		return nil, fmt.Errorf("lock: own network namespace: %w", err)
	}
	return unlock, nil
}

// systemLockNetns locks a container's network namespace as the reference plugin sbr does.
func systemLockNetns(path string) (func(), error) {
	unlock, err := flock(path, syscall.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", kernel.ErrNamespaceGone, err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock: CNI_NETNS %q: %w", path, err)
	}
	return unlock, nil
}

func flock(path string, how int) (func(), error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(fd, how)
	for err == syscall.EINTR {
		err = syscall.Flock(fd, how)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return nil, err
	}
	return func() { _ = syscall.Close(fd) }, nil
}

func systemIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// selinuxMagic is the type of the file system by which SELinux is governed.
const selinuxMagic = 0xf97cff8c

func systemSELinux() bool {
	var st syscall.Statfs_t
	return syscall.Statfs("/sys/fs/selinux", &st) == nil && uint32(st.Type) == selinuxMagic
}
