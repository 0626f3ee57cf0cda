package main

import (
	"encoding/json"
	"net/netip"
	"strconv"
)

// object is a piece of JSON.
type object = map[string]any

// cniVersion is the newest that the plugins of Debian 12 know.
const cniVersion = "1.0.0"

// chain is a list of plugins, and what is wanted of it.
type chain struct {
	Name    string
	IfName  string
	Plugins []object
	// Goal is the ratio to the reference that is wanted of ADD and DEL.
	Goal [2]float64
	// Parts are the floor's letters for what the plugins do, see bench/cni/floor.
	Parts string
}

const bridgeName = "cni0"

// gateway is the address that host-local gives to the bridge.
var gateway = netip.MustParsePrefix("10.88.0.1/16")

func hostLocal() object {
	return object{"type": "host-local", "ranges": [][]object{{{"subnet": "10.88.0.0/16"}}}, "routes": []object{{"dst": "0.0.0.0/0"}}}
}

func bridge(masq bool) object {
	return object{"type": "bridge", "bridge": bridgeName, "isGateway": true, "ipMasq": masq, "ipam": hostLocal()}
}

var chains = []chain{
	{Name: "loopback", IfName: "lo", Goal: goal(1, 1), Parts: "-", Plugins: []object{{"type": "loopback"}}},
	{Name: "ptp", IfName: "eth0", Goal: goal(.6, .7), Parts: "-", Plugins: []object{{"type": "ptp", "ipam": hostLocal()}}},
	{Name: "bridge", IfName: "eth0", Goal: goal(.6, .7), Parts: "-", Plugins: []object{bridge(false)}},
	{Name: "bridge+ipMasq", IfName: "eth0", Goal: goal(.25, .3), Parts: "m", Plugins: []object{bridge(true)}},
	{Name: "+ports", IfName: "eth0", Goal: goal(.12, .17), Parts: "mp", Plugins: []object{bridge(true), portmap}},
	{Name: "+firewall", IfName: "eth0", Goal: goal(.12, .17), Parts: "mpf", Plugins: []object{bridge(true), portmap, firewall}},
	{Name: "+bandwidth", IfName: "eth0", Goal: goal(.15, .2), Parts: "mpfb", Plugins: []object{bridge(true), portmap, firewall, bandwidth}},
}

// goalAtOnce is that of the last chain, several of which are started at once.
var goalAtOnce = goal(.05, .03)

func goal(add, del float64) [2]float64 { return [2]float64{add, del} }

var (
	portmap   = object{"type": "portmap", "capabilities": object{"portMappings": true}}
	firewall  = object{"type": "firewall", "ingressPolicy": "same-bridge"}
	bandwidth = object{"type": "bandwidth", "capabilities": object{"bandwidth": true}}
)

// programs gives the names of all plugins that the chain needs.
func (c chain) programs() []string {
	var out []string
	for _, p := range c.Plugins {
		out = append(out, p["type"].(string))
		if ipam, ok := p["ipam"].(object); ok {
			out = append(out, ipam["type"].(string))
		}
	}
	return out
}

// bridged reports whether the chain begins with a bridge.
func (c chain) bridged() bool { return c.Plugins[0]["type"] == "bridge" }

// iptables reports whether the reference plugins call it.
func (c chain) iptables() bool { return c.Parts != "-" }

// floor gives the arguments of the floor's program for container i.
func (c chain) floor(verb, netns string, i int) []string {
	bridge := ""
	if c.bridged() {
		bridge = bridgeName
	}
	a := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, byte(1 + i>>8), byte(i)}), 16)
	return []string{verb, netns, c.IfName, "f" + strconv.Itoa(i), bridge, strconv.Itoa(i), c.Parts, a.String(), gateway.Addr().String()}
}

// stdin is what a runtime gives to a plugin for container i.
func (c chain) stdin(plugin object, i int, prev json.RawMessage) ([]byte, error) {
	conf := object{"cniVersion": cniVersion, "name": "bench"}
	for k, v := range plugin {
		conf[k] = v
	}
	if len(prev) > 0 {
		conf["prevResult"] = prev
	}
	if plugin["capabilities"] != nil {
		port := 20000 + 2*i
		// A runtime gives a plugin its own capabilities only; the others are not looked at.
		conf["runtimeConfig"] = object{"portMappings": []object{
			{"hostPort": port, "containerPort": 80, "protocol": "tcp"},
			{"hostPort": port + 1, "containerPort": 53, "protocol": "udp"},
		}, "bandwidth": object{"ingressRate": 1000000000, "ingressBurst": 1 << 30, "egressRate": 1000000000, "egressBurst": 1 << 30}}
	}
	return json.Marshal(conf)
}
