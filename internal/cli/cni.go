package cli

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cli/replace"
)

// Where runtimes look for plugins and configurations unless they are told otherwise.
const (
	defaultCNIBin  = "/opt/cni/bin"
	defaultCNIConf = "/etc/cni/net.d"
)

// cniProgram is the program that all plugins are links to.
const cniProgram = "seine-cni"

// askTime is how long a plugin has to say its name and version.
const askTime = 10 * time.Second

func (a *app) cniCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "cni",
		Short: "Put the CNI plugins in place of others, and back",
		Long:  "Put seine-cni and its links into the folder of a machine's CNI plugins, see what is there, and bring back what was\nreplaced. The daemon is not needed for that.",
	}, a.cniInstallCommand(), a.cniUninstallCommand(), a.cniListCommand())
}

// cniPlaces are the folders that are worked on.
type cniPlaces struct {
	bin, conf string
	dry       bool
}

func (p *cniPlaces) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.bin, "bin-dir", defaultCNIBin, "`FOLDER` of the plugins")
	cmd.Flags().StringVar(&p.conf, "conf-dir", defaultCNIConf, "`FOLDER` of the configurations")
	cmd.Flags().BoolVar(&p.dry, "dry-run", false, "say what would be done, and do nothing")
}

func (a *app) cniInstallCommand() *cobra.Command {
	var p cniPlaces
	var from, conflist string
	var plugins []string
	var out *form
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put the plugins, and on request a configuration, in place",
		Long: "Put seine-cni and a link for each plugin into the folder of plugins, and a configuration list into the folder of\n" +
			"configurations. Every name changes in one step: a runtime that starts a plugin meanwhile finds the old one or the new\n" +
			"one. What is replaced is kept in a folder .seine beside, for `seine cni uninstall`. Doing it again updates.",
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := cniBinary(cmd.Context(), from, plugins, p.bin)
			if err != nil {
				return err
			}
			var conf []replace.File
			if conflist != "" {
				f, err := a.readConflist(conflist)
				if err != nil {
					return err
				}
				conf = append(conf, f)
			}
			done, err := replace.Put(p.bin, program, replace.Options{DryRun: p.dry})
			if err == nil && len(conf) > 0 {
				var more []replace.Action
				more, err = replace.Put(p.conf, conf, replace.Options{DryRun: p.dry})
				done = append(done, more...)
			}
			if err != nil {
				return fmt.Errorf("%w; try again, or `seine cni uninstall`", err)
			}
			return a.printActions(*out, done)
		},
	}
	p.flags(cmd)
	cmd.Flags().StringVar(&from, "from", "", "the program `FILE` (default: seine-cni beside this program)")
	cmd.Flags().StringVar(&conflist, "conflist", "", "configuration list to put into the folder of configurations under the name of the `FILE`; - reads it from standard input")
	cmd.Flags().StringSliceVar(&plugins, "plugins", nil, "only these plugins, `NAME,…` (default: all)")
	out = formFlag(cmd, formTable)
	return cmd
}

func (a *app) cniUninstallCommand() *cobra.Command {
	var p cniPlaces
	var out *form
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Bring back what install replaced",
		Long: "Take out what `seine cni install` put in place, and bring back what it replaced, as it was. What somebody else changed\n" +
			"since is kept; the exit code is 4 then.",
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done []replace.Action
			var errs []error
			for _, dir := range []string{p.conf, p.bin} { // a configuration needs its plugins
				did, err := replace.Back(dir, replace.Options{DryRun: p.dry})
				done, errs = append(done, did...), append(errs, err)
			}
			err := a.printActions(*out, done)
			if failed := errors.Join(errs...); errors.Is(failed, replace.ErrChanged) {
				err = api.Errorf(api.Conflict, "", "%w", failed)
			} else if failed != nil {
				err = failed
			}
			return err
		},
	}
	p.flags(cmd)
	out = formFlag(cmd, formTable)
	return cmd
}

func (a *app) printActions(f form, done []replace.Action) error {
	t := &table{head: []string{"DOES", "PATH", "WAS", "IS THEN"}}
	if len(done) == 0 {
		t = &table{}
		t.add("nothing to do")
	}
	var names []string
	for _, x := range done {
		t.add(string(x.Op), x.Path, x.Was, x.Now)
		names = append(names, x.Path)
	}
	return a.print(f, map[string]any{"actions": append([]replace.Action{}, done...)}, names, t)
}

// cniBinary gives the program and its links, as far as plugins asks for them.
func cniBinary(ctx context.Context, from string, plugins []string, bin string) ([]replace.File, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if from == "" {
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return nil, err
		}
		from = filepath.Join(filepath.Dir(self), cniProgram)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return nil, api.FieldError("", "--from", from, err.Error(), "the program seine-cni")
	}
	if kindOf(bytes.NewReader(data)) != kindOurs {
		return nil, api.FieldError("", "--from", from, "is another program", "seine-cni")
	}
	said, err := askPlugin(ctx, from, "plugins")
	if err != nil {
		return nil, api.FieldError("", "--from", from, "can't be run: "+err.Error(), "seine-cni for this machine")
	}
	all := strings.Fields(said)
	for _, n := range plugins {
		if !slices.Contains(all, n) {
			return nil, api.FieldError("", "--plugins", n, "is no plugin of "+from, "some of "+strings.Join(all, ","))
		}
	}
	if len(plugins) > 0 {
		all = plugins
	}
	out := []replace.File{{Name: cniProgram, Data: data, Mode: 0o755}}
	for _, n := range all {
		// The command line is called as one of the plugins is.
		if here, err := buildinfo.ReadFile(filepath.Join(bin, n)); err == nil && here.Path == ourModule+"/cmd/seine" {
			return nil, api.FieldError("", "--bin-dir", bin, fmt.Sprintf("has the command line %q, which a plugin would replace", n), "a folder for plugins, such as "+defaultCNIBin)
		}
		out = append(out, replace.File{Name: n, Link: cniProgram})
	}
	return out, nil
}

// confName is what libcni takes for a network's name.
var confName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// readConflist reads a configuration list and holds it to what every runtime wants of one.
func (a *app) readConflist(path string) (replace.File, error) {
	f := replace.File{Name: filepath.Base(path), Mode: 0o644}
	bad := func(field, value, message, want string) (replace.File, error) {
		return f, api.FieldError(fmt.Sprintf("--conflist %q", path), field, value, message, want)
	}
	var err error
	if path == "-" {
		f.Data, err = io.ReadAll(a.In)
	} else {
		f.Data, err = os.ReadFile(path)
	}
	if err != nil {
		return bad("file", path, err.Error(), "a file that can be read, or -")
	}
	var c struct {
		CNIVersion, Name string
		Plugins          []struct{ Type string }
	}
	if err := json.Unmarshal(f.Data, &c); err != nil {
		return bad("file", path, "is no configuration list: "+err.Error(), "a JSON object with cniVersion, name and plugins")
	}
	switch {
	case !confName.MatchString(c.Name):
		return bad("name", c.Name, "is no name of a network", "letters, digits, '_', '.' and '-', the first a letter or digit")
	case c.CNIVersion == "":
		return bad("cniVersion", "", "is missing", "such as 1.1.0")
	case len(c.Plugins) == 0:
		return bad("plugins", "", "is empty", "a list of plugins")
	}
	for i, p := range c.Plugins {
		if p.Type == "" || strings.ContainsRune(p.Type, '/') {
			return bad(fmt.Sprintf("plugins[%d].type", i), p.Type, "is no name of a plugin", "such as bridge")
		}
	}
	if path == "-" {
		f.Name = "10-" + c.Name + ".conflist"
	}
	if filepath.Ext(f.Name) != ".conflist" {
		return bad("file", f.Name, "is a name that runtimes pass over", "one that ends in .conflist")
	}
	return f, nil
}

// Whose a plugin is.
const (
	kindOurs      = "seine"
	kindReference = "reference"
	kindOther     = "other"
)

const ourModule = "github.com/seine-net/seine"

// kindOf tells whose a program is by what Go's linker wrote into it, without running it.
func kindOf(r io.ReaderAt) string {
	info, err := buildinfo.Read(r)
	switch {
	case err != nil:
	case info.Path == ourModule+"/cmd/"+cniProgram:
		return kindOurs
	case strings.HasPrefix(info.Path, "github.com/containernetworking/plugins/"), strings.HasPrefix(info.Path, "github.com/flannel-io/cni-plugin"):
		return kindReference
	}
	return kindOther
}

// askPlugin runs a program with an empty environment, and so as no verb, and gives what it prints.
func askPlugin(ctx context.Context, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.WaitDelay = []string{}, time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// cniPlugin is a file in the folder of plugins.
type cniPlugin struct {
	Name string `json:"name"`
	// Of is "seine", "reference", "other", or "broken" for a link that leads nowhere.
	Of      string `json:"of"`
	Version string `json:"version,omitempty"`
	Link    string `json:"link,omitempty"`
	// Kept is where the file is that it replaced.
	Kept string `json:"kept,omitempty"`
}

// versionLine is what plugins say without a verb.
var versionLine = regexp.MustCompile(`(?m)^CNI \S+ plugin (?:version )?(\S+)`)

func (a *app) cniListCommand() *cobra.Command {
	var dir string
	var out *form
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the plugins of this machine: whose they are, and of which version",
		Long:    "List the plugins of this machine. Only Seine's and the reference's are run, to ask for their versions.",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := listPlugins(cmd.Context(), dir)
			if err != nil {
				return err
			}
			t := &table{head: []string{"NAME", "OF", "VERSION", "LINK", "REPLACED"}}
			var names []string
			for _, p := range all {
				t.add(p.Name, p.Of, p.Version, p.Link, p.Kept)
				names = append(names, p.Name)
			}
			return a.print(*out, api.List[cniPlugin]{Items: all}, names, t)
		},
	}
	cmd.Flags().StringVar(&dir, "bin-dir", defaultCNIBin, "`FOLDER` of the plugins")
	out = formFlag(cmd, formTable)
	return cmd
}

func listPlugins(ctx context.Context, dir string) ([]cniPlugin, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, api.FieldError("", "--bin-dir", dir, err.Error(), "the folder of the plugins, such as "+defaultCNIBin)
	}
	kept, where, err := replace.Kept(dir)
	if err != nil {
		return nil, err
	}
	all := []cniPlugin{}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		p := cniPlugin{Name: e.Name(), Of: "broken"}
		p.Link, _ = os.Readlink(path) // "" for a file
		if slices.Contains(kept, p.Name) {
			p.Kept = filepath.Join(where, p.Name)
		}
		if f, err := os.Open(path); err == nil {
			p.Of = kindOf(f)
			f.Close()
		}
		if p.Of == kindOurs || p.Of == kindReference {
			said, err := askPlugin(ctx, path)
			if m := versionLine.FindStringSubmatch(said); m != nil {
				p.Version = m[1]
			} else if err != nil && p.Name != cniProgram {
				p.Version = "does not say"
			}
		}
		all = append(all, p)
	}
	return all, nil
}
