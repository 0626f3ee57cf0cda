package linux

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const nfgenLen = 4 // struct nfgenmsg

// nftMsg begins a message of nf_tables.
func nftMsg(typ, flags uint16, family uint8) *msg {
	return newMsg(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, []byte{family, 0, 0, 0})
}

func batchMark(typ uint16) *msg {
	// The resource id of a batch is the subsystem it is for, big-endian.
	return newMsg(typ, 0, binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, 0}, unix.NFNL_SUBSYS_NFTABLES))
}

// errBatch says that a transaction failed as a whole, not for one of its messages.
var errBatch = errors.New("nftables transaction")

// transact has the kernel carry out messages all or none. Where one or more of them are to blame, culprits has their
// errors by index, and nothing was changed. err says that it failed for another reason.
func (s *sock) transact(msgs []*msg) (culprits map[int]error, err error) {
	begin, end := batchMark(unix.NFNL_MSG_BATCH_BEGIN), batchMark(unix.NFNL_MSG_BATCH_END)
	// The kernel goes on past failures to report them all, and acknowledges only who asks for it: with the answer to
	// the last message everything is told.
	msgs[len(msgs)-1].flag(unix.NLM_F_ACK)
	all := append([]*msg{begin}, msgs...)
	all = append(all, end)
	size := 0
	for _, m := range all {
		size += len(m.b)
	}
	s.grow(size, len(msgs))
	first, err := s.send(all)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBatch, err)
	}
	culprits = map[int]error{}
	answered := false
	for {
		// Everything is told by the time that the send returned; an error of the commit comes last.
		rerr := s.recv(func(seq uint32, flags uint16, r reply) bool {
			if r.typ != unix.NLMSG_ERROR {
				return true
			}
			i, e := int(seq-first)-1, ackError(flags, r.data)
			switch {
			case e != nil && (i == -1 || i == len(msgs)):
				err = fmt.Errorf("%w: %w", errBatch, e)
			case e != nil && i >= 0 && i < len(msgs):
				culprits[i] = e
			}
			answered = answered || e != nil || i == len(msgs)-1
			return true
		})
		if rerr == errNoAnswer && answered {
			return culprits, err
		}
		if rerr != nil {
			return nil, fmt.Errorf("%w: %w", errBatch, rerr)
		}
	}
}

// grow makes room for a transaction of size bytes and n errors.
func (s *sock) grow(size, n int) {
	const ready = 128 << 10 // less than the kernel's default
	if size > ready {
		force(s.fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, size+size/4)
	}
	if n > chunk {
		force(s.fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, min(n*1024, 64<<20))
	}
}

func force(fd, opt, fallback, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, fallback, size)
	}
}
