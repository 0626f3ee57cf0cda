package machine_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/testkit"
)

// outsideName is the name that the resolver outside knows.
const outsideName = "www.example.org."

// upstream has a resolver answer outside, at the address that only the default route leads to.
func upstream(r *rig) {
	r.Helper()
	conn, err := r.outside.ListenPacket("udp", net.JoinHostPort(testkit.Far4.String(), "53"))
	if err != nil {
		r.Fatal(err)
	}
	server := &miekg.Server{PacketConn: conn, Handler: miekg.HandlerFunc(func(w miekg.ResponseWriter, q *miekg.Msg) {
		m := new(miekg.Msg).SetReply(q)
		if q.Question[0].Name == outsideName && q.Question[0].Qtype == miekg.TypeA {
			m.Answer = []miekg.RR{&miekg.A{Hdr: miekg.RR_Header{Name: outsideName, Rrtype: miekg.TypeA, Class: miekg.ClassINET, Ttl: 60}, A: net.IPv4(203, 0, 113, 7)}}
		} else if q.Question[0].Name != outsideName {
			m.Rcode = miekg.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ActivateAndServe() }()
	r.Cleanup(func() { _ = server.Shutdown(); <-done })
}

// ask asks a name server once from a namespace, and gives the addresses in the answer or the answer's code.
func ask(r *rig, from *testkit.NS, proto string, server netip.Addr, name string) string {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, proto, at(server, 53).String())
	if err != nil {
		return err.Error()
	}
	co := &miekg.Conn{Conn: c}
	defer co.Close()
	_ = co.SetDeadline(time.Now().Add(2 * time.Second))
	m := new(miekg.Msg).SetQuestion(name, miekg.TypeA)
	if err = co.WriteMsg(m); err == nil {
		m, err = co.ReadMsg()
	}
	if err != nil {
		return err.Error()
	}
	if m.Rcode != miekg.RcodeSuccess {
		return miekg.RcodeToString[m.Rcode]
	}
	var out []string
	for _, rr := range m.Answer {
		if a, ok := rr.(*miekg.A); ok {
			out = append(out, a.A.String())
		}
	}
	return strings.Join(out, " ")
}

// TestFixedResolver: the addresses at which the name server is found from everywhere, as container, as a guest on a bridge
// of somebody else, on the machine itself, and from outside, where nobody is to get an answer.
func TestFixedResolver(t *testing.T) {
	bothDrivers(t, func(r *rig) {
		upstream(r)
		r.kill(syscall.SIGTERM)
		r.extra = []string{"--dns-upstream", testkit.Far4.String()}
		r.start()
		node, err := r.client.Node(r.Context())
		if err != nil || len(node.DNS) != 2 {
			r.Fatalf("the node's fixed addresses: %v, %v", node.DNS, err)
		}
		on := r.attach("net", "web")
		web := on.Address(true).String()
		r.attach("net", "a")
		r.network(api.Network{Name: "closed", Internal: true})
		inside := r.attach("closed", "b")
		docker := guest(r)
		for _, server := range node.DNS {
			for _, proto := range networks {
				is := func(who string, from *testkit.NS, name, want string) {
					r.Helper()
					if got := ask(r, from, proto, server, name); got != want {
						r.Errorf("%s asks %s/%s for %s: %q, want %q", who, server, proto, name, got, want)
					}
				}
				is("a container", r.container("a"), "web.", web)
				is("a container", r.container("a"), "web.net.seine.internal.", web)
				is("a container", r.container("a"), outsideName, "203.0.113.7")
				is("the machine", r.machine.NS, outsideName, "203.0.113.7")
				is("the machine", r.machine.NS, "web.net.seine.internal.", "NXDOMAIN")
				if server.Is4() {
					is("a guest", docker, outsideName, "203.0.113.7")
					is("a guest", docker, "web.net.", "NXDOMAIN")
					is("a guest", docker, "web.net.seine.internal.", "NXDOMAIN")
				}
				if got := ask(r, r.container("b"), proto, server, "b."); !strings.Contains(got, "unreachable") {
					r.Errorf("a container without a way out asks %s/%s: %q", server, proto, got)
				}
			}
		}
		for _, server := range inside.Status.DNS {
			if got := ask(r, r.container("b"), "udp", server, "b."); got != inside.Address(true).String() {
				r.Errorf("a container without a way out asks its gateway: %q", got)
			}
		}
		// Whoever is outside and sends such questions here gets no answer, whatever source he has.
		for _, p := range []string{"169.254.255.53/32", "172.31.0.0/16"} {
			if err := r.outside.AddRoute(netip.MustParsePrefix(p), r.machine.V4); err != nil {
				r.Fatal(err)
			}
		}
		if got := ask(r, r.outside.NS, "udp", node.DNS[0], outsideName); !strings.Contains(got, "timeout") && !strings.Contains(got, "refused") {
			r.Errorf("outside asks %s: %q", node.DNS[0], got)
		}
		testkit.CantReach(r.T, r.outside.NS, "tcp", at(node.DNS[0], 53), short)
		r.clean()
	})
}

// guest gives a container on a bridge of somebody else, as Docker makes it.
func guest(r *rig) *testkit.NS {
	r.Helper()
	ns := testkit.Namespace(r.T, "guest")
	run := func(on *testkit.NS, command string) {
		r.Helper()
		if out, err := on.Exec(r.Context(), "ip", strings.Fields(command)...); err != nil {
			r.Fatalf("ip %s: %v: %s", command, err, out)
		}
	}
	run(r.machine.NS, "link add docker0 type bridge")
	run(r.machine.NS, "addr add 172.31.0.1/16 dev docker0")
	run(r.machine.NS, "link set docker0 up")
	run(r.machine.NS, fmt.Sprintf("link add gv0 master docker0 type veth peer name eth0 netns %s", ns.Path()))
	run(r.machine.NS, "link set gv0 up")
	run(ns, "addr add 172.31.0.2/16 dev eth0")
	run(ns, "link set eth0 up")
	run(ns, "route add default via 172.31.0.1")
	r.eventually(5*time.Second, func() error {
		found, err := r.client.Doctor(r.Context())
		if err == nil && !strings.Contains(fmt.Sprint(found), "(docker0)") {
			err = fmt.Errorf("docker0 is not seen: %v", found)
		}
		return err
	})
	return ns
}
