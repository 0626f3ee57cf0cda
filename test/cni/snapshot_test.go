package cni_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

// looks are what a namespace holds, one thing per line of output.
const looks = "ip -o -d link; ip -o addr; ip -4 route show table all; ip -6 route show table all; ip -4 rule; ip -6 rule; tc qdisc show"

// fleeting is what changes by itself: numbers of links, timers, what a bridge has learned, and when addresses were tried
// out, and which links have a carrier. The kernel's own link-local addresses and multicast routes come late, its rule for VRFs
// stays, and ip may ask about a namespace that has just ended.
var fleeting = regexp.MustCompile(`[a-z_]+_timer +[0-9.]+|^[0-9]+: |(valid|preferred)_lft \S+|expires \S+|tentative|linkdown|fdb_n_learned \d+|refcnt \d+|` +
	`NO-CARRIER,|,LOWER_UP|state (UP|DOWN|LOWERLAYERDOWN|UNKNOWN)|` +
	`.*\bfe80:.*|.*\bmulticast ff00::.*|.*^anycast .*|.*lookup (\[l3mdev-table\]|unspec)$|^Error: Peer netns reference is invalid\.$`)

// snapshot is all that a namespace has but its sysctls, sorted.
func (r *rig) snapshot(ns *testkit.NS) []string {
	r.Helper()
	text, err := ns.Exec(context.Background(), "sh", "-c", looks)
	if err != nil {
		r.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(fleeting.ReplaceAllString(strings.TrimSpace(line), "")); line != "" {
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return out
}

// everything is all that the machine's namespace, but for its sysctls, and the plugins' folders hold. What attachments share is in it: it is
// made before by another attachment that stays.
func (r *rig) everything() []string {
	r.Helper()
	out := append(r.snapshot(r.machine.NS), r.ruleset()...)
	err := filepath.WalkDir(r.data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "lock" || strings.HasPrefix(d.Name(), "last_reserved_ip.") {
			return err // the latter goes round
		}
		content, err := os.ReadFile(path)
		out = append(out, fmt.Sprintf("file %s %q", strings.TrimPrefix(path, r.data), content))
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// ruleset is all of nftables, with each element of a set by itself, without handles and counts.
func (r *rig) ruleset() []string {
	r.Helper()
	text, err := r.machine.Exec(context.Background(), "nft", "-j", "list", "ruleset")
	if err != nil {
		r.Fatal(err)
	}
	var rules struct{ Nftables []map[string]map[string]any }
	if err := json.Unmarshal([]byte(text), &rules); err != nil {
		r.Fatal(err)
	}
	var out []string
	for _, o := range rules.Nftables {
		for kind, v := range o {
			name := fmt.Sprintf("nft %s %v %v %v", kind, v["family"], v["table"], v["name"])
			if elements, ok := v["elem"].([]any); ok {
				delete(v, "elem")
				for _, e := range elements {
					text, _ := json.Marshal(plain(e))
					out = append(out, name+" "+string(text))
				}
			}
			text, _ := json.Marshal(plain(v))
			out = append(out, name+" "+string(text))
		}
	}
	return out
}

// plain leaves out of nft's JSON what tells nothing.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range []string{"handle", "packets", "bytes", "expires", "index"} {
			delete(v, key)
		}
		for k := range v {
			v[k] = plain(v[k])
		}
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	}
	return v
}

// sysctls are the machine's, sorted.
func (r *rig) sysctls() []string {
	r.Helper()
	var out []string
	err := r.machine.Do(func() error {
		const root = "/proc/sys/net"
		return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.Contains(d.Name(), "conntrack_count") {
				return nil //nolint:nilerr // one that goes meanwhile
			}
			if value, err := os.ReadFile(path); err == nil {
				out = append(out, "sysctl "+strings.TrimPrefix(path, root+"/")+" = "+strings.TrimSpace(string(value)))
			}
			return nil
		})
	})
	if err != nil {
		r.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// settles waits until look gives what it gave before: the kernel ends namespaces and tells of links some time later.
func (r *rig) settles(what string, before []string, look func() []string) {
	r.Helper()
	var more, less []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		now := look()
		more, less = without(now, before), without(before, now)
		if len(more)+len(less) == 0 {
			return
		}
	}
	r.Errorf("%s: is not as before:\nleft behind (%d): %s\ngone (%d): %s", what, len(more), some(more), len(less), some(less))
}

func without(all, these []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { _, found := slices.BinarySearch(these, s); return found })
}

func some(lines []string) string { return strings.Join(lines[:min(len(lines), 12)], "\n\t") }
