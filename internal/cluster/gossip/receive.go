package gossip

import (
	"fmt"
	"slices"
	"time"

	"github.com/seine-net/seine/internal/cluster/gossip/table"
)

// receive takes a message in. It is called by memberlist, for packets by one goroutine and for each stream by its own.
func (g *Gossip) receive(b []byte) {
	select {
	case <-g.ready:
	default:
		return // there is nothing yet to answer with
	}
	m, err := table.Decode(b)
	switch {
	case err != nil:
	case m.From == g.conf.Node:
		err = fmt.Errorf("message from this node itself")
	case !g.admits(m.From):
		err = fmt.Errorf("node %q is not a member of the cluster", m.From)
	}
	if err != nil {
		g.mu.Lock()
		g.refuse(err)
		g.mu.Unlock()
		return
	}
	g.send(g.handle(m))
}

func (g *Gossip) refuse(err error) { g.refused, g.why = g.refused+1, err }

// handle gives the answers to a message.
func (g *Gossip) handle(m *table.Message) []post {
	g.mu.Lock()
	defer g.mu.Unlock()
	if x := g.members[m.From]; x != nil && x.State == Down && x.Addr.IsValid() {
		g.merge(x)
	}
	switch m.Type {
	case table.Push, table.Deltas:
		g.learn(m)
	case table.Roots:
		return g.onRoots(m)
	case table.Sums:
		if mask := g.table.Mask(m.Network, m.Sums); mask != 0 {
			return g.heads(m.From, m.Network, mask, table.Heads)
		}
	case table.Heads, table.Offer:
		return g.onHeads(m)
	case table.Pull:
		out, _ := g.give(m.From, m.Network, m.Wants, pullSize)
		return out
	}
	return nil
}

// learn takes chunks in, and has passed on what was new.
func (g *Gossip) learn(m *table.Message) {
	fresh := map[string]bool{}
	for i := range m.Chunks {
		c := &m.Chunks[i]
		if !g.admits(c.Origin) {
			g.refuse(fmt.Errorf("node %q is not a member of the cluster", c.Origin))
			continue
		}
		r, err := g.table.Apply(c)
		if err != nil {
			g.refuse(fmt.Errorf("from %q: %w", m.From, err))
			continue
		}
		g.origins(r.Changes)
		g.report(r.Changes)
		if r.Epoch != 0 {
			g.outdone(r.Epoch)
		}
		if r.Gap {
			g.askOne(m.From, "", c.Network)
		}
		if r.Fresh && m.Type == table.Push {
			g.hot = append(g.hot, hot{chunk: *c, from: m.From})
			signal(g.push)
		} else if r.Fresh {
			fresh[c.Network] = true
		}
	}
	for n := range fresh {
		switch {
		case !m.End:
			g.pulls[n] = time.Now().Add(pullTime)
		case m.More:
			delete(g.pulls, n)
			g.askOne(m.From, n)
		default:
			// What was missing here is missing elsewhere too. It is not pushed on, since it may be much: peers are asked
			// to compare, and get it if they lack it.
			delete(g.pulls, n)
			g.askSome(n)
		}
	}
}

// outdone has a new epoch of this node kept, and told to others.
func (g *Gossip) outdone(epoch uint64) {
	g.log.Warn("peers have records of this node from an epoch that it does not know of: a disk was lost, put back or copied, or two nodes have one name",
		"node", g.conf.Node, "epoch", epoch)
	g.askSome()
	if g.conf.Persist != nil {
		g.do(func() {
			if err := g.conf.Persist(epoch); err != nil {
				g.log.Error("keep the epoch", "epoch", epoch, "error", err)
			}
		})
	}
}

// onRoots answers with what this node has of the networks where the peer has something else.
func (g *Gossip) onRoots(m *table.Message) []post {
	var out []post
	for _, r := range m.Roots {
		name, streams, ok := g.table.Differ(r)
		if !ok || g.pulling(name) {
			continue
		}
		if streams <= mostHeads {
			out = append(out, g.heads(m.From, name, table.All, table.Heads)...)
		} else {
			out = append(out, g.post(m.From, &table.Message{Type: table.Sums, Network: name, Sums: g.table.Sums(name)})...)
		}
	}
	return out
}

func (g *Gossip) pulling(network string) bool { return time.Now().Before(g.pulls[network]) }

// heads gives this node's streams in some buckets of a network, in as many messages as it takes.
func (g *Gossip) heads(to, network string, mask uint64, kind table.Type) []post {
	var out []post
	m := &table.Message{Type: kind, Network: network, Mask: mask}
	size, last := 0, 0
	for _, h := range g.table.Heads(network, mask) {
		if b := table.Bucket(h.Origin); size > streamSize && b != last {
			below := uint64(1)<<b - 1
			next := &table.Message{Type: kind, Network: network, Mask: m.Mask &^ below}
			m.Mask &= below
			out = append(out, g.post(to, m)...)
			m, size = next, 0
		} else {
			last = b
		}
		m.Heads, size = append(m.Heads, h), size+len(h.Origin)+30
	}
	return append(out, g.post(to, m)...)
}

// onHeads asks for what the peer has and this node lacks, and gives what the peer lacks. Much is only offered: the peer
// may be getting it from another just now.
func (g *Gossip) onHeads(m *table.Message) []post {
	d := g.table.Compare(m.Network, m.Mask, m.Heads)
	var out []post
	if m.Type == table.Heads {
		var all bool
		if out, all = g.give(m.From, m.Network, d.Offers, offerSize); !all {
			out = g.heads(m.From, m.Network, m.Mask, table.Offer)
		}
	}
	if len(d.Wants) > 0 && !g.pulling(m.Network) {
		g.pulls[m.Network] = time.Now().Add(pullTime)
		out = append(out, g.post(m.From, &table.Message{Type: table.Pull, Network: m.Network, Wants: d.Wants})...)
	}
	for _, origin := range d.Doubts {
		if key := m.Network + "\x00" + origin; !g.pulling(key) {
			g.pulls[key] = time.Now().Add(doubtEvery * interval)
			want := g.table.Doubt(m.Network, origin)
			g.log.Warn("two copies of what a node says differ", "node", origin, "network", m.Network, "peer", m.From)
			out = append(out, g.post(origin, &table.Message{Type: table.Pull, Network: m.Network, Wants: []table.Want{want}})...)
		}
	}
	return out
}

// give sends what a peer wants, at most about so many bytes, and reports whether that was all. Who gets More asks again.
func (g *Gossip) give(to, network string, wants []table.Want, most int) (out []post, all bool) {
	m := &table.Message{Type: table.Deltas}
	size, total, more := 0, 0, false
	for _, w := range wants {
		if total > most {
			more = true
			break
		}
		c := g.table.Select(network, w, min(most, streamSize))
		if c == nil {
			continue
		}
		n := c.Size()
		if size+n > streamSize && len(m.Chunks) > 0 {
			out = append(out, g.post(to, m)...)
			m, size = &table.Message{Type: table.Deltas}, 0
		}
		m.Chunks, size, total = append(m.Chunks, *c), size+n, total+n
		more = more || c.Records[len(c.Records)-1].Version.Count < c.Last
	}
	if len(m.Chunks) > 0 {
		m.End, m.More = true, more
		out = append(out, g.post(to, m)...)
	}
	return out, !more
}

// merge joins chunks of one stream that follow each other.
func merge(all []hot) []hot {
	type key struct{ network, origin, from string }
	last := map[key]int{}
	var out []hot
	for _, h := range all {
		k := key{h.chunk.Network, h.chunk.Origin, h.from}
		if i, ok := last[k]; ok {
			if c := &out[i].chunk; c.Epoch == h.chunk.Epoch && c.Records[len(c.Records)-1].Version.Count == h.chunk.From {
				c.Records = append(slices.Clip(c.Records), h.chunk.Records...)
				c.Floor, c.Seen, c.Last = max(c.Floor, h.chunk.Floor), min(c.Seen, h.chunk.Seen), h.chunk.Last
				continue
			}
		}
		last[k] = len(out)
		out = append(out, h)
	}
	return out
}

// pack divides chunks into parts of at most room bytes; a record that is larger has a part for itself.
func pack(all []table.Chunk, room int) [][]table.Chunk {
	var parts [][]table.Chunk
	var part []table.Chunk
	size := 0
	for _, c := range all {
		for len(c.Records) > 0 {
			n := c.Fit(room - size)
			if n == 0 && len(part) > 0 {
				parts, part, size = append(parts, part), nil, 0
				continue
			}
			head, tail := c.Cut(max(n, 1))
			part, size, c = append(part, head), size+head.Size(), tail
		}
	}
	if len(part) > 0 {
		parts = append(parts, part)
	}
	return parts
}
