package engine_test

import (
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/driver"
)

// Another namespace under the path of an endpoint's is nobody's to put an interface into.
func TestReplacedNamespace(t *testing.T) {
	const path = "/run/netns/a"
	replaced := map[string]func(*rig){
		"while the daemon runs": func(r *rig) {
			if err := r.CollectReplaced(t.Context(), r.want.Keys(driver.EndpointOwner("net", "a"))); err != nil {
				t.Fatal(err)
			}
		},
		"while it is down": func(r *rig) { r.restart() },
	}
	for name, notice := range replaced {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.network(api.Network{Name: "net"})
			r.cookies = map[string]uint64{path: 7}
			ep := r.attach("net", "a")
			if ep.Sandbox.Cookie != 7 {
				t.Fatalf("the endpoint's cookie is %d, want 7", ep.Sandbox.Cookie)
			}
			notice(r)
			if _, err := r.Endpoint(t.Context(), "net", "a"); err != nil {
				t.Fatal("dropped though nothing changed:", err)
			}
			r.kernel.RemoveNamespace(path)
			r.kernel.AddNamespace(path)
			r.cookies[path] = 8
			notice(r)
			_, err := r.Endpoint(t.Context(), "net", "a")
			code(t, err, api.NotFound, "")
			ep = r.attach("net", "a")
			if ep.Sandbox.Cookie != 8 || ep.Status.State != api.Attached {
				t.Errorf("attached anew: %+v", ep)
			}
			_, err = r.PutEndpoint(t.Context(), api.Endpoint{Network: "net", Name: "a", Sandbox: api.Sandbox{Netns: path, Cookie: 7}}, 0)
			code(t, err, api.Invalid, "sandbox.cookie")
		})
	}
}
