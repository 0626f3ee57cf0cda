package cni

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// subnetEnv is what flanneld writes about the node's subnet, IPv4 before IPv6.
type subnetEnv struct {
	networks, subnets []netip.Prefix
	mtu               int
	// ipMasq says that flanneld masquerades itself.
	ipMasq bool
}

// readSubnetEnv reads the file. Where it is not there yet the error is to try again.
func readSubnetEnv(path string) (*subnetEnv, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errorf(CodeTryAgain, "subnetFile %q: is not there: flanneld has not got this node a subnet yet, or does not run (its log tells why); want the file that it writes", path)
	}
	if err != nil {
		return nil, errorf(CodeIO, "subnetFile: %w", err)
	}
	env, err := parseSubnetEnv(data)
	if err != nil {
		return nil, fmt.Errorf("subnetFile %q: %w", path, err)
	}
	return env, nil
}

// The file's keys (flannel, pkg/subnet, WriteSubnetFile).
const (
	envNetwork, envNetwork6 = "FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"
	envSubnet, envSubnet6   = "FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"
	envMTU, envIPMasq       = "FLANNEL_MTU", "FLANNEL_IPMASQ"
)

// parseSubnetEnv reads lines KEY=VALUE; keys that it has no use for are passed over.
func parseSubnetEnv(data []byte) (*subnetEnv, error) {
	values := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if !ok && strings.HasPrefix(key, "FLANNEL_") {
			return nil, invalid(key, "", "has no value", "KEY=VALUE")
		}
		values[key] = strings.TrimSpace(value)
	}
	if err := lines.Err(); err != nil {
		return nil, errorf(CodeDecode, "%w", err)
	}
	env := &subnetEnv{}
	for _, f := range []struct {
		key  string
		v4   bool
		into *[]netip.Prefix
	}{{envNetwork, true, &env.networks}, {envNetwork6, false, &env.networks}, {envSubnet, true, &env.subnets}, {envSubnet6, false, &env.subnets}} {
		list, err := envPrefixes(f.key, values[f.key], f.v4, f.into == &env.networks)
		if err != nil {
			return nil, err
		}
		*f.into = append(*f.into, list...)
	}
	switch {
	case len(env.networks) == 0:
		return nil, invalid(envNetwork, "", "is missing, and "+envNetwork6+" too", "at least one of the two")
	case len(env.subnets) == 0:
		return nil, invalid(envSubnet, "", "is missing, and "+envSubnet6+" too", "at least one of the two")
	}
	mtu, err := strconv.Atoi(values[envMTU])
	if err != nil || validMTU(mtu) != nil {
		return nil, invalid(envMTU, values[envMTU], "is no MTU", "68 to 65535, or 0 for the kernel's default")
	}
	switch env.mtu = mtu; values[envIPMasq] {
	case "true":
		env.ipMasq = true
	case "false":
	default:
		return nil, invalid(envIPMasq, values[envIPMasq], "is no boolean", "true or false")
	}
	return env, nil
}

// envPrefixes reads a prefix or, with many, a list of them with commas; "" gives none.
func envPrefixes(key, value string, v4, many bool) ([]netip.Prefix, error) {
	list := splitList(value)
	if !many && len(list) > 1 {
		list = []string{value}
	}
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4() != v4 {
			return nil, invalid(key, s, "is no prefix of its family", map[bool]string{true: "one such as 10.42.0.0/16", false: "one such as fd00:42::/56"}[v4])
		}
		if p = p.Masked(); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out, nil
}

// The delegate's configuration is kept for DEL where the reference keeps it, in dataDir under the container's ID. That
// has room for one attachment of a container: a further one's has a name that no container can have. savedBy is a key
// that says whose interface it is; what the reference wrote has none.
const savedBy = "seine.ifname"

func (f *flannelCall) places() (first, further string) {
	first = filepath.Join(f.conf.DataDir, f.r.containerID)
	return first, first + "@" + short(16, f.r.conf.Name, f.r.ifname)
}

// readSaved reads a saved configuration; nil where there is none that can be read.
func readSaved(path string) (conf map[string]json.RawMessage, network, ifname string) {
	data, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(data, &conf) != nil {
		return nil, "", ""
	}
	_ = json.Unmarshal(conf["name"], &network)
	_ = json.Unmarshal(conf[savedBy], &ifname)
	delete(conf, savedBy)
	return conf, network, ifname
}

// saved finds the attachment's configuration; nil where there is none.
func (f *flannelCall) saved() (map[string]json.RawMessage, string) {
	first, further := f.places()
	for _, path := range []string{further, first} {
		conf, network, ifname := readSaved(path)
		if conf != nil && network == f.r.conf.Name && (ifname == f.r.ifname || ifname == "") {
			return conf, path
		}
	}
	return nil, ""
}

// save keeps the attachment's configuration and gives a function that puts back what was there.
func (f *flannelCall) save(conf map[string]json.RawMessage) (undo func() error, err error) {
	fail := func(err error) (func() error, error) { return nil, errorf(CodeIO, "dataDir: %w", err) }
	was, path := f.saved()
	conf = maps.Clone(conf)
	conf[savedBy] = raw(f.r.ifname)
	if err := os.MkdirAll(f.conf.DataDir, 0o700); err != nil {
		return fail(err)
	}
	tmp, err := writeTemp(f.conf.DataDir, raw(conf))
	if err != nil {
		return fail(err)
	}
	defer os.Remove(tmp)
	if path == "" {
		var further string
		path, further = f.places()
		if err = os.Link(tmp, path); err == nil {
			return func() error { return remove(path) }, nil
		} else if !errors.Is(err, fs.ErrExist) {
			return fail(err)
		}
		path = further
	}
	if err := os.Rename(tmp, path); err != nil {
		return fail(err)
	}
	if was == nil {
		return func() error { return remove(path) }, nil
	}
	return func() error { // of an attachment that is there already
		was[savedBy] = raw(f.r.ifname)
		tmp, err := writeTemp(f.conf.DataDir, raw(was))
		if err == nil {
			err = os.Rename(tmp, path)
		}
		return err
	}, nil
}

// tempPrefix begins the names of files that are being written: no container's ID begins with a point.
const tempPrefix = ".seine-"

// writeTemp writes a file beside the others. It is not made sure to be on disk: DEL can do without.
func writeTemp(dir string, data []byte) (string, error) {
	t, err := os.CreateTemp(dir, tempPrefix) // mode 0600
	if err != nil {
		return "", err
	}
	_, err = t.Write(data)
	err = errors.Join(err, t.Close())
	if err != nil {
		os.Remove(t.Name())
	}
	return t.Name(), err
}

// prune removes the saved configurations of the network's attachments that are not valid.
func (f *flannelCall) prune(valid []attachment) error {
	entries, err := os.ReadDir(f.conf.DataDir)
	if err != nil {
		return nil // nothing was saved
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(f.conf.DataDir, e.Name())
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if st, err := e.Info(); err == nil && time.Since(st.ModTime()) > time.Minute { // of a process that was killed
				errs = append(errs, remove(path))
			}
			continue
		}
		conf, network, ifname := readSaved(path)
		containerID, _, _ := strings.Cut(e.Name(), "@")
		if conf != nil && network == f.r.conf.Name && !keep(valid, containerID, ifname) {
			errs = append(errs, remove(path))
		}
	}
	return errors.Join(errs...)
}
