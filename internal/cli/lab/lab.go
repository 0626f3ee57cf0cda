// Package lab makes machines of network namespaces, with a daemon each, on one network that can be cut: `seine lab`. It is
// for demos, for tests, and for trying things before they are done to machines that matter.
//
//	h1 eth0     h2 eth0     h3 eth0      a namespace each, seine-lab-NAME-hN, with a seined in it
//	   │           │           │
//	  p1          p2          p3         the namespace seine-lab-NAME-underlay: a bridge with these ports or, where the
//	   └────── underlay ───────┘         lab is routed, a router; "p1 . p2" in its set drops what goes from h1 to h2
//
// All that is kept is one folder below Dir. Nothing is put into the machine's own network namespace, and the network of a
// lab leads nowhere else. Hosts share the machine's files and processes: no walls are between them.
//
// Each part is noted as made when it is whole. What a lab that broke off left half made is made anew by the next Up, and
// removed by Down.
package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/api"
)

// Dir has a folder for each lab. It is gone after a reboot, as all that a lab is.
const Dir = "/run/seine-lab"

const (
	specFile  = "lab.json"
	wiredFile = "wired" // beside what is whole
)

// Lab is a lab that is there, or that Up is to make.
type Lab struct {
	Spec
	dir  string
	lock *os.File // on Dir, while the lab is changed
}

// Host is a host of a lab, as it is now.
type Host struct {
	Lab       string       `json:"lab"`
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Netns     string       `json:"netns"`
	Socket    string       `json:"socket"`
	Log       string       `json:"log"`
	// PID is that of the daemon; 0 when there is none.
	PID int `json:"pid,omitempty"`
	// Cut names the hosts that it is cut off from.
	Cut []string `json:"cut,omitempty"`
}

// Names lists the labs of this machine.
func Names() ([]string, error) {
	entries, err := os.ReadDir(Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, err
}

// Open gives a lab that is there.
func Open(name string) (*Lab, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	l := &Lab{Spec: Spec{Name: name}, dir: filepath.Join(Dir, name)}
	data, err := os.ReadFile(filepath.Join(l.dir, specFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, api.Errorf(api.NotFound, l.noun(), "is not there; make it with `seine lab up`")
	}
	if err == nil {
		err = json.Unmarshal(data, &l.Spec)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.noun(), err)
	}
	l.Name = name
	return l, nil
}

// change opens a lab to be changed, by one at a time. The caller releases it.
func change(name string) (*Lab, error) {
	lock, err := lockDir()
	if err != nil {
		return nil, err
	}
	l, err := Open(name)
	if err != nil {
		return nil, errors.Join(err, release(lock))
	}
	l.lock = lock
	return l, nil
}

// lockDir takes the lock on Dir: its last holder may have removed the folder between open and lock.
func lockDir() (*os.File, error) {
	if os.Geteuid() != 0 {
		return nil, api.Errorf(api.Unsupported, "lab", "only root can make network namespaces")
	}
	for {
		if err := os.MkdirAll(Dir, 0o755); err != nil {
			return nil, err
		}
		f, err := os.Open(Dir)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", Dir, err), f.Close())
		}
		locked, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if now, err := os.Stat(Dir); err == nil && os.SameFile(locked, now) {
			return f, nil
		}
		f.Close()
	}
}

// release gives the lock back; the last lab takes Dir with it.
func release(lock *os.File) error {
	_ = os.Remove(Dir) // while there is a lab in it, it stays
	return lock.Close()
}

// check says what this machine lacks for a lab, before anything is made.
func (s *Spec) check() error {
	for program, pack := range map[string]string{"ip": "iproute2", "nft": "nftables"} {
		if _, err := exec.LookPath(program); err != nil {
			return api.Errorf(api.Unsupported, s.noun(), "needs the program %q, which is not found; on Debian it is in the package %s", program, pack)
		}
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); s.IPv6 && err != nil {
		return api.Errorf(api.Unsupported, s.noun(), "this kernel has no IPv6 (CONFIG_IPV6); want --ipv4")
	}
	return nil
}

// Up makes a lab, or what is missing of it: hosts, and their daemons. said is called with what was done, a line each. program
// is the daemon's file.
func Up(ctx context.Context, s Spec, program string, said func(string)) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	program, err := s.program(program)
	if err != nil {
		return err
	}
	lock, err := lockDir()
	if err != nil {
		return err
	}
	defer release(lock)
	l, err := Open(s.Name)
	switch {
	case api.CodeOf(err) == api.NotFound:
		l = &Lab{Spec: s, dir: filepath.Join(Dir, s.Name)}
	case err != nil:
		return err
	default:
		if l.Spec, err = l.grow(s); err != nil {
			return err
		}
	}
	l.lock = lock
	if err := l.save(); err != nil {
		return err
	}
	if err := l.wire(ctx, said); err != nil {
		return err
	}
	if err := l.startAll(ctx, program, said); err != nil || !l.Cluster {
		return err
	}
	return l.cluster(ctx, said)
}

// save notes what the lab is to be before any of it is made.
func (l *Lab) save() error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(l.Spec)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(l.dir, specFile), data)
}

// writeFile writes a file as a whole: who reads it finds all of it or what was there before.
func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// wire makes the underlay and the network of each host, where they are not there and whole.
func (l *Lab) wire(ctx context.Context, said func(string)) error {
	families := []string{"ipv4/ip_forward"}
	if l.IPv6 {
		families = append(families, "ipv6/conf/all/forwarding")
	}
	fresh := false
	err := l.whole(ctx, underlay, func(ns string) error {
		fresh = true
		if err := forward(ns, families...); err != nil {
			return err
		}
		if err := ip(ctx, "bridges (CONFIG_BRIDGE)", ns, l.underlayScript()); err != nil {
			return err
		}
		return nft(ctx, ns, l.cutRules())
	})
	if err != nil {
		return err
	}
	for n := 1; n <= l.Hosts; n++ {
		if fresh { // the other end of its link is gone
			_ = os.Remove(filepath.Join(l.dir, hostName(n), wiredFile))
		}
		err := l.whole(ctx, hostName(n), func(ns string) error {
			// What a try before this one left has the name that is to be given.
			_ = command(ctx, "", "", "ip", "-netns", l.netns(underlay), "link", "del", port(n))
			if err := ip(ctx, "links of type veth (CONFIG_VETH)", l.netns(underlay), l.cable(n)); err != nil {
				return err
			}
			return ip(ctx, "IPv4 and IPv6 as the lab has them", ns, l.hostScript(n))
		})
		if err != nil {
			return err
		}
	}
	if fresh {
		said(fmt.Sprintf("%s: %s", l.netns(underlay), map[bool]string{false: "a bridge", true: "a router"}[l.Routed]))
	}
	return nil
}

// whole makes a namespace and what is in it, unless it is there and was finished.
func (l *Lab) whole(ctx context.Context, host string, fill func(netns string) error) error {
	ns, dir := l.netns(host), filepath.Join(l.dir, host)
	mark := filepath.Join(dir, wiredFile)
	if _, err := os.Stat(mark); err == nil && isNetns(filepath.Join(netnsDir, ns)) {
		return nil
	}
	if host != underlay { // a daemon of a network that is no more
		if err := l.stop(host); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	_ = os.Remove(mark)
	if err := newNetns(ctx, ns); err != nil {
		return err
	}
	if err := fill(ns); err != nil {
		return fmt.Errorf("%s: %s: %w", l.noun(), host, err)
	}
	return os.WriteFile(mark, nil, 0o644)
}

// Down removes a lab, also one that was never finished. Processes that users started in it are left; they are named.
func Down(name string, said func(string)) error {
	l, err := change(name)
	if api.CodeOf(err) == api.NotFound {
		if l, err = remains(name); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	defer release(l.lock)
	hosts := l.made()
	var all []process
	for _, h := range hosts {
		p, err := l.daemon(h)
		if err != nil {
			return err
		}
		if p.lives() {
			all = append(all, p)
		}
	}
	if err := end(all); err != nil {
		return fmt.Errorf("%s: %w", l.noun(), err)
	}
	for _, h := range append(hosts, underlay) {
		left, _ := exec.Command("ip", "netns", "pids", l.netns(h)).Output() // none where there is no such namespace
		if pids := strings.Fields(string(left)); h != underlay && len(pids) > 0 {
			said(fmt.Sprintf("%s: still runs, without a network: process %s", h, strings.Join(pids, ", ")))
		}
		if err := deleteNetns(l.netns(h)); err != nil {
			return err
		}
	}
	if err := unmountBelow(l.dir); err != nil {
		return err
	}
	return os.RemoveAll(l.dir)
}

// remains takes a lab that was broken off before it was noted, of which there is a folder.
func remains(name string) (*Lab, error) {
	l := &Lab{Spec: Spec{Name: name}, dir: filepath.Join(Dir, name)}
	if _, err := os.Stat(l.dir); err != nil {
		return nil, api.Errorf(api.NotFound, l.noun(), "is not there")
	}
	var err error
	l.lock, err = lockDir()
	return l, err
}

// made lists the hosts that there is something of.
func (l *Lab) made() []string {
	var out []string
	for n := 1; n <= MaxHosts; n++ {
		if _, err := os.Stat(filepath.Join(l.dir, hostName(n))); n <= l.Hosts || err == nil {
			out = append(out, hostName(n))
		}
	}
	return out
}

// unmountBelow takes away what is mounted below a folder: the namespaces of containers.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, path := range mountsBelow(string(data), dir) {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return nil
}

// mountsBelow finds the places below a folder in a mountinfo (proc_pid_mountinfo(5)), the deepest first.
func mountsBelow(mountinfo, dir string) []string {
	var out []string
	for line := range strings.Lines(mountinfo) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	slices.Sort(out)
	slices.Reverse(out)
	return out
}

// Cut drops all packets between two hosts, both ways, or between one and all others, until Heal.
func Cut(ctx context.Context, name string, hosts []string) error {
	return setCut(ctx, name, hosts, true)
}

// Heal ends what Cut did; without hosts, all of it.
func Heal(ctx context.Context, name string, hosts []string) error {
	return setCut(ctx, name, hosts, false)
}

func setCut(ctx context.Context, name string, hosts []string, cut bool) error {
	l, err := change(name)
	if err != nil {
		return err
	}
	defer release(l.lock)
	pairs, err := l.pairs(hosts)
	if err != nil || len(pairs) == 0 {
		return err
	}
	return nft(ctx, l.netns(underlay), l.setPairs(pairs, cut))
}

// cuts gives the hosts that each one is cut off from.
func (l *Lab) cuts(ctx context.Context) (map[string][]string, error) {
	args := append([]string{"netns", "exec", l.netns(underlay), "nft", "-j", "list", "set"}, strings.Fields(l.table()+" cut")...)
	out, err := exec.CommandContext(ctx, "ip", args...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s: reading what is cut: %w", l.noun(), err)
	}
	return parseCuts(out)
}

// parseCuts reads what nft prints of the set of cuts.
func parseCuts(data []byte) (map[string][]string, error) {
	var printed struct {
		Nftables []struct {
			Set struct {
				Elem []struct{ Concat []string }
			}
		}
	}
	if err := json.Unmarshal(data, &printed); err != nil {
		return nil, fmt.Errorf("what nft prints: %w", err)
	}
	out := map[string][]string{}
	for _, x := range printed.Nftables {
		for _, e := range x.Set.Elem {
			if len(e.Concat) == 2 {
				from := "h" + strings.TrimPrefix(e.Concat[0], "p")
				out[from] = append(out[from], "h"+strings.TrimPrefix(e.Concat[1], "p"))
			}
		}
	}
	for _, to := range out {
		slices.SortFunc(to, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) }) // h2 before h10
	}
	return out, nil
}

// List tells of the hosts of a lab.
func (l *Lab) List(ctx context.Context) ([]Host, error) {
	cut, err := l.cuts(ctx)
	if err != nil {
		cut = map[string][]string{} // a lab that is half made has no underlay
	}
	var out []Host
	for n := 1; n <= l.Hosts; n++ {
		h := hostName(n)
		x := Host{Lab: l.Name, Name: h, Addresses: l.Addresses(n), Netns: l.netns(h), Socket: l.socket(h), Log: l.log(h), Cut: cut[h]}
		if p, err := l.daemon(h); err == nil && p.lives() {
			x.PID = p.PID
		}
		out = append(out, x)
	}
	return out, nil
}
