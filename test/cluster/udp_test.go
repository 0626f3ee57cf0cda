package cluster_test

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/seine-net/seine/internal/testkit"
)

// TestTwoDaemonsByUDP: a network in use changes to the fabric whose packets the daemons carry themselves, lives through a
// daemon's death, and changes back, which leaves nothing.
func TestTwoDaemonsByUDP(t *testing.T) {
	testkit.Need(t, "tun")
	lab := testkit.NewLab(t, 2)
	a, b := newStation(t, "one", lab.Hosts[0]), newStation(t, "two", lab.Hosts[1])
	a.seine("", "cluster", "init", "--address", a.V4.String())
	b.seine(a.seine("", "cluster", "token"), "cluster", "join", a.V4.String(), "--token", "-")
	b.await("the cluster's network", func() error {
		na, _ := a.client.Network(t.Context(), "default")
		n, err := b.client.Network(t.Context(), "default")
		if err == nil && (n.ID == "" || n.ID != na.ID) {
			err = fmt.Errorf("default is %+v", n)
		}
		return err
	})
	ea, eb := a.attach("left"), b.attach("right")
	a.reach("left", eb)
	become := func(fabric string) {
		t.Helper()
		a.await("changing the network", func() error {
			n, err := a.client.Network(t.Context(), "default")
			if err == nil {
				n.Fabric = fabric
				_, err = a.client.PutNetwork(t.Context(), n, n.Revision)
			}
			return err
		})
		for _, s := range []*station{a, b} {
			s.await("the way by "+fabric, func() error {
				paths, err := s.client.Paths(t.Context())
				if err == nil && (len(paths) != 1 || paths[0].Fabric != fabric) {
					err = fmt.Errorf("%+v", paths)
				}
				return err
			})
		}
	}
	device := func(s *station) bool {
		_, err := s.Netlink().LinkByName("sx-udp")
		return err == nil
	}
	both := func() {
		t.Helper()
		a.reach("left", eb)
		b.reach("right", ea)
	}
	become("udp")
	both()
	if !device(a) || !device(b) {
		t.Fatal("the packets went without the device")
	}
	b.end(syscall.SIGKILL)
	b.start()
	both()
	l, err := a.Netlink().LinkByName("sx-udp")
	if err == nil {
		err = a.Netlink().LinkDel(l)
	}
	if err != nil {
		t.Fatal(err)
	}
	both()
	become("vxlan")
	for _, s := range []*station{a, b} {
		s.await("the device's end", func() error {
			if device(s) {
				return fmt.Errorf("sx-udp is there")
			}
			return nil
		})
	}
	both()
}
