package testkit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A delay is a wire in user space that one direction between two hosts takes in place of the bridge's: it works on
// every kernel, with sch_netem or without.
//
//	sender ─► pA ─(nft drops it)─x  bridge  pB ─► receiver
//	            └─► packet socket ─► queue ─► packet socket ┘
//
// A packet socket sees a frame before the netdev hook drops it. Frames travel with their virtio header, so large
// segments stay whole and half-made checksums stay what they are. An 802.1Q tag, which the kernel keeps beside the
// frame, is lost.
type delay struct {
	d       time.Duration
	in, out *os.File
	queue   chan frame
	stop    chan struct{}
	wg      sync.WaitGroup
}

type frame struct {
	due  time.Time
	data []byte // with its virtio header
}

const (
	virtioHeader = 10
	maxFrame     = virtioHeader + 14 + 4 + 65536
	// queueFrames bounds what is on the way; more is lost, as on a wire that is full.
	queueFrames = 16384
	// packetBuffer is the sockets' buffer in bytes.
	packetBuffer = 16 << 20
)

// delayLocked makes the frames of a path take d.
func (l *Lab) delayLocked(p path, d time.Duration) error {
	old := l.delays[p]
	switch {
	case old == nil && d == 0, old != nil && old.d == d:
		return nil
	}
	// For a moment frames take both ways or none; both are what happens on networks.
	var now *delay
	if d > 0 {
		var err error
		if now, err = l.newDelay(p, d); err != nil {
			return fmt.Errorf("delay from %s to %s: %w", l.Hosts[p.from].Name, l.Hosts[p.to].Name, err)
		}
		l.delays[p] = now
	} else {
		delete(l.delays, p)
	}
	err := l.divertLocked(p.from)
	if old != nil {
		old.close()
	}
	return err
}

// divertLocked keeps the bridge from carrying what delays carry.
func (l *Lab) divertLocked(from int) error {
	var rules [][]expr.Any
	for p := range l.delays {
		if p.from == from {
			rules = append(rules, append(matchMAC(toMAC, l.Hosts[p.to].MAC), drop))
		}
	}
	return ingress(l.wire, port(from+1), rules)
}

func (l *Lab) newDelay(p path, d time.Duration) (*delay, error) {
	x := &delay{d: d, queue: make(chan frame, queueFrames), stop: make(chan struct{})}
	err := l.wire.Do(func() (err error) {
		if x.in, err = packetSocket(port(p.from+1), true, l.Hosts[p.to].MAC); err != nil {
			return err
		}
		x.out, err = packetSocket(port(p.to+1), false, nil)
		if err != nil {
			_ = x.in.Close()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	x.wg.Go(x.receive)
	x.wg.Go(x.send)
	return x, nil
}

func (x *delay) close() {
	close(x.stop)
	_ = x.in.Close()
	_ = x.out.Close()
	x.wg.Wait()
}

func (x *delay) receive() {
	buf := make([]byte, maxFrame)
	for {
		n, err := x.in.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil || n < virtioHeader+14: // ENETDOWN while the link goes; nothing else is known to come
			select {
			case <-x.stop:
				return
			case <-time.After(time.Millisecond):
			}
			continue
		}
		select {
		case x.queue <- frame{time.Now().Add(x.d), append([]byte(nil), buf[:n]...)}:
		default:
		}
	}
}

func (x *delay) send() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var f frame
		select {
		case <-x.stop:
			return
		case f = <-x.queue:
		}
		if wait := time.Until(f.due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-x.stop:
				return
			case <-timer.C:
			}
		}
		_, _ = x.out.Write(f.data) // what can't be sent is lost
	}
}

// packetSocket opens a packet socket on a link of the calling thread's namespace: for reading what comes in for a
// hardware address, or for writing.
func packetSocket(link string, read bool, to net.HardwareAddr) (*os.File, error) {
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	// Protocol 0 receives nothing, so nothing unfiltered is in the queue when the filter comes.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	set := func(err *error, level, opt, value int) {
		if *err == nil {
			*err = unix.SetsockoptInt(fd, level, opt, value)
		}
	}
	set(&err, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	set(&err, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetBuffer)
	set(&err, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, packetBuffer)
	at := &unix.SockaddrLinklayer{Ifindex: ifi.Index}
	if read {
		at.Protocol = htons(unix.ETH_P_ALL)
		if err == nil {
			err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, onlyTo(to))
		}
	} else {
		// Past the link's own egress queue and hooks.
		set(&err, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	}
	if err == nil {
		err = unix.Bind(fd, at)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("packet socket on %q: %w", link, err)
	}
	return os.NewFile(uintptr(fd), link), nil
}

// onlyTo is a classic BPF program that takes frames to a hardware address.
func onlyTo(mac net.HardwareAddr) *unix.SockFprog {
	const (
		loadWord = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		loadHalf = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
		equal    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		give     = unix.BPF_RET | unix.BPF_K
	)
	prog := []unix.SockFilter{
		{Code: loadWord, K: 0},
		{Code: equal, K: binary.BigEndian.Uint32(mac[:4]), Jf: 3},
		{Code: loadHalf, K: 4},
		{Code: equal, K: uint32(binary.BigEndian.Uint16(mac[4:])), Jf: 1},
		{Code: give, K: 1 << 18},
		{Code: give, K: 0},
	}
	return &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
