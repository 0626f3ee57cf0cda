package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cluster"
	"github.com/seine-net/seine/internal/cluster/etcd"
	"github.com/seine-net/seine/internal/cluster/gossip"
	"github.com/seine-net/seine/internal/cluster/pki"
)

// Where the keys of the agreed truth about machines are.
const (
	nodePrefix   = "nodes/"   // nodes/ID → Machine
	memberPrefix = "members/" // members/ID → how its member of the store is to be started
	tokenPrefix  = "tokens/"  // tokens/HASH → when it ends
	keyPrefix    = "/seine/"  // before all of them, in etcd
)

// Machine is what the cluster agrees on about a machine.
type Machine struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`
	// Cert is the certificate that it got when it joined (DER): it signs what it announces with that key.
	Cert []byte `json:"cert"`
	// Drained machines are left alone by what places containers.
	Drained bool `json:"drained,omitempty"`
}

func (m *Machine) at(offset uint16) string {
	return netip.AddrPortFrom(m.Address, m.Port+offset).String()
}

// session is this machine's part while it is lived.
type session struct {
	*Node
	stopped chan struct{} // closed when all has ended
	cancel  context.CancelFunc

	store  *etcd.Store
	gossip *gossip.Gossip

	mu       sync.Mutex
	part     *part // its fields change under mu
	machines map[string]Machine
	keys     map[string]*ecdsa.PublicKey // with which machines sign
	failing  map[string]string           // definitions that can't be used here
	followed chan struct{}               // closed when the cluster's definitions were taken up
	health   map[string]api.Health
	peers    map[string]*peer
	dirty    map[string]bool
	wake     chan struct{}
	member   context.CancelFunc // ends the member's process; nil while there is none
	memberOf sync.WaitGroup
}

func newSession(n *Node, p *part) *session {
	return &session{Node: n, part: p, stopped: make(chan struct{}), machines: map[string]Machine{}, keys: map[string]*ecdsa.PublicKey{},
		health: map[string]api.Health{}, peers: map[string]*peer{}, dirty: map[string]bool{}, wake: make(chan struct{}, 1), followed: make(chan struct{})}
}

// tls gives the settings of this machine's connections to others.
func (s *session) tls() *pki.Config {
	return &pki.Config{Authority: s.part.authority, Member: s.isMember, Identity: func() *pki.Identity {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.part.identity
	}}
}

// isMember reports whether a machine is in the cluster, as far as is known: before anything is known, everybody whom the
// authority signed is.
func (s *session) isMember(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.machines[id]
	return ok || len(s.machines) == 0
}

// start begins everything; it returns at once.
func (s *session) start(ctx context.Context) {
	ctx, s.cancel = context.WithCancel(ctx)
	var running sync.WaitGroup
	ready := make(chan struct{})
	go func() { // ends with ctx; stop waits
		defer close(s.stopped)
		defer running.Wait()
		if s.part.Member != nil {
			s.startMember(ctx, *s.part.Member)
		}
		if err := s.open(); err != nil {
			s.Log.Error("cluster", "err", err)
			close(ready)
			<-ctx.Done()
			return
		}
		s.Engine.SetCluster(&cluster.Agreement{Store: s.store, Node: s.part.Node, Users: s.users})
		for _, f := range []func(context.Context){s.serve, s.followMachines, s.followMember, s.keep, s.announce, s.hear, s.tellEngine} {
			running.Go(func() { f(ctx) })
		}
		running.Go(func() { cluster.Follow(ctx, s.store, s.Engine, s.Log, s.setFailing) })
		running.Go(func() {
			if err := s.gossip.Run(ctx); err != nil && ctx.Err() == nil {
				s.Log.Error("gossip ended", "err", err)
			}
		})
		if seeds := s.part.Peers; len(seeds) > 0 { // with the store away too
			running.Go(func() { s.join(ctx, seeds) })
		}
		close(ready)
		<-ctx.Done()
		running.Wait()
		s.memberOf.Wait()
		s.store.Close()
	}()
	<-ready
}

// stop ends everything and waits.
func (s *session) stop() {
	s.cancel()
	<-s.stopped
}

// open makes the store's client and the part in gossip. Nothing is sent yet.
func (s *session) open() error {
	p := s.part
	t := s.tls().Client("")
	if p.Etcd != nil {
		var err error
		if t, err = p.Etcd.tls(); err != nil {
			return err
		}
	}
	var err error
	if s.store, err = etcd.Open(p.Stores, keyPrefix, t); err != nil {
		return err
	}
	p.Epoch = max(p.Epoch+1, uint64(time.Now().UnixMilli()))
	if err := p.saveState(); err != nil {
		return err
	}
	s.gossip, err = gossip.New(gossip.Config{Node: p.Node, Epoch: p.Epoch, Cluster: p.ID, Keys: p.Keys, Signer: signer{s}, Admit: s.isMember,
		Bind: netip.AddrPortFrom(p.Address, p.Port+gossipPort), Log: s.Log.With("part", "gossip"), Persist: func(epoch uint64) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			p.Epoch = epoch
			return p.saveState()
		}})
	return err
}

// tls gives the settings of connections to somebody else's etcd.
func (e *externalEtcd) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CA != "" {
		if c.RootCAs = pool(e.CA); c.RootCAs == nil {
			return nil, errors.New("etcd: the authority's file has no certificate")
		}
	}
	if e.Cert != "" {
		pair, err := tls.X509KeyPair([]byte(e.Cert), []byte(e.Cert))
		if err != nil {
			return nil, fmt.Errorf("etcd: the client's certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// signer signs what this machine announces with the key that it joined with.
type signer struct{ s *session }

// Sign implements gossip.Signer.
func (g signer) Sign(message []byte) []byte {
	h := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, g.s.part.identity.Key, h[:])
	if err != nil {
		g.s.Log.Error("signing an announcement", "err", err)
	}
	return sig
}

// Verify implements gossip.Signer.
func (g signer) Verify(origin string, message, sig []byte) bool {
	g.s.mu.Lock()
	key := g.s.keys[origin]
	g.s.mu.Unlock()
	h := sha256.Sum256(message)
	return key != nil && ecdsa.VerifyASN1(key, h[:], sig)
}

// followMachines keeps who is in the cluster.
func (s *session) followMachines(ctx context.Context) {
	present := map[string]Machine{}
	whole := false // all that are there have been told
	for ev := range s.store.Watch(ctx, nodePrefix) {
		switch {
		case ev.Reset:
			present, whole = map[string]Machine{}, false
		case ev.Synced:
			whole = true
		case ev.Value == nil:
			delete(present, strings.TrimPrefix(ev.Key, nodePrefix))
		default:
			var m Machine
			if err := json.Unmarshal(ev.Value, &m); err != nil || nodePrefix+m.ID != ev.Key {
				s.Log.Error("a machine in the cluster's store is left out", "key", ev.Key, "err", err)
				continue
			}
			present[m.ID] = m
		}
		if whole {
			s.setMachines(ctx, maps.Clone(present))
		}
	}
}

func (s *session) setMachines(ctx context.Context, all map[string]Machine) {
	keys := map[string]*ecdsa.PublicKey{}
	for id, m := range all {
		key, err := s.part.authority.SignerOf(m.Cert, id)
		if err != nil {
			s.Log.Error("a machine of the cluster is not believed", "node", m.Name, "err", err)
			continue
		}
		keys[id] = key
	}
	s.mu.Lock()
	before := s.machines
	s.machines, s.keys = all, keys
	var seeds []string
	for id, m := range all {
		if id != s.part.Node {
			seeds = append(seeds, m.at(gossipPort))
		}
	}
	slices.Sort(seeds)
	changed := !slices.Equal(seeds, s.part.Peers)
	s.part.Peers = seeds
	if changed {
		if err := s.part.saveState(); err != nil {
			s.Log.Error("keeping the cluster's state", "err", err)
		}
	}
	for id := range before {
		if _, ok := all[id]; !ok {
			delete(s.peers, id)
			s.dirty[id] = true
		}
	}
	_, here := all[s.part.Node]
	s.mu.Unlock()
	s.poke()
	if !here && len(before) > 0 {
		s.Log.Warn("this machine was removed from the cluster; its containers go on as they are")
	}
	if changed && len(seeds) > 0 {
		s.join(ctx, seeds)
	}
}

// join finds the others. Gossip goes on trying.
func (s *session) join(ctx context.Context, seeds []string) {
	if err := s.gossip.Join(ctx, seeds); err != nil && ctx.Err() == nil {
		s.Log.Info("no machine of the cluster answers yet; it goes on trying", "err", err)
	}
}

func (s *session) setFailing(f map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.followed:
	default:
		close(s.followed)
	}
	s.failing = f
}

// users names the other machines that have endpoints on a network.
func (s *session) users(name string) []string {
	id := ""
	if all, err := s.Engine.Networks(context.Background()); err == nil {
		for _, n := range all {
			if n.Name == name {
				id = n.ID
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for node, p := range s.peers {
		if has := p.networks[id]; has != nil && len(has.endpoints) > 0 {
			out = append(out, s.nameOf(node))
		}
	}
	slices.Sort(out)
	return out
}

// nameOf gives a machine's name; s.mu is held.
func (s *session) nameOf(id string) string {
	if m, ok := s.machines[id]; ok {
		return m.Name
	}
	return id
}

func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
