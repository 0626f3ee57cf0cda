package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// The switches that make the machine a router.
const forward4, forward6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"

// sysctlPath is the file of a sysctl.
func sysctlPath(name string) (string, error) {
	if name == "" || !filepath.IsLocal(name) || filepath.Clean(name) != name {
		return "", fmt.Errorf("name %q is no path below /proc/sys", name)
	}
	return "/proc/sys/" + name, nil
}

// readSysctl and writeSysctl work on a thread in the namespace that is meant.
func (k *Kernel) readSysctl(name string) (string, error) {
	fd, err := k.proc.open(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var all []byte
	var buf [512]byte
	for {
		n, err := again(func() (int, error) { return unix.Read(fd, buf[:]) })
		if err != nil {
			return "", &os.PathError{Op: "read", Path: "/proc/sys/" + name, Err: err}
		}
		if n == 0 {
			return strings.TrimSpace(string(all)), nil
		}
		all = append(all, buf[:n]...)
	}
}

func (k *Kernel) writeSysctl(name, value string) error {
	fd, err := k.proc.open(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// In one piece: each write sets the value anew.
	if _, err = again(func() (int, error) { return unix.Write(fd, []byte(value+"\n")) }); err != nil {
		return &os.PathError{Op: "write", Path: "/proc/sys/" + name, Err: err}
	}
	return nil
}

// sameValue compares values as the kernel does: it turns blanks between numbers into tabs.
func sameValue(a, b string) bool {
	return strings.Join(strings.Fields(a), " ") == strings.Join(strings.Fields(b), " ")
}

// listSysctls reads the present values. Their Before is empty: it is the Value listed here that a caller has to put
// into the Before of what it wants.
func (s *session) listSysctls(sp *space, want []kernel.Object, f *found) error {
	links := map[string]*linkInfo{}
	var files []*kernel.Sysctl
	for _, o := range want {
		w := o.(*kernel.Sysctl)
		name, v6, place, ok := devconf(w.Name)
		if !ok {
			files = append(files, w)
			continue
		}
		l, asked := links[name]
		if !asked {
			var err error
			if l, err = sp.link(name); err != nil && !gone(err) {
				return err
			}
			links[name] = l
		}
		if l == nil {
			continue
		}
		if v, ok := l.value(v6, place); ok {
			f.add(&kernel.Sysctl{NS: sp.path, Name: w.Name, Value: v})
		} else {
			files = append(files, w)
		}
	}
	if len(files) == 0 {
		return nil
	}
	return sp.do(func() error {
		for _, w := range files {
			v, err := s.k.readSysctl(w.Name)
			if isErrno(err, unix.ENOENT, unix.EACCES, unix.EPERM, unix.EISDIR) { // EACCES: some can only be written
				continue
			}
			if err != nil {
				return err
			}
			if sameValue(v, w.Value) {
				v = w.Value
			}
			f.add(&kernel.Sysctl{NS: sp.path, Name: w.Name, Value: v})
		}
		return nil
	})
}

// applySysctls writes a run of values on a thread in their namespace.
func (s *session) applySysctls(sp *space, run []kernel.Change, errs []error) {
	err := sp.do(func() error {
		for i, c := range run {
			errs[i] = fail(subject(c), s.applySysctl(sp, c))
		}
		return nil
	})
	if err == nil {
		return
	}
	for i, c := range run {
		if errs[i] == nil && (c.Op != kernel.Delete || !gone(err)) {
			errs[i] = fail(subject(c), err)
		}
	}
}

func (s *session) applySysctl(sp *space, c kernel.Change) error {
	if c.Op == kernel.Delete {
		old := c.Old.(*kernel.Sysctl)
		if old.Before == "" {
			return nil
		}
		err := s.k.writeSysctl(old.Name, old.Before)
		if gone(err) {
			return nil
		}
		s.k.forget(sp, old.Name)
		return err
	}
	want := c.New.(*kernel.Sysctl)
	s.k.remember(sp, want.Name)
	return s.k.writeSysctl(want.Name, want.Value)
}

// remember keeps the value that one of the switches that Facts tells about had before our first change.
func (k *Kernel) remember(sp *space, name string) {
	if sp.path != "" || name != forward4 && name != forward6 {
		return
	}
	v, err := k.readSysctl(name)
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.before[name]; !ok && err == nil {
		k.before[name] = v
	}
}

func (k *Kernel) forget(sp *space, name string) {
	if sp.path != "" {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.before, name)
}
