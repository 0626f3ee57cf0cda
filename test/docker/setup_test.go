package docker_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	miekg "github.com/miekg/dns"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// TestSetupAndImport: dockerd as `seine docker setup` has it, with the names that containers on each kind of network find,
// and one of Docker's own networks brought over by the commands that `seine docker import` prints.
func TestSetupAndImport(t *testing.T) {
	r := newRig(t)
	outsideNames(r)
	r.end(r.seined, syscall.SIGTERM)
	r.startSeined("--dns-upstream", testkit.Far4.String())
	undo := setup(r)

	r.docker("network", "create", "-d", driver, "--ipam-driver", driver, "-o", "seine.name=shop", "shop")
	_, path := r.netns("plain")
	plain, err := r.client.PutEndpoint(t.Context(), api.Endpoint{Network: "shop", Name: "plain", Sandbox: api.Sandbox{Netns: path}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.docker("network", "create", "own")
	finds := func(network, name, want string) {
		t.Helper()
		// It prints the address before it tries it.
		out, err := r.try(nil, "run", "--rm", "--network", network, "bb", "ping", "-c", "1", "-W", "1", name)
		if found := strings.Contains(out, "("+want+")"); want != "" && !found || want == "" && err == nil {
			t.Errorf("on %s, %s is not %q: %s", network, name, want, out)
		}
	}
	for _, network := range []string{"bridge", "own", "host", "shop"} {
		finds(network, "www.example.org", "203.0.113.7")
		if network != "shop" {
			finds(network, "plain.shop", "")
		}
	}
	for _, name := range []string{"plain", "plain.shop", "plain.shop.seine.internal"} {
		finds("shop", name, plain.Address(true).String())
	}
	// A network's own containers are found by Docker, whoever it asks.
	r.docker("run", "-d", "--name", "web", "--network", "own", "bb", "sleep", "600")
	finds("own", "web", r.addr("web", "own")[0].String())
	r.docker("rm", "-f", "web")

	imported(r)
	undo()
}

// outsideNames has a name server answer outside.
func outsideNames(r *rig) {
	r.Helper()
	conn, err := r.outside.ListenPacket("udp", net.JoinHostPort(testkit.Far4.String(), "53"))
	if err != nil {
		r.Fatal(err)
	}
	server := &miekg.Server{PacketConn: conn, Handler: miekg.HandlerFunc(func(w miekg.ResponseWriter, q *miekg.Msg) {
		m := new(miekg.Msg).SetReply(q)
		switch name := q.Question[0].Name; {
		case name != "www.example.org.":
			m.Rcode = miekg.RcodeNameError
		case q.Question[0].Qtype == miekg.TypeA:
			m.Answer = []miekg.RR{&miekg.A{Hdr: miekg.RR_Header{Name: name, Rrtype: miekg.TypeA, Class: miekg.ClassINET, Ttl: 60}, A: net.IPv4(203, 0, 113, 7)}}
		}
		_ = w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ActivateAndServe() }()
	r.Cleanup(func() { _ = server.Shutdown(); <-done })
}

// setup writes dockerd's configuration and starts it again; what it gives takes the configuration back.
func setup(r *rig) (undo func()) {
	r.Helper()
	path := filepath.Join(r.dir, "etc", "daemon.json")
	before := []byte("{\n    \"features\": {\"containerd-snapshotter\": false},\n    \"log-driver\":  \"json-file\"\n}\n")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(path, before, 0o600); err != nil {
		r.Fatal(err)
	}
	args := []string{"docker", "setup", "--root", r.dir, "--config-file", "/etc/daemon.json"}
	if out := r.seine(args...); !strings.Contains(out, `+     "dns": ["169.254.255.53", "`) {
		r.Errorf("setup shows\n%s", out)
	}
	r.seine(append(args, "--yes")...)
	var got struct {
		DNS []string
		Log string `json:"log-driver"`
	}
	if text, err := os.ReadFile(path); err != nil || json.Unmarshal(text, &got) != nil || len(got.DNS) != 2 || got.Log != "json-file" {
		r.Fatalf("the configuration is %s, %v", text, err)
	}
	r.end(r.dockerd, syscall.SIGTERM)
	r.startDocker("--config-file", path) // the last one counts
	return func() {
		r.Helper()
		r.seine(append(args, "--undo", "--yes")...)
		if text, err := os.ReadFile(path); err != nil || string(text) != string(before) {
			r.Errorf("after undo the configuration is %s, %v", text, err)
		}
	}
}

// imported brings a network with a container over.
func imported(r *rig) {
	r.Helper()
	r.docker("network", "create", "--subnet", "10.91.0.0/24", "--gateway", "10.91.0.254", "--ip-range", "10.91.0.128/25", "--aux-address", "x=10.91.0.200",
		"--ipv6", "--subnet", "fd00:91::/64", "--gateway", "fd00:91::1", "--label", "team=web", "moved")
	r.docker("run", "-d", "--name", "mover", "--network", "moved", "bb", "sleep", "600")
	out := r.seine("docker", "import", "--docker-api", filepath.Join(r.dir, "d"), "moved")
	_, commands, ok := strings.Cut(out, "Docker's network is there\n")
	if !ok {
		r.Fatalf("import shows\n%s", out)
	}
	commands, _, _ = strings.Cut(commands, "\n\n")
	for line := range strings.Lines(commands) {
		args := strings.Fields(line)
		switch args[0] {
		case "docker":
			r.docker(args[1:]...)
		case "seine":
			r.seine(args[1:]...)
		default:
			r.Fatalf("import wants %q", line)
		}
	}
	n, err := r.client.Network(r.Context(), "moved")
	if err != nil || n.Subnet4().Gateway.String() != "10.91.0.254" || n.Subnet4().Range.String() != "10.91.0.128/25" || len(n.Subnet4().Reserved) != 1 || n.Labels["team"] != "web" {
		r.Errorf("the network is %+v, %v", n, err)
	}
	if got := r.docker("network", "inspect", "-f", "{{.Driver}}", "moved"); got != driver {
		r.Errorf("Docker's network has driver %q", got)
	}
	_, path := r.netns("beside")
	beside, err := r.client.PutEndpoint(r.Context(), api.Endpoint{Network: "moved", Name: "beside", Sandbox: api.Sandbox{Netns: path}}, 0)
	if err != nil {
		r.Fatal(err)
	}
	for _, to := range beside.Addresses {
		r.docker("exec", "mover", "ping", "-c", "1", "-W", "3", to.String())
	}
	if again := r.seine("docker", "import", "--docker-api", filepath.Join(r.dir, "d"), "moved"); !strings.Contains(again, "it is Seine's already") {
		r.Errorf("import shows again\n%s", again)
	}
	r.docker("rm", "-f", "mover")
}
