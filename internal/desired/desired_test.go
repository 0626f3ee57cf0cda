package desired_test

import (
	"errors"
	"testing"

	"github.com/seine-net/seine/internal/desired"
	"github.com/seine-net/seine/internal/kernel"
)

func link(name string, mtu int) *kernel.Link {
	return &kernel.Link{Name: name, Type: kernel.Bridge, MTU: mtu, Alias: "seine:x"}
}

func TestSharedObjectLivesUntilTheLastOwnerDropsIt(t *testing.T) {
	s := desired.New()
	for _, owner := range []string{"a", "b"} {
		if _, err := s.Set(owner, link("br", 1500)); err != nil {
			t.Fatal(err)
		}
	}
	if gone := s.Drop("a"); len(gone) != 0 || s.Len() != 1 || s.OwnerOf(link("br", 0).Key()) != "b" {
		t.Errorf("dropped %v while b still wants it", gone)
	}
	if gone := s.Drop("b"); len(gone) != 1 || s.Len() != 0 {
		t.Errorf("the last owner's drop gave %v", gone)
	}
}

func TestConflictNamesBothAndChangesNothing(t *testing.T) {
	s := desired.New()
	_, _ = s.Set("a", link("br", 1500))
	_, err := s.Set("b", link("other", 1500), link("br", 9000))
	if !errors.Is(err, desired.ErrConflict) {
		t.Fatalf("error is %v", err)
	}
	if s.Len() != 1 || len(s.Owners()) != 1 {
		t.Errorf("a refused Set left %v", s.Keys(""))
	}
	if _, err := s.Set("a", link("br", 9000)); err != nil {
		t.Errorf("the only owner may change its mind: %v", err)
	}
}

func TestChangesFollowBelief(t *testing.T) {
	s := desired.New()
	keys, _ := s.Set("a", link("br", 1500))
	ch := s.Changes(keys)
	if len(ch) != 1 || ch[0].Op != kernel.Create {
		t.Fatalf("changes are %v", ch)
	}
	s.Applied(ch[0])
	if ch := s.Changes(keys); len(ch) != 0 {
		t.Errorf("after it was applied changes are %v", ch)
	}
	keys, _ = s.Set("a", link("br", 9000))
	if ch := s.Changes(keys); len(ch) != 1 || ch[0].Op != kernel.Update {
		t.Errorf("after a change of mind changes are %v", ch)
	}
	s.Seen(keys, nil)
	if ch := s.Changes(keys); len(ch) != 1 || ch[0].Op != kernel.Create {
		t.Errorf("after it was seen absent changes are %v", ch)
	}
	gone := s.Drop("a")
	if ch := s.Changes(gone); len(ch) != 0 {
		t.Errorf("what is absent and unwanted gives %v", ch)
	}
}

func TestWhatStaysKeepsItsValueOfBefore(t *testing.T) {
	s := desired.New()
	forward := &kernel.Sysctl{Name: "net/ipv4/ip_forward", Value: "1", Before: "0"}
	keys, _ := s.Set("m", forward)
	s.Applied(s.Changes(keys)[0])
	keys = s.Drop("m")
	s.Seen(keys, map[kernel.Key]kernel.Object{forward.Key(): &kernel.Sysctl{Name: forward.Name, Value: "1"}})
	ch := s.Changes(keys)
	if len(ch) != 1 || ch[0].Old.(*kernel.Sysctl).Before != "0" {
		t.Errorf("changes are %v; want the value of before put back", ch)
	}
}
