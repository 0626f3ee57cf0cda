package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Node is a node of the cluster as the management of members sees it.
type Node struct {
	ID string
	// PeerURL is where a member on it would be found.
	PeerURL string
	// Alive says that it was heard of just now, Gone for how long it was not.
	Alive bool
	Gone  time.Duration
}

// Member is a member of etcd.
type Member struct {
	ID      uint64
	Node    string // "" until it has been started
	PeerURL string
	Learner bool
	Started bool
}

// Want is how many members a cluster of so many nodes has: an odd number, of which one or two may be lost from three nodes on.
func Want(nodes int) int {
	switch {
	case nodes < 3:
		return 1
	case nodes < 5:
		return 3
	}
	return 5
}

// replaceAfter is for how long a member may be away before another node takes its place.
const replaceAfter = 2 * time.Minute

// Step is one change of the members; exactly one field is set.
type Step struct {
	Add     *Node   // add it as a learner, then tell it to start
	Promote *Member // it has what the others have, or will be refused
	Remove  *Member
}

// Plan gives the next change of the members, nil for none. One at a time: etcd wants each to be done before the next.
// removed tells the nodes that were removed from the cluster.
func Plan(nodes []Node, members []Member) *Step {
	byURL := map[string]*Node{}
	alive := 0
	for i, n := range nodes {
		byURL[n.PeerURL] = &nodes[i]
		if n.Alive {
			alive++
		}
	}
	voters, healthy := 0, 0
	for i := range members {
		m := &members[i]
		n := byURL[m.PeerURL]
		if n == nil {
			return &Step{Remove: m} // of a node that was removed
		}
		if m.Learner {
			if !n.Alive {
				return &Step{Remove: m}
			}
			if m.Started {
				return &Step{Promote: m}
			}
			return nil // it is starting
		}
		voters++
		if n.Alive {
			healthy++
		}
	}
	want := Want(len(nodes))
	free := slices.IndexFunc(nodes, func(n Node) bool {
		return n.Alive && !slices.ContainsFunc(members, func(m Member) bool { return m.PeerURL == n.PeerURL })
	})
	if voters < want && free >= 0 {
		return &Step{Add: &nodes[free]}
	}
	for i := range members {
		m := &members[i]
		n := byURL[m.PeerURL]
		switch {
		case voters > want && !n.Alive, !n.Alive && n.Gone > replaceAfter && free >= 0 && healthy > voters/2:
			return &Step{Remove: m}
		case voters > want && i == len(members)-1:
			return &Step{Remove: m}
		}
	}
	return nil
}

// Members lists the members.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := s.client.MemberList(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	return members(r.Members), nil
}

func members(in []*etcdserverpb.Member) []Member {
	out := make([]Member, 0, len(in))
	for _, m := range in {
		x := Member{ID: m.ID, Node: m.Name, Learner: m.IsLearner, Started: m.Name != ""}
		if len(m.PeerURLs) > 0 {
			x.PeerURL = m.PeerURLs[0]
		}
		out = append(out, x)
	}
	return out
}

// IsLeader reports whether the member at the endpoint leads. It is asked by a client of its own: etcd's reads its endpoints
// without a lock there, while SetEndpoints may change them.
func (s *Store) IsLeader(ctx context.Context, endpoint string) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	one, err := Open([]string{endpoint}, s.prefix, s.tls)
	if err != nil {
		return false
	}
	defer one.Close()
	r, err := one.client.Status(ctx, endpoint)
	return err == nil && r.Leader == r.Header.MemberId
}

// AddLearner adds a member that has no vote yet, and gives what it is to be started with (MemberConfig.Initial).
func (s *Store) AddLearner(ctx context.Context, n Node) (initial string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := s.client.MemberAddAsLearner(ctx, []string{n.PeerURL})
	if err != nil {
		return "", unavailable(err)
	}
	return Initial(members(r.Members), n), nil
}

// Initial gives the members as the one at node n is to be told of them.
func Initial(all []Member, n Node) string {
	var parts []string
	for _, m := range all {
		name := m.Node
		if m.PeerURL == n.PeerURL {
			name = n.ID
		}
		if name != "" {
			parts = append(parts, name+"="+m.PeerURL)
		}
	}
	return strings.Join(parts, ",")
}

// Promote gives a learner its vote. It is refused while the learner has not caught up.
func (s *Store) Promote(ctx context.Context, m Member) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.client.MemberPromote(ctx, m.ID)
	return wrap("promote", m, err)
}

// Remove takes a member out. One that is gone is no error.
func (s *Store) Remove(ctx context.Context, m Member) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.client.MemberRemove(ctx, m.ID)
	if err != nil && strings.Contains(err.Error(), "not found") {
		return nil
	}
	return wrap("remove", m, err)
}

func wrap(verb string, m Member, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("etcd: %s member %x at %s: %w", verb, m.ID, m.PeerURL, unavailable(err))
}

// Apply takes one step. start is told what a node that was added has to be started with.
func (s *Store) Apply(ctx context.Context, step *Step, start func(ctx context.Context, node Node, initial string) error) error {
	switch {
	case step.Add != nil:
		initial, err := s.AddLearner(ctx, *step.Add)
		if err != nil {
			return err
		}
		return start(ctx, *step.Add, initial)
	case step.Promote != nil:
		return s.Promote(ctx, *step.Promote)
	case step.Remove != nil:
		return s.Remove(ctx, *step.Remove)
	}
	return errors.New("etcd: an empty step")
}
