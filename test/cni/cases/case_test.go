package cases_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/seine-net/seine/internal/testkit"
)

// configuration is one of the collection: NAME.json, which a runtime would find in its directory, and NAME.meta.json.
type configuration struct {
	name  string
	fixed string                               // the text of both, in which a hardware address is one that somebody chose
	lists map[string]*libcni.NetworkConfigList // by the name that attachments call it; "" is the configuration itself
	meta
}

// meta says what the runtime does with a configuration and what is to be seen then.
type meta struct {
	Source string // who ships or documents such a configuration, or what it is about
	Notes  string
	// Needs are abilities of the kernel, as testkit names them, and dhcp-server (outside) and dhcp-daemon (the plugin's).
	Needs       []string
	Attachments []attachment
	Setup       []string          // shell commands on the machine, before anything else
	Files       map[string]string // on the machine, by path
	Probes      []probe
	// Expect says how ADD has to end with the reference, where that is not success: "error", or "any" for whatever it does.
	Expect struct {
		Add  string
		Code int
	}
	// ExtraNetworks are further configurations that attachments name.
	ExtraNetworks map[string]json.RawMessage
	// Steps are ADD, CHECK, DEL, DEL unless they are given: verbs for all attachments in turn (DEL backwards), "GC:NS" with
	// only the attachments of that container valid, and SNAP, which looks at what there is.
	Steps []string
}

// attachment is an ADD's arguments.
type attachment struct {
	NS      string // the container's name
	IfName  string
	Net     string // key in ExtraNetworks
	CNIArgs string
	CapArgs map[string]any
}

func (a attachment) String() string { return a.NS + "/" + a.IfName }

// id is the container's ID.
func (a attachment) id() string { return "id-" + a.NS }

const testdata = "testdata"

// configurations reads the collection.
func configurations(t *testing.T) []*configuration {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(testdata, "*.meta.json"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no configurations in %s: %v", testdata, err)
	}
	var all []*configuration
	for _, name := range names {
		c, err := readConfiguration(strings.TrimSuffix(filepath.Base(name), ".meta.json"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

func readConfiguration(name string) (*configuration, error) {
	c := &configuration{name: name, lists: map[string]*libcni.NetworkConfigList{}}
	conf, err := os.ReadFile(filepath.Join(testdata, name+".json"))
	if err != nil {
		return nil, err
	}
	about, err := os.ReadFile(filepath.Join(testdata, name+".meta.json"))
	if err != nil {
		return nil, err
	}
	strict := json.NewDecoder(bytes.NewReader(about))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&c.meta); err != nil {
		return nil, fmt.Errorf("%s.meta.json: %w", name, err)
	}
	c.fixed = string(conf) + string(about)
	if c.Steps == nil {
		c.Steps = []string{"ADD", "CHECK", "DEL", "DEL"}
	}
	texts := map[string]json.RawMessage{"": conf}
	for key, text := range c.ExtraNetworks {
		texts[key] = text
	}
	for key, text := range texts {
		if c.lists[key], err = readList(text); err != nil {
			return nil, fmt.Errorf("%s: network %q: %w", name, key, err)
		}
	}
	return c, nil
}

// readList takes both forms that operators have: a list, and a single plugin's configuration.
func readList(text []byte) (*libcni.NetworkConfigList, error) {
	var list struct {
		CNIVersion string            `json:"cniVersion"`
		Name       string            `json:"name"`
		Plugins    []json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	if list.Plugins == nil {
		list.Plugins = []json.RawMessage{text}
		var err error
		if text, err = json.Marshal(list); err != nil {
			return nil, err
		}
	}
	return libcni.NetworkConfFromBytes(text)
}

// plugins are the plugins that the configuration names itself, address plugins included.
func (c *configuration) plugins() map[string]bool {
	all := map[string]bool{}
	for _, list := range c.lists {
		for _, p := range list.Plugins {
			all[p.Network.Type] = true
			all[p.Network.IPAM.Type] = true
		}
	}
	delete(all, "")
	return all
}

// abilities are testkit's names for those words of Needs that are not about what the VM lab is for.
var abilities = map[string]string{"dhcp-server": "program:dnsmasq", "dhcp-daemon": "root", "bridge-netfilter": "bridge-netfilter"}

// lacks says what this machine does not have that the configuration needs; nil if it has everything.
func (c *configuration) lacks() error {
	for _, need := range c.Needs {
		ability := need
		if a := abilities[need]; a != "" {
			ability = a
		}
		if err := testkit.Lacks(ability); err != nil {
			return fmt.Errorf("needs %s: %w", need, err)
		}
	}
	return nil
}

// rare says whether the configuration needs an ability that kernels often lack; those are run in the VM lab.
func (c *configuration) rare() bool {
	return slices.ContainsFunc(c.Needs, func(need string) bool { return abilities[need] == "" })
}
