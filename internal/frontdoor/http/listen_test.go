package httpdoor

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// as runs f on a thread that has become a user without rights; the thread ends with it.
func as(uid, gid int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
			done <- e
		} else if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
			done <- e
		} else if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			done <- e
		} else {
			done <- f()
		}
	}()
	return <-done
}

func connect(path string) func() error {
	return func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
}

// reachable makes a folder that everybody can enter.
func reachable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestWhoMayConnect: root, and for the API its group; nobody else. The last socket shows that others could come so far.
func TestWhoMayConnect(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skip: needs root: it becomes another user")
	}
	const nobody = 65534
	dir := reachable(t)
	for _, c := range []struct {
		mode         os.FileMode
		group, other error
	}{{0o600, unix.EACCES, unix.EACCES}, {SocketMode, nil, unix.EACCES}, {0o666, nil, nil}} {
		path := filepath.Join(dir, c.mode.String())
		old := syscall.Umask(0)
		l, err := Listen(path, c.mode)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		for _, who := range []struct {
			uid, gid int
			want     error
		}{{0, 0, nil}, {nobody, 0, c.group}, {nobody, nobody, c.other}} {
			if err := as(who.uid, who.gid, connect(path)); !errors.Is(err, who.want) {
				t.Errorf("mode %s, user %d, group %d: %v, want %v", c.mode, who.uid, who.gid, err, who.want)
			}
		}
		l.Close()
	}
}

// TestFoldersOfOthers: a socket in a folder that others can write is no secret's place.
func TestFoldersOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skip: needs root: it gives files to another user")
	}
	for name, c := range map[string]struct {
		make func(dir string) error
		want string
	}{
		"another's":         {func(dir string) error { return os.Chown(dir, 65534, 65534) }, "belongs to user 65534; want root's"},
		"open to all":       {func(dir string) error { return os.Chmod(dir, 0o777) }, "can be written by others"},
		"open to a group":   {func(dir string) error { return os.Chmod(dir, 0o775) }, "can be written by others"},
		"as /tmp is":        {func(dir string) error { return os.Chmod(dir, 0o777|os.ModeSticky) }, ""},
		"a link for socket": {func(dir string) error { return os.Symlink("elsewhere", filepath.Join(dir, "s")) }, "is no socket"},
		"a link for lock":   {func(dir string) error { return os.Symlink("elsewhere", filepath.Join(dir, "s.lock")) }, "too many levels of symbolic links"},
		"a folder":          {func(dir string) error { return os.Mkdir(filepath.Join(dir, "s"), 0o755) }, "is no socket"},
		"what was half made": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, ".s."+strconv.Itoa(os.Getpid())), nil, 0o600)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := c.make(dir); err != nil {
				t.Fatal(err)
			}
			l, err := Listen(filepath.Join(dir, "s"), 0o600)
			if err == nil {
				l.Close()
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if _, err := os.Lstat(filepath.Join(dir, "elsewhere")); err == nil {
				t.Error("a link was followed")
			}
		})
	}
}
