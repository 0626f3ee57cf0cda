package machine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// The stories about the command line run the real programs, in the machine's network namespace. (Not by `ip netns exec`:
// it makes a mount namespace, in which the daemon would not see the namespaces that `seine run` mounts.)

// peer builds what is run in the containers, testdata/peer, and gives its path.
var peer = sync.OnceValues(func() (string, error) {
	dir, err := bin()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "peer")
	cmd := exec.Command("go", "build", "-o", path, "./testdata/peer")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// patience is what anything may take that the stories wait for.
const patience = 20 * time.Second

// newCLIRig is newRig, with the network default at rest, so that what was before can be compared with what is after.
func newCLIRig(t *testing.T, o options) *rig {
	r := newRig(t, o)
	r.calm()
	r.atRest("default")
	return r
}

// atRest has a network's bridge say what it will go on saying: one that never had a port reports another state.
func (r *rig) atRest(network string) {
	r.Helper()
	r.ok("run", "-q", "--network", network, "--", "true")
	r.eventually(patience, func() error {
		out, err := r.machine.Exec(r.Context(), "ip", "link", "show", "sn-"+network)
		if err == nil && !strings.Contains(out, "NO-CARRIER") {
			err = errors.New(out)
		}
		return err
	})
}

// command prepares a command line.
func (r *rig) command(args ...string) *exec.Cmd {
	dir, _ := bin()
	cmd := exec.Command(filepath.Join(dir, "seine"), append([]string{"--socket", filepath.Join(r.dir, "s")}, args...)...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "TERM=dumb")
	cmd.WaitDelay = patience // a process that has the output, and outlived it
	return cmd
}

// said is what a command printed, and how it ended.
type said struct {
	out, err string
	code     int
}

func (s said) String() string { return fmt.Sprintf("exit code %d\n%s%s", s.code, s.out, s.err) }

// seine runs a command line to its end.
func (r *rig) seine(args ...string) said {
	r.Helper()
	var out, errs bytes.Buffer
	cmd := r.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := r.finish(cmd); err != nil && !errors.As(err, &exit) {
		r.Fatalf("seine %s: %v\n%s%s", strings.Join(args, " "), err, &out, &errs)
	}
	return said{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// finish runs a program on the machine to its end.
func (r *rig) finish(cmd *exec.Cmd) error {
	if err := r.machine.Start(cmd); err != nil {
		return err
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !late.Stop() {
		return fmt.Errorf("not within %s", patience)
	}
	return err
}

// ok runs a command line that works, and gives what it printed on standard output.
func (r *rig) ok(args ...string) string {
	r.Helper()
	got := r.seine(args...)
	if got.code != 0 {
		r.Fatalf("seine %s: %s", strings.Join(args, " "), got)
	}
	return got.out
}

// refused runs a command line that must end with a code, print nothing but errors, and say all of the words.
func (r *rig) refused(code int, words []string, args ...string) {
	r.Helper()
	got := r.seine(args...)
	if got.code != code || got.out != "" {
		r.Errorf("seine %s: want exit code %d and nothing on standard output: %s", strings.Join(args, " "), code, got)
	}
	for _, w := range words {
		if !strings.Contains(got.err, w) {
			r.Errorf("seine %s: does not say %q: %s", strings.Join(args, " "), w, got)
		}
	}
}

// read runs a command with -o json into out, and with -o yaml: both have to say the same.
func (r *rig) read(out any, args ...string) {
	r.Helper()
	text := r.ok(append(args, "-o", "json")...)
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(out); err != nil {
		r.Fatalf("seine %s -o json: %v\n%s", strings.Join(args, " "), err, text)
	}
	var fromJSON, fromYAML any
	errs := errors.Join(json.Unmarshal([]byte(text), &fromJSON), yaml.Unmarshal([]byte(r.ok(append(args, "-o", "yaml")...)), &fromYAML))
	if errs != nil || !reflect.DeepEqual(fromJSON, fromYAML) {
		r.Errorf("seine %s: JSON and YAML differ (%v):\n%v\n%v", strings.Join(args, " "), errs, fromJSON, fromYAML)
	}
}

// screen is what a program wrote so far.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// box is a `seine run` under way, in a process group of its own as a shell starts it. Its screen has both streams, of
// the program too, in order.
type box struct {
	*screen
	r     *rig
	cmd   *exec.Cmd
	ended chan struct{}
}

// run starts a `seine run` and waits until its screen has a text.
func (r *rig) run(until string, args ...string) *box {
	r.Helper()
	cmd := r.command(append([]string{"run"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	b := &box{screen: &screen{}}
	cmd.Stdout, cmd.Stderr = b.screen, b.screen
	return r.begin(b, cmd, until)
}

func (r *rig) begin(b *box, cmd *exec.Cmd, until string) *box {
	r.Helper()
	b.r, b.cmd, b.ended = r, cmd, make(chan struct{})
	if err := r.machine.Start(cmd); err != nil {
		r.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(b.ended)
	}()
	r.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it clears up after itself, whether there is a daemon or not
		late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		<-b.ended
		late.Stop()
	})
	b.waitFor(until)
	return b
}

// web starts a `seine run` of a web server, at port 80.
func (r *rig) web(args ...string) *box {
	r.Helper()
	return r.run("serving [::]:80\n", append(args, "--", r.peer(), "serve", "[::]:80")...)
}

func (r *rig) peer() string {
	r.Helper()
	path, err := peer()
	if err != nil {
		r.Fatal(err)
	}
	return path
}

func (b *box) waitFor(text string) {
	b.r.Helper()
	for end := time.After(patience); !strings.Contains(b.String(), text); {
		select {
		case <-b.ended:
			if !strings.Contains(b.String(), text) {
				b.r.Fatalf("it ended without %q on its screen: %s", text, b)
			}
		case <-end:
			b.r.Fatalf("no %q on its screen within %s: %s", text, patience, b)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// signal sends a signal to a process, or to the whole group of one where pid is negative.
func (b *box) signal(pid int, sig syscall.Signal) {
	b.r.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		b.r.Fatal(err)
	}
}

// ctrlC is what Ctrl-C in a terminal does.
func (b *box) ctrlC() { b.r.Helper(); b.signal(-b.cmd.Process.Pid, syscall.SIGINT) }

// wait waits for the end and gives the exit code; 128 and the signal's number if one ended the command line itself.
func (b *box) wait() int {
	b.r.Helper()
	select {
	case <-b.ended:
	case <-time.After(patience):
		b.r.Fatalf("does not end: %s", b)
	}
	if ws, ok := b.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return b.cmd.ProcessState.ExitCode()
}

// endpoint gives an endpoint that must be there and attached.
func (r *rig) endpoint(network, name string) api.Endpoint {
	r.Helper()
	e, err := r.client.Endpoint(r.Context(), network, name)
	if err != nil {
		r.Fatal(err)
	}
	if e.Status == nil || e.Status.State != api.Attached {
		r.Fatalf("endpoint %s: %+v", e.Key(), e.Status)
	}
	return e
}

// inside gives the number of the network namespace at a path: by it, what is in it can be found.
func (r *rig) inside(path string) uint64 {
	r.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		r.Fatal(err)
	}
	return st.Ino
}

// left says what of `seine run` is still there besides what the machine's own tools would show: endpoints, paths and locks
// of namespaces, processes in any of these, and port 8080 of the machine, which the stories publish.
func (r *rig) left(namespaces ...uint64) error {
	var errs []error
	all, err := r.client.Endpoints(r.Context())
	for _, e := range all {
		errs = append(errs, fmt.Errorf("endpoint %s is left", e.Key()))
	}
	files, _ := os.ReadDir(filepath.Join(r.dir, "netns"))
	for _, f := range files {
		errs = append(errs, fmt.Errorf("file %s is left", f.Name()))
	}
	mounts, err2 := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), r.dir) {
		errs = append(errs, fmt.Errorf("mounts are left in %s", r.dir))
	}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, link := range links {
		name, _ := os.Readlink(link) // the process may have ended
		for _, n := range namespaces {
			if name == "net:["+strconv.FormatUint(n, 10)+"]" {
				errs = append(errs, fmt.Errorf("a process is left in its network namespace: %s", link))
			}
		}
	}
	for _, network := range []string{"tcp4", "tcp6"} {
		if l, err := r.machine.Listen(network, ":8080"); err != nil {
			errs = append(errs, fmt.Errorf("port 8080 is not free again: %w", err))
		} else {
			l.Close()
		}
	}
	return errors.Join(append(errs, err, err2)...)
}

// nothingLeft checks, the moment after a command ended, that nothing is left of it and that the machine's network is as
// it was before.
func (r *rig) nothingLeft(before string, namespaces ...uint64) {
	r.Helper()
	if err := r.left(namespaces...); err != nil {
		r.Error(err)
	}
	r.unchanged(before)
	r.clean()
}

// get asks a web server from a namespace of the lab.
func (r *rig) get(from *testkit.NS, to netip.AddrPort) (string, error) {
	c := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return from.Dial(ctx, network, address)
	}}}
	resp, err := c.Get("http://" + to.String() + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(b)), err
}

// served checks that a server of that name answers, and that it sees the asker at an address; the zero Addr is any.
func (r *rig) served(from *testkit.NS, to netip.AddrPort, name string, source netip.Addr) {
	r.Helper()
	got, err := r.get(from, to)
	if err != nil {
		r.Error(err)
		return
	}
	host, asker, _ := strings.Cut(got, " ")
	if a, err := netip.ParseAddr(asker); err != nil || host != name || source.IsValid() && a.Unmap() != source {
		r.Errorf("%s answers %q, want %s %s", to, got, name, source)
	}
}

// matches checks a text by a regular expression, in which a blank is any white space.
func (r *rig) matches(text, want string) {
	r.Helper()
	re := regexp.MustCompile(`(?m)^` + strings.ReplaceAll(want, " ", `\s+`) + `$`)
	if !re.MatchString(text) {
		r.Errorf("no line like %q in\n%s", want, text)
	}
}
