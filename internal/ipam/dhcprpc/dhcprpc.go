// Package dhcprpc is how the CNI plugin "dhcp" asks the daemon that keeps the leases: Go's net/rpc with gob over an HTTP
// CONNECT on a unix socket, the protocol of the reference plugin, so that either plugin works with either daemon.
//
// It is the asking side, and small on purpose: net/rpc, net/http and encoding/gob would be paid for at the start of
// every CNI plugin, since all are one program. internal/ipam/dhcp is the side that answers.
package dhcprpc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

// DefaultSocket is where the daemon listens if the configuration names no other socket.
const DefaultSocket = "/run/cni/dhcp.sock"

// The methods. The reference daemon knows Allocate and Release only.
const (
	Allocate = "DHCP.Allocate" // gives the attachment's lease, taking one where there is none
	Release  = "DHCP.Release"  // gives the lease back; none is success
	Check    = "DHCP.Check"    // gives the lease, an error where there is none or it was lost
	Collect  = "DHCP.Collect"  // gives back a network's leases that are not among cni.dev/valid-attachments
	Status   = "DHCP.Status"   // an error where leases can't be taken
)

// ErrNoDaemon says that nobody listens on the socket.
var ErrNoDaemon = errors.New("no DHCP daemon answers")

// ErrNoMethod says that the daemon does not know the method: it is the reference's.
var ErrNoMethod = errors.New("the DHCP daemon does not know the method")

// Args is what a method is called with: a CNI plugin's environment and standard input.
type Args struct {
	ContainerID, Netns, IfName, Args, Path, NetnsOverride string
	StdinData                                             []byte
}

// Result is a lease as a CNI result tells it.
type Result struct {
	IPs    []IP
	Routes []Route
	DNS    DNS
}

// IP is an address.
type IP struct {
	Address netip.Prefix
	// Gateway is the zero Addr for none.
	Gateway netip.Addr
}

// Route is a route. GW is the zero Addr, and Scope and Table are nil, where they are not given.
type Route struct {
	Dst                   netip.Prefix
	GW                    netip.Addr
	MTU, AdvMSS, Priority int
	Table, Scope          *int
}

// DNS is what a resolver should use.
type DNS struct {
	Nameservers, Search, Options []string
	Domain                       string
}

// dialTimeout bounds the time until the daemon has said that it speaks the protocol.
const dialTimeout = 5 * time.Second

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

// Call calls a method of the daemon that listens on socket and waits for its answer, at most until ctx ends. Release,
// Collect and Status give an empty Result.
func Call(ctx context.Context, socket, method string, args *Args) (*Result, error) {
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(dial, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("socket %q: %w: %w", socket, ErrNoDaemon, err)
	}
	defer c.Close()
	end, _ := dial.Deadline()
	_ = c.SetDeadline(end) // a socket of this kind has deadlines
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	res, err := call(ctx, c, method, args)
	if err != nil {
		cause := context.Cause(ctx)
		if cause == nil && errors.Is(err, os.ErrDeadlineExceeded) {
			cause = context.DeadlineExceeded // the connection's clock may be a little ahead
		}
		if cause != nil {
			err = fmt.Errorf("waiting for the answer: %w", cause)
		}
		return nil, fmt.Errorf("socket %q: %s: %w", socket, method, err)
	}
	return res, nil
}

// call speaks the protocol (net/rpc, DialHTTP) on a connection.
func call(ctx context.Context, c net.Conn, method string, args *Args) (*Result, error) {
	if _, err := io.WriteString(c, "CONNECT /_goRPC_ HTTP/1.0\n\n"); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	in := bufio.NewReader(io.LimitReader(c, maxAnswer))
	status, err := in.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	if f := strings.Fields(status); len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/") || f[1] != "200" {
		return nil, fmt.Errorf("%w: it says %q, which is not net/rpc", ErrNoDaemon, strings.TrimSpace(status))
	}
	for line := ""; line != "\n" && line != "\r\n"; {
		if line, err = in.ReadString('\n'); err != nil {
			return nil, err
		}
	}
	end, _ := ctx.Deadline() // the zero Time is none
	if err := c.SetDeadline(end); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := c.Write(request(method, args)); err != nil {
		return nil, err
	}
	return answer(in, method)
}

// request is net/rpc's Request followed by the arguments.
func request(method string, a *Args) []byte {
	var b bytes.Buffer
	writeStruct(&b, 64, "Request", []field{{"ServiceMethod", method}, {"Seq", uint64(1)}})
	writeStruct(&b, 65, "CmdArgs", []field{{"ContainerID", a.ContainerID}, {"Netns", a.Netns}, {"IfName", a.IfName},
		{"Args", a.Args}, {"Path", a.Path}, {"NetnsOverride", a.NetnsOverride}, {"StdinData", a.StdinData}})
	return b.Bytes()
}

// answer reads net/rpc's Response and the value after it.
func answer(in io.Reader, method string) (*Result, error) {
	d := newDecoder(in)
	head, err := d.next()
	if err != nil {
		return nil, err
	}
	body, err := d.next()
	if said, _ := get(head, "Error").(string); said != "" {
		// What follows an error is an empty value, which is not needed.
		if strings.HasPrefix(said, "rpc: can't find method") {
			return nil, fmt.Errorf("%w (%s)", ErrNoMethod, said)
		}
		return nil, errors.New(said)
	}
	if err != nil {
		return nil, err
	}
	if method != Allocate && method != Check {
		return &Result{}, nil
	}
	return result(body)
}

// result turns a decoded value, types/100's Result, into ours.
func result(v any) (*Result, error) {
	out := &Result{}
	for i, ip := range list(v, "IPs") {
		p, ok := ipNet(get(ip, "Address"))
		if !ok {
			return nil, fmt.Errorf("answer: ips[%d].address: is no address with a mask", i)
		}
		gw, ok := addr(get(ip, "Gateway"))
		if !ok {
			return nil, fmt.Errorf("answer: ips[%d].gateway: is no address", i)
		}
		out.IPs = append(out.IPs, IP{p, gw})
	}
	for i, r := range list(v, "Routes") {
		dst, ok := ipNet(get(r, "Dst"))
		gw, ok2 := addr(get(r, "GW"))
		if !ok || !ok2 {
			return nil, fmt.Errorf("answer: routes[%d]: is no route", i)
		}
		out.Routes = append(out.Routes, Route{Dst: dst.Masked(), GW: gw, MTU: number(r, "MTU"), AdvMSS: number(r, "AdvMSS"),
			Priority: number(r, "Priority"), Table: pointer(r, "Table"), Scope: pointer(r, "Scope")})
	}
	dns := get(v, "DNS")
	out.DNS.Domain, _ = get(dns, "Domain").(string)
	out.DNS.Nameservers, out.DNS.Search, out.DNS.Options = words(dns, "Nameservers"), words(dns, "Search"), words(dns, "Options")
	return out, nil
}

func get(v any, name string) any {
	m, _ := v.(map[string]any)
	return m[name]
}

func list(v any, name string) []any {
	l, _ := get(v, name).([]any)
	return l
}

func words(v any, name string) []string {
	var out []string
	for _, w := range list(v, name) {
		if s, ok := w.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func number(v any, name string) int {
	n, _ := get(v, name).(int64)
	return int(n)
}

// pointer gives a number that may be left out. Gob leaves out a pointer to 0 as well: it arrives as nil.
func pointer(v any, name string) *int {
	n, ok := get(v, name).(int64)
	if !ok {
		return nil
	}
	i := int(n)
	return &i
}

// addr gives a net.IP; nothing, and the unspecified address of a route that has no gateway, is the zero Addr.
func addr(v any) (netip.Addr, bool) {
	b, _ := v.([]byte)
	if len(b) == 0 {
		return netip.Addr{}, true
	}
	a, ok := netip.AddrFromSlice(b)
	if a = a.Unmap(); a.IsUnspecified() {
		a = netip.Addr{}
	}
	return a, ok
}

// ipNet gives a net.IPNet. The mask of an IPv4 address may be written as IPv6's; one with holes is none.
func ipNet(v any) (netip.Prefix, bool) {
	ip, _ := get(v, "IP").([]byte)
	mask, _ := get(v, "Mask").([]byte)
	a, ok := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !ok {
		return netip.Prefix{}, false
	}
	if a.Is4() && len(mask) == 16 {
		mask = mask[12:]
	}
	ones, ok := MaskBits(mask)
	if !ok || 8*len(mask) != a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones), true
}

// MaskBits counts the ones that a mask begins with; one with holes is none.
func MaskBits(mask []byte) (int, bool) {
	n := 0
	for n < 8*len(mask) && mask[n/8]&(0x80>>(n%8)) != 0 {
		n++
	}
	for i := n; i < 8*len(mask); i++ {
		if mask[i/8]&(0x80>>(i%8)) != 0 {
			return 0, false
		}
	}
	return n, true
}
