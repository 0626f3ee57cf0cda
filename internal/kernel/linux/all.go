package linux

import (
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// tablePrefix begins the names of the nftables tables that are ours.
const tablePrefix = "seine"

// ownTable reports whether a table of family inet is one that a process keeps and that a listing of all gives. Those of
// programs without a state of their own, which find by marks what is theirs, begin with "seine_".
func ownTable(name string) bool {
	return strings.HasPrefix(name, tablePrefix) && !strings.HasPrefix(name, tablePrefix+"_")
}

// listAll lists everything in the base namespace that is provably ours. hints are the objects that are asked for
// besides: what is the same gets their words.
func (s *session) listAll(hints []kernel.Object, f *found) error {
	sp, err := s.space("")
	if err != nil {
		return err
	}
	var links []*linkInfo
	if sp.known != nil {
		links = slices.Collect(maps.Values(sp.known))
	} else if links, err = sp.links(); err != nil {
		return err
	}
	owned := map[int]*linkInfo{}
	for _, l := range links {
		sp.index[l.name] = l.index
		if l.ours() {
			owned[l.index] = l
		}
	}
	if err := s.allLinks(sp, links, hints, f, (*linkInfo).ours); err != nil {
		return err
	}
	for _, l := range owned {
		if l.flags&unix.IFF_UP != 0 {
			f.add(&kernel.LinkUp{Link: l.name})
		}
	}
	if err := sp.allAddrs(owned, f); err != nil {
		return err
	}
	if err := sp.allQdiscs(owned, f); err != nil {
		return err
	}
	if err := sp.allWireGuard(owned, f); err != nil {
		return err
	}
	if err := sp.allNexthops(links, f); err != nil {
		return err
	}
	if err := sp.allRoutes(links, f); err != nil {
		return err
	}
	if err := sp.allNeighs(links, f); err != nil {
		return err
	}
	rules, err := sp.rules(true)
	if err != nil {
		return err
	}
	for _, r := range rules {
		f.add(r)
	}
	if err := s.allHolds(f); err != nil {
		return err
	}
	if err := s.allNft(sp, hints, f); err != nil && !noNft(err) {
		return err
	}
	return nil
}

// noNft reports whether a listing failed because the kernel has no nftables, so that it holds none of it either.
func noNft(err error) bool { return isErrno(err, unix.EPROTONOSUPPORT, unix.EOPNOTSUPP, unix.EINVAL) }

// allLinks lists the links that keep wants. The other end of a veth that was asked for is a part of that one.
func (s *session) allLinks(sp *space, links []*linkInfo, hints []kernel.Object, f *found, keep func(*linkInfo) bool) error {
	names := map[int]string{}
	for _, l := range links {
		names[l.index] = l.name
	}
	asked := map[string]*kernel.Link{}
	for _, o := range hints {
		if l, ok := o.(*kernel.Link); ok && l.NS == "" {
			asked[l.Name] = l
		}
	}
	ends := map[int]bool{}
	for _, l := range links {
		if w := asked[l.name]; w != nil && w.Peer != nil && w.Peer.NS == "" && l.peer != 0 && names[l.peer] == w.Peer.Name {
			ends[l.peer] = true
		}
	}
	for _, l := range links {
		if !keep(l) || ends[l.index] || f.seen[(&kernel.Link{Name: l.name}).Key()] {
			continue
		}
		o, err := s.asLink(sp, l, asked[l.name], names)
		if err != nil {
			return err
		}
		f.add(o)
	}
	return nil
}

// allAddrs lists the addresses on our links that we put there. Since 5.18 the kernel keeps a mark on each address; before
// that, all but those that it makes itself count. On the machine's lo, which is not ours, only the mark counts.
func (p *space) allAddrs(owned map[int]*linkInfo, f *found) error {
	addrs, err := p.addrs(0)
	if err != nil {
		return err
	}
	marked := false
	for _, a := range addrs {
		marked = marked || a.proto == kernel.RouteProtocol
	}
	for _, a := range addrs {
		l := owned[a.index]
		if a.proto == kernel.RouteProtocol && a.index == p.index["lo"] {
			f.add(a.object(p.path, "lo"))
		}
		if l == nil || a.flags&unix.IFA_F_PERMANENT == 0 || a.proto != 0 && a.proto != kernel.RouteProtocol {
			continue
		}
		if a.proto == 0 && (marked || a.prefix.Addr().IsLinkLocalUnicast()) {
			continue
		}
		f.add(a.object(p.path, l.name))
	}
	return nil
}

func (p *space) allQdiscs(owned map[int]*linkInfo, f *found) error {
	qdiscs, err := p.qdiscs(0)
	if err != nil {
		return err
	}
	for i, qs := range qdiscs {
		for _, q := range qs {
			l := owned[i]
			if l == nil {
				continue
			}
			q.Link = l.name
			f.add(q)
			if q.Parent != "" {
				continue
			}
			r, err := p.redirectOf(i, l.name)
			if err != nil {
				return err
			}
			if r != nil {
				f.add(r)
			}
		}
	}
	return nil
}

func (p *space) allRoutes(links []*linkInfo, f *found) error {
	names, byIndex := map[int]string{}, map[int]*linkInfo{}
	for _, l := range links {
		names[l.index], byIndex[l.index] = l.name, l
	}
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		routes, err := p.routes(fam, 0, kernel.RouteProtocol)
		if isErrno(err, unix.EOPNOTSUPP, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return err
		}
		for _, r := range routes {
			o := r.object(p, names)
			if l := byIndex[r.index]; l != nil && !l.ours() && (strings.HasPrefix(l.alias, kernel.PluginAliasPrefix) || o.Type == "local") {
				continue // of a CNI attachment: published ports of the machine's loopback are led to its bridge by a local one
			}
			f.add(o)
		}
	}
	return nil
}

func (p *space) allNeighs(links []*linkInfo, f *found) error {
	names := map[int]string{}
	for _, l := range links {
		names[l.index] = l.name
	}
	neighs, err := p.neighs(unix.AF_UNSPEC, 0)
	if err != nil {
		return err
	}
	proxies, err := p.proxies()
	if err != nil {
		return err
	}
	for _, n := range append(neighs, proxies...) {
		if o := n.neigh(p.path, names[n.index]); o != nil && n.proto == kernel.RouteProtocol {
			f.add(o)
		}
	}
	ours := map[int]bool{}
	for _, l := range links {
		ours[l.index] = l.ours()
	}
	if neighs, err = p.neighs(unix.AF_BRIDGE, 0); err != nil && !isErrno(err, unix.EOPNOTSUPP) {
		return err
	}
	for _, n := range neighs {
		if o := n.object(p.path, names[n.index]); o != nil && ours[n.index] {
			f.add(o)
		}
	}
	return nil
}

// tables gives the names of the tables of family inet that are ours.
func (p *space) tables() ([]string, error) {
	so, err := p.nft()
	if err != nil {
		return nil, err
	}
	rs, err := so.dump(nftMsg(unix.NFT_MSG_GETTABLE, 0, unix.NFPROTO_INET))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range rs {
		if n := cstr(attrOf(r.rest(nfgenLen), unix.NFTA_TABLE_NAME)); ownTable(n) {
			out = append(out, n)
		}
	}
	return out, nil
}

func (s *session) allNft(sp *space, hints []kernel.Object, f *found) error {
	if err := s.allAccepts(sp, f); err != nil {
		return err
	}
	names, err := sp.tables()
	if err != nil {
		return err
	}
	for _, name := range names {
		t, err := sp.table(refTo("", name))
		if err != nil {
			return err
		}
		if t == nil {
			continue
		}
		f.add(t.object(sp.path))
		for _, c := range t.chains {
			if c.separate {
				f.add(&kernel.TableChain{NS: sp.path, Table: name, Chain: c.Chain})
			}
		}
		if err := sp.allElements(t, hints, f, ""); err != nil {
			return err
		}
	}
	return nil
}

// allElements lists the elements of a table whose comments begin with mark.
func (p *space) allElements(t *tableInfo, hints []kernel.Object, f *found, mark string) error {
	asked := map[string]map[string]*kernel.Element{}
	decl := map[string]*kernel.Set{}
	for _, o := range hints {
		e, ok := o.(*kernel.Element)
		if !ok || refTo(e.Family, e.Table) != t.tableRef || e.NS != p.path {
			continue
		}
		el, err := encodeElem(e)
		if err != nil {
			return fail(e, err)
		}
		if asked[e.Set.Name] == nil {
			asked[e.Set.Name] = map[string]*kernel.Element{}
		}
		asked[e.Set.Name][el.id()] = e
		decl[e.Set.Name] = e.Set
	}
	for _, s := range t.sets {
		if len(s.Key) == 0 { // somebody added a set of a type that we have no use for
			continue
		}
		have, err := p.elems(t.tableRef, s)
		if err != nil {
			return err
		}
		if decl[s.Name] != nil {
			s = decl[s.Name]
		}
		for _, el := range have {
			if !strings.HasPrefix(el.comment, mark) {
				continue
			}
			o, err := el.object(p.path, t.tableRef, s, asked[s.Name][el.id()])
			if err != nil {
				return err
			}
			f.add(o)
		}
	}
	return nil
}

// listMachine lists every link of the base namespace.
func (s *session) listMachine(hints []kernel.Object, f *found) error {
	sp, err := s.space("")
	if err != nil {
		return err
	}
	links, err := sp.links()
	if err != nil {
		return err
	}
	return s.allLinks(sp, links, hints, f, func(*linkInfo) bool { return true })
}

// markedIn lists the links of another namespace that marked wants.
func (s *session) markedIn(ns string, marked func(*linkInfo) bool, f *found) error {
	sp, err := s.space(ns)
	if err != nil {
		return err
	}
	links, err := sp.links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if marked(l) {
			f.add(&kernel.Link{NS: ns, Name: l.name, Type: kernel.LinkType(l.kind), MTU: l.mtu, MAC: l.mac, Alias: l.alias})
		}
	}
	return nil
}

// listMarked lists what kernel.Scope.Mark is about.
func (s *session) listMarked(scope kernel.Scope, f *found) error {
	sp, err := s.space("")
	if err != nil {
		return err
	}
	links, err := sp.links()
	if err != nil {
		return err
	}
	marked := func(l *linkInfo) bool { return strings.HasPrefix(l.alias, scope.Mark) }
	if err := s.allLinks(sp, links, scope.Objects, f, marked); err != nil {
		return err
	}
	for _, ns := range scope.MarkNS {
		if err := s.markedIn(ns, marked, f); err != nil && !gone(err) {
			return err
		}
	}
	for _, o := range scope.Objects {
		w, ok := o.(*kernel.Table)
		if !ok || w.NS != "" {
			continue
		}
		t, err := sp.table(refTo(w.Family, w.Name))
		if err != nil {
			return err
		}
		if t == nil {
			continue
		}
		for _, c := range t.chains {
			if c.separate {
				f.add(&kernel.TableChain{Family: w.Family, Table: t.name, Chain: c.Chain})
			}
		}
		if err := sp.allElements(t, scope.Objects, f, scope.Mark); err != nil {
			return err
		}
	}
	return nil
}
