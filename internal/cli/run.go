package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/cli/sandbox"
)

const (
	// hostNetwork and joinPrefix are values of --network that are no networks.
	hostNetwork = "host"
	joinPrefix  = "container:"
	// undoTime is what detaching at the end may take; a daemon that comes back later does it by itself.
	undoTime = 15 * time.Second
	// nameTries is how often a random name is drawn until one is free.
	nameTries = 5
)

// run is one `seine run`.
type run struct {
	*app
	endpointFlags
	name     string
	hostname string
	networks []string
	quiet    bool
	args     []string

	dns []netip.Addr // the machine's fixed addresses of the name server

	host bool   // --network host
	join string // the container of --network container:NAME

	mu     sync.Mutex // guards what follows, between the program's start and signals
	box    *sandbox.Sandbox
	gone   bool           // the program was started
	broken syscall.Signal // the signal that came before that
	ending int            // how many signals came that end programs
	giveUp func()         // ends the wait for the daemon to detach; nil while there is none
}

func (a *app) runCommand() *cobra.Command {
	r := &run{app: a}
	cmd := &cobra.Command{
		Use:   "run [flags] [--] PROGRAM [ARGUMENT...]",
		Short: "Run a program in a network namespace of its own",
		Long: "Run a program in a network namespace of its own, attached to networks. Names are resolved by Seine there. When the program\n" +
			"ends, or is ended (Ctrl-C), nothing is left of it. It is no container: it sees the machine's files.\n\n" +
			"--network host stays on the machine's network; container:NAME joins the network namespace of another container; none has\n" +
			"loopback only; default-restricted reaches this machine only. --ip, --ip6, --mac and --publish are about the first network.",
		Example: "  seine run --name web --publish 8080:80 -- python3 -m http.server 80\n" +
			"  seine run --network default --network back -- bash",
		Args: someArgs("PROGRAM"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r.args = args
			return r.run(cmd.Context(), cmd.Flags().Changed("name"))
		},
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false) // what follows the program is the program's
	fl.StringVar(&r.name, "name", "", "`NAME` of the container, and its DNS name (default a random one)")
	fl.StringArrayVar(&r.networks, "network", nil, "`NAME` of a network to attach to; may be repeated (default what seined --default-network says)")
	fl.StringVar(&r.hostname, "hostname", "", "host `NAME` inside (default the name)")
	fl.BoolVarP(&r.quiet, "quiet", "q", false, "don't print addresses")
	r.register(cmd)
	_ = cmd.RegisterFlagCompletionFunc("network", a.completeNetworks(-1)) // the flag is there
	return cmd
}

// check reads what can be known to be wrong before anything is made.
func (r *run) check(ctx context.Context) (first api.Endpoint, err error) {
	if err := r.apply(&first); err != nil {
		return first, err
	}
	if err := r.checkNetworks(first); err != nil {
		return first, err
	}
	if err := checkHostname(r.hostname); err != nil {
		return first, err
	}
	if _, status, err := sandbox.Lookup(r.args[0]); err != nil {
		return first, exitStatus{status, err}
	}
	if os.Geteuid() != 0 {
		return first, api.Errorf(api.Unsupported, "run", "only root can make network namespaces")
	}
	if len(r.networks) > 0 {
		return first, nil
	}
	if _, err := r.sandboxes(); err != nil { // another machine's default is of no use
		return first, err
	}
	err = r.ask(ctx, "asking for the default network", func(ctx context.Context, d *client.Client) error {
		n, err := d.Node(ctx)
		r.networks = []string{cmp.Or(n.DefaultNetwork, "default")}
		return err
	})
	if err != nil {
		return first, err
	}
	return first, r.checkNetworks(first)
}

// checkNetworks checks the networks, and notes those that are none.
func (r *run) checkNetworks(first api.Endpoint) error {
	for i, n := range r.networks {
		if slices.Contains(r.networks[:i], n) {
			return api.FieldError("", "--network", n, "is given twice", "each network once")
		}
		join, isJoin := strings.CutPrefix(n, joinPrefix)
		if !isJoin && n != hostNetwork {
			continue
		}
		if len(r.networks) > 1 {
			return api.FieldError("", "--network", n, "can't stand beside another network", "one --network "+n+", or only networks")
		}
		if len(first.Addresses) > 0 || first.MAC != "" || len(first.Ports) > 0 || len(first.Aliases) > 0 {
			return api.FieldError("", "--network", n, "takes no --ip, --ip6, --mac, --publish and --alias", "a network for them")
		}
		r.join, r.host = join, !isJoin
	}
	return nil
}

// checkHostname holds a host name to what can stand in /etc/hosts and what the kernel takes.
func checkHostname(s string) error {
	ok := len(s) <= maxHostname && !strings.HasPrefix(s, "-") && !strings.HasPrefix(s, ".")
	for _, r := range s {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}
	if !ok {
		return api.FieldError("", "--hostname", s, "is no host name", fmt.Sprintf("at most %d letters, digits, '-', '_' and '.', the first a letter or digit", maxHostname))
	}
	return nil
}

func (r *run) run(ctx context.Context, named bool) error {
	first, err := r.check(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer r.catchSignals(cancel)()
	for try := 1; ; try++ {
		if !named {
			r.name = randomName()
		}
		err := r.once(ctx, first)
		if sig := r.brokenBy(); sig != 0 {
			return exitStatus{128 + int(sig), fmt.Errorf("broken off by %s", unix.SignalName(sig))}
		}
		var e *api.Error
		taken := errors.As(err, &e) && e.Code == api.Conflict && e.Field == ""
		if named || !taken || try == nameTries {
			return err
		}
	}
}

// once runs the program under a name.
func (r *run) once(ctx context.Context, first api.Endpoint) (err error) {
	// The name is that of a file too; a network that every machine has makes the check complete.
	probe := first
	probe.Network, probe.Name = "default", r.name
	if err := probe.Validate(); err != nil {
		return err
	}
	box, joined, err := r.start(ctx)
	if err != nil {
		return err
	}
	endpoints := joined
	var attached []api.Endpoint
	if !r.host && r.join == "" {
		attached, err = r.attach(ctx, first, box)
		endpoints = attached
	}
	defer func() {
		if undo := r.undo(box, attached); undo != nil {
			fmt.Fprintln(r.Err, "seine: note:", undo)
		}
	}()
	if err == nil {
		switch {
		case r.quiet:
		case r.join != "":
			fmt.Fprintf(r.Err, "seine: %s is in the network namespace of %s\n", r.name, r.join)
		default:
			fmt.Fprint(r.Err, describe(r.name, endpoints))
		}
		err = r.goAhead(box, endpoints)
	}
	if err != nil {
		return err
	}
	if status := box.Wait(); status != 0 {
		return exitStatus{code: status}
	}
	return nil
}

// start makes the sandbox; with --network container: it also gives the endpoints of the container that it joins.
func (r *run) start(ctx context.Context) (*sandbox.Sandbox, []api.Endpoint, error) {
	c := sandbox.Config{Name: r.name, Host: r.host, Stdin: r.In, Stdout: r.Out, Stderr: r.Err}
	var joined []api.Endpoint
	switch {
	case r.host:
	case r.join != "":
		err := r.ask(ctx, "looking for "+r.join, func(ctx context.Context, d *client.Client) error {
			all, err := d.Endpoints(ctx)
			if err == nil {
				joined, err = sandboxOf(all, r.join)
			}
			if err == nil {
				err = r.askNode(ctx, d)
			}
			return err
		})
		if err != nil {
			return nil, nil, err
		}
		c.Join = joined[0].Sandbox.Netns
	default:
		var err error
		if c.Dir, err = r.sandboxes(); err != nil {
			return nil, nil, err
		}
		// A daemon that is not there is found out before namespaces are made, and before their folder is.
		err = r.ask(ctx, "asking the daemon", r.askNode)
		if err != nil {
			return nil, nil, err
		}
		if err := sandbox.Sweep(c.Dir); err != nil {
			fmt.Fprintln(r.Err, "seine: note:", err)
		}
	}
	box, err := sandbox.Start(c)
	if errors.Is(err, sandbox.ErrTaken) {
		return nil, nil, api.Errorf(api.Conflict, fmt.Sprintf("container %q", r.name), "%w; choose another --name", sandbox.ErrTaken)
	}
	return box, joined, err
}

func (r *run) askNode(ctx context.Context, d *client.Client) error {
	n, err := d.Node(ctx)
	r.dns = n.DNS
	return err
}

// attach attaches the sandbox to each of the networks.
func (r *run) attach(ctx context.Context, first api.Endpoint, box *sandbox.Sandbox) ([]api.Endpoint, error) {
	var out []api.Endpoint
	for i, network := range r.networks {
		e := api.Endpoint{Aliases: first.Aliases}
		if i == 0 {
			e = first
		}
		e.Labels = first.Labels
		e.Network, e.Name = network, r.name
		e.Sandbox = api.Sandbox{Netns: box.Netns(), PID: box.PID()}
		err := r.ask(ctx, fmt.Sprintf("attaching %s to %s", r.name, network), func(ctx context.Context, c *client.Client) (err error) {
			e, err = c.PutEndpoint(ctx, e, api.CreateOnly)
			return err
		})
		if err != nil {
			return out, err
		}
		out = append(out, e)
	}
	return out, nil
}

// goAhead has the program start, unless a signal came first.
func (r *run) goAhead(box *sandbox.Sandbox, endpoints []api.Endpoint) error {
	setup := sandbox.Setup{Args: r.args, Hostname: r.hostname}
	if !r.host {
		name := r.name
		if r.join != "" {
			name = endpoints[0].Name
		}
		if setup.Hostname == "" {
			setup.Hostname = hostnameOf(name)
		}
		setup.Files = files(setup.Hostname, name, resolvConf(machineResolvConf(), r.dns, endpoints), endpoints)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != 0 {
		return context.Canceled
	}
	r.box, r.gone = box, true
	return box.Go(setup)
}

func (r *run) brokenBy() syscall.Signal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.broken
}

// undo ends the sandbox and detaches all that is attached to it, by `network connect` too. The daemon does the latter
// by itself when it sees the process end, so what fails here is only worth a note.
func (r *run) undo(box *sandbox.Sandbox, attached []api.Endpoint) error {
	var errs []error
	if !r.host && r.join == "" {
		ctx, cancel := context.WithTimeout(context.Background(), undoTime)
		defer cancel()
		r.setGiveUp(cancel)
		defer r.setGiveUp(nil)
		err := r.ask(ctx, "detaching "+r.name, func(ctx context.Context, c *client.Client) error { return detach(ctx, c, box.Netns(), attached) })
		if err != nil {
			errs = append(errs, fmt.Errorf("not detached: %w; the daemon will do it", err))
		}
	}
	return errors.Join(append(errs, box.Close())...)
}

func (r *run) setGiveUp(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.giveUp = f
}

// detach detaches what was attached, and what else is in the namespace. The former is not looked for in the list: when
// the daemon is at it already, it is in no list any more but still in the kernel; to delete it waits for that. What has
// another revision now is another endpoint, or has changed and is in the list.
func detach(ctx context.Context, c *client.Client, netns string, attached []api.Endpoint) error {
	var errs []error
	tried := map[string]bool{}
	for _, e := range attached {
		err := c.DeleteEndpoint(ctx, e.Network, e.Name, e.Revision)
		switch code := api.CodeOf(err); {
		case code == api.NotFound, code == api.Stale:
			continue
		case code == api.Unavailable, ctx.Err() != nil:
			return err
		}
		errs, tried[e.Key()] = append(errs, err), true
	}
	all, err := c.Endpoints(ctx)
	errs = append(errs, err)
	for _, e := range all {
		if e.Sandbox.Netns != netns || tried[e.Key()] {
			continue
		}
		if err := c.DeleteEndpoint(ctx, e.Network, e.Name, 0); api.CodeOf(err) != api.NotFound {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// catchSignals hands signals on to the program. Before that runs, one that ends programs breaks off what is under way;
// after it ended, one more breaks off the wait for the daemon. The function that it gives ends that.
func (r *run) catchSignals(breakOff func()) func() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range signals {
			r.signal(s.(syscall.Signal), breakOff)
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}

func (r *run) signal(sig syscall.Signal, breakOff func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ends := sig != syscall.SIGUSR1 && sig != syscall.SIGUSR2
	if ends {
		r.ending++
	}
	if ends && r.giveUp != nil && r.ending > 1 { // the first one may be late: the program got it too, and has ended
		r.giveUp()
	}
	if !r.gone {
		if ends && r.broken == 0 {
			r.broken = sig
			breakOff()
		}
		return
	}
	if (sig == syscall.SIGINT || sig == syscall.SIGQUIT) && inForeground() {
		return // from the terminal's keys: the program got it too
	}
	_ = r.box.Signal(sig) // it may have ended
}

// inForeground reports whether the keys of the controlling terminal send signals to us, and so to the program, which is
// in our process group.
func inForeground() bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tty)
	group, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
