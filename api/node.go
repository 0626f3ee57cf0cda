package api

import (
	"encoding/json"
	"net/netip"
)

// Node is a machine that a daemon runs on.
type Node struct {
	// ID is the machine's identity in its cluster: given when it founded or joined it, and the same whatever its name and
	// addresses become. Empty on a machine that is in none.
	ID      string `json:"id,omitempty"`
	Name    string `json:"name"`
	Version string `json:"version"`
	// Addresses are those at which other machines of the cluster reach this one; of each family the first is used.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Labels are the user's own; Seine gives them no meaning.
	Labels map[string]string `json:"labels,omitempty"`
	// Fabrics has by name what each fabric tells other machines about this one, such as a public key.
	Fabrics map[string]json.RawMessage `json:"fabrics,omitempty"`
	// Health is what the other machines think of this one; "" on a machine that is in no cluster.
	Health Health `json:"health,omitempty"`
	// Drained machines are to be left alone by what places containers.
	Drained bool `json:"drained,omitempty"`
	// Revision is that of the store.
	Revision  uint64 `json:"revision"`
	Networks  int    `json:"networks"`
	Endpoints int    `json:"endpoints"`
	// DNS are the fixed addresses of the name server: every container whose default route leads to this machine finds it
	// there, whatever network it is on, and so do the machine's own programs. Empty where that is turned off.
	DNS []netip.Addr `json:"dns,omitempty"`
	// DefaultNetwork is the network of a container whose maker names none.
	DefaultNetwork string `json:"defaultNetwork,omitempty"`
	// Drivers are what networks can be made with, by name.
	Drivers []Driver `json:"drivers,omitempty"`
	// Objects is how many kernel objects are wanted.
	Objects int `json:"objects"`
	// Problems are those that the reconciler could not mend so far, empty when the kernel holds all that is wanted.
	Problems []string `json:"problems,omitempty"`
	// Since is when the daemon started, RFC 3339 in UTC.
	Since string `json:"since"`
}

// Driver is one way in which endpoints get their interface.
type Driver struct {
	Name string `json:"name"`
	// Options are the keys that Network.Options takes, with what they mean.
	Options map[string]string `json:"options,omitempty"`
}

// Health is whether a machine of a cluster answers.
type Health string

// The states of health.
const (
	Alive   Health = "alive"
	Suspect Health = "suspect" // it does not answer, and has a few seconds to do so
	Dead    Health = "dead"    // it does not answer; it may be cut off, and its containers may run
	Left    Health = "left"    // it left the cluster
)

// Address is the machine's first address of a family; the zero Addr for none.
func (n *Node) Address(v4 bool) netip.Addr {
	for _, a := range n.Addresses {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// Change is one difference between what the kernel holds and what it should hold.
type Change struct {
	// Op is "+" (missing), "~" (different) or "-" (unwanted).
	Op string `json:"op"`
	// Object is the wanted or unwanted object in the words of ip(8) and nft(8).
	Object string `json:"object"`
	// Was is what the kernel holds instead, for "~".
	Was string `json:"was,omitempty"`
	// Owner is who wants it: "network/default", "endpoint/default/web"; "" for what nobody wants.
	Owner string `json:"owner,omitempty"`
}

// Plan is what the reconciler would change now.
type Plan struct {
	Changes []Change `json:"changes"`
}

// Finding is something that `seine doctor` noticed about the machine.
type Finding struct {
	// Level is "ok", "note" (was dealt with), or "problem" (needs somebody).
	Level string `json:"level"`
	// Topic is a short fixed word: "forward-chain", "ip-forward", "br-netfilter", …
	Topic string `json:"topic"`
	// Found says what is the case; Done what Seine did about it, or what the reader can do.
	Found string `json:"found"`
	Done  string `json:"done,omitempty"`
}

// Event is one change of a noun, as a watch sends it.
type Event struct {
	Revision uint64 `json:"revision"`
	// Type is "put" or "delete".
	Type string `json:"type"`
	// Kind is "network" or "endpoint"; exactly that field below is set.
	Kind     string    `json:"kind"`
	Network  *Network  `json:"network,omitempty"`
	Endpoint *Endpoint `json:"endpoint,omitempty"`
}
