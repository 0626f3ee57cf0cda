package gossip

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/seine-net/seine/internal/cluster/gossip/table"
)

// Sizes and timings. README.md says what follows from them.
const (
	packetSize     = 1400 // of a UDP packet's payload, all told
	fanout         = 4    // to how many peers a change is passed on
	firstFanout    = 12   // and to how many its origin sends it
	askFanout      = 2    // how many peers are asked to compare after something was missing
	pushDelay      = 5 * time.Millisecond
	askDelay       = 50 * time.Millisecond
	interval       = time.Second // between comparisons with peers picked by chance
	pullTime       = time.Second
	streamSize     = 64 << 10  // of a message by TCP
	pullSize       = 512 << 10 // that one request is answered with
	offerSize      = 8 << 10   // that is sent without having been asked for
	mostHeads      = 24        // streams of a network that are compared at once, without buckets
	compactEvery   = 300       // intervals: so long a delete is kept, or twice
	doubtEvery     = 30        // intervals
	senders        = 16        // goroutines that wait for the network
	mergeInterval  = time.Second
	seedsEvery     = 5 // intervals
	gossipInterval = 100 * time.Millisecond
)

// hot is a change that was just learnt and is to be passed on.
type hot struct {
	chunk table.Chunk
	from  string // who sent it; "": it is this node's own
}

// post is a message on its way.
type post struct {
	to      memberlist.Node
	message *table.Message
}

// Run takes part in the cluster until ctx ends. It can be called once. It fails at once if the address can't be listened
// on.
func (g *Gossip) Run(ctx context.Context) error {
	g.mu.Lock()
	if g.running {
		panic("gossip: Run is called twice")
	}
	g.running = true
	g.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { g.news.run(ctx) })
	defer close(g.ended)
	defer wg.Wait()
	defer cancel()
	list, err := g.create(g.config())
	if err != nil {
		return err
	}
	g.list = list
	close(g.ready)
	for range senders {
		wg.Go(func() { g.work(ctx) })
	}
	g.loop(ctx)
	cancel()
	wg.Wait()
	return list.Shutdown()
}

// do has a job done that waits for the network, or drops it if too many wait: what it was for is found out anew.
func (g *Gossip) do(job func()) {
	select {
	case g.jobs <- job:
	default:
	}
}

func (g *Gossip) work(ctx context.Context) {
	for {
		select {
		case job := <-g.jobs:
			job()
		case <-ctx.Done():
			return
		}
	}
}

func (g *Gossip) loop(ctx context.Context) {
	round := time.NewTimer(rand.N(interval)) // not all at once
	push, ask := time.NewTimer(0), time.NewTimer(0)
	defer round.Stop()
	defer push.Stop()
	defer ask.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-g.push:
			push.Reset(pushDelay)
		case <-g.ask:
			ask.Reset(askDelay)
		case <-push.C:
			g.flush()
		case <-ask.C:
			g.send(g.askAll())
		case <-round.C:
			round.Reset(interval)
			n++
			g.round(n)
		}
	}
}

// tell has changes of this node pushed.
func (g *Gossip) tell(chunks ...*table.Chunk) {
	for _, c := range chunks {
		if c != nil {
			g.hot = append(g.hot, hot{chunk: *c})
			signal(g.push)
		}
	}
}

// flush pushes what is hot. A change is passed on once by everybody who learns it, to a fixed number of peers: that it
// costs the same however many nodes there are. About 2 % miss it, or what was lost; they find out by comparing.
func (g *Gossip) flush() {
	g.mu.Lock()
	if len(g.up) == 0 {
		g.hot = nil // who comes first asks for all
		g.mu.Unlock()
		return
	}
	mail := map[string][]table.Chunk{}
	peers := map[string][]string{}
	for _, h := range merge(g.hot) {
		n := fanout
		if h.from == "" {
			n = firstFanout
		}
		all, ok := peers[h.chunk.Network]
		if !ok {
			all = slices.Clone(g.peers(h.chunk.Network))
			peers[h.chunk.Network] = all
		}
		for _, to := range choose(all, n, h.from, h.chunk.Origin) {
			mail[to] = append(mail[to], h.chunk)
		}
	}
	g.hot = nil
	var out []post
	for to, chunks := range mail {
		for _, part := range pack(chunks, g.room()) {
			out = append(out, g.post(to, &table.Message{Type: table.Push, Chunks: part})...)
		}
	}
	g.mu.Unlock()
	g.send(out)
}

// pick gives n peers of a network that are up, by chance.
func (g *Gossip) pick(network string, n int) []string {
	if network == "" {
		return choose(slices.Clone(g.up), n)
	}
	var some []string
	for p := range g.table.Participants(network) { // which begins anywhere
		if len(some) == n {
			break
		}
		if g.reachable(p) {
			some = append(some, p)
		}
	}
	return some
}

func (g *Gossip) reachable(node string) bool {
	m := g.members[node]
	return m != nil && (m.State == Up || m.State == Suspect)
}

// peers gives all peers of a network that are up, in a slice that is not to be changed.
func (g *Gossip) peers(network string) []string {
	if network == "" {
		return g.up
	}
	var all []string
	for p := range g.table.Participants(network) {
		if g.reachable(p) {
			all = append(all, p)
		}
	}
	return all
}

// choose gives n names of all by chance, without some. It changes the order of all.
func choose(all []string, n int, not ...string) []string {
	some := make([]string, 0, n)
	for i := 0; i < len(all) && len(some) < n; i++ {
		k := i + rand.IntN(len(all)-i)
		all[i], all[k] = all[k], all[i]
		if !slices.Contains(not, all[i]) {
			some = append(some, all[i])
		}
	}
	return some
}

// post addresses a message, if it is known where its receiver is.
func (g *Gossip) post(to string, m *table.Message) []post {
	x := g.members[to]
	if x == nil || !x.Addr.IsValid() {
		return nil
	}
	m.From = g.conf.Node
	return []post{{x.node, m}}
}

// room is how much of a packet is left for chunks.
func (g *Gossip) room() int {
	const overhead = 1 + 29 + 2 + 4 // memberlist's type, encryption and label; our version, type, length and flag
	return packetSize - overhead - len(g.conf.Cluster) - len(g.conf.Node)
}

// send sends messages: in a packet what fits, by TCP what does not.
func (g *Gossip) send(out []post) {
	for _, p := range out {
		b := p.message.Encode(nil)
		if len(b) <= g.room()+len(g.conf.Node)+4 {
			if err := g.list.SendToAddress(p.to.FullAddress(), b); err != nil {
				g.log.Debug("send", "node", p.to.Name, "error", err)
			}
			continue
		}
		g.do(func() {
			if err := g.list.SendReliable(&p.to, b); err != nil {
				g.log.Debug("send", "node", p.to.Name, "error", err)
			}
		})
	}
}

// round does what is done at every interval.
func (g *Gossip) round(n int) {
	g.mu.Lock()
	g.age()
	if n%compactEvery == 0 {
		g.table.Compact()
	}
	if g.refused > 0 {
		g.log.Warn("messages were refused", "count", g.refused, "last", g.why)
		g.refused, g.why = 0, nil
	}
	maps.DeleteFunc(g.pulls, func(_ string, until time.Time) bool { return time.Now().After(until) })
	for _, to := range g.partners() {
		g.askOne(to)
	}
	out := g.roots()
	if m := g.unreachable(); m != nil {
		out = append(out, g.post(m.Node, g.rootsFor(m.Node))...)
	}
	var seeds []string
	if len(g.up) == 0 && n%seedsEvery == 0 {
		seeds = g.seeds
	}
	g.mu.Unlock()
	g.send(out)
	if len(seeds) > 0 {
		g.do(func() {
			if err := g.join(seeds); err != nil {
				g.log.Info("no other node is up", "error", err)
			}
		})
	}
}

// partners gives the peers to compare with now: one of all, and one for each of some networks, which are taken in turn,
// so that all have had theirs after 8 intervals.
func (g *Gossip) partners() []string {
	all := g.pick("", 1)
	nets := g.table.Networks()
	for range min(len(nets), max(4, len(nets)/8)) {
		g.turn++
		all = append(all, g.pick(nets[g.turn%len(nets)], 1)...)
	}
	return all
}

// askOne has a peer's records compared with this node's soon.
func (g *Gossip) askOne(to string, networks ...string) {
	if g.asks[to] == nil {
		g.asks[to] = map[string]bool{}
	}
	if len(networks) == 0 {
		networks = append(g.table.Networks(), "")
	}
	for _, n := range networks {
		g.asks[to][n] = true
	}
	signal(g.ask)
}

// askSome does that with some peers.
func (g *Gossip) askSome(networks ...string) {
	if len(networks) == 0 {
		networks = append(g.table.Networks(), "")
	}
	for _, n := range networks {
		for _, to := range g.pick(n, askFanout) {
			g.askOne(to, n)
		}
	}
}

func (g *Gossip) askAll() []post {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.roots()
}

// roots gives the messages to all who are to be asked.
func (g *Gossip) roots() []post {
	var out []post
	for to := range g.asks {
		if m := g.rootsFor(to); len(m.Roots) > 0 {
			out = append(out, g.post(to, m)...)
		}
	}
	clear(g.asks)
	return out
}

// rootsFor sums up the networks that a peer is to be asked about (all, if it is not) and takes part in, as many as a
// packet holds.
func (g *Gossip) rootsFor(to string) *table.Message {
	m := &table.Message{Type: table.Roots}
	networks := g.asks[to]
	for _, n := range append(g.table.Networks(), "") {
		if networks != nil && !networks[n] {
			continue
		}
		if g.table.Shares(n, to) && len(m.Roots) < g.room()/16 {
			m.Roots = append(m.Roots, g.table.Root(n))
		}
	}
	return m
}
