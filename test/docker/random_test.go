package docker_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seine-net/seine/internal/kernel"
)

// TestRandom: thousands of random steps of Docker's users, of restarts, of SIGKILL within calls and of refusals by the
// kernel. After each the machine has what Docker has; in the end nothing is left. SEINE_SEQUENCES sets how many sequences
// there are; the number of a failed one is told.
func TestRandom(t *testing.T) {
	count := 40
	if testing.Short() {
		count = 5
	}
	if s := os.Getenv("SEINE_SEQUENCES"); s != "" {
		count, _ = strconv.Atoi(s)
	}
	for seed := range count {
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomly(t, uint64(seed), 80) })
		})
		if !ok {
			t.Fatalf("sequence %d failed", seed)
		}
	}
}

// dice is a sim that rolls dice.
type dice struct {
	*sim
	*rand.Rand
	murky bool // a call was broken off since time passed: what Docker forgot may be in the way
}

func randomly(t *testing.T, seed uint64, steps int) {
	d := newDesk(t)
	d.mortal = &mortal{d: d}
	d.restart()
	before := d.strip(d.state())
	s := &dice{sim: newSim(d), Rand: rand.New(rand.NewPCG(seed, 4))}
	s.head = seed%2 == 0
	for range steps {
		s.step()
		s.settled()
		if t.Failed() {
			return
		}
	}
	s.fail, s.lost = nil, func(string) bool { return false }
	for _, key := range slices.Sorted(maps.Keys(s.eps)) {
		network, container, _ := strings.Cut(key, "/")
		s.disconnect(network, container, s.IntN(2) == 0)
	}
	for _, name := range slices.Sorted(maps.Keys(s.nets)) {
		s.removeNetwork(name)
	}
	s.age(25 * time.Minute)
	if now := d.strip(d.state()); now != before {
		t.Errorf("left:\n%s\nwas:\n%s", now, before)
	}
}

// trouble has one of the next calls go wrong, or none.
func (s *dice) trouble() {
	s.fail, s.lost = nil, func(string) bool { return false }
	call, at, n, kind := s.IntN(8), 1+s.IntN(12), 0, s.IntN(8)
	again, what := s.IntN(3) == 0, ""
	s.lost = func(name string) bool { return name == what && at == 1 && !again }
	s.fail = func(name, body string) (map[string]any, error, bool) {
		if n++; n-1 != call {
			return nil, nil, false
		}
		switch kind {
		case 0: // killed within
			s.murky, what = true, name
			if _, answered := s.mortal.kill(name, body, at); answered {
				return map[string]any{}, nil, true
			}
			if !again {
				body = ""
			}
			out, err := s.ask(name, body)
			return out, err, true
		case 1: // the kernel refuses one object for as long as the call lasts
			s.murky = true
			var refused kernel.Key
			ops := 0
			s.kernel.FailIf(func(c kernel.Change) error {
				if ops++; ops == at {
					refused = c.Key()
				}
				if ops >= at && c.Key() == refused {
					return fmt.Errorf("no")
				}
				return nil
			})
			out, err := s.ask(name, body)
			s.kernel.FailIf(nil)
			time.Sleep(5 * time.Second) // it is tried again
			return out, err, true
		case 2: // killed before
			s.restart()
		}
		return nil, nil, false
	}
}

func (s *dice) step() {
	s.Helper()
	s.trouble()
	name := []string{"a", "b", "c"}[s.IntN(3)]
	n := s.nets[name]
	container := fmt.Sprint("c", s.IntN(5))
	ep := s.eps[name+"/"+container]
	switch k := s.IntN(12); {
	case k == 0:
		s.restart()
	case k == 1:
		s.age(25 * time.Minute)
		s.murky = false
	case n == nil:
		subnet := map[string]string{"a": "10.8.0.0/24", "b": "10.9.0.0/24", "c": ""}[name]
		options := map[string]string{}
		if name == "b" {
			options["seine.name"] = "shop"
		}
		s.may("create network "+name, "", s.createNetwork(name, subnet, subnet == "" || s.IntN(2) == 0, options))
	case k == 2 && !s.used(name):
		s.removeNetwork(name)
	case ep != nil:
		s.disconnect(name, container, s.IntN(4) == 0)
	default:
		var ports []int
		conflict := ""
		for range s.IntN(3) {
			if p := 8080 + s.IntN(6); !slices.Contains(ports, p) {
				ports = append(ports, p)
			}
		}
		for _, o := range s.eps {
			for _, p := range o.ports {
				if slices.Contains(ports, p) {
					conflict = "is published already"
				}
			}
		}
		s.may("connect "+container, conflict, s.connect(name, container, "", ports...))
	}
}

func (s *dice) used(network string) bool {
	for key := range s.eps {
		if strings.HasPrefix(key, network+"/") {
			return true
		}
	}
	return false
}

// may checks what came of a step that has a reason to fail, or none.
func (s *dice) may(what, reason string, err error) {
	s.Helper()
	switch {
	case s.murky: // whatever came of it
	case reason == "" && err != nil:
		s.Errorf("%s: %v", what, err)
	case reason != "" && (err == nil || !strings.Contains(err.Error(), reason)):
		s.Errorf("%s: error %v, want %q", what, err, reason)
	}
}
