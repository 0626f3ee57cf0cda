package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one that we started: its number, and when it began in clock ticks since the boot, by which it is told from
// others that get the number later (proc_pid_stat(5)).
type process struct {
	PID   int
	Start uint64
}

// parsePID reads what String writes.
func parsePID(s string) (process, error) {
	var p process
	if n, err := fmt.Sscanf(s, "%d %d\n", &p.PID, &p.Start); n != 2 || err != nil || p.PID <= 1 {
		return process{}, fmt.Errorf("%q is no process; want its number and its start time", s)
	}
	return p, nil
}

// String is how a process is kept in a file.
func (p process) String() string { return fmt.Sprintf("%d %d\n", p.PID, p.Start) }

// startOf reads when a process began from /proc/PID/stat; 0 for one that has ended and is still to be waited for.
func startOf(stat string) (uint64, error) {
	// The command (field 2) is in parentheses and may hold anything; the fields after the last one are plain.
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("%q is not of the known form", stat)
	}
	if f[0] == "Z" || f[0] == "X" {
		return 0, nil
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// lives reports whether the process is still there, and still the same.
func (p process) lives() bool {
	now, err := find(p.PID)
	return err == nil && p.Start != 0 && now == p
}

// find gives the process that has a number now.
func find(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	start, err := startOf(string(b))
	return process{pid, start}, err
}

// readPID reads a file with a process; the zero process where there is no such file.
func readPID(path string) (process, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return process{}, nil
	}
	if err != nil {
		return process{}, err
	}
	p, err := parsePID(string(b))
	if err != nil {
		return p, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// signal sends a signal to the process if it is the one that is meant, whatever has its number now.
func (p process) signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return ignoreGone(err)
	}
	defer unix.Close(fd)
	if !p.lives() {
		return nil
	}
	return ignoreGone(unix.PidfdSendSignal(fd, sig, nil, 0))
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// await waits until the process has ended; false if it has not within limit.
func (p process) await(limit time.Duration) bool {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	for end := time.Now().Add(limit); p.lives(); {
		left := time.Until(end)
		if left <= 0 {
			return false
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1) // what it says is looked at anew
	}
	return true
}

// endIn is what a daemon may take to end by itself.
const endIn = 10 * time.Second

// end ends processes: they are asked all at once, and killed when they take too long.
func end(all []process) error {
	var errs []error
	for _, p := range all {
		errs = append(errs, p.signal(unix.SIGTERM))
	}
	limit := time.Now().Add(endIn)
	for _, p := range all {
		if p.await(max(time.Until(limit), 0)) {
			continue
		}
		errs = append(errs, p.signal(unix.SIGKILL))
		if !p.await(endIn) {
			errs = append(errs, fmt.Errorf("process %d does not end", p.PID))
		}
	}
	return errors.Join(errs...)
}
