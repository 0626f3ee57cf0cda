package dhcp

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// errGone says that a namespace, or the interface in it, is no more.
var errGone = errors.New("the container's interface is gone")

// enter runs f in the namespace at path and gives what tells that namespace from others. With want, another namespace
// under that path is as good as none.
func enter(path, want string, f func() error) (string, error) {
	// O_NONBLOCK: whatever lies there, opening it must not hang.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("%w: network namespace %q: %w", errGone, path, err)
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
	id := fmt.Sprintf("%d:%d", st.Dev, st.Ino)
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
