package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// DaemonSocket is where dockerd answers its own API (the Engine API).
const DaemonSocket = "/var/run/docker.sock"

const (
	// daemonDial bounds the wait for a daemon that listens but does not accept, daemonHeader that for its answer to begin.
	daemonDial   = 3 * time.Second
	daemonHeader = 20 * time.Second
	// maxAnswer bounds what Get reads, in bytes.
	maxAnswer = 64 << 20
)

// Daemon asks a Docker daemon over its unix socket. It must not be used within a call of Docker's to us: Docker waits for
// the answer. Its methods may be called from several goroutines; it keeps no connection open.
type Daemon struct {
	socket string
	http   http.Client
}

// NewDaemon gives the Daemon at a socket; it does not connect.
func NewDaemon(socket string) *Daemon {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: daemonDial}).DialContext(ctx, "unix", socket)
	}
	return &Daemon{socket: socket, http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true,
		ResponseHeaderTimeout: daemonHeader}}}
}

// DaemonError is a daemon's own refusal.
type DaemonError struct {
	// Status is the HTTP status, such as 404 for a thing that is not there; Message is the daemon's.
	Status  int
	Message string
}

// Error implements error.
func (e *DaemonError) Error() string { return fmt.Sprintf("%s (HTTP status %d)", e.Message, e.Status) }

// Stream asks for path ("/networks?filters=…"; without a version, so the daemon answers in its newest) and gives the body
// as it comes. ctx ends it; who asks closes it. A daemon that refuses is a *DaemonError.
func (d *Daemon) Stream(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("docker daemon %q: %w", d.socket, err)
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("docker daemon %q: %w", d.socket, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(text, &said) != nil || said.Message == "" {
		said.Message = strings.TrimSpace(string(text))
	}
	return nil, fmt.Errorf("docker daemon %q: %s: %w", d.socket, path, &DaemonError{resp.StatusCode, said.Message})
}

// Get asks for path and decodes the one JSON value that is the answer.
func (d *Daemon) Get(ctx context.Context, path string, into any) error {
	body, err := d.Stream(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxAnswer+1))
	if err == nil && len(text) > maxAnswer {
		err = errors.New("the answer has no end")
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("docker daemon %q: %s: %w", d.socket, path, err)
	}
	return nil
}
