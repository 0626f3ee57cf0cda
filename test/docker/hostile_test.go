package docker_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	httpdoor "github.com/seine-net/seine/internal/frontdoor/http"
)

// calls are all that can be called, with a body that is right.
var calls = []struct{ name, body string }{
	{"NetworkDriver.CreateNetwork", `{"NetworkID":"` + strings.Repeat("b", 64) + `","IPv4Data":[{"AddressSpace":"seine","Pool":"10.7.0.0/24","Gateway":"10.7.0.1/24","AuxAddresses":{"x":"10.7.0.9/24"}}],
		"Options":{"com.docker.network.enable_ipv6":false,"com.docker.network.internal":true,"com.docker.network.generic":{"com.docker.network.driver.mtu":"1400","seine.name":"x"}}}`},
	{"NetworkDriver.DeleteNetwork", `{"NetworkID":"` + netID + `"}`},
	{"NetworkDriver.CreateEndpoint", `{"NetworkID":"` + netID + `","EndpointID":"` + strings.Repeat("c", 64) + `","Interface":{"Address":"10.8.0.9/24","MacAddress":"02:00:00:00:00:01"}}`},
	{"NetworkDriver.EndpointOperInfo", `{` + ids + `}`},
	{"NetworkDriver.DeleteEndpoint", `{` + ids + `}`},
	{"NetworkDriver.Join", `{` + ids + `,"SandboxKey":"/var/run/docker/netns/1"}`},
	{"NetworkDriver.Leave", `{` + ids + `}`},
	{"NetworkDriver.ProgramExternalConnectivity", `{` + ids + `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080,"HostPortEnd":8090,"HostIP":"::1"}]}}`},
	{"NetworkDriver.RevokeExternalConnectivity", `{` + ids + `}`},
	{"NetworkDriver.GwAllocCheck", `{"Options":{"com.docker.network.generic":{"seine.driver":"macvlan"}}}`},
	{"NetworkDriver.AllocateNetwork", `{}`},
	{"NetworkDriver.FreeNetwork", `{}`},
	{"IpamDriver.RequestPool", `{"AddressSpace":"seine","Pool":"10.6.0.0/24","SubPool":"10.6.0.128/25","V6":false}`},
	{"IpamDriver.ReleasePool", `{"PoolID":"POOL"}`},
	{"IpamDriver.RequestAddress", `{"PoolID":"POOL","Address":"10.5.0.3","Options":{"RequestAddressType":"com.docker.network.gateway"}}`},
	{"IpamDriver.ReleaseAddress", `{"PoolID":"POOL","Address":"10.5.0.2"}`},
}

// victim has something of everything. It gives the identity of its pool.
func victim(t *testing.T) (*desk, string) {
	d := newDesk(t)
	p := d.ok("IpamDriver.RequestPool", `{"Pool":"10.5.0.0/24"}`)["PoolID"].(string)
	d.ok("IpamDriver.RequestAddress", `{"PoolID":%q,"Address":"10.5.0.2"}`, p)
	d.network(netID, "10.8.0.0/24", "")
	d.ok("NetworkDriver.CreateEndpoint", `{`+ids+`,"Interface":{"Address":"10.8.0.7/24"}}`)
	return d, p
}

// TestHostile: bodies that nobody sends by mistake get an error, and change nothing.
func TestHostile(t *testing.T) {
	d, pool := victim(t)
	before := d.state()
	for _, c := range calls {
		good := strings.ReplaceAll(c.body, "POOL", pool)
		var zipped bytes.Buffer
		z := gzip.NewWriter(&zipped)
		_, _ = z.Write([]byte(good))
		z.Close()
		for what, body := range map[string]string{
			"empty":           "",
			"blank":           " \n",
			"no JSON":         "x",
			"cut":             good[:len(good)-1],
			"more":            good + good,
			"an array":        "[" + good + "]",
			"a text":          `"x"`,
			"a number":        "1",
			"deep arrays":     strings.Repeat("[", 1<<19),
			"deep objects":    strings.Repeat(`{"a":`, 100000),
			"deep and whole":  `{"Options":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + "}",
			"a key twice":     `{"NetworkID":"x",` + good[1:len(good)-1] + `,"NetworkID":"` + netID + `"}`,
			"a key twice, in": `{"Options":{"a":"b","a":"c"}}`,
			"cases":           `{"networkid":"x","NetworkID":"` + netID + `"}`,
			"no UTF-8":        strings.Replace(good, `{`, "{\"x\":\"\xff\xfe\",", 1),
			"zipped":          zipped.String(),
			"large":           `{"x":"` + strings.Repeat("x", 1<<20) + `"}`,
		} {
			if _, err := d.ask(c.name, body); err == nil {
				t.Errorf("%s: %s is accepted", c.name, what)
			}
		}
	}
	for _, body := range []string{`{"NetworkID":1}`, `{"NetworkID":{}}`, `{"NetworkID":"` + netID + `","EndpointID":[]}`, `{"NetworkID":"` + netID + `","Options":"x"}`,
		`{` + ids + `,"Interface":"x"}`, `{` + ids + `,"Options":{"com.docker.network.portmap":{}}}`, `{` + ids + `,"Options":{"com.docker.network.portmap":[{"Proto":"tcp"}]}}`,
		`{` + ids + `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":-1}]}}`, `{` + ids + `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":65536}]}}`} {
		for _, name := range []string{"CreateEndpoint", "Join", "ProgramExternalConnectivity"} {
			if _, err := d.ask("NetworkDriver."+name, body); err == nil {
				t.Errorf("%s: %s is accepted", name, body)
			}
		}
	}
	if now := d.state(); now != before {
		t.Errorf("changed:\n%s\nwas:\n%s", now, before)
	}
}

// TestHostileConnections: what holds a connection open or is no call at all is answered or cut off, while others are
// served.
func TestHostileConnections(t *testing.T) {
	d, _ := victim(t)
	before := d.state()
	path := filepath.Join(t.TempDir(), "s")
	l, err := httpdoor.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- httpdoor.ServeHandler(ctx, l, d.door, slog.New(slog.NewTextHandler(io.Discard, nil))) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	status := func(method, name string, body io.Reader) int {
		t.Helper()
		req, err := http.NewRequest(method, "http://x/"+name, body)
		if err != nil {
			t.Fatal(err)
		}
		a, err := client.Do(req)
		if err != nil {
			return 0
		}
		defer a.Body.Close()
		var out map[string]string
		if a.StatusCode == http.StatusInternalServerError && (json.NewDecoder(a.Body).Decode(&out) != nil || out["Err"] == "" || out["Err"] != out["Error"]) {
			t.Errorf("%s %s: %v", method, name, out)
		}
		return a.StatusCode
	}
	const remove = "NetworkDriver.DeleteNetwork"
	good := `{"NetworkID":"` + netID + `"}`
	for _, method := range []string{"GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"} {
		if got := status(method, remove, strings.NewReader(good)); got != http.StatusMethodNotAllowed {
			t.Errorf("%s: status %d", method, got)
		}
	}
	for _, name := range []string{"", "NetworkDriver.NoSuch", remove + "/", "networkdriver.deletenetwork"} {
		if got := status("POST", name, strings.NewReader(good)); got != http.StatusNotFound {
			t.Errorf("%q: status %d", name, got)
		}
	}
	if got := status("POST", remove, endless{}); got != http.StatusInternalServerError && got != 0 { // chunks without an end
		t.Errorf("an endless body: status %d", got)
	}

	// A body that stops in the midst: while it is waited for, others are answered; then it gets an error.
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start := time.Now()
	if _, err := fmt.Fprintf(c, "POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", remove); err != nil {
		t.Fatal(err)
	}
	if got := status("POST", "NetworkDriver.EndpointOperInfo", strings.NewReader(`{`+ids+`}`)); got != http.StatusOK {
		t.Errorf("beside it: status %d", got)
	}
	_ = c.SetReadDeadline(time.Now().Add(15 * time.Second))
	answer, _ := io.ReadAll(c)
	if took := time.Since(start); !strings.Contains(string(answer), "500 Internal") || took > 12*time.Second {
		t.Errorf("after %s: %q", took, answer)
	}
	if now := d.state(); now != before {
		t.Errorf("changed:\n%s\nwas:\n%s", now, before)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

// FuzzCall: whatever a call says, the door answers in Docker's words and does not fall over, and what is refused has
// changed nothing.
func FuzzCall(f *testing.F) {
	for i, c := range calls {
		f.Add(byte(i), c.body)
	}
	f.Fuzz(func(t *testing.T, pick byte, body string) {
		d, pool := victim(t)
		before := d.state()
		if _, err := d.ask(calls[int(pick)%len(calls)].name, strings.ReplaceAll(body, "POOL", pool)); err != nil {
			if now := d.state(); now != before {
				t.Errorf("refused (%v), but changed:\n%s\nwas:\n%s", err, now, before)
			}
		}
	})
}

// FuzzCalls: whatever comes in a row, each line for the call that its first byte names, leaves the machine as it is
// wanted, and after it everything can be removed. A line may be about what one before it made.
func FuzzCalls(f *testing.F) {
	var all strings.Builder
	for i, c := range calls {
		fmt.Fprintf(&all, "%c%s\n", 'a'+i, strings.ReplaceAll(strings.ReplaceAll(c.body, "\n", ""), "\t", ""))
	}
	f.Add(all.String())
	f.Add("m{}\no{\"PoolID\":\"POOL\"}\nb{}\nh{" + ids + "}\nf{" + ids + "}")
	f.Fuzz(func(t *testing.T, lines string) {
		d, pool := victim(t)
		n := 0
		for line := range strings.Lines(lines) {
			if n++; n > 40 || len(line) < 2 {
				continue
			}
			out, err := d.ask(calls[int(line[0]-'a')%len(calls)].name, strings.ReplaceAll(line[1:], "POOL", pool))
			if id, ok := out["PoolID"].(string); ok && err == nil {
				pool = id
			}
		}
		if err := d.loop.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if plan, err := d.engine.Plan(t.Context(), ""); err != nil || len(plan.Changes) > 0 {
			t.Fatalf("damaged: %+v, %v", plan, err)
		}
		d.restart()
		nets, _ := d.engine.Networks(t.Context())
		for _, n := range nets {
			if id := n.Labels["docker.network"]; id != "" {
				d.ok("NetworkDriver.DeleteNetwork", `{"NetworkID":%q}`, id)
			}
		}
		if now := d.state(); strings.Contains(now, "docker.") || strings.Contains(now, "sv-") {
			t.Fatalf("left:\n%s", now)
		}
	})
}
