package dhcp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/rpc"
	"time"

	"github.com/seine-net/seine/internal/ipam/dhcprpc"
)

// acceptPause is how long to wait when nobody can be let in, for want of descriptors, say.
const acceptPause = time.Second

// serve answers net/rpc over HTTP's CONNECT (rpc.DialHTTP) until ctx ends.
func (s *Service) serve(ctx context.Context, door net.Listener) {
	stop := context.AfterFunc(ctx, func() { _ = door.Close() })
	defer stop()
	for {
		c, err := door.Accept()
		switch {
		case err == nil:
			s.running.Go(func() { s.talk(ctx, c) })
		case ctx.Err() != nil:
			return
		default:
			s.log.Error("DHCP socket", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
		}
	}
}

// greetTimeout is how long somebody may be silent after he has connected.
const greetTimeout = 10 * time.Second

// talk serves one connection. Who hangs up waits for nothing any more: what was asked is given up.
func (s *Service) talk(ctx context.Context, c net.Conn) {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(greetTimeout))
	in := bufio.NewReader(c)
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	if req.Method != http.MethodConnect || req.RequestURI != rpc.DefaultRPCPath {
		_, _ = io.WriteString(c, "HTTP/1.0 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
		return
	}
	if _, err := io.WriteString(c, "HTTP/1.0 200 Connected to Go RPC\n\n"); err != nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	server := rpc.NewServer()
	if err := server.RegisterName("DHCP", &methods{ctx, s}); err != nil {
		s.log.Error("DHCP socket", "err", err)
		return
	}
	server.ServeConn(&conversation{c, in, cancel})
}

// conversation is a connection that tells when the other side is gone.
type conversation struct {
	net.Conn
	in   *bufio.Reader
	gone context.CancelFunc
}

func (c *conversation) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if err != nil {
		c.gone()
	}
	return n, err
}

// Answer is a CNI result (types/100) as gob carries it: fields are found by their names. There is no CNIVersion: the
// caller has filled in its own, which may be older than ours.
type Answer struct {
	IPs    []*answerIP
	Routes []*answerRoute
	DNS    dhcprpc.DNS
}

type answerIP struct {
	Address answerNet
	Gateway []byte
}

// answerNet is an address or a prefix as package net has it.
type answerNet struct{ IP, Mask []byte }

type answerRoute struct {
	Dst                   answerNet
	GW                    []byte
	MTU, AdvMSS, Priority int
	Table, Scope          *int
}

func (a *Answer) fill(r *dhcprpc.Result) {
	for _, ip := range r.IPs {
		a.IPs = append(a.IPs, &answerIP{ipNet(ip.Address), ip.Gateway.AsSlice()})
	}
	for _, rt := range r.Routes {
		gw := rt.GW
		if !gw.IsValid() && rt.Dst.Addr().Is4() {
			gw = netip.IPv4Unspecified() // as the reference
		}
		a.Routes = append(a.Routes, &answerRoute{ipNet(rt.Dst), gw.AsSlice(), rt.MTU, rt.AdvMSS, rt.Priority, rt.Table, rt.Scope})
	}
	a.DNS = r.DNS
}

func ipNet(p netip.Prefix) answerNet {
	ones := netip.PrefixFrom(netip.AddrFrom16([16]byte(bytes.Repeat([]byte{0xff}, 16))), p.Bits()).Masked().Addr().AsSlice()
	return answerNet{p.Addr().AsSlice(), ones[:p.Addr().BitLen()/8]}
}

// methods are what a connection can call.
type methods struct {
	ctx context.Context
	s   *Service
}

// Allocate gives the attachment's lease, taking one where there is none.
func (m *methods) Allocate(a *dhcprpc.Args, out *Answer) error {
	l, err := m.s.asked(a)
	if err != nil {
		return err
	}
	if a.Netns == "" {
		return errors.New("netns: is missing; want the path of the container's network namespace")
	}
	res, err := m.s.allocate(m.ctx, l)
	if err != nil {
		return err
	}
	out.fill(res)
	return nil
}

// asked reads who asks and what for.
func (s *Service) asked(a *dhcprpc.Args) (*lease, error) {
	conf, err := dhcprpc.ParseConf(a.StdinData, a.Args)
	if err != nil {
		return nil, err
	}
	for what, v := range map[string]string{"containerID": a.ContainerID, "name": conf.Network, "ifname": a.IfName} {
		if v == "" {
			return nil, fmt.Errorf("%s: is missing", what)
		}
	}
	return &lease{Container: a.ContainerID, Network: conf.Network, Interface: a.IfName, Netns: s.opts.HostPrefix + a.Netns, Conf: *conf}, nil
}

// Check gives the lease, or an error where there is none or it was lost.
func (m *methods) Check(a *dhcprpc.Args, out *Answer) error {
	want, err := m.s.asked(a)
	if err != nil {
		return err
	}
	m.s.mu.Lock()
	var have *lease
	if p := m.s.slots[want.key()]; p != nil && p.held != nil {
		have = p.held.lease
	}
	m.s.mu.Unlock()
	if have == nil {
		return fmt.Errorf("no lease is held for %s", want)
	}
	res, err := have.holds()
	if err != nil {
		return err
	}
	out.fill(res)
	return nil
}

// Release gives the lease back; none is success. Of the configuration only the network's name is needed.
func (m *methods) Release(a *dhcprpc.Args, _ *struct{}) error {
	network, _, _ := nameAndValid(a.StdinData)
	l := &lease{Container: a.ContainerID, Network: network, Interface: a.IfName}
	return m.s.release(m.ctx, l.key())
}

// Collect gives back the network's leases that are not among cni.dev/valid-attachments.
func (m *methods) Collect(a *dhcprpc.Args, _ *struct{}) error {
	network, valid, err := nameAndValid(a.StdinData)
	if err != nil {
		return err
	}
	if network == "" || valid == nil {
		return errors.New("cni.dev/valid-attachments: is missing; want the list of attachments that are in use")
	}
	return m.s.collect(m.ctx, network, valid)
}

// Status says that leases can be taken.
func (m *methods) Status(*dhcprpc.Args, *struct{}) error { return nil }

// nameAndValid reads a network's name and the keys of its valid attachments; nil where they are not given. With an error
// the name may have been read all the same.
func nameAndValid(stdin []byte) (string, map[string]bool, error) {
	var in struct {
		Name  string
		Valid []struct {
			ContainerID string `json:"containerID"`
			IfName      string `json:"ifname"`
		} `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(stdin, &in); err != nil || in.Valid == nil {
		return in.Name, nil, err
	}
	valid := map[string]bool{}
	for _, v := range in.Valid {
		valid[(&lease{Container: v.ContainerID, Network: in.Name, Interface: v.IfName}).key()] = true
	}
	return in.Name, valid, nil
}
