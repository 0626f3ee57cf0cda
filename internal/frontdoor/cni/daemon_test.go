package cni

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
)

// hangUp puts itself between the plugin and the daemon and hangs up on a method after the daemon has answered.
func (s *served) hangUp(t *testing.T, method string) {
	t.Helper()
	front, back := filepath.Join(s.data, "s"), filepath.Join(s.data, "behind")
	if err := os.Rename(front, back); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", front)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { relay(c, back, method) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
}

func relay(c net.Conn, to, method string) {
	defer c.Close()
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	d, err := net.Dial("unix", to)
	if err != nil {
		return
	}
	defer d.Close()
	if req.Write(d) != nil {
		return
	}
	answer, _ := io.ReadAll(d)
	if req.Method == method {
		answer = answer[:len(answer)-7]
	}
	_, _ = c.Write(answer)
}

func TestReadAnswer(t *testing.T) {
	for text, want := range map[string]string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}":                                              "200 {}",
		"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}more":                                          "200 {}",
		"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n":                                                     "204 ",
		"HTTP/1.1 404 \r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n": "404 abc0123456789",
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}":                                              "unexpected EOF",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n":                           "unexpected EOF",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n":                 "does not end there",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n":                                 "no length of a chunk",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n":                                          "is not known",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n":         "a length and chunks",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ":                        "a second one",
		"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}":                                             "Content-Length",
		"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}":                                             "no header",
		"HTTP/1.1 200 OK\r\n folded: 2\r\n\r\n{}":                                                     "no header",
		"HTTP/1.1 200 OK\r\n\r\n{}":                                                                   "how long it is",
		"HTTP/1.1 100 Continue\r\n\r\n":                                                               "no status line",
		"HTTP/1.0 200 OK\r\n\r\n":                                                                     "no status line",
		"HTTP/1.1 2000 OK\r\n\r\n":                                                                    "no status line",
		"HTTP/1.1 200 OK\nContent-Length: 0\n\n":                                                      "is no line",
		"SSH-2.0\r\n":                                                                                 "no status line",
		"":                                                                                            "unexpected EOF",
		strings.Repeat("x", 10000):                                                                    "is no line",
	} {
		status, body, err := readAnswer(strings.NewReader(text))
		got := fmt.Sprint(status, " ", string(body))
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != want || err != nil && !strings.Contains(got, want) && !(errors.Is(err, bufio.ErrBufferFull) && want == "is no line") {
			t.Errorf("%.80q: %s, want %s", text, got, want)
		}
	}
}

// What is taken for an answer, net/http takes for the same one.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.1 404 Not Found\r\nServer: s\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		status, body, err := readAnswer(bytes.NewReader(data))
		if err != nil {
			return
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), nil)
		if err != nil {
			t.Fatalf("we read %d %q, net/http: %v", status, body, err)
		}
		want, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != status || !bytes.Equal(want, body) {
			t.Fatalf("we read %d %q, net/http %d %q %v", status, body, resp.StatusCode, want, err)
		}
	})
}

// The daemon's door, with answers of every size and none.
func TestAsk(t *testing.T) {
	s := newServed(t, "net")
	d := daemon{filepath.Join(s.data, "s")}
	labels := map[string]string{"x": strings.Repeat("<é>", 100)}
	for i := range 300 {
		e := api.Endpoint{Meta: api.Meta{Labels: labels}, Name: fmt.Sprintf("e%03d", i), Sandbox: api.Sandbox{Netns: netns}}
		var out api.Endpoint
		if err := d.ask(t.Context(), "PUT", endpointPath("net", e.Name), createOnly, &e, &out); err != nil || out.Labels["x"] != labels["x"] {
			t.Fatalf("%+v %v", out, err)
		}
		var all api.List[api.Endpoint]
		if err := d.ask(t.Context(), "GET", "/v1/endpoints", "", nil, &all); err != nil || len(all.Items) != i+1 {
			t.Fatalf("%d: %d %v", i, len(all.Items), err)
		}
	}
	if err := d.ask(t.Context(), "DELETE", endpointPath("net", "e007"), "", nil, nil); err != nil {
		t.Error(err)
	}
	if err := d.ask(t.Context(), "DELETE", endpointPath("net", "e007"), "", nil, nil); !isNotFound(err) {
		t.Error(err)
	}
	release := make(chan struct{})
	s.engine.Fail = func(string) error { <-release; return nil }
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.ask(ctx, "GET", "/v1/node", "", nil, nil); !errors.Is(err, errBrokeOff) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a daemon that hangs: %v", err)
	}
	close(release)
	s.stop()
	if err := d.ask(t.Context(), "GET", "/v1/node", "", nil, nil); !errors.Is(err, errNoDaemon) {
		t.Errorf("no daemon: %v", err)
	}
}
