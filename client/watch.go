package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/seine-net/seine/api"
)

const (
	// silence is after how long without a byte a watch counts as dead; the daemon sends something every 15 s.
	silence = 50 * time.Second
	// The pauses before a watch connects again.
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	// maxLine is the longest line of an event: that of the largest noun, which the daemon takes 1 MiB of, and its status.
	maxLine = 4 << 20
)

// Watch gives every change after the revision since until ctx ends; then it closes the channel. With since 0 it begins
// with the present state as puts. When the connection is lost it connects again, as often as it takes, and goes on
// after the last revision it saw. Where the daemon does not know any more what happened since, an event of type
// api.EventReset says so, and the present state follows. The error is that of the first connection.
func (c *Client) Watch(ctx context.Context, since uint64) (<-chan api.Event, error) {
	s, err := c.open(ctx, since)
	if err != nil {
		return nil, err
	}
	out := make(chan api.Event)
	go func() {
		defer close(out)
		c.follow(ctx, s, since, out)
	}()
	return out, nil
}

// follow reads one connection after the other.
func (c *Client) follow(ctx context.Context, s *stream, since uint64, out chan<- api.Event) {
	pause := firstPause
	for {
		for s != nil {
			ev, err := s.next()
			if err != nil {
				s.close()
				s = nil
				break
			}
			select {
			case out <- ev:
			case <-ctx.Done():
				s.close()
				return
			}
			if ev.Revision != 0 {
				since = ev.Revision
			}
			pause = firstPause
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
		var err error
		if s, err = c.open(ctx, since); api.CodeOf(err) == api.Stale && since != 0 {
			select {
			case out <- api.Event{Type: api.EventReset}:
				since = 0
			case <-ctx.Done():
				return
			}
		}
	}
}

// stream is one connection of a watch.
type stream struct {
	body   io.ReadCloser
	lines  *bufio.Scanner
	dead   *time.Timer
	cancel context.CancelFunc
}

func (c *Client) open(ctx context.Context, since uint64) (*stream, error) {
	sub, cancel := context.WithCancel(ctx)
	req, err := c.request(sub, http.MethodGet, c.path("watch"), nil)
	if err != nil {
		cancel()
		return nil, err
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", strconv.FormatUint(since, 10))
	dead := time.AfterFunc(silence, cancel)
	resp, err := c.http.Do(req)
	if err == nil && resp.StatusCode == http.StatusOK {
		s := &stream{body: resp.Body, lines: bufio.NewScanner(resp.Body), dead: dead, cancel: cancel}
		s.lines.Buffer(nil, maxLine)
		return s, nil
	}
	if err != nil {
		err = c.unreachable(ctx, err)
	} else {
		err = answered(resp)
		resp.Body.Close()
	}
	dead.Stop()
	cancel()
	return nil, err
}

// next reads one event; comments and unknown fields are passed over.
func (s *stream) next() (api.Event, error) {
	var data strings.Builder
	for s.lines.Scan() {
		s.dead.Reset(silence)
		line := s.lines.Text()
		if line == "" && data.Len() > 0 {
			var ev api.Event
			err := json.Unmarshal([]byte(data.String()), &ev)
			if err != nil {
				err = fmt.Errorf("event: %w", err)
			}
			return ev, err
		}
		if text, ok := strings.CutPrefix(line, "data:"); ok {
			data.WriteString(strings.TrimPrefix(text, " "))
		}
	}
	if err := s.lines.Err(); err != nil {
		return api.Event{}, err
	}
	return api.Event{}, io.EOF
}

func (s *stream) close() {
	s.dead.Stop()
	s.cancel()
	s.body.Close()
}
