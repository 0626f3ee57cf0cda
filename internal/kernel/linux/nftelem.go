package linux

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// elem is an element as the kernel has it. For an interval key is the first key, and end the one after the last (nil
// where there is none); else end is not used.
type elem struct {
	key, end []byte
	data     []byte
	verdict  *verdict
	comment  string
	isEnd    bool
}

// encodeKey turns the key of an element into what the kernel has; it is all that a look-up needs.
func encodeKey(e *kernel.Element) (out elem, err error) {
	s := e.Set
	if s.Interval {
		if len(s.Key) != 1 {
			return out, fmt.Errorf("intervals of concatenations: %w", kernel.ErrUnsupported)
		}
		out.key, out.end, err = interval(s.Key[0], e.Item)
	} else {
		out.key, err = encode(s.Key, e.Item)
	}
	return out, err
}

// encodeElem turns the text of an element into what the kernel has.
func encodeElem(e *kernel.Element) (out elem, err error) {
	s := e.Set
	if out, err = encodeKey(e); err != nil {
		return out, err
	}
	out.comment = e.Comment
	switch {
	case len(s.Data) == 0 && e.Data != "":
		return out, fmt.Errorf("set %q is no map, but there is data %q", s.Name, e.Data)
	case len(s.Data) == 0:
	case s.Data[0] == kernel.TypeVerdict:
		v, err := parseVerdict(e.Data)
		out.verdict = &v
		return out, err
	default:
		out.data, err = encode(s.Data, e.Data)
	}
	return out, err
}

// elemMsg makes or deletes an element; data is left out where it is deleted or asked for.
func elemMsg(typ, flags uint16, e *kernel.Element, el *elem) *msg {
	m := nftMsg(typ, flags, refTo(e.Family, e.Table).family)
	m.str(unix.NFTA_SET_ELEM_LIST_TABLE, e.Table)
	m.str(unix.NFTA_SET_ELEM_LIST_SET, e.Set.Name)
	m.nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		m.nested(unix.NFTA_LIST_ELEM, func() {
			value(m, unix.NFTA_SET_ELEM_KEY, el.key)
			if typ != unix.NFT_MSG_NEWSETELEM {
				return
			}
			if el.verdict != nil {
				m.nested(unix.NFTA_SET_ELEM_DATA, func() { el.verdict.encode(m) })
			} else if el.data != nil {
				value(m, unix.NFTA_SET_ELEM_DATA, el.data)
			}
			if el.comment != "" {
				m.attr(unix.NFTA_SET_ELEM_USERDATA, udata(el.comment))
			}
		})
		if e.Set.Interval && el.end != nil {
			m.nested(unix.NFTA_LIST_ELEM, func() {
				m.be32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
				value(m, unix.NFTA_SET_ELEM_KEY, el.end)
			})
		}
	})
	return m
}

// parseElems reads the elements of one message.
func parseElems(r reply) []elem {
	var out []elem
	for _, item := range attrs(attrOf(r.rest(nfgenLen), unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
		var e elem
		for t, v := range attrs(item) {
			switch t {
			case unix.NFTA_SET_ELEM_KEY:
				e.key = attrOf(v, unix.NFTA_DATA_VALUE)
			case unix.NFTA_SET_ELEM_FLAGS:
				e.isEnd = num32be(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
			case unix.NFTA_SET_ELEM_USERDATA:
				e.comment = comment(v)
			case unix.NFTA_SET_ELEM_DATA:
				e.data = attrOf(v, unix.NFTA_DATA_VALUE)
				if b := attrOf(v, unix.NFTA_DATA_VERDICT); b != nil {
					e.verdict = &verdict{int32(num32be(attrOf(b, unix.NFTA_VERDICT_CODE))), cstr(attrOf(b, unix.NFTA_VERDICT_CHAIN))}
				}
			}
		}
		if e.key != nil {
			out = append(out, e)
		}
	}
	return out
}

// elems lists all elements of a set, the halves of intervals joined.
func (p *space) elems(table tableRef, s *kernel.Set) ([]elem, error) {
	so, err := p.nft()
	if err != nil {
		return nil, err
	}
	m := nftMsg(unix.NFT_MSG_GETSETELEM, 0, table.family)
	m.str(unix.NFTA_SET_ELEM_LIST_TABLE, table.name)
	m.str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	rs, err := so.dump(m)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []elem
	for _, r := range rs {
		out = append(out, parseElems(r)...)
	}
	if s.Interval {
		return join(out), nil
	}
	return out, nil
}

// join puts the beginnings and ends of intervals together. Where one interval ends and the next begins, the kernel has
// both under one key.
func join(halves []elem) []elem {
	slices.SortStableFunc(halves, func(a, b elem) int {
		if c := bytes.Compare(a.key, b.key); c != 0 {
			return c
		}
		return int(b2u(b.isEnd)) - int(b2u(a.isEnd))
	})
	var out []elem
	open := false
	for _, h := range halves {
		switch {
		case !h.isEnd:
			out = append(out, h)
			open = true
		case open:
			out[len(out)-1].end = h.key
			open = false
		}
	}
	return out
}

// object turns an element into text. Where it is one that was asked for, it gets that one's words for what is the same.
func (el *elem) object(ns string, table tableRef, s *kernel.Set, want *kernel.Element) (*kernel.Element, error) {
	out := &kernel.Element{NS: ns, Family: table.familyText(), Table: table.name, Set: s, Comment: el.comment}
	var err error
	switch {
	case want != nil:
		out.Item = want.Item
	case s.Interval && len(s.Key) == 1:
		out.Item = intervalText(s.Key[0], el.key, el.end)
	default:
		out.Item, err = decode(s.Key, el.key)
	}
	if err != nil || len(s.Data) == 0 {
		return out, err
	}
	if want != nil {
		out.Flush = want.Flush
		if w, err := encodeElem(want); err == nil && bytes.Equal(w.data, el.data) && (w.verdict == nil) == (el.verdict == nil) &&
			(w.verdict == nil || *w.verdict == *el.verdict) {
			out.Data = want.Data
			return out, nil
		}
	}
	if el.verdict != nil {
		out.Data = el.verdict.String()
		return out, nil
	}
	out.Data, err = decode(s.Data, el.data)
	return out, err
}

// few is how many elements of one set are looked up one by one; for more of them the set is listed.
const few = 256

func (s *session) listElements(sp *space, want []kernel.Object, f *found) error {
	type place struct {
		table tableRef
		set   string
	}
	by := map[place][]*kernel.Element{}
	for _, o := range want {
		e := o.(*kernel.Element)
		p := place{refTo(e.Family, e.Table), e.Set.Name}
		if e.Item == "" {
			if err := sp.allOf(p.table, e, f); err != nil && !gone(err) {
				return fmt.Errorf("set %q of table %q: %w", p.set, p.table.name, err)
			}
			continue
		}
		by[p] = append(by[p], e)
	}
	for p, es := range by {
		var err error
		if len(es) <= few && !es[0].Set.Interval {
			err = sp.lookUp(es, f)
		} else {
			err = sp.pick(p.table, es, f)
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("set %q of table %q: %w", p.set, p.table.name, err)
		}
	}
	return nil
}

// allOf lists all elements of a set whose comment begins with that of want.
func (p *space) allOf(table tableRef, want *kernel.Element, f *found) error {
	have, err := p.elems(table, want.Set)
	if err != nil {
		return err
	}
	for _, el := range have {
		if !strings.HasPrefix(el.comment, want.Comment) {
			continue
		}
		o, err := el.object(p.path, table, want.Set, nil)
		if err != nil {
			return err
		}
		f.add(o)
	}
	return nil
}

// lookUp asks for single elements of one set.
func (p *space) lookUp(want []*kernel.Element, f *found) error {
	so, err := p.nft()
	if err != nil {
		return err
	}
	var msgs []*msg
	for _, e := range want {
		el, err := encodeKey(e)
		if err != nil {
			return fail(e, err)
		}
		msgs = append(msgs, elemMsg(unix.NFT_MSG_GETSETELEM, 0, e, &el))
	}
	rs, errs := so.ask(msgs)
	for i, e := range want {
		if errs[i] != nil {
			if gone(errs[i]) {
				continue
			}
			return errs[i]
		}
		for _, el := range parseElems(rs[i]) {
			o, err := el.object(p.path, refTo(e.Family, e.Table), e.Set, e)
			if err != nil {
				return err
			}
			f.add(o)
		}
	}
	return nil
}

// pick lists a set and keeps what is wanted.
func (p *space) pick(table tableRef, want []*kernel.Element, f *found) error {
	byKey := map[string]*kernel.Element{}
	for _, e := range want {
		el, err := encodeKey(e)
		if err != nil {
			return fail(e, err)
		}
		byKey[el.id()] = e
	}
	have, err := p.elems(table, want[0].Set)
	if err != nil {
		return err
	}
	for _, el := range have {
		w := byKey[el.id()]
		if w == nil {
			continue
		}
		o, err := el.object(p.path, table, w.Set, w)
		if err != nil {
			return err
		}
		f.add(o)
	}
	return nil
}

// id tells an element from all others of its set.
func (el *elem) id() string { return string(el.key) + "|" + string(el.end) }
