package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/state"
)

// bookPrefix begins the names of the book's entries in the store.
const bookPrefix = "plugin/"

// entry is what was begun with plugins under one ID. It is in the store from before the first call until all is taken
// back. An entry that its noun does not name (api.Endpoint.Plugin, api.Network.Plugin) is to be taken back.
type entry struct {
	// Network and Endpoint name the noun; Endpoint is "" for a network's.
	Network  string
	Endpoint string `json:",omitempty"`
	// Of is the ID of the network that an endpoint's entry is about.
	Of    string `json:",omitempty"`
	Parts []part
}

// part is one attacher's share, in the order of the calls.
type part struct {
	Role string // "ipam" or "driver"
	Name string // as Network.Driver and Network.IPAM have it
	Note json.RawMessage
}

// note gives the note of a role, nil for none.
func (t *entry) note(role string) []byte {
	for _, p := range t.Parts {
		if p.Role == role {
			return p.Note
		}
	}
	return nil
}

// noun is the lock and the name in errors of what the entry is about.
func (t *entry) noun() string {
	if t.Endpoint == "" {
		return api.NetworkNoun(t.Network)
	}
	return api.EndpointNoun(t.Network, t.Endpoint)
}

// party is an attacher of a network.
type party struct {
	role, name string
	driver.Attacher
}

// parties gives the attachers of a network, in the order in which they attach.
func (e *Engine) parties(n api.Network) []party {
	var out []party
	if a := e.attacher("ipam", n.IPAM); a != nil {
		out = append(out, party{"ipam", n.IPAM, a})
	}
	if a := e.attacher("driver", n.Driver); a != nil {
		out = append(out, party{"driver", n.Driver, a})
	}
	return out
}

// attacher finds the Attacher of a role by its name, nil where there is none.
func (e *Engine) attacher(role, name string) driver.Attacher {
	if role == "driver" {
		a, _ := e.driver(name).(driver.Attacher)
		return a
	}
	kind, _, _ := strings.Cut(name, ":")
	return e.IPAMs[kind]
}

// driver finds a driver by the name that a network has, nil where there is none.
func (e *Engine) driver(name string) driver.Driver {
	kind, plugin, _ := strings.Cut(name, ":")
	d := e.Drivers[kind]
	if d == nil || d.Uses().Named != (plugin != "") {
		return nil
	}
	return d
}

func (e *Engine) entry(id string) (*entry, error) {
	text := e.Store.Value(bookPrefix + id)
	if text == "" {
		return nil, nil
	}
	var t entry
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return nil, fmt.Errorf("the book of plugins, entry %s: %w", id, err)
	}
	return &t, nil
}

func (e *Engine) keepEntry(id string, t *entry) error {
	if t == nil {
		return e.Store.SetValue(bookPrefix+id, "")
	}
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return e.Store.SetValue(bookPrefix+id, string(b))
}

// entries gives the book's entries by ID.
func (e *Engine) entries() map[string]*entry {
	out := map[string]*entry{}
	for name := range e.Store.Values(bookPrefix) {
		id := strings.TrimPrefix(name, bookPrefix)
		if t, err := e.entry(id); err == nil && t != nil {
			out[id] = t
		} else if err != nil {
			e.Log.Error("it is passed over", "err", err)
		}
	}
	return out
}

// begin has one attacher do its share and notes it in the entry.
func (e *Engine) begin(id string, t *entry, p party, do func(driver.Call) error) error {
	t.Parts = append(t.Parts, part{Role: p.role, Name: p.name})
	err := do(driver.Call{ID: id, Keep: e.keepNote(id, t, len(t.Parts)-1), Free: e.freeRange})
	if err != nil {
		return fmt.Errorf("%s %q: %w", p.role, p.name, err)
	}
	return nil
}

// keepNote gives what stores the note of one part of an entry.
func (e *Engine) keepNote(id string, t *entry, at int) driver.Keep {
	return func(note any) error {
		b, err := json.Marshal(note)
		if err != nil {
			return err
		}
		t.Parts[at].Note = b
		return e.keepEntry(id, t)
	}
}

// freeRange says whether no network of ours and no route of the machine has addresses of a range.
func (e *Engine) freeRange(p netip.Prefix) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, what := e.overlap(p, false)
	return what == ""
}

// undo takes back what an entry has, last first, and the entry with the last of it. It goes on where it ended before.
func (e *Engine) undo(ctx context.Context, id string) error {
	t, err := e.entry(id)
	if err != nil || t == nil {
		return err
	}
	for _, o := range e.entries() {
		if o.Of == id {
			return fmt.Errorf("%s is not detached yet", o.noun())
		}
	}
	for len(t.Parts) > 0 {
		p := t.Parts[len(t.Parts)-1]
		if s := string(p.Note); s != "" && s != "null" {
			a := e.attacher(p.Role, p.Name)
			switch {
			case a == nil:
				err = errors.New("is not known to this program")
			case t.Endpoint == "":
				err = a.Teardown(ctx, p.Note, e.keepNote(id, t, len(t.Parts)-1))
			default:
				err = a.Detach(ctx, p.Note, e.keepNote(id, t, len(t.Parts)-1))
			}
			if err != nil {
				return fmt.Errorf("%s %q: %w", p.Role, p.Name, err)
			}
		}
		t.Parts = t.Parts[:len(t.Parts)-1]
		if err := e.keepEntry(id, t); err != nil {
			return err
		}
	}
	e.plugins.clear(id)
	return e.keepEntry(id, nil)
}

// takeBack undoes all entries of a noun but the one under keep; the noun's lock is held. What fails is tried again.
func (e *Engine) takeBack(ctx context.Context, network, endpoint, keep string) error {
	var errs []error
	for id, t := range e.entries() {
		if t.Network != network || t.Endpoint != endpoint || id == keep {
			continue
		}
		if err := e.undo(context.WithoutCancel(ctx), id); err != nil {
			e.plugins.note(id, err)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// leftWithPlugins says whether plugins still have to take back an endpoint that was detached.
func (e *Engine) leftWithPlugins(ep api.Endpoint) bool {
	for id, t := range e.entries() {
		if t.Network == ep.Network && t.Endpoint == ep.Name && !e.named(id, t) {
			return true
		}
	}
	return false
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// attach has the plugins of an endpoint's network make it, and stores what they gave; the endpoint's lock is held. One
// that is attached, or whose network has no plugins, stays as it is. With an error the caller, or RunPlugins, takes back
// what there is.
func (e *Engine) attach(ctx context.Context, ep api.Endpoint) (api.Endpoint, error) {
	n, _ := e.Store.Network(ep.Network)
	parties := e.parties(n)
	if len(parties) == 0 || ep.Plugin != nil {
		return ep, nil
	}
	noun := api.EndpointNoun(ep.Network, ep.Name)
	if n.Plugin == "" {
		return ep, api.Errorf(api.Unavailable, noun, "network %q is not made yet: %s", n.Name, e.plugins.why(api.NetworkNoun(n.Name)))
	}
	if err := e.takeBack(ctx, ep.Network, ep.Name, ""); err != nil {
		return ep, api.Errorf(api.Unavailable, noun, "what was attached before is not detached yet: %w", err)
	}
	net, err := e.entry(n.Plugin)
	if err == nil && net == nil {
		err = fmt.Errorf("the book of plugins has no entry for %s", api.NetworkNoun(n.Name))
	}
	id := newID()
	now := ep
	now.Plugin = &api.Plugin{ID: id}
	now.Addresses = slices.Clone(ep.Addresses)
	t := &entry{Network: ep.Network, Endpoint: ep.Name, Of: n.Plugin}
	for _, p := range parties {
		if err == nil {
			err = e.begin(id, t, p, func(c driver.Call) error { return p.Attach(ctx, n, net.note(p.role), &now, c) })
		}
	}
	if err == nil {
		err = e.checkGiven(now)
	}
	if err == nil {
		now, err = e.storeGiven(noun, n, ep, now)
	}
	if err != nil {
		e.plugins.poke()
		return ep, pluginRefused(noun, err)
	}
	e.plugins.clear(noun)
	return now, nil
}

// pluginRefused makes what a plugin said an error of the API.
func pluginRefused(noun string, err error) error {
	var known *api.Error
	if errors.As(err, &known) {
		return err
	}
	return api.Errorf(api.Unavailable, noun, "%w", err)
}

// checkGiven holds what plugins gave to what can be used: they are not to be trusted with the machine's own things.
func (e *Engine) checkGiven(ep api.Endpoint) error {
	usable := func(a netip.Addr) bool {
		return a.IsValid() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback()
	}
	if ep.Plugin.Interface != "" {
		if err := e.Machine.CheckMovable(ep.Plugin.Interface); err != nil {
			return fmt.Errorf("interface %q of the machine, which the plugin gave: %w", ep.Plugin.Interface, err)
		}
		for _, o := range e.Store.Endpoints() {
			if o.Key() != ep.Key() && o.Plugin != nil && o.Plugin.Interface == ep.Plugin.Interface {
				return fmt.Errorf("interface %q, which the plugin gave, is that of endpoint %q", ep.Plugin.Interface, o.Key())
			}
		}
	}
	for _, p := range ep.Plugin.Prefixes {
		if !p.IsValid() || !usable(p.Addr()) {
			return fmt.Errorf("address %s, which the plugin gave, is none for a container", p)
		}
	}
	for _, a := range slices.Concat(ep.Addresses, ep.Plugin.Gateways, ep.Plugin.DNS) {
		if !usable(a) {
			return fmt.Errorf("address %s, which the plugin gave, is none for a container", a)
		}
	}
	for _, r := range ep.Plugin.Routes {
		if !r.To.IsValid() || r.Via.IsValid() && !usable(r.Via) {
			return fmt.Errorf("route to %s via %s, which the plugin gave, can't be one", r.To, r.Via)
		}
	}
	valid := ep
	valid.Status = nil
	return valid.Validate()
}

// storeGiven commits what plugins gave to an endpoint.
func (e *Engine) storeGiven(noun string, n api.Network, was, ep api.Endpoint) (api.Endpoint, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	uses := e.driver(n.Driver).Uses()
	if err := e.placeEndpoint(noun, n, uses, &ep, &was); err != nil {
		return was, err
	}
	if len(n.Subnets) > 0 {
		if err := e.reserve(noun, n, &ep, &was); err != nil {
			return was, err
		}
	}
	if ep.MAC == "" && len(ep.Addresses) > 0 && e.attacher("driver", n.Driver) == nil {
		ep.MAC = driver.MAC(ep.Addresses[0])
	}
	c := state.Change{PutEndpoints: []api.Endpoint{ep}}
	if _, err := e.Store.Commit(&c); err != nil {
		e.release(n, ep, &was)
		return was, refused(noun, err)
	}
	e.unindex(was)
	e.index(ep)
	return c.PutEndpoints[0], nil
}

// requestSubnets has the IPAM plugin of a network that is not stored yet give its subnets. It returns the ID of the
// book's entry, "" where there is none to ask.
func (e *Engine) requestSubnets(ctx context.Context, n *api.Network) (id string, t *entry, err error) {
	a := e.attacher("ipam", n.IPAM)
	if _, exists := e.Store.Network(n.Name); exists || a == nil {
		return "", nil, nil
	}
	noun := api.NetworkNoun(n.Name)
	if err := e.takeBack(ctx, n.Name, "", ""); err != nil {
		return "", nil, api.Errorf(api.Unavailable, noun, "the one of that name of before is not removed yet: %w", err)
	}
	id, t = newID(), &entry{Network: n.Name}
	if err := e.begin(id, t, party{"ipam", n.IPAM, a}, func(c driver.Call) error { return a.Setup(ctx, n, c) }); err != nil {
		return "", nil, e.giveUp(ctx, n.Name, err)
	}
	return id, t, nil
}

// giveUp takes back what was begun for a network and returns why, as an error of the API.
func (e *Engine) giveUp(ctx context.Context, network string, err error) error {
	if back := e.takeBack(ctx, network, "", ""); back != nil {
		err = fmt.Errorf("%w (and it is not taken back yet: %w)", err, back)
	}
	return pluginRefused(api.NetworkNoun(network), err)
}

// setup makes a stored network known to its plugins, which requestSubnets may have begun under id; the network's lock is
// held. With an error the caller, or RunPlugins, takes back what there is.
func (e *Engine) setup(ctx context.Context, n api.Network, id string, t *entry) (api.Network, error) {
	parties := e.parties(n)
	if len(parties) == 0 || n.Plugin != "" {
		return n, nil
	}
	noun := api.NetworkNoun(n.Name)
	if err := e.takeBack(ctx, n.Name, "", id); err != nil {
		return n, api.Errorf(api.Unavailable, noun, "what was made before is not removed yet: %w", err)
	}
	if t == nil {
		id, t = newID(), &entry{Network: n.Name}
	}
	now := n
	var err error
	for _, p := range parties[len(t.Parts):] {
		if err == nil {
			err = e.begin(id, t, p, func(c driver.Call) error { return p.Setup(ctx, &now, c) })
		}
	}
	if err == nil && !slices.Equal(shape(now), shape(n)) {
		err = fmt.Errorf("the plugin gave subnets %v, not those of before, %v", shape(now), shape(n))
	}
	if err != nil {
		e.plugins.poke()
		return n, pluginRefused(noun, err)
	}
	now.Plugin = id
	e.mu.Lock()
	c := state.Change{PutNetworks: []api.Network{now}}
	_, err = e.Store.Commit(&c)
	e.mu.Unlock()
	if err != nil {
		return n, refused(noun, err)
	}
	e.plugins.clear(noun)
	return c.PutNetworks[0], nil
}

// pluginStatus fills in what is known of an attached endpoint whose interface is a plugin's.
// Where the plugin names no name servers, ours is at its fixed addresses, which a default route leads to.
func (e *Engine) pluginStatus(n api.Network, ep api.Endpoint, st *api.EndpointStatus) {
	st.Prefixes, st.Gateways, st.DNS = ep.Plugin.Prefixes, ep.Plugin.Gateways, ep.Plugin.DNS
	if len(st.DNS) > 0 || n.Internal {
		return
	}
	for _, a := range e.fixed(e.Facts()) {
		if ep.Address(a.Is4()).IsValid() {
			st.DNS = append(st.DNS, a)
		}
	}
}

// resetPlugins takes everything back once; what can't be is told and forgotten.
func (e *Engine) resetPlugins(ctx context.Context) {
	entries := e.entries()
	for _, endpoints := range []bool{true, false} {
		for id, t := range entries {
			if (t.Endpoint != "") != endpoints {
				continue
			}
			if err := e.undo(ctx, id); err != nil {
				e.Log.Error("reset: a plugin did not take back what it had made", "what", t.noun(), "err", err)
			}
			e.plugins.clear(id)
		}
	}
}

// checkPlugins asks the plugins of an owner's endpoint, or of all with "", that can tell, whether all is as they made it.
// What they find is theirs to mend: it is told as a change that nobody makes.
func (e *Engine) checkPlugins(ctx context.Context, owner string) []api.Change {
	var out []api.Change
	for _, ep := range e.Store.Endpoints() {
		of := driver.EndpointOwner(ep.Network, ep.Name)
		if ep.Plugin == nil || owner != "" && owner != of {
			continue
		}
		t, err := e.entry(ep.Plugin.ID)
		if err != nil || t == nil {
			continue
		}
		for _, p := range t.Parts {
			c, ok := e.attacher(p.Role, p.Name).(driver.Checker)
			if !ok {
				continue
			}
			if err := c.Check(ctx, p.Note); err != nil {
				out = append(out, api.Change{Op: kernel.Update.String(), Owner: of, Object: "what " + p.Role + " " + p.Name + " made", Was: err.Error()})
			}
		}
	}
	return out
}
