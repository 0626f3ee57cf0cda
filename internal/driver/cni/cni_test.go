package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// folder has plugins that are scripts, and configurations.
func folder(t *testing.T, files map[string]string) string {
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// recorder is a plugin that writes down what it is told, and prints what the file NAME.VERB has.
const recorder = `#!/bin/sh
me=$(basename "$0")
dir=$(dirname "$0")
{ echo "$me $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_PATH"; cat; echo; } >> "$dir/log"
cat "$dir/$me.$CNI_COMMAND" 2>/dev/null || true
[ ! -e "$dir/$me.fails" ]
`

// setUp makes a network and gives its note.
func setUp(t *testing.T, options map[string]string) ([]byte, error) {
	t.Helper()
	var note []byte
	err := New().Setup(t.Context(), &api.Network{Name: "net", Driver: "cni", Options: options}, driver.Call{ID: "n", Keep: keep(&note)})
	return note, err
}

func keep(into *[]byte) func(any) error {
	return func(v any) (err error) {
		*into, err = json.Marshal(v)
		return err
	}
}

func attach(t *testing.T, network []byte, ep api.Endpoint) (api.Endpoint, []byte, error) {
	t.Helper()
	var note []byte
	ep.Network, ep.Name, ep.Plugin = "net", "web", &api.Plugin{ID: "id"}
	ep.Sandbox = api.Sandbox{Netns: "/proc/self/ns/net", Interface: "eth0"}
	err := New().Attach(t.Context(), api.Network{Name: "net"}, network, &ep, driver.Call{ID: "id", Keep: keep(&note)})
	return ep, note, err
}

func TestChain(t *testing.T) {
	dir := folder(t, map[string]string{"one": recorder, "two": recorder,
		"one.ADD": `{"cniVersion": "1.0.0", "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}],
			"ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 1}, {"address": "10.1.0.1/24", "interface": 0}, {"address": "fd00::5/64", "interface": 1}],
			"routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.7"}], "dns": {"nameservers": ["10.1.0.1", "no address"]}}`,
		"c.conflist": `{"cniVersion": "1.0.0", "name": "chain", "plugins": [{"type": "one", "key": {"a": 1}, "capabilities": {"mac": true, "aliases": true}},
			{"type": "two", "capabilities": {"portMappings": true}}]}`})
	net, err := setUp(t, map[string]string{OptConfig: dir + "/c.conflist", OptPath: "/nowhere:" + dir})
	if err != nil {
		t.Fatal(err)
	}
	if log, _ := os.ReadFile(dir + "/log"); len(log) > 0 {
		t.Errorf("making a network ran a plugin: %s", log)
	}
	os.Remove(dir + "/c.conflist") // what was read is kept
	ep, note, err := attach(t, net, api.Endpoint{MAC: "02:00:00:00:00:01", Aliases: []string{"www"},
		Ports: []api.Port{{HostPort: 8080, ContainerPort: 80, HostIP: netip.MustParseAddr("192.0.2.2")}}})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(ep.Addresses, ep.Plugin.Prefixes, ep.Plugin.Gateways, ep.Plugin.Routes, ep.Plugin.DNS)
	if want := "[10.1.0.5 fd00::5] [10.1.0.5/24 fd00::5/64] [10.1.0.1] [{0.0.0.0/0 invalid IP} {10.9.0.0/16 10.1.0.7}] [10.1.0.1]"; got != want {
		t.Errorf("given\n%s, want\n%s", got, want)
	}
	if err := New().Check(t.Context(), note); err != nil {
		t.Error(err)
	}
	if err := New().Detach(t.Context(), []byte(strings.Replace(string(note), "/proc/self/ns/net", "/nowhere/x", 1)), nil); err != nil {
		t.Error(err)
	}
	raw, _ := os.ReadFile(dir + "/log")
	log := string(raw)
	prev := strings.Count(log, `"prevResult"`)
	for _, want := range []string{
		"one ADD id /proc/self/ns/net eth0 /nowhere:" + dir + "\n" +
			`{"cniVersion":"1.0.0","key":{"a":1},"name":"chain","runtimeConfig":{"aliases":["web","www"],"mac":"02:00:00:00:00:01"},"type":"one"}`,
		`"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.2"}]},"type":"two"}` + "\none CHECK id",
		"two DEL id  eth0",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the plugins were told\n%s\nwhich lacks\n%s", log, want)
		}
	}
	if prev != 5 || strings.Index(log, "two DEL") > strings.Index(log, "one DEL") {
		t.Errorf("%d calls had a result of before, want all 5 but the first ADD; DEL goes backwards:\n%s", prev, log)
	}
}

func TestFailures(t *testing.T) {
	config := `{"cniVersion": "%s", "name": "c", "plugins": [{"type": "p"}]}`
	for name, c := range map[string]struct{ script, want string }{
		"its own error":      {"#!/bin/sh\necho '{\"code\": 11, \"msg\": \"try later\", \"details\": \"busy\"}'\nexit 1\n", "plugin p: ADD: try later; busy (code 11)"},
		"stderr":             {"#!/bin/sh\necho out of luck >&2\nexit 3\n", "exit status 3: out of luck"},
		"no JSON":            {"#!/bin/sh\necho hello\n", `printed no JSON: "hello"`},
		"hangs":              {"#!/bin/sh\nsleep 60 &\nwait\n", "did not end within 1s"},
		"too much":           {"#!/bin/sh\nhead -c 2000000 /dev/zero\n", "printed more than"},
		"no result":          {"#!/bin/sh\necho '[1]'\n", "not as specified"},
		"interface not here": {"#!/bin/sh\necho '{\"ips\": [{\"address\": \"10.1.0.5/24\", \"interface\": 7}]}'\n", "interfaces[7]"},
		"negative":           {"#!/bin/sh\necho '{\"ips\": [{\"address\": \"10.1.0.5/24\", \"interface\": -1}]}'\n", "interfaces[-1]"},
		"no address":         {"#!/bin/sh\necho '{\"ips\": [{\"address\": \"10.1.0.5\"}]}'\n", "not as specified"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, map[string]string{"p": c.script, "c.conf": fmt.Sprintf(config, "1.0.0")})
			net, err := setUp(t, map[string]string{OptConfig: dir + "/c.conf", OptPath: dir, OptTimeout: "1s"})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			_, note, err := attach(t, net, api.Endpoint{})
			if err == nil || !strings.Contains(err.Error(), c.want) || time.Since(start) > 10*time.Second {
				t.Errorf("after %s: %v, want %q", time.Since(start), err, c.want)
			}
			if len(note) == 0 {
				t.Error("there is nothing to call DEL with")
			}
		})
	}
}

func TestOldResult(t *testing.T) {
	dir := folder(t, map[string]string{"p": recorder, "p.ADD": `{"ip4": {"ip": "10.1.0.5/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]}, "ip6": {"ip": "fd00::5/64"}}`,
		"c.conf": `{"name": "c", "type": "p"}`})
	net, err := setUp(t, map[string]string{OptNetwork: "c", OptConfDir: dir, OptPath: dir})
	if err != nil {
		t.Fatal(err)
	}
	ep, note, err := attach(t, net, api.Endpoint{})
	if err != nil || fmt.Sprint(ep.Addresses, ep.Plugin.Gateways, len(ep.Plugin.Routes)) != "[10.1.0.5 fd00::5] [10.1.0.1] 1" {
		t.Errorf("%+v, %v", ep.Plugin, err)
	}
	if err := New().Check(t.Context(), note); err != nil {
		t.Errorf("CHECK is not of this version: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	dir := folder(t, map[string]string{"p": recorder, "noexec.conf": `{"name": "c", "type": "noexec"}`, "good.conf": `{"name": "c", "type": "p"}`,
		"path.conf": `{"name": "c", "type": "../p"}`, "empty.conf": `{"name": "c", "plugins": []}`, "new.conf": `{"cniVersion": "9.0.0", "name": "c", "type": "p"}`,
		"name.conf": `{"name": "../c", "type": "p"}`, "bad.conf": `{`})
	for name, c := range map[string]struct {
		options map[string]string
		field   string
	}{
		"nothing":    {map[string]string{}, "options"},
		"both":       {map[string]string{OptConfig: dir + "/good.conf", OptNetwork: "c"}, "options"},
		"relative":   {map[string]string{OptConfig: "good.conf"}, "options." + OptConfig},
		"no file":    {map[string]string{OptConfig: dir + "/nosuch"}, "options." + OptConfig},
		"folder":     {map[string]string{OptConfig: dir}, "options." + OptConfig},
		"no program": {map[string]string{OptConfig: dir + "/noexec.conf"}, "options." + OptConfig},
		"path":       {map[string]string{OptConfig: dir + "/path.conf"}, "options." + OptConfig},
		"no plugins": {map[string]string{OptConfig: dir + "/empty.conf"}, "options." + OptConfig},
		"version":    {map[string]string{OptConfig: dir + "/new.conf"}, "options." + OptConfig},
		"name":       {map[string]string{OptConfig: dir + "/name.conf"}, "options." + OptConfig},
		"JSON":       {map[string]string{OptConfig: dir + "/bad.conf"}, "options." + OptConfig},
		"network":    {map[string]string{OptNetwork: "nosuch", OptConfDir: dir}, "options." + OptNetwork},
		"no folder":  {map[string]string{OptNetwork: "c", OptConfDir: dir + "/nosuch"}, "options." + OptConfDir},
		"plugins":    {map[string]string{OptConfig: dir + "/good.conf", OptPath: "bin"}, "options." + OptPath},
		"time":       {map[string]string{OptConfig: dir + "/good.conf", OptTimeout: "0s"}, "options." + OptTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			if c.options[OptPath] == "" {
				c.options[OptPath] = dir
			}
			_, err := setUp(t, c.options)
			e, ok := err.(*api.Error)
			if !ok || e.Field != c.field || e.Want == "" {
				t.Errorf("error is %v, want one about %q", err, c.field)
			}
		})
	}
}

func TestWhatNoPluginTakesIsRefused(t *testing.T) {
	dir := folder(t, map[string]string{"p": recorder, "c.conf": `{"name": "c", "type": "p"}`})
	net, err := setUp(t, map[string]string{OptConfig: dir + "/c.conf", OptPath: dir})
	if err != nil {
		t.Fatal(err)
	}
	for field, ep := range map[string]api.Endpoint{
		"ports": {Ports: []api.Port{{HostPort: 1, ContainerPort: 1}}}, "mac": {MAC: "02:00:00:00:00:01"},
		"addresses": {Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.5")}},
	} {
		_, note, err := attach(t, net, ep)
		if err == nil || !strings.Contains(err.Error(), field) || note != nil {
			t.Errorf("%s: %v, note %s", field, err, note)
		}
	}
	if log, _ := os.ReadFile(dir + "/log"); len(log) > 0 {
		t.Errorf("a plugin was run: %s", log)
	}
}

// FuzzResult has plugins print anything: what is taken is valid, nothing panics.
func FuzzResult(f *testing.F) {
	f.Add(`{"ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 0}], "interfaces": [{"name": "eth0", "sandbox": "x"}]}`)
	f.Add(`{"ip4": {"ip": "10.1.0.5/24"}, "ips": null, "dns": {"nameservers": [""]}}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, text string) {
		ep := api.Endpoint{Sandbox: api.Sandbox{Interface: "eth0"}, Plugin: &api.Plugin{}}
		if err := given(json.RawMessage(text), &ep); err != nil {
			return
		}
		if len(ep.Addresses) > 2 {
			t.Errorf("%q gives %v", text, ep.Addresses)
		}
	})
}

// FuzzConfig has anything in a file.
func FuzzConfig(f *testing.F) {
	f.Add(`{"cniVersion": "1.0.0", "name": "c", "plugins": [{"type": "p", "capabilities": {"mac": true}}]}`)
	f.Add(`{"cniVersions": ["0.4.0", "1.1.0"], "name": "c", "type": "p"}`)
	f.Add(`{"name": "c", "plugins": [null, {}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		l, err := parse([]byte(text))
		if err != nil {
			return
		}
		for i, p := range l.Plugins {
			if strings.ContainsAny(p.kind+l.name, "/\x00") {
				t.Errorf("%q leads to the path %q", text, p.kind)
			}
			if _, err := l.stdin(i, nil, nil); err != nil {
				t.Error(err)
			}
		}
	})
}

var _ driver.Checker = New()
var _ driver.Attacher = New()
