package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// plugin is what a plugin does for each verb. The request's configuration is valid as far as all plugins share it; each
// verb validates the rest before it changes anything.
type plugin interface {
	add(context.Context, *request) (*Result, error)
	del(context.Context, *request) error
	check(context.Context, *request) error
	gc(context.Context, *request) error
	status(context.Context, *request) error
}

// plugins are all plugins by the name that a configuration's "type" and the program's file carry. A new one is a file
// and a line here.
var plugins = map[string]plugin{
	"bandwidth":   bandwidth{},
	"bridge":      attacher{load: newBridge},
	"dummy":       attacher{load: newDummy, inner: kernel.Dummy},
	"firewall":    firewall{},
	"dhcp":        ipamPlugin{newDHCP},
	"flannel":     flannel{},
	"host-device": hostDevicePlugin{attacher{load: newHostDevice, inner: "device"}},
	"host-local":  ipamPlugin{newHostLocalPlugin},
	"ipvlan":      attacher{load: newIpvlan, inner: kernel.Ipvlan},
	"loopback":    loopback{},
	"macvlan":     attacher{load: newMacvlan, inner: kernel.Macvlan},
	"portmap":     portmap{},
	"ptp":         attacher{load: newPTP},
	"sbr":         sbr{},
	"seine":       seine{},
	"static":      ipamPlugin{newStatic},
	"tap":         attacher{load: newTap, inner: kernel.Tap},
	"tuning":      tuning{},
	"vlan":        attacher{load: newVLAN, inner: kernel.VLAN},
	"vrf":         vrf{},
}

// namesCommand, as first argument, has the program print the names that it can be called by, one on a line: what installs
// it asks.
const namesCommand = "plugins"

// Names gives the plugins that the program can be called as.
func Names() []string { return slices.Sorted(maps.Keys(plugins)) }

// Main runs the plugin that h's command line names for the verb that its environment names, and gives the exit status.
func Main(ctx context.Context, h *Host) int {
	name, p := pick(h.Args)
	verb := h.Getenv("CNI_COMMAND")
	if p == nil {
		if verb == "" && name == namesCommand {
			return h.out([]byte(strings.Join(Names(), "\n")), nil)
		}
		if verb == "" {
			fmt.Fprintf(h.Stderr, "%s: want to be called as one of: %s; or with one of these as first argument\n", name, strings.Join(Names(), ", "))
			return 1
		}
		errorf(CodeInternal, "plugin %q: is not part of this program; want to be called as one of %s", name, strings.Join(Names(), ", ")).print(h.Stdout, newest)
		return 1
	}
	switch verb {
	case "":
		// Programs look for the version in this line.
		fmt.Fprintf(h.Stderr, "CNI %s plugin %s\nCNI protocol versions supported: %s\n", name, release, strings.Join(versions, ", "))
		return 0
	case verbVersion:
		return h.out(json.MarshalIndent(map[string]any{"cniVersion": newest, "supportedVersions": versions}, "", "    "))
	}
	version := newest
	r, err := readRequest(h, verb)
	if r != nil && r.version != "" {
		version = r.version
	}
	var out []byte
	if err == nil {
		r.kernel = h.Kernel()
		out, err = run(ctx, p, r)
	}
	if err != nil {
		asError(err).print(h.Stdout, version)
		return 1
	}
	return h.out(out, nil)
}

func (h *Host) out(data []byte, err error) int {
	if err == nil && len(data) > 0 {
		_, err = h.Stdout.Write(append(data, '\n'))
	}
	if err != nil {
		fmt.Fprintln(h.Stderr, err)
		return 1
	}
	return 0
}

// pick finds the plugin by the name of the program or, for trying things out, by its first argument.
func pick(args []string) (string, plugin) {
	if len(args) == 0 {
		return "", nil
	}
	name := filepath.Base(args[0])
	if p := plugins[name]; p != nil || len(args) < 2 {
		return name, p
	}
	return args[1], plugins[args[1]]
}

func run(ctx context.Context, p plugin, r *request) ([]byte, error) {
	switch r.verb {
	case verbAdd:
		if r.prev != nil {
			// A chained plugin hands it on: what can't be written must be found before anything is changed.
			if _, err := r.prev.encode(r.version); err != nil {
				return nil, err
			}
		}
		res, err := p.add(ctx, r)
		if err != nil {
			return nil, err
		}
		return res.encode(r.version)
	case verbDel:
		return nil, p.del(ctx, r)
	case verbCheck:
		return nil, p.check(ctx, r)
	case verbGC:
		return nil, p.gc(ctx, r)
	}
	return nil, p.status(ctx, r)
}
