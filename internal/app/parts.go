package app

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os/exec"
	"strings"
	"syscall"

	"github.com/seine-net/seine/internal/dns"
	"github.com/seine-net/seine/internal/engine"
	doors "github.com/seine-net/seine/internal/frontdoor/http"
	"github.com/seine-net/seine/internal/loopback"
	"github.com/seine-net/seine/internal/state"
)

// listenDNS opens the name server's sockets; where its port is taken, any other does: the rules lead to it.
func listenDNS(port int, table *dns.Table, _ *state.Store, log *slog.Logger) (*dns.Server, error) {
	s, err := dns.Listen(uint16(port), table, log)
	if errors.Is(err, syscall.EADDRINUSE) && port != 0 {
		log.Warn("the name server's port is taken; another is used", "port", port)
		s, err = dns.Listen(0, table, log)
	}
	return s, err
}

// names is the engine's view of the name server.
type names struct{ table *dns.Table }

func (n names) Set(key string, r engine.NameRecord) { n.table.Set(key, dns.Record(r)) }

func (n names) Drop(key string) { n.table.Drop(key) }

// relays is the engine's view of the loopback proxy.
type relays struct{ proxy *loopback.Proxy }

func (r relays) Set(key string, in []engine.Relay) error {
	out := make([]loopback.Listener, len(in))
	for i, x := range in {
		out[i] = loopback.Listener{Protocol: x.Protocol, Listen: x.Listen, Target: x.To}
	}
	return r.proxy.Set(key, out)
}

func (r relays) Drop(key string) { r.proxy.Drop(key) }

// leases is where the DHCP service keeps what it has.
type leases struct{ store *state.Store }

func (l leases) Values(prefix string) map[string]string {
	out := map[string]string{}
	for name, v := range l.store.Values(state.Lasting + prefix) {
		out[strings.TrimPrefix(name, state.Lasting)] = v
	}
	return out
}

func (l leases) SetValue(name, value string) error {
	return l.store.SetValue(state.Lasting+name, value)
}

// dhcpSocketMode lets root ask, and nobody else: what is asked names a namespace to enter.
const dhcpSocketMode = 0o600

// keepLeases runs the DHCP service. Where another daemon has its socket, or it can't be made, leases that are there are
// kept all the same.
func (d *daemon) keepLeases(ctx context.Context) error {
	var door net.Listener
	if path := d.opts.DHCPSocket; path != "" {
		var err error
		if door, err = doors.Listen(d.opts.DHCP.HostPrefix+path, dhcpSocketMode); errors.Is(err, doors.ErrAnswered) {
			d.log.Info("another daemon serves the CNI plugin dhcp", "socket", path)
		} else if err != nil {
			d.log.Warn("the CNI plugin dhcp is not served", "err", err)
		}
	}
	return d.leases.Run(ctx, door)
}

// firstOf gives the first command whose program the machine has, the last one where it has none.
func firstOf(commands ...string) string {
	for _, c := range commands {
		program, _, _ := strings.Cut(c, " ")
		if _, err := exec.LookPath(program); err == nil {
			return c
		}
	}
	return commands[len(commands)-1]
}
