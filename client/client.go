// Package client is the Go client of Seine's HTTP API. Its methods are those of the engine behind the daemon's door, so
// a program does not see whether it speaks to a daemon or has an engine of its own. It uses the standard library only.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
)

// DefaultSocket is where the daemon listens unless it is told otherwise.
const DefaultSocket = "/run/seine/seine.sock"

// Client speaks to one daemon. Its methods may be called from several goroutines. Errors are *api.Error, with the code
// api.Unavailable where the daemon can't be reached; except that of a context that ended, which is in the error's chain.
type Client struct {
	base   url.URL
	where  string // for messages
	socket string // "" for TCP
	http   *http.Client
}

// New makes a client for an address: the path of a unix socket (with or without "unix://"), an http:// URL, or "" for
// DefaultSocket. It connects to nothing yet.
func New(address string) (*Client, error) {
	if address == "" {
		address = DefaultSocket
	}
	c := &Client{where: address}
	transport := &http.Transport{MaxIdleConnsPerHost: 16} // and no proxy: the daemon is on this machine
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if strings.HasPrefix(address, "http://") {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return nil, badAddress(address)
		}
		c.base = url.URL{Scheme: "http", Host: u.Host}
		return c, nil
	}
	path := strings.TrimPrefix(address, "unix://")
	if path == "" || !filepath.IsAbs(path) {
		return nil, badAddress(address)
	}
	c.where, c.socket = path, path
	c.base = url.URL{Scheme: "http", Host: "seine"}
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return c, nil
}

func badAddress(address string) error {
	return api.FieldError("", "address", address, "is no address of a daemon",
		"the absolute path of a socket such as "+DefaultSocket+", or http://HOST:PORT")
}

// Socket is the path of the unix socket that the client speaks to; "" for one that speaks TCP.
func (c *Client) Socket() string { return c.socket }

// Close drops idle connections. The client can be used afterwards.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// PutNetwork creates or changes a network; what n leaves out keeps its value or gets its default. match is the revision
// that it must have: 0 for any, api.CreateOnly for none yet.
func (c *Client) PutNetwork(ctx context.Context, n api.Network, match uint64) (api.Network, error) {
	if swallowed(n.Name) {
		return n, n.Validate()
	}
	var out api.Network
	err := c.do(ctx, http.MethodPut, c.path("networks", n.Name), match, &n, &out)
	return out, err
}

// Network gives a network; api.NotFound where there is none.
func (c *Client) Network(ctx context.Context, name string) (api.Network, error) {
	var out api.Network
	err := c.do(ctx, http.MethodGet, c.path("networks", name), 0, nil, &out)
	return out, err
}

// Networks lists the networks by name.
func (c *Client) Networks(ctx context.Context) ([]api.Network, error) {
	return list[api.Network](ctx, c, c.path("networks"))
}

// DeleteNetwork removes a network that has no endpoints. match is the revision that it must have, 0 for any.
func (c *Client) DeleteNetwork(ctx context.Context, name string, match uint64) error {
	return c.do(ctx, http.MethodDelete, c.path("networks", name), match, nil, nil)
}

// PutEndpoint attaches a sandbox to a network or changes an endpoint, and returns when the kernel holds all of it.
// Without a Network it is the one that the operator chose for that (api.Node, DefaultNetwork). match is as in PutNetwork.
func (c *Client) PutEndpoint(ctx context.Context, e api.Endpoint, match uint64) (api.Endpoint, error) {
	at := c.path("networks", e.Network, "endpoints", e.Name)
	if e.Network == "" {
		at = c.path("endpoints", e.Name)
	} else if swallowed(e.Network) {
		return e, e.Validate()
	}
	if swallowed(e.Name) {
		return e, e.Validate()
	}
	var out api.Endpoint
	err := c.do(ctx, http.MethodPut, at, match, &e, &out)
	return out, err
}

// Endpoint gives an endpoint; api.NotFound where there is none.
func (c *Client) Endpoint(ctx context.Context, network, name string) (api.Endpoint, error) {
	var out api.Endpoint
	err := c.do(ctx, http.MethodGet, c.path("networks", network, "endpoints", name), 0, nil, &out)
	return out, err
}

// Endpoints lists the endpoints of all networks, by network and name.
func (c *Client) Endpoints(ctx context.Context) ([]api.Endpoint, error) {
	return list[api.Endpoint](ctx, c, c.path("endpoints"))
}

// NetworkEndpoints lists the endpoints of one network by name; api.NotFound where there is no such network.
func (c *Client) NetworkEndpoints(ctx context.Context, network string) ([]api.Endpoint, error) {
	return list[api.Endpoint](ctx, c, c.path("networks", network, "endpoints"))
}

// DeleteEndpoint detaches; of an endpoint that is absent it returns api.NotFound. match is the revision that it must
// have, 0 for any.
func (c *Client) DeleteEndpoint(ctx context.Context, network, name string, match uint64) error {
	return c.do(ctx, http.MethodDelete, c.path("networks", network, "endpoints", name), match, nil, nil)
}

// Ports lists the published ports by endpoint.
func (c *Client) Ports(ctx context.Context) ([]api.PublishedPort, error) {
	return list[api.PublishedPort](ctx, c, c.path("ports"))
}

// Node gives the state of the machine and its daemon.
func (c *Client) Node(ctx context.Context) (api.Node, error) {
	var out api.Node
	err := c.do(ctx, http.MethodGet, c.path("node"), 0, nil, &out)
	return out, err
}

// Plan says what would be changed in the kernel now, for one owner ("network/a", "endpoint/a/web") or with "" for all.
func (c *Client) Plan(ctx context.Context, owner string) (api.Plan, error) {
	u := c.path("plan")
	if owner != "" {
		u.RawQuery = url.Values{"owner": {owner}}.Encode()
	}
	var out api.Plan
	err := c.do(ctx, http.MethodGet, u, 0, nil, &out)
	return out, err
}

// Doctor says what about the machine matters, what was done about it, and what needs somebody.
func (c *Client) Doctor(ctx context.Context) ([]api.Finding, error) {
	return list[api.Finding](ctx, c, c.path("doctor"))
}

// Reset removes everything that is Seine's from the machine.
func (c *Client) Reset(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, c.path("node"), 0, nil, nil)
}

func list[T any](ctx context.Context, c *Client, u *url.URL) ([]T, error) {
	var out api.List[T]
	err := c.do(ctx, http.MethodGet, u, 0, nil, &out)
	return out.Items, err
}

// swallowed reports whether a name can't be a segment of a path. There is no noun of such a name; to make one gets the
// error of the name, to ask for one "not found".
func swallowed(name string) bool { return name == "" || name == "." || name == ".." }

// path makes the URL of a noun.
func (c *Client) path(segments ...string) *url.URL {
	u := c.base
	u.Path, u.RawPath = "/v1", "/v1"
	for _, s := range segments {
		u.Path += "/" + s
		u.RawPath += "/" + url.PathEscape(s)
	}
	return &u
}

// do sends a request and reads the answer into out, if that is not nil.
func (c *Client) do(ctx context.Context, method string, u *url.URL, match uint64, body, out any) error {
	req, err := c.request(ctx, method, u, body)
	if err != nil {
		return err
	}
	switch match {
	case 0:
	case api.CreateOnly:
		req.Header.Set("If-None-Match", "*")
	default:
		req.Header.Set("If-Match", `"`+strconv.FormatUint(match, 10)+`"`)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return answered(resp)
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("seined at %s: %w", c.where, ctx.Err())
		}
		return api.Errorf(api.Unavailable, "", "the answer of seined at %s broke off: %w", c.where, err)
	}
	return nil
}

func (c *Client) request(ctx context.Context, method string, u *url.URL, body any) (*http.Request, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "", "request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "", "request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "seine")
	return req, nil
}

// answered makes an error of an answer that is one.
func answered(resp *http.Response) error {
	const most = 1 << 20
	data, _ := io.ReadAll(io.LimitReader(resp.Body, most))
	var body api.ErrorBody
	if json.Unmarshal(data, &body) == nil && body.Error != nil && body.Error.Code != "" {
		return body.Error
	}
	return api.Errorf(api.Internal, "", "the answer was %s, which is not seined's", resp.Status)
}

// unreachable says why the daemon could not be asked, and what to do about it.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("seined at %s: %w", c.where, ctx.Err())
	}
	// Without what stands before the cause: the method, the URL, the address once more.
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	hint := "start it with `seined` as root"
	if errors.Is(err, fs.ErrPermission) {
		hint = "be root, or in the group of the socket"
	}
	return api.Errorf(api.Unavailable, "", "seined can't be reached at %s (%w): %s", c.where, err, hint)
}
