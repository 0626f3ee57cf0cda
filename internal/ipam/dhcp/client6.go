package dhcp

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"
)

// client6 speaks DHCPv6 (RFC 8415) for leases. Of several servers the first that answers with an address is taken: to
// wait for better ones, as section 18.2.1 has it, would make every ADD a second longer.
type client6 struct {
	// timeout is how long one exchange is tried.
	timeout time.Duration
	// routerWait is how long after the lease a router is waited for.
	routerWait time.Duration
}

func (c *client6) String() string { return "DHCPv6" }

// duid names a lease to servers: a DUID-UUID (RFC 6355) that follows from what the lease is of.
func (l *lease) duid() []byte {
	sum := sha256.Sum256([]byte(l.key()))
	return append([]byte{0, 4}, sum[:16]...)
}

// iaid tells associations of one client apart. Each has one.
const iaid = 1

// wanted6 are the options that are asked for.
var wanted6 = []byte{0, opt6DNS, 0, opt6Search, 0, opt6NTP}

// exchange is a message that is sent until it is answered.
type exchange6 struct {
	l      *lease
	kind   byte
	server []byte
	addr   netip.Addr
	began  time.Time
}

func (x *exchange6) message(xid uint32) []byte {
	elapsed := min(time.Since(x.began)/(10*time.Millisecond), 1<<16-1)
	p := &packet6{kind: x.kind, xid: xid, options: []option6{{opt6Client, x.l.duid()}}}
	if x.server != nil {
		p.options = append(p.options, option6{opt6Server, x.server})
	}
	p.options = append(p.options, option6{opt6IANA, ia6{addr: x.addr}.marshal(iaid)},
		option6{opt6Elapsed, binary.BigEndian.AppendUint16(nil, uint16(elapsed))})
	if x.kind != msg6Release {
		p.options = append(p.options, option6{opt6Wanted, wanted6})
	}
	return p.marshal()
}

// ask sends a message, again and again, until an answer of the kind comes that accept takes or fails, or ctx ends.
func (c *client6) ask(ctx context.Context, s *socket6, x *exchange6, kind byte, accept func(*packet6) (bool, error)) (*packet6, error) {
	xid, pause := rand.Uint32N(1<<24), firstResend
	for {
		wait := pause
		if err := s.send(x.message(xid)); errors.Is(err, errNotYet) {
			wait = notYetPause
		} else if err != nil {
			return nil, err
		} else {
			pause = min(2*pause, mostResend)
		}
		until := time.Now().Add(wait + jitter(wait/10))
		for {
			b, err := s.receive(until)
			if ctx.Err() != nil {
				if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
					return nil, errNoAnswer
				}
				return nil, context.Cause(ctx)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, err
			}
			if p := answer6(b, xid, kind, x); p != nil {
				if ok, err := accept(p); ok || err != nil {
					return p, err
				}
			}
		}
	}
}

// answer6 reads a message; nil for one that is no answer to the exchange (RFC 8415 section 16).
func answer6(b []byte, xid uint32, kind byte, x *exchange6) *packet6 {
	p, err := parse6(b)
	if err != nil || p.xid != xid || p.kind != kind {
		return nil
	}
	client, _ := find6(p.options, opt6Client)
	server, ok := find6(p.options, opt6Server)
	if string(client) != string(x.l.duid()) || !ok || len(server) == 0 || x.server != nil && string(server) != string(x.server) {
		return nil
	}
	return p
}

// acquire takes a lease: SOLICIT, ADVERTISE, REQUEST, REPLY; and asks the routers for the rest.
func (c *client6) acquire(ctx context.Context, l *lease, want netip.Addr) (*binding, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	routers := c.listen(ctx, l)
	defer routers.close()
	s, err := openSocket6(ctx, l)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	x := &exchange6{l: l, kind: msg6Solicit, addr: want, began: time.Now()}
	var other netip.Addr
	var refused error
	offer, err := c.ask(ctx, s, x, msg6Advertise, func(p *packet6) (bool, error) {
		a, err := p.assigned(iaid)
		if err != nil {
			refused = err // another server may give one
			return false, nil
		}
		if want.IsValid() && a.addr != want {
			other = a.addr
			return false, nil
		}
		return true, nil
	})
	switch {
	case err == nil:
	case errors.Is(err, errNoAnswer) && other.IsValid():
		return nil, fmt.Errorf("%w: %s instead of %s", errOther, other, want)
	case errors.Is(err, errNoAnswer) && refused != nil:
		return nil, refused
	default:
		return nil, err
	}
	a, _ := offer.assigned(iaid)
	x = &exchange6{l: l, kind: msg6Request, addr: a.addr, began: time.Now()}
	x.server, _ = find6(offer.options, opt6Server)
	b, err := c.confirm(ctx, s, x)
	if err != nil {
		return nil, err
	}
	if a := routers.wait(c.routerWait); a != nil {
		b.learn(a)
	}
	return b, nil
}

// confirm sends a REQUEST, RENEW or REBIND and reads the REPLY.
func (c *client6) confirm(ctx context.Context, s *socket6, x *exchange6) (*binding, error) {
	since := time.Now()
	var got ia6
	p, err := c.ask(ctx, s, x, msg6Reply, func(p *packet6) (bool, error) {
		var err error
		if got, err = p.assigned(iaid); err != nil {
			return false, err
		}
		if got.addr != x.addr {
			return false, fmt.Errorf("%w: %s instead of %s", errOther, got.addr, x.addr)
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return p.bind6(got, since), nil
}

// extend asks for more time. What routers said stays.
func (c *client6) extend(ctx context.Context, l *lease, b *binding, rebind bool) (*binding, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	s, err := openSocket6(ctx, l)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	x := &exchange6{l: l, kind: msg6Renew, server: b.ServerID, addr: b.Addr.Addr(), began: time.Now()}
	if rebind {
		x.kind, x.server = msg6Rebind, nil
	}
	got, err := c.confirm(ctx, s, x)
	if err != nil {
		return nil, err
	}
	got.Addr, got.Gateway, got.Routes = b.Addr, b.Gateway, b.Routes
	if len(got.DNS) == 0 {
		got.DNS = b.DNS
	}
	if len(got.Search) == 0 {
		got.Search = b.Search
	}
	return got, nil
}

// farewellWait is how long the answer to a RELEASE is waited for: a moment, since the server that does not hear it
// learns by the lease's end.
const farewellWait = 1500 * time.Millisecond

func (c *client6) release(ctx context.Context, l *lease, b *binding) error {
	ctx, cancel := context.WithTimeout(ctx, farewellWait)
	defer cancel()
	s, err := openSocket6(ctx, l)
	if err != nil {
		return err
	}
	defer s.Close()
	x := &exchange6{l: l, kind: msg6Release, server: b.ServerID, addr: b.Addr.Addr(), began: time.Now()}
	_, err = c.ask(ctx, s, x, msg6Reply, func(*packet6) (bool, error) { return true, nil })
	return err
}

func (c *client6) releaseFar(context.Context, *lease, *binding) error {
	return errors.New("servers are only heard on the link, which is gone")
}

// routers listens for a router while a lease is taken.
type routers struct {
	ask    *routerSocket
	heard  chan *advert
	cancel context.CancelFunc
}

// listen asks the link's routers. Where that is not possible nobody is heard.
func (c *client6) listen(ctx context.Context, l *lease) *routers {
	ctx, cancel := context.WithCancel(ctx)
	r := &routers{heard: make(chan *advert, 1), cancel: cancel}
	s, err := openRouterSocket(ctx, l)
	if err != nil {
		close(r.heard)
		return r
	}
	r.ask = s
	go func() {
		defer close(r.heard)
		for ctx.Err() == nil {
			wait := firstResend
			if s.solicit() != nil {
				wait = notYetPause
			}
			if a := s.receive(time.Now().Add(wait)); a != nil {
				r.heard <- a
				return
			}
		}
	}()
	return r
}

// wait gives what a router said, or nil.
func (r *routers) wait(at time.Duration) *advert {
	select {
	case a := <-r.heard:
		return a
	case <-time.After(at):
		return nil
	}
}

// close ends the listening and waits for it.
func (r *routers) close() {
	r.cancel()
	for range r.heard {
	}
	if r.ask != nil {
		r.ask.Close()
	}
}
