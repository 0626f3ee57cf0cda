package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/cli/sandbox"
)

func (a *app) statusCommand() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the state of the daemon",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var n api.Node
			err := a.ask(cmd.Context(), "asking for the state", func(ctx context.Context, c *client.Client) (err error) {
				n, err = c.Node(ctx)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{}
			t.add("Machine:", n.Name)
			t.add("Daemon:", fmt.Sprintf("seined %s at %s, since %s", n.Version, a.socket, n.Since))
			t.add("Holds:", fmt.Sprintf("%d networks, %d endpoints, %d kernel objects (revision %d)", n.Networks, n.Endpoints, n.Objects, n.Revision))
			if len(n.Problems) == 0 {
				t.add("Kernel:", "holds all that is wanted, as far as the daemon knows (seine plan compares)")
			}
			for i, p := range n.Problems {
				t.add([]string{"Problems:", ""}[min(i, 1)], p)
			}
			return a.print(*out, n, []string{n.Name}, t)
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}

func (a *app) planCommand() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:   "plan [NETWORK[/ENDPOINT]]",
		Short: "Show what would change in the kernel, as a diff",
		Long: "Show what the daemon would change in the kernel now to have it hold all that is wanted: + what is missing, ~ what\n" +
			"differs, - what is ours and unwanted. Nothing is changed. The daemon mends such things by itself.",
		Args:              atMost("NETWORK[/ENDPOINT]"),
		ValidArgsFunction: a.completeOwners,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.plan(cmd.Context(), strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.print(*out, p, objects(p), planTable(p))
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}

// plan asks for the plan of a network with its endpoints, of an endpoint, or with "" of all. The noun must exist; one
// that wants nothing of the kernel has an empty plan.
func (a *app) plan(ctx context.Context, noun string) (api.Plan, error) {
	p := api.Plan{Changes: []api.Change{}}
	network, name, isEndpoint := strings.Cut(noun, "/")
	if isEndpoint {
		if _, _, err := splitKey(noun); err != nil {
			return p, err
		}
	}
	err := a.ask(ctx, "comparing with the kernel", func(ctx context.Context, c *client.Client) (err error) {
		switch {
		case isEndpoint:
			if _, err = c.Endpoint(ctx, network, name); err != nil {
				return err
			}
			got, err := c.Plan(ctx, "endpoint/"+noun)
			if err != nil && api.CodeOf(err) == api.NotFound {
				return nil // it wants nothing
			}
			p.Changes = append(p.Changes, got.Changes...)
			return err
		case noun != "":
			if _, err = c.Network(ctx, noun); err != nil {
				return err
			}
		}
		got, err := c.Plan(ctx, "")
		for _, change := range got.Changes {
			if noun == "" || change.Owner == "network/"+noun || strings.HasPrefix(change.Owner, "endpoint/"+noun+"/") {
				p.Changes = append(p.Changes, change)
			}
		}
		return err
	})
	return p, err
}

func objects(p api.Plan) []string {
	var out []string
	for _, c := range p.Changes {
		out = append(out, c.Object)
	}
	return out
}

// planTable writes a plan as a diff.
func planTable(p api.Plan) *table {
	t := &table{}
	for _, c := range p.Changes {
		line := c.Op + " " + c.Object
		if c.Was != "" {
			line += "   was: " + c.Was
		}
		owner := c.Owner
		if owner == "" {
			owner = "nobody"
		}
		t.add(line, "("+owner+")")
	}
	if len(p.Changes) == 0 {
		t.add("nothing would change")
	}
	return t
}

func (a *app) checkCommand() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:   "check [NETWORK[/ENDPOINT]]",
		Short: fmt.Sprintf("Compare what the kernel holds with what it should; exit code %d if that differs", ExitDiffers),
		Long: fmt.Sprintf("Compare what the kernel holds for an endpoint, a network, or everything, with what it should hold. The exit code is\n"+
			"%d if something differs, or if an endpoint is not attached.", ExitDiffers),
		Args:              atMost("NETWORK[/ENDPOINT]"),
		ValidArgsFunction: a.completeOwners,
		RunE: func(cmd *cobra.Command, args []string) error {
			noun := strings.Join(args, "")
			p, err := a.plan(cmd.Context(), noun)
			if err != nil {
				return err
			}
			broken, err := a.broken(cmd.Context(), noun)
			if err != nil {
				return err
			}
			if len(p.Changes) > 0 || len(broken) > 0 {
				a.exit = ExitDiffers
			}
			t := &table{}
			if len(p.Changes) > 0 {
				t = planTable(p)
			} else if len(broken) == 0 {
				t.add("ok: the kernel holds all that is wanted")
			}
			for _, e := range broken {
				t.add("! endpoint "+e.Key(), stateOf(e))
			}
			value := struct {
				api.Plan
				// Endpoints are those that are not attached.
				Endpoints []api.Endpoint `json:"endpoints,omitempty"`
			}{p, broken}
			return a.print(*out, value, objects(p), t)
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}

// broken gives the endpoints, of those that a noun stands for, that are not attached.
func (a *app) broken(ctx context.Context, noun string) ([]api.Endpoint, error) {
	var out []api.Endpoint
	err := a.ask(ctx, "listing endpoints", func(ctx context.Context, c *client.Client) error {
		all, err := c.Endpoints(ctx)
		for _, e := range all {
			if noun != "" && noun != e.Network && noun != e.Key() {
				continue
			}
			if e.Status != nil && e.Status.State != api.Attached {
				out = append(out, e)
			}
		}
		return err
	})
	return out, err
}

func (a *app) doctorCommand() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: fmt.Sprintf("Say what about this machine matters, and what needs somebody; exit code %d if something does", ExitDiffers),
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []api.Finding
			err := a.ask(cmd.Context(), "examining the machine", func(ctx context.Context, c *client.Client) (err error) {
				all, err = c.Doctor(ctx)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{head: []string{"LEVEL", "TOPIC", "FOUND", "DONE"}}
			var topics []string
			for _, f := range all {
				if f.Level == api.LevelProblem {
					a.exit = ExitDiffers
				}
				t.add(f.Level, f.Topic, f.Found, f.Done)
				topics = append(topics, f.Topic)
			}
			return a.print(*out, all, topics, t)
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}

func (a *app) resetCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Remove all that is Seine's from this machine",
		Long: "Remove all endpoints, all networks and all that is Seine's in the kernel, and put back the settings of the machine that\n" +
			"were changed. Programs that run go on without a network. The daemon goes on too. A machine that is in a cluster leaves it\n" +
			"first; where the cluster's store does not answer, another machine has to remove this one (seine node rm).",
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.confirmReset(yes); err != nil {
				return err
			}
			a.warnOfAway(cmd.Context())
			err := a.ask(cmd.Context(), "removing all that is Seine's", func(ctx context.Context, c *client.Client) error { return c.Reset(ctx) })
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Out, "all that is Seine's is removed")
			if dir, err := a.sandboxes(); err == nil { // there are none with a daemon elsewhere
				return sandbox.Sweep(dir)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	return cmd
}

// warnOfAway says what a reset can't do for the other machines of a cluster whose store does not answer.
func (a *app) warnOfAway(ctx context.Context) {
	c, err := a.client()
	if err != nil {
		return // who asks next says so
	}
	if in, err := c.Cluster(ctx); err == nil && in.StoreError != "" {
		fmt.Fprintf(a.Err, "seine: cluster %s can't be told that this machine leaves (%s); want `seine node rm` of it on another machine\n", in.Name, in.StoreError)
	}
}

func (a *app) confirmReset(yes bool) error {
	if yes {
		return nil
	}
	if !isTerminal(a.In) {
		return api.Errorf(api.Invalid, "reset", "needs --yes where nobody can be asked")
	}
	fmt.Fprint(a.Err, "This detaches every container and removes every network of Seine's on this machine. Go on? [y/N] ")
	line, _ := bufio.NewReader(a.In).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return exitStatus{1, errors.New("nothing was changed")}
}

// sandboxes is the folder of the network namespaces that `seine run` makes: beside the daemon's socket.
func (a *app) sandboxes() (string, error) {
	c, err := a.client()
	if err != nil {
		return "", err
	}
	if c.Socket() == "" {
		return "", api.FieldError("", "--socket", a.socket, "is on another machine, as far as we know", "the path of a socket")
	}
	return filepath.Join(filepath.Dir(c.Socket()), "netns"), nil
}
