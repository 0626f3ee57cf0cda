package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/seine-net/seine/api"
)

// completeTime is what a completion may take: a daemon that does not answer must not hang the shell.
const completeTime = time.Second

type completeFunc = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that completes arguments in a shell",
		Long: "Print a script that completes arguments in a shell:\n\n" +
			"  bash   source <(seine completion bash)         for good: seine completion bash >/etc/bash_completion.d/seine\n" +
			"  zsh    source <(seine completion zsh)          for good: seine completion zsh >\"${fpath[1]}/_seine\"\n" +
			"  fish   seine completion fish | source          for good: seine completion fish >~/.config/fish/completions/seine.fish",
		Args:      exactArgs("bash|zsh|fish"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Out, true)
			case "zsh":
				return root.GenZshCompletion(a.Out)
			case "fish":
				return root.GenFishCompletion(a.Out, true)
			}
			return usageError{fmt.Errorf("shell %q is not known; want bash, zsh or fish", args[0])}
		},
	}
}

// networkNames and endpointKeys ask the daemon; they give nothing where it does not answer.
func (a *app) networkNames(cmd *cobra.Command) (out []string) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	if c, err := a.client(); err == nil {
		all, _ := c.Networks(ctx)
		for _, n := range all {
			out = append(out, n.Name)
		}
	}
	return out
}

func (a *app) endpointKeys(cmd *cobra.Command) (keys, containers []string) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	if c, err := a.client(); err == nil {
		all, _ := c.Endpoints(ctx)
		for _, e := range all {
			keys = append(keys, e.Key())
			containers = append(containers, e.Name)
		}
	}
	slices.Sort(containers)
	return keys, slices.Compact(containers)
}

// drivers asks the daemon what networks can be made with.
func (a *app) drivers(cmd *cobra.Command) []api.Driver {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	c, err := a.client()
	if err != nil {
		return nil
	}
	n, _ := c.Node(ctx)
	return n.Drivers
}

// completeDrivers completes one driver.
func (a *app) completeDrivers(cmd *cobra.Command, args []string, _ string) (out []string, _ cobra.ShellCompDirective) {
	if len(args) == 0 || cmd.Name() == "create" {
		for _, d := range a.drivers(cmd) {
			out = append(out, d.Name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeOptions completes the keys of the options that the driver on the command line takes.
func (a *app) completeOptions(cmd *cobra.Command, _ []string, _ string) (out []string, _ cobra.ShellCompDirective) {
	driver, _ := cmd.Flags().GetString("driver")
	for _, d := range a.drivers(cmd) {
		if d.Name != cmp.Or(driver, "bridge") {
			continue
		}
		for _, k := range slices.Sorted(maps.Keys(d.Options)) {
			out = append(out, k+"=\t"+d.Options[k])
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// without leaves out what stands on the command line already.
func without(all, given []string) []string {
	return slices.DeleteFunc(all, func(s string) bool { return slices.Contains(given, s) })
}

// completeNetworks completes up to most names of networks; -1 is any number.
func (a *app) completeNetworks(most int) completeFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return without(a.networkNames(cmd), args), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeEndpoints completes up to most keys of endpoints; -1 is any number.
func (a *app) completeEndpoints(most int) completeFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		keys, _ := a.endpointKeys(cmd)
		return without(keys, args), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeOwners completes one network or endpoint.
func (a *app) completeOwners(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	keys, _ := a.endpointKeys(cmd)
	return append(a.networkNames(cmd), keys...), cobra.ShellCompDirectiveNoFileComp
}

// completeConnect completes a network, then a container that is not on it.
func (a *app) completeConnect(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.networkNames(cmd), cobra.ShellCompDirectiveNoFileComp
	case 1:
		keys, containers := a.endpointKeys(cmd)
		return slices.DeleteFunc(containers, func(c string) bool { return slices.Contains(keys, args[0]+"/"+c) }), cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeDisconnect completes a network, then a container that is on it.
func (a *app) completeDisconnect(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.networkNames(cmd), cobra.ShellCompDirectiveNoFileComp
	case 1:
		keys, containers := a.endpointKeys(cmd)
		return slices.DeleteFunc(containers, func(c string) bool { return !slices.Contains(keys, args[0]+"/"+c) }), cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
