package driver

import (
	"context"
	"net/netip"

	"github.com/seine-net/seine/api"
)

// Attacher is a further ability of a driver, or that of an IPAM: somebody else's program does part of the work, with
// effects of its own. The engine calls it, outside of all locks, and keeps a book of what it has begun:
//
//	Keep(note) ──► the program is called ──► the noun is stored with the call's ID
//	                        │
//	                        └ crash, error, a noun that is gone: Detach(note), tried again until it succeeds
//
// Nothing is ever asked twice under one ID: what may or may not have come about is undone, and begun anew under another.
// So no program has to be idempotent.
type Attacher interface {
	// Setup makes a network known to the program. An IPAM fills in the subnets.
	Setup(ctx context.Context, n *api.Network, c Call) error
	// Teardown takes that back, going by the note alone. What the program does not know any more is success.
	Teardown(ctx context.Context, note []byte, keep Keep) error
	// Attach has the program make an endpoint. It fills in Plugin, an IPAM the addresses; network is the note of Setup.
	Attach(ctx context.Context, n api.Network, network []byte, e *api.Endpoint, c Call) error
	// Detach takes that back, going by the note alone, whether the sandbox still exists or not. What must not be asked twice
	// is taken out of the note, with keep, as soon as it is done.
	Detach(ctx context.Context, note []byte, keep Keep) error
}

// Keep stores, before it returns, what taking back will need, as JSON; nil says that there is nothing to take back.
type Keep func(note any) error

// Checker is an Attacher whose program can say whether an endpoint is as it made it.
type Checker interface {
	Check(ctx context.Context, note []byte) error
}

// Call is one call of an Attacher.
type Call struct {
	// ID is 64 hexadecimal digits that no other call has.
	ID string
	// Keep is called before the program, and again whenever more is known.
	Keep Keep
	// Free says whether a range is free on this machine: no network of ours and no route has addresses of it. It is nil for
	// endpoints.
	Free func(netip.Prefix) bool
}
