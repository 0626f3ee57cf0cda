package dhcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"
)

// errRefused says that a server denied the address (DHCPNAK, or NoBinding in DHCPv6).
var errRefused = errors.New("the server refuses the address")

// errOther says that the server would give another address than the container has.
var errOther = errors.New("the server gives another address")

// errNoAnswer says that nobody answered.
var errNoAnswer = errors.New("no server answers")

// wire carries messages over a container's interface while something is asked. It ends with the context that it was
// opened with.
type wire interface {
	// MAC is the interface's hardware address.
	MAC() [6]byte
	// broadcast sends to all servers on the link. from is the interface's address, the zero Addr for none.
	broadcast(msg []byte, from netip.Addr) error
	// unicast sends to a server by the container's routes.
	unicast(msg []byte, from, to netip.Addr) error
	// direct sends to a server by a hardware address, at once.
	direct(msg []byte, from, to netip.Addr, via [6]byte) error
	// receive gives the next message and where it came from; os.ErrDeadlineExceeded where there was none until then.
	receive(until time.Time) (msg []byte, via [6]byte, err error)
	Close() error
}

// The pauses after which a message is sent again: the first, and the largest within one exchange.
const (
	firstResend = time.Second
	mostResend  = 16 * time.Second
)

// client4 speaks DHCPv4 (RFC 2131) for leases.
type client4 struct {
	open func(context.Context, *lease) (wire, error)
	// timeout is how long one exchange is tried.
	timeout time.Duration
	// toAll asks servers to answer to everybody (RFC 2131 section 4.1), for interfaces that share a hardware address.
	toAll bool
}

func (c *client4) String() string { return "DHCPv4" }

// message begins a message for a lease; what the configuration provides stands over all but the message's type.
func (c *client4) message(l *lease, mac [6]byte, xid uint32, kind byte, began time.Time) *packet4 {
	p := &packet4{xid: xid, mac: mac, broadcast: c.toAll, secs: uint16(min(time.Since(began)/time.Second, 1<<16-1))}
	p.set(optMessage, kind)
	p.set(optClientID, append([]byte{0}, l.clientID()...)...)
	if kind == msgRelease {
		for _, o := range l.Conf.Provide {
			if o.Code == optClientID {
				p.set(o.Code, o.Value...)
			}
		}
		return p
	}
	p.set(optMaxSize, maxSize4>>8, maxSize4&255)
	for _, o := range l.Conf.Provide {
		p.set(o.Code, o.Value...)
	}
	if len(l.Conf.Request) > 0 {
		p.set(optWanted, l.Conf.Request...)
	}
	return p
}

// acquire takes a lease: DISCOVER, OFFER, REQUEST, ACK. With want another address than that is errOther.
func (c *client4) acquire(ctx context.Context, l *lease, want netip.Addr) (*binding, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	w, err := c.open(ctx, l)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	began, xid := time.Now(), rand.Uint32()
	var other netip.Addr
	offer, _, err := c.ask(ctx, w, xid, func(again int) error {
		p := c.message(l, w.MAC(), xid, msgDiscover, began)
		if want.IsValid() {
			p.set(optRequested, want.AsSlice()...)
		}
		return w.broadcast(p.marshal(), netip.Addr{})
	}, func(p *packet4) (bool, error) {
		_, named := oneAddr4(p.option(optServer))
		if p.kind() != msgOffer || !p.your.IsValid() || !named {
			return false, nil
		}
		if want.IsValid() && p.your != want {
			other = p.your // another server may have the one that is wanted
			return false, nil
		}
		return true, nil
	})
	if err != nil {
		if other.IsValid() && errors.Is(err, errNoAnswer) {
			return nil, fmt.Errorf("%w: %s instead of %s", errOther, other, want)
		}
		return nil, err
	}
	since := time.Now()
	ack, via, err := c.ask(ctx, w, xid, func(again int) error {
		since = time.Now() // the lease counts from when it was asked for (RFC 2131 section 4.4.1)
		p := c.message(l, w.MAC(), xid, msgRequest, began)
		p.set(optRequested, offer.your.AsSlice()...)
		p.set(optServer, offer.option(optServer)...)
		return w.broadcast(p.marshal(), netip.Addr{})
	}, func(p *packet4) (bool, error) { return accept(p, offer.your) })
	if err != nil {
		return nil, err
	}
	return bind4(ack, via, since)
}

// accept takes the answer to a REQUEST.
func accept(p *packet4, want netip.Addr) (bool, error) {
	switch p.kind() {
	case msgNAK:
		return false, fmt.Errorf("%w %s%s", errRefused, want, because(p))
	case msgACK:
		if p.your != want {
			return false, fmt.Errorf("%w: %s instead of %s", errOther, p.your, want)
		}
		return true, nil
	}
	return false, nil
}

// because quotes what a server says, for people.
func because(p *packet4) string {
	text := p.option(optText)
	if len(text) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%q)", text[:min(len(text), 100)])
}

// ask sends a message, again and again, until accept takes an answer or fails, or ctx ends.
func (c *client4) ask(ctx context.Context, w wire, xid uint32, send func(again int) error, accept func(*packet4) (bool, error)) (*packet4, [6]byte, error) {
	var via [6]byte
	pause := firstResend
	for again := 0; ; again++ {
		if err := send(again); err != nil {
			return nil, via, err
		}
		until := time.Now().Add(pause + jitter(pause/10))
		pause = min(2*pause, mostResend)
		for {
			b, from, err := w.receive(until)
			if ctx.Err() != nil {
				if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
					return nil, via, errNoAnswer
				}
				return nil, via, context.Cause(ctx)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, via, err
			}
			// What is no message to us is another's, or nobody's: it is passed over.
			p, err := parse4(b)
			if err != nil || !p.reply || p.xid != xid || p.mac != w.MAC() {
				continue
			}
			via = from
			if ok, err := accept(p); ok || err != nil {
				return p, via, err
			}
		}
	}
}

// jitter is a random time from -span to span, so that many clients don't ask at once.
func jitter(span time.Duration) time.Duration {
	if span <= 0 {
		return 0
	}
	return rand.N(2*span) - span
}

// extend asks for more time: of the server that gave the lease or, when rebinding, of any.
func (c *client4) extend(ctx context.Context, l *lease, b *binding, rebind bool) (*binding, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	w, err := c.open(ctx, l)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	began, xid := time.Now(), rand.Uint32()
	since := began
	ack, via, err := c.ask(ctx, w, xid, func(int) error {
		since = time.Now()
		p := c.message(l, w.MAC(), xid, msgRequest, began)
		p.client = b.Addr.Addr()
		if rebind {
			return w.broadcast(p.marshal(), b.Addr.Addr())
		}
		return w.unicast(p.marshal(), b.Addr.Addr(), b.Server)
	}, func(p *packet4) (bool, error) {
		if s, ok := oneAddr4(p.option(optServer)); !ok || !rebind && s != b.Server {
			return false, nil
		}
		return accept(p, b.Addr.Addr())
	})
	if err != nil {
		return nil, err
	}
	return bind4(ack, via, since)
}

// release gives the lease back; no answer follows (RFC 2131 section 4.4.6). It goes straight to where the lease came
// from: the interface is taken away next, and with it what would wait for the server's hardware address.
func (c *client4) release(ctx context.Context, l *lease, b *binding) error {
	w, err := c.open(ctx, l)
	if err != nil {
		return err
	}
	defer w.Close()
	return w.direct(c.farewell(l, b, w.MAC()), b.Addr.Addr(), b.Server, b.Via)
}

// farewell is the message that gives a lease back.
func (c *client4) farewell(l *lease, b *binding, mac [6]byte) []byte {
	p := c.message(l, mac, rand.Uint32(), msgRelease, time.Now())
	p.client = b.Addr.Addr()
	p.set(optServer, b.Server.AsSlice()...)
	return p.marshal()
}

// releaseFar sends the same from the machine's own namespace, where that has a way to the server.
func (c *client4) releaseFar(ctx context.Context, l *lease, b *binding) error {
	var d net.Dialer
	to, err := d.DialContext(ctx, "udp4", netip.AddrPortFrom(b.Server, serverPort4).String())
	if err != nil {
		return err
	}
	defer to.Close()
	_, err = to.Write(c.farewell(l, b, l.MAC))
	return err
}
