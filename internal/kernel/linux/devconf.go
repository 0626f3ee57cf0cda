package linux

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The values of a link's configuration by their place in what RTM_GETLINK tells: the enum of include/uapi/linux/ip.h
// less one, and that of ipv6.h. Opening a file under /proc/sys/net takes the kernel a quarter of a millisecond and
// more; a link that is asked for anyway tells its values for nothing.
var (
	devconf4 = map[string]int{"forwarding": 0, "rp_filter": 7, "route_localnet": 25}
	devconf6 = map[string]int{"forwarding": 0, "accept_ra": 3, "disable_ipv6": 26, "accept_dad": 27}
)

// devconf finds the link and the place of a sysctl such as net/ipv6/conf/eth0/accept_ra.
func devconf(name string) (link string, v6 bool, place int, ok bool) {
	f := strings.Split(name, "/")
	if len(f) != 5 || f[0] != "net" || f[2] != "conf" || f[3] == "all" || f[3] == "default" {
		return "", false, 0, false
	}
	switch f[1] {
	case "ipv4":
		place, ok = devconf4[f[4]]
	case "ipv6":
		v6 = true
		place, ok = devconf6[f[4]]
	}
	return f[3], v6, place, ok
}

// parseSpec takes the configuration out of a link's IFLA_AF_SPEC.
func (l *linkInfo) parseSpec(b []byte) {
	l.conf4 = attrOf(attrOf(b, unix.AF_INET), unix.IFLA_INET_CONF)
	l.conf6 = attrOf(attrOf(b, unix.AF_INET6), unix.IFLA_INET6_CONF)
}

// value gives one value of the link's configuration; ok is false where the kernel did not tell it.
func (l *linkInfo) value(v6 bool, place int) (v string, ok bool) {
	conf := l.conf4
	if v6 {
		conf = l.conf6
	}
	if len(conf) < 4*(place+1) {
		return "", false
	}
	return strconv.Itoa(int(int32(native.Uint32(conf[4*place:])))), true
}
