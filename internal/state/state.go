// Package state is the daemon's store of nouns: networks and endpoints with revisions, kept in memory for reading and
// in one bbolt file for good, with a watch. A change is on disk before it can be seen.
//
// It gives the nouns no meaning: what may be stored is the engine's to say.
package state

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/seine-net/seine/api"
)

// The buckets of the file.
var (
	bucketNetworks  = []byte("networks")
	bucketEndpoints = []byte("endpoints")
	bucketMeta      = []byte("meta")
	keyRevision     = []byte("revision")
	keyFormat       = []byte("format")
)

// format is the version of the file's layout.
const format = 1

// ErrLocked says that another process has the file open.
var ErrLocked = errors.New("is in use by another daemon")

// Store is the store. Its methods may be called from several goroutines.
type Store struct {
	db *bbolt.DB

	mu        sync.RWMutex
	revision  uint64
	networks  table[api.Network]
	endpoints table[api.Endpoint]
	meta      map[string]string
	watchers  map[*watcher]struct{}
}

// Open opens or makes the file and reads it. An unreadable record is an error that names it: nothing is dropped.
func Open(path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 2 * time.Second})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("state file %q: %w", path, ErrLocked)
	} else if err != nil {
		return nil, fmt.Errorf("state file %q: %w", path, err)
	}
	s := &Store{db: db, networks: newTable[api.Network](), endpoints: newTable[api.Endpoint](),
		meta: map[string]string{}, watchers: map[*watcher]struct{}{}}
	if err := db.Update(s.load); err != nil {
		return nil, errors.Join(fmt.Errorf("state file %q: %w", path, err), db.Close())
	}
	return s, nil
}

func (s *Store) load(tx *bbolt.Tx) error {
	for _, b := range [][]byte{bucketNetworks, bucketEndpoints, bucketMeta} {
		if _, err := tx.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bucketMeta)
	switch v := meta.Get(keyFormat); {
	case v == nil:
		if err := meta.Put(keyFormat, number(format)); err != nil {
			return err
		}
	case len(v) != 8 || binary.BigEndian.Uint64(v) != format:
		return fmt.Errorf("has layout %x, this program knows %d", v, format)
	}
	if v := meta.Get(keyRevision); len(v) == 8 {
		s.revision = binary.BigEndian.Uint64(v)
	}
	err := meta.ForEach(func(k, v []byte) error {
		if name, ok := strings.CutPrefix(string(k), "value/"); ok {
			s.meta[name] = string(v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := read(tx.Bucket(bucketNetworks), &s.networks); err != nil {
		return err
	}
	return read(tx.Bucket(bucketEndpoints), &s.endpoints)
}

func read[T any](b *bbolt.Bucket, into *table[T]) error {
	return b.ForEach(func(k, v []byte) error {
		var x T
		if err := json.Unmarshal(v, &x); err != nil {
			return fmt.Errorf("record %q: %w", k, err)
		}
		into.put(string(k), x)
		return nil
	})
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// Close ends all watches and closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	for w := range s.watchers {
		w.end()
	}
	clear(s.watchers)
	s.mu.Unlock()
	return s.db.Close()
}

// Change is a set of changes that become true together.
type Change struct {
	PutNetworks     []api.Network
	PutEndpoints    []api.Endpoint
	DeleteNetworks  []string
	DeleteEndpoints []string // by api.Endpoint.Key
}

// Commit writes a change to disk, then makes it visible, and returns its revision. The nouns in c get it as theirs.
// Only one Commit may run at a time; the engine sees to that.
func (s *Store) Commit(c *Change) (uint64, error) {
	s.mu.RLock()
	rev := s.revision + 1
	s.mu.RUnlock()
	now := time.Now().UTC().Format(time.RFC3339)
	err := s.db.Update(func(tx *bbolt.Tx) error {
		nets, eps := tx.Bucket(bucketNetworks), tx.Bucket(bucketEndpoints)
		for i := range c.PutNetworks {
			n := &c.PutNetworks[i]
			stamp(&n.Meta, rev, now)
			n.Status = nil
			if err := put(nets, n.Name, n); err != nil {
				return err
			}
		}
		for i := range c.PutEndpoints {
			e := &c.PutEndpoints[i]
			stamp(&e.Meta, rev, now)
			e.Status = nil
			if err := put(eps, e.Key(), e); err != nil {
				return err
			}
		}
		for _, k := range c.DeleteNetworks {
			if err := nets.Delete([]byte(k)); err != nil {
				return err
			}
		}
		for _, k := range c.DeleteEndpoints {
			if err := eps.Delete([]byte(k)); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(keyRevision, number(rev))
	})
	if err != nil {
		return 0, fmt.Errorf("state file: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision = rev
	s.publish(c, rev)
	return rev, nil
}

func stamp(m *api.Meta, rev uint64, now string) {
	m.Revision = rev
	if m.Created == "" {
		m.Created = now
	}
}

func put(b *bbolt.Bucket, key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put([]byte(key), data)
}

// publish makes a change visible and tells the watchers; s.mu is held.
func (s *Store) publish(c *Change, rev uint64) {
	var events []api.Event
	for _, n := range c.PutNetworks {
		s.networks.put(n.Name, n)
		events = append(events, api.Event{Revision: rev, Type: api.EventPut, Kind: "network", Network: &n})
	}
	for _, e := range c.PutEndpoints {
		s.endpoints.put(e.Key(), e)
		events = append(events, api.Event{Revision: rev, Type: api.EventPut, Kind: "endpoint", Endpoint: &e})
	}
	for _, k := range c.DeleteEndpoints {
		if e, ok := s.endpoints.by[k]; ok {
			s.endpoints.delete(k)
			events = append(events, api.Event{Revision: rev, Type: api.EventDelete, Kind: "endpoint", Endpoint: &e})
		}
	}
	for _, k := range c.DeleteNetworks {
		if n, ok := s.networks.by[k]; ok {
			s.networks.delete(k)
			events = append(events, api.Event{Revision: rev, Type: api.EventDelete, Kind: "network", Network: &n})
		}
	}
	for w := range s.watchers {
		w.add(events)
	}
}

// Revision is that of the last change.
func (s *Store) Revision() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revision
}

// Network gives a network by name.
func (s *Store) Network(name string) (api.Network, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, ok := s.networks.by[name]
	return n, ok
}

// Endpoint gives an endpoint by its key.
func (s *Store) Endpoint(key string) (api.Endpoint, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.endpoints.by[key]
	return e, ok
}

// Networks gives all networks by name.
func (s *Store) Networks() []api.Network {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.networks.all()
}

// Endpoints gives all endpoints by key.
func (s *Store) Endpoints() []api.Endpoint {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.endpoints.all()
}

// CountByNetwork gives the number of endpoints of each network that has any.
func (s *Store) CountByNetwork() map[string]int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	counts := map[string]int{}
	for _, e := range s.endpoints.by {
		counts[e.Network]++
	}
	return counts
}

// CountIn gives the number of endpoints of one network, without a look at those of others.
func (s *Store) CountIn(network string) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.endpoints.count(network + "/")
}

// Counts gives the numbers of networks and endpoints.
func (s *Store) Counts() (networks, endpoints int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.networks.keys), len(s.endpoints.keys)
}

// Value gives what was kept under a name with SetValue, "" for nothing.
func (s *Store) Value(name string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.meta[name]
}

// Values gives all that was kept with SetValue under names that begin with prefix.
func (s *Store) Values(prefix string) map[string]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := map[string]string{}
	for name, v := range s.meta {
		if strings.HasPrefix(name, prefix) {
			out[name] = v
		}
	}
	return out
}

// SetValue keeps a value of the daemon's own under a name; "" removes it.
func (s *Store) SetValue(name, value string) error {
	if s.Value(name) == value {
		return nil
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketMeta)
		if value == "" {
			return b.Delete([]byte("value/" + name))
		}
		return b.Put([]byte("value/"+name), []byte(value))
	})
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if value == "" {
		delete(s.meta, name)
	} else {
		s.meta[name] = value
	}
	return nil
}

// Watch gives all changes after revision since, in order, until ctx ends or the store closes; then the channel is
// closed. The store keeps no history: with a since other than the present revision the present state comes first, as
// puts by revision, and before it, where since is not 0, an api.EventReset: what was deleted meanwhile is not told.
// The receiver may be slow: events wait in memory; of one that is more than maxBehind behind the channel is closed.
func (s *Store) Watch(ctx context.Context, since uint64) <-chan api.Event {
	w := &watcher{wake: make(chan struct{}, 1)}
	s.mu.Lock()
	if since == 0 || since != s.revision {
		w.queue = s.present()
		if since != 0 {
			w.queue = append([]api.Event{{Revision: since, Type: api.EventReset}}, w.queue...)
		}
	}
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	out := make(chan api.Event)
	go func() {
		defer close(out)
		defer func() {
			s.mu.Lock()
			delete(s.watchers, w)
			s.mu.Unlock()
		}()
		w.send(ctx, out)
	}()
	return out
}

// present is the state as puts by revision; s.mu is held.
func (s *Store) present() []api.Event {
	var out []api.Event
	for _, n := range s.networks.all() {
		out = append(out, api.Event{Revision: n.Revision, Type: api.EventPut, Kind: "network", Network: &n})
	}
	for _, e := range s.endpoints.all() {
		out = append(out, api.Event{Revision: e.Revision, Type: api.EventPut, Kind: "endpoint", Endpoint: &e})
	}
	slices.SortStableFunc(out, func(a, b api.Event) int { return cmp.Compare(a.Revision, b.Revision) })
	return out
}

// maxBehind is how many events wait for a slow watcher beyond the state it began with.
const maxBehind = 65536

type watcher struct {
	mu    sync.Mutex
	queue []api.Event
	ended bool
	wake  chan struct{}
}

func (w *watcher) add(events []api.Event) {
	w.mu.Lock()
	w.queue = append(w.queue, events...)
	w.ended = w.ended || len(w.queue) > maxBehind
	w.mu.Unlock()
	w.poke()
}

func (w *watcher) end() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.poke()
}

func (w *watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) send(ctx context.Context, out chan<- api.Event) {
	for {
		w.mu.Lock()
		queue, ended := w.queue, w.ended
		w.queue = nil
		w.mu.Unlock()
		for _, e := range queue {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
		if ended {
			return
		}
		if len(queue) > 0 {
			continue
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
	}
}

// Lasting begins the names of values that ForgetValues spares: they are about what lives on beside the networks.
const Lasting = "lasting/"

// ForgetValues removes all that was kept with SetValue, save what is Lasting.
func (s *Store) ForgetValues() error {
	s.mu.RLock()
	var names []string
	for n := range s.meta {
		if !strings.HasPrefix(n, Lasting) {
			names = append(names, n)
		}
	}
	s.mu.RUnlock()
	var errs []error
	for _, n := range names {
		errs = append(errs, s.SetValue(n, ""))
	}
	return errors.Join(errs...)
}
