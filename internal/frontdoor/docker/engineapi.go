package docker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// DefaultAPI is where dockerd serves its own API, in the form of DOCKER_HOST.
const DefaultAPI = "unix://" + DaemonSocket

// ParseAPI gives the path of the socket in the form of DOCKER_HOST, unix:///PATH; "" for none, which turns it off.
func ParseAPI(s string) (path string, err error) {
	path, ok := strings.CutPrefix(s, "unix://")
	if s != "" && (!ok || !filepath.IsAbs(path) || filepath.Clean(path) != path) {
		return "", fmt.Errorf("docker-api %q: is no unix socket; want one such as %s, or \"\" for none", s, DefaultAPI)
	}
	return path, nil
}

// The bounds of one answer.
const (
	apiTime  = 20 * time.Second // how long an answer may take: Docker's takes long while a container is started
	maxEvent = 1 << 20          // bytes
)

// dockerNetwork is a network as GET /networks and, with Containers, GET /networks/ID give it.
type dockerNetwork struct {
	ID         string `json:"Id"`
	Name       string
	Labels     map[string]string
	Containers map[string]struct{ EndpointID string }
}

// dockerContainer is a container as GET /containers/ID/json gives it. In GET /containers/json it has no Config, no Name,
// and endpoints without aliases.
type dockerContainer struct {
	ID     string `json:"Id"`
	Name   string // "/web"
	Config struct {
		Hostname, Domainname string
		Labels               map[string]string
	}
	NetworkSettings struct {
		Networks map[string]*struct {
			NetworkID, EndpointID string
			Aliases               []string // --network-alias; before Docker 25 with the container's short ID
			DNSNames              []string // since Docker 25 all names
		}
	}
}

// dockerEvent is a line of GET /events.
type dockerEvent struct {
	Type, Action string
	Actor        struct {
		ID         string
		Attributes map[string]string
	}
}

// touched says which container has to be looked at after an event, or which network where there is no container; "" for
// none. A container that starts is connected to each of its networks; that something ends, the plugin's calls tell.
func (e dockerEvent) touched() (container, network string) {
	switch {
	case e.Type == "container" && e.Action == "rename":
		return e.Actor.ID, ""
	case e.Type == "network" && e.Action == "connect":
		return e.Actor.Attributes["container"], e.Actor.ID
	case e.Type == "network" && e.Action == "create":
		return "", e.Actor.ID
	}
	return "", ""
}

// eventFilter keeps the others away, of which health checks make many.
const eventFilter = `{"type":["container","network"],"event":["rename","connect","create"]}`

// engineAPI asks a Docker daemon what a Watcher wants to know. Every method but events ends within apiTime. Paths have no
// version, so Docker answers as its newest does: the types above are what Docker 20.10 (version 1.41) to 29 (1.52) have in
// common.
type engineAPI struct{ daemon *Daemon }

func isAbsent(err error) bool {
	var e *DaemonError
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

func (a engineAPI) read(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	return a.daemon.Get(ctx, path, into)
}

// version gives Docker's own, such as "20.10.24".
func (a engineAPI) version(ctx context.Context) (string, error) {
	var v struct{ Version string }
	err := a.read(ctx, "/version", &v)
	return v.Version, err
}

// networks gives all networks, without Containers.
func (a engineAPI) networks(ctx context.Context) (all []dockerNetwork, err error) {
	return all, a.read(ctx, "/networks", &all)
}

// network gives a network; Containers are all endpoints that Docker has of it, some under other keys than a container's.
func (a engineAPI) network(ctx context.Context, id string) (n dockerNetwork, err error) {
	return n, a.read(ctx, "/networks/"+id, &n)
}

// containers gives those that run.
func (a engineAPI) containers(ctx context.Context) (all []dockerContainer, err error) {
	return all, a.read(ctx, "/containers/json", &all)
}

// container gives one. While it is started, Docker does not answer.
func (a engineAPI) container(ctx context.Context, id string) (c dockerContainer, err error) {
	return c, a.read(ctx, "/containers/"+id+"/json", &c)
}

// events gives what happens from now on, until ctx ends or Docker does.
func (a engineAPI) events(ctx context.Context) (*eventStream, error) {
	body, err := a.daemon.Stream(ctx, "/events?filters="+url.QueryEscape(eventFilter))
	if err != nil {
		return nil, err
	}
	s := &eventStream{body: body, lines: bufio.NewScanner(body)}
	s.lines.Buffer(nil, maxEvent)
	return s, nil
}

// eventStream is Docker's events, one on a line.
type eventStream struct {
	body  io.ReadCloser
	lines *bufio.Scanner
}

func (s *eventStream) close() { s.body.Close() }

// next waits for an event.
func (s *eventStream) next() (e dockerEvent, err error) {
	for s.lines.Scan() {
		if line := strings.TrimSpace(s.lines.Text()); line != "" {
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				return e, fmt.Errorf("docker's event %.100q: %w", line, err)
			}
			return e, nil
		}
	}
	if err := s.lines.Err(); err != nil {
		return e, fmt.Errorf("docker's events: %w", err)
	}
	return e, errors.New("docker ended its events")
}
