package cni

import (
	"context"
	"errors"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// collect removes everything of a network that is marked as an attachment's that is not among valid, whichever plugin
// made it, and chains that nobody jumps to any more. Links are looked for on the machine and in the namespaces given.
func collect(ctx context.Context, r *request, valid []attachment, namespaces ...string) error {
	unlock, err := r.host.Lock(true) // no ADD may be about to jump to a chain that is being removed
	if err != nil {
		return err
	}
	defer unlock()
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{table(), guardTable()}, Mark: markPrefix, MarkNS: namespaces})
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, a := range valid {
		keep[ident{r.conf.Name, a.ContainerID, a.IfName}.key()] = true
	}
	network := networkMark(r.conf.Name)
	var changes []kernel.Change
	var walls []*kernel.Element
	used := map[string]bool{}
	var left []kernel.Object
	for _, o := range objs {
		key, _, _ := strings.Cut(markOf(o), " ")
		e, isElement := o.(*kernel.Element)
		switch {
		case key == "":
		case strings.HasPrefix(key, network) && !keep[key]:
			if isElement && isPass(e) {
				walls = append(walls, e)
			}
			if isElement {
				o = withFlush(e)
			}
			changes = append(changes, kernel.Change{Op: kernel.Delete, Old: o})
		case isElement:
			used[strings.TrimPrefix(strings.TrimPrefix(e.Data, "jump "), "goto ")] = true
			left = append(left, o)
		}
	}
	if err := dropSources(ctx, r, walls); err != nil {
		return err
	}
	idle, err := idleWalls(ctx, r, left)
	if err != nil {
		return err
	}
	changes = append(changes, idle...)
	for _, o := range objs {
		if c, ok := o.(*kernel.TableChain); ok && c.Chain.Hook == "" && !used[c.Chain.Name] {
			changes = append(changes, kernel.Change{Op: kernel.Delete, Old: c})
		}
	}
	return errors.Join(applyAll(ctx, r.kernel, changes)...)
}
