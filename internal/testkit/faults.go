package testkit

import (
	"fmt"
	"math"
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the nftables table that the lab has in its namespaces.
const tableName = "lab"

// Where the addresses are in an Ethernet header.
const (
	toMAC   = 0
	fromMAC = 6
)

// dropLocked makes host number i lose what its faults say. It is done by the receiver, on the way in: a drop on the way
// out would be told to the sender's socket as an error.
func (l *Lab) dropLocked(i int) error {
	var rules [][]expr.Any
	for p, f := range l.paths {
		if p.to != i {
			continue
		}
		match := matchMAC(fromMAC, l.Hosts[p.from].MAC)
		switch {
		case f.cut || f.loss >= 100:
			rules = append(rules, append(match, drop))
		case f.loss > 0:
			rules = append(rules, append(match, append(chance(f.loss), drop)...))
		}
	}
	if err := ingress(l.Hosts[i].NS, Interface, rules); err != nil {
		return fmt.Errorf("faults of %s: %w", l.Hosts[i].Name, err)
	}
	return nil
}

// ingress makes rules all that there is in the lab's table in a namespace about what comes in by a link.
func ingress(n *NS, link string, rules [][]expr.Any) error {
	c, err := nftables.New(nftables.WithNetNSFd(n.Fd()))
	if err != nil {
		return err
	}
	// Added and deleted in one go, a table is gone whether it was there or not. One transaction replaces all.
	t := &nftables.Table{Name: tableName + "-" + link, Family: nftables.TableFamilyNetdev}
	c.AddTable(t)
	c.DelTable(t)
	if len(rules) > 0 {
		c.AddTable(t)
		chain := c.AddChain(&nftables.Chain{Name: "in", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Device: link})
		for _, r := range rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: r})
		}
	}
	return c.Flush()
}

var drop = &expr.Verdict{Kind: expr.VerdictDrop}

// matchMAC is "ether saddr" or "ether daddr".
func matchMAC(offset uint32, mac net.HardwareAddr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: offset, Len: 6},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mac},
	}
}

// chance is "numgen random mod 1000000 < percent of it".
func chance(percent float64) []expr.Any {
	const all = 1_000_000
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: all, Type: unix.NFT_NG_RANDOM},
		// Compared byte by byte, so the first byte has to be the one that counts most.
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(math.Round(percent / 100 * all)))},
	}
}
