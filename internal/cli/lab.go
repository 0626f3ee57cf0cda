package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cli/lab"
	"github.com/seine-net/seine/internal/cli/sandbox"
)

func (a *app) labCommand() *cobra.Command {
	name := lab.DefaultName
	cmd := group(&cobra.Command{
		Use:   "lab",
		Short: "Make machines to try things on: network namespaces with a daemon each",
		Long: "Make machines of network namespaces on this one, with a daemon each, on a network of their own that can be cut. Nothing of it is\n" +
			"in this machine's network, and nothing stays after \"down\". It needs root and the programs ip and nft.",
		Example: "  seine lab up --hosts 3\n" +
			"  seine lab exec h1 -- seine run --name web -- python3 -m http.server 80\n" +
			"  seine lab cut h1 h2\n" +
			"  seine lab down",
	}, a.labUpCommand(&name), a.labExecCommand(&name), a.labCutCommand(&name), a.labHealCommand(&name), a.labRestartCommand(&name),
		a.labListCommand(&name), a.labDownCommand(&name), labDaemonCommand())
	cmd.PersistentFlags().StringVar(&name, "name", name, "`NAME` of the lab, of which there may be several")
	return cmd
}

// seinedFlag gives a command the daemon's file.
func seinedFlag(cmd *cobra.Command) *string {
	path := "seined"
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), path)
		if _, err := exec.LookPath(beside); err == nil {
			path = beside
		}
	}
	if found, err := exec.LookPath(path); err == nil {
		path = found
	}
	return cmd.Flags().String("seined", path, "the daemon's `FILE`")
}

func (a *app) labUpCommand(name *string) *cobra.Command {
	var spec lab.Spec
	var only4, only6, alone bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make a lab, or what is missing of it",
		Long: "Make a lab: hosts h1, h2 … with a network that leads nowhere else, a daemon on each, and one cluster of all. What is\n" +
			"there already stays; more hosts can be added, and daemons that ended are started again.",
		Args: exactArgs(),
	}
	fl := cmd.Flags()
	fl.IntVar(&spec.Hosts, "hosts", 3, "`NUMBER` of hosts")
	fl.BoolVar(&only4, "ipv4", false, "no IPv6 between the hosts")
	fl.BoolVar(&only6, "ipv6", false, "no IPv4 between the hosts")
	fl.BoolVar(&spec.Routed, "routed", false, "each host in a subnet of its own, with a router between them; otherwise all are on one Ethernet")
	fl.BoolVar(&alone, "no-cluster", false, "leave each host on its own; otherwise they are one cluster")
	program := seinedFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if only4 && only6 {
			return usageError{errors.New("--ipv4 and --ipv6 exclude each other; with neither the hosts have both")}
		}
		spec.Name, spec.IPv4, spec.IPv6, spec.Cluster = *name, !only6, !only4, !alone
		began := time.Now()
		err := a.progress().during("making the lab", func() error {
			return lab.Up(cmd.Context(), spec, *program, func(line string) { fmt.Fprintln(a.Out, line) })
		})
		if err == nil {
			fmt.Fprintf(a.Out, "lab %q is up (%.1f s); try: seine lab%s exec h1 -- seine status\n", *name, time.Since(began).Seconds(), labFlag(*name))
		}
		return err
	}
	return cmd
}

// labFlag is what a command line needs to mean a lab.
func labFlag(name string) string {
	if name == lab.DefaultName {
		return ""
	}
	return " --name " + name
}

func (a *app) labExecCommand(name *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec HOST [--] PROGRAM [ARGUMENT...]",
		Short: "Run a program on a host",
		Long: "Run a program in the network of a host, with the host's daemon as the one that seine asks. It sees this machine's files and\n" +
			"processes. The program \"seine\" is this one.",
		Example: "  seine lab exec h2 -- seine status\n  seine lab exec h1 -- ping -c 1 198.18.0.2",
		Args: func(_ *cobra.Command, args []string) error {
			_, err := execArgs(args)
			return err
		},
		RunE: func(_ *cobra.Command, args []string) error {
			words, err := execArgs(args)
			if err != nil {
				return err
			}
			path, err := os.Executable()
			if words[0] != "seine" || err != nil {
				var status int
				if path, status, err = sandbox.Lookup(words[0]); err != nil {
					return exitStatus{status, err}
				}
			}
			return lab.Exec(*name, args[0], path, words)
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows the host is the program's
	return cmd
}

// execArgs gives the program and its arguments, which follow the host.
func execArgs(args []string) ([]string, error) {
	if len(args) == 0 {
		return nil, usageError{errors.New("HOST is missing")}
	}
	words := args[1:]
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 0 {
		return nil, usageError{errors.New("PROGRAM is missing")}
	}
	return words, nil
}

func (a *app) labCutCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "cut HOST [HOST]",
		Short: "Drop all packets between two hosts, or between one and all others",
		Args: func(cmd *cobra.Command, args []string) error {
			return errors.Join(someArgs("HOST")(cmd, args), atMost("HOST", "HOST")(cmd, args))
		},
		RunE: func(cmd *cobra.Command, args []string) error { return lab.Cut(cmd.Context(), *name, args) },
	}
}

func (a *app) labHealCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "heal [HOST [HOST]]",
		Short: "Undo cut, between two hosts, one and all others, or everywhere",
		Args:  atMost("HOST", "HOST"),
		RunE:  func(cmd *cobra.Command, args []string) error { return lab.Heal(cmd.Context(), *name, args) },
	}
}

func (a *app) labRestartCommand(name *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restart HOST",
		Short: "Start the daemon of a host again, also one that was killed",
		Args:  exactArgs("HOST"),
	}
	program := seinedFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return lab.Restart(cmd.Context(), *name, args[0], *program)
	}
	return cmd
}

func (a *app) labListCommand(name *string) *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the hosts of all labs, or of the one that --name names",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			labs, err := lab.Names()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("name") {
				if !slices.Contains(labs, *name) {
					return api.Errorf(api.NotFound, fmt.Sprintf("lab %q", *name), "is not there; make it with `seine lab up`")
				}
				labs = []string{*name}
			}
			all, names := []lab.Host{}, []string{}
			t := &table{head: []string{"LAB", "HOST", "ADDRESSES", "DAEMON", "CUT OFF FROM", "LOG"}}
			for _, l := range labs {
				x, err := lab.Open(l)
				if err != nil {
					fmt.Fprintln(a.Err, "seine: note:", err)
					continue
				}
				hosts, err := x.List(cmd.Context())
				if err != nil {
					return err
				}
				for _, h := range hosts {
					daemon := "does not run"
					if h.PID != 0 {
						daemon = "process " + strconv.Itoa(h.PID)
					}
					t.add(h.Lab, h.Name, list(h.Addresses), daemon, strings.Join(h.Cut, ", "), h.Log)
					names = append(names, h.Name)
				}
				all = append(all, hosts...)
			}
			return a.print(*out, all, names, t)
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}

func (a *app) labDownCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove a lab with all that is in it",
		Long: "Remove a lab: its daemons, its network and its folder. Programs that were started on its hosts go on, without a network;\n" +
			"they are named.",
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.progress().during("removing the lab", func() error {
				return lab.Down(*name, func(line string) { fmt.Fprintln(a.Err, "seine: note:", line) })
			})
		},
	}
}

func labDaemonCommand() *cobra.Command {
	return &cobra.Command{
		Use:    lab.DaemonCommand + " LAB HOST PROGRAM",
		Hidden: true,
		Args:   exactArgs("LAB", "HOST", "PROGRAM"),
		RunE:   func(_ *cobra.Command, args []string) error { return lab.Become(args[0], args[1], args[2]) },
	}
}
