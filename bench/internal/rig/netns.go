package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/client"
)

// OnThread runs f on a thread of its own, which ends with it, for f changes the thread's namespaces.
func OnThread(f func() error) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // and never given back
		errs <- f()
	}()
	return <-errs
}

// MakeNetns makes a network namespace at each of paths. Unmounting a path lets go of it.
func MakeNetns(paths ...string) error {
	return OnThread(func() error {
		for _, path := range paths {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, ""); err != nil {
				return err
			}
		}
		return nil
	})
}

// DropNetns lets go of a namespace of MakeNetns.
func DropNetns(path string) error {
	return errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path))
}

// Up sets a link of the present namespace up.
func Up(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(link)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// Ready waits until a daemon answers, with the error of the last attempt where it doesn't within the time.
func Ready(ctx context.Context, c *client.Client, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := c.Node(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("seined does not answer: %w", err)
		case <-tick.C:
		}
	}
}
