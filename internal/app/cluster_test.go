package app

import (
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
)

// TestClusterFindings: each kind of trouble is told with what to do about it; without any there is one "ok".
func TestClusterFindings(t *testing.T) {
	nodes := []api.Node{{ID: "a", Name: "one", Health: api.Alive}, {ID: "b", Name: "two", Health: api.Alive}}
	dead := []api.Node{nodes[0], {ID: "b", Name: "two", Health: api.Dead}}
	for _, c := range []struct {
		name    string
		cluster api.Cluster
		nodes   []api.Node
		paths   []api.Path
		want    []string // level, and part of what is found or done
	}{
		{"healthy", api.Cluster{Node: "a", Name: "lab"}, nodes, []api.Path{{Network: "n", Node: "two", Fabric: "vxlan"}}, []string{`ok all 2 machines of cluster "lab" answer`}},
		{"removed", api.Cluster{Node: "c", Name: "lab"}, nodes, nil, []string{`problem this machine was removed from cluster "lab"`}},
		{"nothing known yet", api.Cluster{Node: "a", StoreError: "no leader"}, nil, nil, []string{"problem the store of cluster \"\" does not answer: no leader"}},
		{"dead", api.Cluster{Node: "a"}, dead, nil, []string{`problem node "two" does not answer`}},
		{"several", api.Cluster{Node: "a", Problems: map[string]string{"y": "network y", "x": "network x"}}, nodes,
			[]api.Path{{Network: "n", Node: "two", Error: "hostgw: far\nvxlan: none"}},
			[]string{"problem network x", "problem network y", `problem no way leads to node "two" in network "n": hostgw: far; vxlan: none`}},
	} {
		got := clusterFindings(c.cluster, c.nodes, c.paths)
		if len(got) != len(c.want) {
			t.Errorf("%s: %+v, want %q", c.name, got, c.want)
			continue
		}
		for i, f := range got {
			if !strings.HasPrefix(f.Level+" "+f.Found, c.want[i]) || f.Topic != "cluster" || (f.Done == "") != (f.Level == api.LevelOK) {
				t.Errorf("%s: %+v, want %q", c.name, f, c.want[i])
			}
		}
	}
}
