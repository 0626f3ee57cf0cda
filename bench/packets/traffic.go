package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/bench/internal/rig"
)

// A metric is one figure of a path, and what the two processes do to get it.
type metric string

// The metrics.
const (
	throughput metric = "bulk" // one TCP connection that sends as fast as it can; bit/s at the receiver
	requests   metric = "rr"   // request and response of 64 bytes on one TCP connection; ns
	datagrams  metric = "udp"  // the same over UDP
	connecting metric = "conn" // a new TCP connection, a request, its response; ns
)

// roleEnv says to a child which part it plays, "server" or "client"; what to do it reads from its standard input.
const roleEnv = "SEINE_BENCH_ROLE"

const (
	payload  = 64      // bytes of a request and of a response
	chunk    = 1 << 17 // bytes of a write in bulk
	patience = 3       // seconds that the other end may be silent
	warmup   = 100     // requests before the clock starts: neighbours, caches, the path through the kernel
)

// result is what a client found.
type result struct {
	// P50 and P99 are quantiles in ns; for throughput P50 is in bit/s.
	P50, P99 float64
}

// order is what a child is told.
type order struct {
	Metric metric
	At     netip.AddrPort // to listen on, to ask
	Core   int            // to run on; -1 for any
	Length time.Duration  // of the sample; the client's alone to know
}

// play is the whole life of a child. The sockets block: no scheduler but the kernel's comes between a packet and the one
// who waits for it.
func play(role string) int {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // what is measured is not the collector
	var o order
	err := json.NewDecoder(os.Stdin).Decode(&o)
	if err == nil && o.Core >= 0 {
		var set unix.CPUSet
		set.Set(o.Core)
		err = unix.SchedSetaffinity(0, &set)
	}
	switch {
	case err != nil:
	case role == "server":
		err = serve(o)
	default:
		err = ask(o)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		return 1
	}
	return 0
}

// serve answers until it is killed; a server of bulk ends after one connection.
func serve(o order) error {
	fd, err := socket(o.At, o.Metric)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddr(o.At)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if o.Metric == datagrams {
		fmt.Println("ready")
		return echoPackets(fd)
	}
	if err := unix.Listen(fd, 128); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Println("ready")
	buf := make([]byte, chunk)
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if o.Metric == throughput {
			return sink(c, buf)
		}
		for full(c, buf[:payload]) == nil {
			if _, err := unix.Write(c, buf[:payload]); err != nil {
				break
			}
		}
		_ = unix.Close(c)
	}
}

// echoPackets answers the first one who asks, for good.
func echoPackets(fd int) error {
	buf := make([]byte, payload)
	n, from, err := unix.Recvfrom(fd, buf, 0)
	if err == nil {
		err = unix.Connect(fd, from)
	}
	for err == nil {
		if _, err = unix.Write(fd, buf[:n]); err == nil {
			n, err = unix.Read(fd, buf)
		}
	}
	return err
}

// sink takes everything in and says how much it was, and in how many ns from the first byte to the last.
func sink(fd int, buf []byte) error {
	var total uint64
	var start time.Time
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if total == 0 {
			start = time.Now()
		}
		total += uint64(n)
	}
	out := binary.BigEndian.AppendUint64(nil, total)
	_, err := unix.Write(fd, binary.BigEndian.AppendUint64(out, uint64(time.Since(start))))
	return err
}

// ask measures for a while and prints the result.
func ask(o order) error {
	var r result
	var err error
	switch o.Metric {
	case throughput:
		r, err = send(o)
	case requests, datagrams:
		r, err = exchange(o)
	case connecting:
		r, err = o.repeat(func() (time.Duration, error) { return connect(o.At) })
	default:
		err = fmt.Errorf("metric %q: is not known", o.Metric)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func send(o order) (result, error) {
	fd, err := dial(o.At, o.Metric)
	if err != nil {
		return result{}, err
	}
	buf := make([]byte, chunk)
	for start := time.Now(); time.Since(start) < o.Length; {
		if _, err := unix.Write(fd, buf); err != nil {
			return result{}, fmt.Errorf("send: %w", err)
		}
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return result{}, err
	}
	if err := full(fd, buf[:16]); err != nil {
		return result{}, fmt.Errorf("receiver's account: %w", err)
	}
	bits, took := 8*float64(binary.BigEndian.Uint64(buf)), time.Duration(binary.BigEndian.Uint64(buf[8:]))
	return result{P50: bits / took.Seconds()}, nil
}

func exchange(o order) (result, error) {
	fd, err := dial(o.At, o.Metric)
	if err != nil {
		return result{}, err
	}
	buf := make([]byte, payload)
	return o.repeat(func() (time.Duration, error) {
		start := time.Now()
		if _, err := unix.Write(fd, buf); err != nil {
			return 0, err
		}
		err := full(fd, buf)
		return time.Since(start), err
	})
}

// connect times a new connection up to the response, not its end. It ends by a reset: thousands of connections that
// wait for their last packets would make every further one dearer.
func connect(at netip.AddrPort) (time.Duration, error) {
	start := time.Now()
	fd, err := dial(at, connecting)
	if err != nil {
		return 0, err
	}
	var buf [payload]byte
	if _, err = unix.Write(fd, buf[:]); err == nil {
		err = full(fd, buf[:])
	}
	took := time.Since(start)
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return took, errors.Join(err, unix.Close(fd))
}

// repeat runs f for the length of the sample, after some times that don't count.
func (o order) repeat(f func() (time.Duration, error)) (result, error) {
	all := make([]float64, 0, 1<<20)
	for range warmup {
		if _, err := f(); err != nil {
			return result{}, err
		}
	}
	for start := time.Now(); time.Since(start) < o.Length; {
		took, err := f()
		if err != nil {
			return result{}, err
		}
		all = append(all, float64(took))
	}
	return result{P50: rig.Quantile(all, .5), P99: rig.Quantile(all, .99)}, nil
}

func dial(at netip.AddrPort, m metric) (int, error) {
	fd, err := socket(at, m)
	if err != nil {
		return -1, err
	}
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &unix.Timeval{Sec: patience}); err != nil {
			return -1, err
		}
	}
	if err := unix.Connect(fd, sockaddr(at)); err != nil {
		return -1, fmt.Errorf("connect to %s: %w", at, err)
	}
	return fd, nil
}

func socket(at netip.AddrPort, m metric) (int, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	if m == datagrams {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil && kind == unix.SOCK_STREAM { // accepted sockets inherit both
		// Nothing is lost here, so Reno, which every kernel has, never holds back; a machine's default may (BBR paces).
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"))
	}
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	return fd, nil
}

func sockaddr(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
	}
	return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
}

// full reads until buf is full.
func full(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("no answer within %d s", patience)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("the other end closed the connection")
		}
		buf = buf[n:]
	}
	return nil
}
