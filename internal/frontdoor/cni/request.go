package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/seine-net/seine/internal/kernel"
)

// Verbs of the specification, the values of CNI_COMMAND.
const (
	verbAdd     = "ADD"
	verbDel     = "DEL"
	verbCheck   = "CHECK"
	verbGC      = "GC"
	verbStatus  = "STATUS"
	verbVersion = "VERSION"
)

// since says from which version of a configuration on a verb is allowed.
var since = map[string]string{verbAdd: versions[0], verbDel: versions[0], verbCheck: "0.4.0", verbGC: newest, verbStatus: newest}

// request is one call of a plugin, validated as far as that is the same for all plugins.
type request struct {
	host    *Host
	kernel  kernel.Kernel
	verb    string
	version string

	containerID string
	ifname      string
	// netns is CNI_NETNS; on DEL it is "" too where the namespace is gone.
	netns string
	path  string
	args  envArgs
	// argsErr is what is wrong with CNI_ARGS; it is for the plugins that read them.
	argsErr error

	stdin []byte
	conf  netConf
	// prev is prevResult; nil where there is none, and on DEL also where it can't be read.
	prev *Result
}

// netConf is the part of a configuration that all plugins have.
type netConf struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	IPAM       json.RawMessage `json:"ipam"`
	DNS        DNS             `json:"dns"`
	PrevResult json.RawMessage `json:"prevResult"`
	Args       struct {
		CNI cniArgs `json:"cni"`
	} `json:"args"`
	RuntimeConfig runtimeConfig   `json:"runtimeConfig"`
	Valid         json.RawMessage `json:"cni.dev/valid-attachments"`
}

// cniArgs is args.cni of a configuration.
type cniArgs struct {
	MAC string   `json:"mac"`
	IPs []string `json:"ips"`
}

// runtimeConfig is what a runtime fills in for the capabilities that a configuration lists.
type runtimeConfig struct {
	MAC          string        `json:"mac"`
	IPs          []string      `json:"ips"`
	IPRanges     [][]rangeConf `json:"ipRanges"`
	PortMappings []portMapping `json:"portMappings"`
}

// attachment is one of GC's valid attachments.
type attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// missing gives the environment variables that a verb needs and that are not set.
func missing(verb string, getenv func(string) string) []string {
	need := map[string][]string{
		verbAdd:    {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
		verbCheck:  {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
		verbDel:    {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"},
		verbGC:     {"CNI_PATH"},
		verbStatus: {"CNI_PATH"},
	}[verb]
	return slices.DeleteFunc(slices.Clone(need), func(k string) bool { return getenv(k) != "" })
}

// readRequest reads environment and stdin and validates both. Nothing was changed when it returns.
func readRequest(h *Host, verb string) (*request, error) {
	if _, ok := since[verb]; !ok {
		return nil, errorf(CodeEnvironment, "unknown CNI_COMMAND: %s", verb)
	}
	if m := missing(verb, h.Getenv); len(m) > 0 {
		return nil, errorf(CodeEnvironment, "required env variables [%s] missing", strings.Join(m, ","))
	}
	r := &request{host: h, verb: verb, containerID: h.Getenv("CNI_CONTAINERID"), ifname: h.Getenv("CNI_IFNAME"),
		netns: h.Getenv("CNI_NETNS"), path: h.Getenv("CNI_PATH")}
	if verb == verbAdd || verb == verbDel || verb == verbCheck {
		if err := r.checkNames(); err != nil {
			return nil, err
		}
	}
	var err error
	if r.stdin, err = io.ReadAll(h.Stdin); err != nil {
		return nil, errorf(CodeIO, "read stdin: %w", err)
	}
	return r, r.parse()
}

func (r *request) checkNames() error {
	if !validName(r.containerID) {
		return errorf(CodeEnvironment, "CNI_CONTAINERID %q: has characters that are not allowed; want letters, digits, '_', '.' and '-', the first a letter or digit", r.containerID)
	}
	bad := len(r.ifname) > 15 || r.ifname == "." || r.ifname == ".." || strings.ContainsAny(r.ifname, "/:\x00") ||
		strings.ContainsFunc(r.ifname, unicode.IsSpace)
	if bad {
		return errorf(CodeEnvironment, "CNI_IFNAME %q: is no interface name; want 1 to 15 bytes without '/', ':' and white space, not . or ..", r.ifname)
	}
	return nil
}

// validName reports whether s has the form that the specification asks of container IDs and network names.
func validName(s string) bool {
	for i, c := range []byte(s) {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			i > 0 && (c == '_' || c == '.' || c == '-')
		if !ok {
			return false
		}
	}
	return s != ""
}

// parse reads the configuration. DEL passes over all that it can do without.
func (r *request) parse() error {
	err := decode(r.stdin, &r.conf)
	if r.verb == verbDel {
		err = lenient(err)
	}
	if err != nil {
		return err
	}
	switch {
	case r.conf.Name == "":
		return errorf(CodeConfig, "missing network name")
	case !validName(r.conf.Name):
		return errorf(CodeConfig, "name %q: has characters that are not allowed; want letters, digits, '_', '.' and '-', the first a letter or digit", r.conf.Name)
	}
	if r.version, err = supported(r.conf.CNIVersion); err != nil {
		return err
	}
	if !atLeast(r.version, since[r.verb]) {
		return errorf(CodeVersion, "config version does not allow %s; want cniVersion %s or newer", r.verb, since[r.verb])
	}
	r.args, r.argsErr = parseArgs(r.host.Getenv("CNI_ARGS"))
	if given(r.conf.PrevResult) {
		if r.prev, err = decodeResult(r.conf.PrevResult, r.version); err != nil {
			if r.prev = nil; r.verb != verbDel {
				return fmt.Errorf("prevResult: %w", err)
			}
		}
	}
	return r.checkNetns()
}

// given reports whether a key is there and not null.
func given(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// checkNetns holds CNI_NETNS to a namespace that is not the plugin's own. On DEL one that is gone, or that is ours
// because a process number was used again, is as good as none: there is nothing of the container in it any more.
func (r *request) checkNetns() error {
	if r.netns == "" || r.verb == verbGC || r.verb == verbStatus {
		return nil
	}
	kind, err := r.host.Netns(r.netns)
	override := strings.EqualFold(r.host.Getenv("CNI_NETNS_OVERRIDE"), "true") || r.host.Getenv("CNI_NETNS_OVERRIDE") == "1"
	if kind == netnsOther || kind == netnsOwn && override {
		return nil
	}
	if r.verb == verbDel {
		r.netns = ""
		return nil
	}
	if kind == netnsOwn {
		return errorf(CodeNetns, "CNI_NETNS %q: is the plugin's own network namespace; want the container's", r.netns)
	}
	return errorf(CodeNetns, "CNI_NETNS %q: %w", r.netns, err)
}

// valid gives GC's list of attachments that are still in use.
func (r *request) valid() ([]attachment, error) {
	if len(r.conf.Valid) == 0 {
		return nil, errorf(CodeConfig, "key %q: is missing; want the list of attachments that are in use", "cni.dev/valid-attachments")
	}
	var out []attachment
	if err := decode(r.conf.Valid, &out); err != nil {
		return nil, fmt.Errorf("key %q: %w", "cni.dev/valid-attachments", err)
	}
	return out, nil
}

// askedMAC gives the hardware address that the container's interface is to have, "" for any: what the runtime asks for
// comes before what the configuration says.
func (r *request) askedMAC(conf string) string {
	for _, mac := range []string{r.conf.RuntimeConfig.MAC, r.conf.Args.CNI.MAC, r.args.MAC} {
		if mac != "" {
			return mac
		}
	}
	return conf
}

// errNoPrev says that CHECK was called without what ADD gave.
var errNoPrev = errors.New("prevResult is missing; want the result of the ADD")

func (r *request) needPrev() error {
	if r.prev == nil {
		return errorf(CodeConfig, "%w", errNoPrev)
	}
	return nil
}
