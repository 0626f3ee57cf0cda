// Package cli is the command line: it turns arguments into calls of the API and answers into tables, JSON or YAML. It
// speaks to the daemon through package client alone; only `seine run` does something itself, in package sandbox.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
)

// ExitDiffers is how `check` ends when something differs, and `doctor` when something needs somebody. The other exit
// codes are those of api.Code.
const ExitDiffers = 7

const exitCodes = `Exit codes:
  0  done
  1  the kernel or the daemon said no
  2  an argument or a field is wrong
  3  there is no such network, endpoint or machine
  4  it is in the way of something: it exists, it is in use, it changed meanwhile, no address is left
  5  this kernel or driver can't do that
  6  the daemon can't be reached, or says to try again
  7  check: something differs; doctor: something needs somebody
"seine run" ends with the exit code of its program; 126 if that can't be run, 127 if it is not found.`

// Streams are where a command reads and writes. What is no file must take several writers at once: `seine run` writes
// beside its program.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// app is what the commands share.
type app struct {
	Streams
	version string
	socket  string
	verbose bool
	// delay is after how long a command that has not come back yet says what it is waiting for.
	delay time.Duration
	// exit is the exit code of a command that did what it was to do, and found something.
	exit int
	// daemon is made by the first call of client.
	daemon *client.Client
}

// Main runs a command line (without the program's name) and gives the exit code. version is the program's own.
func Main(ctx context.Context, version string, args []string, s Streams) int {
	a := &app{Streams: s, version: version, delay: 500 * time.Millisecond}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	cmd, err := root.ExecuteContextC(ctx)
	if a.daemon != nil {
		a.daemon.Close()
	}
	if err == nil {
		return a.exit
	}
	var status exitStatus
	if errors.As(err, &status) {
		if status.err != nil {
			fmt.Fprintln(s.Err, "seine:", status.err)
		}
		return status.code
	}
	fmt.Fprintln(s.Err, "seine:", err)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(s.Err, "See '%s --help'.\n", cmd.CommandPath())
		return api.Invalid.ExitCode()
	}
	return api.CodeOf(err).ExitCode()
}

// usageError is one about the arguments themselves, for which the help helps.
type usageError struct{ error }

// exactArgs wants one argument for each name; the error says which one is missing or too much.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usageError{fmt.Errorf("%s is missing", names[len(args)])}
		}
		return atMost(names...)(cmd, args)
	}
}

// atMost wants no more arguments than there are names.
func atMost(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > len(names) {
			return usageError{fmt.Errorf("argument %q is too much", args[len(names)])}
		}
		return nil
	}
}

// someArgs wants at least one argument.
func someArgs(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError{fmt.Errorf("%s is missing", name)}
		}
		return nil
	}
}

// group makes a command that only has commands below it.
func group(cmd *cobra.Command, below ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(below...)
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		err := fmt.Errorf("command %q is not known", cmd.CommandPath()+" "+args[0])
		if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
			err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(like, " or "))
		}
		return usageError{err}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// exitStatus ends a command with a code that is no api.Code's; err may be nil.
type exitStatus struct {
	code int
	err  error
}

func (e exitStatus) Error() string { return fmt.Sprintf("exit %d: %v", e.code, e.err) }
func (e exitStatus) Unwrap() error { return e.err }

// socketVariable names the environment variable that stands for --socket.
const socketVariable = "SEINE_SOCKET"

func (a *app) root() *cobra.Command {
	root := group(&cobra.Command{
		Use:   "seine",
		Short: "Networks for containers",
		Long: "seine makes networks on this machine and runs programs on them. It speaks to the daemon, seined.\n\n" +
			"  seine run --name web --publish 8080:80 -- python3 -m http.server 80\n" +
			"  seine run -- curl http://web/\n" +
			"  seine status\n\n" + exitCodes,
		SilenceErrors: true,
		SilenceUsage:  true,
	}, a.runCommand(), a.networkCommand(), a.endpointCommand(), a.portsCommand(), a.clusterCommand(), a.nodeCommand(), a.fabricCommand(), a.statusCommand(), a.planCommand(),
		a.checkCommand(), a.doctorCommand(), a.cniCommand(), a.dockerCommand(), a.labCommand(), a.resetCommand(), a.completionCommand(), a.versionCommand())
	root.CompletionOptions.DisableDefaultCmd = true
	address := os.Getenv(socketVariable)
	if address == "" {
		address = client.DefaultSocket
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", address, "`PATH` of the daemon's socket, or http://HOST:PORT; $"+socketVariable+" sets it too")
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "v", false, "say what takes long, also where no terminal is")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true}) // --help says it all
	return root
}

// client gives the client of the daemon.
func (a *app) client() (*client.Client, error) {
	if a.daemon == nil {
		c, err := client.New(a.socket)
		if err != nil {
			return nil, fmt.Errorf("--socket: %w", err)
		}
		a.daemon = c
	}
	return a.daemon, nil
}

// ask calls the daemon, and says what for when that takes long.
func (a *app) ask(ctx context.Context, what string, call func(context.Context, *client.Client) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return a.progress().during(what, func() error { return call(ctx, c) })
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of the program, and of the daemon if it answers",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(a.Out, "seine   %s\n", a.version)
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
			defer cancel()
			c, err := a.client()
			if err != nil {
				return err
			}
			daemon := "does not answer at " + a.socket
			if node, err := c.Node(ctx); err == nil {
				daemon = node.Version
			}
			fmt.Fprintf(a.Out, "seined  %s\n", daemon)
			return nil
		},
	}
}
