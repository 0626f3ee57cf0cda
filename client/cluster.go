package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/seine-net/seine/api"
)

// InitCluster founds a cluster, of which this machine is the first. It may take a minute. api.Conflict says that the machine
// is in one already.
func (c *Client) InitCluster(ctx context.Context, q api.ClusterInit) (api.Cluster, error) {
	var out api.Cluster
	err := c.do(ctx, http.MethodPost, c.path("cluster"), 0, &q, &out)
	return out, err
}

// JoinCluster has the machine join a cluster.
func (c *Client) JoinCluster(ctx context.Context, q api.ClusterJoin) (api.Cluster, error) {
	var out api.Cluster
	err := c.do(ctx, http.MethodPost, c.path("cluster", "join"), 0, &q, &out)
	return out, err
}

// LeaveCluster takes the machine out of its cluster. With force it goes though the cluster's store can't be told.
func (c *Client) LeaveCluster(ctx context.Context, force bool) error {
	return c.do(ctx, http.MethodDelete, flagged(c.path("cluster"), "force", force), 0, nil, nil)
}

// Cluster gives the cluster that the machine is in; api.Conflict where it is in none.
func (c *Client) Cluster(ctx context.Context) (api.Cluster, error) {
	var out api.Cluster
	err := c.do(ctx, http.MethodGet, c.path("cluster"), 0, nil, &out)
	return out, err
}

// ClusterToken makes a token by which machines may join. With rotate those of before end.
func (c *Client) ClusterToken(ctx context.Context, rotate bool) (api.ClusterToken, error) {
	var out api.ClusterToken
	err := c.do(ctx, http.MethodPost, flagged(c.path("cluster", "token"), "rotate", rotate), 0, nil, &out)
	return out, err
}

// Nodes lists the machines of the cluster by name; in none that is the daemon's machine.
func (c *Client) Nodes(ctx context.Context) ([]api.Node, error) {
	return list[api.Node](ctx, c, c.path("nodes"))
}

// NodeNamed gives a machine of the cluster by name or ID; api.NotFound where there is none.
func (c *Client) NodeNamed(ctx context.Context, name string) (api.Node, error) {
	var out api.Node
	err := c.do(ctx, http.MethodGet, c.path("nodes", name), 0, nil, &out)
	return out, err
}

// RemoveNode takes another machine out of the cluster; one that answers only with force.
func (c *Client) RemoveNode(ctx context.Context, name string, force bool) error {
	return c.do(ctx, http.MethodDelete, flagged(c.path("nodes", name), "force", force), 0, nil, nil)
}

// DrainNode marks a machine to be left alone by what places containers, or takes the mark away.
func (c *Client) DrainNode(ctx context.Context, name string, drained bool) error {
	verb := "undrain"
	if drained {
		verb = "drain"
	}
	return c.do(ctx, http.MethodPost, c.path("nodes", name, verb), 0, nil, nil)
}

// Paths gives the ways to other machines as they were chosen last.
func (c *Client) Paths(ctx context.Context) ([]api.Path, error) {
	return list[api.Path](ctx, c, c.path("fabric", "paths"))
}

// flagged adds a parameter that is false by default.
func flagged(u *url.URL, name string, value bool) *url.URL {
	if value {
		u.RawQuery = url.Values{name: {strconv.FormatBool(value)}}.Encode()
	}
	return u
}
