// Package runtimes_test has the stories about the programs that call CNI plugins: Podman and containerd, as Debian has
// them, with ours in place of the reference plugins, on a namespace that stands for the machine, with real packets.
//
//	outside ── eth0 ── machine (network namespace of the lab)
//	                     └ node: first process of process, mount and IPC namespaces of its own;
//	                       /run, /var/lib and /dev/shm are empty, so that runtimes have their files at the usual places
//	                         └ podman, conmon, containerd, shims, containers: they all end when the node does
package runtimes_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/frontdoor/cni"
	"github.com/seine-net/seine/internal/testkit"
)

// bin builds the programs once: seine-cni under its plugins' names in plugins, the others beside that folder.
var bin = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "seine-runtimes-")
	if err != nil {
		return "", err
	}
	for _, program := range []string{"cmd/seine-cni", "test/runtimes/testdata/peer", "test/runtimes/testdata/record"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, filepath.Base(program)), "./"+program)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	err = os.Mkdir(filepath.Join(dir, "plugins"), 0o755)
	for _, name := range cni.Names() {
		err = errors.Join(err, os.Symlink("../seine-cni", filepath.Join(dir, "plugins", name)))
	}
	return dir, errors.Join(err, image(filepath.Join(dir, "peer"), filepath.Join(dir, "image.tar")))
})

// The image of all containers, which holds the program /peer alone.
const imageName = "localhost/peer:1"

// image packs a program as "docker save" does.
func image(program, file string) error {
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var layer, all bytes.Buffer
	pack := func(to io.Writer, mode int64, files map[string][]byte) error {
		w := tar.NewWriter(to)
		var errs []error
		for name, content := range files {
			errs = append(errs, w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}))
			_, err := w.Write(content)
			errs = append(errs, err)
		}
		return errors.Join(append(errs, w.Close())...)
	}
	err = pack(&layer, 0o755, map[string][]byte{"peer": text})
	conf := fmt.Sprintf(`{"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/peer"], "Cmd": ["pause"]},
		"rootfs": {"type": "layers", "diff_ids": ["sha256:%x"]}, "history": [{"created_by": "test"}]}`, sha256.Sum256(layer.Bytes()))
	err = errors.Join(err, pack(&all, 0o644, map[string][]byte{"config.json": []byte(conf), "layer.tar": layer.Bytes(),
		"manifest.json": []byte(`[{"Config": "config.json", "RepoTags": ["` + imageName + `"], "Layers": ["layer.tar"]}]`)}))
	return errors.Join(err, os.WriteFile(file, all.Bytes(), 0o644))
}

func TestMain(m *testing.M) {
	testkit.IfNode()
	code := m.Run()
	if dir, _ := bin(); dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// rig is a machine with a runtime on it.
type rig struct {
	*testing.T
	machine, outside *testkit.Host
	// dir is for what the runtime is told; plugins is the folder of recorded plugins.
	dir, plugins string
	// cgroup is the name of the group, in every hierarchy, that all containers are in.
	cgroup string
	node   *testkit.Node
}

var rigs struct {
	sync.Mutex
	n int
}

func newRig(t *testing.T, programs ...string) *rig {
	testkit.Need(t, "root", "bridge", "veth", "nft", "ipv6")
	for _, p := range programs {
		testkit.Need(t, "program:"+p)
	}
	built, err := bin()
	if err != nil {
		t.Fatal(err)
	}
	rigs.Lock()
	rigs.n++
	number := rigs.n
	rigs.Unlock()
	r := &rig{T: t, dir: t.TempDir(), cgroup: fmt.Sprintf("seine-test-%d-%d", os.Getpid(), number)}
	s := testkit.NewSandbox(t)
	r.machine, r.outside = s.Machine, s.Outside
	r.plugins = filepath.Join(r.dir, "plugins")
	err = os.Mkdir(r.plugins, 0o755)
	for _, name := range cni.Names() {
		err = errors.Join(err, os.Symlink(filepath.Join(built, "record"), filepath.Join(r.plugins, name)))
	}
	r.write("plugins/record", filepath.Join(built, "plugins")+"\n"+filepath.Join(r.dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testkit.RemoveCgroups(t, r.cgroup) })
	r.node = testkit.NewNode(t, s.Machine.NS)
	return r
}

// write writes a file below the rig's folder and gives its path.
func (r *rig) write(name, content string) string {
	r.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		r.Fatal(err)
	}
	return path
}

// patience is what anything may take that the stories wait for.
const patience = 60 * time.Second

// try runs a program on the node to its end and gives what it printed on standard output, without the last line's end.
func (r *rig) try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	cmd := r.node.Command(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, &out, &errs)
	}
	return strings.TrimSpace(out.String()), err
}

// background runs a program on the node until the test ends.
func (r *rig) background(name string, args ...string) {
	r.Helper()
	cmd := r.node.Command(context.Background(), name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		r.node.Stop() // it is not a child's child that a signal would reach
		_ = cmd.Wait()
		if r.Failed() {
			r.Logf("%s: %s", name, out.String())
		}
	})
}

// run is try for what has to work.
func (r *rig) run(name string, args ...string) string {
	r.Helper()
	out, err := r.try(name, args...)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// call is what a runtime asked a plugin, and what that answered.
type call struct {
	Plugin, Command, ContainerID, NetNS, IfName, Args, Stdin, Out, Err string
	Code                                                               int
}

// calls gives the calls since it was last asked. No call of a runtime may fail.
func (r *rig) calls() []call {
	r.Helper()
	file := filepath.Join(r.dir, "calls")
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.Fatal(err)
	}
	var all []call
	for dec := json.NewDecoder(bytes.NewReader(text)); ; {
		var c call
		if err := dec.Decode(&c); err == io.EOF {
			break
		} else if err != nil {
			r.Fatal(err)
		}
		if c.Code != 0 {
			r.Errorf("%s %s %s %s: ended with %d: %s%s\nconfiguration: %s", c.Plugin, c.Command, c.ContainerID, c.IfName, c.Code, c.Out, c.Err, c.Stdin)
		}
		all = append(all, c)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		r.Fatal(err)
	}
	return all
}

// of gives the calls of a command, as "PLUGIN IFNAME", sorted: a runtime takes networks in any order, or all at once.
func of(calls []call, command string) (out []string) {
	for _, c := range calls {
		if c.Command == command {
			out = append(out, c.Plugin+" "+c.IfName)
		}
	}
	slices.Sort(out)
	return out
}

// traces are what is a container's on the machine: links, addresses, routes and rules of links that no network has for
// itself, elements of nftables' sets, and what plugins and runtimes keep in files; one thing per line.
func (r *rig) traces() []string {
	r.Helper()
	var out []string
	keep := func(what, text string) {
		for _, line := range strings.Split(text, "\n") {
			if line = strings.TrimSpace(line); line != "" {
				out = append(out, what+": "+line)
			}
		}
	}
	for _, kind := range []string{"veth", "ifb"} {
		for line := range strings.Lines(r.run("ip", "-br", "link", "show", "type", kind)) {
			keep(kind, strings.Fields(line)[0])
		}
	}
	for _, family := range []string{"-4", "-6"} {
		keep("route", r.run("ip", family, "route", "show", "table", "all", "proto", "static"))
		keep("rule", r.run("ip", family, "rule"))
	}
	for _, e := range testkit.Elements(r.T, r.machine.NS) {
		if !strings.HasPrefix(e, "localnet ") { // a network's own
			keep("element", e)
		}
	}
	for _, dir := range []string{"/run/netns", "/var/lib/cni"} {
		_ = filepath.WalkDir(r.node.Path(dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && d.Name() != "lock" && !strings.HasPrefix(d.Name(), "last_reserved_ip.") {
				keep("file", strings.TrimPrefix(path, r.node.Path("")))
			}
			return nil
		})
	}
	slices.Sort(out)
	return out
}

// same waits until the traces are what they were: some of what the kernel reports follows later.
func (r *rig) same(what string, before []string) {
	r.Helper()
	var now []string
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if now = r.traces(); slices.Equal(now, before) {
			return
		}
	}
	r.Errorf("%s: the machine is not as before:\n%s\nwas:\n%s", what, strings.Join(now, "\n"), strings.Join(before, "\n"))
}

// reach checks that a server answers at a port of the machine over TCP and UDP.
func (r *rig) reach(from *testkit.NS, to netip.Addr, port uint16, server string) {
	r.Helper()
	for _, network := range []string{"tcp", "udp"} {
		if got := testkit.Reach(r.T, from, network, netip.AddrPortFrom(to, port)); got.Server != server {
			r.Errorf("%s %s port %d: %q answers, want %q", network, to, port, got.Server, server)
		}
	}
}

var loopback = netip.MustParseAddr("127.0.0.1")

// peer is the program of the containers, for the node.
func (r *rig) peer() string {
	built, _ := bin()
	return filepath.Join(built, "peer")
}

// limits gives the queueing discipline of the machine's end of a namespace's veth.
func (r *rig) limits(netns string) string {
	r.Helper()
	for line := range strings.Lines(r.run("nsenter", "--net="+netns, "ip", "-o", "link", "show", "eth0")) {
		_, index, _ := strings.Cut(line, "@if")
		index, _, _ = strings.Cut(index, ":")
		for link := range strings.Lines(r.run("ip", "-o", "link", "show", "type", "veth")) {
			if strings.HasPrefix(link, index+": ") {
				return link
			}
		}
	}
	r.Fatalf("no veth leads to %s", netns)
	return ""
}

// ask has a container, by the path of its network namespace on the node, ask a server over TCP and UDP.
func (r *rig) ask(netns string, to netip.Addr, port uint16, server string) {
	r.Helper()
	for _, network := range []string{"tcp", "udp"} {
		out, err := r.try("nsenter", "--net="+netns, r.peer(), "ask", network, netip.AddrPortFrom(to, port).String())
		if err != nil || !strings.HasPrefix(out, server+" ") {
			r.Errorf("%s asks %s %s port %d: %q %v, want %q", netns, network, to, port, out, err, server)
		}
	}
}
