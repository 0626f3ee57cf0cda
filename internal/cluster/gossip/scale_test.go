//go:build !race

package gossip

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

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
	nets   map[*node][]string
	serial int
}

func newScale(t testing.TB, nodes, endpoints int) *scale {
	s := &scale{cluster: newCluster(t), nets: map[*node][]string{}}
	s.net.Loss, s.net.Latency, s.net.Jitter = 0.01, 500*time.Microsecond, time.Millisecond
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
	n.put(s.t, "", "node", n.addr.String()+" fd00::1 some keys of about the length that keys have, in base64 or so")
	n.put(s.t, "all", "web", "x")
}

// endpoint puts a record of the size that endpoints have.
func (s *scale) endpoint(n *node, network, key string) {
	s.serial++
	n.put(s.t, network, key, fmt.Sprintf(`{"name":%q,"serial":%d,"mac":"02:42:0a:00:00:01","addresses":["10.0.0.1/16","fd00::1/64"],"sandbox":"/var/run/netns/cni-0123456789","names":["web","web.example"]}`, key, s.serial))
}

func (s *scale) start() {
	for i, n := range s.nodes {
		s.cluster.start(n)
		if i%10 == 9 {
			time.Sleep(50 * time.Millisecond)
		}
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

// idle gives what all nodes send in a second when nothing changes.
func (s *scale) idle() gossiptest.Counts {
	before := s.net.Counts()
	time.Sleep(10 * time.Second)
	c := s.net.Counts().Sub(before)
	return gossiptest.Counts{Packets: c.Packets / 10, PacketBytes: c.PacketBytes / 10, Streams: c.Streams / 10, StreamBytes: c.StreamBytes / 10}
}

type figures struct {
	perChange, idle                    float64 // bytes per node, and change or second
	start, settled, healed, allUp, p99 time.Duration
}

func runScale(t *testing.T, nodes, endpoints int) (f figures) {
	synctest.Test(t, func(t *testing.T) {
		s := newScale(t, nodes, endpoints)
		defer s.stop()
		s.start()
		s.await("all are up", 2*time.Minute, s.allUp)
		f.start = s.await("all know all", time.Minute, s.same)
		want := endpoints/nodes*nodes + 2*nodes
		if have := s.records(); have != want {
			t.Errorf("%d records are known, want %d", have, want)
		}
		time.Sleep(5 * time.Second) // what joining has set going comes to rest
		idle := s.idle()
		f.idle = float64(idle.Bytes()) / float64(nodes)

		// Changes, 20 a second for 10 seconds, in the network of all.
		before, changes := s.net.Counts(), 200
		for range changes {
			s.endpoint(s.nodes[rand.IntN(nodes)], "all", "web")
			time.Sleep(50 * time.Millisecond)
		}
		spent := s.net.Counts().Sub(before)
		f.perChange = float64(spent.Bytes()-10*idle.Bytes()) / float64(changes) / float64(nodes)
		f.settled = s.await("changes are known", time.Minute, s.same)

		// A cut through the middle. On both sides endpoints come and go, nodes restart, and some stay away.
		s.split(s.half()...)
		time.Sleep(30 * time.Second)
		s.churn(nodes * 4)
		time.Sleep(time.Second)
		s.net.Cut(nil)
		f.healed = s.await("all know all after the cut", time.Minute, s.same)
		f.allUp = f.healed + s.await("all are up after the cut", 2*time.Minute, s.allUp)
	})
	return f
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

func TestScale(t *testing.T) {
	sizes := []int{50}
	debug.SetGCPercent(100)
	if os.Getenv("SCALE") != "" {
		fmt.Sscan(os.Getenv("SCALE"), &sizes[0])
	}
	for _, n := range sizes {
		real := time.Now()
		f := runScale(t, n, n*40)
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		t.Logf("%d nodes, %d endpoints: %.0f bytes per change and node, %.0f bytes/s idle per node; all known after start %v, after changes %v, after a healed cut %v, all up after %v; took %v, %d MB",
			n, n*40, f.perChange, f.idle, f.start, f.settled, f.healed, f.allUp, time.Since(real), ms.Sys>>20)
	}
}
