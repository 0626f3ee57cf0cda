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
	"syscall"
	"time"

	"github.com/seine-net/seine/bench/internal/rig"
	"github.com/seine-net/seine/client"
)

// pluginSocket is where dockerd would look.
const pluginSocket = "/run/docker/plugins/seine.sock"

// plugin is a seined, and this program in Docker's place at its socket.
type plugin struct {
	daemon *exec.Cmd
	http   http.Client
	dir    string
}

// startPlugin starts seined. The state lies in memory files: it is the code that is measured, not a disk.
func startPlugin(ctx context.Context, dir string) (*plugin, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "seine.sock")
	p := &plugin{dir: dir, daemon: exec.Command(filepath.Join(*bin, "seined"), "--state", filepath.Join(dir, "state.db"), "--socket", socket,
		"--docker-socket", pluginSocket, "--dhcp-socket", "", "--quiet", "--log-level", "warn")}
	p.daemon.Stdout, p.daemon.Stderr = os.Stderr, os.Stderr
	p.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", pluginSocket)
	}}
	if err := p.daemon.Start(); err != nil {
		return nil, err
	}
	c, err := client.New(socket)
	if err == nil {
		err = rig.Ready(ctx, c, 30*time.Second)
	}
	for until := time.Now().Add(10 * time.Second); err == nil; time.Sleep(5 * time.Millisecond) {
		if _, err = os.Stat(pluginSocket); err == nil || time.Now().After(until) {
			break
		}
		err = nil
	}
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *plugin) stop() error {
	p.http.CloseIdleConnections()
	_ = p.daemon.Process.Signal(syscall.SIGTERM)
	return errors.Join(p.daemon.Wait(), os.RemoveAll(p.dir))
}

type object = map[string]any

// call makes one call as dockerd does.
func (p *plugin) call(ctx context.Context, name string, in object) (object, time.Duration, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, 0, err
	}
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin.moby.localhost/"+name, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept", "application/vnd.docker.plugins.v1.2+json")
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	took := time.Since(start)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("%s: %s", name, text)
	}
	var out object
	return out, took, json.Unmarshal(text, &out)
}
