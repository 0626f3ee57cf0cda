package cni

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/internal/ipam/static"
)

// staticIPAM is the static address plugin. It keeps nothing, so only ADD and CHECK have something to do.
type staticIPAM struct {
	r   *request
	res *Result
}

func newStatic(r *request) (ipam, error) {
	s := &staticIPAM{r: r, res: &Result{}}
	if r.verb == verbDel || r.verb == verbGC {
		return s, nil
	}
	if r.argsErr != nil && r.verb == verbAdd {
		return nil, r.argsErr
	}
	var c struct {
		Addresses []static.AddressConfig `json:"addresses"`
		Routes    []routeConf            `json:"routes"`
		DNS       DNS                    `json:"dns"`
	}
	if err := decode(r.conf.IPAM, &c); err != nil {
		return nil, fmt.Errorf("key %q: %w", "ipam", err)
	}
	addrs, err := static.Addresses(static.Input{Addresses: c.Addresses, EnvIP: r.args.IP, EnvGateway: r.args.Gateway,
		Args: r.conf.Args.CNI.IPs, Capability: r.conf.RuntimeConfig.IPs})
	if err != nil {
		return nil, err
	}
	n4 := 0
	for _, a := range addrs {
		if a.Prefix.Addr().Is4() {
			n4++
		}
		s.res.IPs = append(s.res.IPs, IP{Address: a.Prefix, Gateway: a.Gateway})
	}
	if err := checkFamilies(r.version, n4, len(addrs)-n4); err != nil {
		return nil, err
	}
	s.res.DNS = c.DNS
	s.res.Routes, err = parseRoutes(c.Routes)
	return s, err
}

func (s *staticIPAM) add(context.Context) (*Result, func(context.Context) error, error) {
	return s.res, func(context.Context) error { return nil }, nil
}

func (s *staticIPAM) check(context.Context) error {
	if err := s.r.needPrev(); err != nil {
		return err
	}
	for _, want := range s.res.IPs {
		for _, have := range s.r.prev.IPs {
			if want.Address.Addr() == have.Address.Addr() && want.Gateway.IsValid() && want.Gateway != have.Gateway {
				return fmt.Errorf("static: %s has gateway %s; want %s", want.Address, have.Gateway, want.Gateway)
			}
		}
	}
	return nil
}

func (s *staticIPAM) del(context.Context) error              { return nil }
func (s *staticIPAM) gc(context.Context, []attachment) error { return nil }
func (s *staticIPAM) status(context.Context) error           { return nil }
func (s *staticIPAM) held() []netip.Addr                     { return nil }
