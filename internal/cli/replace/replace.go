// Package replace puts files into a folder in place of others, and back. Each name goes from what was there to what is put
// there in one step, so that a program that is started meanwhile finds either; what is replaced is kept, and comes back as
// the very file that it was (owner, mode, times, hard links). It may be interrupted at any point: the next call, of either
// kind, goes on from what it finds.
//
// Beside the files, in a folder ".seine", are a manifest and, by a second hard link each, the files that were replaced.
package replace

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// store is the folder beside the files.
const store = ".seine"

// manifestName is the file in store that says what was put where.
const manifestName = "manifest.json"

// ErrChanged says that something is not as it was left: it is kept as it is.
var ErrChanged = errors.New("changed since it was put there")

// File is one to be put: with Link a symbolic link, else a regular file.
type File struct {
	// Name is a base name.
	Name string
	Data []byte
	Mode fs.FileMode
	Link string
}

// Op is what is done about a name.
type Op string

// What can be done.
const (
	Create  Op = "create"  // there was nothing
	Replace Op = "replace" // what was there is kept
	Update  Op = "update"  // in place of what was put there earlier
	Same    Op = "same"    // it is there already
	Restore Op = "restore" // what was replaced comes back
	Remove  Op = "remove"  // there was nothing before
	Keep    Op = "keep"    // it is not what was put there, and is left alone
)

// Action is what was done, or would be, about one path.
type Action struct {
	Op   Op     `json:"op"`
	Path string `json:"path"`
	// Was is what is at the path before, Now what is there afterwards; "" for nothing.
	Was string `json:"was,omitempty"`
	Now string `json:"now,omitempty"`
}

// Options are what both directions can be told.
type Options struct {
	// DryRun says what would be done and does nothing.
	DryRun bool
	// Step is called before each change; an error ends the call there and then, as a crash would. May be nil.
	Step func(what string) error
}

// manifest says what was put into a folder.
type manifest struct {
	// Made says that the folder itself was made.
	Made    bool     `json:"made,omitempty"`
	Entries []*entry `json:"entries"`
}

// entry is about one name.
type entry struct {
	Name string `json:"name"`
	// Was is what was replaced; nil for nothing.
	Was *state `json:"was,omitempty"`
	// Ours are the identities of what was put there, of earlier calls too.
	Ours []string `json:"ours"`
}

func (m *manifest) find(name string) *entry {
	i := slices.IndexFunc(m.Entries, func(e *entry) bool { return e.Name == name })
	if i < 0 {
		return nil
	}
	return m.Entries[i]
}

// folder is one that is being worked on.
type folder struct {
	path string
	opts Options
	manifest
	known   bool // there is a manifest
	actions []Action
	lock    *os.File
}

// open locks a folder and reads its manifest. A folder that is not there, or has no store, is as good as one without.
func open(path string, o Options) (*folder, error) {
	f := &folder{path: path, opts: o}
	dir, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	if st, err := dir.Stat(); err != nil || !st.IsDir() {
		dir.Close()
		return nil, fmt.Errorf("%s: is no folder (%v)", path, err)
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		dir.Close()
		return nil, fmt.Errorf("%s: is being worked on by another program: %w", path, err)
	}
	f.lock = dir
	data, err := os.ReadFile(f.kept(manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &f.manifest)
	}
	if err != nil {
		f.close()
		return nil, fmt.Errorf("manifest %s: %w", f.kept(manifestName), err)
	}
	f.known = true
	return f, nil
}

func (f *folder) close() {
	if f.lock != nil {
		f.lock.Close() // and with it the lock
	}
}

func (f *folder) at(name string) string   { return filepath.Join(f.path, name) }
func (f *folder) kept(name string) string { return filepath.Join(f.path, store, name) }
func (f *folder) temp(name string) string { return filepath.Join(f.path, store, name+".tmp") }

// do makes one change.
func (f *folder) do(what string, change func() error) error {
	if f.opts.Step != nil {
		if err := f.opts.Step(what); err != nil {
			return err
		}
	}
	return change()
}

// Put puts files into a folder, which is made if it is not there, in their order.
func Put(dir string, files []File, o Options) ([]Action, error) {
	f, err := open(dir, o)
	if err != nil {
		return nil, err
	}
	defer func() { f.close() }()
	before := map[string]*state{}
	for _, x := range files {
		if before[x.Name], err = look(f.at(x.Name)); err != nil {
			return nil, err
		}
		if s := before[x.Name]; s != nil && s.Kind == "" {
			return nil, fmt.Errorf("%s: is neither a file nor a link, and is not replaced", f.at(x.Name))
		}
		f.note(x, before[x.Name])
	}
	if o.DryRun {
		return f.actions, nil
	}
	if f.lock == nil {
		if err := f.make(); err != nil {
			return nil, err
		}
	}
	if err := f.keep(files, before); err != nil {
		return nil, err
	}
	for _, x := range files {
		if s := before[x.Name]; s != nil && s.identity() == x.identity() && s.mode() == x.Mode {
			continue
		}
		if err := f.put(f.at(x.Name), f.temp(x.Name), x); err != nil {
			return nil, err
		}
	}
	return f.actions, f.sync(f.path)
}

// note says what is to be done about a file and enters it into the manifest.
func (f *folder) note(x File, was *state) {
	a := Action{Op: Create, Path: f.at(x.Name), Was: was.String(), Now: x.String()}
	e := f.find(x.Name)
	if e == nil {
		e = &entry{Name: x.Name}
		f.Entries = append(f.Entries, e)
	}
	switch {
	case was == nil:
	case !slices.Contains(e.Ours, was.identity()):
		a.Op, e.Was = Replace, was
	case was.identity() == x.identity() && was.mode() == x.Mode:
		a.Op = Same
	default:
		a.Op = Update
	}
	if !slices.Contains(e.Ours, x.identity()) {
		e.Ours = append(e.Ours, x.identity())
	}
	f.actions = append(f.actions, a)
}

// aside is where a folder is made: it comes to its place with a manifest that says so.
func (f *folder) aside() string { return f.path + store + ".tmp" }

// make makes the folder, and takes its lock.
func (f *folder) make() error {
	manifest, err := json.Marshal(manifest{Made: true, Entries: []*entry{}})
	if err != nil {
		return err
	}
	err = f.do("make "+f.aside(), func() error {
		if err := os.RemoveAll(f.aside()); err != nil { // of a call that was interrupted
			return err
		}
		if err := os.MkdirAll(f.aside(), 0o755); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(f.aside(), store), 0o700); err != nil {
			return err
		}
		return writeFile(filepath.Join(f.aside(), store, manifestName), manifest, 0o600)
	})
	if err != nil {
		return err
	}
	if err := f.do("make "+f.path, func() error { return os.Rename(f.aside(), f.path) }); err != nil {
		return err
	}
	locked, err := open(f.path, f.opts)
	if err != nil {
		return err
	}
	f.lock, f.Made = locked.lock, true
	return nil
}

// keep keeps what is about to be replaced, and only then writes the manifest: as long as that is not there, nothing has
// been replaced.
func (f *folder) keep(files []File, before map[string]*state) error {
	if err := f.do("make "+f.kept(""), func() error { return os.MkdirAll(f.kept(""), 0o700) }); err != nil {
		return err
	}
	for i, x := range files {
		if f.actions[i].Op != Replace || before[x.Name].sameFile(f.kept(x.Name)) {
			continue
		}
		err := f.do("keep "+f.at(x.Name), func() error {
			if err := os.Remove(f.temp(x.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := os.Link(f.at(x.Name), f.temp(x.Name)); err != nil { // of a link it links the link itself
				return err
			}
			return os.Rename(f.temp(x.Name), f.kept(x.Name))
		})
		if err != nil {
			return err
		}
	}
	if err := f.sync(f.kept("")); err != nil {
		return err
	}
	return f.write()
}

// write writes the manifest.
func (f *folder) write() error {
	data, err := json.MarshalIndent(f.manifest, "", "  ")
	if err != nil {
		return err
	}
	return f.put(f.kept(manifestName), f.temp(manifestName), File{Name: manifestName, Data: append(data, '\n'), Mode: 0o600})
}

// put makes a file aside and moves it to its place.
func (f *folder) put(path, temp string, x File) error {
	err := f.do("make "+temp, func() error {
		if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if x.Link != "" {
			return os.Symlink(x.Link, temp)
		}
		return writeFile(temp, x.Data, x.Mode)
	})
	if err != nil {
		return err
	}
	if err := f.do("put "+path, func() error { return os.Rename(temp, path) }); err != nil {
		return err
	}
	return f.sync(filepath.Dir(path))
}

// writeFile makes a file of which all is on disk when it returns.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	if err == nil {
		err = w.Chmod(mode)
	}
	if err == nil {
		err = w.Sync()
	}
	return errors.Join(err, w.Close())
}

// sync has a folder's names on disk.
func (f *folder) sync(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
