// Package cni is the front door of the Container Network Interface: every plugin in one program that knows by the name
// it is called by which of them it is. It needs no daemon and keeps no store: what to make follows from the
// configuration, and what to remove from the configuration, the container and the interface name, plus whatever in the
// kernel is marked as that attachment's.
//
//	stdin, environment ─► request (validated) ─► plan: pure, per plugin ─► reconcile.Apply ─► result on stdout
//	                            │                      ▲
//	                            └─► address plugin ────┴── what the kernel holds of it already
//
// An interface plugin is a maker (attach.go has the verbs that all of them share), a chained plugin or an address plugin
// implements plugin itself; either is a file of its own and one line in the table in plugin.go.
//
// README.md is the manual: the keys of each plugin and where they differ from the reference plugins.
package cni
