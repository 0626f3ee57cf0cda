package linux

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// applyNft carries out a run of nftables changes in one transaction. Where some of them are to blame for its failure,
// they get their errors, and the others are tried again without them.
func (s *session) applyNft(sp *space, run []kernel.Change, errs []error) {
	so, err := sp.nft()
	if err != nil {
		for i, c := range run {
			errs[i] = fail(subject(c), err)
		}
		return
	}
	left := make([]*nftStep, 0, len(run))
	for i, c := range run {
		left = append(left, &nftStep{Change: c, out: &errs[i]})
	}
	var held []*nftStep
	for len(left) > 0 {
		var next []*nftStep
		next, held = s.transactNft(sp, so, left)
		if len(held) > 0 {
			break
		}
		left = next
	}
	s.flushFlows(sp, held)
}

// nftStep is a change on its way into a transaction.
type nftStep struct {
	kernel.Change
	out *error
	// missing says that the old state was found absent, so that only the new one is to be made.
	missing bool
}

// transactNft tries one transaction. It gives those that hold now, or those that are to be tried again.
func (s *session) transactNft(sp *space, so *sock, steps []*nftStep) (again, held []*nftStep) {
	var msgs []*msg
	var owner, live []*nftStep
	for _, st := range steps {
		ms, err := s.nftMsgs(sp, st)
		if err != nil {
			*st.out = fail(subject(st.Change), err)
			continue
		}
		live = append(live, st)
		for _, m := range ms {
			msgs = append(msgs, m)
			owner = append(owner, st)
		}
	}
	if len(msgs) == 0 {
		return nil, live
	}
	culprits, err := so.transact(msgs)
	if isErrno(err, unix.EMSGSIZE) && len(live) > 1 { // more than the kernel takes at once
		half := len(live) / 2
		for _, part := range [][]*nftStep{live[:half], live[half:]} {
			for left := part; len(left) > 0; {
				var ok []*nftStep
				left, ok = s.transactNft(sp, so, left)
				held = append(held, ok...)
				if len(ok) > 0 {
					break
				}
			}
		}
		return nil, held
	}
	if err != nil {
		for _, st := range live {
			*st.out = fail(subject(st.Change), err)
		}
		return nil, nil
	}
	if len(culprits) == 0 {
		return nil, live
	}
	first := map[*nftStep]error{}
	for i := range msgs {
		if e := culprits[i]; e != nil && first[owner[i]] == nil {
			first[owner[i]] = e
		}
	}
	for _, st := range live {
		if e := first[st]; e == nil || s.excuse(st, e) {
			again = append(again, st)
		}
	}
	return again, nil
}

// excuse deals with the error that a change got: true says that it is to be tried again, in another way.
func (s *session) excuse(st *nftStep, err error) bool {
	switch {
	case st.Op == kernel.Delete && gone(err):
		return false
	case st.Op == kernel.Update && gone(err) && !st.missing:
		st.missing = true
		return true
	case st.Op == kernel.Create && isErrno(err, unix.EEXIST, unix.ENOTEMPTY):
		if !errors.Is(err, unix.EEXIST) { // an interval that overlaps another
			err = errors.Join(kernel.ErrExists, err)
		}
		err = s.exists(st.New, err)
	}
	*st.out = fail(subject(st.Change), err)
	return false
}

// nftMsgs gives the messages of a change.
func (s *session) nftMsgs(sp *space, st *nftStep) ([]*msg, error) {
	switch o := subject(st.Change).(type) {
	case *kernel.Table:
		ref := refTo(o.Family, o.Name)
		switch st.Op {
		case kernel.Delete:
			return []*msg{delTable(ref)}, nil
		case kernel.Update:
			have, err := sp.table(ref)
			if err != nil {
				return nil, err
			}
			sp.declared[ref] = o
			return updateTable(o, have)
		}
		sp.declared[ref] = o
		return tableMsgs(o)
	case *kernel.TableChain:
		return s.chainMsgs(sp, st, o)
	case *kernel.Element:
		return elementMsgs(st, o)
	case *kernel.Relic:
		return sp.relicMsgs(st.Op, o)
	case *kernel.Accept:
		return s.acceptMsgs(sp, st.Op, o)
	}
	return nil, errNoMessage
}

// chainMsgs gives the messages of a change of a chain that comes and goes by itself.
func (s *session) chainMsgs(sp *space, st *nftStep, c *kernel.TableChain) ([]*msg, error) {
	ref := refTo(c.Family, c.Table)
	if st.Op == kernel.Delete {
		return []*msg{delChain(ref, c.Chain.Name)}, nil
	}
	table := sp.declared[ref]
	if table == nil {
		sets, err := sp.sets(ref)
		if err != nil {
			return nil, err
		}
		table = &kernel.Table{Sets: sets}
	}
	m, err := chainMsg(ref, &c.Chain, separate)
	if err != nil {
		return nil, err
	}
	rules, err := ruleMsgs(ref, &c.Chain, table.Set)
	if err != nil {
		return nil, err
	}
	if st.Op == kernel.Create || st.missing {
		m.flag(unix.NLM_F_EXCL)
		return append([]*msg{m}, rules...), nil
	}
	return append([]*msg{m, flushChain(ref, c.Chain.Name)}, rules...), nil
}

// elementMsgs gives the messages of a change of an element. Without NLM_F_EXCL the kernel takes the same again and
// refuses the same key with other data.
func elementMsgs(st *nftStep, e *kernel.Element) ([]*msg, error) {
	el, err := encodeElem(e)
	if err != nil {
		return nil, err
	}
	if st.Op == kernel.Delete {
		return []*msg{elemMsg(unix.NFT_MSG_DELSETELEM, 0, e, &el)}, nil
	}
	add := elemMsg(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, e, &el)
	if st.Op == kernel.Create || st.missing {
		return []*msg{add}, nil
	}
	return []*msg{elemMsg(unix.NFT_MSG_DELSETELEM, 0, e, &el), add}, nil
}
