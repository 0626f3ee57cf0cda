package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/cluster/agreed"
	"github.com/seine-net/seine/internal/cluster/agreed/agreedtest"
	"github.com/seine-net/seine/internal/cluster/etcd"
	"github.com/seine-net/seine/internal/cluster/pki"
)

// TestMain is also the process of a member.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == etcd.MemberCommand {
		if err := etcd.RunMember(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// site is a cluster's authority with members on this machine.
type site struct {
	*testing.T
	authority *pki.Authority
	dir       string
}

func newSite(t *testing.T) *site {
	a, err := pki.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t, a, t.TempDir()}
	s.write("ca.pem", must(a.EncodePEM(false)))
	return s
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (s *site) write(name string, data []byte) string {
	s.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		s.Fatal(err)
	}
	return path
}

func identity(t *testing.T, a *pki.Authority, node string) *pki.Identity {
	t.Helper()
	key := must(pki.NewKey())
	return &pki.Identity{Key: key, Cert: must(a.Sign(must(pki.Request(key)), node, time.Now()))}
}

func (s *site) client(node string, a *pki.Authority, endpoints ...string) *etcd.Store {
	s.Helper()
	id := identity(s.T, a, node)
	c := pki.Config{Authority: s.authority, Identity: func() *pki.Identity { return id }}
	st, err := etcd.Open(endpoints, "/seine/", c.Client(""))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { st.Close() })
	return st
}

// member is one that runs.
type member struct {
	etcd.MemberConfig
	stop  func()
	ready chan struct{}
}

func freeURL(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "https://" + l.Addr().String()
}

func (s *site) member(name string) *member {
	s.Helper()
	id := identity(s.T, s.authority, name)
	pem := must(id.EncodePEM())
	file := s.write(name+".pem", pem)
	return &member{MemberConfig: etcd.MemberConfig{Name: name, Dir: filepath.Join(s.dir, name), ClientURL: freeURL(s.T), PeerURL: freeURL(s.T),
		Cert: file, Key: file, CA: filepath.Join(s.dir, "ca.pem"), ServerName: pki.ServerName}}
}

func (s *site) start(m *member) {
	s.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m.ready = make(chan struct{}, 8)
	ready := m.ready
	var running sync.WaitGroup
	running.Go(func() {
		etcd.RunProcess(ctx, must(os.Executable()), m.MemberConfig, slog.New(slog.DiscardHandler), func() { ready <- struct{}{} })
	})
	m.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	s.Cleanup(m.stop)
}

func (s *site) wait(m *member) {
	s.Helper()
	select {
	case <-m.ready:
	case <-time.After(time.Minute):
		s.Fatalf("member %s does not get ready", m.Name)
	}
}

func (s *site) first() (*member, *etcd.Store) {
	s.Helper()
	m := s.member("n1")
	m.Initial = "n1=" + m.PeerURL
	s.start(m)
	s.wait(m)
	return m, s.client("n1", s.authority, m.ClientURL)
}

// TestStore: etcd is an agreed.Store, and strangers are not let in.
func TestStore(t *testing.T) {
	s := newSite(t)
	m, _ := s.first()
	n := 0
	agreedtest.Run(t, func(t *testing.T) agreed.Store {
		n++
		id := identity(t, s.authority, "n1")
		c := pki.Config{Authority: s.authority, Identity: func() *pki.Identity { return id }}
		st, err := etcd.Open([]string{m.ClientURL}, fmt.Sprintf("/t%d/", n), c.Client(""))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { st.Close() })
		return st
	})
	other := must(pki.NewAuthority("other", time.Now()))
	if _, _, err := s.client("n1", other, m.ClientURL).Get(t.Context(), ""); !errors.Is(err, agreed.ErrUnavailable) {
		t.Errorf("a stranger was answered: %v", err)
	}
}

// TestMembers: one member becomes three, a member is killed, one is replaced, a removed one is refused; what was agreed
// stays, and a watch goes on through all of it.
func TestMembers(t *testing.T) {
	if testing.Short() {
		t.Skip("skip: needs some ten seconds; run without -short")
	}
	s := newSite(t)
	m1, st := s.first()
	ctx := t.Context()
	put := func(key string) {
		t.Helper()
		for limit := time.Now().Add(30 * time.Second); ; {
			_, err := st.Txn(ctx, nil, []agreed.Op{{Key: key, Value: []byte("x")}})
			if err == nil {
				return
			}
			if time.Now().After(limit) {
				t.Fatal(err)
			}
		}
	}
	put("a")
	all := map[string]*member{"n1": m1, "n2": s.member("n2"), "n3": s.member("n3"), "n4": s.member("n4")}
	nodes := func(gone string, names ...string) []etcd.Node {
		var out []etcd.Node
		for _, n := range names {
			x := etcd.Node{ID: n, PeerURL: all[n].PeerURL, Alive: n != gone}
			if !x.Alive {
				x.Gone = time.Hour
			}
			out = append(out, x)
		}
		return out
	}
	settle := func(nodes []etcd.Node) {
		t.Helper()
		for limit := time.Now().Add(time.Minute); ; {
			if time.Now().After(limit) {
				t.Fatal("the members do not settle")
			}
			ms, err := st.Members(ctx)
			if err != nil {
				continue
			}
			step := etcd.Plan(nodes, ms)
			if step == nil {
				voting := slices.DeleteFunc(ms, func(m etcd.Member) bool { return m.Learner })
				if len(voting) == etcd.Want(len(nodes)) {
					return
				}
				time.Sleep(100 * time.Millisecond) // one is starting
				continue
			}
			err = st.Apply(ctx, step, func(_ context.Context, n etcd.Node, initial string) error {
				m := all[n.ID]
				m.Initial, m.Existing = initial, true
				s.start(m)
				return nil
			})
			if err != nil {
				time.Sleep(200 * time.Millisecond) // not caught up yet
			}
			var urls []string
			for _, m := range all {
				urls = append(urls, m.ClientURL)
			}
			st.SetEndpoints(urls)
		}
	}
	events := st.Watch(ctx, "")
	settle(nodes("", "n1", "n2", "n3"))
	put("b")
	m1.stop()
	put("c") // two of three are enough
	settle(nodes("n1", "n1", "n2", "n3", "n4"))
	ms, err := st.Members(ctx)
	if err != nil || len(ms) != 3 || strings.Contains(fmt.Sprint(ms), m1.PeerURL) {
		t.Errorf("members are %+v, %v", ms, err)
	}
	all["n2"].stop()
	put("d")
	kvs, _, err := st.Get(ctx, "")
	if err != nil || len(kvs) != 4 {
		t.Errorf("left: %v, %v", kvs, err)
	}
	seen := map[string]bool{}
	for limit := time.After(30 * time.Second); len(seen) < 4; {
		select {
		case ev := <-events:
			if ev.Value != nil {
				seen[ev.Key] = true
			}
		case <-limit:
			t.Fatalf("the watch told only of %v", seen)
		}
	}
}

func TestPlan(t *testing.T) {
	node := func(id string, alive bool) etcd.Node {
		return etcd.Node{ID: id, PeerURL: "https://" + id, Alive: alive, Gone: time.Hour}
	}
	voter := func(id string) etcd.Member { return etcd.Member{Node: id, PeerURL: "https://" + id, Started: true} }
	learner := func(id string, started bool) etcd.Member {
		return etcd.Member{Node: id, PeerURL: "https://" + id, Started: started, Learner: true}
	}
	for _, c := range []struct {
		name    string
		nodes   []etcd.Node
		members []etcd.Member
		want    string
	}{
		{"one", []etcd.Node{node("a", true)}, []etcd.Member{voter("a")}, ""},
		{"two need one", []etcd.Node{node("a", true), node("b", true)}, []etcd.Member{voter("a")}, ""},
		{"three need three", []etcd.Node{node("a", true), node("b", true), node("c", true)}, []etcd.Member{voter("a")}, "add b"},
		{"a learner starts", []etcd.Node{node("a", true), node("b", true), node("c", true)}, []etcd.Member{voter("a"), learner("b", false)}, ""},
		{"a learner has started", []etcd.Node{node("a", true), node("b", true), node("c", true)}, []etcd.Member{voter("a"), learner("b", true)}, "promote b"},
		{"a learner died", []etcd.Node{node("a", true), node("b", false), node("c", true)}, []etcd.Member{voter("a"), learner("b", false)}, "remove b"},
		{"a node was removed", []etcd.Node{node("a", true), node("b", true)}, []etcd.Member{voter("a"), voter("b"), voter("c")}, "remove c"},
		{"three became two", []etcd.Node{node("a", true), node("b", true)}, []etcd.Member{voter("a"), voter("b")}, "remove b"},
		{"one is dead, nobody is free", []etcd.Node{node("a", true), node("b", false), node("c", true)}, []etcd.Member{voter("a"), voter("b"), voter("c")}, ""},
		{"one is dead, one is free", []etcd.Node{node("a", true), node("b", false), node("c", true), node("d", true)}, []etcd.Member{voter("a"), voter("b"), voter("c")}, "remove b"},
		{"no majority: nothing can be done", []etcd.Node{node("a", true), node("b", false), node("c", false), node("d", true)}, []etcd.Member{voter("a"), voter("b"), voter("c")}, ""},
	} {
		got := ""
		switch s := etcd.Plan(c.nodes, c.members); {
		case s == nil:
		case s.Add != nil:
			got = "add " + s.Add.ID
		case s.Promote != nil:
			got = "promote " + s.Promote.Node
		default:
			got = "remove " + strings.TrimPrefix(s.Remove.PeerURL, "https://")
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
