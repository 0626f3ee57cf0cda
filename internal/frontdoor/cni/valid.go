package cni

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"unicode"
)

// validIfname holds a key to an interface name.
func validIfname(key, name string) error {
	if name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, "/:\x00") ||
		strings.ContainsFunc(name, unicode.IsSpace) {
		return invalid(key, name, "is no interface name", "1 to 15 bytes without '/', ':' and white space, not . or ..")
	}
	return nil
}

func validMTU(mtu int) error {
	if mtu != 0 && (mtu < 68 || mtu > 65535) {
		return invalid("mtu", mtu, "is out of range", "68 to 65535, or 0 for the kernel's default")
	}
	return nil
}

// validMasqBackend holds ipMasqBackend to the values that the reference plugins know. Both mean the one that there is.
func validMasqBackend(backend *string) error {
	if backend != nil && !slices.Contains([]string{"iptables", "nftables"}, *backend) {
		return invalid("ipMasqBackend", *backend, "is not known", "iptables or nftables (either gives nftables rules of our own)")
	}
	return nil
}

// validMAC gives a hardware address in the form in which the kernel tells it; "" stays "".
func validMAC(mac string) (string, error) {
	if mac == "" {
		return "", nil
	}
	const want = "6 bytes of one station, such as 02:00:00:00:00:01"
	hw, err := net.ParseMAC(mac)
	switch {
	case err != nil || len(hw) != 6:
		return "", invalid("mac", mac, "is no hardware address", want)
	case hw[0]&1 != 0:
		return "", invalid("mac", mac, "is a group address", want)
	case fmt.Sprint(hw) == "00:00:00:00:00:00":
		return "", invalid("mac", mac, "is the zero address", want)
	}
	return hw.String(), nil
}

// ipamType gives ipam.type; "" where there is none.
func ipamType(r *request) string {
	var c struct {
		Type string `json:"type"`
	}
	if given(r.conf.IPAM) {
		_ = decode(r.conf.IPAM, &c) // ipamOf gives the error
	}
	return c.Type
}
