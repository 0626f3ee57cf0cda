package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// hostDeviceConf is the configuration of the plugin "host-device".
type hostDeviceConf struct {
	Device        string `json:"device"`
	HWAddr        string `json:"hwaddr"`
	KernelPath    string `json:"kernelpath"`
	PCIBusID      string `json:"pciBusID"`
	RuntimeConfig struct {
		DeviceID string `json:"deviceID"`
	} `json:"runtimeConfig"`
	Capabilities struct {
		DeviceID bool `json:"deviceID"`
	} `json:"capabilities"`
}

// hostDevice says which interface of the machine the plugin "host-device" moves into the container.
type hostDevice struct {
	sysfs sysfs
	// One of these is given: the name, the hardware address, or key, value and folder below sysfs that it was found by.
	device, hwaddr string
	key, value     string
	folder         []string
	// each says that the runtime chooses a device for each container, and that this call is about none.
	each bool
	// program says that a program drives the device, which has no interface then.
	program bool
	// on is the device as the kernel has it; nil before resolve, and on CHECK.
	on *kernel.Link
}

func newHostDevice(r *request) (maker, error) {
	var c hostDeviceConf
	if err := decode(r.stdin, &c); err != nil {
		return nil, err
	}
	d := &hostDevice{sysfs: sysfs(r.host.Sysfs)}
	if err := d.pick(c); err != nil {
		d.each = c.Capabilities.DeviceID && (r.verb == verbStatus || r.verb == verbGC)
		if d.each {
			return d, nil
		}
		return nil, err
	}
	if d.folder == nil || d.folder[0] != pciBus {
		return d, nil
	}
	if !d.sysfs.has(pciBus, d.value) && r.verb != verbDel {
		return nil, invalid(d.key, d.value, "is no PCI device of the machine", "an address such as 0000:03:00.1")
	}
	var err error
	d.program, err = d.sysfs.userDriven(d.value)
	return d, err
}

// pick takes the most particular key that is given: a deviceID is what the runtime chose for this very container.
func (d *hostDevice) pick(c hostDeviceConf) error {
	id := c.RuntimeConfig.DeviceID
	switch {
	case id != "":
		bus := pciBus
		if !d.sysfs.has(bus, id) && d.sysfs.has(auxiliaryBus, id) {
			bus = auxiliaryBus
		}
		return d.onBus("runtimeConfig.deviceID", id, bus)
	case c.Device != "":
		d.device = c.Device
		return validIfname("device", c.Device)
	case c.HWAddr != "":
		hw, err := net.ParseMAC(c.HWAddr)
		if err != nil {
			return invalid("hwaddr", c.HWAddr, "is no hardware address", "one such as 02:00:00:00:00:01")
		}
		d.hwaddr = hw.String()
	case c.KernelPath != "":
		rest, ok := strings.CutPrefix(c.KernelPath, "/sys/devices/")
		if !ok || !filepath.IsLocal(rest) {
			return invalid("kernelpath", c.KernelPath, "is no device's folder", "a path that begins with /sys/devices/, without ..")
		}
		d.key, d.value, d.folder = "kernelpath", c.KernelPath, []string{"devices", rest}
	case c.PCIBusID != "":
		return d.onBus("pciBusID", c.PCIBusID, pciBus)
	default:
		return invalid("device", "", "is missing", "one of device, hwaddr, kernelpath and pciBusID, or the capability deviceID")
	}
	return nil
}

func (d *hostDevice) onBus(key, value, bus string) error {
	if !filepath.IsLocal(value) || strings.Contains(value, "/") || value == "." {
		return invalid(key, value, "is no device's name", "that of a PCI device, such as 0000:03:00.1, or of an auxiliary one")
	}
	d.key, d.value, d.folder = key, value, []string{bus, value}
	return nil
}

func (d *hostDevice) needsIPAM() bool   { return false }
func (d *hostDevice) masquerades() bool { return false }

// resolve finds the device on the machine. One that the kernel brought back from a container's namespace gets its name
// again first.
func (d *hostDevice) resolve(ctx context.Context, r *request) error {
	if d.program || d.each || d.on != nil {
		return nil
	}
	l, home, err := d.find(ctx, r)
	if err != nil {
		return err
	}
	if l == nil {
		return d.missing()
	}
	if home != "" && r.verb == verbAdd {
		if err := giveBack(ctx, r, l, home); err != nil {
			return err
		}
		back := *l
		back.Name = home
		l = &back
	}
	if l.Type == kernel.Bridge || l.Type == kernel.Loopback {
		return invalid("device", l.Name, "is an interface of type "+typeName(l)+", which can't leave the machine", "another device")
	}
	d.on = l
	return nil
}

func (d *hostDevice) missing() error {
	const want = "one that is there and in no container yet"
	switch {
	case d.device != "":
		return invalid("device", d.device, "is no interface of the machine", want)
	case d.hwaddr != "":
		return invalid("hwaddr", d.hwaddr, "is no interface's on the machine", want)
	}
	return invalid(d.key, d.value, "has no interface on the machine", want)
}

// find gives the device as it is on the machine, nil where it is not there. home is the name that it had before the
// kernel brought it back from a namespace that ended, which it does under the name that it had there; else "".
func (d *hostDevice) find(ctx context.Context, r *request) (l *kernel.Link, home string, err error) {
	objs, err := r.kernel.List(ctx, kernel.Scope{Links: true})
	if err != nil {
		return nil, "", err
	}
	var links []*kernel.Link
	for _, o := range objs {
		links = append(links, o.(*kernel.Link))
	}
	named := func(name string) *kernel.Link {
		if i := slices.IndexFunc(links, func(l *kernel.Link) bool { return l.Name == name }); i >= 0 {
			return links[i]
		}
		return nil
	}
	if d.device != "" {
		if l := named(d.device); l != nil {
			return l, "", nil
		}
		for _, l := range links {
			if l.Alias == d.device {
				return l, d.device, nil
			}
		}
		return nil, "", nil
	}
	if l, err = d.among(links, named); l == nil || err != nil {
		return nil, "", err
	}
	if !isHome(l.Alias) || named(l.Alias) != nil || l.Name != r.ifname && !homeless(l.Name) {
		return l, "", nil
	}
	// An alias may be anybody's: the kernel brings a device back down.
	up, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{&kernel.LinkUp{Link: l.Name}}})
	if err != nil || len(up) > 0 {
		return l, "", err
	}
	return l, l.Alias, nil
}

// among finds the device where its name is not what it is known by. Of several links with one hardware address it is
// the one that others were made on.
func (d *hostDevice) among(links []*kernel.Link, named func(string) *kernel.Link) (*kernel.Link, error) {
	if d.hwaddr != "" {
		var found *kernel.Link
		for _, l := range links {
			if l.MAC == d.hwaddr && (found == nil || found.Type != "" && l.Type == "") {
				found = l
			}
		}
		return found, nil
	}
	names, err := d.sysfs.interfaces(d.folder...)
	for _, name := range names {
		if l := named(name); l != nil {
			return l, nil
		}
	}
	return nil, err
}

// isHome reports whether an alias can be the name that a link had on the machine.
func isHome(alias string) bool { return validIfname("", alias) == nil }

// homeless reports whether a name is one that the kernel gives to a device whose name is taken: devN.
func homeless(name string) bool {
	_, err := strconv.ParseUint(strings.TrimPrefix(name, "dev"), 10, 32)
	return err == nil && strings.HasPrefix(name, "dev")
}

// giveBack moves a device to the machine under the name that it had there, or renames it. A device whose name another
// one has by now is moved all the same, and keeps its name as alias: where it is, it would get lost.
func giveBack(ctx context.Context, r *request, l *kernel.Link, home string) error {
	taken, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{&kernel.Link{Name: home}}})
	if err != nil {
		return err
	}
	if len(taken) > 0 {
		fmt.Fprintf(r.host.Stderr, "device %q: its name is another's by now; it is back on the machine under another name, with the alias %q\n", home, home)
	}
	return errors.Join(applyAll(ctx, r.kernel, []kernel.Change{{Op: kernel.Delete, Old: &kernel.Link{NS: l.NS, Name: l.Name, Home: home}}})...)
}

func (d *hostDevice) plan(a *attaching, s *seen) (*plan, error) {
	// Where the device is known by something else, only the alias tells what it was called.
	p := &plan{link: &kernel.Link{NS: a.netns, Name: a.ifname, Home: cmp.Or(d.device, d.hwaddr, d.value)}}
	switch {
	case !a.check:
		p.link.Home, a.mac = d.on.Name, d.on.MAC
	case d.device == "":
		at := &kernel.Link{NS: a.netns, Name: a.ifname}
		p.look = []kernel.Object{at}
		if l, ok := s.byKey[at.Key()].(*kernel.Link); ok && isHome(l.Alias) {
			p.link.Home = l.Alias
		}
	}
	return p, a.planInner(p, false)
}

// hostDevicePlugin is the plugin "host-device": an interface of the machine that is the container's for the time being.
// It carries the name that it had as its alias, as with the reference plugin, so that either's DEL gives it back.
type hostDevicePlugin struct{ attacher }

func (p hostDevicePlugin) add(ctx context.Context, r *request) (*Result, error) {
	m, i, err := p.prepare(r)
	if err != nil {
		return nil, err
	}
	if d := m.(*hostDevice); !d.program {
		return p.addLink(ctx, r, d)
	}
	a := &attaching{ident: r.ident(), netns: r.netns, dns: r.conf.DNS}
	if i == nil {
		return a.resultOf(), nil
	}
	if _, ok := i.(overLink); ok {
		return nil, invalid("ipam.type", ipamType(r), "asks over an interface, and a program drives the device", "an address plugin that does not, such as host-local")
	}
	ips, undo, err := i.add(ctx)
	if err != nil {
		return nil, err
	}
	if len(ips.IPs) == 0 {
		return nil, errors.Join(invalid("ipam", "", "gives no address", "at least one"), undo(context.WithoutCancel(ctx)))
	}
	a.ips = ips
	return a.resultOf(), nil
}

// addLink moves the device. Where that fails the device is on the machine as it was, but without addresses.
func (p hostDevicePlugin) addLink(ctx context.Context, r *request, d *hostDevice) (*Result, error) {
	if err := d.resolve(ctx, r); err != nil {
		return nil, err
	}
	up := &kernel.LinkUp{Link: d.on.Name}
	was, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{up}})
	if err != nil {
		return nil, err
	}
	p.load = func(*request) (maker, error) { return d, nil }
	res, err := p.attacher.add(ctx, r)
	if err != nil && len(was) > 0 {
		again := applyAll(context.WithoutCancel(ctx), r.kernel, []kernel.Change{{Op: kernel.Create, New: up}})
		err = errors.Join(append([]error{err}, again...)...)
	}
	return res, err
}

func (p hostDevicePlugin) del(ctx context.Context, r *request) error {
	m, _ := p.load(r)
	d, _ := m.(*hostDevice)
	i, err := ipamOf(r)
	errs := []error{lenient(err)}
	_, first := i.(overLink)
	if first {
		errs = append(errs, i.del(ctx))
	}
	if err := p.release(ctx, r, d, i); err != nil {
		return errors.Join(append(errs, err)...)
	}
	if i != nil && !first {
		errs = append(errs, i.del(ctx))
	}
	return errors.Join(errs...)
}

// release gives the attachment's device back, wherever it is by now; d is nil where the configuration is wrong.
func (p hostDevicePlugin) release(ctx context.Context, r *request, d *hostDevice, i ipam) error {
	if d != nil && d.program {
		return nil
	}
	if r.netns != "" {
		l, err := p.present(ctx, r)
		if err != nil {
			return err
		}
		if l != nil {
			ours, err := d.moved(ctx, r, i, l)
			if err != nil || !ours {
				return err
			}
			return giveBack(ctx, r, l, l.Alias)
		}
	}
	return restore(ctx, r, d)
}

// moved reports whether an interface of the container is the device: after an ADD that failed, it is another's.
func (d *hostDevice) moved(ctx context.Context, r *request, i ipam, l *kernel.Link) (bool, error) {
	h, ok := i.(*hostLocal)
	switch {
	case !isHome(l.Alias):
		return false, nil
	case r.prev != nil:
		return madeByOthers(r, i), nil
	case ok:
		return len(h.held()) > 0, nil
	case d == nil:
		return true, nil
	case d.device != "":
		return d.device == l.Alias, nil
	}
	at, _, err := d.find(ctx, r)
	return at == nil, err
}

// restore gives a device its name back that the kernel brought back from a namespace that ended.
func restore(ctx context.Context, r *request, d *hostDevice) error {
	if d == nil || d.program || d.each {
		return nil
	}
	l, home, err := d.find(ctx, r)
	if err != nil || home == "" {
		return err
	}
	return giveBack(ctx, r, l, home)
}

func (p hostDevicePlugin) check(ctx context.Context, r *request) error {
	m, i, err := p.prepare(r)
	if err != nil {
		return err
	}
	if d := m.(*hostDevice); !d.program {
		return p.attacher.check(ctx, r)
	}
	if err := r.needPrev(); err != nil || i == nil {
		return err
	}
	return i.check(ctx)
}

// gc leaves devices where they are that are in a namespace: no mark of theirs says whose. With the namespace they come
// back to the machine.
func (p hostDevicePlugin) gc(ctx context.Context, r *request) error {
	if err := (attacher{load: p.load}).gc(ctx, r); err != nil {
		return err
	}
	m, err := p.load(r)
	if err != nil {
		return err
	}
	return restore(ctx, r, m.(*hostDevice))
}
