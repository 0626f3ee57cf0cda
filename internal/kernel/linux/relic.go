package linux

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// relicRule is a rule to remove.
type relicRule struct {
	chain  string
	handle uint64
}

// relic finds the rules of a relic. chain says that its chain is there, alone that nothing would lead to it any more.
func (p *space) relic(o *kernel.Relic) (rules []relicRule, chain, alone bool, err error) {
	fam, ok := families[o.Family]
	if !ok {
		return nil, false, false, fmt.Errorf("family %q: %w", o.Family, kernel.ErrUnsupported)
	}
	if o.Chain != "" {
		if chain, err = p.hasChain(fam, o.Table, o.Chain); err != nil {
			return nil, false, false, err
		}
	}
	if !chain && o.Comment == "" {
		return nil, false, false, nil
	}
	alone = true
	for _, in := range o.In {
		have, err := p.ruleInfos(fam, o.Table, in)
		if err != nil {
			return nil, false, false, err
		}
		for _, r := range have {
			jumps := chain && r.jumpsTo() == o.Chain
			switch {
			case !jumps && !o.Marks(r.comment):
			case len(o.Addrs) == 0 || r.mentions(o.Addrs):
				rules = append(rules, relicRule{in, r.handle})
			case jumps:
				alone = false
			}
		}
	}
	return rules, chain, alone, nil
}

// mentions reports whether one of the addresses is a value in the rule.
func (r *ruleInfo) mentions(addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return bytes.Contains(r.exprs, a.AsSlice()) })
}

func (s *session) listRelics(sp *space, want []kernel.Object, f *found) error {
	for _, o := range want {
		o := o.(*kernel.Relic)
		rules, chain, alone, err := sp.relic(o)
		if noNft(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(rules) > 0 || chain && alone {
			f.add(o)
		}
	}
	return nil
}

func (p *space) relicMsgs(op kernel.Op, o *kernel.Relic) ([]*msg, error) {
	if op != kernel.Delete {
		return nil, fmt.Errorf("what is another program's is not made: %w", kernel.ErrUnsupported)
	}
	rules, chain, alone, err := p.relic(o)
	if err != nil {
		return nil, err
	}
	begin := func(typ uint16, chain string) *msg {
		m := nftMsg(typ, 0, families[o.Family])
		m.str(unix.NFTA_RULE_TABLE, o.Table) // the numbers are a chain's too
		if typ == unix.NFT_MSG_DELCHAIN {
			m.str(unix.NFTA_CHAIN_NAME, chain)
		} else {
			m.str(unix.NFTA_RULE_CHAIN, chain)
		}
		return m
	}
	var out []*msg
	for _, r := range rules {
		m := begin(unix.NFT_MSG_DELRULE, r.chain)
		m.be64(unix.NFTA_RULE_HANDLE, r.handle)
		out = append(out, m)
	}
	if chain && alone {
		out = append(out, begin(unix.NFT_MSG_DELRULE, o.Chain), begin(unix.NFT_MSG_DELCHAIN, o.Chain))
	}
	return out, nil
}
