package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
)

func (a *app) networkCommand() *cobra.Command {
	return group(&cobra.Command{Use: "network", Aliases: []string{"net"}, Short: "Make, show, change and remove networks"},
		a.networkCreate(), a.networkSet(), a.networkList(), a.networkInspect(), a.networkRemove(), a.networkDrivers(), a.networkConnect(), a.networkDisconnect())
}

// networkFlags are what a network can be given on the command line.
type networkFlags struct {
	driver, ipam, iface              string
	subnets, gateways, ranges        []string
	reserve, aliases, options        []string
	labels, ipamOptions              []string
	ipv4, ipv6, internal, icc, masqu bool
	mtu                              int
	scope, fabric                    string
	encrypt, broadcast               bool
}

func (f *networkFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVarP(&f.driver, "driver", "d", "", "`NAME` of how containers get their interface: bridge, ptp, macvlan, ipvlan, docker:PLUGIN, … (default bridge; seine network drivers)")
	fl.StringArrayVar(&f.subnets, "subnet", nil, "`RANGE` of addresses, at most one of each family (default from the daemon's pools)")
	fl.StringArrayVar(&f.gateways, "gateway", nil, "`ADDRESS` of the way out in a subnet: the machine's (default the first); the router's with macvlan, ipvlan, vlan")
	fl.StringArrayVar(&f.ranges, "ip-range", nil, "`RANGE`, a part of a subnet, that addresses are given out from (default all)")
	fl.StringArrayVar(&f.reserve, "reserve", nil, "`ADDRESS` that is given out only on request; may be repeated")
	fl.StringArrayVar(&f.aliases, "alias", nil, "a further `NAME` of the network in look-ups, as in web.NAME; may be repeated")
	fl.BoolVar(&f.ipv4, "ipv4", true, "have IPv4, where no subnet says so")
	fl.BoolVar(&f.ipv6, "ipv6", true, "have IPv6, where no subnet says so")
	fl.BoolVar(&f.internal, "internal", false, "no way out of the network")
	fl.BoolVar(&f.icc, "icc", true, "let its containers reach each other")
	fl.BoolVar(&f.masqu, "masquerade", true, "hide containers' addresses behind the machine's on the way out")
	fl.IntVar(&f.mtu, "mtu", 0, "`BYTES` (default that of the machine's way out, or of the parent)")
	fl.StringVar(&f.iface, "interface", "", "`NAME` of the bridge on the machine (default from the network's name)")
	fl.StringArrayVar(&f.options, "opt", nil, "`KEY=VALUE` for the driver, such as parent=eth0; may be repeated (seine network drivers NAME)")
	fl.StringVar(&f.ipam, "ipam", "", "`NAME` of who gives out addresses: docker:PLUGIN (default the daemon)")
	fl.StringArrayVar(&f.ipamOptions, "ipam-opt", nil, "`KEY=VALUE` for the IPAM plugin; may be repeated")
	fl.StringVar(&f.scope, "scope", "", "who knows the network: node or cluster (default cluster for a bridge, on a machine that is in one)")
	fl.StringVar(&f.fabric, "fabric", "", "`NAME` of how packets get to other machines: auto, hostgw, vxlan, wireguard (default auto)")
	fl.BoolVar(&f.encrypt, "encrypt", false, "encrypt packets between machines")
	fl.BoolVar(&f.broadcast, "broadcast", false, "carry broadcast and multicast between machines")
	fl.StringArrayVarP(&f.labels, "label", "l", nil, "`KEY=VALUE` of your own; may be repeated")
	for flag, values := range map[string][]string{"scope": {"node", "cluster"}, "fabric": {"auto", "hostgw", "vxlan", "wireguard"}} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // the flags are there
	}
}

// apply puts the flags that were given into a network.
func (f *networkFlags) apply(cmd *cobra.Command, n *api.Network) error {
	given := cmd.Flags().Changed
	if given("driver") {
		n.Driver = f.driver
	}
	if given("ipam") {
		n.IPAM = f.ipam
	}
	if given("interface") {
		n.Interface = f.iface
	}
	if given("mtu") {
		n.MTU = f.mtu
	}
	for _, alias := range f.aliases {
		if !slices.Contains(n.Aliases, alias) {
			n.Aliases = append(n.Aliases, alias)
		}
	}
	if given("internal") {
		n.Internal = f.internal
	}
	if given("icc") {
		n.ICC = &f.icc
	}
	if given("masquerade") {
		n.Masquerade = &f.masqu
	}
	if given("scope") {
		n.Scope = api.Scope(f.scope)
	}
	if given("fabric") {
		n.Fabric = f.fabric
	}
	if given("encrypt") {
		n.Encrypt = f.encrypt
	}
	if given("broadcast") {
		n.Broadcast = f.broadcast
	}
	if given("ipv4") || given("ipv6") {
		switch {
		case f.ipv4 && f.ipv6:
			n.Family = api.Dual
		case f.ipv4:
			n.Family = api.IPv4
		case f.ipv6:
			n.Family = api.IPv6
		default:
			return api.FieldError("", "--ipv4", false, "leaves no address family beside --ipv6=false", "at least one of the two")
		}
	}
	for _, p := range []struct {
		flag string
		args []string
		into *map[string]string
	}{{"--opt", f.options, &n.Options}, {"--ipam-opt", f.ipamOptions, &n.IPAMOptions}, {"--label", f.labels, &n.Labels}} {
		pairs, err := parsePairs(p.flag, p.args)
		if err != nil {
			return err
		}
		if len(pairs) > 0 {
			all := maps.Clone(*p.into)
			if all == nil {
				all = map[string]string{}
			}
			maps.Copy(all, pairs)
			*p.into = all
		}
	}
	return f.applySubnets(n)
}

// applySubnets reads the subnets, and puts gateways, ranges and reserved addresses into the subnet that holds them.
func (f *networkFlags) applySubnets(n *api.Network) error {
	if len(f.subnets) > 0 {
		n.Subnets = nil
	}
	for _, s := range f.subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return api.FieldError("", "--subnet", s, "is no address range", "a range such as 10.1.0.0/24 or fd00:1::/64")
		}
		n.Subnets = append(n.Subnets, api.Subnet{Prefix: p})
	}
	for _, s := range f.gateways {
		sub, addr, err := subnetOf(n, "--gateway", s)
		if err != nil {
			return err
		}
		sub.Gateway = addr
	}
	for _, s := range f.ranges {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return api.FieldError("", "--ip-range", s, "is no address range", "a part of a --subnet such as 10.1.0.128/25")
		}
		sub, _, err := subnetOf(n, "--ip-range", p.Addr().String())
		if err != nil {
			return err
		}
		sub.Range = p
	}
	for _, s := range f.reserve {
		sub, addr, err := subnetOf(n, "--reserve", s)
		if err != nil {
			return err
		}
		sub.Reserved = append(sub.Reserved, addr)
	}
	return nil
}

// subnetOf reads an address and finds the network's subnet that it is in.
func subnetOf(n *api.Network, flag, s string) (*api.Subnet, netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return nil, addr, api.FieldError("", flag, s, "is no address", "an address in a subnet of the network")
	}
	for i := range n.Subnets {
		if n.Subnets[i].Prefix.Contains(addr) {
			return &n.Subnets[i], addr, nil
		}
	}
	return nil, addr, api.FieldError("", flag, s, "is in no subnet of the network", "an address in a --subnet that is given too")
}

func (a *app) networkCreate() *cobra.Command {
	var f networkFlags
	var out *form
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a network",
		Example: "  seine network create back --internal\n" +
			"  seine network create lab --subnet 10.9.0.0/24 --gateway 10.9.0.254 --subnet fd00:9::/64\n" +
			"  seine network create lan --driver macvlan --opt parent=eth0 --subnet 192.168.1.0/24 --gateway 192.168.1.1 --ip-range 192.168.1.192/27",
		Args:              exactArgs("NAME"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			n := api.Network{Name: args[0]}
			if err := f.apply(cmd, &n); err != nil {
				return err
			}
			return a.putNetwork(cmd.Context(), n, api.CreateOnly, "created", *out)
		},
	}
	f.register(cmd)
	_ = cmd.RegisterFlagCompletionFunc("driver", a.completeDrivers) // the flags are there
	_ = cmd.RegisterFlagCompletionFunc("opt", a.completeOptions)
	out = formFlag(cmd, formTable)
	return cmd
}

func (a *app) networkSet() *cobra.Command {
	var f networkFlags
	var out *form
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change a network; what is not given stays as it is",
		Long: "Change a network; what is not given stays as it is. What containers hang on (driver, subnets, MTU) can't be changed:\n" +
			"the daemon says so. --label, --opt, --alias and --reserve add to what is there.",
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.completeNetworks(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var n api.Network
			err := a.ask(cmd.Context(), "reading network "+args[0], func(ctx context.Context, c *client.Client) (err error) {
				n, err = c.Network(ctx, args[0])
				return err
			})
			if err != nil {
				return err
			}
			if err := f.apply(cmd, &n); err != nil {
				return err
			}
			return a.putNetwork(cmd.Context(), n, n.Revision, "is", *out)
		},
	}
	f.register(cmd)
	out = formFlag(cmd, formTable)
	return cmd
}

func (a *app) putNetwork(ctx context.Context, n api.Network, match uint64, verb string, out form) error {
	err := a.ask(ctx, "making network "+n.Name, func(ctx context.Context, c *client.Client) (err error) {
		n, err = c.PutNetwork(ctx, n, match)
		return err
	})
	if err != nil {
		return err
	}
	t := &table{}
	t.add(fmt.Sprintf("network %s %s: %s", n.Name, verb, strings.Join(networkFacts(n), ", ")))
	return a.print(out, n, []string{n.Name}, t)
}

// networkFacts says in a few words what a network is.
func networkFacts(n api.Network) []string {
	facts := []string{n.Driver}
	for _, s := range n.Subnets {
		facts = append(facts, s.Prefix.String())
	}
	return append(facts, networkNotes(n)...)
}

// networkNotes says what of a network is not as usual.
func networkNotes(n api.Network) []string {
	var notes []string
	if len(n.Aliases) > 0 {
		notes = append(notes, "also "+strings.Join(n.Aliases, ", "))
	}
	if n.Scope == api.ClusterScope {
		notes = append(notes, "cluster")
	}
	if n.Fabric != "" {
		notes = append(notes, "fabric "+n.Fabric)
	}
	if n.Encrypt {
		notes = append(notes, "encrypted")
	}
	if n.Broadcast {
		notes = append(notes, "broadcast")
	}
	if n.Internal {
		notes = append(notes, "internal")
	}
	if !n.ICCOn() {
		notes = append(notes, "no icc")
	}
	if !n.MasqueradeOn() && !n.Internal {
		notes = append(notes, "no masquerade")
	}
	if n.Status != nil && n.Status.Error != "" {
		notes = append(notes, "error: "+n.Status.Error)
	}
	return notes
}

func (a *app) networkList() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the networks",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []api.Network
			err := a.ask(cmd.Context(), "listing networks", func(ctx context.Context, c *client.Client) (err error) {
				all, err = c.Networks(ctx)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{head: []string{"NAME", "DRIVER", "SUBNETS", "ENDPOINTS", "NOTES"}}
			var names []string
			for _, n := range all {
				count := "0"
				if n.Status != nil {
					count = strconv.Itoa(n.Status.Endpoints)
				}
				var subnets []string
				for _, s := range n.Subnets {
					subnets = append(subnets, s.Prefix.String())
				}
				t.add(n.Name, n.Driver, strings.Join(subnets, ", "), count, strings.Join(networkNotes(n), ", "))
				names = append(names, n.Name)
			}
			return a.print(*out, all, names, t)
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}

func (a *app) networkInspect() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:               "inspect NAME",
		Short:             "Show all about a network",
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.completeNetworks(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var n api.Network
			err := a.ask(cmd.Context(), "reading network "+args[0], func(ctx context.Context, c *client.Client) (err error) {
				n, err = c.Network(ctx, args[0])
				return err
			})
			if err != nil {
				return err
			}
			t := &table{}
			t.add("Name:", n.Name)
			t.add("Is:", strings.Join(networkFacts(n), ", "))
			for _, s := range n.Subnets {
				if s.Gateway.IsValid() {
					t.add("Gateway:", s.Gateway.String()+" of "+s.Prefix.String())
				}
			}
			for _, k := range slices.Sorted(maps.Keys(n.Options)) {
				t.add("Option:", k+"="+n.Options[k])
			}
			if n.MTU != 0 {
				t.add("MTU:", strconv.Itoa(n.MTU))
			}
			t.add("Created:", n.Created)
			return a.print(*out, n, []string{n.Name}, t)
		},
	}
	out = formFlag(cmd, formYAML)
	return cmd
}

func (a *app) networkDrivers() *cobra.Command {
	var out *form
	cmd := &cobra.Command{
		Use:               "drivers [NAME]",
		Short:             "List the drivers that networks can be made with, and their options",
		Args:              atMost("NAME"),
		ValidArgsFunction: a.completeDrivers,
		RunE: func(cmd *cobra.Command, args []string) error {
			var n api.Node
			err := a.ask(cmd.Context(), "asking for the drivers", func(ctx context.Context, c *client.Client) (err error) {
				n, err = c.Node(ctx)
				return err
			})
			if err != nil {
				return err
			}
			t := &table{head: []string{"DRIVER", "OPTION", "MEANING"}}
			found := []api.Driver{}
			var names []string
			for _, d := range n.Drivers {
				if len(args) > 0 && args[0] != d.Name {
					continue
				}
				found, names = append(found, d), append(names, d.Name)
				name := d.Name
				for _, o := range slices.Sorted(maps.Keys(d.Options)) {
					t.add(name, o, d.Options[o])
					name = ""
				}
				if len(d.Options) == 0 {
					t.add(name, "", "")
				}
			}
			if len(args) > 0 && len(found) == 0 {
				return api.Errorf(api.NotFound, fmt.Sprintf("driver %q", args[0]), "is not known; seine network drivers lists those that are")
			}
			return a.print(*out, found, names, t)
		},
	}
	out = formFlag(cmd, formTable)
	return cmd
}

func (a *app) networkRemove() *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME...",
		Aliases:           []string{"remove"},
		Short:             "Remove networks that have no endpoints",
		Args:              someArgs("NAME"),
		ValidArgsFunction: a.completeNetworks(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, func(name string) error {
				err := a.ask(cmd.Context(), "removing network "+name, func(ctx context.Context, c *client.Client) error {
					return c.DeleteNetwork(ctx, name, 0)
				})
				if err == nil {
					fmt.Fprintf(a.Out, "network %s removed\n", name)
				}
				return err
			})
		},
	}
}

// each goes on past a failure; each failure but the last is printed here, the last is returned.
func (a *app) each(args []string, do func(string) error) error {
	var last error
	for _, x := range args {
		if err := do(x); err != nil {
			if last != nil {
				fmt.Fprintln(a.Err, "seine:", last)
			}
			last = err
			if errors.Is(err, context.Canceled) {
				break
			}
		}
	}
	return last
}
