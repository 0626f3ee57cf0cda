package httpdoor

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/seine-net/seine/api"
)

func (d *Door) networks(w http.ResponseWriter, r *http.Request) error {
	all, err := d.engine.Networks(r.Context())
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b api.Network) int { return strings.Compare(a.Name, b.Name) })
	return answerList(w, all)
}

func (d *Door) network(w http.ResponseWriter, r *http.Request) error {
	n, err := d.engine.Network(r.Context(), r.PathValue("network"))
	if err != nil {
		return err
	}
	return answerNoun(w, r, n.Revision, n)
}

func (d *Door) putNetwork(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("network")
	noun := api.NetworkNoun(name)
	match, err := matchOf(r, noun)
	if err != nil {
		return err
	}
	var n api.Network
	if err := readBody(w, r, noun, &n); err != nil {
		return err
	}
	if err := sameName(noun, "name", &n.Name, name); err != nil {
		return err
	}
	n.Revision, n.Created, n.Status = 0, "", nil // a noun may be sent back as it was read
	_, err = d.engine.Network(r.Context(), name)
	status := putStatus(err)
	if n, err = d.engine.PutNetwork(r.Context(), n, match); err != nil {
		return err
	}
	return answerPut(w, r.URL, status, n.Revision, n)
}

func (d *Door) deleteNetwork(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("network")
	match, err := matchOf(r, api.NetworkNoun(name))
	if err != nil {
		return err
	}
	if err := d.engine.DeleteNetwork(r.Context(), name, match); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// endpoints lists all endpoints, or those of the network in the path.
func (d *Door) endpoints(w http.ResponseWriter, r *http.Request) error {
	network := r.PathValue("network")
	if network != "" {
		if _, err := d.engine.Network(r.Context(), network); err != nil {
			return err
		}
	}
	all, err := d.sortedEndpoints(r)
	if err != nil {
		return err
	}
	if network != "" {
		all = slices.DeleteFunc(all, func(e api.Endpoint) bool { return e.Network != network })
	}
	return answerList(w, all)
}

func (d *Door) sortedEndpoints(r *http.Request) ([]api.Endpoint, error) {
	all, err := d.engine.Endpoints(r.Context())
	slices.SortFunc(all, func(a, b api.Endpoint) int {
		if c := strings.Compare(a.Network, b.Network); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all, err
}

func (d *Door) endpoint(w http.ResponseWriter, r *http.Request) error {
	e, err := d.engine.Endpoint(r.Context(), r.PathValue("network"), r.PathValue("name"))
	if err != nil {
		return err
	}
	return answerNoun(w, r, e.Revision, e)
}

func (d *Door) putEndpoint(w http.ResponseWriter, r *http.Request) error {
	return d.putEndpointOn(w, r, r.PathValue("network"))
}

// putOnDefault attaches to the network that the operator chose for those who name none.
func (d *Door) putOnDefault(w http.ResponseWriter, r *http.Request) error {
	n, err := d.engine.Node(r.Context())
	if err != nil {
		return err
	}
	return d.putEndpointOn(w, r, n.DefaultNetwork)
}

func (d *Door) putEndpointOn(w http.ResponseWriter, r *http.Request, network string) error {
	name := r.PathValue("name")
	noun := api.EndpointNoun(network, name)
	match, err := matchOf(r, noun)
	if err != nil {
		return err
	}
	var e api.Endpoint
	if err := readBody(w, r, noun, &e); err != nil {
		return err
	}
	if err := sameName(noun, "network", &e.Network, network); err != nil {
		return err
	}
	if err := sameName(noun, "name", &e.Name, name); err != nil {
		return err
	}
	e.Revision, e.Created, e.Status = 0, "", nil
	_, err = d.engine.Endpoint(r.Context(), network, name)
	status := putStatus(err)
	if e, err = d.engine.PutEndpoint(r.Context(), e, match); err != nil {
		return err
	}
	return answerPut(w, &url.URL{Path: "/v1/networks/" + e.Network + "/endpoints/" + e.Name}, status, e.Revision, e)
}

func (d *Door) deleteEndpoint(w http.ResponseWriter, r *http.Request) error {
	network, name := r.PathValue("network"), r.PathValue("name")
	match, err := matchOf(r, api.EndpointNoun(network, name))
	if err != nil {
		return err
	}
	if err := d.engine.DeleteEndpoint(r.Context(), network, name, match); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *Door) ports(w http.ResponseWriter, r *http.Request) error {
	all, err := d.sortedEndpoints(r)
	if err != nil {
		return err
	}
	return answerList(w, api.PortsOf(all))
}

func (d *Door) node(w http.ResponseWriter, r *http.Request) error {
	n, err := d.engine.Node(r.Context())
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, n)
}

func (d *Door) reset(w http.ResponseWriter, r *http.Request) error {
	if err := d.engine.Reset(r.Context()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *Door) plan(w http.ResponseWriter, r *http.Request) error {
	p, err := d.engine.Plan(r.Context(), r.URL.Query().Get("owner"))
	if err != nil {
		return err
	}
	if p.Changes == nil {
		p.Changes = []api.Change{}
	}
	return answer(w, http.StatusOK, p)
}

func (d *Door) doctor(w http.ResponseWriter, r *http.Request) error {
	all, err := d.engine.Doctor(r.Context())
	if err != nil {
		return err
	}
	return answerList(w, all)
}

// sameName takes a name that the body leaves out from the path and refuses another one.
func sameName(noun, field string, got *string, want string) error {
	if *got == "" {
		*got = want
	}
	if *got != want {
		return api.FieldError(noun, field, *got, "is not the name in the path", want)
	}
	return nil
}

// putStatus is how a put that succeeds is answered, after a look whether the noun was there. Of two callers that make
// a noun at once both may hear that they did; who must know sends If-None-Match.
func putStatus(err error) int {
	if err != nil && api.CodeOf(err) == api.NotFound {
		return http.StatusCreated
	}
	return http.StatusOK
}

func answerPut(w http.ResponseWriter, at *url.URL, status int, revision uint64, noun any) error {
	if status == http.StatusCreated {
		w.Header().Set("Location", (&url.URL{Path: at.Path, RawPath: at.RawPath}).String())
	}
	w.Header().Set("ETag", etag(revision))
	return answer(w, status, noun)
}

// answerNoun sends a noun, or says that the caller has this revision already.
func answerNoun(w http.ResponseWriter, r *http.Request, revision uint64, noun any) error {
	known, err := knows(r, revision)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(revision))
	if known {
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return answer(w, http.StatusOK, noun)
}
