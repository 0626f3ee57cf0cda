// Package vm shows that a kernel has the abilities which drivers, fabrics and services build on and which not every
// machine's kernel has: kinds of links, VLAN filtering, netem, IPVS, Open vSwitch, flow tables. Its tests run in the VM
// lab (make vm), where a missing ability is a failure; on any other machine it is a skip that names the ability.
package vm
