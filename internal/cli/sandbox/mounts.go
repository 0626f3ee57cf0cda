package sandbox

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// resolvers are the folders of daemons of the machine that programs ask for names around /etc/resolv.conf (nss-resolve,
// nscd). They answer what the machine knows, so they are hidden.
var resolvers = []string{"/run/systemd/resolve", "/run/nscd", "/var/run/nscd"}

// apply makes init's namespaces what the setup says. The mount namespace must be init's own.
func (s *Setup) apply() error {
	// What the machine mounts and unmounts later still shows here, so that we pin nothing; not the other way round.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("own mounts: %w", err)
	}
	if len(s.Files) > 0 {
		if err := s.cover(); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("/proc of the sandbox: %w", err)
	}
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("host name %q: %w", s.Hostname, err)
		}
	}
	if s.Sys {
		if err := remountSys(); err != nil {
			return err
		}
	}
	if s.Loopback {
		return loopbackUp()
	}
	return nil
}

// cover puts our files over the machine's. They live in a file system in memory without a place of its own: it is
// mounted at /proc, which is always there and is mounted anew afterwards, for as long as the files are being placed.
func (s *Setup) cover() error {
	const stage = "/proc"
	targets := map[string]string{} // before the links lose what they lead to
	for path := range s.Files {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			targets[path] = real
		}
	}
	for _, dir := range resolvers {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			if err := mountMemory(dir); err != nil {
				return err
			}
		}
	}
	if err := mountMemory(stage); err != nil {
		return err
	}
	for i, path := range slices.Sorted(maps.Keys(s.Files)) {
		target, ok := targets[path]
		if !ok {
			fmt.Fprintf(os.Stderr, "seine: note: the machine has no %s, so the program has none either\n", path)
			continue
		}
		from := filepath.Join(stage, strconv.Itoa(i))
		if err := os.WriteFile(from, []byte(s.Files[path]), 0o644); err != nil {
			return err
		}
		if hidden(target) {
			if err := os.WriteFile(target, nil, 0o644); err != nil {
				return err
			}
		}
		if err := unix.Mount(from, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s of the sandbox: %w", path, err)
		}
	}
	if err := unix.Unmount(stage, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", stage, err)
	}
	return nil
}

func hidden(path string) bool {
	return slices.ContainsFunc(resolvers, func(dir string) bool { return strings.HasPrefix(path, dir+"/") })
}

func mountMemory(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// remountSys mounts a sysfs that shows the interfaces of this network namespace (/sys/class/net) over the machine's, and
// puts what was mounted below that one, such as the control groups, in its place again.
func remountSys() error {
	below, err := mountsBelow("/sys")
	if err != nil {
		return err
	}
	kept := map[string]int{}
	for _, path := range below {
		if fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
			defer unix.Close(fd)
			kept[path] = fd
		}
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("/sys of the sandbox: %w", err)
	}
	for path, fd := range kept {
		// No reason to refuse the program: few look there, and those say what they miss.
		_ = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), path, "", unix.MS_BIND|unix.MS_REC, "")
	}
	return nil
}

// mountsBelow gives the mount points below a folder, without those that are below another one of them.
func mountsBelow(dir string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	var all []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			all = append(all, f[4])
		}
	}
	slices.Sort(all)
	var out []string
	for _, p := range slices.Compact(all) {
		if len(out) == 0 || !strings.HasPrefix(p, out[len(out)-1]+"/") {
			out = append(out, p)
		}
	}
	return out, nil
}

// loopbackUp sets lo up; a network namespace begins without.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}
