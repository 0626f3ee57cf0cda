package lab

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
)

func spec(change func(*Spec)) Spec {
	s := Spec{Name: "x", Hosts: 3, IPv4: true, IPv6: true}
	if change != nil {
		change(&s)
	}
	return s
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		s    Spec
		want string // in the error; "" for none
	}{
		{spec(nil), ""},
		{spec(func(s *Spec) { s.Hosts = MaxHosts }), ""},
		{spec(func(s *Spec) { s.Hosts = 0 }), "--hosts"},
		{spec(func(s *Spec) { s.Hosts = MaxHosts + 1 }), "1 to 100"},
		{spec(func(s *Spec) { s.Name = "" }), "--name"},
		{spec(func(s *Spec) { s.Name = "../x" }), "--name"},
		{spec(func(s *Spec) { s.Name = "-x" }), "--name"},
		{spec(func(s *Spec) { s.Name = strings.Repeat("x", maxName+1) }), "at most 24"},
		{spec(func(s *Spec) { s.IPv4, s.IPv6 = false, false }), "neither"},
	} {
		err := tt.s.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || api.CodeOf(err) != api.Invalid) {
			t.Errorf("%+v: %v, want %q", tt.s, err, tt.want)
		}
	}
}

func TestGrow(t *testing.T) {
	s := spec(nil)
	for n, want := range map[int]int{1: 3, 3: 3, 5: 5} {
		got, err := s.grow(spec(func(s *Spec) { s.Hosts = n }))
		if err != nil || got.Hosts != want {
			t.Errorf("3 hosts, %d asked for: %d, %v; want %d", n, got.Hosts, err, want)
		}
	}
	for _, change := range []func(*Spec){func(s *Spec) { s.IPv4 = false }, func(s *Spec) { s.IPv6 = false }, func(s *Spec) { s.Routed = true }, func(s *Spec) { s.Cluster = true }} {
		if _, err := s.grow(spec(change)); api.CodeOf(err) != api.Conflict {
			t.Errorf("grown into %+v: %v", spec(change), err)
		}
	}
}

func TestHostNames(t *testing.T) {
	s := spec(nil)
	for name, want := range map[string]int{"h1": 1, "h3": 3, "h4": 0, "h0": 0, "h01": 0, "1": 0, "": 0, "h": 0, "h-1": 0, "hh1": 0} {
		n, err := s.host(name)
		if n != want || (err == nil) != (want > 0) || want == 0 && api.CodeOf(err) != api.NotFound {
			t.Errorf("host %q is %d, %v; want %d", name, n, err, want)
		}
	}
}

// TestScripts holds what is run to goldens.
func TestScripts(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    Spec
	}{
		{"dual", spec(nil)},
		{"ipv4", spec(func(s *Spec) { s.IPv6 = false })},
		{"ipv6", spec(func(s *Spec) { s.IPv4 = false })},
		{"routed", spec(func(s *Spec) { s.Routed = true })},
	} {
		got := "# underlay\n" + tt.s.underlayScript() + tt.s.cutRules() + tt.s.cable(12) + "# h12\n" + tt.s.hostScript(12) +
			"# cut, heal\n" + tt.s.setPairs([][2]int{{1, 12}}, true) + tt.s.setPairs([][2]int{{1, 12}}, false)
		path := filepath.Join("testdata", tt.name+".golden")
		want, err := os.ReadFile(path)
		if err != nil || got != string(want) {
			t.Errorf("%s is not (%v)\n%s", path, err, got)
		}
	}
}

func TestPairs(t *testing.T) {
	s := spec(nil)
	for _, tt := range []struct {
		names []string
		want  [][2]int
		code  api.Code
	}{
		{[]string{"h1", "h2"}, [][2]int{{1, 2}}, ""},
		{[]string{"h3", "h1"}, [][2]int{{1, 3}}, ""},
		{[]string{"h2"}, [][2]int{{1, 2}, {2, 3}}, ""},
		{nil, [][2]int{{1, 2}, {1, 3}, {2, 3}}, ""},
		{[]string{"h1", "h1"}, nil, api.Invalid},
		{[]string{"h1", "h4"}, nil, api.NotFound},
	} {
		got, err := s.pairs(tt.names)
		if !reflect.DeepEqual(got, tt.want) || (err != nil) != (tt.code != "") || err != nil && api.CodeOf(err) != tt.code {
			t.Errorf("%v: %v, %v; want %v", tt.names, got, err, tt.want)
		}
	}
	if got := s.setPairs(nil, true); got != "" {
		t.Errorf("a script about no pairs: %q", got)
	}
}

func TestParseCuts(t *testing.T) {
	got, err := parseCuts([]byte(`{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"set": {"family": "bridge", "name": "cut", "table": "seine_lab",
		"type": ["ifname", "ifname"], "elem": [{"concat": ["p1", "p10"]}, {"concat": ["p1", "p2"]}, {"concat": ["p2", "p1"]}]}}]}`))
	if want := (map[string][]string{"h1": {"h2", "h10"}, "h2": {"h1"}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if _, err := parseCuts([]byte("?")); err == nil {
		t.Error("what is no JSON is taken")
	}
}

func TestProcess(t *testing.T) {
	stat := func(state string) string {
		return "7 (a) b) " + state + " 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1"
	}
	for s, want := range map[string]uint64{stat("S"): 4242, stat("R"): 4242, stat("Z"): 0, stat("X"): 0} {
		if got, err := startOf(s); got != want || err != nil {
			t.Errorf("%q began at %d, %v; want %d", s, got, err, want)
		}
	}
	if _, err := startOf("7 (a) S 1"); err == nil {
		t.Error("half a line is taken")
	}
	me, err := find(os.Getpid())
	if err != nil || me.PID != os.Getpid() || !me.lives() {
		t.Fatalf("this process is %+v, %v", me, err)
	}
	if back, err := parsePID(me.String()); err != nil || back != me {
		t.Errorf("%q is read as %+v, %v", me.String(), back, err)
	}
	if (process{}).lives() || (process{PID: me.PID}).lives() {
		t.Error("no process lives")
	}
	other := process{me.PID, me.Start + 1} // it had the number before us
	if err := other.signal(9); other.lives() || err != nil || !other.await(0) {
		t.Errorf("a process that is no more: %v", err)
	}
	for _, s := range []string{"", "x", "1 5\n", "-3 5\n", "7\n"} {
		if p, err := parsePID(s); err == nil {
			t.Errorf("%q is read as %+v", s, p)
		}
	}
}

func TestMountsBelow(t *testing.T) {
	got := mountsBelow("1 0 0:1 / / rw - x x rw\n2 1 0:2 / /run/l/a/run/netns/x rw - nsfs nsfs rw\n3 1 0:2 / /run/l/a rw - x x rw\n"+
		"4 1 0:2 / /run/l/ab rw - x x rw\n5 1 0:2 / /run/l rw - x x rw\n", "/run/l/a")
	if want := []string{"/run/l/a/run/netns/x"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestUnique(t *testing.T) {
	got := unique([]string{"A=1", "B=2", "A=3"})
	if want := []string{"A=3", "B=2"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
