package loopback

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// maxConns bounds the TCP connections: each takes two descriptors, and up to four more while it splices.
	maxConns = 2048
	// dialTimeout is how long a container may take to accept a connection.
	dialTimeout = 10 * time.Second
)

func (o *port) serveTCP() {
	for wait := time.Duration(0); ; {
		c, err := o.tcp.AcceptTCP()
		switch {
		case o.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			if err == nil {
				reset(c)
			}
			return
		case err != nil: // out of descriptors, most likely: it passes
			if wait == 0 {
				o.proxy.log.Warn("can't accept a connection", "port", o.id.String(), "err", err)
			}
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			pause(o.ctx, wait)
			continue
		}
		wait = 0
		select {
		case o.proxy.places <- struct{}{}:
		default:
			reset(c)
			continue
		}
		o.proxy.wg.Go(func() {
			defer func() { <-o.proxy.places }()
			o.carry(c)
		})
	}
}

// carry joins a connection with a new one to the target until both directions have ended, or one has failed.
func (o *port) carry(client *net.TCPConn) {
	d := net.Dialer{Timeout: dialTimeout}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(o.ctx, "tcp", o.target.Load().String())
	if err != nil {
		reset(client) // what a client without a proxy between would see
		return
	}
	target := c.(*net.TCPConn)
	end := func() { reset(client); reset(target) }
	stop := context.AfterFunc(o.ctx, end)
	var wg sync.WaitGroup
	half := func(to, from *net.TCPConn) {
		// io.Copy between two TCP connections is splice(2): the bytes stay in the kernel.
		if _, err := io.Copy(to, from); err == nil {
			err = to.CloseWrite() // "that was all" goes on to the other side, whose answer may still be coming
			if err == nil {
				return
			}
		}
		end()
	}
	wg.Go(func() { half(client, target) })
	half(target, client)
	wg.Wait()
	if stop() {
		_ = client.Close()
		_ = target.Close()
	}
}

// reset closes a connection in a way that its peer can't take for a regular end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// pause waits, but not beyond ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
