package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
)

// endpointFlags are what an endpoint can be given on the command line.
type endpointFlags struct {
	ip4, ip6, mac           string
	aliases, publish, lbels []string
}

func (f *endpointFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.ip4, "ip", "", "IPv4 `ADDRESS` (default a free one)")
	fl.StringVar(&f.ip6, "ip6", "", "IPv6 `ADDRESS` (default a free one)")
	fl.StringVar(&f.mac, "mac", "", "hardware `ADDRESS` (default from the IP address)")
	fl.StringArrayVar(&f.aliases, "alias", nil, "a further DNS `NAME`; may be repeated")
	fl.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port, as `[IP:]HOST:CONTAINER[/PROTOCOL]`; may be repeated")
	fl.StringArrayVarP(&f.lbels, "label", "l", nil, "`KEY=VALUE` of your own; may be repeated")
}

// apply puts the flags into an endpoint.
func (f *endpointFlags) apply(e *api.Endpoint) error {
	for _, x := range []struct {
		flag, value string
		v4          bool
	}{{"--ip", f.ip4, true}, {"--ip6", f.ip6, false}} {
		if x.value == "" {
			continue
		}
		addr, err := parseAddr(x.flag, x.value, x.v4)
		if err != nil {
			return err
		}
		e.Addresses = append(e.Addresses, addr)
	}
	e.MAC, e.Aliases = f.mac, f.aliases
	for _, s := range f.publish {
		p, err := parsePort(s)
		if err != nil {
			return err
		}
		e.Ports = append(e.Ports, p)
	}
	if len(f.lbels) > 0 {
		var err error
		if e.Labels, err = parsePairs("--label", f.lbels); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) networkConnect() *cobra.Command {
	var f endpointFlags
	var out *form
	cmd := &cobra.Command{
		Use:   "connect NETWORK CONTAINER",
		Short: "Attach a container that runs to one more network",
		Long: "Attach a container that runs to one more network. CONTAINER is the name under which it is on another one, or\n" +
			"that one too, as NETWORK/NAME, where several containers have the name.",
		Args:              exactArgs("NETWORK", "CONTAINER"),
		ValidArgsFunction: a.completeConnect,
		RunE: func(cmd *cobra.Command, args []string) error {
			e := api.Endpoint{Network: args[0], Name: args[1][strings.LastIndex(args[1], "/")+1:]}
			if err := f.apply(&e); err != nil {
				return err
			}
			err := a.ask(cmd.Context(), fmt.Sprintf("attaching %s to %s", e.Name, e.Network), func(ctx context.Context, c *client.Client) error {
				all, err := c.Endpoints(ctx)
				if err != nil {
					return err
				}
				box, err := sandboxOf(all, args[1])
				if err != nil {
					return err
				}
				e.Sandbox = box[0].Sandbox
				e.Sandbox.Interface = "" // that of the other network is taken
				e, err = c.PutEndpoint(ctx, e, api.CreateOnly)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{}
			line := "endpoint " + e.Key() + " attached"
			if e.Sandbox.Interface != "" { // some drivers make none
				line += " as " + e.Sandbox.Interface + ": " + list(e.Addresses)
			}
			t.add(line)
			return a.print(*out, e, []string{e.Key()}, t)
		},
	}
	f.register(cmd)
	out = formFlag(cmd, formTable)
	return cmd
}

// sandboxOf gives the endpoints of the container of that name, by index. There is at least one, and all are in one
// sandbox; NETWORK/NAME picks the sandbox of one endpoint.
func sandboxOf(all []api.Endpoint, container string) ([]api.Endpoint, error) {
	noun := fmt.Sprintf("container %q", container)
	network, name, picked := strings.Cut(container, "/")
	if !picked {
		network, name = "", container
	}
	var named []api.Endpoint
	for _, e := range all {
		if e.Name == name && (network == "" || e.Network == network) && e.Sandbox.Netns != "" {
			named = append(named, e)
		}
	}
	if len(named) == 0 {
		return nil, api.Errorf(api.NotFound, noun, "is on no network")
	}
	netns := named[0].Sandbox.Netns
	for _, e := range named {
		if e.Sandbox.Netns != netns {
			return nil, api.Errorf(api.Conflict, noun, "is the name of several: %s is in %s, %s in %s",
				named[0].Key(), netns, e.Key(), e.Sandbox.Netns)
		}
	}
	out := slices.DeleteFunc(slices.Clone(all), func(e api.Endpoint) bool { return e.Sandbox.Netns != netns })
	slices.SortStableFunc(out, func(x, y api.Endpoint) int { return x.Index - y.Index })
	return out, nil
}

func (a *app) networkDisconnect() *cobra.Command {
	return &cobra.Command{
		Use:               "disconnect NETWORK CONTAINER",
		Short:             "Detach a container from a network",
		Args:              exactArgs("NETWORK", "CONTAINER"),
		ValidArgsFunction: a.completeDisconnect,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.removeEndpoint(cmd.Context(), args[0], args[1])
		},
	}
}

func (a *app) removeEndpoint(ctx context.Context, network, name string) error {
	err := a.ask(ctx, fmt.Sprintf("detaching %s from %s", name, network), func(ctx context.Context, c *client.Client) error {
		return c.DeleteEndpoint(ctx, network, name, 0)
	})
	if err == nil {
		fmt.Fprintf(a.Out, "endpoint %s/%s detached\n", network, name)
	}
	return err
}

func (a *app) endpointCommand() *cobra.Command {
	return group(&cobra.Command{Use: "endpoint", Aliases: []string{"ep"}, Short: "Show and detach endpoints"},
		a.endpointList(), a.endpointInspect(), &cobra.Command{
			Use:               "rm NETWORK/NAME...",
			Aliases:           []string{"remove"},
			Short:             "Detach endpoints",
			Args:              someArgs("NETWORK/NAME"),
			ValidArgsFunction: a.completeEndpoints(-1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.each(args, func(key string) error {
					network, name, err := splitKey(key)
					if err != nil {
						return err
					}
					return a.removeEndpoint(cmd.Context(), network, name)
				})
			},
		})
}

func (a *app) endpointList() *cobra.Command {
	var out *form
	var network string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the endpoints",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []api.Endpoint
			err := a.ask(cmd.Context(), "listing endpoints", func(ctx context.Context, c *client.Client) (err error) {
				if network != "" {
					all, err = c.NetworkEndpoints(ctx, network)
				} else {
					all, err = c.Endpoints(ctx)
				}
				return err
			})
			if err != nil {
				return err
			}
			t := &table{head: []string{"ENDPOINT", "CONTAINER", "STATE", "ADDRESSES", "INTERFACE", "PORTS"}}
			var keys []string
			for _, e := range all {
				t.add(e.Key(), e.ContainerName(), stateOf(e), list(e.Addresses), e.Sandbox.Interface, list(e.Ports))
				keys = append(keys, e.Key())
			}
			return a.print(*out, all, keys, t)
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "only those of this network, by `NAME`")
	_ = cmd.RegisterFlagCompletionFunc("network", a.completeNetworks(-1)) // the flag is there
	out = formFlag(cmd, formTable)
	return cmd
}

// stateOf is an endpoint's state with its cause.
func stateOf(e api.Endpoint) string {
	switch {
	case e.Status == nil:
		return ""
	case e.Status.Error != "":
		return string(e.Status.State) + ": " + e.Status.Error
	}
	return string(e.Status.State)
}

func (a *app) endpointInspect() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:               "inspect NETWORK/NAME",
		Short:             "Show all about an endpoint",
		Args:              exactArgs("NETWORK/NAME"),
		ValidArgsFunction: a.completeEndpoints(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			network, name, err := splitKey(args[0])
			if err != nil {
				return err
			}
			var e api.Endpoint
			err = a.ask(cmd.Context(), "reading endpoint "+args[0], func(ctx context.Context, c *client.Client) (err error) {
				e, err = c.Endpoint(ctx, network, name)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{}
			t.add("Endpoint:", e.Key())
			t.add("Container:", e.ContainerName())
			t.add("State:", stateOf(e))
			t.add("Addresses:", list(e.Addresses))
			t.add("Interface:", strings.TrimPrefix(e.Sandbox.Interface+" in "+e.Sandbox.Netns, " "))
			t.add("Ports:", list(e.Ports))
			t.add("Created:", e.Created)
			return a.print(*out, e, []string{e.Key()}, t)
		},
	}
	out = formFlag(cmd, formYAML)
	return cmd
}

func (a *app) portsCommand() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:   "ports",
		Short: "List the published ports",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []api.PublishedPort
			err := a.ask(cmd.Context(), "listing ports", func(ctx context.Context, c *client.Client) (err error) {
				all, err = c.Ports(ctx)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{head: []string{"MACHINE", "PROTOCOL", "ENDPOINT", "CONTAINER", "PORT", "STATE"}}
			var names []string
			for _, p := range all {
				at := publishedAt(p.Port)
				t.add(at, p.Protocol, p.Network+"/"+p.Endpoint, p.Container, fmt.Sprint(p.ContainerPort), string(p.State))
				names = append(names, at+"/"+p.Protocol)
			}
			return a.print(*out, all, names, t)
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}
