package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

// The folder of dockerd and seined in the second part. It is in memory, for it is not a disk that is measured.
const engineDir = "/run/bench-dockerd"

// engine is a dockerd, asked by its API: a client's start would be part of every figure.
type engine struct {
	daemon *exec.Cmd
	http   http.Client
	cgroup string
}

// startEngine starts dockerd and imports the image "bb".
func startEngine(ctx context.Context) (*engine, error) {
	socket := filepath.Join(engineDir, "docker.sock")
	config := filepath.Join(engineDir, "daemon.json")
	if err := errors.Join(os.MkdirAll(engineDir, 0o755), os.WriteFile(config, []byte("{}"), 0o600)); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(engineDir, "docker.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	e := &engine{cgroup: fmt.Sprintf("seine-bench-%d", time.Now().UnixNano())}
	e.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	e.daemon = exec.Command(*dockerd, "--data-root", filepath.Join(engineDir, "data"), "--host", "unix://"+socket, "--config-file", config,
		"--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", e.cgroup, "--log-level", "error")
	e.daemon.Stdout, e.daemon.Stderr = log, log
	if err := e.daemon.Start(); err != nil {
		return nil, err
	}
	err = errors.New("was not asked")
	for until := time.Now().Add(60 * time.Second); err != nil && time.Now().Before(until) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		err = e.ask(ctx, http.MethodGet, "/info", nil, nil)
	}
	if err == nil {
		err = e.image(ctx)
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		return nil, errors.Join(fmt.Errorf("dockerd: %w\n%s", err, text), e.stop())
	}
	return e, nil
}

// stop ends dockerd and removes what it leaves of the groups of containers; all else ends with this program.
func (e *engine) stop() error {
	e.http.CloseIdleConnections()
	_ = e.daemon.Process.Signal(syscall.SIGTERM)
	err := e.daemon.Wait()
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + e.cgroup)
		for _, dir := range found {
			err = errors.Join(err, os.Remove(dir))
		}
	}
	return err
}

func (e *engine) image(ctx context.Context) error {
	content, err := testkit.BusyboxImage()
	if err != nil {
		return err
	}
	return e.send(ctx, http.MethodPost, "/images/create?fromSrc=-&repo=bb", "application/x-tar", bytes.NewReader(content), nil)
}

// ask makes a call of the Engine API, and reads the answer into out where there is one.
func (e *engine) ask(ctx context.Context, method, path string, in object, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	return e.send(ctx, method, path, "application/json", body, out)
}

func (e *engine) send(ctx context.Context, method, path, kind string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", kind)
	resp, err := e.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 400 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(text)))
	}
	if err == nil && out != nil {
		err = json.Unmarshal(text, out)
	}
	return err
}

// timed is ask for what gives nothing; it gives the time in milliseconds.
func (e *engine) timed(ctx context.Context, method, path string, in object) (float64, error) {
	start := time.Now()
	err := e.ask(ctx, method, path, in, nil)
	return float64(time.Since(start)) / 1e6, err
}

// create makes a container that does nothing, on a network, with ports published from first on.
func (e *engine) create(ctx context.Context, name, network string, first, ports int) error {
	exposed, bound := object{}, object{}
	for i := range ports {
		port := fmt.Sprintf("%d/tcp", 80+i)
		exposed[port] = object{}
		bound[port] = []object{{"HostIp": "", "HostPort": fmt.Sprint(first + i)}}
	}
	return e.ask(ctx, http.MethodPost, "/containers/create?name="+name, object{"Image": "bb", "Cmd": []string{"sleep", "86400"}, "ExposedPorts": exposed,
		"HostConfig": object{"NetworkMode": network, "PortBindings": bound}}, nil)
}
