package machine_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/testkit"
)

// resolverTimeout and resolverTries are those of a C library that was told `options timeout:2`.
const (
	resolverTimeout = 2 * time.Second
	resolverTries   = 2
)

// TestNamesWhileTheDaemonIsKilled: look-ups go on without a failure while the daemon is killed again and again, and nobody
// who dials its sockets is refused.
func TestNamesWhileTheDaemonIsKilled(t *testing.T) {
	r := newRig(t, options{})
	r.kill(syscall.SIGTERM)
	docker := filepath.Join(r.dir, "docker")
	r.extra = []string{"--hold", "--docker-socket", docker}
	r.start()
	web := r.attach("default", "web")
	want := web.Address(true).String()
	a := r.attach("default", "a")
	r.eventually(5*time.Second, func() error {
		if got := ask(r, r.container("a"), "udp", a.Status.DNS[0], "web."); got != want {
			return fmt.Errorf("web is %q", got)
		}
		return nil
	})
	ctx, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	var asked, again atomic.Int64
	var longest atomic.Int64
	for i := range 6 {
		proto, server := networks[i%2], at(a.Status.DNS[i/2%2], 53).String()
		asking.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				tries, err := lookup(r, proto, server, want)
				if err != nil {
					t.Errorf("%s %s: %v", proto, server, err)
					return
				}
				asked.Add(1)
				again.Add(int64(tries - 1))
				for took := int64(time.Since(began)); ; {
					if was := longest.Load(); took <= was || longest.CompareAndSwap(was, took) {
						break
					}
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	for _, path := range []string{docker, filepath.Join(r.dir, "s")} {
		asking.Go(func() {
			for ctx.Err() == nil {
				c, err := net.Dial("unix", path)
				if err != nil {
					t.Errorf("who dials is refused: %v", err)
					return
				}
				c.Close()
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	killed := map[int]bool{}
	for range 5 {
		pid := child(r)
		killed[pid] = true
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		// What is asked of the API meanwhile waits as well.
		if _, err := r.client.Node(t.Context()); err != nil {
			if _, err = r.client.Node(t.Context()); err != nil { // the first one may have been under way when it was killed
				t.Errorf("the API after a crash: %v", err)
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	stop()
	asking.Wait()
	if len(killed) != 5 {
		t.Errorf("%d daemons were killed, want 5", len(killed))
	}
	r.attach("default", "late")
	r.clean()
	t.Logf("%d look-ups, none failed, %d were asked twice; the longest took %s", asked.Load(), again.Load(), time.Duration(longest.Load()).Round(time.Millisecond))
	if asked.Load() < 100 {
		t.Errorf("only %d look-ups", asked.Load())
	}
}

// lookup asks as a C library does, and gives how often it had to.
func lookup(r *rig, proto, server, want string) (tries int, err error) {
	for tries = 1; tries <= resolverTries; tries++ {
		if err = once(r, proto, server, want); err == nil {
			return tries, nil
		}
	}
	return tries, err
}

func once(r *rig, proto, server, want string) error {
	ctx, cancel := context.WithTimeout(context.Background(), resolverTimeout)
	defer cancel()
	c, err := r.container("a").Dial(ctx, proto, server)
	if err != nil {
		return err
	}
	co := &miekg.Conn{Conn: c}
	defer co.Close()
	_ = co.SetDeadline(time.Now().Add(resolverTimeout))
	m := new(miekg.Msg).SetQuestion("web.", miekg.TypeA)
	if err = co.WriteMsg(m); err == nil {
		m, err = co.ReadMsg()
	}
	if err != nil {
		return err
	}
	if len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), want) {
		return fmt.Errorf("web is %v", m)
	}
	return nil
}

// child gives the process that the daemon's holder started.
func child(r *rig) (pid int) {
	r.Helper()
	holder := r.daemon.Process.Pid
	r.eventually(5*time.Second, func() error {
		all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", holder))
		for _, path := range all {
			if text, err := os.ReadFile(path); err == nil && len(strings.Fields(string(text))) > 0 {
				pid, err = strconv.Atoi(strings.Fields(string(text))[0])
				return err
			}
		}
		return fmt.Errorf("process %d has no child (%v)", holder, err)
	})
	return pid
}

// TestSocketOfSystemd: the API on a socket that systemd's own program opened and handed over.
func TestSocketOfSystemd(t *testing.T) {
	testkit.Need(t, "program:systemd-socket-activate")
	r := newRig(t, options{})
	r.kill(syscall.SIGTERM)
	dir, _ := bin()
	socket := filepath.Join(r.dir, "activated")
	r.daemon = exec.Command("systemd-socket-activate", "--listen="+socket, "--fdname=api", filepath.Join(dir, "seined"), "--state", filepath.Join(r.dir, "state.db"),
		"--socket", socket, "--docker-socket", "", "--quiet")
	r.daemon.Stdout, r.daemon.Stderr = r.log, r.log
	if err := r.machine.Start(r.daemon); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	r.client = c
	r.eventually(10*time.Second, func() error { _, err := os.Stat(socket); return err })
	before, _ := os.Stat(socket)
	r.eventually(10*time.Second, func() error { _, err := c.Node(t.Context()); return err })
	if after, err := os.Stat(socket); err != nil || !os.SameFile(before, after) {
		t.Errorf("the socket is another one: %v", err)
	}
	if strings.Contains(r.log.String(), "of no use") {
		t.Error("the socket was not taken")
	}
}
