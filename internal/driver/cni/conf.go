package cni

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
)

// versions are those of the specification that are spoken.
var versions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// list is a network configuration.
type list struct {
	name, version string
	noCheck       bool
	Plugins       []plugin
}

// plugin is one plugin's part of it, as it stands there.
type plugin struct {
	kind         string
	keys         map[string]json.RawMessage
	capabilities map[string]bool
}

// maxConfig is the size of a configuration in bytes.
const maxConfig = 1 << 20

// parse reads a .conflist, or the .conf of one plugin.
func parse(data []byte) (*list, error) {
	var head struct {
		CNIVersion, Name string
		CNIVersions      []string
		DisableCheck     bool
		Plugins          *[]map[string]json.RawMessage
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("is no configuration: %w", err)
	}
	l := &list{name: head.Name, version: cmp.Or(head.CNIVersion, "0.1.0"), noCheck: head.DisableCheck}
	for _, v := range head.CNIVersions {
		if slices.Contains(versions, v) && (!slices.Contains(versions, l.version) || older(l.version, v)) {
			l.version = v
		}
	}
	if !slices.Contains(versions, l.version) {
		return nil, fmt.Errorf("has cniVersion %q; want one of %s", l.version, strings.Join(versions, ", "))
	}
	if err := checkName(l.name); err != nil {
		return nil, fmt.Errorf("has the name %q, which %w", l.name, err)
	}
	plugins := head.Plugins
	if plugins == nil {
		plugins = &[]map[string]json.RawMessage{{}}
		if err := json.Unmarshal(data, &(*plugins)[0]); err != nil {
			return nil, err
		}
	}
	for i, keys := range *plugins {
		p := plugin{keys: keys}
		if err := json.Unmarshal(keys["type"], &p.kind); err != nil || checkName(p.kind) != nil {
			return nil, fmt.Errorf("has plugins[%d] with type %s, which is no name of a plugin", i, keys["type"])
		}
		if c := keys["capabilities"]; c != nil {
			if err := json.Unmarshal(c, &p.capabilities); err != nil {
				return nil, fmt.Errorf("has plugins[%d] with capabilities that are not true or false: %w", i, err)
			}
		}
		l.Plugins = append(l.Plugins, p)
	}
	if len(l.Plugins) == 0 {
		return nil, errors.New("has no plugins")
	}
	return l, nil
}

// checkName holds names of networks and plugins to what the specification allows; both become parts of paths.
func checkName(s string) error {
	if s == "" || len(s) > 255 || strings.ContainsAny(s[:1], "_.-") ||
		strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
		return errors.New("is not one of letters, digits, '_', '.' and '-', the first a letter or digit")
	}
	return nil
}

// older compares two of versions.
func older(a, b string) bool { return slices.Index(versions, a) < slices.Index(versions, b) }

// capable says whether a plugin of the list has a capability.
func (l *list) capable(name string) bool {
	return slices.ContainsFunc(l.Plugins, func(p plugin) bool { return p.capabilities[name] })
}

// stdin is what a plugin reads: its part, with what the specification adds.
func (l *list) stdin(i int, runtime map[string]json.RawMessage, prev json.RawMessage) ([]byte, error) {
	p := l.Plugins[i]
	out := map[string]any{}
	for k, v := range p.keys {
		if k != "capabilities" && k != "cniVersions" && k != "runtimeConfig" {
			out[k] = v
		}
	}
	out["name"], out["cniVersion"] = l.name, l.version
	config := map[string]json.RawMessage{}
	for k, v := range runtime {
		if p.capabilities[k] {
			config[k] = v
		}
	}
	if len(config) > 0 {
		out["runtimeConfig"] = config
	}
	if len(prev) > 0 {
		out["prevResult"] = prev
	}
	return json.Marshal(out)
}

// found is a configuration with the option that led to it.
type found struct {
	option, value string
	data          []byte
}

// find reads the configuration that the options name.
func find(noun string, options map[string]string) (found, error) {
	file, name := options[OptConfig], options[OptNetwork]
	dir := cmp.Or(options[OptConfDir], DefaultConfDir)
	switch {
	case (file == "") == (name == ""):
		return found{}, api.FieldError(noun, "options", file, fmt.Sprintf("has both or none of %s and %s", OptConfig, OptNetwork), "one of the two")
	case file != "":
		if !filepath.IsAbs(file) {
			return found{}, api.FieldError(noun, "options."+OptConfig, file, "is no absolute path", "the path of a file on the daemon's machine")
		}
		data, err := read(file)
		if err != nil {
			return found{}, api.FieldError(noun, "options."+OptConfig, file, err.Error(), "a file with a network configuration")
		}
		return found{OptConfig, file, data}, nil
	case !filepath.IsAbs(dir):
		return found{}, api.FieldError(noun, "options."+OptConfDir, dir, "is no absolute path", "a folder such as "+DefaultConfDir)
	}
	var names []string
	files, err := os.ReadDir(dir)
	if err != nil {
		return found{}, api.FieldError(noun, "options."+OptConfDir, dir, err.Error(), "a folder with network configurations")
	}
	for _, f := range files { // by name, as runtimes take them
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(f.Name())) {
			continue
		}
		data, err := read(filepath.Join(dir, f.Name()))
		if err != nil {
			continue
		}
		var head struct{ Name string }
		if json.Unmarshal(data, &head) == nil && head.Name == name {
			return found{OptNetwork, name, data}, nil
		}
		names = append(names, strconv.Quote(head.Name))
	}
	return found{}, api.FieldError(noun, "options."+OptNetwork, name, "is not in "+dir, cmp.Or(strings.Join(names, ", "), "a folder that has configurations"))
}

func read(path string) ([]byte, error) {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, errors.New("is no file")
	case st.Size() > maxConfig:
		return nil, fmt.Errorf("is larger than %d bytes", maxConfig)
	}
	return os.ReadFile(path)
}

func checkPath(noun, path string) error {
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			return api.FieldError(noun, "options."+OptPath, path, fmt.Sprintf("has %q, which is no absolute path", dir), "folders such as "+DefaultPath)
		}
	}
	return nil
}

// look finds a plugin's program.
func look(kind, path string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, kind)
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("names plugin %q, which is not in %s", kind, path)
}
