package kerneltest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// Tools are Hands for the real kernel: they use ip(8), tc(8), bridge(8) and nft(8), each in the namespace in question.
type Tools struct {
	// Base is the path of the namespace that stands for the machine's own.
	Base string
}

var nsCount atomic.Int32

// NewTools makes a network namespace that stands for the machine, and Tools that work in it. It skips the test where
// it may not do that, or where a program is missing.
func NewTools(t testing.TB) *Tools {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skip: needs root: makes network namespaces")
	}
	for _, p := range []string{"ip", "tc", "bridge", "nft"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skip: needs the program %s: %v", p, err)
		}
	}
	h := &Tools{}
	h.Base = h.AddNamespace(t)
	return h
}

// AddNamespace implements Hands.
func (h *Tools) AddNamespace(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("kt%d-%d", os.Getpid(), nsCount.Add(1))
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Skipf("skip: needs network namespaces: ip netns add: %v: %s", err, out)
	}
	path := filepath.Join("/run/netns", name)
	t.Cleanup(func() {
		if _, err := os.Stat(path); err == nil {
			h.RemoveNamespace(t, path)
		}
	})
	return path
}

// RemoveNamespace implements Hands.
func (h *Tools) RemoveNamespace(t testing.TB, path string) {
	t.Helper()
	if out, err := exec.Command("ip", "netns", "del", filepath.Base(path)).CombinedOutput(); err != nil {
		t.Fatalf("ip netns del %s: %v: %s", path, err, out)
	}
}

// in runs f on a thread of its own in a namespace, "" for the base. The thread ends with it.
func (h *Tools) in(t testing.TB, ns string, f func() error) error {
	t.Helper()
	if ns == "" {
		ns = h.Base
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: nobody else gets a thread in a foreign namespace
		done <- func() error {
			fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// run runs a program in a namespace and fails the test where it does.
func (h *Tools) run(t testing.TB, ns string, args ...string) string {
	t.Helper()
	var out []byte
	err := h.in(t, ns, func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Remove implements Hands.
func (h *Tools) Remove(t testing.TB, o kernel.Object) {
	t.Helper()
	ns := o.Key().NS
	run := func(args ...string) { t.Helper(); h.run(t, ns, args...) }
	switch o := o.(type) {
	case *kernel.Link:
		run("ip", "link", "del", "dev", o.Name)
	case *kernel.LinkUp:
		run("ip", "link", "set", "dev", o.Link, "down")
	case *kernel.Addr:
		run("ip", "addr", "del", o.Prefix.String(), "dev", o.Link)
	case *kernel.Route:
		run(routeArgs("del", o)...)
	case *kernel.Rule:
		run(ruleArgs("del", o)...)
	case *kernel.Neigh:
		if o.Proxy {
			run("ip", "neigh", "del", "proxy", o.Addr.String(), "dev", o.Link)
			return
		}
		run("ip", "neigh", "del", o.Addr.String(), "dev", o.Link)
	case *kernel.Nexthop:
		run("ip", "nexthop", "del", "id", fmt.Sprint(o.ID))
	case *kernel.FDB:
		if o.Dst.IsValid() {
			run("bridge", "fdb", "del", o.MAC, "dev", o.Link, "dst", o.Dst.String(), "self")
			return
		}
		run("bridge", "fdb", "del", o.MAC, "dev", o.Link, "master", "static")
	case *kernel.Redirect:
		h.run(t, o.NS, "tc", "filter", "del", "dev", o.Link, "ingress")
	case *kernel.Qdisc:
		run("tc", "qdisc", "del", "dev", o.Link, map[bool]string{true: o.Parent, false: o.Type}[o.Parent != ""])
	case *kernel.Table:
		family := o.Family
		if family == "" {
			family = "inet"
		}
		run("nft", "delete", "table", family, o.Name)
	case *kernel.TableChain:
		run("nft", "delete", "chain", "inet", o.Table, o.Chain.Name)
	case *kernel.Element:
		run("nft", "delete", "element", "inet", o.Table, o.Set.Name, "{ "+o.Item+" }")
	case *kernel.Accept:
		h.removeRule(t, o)
	default:
		t.Fatalf("%s: no way to remove it by hand", o)
	}
}

func (h *Tools) removeRule(t testing.TB, o *kernel.Accept) {
	t.Helper()
	for line := range strings.Lines(h.run(t, "", "nft", "-a", "list", "chain", o.Family, o.Table, o.Chain)) {
		rule, handle, ok := strings.Cut(strings.TrimSpace(line), " # handle ")
		if ok && strings.HasPrefix(rule, o.Rule) {
			h.run(t, "", "nft", "delete", "rule", o.Family, o.Table, o.Chain, "handle", handle)
			return
		}
	}
	t.Fatalf("%s: is not there to be removed", o)
}

func family(a netip.Addr) string {
	if a.Is6() {
		return "-6"
	}
	return "-4"
}

func routeArgs(verb string, r *kernel.Route) []string {
	args := []string{"ip", family(r.Dst.Addr()), "route", verb}
	if r.Type != "" {
		args = append(args, r.Type)
	}
	args = append(args, r.Dst.String(), "table", strconv.Itoa(r.TableOrMain()))
	if r.Via.IsValid() {
		args = append(args, "via", r.Via.String())
	}
	if r.Link != "" {
		args = append(args, "dev", r.Link)
	}
	if r.OnLink {
		args = append(args, "onlink")
	}
	if r.Metric != 0 {
		args = append(args, "metric", strconv.Itoa(r.Metric))
	}
	return args
}

func ruleArgs(verb string, r *kernel.Rule) []string {
	v := "-4"
	if r.V6 {
		v = "-6"
	}
	args := []string{"ip", v, "rule", verb, "priority", strconv.Itoa(r.Priority), "table", strconv.Itoa(r.Table)}
	for _, p := range []struct {
		word   string
		prefix netip.Prefix
	}{{"from", r.From}, {"to", r.To}} {
		if p.prefix.IsValid() {
			args = append(args, p.word, p.prefix.String())
		}
	}
	if r.Mark != 0 || r.Mask != 0 {
		args = append(args, "fwmark", fmt.Sprintf("%#x/%#x", r.Mark, r.Mask))
	}
	if r.IIF != "" {
		args = append(args, "iif", r.IIF)
	}
	return args
}

// Move implements Hands.
func (h *Tools) Move(t testing.TB, link, to, name string) {
	t.Helper()
	h.run(t, "", "ip", "link", "set", "dev", link, "down")
	if to == "" {
		h.run(t, "", "ip", "link", "set", "dev", link, "name", name)
		return
	}
	h.run(t, "", "ip", "link", "set", "dev", link, "netns", filepath.Base(to), "name", name)
}

// AddForeign implements Hands.
func (h *Tools) AddForeign(t testing.TB, o kernel.Object) {
	t.Helper()
	ns := o.Key().NS
	run := func(args ...string) { t.Helper(); h.run(t, ns, args...) }
	switch o := o.(type) {
	case *kernel.Link:
		args := []string{"ip", "link", "add", "dev", o.Name, "type", string(o.Type)}
		if o.Peer != nil {
			args = append(args, "peer", "name", o.Peer.Name)
		}
		run(args...)
	case *kernel.LinkUp:
		run("ip", "link", "set", "dev", o.Link, "up")
	case *kernel.Addr:
		args := []string{"ip", "addr", "add", o.Prefix.String(), "dev", o.Link}
		if o.Prefix.Addr().Is6() {
			args = append(args, "nodad")
		}
		run(args...)
	case *kernel.Route:
		run(append(routeArgs("add", o), "protocol", "static")...)
	case *kernel.Rule:
		run(append(ruleArgs("add", o), "protocol", "static")...)
	case *kernel.Nexthop:
		args := []string{"ip", "nexthop", "add", "id", fmt.Sprint(o.ID)}
		if o.Via.IsValid() {
			args = append(args, "via", o.Via.String())
		}
		run(append(args, "dev", o.Link, "protocol", "static")...)
	case *kernel.Neigh:
		run("ip", "neigh", "add", o.Addr.String(), "lladdr", o.MAC, "dev", o.Link, "nud", "permanent")
	default:
		t.Fatalf("%s: no way to make it by hand", o)
	}
}

// AddForeignChain implements Hands.
func (h *Tools) AddForeignChain(t testing.TB, family, table, chain string, rules ...string) {
	t.Helper()
	h.run(t, "", "nft", "add table "+family+" "+table)
	h.run(t, "", "nft", fmt.Sprintf("add chain %s %s %s { type filter hook forward priority 0; policy drop; }", family, table, chain))
	for _, r := range rules {
		h.run(t, "", "nft", fmt.Sprintf("add rule %s %s %s %s", family, table, chain, r))
	}
}

// AddForeignTarget implements Hands.
func (h *Tools) AddForeignTarget(t testing.TB, family, table, chain string, rules ...string) {
	t.Helper()
	h.run(t, "", "nft", "add table "+family+" "+table)
	h.run(t, "", "nft", fmt.Sprintf("add chain %s %s %s", family, table, chain))
	for _, r := range rules {
		h.run(t, "", "nft", fmt.Sprintf("add rule %s %s %s %s", family, table, chain, r))
	}
}

// ForeignRules implements Hands.
func (h *Tools) ForeignRules(t testing.TB, family, table, chain string) []string {
	t.Helper()
	var rules []string
	for line := range strings.Lines(h.run(t, "", "nft", "list", "chain", family, table, chain)) {
		if line, ok := strings.CutPrefix(line, "\t\t"); ok && !strings.HasPrefix(line, "type filter hook") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules
}

// AddRule implements Hands.
func (h *Tools) AddRule(t testing.TB, ns, table, chain, rule string) {
	t.Helper()
	h.run(t, ns, "nft", fmt.Sprintf("add rule inet %s %s %s", table, chain, rule))
}

// Occupy implements Hands.
func (h *Tools) Occupy(t testing.TB, protocol string, at netip.AddrPort) (func(), error) {
	t.Helper()
	network := protocol + map[bool]string{true: "4", false: "6"}[at.Addr().Is4()]
	var close func() error
	err := h.in(t, "", func() error {
		if protocol == "tcp" {
			l, err := net.Listen(network, at.String())
			if err == nil {
				close = l.Close
			}
			return err
		}
		c, err := net.ListenPacket(network, at.String())
		if err == nil {
			close = c.Close
		}
		return err
	})
	if err != nil && !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("listen on %s %s: %v", protocol, at, err)
	}
	return func() { close() }, err
}

// Usable implements Hands.
func (h *Tools) Usable(t testing.TB, ns string, ip netip.Addr) bool {
	t.Helper()
	err := h.in(t, ns, func() error {
		c, err := net.ListenPacket("udp", netip.AddrPortFrom(ip, 0).String())
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Fatalf("bind %s: %v", ip, err)
	}
	return err == nil
}

// Settle implements Hands: link watch and duplicate address detection take up to a second each.
func (h *Tools) Settle() { time.Sleep(2500 * time.Millisecond) }
