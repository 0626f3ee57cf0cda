// Package docker_test has the stories about Docker: the daemon of Debian's package with Seine as its driver, and the
// protocol between them call by call.
package docker_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/testkit"
)

// rig is a machine with seined and dockerd.
type rig struct {
	*testing.T
	machine, outside *testkit.Host
	client           *client.Client
	dir, driver      string
	seined, dockerd  *exec.Cmd
	log              *os.File
}

func newRig(t *testing.T) *rig {
	testkit.Need(t, "root", "bridge", "veth", "nft", "ipv6", "program:dockerd", "program:docker", "program:containerd", "program:busybox")
	s := testkit.NewSandbox(t)
	r := &rig{T: t, machine: s.Machine, outside: s.Outside, dir: t.TempDir(), driver: fmt.Sprintf("seinetest%d", os.Getpid())}
	var err error
	if r.log, err = os.Create(filepath.Join(r.dir, "log")); err != nil {
		t.Fatal(err)
	}
	if err := testkit.BuildProgram(r.dir, "seined"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.end(r.dockerd, syscall.SIGTERM)
		r.end(r.seined, syscall.SIGTERM)
		_ = os.Remove(r.socket() + ".lock")
		if text, err := os.ReadFile(r.log.Name()); err == nil && t.Failed() {
			t.Logf("daemons' logs:\n%s", text)
		}
		r.log.Close()
	})
	r.startSeined()
	r.startDocker()
	return r
}

// socket is where dockerd looks for the driver: it has no setting for that, so the driver has a name of its own.
func (r *rig) socket() string { return "/run/docker/plugins/" + r.driver + ".sock" }

func (r *rig) startSeined() {
	r.Helper()
	api := filepath.Join(r.dir, "s")
	r.seined = exec.Command(filepath.Join(r.dir, "seined"), "--state", filepath.Join(r.dir, "state.db"), "--socket", api, "--quiet",
		"--dns-port", "0", "--dhcp-socket", "", "--docker-socket", r.socket())
	r.seined.Stdout, r.seined.Stderr = r.log, r.log
	if err := r.machine.Start(r.seined); err != nil {
		r.Fatal(err)
	}
	var err error
	if r.client, err = client.New(api); err != nil {
		r.Fatal(err)
	}
	r.eventually(10*time.Second, func() error {
		if _, err := r.client.Node(r.Context()); err != nil {
			return err
		}
		c, err := net.Dial("unix", r.socket())
		if err == nil {
			c.Close()
		}
		return err
	})
}

func (r *rig) startDocker() {
	r.Helper()
	r.dockerd = exec.Command("dockerd", "--data-root", filepath.Join(r.dir, "data"), "--exec-root", filepath.Join(r.dir, "exec"),
		"--pidfile", filepath.Join(r.dir, "docker.pid"), "--host", "unix://"+filepath.Join(r.dir, "d"), "--config-file", filepath.Join(r.dir, "none"),
		"--storage-driver", "vfs", "--bridge", "none", "--exec-opt", "native.cgroupdriver=cgroupfs")
	if err := os.WriteFile(filepath.Join(r.dir, "none"), []byte("{}"), 0o600); err != nil {
		r.Fatal(err)
	}
	r.dockerd.Stdout, r.dockerd.Stderr = r.log, r.log
	if err := r.machine.Start(r.dockerd); err != nil {
		r.Fatal(err)
	}
	r.eventually(30*time.Second, func() error { _, err := r.try(nil, "info"); return err })
	if out, err := r.try(image(r), "import", "-", "bb"); err != nil {
		r.Fatalf("docker import: %v: %s", err, out)
	}
}

func (r *rig) end(cmd *exec.Cmd, sig syscall.Signal) {
	if cmd != nil && cmd.ProcessState == nil {
		_ = cmd.Process.Signal(sig)
		_ = cmd.Wait()
	}
}

// image is a root file system with busybox.
func image(r *rig) io.Reader {
	r.Helper()
	path, _ := exec.LookPath("busybox")
	busybox, err := os.ReadFile(path)
	if err != nil {
		r.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			r.Fatal(err)
		}
		_, _ = w.Write(content)
	}
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox)
	for _, name := range []string{"sh", "ping", "wget", "httpd", "ip", "sleep"} {
		add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(tar.Header{Name: "www/index.html", Mode: 0o644}, []byte("hello"))
	if err := w.Close(); err != nil {
		r.Fatal(err)
	}
	return &b
}

func (r *rig) try(stdin io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 40*time.Second)
	defer cancel()
	program := "/usr/bin/docker" // Debian's, as old as its dockerd; another one first in PATH may be too new for it
	if _, err := os.Stat(program); err != nil {
		program = "docker"
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"--host", "unix://" + filepath.Join(r.dir, "d")}, args...)...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (r *rig) docker(args ...string) string {
	r.Helper()
	out, err := r.try(nil, args...)
	if err != nil {
		r.Fatalf("docker %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// get asks for the page of a container's server.
func (r *rig) get(from *testkit.NS, at string) {
	r.Helper()
	c := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: from.Dial}}
	r.eventually(5*time.Second, func() error {
		a, err := c.Get("http://" + at + "/")
		if err != nil {
			return err
		}
		defer a.Body.Close()
		if b, _ := io.ReadAll(a.Body); string(b) != "hello" {
			return fmt.Errorf("http://%s/ gave %q", at, b)
		}
		return nil
	})
}

func (r *rig) eventually(limit time.Duration, f func() error) {
	r.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	r.Fatalf("not within %s: %v", limit, err)
}
