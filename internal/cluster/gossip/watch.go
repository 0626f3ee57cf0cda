package gossip

import (
	"context"
	"sync"

	"github.com/seine-net/seine/internal/cluster/gossip/table"
)

// Kind says what happened.
type Kind uint8

const (
	Put         Kind = iota + 1 // a record is new or has other data
	Delete                      // a record is gone; Change has it as it was
	NodeUp                      // a node answers
	NodeSuspect                 // this node gets no answer from it; others may
	NodeDown                    // the cluster gets no answer from it; its records are kept for Config.Forget
	NodeLeft                    // it said that it leaves
	NodeGone                    // it was down or had left for Config.Forget: forgotten
)

// String gives the kind in one word.
func (k Kind) String() string {
	return [...]string{"none", "put", "delete", "up", "suspect", "down", "left", "gone"}[k]
}

// Change is what Watch tells.
type Change struct {
	Kind   Kind
	Node   string // whose record or state it is
	Record Record // for Put and Delete
}

// queue holds the changes that the reader has not taken yet, the last one of each record and node. So it is no longer
// than there are of these, however slow the reader is.
type queue struct {
	mu    sync.Mutex
	order []subject
	last  map[subject]Change
	wake  chan struct{}
	out   chan Change
}

type subject struct{ node, network, key string } // key "" stands for the node itself

func newQueue() *queue {
	return &queue{last: map[subject]Change{}, wake: make(chan struct{}, 1), out: make(chan Change)}
}

func (q *queue) add(all ...Change) {
	if len(all) == 0 {
		return
	}
	q.mu.Lock()
	for _, c := range all {
		s := subject{c.Node, c.Record.Network, c.Record.Key}
		if _, ok := q.last[s]; !ok {
			q.order = append(q.order, s)
		}
		q.last[s] = c
	}
	q.mu.Unlock()
	signal(q.wake)
}

func (q *queue) take() (Change, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.order) == 0 {
		q.order = nil
		return Change{}, false
	}
	s := q.order[0]
	q.order = q.order[1:]
	c := q.last[s]
	delete(q.last, s)
	return c, true
}

// run hands the changes to the reader until ctx ends.
func (q *queue) run(ctx context.Context) {
	defer close(q.out)
	for {
		c, ok := q.take()
		if !ok {
			select {
			case <-q.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		select {
		case q.out <- c:
		case <-ctx.Done():
			return
		}
	}
}

// report passes on what the table says about other nodes' records.
func (g *Gossip) report(all []table.Change) {
	changes := make([]Change, len(all))
	for i, c := range all {
		changes[i] = Change{Kind: Put, Node: c.Record.Origin, Record: c.Record}
		if c.Kind == table.Delete {
			changes[i].Kind = Delete
		}
	}
	g.news.add(changes...)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
