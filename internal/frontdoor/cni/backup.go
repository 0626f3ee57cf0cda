package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// backup is what an interface's attributes were before tuning changed them: the reference plugin's file, with two keys
// more that it passes over. Either program can put back what the other changed.
type backup struct {
	MAC      string `json:"mac,omitempty"`
	Promisc  *bool  `json:"promisc,omitempty"`
	MTU      int    `json:"mtu,omitempty"`
	AllMulti *bool  `json:"allmulti,omitempty"`
	TxQLen   *int   `json:"txQLen,omitempty"`
	// Network tells whose the file is, as its name has only container and interface.
	Network string `json:"network,omitempty"`
	// Sandbox tells a file of this container from one that was left behind.
	Sandbox string `json:"sandbox,omitempty"`
}

// newBackup gives what there was of the attributes that are wanted.
func newBackup(want, was *kernel.Attrs) *backup {
	b := &backup{}
	if want.MAC != "" {
		b.MAC = was.MAC
	}
	if want.MTU != 0 {
		b.MTU = was.MTU
	}
	if want.Promisc != nil {
		b.Promisc = was.Promisc
	}
	if want.AllMulti != nil {
		b.AllMulti = was.AllMulti
	}
	if want.TxQLen != nil {
		b.TxQLen = was.TxQLen
	}
	return b
}

func (b *backup) attrs() *kernel.Attrs {
	return &kernel.Attrs{MAC: b.MAC, MTU: b.MTU, Promisc: b.Promisc, AllMulti: b.AllMulti, TxQLen: b.TxQLen}
}

// older adds what another tuning of the same chain had kept before: what came first is what is put back.
func (b *backup) older(o *backup) *backup {
	out := *b
	if o.MAC != "" {
		out.MAC = o.MAC
	}
	if o.MTU != 0 {
		out.MTU = o.MTU
	}
	if o.Promisc != nil {
		out.Promisc = o.Promisc
	}
	if o.AllMulti != nil {
		out.AllMulti = o.AllMulti
	}
	if o.TxQLen != nil {
		out.TxQLen = o.TxQLen
	}
	return &out
}

const backupSuffix = ".json"

func backupName(containerID, ifname string) string { return containerID + "_" + ifname + backupSuffix }

func (t *tuned) file() string { return filepath.Join(t.dir, backupName(t.r.containerID, t.r.ifname)) }

// readBackup reads a file; nil where there is none. What can't be read as one is an empty one.
func readBackup(file string) (*backup, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, os.ErrInvalid) {
		return nil, nil
	}
	if err != nil {
		return nil, errorf(CodeIO, "%w", err)
	}
	b := &backup{}
	if json.Unmarshal(data, b) != nil {
		return &backup{}, nil
	}
	return b, nil
}

// saved gives what was kept of this attachment; nil for nothing.
func (t *tuned) saved() (*backup, error) {
	b, err := readBackup(t.file())
	if err != nil || b == nil || b.Network != "" && b.Network != t.r.conf.Name {
		return nil, err // of a later attachment to another network
	}
	if b.MAC, err = validMAC(b.MAC); err != nil {
		b.MAC = ""
	}
	return b, nil
}

// save writes what was before. restore gives the file back what it was.
func (t *tuned) save(b *backup) (restore func() error, err error) {
	b.Network, b.Sandbox = t.r.conf.Name, t.r.netns
	was, err := readBackup(t.file())
	if err != nil {
		return nil, err
	}
	restore = t.forget
	if was != nil && was.Network == b.Network && was.Sandbox == b.Sandbox {
		restore = func() error { return t.write(was) }
		b = b.older(was)
	}
	return restore, t.write(b)
}

// write replaces the file as a whole: what reads it sees all of it or what was before.
func (t *tuned) write(b *backup) error {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetIndent("", " ")
	if err := e.Encode(b); err != nil {
		return fmt.Errorf("%s: %w", t.file(), err)
	}
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return errorf(CodeIO, "dataDir: %w", err)
	}
	// The name ends in something else, so that a file left by a crash is not taken for another attachment's.
	tmp := t.file() + ".new"
	err := os.WriteFile(tmp, text.Bytes(), 0o600)
	if err == nil {
		err = os.Rename(tmp, t.file())
	}
	if err != nil {
		return errorf(CodeIO, "%w", errors.Join(err, remove(tmp)))
	}
	return nil
}

func remove(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errorf(CodeIO, "%w", err)
	}
	return nil
}

func (t *tuned) forget() error { return errors.Join(remove(t.file()), remove(t.file()+".new")) }

// collect removes the files of the network's attachments that are not valid. Those of the reference plugin don't tell
// their network and stay; the DEL of their attachments removes them.
func (t *tuned) collect(valid []attachment) error {
	entries, err := os.ReadDir(t.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errorf(CodeIO, "dataDir: %w", err)
	}
	keep := map[string]bool{}
	for _, a := range valid {
		keep[backupName(a.ContainerID, a.IfName)] = true
	}
	var errs []error
	for _, e := range entries {
		if keep[e.Name()] || !strings.HasSuffix(e.Name(), backupSuffix) || !e.Type().IsRegular() {
			continue
		}
		file := filepath.Join(t.dir, e.Name())
		b, err := readBackup(file)
		if err == nil && b != nil && b.Network == t.r.conf.Name {
			err = remove(file)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ready reports whether a file could be written.
func (t *tuned) ready() error {
	info, err := os.Stat(t.dir)
	if t.attrs == nil || errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() {
		return nil
	}
	return errorf(CodeUnavailable, "dataDir %q: is no directory; want one, or none yet", t.dir)
}
