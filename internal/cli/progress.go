package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// progress says what is being waited for, on a line of a terminal that it clears again, or on a line of its own.
type progress struct {
	w        io.Writer
	terminal bool
	verbose  bool
	delay    time.Duration
}

func (a *app) progress() progress {
	return progress{w: a.Err, terminal: isTerminal(a.Err), verbose: a.verbose, delay: a.delay}
}

// isTerminal reports whether something written to (or read from) is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// during calls do; when that takes longer than the delay, it says what.
func (p progress) during(what string, do func() error) error {
	if !p.terminal && !p.verbose {
		return do()
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		p.show(what, stop)
	}()
	err := do()
	close(stop)
	<-stopped
	return err
}

func (p progress) show(what string, stop <-chan struct{}) {
	const step = 100 * time.Millisecond
	began := time.Now()
	next := time.NewTimer(p.delay)
	defer next.Stop()
	shown := false
	for {
		select {
		case <-stop:
			if shown && p.terminal {
				fmt.Fprint(p.w, "\r\x1b[K")
			}
			return
		case <-next.C:
		}
		shown = true
		if !p.terminal {
			fmt.Fprintf(p.w, "seine: %s …\n", what)
			<-stop
			return
		}
		fmt.Fprintf(p.w, "\r\x1b[K%s … %.1f s", what, time.Since(began).Seconds())
		next.Reset(step)
	}
}
