package httpdoor

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/seine-net/seine/api"
)

// watch sends the engine's events as server-sent events until the caller goes away, the engine ends the watch (of a
// caller that is too slow, say), or the server stops. The caller goes on with Last-Event-ID.
func (d *Door) watch(w http.ResponseWriter, r *http.Request) error {
	since, err := sinceOf(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	events, err := d.engine.Watch(ctx, since)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	rc := http.NewResponseController(w)
	send := func(text string) bool {
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // so that a caller that does not read is let go
		_, err := w.Write([]byte(text))
		return err == nil && rc.Flush() == nil
	}
	alive := ": alive\n\n"
	if !send(alive) { // the caller knows now that it is connected
		return nil
	}
	beat := time.NewTicker(d.opts.Heartbeat)
	defer beat.Stop()
	for {
		text := alive
		select {
		case <-stopped(r):
			return nil
		case <-ctx.Done():
			return nil
		case <-beat.C:
		case ev, ok := <-events:
			if !ok {
				return nil
			}
			if text, err = eventText(ev); err != nil {
				d.opts.Log.Error("watch", "err", err)
				return nil
			}
			beat.Reset(d.opts.Heartbeat)
		}
		if !send(text) {
			return nil
		}
	}
}

// eventText is an event as it travels. One without revision has no id, so that the caller keeps the last one.
func eventText(ev api.Event) (string, error) {
	data, err := json.Marshal(ev)
	if err != nil {
		return "", fmt.Errorf("event %d: %w", ev.Revision, err)
	}
	id := ""
	if ev.Revision != 0 {
		id = fmt.Sprintf("id: %d\n", ev.Revision)
	}
	return fmt.Sprintf("%sevent: %s\ndata: %s\n\n", id, ev.Type, data), nil
}

// sinceOf is the revision after which a watch begins. A browser sends the header by itself when it connects again, with
// the address it began with; so the header is the newer one.
func sinceOf(r *http.Request) (uint64, error) {
	field, value := "Last-Event-ID", r.Header.Get("Last-Event-ID")
	if value == "" {
		field, value = "since", r.URL.Query().Get("since")
	}
	if value == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return 0, api.FieldError("watch", field, value, "is no revision", "a whole number; 0 begins with the present state")
	}
	return n, nil
}
