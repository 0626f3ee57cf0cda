package dhcp

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// errGone says that a namespace, or the interface in it, is no more.
var errGone = errors.New("the container's interface is gone")

// boot tells this uptime of the machine from others, in which the numbers of namespaces begin anew.
var boot = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it, the numbers have to do
	return strings.TrimSpace(string(b))
})

// enter runs f in the namespace at path and gives what tells that namespace from others. With want, another namespace
// under that path is as good as none.
func enter(path, want string, f func() error) (string, error) {
	// O_NONBLOCK: whatever lies there, opening it must not hang.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	for _, none := range []error{unix.ENOENT, unix.ENOTDIR, unix.ESRCH, unix.ENXIO, unix.ELOOP, unix.ENODEV} {
		if err == none {
			return "", fmt.Errorf("%w: network namespace %q: %w", errGone, path, err)
		}
	}
	if err != nil { // of a machine without a descriptor to spare, say: that is no sign of anything
		return "", fmt.Errorf("network namespace %q: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)); err != nil {
		return "", fmt.Errorf("network namespace %q: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return "", fmt.Errorf("%w: network namespace %q: is none", errGone, path)
	}
	id := fmt.Sprintf("%s %d:%d", boot(), st.Dev, st.Ino)
	if want != "" && id != want {
		return "", fmt.Errorf("%w: network namespace %q: is another one now", errGone, path)
	}
	if f == nil {
		return id, nil
	}
	out := make(chan error, 1)
	go func() {
		err := errors.New("ended early")
		defer func() { out <- err }()
		runtime.LockOSThread() // for good: the thread ends with the goroutine, so none is left in a wrong namespace
		if err = unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("network namespace %q: enter: %w", path, err)
			return
		}
		err = f()
	}()
	return id, <-out
}
