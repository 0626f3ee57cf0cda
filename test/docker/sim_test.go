package docker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/seine-net/seine/api"
)

// sim plays dockerd: it makes its calls in its order, and goes back as it does when one fails. What it drops, this drops.
type sim struct {
	*desk
	head bool // unwinds as Docker of today does, not as 20.10
	fail func(name, body string) (map[string]any, error, bool)
	lost func(name string) bool // whether that call was one of which nothing was done

	made int // identities given out
	nets map[string]*simNet
	eps  map[string]*simEndpoint // by "network/container"
}

type simNet struct {
	id, name, subnet string // name is Seine's
	ours             bool   // our IPAM driver; its own otherwise
	pool, gateway    string
	given            map[string]bool // by its own IPAM driver
}

type simEndpoint struct {
	net       *simNet
	id, addr  string
	sandbox   string
	link      string
	ports     []int
	published bool
}

func newSim(d *desk) *sim {
	return &sim{desk: d, lost: func(string) bool { return false }, nets: map[string]*simNet{}, eps: map[string]*simEndpoint{}}
}

// sandboxes is the folder of containers' namespaces.
func (d *desk) sandboxes() string {
	dir := filepath.Join(filepath.Dir(d.path), "netns")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		d.Fatal(err)
	}
	return dir
}

func (s *sim) id() string {
	s.made++
	return fmt.Sprintf("%012x%052x", s.made, s.made)
}

// call makes one call; where the test has it fail, what comes of that.
func (s *sim) call(name string, in map[string]any) (map[string]any, error) {
	s.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		s.Fatal(err)
	}
	if s.fail != nil {
		if out, err, did := s.fail(name, string(body)); did {
			return out, err
		}
	}
	return s.ask(name, string(body))
}

// forget is a call whose errors Docker logs and forgets.
func (s *sim) forget(name string, in map[string]any) { s.Helper(); _, _ = s.call(name, in) }

func bare(prefix string) string { a, _, _ := strings.Cut(prefix, "/"); return a }

// createNetwork is docker network create.
func (s *sim) createNetwork(name, subnet string, ours bool, options map[string]string) error {
	s.Helper()
	n := &simNet{id: s.id(), subnet: subnet, ours: ours, given: map[string]bool{}}
	if n.name = options["seine.name"]; n.name == "" {
		n.name = "docker-" + n.id[:12]
	}
	space := "LocalDefault"
	if ours {
		space = "seine"
		if _, err := s.call("IpamDriver.GetDefaultAddressSpaces", nil); err != nil {
			return err
		}
		out, err := s.call("IpamDriver.RequestPool", map[string]any{"AddressSpace": space, "Pool": subnet, "SubPool": "", "Options": nil, "V6": false})
		if err != nil {
			return err
		}
		n.pool, n.subnet = out["PoolID"].(string), out["Pool"].(string)
		out, err = s.call("IpamDriver.RequestAddress", map[string]any{"PoolID": n.pool, "Address": "", "Options": map[string]string{"RequestAddressType": "com.docker.network.gateway"}})
		if err != nil {
			s.forget("IpamDriver.ReleasePool", map[string]any{"PoolID": n.pool})
			return err
		}
		n.gateway = out["Address"].(string)
	} else {
		for _, o := range s.nets {
			if !o.ours && o.subnet == subnet {
				return errors.New("Pool overlaps with other one on this address space")
			}
		}
		n.gateway = strings.Replace(subnet, ".0/", ".1/", 1)
	}
	_, err := s.call("NetworkDriver.CreateNetwork", map[string]any{"NetworkID": n.id, "Options": map[string]any{"com.docker.network.enable_ipv6": false, "com.docker.network.generic": options},
		"IPv4Data": []any{map[string]any{"AddressSpace": space, "Pool": n.subnet, "Gateway": n.gateway}}, "IPv6Data": []any{}})
	if err != nil {
		s.releasePool(n)
		return err
	}
	s.nets[name] = n
	return nil
}

func (s *sim) releasePool(n *simNet) {
	s.Helper()
	if n.ours {
		s.forget("IpamDriver.ReleaseAddress", map[string]any{"PoolID": n.pool, "Address": bare(n.gateway)})
		s.forget("IpamDriver.ReleasePool", map[string]any{"PoolID": n.pool})
	}
}

// removeNetwork is docker network rm.
func (s *sim) removeNetwork(name string) {
	s.Helper()
	n := s.nets[name]
	delete(s.nets, name)
	s.releasePool(n)
	s.forget("NetworkDriver.DeleteNetwork", map[string]any{"NetworkID": n.id})
	// Where the daemon was killed before it wrote anything, the call has not been, and nobody else says that Docker forgot
	// the network. With our IPAM driver it can be seen.
	if !n.ours && s.lost("NetworkDriver.DeleteNetwork") {
		if err := s.engine.DeleteNetwork(s.Context(), n.name, 0); err != nil && api.CodeOf(err) != api.NotFound {
			s.Error(err)
		}
	}
}

// requestAddress gives the lowest address that is free where Docker gives them out itself.
func (s *sim) requestAddress(n *simNet, want string) (string, error) {
	s.Helper()
	if n.ours {
		out, err := s.call("IpamDriver.RequestAddress", map[string]any{"PoolID": n.pool, "Address": want, "Options": nil})
		if err != nil {
			return "", err
		}
		return out["Address"].(string), nil
	}
	for i := 2; i < 255; i++ {
		a := strings.Replace(n.subnet, ".0/", fmt.Sprintf(".%d/", i), 1)
		if (want == "" || bare(a) == want) && !n.given[a] {
			n.given[a] = true
			return a, nil
		}
	}
	return "", errors.New("Address already in use")
}

func (s *sim) releaseAddress(n *simNet, a string) {
	s.Helper()
	if delete(n.given, a); n.ours {
		s.forget("IpamDriver.ReleaseAddress", map[string]any{"PoolID": n.pool, "Address": bare(a)})
	}
}

func (e *simEndpoint) ids(more map[string]any) map[string]any {
	out := map[string]any{"NetworkID": e.net.id, "EndpointID": e.id}
	for k, v := range more {
		out[k] = v
	}
	return out
}

// connect is docker run or docker network connect, as far as the driver sees it.
func (s *sim) connect(network, container, want string, ports ...int) error {
	s.Helper()
	e := &simEndpoint{net: s.nets[network], id: s.id(), ports: ports, sandbox: filepath.Join(s.sandboxes(), container)}
	var err error
	if e.addr, err = s.requestAddress(e.net, want); err != nil {
		return err
	}
	var bindings []any
	for _, p := range ports {
		bindings = append(bindings, map[string]any{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": p, "HostPortEnd": p})
	}
	options := map[string]any{"com.docker.network.endpoint.exposedports": []any{}, "com.docker.network.portmap": bindings}
	if _, err = s.call("NetworkDriver.CreateEndpoint", e.ids(map[string]any{"Interface": map[string]any{"Address": e.addr, "AddressIPv6": "", "MacAddress": ""}, "Options": options})); err != nil {
		s.releaseAddress(e.net, e.addr)
		return err
	}
	join, err := s.call("NetworkDriver.Join", e.ids(map[string]any{"SandboxKey": e.sandbox, "Options": options}))
	if err != nil {
		if s.head {
			s.forget("NetworkDriver.Leave", e.ids(nil))
		}
		s.removeEndpoint(e)
		return err
	}
	e.link = join["InterfaceName"].(map[string]any)["SrcName"].(string)
	s.kernel.AddNamespace(e.sandbox)
	if err := os.WriteFile(e.sandbox, nil, 0o600); err != nil {
		s.Fatal(err)
	}
	if !s.kernel.Move("", e.link, e.sandbox, "eth-"+network) {
		s.Errorf("interface %q of %s is not there to be taken", e.link, container)
	}
	if len(ports) > 0 {
		if _, err = s.call("NetworkDriver.ProgramExternalConnectivity", e.ids(map[string]any{"Options": options})); err != nil {
			s.giveBack(network, e)
			s.ended(container)
			s.forget("NetworkDriver.Leave", e.ids(nil))
			if s.head {
				s.forget("NetworkDriver.Leave", e.ids(nil))
			}
			s.removeEndpoint(e)
			return err
		}
		e.published = true
	}
	s.forget("NetworkDriver.EndpointOperInfo", e.ids(nil))
	s.eps[network+"/"+container] = e
	return nil
}

func (s *sim) removeEndpoint(e *simEndpoint) {
	s.Helper()
	s.forget("NetworkDriver.DeleteEndpoint", e.ids(nil))
	s.releaseAddress(e.net, e.addr)
}

// giveBack moves the interface back to the machine, as dockerd does.
func (s *sim) giveBack(network string, e *simEndpoint) {
	s.kernel.Move(e.sandbox, "eth-"+network, "", e.link)
}

// disconnect is docker stop, rm -f or docker network disconnect. After a restart of dockerd with live restore, Docker of
// today has forgotten what it published.
func (s *sim) disconnect(network, container string, restored bool) {
	s.Helper()
	e := s.eps[network+"/"+container]
	delete(s.eps, network+"/"+container)
	if e.published && !restored {
		s.forget("NetworkDriver.RevokeExternalConnectivity", e.ids(nil))
	}
	s.giveBack(network, e)
	s.forget("NetworkDriver.Leave", e.ids(nil))
	s.removeEndpoint(e)
	s.ended(container)
}

// ended removes the sandbox of a container that is on no network any more.
func (s *sim) ended(container string) {
	for key := range s.eps {
		if strings.HasSuffix(key, "/"+container) {
			return
		}
	}
	_ = os.Remove(filepath.Join(s.sandboxes(), container))
}

// settled checks that the machine has what Docker has: each endpoint with its address and ports, attached, and no
// difference between what is wanted and what the kernel holds.
func (s *sim) settled() {
	s.Helper()
	for key, e := range s.eps {
		ep, err := s.engine.Endpoint(s.Context(), e.net.name, "docker-"+e.id[:12])
		if err != nil || ep.Status.State != api.Attached || len(ep.Addresses) != 1 || ep.Addresses[0].String() != bare(e.addr) || len(ep.Ports) != len(e.ports) {
			s.Errorf("endpoint %s is %+v %+v, %v; Docker has %+v", key, ep, ep.Status, err, e)
		}
	}
	if err := s.loop.Flush(s.Context()); err != nil {
		s.Error(err)
	}
	if plan, err := s.engine.Plan(s.Context(), ""); err != nil || len(plan.Changes) > 0 {
		s.Errorf("damaged: %+v, %v", plan, err)
	}
}
