package etcd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// MemberCommand is the word by which the daemon's program runs as a member: seined etcd-member.
const MemberCommand = "etcd-member"

// The pauses before a member that ended is started again.
const (
	pauseMin = 500 * time.Millisecond
	pauseMax = 30 * time.Second
	stopIn   = 10 * time.Second // a member that does not end by itself is killed
)

// RunProcess runs a member as a child process of program until ctx ends, and starts it again when it ends by itself. ready,
// where not nil, is called each time that it serves. Environment and open files are not handed on.
func RunProcess(ctx context.Context, program string, c MemberConfig, log *slog.Logger, ready func()) {
	pause := pauseMin
	for ctx.Err() == nil {
		began := time.Now()
		err := runOnce(ctx, program, c, log, ready)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			pause = pauseMin
		}
		log.Warn("the etcd member ended; it is started again", "err", err, "in", pause.String())
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, pauseMax)
	}
}

func runOnce(ctx context.Context, program string, c MemberConfig, log *slog.Logger, ready func()) error {
	config, err := json.Marshal(c)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, MemberCommand)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopIn
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C at the daemon is the daemon's to handle
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	said := &lastLines{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		return err
	}
	log.Info("etcd member started", "pid", cmd.Process.Pid, "client", c.ClientURL, "peer", c.PeerURL)
	_, err = in.Write(append(config, '\n')) // in stays open: its end is the daemon's
	for lines := bufio.NewScanner(out); err == nil && lines.Scan(); {
		if lines.Text() == "ready" && ready != nil {
			ready()
		}
	}
	if wait := cmd.Wait(); wait != nil {
		err = wait
	}
	if err == nil {
		err = errors.New("it ended by itself")
	}
	return fmt.Errorf("%w: %s", err, said)
}

// lastLines keeps the end of what a process writes.
type lastLines struct{ tail []byte }

const keepBytes = 2048

var _ io.Writer = (*lastLines)(nil)

// Write implements io.Writer.
func (l *lastLines) Write(p []byte) (int, error) {
	l.tail = append(l.tail, p...)
	if n := len(l.tail) - keepBytes; n > 0 {
		l.tail = append(l.tail[:0], l.tail[n:]...)
	}
	return len(p), nil
}

func (l *lastLines) String() string { return string(l.tail) }
