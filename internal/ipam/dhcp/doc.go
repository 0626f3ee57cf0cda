// Package dhcp keeps the DHCP leases of containers' interfaces: it takes them when the CNI plugin "dhcp" asks, renews
// them in time, keeps them over restarts in the daemon's store, and gives them back.
//
//	plugin ── dhcprpc ──► Service ── one lease per attachment ──► store
//	                         │
//	                         ├── DHCPv4 (RFC 2131): packet4, client4      over a wire: sockets in the container's
//	                         └── DHCPv6 (RFC 8415): packet6, client6      namespace, open only while something is asked
//
//	          ┌───────── NAK, the same address is given again ─────────┐
//	          ▼                                                        │
//	acquire ─► bound ── T1 ──► renewing ── T2 ──► rebinding ── expiry ─┴─► lost: the interface is set down
//
// It gives no address to an interface and makes no route: that is done by whoever asked for the lease. It changes the
// kernel in one respect, through internal/kernel: the interface is set up before asking and down when the lease is lost.
// No socket and no descriptor of a container's namespace stays open between exchanges, so that no namespace is kept
// from ending.
package dhcp
