package fake

import (
	"fmt"
	"maps"
	"sort"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// Snapshot is everything that a kernel held at one time, ours and others', but not what it made by itself.
type Snapshot struct {
	ours   map[kernel.Key]kernel.Object
	others map[string]bool // as lines of Dump
}

// Snapshot gives the present state. Rules are in it as they were written, sysctls where they differ from the default.
func (k *Kernel) Snapshot() Snapshot {
	k.mu.Lock()
	defer k.mu.Unlock()
	snap := Snapshot{map[kernel.Key]kernel.Object{}, map[string]bool{}}
	for _, o := range k.outside() {
		snap.ours[o.Key()] = o
	}
	for _, c := range k.others {
		var rules []string
		for _, r := range c.rules {
			if r.accept == nil {
				rules = append(rules, r.text)
			}
		}
		snap.others["chain "+otherKey(c.family, c.table, c.chain)+" { "+strings.Join(rules, "; ")+" }"] = true
	}
	for _, s := range k.spaces {
		s.snapshot(snap)
	}
	return snap
}

func (s *space) snapshot(snap Snapshot) {
	put := func(ours bool, o kernel.Object) {
		if ours {
			snap.ours[o.Key()] = o
		} else {
			snap.others[o.String()] = true
		}
	}
	for _, l := range s.links {
		// A link in a namespace of somebody's is told from ours by nothing but its other end.
		ours := l.ours() || l.peer != nil && l.peer.ours() || l.typ == kernel.Loopback
		if l.typ != kernel.Loopback && (l.peer == nil || l.main) {
			put(ours, l.object(true))
		}
		for _, o := range l.hanging(false) {
			put(ours, o)
		}
		if v := l.listedVLANs(); v != nil && !maps.Equal(l.vlans, defaultVLAN()) {
			put(ours, v)
		}
		if tuned := l.unusual(); tuned != nil {
			put(false, tuned)
		}
		for _, n := range l.neighs {
			put(n.ours, n.Neigh)
		}
		for _, f := range l.fdb {
			put(true, f)
		}
		for _, o := range l.wireguard() {
			put(true, o)
		}
		for name, on := range l.features {
			put(true, &kernel.Feature{NS: l.ns, Link: l.name, Name: name, On: on})
		}
	}
	for _, r := range s.routes {
		put(r.ours, r.Route)
	}
	for id, r := range s.rules {
		put(id.ours, r)
	}
	for _, n := range s.nexthops {
		put(n.ours, n.Nexthop)
	}
	for name, v := range s.sysctls {
		put(true, &kernel.Sysctl{NS: s.path, Name: name, Value: v})
	}
	for _, t := range s.tables {
		put(true, t.shape)
		for _, o := range t.content() {
			put(true, o)
		}
	}
}

// Dump gives everything that the kernel holds, one object per line and sorted: each in the words of its String, what
// is not ours with "other's" before it. What the kernel makes by itself is left out: lo, its addresses, the routes of
// subnets, hardware addresses and MTUs that nobody asked for, sysctls that have their default.
func (k *Kernel) Dump() string { return k.Snapshot().String() }

// String gives the snapshot as Dump does.
func (s Snapshot) String() string {
	var b strings.Builder
	for _, line := range s.lines() {
		b.WriteString(line + "\n")
	}
	return b.String()
}

func (s Snapshot) lines() []string {
	var lines []string
	for _, o := range s.ours {
		lines = append(lines, o.String())
	}
	for o := range s.others {
		lines = append(lines, "other's "+o)
	}
	sort.Strings(lines)
	return lines
}

// Diff says in which objects two snapshots differ, one per line with + for what only t has, - for what only s has and ~
// for what is different; "" where they are the same. Objects are compared by Holds in both directions.
func (s Snapshot) Diff(t Snapshot) string {
	var lines []string
	for key, o := range s.ours {
		switch p := t.ours[key]; {
		case p == nil:
			lines = append(lines, "- "+o.String())
		case !o.Holds(p) || !p.Holds(o):
			lines = append(lines, fmt.Sprintf("~ %s  (was: %s)", p, o))
		}
	}
	for key, p := range t.ours {
		if s.ours[key] == nil {
			lines = append(lines, "+ "+p.String())
		}
	}
	for o := range s.others {
		if !t.others[o] {
			lines = append(lines, "- other's "+o)
		}
	}
	for o := range t.others {
		if !s.others[o] {
			lines = append(lines, "+ other's "+o)
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// Objects gives everything of ours in all namespaces, sorted by key.
func (s Snapshot) Objects() []kernel.Object { return sorted(s.ours) }
