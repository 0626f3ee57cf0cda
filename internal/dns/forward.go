package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	miekg "github.com/miekg/dns"
)

// The timings of a look-up outside. All of them together stay under the five seconds after which the C library asks
// again.
const (
	// tryTimeout bounds one try at one upstream.
	tryTimeout = 2 * time.Second
	// hedgeAfter is when the next upstream is asked too, without giving the first one up.
	hedgeAfter = 300 * time.Millisecond
	// lookupTimeout bounds all tries of one question.
	lookupTimeout = 4500 * time.Millisecond
	// staleAfter is how long a client waits who could have an answer that is past its time (RFC 8767 section 5).
	staleAfter = 1800 * time.Millisecond
	// rounds is how often each upstream is tried: one lost packet is no failure.
	rounds = 2
)

// ForwarderConfig says whom to ask.
type ForwarderConfig struct {
	// ResolvConf is the file that names the upstreams; default "/etc/resolv.conf". It is read again when it was
	// changed.
	ResolvConf string
	// Servers, if any, are asked in place of those in ResolvConf.
	Servers []netip.AddrPort
	// Own reports the addresses in ResolvConf that lead back to this name server; nil for none.
	Own func(netip.Addr) bool
	// Log gets a line when an upstream turns out to send our questions back to us; nil for nowhere.
	Log *slog.Logger
}

// Forwarder asks the machine's resolvers, each question once for all who wait for it, and keeps the answers. It runs
// nothing of its own: every goroutine belongs to a call of Resolve and ends before that returns.
type Forwarder struct {
	log     *slog.Logger
	servers upstreams
	cache   cache
	mu      sync.Mutex
	flights map[question]*flight
}

// flight is a question that is being asked.
type flight struct {
	done   chan struct{}
	answer answer
	joined bool // others wait too
}

// answer is what came of a question asked outside.
type answer struct {
	msg *miekg.Msg // nil if there is none
	// note is an extended error (RFC 8914) that says why there is none, or why it is an old one.
	note *miekg.EDNS0_EDE
}

// NewForwarder makes a Forwarder.
func NewForwarder(c ForwarderConfig) *Forwarder {
	f := &Forwarder{log: c.Log, flights: map[question]*flight{}}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.cache.most = cacheBytes
	f.servers.path, f.servers.skip = c.ResolvConf, c.Own
	if f.servers.path == "" {
		f.servers.path = ResolvConf
	}
	if len(c.Servers) > 0 {
		f.servers.path = ""
		f.servers.list = newUpstreams(c.Servers)
	}
	// Other resolvers may tell other things under the same names: a VPN came up.
	f.servers.fresh = f.cache.flush
	return f
}

// Flush forgets every answer.
func (f *Forwarder) Flush() { f.cache.flush() }

// Servers are the upstreams in the order in which they would be asked now, and what is wrong with the file that names
// them, if there is something.
func (f *Forwarder) Servers() ([]netip.AddrPort, error) {
	list, err := f.servers.get(time.Now())
	var out []netip.AddrPort
	for _, u := range list {
		out = append(out, u.addr)
	}
	return out, err
}

// kept gives an answer that needs nobody to be asked.
func (f *Forwarder) kept(q question) (answer, bool) {
	known := f.cache.get(q, time.Now())
	switch {
	case known.fresh:
		return answer{msg: known.msg}, true
	case known.failed && known.msg != nil:
		return answer{known.msg, ede(miekg.ExtendedErrorCodeStaleAnswer, "")}, true
	case known.failed:
		return answer{nil, ede(miekg.ExtendedErrorCodeCachedError, "")}, true
	}
	return answer{}, false
}

// resolve gives the answer to a question from the cache or from upstream. It blocks, at most for lookupTimeout.
func (f *Forwarder) resolve(ctx context.Context, q question) answer {
	if a, ok := f.kept(q); ok {
		return a
	}
	f.mu.Lock()
	if fl := f.flights[q]; fl != nil {
		fl.joined = true
		f.mu.Unlock()
		select {
		case <-fl.done:
			a := fl.answer
			if a.msg != nil {
				a.msg = a.msg.Copy() // each waiter makes his own message of it
			}
			return a
		case <-ctx.Done():
			return answer{nil, ede(miekg.ExtendedErrorCodeNotReady, "name server is stopping")}
		}
	}
	fl := &flight{done: make(chan struct{})}
	f.flights[q] = fl
	f.mu.Unlock()

	a := f.lookup(ctx, q, fl)
	fl.answer = a
	f.mu.Lock()
	delete(f.flights, q)
	f.mu.Unlock()
	if a.msg != nil {
		a.msg = a.msg.Copy()
	}
	close(fl.done)
	return a
}

// lookup asks upstream and keeps what it learnt; where nobody answers, an answer past its time is better than none.
func (f *Forwarder) lookup(ctx context.Context, q question, fl *flight) answer {
	known := f.cache.get(q, time.Now())
	if known.fresh { // another flight has landed since the caller looked
		return answer{msg: known.msg}
	}
	stale := known.msg
	servers, problem := f.servers.get(time.Now())
	var msg *miekg.Msg
	var err error
	switch {
	case len(servers) > 0:
		limit := lookupTimeout
		if stale != nil {
			limit = staleAfter
		}
		msg, err = f.race(ctx, limit, servers, q, func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return fl.joined
		})
	case problem != nil:
		err = fmt.Errorf("no upstream: %w", problem)
	default:
		err = errors.New("no upstream name server is configured")
	}
	now := time.Now()
	if err == nil {
		clean(msg, q)
		f.cache.put(q, msg, now)
		return answer{msg: msg}
	}
	if ctx.Err() == nil { // a name server that stops proves nothing about the upstreams
		f.cache.fail(q, now)
	}
	if stale != nil {
		return answer{stale, ede(miekg.ExtendedErrorCodeStaleAnswer, err.Error())}
	}
	return answer{nil, ede(miekg.ExtendedErrorCodeNetworkError, err.Error())}
}

// race is one question on its way to several upstreams.
type race struct {
	ctx   context.Context
	q     question
	line  []*upstream // who is to be tried, in this order
	under map[*upstream]*attempt
	ended chan try
	busy  int // tries under way
	wg    sync.WaitGroup
}

// attempt is what is under way at one upstream.
type attempt struct {
	ctx   context.Context
	stop  context.CancelCauseFunc
	since time.Time
}

// try is one try at one upstream that has ended.
type try struct {
	up  *upstream
	msg *miekg.Msg
	err error
}

// race asks the first upstream; the second one as well when the first is slow; and the next one in line each time one
// has failed. The first answer wins and ends the others.
func (f *Forwarder) race(ctx context.Context, limit time.Duration, servers []*upstream, q question, joined func() bool) (*miekg.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	r := &race{ctx: ctx, q: q, under: map[*upstream]*attempt{}}
	defer r.wg.Wait()
	defer cancel()
	for range rounds {
		r.line = append(r.line, servers...)
	}
	r.ended = make(chan try, len(r.line)) // so that no sender can be left behind blocked
	hedge := time.NewTimer(hedgeAfter)
	defer hedge.Stop()
	var errs []error
	for r.next(); r.busy > 0; {
		select {
		case t := <-r.ended:
			r.busy--
			if t.err == nil {
				r.won(t.up)
				return t.msg, nil
			}
			errs = append(errs, t.err)
			if !errors.Is(t.err, errNoAnswer) {
				// It answered, with a no; only what may have been lost on the way is worth a second try.
				r.line = slices.DeleteFunc(r.line, func(u *upstream) bool { return u == t.up })
			}
			r.next()
		case <-hedge.C:
			if joined() {
				for u, a := range r.under {
					r.wg.Go(func() { f.findLoop(r.ctx, u, a.stop) })
				}
			}
			r.next()
		}
	}
	return nil, errors.Join(dedup(errs)...)
}

// next starts the next try in line, if there is one.
func (r *race) next() {
	if len(r.line) == 0 || r.ctx.Err() != nil {
		return
	}
	u := r.line[0]
	r.line = r.line[1:]
	a := r.under[u]
	if a == nil {
		a = &attempt{since: time.Now()}
		a.ctx, a.stop = context.WithCancelCause(r.ctx)
		r.under[u] = a
	}
	ctx, end := a.ctx, context.CancelFunc(func() {})
	if len(r.line) > 0 { // the last one may take what time is left: it could be slow rather than dead
		ctx, end = context.WithTimeout(ctx, tryTimeout)
	}
	r.busy++
	r.wg.Go(func() {
		defer end()
		msg, err := u.ask(ctx, r.q)
		if errors.Is(err, errNoAnswer) {
			u.sicken()
		}
		r.ended <- try{u, msg, err}
	})
}

// won remembers who answered, and who was asked well before and did not: next time he comes last.
func (r *race) won(winner *upstream) {
	winner.sickTill.Store(0)
	for u, a := range r.under {
		if u != winner && time.Since(a.since) >= hedgeAfter {
			u.sicken()
		}
	}
}

// dedup keeps the first of equal messages: an upstream may fail twice.
func dedup(errs []error) []error {
	seen := map[string]bool{}
	var out []error
	for _, e := range errs {
		if !seen[e.Error()] {
			seen[e.Error()] = true
			out = append(out, e)
		}
	}
	return out
}

// loopDomain is where the names are that should never be asked of us.
const loopDomain = "loop." + Domain

// findLoop finds out whether an upstream asks us what we ask it (a resolver in a container, published on the machine,
// whose own upstream we are): it asks for a name that nobody else can know and that the Server hands to sawProbe when
// somebody asks us for it. Called when an answer is late while somebody else asked the very same question meanwhile,
// which is what a loop looks like.
func (f *Forwarder) findLoop(ctx context.Context, u *upstream, stop context.CancelCauseFunc) {
	name := fmt.Sprintf("%016x.%s", rand.Uint64(), loopDomain)
	if !u.probe.CompareAndSwap(nil, &name) {
		return
	}
	defer u.probe.Store(nil)
	ctx, cancel := context.WithTimeout(ctx, tryTimeout/2)
	defer cancel()
	_, _ = u.ask(ctx, question{name: name + ".", qtype: miekg.TypeTXT, class: miekg.ClassINET})
	if u.loops(time.Now()) {
		stop(errLoop)
		f.log.Warn("upstream name server sends our questions back to us and is left out for a while", "upstream", u.addr, "for", loopFor)
	}
}

var errLoop = errors.New("upstream sends our questions back to us")

// sawProbe takes note of a question for a folded name below loopDomain.
func (f *Forwarder) sawProbe(name string) {
	f.servers.mu.Lock()
	defer f.servers.mu.Unlock()
	for _, u := range f.servers.list {
		if p := u.probe.Load(); p != nil && strings.EqualFold(*p, name) {
			u.loopTill.Store(time.Now().Add(loopFor).UnixNano())
		}
	}
}

// clean takes out of an upstream's answer what is between it and us only.
func clean(msg *miekg.Msg, q question) {
	extra := msg.Extra[:0]
	for _, rr := range msg.Extra {
		switch rr.Header().Rrtype {
		case miekg.TypeOPT, miekg.TypeTSIG, miekg.TypeSIG:
		default:
			extra = append(extra, rr)
		}
	}
	msg.Extra = extra
	msg.Question = []miekg.Question{{Name: q.name, Qtype: q.qtype, Qclass: q.class}}
}

func ede(code uint16, text string) *miekg.EDNS0_EDE {
	const most = 200 // an answer has to fit into 512 bytes
	text = strings.ReplaceAll(text, "\n", "; ")
	return &miekg.EDNS0_EDE{InfoCode: code, ExtraText: text[:min(most, len(text))]}
}
