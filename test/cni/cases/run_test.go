package cases_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// modes are the ways in which attachments end.
var modes = []string{
	"normal", // the configuration's own steps
	"gone",   // the container and its namespace are gone before DEL
	"empty",  // DEL with an empty CNI_NETNS, after which the container ends
}

// run is one configuration with one set of plugins on one machine. What is seen are lines:
//
//	ADD c1/eth0: ok                                or ADD c1/eth0: error 7 of bridge
//	result c1/eth0: ips[0].address "10.1.0.2/16"
//	after ADD: + c1 link eth0 …                    the state has this more than before the first step, or (-) less
//	tcp4 EXT to HOST:8080: c1 answers, source EXT
type run struct {
	*testing.T
	*configuration
	mode    string
	bin     string // where the plugins are
	cache   string // libcni's
	machine *machine
	results map[int]types.Result // by attachment
	before  []string             // the state to begin with
	want    *expectation         // nil where nothing is expected: what comes is recorded
	lines   []string             // what was seen, see above
	lastOut []byte               // what the last plugin printed
	failed  string               // the plugin that failed last
}

// perform runs the configuration in a mode and gives what was seen. What want knows to come is waited for.
func perform(t *testing.T, c *configuration, mode, bin string, want *expectation) ([]string, error) {
	var names []string
	for _, a := range c.Attachments {
		if !slices.Contains(names, a.NS) {
			names = append(names, a.NS)
		}
	}
	m, err := newMachine(names)
	if err != nil {
		return nil, err
	}
	defer m.close()
	r := &run{T: t, configuration: c, mode: mode, bin: bin, cache: t.TempDir(), machine: m, results: map[int]types.Result{}, want: want}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	look := r.state
	if slices.Contains(c.Needs, "dhcp-daemon") {
		look = r.settled // seined makes a network of its own
	}
	if r.before, err = look(); err != nil {
		return nil, err
	}
	steps := c.Steps
	if mode != "normal" {
		steps = []string{"ADD", "DEL", "DEL"}
	}
	for i, step := range steps {
		if err := r.step(step, i > 0 && steps[i-1] == step); err != nil {
			return nil, err
		}
	}
	if mode == "empty" {
		if err := r.endAll(func(attachment) bool { return true }); err != nil {
			return nil, err
		}
	}
	err = r.look("DEL")
	return r.lines, err
}

// prepare makes what the configuration's meta wants on the machine.
func (r *run) prepare() error {
	for path, text := range r.Files {
		err := r.machine.do(func() error {
			return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
		})
		if err != nil {
			return err
		}
	}
	for _, line := range r.Setup {
		if err := r.machine.shell(r.Context(), line); err != nil {
			return err
		}
	}
	return errors.Join(r.dhcp(), r.serve())
}

func (r *run) step(step string, again bool) error {
	verb, arg, _ := strings.Cut(step, ":")
	tag := verb
	if again {
		tag += " again"
	}
	switch verb {
	case "ADD":
		for i := range r.Attachments {
			if err := r.add(i); err != nil {
				return err
			}
		}
		if r.mode != "normal" {
			return nil
		}
		if err := r.look("ADD"); err != nil {
			return err
		}
		r.probe()
		return nil
	case "CHECK":
		for i, a := range r.Attachments {
			if r.results[i] == nil || old(r.listOf(a)) {
				continue
			}
			r.say(tag, a, r.runtime().CheckNetworkList(r.Context(), r.listOf(a), r.conf(a)))
		}
		return nil
	case "DEL":
		return r.delAll(tag)
	case "STATUS":
		r.lines = append(r.lines, tag+": "+r.outcome(r.runtime().GetStatusNetworkList(r.Context(), r.lists[""])))
		return nil
	case "GC":
		return r.gc(arg)
	case "SNAP":
		return r.look("GC")
	}
	return fmt.Errorf("step %q: want ADD, CHECK, DEL, STATUS, GC, GC:CONTAINER or SNAP", step)
}

// old says whether the list's version has no CHECK.
func old(list *libcni.NetworkConfigList) bool {
	ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0")
	return err != nil || !ok
}

func (r *run) listOf(a attachment) *libcni.NetworkConfigList { return r.lists[a.Net] }

// conf is the runtime's part of a request.
func (r *run) conf(a attachment) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: a.id(), NetNS: r.machine.path(a.NS), IfName: a.IfName, CapabilityArgs: a.CapArgs}
	for _, arg := range strings.Split(a.CNIArgs, ";") {
		if key, value, ok := strings.Cut(arg, "="); ok {
			rt.Args = append(rt.Args, [2]string{key, value})
		}
	}
	return rt
}

func (r *run) runtime() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{r.bin}, r.cache, r)
}

func (r *run) add(i int) error {
	a := r.Attachments[i]
	res, err := r.runtime().AddNetworkList(r.Context(), r.listOf(a), r.conf(a))
	r.say("ADD", a, err)
	if err != nil {
		return nil
	}
	r.results[i] = res
	if r.mode != "normal" {
		return nil // it can't be another one
	}
	return r.result(a, r.lastOut)
}

func (r *run) delAll(tag string) error {
	if r.mode == "gone" && tag == "DEL" {
		if err := r.endAll(func(attachment) bool { return true }); err != nil {
			return err
		}
	}
	for i := len(r.Attachments) - 1; i >= 0; i-- {
		a := r.Attachments[i]
		if r.mode == "normal" && r.machine.inside[a.NS] == nil {
			continue // GC has dealt with it
		}
		rt := r.conf(a)
		if r.mode == "empty" {
			rt.NetNS = ""
		}
		r.say(tag, a, r.runtime().DelNetworkList(r.Context(), r.listOf(a), rt))
	}
	return nil
}

// gc ends all containers but one ("" for none) and collects what they left, as a runtime does that has lost its cache:
// with the cache, libcni itself calls DEL for each.
func (r *run) gc(stays string) error {
	if stays != "" {
		if err := r.endAll(func(a attachment) bool { return a.NS != stays }); err != nil {
			return err
		}
	}
	forgetful := *r
	forgetful.cache = filepath.Join(r.cache, "lost")
	for key, list := range r.lists {
		args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
		for _, a := range r.Attachments {
			if a.Net == key && r.machine.inside[a.NS] != nil {
				args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: a.id(), IfName: a.IfName})
			}
		}
		r.lines = append(r.lines, fmt.Sprintf("GC %s: %s", list.Name, r.outcome(forgetful.runtime().GCNetworkList(r.Context(), list, args))))
	}
	return nil
}

// endAll ends containers and waits until their interfaces have gone from the machine too.
func (r *run) endAll(which func(attachment) bool) error {
	w, err := r.world()
	if err != nil {
		return err
	}
	var mine []string
	for _, a := range r.Attachments {
		if !which(a) {
			continue
		}
		for name, is := range w.names {
			if strings.HasPrefix(is, "veth("+a.NS+"/") {
				mine = append(mine, name)
			}
		}
		if err := r.machine.end(a.NS); err != nil {
			return err
		}
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left := ""
		for _, name := range mine {
			if _, err := r.machine.host.Netlink().LinkByName(name); err == nil {
				left = name
			}
		}
		if left == "" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("link %s: is there 20 s after its container has ended", left)
		}
	}
}

func (r *run) say(verb string, a attachment, err error) {
	r.lines = append(r.lines, fmt.Sprintf("%s %s: %s", verb, a, r.outcome(err)))
}

// outcome puts an error into the words of the specification: its code.
func (r *run) outcome(err error) string {
	if err == nil {
		return "ok"
	}
	var said *types.Error
	if errors.As(err, &said) {
		return fmt.Sprintf("error %d of %s", said.Code, r.failed)
	}
	return "error without a code of " + r.failed
}

// ExecPlugin implements invoke.Exec: it runs a plugin on the machine.
func (r *run) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path)
	var out, stderr bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), &out, &stderr
	err := r.machine.do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err == nil {
		r.lastOut = out.Bytes()
		return out.Bytes(), nil
	}
	r.failed = filepath.Base(path)
	said := &types.Error{}
	if jerr := json.Unmarshal(out.Bytes(), said); jerr != nil || said.Code == 0 {
		return nil, fmt.Errorf("%s: %w: %s%s", r.failed, err, out.String(), stderr.String())
	}
	r.Logf("%s: %v", r.failed, said)
	return nil, said
}

// FindInPath implements invoke.Exec.
func (r *run) FindInPath(plugin string, paths []string) (string, error) {
	r.failed = plugin
	return invoke.FindInPath(plugin, paths)
}

// Decode implements invoke.Exec.
func (r *run) Decode(out []byte) (version.PluginInfo, error) {
	return (&version.PluginDecoder{}).Decode(out)
}

// addr gives a container's address of a family, as the results of ADD have it; "" if it has none.
func (r *run) addr(container string, v4 bool) string {
	for i, a := range r.Attachments {
		if a.NS != container || r.results[i] == nil {
			continue
		}
		res, err := types100.NewResultFromResult(r.results[i])
		if err != nil {
			continue
		}
		for _, ip := range res.IPs {
			if (ip.Address.IP.To4() != nil) == v4 {
				return ip.Address.IP.String()
			}
		}
	}
	return ""
}
