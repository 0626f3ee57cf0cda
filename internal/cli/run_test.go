package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
)

func TestResolvConf(t *testing.T) {
	addrs := func(texts ...string) (out []netip.Addr) {
		for _, s := range texts {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	// A network whose gateway is the machine, an internal one, and one whose gateway is somebody else's.
	open := func(dns ...string) api.Endpoint {
		return api.Endpoint{Status: &api.EndpointStatus{DNS: addrs(dns...), Gateways: addrs(dns...)}}
	}
	closed := func(dns ...string) api.Endpoint {
		return api.Endpoint{Status: &api.EndpointStatus{DNS: addrs(dns...)}}
	}
	with := func(e api.Endpoint, search, options string) api.Endpoint {
		e.Status.Search, e.Status.DNSOptions = strings.Fields(search), strings.Fields(options)
		return e
	}
	lan := api.Endpoint{Status: &api.EndpointStatus{Gateways: addrs("192.0.2.1")}}
	fixed := addrs("169.254.255.53", "fd5c::53")
	const machine = "domain one.test\nnameserver 192.0.2.9\nnameserver 127.0.0.53\nnameserver ::1\nsearch a.test b.test\noptions rotate\n"
	for _, c := range []struct {
		name  string
		eps   []api.Endpoint
		fixed []netip.Addr
		want  string
	}{
		{"nowhere", nil, fixed, ""},
		{"host network", []api.Endpoint{{}}, fixed, ""},
		{"one network", []api.Endpoint{open("10.1.0.1", "fd00::1")}, fixed,
			"nameserver 169.254.255.53\nnameserver 10.1.0.1\nnameserver fd00::1\nsearch a.test b.test\noptions ndots:0\n"},
		{"IPv6 alone", []api.Endpoint{open("fd00::1")}, fixed, "nameserver fd5c::53\nnameserver fd00::1\nsearch a.test b.test\noptions ndots:0\n"},
		{"no fixed address", []api.Endpoint{open("10.1.0.1", "fd00::1"), {}, open("10.1.0.1", "10.2.0.1", "fd00:2::1")}, nil,
			"nameserver 10.1.0.1\nnameserver fd00::1\nnameserver 10.2.0.1\nsearch a.test b.test\noptions ndots:0\n"},
		{"an internal network", []api.Endpoint{closed("10.1.0.1")}, fixed, "nameserver 10.1.0.1\noptions ndots:0\n"},
		{"internal first", []api.Endpoint{closed("10.1.0.1"), open("10.2.0.1")}, fixed,
			"nameserver 169.254.255.53\nnameserver 10.1.0.1\nnameserver 10.2.0.1\nsearch a.test b.test\noptions ndots:0\n"},
		{"the default route leads elsewhere", []api.Endpoint{lan, open("10.2.0.1")}, fixed, "nameserver 10.2.0.1\nsearch a.test b.test\noptions ndots:0\n"},
		{"networks that ask", []api.Endpoint{with(open("10.1.0.1"), "x.test y.test", "ndots:2"), with(open("10.2.0.1"), "y.test z.test", "timeout:1")}, nil,
			"nameserver 10.1.0.1\nnameserver 10.2.0.1\nsearch x.test y.test z.test\noptions ndots:2 timeout:1\n"},
		{"a network that the machine is not on", []api.Endpoint{{Addresses: addrs("192.0.2.7"), Status: lan.Status}}, fixed,
			"nameserver 192.0.2.9\nsearch a.test b.test\n"},
		{"a network that wants none", []api.Endpoint{with(open("10.1.0.1"), ".", "")}, nil, "nameserver 10.1.0.1\noptions ndots:0\n"},
	} {
		if got := resolvConf(machine, c.fixed, c.eps); got != "# by seine run\n"+c.want {
			t.Errorf("%s:\n%s", c.name, got)
		}
	}
	if got := machineSearch("search a\ndomain b\nsearch\n#search c\n"); len(got) != 1 || got[0] != "b" {
		t.Errorf("the machine's list is %v", got)
	}
}

func TestHosts(t *testing.T) {
	ep := api.Endpoint{Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00::2")}}
	got := hosts("h", "web", []api.Endpoint{ep})
	if !strings.HasPrefix(got, "127.0.0.1 localhost\n::1 localhost ") || !strings.HasSuffix(got, "\n10.1.0.2 h web\nfd00::2 h web\n") {
		t.Errorf("%s", got)
	}
	if got := hosts("web", "web", []api.Endpoint{ep}); !strings.HasSuffix(got, "\n10.1.0.2 web\nfd00::2 web\n") {
		t.Errorf("%s", got)
	}
	if got := hostnameOf(strings.Repeat("x", 100)); len(got) != maxHostname {
		t.Errorf("%s", got)
	}
}

func TestDescribe(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00::2")}
	got := describe("web", []api.Endpoint{
		{Network: "default", Name: "web", Aliases: []string{"www"}, Addresses: addrs, Ports: []api.Port{{HostPort: 8080, ContainerPort: 80},
			{Protocol: "udp", HostIP: netip.MustParseAddr("::1"), HostPort: 53, ContainerPort: 5353}, {HostIP: netip.IPv4Unspecified(), HostPort: 1, ContainerPort: 2},
			{HostIP: netip.IPv6Unspecified(), HostPort: 1, ContainerPort: 2}}},
		{Network: "none", Name: "web"},
		{Network: "back", Name: "web", Addresses: addrs[:1]},
	})
	want := `seine: web is on default at 10.1.0.2, fd00::2; containers there reach it as web, www
seine: its port 80/tcp is at 127.0.0.1:8080, [::1]:8080 and the machine's other addresses
seine: its port 5353/udp is at [::1]:53
seine: its port 2/tcp is at 127.0.0.1:1 and the machine's other IPv4 addresses
seine: its port 2/tcp is at [::1]:1 and the machine's other IPv6 addresses
seine: web is on none
seine: web is on back at 10.1.0.2; containers there reach it as web
`
	if got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
}

// watched is a writer that others can wait on.
type watched struct {
	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{}
}

func newWatched() *watched { return &watched{news: make(chan struct{}, 1)} }

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.text.Write(b)
	select {
	case w.news <- struct{}{}:
	default:
	}
	return n, err
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

func (w *watched) waitFor(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !strings.Contains(w.String(), text) {
		select {
		case <-w.news:
		case <-deadline:
			t.Fatalf("no %q in %q", text, w.String())
		}
	}
}

// runBox is a `seine run` under way.
type runBox struct {
	out, errs *watched
	code      chan int
}

func (d *daemon) run(t *testing.T, args ...string) *runBox {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skip: needs root: it makes network, mount and PID namespaces")
	}
	b := &runBox{newWatched(), newWatched(), make(chan int, 1)}
	go func() {
		b.code <- Main(t.Context(), "v0", append([]string{"--socket", d.socket, "run"}, args...), Streams{In: strings.NewReader("typed\n"), Out: b.out, Err: b.errs})
	}()
	return b
}

// wait waits for the end and checks that nothing is left.
func (b *runBox) wait(t *testing.T, d *daemon) int {
	t.Helper()
	var code int
	select {
	case code = <-b.code:
	case <-time.After(60 * time.Second):
		t.Fatalf("does not end: %s %s", b.out, b.errs)
	}
	d.checkNothingLeft(t)
	return code
}

func (d *daemon) checkNothingLeft(t *testing.T) {
	t.Helper()
	d.Fail = nil
	if all, _ := d.Endpoints(t.Context()); len(all) > 0 {
		t.Errorf("endpoints left: %+v", all)
	}
	dir := filepath.Join(filepath.Dir(d.socket), "netns")
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left in %s: %v", dir, left)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), dir) {
		t.Errorf("mounts left in %s", dir)
	}
}

func networks(t *testing.T, d *daemon, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := d.PutNetwork(t.Context(), api.Network{Name: n}, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRun(t *testing.T) {
	d := newDaemon(t)
	networks(t, d, "default", "back")
	b := d.run(t, "--name", "web", "--network", "default", "--network", "back", "-p", "8080:80", "--ip", "10.1.0.9", "--mac", "02:00:00:00:00:09",
		"--alias", "www", "--label", "a=b", "--hostname", "h1", "--", "sh", "-c", "cat; hostname; tail -n 4 /etc/hosts; cat /etc/resolv.conf; echo up; while [ ! -e "+d.socket+".go ]; do sleep 0.01; done; exit 5")
	b.out.waitFor(t, "up\n")
	all, err := d.Endpoints(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v %v", all, err)
	}
	slices.SortFunc(all, func(x, y api.Endpoint) int { return -strings.Compare(x.Network, y.Network) })
	first, second := all[0], all[1]
	if first.Key() != "default/web" || first.MAC == "" || len(first.Ports) != 1 || first.Addresses[0].String() != "10.1.0.9" || first.Labels["a"] != "b" ||
		!slices.Equal(first.Aliases, []string{"www"}) {
		t.Errorf("%+v", first)
	}
	if second.Key() != "back/web" || second.MAC != "" || len(second.Ports) != 0 || second.Labels["a"] != "b" || !slices.Equal(second.Aliases, []string{"www"}) {
		t.Errorf("%+v", second)
	}
	for _, e := range all {
		want, err1 := os.Stat(fmt.Sprintf("/proc/%d/ns/net", e.Sandbox.PID))
		got, err2 := os.Stat(e.Sandbox.Netns)
		if err1 != nil || err2 != nil || !os.SameFile(got, want) {
			t.Errorf("%+v: %v %v", e.Sandbox, err1, err2)
		}
	}
	// What is attached later goes with it.
	networks(t, d, "third")
	if out, errs, code := d.seine(t, "network", "connect", "third", "web"); code != 0 {
		t.Errorf("%s %s", out, errs)
	}
	if third, err := d.Endpoint(t.Context(), "third", "web"); err != nil || third.Sandbox.PID != first.Sandbox.PID {
		t.Errorf("%+v %v", third, err)
	}
	// The name is taken, and who joins gets the same files.
	if _, errs, code := d.seine(t, "run", "--name", "web", "true"); code != 4 || !strings.Contains(errs, `container "web": the name is taken`) {
		t.Errorf("%d %s", code, errs)
	}
	joined, errs, code := d.seine(t, "run", "--network", "container:web", "--", "sh", "-c", "hostname; cat /etc/resolv.conf; readlink /proc/self/ns/net")
	st, err := os.Stat(first.Sandbox.Netns)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("web\n# by seine run\nnameserver 10.1.0.1\nnameserver fd00:1::1\nnameserver 10.2.0.1\noptions ndots:0\nnet:[%d]\n", st.Sys().(*syscall.Stat_t).Ino)
	if code != 0 || joined != want || !strings.HasSuffix(errs, " is in the network namespace of web\n") {
		t.Errorf("%d %s\n got %s\nwant %s", code, errs, joined, want)
	}
	if err := os.WriteFile(d.socket+".go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := b.wait(t, d); code != 5 {
		t.Errorf("exit code %d", code)
	}
	want = fmt.Sprintf("typed\nh1\n10.1.0.9 h1 web\n%s h1 web\n%s h1 web\n%s h1 web\n# by seine run\nnameserver 10.1.0.1\nnameserver fd00:1::1\nnameserver 10.2.0.1\noptions ndots:0\nup\n",
		first.Addresses[1], second.Addresses[0], second.Addresses[1])
	if b.out.String() != want {
		t.Errorf("\n got %s\nwant %s", b.out, want)
	}
	if !strings.Contains(b.errs.String(), "its port 80/tcp is at 127.0.0.1:8080") {
		t.Errorf("%s", b.errs)
	}
}

// TestRunSignals: a signal reaches the program; its end is the end of all.
func TestRunSignals(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		d := newDaemon(t)
		networks(t, d, "default")
		b := d.run(t, "-q", "--", "sh", "-c", "echo up; exec sleep 1000")
		b.out.waitFor(t, "up\n")
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		if code := b.wait(t, d); code != want {
			t.Errorf("%v: exit code %d, want %d", sig, code, want)
		}
		if b.errs.String() != "" {
			t.Errorf("%s", b.errs)
		}
	}
}

// TestRunBrokenOff: a signal while a network is being attached ends the wait; the program never runs.
func TestRunBrokenOff(t *testing.T) {
	d := newDaemon(t)
	networks(t, d, "default", "slow")
	entered, release := make(chan struct{}), make(chan struct{})
	puts := 0
	d.Fail = func(verb string) error {
		if verb == "PutEndpoint" {
			if puts++; puts == 2 {
				close(entered)
				<-release
			}
		}
		return nil
	}
	b := d.run(t, "--network", "default", "--network", "slow", "--", "sh", "-c", "echo up")
	<-entered
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	code := <-b.code
	close(release)
	if code != 143 || b.out.String() != "" || !strings.Contains(b.errs.String(), "seine: broken off by SIGTERM\n") {
		t.Errorf("%d %s %s", code, b.out, b.errs)
	}
	d.Fail = nil
	d.checkNothingLeft(t)
}

// TestRunFailures: whatever fails on the way, nothing is left and the first cause is told.
func TestRunFailures(t *testing.T) {
	for name, c := range map[string]struct {
		fail map[string]error
		args []string
		code int
		errs string
	}{
		"no network":     {nil, []string{"--network", "default", "--network", "nope", "--", "true"}, 3, `network "nope" does not exist`},
		"second refused": {map[string]error{"PutEndpoint 2": api.Errorf(api.Internal, "", "netlink: no")}, []string{"--network", "default", "--network", "back", "--", "true"}, 1, "seine: netlink: no\n"},
		"no daemon":      {map[string]error{"Node 1": api.Errorf(api.Unavailable, "", "later")}, []string{"true"}, 6, "seine: later\n"},
		"bad address":    {nil, []string{"--mac", "x", "true"}, 2, "mac \"x\""},
		"bad name":       {nil, []string{"--name", "../x", "true"}, 2, `name "../x"`},
		"not joined":     {nil, []string{"--network", "container:nobody", "true"}, 3, `container "nobody": is on no network`},
		"detach refused": {map[string]error{"DeleteEndpoint 1": api.Errorf(api.Unavailable, "", "later")}, []string{"-q", "sh", "-c", "exit 9"}, 9, "seine: note: not detached: later; the daemon will do it\n"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			networks(t, d, "default", "back")
			calls := map[string]int{}
			var mu sync.Mutex
			d.Fail = func(verb string) error {
				mu.Lock()
				defer mu.Unlock()
				calls[verb]++
				return c.fail[fmt.Sprintf("%s %d", verb, calls[verb])]
			}
			b := d.run(t, c.args...)
			code := <-b.code
			if code != c.code || !strings.Contains(b.errs.String(), c.errs) || b.out.String() != "" {
				t.Errorf("%d %s %s", code, b.out, b.errs)
			}
			d.Fail = nil
			if name == "detach refused" {
				return // the real daemon sees the process end
			}
			d.checkNothingLeft(t)
		})
	}
}

// TestRunDetachesWhatIsInNoList: the daemon takes an endpoint from its list before the kernel is clean, so what was
// attached is deleted, which waits, whether it is in the list or not.
func TestRunDetachesWhatIsInNoList(t *testing.T) {
	d := newDaemon(t)
	networks(t, d, "default", "back")
	d.Fail = func(verb string) error {
		if verb == "Endpoints" {
			return api.Errorf(api.Internal, "", "no list")
		}
		return nil
	}
	b := d.run(t, "-q", "--network", "default", "--network", "back", "--", "sh", "-c", "exit 9")
	if code := b.wait(t, d); code != 9 || b.errs.String() != "seine: note: not detached: no list; the daemon will do it\n" {
		t.Errorf("%d %s", code, b.errs)
	}
}

// TestRunDrawsAnotherName: a random name that is taken is no error.
func TestRunDrawsAnotherName(t *testing.T) {
	d := newDaemon(t)
	networks(t, d, "default")
	taken := 2
	d.Fail = func(verb string) error {
		if verb == "PutEndpoint" && taken > 0 {
			taken--
			return api.Errorf(api.Conflict, "endpoint", "exists already")
		}
		return nil
	}
	b := d.run(t, "-q", "echo", "ran")
	if code := b.wait(t, d); code != 0 || b.out.String() != "ran\n" || b.errs.String() != "" {
		t.Errorf("%d %s %s", code, b.out, b.errs)
	}
	taken = 99
	d.Fail = func(verb string) error {
		if verb == "PutEndpoint" {
			return api.Errorf(api.Conflict, "endpoint", "exists already")
		}
		return nil
	}
	b = d.run(t, "-q", "echo", "ran")
	if code := b.wait(t, d); code != 4 {
		t.Errorf("%d %s", code, b.errs)
	}
}

// TestRunElsewhere: with the machine's own network no daemon is needed, with one that is not here nothing can be run.
func TestRunElsewhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skip: needs root: it makes mount and PID namespaces")
	}
	var out bytes.Buffer
	host, _ := os.Hostname()
	if code := Main(t.Context(), "", []string{"--socket", "/no/such", "run", "--network", "host", "--", "hostname"}, Streams{Out: &out, Err: io.Discard}); code != 0 || strings.TrimSpace(out.String()) != host {
		t.Errorf("%d %s", code, out.String())
	}
	var errs bytes.Buffer
	if code := Main(t.Context(), "", []string{"--socket", "http://192.0.2.1", "run", "true"}, Streams{Out: io.Discard, Err: &errs}); code != 2 || !strings.Contains(errs.String(), "another machine") {
		t.Errorf("%d %s", code, errs.String())
	}
}
