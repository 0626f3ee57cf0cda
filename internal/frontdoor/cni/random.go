package cni

import (
	"fmt"

	"golang.org/x/sys/unix"
)

func systemRandom(b []byte) {
	for n := 0; n < len(b); {
		m, err := unix.Getrandom(b[n:], 0)
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("getrandom: %v", err)) // can't happen: the flags are 0 and the buffer is small
		}
		n += max(m, 0)
	}
}

// newMAC makes a hardware address that is locally administered and of one station (IEEE 802, 8.2.2). first is its first
// byte; 0 makes that random too.
func (h *Host) newMAC(first byte) string {
	b := make([]byte, 6)
	h.Random(b)
	if first == 0 {
		first = b[0]&^1 | 2
	}
	b[0] = first
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}
