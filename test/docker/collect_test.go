package docker_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

// age lets time pass, with the daemon's regular look at what Docker forgot.
func (d *desk) age(t time.Duration) {
	d.Helper()
	for end := time.Now().Add(t); time.Now().Before(end); time.Sleep(time.Minute) {
		if err := d.door.Collect(d.Context()); err != nil {
			d.Error(err)
		}
	}
	if err := d.door.Collect(d.Context()); err != nil {
		d.Error(err)
	}
}

// TestCollect: what Docker forgot goes after its time and not before, and what is used stays for good.
func TestCollect(t *testing.T) {
	gw := `{"PoolID":%q,"Options":{"RequestAddressType":"com.docker.network.gateway"}}`
	other := strings.Repeat("b", 64)
	for name, c := range map[string]struct {
		make  func(d *desk) // what is used, then what is forgotten
		stays time.Duration // for how long it is not taken
		used  bool          // it stays for good
	}{
		"an endpoint whose sandbox is gone": {stays: 0, make: func(d *desk) {
			d.ok("NetworkDriver.CreateEndpoint", `{`+ids+`,"Interface":{"Address":"10.8.0.7/24"}}`)
			d.ok("NetworkDriver.Join", `{`+ids+`,"SandboxKey":"/nonexistent/netns/1"}`)
			d.ok("NetworkDriver.ProgramExternalConnectivity", `{`+ids+`,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080,"HostPortEnd":8080}]}}`)
		}},
		"an endpoint that no sandbox joined": {stays: 9 * time.Minute, make: func(d *desk) {
			d.ok("NetworkDriver.CreateEndpoint", `{`+ids+`,"Interface":{"Address":"10.8.0.7/24"}}`)
		}},
		"an endpoint that its sandbox left": {stays: 9 * time.Minute, make: func(d *desk) {
			d.ok("NetworkDriver.CreateEndpoint", `{`+ids+`,"Interface":{"Address":"10.8.0.7/24"}}`)
			d.ok("NetworkDriver.Join", `{`+ids+`,"SandboxKey":"/nonexistent/netns/1"}`)
			d.ok("NetworkDriver.Leave", `{`+ids+`}`)
		}},
		"an endpoint with a sandbox": {used: true, make: func(d *desk) {
			path := filepath.Join(d.TempDir(), "sandbox")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				d.Fatal(err)
			}
			d.ok("NetworkDriver.CreateEndpoint", `{`+ids+`,"Interface":{"Address":"10.8.0.7/24"}}`)
			d.ok("NetworkDriver.Join", `{`+ids+`,"SandboxKey":%q}`, path)
		}},
		"an endpoint that is not Docker's": {used: true, make: func(d *desk) {
			d.kernel.AddNamespace("/run/netns/x")
			if _, err := d.engine.PutEndpoint(d.Context(), api.Endpoint{Network: "docker-" + netID[:12], Name: "x", Sandbox: api.Sandbox{Netns: "/run/netns/x"}}, 0); err != nil {
				d.Fatal(err)
			}
		}},
		"a pool whose answer was lost": {stays: 9 * time.Minute, make: func(d *desk) { d.ok("IpamDriver.RequestPool", noPool) }},
		"a pool with an address": {used: true, make: func(d *desk) { // of a network of another driver
			d.ok("IpamDriver.RequestAddress", gw, d.ok("IpamDriver.RequestPool", noPool)["PoolID"])
		}},
		"an address whose answer was lost": {stays: 9 * time.Minute, make: func(d *desk) {
			for id := range d.store.Values("docker/ipam/") {
				if id, ok := strings.CutPrefix(id, "docker/ipam/"); ok && !strings.Contains(id, " ") {
					d.ok("IpamDriver.RequestAddress", `{"PoolID":%q}`, id)
				}
			}
		}},
		"a network of which all was given back": {stays: 9 * time.Minute, make: func(d *desk) {
			p := d.ok("IpamDriver.RequestPool", `{"Pool":"10.6.0.0/24"}`)["PoolID"]
			d.ok("IpamDriver.RequestAddress", gw, p)
			d.ok("NetworkDriver.CreateNetwork", `{"NetworkID":%q,"IPv4Data":[{"AddressSpace":"seine","Pool":"10.6.0.0/24"}]}`, other)
			d.ok("NetworkDriver.CreateEndpoint", `{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":"10.6.0.7/24"}}`, other, epID)
			d.ok("IpamDriver.ReleaseAddress", `{"PoolID":%q,"Address":"10.6.0.1"}`, p)
			d.ok("IpamDriver.ReleasePool", `{"PoolID":%q}`, p)
		}},
		"a network with Docker's own addresses": {used: true, make: func(d *desk) {
			d.ok("NetworkDriver.CreateNetwork", `{"NetworkID":%q,"IPv4Data":[{"AddressSpace":"LocalDefault","Pool":"10.6.0.0/24"}]}`, other)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t)
				p := d.ok("IpamDriver.RequestPool", `{"Pool":"10.8.0.0/24"}`)["PoolID"]
				d.ok("IpamDriver.RequestAddress", gw, p)
				d.ok("NetworkDriver.CreateNetwork", `{"NetworkID":%q,"IPv4Data":[{"AddressSpace":"seine","Pool":"10.8.0.0/24","Gateway":"10.8.0.1/24"}]}`, netID)
				before := d.state()
				c.make(d)
				made := d.state()
				if made == before {
					t.Fatal("nothing was made")
				}
				d.age(c.stays)
				if now := d.state(); now != made {
					t.Fatalf("it went too early:\n%s\nwas:\n%s", now, made)
				}
				d.restart() // the time is counted anew
				d.age(c.stays)
				if now := d.state(); now != made {
					t.Fatalf("it went too early after a restart:\n%s\nwas:\n%s", now, made)
				}
				d.age(2 * time.Hour)
				want := before
				if c.used {
					want = made
				}
				if now := d.state(); now != want {
					t.Fatalf("after two hours it is:\n%s\nwant:\n%s", now, want)
				}
			})
		})
	}
}

// TestKernelHangs: Docker waits for good, so it is answered however the kernel fares; and when it goes on nothing is left
// of what failed.
func TestKernelHangs(t *testing.T) {
	const limit = 26 * time.Second
	ports := `{` + ids + `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080,"HostPortEnd":8080}]}}`
	for _, c := range []struct {
		name, body string
		kept       bool // it is done all the same
	}{
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"` + strings.Repeat("b", 64) + `","IPv4Data":[{"Pool":"10.7.0.0/24"}]}`, false},
		{"NetworkDriver.CreateEndpoint", `{"NetworkID":"` + netID + `","EndpointID":"` + strings.Repeat("c", 64) + `","Interface":{"Address":"10.8.0.9/24"}}`, false},
		{"NetworkDriver.ProgramExternalConnectivity", ports, false},
		{"NetworkDriver.RevokeExternalConnectivity", `{` + ids + `}`, false},
		{"NetworkDriver.Leave", `{` + ids + `}`, false},
		{"NetworkDriver.DeleteEndpoint", `{` + ids + `}`, true},
		{"NetworkDriver.DeleteNetwork", `{"NetworkID":"` + netID + `"}`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t)
				d.network(netID, "10.8.0.0/24", "")
				d.ok("NetworkDriver.CreateEndpoint", `{`+ids+`,"Interface":{"Address":"10.8.0.7/24"}}`)
				d.ok("NetworkDriver.Join", `{`+ids+`,"SandboxKey":"/run/docker/netns/1"}`)
				if !strings.Contains(c.name, "Program") {
					d.ok("NetworkDriver.ProgramExternalConnectivity", "%s", ports)
				}
				goOn := make(chan struct{})
				d.kernel.FailIf(func(kernel.Change) error { <-goOn; return nil })
				start := time.Now()
				_, err := d.ask(c.name, c.body)
				if took := time.Since(start); took > limit || c.kept != (err == nil) {
					t.Errorf("answered after %s: %v", took, err)
				}
				for _, name := range []string{"NetworkDriver.EndpointOperInfo", "NetworkDriver.Join", "NetworkDriver.CreateEndpoint"} { // others are not held up
					start = time.Now()
					_, _ = d.ask(name, `{`+ids+`}`)
					if took := time.Since(start); took > limit {
						t.Errorf("%s took %s", name, took)
					}
				}
				close(goOn)
				d.kernel.FailIf(nil)
				if err := d.engine.Loop.SyncAll(t.Context()); err != nil {
					t.Error(err)
				}
				if err := d.engine.Collect(t.Context()); err != nil {
					t.Error(err)
				}
				d.ok(c.name, "%s", c.body) // Docker's next try
				d.ok("NetworkDriver.DeleteEndpoint", `{`+ids+`}`)
				d.ok("NetworkDriver.DeleteNetwork", `{"NetworkID":%q}`, netID)
				d.ok("NetworkDriver.DeleteNetwork", `{"NetworkID":%q}`, strings.Repeat("b", 64))
				if now := d.state(); strings.Contains(now, "10.8.0.") || strings.Contains(now, "10.7.0.") || strings.Contains(now, "sv-") {
					t.Errorf("left:\n%s", now)
				}
			})
		})
	}
}
