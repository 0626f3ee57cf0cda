// Package handover lets sockets outlive the process that answers on them: whoever asks while the daemon is killed and
// started again waits in the socket's queue in place of being refused.
//
//	service manager (systemd, or Hold) ── keeps the open sockets ──┐
//	      ▲ FDSTORE=1, FDNAME=…, with the socket                   │ LISTEN_FDS, LISTEN_FDNAMES
//	      └──────────────── daemon, killed ✗    daemon, new ◄──────┘
//
// It speaks systemd's documented protocol: sd_listen_fds(3) for what is handed over at the start, sd_notify(3) for what is
// told and given to keep, sd_watchdog_enabled(3). What a socket is for, its name says; what the names mean is the
// daemon's business.
package handover

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// firstFD is the number of the first file that is handed over (SD_LISTEN_FDS_START).
const firstFD = 3

// heldBy is the variable by which Hold says who it is: what LISTEN_PID is in systemd, which names the process that is
// meant. Hold can't know that number before it starts the process, so it gives its own.
const heldBy = "SEINE_HELD_BY"

// Manager is the service manager that started this process, if one did.
type Manager struct {
	notify   string // path of its socket, "" for none
	watchdog time.Duration

	mu   sync.Mutex
	kept map[string]*os.File // handed over and not taken yet
}

// Held reports whether Hold started this process.
func Held() bool { return os.Getenv(heldBy) == strconv.Itoa(os.Getppid()) }

// Start gives this process's manager and takes what it handed over. It is called once, before other files are opened by
// number and before programs are started: the variables are taken out of the environment, as they mean nobody else.
func Start() (*Manager, error) {
	env := map[string]string{}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		env[name] = os.Getenv(name)
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if Held() {
		env["LISTEN_PID"] = strconv.Itoa(os.Getpid())
	}
	_ = os.Unsetenv(heldBy)
	names, err := handed(env, os.Getpid())
	if err != nil {
		return nil, err
	}
	m := &Manager{notify: env["NOTIFY_SOCKET"], watchdog: watchdog(env, os.Getpid()), kept: map[string]*os.File{}}
	for i, name := range names {
		syscall.CloseOnExec(firstFD + i)
		f := os.NewFile(uintptr(firstFD+i), name)
		if old := m.kept[name]; old != nil {
			old.Close() // the later one of a name counts
		}
		m.kept[name] = f
	}
	return m, nil
}

// maxHanded bounds what is believed of LISTEN_FDS.
const maxHanded = 1024

// handed gives the names of the files that are handed over, in the order of their numbers. Files without a name are
// "unknown", as with sd_listen_fds_with_names(3).
func handed(env map[string]string, pid int) ([]string, error) {
	if env["LISTEN_PID"] != strconv.Itoa(pid) || env["LISTEN_FDS"] == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(env["LISTEN_FDS"])
	if err != nil || n < 0 || n > maxHanded {
		return nil, fmt.Errorf("LISTEN_FDS %q: is no number of files; want 0 to %d", env["LISTEN_FDS"], maxHanded)
	}
	names := make([]string, n)
	var given []string
	if s := env["LISTEN_FDNAMES"]; s != "" {
		given = strings.Split(s, ":")
	}
	if len(given) > 0 && len(given) != n {
		return nil, fmt.Errorf("LISTEN_FDNAMES %q: has %d names for %d files", env["LISTEN_FDNAMES"], len(given), n)
	}
	for i := range names {
		if names[i] = "unknown"; given != nil {
			names[i] = given[i]
		}
	}
	return names, nil
}

// watchdog gives the time within which the manager wants to hear of this process; 0 where it does not wait for that.
func watchdog(env map[string]string, pid int) time.Duration {
	us, err := strconv.ParseInt(env["WATCHDOG_USEC"], 10, 64)
	if err != nil || us <= 0 || env["WATCHDOG_PID"] != "" && env["WATCHDOG_PID"] != strconv.Itoa(pid) {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// Watchdog is the time within which Tell("WATCHDOG=1") has to come again; 0 for never.
func (m *Manager) Watchdog() time.Duration { return m.watchdog }

// Keeps reports whether sockets can be given to the manager.
func (m *Manager) Keeps() bool { return m.notify != "" }

// Take gives a file that was handed over under a name; nil for none. Who takes it closes it; the manager has its own.
func (m *Manager) Take(name string) *os.File {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.kept[name]
	delete(m.kept, name)
	return f
}

// Discard closes what was handed over and not taken, and has the manager forget it.
func (m *Manager) Discard() error {
	m.mu.Lock()
	rest := m.kept
	m.kept = map[string]*os.File{}
	m.mu.Unlock()
	var errs []error
	for name, f := range rest {
		f.Close()
		errs = append(errs, m.Forget(name))
	}
	return errors.Join(errs...)
}

// Keep gives the manager a socket to keep under a name, which is of letters, digits, '-', '.' and '@' (sd_notify(3),
// FDNAME). It is handed over at the next start. Without a manager nothing happens. The manager is asked not to look for
// errors on it: a UDP socket has some at times, and is none the worse for it.
func (m *Manager) Keep(name string, c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("keep socket %q: %w", name, err)
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = m.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, syscall.UnixRights(int(fd)))
	})
	if err = errors.Join(err, sent); err != nil {
		return fmt.Errorf("keep socket %q: %w", name, err)
	}
	return nil
}

// Forget has the manager close what it keeps under a name.
func (m *Manager) Forget(name string) error {
	if err := m.send("FDSTOREREMOVE=1\nFDNAME="+name, nil); err != nil {
		return fmt.Errorf("forget socket %q: %w", name, err)
	}
	return nil
}

// Tell tells the manager a state of sd_notify(3), such as "READY=1". Without a manager nothing happens.
func (m *Manager) Tell(state string) error {
	if err := m.send(state, nil); err != nil {
		return fmt.Errorf("tell the service manager %q: %w", state, err)
	}
	return nil
}

func (m *Manager) send(state string, rights []byte) error {
	if m.notify == "" {
		return nil
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	// "@" begins an abstract name, in the variable as in SockaddrUnix. It waits while the manager has no time to read, which
	// is short.
	if err = syscall.Sendmsg(fd, []byte(state), rights, &syscall.SockaddrUnix{Name: m.notify}, 0); err != nil {
		return fmt.Errorf("%s: %w", m.notify, err)
	}
	return nil
}
