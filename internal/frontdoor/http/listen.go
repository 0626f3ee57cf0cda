package httpdoor

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// SocketMode is what the permissions of the API's socket are: root and its group may speak to the daemon, and whoever may, can do
// to the machine's network what root can.
const SocketMode = 0o660

// ErrAnswered says that the socket belongs to a daemon that lives.
var ErrAnswered = errors.New("another daemon answers there")

// Listen makes a unix socket at path with the permissions mode, and the folder it is in. What lies there already is replaced if it is a socket
// that nobody answers on, which is what a killed daemon leaves; anything else is an error. There is no moment at which
// the socket can be reached with other permissions, or not at all: it is made under another name, then
// renamed.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	if err := checkFolder(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	// Two daemons that start at once would both find the socket stale; the lock, which the kernel drops with the
	// process, lets one of them through.
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	l, err := listenLocked(path, mode)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	return &socket{UnixListener: l, path: path, lock: lock}, nil
}

// Adopt is Listen with a socket that somebody kept from a daemon before (internal/handover), so that who dials meanwhile
// waits in place of being refused. It is ErrElsewhere where path does not lead to that socket any more; then nothing is
// changed. What Adopt gives has f's socket; f itself stays the caller's.
func Adopt(path string, f *os.File, id string) (net.Listener, error) {
	if now, err := Identity(path); err != nil || now != id {
		return nil, fmt.Errorf("socket %q: %w", path, ErrElsewhere)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	l, err := net.FileListener(f)
	if err == nil {
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
			return &socket{UnixListener: u, path: path, lock: lock, kept: true}, nil
		}
		l.Close()
		err = errors.New("is no unix socket")
	}
	lock.Close()
	return nil, fmt.Errorf("socket %q: %w", path, err)
}

// ErrElsewhere says that a socket is not the one that its path leads to.
var ErrElsewhere = errors.New("another file is there now")

// Identity tells the file that is at a path now from others that are there later.
func Identity(path string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x-%x", st.Dev, st.Ino), nil
}

// Kept has the socket's file stay when a listener of Listen's is closed: somebody keeps the socket open.
func Kept(l net.Listener) {
	if s, ok := l.(*socket); ok {
		s.kept = true
	}
}

// checkFolder makes the folder, or refuses one in which others could put a socket of theirs in the place of ours: who
// speaks to it believes that it is this daemon.
func checkFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := -1
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(st.Uid)
	}
	if owner != 0 && owner != os.Geteuid() {
		return fmt.Errorf("folder %q belongs to user %d; want root's", dir, owner)
	}
	if m := info.Mode(); m.Perm()&0o022 != 0 && m&fs.ModeSticky == 0 {
		return fmt.Errorf("folder %q can be written by others (%s); want mode 755", dir, m)
	}
	return nil
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrAnswered
		}
		return nil, err
	}
	return f, nil
}

func listenLocked(path string, mode fs.FileMode) (*net.UnixListener, error) {
	if err := checkStale(path); err != nil {
		return nil, err
	}
	// Whoever connects before the permissions are right would stay connected: nobody else can enter this folder.
	temp := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), os.Getpid()))
	if err := os.RemoveAll(temp); err != nil {
		return nil, err
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	name := filepath.Join(temp, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it would unlink the name that it was made under
	err = os.Chmod(name, mode)
	if err == nil {
		err = os.Rename(name, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// checkStale returns nil where nothing is, or a socket that nobody answers on.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("is there already and is no socket")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		c.Close()
		return ErrAnswered
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err // a full backlog, say: somebody may be there
}

// socket takes the file away when it is closed.
type socket struct {
	*net.UnixListener
	path string
	lock *os.File
	kept bool // somebody else has it open, too
	once sync.Once
}

// Addr gives the name that the socket is reached by.
func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// Close stops to listen and removes the socket. The lock's file stays: to remove it would let two daemons hold a lock
// each.
func (s *socket) Close() error {
	err := net.ErrClosed
	s.once.Do(func() {
		if err = nil; !s.kept {
			err = os.Remove(s.path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		err = errors.Join(err, s.UnixListener.Close(), s.lock.Close())
	})
	return err
}
