package node

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cluster/gossip"
)

// The keys of what a machine announces: in no network, itself; in a network (by api.Network.ID) its blocks and endpoints.
const (
	selfRecord     = "node"
	blocksRecord   = "blocks"
	endpointPrefix = "e/"
)

// The times of the announcer.
const (
	announceEvery = 10 * time.Second // what changes without an event: this machine's links
	blocksEvery   = 5 * time.Minute  // blocks of which nothing is used go back
)

// announce tells the other machines what this one has, until ctx ends.
func (s *session) announce(ctx context.Context) {
	a := &announcer{session: s, said: map[string]map[string]string{}}
	tick, blocks := time.NewTicker(announceEvery), time.NewTicker(blocksEvery)
	defer tick.Stop()
	defer blocks.Stop()
	var events <-chan api.Event
	for {
		if events == nil {
			var err error
			if events, err = s.Engine.Watch(ctx, 0); err != nil {
				s.Log.Warn("announcing", "err", err)
			}
			a.all(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case ev, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			a.event(ctx, ev)
		case <-tick.C:
			a.self(ctx)
			a.blocks(ctx)
		case <-blocks.C:
			if err := s.Engine.ReturnBlocks(ctx); err != nil && ctx.Err() == nil {
				s.Log.Info("address blocks that are not used could not be given back; it is tried again", "err", err)
			}
			a.blocks(ctx)
		}
	}
}

// announcer knows what was said, so that the same is not said again.
type announcer struct {
	*session
	said  map[string]map[string]string // network ID → key → data
	names map[string]string            // network name → ID
	node  string
}

// all says everything anew.
func (a *announcer) all(ctx context.Context) {
	a.self(ctx)
	a.blocks(ctx)
	eps, err := a.Engine.Endpoints(ctx)
	if err != nil {
		return
	}
	for _, ep := range eps {
		a.endpoint(ep)
	}
}

func (a *announcer) event(ctx context.Context, ev api.Event) {
	switch {
	case ev.Kind == "endpoint" && ev.Endpoint != nil:
		id := a.names[ev.Endpoint.Network]
		if a.said[id][blocksRecord] == "" {
			a.blocks(ctx) // it is the first one
		}
		if ev.Type == api.EventDelete {
			a.forget(id, endpointPrefix+ev.Endpoint.Name)
		} else {
			a.endpoint(*ev.Endpoint)
		}
		a.blocks(ctx)
	case ev.Kind == "network":
		a.blocks(ctx)
	}
}

// self announces this machine: where it is and what the fabrics tell of it.
func (a *announcer) self(ctx context.Context) {
	a.mu.Lock()
	self := api.Node{ID: a.part.Node, Name: a.Name, Version: a.Version, Addresses: []netip.Addr{a.part.Address}}
	a.mu.Unlock()
	self, err := a.Engine.Announce(self)
	if err != nil {
		a.Log.Debug("a fabric can't be used on this machine", "err", err)
	}
	data, err := json.Marshal(self)
	if err != nil || string(data) == a.node {
		return
	}
	if err := a.gossip.Put("", selfRecord, data); err != nil {
		a.Log.Error("announcing this machine", "err", err)
		return
	}
	a.node = string(data)
	if err := a.Engine.SetSelf(ctx, self); err != nil && ctx.Err() == nil {
		a.Log.Warn("ways to other machines", "err", err)
	}
}

// blocks announces the blocks of each network, and which networks this machine takes part in: those that it has blocks of.
func (a *announcer) blocks(ctx context.Context) {
	all, err := a.Engine.Networks(ctx)
	if err != nil {
		return
	}
	a.names = map[string]string{}
	for _, n := range all {
		if n.Shared() {
			a.names[n.Name] = n.ID
		}
	}
	has := map[string][]netip.Prefix{}
	for name, blocks := range a.Engine.Blocks() {
		if id := a.names[name]; id != "" && len(blocks) > 0 {
			has[id] = blocks
		}
	}
	ids := slices.Sorted(maps.Keys(has))
	if !slices.Equal(ids, slices.Sorted(maps.Keys(a.said))) {
		if err := a.gossip.Subscribe(ids); err != nil {
			a.Log.Error("announcing networks", "err", err)
			return
		}
		for id := range a.said {
			if has[id] == nil {
				delete(a.said, id)
			}
		}
	}
	for _, id := range ids {
		a.say(id, blocksRecord, has[id])
	}
}

func (a *announcer) endpoint(ep api.Endpoint) {
	if id := a.names[ep.Network]; id != "" && a.said[id] != nil && len(ep.Addresses) > 0 {
		a.say(id, endpointPrefix+ep.Name, api.Endpoint{Name: ep.Name, Network: ep.Network, Aliases: ep.Aliases, Addresses: ep.Addresses, MAC: ep.MAC})
	}
}

func (a *announcer) say(id, key string, what any) {
	data, err := json.Marshal(what)
	if err != nil || a.said[id][key] == string(data) {
		return
	}
	if err := a.gossip.Put(id, key, data); err != nil {
		a.Log.Error("announcing", "key", key, "err", err)
		return
	}
	if a.said[id] == nil {
		a.said[id] = map[string]string{}
	}
	a.said[id][key] = string(data)
}

func (a *announcer) forget(id, key string) {
	if a.said[id][key] != "" {
		a.gossip.Delete(id, key)
		delete(a.said[id], key)
	}
}

// peer is what another machine announced.
type peer struct {
	node     api.Node
	networks map[string]*peerNetwork
}

type peerNetwork struct {
	blocks    []netip.Prefix
	endpoints map[string]api.Endpoint
}

// hear takes what other machines announce, until ctx ends.
func (s *session) hear(ctx context.Context) {
	for c := range s.gossip.Watch() {
		s.mu.Lock()
		s.take(c)
		s.dirty[c.Node] = true
		s.mu.Unlock()
		s.poke()
	}
}

// take notes a change; s.mu is held.
func (s *session) take(c gossip.Change) {
	switch c.Kind {
	case gossip.NodeUp:
		s.health[c.Node] = api.Alive
	case gossip.NodeSuspect:
		s.health[c.Node] = api.Suspect
	case gossip.NodeDown:
		s.health[c.Node] = api.Dead
	case gossip.NodeLeft:
		s.health[c.Node] = api.Left
	case gossip.NodeGone:
		delete(s.health, c.Node)
		delete(s.peers, c.Node)
	case gossip.Put, gossip.Delete:
		if s.peers[c.Node] == nil {
			s.peers[c.Node] = &peer{networks: map[string]*peerNetwork{}}
		}
		if err := s.peers[c.Node].take(c); err != nil {
			s.Log.Error("what another machine announces is left out", "node", s.nameOf(c.Node), "key", c.Record.Key, "err", err)
		}
	}
}

// take notes a record. What is announced has the limits that it would have if it came by the API.
func (p *peer) take(c gossip.Change) error {
	r := c.Record
	gone := c.Kind == gossip.Delete
	if r.Network == "" {
		if r.Key != selfRecord {
			return nil
		}
		p.node = api.Node{}
		if gone {
			return nil
		}
		return json.Unmarshal(r.Data, &p.node)
	}
	net := p.networks[r.Network]
	if net == nil {
		net = &peerNetwork{endpoints: map[string]api.Endpoint{}}
		p.networks[r.Network] = net
	}
	name, isEndpoint := strings.CutPrefix(r.Key, endpointPrefix)
	switch {
	case r.Key == blocksRecord:
		net.blocks = nil
		if !gone {
			return json.Unmarshal(r.Data, &net.blocks)
		}
	case isEndpoint:
		delete(net.endpoints, name)
		if gone {
			return nil
		}
		var ep api.Endpoint
		if err := json.Unmarshal(r.Data, &ep); err != nil {
			return err
		}
		if err := ep.Validate(); err != nil {
			return err
		}
		net.endpoints[name] = ep
	}
	return nil
}

// settle lets changes of one moment become one change of the kernel.
const settle = 2 * time.Millisecond

// tellEngine has the engine follow what other machines announce, until ctx ends.
func (s *session) tellEngine(ctx context.Context) {
	retry := time.NewTicker(announceEvery)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			select {
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
		case <-retry.C:
		}
		s.mu.Lock()
		dirty := s.dirty
		s.dirty = map[string]bool{}
		s.mu.Unlock()
		for id := range dirty {
			if err := s.tellPeer(ctx, id); err != nil && ctx.Err() == nil {
				s.Log.Warn("the way to another machine", "err", err)
				s.mu.Lock()
				s.dirty[id] = true
				s.mu.Unlock()
			}
		}
	}
}

// tellPeer tells the engine about one machine: nothing leads to one that is dead.
func (s *session) tellPeer(ctx context.Context, id string) error {
	s.mu.Lock()
	p := s.peers[id]
	_, known := s.machines[id]
	alive := s.health[id] == api.Alive || s.health[id] == api.Suspect
	if p == nil || !known || !alive || p.node.ID != id {
		s.mu.Unlock()
		return s.Engine.DropPeer(ctx, id)
	}
	node, networks := p.node, map[string]Has{}
	for nid, n := range p.networks {
		if len(n.blocks) == 0 && len(n.endpoints) == 0 {
			continue
		}
		h := Has{Blocks: slices.Clone(n.blocks)}
		for _, name := range slices.Sorted(maps.Keys(n.endpoints)) {
			h.Endpoints = append(h.Endpoints, n.endpoints[name])
		}
		networks[nid] = h
	}
	s.mu.Unlock()
	return s.Engine.SetPeer(ctx, id, node, networks)
}
