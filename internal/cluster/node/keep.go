package node

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"crypto/x509"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cluster/agreed"
	"github.com/seine-net/seine/internal/cluster/etcd"
	"github.com/seine-net/seine/internal/cluster/pki"
)

// The times of the keeper.
const (
	membersEvery = 2 * time.Second
	renewEvery   = time.Hour
)

// keep looks after the members of the store and this machine's certificate, until ctx ends.
func (s *session) keep(ctx context.Context) {
	tick, renew := time.NewTicker(membersEvery), time.NewTicker(renewEvery/2+rand.N(renewEvery))
	defer tick.Stop()
	defer renew.Stop()
	gone := map[string]time.Time{}
	s.renew(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if s.part.Etcd == nil {
				s.tendMembers(ctx, gone)
			}
		case <-renew.C:
			s.renew(ctx)
		}
	}
}

// tendMembers learns where the members of the store are, and takes the next step where they should be others. Only the
// machine whose member leads does.
func (s *session) tendMembers(ctx context.Context, gone map[string]time.Time) {
	members, err := s.store.Members(ctx)
	if err != nil {
		return
	}
	s.mu.Lock()
	var urls []string
	var nodes []etcd.Node
	for id, m := range s.machines {
		x := etcd.Node{ID: id, PeerURL: "https://" + m.at(peerPort), Alive: s.healthOf(id) == api.Alive}
		if x.Alive {
			delete(gone, id)
		} else if gone[id].IsZero() {
			gone[id] = time.Now()
		} else {
			x.Gone = time.Since(gone[id])
		}
		nodes = append(nodes, x)
		if slices.ContainsFunc(members, func(y etcd.Member) bool { return y.PeerURL == x.PeerURL && !y.Learner }) {
			urls = append(urls, "https://"+m.at(clientPort))
		}
	}
	slices.Sort(urls)
	changed := len(urls) > 0 && !slices.Equal(urls, s.part.Stores)
	if changed {
		s.part.Stores = urls
		if err := s.part.saveState(); err != nil {
			s.Log.Error("keeping the cluster's state", "err", err)
		}
	}
	mine := s.part.Member
	s.mu.Unlock()
	if changed {
		s.store.SetEndpoints(urls)
	}
	slices.SortFunc(nodes, func(a, b etcd.Node) int { return strings.Compare(a.ID, b.ID) })
	if mine == nil || len(nodes) == 0 || !s.store.IsLeader(ctx, mine.ClientURL) {
		return
	}
	step := etcd.Plan(nodes, members)
	if step == nil {
		return
	}
	err = s.store.Apply(ctx, step, func(ctx context.Context, n etcd.Node, initial string) error {
		_, err := s.store.Txn(ctx, nil, []agreed.Op{{Key: memberPrefix + n.ID, Value: []byte(initial)}})
		return err
	})
	if step.Remove != nil && err == nil && step.Remove.Node != "" {
		_, err = s.store.Txn(ctx, nil, []agreed.Op{{Key: memberPrefix + step.Remove.Node}})
	}
	if err != nil && ctx.Err() == nil {
		s.Log.Debug("members of the store", "err", err)
	}
}

// followMember starts and ends this machine's member of the store as the cluster wants, until ctx ends.
func (s *session) followMember(ctx context.Context) {
	if s.part.Etcd != nil {
		return
	}
	key := memberPrefix + s.part.Node
	there := false
	for ev := range s.store.Watch(ctx, key) {
		switch {
		case ev.Reset:
			there = false
		case ev.Synced:
			if !there {
				s.endMember()
			}
		case ev.Key != key:
		case ev.Value == nil:
			there = false
			s.endMember()
		default:
			there = true
			s.beginMember(ctx, string(ev.Value))
		}
	}
}

// beginMember starts this machine's member, unless it runs. It needs the authority's key: members sign certificates.
func (s *session) beginMember(ctx context.Context, initial string) {
	s.mu.Lock()
	runs := s.part.Member != nil
	if !s.part.Noted && runs {
		s.part.Noted = true
		if err := s.part.saveState(); err != nil {
			s.Log.Error("keeping the cluster's state", "err", err)
		}
	}
	s.mu.Unlock()
	if runs {
		return
	}
	if !s.part.authority.CanSign() {
		var data []byte
		err := s.askSigner(ctx, authorityPath, nil, &data)
		if err == nil {
			var a *pki.Authority
			if a, err = pki.ParseAuthority(data); err == nil && a.Fingerprint() == s.part.authority.Fingerprint() {
				s.mu.Lock()
				s.part.authority = a
				s.mu.Unlock()
			}
		}
		if err != nil {
			s.Log.Warn("this machine can't sign certificates", "err", err)
		}
	}
	s.mu.Lock()
	s.part.Member, s.part.Noted = s.part.member(initial, true), true
	c := *s.part.Member
	err := os.RemoveAll(c.Dir) // of an earlier membership
	if err == nil {
		err = s.part.save()
	}
	s.mu.Unlock()
	if err != nil {
		s.Log.Error("keeping the cluster's state", "err", err)
		return
	}
	s.startMember(ctx, c)
}

func (s *session) startMember(ctx context.Context, c etcd.MemberConfig) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.member = cancel
	s.mu.Unlock()
	s.memberOf.Go(func() { etcd.RunProcess(ctx, s.Program, c, s.Log.With("part", "etcd"), nil) })
}

// endMember ends this machine's member for good: it was taken out.
func (s *session) endMember() {
	s.mu.Lock()
	if s.part.Member != nil && !s.part.Noted {
		s.mu.Unlock()
		return // the store is to learn of it
	}
	cancel := s.member
	had := s.part.Member != nil
	s.member, s.part.Member, s.part.Noted = nil, nil, false
	var err error
	if had {
		err = s.part.saveState()
	}
	s.mu.Unlock()
	if cancel != nil {
		cancel()
		s.memberOf.Wait()
	}
	if had {
		if e := os.RemoveAll(filepath.Join(s.part.dir, memberDir)); err == nil {
			err = e
		}
	}
	if err != nil {
		s.Log.Error("ending the member of the store", "err", err)
	}
}

// renew gets this machine a new certificate when a third of the time of the present one is left. The key stays: it is what
// the others check announcements by.
func (s *session) renew(ctx context.Context) {
	s.mu.Lock()
	id := s.part.identity
	s.mu.Unlock()
	if !pki.NeedsRenewal(id.Cert, time.Now()) {
		return
	}
	request, err := pki.Request(id.Key)
	if err == nil {
		err = s.renewWith(ctx, request)
	}
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("this machine's certificate can't be renewed yet; it is tried again", "ends", id.Cert.NotAfter, "err", err)
	}
}

func (s *session) renewWith(ctx context.Context, request []byte) error {
	var cert *x509.Certificate
	if s.part.authority.CanSign() {
		var err error
		if cert, err = s.part.authority.Sign(request, s.part.Node, time.Now()); err != nil {
			return err
		}
	} else {
		body, err := json.Marshal(request)
		if err != nil {
			return err
		}
		var der []byte
		if err := s.askSigner(ctx, renewPath, body, &der); err != nil {
			return err
		}
		if cert, err = x509.ParseCertificate(der); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.part.identity = &pki.Identity{Cert: cert, Key: s.part.identity.Key}
	return s.part.save()
}
