package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/bench/internal/rig"
	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/testkit"
)

// network is the name of the one network of a daemon.
const network = "bench"

// seine runs a seined on the path's machine and attaches both containers to a network of a driver.
func seine(driver string) func(context.Context, *bench, *path) error {
	return func(ctx context.Context, b *bench, p *path) error {
		c, err := b.daemon(ctx, p, api.Network{Driver: driver})
		if err != nil {
			return err
		}
		for _, n := range []*testkit.NS{p.client, p.server} {
			if p.addr, err = attach(ctx, c, n, nil); err != nil {
				return err
			}
		}
		return nil
	}
}

// daemon starts a seined and makes the network on it.
func (b *bench) daemon(ctx context.Context, p *path, n api.Network) (*client.Client, error) {
	dir, err := os.MkdirTemp(b.dir, "seined")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "seine.sock")
	cmd := exec.Command(filepath.Join(*bin, "seined"), "--state", filepath.Join(dir, "state.db"), "--socket", socket, "--docker-socket", "", "--quiet", "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := p.machine.Start(cmd); err != nil {
		return nil, fmt.Errorf("seined: %w (make build)", err)
	}
	p.onClose(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	})
	c, err := client.New(socket)
	if err != nil {
		return nil, err
	}
	p.onClose(c.Close)
	if err := rig.Ready(ctx, c, 20*time.Second); err != nil {
		return nil, err
	}
	n.Name = network
	_, err = c.PutNetwork(ctx, n, 0)
	return c, err
}

// attach attaches a namespace to the network and gives its address.
func attach(ctx context.Context, c *client.Client, n *testkit.NS, published []api.Port) (netip.Addr, error) {
	e, err := c.PutEndpoint(ctx, api.Endpoint{Network: network, Name: n.Name, Sandbox: api.Sandbox{Netns: n.Path()}, Ports: published}, 0)
	if err != nil {
		return netip.Addr{}, err
	}
	a := e.Address(!*ipv6)
	if !a.IsValid() {
		return a, fmt.Errorf("%s: has no address of the family", api.EndpointNoun(network, n.Name))
	}
	return a, nil
}
