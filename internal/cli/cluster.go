package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
)

func (a *app) clusterCommand() *cobra.Command {
	return group(&cobra.Command{Use: "cluster", Short: "Share networks with other machines: found, join, show and leave a cluster",
		Long: "Share networks with other machines. On the first one, then on each other one:\n\n" +
			"  seine cluster init\n" +
			"  seine cluster token                              (prints TOKEN)\n" +
			"  seine cluster join ADDRESS-OF-THE-FIRST --token TOKEN\n\n" +
			"From then on containers on the network \"default\" of each reach each other by name and by address."},
		a.clusterInit(), a.clusterJoin(), a.clusterLeave(), a.clusterStatus(), a.clusterToken())
}

func (a *app) clusterInit() *cobra.Command {
	var q api.ClusterInit
	var address string
	var out *form
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Found a cluster, of which this machine is the first",
		Long: "Found a cluster, of which this machine is the first. Its bridge networks become the cluster's, but for those that were\n" +
			"made with --scope node; what is attached goes on. Other machines must reach four ports of this one: --port and the next\n" +
			"by TCP and UDP, the two after that by TCP (without --etcd).",
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if q.Address, err = optionalAddr("--address", address); err != nil {
				return err
			}
			var c api.Cluster
			err = a.ask(cmd.Context(), "founding the cluster", func(ctx context.Context, d *client.Client) (err error) {
				c, err = d.InitCluster(ctx, q)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{}
			t.add(fmt.Sprintf("cluster %s is founded; `seine cluster token` lets other machines join", c.Name))
			return a.print(*out, c, []string{c.Name}, t)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&q.Name, "name", "", "`NAME` of the cluster (default \"default\")")
	fl.StringVar(&address, "address", "", "this machine's own `ADDRESS` that the others reach it at (default that of the link with the default route)")
	portFlag(cmd, &q.Port)
	fl.StringArrayVar(&q.Etcd, "etcd", nil, "`URL` of a member of an existing etcd, to be used in place of one of our own; may be repeated")
	fl.StringVar(&q.EtcdCA, "etcd-ca", "", "PEM `FILE` on the daemon's machine with the authorities that etcd's certificate is checked by")
	fl.StringVar(&q.EtcdCert, "etcd-cert", "", "PEM `FILE` on the daemon's machine with the certificate that etcd is shown")
	fl.StringVar(&q.EtcdKey, "etcd-key", "", "PEM `FILE` on the daemon's machine with its key")
	out = formFlag(cmd, formTable)
	return cmd
}

func portFlag(cmd *cobra.Command, into *uint16) {
	cmd.Flags().Uint16Var(into, "port", 0, fmt.Sprintf("first `PORT` of this machine's four (default %d)", api.ClusterPort))
}

// optionalAddr reads an address of either family; "" is none.
func optionalAddr(flag, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return addr, api.FieldError("", flag, s, "is no address", "one of this machine's own, such as 192.0.2.1 or 2001:db8::1")
	}
	return addr, nil
}

func (a *app) clusterJoin() *cobra.Command {
	var q api.ClusterJoin
	var self, file string
	var out *form
	cmd := &cobra.Command{
		Use:   "join ADDRESS[:PORT]",
		Short: "Join the cluster that the machine with an address is in",
		Long: "Join the cluster that the machine with an address is in. `seine cluster token` there prints the token. Who reads the\n" +
			"list of this machine's processes sees what stands on a command line: --token-file and --token - keep it out of there.",
		Args:              exactArgs("ADDRESS[:PORT]"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			q.Address = args[0]
			if q.Self, err = optionalAddr("--address", self); err != nil {
				return err
			}
			if q.Token, err = a.readToken(q.Token, file); err != nil {
				return err
			}
			var c api.Cluster
			err = a.ask(cmd.Context(), "joining the cluster", func(ctx context.Context, d *client.Client) (err error) {
				c, err = d.JoinCluster(ctx, q)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{}
			t.add(fmt.Sprintf("this machine is in cluster %s; `seine node ls` lists its machines", c.Name))
			return a.print(*out, c, []string{c.Name}, t)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&q.Token, "token", "", "`TOKEN` that lets this machine in; - reads it from standard input")
	fl.StringVar(&file, "token-file", "", "`FILE` that the token is read from")
	cmd.MarkFlagsMutuallyExclusive("token", "token-file")
	fl.StringVar(&self, "address", "", "this machine's own `ADDRESS` that the others reach it at (default the one that it reaches the cluster from)")
	portFlag(cmd, &q.Port)
	_ = cmd.RegisterFlagCompletionFunc("token", cobra.NoFileCompletions) // the flag is there
	out = formFlag(cmd, formTable)
	return cmd
}

// readToken gives the token, from where it is to be read.
func (a *app) readToken(token, file string) (string, error) {
	const most = 4 << 10
	in := a.In
	switch {
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", api.FieldError("", "--token-file", file, err.Error(), "a file with what `seine cluster token` prints")
		}
		defer f.Close()
		in = f
	case token == "":
		return "", usageError{fmt.Errorf("--token is missing; `seine cluster token` on a machine of the cluster prints one")}
	case token != "-":
		return token, nil
	}
	line, err := bufio.NewReader(io.LimitReader(in, most)).ReadString('\n')
	if line = strings.TrimSpace(line); line == "" {
		return "", api.Errorf(api.Invalid, "token", "could not be read (%v); want what `seine cluster token` prints", err)
	}
	return line, nil
}

func (a *app) clusterLeave() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take this machine out of its cluster",
		Long: "Take this machine out of its cluster. What is attached goes on: networks of the cluster that have endpoints here stay\n" +
			"for as long as they do, on this machine alone.",
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := a.ask(cmd.Context(), "leaving the cluster", func(ctx context.Context, c *client.Client) error { return c.LeaveCluster(ctx, force) })
			if err == nil {
				fmt.Fprintln(a.Out, "this machine is in no cluster")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "leave though the cluster's store does not answer; another machine has to remove this one then (seine node rm)")
	return cmd
}

func (a *app) clusterStatus() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster that this machine is in, as it sees it",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var c api.Cluster
			var nodes []api.Node
			err := a.ask(cmd.Context(), "asking for the cluster", func(ctx context.Context, d *client.Client) (err error) {
				if c, err = d.Cluster(ctx); err == nil {
					nodes, err = d.Nodes(ctx)
				}
				return err
			})
			if err != nil {
				return err
			}
			return a.print(*out, c, []string{c.Name}, clusterTable(c, nodes))
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}

func clusterTable(c api.Cluster, nodes []api.Node) *table {
	names, alive, self := map[string]string{}, 0, c.Node
	for _, n := range nodes {
		names[n.ID] = n.Name
		if n.Health == api.Alive {
			alive++
		}
		if n.ID == c.Node {
			self = n.Name
		}
	}
	t := &table{}
	t.add("Cluster:", fmt.Sprintf("%s (%s)", c.Name, c.ID))
	t.add("This machine:", fmt.Sprintf("%s (%s)", self, c.Node))
	t.add("Machines:", fmt.Sprintf("%d, of which %d answer", len(nodes), alive))
	state := "answers"
	if c.StoreError != "" {
		state = "does not answer: " + c.StoreError
	}
	t.add("Store:", fmt.Sprintf("%s at %s; %s", c.Store, strings.Join(c.Endpoints, ", "), state))
	var members []string
	for _, id := range c.Members {
		if names[id] != "" {
			id = names[id]
		}
		members = append(members, id)
	}
	if slices.Sort(members); len(members) > 0 {
		t.add("Members:", strings.Join(members, ", "))
	}
	for i, name := range slices.Sorted(maps.Keys(c.Problems)) {
		t.add([]string{"Problems:", ""}[min(i, 1)], c.Problems[name])
	}
	return t
}

func (a *app) clusterToken() *cobra.Command {
	var rotate bool
	var out *form
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Print a new token, by which machines may join within a day",
		Long:  "Print a new token, by which machines may join within a day. Whoever has it can join: keep it as a secret.",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var tok api.ClusterToken
			err := a.ask(cmd.Context(), "making a token", func(ctx context.Context, c *client.Client) (err error) {
				tok, err = c.ClusterToken(ctx, rotate)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{}
			t.add(tok.Token)
			return a.print(*out, tok, []string{tok.Token}, t)
		},
	}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "end the tokens of before")
	out = formFlag(cmd, formTable)
	return cmd
}

func (a *app) nodeCommand() *cobra.Command {
	return group(&cobra.Command{Use: "node", Short: "List, show, drain and remove the machines of the cluster"},
		a.nodeList(), a.nodeInspect(), a.nodeDrain("drain", "Mark machines to be left alone by what places containers", true),
		a.nodeDrain("undrain", "Take the mark of drain away from machines", false), a.nodeRemove())
}

func (a *app) nodeList() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the machines of the cluster; without one, this machine",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []api.Node
			err := a.ask(cmd.Context(), "listing machines", func(ctx context.Context, c *client.Client) (err error) {
				all, err = c.Nodes(ctx)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{head: []string{"NAME", "HEALTH", "ADDRESSES", "NETWORKS", "ENDPOINTS", "VERSION", "NOTES"}}
			var names []string
			for _, n := range all {
				t.add(n.Name, string(n.Health), list(n.Addresses), strconv.Itoa(n.Networks), strconv.Itoa(n.Endpoints), n.Version, nodeNotes(n))
				names = append(names, n.Name)
			}
			return a.print(*out, all, names, t)
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}

func nodeNotes(n api.Node) string {
	if n.Drained {
		return "drained"
	}
	return ""
}

func (a *app) nodeInspect() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:               "inspect NAME",
		Short:             "Show all about a machine of the cluster",
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.completeNodes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var n api.Node
			err := a.ask(cmd.Context(), "reading node "+args[0], func(ctx context.Context, c *client.Client) (err error) {
				n, err = c.NodeNamed(ctx, args[0])
				return err
			})
			if err != nil {
				return err
			}
			t := &table{}
			t.add("Name:", n.Name)
			t.add("ID:", n.ID)
			t.add("Health:", string(n.Health))
			t.add("Addresses:", list(n.Addresses))
			t.add("Holds:", fmt.Sprintf("%d networks, %d endpoints", n.Networks, n.Endpoints))
			t.add("Daemon:", "seined "+n.Version)
			if notes := nodeNotes(n); notes != "" {
				t.add("Notes:", notes)
			}
			return a.print(*out, n, []string{n.Name}, t)
		},
	}
	out = formFlag(cmd, formYAML)
	return cmd
}

func (a *app) nodeDrain(verb, short string, drained bool) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " NAME...",
		Short:             short,
		Args:              someArgs("NAME"),
		ValidArgsFunction: a.completeNodes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(name string) error {
				err := a.ask(cmd.Context(), "marking node "+name, func(ctx context.Context, c *client.Client) error {
					return c.DrainNode(ctx, name, drained)
				})
				if err == nil {
					fmt.Fprintf(a.Out, "node %s %sed\n", name, verb)
				}
				return err
			})
		},
	}
}

func (a *app) nodeRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove"},
		Short:   "Take machines out of the cluster that are off or cut off for good",
		Long: "Take machines out of the cluster that are off or cut off for good: their addresses are given to others. One that\n" +
			"answers had better leave (`seine cluster leave` there).",
		Args:              someArgs("NAME"),
		ValidArgsFunction: a.completeNodes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(name string) error {
				err := a.ask(cmd.Context(), "removing node "+name, func(ctx context.Context, c *client.Client) error {
					return c.RemoveNode(ctx, name, force)
				})
				if err == nil {
					fmt.Fprintf(a.Out, "node %s removed\n", name)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove machines that answer, too")
	return cmd
}

func (a *app) fabricCommand() *cobra.Command {
	return group(&cobra.Command{Use: "fabric", Short: "Show how packets get to other machines"}, a.fabricStatus())
}

func (a *app) fabricStatus() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:   "status",
		Short: "List which way packets take to each machine in each network, and why",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []api.Path
			err := a.ask(cmd.Context(), "listing ways", func(ctx context.Context, c *client.Client) (err error) {
				all, err = c.Paths(ctx)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{head: []string{"NETWORK", "NODE", "FABRIC", "REASON"}}
			var names []string
			for _, p := range all {
				reason := p.Reason
				if p.Error != "" {
					reason = "no way: " + strings.ReplaceAll(p.Error, "\n", "; ")
				}
				t.add(p.Network, p.Node, p.Fabric, reason)
				names = append(names, p.Network+"/"+p.Node)
			}
			return a.print(*out, all, names, t)
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}

// completeNodes completes up to most names of machines; -1 is any number.
func (a *app) completeNodes(most int) completeFunc {
	return func(cmd *cobra.Command, args []string, _ string) (out []string, _ cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
		defer cancel()
		if c, err := a.client(); err == nil {
			all, _ := c.Nodes(ctx)
			for _, n := range all {
				out = append(out, n.Name)
			}
		}
		return without(out, args), cobra.ShellCompDirectiveNoFileComp
	}
}
