package dns

import (
	"net/netip"
	"sync"
)

// gate bounds how many things go on at once, in all and for each asker, so that one container can't use up what all
// of them share.
type gate struct {
	most, each int
	mu         sync.Mutex
	in         int
	by         map[netip.Addr]int
}

// enter takes a place, if there is one; leave gives it back.
func (g *gate) enter(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.in >= g.most || g.by[a] >= g.each {
		return false
	}
	if g.by == nil {
		g.by = map[netip.Addr]int{}
	}
	g.in++
	g.by[a]++
	return true
}

func (g *gate) leave(a netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.in--
	if g.by[a]--; g.by[a] == 0 {
		delete(g.by, a)
	}
}
