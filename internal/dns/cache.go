package dns

import (
	"container/list"
	"sync"
	"time"

	miekg "github.com/miekg/dns"
)

const (
	// maxPositive and maxNegative bound how long an answer is kept whatever its TTL says: a resolver that is asked
	// again costs little, an answer that is wrong for a day costs a day.
	maxPositive = time.Hour
	maxNegative = time.Minute
	// StaleFor is how long past its TTL an answer is still given while no upstream answers (RFC 8767), with
	// staleTTL as its TTL.
	StaleFor = 30 * time.Second
	staleTTL = 5
	// failedFor is how long a question that nobody answered is not asked again (RFC 9520).
	failedFor = time.Second
	// cacheBytes bounds the cache's memory.
	cacheBytes = 4 << 20
	// entryCost is what an entry costs besides its message and name.
	entryCost = 250
)

// question is what an answer is kept under: everything that makes upstreams answer differently.
type question struct {
	name         string // folded, with the final dot
	qtype, class uint16
	do, cd       bool // DNSSEC OK, checking disabled
}

// cache keeps packed answers, the least recently used ones leave first.
type cache struct {
	most  int // bytes
	mu    sync.Mutex
	m     map[question]*list.Element
	order list.List // of *cached; front is the latest used
	bytes int
}

type cached struct {
	q       question
	msg     []byte // nil where only a failure is known
	stored  time.Time
	expires time.Time
	failed  time.Time // until then, upstreams are not asked
}

func (c *cached) cost() int { return len(c.msg) + len(c.q.name) + entryCost }

// lookup is what a cache knows about a question.
type lookup struct {
	msg    *miekg.Msg // with TTLs counted down; nil for none
	fresh  bool
	failed bool // upstreams failed a moment ago
}

// get gives a copy of what is kept; an answer that is past its time is given with fresh false, for StaleFor.
func (c *cache) get(q question, now time.Time) lookup {
	c.mu.Lock()
	el := c.m[q]
	if el == nil {
		c.mu.Unlock()
		return lookup{}
	}
	c.order.MoveToFront(el)
	e := *el.Value.(*cached)
	c.mu.Unlock()

	out := lookup{failed: now.Before(e.failed)}
	if e.msg == nil || !now.Before(e.expires.Add(StaleFor)) {
		return out
	}
	msg := new(miekg.Msg)
	if msg.Unpack(e.msg) != nil {
		return out
	}
	out.msg, out.fresh = msg, now.Before(e.expires)
	age := uint32(max(0, now.Sub(e.stored)) / time.Second)
	for _, sec := range [][]miekg.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range sec {
			h := rr.Header()
			if h.Ttl -= min(age, h.Ttl); !out.fresh {
				h.Ttl = staleTTL
			}
		}
	}
	return out
}

// put keeps an answer for as long as it says; one that says nothing is not kept.
func (c *cache) put(q question, msg *miekg.Msg, now time.Time) {
	ttl := lifetime(msg)
	if ttl <= 0 {
		return
	}
	b, err := msg.Pack()
	if err != nil || len(b) > c.most/16 {
		return
	}
	c.store(&cached{q: q, msg: b, stored: now, expires: now.Add(ttl)})
}

// fail notes that a question could not be answered; an older answer stays.
func (c *cache) fail(q question, now time.Time) {
	e := &cached{q: q}
	c.mu.Lock()
	if el := c.m[q]; el != nil {
		*e = *el.Value.(*cached)
	}
	c.mu.Unlock()
	e.failed = now.Add(failedFor)
	c.store(e)
}

func (c *cache) store(e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[question]*list.Element{}
	}
	if el := c.m[e.q]; el != nil {
		c.removeLocked(el)
	}
	c.m[e.q] = c.order.PushFront(e)
	for c.bytes += e.cost(); c.bytes > c.most; {
		c.removeLocked(c.order.Back())
	}
}

func (c *cache) removeLocked(el *list.Element) {
	e := c.order.Remove(el).(*cached)
	delete(c.m, e.q)
	c.bytes -= e.cost()
}

func (c *cache) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m = nil
	c.order.Init()
	c.bytes = 0
}

// lifetime is how long an answer may be kept: the least TTL of what it says, for a negative one what its SOA says (RFC
// 2308 section 5), 0 for one without, and for everything that is neither an answer nor a denial.
func lifetime(msg *miekg.Msg) time.Duration {
	if msg.Truncated || len(msg.Question) != 1 ||
		msg.Rcode != miekg.RcodeSuccess && msg.Rcode != miekg.RcodeNameError {
		return 0
	}
	ttl, positive := uint32(1<<31), false
	for _, rr := range msg.Answer {
		ttl = min(ttl, rr.Header().Ttl)
		positive = positive || rr.Header().Rrtype == msg.Question[0].Qtype
	}
	most := maxPositive
	if msg.Rcode == miekg.RcodeNameError || !positive {
		most = maxNegative
		soa := soaOf(msg)
		if soa == nil {
			return 0
		}
		ttl = min(ttl, soa.Hdr.Ttl, soa.Minttl)
	}
	return min(time.Duration(ttl)*time.Second, most)
}

func soaOf(msg *miekg.Msg) *miekg.SOA {
	for _, rr := range msg.Ns {
		if soa, ok := rr.(*miekg.SOA); ok {
			return soa
		}
	}
	return nil
}
