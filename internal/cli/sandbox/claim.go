package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrTaken says that a name belongs to a sandbox that lives.
var ErrTaken = errors.New("the name is taken by a program that runs")

// claim is the right to a name in a folder: a lock on DIR/.NAME.lock, which the kernel drops with the process, and what
// it protects, the network namespace that is mounted at DIR/NAME.
type claim struct {
	path string
	lock *os.File
}

// newClaim takes a name and clears away what a dead owner left.
func newClaim(dir, name string) (*claim, error) {
	if name == "" || name[0] == '.' || strings.Contains(name, "/") {
		return nil, fmt.Errorf("%q is no name for a file", name)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c := &claim{path: filepath.Join(dir, name)}
	if err := c.take(filepath.Join(dir, "."+name+".lock")); err != nil {
		return nil, err
	}
	if err := c.unmount(); err != nil {
		return nil, errors.Join(err, c.release())
	}
	return c, nil
}

// take gets the lock on the file that has the name now: its last holder may have removed it between open and lock.
func (c *claim) take(path string) error {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return ErrTaken
			}
			return fmt.Errorf("lock %s: %w", path, err)
		}
		locked, err := f.Stat()
		if err != nil {
			f.Close()
			return err
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(locked, now) {
			c.lock = f
			return nil
		}
		f.Close()
	}
}

// mount gives a namespace the claim's path.
func (c *claim) mount(ns string) error {
	f, err := os.OpenFile(c.path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(ns, c.path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", c.path, err)
	}
	return nil
}

// unmount takes the path away, mounted or not.
func (c *claim) unmount() error {
	err := unix.Unmount(c.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", c.path, err)
	}
	if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// release gives the name back; of a nil claim there is none.
func (c *claim) release() error {
	if c == nil {
		return nil
	}
	return errors.Join(c.unmount(), os.Remove(c.lock.Name()), c.lock.Close())
}

// Sweep clears away what owners left in a folder that were killed. Names that are in use, and files that are not ours,
// stay. A folder that does not exist is clean.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".lock")
		if name, dot := strings.CutPrefix(name, "."); ok && dot && name != "" {
			c, err := newClaim(dir, name)
			if err == nil {
				err = c.release()
			}
			if !errors.Is(err, ErrTaken) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
