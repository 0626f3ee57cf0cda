package cni

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fuzzed are the plugins that configurations are made up for: all of them.
var fuzzed = func() (out []struct{ plugin, conf string }) {
	for _, p := range pluginKeys {
		out = append(out, struct{ plugin, conf string }{p.plugin, p.conf})
	}
	return out
}()

func FuzzConfig(f *testing.F) {
	for i, c := range fuzzed {
		f.Add(c.conf, byte(i))
	}
	// What distributions and tools write.
	files, err := filepath.Glob("../../../test/cni/cases/testdata/*.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("there are no cases (%v)", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for i, conf := range pluginsOf(text) {
			for pick, p := range fuzzed {
				if p.plugin == conf.kind || p.plugin == conf.ipam || i == 0 && pick == len(text)%len(fuzzed) {
					f.Add(conf.text, byte(pick))
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, conf string, pick byte) { fuzz(t, conf, pick, "") })
}

// plugged is a plugin's part of a list, as a runtime hands it over.
type plugged struct{ kind, ipam, text string }

// pluginsOf gives the plugins of a list, or of several lists by their names.
func pluginsOf(text []byte) (out []plugged) {
	var conf map[string]any
	if json.Unmarshal(text, &conf) != nil {
		return nil
	}
	list, _ := conf["plugins"].([]any)
	for _, sub := range conf {
		if raw, err := json.Marshal(sub); err == nil && list == nil {
			out = append(out, pluginsOf(raw)...)
		}
	}
	for _, p := range list {
		c, ok := p.(map[string]any)
		if !ok {
			continue
		}
		c["name"], c["cniVersion"] = conf["name"], conf["cniVersion"]
		ipam, _ := c["ipam"].(map[string]any)
		raw, _ := json.Marshal(c)
		kind, _ := c["type"].(string)
		of, _ := ipam["type"].(string)
		out = append(out, plugged{kind, of, string(raw)})
	}
	return out
}

func FuzzPrevResult(f *testing.F) {
	f.Add(`{"cniVersion": "1.1.0", "interfaces": [{"name": "br1"}], "ips": [{"address": "10.1.0.2/24", "interface": 3}]}`, byte(3))
	f.Add(`{"ip4": {"ip": "10.1.0.2/24", "routes": [{"dst": "0.0.0.0/0"}]}}`, byte(1))
	f.Fuzz(func(t *testing.T, prev string, pick byte) {
		var v any
		if json.Unmarshal([]byte(prev), &v) != nil {
			return
		}
		fuzz(t, with(fuzzed[int(pick)%len(fuzzed)].conf, "prevResult", v), pick, "")
	})
}

func FuzzArgs(f *testing.F) {
	for _, s := range []string{"IgnoreUnknown=1;A=b", "IP=10.1.0.9;MAC=02:00:00:00:00:01", "GATEWAY=;;=", "IP=::ffff:10.1.0.3/120,fd00:1::9"} {
		f.Add(s, byte(0))
	}
	f.Fuzz(func(t *testing.T, args string, pick byte) { fuzz(t, fuzzed[int(pick)%len(fuzzed)].conf, pick, args) })
}

// fuzz calls a plugin: it must not panic, print an error of the specification where it fails, and then have changed
// nothing.
func fuzz(t *testing.T, conf string, pick byte, args string) {
	conf, ok := fenced(conf)
	if !ok {
		return
	}
	n := newNode(t)
	plugin := fuzzed[int(pick)%len(fuzzed)].plugin
	switch plugin {
	case "tuning", "sbr", "vrf":
		n.inside("eth0", 1)
	case "flannel":
		n.flanneld(subnet1)
	}
	for _, verb := range []string{"ADD", "CHECK", "DEL", "GC", "STATUS"} {
		before := n.kernel.Snapshot()
		out, code := n.call(plugin, verb, conf, "CNI_ARGS="+args)
		if code == 0 {
			continue
		}
		var e struct{ Code Code }
		if err := json.Unmarshal([]byte(out), &e); err != nil || e.Code == 0 {
			t.Fatalf("%s %s: %q is no error of the specification", plugin, verb, out)
		}
		if d := before.Diff(n.kernel.Snapshot()); d != "" && (e.Code == CodeConfig || e.Code == CodeDecode || e.Code == CodeEnvironment) {
			t.Fatalf("%s %s: %s, but changed\n%s", plugin, verb, out, d)
		}
	}
}

// fenced keeps a configuration to files where the test ends them: folders and sockets get names there in every object, as
// any may be another plugin's. What is no object goes as it is: no plugin gets to opening a file.
func fenced(conf string) (string, bool) {
	var c map[string]any
	if json.Unmarshal([]byte(conf), &c) != nil || c == nil {
		return conf, true
	}
	have := false
	for k := range c {
		if _, object := c[k].(map[string]any); strings.EqualFold(k, "ipam") {
			if have = true; !object {
				return "", false // the default folders would be the machine's
			}
		}
	}
	if !have {
		c["ipam"] = map[string]any{}
	}
	fence(c)
	out, err := json.Marshal(c)
	return string(out), err == nil
}

// places are the keys that name a file.
var places = map[string]any{"dataDir": "DATA/kept", "subnetFile": "DATA/subnet.env", "daemonSocketPath": "DATA/none", "socket": "DATA/none"}

func fence(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, sub := range v {
			if strings.EqualFold(k, "resolvConf") {
				v[k] = "DATA/none"
			}
			for place := range places {
				if strings.EqualFold(k, place) {
					delete(v, k)
				}
			}
			if !strings.EqualFold(k, "prevResult") && !strings.EqualFold(k, "sysctl") {
				fence(sub)
			}
		}
		maps.Copy(v, places)
	case []any:
		for _, sub := range v {
			fence(sub)
		}
	}
}
