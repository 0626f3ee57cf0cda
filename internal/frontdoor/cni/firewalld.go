package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/seine-net/seine/internal/kernel"
)

// Firewalld is the part of firewalld's D-Bus interface (firewalld.dbus(5), org.fedoraproject.FirewallD1.zone) that the
// plugin firewall uses. A source is an address with its length, as the reference plugin writes it.
type Firewalld interface {
	// AddSource binds a source to a zone until firewalld ends or reloads; one that is bound there already is no error.
	AddSource(ctx context.Context, zone, source string) error
	// RemoveSource takes that back; what is not bound, or no zone, is no error.
	RemoveSource(ctx context.Context, zone, source string) error
	// Sources gives all sources of a zone.
	Sources(ctx context.Context, zone string) ([]string, error)
	// Close ends the connection.
	Close()
}

const (
	firewalldName = "org.fedoraproject.FirewallD1"
	firewalldPath = "/org/fedoraproject/FirewallD1"
	firewalldZone = firewalldName + ".zone"
	systemBus     = "/run/dbus/system_bus_socket"
	// busTimeout bounds all that is asked of the bus in one call of the plugin: firewalld is busy while it reloads.
	busTimeout = 30 * time.Second
)

// busFirewalld is the one on the system's bus.
type busFirewalld struct {
	conn   *dbus.Conn
	cancel context.CancelFunc
}

// systemFirewalld connects to firewalld; nil where it does not run. The error says why the bus can't be asked.
func systemFirewalld(ctx context.Context) (Firewalld, error) {
	address := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS")
	if address == "" {
		if _, err := os.Stat(systemBus); err != nil {
			return nil, err
		}
		address = "unix:path=" + systemBus
	}
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	conn, err := dbus.Connect(address, dbus.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("system bus %q: %w", address, err)
	}
	f := &busFirewalld{conn, cancel}
	var owned bool
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, firewalldName).Store(&owned); err != nil || !owned {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close implements Firewalld.
func (f *busFirewalld) Close() {
	_ = f.conn.Close() // nothing is on its way
	f.cancel()
}

func (f *busFirewalld) call(ctx context.Context, result any, method string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	err := f.conn.Object(firewalldName, firewalldPath).CallWithContext(ctx, firewalldZone+"."+method, 0, args...).Store(result)
	if err != nil {
		return fmt.Errorf("firewalld: %s %s: %w", method, strings.Trim(fmt.Sprint(args...), "[]"), err)
	}
	return nil
}

// AddSource implements Firewalld.
func (f *busFirewalld) AddSource(ctx context.Context, zone, source string) error {
	var res string
	err := f.call(ctx, &res, "addSource", zone, source)
	if says(err, "ZONE_ALREADY_SET", "ALREADY_ENABLED") {
		return nil
	}
	return err
}

// RemoveSource implements Firewalld.
func (f *busFirewalld) RemoveSource(ctx context.Context, zone, source string) error {
	var res string
	err := f.call(ctx, &res, "removeSource", zone, source)
	if says(err, "UNKNOWN_SOURCE", "NOT_ENABLED", "ZONE_CONFLICT", "INVALID_ZONE") {
		return nil
	}
	return err
}

// Sources implements Firewalld.
func (f *busFirewalld) Sources(ctx context.Context, zone string) ([]string, error) {
	var out []string
	err := f.call(ctx, &out, "getSources", zone)
	return out, err
}

// says reports whether firewalld raised one of its errors (firewalld's errors.py), which begin with their names.
func says(err error, names ...string) bool {
	var e dbus.Error
	if !errors.As(err, &e) || e.Name != firewalldName+".Exception" {
		return false
	}
	name, _, _ := strings.Cut(e.Error(), ":")
	return slices.Contains(names, strings.TrimSpace(name))
}

// source is an address as the reference plugin gives it to firewalld.
func source(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// addSources gives the attachment's addresses to the zone. What came about when it fails is taken back with the
// attachment's elements.
func (w *wall) addSources(ctx context.Context, fw Firewalld) error {
	for _, a := range w.r.prev.addrs() {
		if err := fw.AddSource(ctx, w.zone, source(a)); err != nil {
			return err
		}
	}
	return nil
}

// checkSources compares the zone's sources with the attachment's addresses.
func (w *wall) checkSources(ctx context.Context) error {
	fw, err := w.r.host.Firewalld(ctx)
	if err != nil {
		return err
	}
	if fw == nil {
		return fmt.Errorf("firewalld, which had the container's addresses, does not run any more")
	}
	defer fw.Close()
	have, err := fw.Sources(ctx, w.zone)
	if err != nil {
		return err
	}
	for _, a := range w.r.prev.addrs() {
		if !slices.Contains(have, source(a)) {
			return fmt.Errorf("differs from what ADD made: firewalld's zone %q has no source %s", w.zone, source(a))
		}
	}
	return nil
}

// dropSources takes the addresses of elements out of the zones that their comments name.
func dropSources(ctx context.Context, r *request, elems []*kernel.Element) error {
	var fw Firewalld
	var errs []error
	for _, e := range elems {
		zone := readMark(e).zone
		addr, err := netip.ParseAddr(e.Item)
		if zone == "" || err != nil {
			continue
		}
		if fw == nil {
			// Where it does not run there is nothing to be taken out.
			if fw, _ = r.host.Firewalld(ctx); fw == nil {
				return nil
			}
			defer fw.Close()
		}
		errs = append(errs, fw.RemoveSource(ctx, zone, source(addr)))
	}
	return errors.Join(errs...)
}

// mendSources puts back what firewalld forgot of other attachments when it was reloaded: sources that were added while it
// runs do not outlive that. They are those attachments' trouble, so that no error of theirs is this one's.
func (w *wall) mendSources(ctx context.Context, fw Firewalld) {
	objs, err := w.r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{element(pass4, "", "", ""), element(pass6, "", "", "")}})
	if err != nil {
		return
	}
	have := map[string][]string{}
	for _, o := range objs {
		e, ok := o.(*kernel.Element)
		if !ok || !isPass(e) {
			continue
		}
		zone := readMark(e).zone
		addr, err := netip.ParseAddr(e.Item)
		if zone == "" || err != nil {
			continue
		}
		if _, asked := have[zone]; !asked {
			if have[zone], err = fw.Sources(ctx, zone); err != nil {
				return
			}
		}
		if !slices.Contains(have[zone], source(addr)) {
			_ = fw.AddSource(ctx, zone, source(addr))
		}
	}
}
