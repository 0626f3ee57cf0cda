package main

import (
	"encoding/json"
	"slices"
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
	// Goal is the ratio to the reference that is wanted of ADD and DEL, for people.
	Goal string
}

func hostLocal() object {
	return object{"type": "host-local", "ranges": [][]object{{{"subnet": "10.88.0.0/16"}}}, "routes": []object{{"dst": "0.0.0.0/0"}}}
}

func bridge(masq bool) object {
	return object{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": masq, "ipam": hostLocal()}
}

var chains = []chain{
	{Name: "loopback", IfName: "lo", Goal: "1.00/1.00", Plugins: []object{{"type": "loopback"}}},
	{Name: "ptp", IfName: "eth0", Goal: "0.60/0.70", Plugins: []object{{"type": "ptp", "ipam": hostLocal()}}},
	{Name: "bridge", IfName: "eth0", Goal: "0.60/0.70", Plugins: []object{bridge(false)}},
	{Name: "bridge+ipMasq", IfName: "eth0", Goal: "0.25/0.30", Plugins: []object{bridge(true)}},
	{Name: "bridge+ipMasq+ports", IfName: "eth0", Goal: "0.12/0.17", Plugins: []object{bridge(true), portmap}},
	{Name: "+firewall", IfName: "eth0", Goal: "0.12/0.17", Plugins: []object{bridge(true), portmap, {"type": "firewall"}}},
	{Name: "+firewall+bandwidth", IfName: "eth0", Goal: "0.15/0.20", Plugins: []object{bridge(true), portmap, {"type": "firewall"}, bandwidth}},
}

var (
	portmap   = object{"type": "portmap", "capabilities": object{"portMappings": true}}
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

// iptables reports whether the reference plugins call it.
func (c chain) iptables() bool {
	return slices.ContainsFunc(c.Plugins, func(p object) bool { return p["ipMasq"] == true || p["type"] == "portmap" })
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
