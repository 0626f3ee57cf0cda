package replace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// Back takes out of a folder what Put put there and brings back what it replaced, last first. Nothing to do is success.
// What somebody else changed meanwhile is left alone: with something of ours kept for it, that is ErrChanged, once all else
// is done.
func Back(dir string, o Options) ([]Action, error) {
	f, err := open(dir, o)
	if err != nil {
		return nil, err
	}
	defer f.close()
	if f.lock == nil && !o.DryRun {
		return nil, f.do("remove "+f.aside(), func() error { return os.RemoveAll(f.aside()) })
	}
	if !f.known {
		return nil, f.tidy()
	}
	var left []*entry
	var changed []error
	for _, e := range slices.Backward(f.Entries) {
		err := f.back(e)
		if errors.Is(err, ErrChanged) {
			left, changed = append(left, e), append(changed, err)
		} else if err != nil {
			return f.actions, err
		}
	}
	if o.DryRun {
		return f.actions, errors.Join(changed...)
	}
	if len(left) > 0 {
		slices.Reverse(left)
		f.Entries = left
		return f.actions, errors.Join(append(changed, f.write())...)
	}
	if err := f.sync(f.path); err != nil {
		return f.actions, err
	}
	if gone, err := f.unmake(); gone || err != nil {
		return f.actions, err
	}
	if err := f.do("remove the manifest", func() error { return os.Remove(f.kept(manifestName)) }); err != nil {
		return f.actions, err
	}
	return f.actions, f.tidy()
}

// unmake removes a folder that was made for the files and has nothing else by now. It goes aside first, with the manifest,
// so that it does not stay behind without one.
func (f *folder) unmake() (gone bool, err error) {
	entries, err := os.ReadDir(f.path)
	if !f.Made || err != nil || len(entries) != 1 || entries[0].Name() != store {
		return false, err
	}
	err = f.do("remove "+f.path, func() error {
		if err := os.RemoveAll(f.aside()); err != nil {
			return err
		}
		return os.Rename(f.path, f.aside())
	})
	if err != nil {
		return false, err
	}
	return true, f.do("remove "+f.aside(), func() error { return os.RemoveAll(f.aside()) })
}

// back does what is to be done about one name. When it has been done, doing it again does nothing.
func (f *folder) back(e *entry) error {
	now, err := look(f.at(e.Name))
	if err != nil {
		return err
	}
	kept, err := look(f.kept(e.Name))
	if err != nil {
		return err
	}
	a := Action{Path: f.at(e.Name), Was: now.String(), Now: kept.String()}
	ours := now != nil && slices.Contains(e.Ours, now.identity())
	switch {
	case kept != nil && now != nil && now.sameFile(f.kept(e.Name)): // it never was replaced
		return f.change("", a, func() error { return os.Remove(f.kept(e.Name)) })
	case kept != nil && (now == nil || ours):
		return f.change(Restore, a, func() error { return os.Rename(f.kept(e.Name), f.at(e.Name)) })
	case kept != nil:
		f.actions = append(f.actions, Action{Op: Keep, Path: a.Path, Was: a.Was, Now: a.Was})
		return fmt.Errorf("%s: %w (it is a %s): it is kept, and what was there before is in %s; remove one of the two and try again",
			a.Path, ErrChanged, now, f.kept(e.Name))
	case now == nil || e.Was != nil && now.equal(e.Was): // it is done
		return nil
	case ours && e.Was != nil:
		f.actions = append(f.actions, Action{Op: Keep, Path: a.Path, Was: a.Was, Now: a.Was})
		return fmt.Errorf("%s: %w: %s, which was there before, is gone from %s; remove %[1]s, or put the other one back, and try again",
			a.Path, ErrChanged, e.Was, f.kept(e.Name))
	case ours:
		return f.change(Remove, a, func() error { return os.Remove(f.at(e.Name)) })
	}
	f.actions = append(f.actions, Action{Op: Keep, Path: a.Path, Was: a.Was, Now: a.Was}) // somebody else's, and nothing to bring back
	return nil
}

func (f *folder) change(op Op, a Action, do func() error) error {
	if op != "" {
		a.Op = op
		f.actions = append(f.actions, a)
	}
	if f.opts.DryRun {
		return nil
	}
	return f.do(string(op)+" "+a.Path, do)
}

// tidy removes a store without a manifest. What it still has is kept, unless it is a second link to what is in place.
func (f *folder) tidy() error {
	if f.opts.DryRun {
		return nil
	}
	entries, err := os.ReadDir(f.kept(""))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	known := func(name string) bool { // a file that was made aside and not moved
		return len(name) > 4 && name[len(name)-4:] == ".tmp"
	}
	for _, e := range entries {
		in, err := look(f.at(e.Name()))
		if err != nil {
			return err
		}
		if !known(e.Name()) && (in == nil || !in.sameFile(f.kept(e.Name()))) {
			return fmt.Errorf("%s: is kept, but no manifest says what for; look at it, and remove it", f.kept(e.Name()))
		}
		if err := f.do("tidy "+e.Name(), func() error { return os.Remove(f.kept(e.Name())) }); err != nil {
			return err
		}
	}
	return f.do("remove "+f.kept(""), func() error { return os.Remove(f.kept("")) })
}

// Kept gives the names in a folder that something is kept for, and the folder where it is.
func Kept(dir string) (names []string, where string, err error) {
	f := &folder{path: dir}
	entries, err := os.ReadDir(f.kept(""))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, e := range entries {
		if e.Name() != manifestName {
			names = append(names, e.Name())
		}
	}
	return names, f.kept(""), err
}
