package cni

import (
	"context"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// The table (family bridge) of ports that may send from one hardware address only: bridge's macspoofchk. What table.go
// says about shapes and names holds here too.
//
//	prerouting   of a guarded port, drop what does not come from its container's address
var (
	guardPorts   = &kernel.Set{Name: "guarded", Key: []kernel.Type{kernel.TypeIfname}}
	guardSources = &kernel.Set{Name: "source", Key: []kernel.Type{kernel.TypeIfname, kernel.TypeEther}}
)

func guardTable() *kernel.Table {
	return &kernel.Table{
		Family: kernel.FamilyBridge,
		Name:   tableName,
		Sets:   []*kernel.Set{guardPorts, guardSources},
		Chains: []*kernel.Chain{{Name: "prerouting", Type: "filter", Hook: "prerouting", Priority: -300, Rules: []string{
			"iifname @guarded iifname . ether saddr != @source drop",
		}}},
	}
}

func guardElement(set *kernel.Set, item, comment string) *kernel.Element {
	return &kernel.Element{Family: kernel.FamilyBridge, Table: tableName, Set: set, Item: item, Comment: comment}
}

// guard gives the elements of an attachment. That of its port says the address in its comment, so that DEL needs no
// prevResult.
func guard(a *attaching) []kernel.Object {
	if a.check { // the address may have been changed on purpose since
		return []kernel.Object{guardElement(guardPorts, a.host, "")}
	}
	key, names, _ := strings.Cut(a.alias, " ")
	mark := key + " " + a.mac + " " + names
	return []kernel.Object{guardElement(guardPorts, a.host, mark[:min(len(mark), markLen)]),
		guardElement(guardSources, a.host+" . "+a.mac, a.alias)}
}

// guarder is a maker whose attachments may have elements of guardTable.
type guarder interface{ guards() bool }

func (b *bridge) guards() bool { return b.MACSpoofCheck }

// findGuard gives the elements that the attachment may have.
func findGuard(ctx context.Context, r *request) ([]kernel.Object, error) {
	id := r.ident()
	port := guardElement(guardPorts, id.veth(), "")
	objs, err := r.kernel.List(ctx, kernel.Scope{Objects: []kernel.Object{port}})
	if err != nil {
		return nil, err
	}
	out := []kernel.Object{port}
	for _, o := range objs {
		e, ok := o.(*kernel.Element)
		if !ok || !id.marked(e.Comment) {
			continue
		}
		if words := strings.Fields(e.Comment); len(words) > 1 {
			if mac, err := validMAC(words[1]); err == nil {
				out = append(out, guardElement(guardSources, id.veth()+" . "+mac, ""))
			}
		}
	}
	return out, nil
}
