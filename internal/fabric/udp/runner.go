package udp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Runner carries the packets. It needs the device that Fabric.Objects wants, and waits for it; when the device is deleted
// it waits for the next one.
type Runner struct {
	port  uint16
	tag   tag
	log   *slog.Logger
	stats counters

	mu    sync.Mutex
	peers map[string]*peer
	set   uint64
	table atomic.Pointer[table]
	wake  chan struct{} // there is something to wait for the device for
}

// NewRunner makes the part of a fabric that carries packets. Run starts it.
func NewRunner(f Fabric, log *slog.Logger) *Runner {
	r := &Runner{port: f.port, tag: f.tag, log: log, peers: map[string]*peer{}, wake: make(chan struct{}, 1)}
	r.table.Store(newTable(nil))
	return r
}

// SetPeer has packets for the blocks of a peer go there, and takes such as come from them. The same again changes
// nothing. Errors name what is wrong with the peer; then it is as it was.
func (r *Runner) SetPeer(id string, p Peer) error {
	t, err := parseTag(p.Tag)
	if err != nil {
		return err
	}
	if !p.Remote.IsValid() || p.Remote.Port() == 0 || p.Remote.Addr().Zone() != "" {
		return fmt.Errorf("remote %q: is not where datagrams can be sent to", p.Remote)
	}
	if p.Remote.Addr().Is4() != p.Local.Is4() || !p.Local.IsValid() {
		return fmt.Errorf("local %q: is of another family than remote %q", p.Local, p.Remote)
	}
	p.Blocks = slices.Clone(p.Blocks)
	for i, b := range p.Blocks {
		if !b.IsValid() {
			return fmt.Errorf("block %q: is no prefix", b)
		}
		p.Blocks[i] = b.Masked()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.peers {
		if o.id != id && o.Remote == p.Remote {
			return fmt.Errorf("remote %q: is that of another peer, %s", p.Remote, o.id)
		}
	}
	if was := r.peers[id]; was != nil && was.Local == p.Local && was.Remote == p.Remote && was.Tag == p.Tag && slices.Equal(was.Blocks, p.Blocks) {
		return nil
	}
	r.set++
	r.peers[id] = newPeer(id, p, t, r.set)
	r.table.Store(newTable(r.peers))
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return nil
}

// DropPeer forgets a peer; one that is not known is no error.
func (r *Runner) DropPeer(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.peers[id] != nil {
		delete(r.peers, id)
		r.table.Store(newTable(r.peers))
	}
}

func parseTag(s string) (t tag, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) != len(t) {
		return t, fmt.Errorf("tag %q: want %d bytes in base64url", s, len(t))
	}
	return tag(b), nil
}

// counters count packets.
type counters struct{ sent, unsent, nowhere, received, strangers, refused, unwritten atomic.Uint64 }

// Stats are numbers of packets since the Runner was made.
type Stats struct {
	// Sent to peers, and not sent as the kernel did not take them; Nowhere: no peer has the address.
	Sent, Unsent, Nowhere uint64
	// Received from peers. Strangers: datagrams, or several that the kernel put together, from no peer's address. Refused:
	// not for this node, no packets, or not from the peer's blocks. Unwritten: the device did not take them.
	Received, Strangers, Refused, Unwritten uint64
}

// Stats gives the counters.
func (r *Runner) Stats() Stats {
	c := &r.stats
	return Stats{c.sent.Load(), c.unsent.Load(), c.nowhere.Load(), c.received.Load(), c.strangers.Load(), c.refused.Load(), c.unwritten.Load()}
}

// How often the device is looked for, and a port that is in use asked for again.
const (
	lookSoon = 10 * time.Millisecond
	lookMost = time.Second
)

// Run carries packets until ctx ends, in the network namespace of the thread that it is called on: one that is not the
// program's needs runtime.LockOSThread. What goes wrong is logged and tried again.
func (r *Runner) Run(ctx context.Context) error {
	pause := time.NewTimer(lookMost)
	defer pause.Stop()
	delay, said := lookSoon, ""
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
			delay = lookSoon
		case <-pause.C:
		}
		if len(r.table.Load().at) == 0 {
			pause.Stop() // the next peer wakes us
			continue
		}
		s, err := r.open()
		if err == nil {
			said, delay = "", lookSoon
			err = s.run(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		passing := delay < lookMost || errors.Is(err, errAbsent) || errors.Is(err, errGone) // a device gets its alias after its name
		if err != nil && !passing && err.Error() != said {
			said = err.Error()
			r.log.Warn("carrying packets; trying again", "fabric", Name, "err", err)
		}
		pause.Reset(delay)
		delay = min(2*delay, lookMost)
	}
	return nil
}

// session is the time from opening a device to its end.
type session struct {
	r    *Runner
	dev  *device
	sock [2]int // by family; -1 for none
	stop int    // an eventfd
}

// open opens everything, in the thread's namespace.
func (r *Runner) open() (*session, error) {
	s := &session{r: r, sock: [2]int{-1, -1}, stop: -1}
	err := func() (err error) {
		if s.dev, err = openDevice(); err != nil {
			return err
		}
		for i := range s.sock {
			if s.sock[i], err = openSocket(i == 1, r.port); err != nil {
				return err
			}
		}
		s.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
		return err
	}()
	if err != nil {
		s.close()
	}
	return s, err
}

func (s *session) close() {
	if s.dev != nil {
		unix.Close(s.dev.fd)
	}
	for _, fd := range append(s.sock[:], s.stop) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// run carries packets until ctx ends or something breaks, and gives the first reason.
func (s *session) run(ctx context.Context) error {
	defer s.close()
	var running sync.WaitGroup
	var once sync.Once
	var first error
	end := func(err error) {
		once.Do(func() {
			first = err
			_, _ = unix.Write(s.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // a counter at zero takes it
		})
	}
	start := func(f func() error) { running.Go(func() { end(f()) }) }
	start(s.transmit)
	for _, fd := range s.sock {
		if fd >= 0 {
			start(func() error { return newReceiver(s.r, fd, s.dev).run(s.stop) })
		}
	}
	unhook := context.AfterFunc(ctx, func() { end(ctx.Err()) })
	defer unhook()
	running.Wait() // each has called end, so nothing uses stop any more
	return first
}

// The most that is read from the device before it is sent: enough for several packets per system call, too little to keep
// the other side waiting.
const (
	readAhead   = 2 * largest
	readPackets = 64
)

// transmit sends what comes out of the device.
func (s *session) transmit() error {
	t := transmitter{r: s.r, splitter: newSplitter()}
	for i, fd := range s.sock {
		if fd >= 0 {
			t.senders[i] = newSender(fd, &s.r.stats)
		}
	}
	buf := make([]byte, readAhead+vnetLen+largest)
	for {
		used, packets := 0, 0
		var err error
		for used < readAhead && packets < readPackets && !t.splitter.full() {
			var n int
			if n, err = s.dev.read(buf[used : used+vnetLen+largest]); err != nil {
				break
			}
			if n > vnetLen {
				t.take(buf[used : used+n : used+n])
				used += n
				packets++
			}
		}
		t.flush()
		switch {
		case errors.Is(err, unix.EAGAIN) && packets == 0:
			if stopped, err := await(s.dev.fd, s.stop); stopped || err != nil {
				return err
			}
		case err != nil && !errors.Is(err, unix.EAGAIN):
			return err
		}
	}
}

// transmitter sorts packets by peer.
type transmitter struct {
	r         *Runner
	splitter  *splitter
	senders   [2]*sender
	datagrams []datagram
	// Where the last packet went, which is mostly where the next goes.
	table *table
	to    netip.Addr
	peer  *peer
}

// take reads one packet with its virtio header, and uses its memory until flush.
func (t *transmitter) take(buf []byte) {
	pkt := buf[vnetLen:]
	p, err := parse(pkt)
	if err != nil {
		t.r.stats.nowhere.Add(1)
		return
	}
	if to, tab := p.destination(pkt), t.r.table.Load(); to != t.to || tab != t.table {
		t.to, t.table, t.peer = to, tab, tab.find(to)
	}
	if t.peer == nil {
		t.r.stats.nowhere.Add(1)
		return
	}
	s := t.senders[family(t.peer.v6)]
	t.datagrams, err = t.splitter.split(buf, p, t.peer.tag, t.datagrams[:0])
	if err != nil || s == nil {
		t.r.stats.unsent.Add(1)
		return
	}
	for _, d := range t.datagrams {
		s.add(t.peer, d)
	}
}

func (t *transmitter) flush() {
	for _, s := range t.senders {
		if s != nil && len(s.trains) > 0 {
			s.flush()
		}
	}
	t.splitter.reset()
}
