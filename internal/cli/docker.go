package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/frontdoor/docker"
)

func (a *app) dockerCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "docker",
		Short: "Set Docker up for Seine, and bring its networks over",
		Long:  "Write what a Docker daemon of this machine needs to work with Seine, and make networks that equal Docker's own. Both show\nfirst what they would do, and do it with --yes only.",
	}, a.dockerSetupCommand(), a.dockerImportCommand())
}

// imported is what is to be done about a network of Docker's.
type imported struct {
	docker.Import
	// State is "make", "there" (a network that equals it is there already), "taken" (another one has its name), "none" (it
	// has no equal), or after --yes "made" or "failed".
	State string `json:"state"`
	Error string `json:"error,omitempty"`
	// Steps are the commands by which containers move over, where Docker's network is in the way.
	Steps []string `json:"steps,omitempty"`
}

func (a *app) dockerImportCommand() *cobra.Command {
	var yes bool
	var socket, from string
	var out *form
	cmd := &cobra.Command{
		Use:   "import [NETWORK...]",
		Short: "Show the networks that equal Docker's own, and make them",
		Long: "Show what equals each network of Docker's here, what of it has no equal, and the commands by which its containers move over;\n" +
			"with --yes make these networks. A range of addresses can't live twice: a bridge network can be made once Docker's own is\n" +
			"removed, from the commands shown or from a file:\n\n" +
			"  docker network inspect $(docker network ls -q) >networks.json\n" +
			"  docker network rm shop\n" +
			"  seine docker import --from networks.json --yes shop",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := a.inspectDocker(cmd.Context(), socket, from)
			if err != nil {
				return err
			}
			all, err := docker.ParseImport(text)
			if err != nil {
				return api.FieldError("", "--from", from, err.Error(), "the output of `docker network inspect`")
			}
			if all, err = chosen(all, args); err != nil {
				return err
			}
			var found []imported
			err = a.ask(cmd.Context(), "comparing networks", func(ctx context.Context, c *client.Client) error {
				found, err = compare(ctx, c, all, from == "")
				return err
			})
			if err == nil && yes {
				err = a.importNetworks(cmd.Context(), found)
			}
			return errors.Join(err, a.printImports(*out, found, yes))
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "make the networks")
	cmd.Flags().StringVar(&socket, "docker-api", docker.DaemonSocket, "`PATH` of the Docker daemon's socket")
	cmd.Flags().StringVar(&from, "from", "", "`FILE` with the output of docker network inspect, in place of asking Docker; - reads it from standard input")
	out = formFlag(cmd, formTable)
	return cmd
}

// inspectDocker gives what `docker network inspect` of all networks prints.
func (a *app) inspectDocker(ctx context.Context, socket, from string) ([]byte, error) {
	switch from {
	case "":
	case "-":
		return io.ReadAll(a.In)
	default:
		return os.ReadFile(from)
	}
	d := docker.NewDaemon(socket)
	var names []struct{ ID string }
	if err := d.Get(ctx, "/networks", &names); err != nil {
		return nil, err
	}
	all := []json.RawMessage{}
	for _, n := range names {
		var one json.RawMessage
		err := d.Get(ctx, "/networks/"+url.PathEscape(n.ID), &one)
		var refused *docker.DaemonError
		if errors.As(err, &refused) && refused.Status == 404 {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return json.Marshal(all)
}

// chosen keeps the networks that were asked for.
func chosen(all []docker.Import, names []string) ([]docker.Import, error) {
	if len(names) == 0 {
		return all, nil
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(i docker.Import) bool { return i.Name == name }) {
			return nil, api.Errorf(api.NotFound, fmt.Sprintf("docker network %q", name), "does not exist")
		}
	}
	return slices.DeleteFunc(all, func(i docker.Import) bool { return !slices.Contains(names, i.Name) }), nil
}

// compare says what is to be done about each network. live says that Docker has them now.
func compare(ctx context.Context, c *client.Client, all []docker.Import, live bool) ([]imported, error) {
	have, err := c.Networks(ctx)
	if err != nil {
		return nil, err
	}
	var out []imported
	for _, i := range all {
		x := imported{Import: i, State: "none"}
		if i.Network != nil {
			x.State = "make"
			if live && i.Network.Driver == "bridge" {
				x.Steps = steps(i)
			}
			at := slices.IndexFunc(have, func(n api.Network) bool { return api.Fold(n.Name) == api.Fold(i.Name) })
			if at >= 0 {
				x.State, x.Steps = "taken", nil
				if equals(have[at], *i.Network) {
					x.State = "there"
				}
			}
		}
		out = append(out, x)
	}
	return out, nil
}

// equals says whether a network is what an import would make, where containers see it.
func equals(have, want api.Network) bool {
	shape := func(n api.Network) (out []string) {
		for _, s := range n.Subnets {
			out = append(out, s.Prefix.String())
		}
		slices.Sort(out)
		return out
	}
	return have.Driver == want.Driver && have.Internal == want.Internal && slices.Equal(shape(have), shape(want))
}

// steps are the commands by which a bridge network and its containers move over.
func steps(i docker.Import) []string {
	var out []string
	name := quote(i.Name)
	for _, c := range i.Containers {
		out = append(out, "docker network disconnect --force "+name+" "+quote(c))
	}
	out = append(out, "docker network rm "+name, createCommand(*i.Network), dockerCreateCommand(*i.Network))
	for _, c := range i.Containers {
		out = append(out, "docker network connect "+name+" "+quote(c))
	}
	return out
}

// createCommand is the command that makes a network.
func createCommand(n api.Network) string {
	args := []string{"seine network create --driver " + n.Driver}
	add := func(flag, value string) { args = append(args, flag+" "+quote(value)) }
	for _, s := range n.Subnets {
		add("--subnet", s.Prefix.String())
		if s.Gateway.IsValid() {
			add("--gateway", s.Gateway.String())
		}
		if s.Range.IsValid() {
			add("--ip-range", s.Range.String())
		}
		for _, r := range s.Reserved {
			add("--reserve", r.String())
		}
	}
	if n.Internal {
		args = append(args, "--internal")
	}
	for _, f := range []struct {
		flag  string
		value *bool
	}{{"--icc", n.ICC}, {"--masquerade", n.Masquerade}} {
		if f.value != nil {
			args = append(args, fmt.Sprintf("%s=%v", f.flag, *f.value))
		}
	}
	if n.MTU != 0 {
		add("--mtu", fmt.Sprint(n.MTU))
	}
	if n.Interface != "" {
		add("--interface", n.Interface)
	}
	for _, k := range slices.Sorted(maps.Keys(n.Options)) {
		add("--opt", k+"="+n.Options[k])
	}
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		add("--label", k+"="+n.Labels[k])
	}
	return strings.Join(append(args, quote(n.Name)), " ")
}

// dockerCreateCommand is the command that gives Docker a network of ours under its name.
func dockerCreateCommand(n api.Network) string {
	args := []string{"docker network create --driver seine --ipam-driver seine"}
	for _, s := range n.Subnets {
		if s.Prefix.Addr().Is6() {
			args = append(args, "--ipv6")
		}
		args = append(args, "--subnet "+s.Prefix.String())
		if s.Gateway.IsValid() {
			args = append(args, "--gateway "+s.Gateway.String())
		}
		if s.Range.IsValid() {
			args = append(args, "--ip-range "+s.Range.String())
		}
	}
	if n.Internal {
		args = append(args, "--internal")
	}
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		args = append(args, "--label "+quote(k+"="+n.Labels[k]))
	}
	return strings.Join(append(args, "--opt "+quote("seine.network="+n.Name), quote(n.Name)), " ")
}

// quote makes one word of a shell of s.
func quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:=@%+,-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// importNetworks makes what can be made, and gives the errors of the rest together.
func (a *app) importNetworks(ctx context.Context, found []imported) error {
	var errs []error
	for i := range found {
		x := &found[i]
		if x.State == "taken" {
			errs = append(errs, api.Errorf(api.Conflict, api.NetworkNoun(x.Name), "is there already and is another one"))
		}
		if x.State != "make" {
			continue
		}
		err := a.ask(ctx, "making "+x.Name, func(ctx context.Context, c *client.Client) error {
			_, err := c.PutNetwork(ctx, *x.Network, api.CreateOnly)
			return err
		})
		if x.State = "made"; err != nil {
			x.State, x.Error = "failed", err.Error()
			errs = append(errs, err)
		} else {
			x.Steps = nil
		}
	}
	return errors.Join(errs...)
}

func (a *app) printImports(f form, found []imported, yes bool) error {
	words := map[string]string{"make": "would be made", "there": "is there already", "taken": "another network has its name", "none": "no equal", "made": "made", "failed": "not made"}
	t := &table{head: []string{"NETWORK", "DRIVER", "SUBNETS", "HERE"}}
	var names, notes, commands []string
	for _, x := range found {
		driver, subnets := "-", "-"
		if x.Network != nil {
			var all []string
			for _, s := range x.Network.Subnets {
				all = append(all, s.Prefix.String())
			}
			driver, subnets = x.Network.Driver, strings.Join(all, ", ")
		}
		t.add(x.Name, driver, subnets, words[x.State])
		names = append(names, x.Name)
		for _, n := range append([]string{x.Reason, x.Error}, x.Notes...) {
			if n != "" {
				notes = append(notes, x.Name+": "+n)
			}
		}
		if len(x.Steps) > 0 {
			commands = append(commands, "", "# "+x.Name+": its range is Docker's as long as Docker's network is there")
			commands = append(commands, x.Steps...)
		}
	}
	if err := a.print(f, map[string]any{"networks": append([]imported{}, found...)}, names, t); err != nil || f != formTable {
		return err
	}
	for _, n := range notes {
		fmt.Fprintln(a.Out, n)
	}
	for _, c := range commands {
		fmt.Fprintln(a.Out, c)
	}
	if !yes && slices.ContainsFunc(found, func(x imported) bool { return x.State == "make" }) {
		fmt.Fprintln(a.Out, "\nNothing was made; --yes makes what can be made now.")
	}
	return nil
}
