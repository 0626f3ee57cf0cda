package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/frontdoor/docker"
	doors "github.com/seine-net/seine/internal/frontdoor/http"
)

// dockerDoor is Docker's driver. A machine where its socket can't be made works without.
type dockerDoor struct {
	path    string
	door    *docker.Door
	names   *docker.Watcher // nil for none
	sockets *sockets
	log     *slog.Logger

	mu     sync.Mutex
	open   bool
	closed error // why it is not served
}

func newDockerDoor(o Options, s *sockets, door *docker.Door, log *slog.Logger) *dockerDoor {
	d := &dockerDoor{path: o.DockerSocket, sockets: s, door: door, log: log}
	if socket, err := docker.ParseAPI(o.DockerAPI); err == nil && socket != "" { // it was checked before
		d.names = door.Watch(socket)
	}
	return d
}

func (d *dockerDoor) listen() net.Listener {
	if d.path == "" {
		return nil
	}
	l, err := d.sockets.listen(sockDocker, d.path, docker.SocketMode)
	d.mu.Lock()
	d.open, d.closed = err == nil, err
	d.mu.Unlock()
	if err == nil {
		return l
	}
	if errors.Is(err, doors.ErrAnswered) {
		d.log.Info("another daemon serves Docker", "socket", d.path)
	} else {
		d.log.Warn("Docker's driver is not served", "err", err)
	}
	return nil
}

// serve answers Docker, learns names from it, and clears up what it forgot, until ctx ends.
func (d *dockerDoor) serve(ctx context.Context, l net.Listener) error {
	var beside sync.WaitGroup
	defer beside.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if d.names != nil {
		beside.Go(func() { d.names.Run(ctx) })
	}
	beside.Go(func() {
		tick := time.NewTicker(lostEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := d.door.Collect(ctx); err != nil && ctx.Err() == nil {
				d.log.Warn("clearing up what Docker forgot", "err", err)
			}
		}
	})
	return doors.ServeHandler(ctx, l, d.door, d.log)
}

func (d *dockerDoor) findings() []api.Finding {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := api.Finding{Level: "ok", Topic: "docker", Found: fmt.Sprintf("Docker's network and IPAM driver answer at %s", d.path)}
	switch {
	case d.path == "":
		f.Found = "Docker's driver is turned off (--docker-socket)"
	case errors.Is(d.closed, doors.ErrAnswered):
		f.Level, f.Found = "note", fmt.Sprintf("another daemon serves Docker at %s", d.path)
	case d.closed != nil:
		f.Level, f.Found = "problem", fmt.Sprintf("Docker's driver is not served: %v", d.closed)
		f.Done = "nothing else is touched by it; start seined again when the socket's folder can be made"
	case !d.open:
		f.Level, f.Found = "note", fmt.Sprintf("Docker's driver is about to answer at %s: the daemon is starting", d.path)
	}
	if d.open && d.names != nil {
		return []api.Finding{f, d.names.Finding()}
	}
	return []api.Finding{f}
}
