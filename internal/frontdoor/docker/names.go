package docker

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
)

// How much of a container's is taken over: enough for people, too little to fill the store.
const (
	maxNames  = 64
	maxLabels = 256
)

// reserved are the beginnings of the labels by which doors know what is theirs; a container's owner has no say in them.
var reserved = []string{"docker.", "cni/"}

func isReserved(key string) bool {
	return slices.ContainsFunc(reserved, func(p string) bool { return strings.HasPrefix(key, p) })
}

// calling is what an endpoint of a container is called.
type calling struct {
	network, endpoint string // Docker's identities
	container         api.Container
	aliases           []string          // without the container's name, sorted
	labels            map[string]string // the container's
}

// callings reads what a container's endpoints are called, in the order of their identities, and what can't be taken over
// and why.
func (c *dockerContainer) callings() (out []calling, dropped []string) {
	drop := func(format string, args ...any) { dropped = append(dropped, fmt.Sprintf(format, args...)) }
	who := api.Container{ID: c.ID}
	if name := strings.TrimPrefix(c.Name, "/"); name != "" {
		if err := fits(api.Endpoint{Container: api.Container{Name: name}}); err != nil {
			drop("%v", err)
		} else {
			who.Name = name
		}
	}
	if checkID("container", c.ID) != nil {
		return nil, []string{fmt.Sprintf("container %q: has no identity of Docker's", c.ID)}
	}
	labels := takeLabels(c.Config.Labels, nil, drop)
	host := []string{c.ID[:12], c.Config.Hostname}
	if c.Config.Hostname != "" && c.Config.Domainname != "" {
		host = append(host, c.Config.Hostname+"."+c.Config.Domainname)
	}
	for _, network := range slices.Sorted(maps.Keys(c.NetworkSettings.Networks)) {
		at := c.NetworkSettings.Networks[network]
		if at == nil || checkID("EndpointID", at.EndpointID) != nil || checkID("NetworkID", at.NetworkID) != nil {
			continue // it is not running, or shares another one's network
		}
		aliases := takeNames(slices.Concat(at.Aliases, at.DNSNames, host), who.Name, drop)
		out = append(out, calling{at.NetworkID, at.EndpointID, who, aliases, labels})
	}
	slices.SortFunc(out, func(a, b calling) int { return strings.Compare(a.endpoint, b.endpoint) })
	return out, dropped
}

// takeNames gives the names that can be aliases, each once.
func takeNames(names []string, but string, drop func(string, ...any)) []string {
	var out []string
	seen := map[string]bool{"": true, api.Fold(but): true}
	for _, name := range names {
		if seen[api.Fold(name)] {
			continue
		}
		seen[api.Fold(name)] = true
		if err := fits(api.Endpoint{Aliases: []string{name}}); err != nil {
			drop("%v", err)
		} else if len(out) == maxNames {
			drop("alias %q: is one too many; want at most %d", name, maxNames)
		} else {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// takeLabels adds labels that can be taken over to those that are there already, which have precedence.
func takeLabels(labels, have map[string]string, drop func(string, ...any)) map[string]string {
	out := maps.Clone(have)
	if out == nil {
		out = map[string]string{}
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if _, ok := out[key]; ok {
			continue
		}
		if isReserved(key) {
			drop("label %q: labels that begin with %s are Seine's own", key, strings.Join(reserved, " or "))
		} else if err := fits(api.Endpoint{Meta: api.Meta{Labels: map[string]string{key: labels[key]}}}); err != nil {
			drop("%v", err)
		} else if len(out) >= maxLabels {
			drop("label %q: is one too many; want at most %d", key, maxLabels)
		} else {
			out[key] = labels[key]
		}
	}
	return out
}

// fits says why an endpoint could not be called so.
func fits(ep api.Endpoint) error {
	ep.Network, ep.Name = "n", "n"
	err := ep.Validate()
	if e, ok := err.(*api.Error); ok {
		e.Noun = ""
	}
	return err
}

// call gives an endpoint what its container is called. The labels that are the door's stay.
func (c calling) call(ep *api.Endpoint) {
	if ep.Labels[LabelEndpoint] != c.endpoint {
		return // it is another one of that name
	}
	labels := maps.Clone(c.labels)
	for key, value := range ep.Labels {
		if isReserved(key) {
			labels[key] = value
		}
	}
	ep.Container, ep.Aliases, ep.Labels = c.container, c.aliases, labels
}

// call gives a network what Docker calls it. One that was there before Docker keeps to its own labels.
func (dn dockerNetwork) call(n *api.Network) (dropped []string) {
	if n.Labels[LabelNetwork] != dn.ID {
		return nil
	}
	drop := func(format string, args ...any) { dropped = append(dropped, fmt.Sprintf(format, args...)) }
	if n.Labels[LabelKept] == "" {
		n.Labels = takeLabels(dn.Labels, n.Labels, drop)
	} else {
		n.Labels = maps.Clone(n.Labels)
	}
	if (&api.Network{Name: "n", Aliases: []string{dn.Name}}).Validate() != nil {
		drop("name %q: can't be in a look-up", dn.Name)
		return dropped
	}
	n.Labels[LabelName] = dn.Name
	if n.Name != dn.Name && !slices.Contains(n.Aliases, dn.Name) {
		n.Aliases = append(slices.Clone(n.Aliases), dn.Name)
	}
	return dropped
}
