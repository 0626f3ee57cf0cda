package cni_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/seine-net/seine/internal/testkit"
)

const (
	tuningConf = `{"type": "tuning", "dataDir": "DATA/tuning", "sysctl": {"net.core.somaxconn": "77", "net/ipv4/conf/IFNAME/log_martians": "1"},
		"mac": "02:00:5e:00:00:77", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 2000}`
	sbrConf = `{"type": "sbr"}`
)

// link is what ip tells of a container's interface.
type link struct {
	Address string
	MTU     int
	TxQLen  int
	Flags   []string
	Promisc int                                `json:"promiscuity"`
	Stats   struct{ TX struct{ Packets int } } `json:"stats64"`
}

func (r *rig) link(id, ifname string) link {
	r.Helper()
	var out []link
	text, err := r.container(id).Exec(r.Context(), "ip", "-j", "-d", "-s", "link", "show", "dev", ifname)
	if err == nil {
		err = json.Unmarshal([]byte(text), &out)
	}
	if err != nil || len(out) != 1 {
		r.Fatalf("link %s of %s: %v: %s", ifname, id, err, text)
	}
	return out[0]
}

func TestTuning(t *testing.T) {
	for kind, conf := range map[string]string{"bridge": bridgeConf, "ptp": ptpConf} {
		t.Run(kind, func(t *testing.T) { t.Parallel(); tune(newRig(t), fmt.Sprintf(conf, 1)) })
	}
}

func tune(r *rig, conf string) {
	list := r.network("net", conf, tuningConf)
	before := r.state()
	r.serve("c", 80)
	a := r.add(list, "c", "eth0")
	l := r.link("c", "eth0")
	if l.Address != "02:00:5e:00:00:77" || l.MTU != 1400 || l.TxQLen != 2000 || l.Promisc == 0 || !strings.Contains(fmt.Sprint(l.Flags), "ALLMULTI") {
		r.Errorf("the interface is %+v", l)
	}
	for name, want := range map[string]string{"net/core/somaxconn": "77", "net/ipv4/conf/eth0/log_martians": "1"} {
		if got, err := r.container("c").ReadSysctl(name); err != nil || got != want {
			r.Errorf("%s is %q (%v), want %s", name, got, err, want)
		}
	}
	for _, network := range networks {
		for _, v4 := range []bool{true, false} {
			testkit.Reach(r.T, r.machine.NS, network, at(a.of(v4), 80))
		}
	}
	if err := r.runtime.CheckNetworkList(r.Context(), list, r.conf("c", "eth0")); err != nil {
		r.Errorf("check: %v", err)
	}
	if _, err := r.container("c").Exec(r.Context(), "ip", "link", "set", "dev", "eth0", "mtu", "1300"); err != nil {
		r.Fatal(err)
	}
	if err := r.runtime.CheckNetworkList(r.Context(), list, r.conf("c", "eth0")); err == nil || !strings.Contains(err.Error(), "mtu 1400") {
		r.Errorf("check of another MTU: %v", err)
	}
	r.del(list, r.conf("c", "eth0"))
	r.del(list, r.conf("c", "eth0"))
	r.same("after DEL", before)

	// A second plugin that fails leaves what the first had made for its DEL, and nothing of its own.
	bad := r.network("net", conf, strings.Replace(tuningConf, "net.core.somaxconn", "net.core.nothere", 1))
	if _, err := r.tryAdd(bad, r.conf("c", "eth0")); err == nil || !strings.Contains(err.Error(), "net/core/nothere") {
		r.Errorf("ADD with a sysctl that is not there: %v", err)
	}
	if l := r.link("c", "eth0"); l.MTU != 1500 || l.TxQLen != 1000 || l.Promisc != 0 || strings.Contains(fmt.Sprint(l.Flags), "ALLMULTI") {
		r.Errorf("after a failed ADD the interface is %+v", l)
	}
	r.del(bad, r.conf("c", "eth0"))
	r.same("after the DEL of a failed ADD", before)
	for _, netns := range []string{"", gone(r.T)} {
		r.add(list, "c", "eth0")
		r.del(list, &libcni.RuntimeConf{ContainerID: "c", IfName: "eth0", NetNS: netns})
		r.same("after DEL without a namespace", before)
	}
}

// TestSourceRouting: what comes in by the container's second interface is answered by it, though the default route is the
// first's.
func TestSourceRouting(t *testing.T) {
	for _, filter := range []string{"0", "1"} {
		t.Run("bridge-netfilter="+filter, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.bridgeFilter(filter)
			one, two := bridgeNet(r, "one", 1), r.network("two", fmt.Sprintf(bridgeConf, 2), sbrConf, portmapConf)
			before := r.state()
			ports := []port{{8080, 80, "tcp", ""}, {8080, 80, "udp", ""}}
			testkit.Serve(r.T, r.container("c"), "tcp", "[::]:80")
			first := r.add(one, "c", "eth0")
			second := r.add(two, "c", "eth1", ports...)
			// A UDP socket of all addresses answers from the address of the default route.
			for _, a := range []netip.Addr{second.v4, second.v6} {
				testkit.Serve(r.T, r.container("c"), "udp", at(a, 80).String())
			}
			sent := r.link("c", "eth0").Stats.TX.Packets
			const times = 20
			for range times {
				for _, network := range networks {
					for _, own := range []netip.Addr{r.machine.V4, r.machine.V6} {
						testkit.Reach(r.T, r.outside.NS, network, at(own, 8080))
					}
				}
			}
			// Neighbour discovery and the like are some packets.
			if now := r.link("c", "eth0").Stats.TX.Packets; now-sent >= times {
				r.Errorf("the first interface sent %d packets for what came in by the second", now-sent)
			}
			for _, v4 := range []bool{true, false} {
				far := testkit.Far6
				if v4 {
					far = testkit.Far4
				}
				for from, want := range map[netip.Addr]string{first.of(v4): "eth0", second.of(v4): "eth1"} {
					out, err := r.container("c").Exec(r.Context(), "ip", "route", "get", far.String(), "from", from.String())
					if err != nil || !strings.Contains(out, "dev "+want+" ") {
						r.Errorf("route from %s: %v, %s; want by %s", from, err, out, want)
					}
				}
				server := testkit.Serve(r.T, r.outside.NS, "tcp", at(far, 0).String())
				if _, err := r.container("c").AskFrom(r.Context(), second.of(v4), "tcp", server, "x"); err != nil {
					r.Error(err)
				}
			}
			if err := r.runtime.CheckNetworkList(r.Context(), one, r.conf("c", "eth0")); err != nil {
				r.Errorf("check of the first: %v", err)
			}
			if err := r.runtime.CheckNetworkList(r.Context(), two, r.conf("c", "eth1", ports...)); err != nil {
				r.Errorf("check of the second: %v", err)
			}
			r.del(two, r.conf("c", "eth1", ports...))
			r.del(two, &libcni.RuntimeConf{ContainerID: "c", IfName: "eth1", NetNS: gone(r.T)})
			if rules, err := r.container("c").Exec(r.Context(), "sh", "-c", "ip rule; ip -6 rule"); err != nil || strings.Contains(rules, second.v4.String()) || strings.Contains(rules, second.v6.String()) {
				r.Errorf("DEL leaves the rules %s (%v)", rules, err)
			}
			testkit.Reach(r.T, r.machine.NS, "tcp", at(first.v6, 80))
			r.del(one, r.conf("c", "eth0"))
			r.same("after both DELs", before)
		})
	}
}

// TestSourceRoutingRace: attachments of one container that are made at once have tables of their own.
func TestSourceRoutingRace(t *testing.T) {
	r := newRig(t)
	const many = 6
	errs := make(chan error)
	for i := range many {
		list := r.network(fmt.Sprint("net", i), fmt.Sprintf(bridgeConf, i+1), sbrConf)
		rt := r.conf("c", fmt.Sprint("eth", i))
		go func() {
			_, err := r.runtime.AddNetworkList(r.Context(), list, rt)
			errs <- err
		}()
	}
	for range many {
		if err := <-errs; err != nil {
			r.Error(err)
		}
	}
	for _, family := range []string{"-4", "-6"} {
		out, err := r.container("c").Exec(r.Context(), "ip", "-j", family, "rule")
		var rules []struct{ Src, Table string }
		if err == nil {
			err = json.Unmarshal([]byte(out), &rules)
		}
		if err != nil {
			r.Fatal(err)
		}
		tables := map[string]int{}
		for _, rule := range rules {
			if rule.Src != "all" {
				tables[rule.Table]++
			}
		}
		if len(tables) != many {
			r.Errorf("%d attachments have the tables %v: %s", many, tables, out)
		}
	}
}
