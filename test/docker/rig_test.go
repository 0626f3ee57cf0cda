// Package docker_test has the stories about Docker: the daemon of Debian's package with Seine as its driver, and the
// protocol between them call by call.
//
//	outside ── eth0 ── machine (network namespace of the lab)
//	                     └ node: processes, mounts and IPC of its own, so that all files are at their usual places
//	                         └ seined, dockerd with its own bridge, containerd, shims, containers, docker's clients
//
// SEINE_TEST_DOCKERD names another dockerd for the stories than the one in PATH. Its folder comes first in the daemon's
// PATH (containerd, runc, docker-proxy), and the client that is there is used, or else the one of PATH.
package docker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.IfNode()
	code := m.Run()
	if builtDir != "" {
		_ = os.RemoveAll(builtDir)
	}
	os.Exit(code)
}

// builtDir is what built has made, if it was called: most tests of this package, and its fuzzing, need no program.
var builtDir string

// built builds the daemon, the client and the CNI plugin once, and gives their folder.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "seine-docker-")
	if err != nil {
		return "", err
	}
	builtDir = dir
	return dir, errors.Join(testkit.BuildProgram(dir, "seined"), testkit.BuildProgram(dir, "seine"), testkit.BuildCNI(filepath.Join(dir, "cni"), "seine"))
})

// rig is a machine with seined and dockerd, in the hands of a test.
type rig struct {
	*testing.T
	*station
}

// station is what the tests of a rig share.
type station struct {
	machine, outside *testkit.Host
	node             *testkit.Node
	client           *client.Client
	dir, bin         string
	seined, dockerd  *exec.Cmd
	log              *os.File
}

// driver is the name of the network and IPAM driver: that of the socket of seined.
const driver = "seine"

// newRig starts both daemons, dockerd with further flags.
func newRig(t *testing.T, flags ...string) *rig {
	testkit.Need(t, "root", "bridge", "veth", "nft", "ipv6", "program:dockerd", "program:docker", "program:containerd", "program:busybox")
	s := testkit.NewSandbox(t)
	r := &rig{T: t, station: &station{machine: s.Machine, outside: s.Outside, dir: t.TempDir()}}
	var err error
	if r.bin, err = built(); err != nil {
		t.Fatal(err)
	}
	if r.log, err = os.Create(filepath.Join(r.dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testkit.RemoveCgroups(t, r.cgroup()) })
	r.node = testkit.NewNode(t, s.Machine.NS)
	t.Cleanup(func() {
		r.node.Stop()
		for _, cmd := range []*exec.Cmd{r.dockerd, r.seined} {
			if cmd != nil && cmd.ProcessState == nil {
				_ = cmd.Wait()
			}
		}
		if text, err := os.ReadFile(r.log.Name()); err == nil && t.Failed() {
			t.Logf("daemons' logs:\n%s", text)
		}
		r.log.Close()
	})
	r.startSeined()
	r.startDocker(flags...)
	image, err := testkit.BusyboxImage()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := r.try(bytes.NewReader(image), "import", "-", "bb"); err != nil {
		r.Fatalf("docker import: %v: %s", err, out)
	}
	return r
}

// with has another test use the rig, as a part of the rig's test.
func (r *rig) with(t *testing.T) *rig { return &rig{T: t, station: r.station} }

// cgroup is the name of the group, in every hierarchy, that all containers are in.
func (r *rig) cgroup() string { return fmt.Sprintf("seine-test-docker-%d", os.Getpid()) }

// socket is where seined serves dockerd, for this process.
func (r *rig) socket() string { return r.node.Path("/run/docker/plugins/" + driver + ".sock") }

func (r *rig) startSeined(flags ...string) {
	r.Helper()
	api := filepath.Join(r.dir, "s")
	r.seined = r.start(filepath.Join(r.bin, "seined"), append([]string{"--state", filepath.Join(r.dir, "state.db"), "--socket", api, "--quiet",
		"--dns-port", "0", "--dhcp-socket", "", "--docker-api", "unix://" + filepath.Join(r.dir, "d")}, flags...)...)
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

func (r *rig) startDocker(flags ...string) {
	r.Helper()
	program := "dockerd"
	if path := os.Getenv("SEINE_TEST_DOCKERD"); path != "" {
		program = path
	}
	if err := os.WriteFile(filepath.Join(r.dir, "none"), []byte(`{"features": {"containerd-snapshotter": false}}`), 0o600); err != nil {
		r.Fatal(err)
	}
	r.dockerd = r.start("env", append([]string{"PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH"), program,
		"--data-root", filepath.Join(r.dir, "data"), "--host", "unix://" + filepath.Join(r.dir, "d"), "--config-file", filepath.Join(r.dir, "none"),
		"--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", r.cgroup(), "--shutdown-timeout", "1"}, flags...)...)
	r.eventually(40*time.Second, func() error { _, err := r.try(nil, "version"); return err })
}

// start starts a daemon on the node.
func (r *rig) start(name string, args ...string) *exec.Cmd {
	r.Helper()
	cmd := r.node.Command(context.Background(), name, args...)
	cmd.Stdout, cmd.Stderr = r.log, r.log
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	return cmd
}

// end signals a daemon and waits for its end.
func (r *rig) end(cmd *exec.Cmd, sig syscall.Signal) {
	r.Helper()
	if cmd == nil || cmd.ProcessState != nil {
		return
	}
	if err := testkit.Signal(cmd, sig); err != nil {
		r.Errorf("%v", err)
	}
	_ = cmd.Wait()
}

// cli is Docker's client. Debian's is as old as its dockerd; another one first in PATH may be too new for it.
func cli() string {
	if path := os.Getenv("SEINE_TEST_DOCKERD"); path != "" {
		if near := filepath.Join(filepath.Dir(path), "docker"); exists(near) {
			return near
		}
	} else if exists("/usr/bin/docker") {
		return "/usr/bin/docker"
	}
	return "docker"
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// try runs Docker's client. Its standard input is stdin, and both of its outputs are given.
func (r *rig) try(stdin io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 40*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, cli(), append([]string{"--host", "unix://" + filepath.Join(r.dir, "d")}, args...)...)
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

// refused runs Docker's client and wants an error with a text.
func (r *rig) refused(want string, args ...string) {
	r.Helper()
	if out, err := r.try(nil, args...); err == nil || !strings.Contains(out, want) {
		r.Errorf("docker %s: %v: %s\nwant an error with %q", strings.Join(args, " "), err, out, want)
	}
}

// seine runs our own client.
func (r *rig) seine(args ...string) string {
	r.Helper()
	cmd := exec.CommandContext(r.Context(), filepath.Join(r.bin, "seine"), append([]string{"--socket", filepath.Join(r.dir, "s")}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.Fatalf("seine %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// netns makes a network namespace that has nothing to do with Docker, and gives its path on the node.
func (r *rig) netns(name string) (ns *testkit.NS, path string) {
	r.Helper()
	path = "/run/netns/" + name
	out, err := r.node.Command(r.Context(), "ip", "netns", "add", name).CombinedOutput()
	if err != nil {
		r.Fatalf("ip netns add: %v: %s", err, out)
	}
	if ns, err = testkit.OpenNS(name, r.node.Path(path)); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		ns.Close()
		_ = r.node.Command(context.Background(), "ip", "netns", "delete", name).Run()
	})
	return ns, path
}

// inside gives the network namespace of a running container, until the test ends.
func (r *rig) inside(container string) *testkit.NS {
	r.Helper()
	key := r.docker("inspect", "-f", "{{.NetworkSettings.SandboxKey}}", container)
	ns, err := testkit.OpenNS(container, r.node.Path(strings.TrimPrefix(key, "/var"))) // /var/run is a link to the wrong root
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(ns.Close)
	return ns
}

// addr gives a container's addresses on a network, IPv4 first; those that it has not are left out.
func (r *rig) addr(container, network string) (out []netip.Addr) {
	r.Helper()
	text := r.docker("inspect", "-f", `{{with index .NetworkSettings.Networks "`+network+`"}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}`, container)
	for _, f := range strings.Fields(text) {
		a, err := netip.ParseAddr(f)
		if err != nil {
			continue // newer versions say "invalid IP" for none
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		r.Fatalf("%s has no address on %s: %q", container, network, text)
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
	err := errors.New("was not tried")
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	r.Fatalf("not within %s: %v", limit, err)
}
