package gossip

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/seine-net/seine/internal/cluster/gossip/table"
)

// State says how a node is.
type State uint8

const (
	Unknown State = iota // there are records of it, but nobody has said yet how it is
	Up                   // it answers
	Suspect              // this node gets no answer from it; what others say is not known yet
	Down                 // the cluster gets no answer from it
	Left                 // it said that it leaves
)

// String gives the state in one word.
func (s State) String() string {
	return [...]string{"unknown", "up", "suspect", "down", "left"}[s]
}

// Member is a node of the cluster as this node sees it.
type Member struct {
	Node  string
	Addr  netip.AddrPort // where it listens; not valid if that is not known
	State State
	Since time.Time // when the state began
}

// member has beside that what memberlist wants in order to send to it.
type member struct {
	Member
	node memberlist.Node
}

// Members gives the other nodes that are known, by name.
func (g *Gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]Member, 0, len(g.members))
	for _, m := range g.members {
		all = append(all, m.Member)
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

// config gives memberlist's. Its timings are those for a LAN.
func (g *Gossip) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label, c.Keyring, c.Transport = g.conf.Node, g.conf.Cluster, g.keyring, g.conf.Transport
	c.BindPort = int(cmp.Or(g.conf.Bind.Port(), DefaultPort))
	c.AdvertisePort = int(cmp.Or(g.conf.Advertise.Port(), uint16(c.BindPort)))
	if g.conf.Bind.Addr().IsValid() {
		c.BindAddr = g.conf.Bind.Addr().String()
	}
	if g.conf.Advertise.Addr().IsValid() {
		c.AdvertiseAddr = g.conf.Advertise.Addr().String()
	}
	c.UDPBufferSize = packetSize
	c.EnableCompression = false // LZW would take more time than anything else here
	c.TCPTimeout = 5 * time.Second
	c.PushPullInterval = 30 * time.Second   // of membership only: no data of ours is in it
	c.GossipInterval = gossipInterval       // of membership too
	c.DeadNodeReclaimTime = 5 * time.Second // a node may come back with another address
	c.DelegateProtocolVersion, c.DelegateProtocolMin, c.DelegateProtocolMax = 1, 1, 1
	c.Delegate, c.Events, c.Alive, c.Conflict, c.Ping = delegate{g}, delegate{g}, delegate{g}, delegate{g}, delegate{g}
	// It asks this when a node has not answered the first probe and others are about to be asked: the one place where
	// suspicion can be seen.
	c.DisableTcpPingsForNode = func(node string) bool { g.suspect(node); return false }
	c.LogOutput = logWriter{g.log}
	return c
}

// delegate is what memberlist calls. It does so with its own lock held, so nothing here calls memberlist.
type delegate struct{ g *Gossip }

// NodeMeta gives nothing: what a node says about itself are signed records.
func (delegate) NodeMeta(int) []byte { return nil }

// NotifyMsg gets the messages of this package.
func (d delegate) NotifyMsg(b []byte) { d.g.receive(b) }

// GetBroadcasts gives nothing: memberlist's broadcasts go to all, and are sent the more often the more nodes there are.
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState gives nothing: state in it would be sent as a whole each time, and is limited to 20 MiB.
func (delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState takes nothing.
func (delegate) MergeRemoteState([]byte, bool) {}

// NotifyAlive keeps out who does not belong to the cluster.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if !d.g.admits(n.Name) {
		return fmt.Errorf("node %q is not a member of the cluster", n.Name)
	}
	return nil
}

// NotifyConflict tells of two nodes with one name.
func (d delegate) NotifyConflict(old, other *memberlist.Node) {
	d.g.log.Warn("two nodes have one name", "node", old.Name, "address", old.Address(), "other", other.Address())
}

// NotifyJoin is called when a node is up, for the first time or again.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.g.joined(n) }

// NotifyUpdate is called when a node has other metadata, and so maybe another address.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.g.joined(n) }

// NotifyLeave is called when a node is down.
func (d delegate) NotifyLeave(n *memberlist.Node) { d.g.lost(n.Name) }

// AckPayload gives nothing.
func (delegate) AckPayload() []byte { return nil }

// NotifyPingComplete is called when a node has answered a probe of this node.
func (d delegate) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) {
	d.g.answered(n.Name)
}

func (g *Gossip) admits(node string) bool {
	return g.conf.Admit == nil || node == g.conf.Node || g.conf.Admit(node)
}

func (g *Gossip) joined(n *memberlist.Node) {
	if n.Name == g.conf.Node {
		return
	}
	addr, _ := netip.AddrFromSlice(n.Addr)
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.member(n.Name)
	m.Addr, m.node = netip.AddrPortFrom(addr.Unmap(), n.Port), memberlist.Node{Name: n.Name, Addr: n.Addr, Port: n.Port}
	if m.State == Up {
		return
	}
	if len(g.up) == 0 {
		g.seeds = nil
	}
	g.table.Revive(n.Name)
	g.setState(m, Up)
	if len(g.up) == 1 { // the first one: it knows what there is
		g.askOne(n.Name)
	}
}

func (g *Gossip) member(node string) *member {
	m := g.members[node]
	if m == nil {
		m = &member{Member: Member{Node: node, Since: time.Now()}}
		g.members[node] = m
	}
	return m
}

// setState notes and tells how a node is.
func (g *Gossip) setState(m *member, s State) {
	was := m.State
	m.State, m.Since = s, time.Now()
	reachable := func(s State) bool { return s == Up || s == Suspect }
	switch {
	case reachable(s) && !reachable(was):
		g.up = append(g.up, m.Node)
	case !reachable(s) && reachable(was):
		g.up = slices.DeleteFunc(g.up, func(n string) bool { return n == m.Node })
	}
	g.news.add(Change{Kind: [...]Kind{0, NodeUp, NodeSuspect, NodeDown, NodeLeft}[s], Node: m.Node})
}

func (g *Gossip) lost(node string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.members[node]
	if m == nil || m.State == Down || m.State == Left {
		return
	}
	if g.table.Left(node) {
		g.setState(m, Left)
	} else {
		g.setState(m, Down)
	}
}

func (g *Gossip) suspect(node string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := g.members[node]; m != nil && m.State == Up {
		g.setState(m, Suspect)
	}
}

func (g *Gossip) answered(node string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := g.members[node]; m != nil && m.State == Suspect {
		g.setState(m, Up)
	}
}

// origins notes nodes that there are records of but that memberlist has never told of: it forgets those that are down.
func (g *Gossip) origins(all []table.Change) {
	for _, c := range all {
		if c.Record.Origin != g.conf.Node && g.members[c.Record.Origin] == nil {
			g.member(c.Record.Origin)
		}
	}
}

const (
	unknownFor = 10 * time.Second // then a node that nobody has told of is down
	hideLeft   = time.Hour        // how long it is remembered that a node left, so that all come to know
)

// age ends what has lasted long enough.
func (g *Gossip) age() {
	now := time.Now()
	for _, m := range g.members {
		since := now.Sub(m.Since)
		switch {
		case m.State == Unknown && since > unknownFor:
			if g.table.Left(m.Node) {
				g.setState(m, Left)
			} else {
				g.setState(m, Down)
			}
		case m.State == Down && since > g.conf.Forget, m.State == Left && since > min(hideLeft, g.conf.Forget):
			g.report(g.table.Forget(m.Node))
			delete(g.members, m.Node)
			g.news.add(Change{Kind: NodeGone, Node: m.Node})
		case m.State == Down && g.table.Left(m.Node):
			g.setState(m, Left)
		}
	}
}

// unreachable gives a node that is down, by chance: who is cut off tries each time, and of many who miss one node one
// does. Memberlist itself never looks for a node again that was down for long.
func (g *Gossip) unreachable() *member {
	var down []*member
	for _, m := range g.members {
		if m.State == Down && m.Addr.IsValid() {
			down = append(down, m)
		}
	}
	if len(down) == 0 || rand.IntN(len(g.up)+1) >= len(down) {
		return nil
	}
	return down[rand.IntN(len(down))]
}

// merge brings memberlist back together with a node that it holds for down but that was just heard.
func (g *Gossip) merge(m *member) {
	if now := time.Now(); now.After(g.rejoin) {
		g.rejoin = now.Add(mergeInterval)
		addr := net.JoinHostPort(m.Addr.Addr().String(), strconv.Itoa(int(m.Addr.Port())))
		g.do(func() {
			// A node that was held for down is believed only in a later incarnation, which this takes. It does not wait
			// until that has been told.
			_ = g.list.UpdateNode(time.Nanosecond)
			if _, err := g.list.Join([]string{addr}); err != nil {
				g.log.Debug("merge with a node that was down", "node", m.Node, "error", err)
			}
		})
	}
}

// logWriter takes memberlist's lines.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	if !w.log.Enabled(context.Background(), slog.LevelDebug) {
		return len(b), nil
	}
	line := strings.TrimSpace(string(b))
	if i := strings.Index(line, "memberlist: "); i >= 0 {
		line = line[i+len("memberlist: "):]
	}
	w.log.Debug(line)
	return len(b), nil
}
