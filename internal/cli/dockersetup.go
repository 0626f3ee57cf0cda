package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/spf13/cobra"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/client"
	"github.com/seine-net/seine/internal/cli/replace"
)

// Where a Docker daemon and its unit have their settings.
const (
	dockerConfig = "/etc/docker/daemon.json"
	systemdUnits = "/etc/systemd/system"
	dockerDropIn = systemdUnits + "/docker.service.d/seine.conf"
)

// dropIn has dockerd start after seined, whose sockets it looks for; without seined it starts all the same.
const dropIn = "# by seine docker setup\n[Unit]\nWants=seined.service\nAfter=seined.service\n"

// dockerPlaces are the files that setup works on.
type dockerPlaces struct {
	root, config string
}

func (p dockerPlaces) at(path string) string { return filepath.Join(p.root, path) }

// dockerFile is one file as it is to be.
type dockerFile struct {
	dir string
	replace.File
	was []byte // what is there, nil for nothing
}

func (f dockerFile) path() string { return filepath.Join(f.dir, f.Name) }

func (a *app) dockerSetupCommand() *cobra.Command {
	var p dockerPlaces
	var yes, undo bool
	var servers []string
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Show what dockerd needs to work with Seine, and write it",
		Long: "Show what dockerd's configuration needs: Seine's name server for its containers, so that those on Seine's networks find\n" +
			"every name there, and the order in which systemd starts the two. With --yes write it; --undo brings back every file as it\n" +
			"was. All else in dockerd's configuration stays as it is. dockerd reads it when it is restarted, which is left to you.\n\n" +
			"Containers on Docker's own networks ask Seine's name server, too, and it asks the machine's resolvers: when seined does\n" +
			"not run they find no names. Undo the setup before Seine is removed.",
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if undo {
				return a.dockerUndo(p, yes)
			}
			addrs, err := a.dockerServers(cmd.Context(), servers)
			if err != nil {
				return err
			}
			return a.dockerSetup(p, addrs, yes)
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&yes, "yes", false, "write it")
	fl.BoolVar(&undo, "undo", false, "bring back what was there before")
	fl.StringSliceVar(&servers, "dns", nil, "`ADDRESS` of the name server; may be repeated (default those that seined says)")
	fl.StringVar(&p.config, "config-file", dockerConfig, "dockerd's configuration `FILE`")
	fl.StringVar(&p.root, "root", "/", "`FOLDER` that all files are in, in place of /")
	return cmd
}

// dockerServers gives the addresses that containers are to ask.
func (a *app) dockerServers(ctx context.Context, given []string) ([]string, error) {
	for _, s := range given {
		if _, err := netip.ParseAddr(s); err != nil {
			return nil, api.FieldError("", "--dns", s, "is no address", "an address such as 169.254.255.53")
		}
	}
	if len(given) > 0 {
		return given, nil
	}
	var n api.Node
	err := a.ask(ctx, "asking the daemon", func(ctx context.Context, c *client.Client) (err error) { n, err = c.Node(ctx); return err })
	if err != nil {
		return nil, fmt.Errorf("where the name server is, only seined knows, unless --dns says it: %w", err)
	}
	if len(n.DNS) == 0 {
		return nil, api.Errorf(api.Unsupported, "docker setup", "the name server has no address that all of Docker's containers reach; `seine doctor` says why")
	}
	var out []string
	for _, addr := range n.DNS {
		out = append(out, addr.String())
	}
	return out, nil
}

// plan gives the files as they are to be, those left out that are so already, and what their reader should know.
func (p dockerPlaces) plan(servers []string) (files []dockerFile, notes []string, err error) {
	if err := p.checkFlags(); err != nil {
		return nil, nil, err
	}
	path := p.at(p.config)
	was, mode, err := readIfThere(path)
	if err != nil {
		return nil, nil, err
	}
	base, err := original(path, was)
	if err != nil {
		return nil, nil, err
	}
	now, others, err := mergeDNS(base, servers)
	if err != nil {
		return nil, nil, api.Errorf(api.Invalid, path, "%w; it is left as it is: mend it, or put \"dns\": %s into it yourself", err, jsonList(servers))
	}
	if len(others) > 0 {
		notes = append(notes, fmt.Sprintf("Containers asked %s so far, and still do where seined does not answer; seined itself asks the machine's resolvers, or those of its --dns-upstream.", jsonList(others)))
	}
	add := func(path string, was, now []byte, mode fs.FileMode) {
		if !bytes.Equal(was, now) || was == nil {
			files = append(files, dockerFile{filepath.Dir(path), replace.File{Name: filepath.Base(path), Data: now, Mode: mode}, was})
		}
	}
	add(path, was, now, mode)
	if _, err := os.Stat(p.at(systemdUnits)); errors.Is(err, fs.ErrNotExist) {
		return files, append(notes, "There is no systemd here: have seined start before dockerd."), nil
	} else if err != nil {
		return nil, nil, err
	}
	was, mode, err = readIfThere(p.at(dockerDropIn))
	if err != nil {
		return nil, nil, err
	}
	add(p.at(dockerDropIn), was, []byte(dropIn), mode)
	return files, notes, nil
}

// original gives what a file was before setup wrote it, where nobody has changed it since; else what it is now. So that
// another address takes the place of the one that was put there, and does not join it.
func original(path string, now []byte) ([]byte, error) {
	dir := filepath.Dir(path)
	back, err := replace.Back(dir, replace.Options{DryRun: true})
	if errors.Is(err, replace.ErrChanged) {
		return now, nil
	}
	if err != nil {
		return nil, err
	}
	for _, x := range back {
		switch {
		case x.Path == path && x.Op == replace.Remove:
			return nil, nil
		case x.Path == path && x.Op == replace.Restore:
			_, kept, err := replace.Kept(dir)
			if err != nil {
				return nil, err
			}
			return os.ReadFile(filepath.Join(kept, filepath.Base(path)))
		}
	}
	return now, nil
}

// dnsFlag is dockerd's flag for the same; dockerd does not start where both are given.
var dnsFlag = regexp.MustCompile(`(?m)^[^#\n]*--dns[ =]`)

// checkFlags refuses a dockerd that has its name servers from its command line.
func (p dockerPlaces) checkFlags() error {
	var paths []string
	for _, pattern := range []string{"/etc/default/docker", "/etc/sysconfig/docker", "/lib/systemd/system/docker.service", "/usr/lib/systemd/system/docker.service",
		systemdUnits + "/docker.service", systemdUnits + "/docker.service.d/*.conf"} {
		found, err := filepath.Glob(p.at(pattern))
		if err != nil {
			return err
		}
		paths = append(paths, found...)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err == nil && dnsFlag.Match(text) {
			return api.Errorf(api.Conflict, path, "gives dockerd --dns, and dockerd does not start with name servers both there and in its configuration; take it out first")
		}
	}
	return nil
}

// readIfThere reads a file; nil for one that is not there, with the mode that a new one gets.
func readIfThere(path string) ([]byte, fs.FileMode, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0o644, nil
	}
	if err != nil {
		return nil, 0, err
	}
	text, err := os.ReadFile(path)
	if text == nil {
		text = []byte{}
	}
	return text, st.Mode().Perm(), err
}

func (a *app) dockerSetup(p dockerPlaces, servers []string, yes bool) error {
	files, notes, err := p.plan(servers)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		fmt.Fprintln(a.Out, "dockerd's configuration is as it has to be")
		return nil
	}
	for _, f := range files {
		what := "change"
		if f.was == nil {
			what = "create"
		}
		fmt.Fprintf(a.Out, "%s %s\n%s", what, f.path(), lineDiff(string(f.was), string(f.Data)))
	}
	for _, n := range notes {
		fmt.Fprintln(a.Out, n)
	}
	if !yes {
		fmt.Fprintln(a.Out, "Nothing was written; --yes writes it.")
		return nil
	}
	if err := writeDocker(files, replace.Options{}); err != nil {
		return fmt.Errorf("%w; try again, or `seine docker setup --undo --yes`", err)
	}
	fmt.Fprintln(a.Out, "Written. It holds when dockerd is restarted: systemctl daemon-reload && systemctl restart docker")
	return nil
}

// writeDocker puts the files in place, what is replaced is kept beside.
func writeDocker(files []dockerFile, o replace.Options) error {
	for _, f := range files {
		if _, err := replace.Put(f.dir, []replace.File{f.File}, o); err != nil {
			return err
		}
	}
	return nil
}

// undoDocker brings back what writeDocker replaced. All is tried; what somebody changed since is kept, and an error.
func undoDocker(p dockerPlaces, o replace.Options) (done []replace.Action, err error) {
	var errs []error
	for _, path := range []string{dockerDropIn, p.config} {
		did, err := replace.Back(filepath.Dir(p.at(path)), o)
		done, errs = append(done, did...), append(errs, err)
	}
	return done, errors.Join(errs...)
}

func (a *app) dockerUndo(p dockerPlaces, yes bool) error {
	done, err := undoDocker(p, replace.Options{DryRun: !yes})
	if errors.Is(err, replace.ErrChanged) {
		err = api.Errorf(api.Conflict, "", "%w", err)
	}
	for _, x := range done {
		fmt.Fprintln(a.Out, x.Op, x.Path)
	}
	doing := slices.ContainsFunc(done, func(x replace.Action) bool { return x.Op != replace.Keep })
	switch {
	case !doing && err == nil:
		fmt.Fprintln(a.Out, "nothing to do")
	case !yes:
		fmt.Fprintln(a.Out, "Nothing was changed; --yes does it.")
	case doing:
		fmt.Fprintln(a.Out, "It holds when dockerd is restarted: systemctl daemon-reload && systemctl restart docker")
	}
	return err
}
