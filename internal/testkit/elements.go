package testkit

import (
	"encoding/json"
)

// Elements are the elements of all of nftables' sets and maps in a namespace, each as "SET ELEMENT", the latter in nft's
// JSON. It needs the program nft.
func Elements(t TB, n *NS) []string {
	t.Helper()
	text, err := n.Exec(t.Context(), "nft", "-j", "list", "ruleset")
	if err != nil {
		t.Fatalf("%v", err)
	}
	type set struct {
		Name string
		Elem []json.RawMessage
	}
	var rules struct {
		Nftables []struct{ Set, Map *set }
	}
	if err := json.Unmarshal([]byte(text), &rules); err != nil {
		t.Fatalf("nft: %v", err)
	}
	var out []string
	for _, o := range rules.Nftables {
		for _, s := range []*set{o.Set, o.Map} {
			if s == nil {
				continue
			}
			for _, e := range s.Elem {
				out = append(out, s.Name+" "+string(e))
			}
		}
	}
	return out
}
