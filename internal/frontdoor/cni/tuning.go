package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/seine-net/seine/internal/kernel"
)

// tuning is the plugin "tuning": it sets sysctls of the container and attributes of the interface that plugins before it
// in the chain made. The attributes of before are kept in a file of the reference plugin's form (backup.go).
type tuning struct{}

// tuningConf is its configuration.
type tuningConf struct {
	DataDir  string     `json:"dataDir"`
	Sysctl   sysctlConf `json:"sysctl"`
	MAC      string     `json:"mac"`
	MTU      int        `json:"mtu"`
	Promisc  bool       `json:"promisc"`
	AllMulti *bool      `json:"allmulti"`
	TxQLen   *int       `json:"txQLen"`
	Args     struct {
		CNI struct {
			Sysctl   sysctlConf `json:"sysctl"`
			MAC      *string    `json:"mac"`
			MTU      *int       `json:"mtu"`
			Promisc  *bool      `json:"promisc"`
			AllMulti *bool      `json:"allmulti"`
			TxQLen   *int       `json:"txQLen"`
		} `json:"cni"`
	} `json:"args"`
}

// defaultTuningDir is where the reference plugin keeps its files.
const defaultTuningDir = "/run/cni/tuning"

// leastIPv6 is the smallest MTU that the kernel speaks IPv6 at (RFC 8200, section 5).
const leastIPv6 = 1280

// tuned is a request to tuning, validated.
type tuned struct {
	r       *request
	dir     string
	sysctls []sysctl
	// attrs are the interface's attributes that are asked for; nil for none.
	attrs *kernel.Attrs
}

func loadTuned(r *request) (*tuned, error) {
	if r.argsErr != nil && r.verb == verbAdd {
		return nil, r.argsErr
	}
	var c tuningConf
	if err := decode(r.stdin, &c); err != nil {
		return nil, err
	}
	t := &tuned{r: r, dir: c.DataDir}
	if t.dir == "" {
		t.dir = defaultTuningDir
	}
	if !filepath.IsAbs(t.dir) {
		return nil, invalid("dataDir", t.dir, "is no absolute path", "a directory such as "+defaultTuningDir)
	}
	var err error
	// GC and STATUS are about no interface; any name stands for one.
	if t.sysctls, err = mergeSysctls(c.Sysctl, c.Args.CNI.Sysctl, cmp.Or(r.ifname, "eth0")); err != nil {
		return nil, err
	}
	c.override(r)
	if c.MAC, err = validMAC(c.MAC); err != nil {
		return nil, err
	}
	if err := validMTU(c.MTU); err != nil {
		return nil, err
	}
	if c.TxQLen != nil && (*c.TxQLen < 0 || *c.TxQLen > 1<<31-1) {
		return nil, invalid("txQLen", *c.TxQLen, "is out of range", "0 to 2147483647 packets")
	}
	if c.MAC != "" || c.MTU != 0 || c.Promisc || c.AllMulti != nil || c.TxQLen != nil {
		t.attrs = &kernel.Attrs{NS: r.netns, Link: r.ifname, MAC: c.MAC, MTU: c.MTU, AllMulti: c.AllMulti, TxQLen: c.TxQLen}
	}
	if c.Promisc { // false leaves it alone, as with the reference plugin
		t.attrs.Promisc = &c.Promisc
	}
	return t, nil
}

// override puts what goes before the configuration's own keys in their place: MAC of CNI_ARGS, then the capability mac,
// then args.cni.
func (c *tuningConf) override(r *request) {
	for _, mac := range []string{r.args.MAC, r.conf.RuntimeConfig.MAC} {
		if mac != "" {
			c.MAC = mac
		}
	}
	a := &c.Args.CNI
	if a.MAC != nil {
		c.MAC = *a.MAC
	}
	if a.MTU != nil {
		c.MTU = *a.MTU
	}
	if a.Promisc != nil {
		c.Promisc = *a.Promisc
	}
	if a.AllMulti != nil {
		c.AllMulti = a.AllMulti
	}
	if a.TxQLen != nil {
		c.TxQLen = a.TxQLen
	}
}

// objects gives what is wanted of the kernel.
func (t *tuned) objects() []kernel.Object {
	var out []kernel.Object
	if t.attrs != nil {
		out = append(out, t.attrs)
	}
	for _, s := range t.sysctls {
		out = append(out, &kernel.Sysctl{NS: t.r.netns, Name: s.path, Value: s.value})
	}
	return out
}

// speaksIPv6 refuses an MTU at which the kernel would drop the interface's IPv6 addresses without a word.
func (t *tuned) speaksIPv6() error {
	if t.attrs == nil || t.attrs.MTU == 0 || t.attrs.MTU >= leastIPv6 {
		return nil
	}
	for _, ip := range t.r.prev.on(t.r.ifname) {
		if ip.Address.Addr().Is6() {
			return invalid("mtu", t.attrs.MTU, "is too small for IPv6, and the interface has "+ip.Address.String(), fmt.Sprintf("%d or more", leastIPv6))
		}
	}
	return nil
}

func (tuning) add(ctx context.Context, r *request) (*Result, error) {
	t, err := loadTuned(r)
	if err != nil {
		return nil, err
	}
	if r.prev == nil {
		return nil, errorf(CodeConfig, "prevResult is missing; want tuning behind a plugin that makes an interface")
	}
	if err := t.allowed(); err != nil {
		return nil, err
	}
	if err := t.speaksIPv6(); err != nil {
		return nil, err
	}
	want := t.objects()
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: want})
	if err != nil {
		return nil, err
	}
	changes, restore, err := t.changes(want, newSeen(objs))
	if err != nil {
		return nil, err
	}
	done := &changeLog{kernel: r.kernel}
	if err := done.do(ctx, changes); err != nil {
		return nil, errors.Join(err, done.undo(ctx), restore())
	}
	t.report()
	return r.prev, nil
}

// changes gives what has to be done, with what was before, and writes the latter of the interface to its file. restore
// gives the file back what it was.
func (t *tuned) changes(want []kernel.Object, s *seen) (changes []kernel.Change, restore func() error, err error) {
	restore = func() error { return nil }
	for _, o := range want {
		have := s.byKey[o.Key()]
		switch o := o.(type) {
		case *kernel.Attrs:
			was, ok := have.(*kernel.Attrs)
			if !ok {
				return nil, nil, errorf(CodeConfig, "CNI_IFNAME %q: the container has no such interface; want one that a plugin before tuning made", o.Link)
			}
			before := newBackup(o, was)
			if restore, err = t.save(before); err != nil {
				return nil, nil, err
			}
			c := *o
			c.Before = before.attrs()
			changes = append(changes, kernel.Change{Op: kernel.Create, New: &c})
		case *kernel.Sysctl:
			c := *o
			if was, ok := have.(*kernel.Sysctl); ok {
				c.Before = was.Value
			}
			changes = append(changes, kernel.Change{Op: kernel.Create, New: &c})
		}
	}
	return changes, restore, nil
}

// report puts what was changed of the interface into the result.
func (t *tuned) report() {
	for i := range t.r.prev.Interfaces {
		l := &t.r.prev.Interfaces[i]
		if t.attrs == nil || l.Name != t.r.ifname || l.Sandbox == "" {
			continue
		}
		if t.attrs.MAC != "" {
			l.MAC = t.attrs.MAC
		}
		if t.attrs.MTU != 0 && l.MTU != 0 {
			l.MTU = t.attrs.MTU
		}
	}
}

// del puts the interface's attributes back. Sysctls stay as they are: those of the interface go with it, and of the
// others nobody knows who relies on them by now.
func (tuning) del(ctx context.Context, r *request) error {
	var c struct {
		DataDir string `json:"dataDir"`
	}
	_ = decode(r.stdin, &c) // what is wrong with the configuration must not keep the file
	if !filepath.IsAbs(c.DataDir) {
		c.DataDir = defaultTuningDir
	}
	t := &tuned{r: r, dir: c.DataDir}
	before, err := t.saved()
	if err != nil || before == nil {
		return err
	}
	if r.netns != "" {
		back := &kernel.Attrs{NS: r.netns, Link: r.ifname, Before: before.attrs()}
		err := errors.Join(applyAll(ctx, r.kernel, []kernel.Change{{Op: kernel.Delete, Old: back}})...)
		if err != nil { // the interface may have become one that can't have them; it has to go all the same
			fmt.Fprintf(r.host.Stderr, "tuning: %v\n", err)
		}
	}
	return t.forget()
}

func (tuning) check(ctx context.Context, r *request) error {
	t, err := loadTuned(r)
	if err != nil {
		return err
	}
	if err := r.needPrev(); err != nil {
		return err
	}
	for _, l := range r.prev.Interfaces {
		if t.attrs == nil || l.Name != r.ifname || l.Sandbox == "" {
			continue
		}
		// A plugin later in the chain may have changed them again: then the result says so.
		if l.MAC != "" && l.MAC != t.attrs.MAC {
			t.attrs.MAC = ""
		}
		if l.MTU != 0 && l.MTU != t.attrs.MTU {
			t.attrs.MTU = 0
		}
	}
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: t.objects()})
	if err != nil {
		return err
	}
	var want []kernel.Object
	s := newSeen(objs)
	for _, o := range t.objects() {
		if _, ok := o.(*kernel.Sysctl); ok && s.byKey[o.Key()] == nil {
			continue // one that can only be written
		}
		want = append(want, o)
	}
	return differs(ctx, r.kernel, want)
}

func (tuning) gc(_ context.Context, r *request) error {
	valid, err := r.valid()
	if err != nil {
		return err
	}
	t, err := loadTuned(r)
	if err != nil {
		return err
	}
	return t.collect(valid)
}

func (tuning) status(_ context.Context, r *request) error {
	t, err := loadTuned(r)
	if err != nil {
		return err
	}
	if err := t.allowed(); err != nil {
		return err
	}
	return t.ready()
}

// on gives the addresses of a container's interface, and those that no interface is told of.
func (r *Result) on(ifname string) []IP {
	var out []IP
	for _, ip := range r.IPs {
		if n := ip.Interface; n == nil || r.Interfaces[*n].Name == ifname && r.Interfaces[*n].Sandbox != "" {
			out = append(out, ip)
		}
	}
	return out
}

// single is the prefix that holds one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
