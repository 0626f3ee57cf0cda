package kernel

import (
	"crypto/ecdh"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// VXLANPort is the UDP port of VXLAN (RFC 7348 section 4).
const VXLANPort = 4789

// Tunnel is what a link of type vxlan is made with (RFC 7348; ip-link(8)). It learns nothing: where a hardware address
// is, its FDB entries say. Only Port can't be left at its zero value. None of it can be changed in place.
type Tunnel struct {
	// VNI is the network identifier, 1 to 16777215.
	VNI uint32
	// Port is the UDP port, at both ends; see VXLANPort.
	Port uint16
	// Local is the address of the machine that packets are sent from. It also decides the family of the other ends.
	Local netip.Addr
	// Under is the link that packets leave by; "" leaves that to the routes.
	Under string
}

func (t *Tunnel) same(a *Tunnel) bool { return t == nil || a != nil && *t == *a }

// Feature is a switch of a link that ethtool(8) -k shows, such as "tx-checksum-ip-generic". Deleting it turns the
// switch the other way, so it is for links of ours; others would need to know what was there before.
type Feature struct {
	NS   string
	Link string
	Name string
	On   bool
}

// Key is the link and the name.
func (f *Feature) Key() Key { return Key{KindFeature, f.NS, f.Link + " " + f.Name} }

// Holds implements Object.
func (f *Feature) Holds(actual Object) bool {
	a, ok := actual.(*Feature)
	return ok && a.On == f.On
}

// String implements Object.
func (f *Feature) String() string {
	return "feature " + f.Name + " " + map[bool]string{true: "on", false: "off"}[f.On] + " dev " + f.Link + in(f.NS)
}

// WGKey is a key of WireGuard's: a Curve25519 key, or one that two peers share.
type WGKey [32]byte

// String gives the key in base64, as wg(8) does. It is for public keys.
func (k WGKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// ParseWGKey reads what String writes.
func ParseWGKey(s string) (WGKey, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != 32 {
		return WGKey{}, fmt.Errorf("%q: is no WireGuard key; want 32 bytes in base64", s)
	}
	return WGKey(b), nil
}

// Secret is a key that no text shows: not a dump, not a log, not JSON.
type Secret struct{ key WGKey }

// NewSecret makes a Secret of a private or a shared key. A private key is clamped as Curve25519 wants it (RFC 7748
// section 5), which is also how a kernel gives it back; clamp says so.
func NewSecret(k WGKey, clamp bool) Secret {
	if clamp {
		k[0] &= 248
		k[31] = k[31]&127 | 64
	}
	return Secret{k}
}

// Reveal gives the key.
func (s Secret) Reveal() WGKey { return s.key }

// IsZero reports whether there is no key.
func (s Secret) IsZero() bool { return s.key == WGKey{} }

// Public is the public key that belongs to a private one.
func (s Secret) Public() (WGKey, error) {
	k, err := ecdh.X25519().NewPrivateKey(s.key[:])
	if err != nil {
		return WGKey{}, fmt.Errorf("private key: %w", err)
	}
	return WGKey(k.PublicKey().Bytes()), nil
}

// String tells whether there is a key, and nothing else.
func (s Secret) String() string {
	if s.IsZero() {
		return "(none)"
	}
	return "(hidden)"
}

// GoString is String, for %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText is String, for JSON.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// WireGuard is the configuration of a link of type wireguard (Linux 5.6), without its peers. It goes with the link.
type WireGuard struct {
	NS   string
	Link string
	// PrivateKey is the machine's own. The zero Secret is not compared.
	PrivateKey Secret
	// Port is the UDP port to listen on, 1 to 65535.
	Port uint16
	// Mark is put on the packets that are sent (SO_MARK); 0 for none.
	Mark uint32
}

// Key is the link.
func (w *WireGuard) Key() Key { return Key{KindWireGuard, w.NS, w.Link} }

// Holds implements Object.
func (w *WireGuard) Holds(actual Object) bool {
	a, ok := actual.(*WireGuard)
	return ok && (w.PrivateKey.IsZero() || w.PrivateKey == a.PrivateKey) && w.Port == a.Port && w.Mark == a.Mark
}

// String implements Object.
func (w *WireGuard) String() string {
	s := fmt.Sprintf("wireguard %s private-key %s listen-port %d", w.Link, w.PrivateKey, w.Port)
	if w.Mark != 0 {
		s += fmt.Sprintf(" fwmark %#x", w.Mark)
	}
	return s + in(w.NS)
}

// WGPeer is another machine that a link of type wireguard speaks to.
type WGPeer struct {
	NS   string
	Link string
	// PublicKey tells the peer from others.
	PublicKey WGKey
	// PresharedKey is mixed into the handshake; the zero Secret for none.
	PresharedKey Secret
	// Endpoint is where the peer is. The kernel follows one that speaks from elsewhere. The zero AddrPort leaves it to
	// the peer to speak first, and is not compared.
	Endpoint netip.AddrPort
	// Keepalive is the time in seconds after which an empty packet is sent, so that what translates addresses on the way
	// does not forget; 0 for none.
	Keepalive uint16
	// AllowedIPs are the addresses that the peer's packets may come from and that are sent to it: prefixes without host
	// bits in the order of SortPrefixes, each once. A prefix belongs to the peer that was given it last.
	AllowedIPs []netip.Prefix
}

// SortPrefixes puts prefixes into the one order in which they are compared, and drops what is there twice.
func SortPrefixes(p []netip.Prefix) []netip.Prefix {
	slices.SortFunc(p, netip.Prefix.Compare)
	return slices.Compact(p)
}

// Key is the link and the public key.
func (p *WGPeer) Key() Key { return Key{KindWGPeer, p.NS, p.Link + " " + p.PublicKey.String()} }

// Holds implements Object.
func (p *WGPeer) Holds(actual Object) bool {
	a, ok := actual.(*WGPeer)
	return ok && p.PresharedKey == a.PresharedKey && (!p.Endpoint.IsValid() || p.Endpoint == a.Endpoint) &&
		p.Keepalive == a.Keepalive && slices.Equal(p.AllowedIPs, a.AllowedIPs)
}

// String implements Object.
func (p *WGPeer) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "wireguard peer %s dev %s", p.PublicKey, p.Link)
	if !p.PresharedKey.IsZero() {
		fmt.Fprintf(&b, " preshared-key %s", p.PresharedKey)
	}
	if p.Endpoint.IsValid() {
		fmt.Fprintf(&b, " endpoint %s", p.Endpoint)
	}
	if p.Keepalive != 0 {
		fmt.Fprintf(&b, " persistent-keepalive %d", p.Keepalive)
	}
	b.WriteString(" allowed-ips")
	for i, a := range p.AllowedIPs {
		b.WriteString(map[bool]string{true: " ", false: ","}[i == 0] + a.String())
	}
	return b.String() + in(p.NS)
}
