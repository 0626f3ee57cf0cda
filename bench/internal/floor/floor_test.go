package floor_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/bench/internal/floor"
	"github.com/seine-net/seine/bench/internal/rig"
)

// TestAttachments attaches and detaches everything that a Spec can say. What it makes is seen by the standard library's
// net.Interfaces, and by the kernel, which takes no element twice and deletes none that is missing.
func TestAttachments(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skip: needs root")
	}
	var (
		v4, gw4 = netip.MustParsePrefix("10.77.0.9/16"), netip.MustParseAddr("10.77.0.1")
		v6, gw6 = netip.MustParsePrefix("fd00:77::9/64"), netip.MustParseAddr("fd00:77::1")
		element = []floor.Element{floor.Address(floor.MasqueradeSet, v4.Addr()), floor.Address(floor.FirewallSet, v4.Addr()),
			floor.Port(unix.IPPROTO_TCP, 8080, netip.AddrPortFrom(v4.Addr(), 80))}
	)
	for _, tt := range []struct {
		name string
		spec floor.Spec
		want []string
	}{
		{"loopback", floor.Spec{IfName: "lo"}, nil},
		{"ptp", floor.Spec{IfName: "eth0", Host: "v1"}, []string{"v1"}},
		{"bridge", floor.Spec{IfName: "eth0", Host: "v2", Bridge: "floor0", Elements: element}, []string{"v2"}},
		{"bandwidth", floor.Spec{IfName: "eth0", Host: "v3", Bridge: "floor0", Rate: 1 << 20}, []string{"v3", "iv3"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.spec
			s.Netns = filepath.Join(t.TempDir(), "ns")
			if s.IfName != "lo" {
				s.Addrs, s.Gateways = []netip.Prefix{v4, v6}, []netip.Addr{gw4, gw6}
			}
			if err := rig.MakeNetns(s.Netns); err != nil {
				t.Skipf("skip: needs to make network namespaces: %v", err)
			}
			defer rig.DropNetns(s.Netns)
			if err := rig.OnThread(func() error { return story(&s, tt.want) }); err != nil {
				if errors.Is(err, unix.EOPNOTSUPP) && s.Rate != 0 {
					t.Skipf("skip: needs the kernel's ifb, tbf and mirred: %v", err)
				}
				t.Error(err)
			}
		})
	}
}

// story runs on a thread of its own, which is a machine of its own.
func story(s *floor.Spec, want []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := floor.Machine("floor0", netip.MustParsePrefix("10.77.0.1/16")); err != nil {
		return err
	}
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(home)
	h := &floor.Host{}
	defer h.Close()
	for range 2 { // what one leaves behind is in the next one's way
		if err := s.Add(h); err != nil {
			return err
		}
		if err := sees(s.IfName, append([]string{"lo"}, others(s)...), s.Addrs); err != nil {
			return err
		}
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := sees("", append([]string{"floor0", "lo"}, want...), nil); err != nil {
			return err
		}
		if err := s.Del(h); err != nil {
			return err
		}
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			return err
		}
	}
	return sees("", []string{"floor0", "lo"}, nil)
}

func others(s *floor.Spec) []string {
	if s.IfName == "lo" {
		return nil
	}
	return []string{s.IfName}
}

// sees looks for links, and for one that is up and has addresses.
func sees(up string, want []string, addrs []netip.Prefix) error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
		if l.Name != up {
			continue
		}
		if l.Flags&net.FlagUp == 0 {
			return errors.New(l.Name + " is down")
		}
		have, err := l.Addrs()
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if !slices.ContainsFunc(have, func(h net.Addr) bool { return h.String() == a.String() }) {
				return errors.New(l.Name + " lacks " + a.String())
			}
		}
	}
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		return errors.New("links are " + joined(names) + ", want " + joined(want))
	}
	return nil
}

func joined(names []string) (out string) {
	for _, n := range names {
		out += " " + n
	}
	return out
}
