package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// firstPort is the first one published: below those that the kernel gives to clients.
const firstPort = 10000

// published measures published ports: one against many, from the machine and from its neighbour outside.
func (b *bench) published(ctx context.Context, match *regexp.Regexp) error {
	if !match.MatchString("published") {
		return nil
	}
	var one, all []*path
	for _, n := range []int{1, most(*ports)} {
		s, err := testkit.BuildSandbox()
		if err != nil {
			return err
		}
		defer s.Close()
		site := &path{name: "published ports", machine: s.Machine.NS, client: s.Outside.NS}
		if testkit.Lacks("bridge-netfilter") == nil {
			site.filter = filterOff
		}
		defer site.close()
		site.build = func(ctx context.Context, b *bench, p *path) error { return publish(ctx, b, p, n) }
		if err := site.set(ctx, b); err != nil {
			return err
		}
		host := s.Machine.V4
		if *ipv6 {
			host = s.Machine.V6
		}
		last := netip.AddrPortFrom(host, uint16(firstPort+n-1))
		name := fmt.Sprintf(", %d published", n)
		here := []*path{
			site.variant("machine to container, directly"+name, s.Machine.NS, site.target),
			site.variant("machine to itself"+name, s.Machine.NS, last),
			site.variant("neighbour to machine"+name, s.Outside.NS, last),
		}
		if n == 1 {
			one = here
		}
		all = append(all, here...)
	}
	fmt.Print("\npublished ports: ")
	if err := b.measure(ctx, all, []metric{requests, connecting}); err != nil {
		return err
	}
	reportPublished(os.Stdout, one, all[len(one):])
	return nil
}

// variant is a path to the same server from another client or to another address.
func (p *path) variant(name string, client *testkit.NS, target netip.AddrPort) *path {
	return &path{name: name, server: p.server, client: client, addr: p.addr, target: target, samples: map[metric][]result{}}
}

// publish attaches one container that has n published ports, all of which lead to the server.
func publish(ctx context.Context, b *bench, p *path, n int) error {
	// One family: every published port holds a socket per family, and machines limit their number.
	family := api.IPv4
	if *ipv6 {
		family = api.IPv6
	}
	c, err := b.daemon(ctx, p, api.Network{Driver: "bridge", Family: family})
	if err != nil {
		return err
	}
	list := make([]api.Port, n)
	for i := range list {
		list[i] = api.Port{HostPort: uint16(firstPort + i), ContainerPort: servicePort}
	}
	start := time.Now()
	if p.addr, err = attach(ctx, c, p.server, list); err != nil {
		return err
	}
	fmt.Printf("attached a container with %d published ports in %s\n", n, time.Since(start).Round(100*time.Microsecond))
	return nil
}

// most reduces a number of ports to what the machine allows, loudly.
func most(n int) int {
	const others = 500 // files that a daemon has open besides
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && uint64(n+others) > files.Max {
		warn("REDUCED from %d published ports: a process may open only %d files (ulimit -Hn)", n, files.Max)
		n = max(1, int(files.Max)-others)
	}
	if all := 1<<16 - firstPort; n > all {
		warn("REDUCED from %d published ports: there are only %d from %d on", n, all, firstPort)
		n = all
	}
	return n
}
