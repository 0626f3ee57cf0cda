package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The pauses between the end of a program and its next start: the first one, doubled each time up to the last one while
// it does not get ready.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 5 * time.Second
)

// barrier is what Hold sends to itself: what lies before it in the queue has been read when it comes.
const barrier = "X_SEINE_BARRIER=1"

// Hold is a service manager for one program, where the machine has no other: it starts the command, keeps the sockets
// that the program gives it, and starts it again with them when it ends in any way but by itself. It ends when the
// program does so by its own will (status 0), when it never got ready, or with ctx, which ends the program by SIGTERM. The
// error of a program that ended with another status is an *exec.ExitError.
func Hold(ctx context.Context, log *slog.Logger, name string, args ...string) error {
	dir, err := os.MkdirTemp("", "seine-hold-") // only we can enter it, so only our children can tell us anything
	if err != nil {
		return fmt.Errorf("hold: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("hold: %w", err)
	}
	h := &holder{notify: path, conn: conn, log: log, barriers: make(chan struct{})}
	var reading sync.WaitGroup
	reading.Go(h.read)
	defer func() {
		conn.Close()
		reading.Wait()
		for _, k := range h.kept {
			_ = syscall.Close(k.fd)
		}
	}()
	// The kernel ends the program with the thread that started it, so this one has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return h.run(ctx, name, args)
}

// holder is one Hold.
type holder struct {
	notify   string
	conn     *net.UnixConn
	log      *slog.Logger
	barriers chan struct{}

	mu    sync.Mutex
	kept  []keptFile
	ready bool // since the last start
}

// keptFile is a number and no os.File, which would have the runtime look at the socket whenever something comes in.
type keptFile struct {
	name string
	fd   int
}

func (h *holder) run(ctx context.Context, name string, args []string) error {
	pause, once := firstPause, false
	for {
		err := h.start(ctx, name, args)
		if ctx.Err() != nil {
			return nil
		}
		if sync := h.settle(); sync != nil {
			return fmt.Errorf("hold: %w", sync)
		}
		h.mu.Lock()
		ready := h.ready
		h.mu.Unlock()
		once = once || ready
		if err == nil || !once {
			return err
		}
		if ready {
			pause = firstPause
		}
		h.log.Warn("the program ended and is started again; who asks it waits", "err", err, "in", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// start runs the program once.
func (h *holder) start(ctx context.Context, name string, args []string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	h.mu.Lock()
	h.ready = false
	kept := slices.Clone(h.kept)
	h.mu.Unlock()
	var names []string
	for _, k := range kept {
		// It is shared with nobody now. Without this the runtime would look at it, until it is closed.
		_ = syscall.SetNonblock(k.fd, false)
		fd, err := unix.FcntlInt(uintptr(k.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("hold: socket %q: %w", k.name, err)
		}
		f := os.NewFile(uintptr(fd), k.name)
		defer f.Close() // a second time it is an error that means nothing
		names, cmd.ExtraFiles = append(names, k.name), append(cmd.ExtraFiles, f)
	}
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+h.notify, heldBy+"="+strconv.Itoa(os.Getpid()),
		"LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	if err := cmd.Start(); err != nil {
		return err
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	return cmd.Wait()
}

// settle waits until all that the program said before it ended has been read.
func (h *holder) settle() error {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: h.notify, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(barrier)); err != nil {
		return err
	}
	if _, ok := <-h.barriers; !ok {
		return errors.New("what the program says can't be read any more")
	}
	return nil
}

// read takes in what the program says until the socket is closed.
func (h *holder) read() {
	defer close(h.barriers)
	text, rights := make([]byte, 4096), make([]byte, syscall.CmsgSpace(16*4))
	for {
		n, m, _, _, err := h.conn.ReadMsgUnix(text, rights)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				h.log.Error("what the program says can't be read any more", "err", err)
			}
			return
		}
		fds := received(rights[:m])
		if string(text[:n]) == barrier {
			h.barriers <- struct{}{}
			continue
		}
		h.said(string(text[:n]), fds)
	}
}

// received gives the files that came with a message.
func received(rights []byte) (fds []int) {
	msgs, err := syscall.ParseSocketControlMessage(rights)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		if more, err := syscall.ParseUnixRights(&m); err == nil {
			fds = append(fds, more...)
		}
	}
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
	}
	return fds
}

// said takes in one message of sd_notify(3).
func (h *holder) said(text string, fds []int) {
	state := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		state[k] = v
	}
	name := state["FDNAME"]
	h.mu.Lock()
	defer h.mu.Unlock()
	if state["READY"] == "1" {
		h.ready = true
	}
	if state["FDSTOREREMOVE"] == "1" || state["FDSTORE"] == "1" {
		h.kept = slices.DeleteFunc(h.kept, func(k keptFile) bool {
			if k.name == name {
				_ = syscall.Close(k.fd)
			}
			return k.name == name
		})
	}
	for i, fd := range fds {
		if state["FDSTORE"] != "1" || i > 0 || name == "" || strings.ContainsAny(name, ":\x00") {
			_ = syscall.Close(fd)
			continue
		}
		h.kept = append(h.kept, keptFile{name, fd})
	}
}
