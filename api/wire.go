package api

import "net/netip"

// codes holds, per Code, the HTTP status of an answer and the exit code of a command that ends with it.
var codes = map[Code]struct{ status, exit int }{
	Invalid:     {400, 2},
	NotFound:    {404, 3},
	Conflict:    {409, 4},
	Stale:       {412, 4},
	InUse:       {409, 4},
	Exhausted:   {409, 4},
	Unsupported: {422, 5},
	Unavailable: {503, 6},
	Internal:    {500, 1},
}

// HTTPStatus is the status of an HTTP answer that carries an error of this code; 500 for a code that is not known.
func (c Code) HTTPStatus() int {
	if x, ok := codes[c]; ok {
		return x.status
	}
	return codes[Internal].status
}

// ExitCode is how a command ends that meets an error of this code; 1 for a code that is not known.
func (c Code) ExitCode() int {
	if x, ok := codes[c]; ok {
		return x.exit
	}
	return codes[Internal].exit
}

// List is how a list of nouns travels: an object, so that something can be added beside the items later.
type List[T any] struct {
	Items []T `json:"items"`
}

// ErrorBody is the body of every HTTP answer that is an error.
type ErrorBody struct {
	Error *Error `json:"error"`
}

// PublishedPort is a Port together with the endpoint that it leads to.
type PublishedPort struct {
	Port
	// Network and Endpoint name the endpoint.
	Network  string `json:"network"`
	Endpoint string `json:"endpoint"`
	// Container is the name of the endpoint's container with its runtime, or the endpoint's own.
	Container string `json:"container"`
	// Addresses are those of the endpoint.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// State is that of the endpoint; "" where the daemon has not said yet.
	State State `json:"state,omitempty"`
}

// PortsOf lists the published ports of endpoints, in the order in which they stand there. The protocol is always set.
func PortsOf(endpoints []Endpoint) []PublishedPort {
	var out []PublishedPort
	for i := range endpoints {
		e := &endpoints[i]
		for _, p := range e.Ports {
			p.Protocol = p.ProtocolOrTCP()
			pp := PublishedPort{Port: p, Network: e.Network, Endpoint: e.Name, Container: e.ContainerName(), Addresses: e.Addresses}
			if e.Status != nil {
				pp.State = e.Status.State
			}
			out = append(out, pp)
		}
	}
	return out
}

// Types of an Event.
const (
	EventPut    = "put"
	EventDelete = "delete"
	// EventReset tells a watcher to forget all that it knows: puts of the present state follow. A client sends it to
	// its caller when the daemon can't say any more what happened since the revision that the client saw last.
	EventReset = "reset"
)

// Levels of a Finding.
const (
	LevelOK      = "ok"
	LevelNote    = "note"
	LevelProblem = "problem"
)

// CreateOnly, given as the revision that a noun must have, asks that there be none yet (If-None-Match: *).
const CreateOnly = ^uint64(0)
