package docker_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// stories are what users do. Each of them ends with nothing left; what failed is tried once more, as users do.
var stories = map[string]func(*sim){
	"our addresses": func(s *sim) {
		s.twice(func() error { return s.createNetwork("a", "10.8.0.0/24", true, nil) })
		s.twice(func() error { return s.connect("a", "web", "", 8080, 8443) })
		s.twice(func() error { return s.connect("a", "db", "10.8.0.77") })
		s.settled()
		s.disconnect("a", "web", false)
		s.disconnect("a", "db", false)
		s.removeNetwork("a")
	},
	"Docker's addresses": func(s *sim) {
		s.twice(func() error {
			return s.createNetwork("b", "10.9.0.0/24", false, map[string]string{"seine.name": "shop"})
		})
		s.twice(func() error { return s.connect("b", "web", "", 8080) })
		s.settled()
		s.disconnect("b", "web", true) // after a restart of dockerd
		s.twice(func() error { return s.connect("b", "web", "", 8080) })
		s.settled()
		s.disconnect("b", "web", false)
		s.removeNetwork("b")
	},
	"a second network": func(s *sim) {
		s.twice(func() error { return s.createNetwork("a", "", true, nil) })
		s.twice(func() error { return s.createNetwork("b", "10.9.0.0/24", false, nil) })
		s.twice(func() error { return s.connect("a", "web", "") })
		s.twice(func() error { return s.connect("b", "web", "", 8080) })
		s.settled()
		s.disconnect("a", "web", false)
		s.settled()
		s.disconnect("b", "web", false)
		s.removeNetwork("b")
		s.removeNetwork("a")
	},
}

// twice does something, and once more where it failed because the daemon was killed.
func (s *sim) twice(f func() error) {
	s.Helper()
	if err := f(); err != nil {
		if s.fail == nil {
			s.Fatal(err)
		}
		if err := f(); err != nil {
			s.Fatalf("tried again: %v", err)
		}
	}
}

// TestKilled: SIGKILL within and after each call, at every step of it; the daemon starts again; Docker's call fails, as it
// comes again without its body, or comes again as it was. Whatever Docker and its user do then works, and nothing is left.
func TestKilled(t *testing.T) {
	for name, story := range stories {
		for _, mode := range []string{"20.10", "today", "again"} {
			t.Run(name+"/"+mode, func(t *testing.T) {
				t.Parallel()
				for call := 0; ; call++ {
					for at := 1; ; at++ {
						reached, made := killedAt(t, story, mode, call, at)
						if t.Failed() {
							t.Fatalf("killed at step %d of call %d", at, call)
						}
						if !made {
							return
						}
						if !reached {
							break
						}
						if testing.Short() && at > 2 {
							break
						}
					}
				}
			})
		}
	}
}

// killedAt tells a story in which the daemon is killed at a step of a call; reached and made tell whether there are such.
func killedAt(t *testing.T, story func(*sim), mode string, call, at int) (reached, made bool) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.mortal = &mortal{d: d}
		d.restart()
		before := d.strip(d.state())
		s := newSim(d)
		s.head = mode == "today"
		n := 0
		what := ""
		s.fail = func(name, body string) (map[string]any, error, bool) {
			n++
			if n-1 != call {
				return nil, nil, false
			}
			made, what = true, name
			var answered bool
			if reached, answered = d.mortal.kill(name, body, at); answered {
				return map[string]any{}, nil, true
			}
			if mode != "again" {
				body = ""
			}
			out, err := d.ask(name, body)
			return out, err, true
		}
		s.lost = func(name string) bool { return name == what && at == 1 && mode != "again" }
		story(s)
		d.age(25 * time.Minute)
		if now := d.strip(d.state()); now != before {
			t.Errorf("%s: left:\n%s\nwas:\n%s", what, now, before)
		}
	})
	return reached, made
}

// strip leaves out what the kernel keeps of namespaces that the test made.
func (d *desk) strip(state string) string {
	var out []string
	for line := range strings.Lines(state) {
		if !strings.Contains(line, d.sandboxes()) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}
