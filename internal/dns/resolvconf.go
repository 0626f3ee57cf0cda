package dns

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// ResolvConf is where the machine says who its resolvers are (resolv.conf(5)).
	ResolvConf = "/etc/resolv.conf"
	// statEvery is how often at most the file is looked at; nobody looks while nobody asks.
	statEvery = time.Second
	// maxServers bounds what is taken from the file. The C library takes three.
	maxServers = 8
)

// parseResolvConf gives the name servers in the text of a resolv.conf(5), in order and each once, less those that skip
// names. What is no address is passed over, as the C library does.
func parseResolvConf(text string, skip func(netip.Addr) bool) []netip.AddrPort {
	var out []netip.AddrPort
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil || a.IsMulticast() {
			continue
		}
		a = a.Unmap()
		if a.IsUnspecified() { // resolv.conf(5): the machine itself
			a = netip.IPv6Loopback()
			if f[1] == "0.0.0.0" {
				a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			}
		}
		s := netip.AddrPortFrom(a, 53)
		if skip != nil && skip(a) || slices.Contains(out, s) {
			continue
		}
		if out = append(out, s); len(out) == maxServers {
			break
		}
	}
	return out
}

// upstreams keeps the list of name servers to ask and what is known about each. It reads the file again when it was
// changed; nothing runs in between.
type upstreams struct {
	path  string // "" where servers were given
	skip  func(netip.Addr) bool
	fresh func() // called, without the lock, after the list has changed

	mu      sync.Mutex
	list    []*upstream
	read    bool
	looked  time.Time
	mod     time.Time
	size    int64
	problem error
}

// get gives the servers in the order of the file, those that did not answer lately last.
func (u *upstreams) get(now time.Time) ([]*upstream, error) {
	u.mu.Lock()
	changed := false
	if u.path != "" && (!u.read || now.Sub(u.looked) >= statEvery || now.Before(u.looked)) {
		u.looked = now
		changed = u.readLocked()
	}
	list, problem := slices.Clone(u.list), u.problem
	u.mu.Unlock()
	if changed && u.fresh != nil {
		u.fresh()
	}
	all := len(list)
	list = slices.DeleteFunc(list, func(s *upstream) bool { return s.loops(now) })
	if all > 0 && len(list) == 0 {
		problem = errLoop
	}
	slices.SortStableFunc(list, func(a, b *upstream) int { return a.sick(now) - b.sick(now) })
	return list, problem
}

// readLocked reads the file if it is another one than last time, and reports whether the list became another one.
func (u *upstreams) readLocked() (changed bool) {
	st, err := os.Stat(u.path)
	if err == nil && u.read && u.problem == nil && st.ModTime().Equal(u.mod) && st.Size() == u.size {
		return false
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(u.path)
	}
	if u.problem = err; err != nil && !errors.Is(err, fs.ErrNotExist) && u.read {
		return false // better the list of before than none
	}
	first := !u.read
	u.read = true
	if err == nil {
		u.mod, u.size = st.ModTime(), st.Size()
	}
	servers := parseResolvConf(string(text), u.skip)
	same := slices.EqualFunc(u.list, servers, func(a *upstream, b netip.AddrPort) bool { return a.addr == b })
	if same {
		return false
	}
	u.list = newUpstreams(servers)
	return !first
}

func newUpstreams(servers []netip.AddrPort) []*upstream {
	var out []*upstream
	for _, s := range servers {
		out = append(out, &upstream{addr: s})
	}
	return out
}
