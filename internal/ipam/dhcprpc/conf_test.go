package dhcprpc

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseConf(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		ipam, args string
		want       string // of describe, or what an error names, after "error"
	}{
		{`{}`, "", "/run/cni/dhcp.sock v4 request [3 1 6 15 119]"},
		{`{"daemonSocketPath": "/s", "priority": 7}`, "", "/s v4 request [3 1 6 15 119] priority 7"},
		{`{"priority": -1}`, "", "error ipam.priority -1 4294967295"},
		{`{"priority": "x"}`, "", "error priority"},
		{`{"families": ["6", "4"]}`, "", "/run/cni/dhcp.sock v4 v6 request [3 1 6 15 119]"},
		{`{"families": ["6"]}`, "", "/run/cni/dhcp.sock v6 request [3 1 6 15 119]"},
		{`{"families": []}`, "", "error ipam.families"},
		{`{"families": ["4", "5"]}`, "", "error ipam.families[1] 5"},
		{`{"request": [{"option": "interface-mtu"}, {"option": "routers"}, {"option": "224"}]}`, "", "/run/cni/dhcp.sock v4 request [26 3 224 1 6 15 119]"},
		{`{"request": [{"skipDefault": true}, {"option": "121"}]}`, "", "/run/cni/dhcp.sock v4 request [121]"},
		{`{"request": [{"skipDefault": true}]}`, "", "/run/cni/dhcp.sock v4"},
		{`{"request": [{"option": "colour"}]}`, "", "error ipam.request[0].option colour host-name"},
		{`{"request": [{"option": "0"}]}`, "", "error ipam.request[0].option"},
		{`{"request": [{"option": "255"}]}`, "", "error ipam.request[0].option"},
		{`{"request": [{"option": "256"}]}`, "", "error ipam.request[0].option 256"},
		{`{"provide": [{"option": "host-name", "value": "web"}]}`, "", "/run/cni/dhcp.sock v4 request [3 1 6 15 119] 12=web"},
		{`{"provide": [{"option": "12", "value": "web", "fromArg": "K8S_POD_NAME"}]}`, "A=b;K8S_POD_NAME=pod;C", "/run/cni/dhcp.sock v4 request [3 1 6 15 119] 12=pod"},
		{`{"provide": [{"option": "12", "value": "web", "fromArg": "K8S_POD_NAME"}]}`, "A=b", "/run/cni/dhcp.sock v4 request [3 1 6 15 119] 12=web"},
		{`{"provide": [{"option": "host-name", "fromArg": "NONE"}]}`, "", "/run/cni/dhcp.sock v4 request [3 1 6 15 119]"},
		{`{"provide": [{"option": "60", "value": "a"}, {"option": "60", "value": "b"}]}`, "", "/run/cni/dhcp.sock v4 request [3 1 6 15 119] 60=b"},
		{`{"provide": [{"option": "dhcp-client-identifier", "value": "me"}, {"option": "user-class", "value": "u"}]}`, "", "/run/cni/dhcp.sock v4 request [3 1 6 15 119] 61=me 77=u"},
		{`{"provide": [{"option": "dhcp-requested-address", "value": "10.0.0.9"}]}`, "", "/run/cni/dhcp.sock v4 request [3 1 6 15 119] 50=\n\x00\x00\t"},
		{`{"provide": [{"option": "50", "value": "fd00::1"}]}`, "", "error ipam.provide[0].value fd00::1"},
		{`{"provide": [{"option": "51", "value": "258"}]}`, "", "/run/cni/dhcp.sock v4 request [3 1 6 15 119] 51=\x00\x00\x01\x02"},
		{`{"provide": [{"option": "51", "value": "1h"}]}`, "", "error ipam.provide[0].value 1h seconds"},
		{`{"provide": [{"option": "12", "value": "` + long + `"}]}`, "", "error ipam.provide[0].value 256"},
		{`{"provide": [{"option": "12", "fromArg": "L"}]}`, "L=" + long, "error ipam.provide[0].value 256"},
		{`{"provide": [{"option": "53", "value": "x"}]}`, "", "error ipam.provide[0].option 53 protocol"},
		{`{"provide": [{"option": "54"}]}`, "", "error ipam.provide[0].option 54"},
		{`{"provide": [{"option": "55", "value": "x"}]}`, "", "error ipam.provide[0].option request"},
	} {
		conf, err := ParseConf([]byte(`{"name": "n", "ipam": `+c.ipam+`}`), c.args)
		if names, ok := strings.CutPrefix(c.want, "error "); ok {
			if err == nil {
				t.Errorf("%s: %s is taken", c.ipam, describe(conf))
				continue
			}
			for _, w := range strings.Fields(names) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%s: %v does not name %q", c.ipam, err, w)
				}
			}
			continue
		}
		if err != nil || describe(conf) != c.want || conf.Network != "n" {
			t.Errorf("%s %s: %q (%v), want %q", c.ipam, c.args, describe(conf), err, c.want)
		}
	}
	if _, err := ParseConf([]byte("{"), ""); err == nil {
		t.Error("half a configuration is taken")
	}
}

func describe(c *Conf) string {
	if c == nil {
		return "none"
	}
	s := c.Socket
	if c.V4 {
		s += " v4"
	}
	if c.V6 {
		s += " v6"
	}
	if len(c.Request) > 0 {
		s += fmt.Sprint(" request ", c.Request)
	}
	for _, o := range c.Provide {
		s += fmt.Sprintf(" %d=%s", o.Code, o.Value)
	}
	if c.Priority != 0 {
		s += fmt.Sprint(" priority ", c.Priority)
	}
	return s
}

func FuzzConf(f *testing.F) {
	f.Add(`{"name": "n", "ipam": {"provide": [{"option": "12", "fromArg": "A"}], "request": [{"option": "3"}], "families": ["6"]}}`, "A=b")
	f.Fuzz(func(t *testing.T, conf, args string) {
		c, err := ParseConf([]byte(conf), args)
		if err != nil {
			return
		}
		if !c.V4 && !c.V6 || c.Socket == "" {
			t.Fatalf("%+v", c)
		}
		for _, o := range c.Provide {
			if len(o.Value) == 0 || len(o.Value) > 255 || o.Code == 0 || o.Code == 53 || o.Code == 255 {
				t.Fatalf("%+v", c)
			}
		}
	})
}
