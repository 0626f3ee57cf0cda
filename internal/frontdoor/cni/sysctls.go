package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// sysctl is one that tuning is asked to set.
type sysctl struct {
	// key is the name as the configuration has it, name the same with dots, path below /proc/sys.
	key, name, path string
	value           string
}

// sysctlConf is an object of sysctls in the order of its text: a key that is written twice would be lost in a map.
type sysctlConf []sysctl

// UnmarshalJSON implements json.Unmarshaler.
func (c *sysctlConf) UnmarshalJSON(data []byte) error {
	*c = nil
	if string(data) == "null" {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return &wrongType{cause: errorf(CodeDecode, "key %q: is no object (%.100s); want one such as %s", "sysctl", data, `{"net.core.somaxconn": "500"}`)}
	}
	for d.More() {
		k, err := d.Token()
		if err != nil {
			return err
		}
		v, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := k.(string)
		value, ok := v.(string)
		if !ok {
			return &wrongType{cause: errorf(CodeDecode, "key %q: is no string (%v); want one such as %q", "sysctl."+key, v, "1")}
		}
		*c = append(*c, sysctl{key: key, value: value})
	}
	return nil
}

// mergeSysctls validates the configuration's sysctls and those of args.cni, which go first.
func mergeSysctls(conf, args sysctlConf, ifname string) ([]sysctl, error) {
	out, err := conf.parse("sysctl", ifname)
	if err != nil {
		return nil, err
	}
	over, err := args.parse("args.cni.sysctl", ifname)
	if err != nil {
		return nil, err
	}
	out = slices.DeleteFunc(out, func(s sysctl) bool {
		return slices.ContainsFunc(over, func(o sysctl) bool { return o.path == s.path })
	})
	return append(out, over...), nil
}

func (c sysctlConf) parse(field, ifname string) ([]sysctl, error) {
	var out []sysctl
	first := map[string]string{}
	for _, s := range c {
		s.path = strings.TrimPrefix(slashes(s.key), "/")
		s.name = swap(s.path)
		s.path = strings.Replace(s.path, "IFNAME", ifname, 1)
		if !strings.HasPrefix(s.path, "net/") || path.Clean(s.path) != s.path || strings.ContainsRune(s.path, 0) {
			return nil, invalid(field+"."+s.key, s.value, "is no sysctl of the network", "a name such as net.core.somaxconn or net/ipv4/conf/IFNAME/arp_notify")
		}
		if twice, ok := first[s.path]; ok {
			return nil, invalid(field+"."+s.key, s.value, fmt.Sprintf("is there twice (as %q before)", twice), "each sysctl once")
		}
		first[s.path] = s.key
		out = append(out, s)
	}
	return out, nil
}

// slashes gives a name with slashes between its parts. Whichever of dot and slash comes first is what parts it, and the
// other stands for a dot in a part, as in an interface's name (sysctl.d(5)).
func slashes(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		return swap(key)
	}
	return key
}

func swap(s string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, s)
}

// allowlist is the file with a regular expression on each line that says which sysctls may be set; all may where there is
// none.
const allowlist = "/etc/cni/tuning/allowlist.conf"

// allowed holds the sysctls to the allowlist: their names as they are written, or with dots.
func (t *tuned) allowed() error {
	file := t.r.host.Allowlist
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errorf(CodeIO, "allowlist of sysctls: %w", err)
	}
	var list []*regexp.Regexp
	for i, line := range strings.Split(string(data), "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		re, err := regexp.Compile(line)
		if err != nil {
			return errorf(CodeConfig, "allowlist of sysctls: %s:%d: %q is no regular expression: %w", file, i+1, line, err)
		}
		list = append(list, re)
	}
	for _, s := range t.sysctls {
		ok := slices.ContainsFunc(list, func(re *regexp.Regexp) bool { return re.MatchString(s.key) || re.MatchString(s.name) })
		if !ok {
			return invalid("sysctl."+s.key, s.value, "is not allowed", "one that "+file+" has an expression for")
		}
	}
	return nil
}
