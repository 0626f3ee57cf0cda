//go:build !race

package gossip

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/seine-net/seine/internal/cluster/gossip/gossiptest"
)

// seal is a signature that costs no time but has the size of a real one.
type seal string

func (s seal) Sign([]byte) []byte { return append([]byte(s), make([]byte, 64-len(s))...) }
func (s seal) Verify(origin string, _, sig []byte) bool {
	return len(sig) == 64 && string(sig[:len(origin)]) == origin
}

// scale is a cluster with many endpoints. Each node takes part in 4 networks that about 100 nodes share, and in one that
// all share.
type scale struct {
	*cluster
	standIns *standIns // nil: memberlist itself
	nets     map[*node][]string
	serial   int
}

func newScale(t testing.TB, nodes, endpoints int, standsIn bool) *scale {
	s := &scale{cluster: newCluster(t), nets: map[*node][]string{}}
	s.net.Loss, s.net.Latency, s.net.Jitter = 0.01, 500*time.Microsecond, time.Millisecond
	if standsIn {
		s.standIns = &standIns{latency: time.Millisecond, loss: 0.01, detect: 10 * time.Second, spread: 3 * time.Second}
	}
	groups := max(4, nodes*4/100)
	for i := range nodes {
		var nets []string
		for k := range 4 {
			nets = append(nets, fmt.Sprint("net", (i+k*groups/4)%groups))
		}
		n := s.add()
		s.nets[n] = append(nets, "all")
		s.fresh(n)
		for k := range endpoints / nodes {
			s.endpoint(n, nets[k%4], fmt.Sprint("e", k))
		}
	}
	return s
}

func (s *scale) fresh(n *node) {
	s.renew(n, func(c *Config) { c.Signer = seal(n.name) }, s.nets[n]...)
	if s.standIns != nil {
		g, addr := n.Gossip, n.addr
		g.create = func(*memberlist.Config) (carrier, error) { return s.standIns.create(g, addr), nil }
	}
	n.put(s.t, "", "node", n.addr.String()+" fd00::1 some keys of about the length that keys have, in base64 or so")
	n.put(s.t, "all", "web", "x")
}

func (s *scale) counts() gossiptest.Counts {
	if s.standIns != nil {
		return s.standIns.Counts()
	}
	return s.net.Counts()
}

func (s *scale) cut(off []int) {
	in := map[int]bool{}
	for _, i := range off {
		in[i] = true
	}
	side := func(a netip.AddrPort) int {
		if b := a.Addr().As4(); in[int(b[2])<<8|int(b[3])] {
			return 1
		}
		return 0
	}
	if off == nil {
		side = nil
	}
	if s.standIns != nil {
		s.standIns.Cut(side)
	} else {
		s.net.Cut(side)
	}
}

// endpoint puts a record of the size that endpoints have.
func (s *scale) endpoint(n *node, network, key string) {
	s.serial++
	n.put(s.t, network, key, fmt.Sprintf(`{"name":%q,"serial":%d,"mac":"02:42:0a:00:00:01","addresses":["10.0.0.1/16","fd00::1/64"],"sandbox":"/var/run/netns/cni-0123456789","names":["web","web.example"]}`, key, s.serial))
}

// start runs all nodes: 100 a second join the first.
func (s *scale) start() {
	for i, n := range s.nodes {
		s.cluster.start(n)
		if i%10 == 9 {
			time.Sleep(100 * time.Millisecond)
		}
	}
	if s.standIns != nil {
		s.standIns.meet()
	}
}

// same reports whether all that take part in a network have the same of it.
func (s *scale) same() bool {
	sums := map[string]uint64{}
	for _, n := range s.nodes {
		if n.cancel == nil {
			continue
		}
		n.Gossip.mu.Lock()
		for _, name := range append(n.table.Networks(), "") {
			r := n.table.Root(name)
			if old, ok := sums[name]; ok && old != r.Sum {
				n.Gossip.mu.Unlock()
				return false
			}
			sums[name] = r.Sum
		}
		n.Gossip.mu.Unlock()
	}
	return true
}

// ups gives how many pairs of running nodes hold each other for up.
func (s *scale) ups() (n int) {
	for _, x := range s.nodes {
		if x.cancel != nil {
			x.Gossip.mu.Lock()
			n += len(x.up)
			x.Gossip.mu.Unlock()
		}
	}
	return n
}

func (s *scale) allUp() bool { return s.ups() == len(s.nodes)*(len(s.nodes)-1) }

// figures are what a run has shown.
type figures struct {
	perChange, idle                     float64 // bytes per node, and change or second
	start, changes, healed, allUp, back time.Duration
}

func (f figures) String() string {
	return fmt.Sprintf("%.0f bytes per change and node, %.0f bytes/s per node at rest; all is known %v after all are up at the start, %v after the last change, %v after a healed cut (and all are up after %v), %v after a restart of a tenth",
		f.perChange, f.idle, f.start, f.changes, f.healed, f.allUp, f.back)
}

func runScale(t *testing.T, nodes, endpoints, changes int, standsIn bool) (f figures) {
	synctest.Test(t, func(t *testing.T) {
		s := newScale(t, nodes, endpoints, standsIn)
		defer s.stop()
		s.start()
		s.await("all are up", 2*time.Minute, s.allUp)
		f.start = s.await("all know all", time.Minute, s.same)
		if have, want := s.records(), endpoints/nodes*nodes+2*nodes; have != want {
			t.Errorf("%d records are known, want %d", have, want)
		}
		time.Sleep(5 * time.Second) // what joining has set going comes to rest
		before := s.counts()
		time.Sleep(4 * time.Second)
		f.idle = float64(s.counts().Sub(before).Bytes()) / 4 / float64(nodes)

		// Changes, 20 a second, in the network of all.
		before = s.counts()
		for range changes {
			s.endpoint(s.nodes[rand.IntN(nodes)], "all", "web")
			time.Sleep(50 * time.Millisecond)
		}
		spent := float64(s.counts().Sub(before).Bytes()) / float64(nodes)
		f.perChange = (spent - f.idle*float64(changes)/20) / float64(changes)
		f.changes = s.await("changes are known", time.Minute, s.same)

		// A cut through the middle. On both sides endpoints come and go.
		s.cut(s.half())
		time.Sleep(20 * time.Second)
		s.churn(nodes * 4)
		time.Sleep(time.Second)
		s.cut(nil)
		f.healed = s.await("all know all after the cut", time.Minute, s.same)
		f.allUp = f.healed + s.await("all are up after the cut", 2*time.Minute, s.allUp)

		// Restarts by chance, with other endpoints than before, while endpoints come and go elsewhere.
		for _, i := range rand.Perm(nodes)[:nodes/10] {
			n := s.nodes[i]
			n.stop()
			s.churn(10)
			s.fresh(n)
			for k := range 10 {
				s.endpoint(n, s.nets[n][k%4], fmt.Sprint("r", k))
			}
			s.cluster.start(n)
			if s.standIns != nil {
				s.standIns.meet()
			}
		}
		f.back = s.await("all know all after restarts", time.Minute, s.same)
		s.await("all are up after restarts", time.Minute, s.allUp)
		s.await("all know all again", time.Minute, s.same)
		s.truth()
	})
	return f
}

// truth holds what every node has against what the nodes say themselves.
func (s *scale) truth() {
	want := map[string]map[string]string{}
	own := func(n *node, f func(network string, r Record)) {
		n.Gossip.mu.Lock()
		defer n.Gossip.mu.Unlock()
		for _, network := range append(n.table.Networks(), "") {
			for _, r := range n.table.Records(network) {
				f(network, r)
			}
		}
	}
	for _, n := range s.nodes {
		own(n, func(network string, r Record) {
			if want[network] == nil {
				want[network] = map[string]string{}
			}
			if r.Origin == n.name {
				want[network][r.Origin+"/"+r.Key] = string(r.Data)
			}
		})
	}
	for _, i := range rand.Perm(len(s.nodes))[:20] { // all have the same, see above
		n, have := s.nodes[i], map[string]int{}
		own(n, func(network string, r Record) {
			have[network]++
			if w := want[network][r.Origin+"/"+r.Key]; w != string(r.Data) {
				s.t.Errorf("%s has %q of %s in %q, who says %q", n.name, r.Data, r.Origin, network, w)
			}
		})
		for network, k := range have {
			if k != len(want[network]) {
				s.t.Errorf("%s has %d records in %q, want %d", n.name, k, network, len(want[network]))
			}
		}
	}
}

func (s *scale) half() []int {
	var off []int
	for i := range s.nodes {
		if i < len(s.nodes)/2 {
			off = append(off, i)
		}
	}
	return off
}

func (s *scale) churn(changes int) {
	for range changes {
		n := s.nodes[rand.IntN(len(s.nodes))]
		net := s.nets[n][rand.IntN(4)]
		if rand.IntN(3) == 0 {
			n.Delete(net, fmt.Sprint("e", rand.IntN(40)))
		} else {
			s.endpoint(n, net, fmt.Sprint("e", rand.IntN(40)))
		}
	}
}

func (s *scale) records() (sum int) {
	for _, n := range s.nodes {
		n.Gossip.mu.Lock()
		for _, name := range append(n.table.Networks(), "") {
			for _, r := range n.table.Records(name) {
				if r.Origin == n.name {
					sum++
				}
			}
		}
		n.Gossip.mu.Unlock()
	}
	return sum
}

// What gossip costs, and how soon all is known. The goals are those for which the sizes and timings were chosen.
func TestScale(t *testing.T) {
	var small figures
	run := func(name string, nodes int, standsIn bool, check func(*testing.T, figures)) {
		t.Run(name, func(t *testing.T) {
			if nodes > 50 && os.Getenv("SEINE_BENCH") == "" {
				t.Skipf("skip: needs minutes: %d nodes; SEINE_BENCH=1 (make bench) runs it", nodes)
			}
			f := runScale(t, nodes, 40*nodes, 60, standsIn)
			t.Logf("%d nodes, %d endpoints: %v", nodes, 40*nodes, f)
			if f.healed > 5*time.Second {
				t.Errorf("all is known %v after a healed cut, want at most 5s", f.healed)
			}
			check(t, f)
		})
	}
	run("50 with memberlist", 50, false, func(*testing.T, figures) {})
	run("50", 50, true, func(_ *testing.T, f figures) { small = f })
	flat := func(t *testing.T, f figures) {
		if small.perChange > 0 && f.perChange > 1.1*small.perChange {
			t.Errorf("a change costs %.0f bytes per node, and %.0f at 50 nodes; want the same", f.perChange, small.perChange)
		}
	}
	run("100", 100, true, flat)
	run("500", 500, true, flat)
}
