package cli

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cli/sandbox"
	httpdoor "github.com/seine-net/seine/internal/frontdoor/http"
	"github.com/seine-net/seine/internal/frontdoor/http/fakeengine"
)

var update = flag.Bool("update", false, "write what the commands print into testdata")

// TestMain also is the first process of the sandboxes that TestRun makes.
func TestMain(m *testing.M) {
	if sandbox.IsInit(os.Args) {
		os.Exit(sandbox.Init())
	}
	goleak.VerifyTestMain(m)
}

// daemon is a door with a fake engine behind it, on a socket.
type daemon struct {
	*fakeengine.Engine
	socket string
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	t.Setenv(socketVariable, "")
	d := &daemon{fakeengine.New(), filepath.Join(t.TempDir(), "s")}
	l, err := httpdoor.Listen(d.socket, httpdoor.SocketMode)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- httpdoor.Serve(ctx, l, httpdoor.New(d, httpdoor.Options{Cluster: d, Log: slog.New(slog.DiscardHandler)}))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d
}

// seine runs a command line against the daemon.
func (d *daemon) seine(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	out, errs := newWatched(), newWatched()
	code = Main(t.Context(), "v0.0.0-test", append([]string{"--socket", d.socket}, args...), Streams{In: strings.NewReader(""), Out: out, Err: errs})
	return out.String(), errs.String(), code
}

// TestSessions runs every file of testdata as a session against a fresh engine. A line "$ seine …" is a command; what
// follows is its standard output, its standard error with "2> " before each line, and "[code]" if it is not 0. Lines
// that begin with "@" change the engine:
//
//	@endpoint NETWORK/NAME NETNS     an endpoint that somebody else attached
//	@state NETWORK/NAME STATE CAUSE  what its status says
//	@fail VERB CODE MESSAGE          what an engine's verb answers from now on; "@fail" ends that
//	@change OP OBJECT|WAS|OWNER      a difference that plans show
//	@away WHY                        the cluster's store does not answer
//	@path NETWORK|NODE|FABRIC|REASON|ERROR
//	@finding LEVEL|TOPIC|FOUND|DONE  what the doctor says
func TestSessions(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.session")
	if len(files) == 0 {
		t.Fatal("no sessions")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			d := newDaemon(t)
			var got strings.Builder
			for line := range strings.Lines(string(want)) {
				line = strings.TrimSuffix(line, "\n")
				switch {
				case line == "", strings.HasPrefix(line, "#"):
					got.WriteString(line + "\n")
				case strings.HasPrefix(line, "@"):
					got.WriteString(line + "\n")
					d.directive(t, strings.TrimPrefix(line, "@"))
				case strings.HasPrefix(line, "$ seine"):
					got.WriteString(line + "\n" + d.show(t, words(strings.TrimPrefix(line, "$ seine"))))
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			diff(t, got.String(), string(want))
		})
	}
}

// diff shows the first line that differs.
func diff(t *testing.T, got, want string) {
	t.Helper()
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		if i >= len(g) || i >= len(w) || g[i] != w[i] {
			from := max(0, i-3)
			t.Errorf("line %d (go test -update writes what is printed):\n got:\n%s\nwant:\n%s", i+1,
				strings.Join(g[min(from, len(g)):min(i+6, len(g))], "\n"), strings.Join(w[min(from, len(w)):min(i+6, len(w))], "\n"))
			return
		}
	}
}

// words splits a command line at spaces, except within single quotes.
func words(s string) (out []string) {
	for i, part := range strings.Split(s, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

func (d *daemon) show(t *testing.T, args []string) string {
	stdout, stderr, code := d.seine(t, args...)
	for line := range strings.Lines(stderr) {
		stdout += "2> " + line
	}
	if code != 0 {
		stdout += fmt.Sprintf("[%d]\n", code)
	}
	return strings.ReplaceAll(stdout, d.socket, "SOCKET")
}

func (d *daemon) directive(t *testing.T, line string) {
	t.Helper()
	verb, rest, _ := strings.Cut(line, " ")
	f := strings.Fields(rest)
	switch verb {
	case "endpoint":
		network, name, _ := strings.Cut(f[0], "/")
		if _, err := d.PutEndpoint(t.Context(), api.Endpoint{Network: network, Name: name, Sandbox: api.Sandbox{Netns: f[1], PID: 7}}, 0); err != nil {
			t.Fatal(err)
		}
	case "state":
		d.SetState(f[0], api.State(f[1]), strings.Join(f[2:], " "))
	case "fail":
		d.Fail = nil
		if len(f) > 0 {
			d.Fail = func(verb string) error {
				if verb == f[0] {
					return api.Errorf(api.Code(f[1]), "", "%s", strings.Join(f[2:], " "))
				}
				return nil
			}
		}
	case "change":
		p := append(strings.Split(rest[2:], "|"), "", "")
		d.Changes = append(d.Changes, api.Change{Op: rest[:1], Object: p[0], Was: p[1], Owner: p[2]})
	case "away":
		d.StoreAway(rest)
	case "path":
		p := append(strings.Split(rest, "|"), "", "")
		d.Ways = append(d.Ways, api.Path{Network: p[0], Node: p[1], Fabric: p[2], Reason: p[3], Error: p[4]})
	case "finding":
		p := append(strings.Split(rest, "|"), "")
		d.Findings = append(d.Findings, api.Finding{Level: p[0], Topic: p[1], Found: p[2], Done: p[3]})
	default:
		t.Fatalf("directive %q", line)
	}
}

// TestExitCodes: the exit code follows from the code of the error, for every code and for what is none.
func TestExitCodes(t *testing.T) {
	d := newDaemon(t)
	for code, exit := range map[api.Code]int{api.Invalid: 2, api.NotFound: 3, api.Conflict: 4, api.Stale: 4, api.InUse: 4, api.Exhausted: 4,
		api.Unsupported: 5, api.Unavailable: 6, api.Internal: 1, "new": 1} {
		d.Fail = func(string) error { return api.Errorf(code, "noun", "on purpose") }
		if out, errs, got := d.seine(t, "network", "ls"); got != exit || out != "" || errs != "seine: noun: on purpose\n" {
			t.Errorf("%s: %d %q %q", code, got, out, errs)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := Main(ctx, "", []string{"--socket", d.socket, "status"}, Streams{Out: io.Discard, Err: io.Discard}); got != 1 {
		t.Errorf("broken off: %d", got)
	}
	if got := Main(t.Context(), "", []string{"--socket", d.socket + "x", "status"}, Streams{Out: io.Discard, Err: io.Discard}); got != 6 {
		t.Errorf("no daemon: %d", got)
	}
	d.Fail = nil
	if got := Main(t.Context(), "", []string{"--socket", d.socket, "network", "ls", "-o", "json"}, Streams{Out: brokenPipe{}, Err: io.Discard}); got != 1 {
		t.Errorf("output can't be written: %d", got)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, os.ErrClosed }

// TestHelp: every command has help that says what it does; the codes are all in the first one.
func TestHelp(t *testing.T) {
	d := newDaemon(t)
	out, _, code := d.seine(t)
	for _, want := range []string{"Exit codes:", "  7  check", "network ", "run "} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("%d %q is not in\n%s", code, want, out)
		}
	}
	root := (&app{}).root()
	for _, c := range append(root.Commands(), root.Commands()...) {
		for _, c := range append(c.Commands(), c) {
			if c.Short == "" && !c.Hidden {
				t.Errorf("%s has no help", c.CommandPath())
			}
			if c.Args == nil && !c.Hidden {
				t.Errorf("%s takes any arguments", c.CommandPath())
			}
		}
	}
}

func TestSocketVariable(t *testing.T) {
	d := newDaemon(t)
	t.Setenv(socketVariable, d.socket)
	var out bytes.Buffer
	if code := Main(t.Context(), "", []string{"network", "ls", "-o", "json"}, Streams{Out: &out, Err: io.Discard}); code != 0 || out.String() != "[]\n" {
		t.Errorf("%d %q", code, out.String())
	}
}

func TestCompletion(t *testing.T) {
	d := newDaemon(t)
	for _, line := range []string{"network create a", "network create b"} {
		d.seine(t, strings.Fields(line)...)
	}
	d.directive(t, "endpoint a/web /run/netns/w")
	d.directive(t, "endpoint b/web /run/netns/w")
	d.directive(t, "endpoint a/db /run/netns/d")
	for _, c := range []struct{ line, want string }{
		{"network rm ''", "a b"},
		{"network rm a ''", "b"},
		{"network inspect ''", "a b"},
		{"network inspect a ''", ""},
		{"network create ''", ""},
		{"network create a --driver ''", "bridge macvlan"},
		{"network create a --driver macvlan --opt ''", "mode= bridge or private parent= the machine's interface"},
		{"network create a --opt ''", ""},
		{"network drivers ''", "bridge macvlan"},
		{"network connect ''", "a b"},
		{"network connect b ''", "db"},
		{"network disconnect a ''", "db web"},
		{"endpoint rm a/db ''", "a/web b/web"},
		{"endpoint ls --network ''", "a b"},
		{"check ''", "a b a/db a/web b/web"},
		{"run --network ''", "a b"},
		{"network ls -o ''", "table json yaml name"},
		{"network set a --fabric ''", "auto hostgw vxlan wireguard"},
		{"network create x --scope ''", "node cluster"},
		{"node inspect ''", "n1"},
		{"node rm n1 ''", ""},
		{"cluster join ''", ""},
		{"completion ''", "bash zsh fish"},
	} {
		out, _, code := d.seine(t, append([]string{"__complete"}, words(c.line)...)...)
		got, _, _ := strings.Cut(out, ":") // what follows is for the shell
		if code != 0 || strings.Join(strings.Fields(got), " ") != c.want {
			t.Errorf("%s: %d %q, want %q", c.line, code, out, c.want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, _, code := d.seine(t, "completion", shell); code != 0 || !strings.Contains(out, "__complete") {
			t.Errorf("%s: %d %.100q", shell, code, out)
		}
	}
}

// TestProgress: what is quick says nothing; what takes long does, on a terminal or when asked to.
func TestProgress(t *testing.T) {
	for _, c := range []struct {
		terminal, verbose bool
		delay             time.Duration
		want              string
	}{
		{true, false, time.Hour, ""},
		{false, true, time.Hour, ""},
		{false, false, 0, ""},
		{false, true, 0, "seine: doing …\n"},
		{true, false, 0, "\r\x1b[Kdoing … 0.0 s\r\x1b[K"},
	} {
		r, w := io.Pipe()
		shown := make(chan string, 1)
		written := make(chan struct{}, 100)
		go func() {
			var all []byte
			buf := make([]byte, 100)
			for {
				n, err := r.Read(buf)
				all = append(all, buf[:n]...)
				if err != nil {
					shown <- string(all)
					return
				}
				written <- struct{}{}
			}
		}()
		p := progress{w: w, terminal: c.terminal, verbose: c.verbose, delay: c.delay}
		err := p.during("doing", func() error {
			if c.want != "" {
				<-written
			}
			return os.ErrInvalid
		})
		w.Close()
		if got := <-shown; got != c.want || err != os.ErrInvalid {
			t.Errorf("%+v: %q %v", c, got, err)
		}
	}
}

func TestVerboseSaysWhatTakesLong(t *testing.T) {
	d := newDaemon(t)
	hold := make(chan struct{})
	d.Fail = func(string) error { <-hold; return nil }
	time.AfterFunc(700*time.Millisecond, func() { close(hold) })
	if _, errs, code := d.seine(t, "-v", "status"); code != 0 || errs != "seine: asking for the state …\n" {
		t.Errorf("%d %q", code, errs)
	}
}
