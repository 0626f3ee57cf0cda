package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cluster/agreed"
	"github.com/seine-net/seine/internal/cluster/blocks"
	"github.com/seine-net/seine/internal/cluster/pki"
)

type (
	tlsConfig = tls.Config
	tlsState  = tls.ConnectionState
)

// idBytes is the length of an ID.
const idBytes = 8

// tokenLife is how long a token lets machines join.
const tokenLife = 24 * time.Hour

// storeIn bounds how long founding waits for the store.
const storeIn = time.Minute

// networksIn bounds how long joining waits for the cluster's networks.
const networksIn = 20 * time.Second

func newID() string {
	var b [idBytes]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24)
	return hex.EncodeToString(b[:])
}

// ownAddress gives an address of this machine to be found at, where none was named: that from which to is reached.
func ownAddress(given netip.Addr, to string) (netip.Addr, error) {
	if given.IsValid() {
		if given.IsUnspecified() || given.IsMulticast() || given.IsLinkLocalUnicast() {
			return given, api.FieldError("cluster", "address", given, "is no address that others reach this machine at", "one of the machine's own, unicast addresses")
		}
		c, err := net.ListenPacket("udp", netip.AddrPortFrom(given, 0).String())
		if err != nil {
			return given, api.FieldError("cluster", "address", given, "is not this machine's: "+err.Error(), "one of its own addresses")
		}
		return given, c.Close()
	}
	if to == "" {
		to = "192.0.2.1:9" // no packet is sent: the route says from where one would be (RFC 5737)
	}
	c, err := net.Dial("udp", to)
	if err != nil {
		if to == "192.0.2.1:9" {
			c, err = net.Dial("udp", "[2001:db8::1]:9")
		}
		if err != nil {
			return given, api.Errorf(api.Invalid, "cluster", "which address others reach this machine at can't be told: %w; want one named", err)
		}
	}
	defer c.Close()
	a, err := netip.ParseAddrPort(c.LocalAddr().String())
	return a.Addr().Unmap(), err
}

// firstPort gives the first of the machine's four ports.
func firstPort(given uint16) (uint16, error) {
	if given == 0 {
		return api.ClusterPort, nil
	}
	if given > math.MaxUint16-peerPort {
		return 0, api.FieldError("cluster", "port", given, "has no three ports after it", fmt.Sprintf("1 to %d", math.MaxUint16-peerPort))
	}
	return given, nil
}

// Init founds a cluster, of which this machine is the first. Its networks become the cluster's, but for those with scope
// "node"; what is attached goes on.
func (n *Node) Init(ctx context.Context, q api.ClusterInit) (api.Cluster, error) {
	n.verbs.Lock()
	defer n.verbs.Unlock()
	if err := n.free(); err != nil {
		return api.Cluster{}, err
	}
	p := &part{dir: n.Dir, Cluster: q.Name, ID: newID(), Node: newID()}
	if p.Cluster == "" {
		p.Cluster = "default"
	}
	var err error
	if p.Port, err = firstPort(q.Port); err != nil {
		return api.Cluster{}, err
	}
	if p.Address, err = ownAddress(q.Address, ""); err != nil {
		return api.Cluster{}, err
	}
	if err := p.found(q); err != nil {
		return api.Cluster{}, err
	}
	if err := os.RemoveAll(filepath.Join(n.Dir, memberDir)); err != nil {
		return api.Cluster{}, err
	}
	if err := p.save(); err != nil {
		return api.Cluster{}, api.Errorf(api.Internal, "cluster", "%w", err)
	}
	n.begin(p)
	if err := n.settleIn(ctx, p); err != nil {
		n.end()
		return api.Cluster{}, errors.Join(err, p.forget())
	}
	n.shareAll(ctx)
	return n.Cluster(ctx)
}

// found makes what a new cluster begins with.
func (p *part) found(q api.ClusterInit) error {
	now := time.Now()
	var err error
	if p.authority, err = pki.NewAuthority(p.Cluster, now); err != nil {
		return err
	}
	key, err := pki.NewKey()
	if err != nil {
		return err
	}
	request, err := pki.Request(key)
	if err != nil {
		return err
	}
	cert, err := p.authority.Sign(request, p.Node, now)
	if err != nil {
		return err
	}
	p.identity = &pki.Identity{Cert: cert, Key: key}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails (Go 1.24)
	p.Keys = [][]byte{secret}
	if len(q.Etcd) == 0 {
		p.Member = p.member(p.Node+"=https://"+p.at(peerPort), false)
		p.Stores = []string{p.clientURL()}
		return nil
	}
	p.Stores, p.Etcd = q.Etcd, &externalEtcd{}
	for i, e := range q.Etcd {
		if !strings.HasPrefix(e, "https://") && !strings.HasPrefix(e, "http://") {
			return api.FieldError("cluster", fmt.Sprintf("etcd[%d]", i), e, "is no address of an etcd", "https://HOST:PORT")
		}
	}
	for _, f := range []struct {
		field, path string
		into        *string
	}{{"etcdCA", q.EtcdCA, &p.Etcd.CA}, {"etcdCert", q.EtcdCert, &p.Etcd.Cert}, {"etcdKey", q.EtcdKey, &p.Etcd.Cert}} {
		if f.path == "" {
			continue
		}
		data, err := os.ReadFile(f.path)
		if err != nil {
			return api.FieldError("cluster", f.field, f.path, err.Error(), "a PEM file on the daemon's machine")
		}
		*f.into += string(data)
	}
	_, err = p.Etcd.tls()
	return err
}

func pool(pem string) *x509.CertPool {
	out := x509.NewCertPool()
	if !out.AppendCertsFromPEM([]byte(pem)) {
		return nil
	}
	return out
}

// settleIn waits for the store and notes this machine in it. What was perhaps noted is noted again.
func (n *Node) settleIn(ctx context.Context, p *part) error {
	s, err := n.session()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storeIn)
	defer cancel()
	for {
		err := s.noteSelf(ctx)
		if err == nil || api.CodeOf(err) != api.Unavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s *session) noteSelf(ctx context.Context) error {
	p := s.part
	if err := s.putMachine(ctx, Machine{ID: p.Node, Name: s.Name, Address: p.Address, Port: p.Port, Cert: p.identity.Cert.Raw}); err != nil {
		return err
	}
	if p.Member == nil {
		return nil
	}
	_, err := s.store.Txn(ctx, nil, []agreed.Op{{Key: memberPrefix + p.Node, Value: []byte(p.Member.Initial)}})
	return unavailable("cluster", err)
}

// shareAll makes this machine's networks the cluster's.
func (n *Node) shareAll(ctx context.Context) {
	all, err := n.Engine.Networks(ctx)
	if err != nil {
		return
	}
	for _, net := range all {
		if net.Driver != "bridge" || net.Scope != "" || net.IPAM != "" {
			continue
		}
		net.Scope, net.Status = api.ClusterScope, nil
		if _, err := n.Engine.PutNetwork(ctx, net, 0); err != nil {
			n.Log.Warn("a network stays this machine's own", "network", net.Name, "err", err)
		}
	}
}

// free reports why a machine can't found or join a cluster.
func (n *Node) free() error {
	if s, err := n.session(); err == nil {
		return api.Errorf(api.Conflict, "cluster", "this machine is in cluster %q already; leave it first (seine cluster leave)", s.part.Cluster)
	}
	return nil
}

// Join has this machine join a cluster.
func (n *Node) Join(ctx context.Context, q api.ClusterJoin) (api.Cluster, error) {
	n.verbs.Lock()
	defer n.verbs.Unlock()
	if err := n.free(); err != nil {
		return api.Cluster{}, err
	}
	if _, _, err := net.SplitHostPort(q.Address); err != nil {
		q.Address = net.JoinHostPort(strings.Trim(q.Address, "[]"), strconv.Itoa(api.ClusterPort))
	}
	p := &part{dir: n.Dir, Node: newID()}
	var err error
	if p.Port, err = firstPort(q.Port); err != nil {
		return api.Cluster{}, err
	}
	if p.Address, err = ownAddress(q.Self, q.Address); err != nil {
		return api.Cluster{}, err
	}
	if err := n.askToJoin(ctx, q, p); err != nil {
		return api.Cluster{}, err
	}
	if err := os.RemoveAll(filepath.Join(n.Dir, memberDir)); err != nil {
		return api.Cluster{}, err
	}
	if err := p.save(); err != nil {
		return api.Cluster{}, api.Errorf(api.Internal, "cluster", "%w", err)
	}
	n.begin(p)
	n.awaitNetworks(ctx)
	return n.Cluster(ctx)
}

// awaitNetworks waits until the cluster's networks are there: who joined wants to use them next. Where that takes longer, it
// goes on by itself.
func (n *Node) awaitNetworks(ctx context.Context) {
	s, err := n.session()
	if err != nil {
		return
	}
	select {
	case <-s.followed:
	case <-s.stopped:
	case <-ctx.Done():
	case <-time.After(networksIn):
		n.Log.Warn("the networks of the cluster are not known yet; it goes on trying")
	}
}

// Leave takes this machine out of its cluster. Networks of the cluster that have endpoints here stay for as long as they do,
// on this machine alone. With force it goes though the cluster's store can't be told: another machine has to remove it then.
func (n *Node) Leave(ctx context.Context, force bool) error {
	n.verbs.Lock()
	defer n.verbs.Unlock()
	s, err := n.session()
	if err != nil {
		return err
	}
	s.mu.Lock()
	id, name, others := s.part.Node, n.Name, len(s.machines) > 1
	s.mu.Unlock()
	if others {
		if err := s.remove(ctx, id, name); err != nil && !force {
			return err
		} else if err != nil {
			n.Log.Warn("the cluster does not know that this machine leaves; want `seine node rm` of it on another one", "err", err)
		}
	}
	if err := s.gossip.Leave(ctx); err != nil {
		n.Log.Warn("telling the others", "err", err)
	}
	n.end()
	n.Engine.SetCluster(nil)
	if err := n.Engine.SetSelf(ctx, api.Node{}); err != nil {
		n.Log.Warn("ways to other machines", "err", err)
	}
	return s.part.forget()
}

// forget removes all that is kept of a part.
func (p *part) forget() error {
	var errs []error
	for _, f := range []string{partFile, authorityFile, caFile, identityFile, memberDir} {
		errs = append(errs, os.RemoveAll(filepath.Join(p.dir, f)))
	}
	return errors.Join(errs...)
}

// removeIn bounds how long taking a machine out is tried: the store may be choosing a leader, as one of its members went.
const removeIn = 20 * time.Second

// remove takes a machine out of the cluster: nobody speaks to it any more, and its blocks are free.
func (s *session) remove(ctx context.Context, id, name string) error {
	noun := fmt.Sprintf("node %q", name)
	s.mu.Lock()
	m := s.machines[id]
	others := slices.DeleteFunc(slices.Clone(s.part.Stores), func(url string) bool { return url == "https://"+m.at(clientPort) })
	s.mu.Unlock()
	if len(others) > 0 {
		s.store.SetEndpoints(others) // its member, which may be the one that is asked, is about to go
	}
	ctx, cancel := context.WithTimeout(ctx, removeIn)
	defer cancel()
	for {
		err := s.removeOnce(ctx, id)
		if !errors.Is(err, agreed.ErrUnavailable) || ctx.Err() != nil {
			return unavailable(noun, err)
		}
		select {
		case <-ctx.Done():
			return unavailable(noun, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// removeOnce does what is left to do. The member of the store goes first: it ends when the store does not know of it any
// more, and until then the others count on its vote.
func (s *session) removeOnce(ctx context.Context, id string) error {
	if s.part.Etcd == nil {
		members, err := s.store.Members(ctx)
		if err != nil {
			return err
		}
		for _, m := range members {
			if m.Node != id || len(members) == 1 {
				continue
			}
			if err := s.store.Remove(ctx, m); err != nil {
				return err
			}
		}
	}
	if _, err := s.store.Txn(ctx, nil, []agreed.Op{{Key: nodePrefix + id}, {Key: memberPrefix + id}}); err != nil {
		return err
	}
	l := &blocks.Leases{Store: s.store}
	return l.Reclaim(ctx, id)
}

// Remove takes another machine out of the cluster, which is to be off or cut off for good: its addresses are given to others.
// One that answers is refused without force; it had better leave.
func (n *Node) Remove(ctx context.Context, name string, force bool) error {
	s, err := n.session()
	if err != nil {
		return err
	}
	m, health, err := s.machine(name)
	if err != nil {
		return err
	}
	if m.ID == s.part.Node {
		return api.Errorf(api.Conflict, fmt.Sprintf("node %q", name), "is this machine; want `seine cluster leave`")
	}
	if health == api.Alive && !force {
		return api.Errorf(api.InUse, fmt.Sprintf("node %q", name), "answers: its containers use its addresses; want `seine cluster leave` there, or force")
	}
	return s.remove(ctx, m.ID, m.Name)
}

// Drain marks a machine to be left alone by what places containers, or takes the mark away.
func (n *Node) Drain(ctx context.Context, name string, drained bool) error {
	s, err := n.session()
	if err != nil {
		return err
	}
	m, _, err := s.machine(name)
	if err != nil || m.Drained == drained {
		return err
	}
	m.Drained = drained
	return s.putMachine(ctx, m)
}

// machine finds a machine by name or ID.
func (s *session) machine(name string) (Machine, api.Health, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, m := range s.machines {
		if m.Name == name || id == name {
			return m, s.healthOf(id), nil
		}
	}
	return Machine{}, "", api.Errorf(api.NotFound, fmt.Sprintf("node %q", name), "is not in the cluster")
}

// healthOf is what this machine thinks of one; s.mu is held.
func (s *session) healthOf(id string) api.Health {
	if id == s.part.Node {
		return api.Alive
	}
	if h := s.health[id]; h != "" {
		return h
	}
	return api.Dead // it was never heard of
}

// Nodes lists the machines of the cluster by name; none where this machine is in none.
func (n *Node) Nodes(context.Context) ([]api.Node, error) {
	s, err := n.session()
	if err != nil {
		return []api.Node{}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []api.Node{}
	for id, m := range s.machines {
		x := api.Node{ID: id, Name: m.Name, Addresses: []netip.Addr{m.Address}, Health: s.healthOf(id), Drained: m.Drained}
		if id == s.part.Node {
			x.Version = n.Version
		}
		if p := s.peers[id]; p != nil {
			x.Version, x.Fabrics = p.node.Version, p.node.Fabrics
			for _, has := range p.networks {
				x.Networks++
				x.Endpoints += len(has.endpoints)
			}
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b api.Node) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Cluster tells what this machine is part of.
func (n *Node) Cluster(ctx context.Context) (api.Cluster, error) {
	s, err := n.session()
	if err != nil {
		return api.Cluster{}, err
	}
	s.mu.Lock()
	p := s.part
	c := api.Cluster{Name: p.Cluster, ID: p.ID, Node: p.Node, Store: "embedded", Endpoints: slices.Clone(p.Stores), Problems: s.failing}
	s.mu.Unlock()
	if p.Etcd != nil {
		c.Store = "etcd"
	}
	kvs, _, err := s.store.Get(ctx, memberPrefix)
	if err != nil {
		c.StoreError = err.Error()
	}
	for _, kv := range kvs {
		c.Members = append(c.Members, strings.TrimPrefix(kv.Key, memberPrefix))
	}
	return c, nil
}

// Token makes a token by which machines may join within a day. With rotate those of before end.
func (n *Node) Token(ctx context.Context, rotate bool) (api.ClusterToken, error) {
	s, err := n.session()
	if err != nil {
		return api.ClusterToken{}, err
	}
	t := pki.NewToken(s.part.authority)
	hash := t.Hash()
	ends := time.Now().Add(tokenLife).UTC()
	data, err := json.Marshal(ends)
	if err != nil {
		return api.ClusterToken{}, err
	}
	ops := []agreed.Op{{Key: tokenPrefix + hex.EncodeToString(hash[:]), Value: data}}
	kvs, _, err := s.store.Get(ctx, tokenPrefix)
	if err != nil {
		return api.ClusterToken{}, unavailable("token", err)
	}
	for _, kv := range kvs {
		if rotate || over(kv.Value) {
			ops = append(ops, agreed.Op{Key: kv.Key})
		}
	}
	if _, err := s.store.Txn(ctx, nil, ops); err != nil {
		return api.ClusterToken{}, unavailable("token", err)
	}
	return api.ClusterToken{Token: t.String(), Expires: ends.Format(time.RFC3339)}, nil
}

// over reports whether a token's time has ended.
func over(value []byte) bool {
	var ends time.Time
	return json.Unmarshal(value, &ends) != nil || time.Now().After(ends)
}

// checkToken reports why a token lets nobody in.
func (s *session) checkToken(ctx context.Context, t pki.Token) error {
	hash := t.Hash()
	kv, err := agreed.Get1(ctx, s.store, tokenPrefix+hex.EncodeToString(hash[:]))
	if err != nil {
		return unavailable("token", err)
	}
	if kv.Revision == 0 || over(kv.Value) {
		return api.Errorf(api.Invalid, "token", "lets nobody in, or not any more; want a new one (seine cluster token)")
	}
	return nil
}
