package docker_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// resident is a container of a network, however it was made.
type resident struct {
	what, name string
	v4, v6     string
	// run runs busybox in it.
	run func(args ...string) (string, error)
}

// TestNames: containers of Docker, of `seine run` and of a CNI runtime find each other by name on one network, in all
// directions and over both families, and what Docker calls its own reaches the others.
func TestNames(t *testing.T) {
	r := newRig(t)
	r.docker("network", "create", "-d", driver, "--ipam-driver", driver, "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd00:77::/64",
		"-o", "seine.name=shop", "--label", "tier=front", "net_1")
	r.docker("run", "-d", "--name", "web", "--hostname", "front", "--network", "net_1", "--network-alias", "www", "--network-alias", "all",
		"--dns", "10.77.0.1", "--label", "com.example.who=me", "--label", "cni/network=x", "-p", "8080:80", "bb", "sleep", "600")
	all := []resident{r.dockerResident("web"), r.runResident("runner", "shop"), r.cniResident("pod", "shop")}
	r.eventually(5*time.Second, func() error { return r.named("web", "www", "front") })

	for _, from := range all {
		for _, to := range all {
			t.Run(from.what+" to "+to.what, func(t *testing.T) {
				for _, name := range []string{to.name, to.name + ".shop", to.name + ".net_1"} {
					if out, err := from.run("nslookup", name); err != nil || !strings.Contains(out, to.v4) || !strings.Contains(out, to.v6) {
						t.Errorf("look-up of %s: %v: %s; want %s and %s", name, err, out, to.v4, to.v6)
					}
				}
				for _, family := range []string{"-4", "-6"} {
					if out, err := from.run("ping", family, "-c", "1", "-W", "3", to.name); err != nil {
						t.Errorf("ping %s %s: %v: %s", family, to.name, err, out)
					}
				}
				for _, a := range []string{to.v4, to.v6} {
					if out, err := from.run("nslookup", a); err != nil || !strings.Contains(out, "name = "+to.name) { // a pod's endpoint has a hash behind
						t.Errorf("reverse look-up of %s: %v: %s; want %s", a, err, out, to.name)
					}
				}
			})
		}
	}
	runner := all[1]
	is := func(name string, want ...string) error {
		out, err := runner.run("nslookup", name)
		for _, a := range []string{"10.77.0.", "fd00:77::"} {
			n := 0
			for _, w := range want {
				if strings.HasPrefix(w, a) {
					n++
				}
			}
			if got := strings.Count(out, "Address: "+a); got != n { // the server's has its port behind
				return fmt.Errorf("%s: %v: %s; want %v", name, err, out, want)
			}
		}
		for _, w := range want {
			if !strings.Contains(out, "Address: "+w) {
				return fmt.Errorf("%s: %v: %s; want %v", name, err, out, want)
			}
		}
		return nil
	}
	web := all[0]
	for _, name := range []string{"web", "www", "front", r.docker("inspect", "-f", "{{.Id}}", "web")[:12]} {
		if err := is(name, web.v4, web.v6); err != nil {
			t.Error(err)
		}
	}

	// An alias of two containers has the addresses of both; a container that ends has none.
	r.docker("run", "-d", "--name", "second", "--network", "net_1", "--network-alias", "all", "bb", "sleep", "600")
	second := r.dockerResident("second")
	r.eventually(5*time.Second, func() error { return is("all", web.v4, web.v6, second.v4, second.v6) })
	r.docker("rename", "second", "third")
	r.eventually(5*time.Second, func() error { return is("third", second.v4, second.v6) })
	if err := is("second"); err != nil {
		t.Error(err)
	}
	r.docker("kill", "third")
	r.eventually(5*time.Second, func() error { return is("all", web.v4, web.v6) })

	lists(r)
	missed(r, is)

	r.docker("rm", "-f", "web", "third")
	if err := is("web"); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"runner", "pod"} {
		eps, _ := r.client.Endpoints(t.Context())
		for _, e := range eps {
			if strings.HasPrefix(e.Name, key) {
				_ = r.client.DeleteEndpoint(t.Context(), e.Network, e.Name, 0)
			}
		}
	}
	r.docker("network", "rm", "net_1")
	if eps, err := r.client.Endpoints(t.Context()); err != nil || len(eps) > 0 {
		t.Errorf("endpoints that are left: %v, %v", eps, err)
	}
}

// lists: what people see.
func lists(r *rig) {
	r.Helper()
	if out := r.seine("ports"); !strings.Contains(out, " web ") || !strings.Contains(out, "*:8080") {
		r.Errorf("`seine ports` shows\n%s", out)
	}
	if out := r.seine("endpoint", "ls"); !strings.Contains(out, " web ") {
		r.Errorf("`seine endpoint ls` shows\n%s", out)
	}
	if out := r.seine("network", "ls"); !strings.Contains(out, "also net_1") {
		r.Errorf("`seine network ls` shows\n%s", out)
	}
	if out := r.seine("doctor"); !strings.Contains(out, "are learnt from Docker") {
		r.Errorf("`seine doctor` shows\n%s", out)
	}
	n, err := r.client.Network(r.Context(), "shop")
	if err != nil || n.Labels["tier"] != "front" || n.Labels["docker.name"] != "net_1" {
		r.Errorf("the network's labels are %v, %v", n.Labels, err)
	}
	web := r.endpointOf("web")
	if web.Labels["com.example.who"] != "me" || web.Labels["cni/network"] != "" || web.Labels["docker.endpoint"] == "" || web.Labels["docker.sandbox"] == "" {
		r.Errorf("the container's labels are %v", web.Labels)
	}
}

// missed: what happens while nobody listens is learnt afterwards, on either side.
func missed(r *rig, is func(string, ...string) error) {
	r.Helper()
	web := r.dockerResident("web")
	r.end(r.seined, syscall.SIGKILL)
	r.docker("rename", "web", "shopfront")
	r.startSeined()
	r.eventually(5*time.Second, func() error { return is("shopfront", web.v4, web.v6) })
	r.docker("rename", "shopfront", "web")
	r.eventually(5*time.Second, func() error { return is("web", web.v4, web.v6) })
}

// named checks the names of a container of Docker's.
func (r *rig) named(container string, aliases ...string) error {
	eps, err := r.client.Endpoints(r.Context())
	for _, e := range eps {
		if e.Container.Name != container {
			continue
		}
		for _, a := range aliases {
			if !slices.Contains(e.Aliases, a) {
				return fmt.Errorf("aliases of %s are %v", container, e.Aliases)
			}
		}
		return nil
	}
	return fmt.Errorf("no endpoint has container %s: %v", container, err)
}

func (r *rig) endpointOf(container string) api.Endpoint {
	r.Helper()
	eps, err := r.client.Endpoints(r.Context())
	for _, e := range eps {
		if e.ContainerName() == container {
			return e
		}
	}
	r.Fatalf("no endpoint has container %s: %v", container, err)
	return api.Endpoint{}
}

func (r *rig) dockerResident(name string) resident {
	r.Helper()
	addrs := strings.Fields(r.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", name))
	if len(addrs) != 2 {
		r.Fatalf("container %s has addresses %v", name, addrs)
	}
	return resident{what: "Docker", name: name, v4: addrs[0], v6: addrs[1],
		run: func(args ...string) (string, error) {
			return r.try(nil, append([]string{"exec", name, "busybox"}, args...)...)
		}}
}

func (r *rig) runResident(name, network string) resident {
	r.Helper()
	start := func(ctx context.Context, args ...string) *exec.Cmd {
		return r.node.Command(ctx, filepath.Join(r.bin, "seine"), append([]string{"--socket", filepath.Join(r.dir, "s"), "run", "--quiet"}, args...)...)
	}
	cmd := start(context.Background(), "--name", name, "--network", network, "--", "busybox", "sleep", "600")
	cmd.Stdout, cmd.Stderr = r.log, r.log
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { r.end(cmd, syscall.SIGTERM) })
	var ep api.Endpoint
	r.eventually(10*time.Second, func() (err error) { ep, err = r.client.Endpoint(r.Context(), network, name); return err })
	return resident{what: "run", name: name, v4: ep.Address(true).String(), v6: ep.Address(false).String(),
		run: func(args ...string) (string, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			out, err := start(ctx, append([]string{"--network", "container:" + name, "--", "busybox"}, args...)...).CombinedOutput()
			return string(out), err
		}}
}

func (r *rig) cniResident(name, network string) resident {
	r.Helper()
	bin := filepath.Join(r.dir, "cni")
	if err := os.Mkdir(bin, 0o755); err != nil {
		r.Fatal(err)
	}
	if err := testkit.BuildCNI(bin, "seine"); err != nil {
		r.Fatal(err)
	}
	ns, path := r.netns(name)
	cmd := r.node.Command(r.Context(), "env", "CNI_COMMAND=ADD", "CNI_CONTAINERID=0123456789abcdef", "CNI_NETNS="+path, "CNI_IFNAME=eth0",
		"CNI_PATH="+bin, "CNI_ARGS=K8S_POD_NAME="+name, filepath.Join(bin, "seine"))
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion":"1.1.0","name":"pods","type":"seine","network":%q,"socket":%q}`, network, filepath.Join(r.dir, "s")))
	if out, err := cmd.CombinedOutput(); err != nil {
		r.Fatalf("CNI ADD: %v: %s", err, out)
	}
	eps, _ := r.client.Endpoints(r.Context())
	i := slices.IndexFunc(eps, func(e api.Endpoint) bool { return strings.HasPrefix(e.Name, name) })
	if i < 0 {
		r.Fatalf("no endpoint of the pod: %v", eps)
	}
	ep := eps[i]
	return resident{what: "CNI", name: name, v4: ep.Address(true).String(), v6: ep.Address(false).String(),
		run: func(args ...string) (string, error) { return lookOrRun(r, ns, ep.Status.DNS[0].String(), args) }}
}

// lookOrRun runs busybox in a namespace that has no resolv.conf of its own: a look-up names the server, and what is
// pinged is looked up before.
func lookOrRun(r *rig, ns *testkit.NS, server string, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	last := len(args) - 1
	if args[0] == "nslookup" {
		return ns.Exec(ctx, "busybox", append(args, server)...)
	}
	res := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return ns.Dial(ctx, network, net.JoinHostPort(server, "53"))
	}}
	family := map[string]string{"-4": "ip4", "-6": "ip6"}[args[1]]
	addrs, err := res.LookupNetIP(ctx, family, args[last])
	if err != nil {
		return "", err
	}
	args = slices.Clone(args)
	args[last] = addrs[0].String()
	return ns.Exec(ctx, "busybox", args...)
}
