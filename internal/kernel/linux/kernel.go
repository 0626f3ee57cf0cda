package linux

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// Options tell New where to work.
type Options struct {
	// Netns is the path of the namespace that objects with an empty NS live in. Default: that of the calling thread.
	Netns string
	// PrivateProc has sysctls written by a procfs of its own. For processes that live long: it costs a mount now and
	// then, and pays where there are many namespaces.
	PrivateProc bool
	// Brief is for a process that ends soon and has no thread in another namespace than the one that calls New: what was
	// opened of a namespace stays open for the calls to come, so that one which is put in its place under the same path
	// is not seen, and one that was deleted is kept until Close.
	Brief bool
}

// Kernel is the real kernel: a kernel.Kernel, and with Facts and Watch also what tells about the machine. It may be used
// by several goroutines at once.
type Kernel struct {
	base    int
	baseErr error
	proc    procfs
	// ports is where the port ids of this Kernel's netlink sockets begin, nextPort the next one; see port.
	ports    uint32
	nextPort atomic.Uint32

	mu sync.Mutex
	// idle are sockets in the base namespace by protocol. Opening them again for each call would cost little, but
	// closing one of nftables' waits until the kernel has freed all that was deleted lately, some 10 ms.
	idle map[int][]*sock
	// brief says that threads are all at home in base, see Options. spaces are then the namespaces that no session uses
	// at present, by path.
	brief  bool
	spaces map[string]*space
	holds  map[kernel.Key]*held
	// before has the values that sysctls of the base namespace had when this process first changed them.
	before map[string]string
	// accepts are the rules in other people's chains that this process was asked to make.
	accepts map[kernel.Key]*kernel.Accept
}

var _ kernel.Kernel = (*Kernel)(nil)

// New gives a Kernel that works in the namespace of the calling thread, or in opts.Netns. It opens nothing but that; an
// error of it comes with the first call of List or Apply.
func New(opts Options) *Kernel {
	k := &Kernel{
		proc: procfs{private: opts.PrivateProc},
		// Bind leaves the ids below 2^22 to process numbers and takes those above 2^31 itself.
		ports:   1<<30 | rand.Uint32N(1<<18)<<portBits,
		idle:    map[int][]*sock{},
		brief:   opts.Brief && opts.Netns == "",
		spaces:  map[string]*space{},
		holds:   map[kernel.Key]*held{},
		before:  map[string]string{},
		accepts: map[kernel.Key]*kernel.Accept{},
	}
	if opts.Netns != "" {
		k.base, k.baseErr = openNetns(opts.Netns)
		return k
	}
	k.base, k.baseErr = unix.Open(ownNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if k.baseErr != nil {
		k.baseErr = fmt.Errorf("own network namespace: %w", k.baseErr)
	}
	return k
}

// maxIdle is how many idle sockets of a protocol are kept, and how many namespaces for Options.Brief.
const maxIdle = 4

// keep takes the sockets of a session that ended.
func (k *Kernel) keep(socks map[int]*sock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for proto, so := range socks {
		if so.broken || len(k.idle[proto]) >= maxIdle {
			so.close()
			continue
		}
		k.idle[proto] = append(k.idle[proto], so)
	}
}

// kept gives an idle socket, nil for none.
func (k *Kernel) kept(proto int) *sock {
	k.mu.Lock()
	defer k.mu.Unlock()
	idle := k.idle[proto]
	if len(idle) == 0 {
		return nil
	}
	k.idle[proto] = idle[:len(idle)-1]
	return idle[len(idle)-1]
}

// Close ends the held ports (kernel.Hold) and lets go of sockets and of the base namespace. No call may be under way or
// follow.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for proto, idle := range k.idle {
		for _, so := range idle {
			so.close()
		}
		delete(k.idle, proto)
	}
	for path, p := range k.spaces {
		p.release()
		delete(k.spaces, path)
	}
	for key, h := range k.holds {
		unix.Close(h.fd)
		delete(k.holds, key)
	}
	k.proc.close()
	if k.baseErr != nil {
		return nil
	}
	k.baseErr = fmt.Errorf("kernel: %w", unix.EBADF)
	return unix.Close(k.base)
}

const portBits = 12

// port gives a netlink port id that marks a socket as this Kernel's, so that a notification tells who caused it.
func (k *Kernel) port() uint32 { return k.ports | k.nextPort.Add(1)&(1<<portBits-1) }

func (k *Kernel) ownPort(id uint32) bool { return id>>portBits == k.ports>>portBits }

// Apply implements kernel.Kernel.
func (k *Kernel) Apply(ctx context.Context, changes []kernel.Change) []error {
	s := k.session()
	defer s.close()
	errs := make([]error, len(changes))
	with := goesWith(changes)
	var unmade kernel.Unmade
	for at := 0; at < len(changes); {
		var run []kernel.Change
		var index []int
		for ; at < len(changes); at++ {
			if with[at] >= 0 {
				continue
			}
			if errs[at] = unmade.Err(changes[at]); errs[at] != nil {
				continue
			}
			if len(run) > 0 && !together(run[0], changes[at]) {
				break
			}
			run, index = append(run, changes[at]), append(index, at)
		}
		out := make([]error, len(run))
		if err := ctx.Err(); err != nil {
			for i, c := range run {
				out[i] = fail(subject(c), err)
			}
		} else if len(run) > 0 {
			s.apply(run, out)
		}
		for i, err := range out {
			errs[index[i]] = err
			unmade.Note(run[i], err)
		}
	}
	s.awaitUse()
	for i, j := range with {
		if j >= 0 && errs[j] != nil {
			errs[i] = fail(changes[i].Old, fmt.Errorf("it was to go with its link: %w", errs[j]))
		}
	}
	return errs
}

// goesWith gives for each change the index of the deletion of a link that does its work, its own where nothing is to be
// done, and -1 where it has to be carried out. Deleting a link takes along what hangs on it, while one deletion after the
// other would make the kernel wait several times.
func goesWith(changes []kernel.Change) []int {
	type link struct{ ns, name string }
	out := make([]int, len(changes))
	going := map[link]int{}
	for i := len(changes) - 1; i >= 0; i-- {
		out[i] = -1
		c := changes[i]
		if c.Op == kernel.Delete && kernel.Stays(c.Old) {
			out[i] = i // nothing to do
			continue
		}
		if c.Op != kernel.Delete {
			clear(going) // what is made in between may count on what was deleted before
			continue
		}
		if l, ok := c.Old.(*kernel.Link); ok && l.Type != kernel.Loopback {
			going[link{l.NS, l.Name}] = i
			if p := l.Peer; p != nil {
				going[link{p.NS, p.Name}] = i
			}
			continue
		}
		if ns, name := kernel.HangsOn(c.Old); name != "" {
			if j, ok := going[link{ns, name}]; ok {
				out[i] = j
			}
		}
	}
	return out
}

// class says which changes of one run are carried out as one.
type class uint8

const (
	classNft class = iota + 1
	classLinkAdd
	classLinkDel
	classSysctl
	classHold
	classUp
	classGeneric // what is set by generic netlink
	classRoute   // everything else that rtnetlink does by one message
)

func classOf(c kernel.Change) class {
	switch c.Key().Kind {
	case kernel.KindTable, kernel.KindChain, kernel.KindAccept, kernel.KindRelic, kernel.KindElement:
		return classNft
	case kernel.KindLink:
		if c.Op == kernel.Delete {
			return classLinkDel
		}
		return classLinkAdd
	case kernel.KindSysctl:
		return classSysctl
	case kernel.KindHold:
		return classHold
	case kernel.KindFeature, kernel.KindWireGuard, kernel.KindWGPeer:
		return classGeneric
	case kernel.KindLinkUp:
		return classUp
	}
	return classRoute
}

func together(a, b kernel.Change) bool { return classOf(a) == classOf(b) && a.Key().NS == b.Key().NS }

func subject(c kernel.Change) kernel.Object {
	if c.New != nil {
		return c.New
	}
	return c.Old
}

// apply carries out a run of changes of one class in one namespace.
func (s *session) apply(run []kernel.Change, errs []error) {
	sp, err := s.space(run[0].Key().NS)
	if err != nil {
		for i, c := range run {
			errs[i] = fail(subject(c), err)
			if c.Op == kernel.Delete && gone(err) {
				errs[i] = nil
			}
		}
		return
	}
	sp.inUse = true
	defer func() { sp.inUse = false }()
	switch classOf(run[0]) {
	case classNft:
		s.applyNft(sp, run, errs)
	case classLinkAdd:
		for i, c := range run {
			errs[i] = fail(c.New, s.applyLink(sp, c))
		}
	case classLinkDel:
		s.deleteLinks(sp, run, errs)
	case classSysctl:
		s.applySysctls(sp, run, errs)
	case classHold:
		for i, c := range run {
			errs[i] = fail(subject(c), s.applyHold(sp, c))
		}
	case classGeneric:
		s.applyGeneric(sp, run, errs)
	case classUp:
		s.applyRoute(sp, run, errs)
		s.awaitCarrier(sp, run, errs)
	case classRoute:
		if slices.ContainsFunc(run, func(c kernel.Change) bool { _, ok := c.New.(*kernel.Route); return ok }) {
			s.awaitDark(sp, run[0].Key().NS)
		}
		s.applyRoute(sp, run, errs)
	}
}

// exists is the answer to a Create that found something there: nil where that is what is wanted.
func (s *session) exists(want kernel.Object, cause error) error {
	got, err := s.list(kernel.Scope{Objects: []kernel.Object{want}})
	if err != nil {
		return cause
	}
	for _, o := range got {
		if o.Key() == want.Key() && want.Holds(o) {
			return nil
		}
	}
	return cause
}
