package linux

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"

	"github.com/seine-net/seine/internal/kernel"
)

// List implements kernel.Kernel.
func (k *Kernel) List(ctx context.Context, scope kernel.Scope) ([]kernel.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := k.session()
	defer s.close()
	if err := s.knowLinks(scope); err != nil {
		return nil, err
	}
	return s.list(scope)
}

// fewLinks is how many of the machine's links are asked for one by one. Each question has the kernel look through all
// namespaces that it knows, for the number of the one that a veth's other end is in.
const fewLinks = 64

// knowLinks asks for all links of the machine's namespace at once where a listing is about many.
func (s *session) knowLinks(scope kernel.Scope) error {
	n := 0
	for _, o := range scope.Objects {
		if k := o.Key(); k.Kind == kernel.KindLink && k.NS == "" {
			n++
		}
	}
	if n <= fewLinks {
		return nil
	}
	sp, err := s.space("")
	if err != nil {
		return err
	}
	links, err := sp.links()
	if err != nil {
		return err
	}
	sp.known = make(map[string]*linkInfo, len(links))
	for _, l := range links {
		sp.known[l.name], sp.index[l.name] = l, l.index
	}
	return nil
}

// found collects a listing, each key once.
type found struct {
	seen map[kernel.Key]bool
	objs []kernel.Object
}

func (f *found) add(o kernel.Object) {
	if k := o.Key(); !f.seen[k] {
		f.seen[k] = true
		f.objs = append(f.objs, o)
	}
}

// lister lists what exists of the wanted objects of some kinds in one namespace.
type lister struct {
	kinds []kernel.Kind
	list  func(*session, *space, []kernel.Object, *found) error
}

var listers = []lister{
	{[]kernel.Kind{kernel.KindTable, kernel.KindChain}, (*session).listTables},
	{[]kernel.Kind{kernel.KindRelic}, (*session).listRelics},
	{[]kernel.Kind{kernel.KindAccept}, (*session).listAccepts},
	{[]kernel.Kind{kernel.KindHold}, (*session).listHolds},
	{[]kernel.Kind{kernel.KindLink, kernel.KindLinkUp}, (*session).listLinks},
	{[]kernel.Kind{kernel.KindVLANs}, (*session).listVLANs},
	{[]kernel.Kind{kernel.KindAttrs}, (*session).listAttrs},
	{[]kernel.Kind{kernel.KindFeature}, (*session).listFeatures},
	{[]kernel.Kind{kernel.KindWireGuard, kernel.KindWGPeer}, (*session).listWireGuard},
	{[]kernel.Kind{kernel.KindSysctl}, (*session).listSysctls},
	{[]kernel.Kind{kernel.KindQdisc}, (*session).listQdiscs},
	{[]kernel.Kind{kernel.KindRedirect}, (*session).listRedirects},
	{[]kernel.Kind{kernel.KindAddr}, (*session).listAddrs},
	{[]kernel.Kind{kernel.KindRule}, (*session).listRules},
	{[]kernel.Kind{kernel.KindNexthop}, (*session).listNexthops},
	{[]kernel.Kind{kernel.KindRoute}, (*session).listRoutes},
	{[]kernel.Kind{kernel.KindNeigh, kernel.KindFDB}, (*session).listNeighs},
	{[]kernel.Kind{kernel.KindElement}, (*session).listElements},
}

// place is where an object is looked for.
type place struct {
	ns   string
	kind kernel.Kind
}

// visits sorts objects by the namespace that has to be entered to look them up. A veth goes with the namespace of its
// far end, so that each is entered once.
func visits(objs []kernel.Object) (order []string, by map[string]map[place][]kernel.Object) {
	by = map[string]map[place][]kernel.Object{}
	for _, o := range objs {
		k := o.Key()
		visit := k.NS
		if l, ok := o.(*kernel.Link); ok && l.Peer != nil && visit == "" {
			visit = l.Peer.NS
		}
		if by[visit] == nil {
			by[visit] = map[place][]kernel.Object{}
			order = append(order, visit)
		}
		p := place{k.NS, k.Kind}
		by[visit][p] = append(by[visit][p], o)
	}
	return order, by
}

func (s *session) list(scope kernel.Scope) ([]kernel.Object, error) {
	f := &found{seen: map[kernel.Key]bool{}}
	order, by := visits(scope.Objects)
	if err := s.visitAll(order, by, f); err != nil {
		return nil, err
	}
	if scope.Links {
		if err := s.listMachine(scope.Objects, f); err != nil {
			return nil, err
		}
	}
	if scope.Mark != "" {
		if err := s.listMarked(scope, f); err != nil {
			return nil, err
		}
	}
	if scope.All {
		if err := s.listAll(scope.Objects, f); err != nil {
			return nil, err
		}
	}
	return f.objs, nil
}

// crowd is from how many namespaces on they are visited by several goroutines at once.
const crowd = 64

// visitAll lists what exists in some namespaces.
func (s *session) visitAll(order []string, by map[string]map[place][]kernel.Object, f *found) error {
	workers := min(runtime.GOMAXPROCS(0), len(order)/crowd)
	if workers < 2 {
		return s.visitSome(order, by, f)
	}
	var running sync.WaitGroup
	results, errs := make([]*found, workers), make([]error, workers)
	for i := range workers {
		results[i] = &found{seen: map[kernel.Key]bool{}}
		running.Go(func() {
			w := s.k.session()
			defer w.close()
			if base := s.spaces[""]; base != nil && base.known != nil {
				sp, err := w.space("")
				if err != nil {
					errs[i] = err
					return
				}
				sp.known = base.known
			}
			errs[i] = w.visitSome(order[i*len(order)/workers:(i+1)*len(order)/workers], by, results[i])
		})
	}
	running.Wait()
	for _, r := range results {
		for _, o := range r.objs {
			f.add(o)
		}
	}
	return errors.Join(errs...)
}

func (s *session) visitSome(order []string, by map[string]map[place][]kernel.Object, f *found) error {
	for _, visit := range order {
		for _, ns := range slices.Compact([]string{"", visit}) {
			if err := s.listSpace(ns, by[visit], f); err != nil {
				return err
			}
		}
	}
	return nil
}

// listSpace lists what exists in one namespace; nothing where it is gone.
func (s *session) listSpace(ns string, by map[place][]kernel.Object, f *found) error {
	var sp *space
	for _, l := range listers {
		var want []kernel.Object
		for _, kind := range l.kinds {
			want = append(want, by[place{ns, kind}]...)
		}
		if len(want) == 0 {
			continue
		}
		var err error
		if sp == nil {
			if sp, err = s.space(ns); gone(err) {
				return nil
			} else if err != nil {
				return err
			}
			sp.inUse = true
			defer func() { sp.inUse = false }()
		}
		if err := l.list(s, sp, want, f); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}
