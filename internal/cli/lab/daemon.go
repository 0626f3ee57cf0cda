package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
)

const (
	// DaemonCommand is the word after "lab" by which this program becomes a host's daemon.
	DaemonCommand = "become-daemon"

	pidFile    = "pid"
	startIn    = 30 * time.Second
	askEvery   = 20 * time.Millisecond
	keepLog    = 4096 // bytes of a log that an error shows
	lockFD     = 3    // where a process that becomes a daemon finds the lock
	socketName = "SEINE_SOCKET"
)

func (l *Lab) socket(host string) string { return filepath.Join(l.dir, host, "run", "seine.sock") }
func (l *Lab) log(host string) string    { return filepath.Join(l.dir, host, "seined.log") }

// daemon gives the process of a host's daemon, whether or not it lives.
func (l *Lab) daemon(host string) (process, error) {
	return readPID(filepath.Join(l.dir, host, pidFile))
}

// daemonArgs are the arguments of a host's daemon. What a machine has only one of, such as a Docker, is the machine's.
func (l *Lab) daemonArgs(host string) []string {
	return []string{"--node", host, "--state", filepath.Join(l.dir, host, "state", "state.db"), "--socket", l.socket(host),
		"--docker-socket", "", "--docker-api", "", "--dhcp-socket", "", "--quiet"}
}

// program gives the daemon's file by a path that holds in any folder.
func (s *Spec) program(path string) (string, error) {
	found, err := exec.LookPath(path)
	if err == nil {
		found, err = filepath.Abs(found)
	}
	if err != nil {
		return "", api.FieldError(s.noun(), "--seined", path, "is no program", "the daemon's file")
	}
	return found, nil
}

// start starts a host's daemon, in a session of its own.
//
// This program is started, notes its number, and becomes the daemon (see Become). It has the lock on Dir from us and until
// then, so that nobody finds the lab without the note, whatever happens to us.
func (l *Lab) start(host, program string) (process, error) {
	log, err := os.OpenFile(l.log(host), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return process{}, err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "lab", DaemonCommand, l.Name, host, program)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=", "LISTEN_FDS=") // those of whoever started us
	cmd.ExtraFiles = []*os.File{l.lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return process{}, fmt.Errorf("%s: %s: %w", l.noun(), host, err)
	}
	return find(cmd.Process.Pid) // our child keeps its number for as long as we live, since nobody waits for it
}

// Become makes this process the daemon of a host. It returns only with an error.
func Become(name, host, program string) error {
	var st unix.Stat_t
	if err := unix.Fstat(lockFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return api.Errorf(api.Invalid, "lab", "%s is for `seine lab up` to run", DaemonCommand)
	}
	unix.CloseOnExec(lockFD)
	l, err := Open(name)
	if err != nil {
		return err
	}
	if _, err := l.host(host); err != nil {
		return err
	}
	for _, dir := range []string{"run", "state"} {
		if err := os.MkdirAll(filepath.Join(l.dir, host, dir), 0o755); err != nil {
			return err
		}
	}
	if err := enter(l.netns(host)); err != nil {
		return err
	}
	me, err := find(os.Getpid()) // it stays the same when it becomes another program
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(l.dir, host, pidFile), []byte(me.String())); err != nil {
		return err
	}
	return unix.Exec(program, append([]string{program}, l.daemonArgs(host)...), os.Environ())
}

// stop ends a host's daemon, if it runs.
func (l *Lab) stop(host string) error {
	p, err := l.daemon(host)
	if err != nil || !p.lives() {
		return err
	}
	return end([]process{p})
}

// startAll starts the daemons that do not run, and waits until all answer.
func (l *Lab) startAll(ctx context.Context, program string, said func(string)) error {
	var all []process
	for n := 1; n <= l.Hosts; n++ {
		h := hostName(n)
		p, err := l.daemon(h)
		if err != nil {
			return err
		}
		if p.lives() {
			all = append(all, p)
			continue
		}
		if p, err = l.start(h, program); err != nil {
			return err
		}
		all = append(all, p)
		var addrs []string
		for _, a := range l.Addresses(n) {
			addrs = append(addrs, a.String())
		}
		said(fmt.Sprintf("%s: %s", h, strings.Join(addrs, ", ")))
	}
	for i, p := range all {
		if err := l.answers(ctx, hostName(i+1), p); err != nil {
			return err
		}
	}
	return nil
}

// answers waits until a host's daemon, the process p, answers.
func (l *Lab) answers(ctx context.Context, host string, p process) error {
	ctx, cancel := context.WithTimeout(ctx, startIn)
	defer cancel()
	c, err := client.New(l.socket(host))
	if err != nil {
		return err
	}
	defer c.Close()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		gone := !p.lives()
		node, err := c.Node(ctx)
		if err == nil && node.Name == host {
			return nil
		}
		if gone || ctx.Err() != nil {
			what := "does not answer"
			if gone {
				what = "ended"
			}
			return api.Errorf(api.Internal, l.noun(), "the daemon of %s %s: %w; the end of %s:\n%s", host, what, errors.Join(err, ctx.Err()), l.log(host), lastOf(l.log(host)))
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// cluster makes one cluster of the hosts: h1 founds it, and those that are in none join by h1.
func (l *Lab) cluster(ctx context.Context, said func(string)) error {
	var token api.ClusterToken
	for n := 1; n <= l.Hosts; n++ {
		err := l.ask(hostName(n), func(c *client.Client) error {
			if _, err := c.Cluster(ctx); err == nil || api.CodeOf(err) != api.Conflict {
				return err
			}
			if n == 1 {
				_, err := c.InitCluster(ctx, api.ClusterInit{Name: l.Name, Address: l.Addresses(n)[0]})
				return err
			}
			if token.Token == "" {
				err := l.ask(hostName(1), func(first *client.Client) (err error) {
					token, err = first.ClusterToken(ctx, false)
					return err
				})
				if err != nil {
					return err
				}
			}
			_, err := c.JoinCluster(ctx, api.ClusterJoin{Address: l.Addresses(1)[0].String(), Token: token.Token, Self: l.Addresses(n)[0]})
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: the cluster on %s: %w", l.noun(), hostName(n), err)
		}
	}
	said("cluster: " + l.Name)
	return nil
}

// ask calls a host's daemon.
func (l *Lab) ask(host string, call func(*client.Client) error) error {
	c, err := client.New(l.socket(host))
	if err != nil {
		return err
	}
	defer c.Close()
	return call(c)
}

// lastOf reads the end of a file.
func lastOf(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-keepLog):])
}

// Restart ends a host's daemon, if it runs, and starts it again. The host's containers go on.
func Restart(ctx context.Context, name, host, program string) error {
	l, err := change(name)
	if err != nil {
		return err
	}
	defer release(l.lock)
	if _, err := l.host(host); err != nil {
		return err
	}
	if program, err = l.program(program); err != nil {
		return err
	}
	if err := l.stop(host); err != nil {
		return err
	}
	p, err := l.start(host, program)
	if err != nil {
		return err
	}
	return l.answers(ctx, host, p)
}

// Exec makes this process a program on a host: in its network namespace, with its daemon as the one that `seine` asks. It
// returns only with an error. path is the program's file, args its name and arguments.
func Exec(name, host, path string, args []string) error {
	l, err := Open(name)
	if err != nil {
		return err
	}
	if _, err := l.host(host); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return api.Errorf(api.Unsupported, "lab", "only root can enter network namespaces")
	}
	if err := enter(l.netns(host)); err != nil {
		return err
	}
	return unix.Exec(path, args, unique(append(os.Environ(), socketName+"="+l.socket(host))))
}

// unique keeps the last value of each variable: which of two a program takes is its own choice.
func unique(env []string) []string {
	at := map[string]int{}
	var out []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := at[name]; ok {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}
