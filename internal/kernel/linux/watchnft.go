package linux

import (
	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// elemPlace is a set in a table.
type elemPlace struct{ table, set string }

// nft understands a notification of nf_tables. Those of one transaction come in a row and end with NEWGEN.
func (w *watcher) nft(m *notice) Event {
	if m.typ>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.data) < nfgenLen || m.own {
		return Event{}
	}
	typ, fam, b := m.typ&0xff, m.data[0], m.rest(nfgenLen)
	if typ == unix.NFT_MSG_NEWGEN {
		return w.elements()
	}
	// The table's name is the first attribute of every object of nf_tables.
	table := cstr(attrOf(b, unix.NFTA_TABLE_NAME))
	if fam != unix.NFPROTO_INET || !ownTable(table) {
		return w.foreign(typ, fam, table)
	}
	switch typ {
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		p := elemPlace{table, cstr(attrOf(b, unix.NFTA_SET_ELEM_LIST_SET))}
		if w.changed == nil {
			w.changed = map[elemPlace][]elem{}
		}
		w.changed[p] = append(w.changed[p], parseElems(m.reply)...)
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		chain := cstr(attrOf(b, unix.NFTA_RULE_CHAIN))
		if typ == unix.NFT_MSG_NEWCHAIN || typ == unix.NFT_MSG_DELCHAIN {
			chain = cstr(attrOf(b, unix.NFTA_CHAIN_NAME))
		}
		return Event{Keys: []kernel.Key{(&kernel.Table{Name: table}).Key(),
			(&kernel.TableChain{Table: table, Chain: kernel.Chain{Name: chain}}).Key()}}
	case unix.NFT_MSG_NEWSET:
		delete(w.sets, table)
		return Event{Keys: []kernel.Key{(&kernel.Table{Name: table}).Key()}}
	case unix.NFT_MSG_DELSET, unix.NFT_MSG_DELTABLE:
		delete(w.sets, table)
		return Event{All: true} // its elements went without a word
	}
	return Event{}
}

// foreign understands news about a table of others: it may be one that drops our packets, or one that had an accept rule
// of ours in it.
func (w *watcher) foreign(typ uint16, fam uint8, table string) Event {
	switch typ {
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELTABLE:
	default:
		return Event{}
	}
	if familyName(fam) == "" {
		return Event{}
	}
	return Event{Facts: true, Keys: w.k.acceptsIn(familyName(fam), table)}
}

// elements names the elements that the transaction that ended here touched.
func (w *watcher) elements() Event {
	var ev Event
	for p, elems := range w.changed {
		s := w.set(p)
		if s == nil || len(s.Key) == 0 {
			continue
		}
		if s.Interval {
			elems = join(elems)
		}
		for _, el := range elems {
			if o, err := el.object("", refTo("", p.table), s, nil); err == nil {
				ev.Keys = append(ev.Keys, o.Key())
			}
		}
	}
	w.changed = nil
	return ev
}

// set gives the declaration of a set, from memory or from the kernel.
func (w *watcher) set(p elemPlace) *kernel.Set {
	if s := (&kernel.Table{Sets: w.sets[p.table]}).Set(p.set); s != nil {
		return s
	}
	s := w.k.session()
	defer s.close()
	sp, err := s.space("")
	if err != nil {
		return nil
	}
	sets, err := sp.sets(refTo("", p.table))
	if err != nil {
		return nil
	}
	if w.sets == nil {
		w.sets = map[string][]*kernel.Set{}
	}
	w.sets[p.table] = sets
	return (&kernel.Table{Sets: sets}).Set(p.set)
}

// acceptsIn gives the keys of the accept rules that this process wanted in a table of others.
func (k *Kernel) acceptsIn(family, table string) []kernel.Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []kernel.Key
	for _, a := range k.accepts {
		if a.Family == family && a.Table == table {
			out = append(out, a.Key())
		}
	}
	return out
}

// wantAccept notes that an accept rule is wanted, or no more.
func (k *Kernel) wantAccept(op kernel.Op, a *kernel.Accept) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if op == kernel.Delete {
		delete(k.accepts, a.Key())
		return
	}
	k.accepts[a.Key()] = a
}
