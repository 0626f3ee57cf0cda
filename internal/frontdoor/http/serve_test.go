package httpdoor

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/frontdoor/http/fakeengine"
)

// start serves an engine on a socket of the test's own until the test ends; stop ends it earlier.
func start(t *testing.T, e Engine, o Options) (socket string, hc *http.Client, stop func() error) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(socket, SocketMode)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, New(e, o)) }()
	hc = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	stop = sync.OnceValue(func() error {
		cancel()
		err := <-done
		hc.CloseIdleConnections()
		return err
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return socket, hc, stop
}

func TestServeFinishesWhatIsUnderWay(t *testing.T) {
	fake := fakeengine.New()
	entered, release := make(chan struct{}), make(chan struct{})
	fake.Fail = func(verb string) error {
		if verb == "PutNetwork" {
			close(entered)
			<-release
		}
		return nil
	}
	socket, hc, stop := start(t, fake, Options{Log: quiet})
	status := make(chan int, 1)
	go func() {
		req, _ := http.NewRequest("PUT", "http://x/v1/networks/a", strings.NewReader("{}"))
		req.Header.Set("Content-Type", "application/json")
		resp, err := hc.Do(req)
		if err != nil {
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	<-entered
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	for { // the socket goes first, so that nobody new comes
		if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-ended:
		t.Fatalf("Serve ended with a request under way: %v", err)
	default:
	}
	close(release)
	if got := <-status; got != 201 {
		t.Errorf("the request under way got %d", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestServeEndsWatches(t *testing.T) {
	_, hc, stop := start(t, fakeengine.New(), Options{Log: quiet, Heartbeat: 5 * time.Millisecond})
	resp, err := hc.Get("http://x/v1/watch")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for beats := 0; beats < 3; { // the first when it is connected, the others from the ticker
		if !lines.Scan() {
			t.Fatal("the watch ended by itself")
		}
		if lines.Text() == ": alive" {
			beats++
		}
	}
	began := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > shutdownTime/2 {
		t.Errorf("a watch held the end up for %v", d)
	}
	for lines.Scan() {
	}
}

func TestServeTellsOfABrokenListener(t *testing.T) {
	l, err := Listen(filepath.Join(t.TempDir(), "s"), SocketMode)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Serve(context.Background(), l, New(fakeengine.New(), Options{Log: quiet})); err == nil {
		t.Error("no error")
	}
}

// TestDeadlineOfBodyIsLifted is about the deadline of the body, which must not outlive it: a handler may take longer.
func TestDeadlineOfBodyIsLifted(t *testing.T) {
	fake := fakeengine.New()
	var deadlines []time.Time
	w := &deadlineWriter{ResponseWriter: discard{http.Header{}}, set: func(at time.Time) { deadlines = append(deadlines, at) }}
	x := exchange{method: "PUT", path: "/v1/networks/a", body: "{}"}
	New(fake, Options{Log: quiet}).ServeHTTP(w, x.request())
	if len(deadlines) != 2 || deadlines[0].IsZero() || !deadlines[1].IsZero() {
		t.Errorf("read deadlines: %v", deadlines)
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

type deadlineWriter struct {
	http.ResponseWriter
	set func(time.Time)
}

func (d *deadlineWriter) SetReadDeadline(at time.Time) error { d.set(at); return nil }

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "s.sock")
	old := syscall.Umask(0) // the mode must not depend on it
	l, err := Listen(path, SocketMode)
	syscall.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != fs.ModeSocket|SocketMode {
		t.Errorf("%v %v", info, err)
	}
	if l.Addr().String() != path {
		t.Errorf("address %s", l.Addr())
	}
	if _, err := Listen(path, SocketMode); !errors.Is(err, ErrAnswered) {
		t.Errorf("a second one: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second close: %v", err)
	}
}

// TestListenOnWhatIsThere: a socket that nobody answers on is replaced, all else stays.
func TestListenOnWhatIsThere(t *testing.T) {
	dir := t.TempDir()

	stale := filepath.Join(dir, "stale")
	s, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	s.SetUnlinkOnClose(false)
	s.Close() // as a daemon that was killed leaves it
	l, err := Listen(stale, SocketMode)
	if err != nil {
		t.Fatalf("stale: %v", err)
	}
	c, err := net.Dial("unix", stale)
	if err != nil {
		t.Errorf("the new socket does not answer: %v", err)
	} else {
		c.Close()
	}
	l.Close()

	foreign := filepath.Join(dir, "foreign")
	f, err := net.Listen("unix", foreign)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Listen(foreign, SocketMode); !errors.Is(err, ErrAnswered) {
		t.Errorf("foreign: %v", err)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, SocketMode); err == nil {
		t.Error("a file was taken for a socket")
	}
	if b, _ := os.ReadFile(file); string(b) != "x" {
		t.Error("the file is gone")
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestListenTogether: of many daemons that start at once on a stale socket one gets it.
func TestListenTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var wg sync.WaitGroup
	var mu sync.Mutex
	var got []net.Listener
	for range 8 {
		wg.Go(func() {
			if l, err := Listen(path, SocketMode); err == nil {
				mu.Lock()
				got = append(got, l)
				mu.Unlock()
			} else if !errors.Is(err, ErrAnswered) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(got) != 1 {
		t.Errorf("%d listeners", len(got))
	}
	for _, l := range got {
		l.Close()
	}
}

// TestWatchEndsWithEngine: when the engine ends the watch, so does the answer, and the caller can go on.
func TestWatchEndsWithEngine(t *testing.T) {
	e := endedWatch{fakeengine.New()}
	exchange{"GET", "/v1/watch", "", "", 200, "id: 4\nevent: put\ndata: {\"revision\":4,\"type\":\"put\",\"kind\":\"network\"}\n\n"}.run(t, New(e, Options{Log: quiet}))
}

type endedWatch struct{ *fakeengine.Engine }

func (endedWatch) Watch(context.Context, uint64) (<-chan api.Event, error) {
	ch := make(chan api.Event, 1)
	ch <- api.Event{Revision: 4, Type: "put", Kind: "network"}
	close(ch)
	return ch, nil
}
