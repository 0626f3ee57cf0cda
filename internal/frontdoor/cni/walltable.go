package cni

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// What the plugin firewall has in the table. A chain of ours can't make a packet pass that somebody else's chain drops,
// and a rule there can't look into our sets. So one of our chains gives packets that are to pass a bit of the mark, one
// rule in each chain of others lets them pass by it (wall.accept), and a last chain takes the bit away:
//
//	forward, -11   isolation   drop what comes from one bridge with an ingressPolicy and goes to another
//	forward, -10   pass        set the bit: from the containers' addresses, and what answers to them
//	forward,   0   …           iptables' FORWARD, and what others have: accept by the bit
//	forward, last  passed      clear the bit
//
// The chains are there from the first ADD of a firewall to the GC that leaves none.
var (
	// pass4 and pass6 hold the addresses of containers.
	pass4 = &kernel.Set{Name: "pass4", Key: inet4}
	pass6 = &kernel.Set{Name: "pass6", Key: inet6}
	// policied holds the bridges with an ingressPolicy, sameBridge each of them with itself, and isolated likewise those
	// whose containers don't see each other.
	policied   = &kernel.Set{Name: "policied", Key: []kernel.Type{kernel.TypeIfname}}
	sameBridge = &kernel.Set{Name: "samebridge", Key: []kernel.Type{kernel.TypeIfname, kernel.TypeIfname}}
	isolated   = &kernel.Set{Name: "isolated", Key: []kernel.Type{kernel.TypeIfname, kernel.TypeIfname}}
)

// passRule matches packets with the bit. It is one that no well-known program uses (kube-proxy: 0x4000 and 0x8000, portmap
// of the reference: 0x2000, Calico: 0xffff0000, Cilium: 0xffff0f00), and has it between our first and last chain only.
const passRule = "meta mark and 0x1000 == 0x1000"

// bridgeMark is the comment of the elements of a bridge: they are no single attachment's.
const bridgeMark = markPrefix + "bridge"

const (
	isolationPriority = passPriority - 1
	passPriority      = -10       // before iptables
	passedPriority    = 1<<31 - 1 // after all others
)

func forwardChain(name string, priority int, rules ...string) *kernel.TableChain {
	return &kernel.TableChain{Table: tableName,
		Chain: kernel.Chain{Name: name, Type: "filter", Hook: "forward", Priority: priority, Rules: rules}}
}

func isolationChain() *kernel.TableChain {
	return forwardChain("isolation", isolationPriority,
		"iifname . oifname @isolated drop",
		"iifname . oifname @samebridge accept",
		"iifname @policied oifname @policied drop")
}

func passChain() *kernel.TableChain {
	return forwardChain("pass", passPriority,
		passRule+" meta mark set meta mark and 0xffffefff", // somebody else's bit opens nothing
		"ip saddr @pass4 meta mark set meta mark or 0x1000",
		"ip daddr @pass4 ct state established,related meta mark set meta mark or 0x1000",
		"ip6 saddr @pass6 meta mark set meta mark or 0x1000",
		"ip6 daddr @pass6 ct state established,related meta mark set meta mark or 0x1000")
}

func passedChain() *kernel.TableChain {
	return forwardChain("passed", passedPriority, passRule+" meta mark set meta mark and 0xffffefff")
}

// pair is the key of a bridge with itself.
func pair(bridge string) string { return bridge + " . " + bridge }

func isPass(e *kernel.Element) bool { return e.Set.Name == pass4.Name || e.Set.Name == pass6.Name }

// wallMark is what the comment of an attachment's addresses tells beside whose they are: all that DEL has to know.
type wallMark struct {
	// addrs is how many addresses there are.
	addrs int
	// bridge is the one whose ingressPolicy the attachment has, isolated that it is that; zone is firewalld's.
	bridge   string
	isolated bool
	zone     string
}

// mark puts COUNT:BRIDGE/ZONE behind the attachment's key, with a '!' before a bridge that isolates.
func (w *wall) mark(addrs int) string {
	bridge := w.bridge
	if w.conf.Policy == "isolated" {
		bridge = "!" + bridge
	}
	key, names, _ := strings.Cut(w.r.ident().mark(), " ")
	out := fmt.Sprintf("%s %d:%s/%s %s", key, addrs, bridge, w.zone, names)
	return out[:min(len(out), markLen)]
}

// readMark reads it back.
func readMark(e *kernel.Element) (m wallMark) {
	f := strings.SplitN(e.Comment, " ", 3)
	if len(f) < 2 {
		return m
	}
	count, rest, _ := strings.Cut(f[1], ":")
	m.addrs, _ = strconv.Atoi(count)
	m.bridge, m.zone, _ = strings.Cut(rest, "/")
	m.bridge, m.isolated = strings.CutPrefix(m.bridge, "!")
	return m
}

// idleBridges gives the removal of what is there for bridges that no address of a listing needs any more.
func idleBridges(objs []kernel.Object) []kernel.Change {
	used := map[string]bool{}
	for _, o := range objs {
		if e, ok := o.(*kernel.Element); ok && isPass(e) {
			m := readMark(e)
			used[policied.Name+" "+m.bridge], used[sameBridge.Name+" "+pair(m.bridge)] = true, true
			if m.isolated {
				used[isolated.Name+" "+pair(m.bridge)] = true
			}
		}
	}
	var out []kernel.Change
	for _, o := range objs {
		if e, ok := o.(*kernel.Element); ok && e.Comment == bridgeMark && !used[e.Set.Name+" "+e.Item] {
			out = append(out, kernel.Change{Op: kernel.Delete, Old: e})
		}
	}
	return out
}

// idleWalls gives the removal of what the plugin firewall shares and no element that is left needs.
func idleWalls(ctx context.Context, r *request, left []kernel.Object) ([]kernel.Change, error) {
	out := idleBridges(left)
	if slices.ContainsFunc(left, func(o kernel.Object) bool { e, ok := o.(*kernel.Element); return ok && isPass(e) }) {
		return out, nil
	}
	chains, err := foreignChains(ctx, r)
	if err != nil {
		return nil, err
	}
	idle := []kernel.Object{isolationChain(), passChain(), passedChain()}
	for _, c := range chains {
		idle = append(idle, &kernel.Accept{Family: c.Family, Table: c.Table, Chain: c.Chain, Rule: passRule, Mark: markPrefix})
	}
	for _, o := range idle {
		out = append(out, kernel.Change{Op: kernel.Delete, Old: o})
	}
	return out, nil
}
