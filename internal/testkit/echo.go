package testkit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Answer is what an Echo server says about the one who asked.
type Answer struct {
	// Server is the name of the namespace that answered.
	Server string
	// Source is the asker's address and port as the server sees them, Local as the asker does.
	Source, Local netip.AddrPort
	// Text is what was sent, come back.
	Text string
	// Took is the time from the first packet to the answer; with TCP that is two round trips.
	Took time.Duration
}

// Echo serves an address of the namespace ("tcp" or "udp", "[::]:80", "0.0.0.0:80", "192.0.2.1:0") until the
// namespace is closed: it answers each line, or packet, with the namespace's name, the asker's address and the line. It
// gives the address that it listens on.
func (n *NS) Echo(network, address string) (netip.AddrPort, error) {
	if strings.HasPrefix(network, "udp") {
		c, err := n.ListenPacket(network, address)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("%s: echo on %s %s: %w", n.Name, network, address, err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { n.echoPackets(c.(*net.UDPConn)) })
		n.onClose(func() { _ = c.Close(); wg.Wait() })
		return c.LocalAddr().(*net.UDPAddr).AddrPort(), nil
	}
	l, err := n.Listen(network, address)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s: echo on %s %s: %w", n.Name, network, address, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { n.echoLines(ctx, c) })
		}
	})
	n.onClose(func() { cancel(); _ = l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

func (n *NS) echoLines(ctx context.Context, c net.Conn) {
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer c.Close()
	from := unmap(c.RemoteAddr().(*net.TCPAddr).AddrPort())
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := fmt.Fprintf(c, "%s %s %s", n.Name, from, line); err != nil {
			return
		}
	}
}

func (n *NS) echoPackets(c *net.UDPConn) {
	buf := make([]byte, 65535)
	for {
		k, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s %s", n.Name, unmap(from), buf[:k]), from)
		}
	}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Ask sends text, one line, to an Echo server and waits for the answer until ctx ends, or two seconds where ctx has no
// end. Over UDP it asks once.
func (n *NS) Ask(ctx context.Context, network string, to netip.AddrPort, text string) (Answer, error) {
	return n.AskFrom(ctx, netip.Addr{}, network, to, text)
}

// AskFrom is Ask from an address of the namespace that the caller chooses.
func (n *NS) AskFrom(ctx context.Context, from netip.Addr, network string, to netip.AddrPort, text string) (Answer, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
	}
	var d net.Dialer
	if from.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
		if strings.HasPrefix(network, "udp") {
			d.LocalAddr = &net.UDPAddr{IP: from.AsSlice()}
		}
	}
	start := time.Now()
	a, err := n.ask(ctx, d, network, to, text)
	a.Took = time.Since(start)
	if err != nil {
		return a, fmt.Errorf("%s asks %s %s: %w", n.Name, network, to, err)
	}
	return a, nil
}

func (n *NS) ask(ctx context.Context, d net.Dialer, network string, to netip.AddrPort, text string) (a Answer, err error) {
	c, err := n.DialWith(ctx, d, network, to.String())
	if err != nil {
		return a, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	if a.Local, err = netip.ParseAddrPort(c.LocalAddr().String()); err != nil {
		return a, err
	}
	if _, err := io.WriteString(c, text+"\n"); err != nil {
		return a, err
	}
	line, err := bufio.NewReaderSize(c, 65536).ReadString('\n')
	if err != nil {
		return a, err
	}
	f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 3)
	if len(f) != 3 {
		return a, fmt.Errorf("answer %q: want name, address and text", line)
	}
	a.Server, a.Text = f[0], f[2]
	a.Source, err = netip.ParseAddrPort(f[1])
	return a, err
}
