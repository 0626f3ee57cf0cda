package testkit

import (
	"context"
	"net/netip"
	"time"
)

// TB is what of *testing.T and *testing.B is used here. (Importing package testing would give its flags to every
// program that uses the lab.)
type TB interface {
	Helper()
	Name() string
	Cleanup(func())
	Context() context.Context
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// NeedRoot skips the test, saying so, where it does not run as root.
func NeedRoot(t TB) {
	t.Helper()
	Need(t, "root")
}

// Need skips the test where the machine lacks one of the abilities that Lacks names; each reason is said.
func Need(t TB, abilities ...string) {
	t.Helper()
	for _, a := range abilities {
		if err := Lacks(a); err != nil {
			t.Skipf("skip: needs %s: %v", a, err)
		}
	}
}

// NewLab gives the test a lab of n hosts. The test is skipped where there can't be one.
func NewLab(t TB, n int) *Lab {
	t.Helper()
	Need(t, "root", "veth", "bridge", "nft-ingress")
	l, err := Build(n)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(l.Close)
	return l
}

// NewSandbox gives the test a machine with a world outside.
func NewSandbox(t TB) *Sandbox {
	t.Helper()
	Need(t, "root", "veth")
	s, err := BuildSandbox()
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(s.Close)
	return s
}

// Namespace gives the test an empty namespace, such as a container's.
func Namespace(t TB, name string) *NS {
	t.Helper()
	Need(t, "root")
	n, err := NewNS(name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(n.Close)
	return n
}

// Serve runs an Echo server and gives its address.
func Serve(t TB, n *NS, network, address string) netip.AddrPort {
	t.Helper()
	at, err := n.Echo(network, address)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return at
}

// Reach asks an Echo server; no answer, or a wrong one, fails the test.
func Reach(t TB, n *NS, network string, to netip.AddrPort) Answer {
	t.Helper()
	const text = "is anybody there"
	a, err := n.Ask(t.Context(), network, to, text)
	if err != nil {
		t.Errorf("%v", err)
	} else if a.Text != text {
		t.Errorf("%s asks %s %s: %q came back as %q", n.Name, network, to, text, a.Text)
	}
	return a
}

// CantReach asks an Echo server and fails the test if it answers within wait.
func CantReach(t TB, n *NS, network string, to netip.AddrPort, wait time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	if a, err := n.Ask(ctx, network, to, "x"); err == nil {
		t.Errorf("%s reaches %s %s: %s answers", n.Name, network, to, a.Server)
	}
}
