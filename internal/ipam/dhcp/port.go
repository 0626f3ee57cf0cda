package dhcp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// port is a socket in a container's namespace that is waited on without a thread, until a context ends.
type port struct {
	ctx  context.Context
	f    *os.File
	stop func() bool
	// beside is what the kernel said beside the last packet (cmsg(3)).
	beside []byte
}

// openPort makes a socket in a lease's namespace; open gets the interface's index, which is given as well.
func openPort(ctx context.Context, l *lease, open func(index int) (fd int, err error)) (*port, int, error) {
	fd, index := -1, 0
	_, err := enter(l.Netns, l.Space, func() error {
		link, err := interfaceOf(l.Interface)
		if err != nil {
			return err
		}
		index = link.Index
		if fd, err = open(index); err != nil {
			return fmt.Errorf("interface %q: socket: %w", l.Interface, err)
		}
		return nil
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, 0, err
	}
	p := &port{ctx: ctx, f: os.NewFile(uintptr(fd), "dhcp")}
	p.stop = context.AfterFunc(ctx, func() { _ = p.f.SetReadDeadline(time.Unix(1, 0)) })
	return p, index, nil
}

func (p *port) send(msg []byte, to unix.Sockaddr) error {
	raw, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), msg, 0, to)
		return sent != unix.EAGAIN
	})
	return errors.Join(err, sent)
}

// receive waits for a packet until some time (os.ErrDeadlineExceeded) or the end of the context.
func (p *port) receive(until time.Time, buf []byte) (n int, from unix.Sockaddr, err error) {
	raw, err := p.f.SyscallConn()
	if err == nil {
		err = p.f.SetReadDeadline(until)
	}
	if err == nil {
		err = p.ctx.Err() // it may have ended just before, and its deadline been overwritten
	}
	oob := make([]byte, 64)
	for err == nil {
		var got error
		var more int
		err = raw.Read(func(fd uintptr) bool {
			n, more, _, from, got = unix.Recvmsg(int(fd), buf, oob, 0)
			return got != unix.EAGAIN
		})
		if err != nil || errors.Is(got, unix.ENETDOWN) { // the latter is told once; the interface may come up again
			continue
		}
		p.beside = oob[:more]
		return n, from, got
	}
	return 0, nil, err
}

// Close closes the socket.
func (p *port) Close() error {
	p.stop()
	return p.f.Close()
}
