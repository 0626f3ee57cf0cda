// Command floor is started by the bench in the place of a chain of CNI plugins: one process that does their kernel
// operations and nothing else. See the package floor. Its arguments say all; without any it does nothing, which tells
// what starting a program costs.
//
//	floor ADD|DEL NETNS IFNAME HOST BRIDGE NUMBER PARTS ADDRESS/LENGTH GATEWAY
//
// PARTS are letters: m masquerading, p two published ports, f firewall, b bandwidth, - none of them.
package main

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/bench/internal/floor"
)

const (
	firstPort = 20000
	rate      = 125_000_000 // bytes per second
)

func main() {
	if len(os.Args) == 1 {
		return
	}
	if err := run(os.Args[1:]); err != nil {
		os.Stderr.WriteString("floor: " + err.Error() + "\n")
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 9 {
		return fmt.Errorf("%d arguments: want 9", len(args))
	}
	number, err := strconv.Atoi(args[5])
	if err != nil {
		return err
	}
	s := floor.Spec{Netns: args[1], IfName: args[2], Host: args[3], Bridge: args[4]}
	if s.IfName != "lo" {
		p, err := netip.ParsePrefix(args[7])
		if err != nil {
			return err
		}
		gw, err := netip.ParseAddr(args[8])
		if err != nil {
			return err
		}
		s.Addrs, s.Gateways = []netip.Prefix{p}, []netip.Addr{gw}
		for _, part := range strings.Trim(args[6], "-") {
			with(&s, part, p.Addr(), uint16(firstPort+2*number))
		}
	}
	if args[0] == "DEL" {
		return s.Del(&floor.Host{})
	}
	return s.Add(&floor.Host{})
}

// with adds a part of the chain to an attachment.
func with(s *floor.Spec, part rune, a netip.Addr, port uint16) {
	switch part {
	case 'm':
		s.Elements = append(s.Elements, floor.Address(floor.MasqueradeSet, a))
	case 'f':
		s.Elements = append(s.Elements, floor.Address(floor.FirewallSet, a))
	case 'p':
		s.Elements = append(s.Elements, floor.Port(unix.IPPROTO_TCP, port, netip.AddrPortFrom(a, 80)),
			floor.Port(unix.IPPROTO_UDP, port+1, netip.AddrPortFrom(a, 53)))
	case 'b':
		s.Rate = rate
	}
}
