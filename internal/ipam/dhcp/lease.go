package dhcp

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/seine-net/seine/internal/ipam/dhcprpc"
)

// lease is what is kept of an attachment: who it is, what it asked for and what it was given. A lease that was handed to
// somebody is not changed any more.
type lease struct {
	Container string `json:"container"`
	Network   string `json:"network"`
	Interface string `json:"interface"`
	// Netns is the path of the namespace and Space tells it from another that comes to lie under the same path.
	Netns string `json:"netns"`
	Space string `json:"space"`
	// MAC is the interface's hardware address, for the time when there is no interface any more.
	MAC  [6]byte      `json:"mac"`
	Conf dhcprpc.Conf `json:"conf"`
	// V4 and V6 are what was given; nil for a family that was not asked for.
	V4 *binding `json:"v4,omitempty"`
	V6 *binding `json:"v6,omitempty"`
	// Lost says why the interface was set down; "" while the lease holds.
	Lost string `json:"lost,omitempty"`
}

// key tells leases apart. Slashes can't be in a container's ID or a network's name.
func (l *lease) key() string { return l.Container + "/" + l.Network + "/" + l.Interface }

// clientID is what the reference plugin identifies its leases by. It may be cut off, so it is not the key.
func (l *lease) clientID() []byte {
	id := l.key()
	return []byte(id[:min(len(id), 254)])
}

// storePrefix begins the names under which leases are kept.
const storePrefix = "dhcp/"

func (l *lease) text() (string, error) {
	b, err := json.Marshal(l)
	return string(b), err
}

// parseLease reads what text wrote.
func parseLease(name, text string) (*lease, error) {
	l := &lease{}
	if err := json.Unmarshal([]byte(text), l); err != nil {
		return nil, fmt.Errorf("lease %q: %w", name, err)
	}
	if storePrefix+l.key() != name || l.Netns == "" || l.V4 == nil && l.V6 == nil {
		return nil, fmt.Errorf("lease %q: is not complete", name)
	}
	for _, b := range []*binding{l.V4, l.V6} {
		if b != nil && (!b.Addr.IsValid() || b.Addr.Addr().Is4() != (b == l.V4)) {
			return nil, fmt.Errorf("lease %q: address %s: is none of its family", name, b.Addr)
		}
	}
	if l.V4 != nil && !l.V4.Server.Is4() {
		return nil, fmt.Errorf("lease %q: server %s: is no address of IPv4", name, l.V4.Server)
	}
	return l, nil
}

// result is what the plugin is told.
func (l *lease) result() *dhcprpc.Result {
	out := &dhcprpc.Result{}
	for _, b := range []*binding{l.V4, l.V6} {
		if b != nil {
			b.result(l.Conf.Priority, out)
		}
	}
	return out
}

// addresses and expires are for people; never is the zero Time.
func (l *lease) addresses() []string {
	var out []string
	for _, b := range []*binding{l.V4, l.V6} {
		if b != nil {
			out = append(out, b.Addr.String())
		}
	}
	return out
}

func (l *lease) expires() (first time.Time) {
	for _, b := range []*binding{l.V4, l.V6} {
		if b != nil && !b.Expire.IsZero() && (first.IsZero() || b.Expire.Before(first)) {
			first = b.Expire
		}
	}
	return first
}

// String names the lease for logs.
func (l *lease) String() string { return strings.ReplaceAll(l.key(), "\n", "?") }
