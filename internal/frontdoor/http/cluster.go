package httpdoor

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/seine-net/seine/api"
)

// Cluster has the verbs of the machine's part in a cluster. Errors are as those of Engine; Conflict says that the machine is
// in none, or in one already.
type Cluster interface {
	// InitCluster founds a cluster, which takes up to a minute.
	InitCluster(ctx context.Context, q api.ClusterInit) (api.Cluster, error)
	JoinCluster(ctx context.Context, q api.ClusterJoin) (api.Cluster, error)
	// LeaveCluster takes this machine out of its cluster. With force it goes though the cluster can't be told.
	LeaveCluster(ctx context.Context, force bool) error
	Cluster(ctx context.Context) (api.Cluster, error)
	// ClusterToken makes a token by which machines may join. With rotate those of before end.
	ClusterToken(ctx context.Context, rotate bool) (api.ClusterToken, error)

	// Nodes lists the machines of the cluster by name; in none that is this machine.
	Nodes(ctx context.Context) ([]api.Node, error)
	// RemoveNode takes another machine out; one that answers only with force.
	RemoveNode(ctx context.Context, name string, force bool) error
	// DrainNode marks a machine to be left alone by what places containers, or takes the mark away.
	DrainNode(ctx context.Context, name string, drained bool) error

	// Paths gives the ways to other machines as they were chosen last.
	Paths(ctx context.Context) ([]api.Path, error)
}

func (d *Door) clusterRoutes() []route {
	force := map[string][]string{"DELETE": {"force"}}
	return []route{
		{"/v1/cluster", force, map[string]handler{"GET": d.cluster, "POST": d.initCluster, "DELETE": d.leaveCluster}},
		{"/v1/cluster/join", nil, map[string]handler{"POST": d.joinCluster}},
		{"/v1/cluster/token", map[string][]string{"POST": {"rotate"}}, map[string]handler{"POST": d.clusterToken}},
		{"/v1/nodes", nil, map[string]handler{"GET": d.nodes}},
		{"/v1/nodes/{node}", force, map[string]handler{"GET": d.nodeNamed, "DELETE": d.removeNode}},
		{"/v1/nodes/{node}/drain", nil, map[string]handler{"POST": d.drainNode(true)}},
		{"/v1/nodes/{node}/undrain", nil, map[string]handler{"POST": d.drainNode(false)}},
		{"/v1/fabric/paths", nil, map[string]handler{"GET": d.paths}},
	}
}

func (d *Door) cluster(w http.ResponseWriter, r *http.Request) error {
	c, err := d.opts.Cluster.Cluster(r.Context())
	if err != nil {
		return err
	}
	return answerCluster(w, c)
}

func answerCluster(w http.ResponseWriter, c api.Cluster) error {
	if c.Endpoints == nil {
		c.Endpoints = []string{}
	}
	return answer(w, http.StatusOK, c)
}

func (d *Door) initCluster(w http.ResponseWriter, r *http.Request) error {
	var q api.ClusterInit
	if err := readBody(w, r, "cluster", &q); err != nil {
		return err
	}
	c, err := d.opts.Cluster.InitCluster(r.Context(), q)
	if err != nil {
		return err
	}
	return answerCluster(w, c)
}

func (d *Door) joinCluster(w http.ResponseWriter, r *http.Request) error {
	var q api.ClusterJoin
	if err := readBody(w, r, "cluster", &q); err != nil {
		return err
	}
	c, err := d.opts.Cluster.JoinCluster(r.Context(), q)
	if err != nil {
		return err
	}
	return answerCluster(w, c)
}

func (d *Door) leaveCluster(w http.ResponseWriter, r *http.Request) error {
	force, err := boolParam(r, "force")
	if err != nil {
		return err
	}
	if err := d.opts.Cluster.LeaveCluster(r.Context(), force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *Door) clusterToken(w http.ResponseWriter, r *http.Request) error {
	rotate, err := boolParam(r, "rotate")
	if err != nil {
		return err
	}
	t, err := d.opts.Cluster.ClusterToken(r.Context(), rotate)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, t)
}

func (d *Door) nodes(w http.ResponseWriter, r *http.Request) error {
	all, err := d.opts.Cluster.Nodes(r.Context())
	if err != nil {
		return err
	}
	return answerList(w, all)
}

// nodeNamed gives a machine by its name or ID.
func (d *Door) nodeNamed(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("node")
	all, err := d.opts.Cluster.Nodes(r.Context())
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(n api.Node) bool { return n.Name == name || n.ID == name })
	if i < 0 {
		return api.Errorf(api.NotFound, fmt.Sprintf("node %q", name), "does not exist")
	}
	return answer(w, http.StatusOK, all[i])
}

func (d *Door) removeNode(w http.ResponseWriter, r *http.Request) error {
	force, err := boolParam(r, "force")
	if err != nil {
		return err
	}
	if err := d.opts.Cluster.RemoveNode(r.Context(), r.PathValue("node"), force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *Door) drainNode(drained bool) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := d.opts.Cluster.DrainNode(r.Context(), r.PathValue("node"), drained); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

func (d *Door) paths(w http.ResponseWriter, r *http.Request) error {
	all, err := d.opts.Cluster.Paths(r.Context())
	if err != nil {
		return err
	}
	return answerList(w, all)
}

// boolParam reads a parameter that is true or false; false where it is absent.
func boolParam(r *http.Request, name string) (bool, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, api.FieldError("query", name, s, "is neither true nor false", "true or false")
	}
	return v, nil
}
