package remote_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// reference is where Debian has the reference plugins.
const reference = "/usr/lib/cni"

// chains are configurations of the reference plugins, %s stands for a folder that host-local keeps its files in.
var chains = map[string]string{
	"bridge": `{"cniVersion": "1.0.0", "name": "br", "plugins": [
		{"type": "bridge", "bridge": "cnitest0", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "dataDir": %q,
			"ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
			"dns": {"nameservers": ["192.0.2.1"]}},
		{"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}`,
	"ptp": `{"cniVersion": "0.4.0", "name": "pt", "type": "ptp", "ipMasq": true, "ipam": {"type": "host-local", "dataDir": %q,
		"ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}`,
	"macvlan": `{"cniVersion": "0.3.1", "name": "mv", "type": "macvlan", "master": "eth0", "ipam": {"type": "host-local", "dataDir": %q,
		"ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]]}}`,
}

func cniRig(t *testing.T) *rig {
	for _, name := range []string{"bridge", "ptp", "macvlan", "host-local", "portmap"} {
		if _, err := os.Stat(filepath.Join(reference, name)); err != nil {
			t.Skipf("skip: needs the reference plugins in %s (package containernetworking-plugins): %v", reference, err)
		}
	}
	return newRig(t)
}

// cni makes a network of a configuration.
func (r *rig) cni(name, config, path string) api.Network {
	r.Helper()
	file := r.write(name+".conflist", config)
	return r.network(api.Network{Name: name, Driver: "cni", Options: map[string]string{"cni.config": file, "cni.path": path}})
}

// held gives the addresses that host-local holds.
func (r *rig) held() []string {
	r.Helper()
	files, err := filepath.Glob(filepath.Join(r.dir, "ipam", "*", "[0-9f]*"))
	if err != nil {
		r.Fatal(err)
	}
	return files
}

func TestCNIReferencePlugins(t *testing.T) {
	for name, config := range chains {
		t.Run(name, func(t *testing.T) {
			r := cniRig(t)
			if name == "macvlan" {
				testkit.Need(t, "macvlan")
			}
			before := r.links(r.machine.NS)
			r.cni("net", fmt.Sprintf(config, filepath.Join(r.dir, "ipam")), reference)
			a, b := r.attach("net", "a"), r.attach("net", "b")
			if len(a.Addresses) != 2 || a.Address(true) == b.Address(true) || a.Status.Prefixes[0].Addr() != a.Addresses[0] {
				t.Errorf("a is %+v, b is %+v", a, b)
			}
			r.serve("b", 8000)
			for _, to := range b.Addresses {
				r.talk(r.container("a"), to, 8000)
			}
			if again := r.attach("net", "a"); again.Revision != a.Revision || again.Plugin.ID != a.Plugin.ID {
				t.Errorf("the same again gave %+v, was %+v", again, a)
			}
			r.calm()

			// A daemon that ends and comes back leaves them alone.
			r.kill(syscall.SIGKILL)
			r.start()
			r.talk(r.container("a"), b.Addresses[0], 8000)
			r.calm()
			r.detach("net", "a")
			if now := r.links(r.container("a")); !slices.Equal(now, []string{"lo"}) {
				t.Errorf("a detached container has %v", now)
			}
			// One that is gone with its container is detached all the same.
			r.containers["b"].Close()
			r.detach("net", "b")
			if h := r.held(); len(h) > 0 {
				t.Errorf("addresses are held: %v", h)
			}
			if err := r.client.DeleteNetwork(t.Context(), "net", 0); err != nil {
				t.Error(err)
			}
			r.calm()
			if name == "bridge" {
				before = append(before, "cnitest0") // it stays, as the plugin has it
			}
			r.eventually(10*time.Second, r.asBefore(before)) // the kernel takes a namespace apart in its own time
		})
	}
}

func TestCNIPorts(t *testing.T) {
	r := cniRig(t)
	testkit.Need(t, "program:iptables")
	r.cni("net", fmt.Sprintf(chains["bridge"], filepath.Join(r.dir, "ipam")), reference)
	ep := r.attach("net", "web", api.Port{HostPort: 8080, ContainerPort: 80}, api.Port{Protocol: "udp", HostPort: 8080, ContainerPort: 80})
	r.serve("web", 80)
	for _, a := range r.machine.Addrs() {
		r.talk(r.outside.NS, a, 8080)
	}
	if !slices.Equal(ep.Status.DNS, []netip.Addr{netip.MustParseAddr("192.0.2.1")}) {
		t.Errorf("name servers are %v", ep.Status.DNS)
	}
	_, err := r.try("net", "web", api.Port{HostPort: 8081, ContainerPort: 80})
	if api.CodeOf(err) != api.Conflict {
		t.Errorf("other ports: %v", err)
	}
	r.cni("bare", strings.Replace(fmt.Sprintf(chains["ptp"], filepath.Join(r.dir, "ipam")), "10.77", "10.78", 1), reference)
	_, err = r.try("bare", "web", api.Port{HostPort: 8081, ContainerPort: 80})
	if api.CodeOf(err) != api.Invalid || !strings.Contains(fmt.Sprint(err), "portMappings") {
		t.Errorf("ports where no plugin takes them: %v", err)
	}
	r.detach("net", "web")
	out, err := r.machine.Exec(t.Context(), "sh", "-c", "iptables-save; ip6tables-save")
	if err != nil || strings.Contains(out, "8080") {
		t.Errorf("left in the firewall: %v\n%s", err, out)
	}
	r.calm()
}

// TestCNICrash ends the daemon while a plugin runs, before it has done anything and after it has.
func TestCNICrash(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		for _, verb := range []string{"ADD", "DEL"} {
			t.Run(verb+" "+when, func(t *testing.T) {
				r := cniRig(t)
				calls := filepath.Join(r.dir, "calls")
				wait := fmt.Sprintf(`if [ $CNI_COMMAND = %s ] && [ ! -e %s/passed ]; then touch %s/waits; exec >&-; sleep 60; fi`, verb, r.dir, r.dir)
				script := "#!/bin/sh\necho $CNI_COMMAND $CNI_CONTAINERID >> " + calls + "\n"
				if when == "before" {
					script += wait + "\nexec " + reference + "/bridge\n"
				} else {
					script += "out=$(" + reference + "/bridge) || exit 1\n" + wait + "\necho \"$out\"\n"
				}
				r.write("slow", script)
				config := strings.Replace(fmt.Sprintf(chains["bridge"], filepath.Join(r.dir, "ipam")), `"type": "bridge"`, `"type": "slow"`, 1)
				r.cni("net", config, r.dir+":"+reference)
				done := make(chan error, 1)
				ns := r.container("a").Path()
				if verb == "DEL" {
					r.attach("net", "a")
				}
				go func() {
					var err error
					if verb == "ADD" {
						_, err = r.client.PutEndpoint(t.Context(), api.Endpoint{Network: "net", Name: "a", Sandbox: api.Sandbox{Netns: ns}}, 0)
					} else {
						err = r.client.DeleteEndpoint(t.Context(), "net", "a", 0)
					}
					done <- err
				}()
				r.eventually(10*time.Second, func() error { _, err := os.Stat(r.dir + "/waits"); return err })
				r.kill(syscall.SIGKILL)
				if err := <-done; err == nil {
					t.Error("who asked a daemon that was killed was told that all is well")
				}
				r.write("passed", "")
				r.start()
				if verb == "ADD" {
					r.eventually(10*time.Second, func() error {
						ep, err := r.client.Endpoint(t.Context(), "net", "a")
						if err == nil && ep.Status.State != api.Attached {
							err = fmt.Errorf("is %+v", ep.Status)
						}
						return err
					})
					r.attach("net", "b")
					r.serve("a", 8000)
					ep, _ := r.client.Endpoint(t.Context(), "net", "a")
					r.talk(r.container("b"), ep.Addresses[0], 8000)
					if h := r.held(); len(h) != 4 {
						t.Errorf("host-local holds %v", h)
					}
					r.detach("net", "a")
					r.detach("net", "b")
				}
				r.eventually(10*time.Second, func() error {
					if h := r.held(); len(h) > 0 {
						return fmt.Errorf("host-local holds %v", h)
					}
					return nil
				})
				r.calm()
				log, _ := os.ReadFile(calls)
				seen := map[string]string{}
				for line := range strings.Lines(string(log)) {
					verb, id, _ := strings.Cut(strings.TrimSpace(line), " ")
					if seen[id] != "" && verb == "ADD" {
						t.Errorf("ADD twice under one ID:\n%s", log)
					}
					seen[id] = verb
				}
				for id, last := range seen {
					if last != "DEL" {
						t.Errorf("%s ended with %s:\n%s", id, last, log)
					}
				}
			})
		}
	}
}

// TestCNINames: containers of a plugin's network find each other by name, at the name server's fixed address.
func TestCNINames(t *testing.T) {
	r := cniRig(t)
	config := strings.Replace(fmt.Sprintf(chains["bridge"], filepath.Join(r.dir, "ipam")), `"dns": {"nameservers": ["192.0.2.1"]}`, `"dns": {}`, 1)
	r.cni("net", config, reference)
	r.network(api.Network{Name: "own"})
	a, b, c := r.attach("net", "a"), r.attach("net", "b"), r.attach("own", "c")
	if len(a.Status.DNS) == 0 {
		t.Fatalf("no name server: %+v", a.Status)
	}
	look := func(from string, dns netip.Addr, name string) ([]string, error) {
		resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return r.container(from).Dial(ctx, network, netip.AddrPortFrom(dns, 53).String())
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		return resolver.LookupHost(ctx, name+".")
	}
	for _, dns := range a.Status.DNS {
		// The bridge is the plugin's: that its containers may ask is found out a moment after it is made.
		r.eventually(10*time.Second, func() error {
			got, err := look("a", dns, "b")
			if err == nil && !slices.Contains(got, b.Addresses[0].String()) {
				err = fmt.Errorf("b is %v, want %v", got, b.Addresses)
			}
			return err
		})
	}
	for from, dns := range map[string]netip.Addr{"a": a.Status.DNS[0], "c": c.Status.DNS[0]} {
		for _, name := range []string{"b", "c"} {
			_, err := look(from, dns, name)
			if ours := (from == "c") == (name == "c"); ours != (err == nil) {
				t.Errorf("%s asks for %s: %v", from, name, err)
			}
		}
	}
}

// TestCNISeine has our own plugins attach containers, which need no daemon: one that runs beside them leaves what is
// theirs alone.
func TestCNISeine(t *testing.T) {
	for _, chain := range []string{"bridge", "ptp"} {
		t.Run(chain, func(t *testing.T) {
			r := cniRig(t)
			if err := testkit.BuildCNI(r.dir, "bridge", "ptp", "host-local", "portmap"); err != nil {
				t.Fatal(err)
			}
			n := r.cni("net", strings.Replace(fmt.Sprintf(chains[chain], filepath.Join(r.dir, "ipam")), "1.0.0", "1.1.0", 1), r.dir)
			var ports []api.Port
			if chain == "bridge" {
				ports = []api.Port{{HostPort: 8080, ContainerPort: 8000}, {Protocol: "udp", HostPort: 8080, ContainerPort: 8000}}
			}
			b := r.attach("net", "b", ports...)
			a := r.attach("net", "a")
			r.serve("b", 8000)
			for range 2 {
				for _, to := range b.Addresses {
					r.talk(r.container("a"), to, 8000)
				}
				if len(ports) > 0 {
					r.talk(r.outside.NS, r.machine.V4, 8080)
					r.talk(r.machine.NS, netip.IPv6Loopback(), 8080)
				}
				r.calm()
				r.kill(syscall.SIGKILL)
				r.start()
			}
			// CHECK finds what somebody damaged.
			if _, err := r.container("a").Exec(t.Context(), "ip", "addr", "flush", "dev", a.Sandbox.Interface); err != nil {
				t.Fatal(err)
			}
			plan, err := r.client.Plan(t.Context(), "endpoint/net/a")
			if err != nil || len(plan.Changes) != 1 || !strings.Contains(plan.Changes[0].Was, "CHECK") {
				t.Errorf("check says %+v, %v", plan.Changes, err)
			}
			r.detach("net", "a")
			r.detach("net", "b")
			if err := r.client.DeleteNetwork(t.Context(), n.Name, 0); err != nil {
				t.Error(err)
			}
			if h := r.held(); len(h) > 0 {
				t.Errorf("host-local holds %v", h)
			}
			r.calm()
		})
	}
}
