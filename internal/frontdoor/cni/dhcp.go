package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/seine-net/seine/internal/ipam/dhcprpc"
)

// dhcpIPAM is the dhcp address plugin. It asks a daemon, which keeps the leases: ours or the reference's.
type dhcpIPAM struct {
	r    *request
	conf *dhcprpc.Conf
	// netns is the absolute path, as the daemon has another working directory; "" where there is none.
	netns string
}

// How long the daemon may take. An ADD ends when the daemon gives up; this is for one that never does.
var dhcpPatience = map[string]time.Duration{verbAdd: 5 * time.Minute, verbDel: 30 * time.Second, verbCheck: 10 * time.Second,
	verbGC: time.Minute, verbStatus: 5 * time.Second}

func newDHCP(r *request) (ipam, error) {
	d := &dhcpIPAM{r: r, conf: &dhcprpc.Conf{Socket: dhcprpc.DefaultSocket}}
	if r.netns != "" {
		p, err := filepath.Abs(r.netns)
		if err != nil {
			return nil, errorf(CodeEnvironment, "CNI_NETNS %q: %w", r.netns, err)
		}
		d.netns = p
	}
	// For giving back, where the daemon listens is all that matters.
	var c struct {
		DaemonSocketPath string `json:"daemonSocketPath"`
	}
	err := decode(r.conf.IPAM, &c)
	if c.DaemonSocketPath != "" {
		d.conf.Socket = c.DaemonSocketPath
	}
	if r.verb == verbDel || r.verb == verbGC {
		err = lenient(err)
	}
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", "ipam", err)
	}
	if r.verb == verbDel || r.verb == verbGC {
		return d, nil
	}
	if d.conf, err = dhcprpc.ParseConf(r.stdin, r.host.Getenv("CNI_ARGS")); err != nil {
		return nil, dhcpConfError(err, r.stdin)
	}
	return d, nil
}

// dhcpConfError gives an error about a key's type the form that all plugins give it.
func dhcpConfError(err error, conf []byte) error {
	if t := (*json.UnmarshalTypeError)(nil); errors.As(err, &t) {
		return errorf(CodeDecode, "key %q: %s", keyOf(t.Field, nil), typeText(t, conf))
	}
	if e := asError(err); e.Code != CodeInternal {
		return err
	}
	return errorf(CodeDecode, "%w", err)
}

func (d *dhcpIPAM) asksOverLink() {}

func (d *dhcpIPAM) call(ctx context.Context, method string) (*dhcprpc.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, dhcpPatience[d.r.verb])
	defer cancel()
	res, err := dhcprpc.Call(ctx, d.conf.Socket, method, &dhcprpc.Args{ContainerID: d.r.containerID, Netns: d.netns, IfName: d.r.ifname,
		Args: d.r.host.Getenv("CNI_ARGS"), Path: d.r.path, StdinData: d.r.stdin})
	if err != nil {
		return nil, fmt.Errorf("dhcp: %w", err)
	}
	return res, nil
}

func (d *dhcpIPAM) add(ctx context.Context) (*Result, func(context.Context) error, error) {
	undo := func(ctx context.Context) error { return d.del(ctx) }
	res, err := d.call(ctx, dhcprpc.Allocate)
	if errors.Is(err, dhcprpc.ErrNoDaemon) {
		return nil, nil, errorf(CodeTryAgain, "%w; start seined, or the reference's dhcp daemon", err)
	}
	if err != nil {
		// It may have failed on the way back.
		return nil, nil, errors.Join(err, undo(context.WithoutCancel(ctx)))
	}
	out := &Result{DNS: DNS{Domain: res.DNS.Domain, Nameservers: res.DNS.Nameservers, Options: res.DNS.Options, Search: res.DNS.Search}}
	for _, ip := range res.IPs {
		out.IPs = append(out.IPs, IP{Address: ip.Address, Gateway: ip.Gateway})
	}
	for _, r := range res.Routes {
		out.Routes = append(out.Routes, Route{Dst: prefix{r.Dst}, GW: r.GW, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table, Scope: r.Scope})
	}
	if err := out.validate(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("dhcp: the daemon's answer: %w", err), undo(context.WithoutCancel(ctx)))
	}
	return out, undo, nil
}

// del asks the daemon to give the lease back. One that is not there can't; ours does when it comes up again and finds
// that the container is gone, and the reference's has forgotten the lease by then.
func (d *dhcpIPAM) del(ctx context.Context) error {
	_, err := d.call(ctx, dhcprpc.Release)
	if errors.Is(err, dhcprpc.ErrNoDaemon) {
		fmt.Fprintf(d.r.host.Stderr, "%v; the lease is not given back now\n", err)
		return nil
	}
	return err
}

// check holds the lease against the result. The reference's daemon has no question for that: with it, as with its own
// plugin, a lease that is missing is taken again.
func (d *dhcpIPAM) check(ctx context.Context) error {
	if err := d.r.needPrev(); err != nil {
		return err
	}
	res, err := d.call(ctx, dhcprpc.Check)
	if errors.Is(err, dhcprpc.ErrNoMethod) {
		res, err = d.call(ctx, dhcprpc.Allocate)
	}
	if err != nil {
		return err
	}
	have := d.r.prev.addrs()
	for _, ip := range res.IPs {
		if !slices.Contains(have, ip.Address.Addr()) {
			return fmt.Errorf("dhcp: the lease is of %s, which the container does not have", ip.Address)
		}
	}
	return nil
}

func (d *dhcpIPAM) gc(ctx context.Context, _ []attachment) error {
	_, err := d.call(ctx, dhcprpc.Collect)
	if errors.Is(err, dhcprpc.ErrNoMethod) || errors.Is(err, dhcprpc.ErrNoDaemon) {
		fmt.Fprintf(d.r.host.Stderr, "%v; leases are not collected\n", err)
		return nil
	}
	return err
}

func (d *dhcpIPAM) status(ctx context.Context) error {
	_, err := d.call(ctx, dhcprpc.Status)
	if errors.Is(err, dhcprpc.ErrNoMethod) {
		return nil // it answers
	}
	if err != nil {
		return errorf(CodeUnavailable, "%w", err)
	}
	return nil
}

func (d *dhcpIPAM) held() []netip.Addr { return nil }
