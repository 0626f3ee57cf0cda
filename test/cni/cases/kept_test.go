package cases_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/testkit"
)

// sysctlsOf adds those values of links that are not the namespace's default, and those that are the namespace's own.
func (w *world) sysctlsOf(n *testkit.NS) error {
	return n.Do(func() error {
		for _, dir := range []string{"net/ipv4", "net/ipv6", "net/core", "net/bridge"} {
			for key, value := range values(dir) {
				w.add(n, "sysctl", dir+"/"+key, value)
			}
		}
		for _, dir := range []string{"net/ipv4/conf", "net/ipv6/conf"} {
			byDefault := values(dir + "/default")
			for key, value := range byDefault {
				w.add(n, "sysctl", dir+"/default/"+key, value)
			}
			for key, value := range values(dir + "/all") {
				w.add(n, "sysctl", dir+"/all/"+key, value)
			}
			for _, l := range w.links[n] {
				for key, value := range values(dir + "/" + l.Attrs().Name) {
					if value != byDefault[key] && key != "mtu" {
						w.add(n, "sysctl", dir+"/"+l.Attrs().Name+"/"+key, value)
					}
				}
			}
		}
		return nil
	})
}

// keys are the files of folders in /proc/sys that were listed: the links' folders are all alike.
var keys sync.Map

// values reads the files in a folder of /proc/sys, those that can be read.
func values(dir string) map[string]string {
	alike := dir
	if strings.Contains(dir, "/conf/") {
		alike = filepath.Dir(dir)
	}
	names, ok := keys.Load(alike)
	if !ok {
		var list []string
		entries, _ := os.ReadDir(filepath.Join("/proc/sys", dir)) // the kernel may have no such thing
		for _, e := range entries {
			if !e.IsDir() {
				list = append(list, e.Name())
			}
		}
		if names = list; len(list) > 0 {
			keys.Store(alike, list)
		}
	}
	all := map[string]string{}
	buf := make([]byte, 4096)
	for _, name := range names.([]string) {
		// os.ReadFile takes twice as long, which in the VM lab are seconds.
		fd, err := unix.Open("/proc/sys/"+dir+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // the link has gone, or nobody may read it
		}
		if n, err := unix.Read(fd, buf); err == nil {
			all[name] = strings.Join(strings.Fields(string(buf[:n])), " ")
		}
		_ = unix.Close(fd)
	}
	return all
}

// files adds what is in the folders where plugins keep something.
func (w *world) files() error {
	for _, dir := range []string{"/run", "/var/lib"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if path == netnsDir {
				return fs.SkipDir
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() || d.Name() == "xtables.lock" {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			w.lines = append(w.lines, fmt.Sprintf("HOST file %s %q", w.stable(path), w.stable(string(text))))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hashed are the parts of names that stand for an attachment.
var hashed = regexp.MustCompile(`[0-9a-f]{12,}`)

// object is a part of nft's listing.
type object struct {
	Family, Table, Name, Chain string
	Elem                       []json.RawMessage
}

// filter adds the machine's nftables, those of iptables too: how many rules each chain has, and the elements of sets.
func (w *world) filter() error {
	cmd := exec.CommandContext(w.Context(), "nft", "-j", "list", "ruleset")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := w.machine.do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("nft: %w: %s", err, stderr.String())
	}
	var all struct {
		Nftables []struct{ Set, Map, Chain, Rule *object }
	}
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		return fmt.Errorf("nft: %w", err)
	}
	rules := map[string]int{}
	for _, o := range all.Nftables {
		for _, set := range []*object{o.Set, o.Map} {
			if set == nil {
				continue
			}
			for _, e := range set.Elem {
				w.add(w.machine.host, "nft", hashed.ReplaceAllString(fmt.Sprintf("%s %s %s element %s", set.Family, set.Table, set.Name, e), "HASH"))
			}
		}
		if o.Chain != nil {
			rules[fmt.Sprintf("%s %s %s", o.Chain.Family, o.Chain.Table, o.Chain.Name)] += 0
		}
		if o.Rule != nil {
			rules[fmt.Sprintf("%s %s %s", o.Rule.Family, o.Rule.Table, o.Rule.Chain)]++
		}
	}
	for chain, n := range rules {
		// Chains without rules come with any table of iptables; those with a hash are an attachment's.
		if n > 0 || hashed.MatchString(chain) {
			w.add(w.machine.host, "nft", hashed.ReplaceAllString(chain, "HASH"), fmt.Sprintf("has %d rules", n))
		}
	}
	return nil
}
