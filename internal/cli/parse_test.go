package cli

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
)

func TestParsePort(t *testing.T) {
	ip := netip.MustParseAddr
	for s, want := range map[string]api.Port{
		"8080:80":               {HostPort: 8080, ContainerPort: 80},
		"8080:80/tcp":           {Protocol: "tcp", HostPort: 8080, ContainerPort: 80},
		"1:65535/sctp":          {Protocol: "sctp", HostPort: 1, ContainerPort: 65535},
		"127.0.0.1:53:5353/udp": {Protocol: "udp", HostIP: ip("127.0.0.1"), HostPort: 53, ContainerPort: 5353},
		"0.0.0.0:1:2":           {HostIP: ip("0.0.0.0"), HostPort: 1, ContainerPort: 2},
		"[::1]:80:8080":         {HostIP: ip("::1"), HostPort: 80, ContainerPort: 8080},
		"[::]:1:2":              {HostIP: ip("::"), HostPort: 1, ContainerPort: 2},
	} {
		if got, err := parsePort(s); err != nil || got != want {
			t.Errorf("%s: %+v %v, want %+v", s, got, err, want)
		}
	}
	for s, message := range map[string]string{
		"":                     "port of the container",
		"80":                   "no port of the machine",
		"80:":                  "port of the container",
		":80":                  "port of the machine",
		"::80":                 "port of the machine",
		":80:80":               "empty address",
		"0:80":                 "port of the machine from",
		"80:0":                 "port of the container from",
		"65536:1":              "port of the machine from",
		"1:65536":              "port of the container from",
		"+1:1":                 "port of the machine from",
		"-1:1":                 "port of the machine from",
		" 1:1":                 "port of the machine from",
		"1:1/":                 "protocol",
		"1:1/TCP":              "protocol",
		"1:1/icmp":             "protocol",
		"1:1/tcp/udp":          "protocol",
		"a:1:1":                "address",
		"localhost:1:1":        "address",
		"1.2.3:1:1":            "address",
		"::1:80:80":            "without brackets",
		"[127.0.0.1]:80:80":    "address",
		"[::1:80:80":           "not closed",
		"::1]:80:80":           "address",
		"[]:80:80":             "address",
		"[fe80::1%eth0]:80:80": "address",
		"[::ffff:1.2.3.4]:1:1": "address",
		"[[::1]]:1:1":          "address",
	} {
		_, err := parsePort(s)
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.Invalid || e.Value != s || !strings.Contains(e.Message, message) {
			t.Errorf("%q: %v, want %s", s, err, message)
		}
	}
}

// FuzzPublish: no text makes the parser panic; what it takes the API takes too, and what it makes of that it reads back.
func FuzzPublish(f *testing.F) {
	for _, s := range []string{"8080:80", "127.0.0.1:1:2/udp", "[::1]:65535:1/sctp", "[fe80::1%x]:1:1", "::1:2:3", "1:2/tcp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePort(s)
		if err != nil {
			return
		}
		if err := (&api.Endpoint{Network: "n", Name: "e", Ports: []api.Port{p}}).Validate(); err != nil {
			t.Fatalf("%q → %+v: %v", s, p, err)
		}
		again, err := parsePort(p.String())
		p.Protocol, again.Protocol = p.ProtocolOrTCP(), again.ProtocolOrTCP()
		if err != nil || again != p {
			t.Fatalf("%q → %+v → %q → %+v %v", s, p, p.String(), again, err)
		}
	})
}

func TestRandomNames(t *testing.T) {
	for _, a := range adjectives {
		for _, n := range nouns {
			if err := (&api.Endpoint{Network: "n", Name: a + "-" + n}).Validate(); err != nil || len(a)+len(n) > 20 {
				t.Errorf("%s-%s: %v", a, n, err)
			}
		}
	}
	seen := map[string]bool{}
	for range 100 {
		seen[randomName()] = true
	}
	if len(seen) < 80 {
		t.Errorf("%d different names of 100", len(seen))
	}
}
