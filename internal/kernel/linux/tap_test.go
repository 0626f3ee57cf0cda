package linux_test

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/kerneltest"
	"github.com/seine-net/seine/internal/kernel/linux"
)

// TestTapOpens: a user that may do nothing else can open a TAP device that is his, or his group's, once for each queue,
// and no other one.
func TestTapOpens(t *testing.T) {
	h := kerneltest.NewTools(t)
	ns := h.AddNamespace(t)
	k := linux.New(linux.Options{Netns: h.Base})
	defer k.Close()
	const user, group = 65534, 65533
	id := func(n uint32) *uint32 { return &n }
	for i, c := range []struct {
		access     kernel.Access
		uid, queue int
		want       error
	}{
		{kernel.Access{Owner: id(user)}, user, 1, nil},
		{kernel.Access{Owner: id(user)}, user - 7, 1, unix.EPERM},
		{kernel.Access{Owner: id(0)}, user, 1, unix.EPERM},
		{kernel.Access{Owner: id(user)}, user, 2, unix.EINVAL}, // it has one queue
		{kernel.Access{Owner: id(user), MultiQueue: true}, user, 3, nil},
		{kernel.Access{Group: id(group)}, user, 1, nil},
		{kernel.Access{Group: id(0)}, user, 1, unix.EPERM},
		{kernel.Access{Owner: id(user), Group: id(group), MultiQueue: true}, user, 2, nil},
	} {
		l := &kernel.Link{NS: ns, Name: fmt.Sprintf("tap%d", i), Type: kernel.Tap, MTU: 1400, Access: &c.access}
		if err := k.Apply(t.Context(), []kernel.Change{{Op: kernel.Create, New: l}})[0]; err != nil {
			t.Fatal(err)
		}
		if err := openQueues(ns, l.Name, c.uid, group, c.queue); !errors.Is(err, c.want) {
			t.Errorf("user %d opens %d queues of %s: %v, want %v", c.uid, c.queue, l, err, c.want)
		}
	}
}

// openQueues attaches to a TAP device as a user without rights.
func openQueues(ns, name string, uid, gid, queues int) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is somebody else from now on
		done <- func() error {
			fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return err
			}
			var tuns []int
			for range queues {
				tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(tun)
				tuns = append(tuns, tun)
			}
			for _, call := range []struct{ nr, id uintptr }{{unix.SYS_SETRESGID, uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid)}} {
				if _, _, errno := unix.RawSyscall(call.nr, call.id, call.id, call.id); errno != 0 {
					return errno
				}
			}
			flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
			if queues > 1 {
				flags |= unix.IFF_MULTI_QUEUE
			}
			for _, tun := range tuns {
				req, err := unix.NewIfreq(name)
				if err != nil {
					return err
				}
				req.SetUint16(flags)
				if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, req); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return <-done
}
