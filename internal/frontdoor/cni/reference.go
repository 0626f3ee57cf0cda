package cni

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"net/netip"

	"github.com/seine-net/seine/internal/kernel"
)

// What the reference plugins made for a container on a node where their programs were replaced by this one. Their state is
// found by the names that they compute; a DEL takes it back as their own would.

// referenceHash is the beginning of what the reference plugins tell containers and networks apart by.
func referenceHash(n int, words string) string {
	return fmt.Sprintf("%x", sha512.Sum512([]byte(words)))[:n]
}

// referenceChain is the name of an iptables chain of theirs: 28 bytes, whatever the interface in the container.
func (i ident) referenceChain(prefix string) string {
	return prefix + referenceHash(28-len(prefix), i.network+i.containerID)
}

// referenceMasq is what ipMasq made, with either backend. addrs are the attachment's; none where they are not known.
func (i ident) referenceMasq(addrs []netip.Addr) []kernel.Object {
	var out []kernel.Object
	for _, f := range []string{"ip", "ip6"} {
		out = append(out, &kernel.Relic{Family: f, Table: "nat", Chain: i.referenceChain("CNI-"), In: []string{"POSTROUTING"}, Addrs: addrs})
	}
	mark := referenceHash(16, i.network) + "-" + referenceHash(16, i.ifname+":"+i.containerID) + ",*"
	return append(out, &kernel.Relic{Family: "inet", Table: "cni_plugins_masquerade", In: []string{"masq_checks"}, Comment: mark})
}

// referencePorts is what portmap made, with either backend. The rules of the nftables one have the container's name alone:
// the addresses tell the network.
func (i ident) referencePorts(addrs []netip.Addr) []kernel.Object {
	var out []kernel.Object
	for _, f := range []string{"ip", "ip6"} {
		out = append(out,
			&kernel.Relic{Family: f, Table: "nat", Chain: i.referenceChain("CNI-DN-"), In: []string{"CNI-HOSTPORT-DNAT"}},
			&kernel.Relic{Family: f, Table: "cni_hostport", In: []string{"hostports", "hostip_hostports", "masquerading"}, Comment: i.containerID, Addrs: addrs})
	}
	return out
}

// dropRelics removes those of some relics that there are. Other programs may change the same chains at the same time: then
// what the kernel refuses is looked up again.
func dropRelics(ctx context.Context, k kernel.Kernel, relics []kernel.Object) error {
	const tries = 4
	for try := 1; ; try++ {
		have, err := k.List(ctx, kernel.Scope{Objects: relics})
		if err != nil || len(have) == 0 {
			return err
		}
		var changes []kernel.Change
		for _, o := range have {
			changes = append(changes, kernel.Change{Op: kernel.Delete, Old: o})
		}
		if err := errors.Join(applyAll(ctx, k, changes)...); err != nil && try == tries {
			return err
		}
	}
}
