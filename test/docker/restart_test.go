package docker_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/testkit"
)

// talks are connections that were made before something ended, and are to outlive it.
type talks struct {
	r     *rig
	conns []net.Conn
}

// talk makes connections of TCP from outside, from the machine and from a neighbour, to published ports and to the
// containers themselves.
func (r *rig) talk(web, near *testkit.NS, network string, port uint16) *talks {
	r.Helper()
	t := &talks{r: r}
	dial := func(from *testkit.NS, to netip.Addr, port uint16) {
		r.Helper()
		c, err := from.Dial(r.Context(), "tcp", netip.AddrPortFrom(to, port).String())
		if err != nil {
			r.Fatal(err)
		}
		r.Cleanup(func() { c.Close() })
		t.conns = append(t.conns, c)
	}
	for i, to := range r.machine.Addrs() {
		dial(r.outside.NS, to, port)
		if local[i].Is4() { // what comes by [::1] is carried by the daemon, where bridged frames pass the firewall
			dial(r.machine.NS, local[i], port)
		}
		dial(near, to, port)
	}
	for _, to := range r.addr(web.Name, network) {
		dial(near, to, 80)
		dial(r.machine.NS, to, 80)
	}
	t.goOn()
	return t
}

// goOn says something on each connection and waits for the answers.
func (t *talks) goOn() {
	t.r.Helper()
	for _, c := range t.conns {
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		_, err := fmt.Fprintln(c, "still there")
		if err == nil {
			_, err = bufio.NewReader(c).ReadString('\n')
		}
		if err != nil {
			t.r.Errorf("a connection from %s to %s broke: %v", c.LocalAddr(), c.RemoteAddr(), err)
		}
	}
}

// works checks a container's published port and its way out.
func (r *rig) works(web *testkit.NS, port uint16) {
	r.Helper()
	r.worksAlone(web, port)
	r.reach(r.machine.NS, local[1], port, web.Name, netip.Addr{})
}

// worksAlone is works while our daemon is away: [::1] is carried by it, where bridged frames pass the firewall.
func (r *rig) worksAlone(web *testkit.NS, port uint16) {
	r.Helper()
	for i, to := range r.machine.Addrs() {
		r.reach(r.outside.NS, to, port, web.Name, r.outside.Addrs()[i])
	}
	r.reach(r.machine.NS, local[0], port, web.Name, netip.Addr{})
	out := testkit.Serve(r.T, r.outside.NS, "tcp", "[::]:0")
	for _, to := range far(true) {
		testkit.Reach(r.T, web, "tcp", netip.AddrPortFrom(to, out.Port()))
	}
}

// driverKilled: the daemon is killed under running containers, which notice nothing, and comes back.
func driverKilled(r *rig) {
	r.create("net", "--ipv6")
	web := r.run("web", "net", "-p", "8080:80", "-p", "8080:80/udp")
	near := r.run("near", "net")
	t := r.talk(web, near, "net", 8080)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		r.end(r.seined, sig)
		t.goOn()
		r.worksAlone(web, 8080)
		r.mutual("net", web, near)
		r.startSeined()
		t.goOn()
		r.works(web, 8080)
		r.mutual("net", web, near)
	}
	late := r.run("late", "net", "-p", "8081:80", "-p", "8081:80/udp")
	r.works(late, 8081)
	r.mutual("net", late, near)
	// It is away while a container ends, and while another starts: Docker waits for it for some seconds.
	r.end(r.seined, syscall.SIGKILL)
	ended := make(chan string)
	go func() {
		out, err := r.try(nil, "rm", "-f", "late")
		ended <- fmt.Sprint(out, err)
	}()
	started := make(chan string)
	go func() {
		out, err := r.try(nil, "run", "--rm", "--network", "net", "bb", "ping", "-c", "1", "-W", "3", "near")
		started <- fmt.Sprint(err, out)
	}()
	time.Sleep(500 * time.Millisecond)
	r.startSeined()
	if out := <-ended; out != "late<nil>" {
		r.Errorf("docker rm: %s", out)
	}
	if out := <-started; !strings.HasPrefix(out, "<nil>") {
		r.Errorf("docker run: %s", out)
	}
	t.goOn()
	if got := r.published(); len(got["80/tcp"]) != 1 {
		r.Errorf("published are %v, want those of web alone", got)
	}
}

// killedUnderRun: the daemon is killed at any time of a `docker run`, and comes back. That works, or says that it
// doesn't; and nothing is left of it.
func killedUnderRun(r *rig) {
	r.create("net", "--ipv6")
	near := r.run("near", "net")
	before := r.traces()
	for i := range 5 {
		done := make(chan error)
		go func() {
			out, err := r.try(nil, "run", "-d", "--name", "web", "--network", "net", "-p", "8080:80", "-p", "8080:80/udp", "bb", "sleep", "600")
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			done <- err
		}()
		time.Sleep(time.Duration(100*i+rand.IntN(100)) * time.Millisecond)
		r.end(r.seined, syscall.SIGKILL)
		r.startSeined()
		if err := <-done; err != nil {
			r.Logf("killed after about %d ms, docker run says: %v", 100*i, err)
		} else {
			r.Run("works", func(t *testing.T) {
				r := r.with(t)
				web := r.serve("web", 80)
				r.works(web, 8080)
				r.mutual("net", web, near)
			})
		}
		if out, err := r.try(nil, "rm", "-f", "web"); err != nil && !strings.Contains(out, "No such container") {
			r.Fatalf("docker rm: %v: %s", err, out)
		}
		r.same(before)
		// After its restart the daemon gives IPv6 addresses from the first one on again, now perhaps with another hardware
		// address, of which the machine's neighbour cache does not know for a while (the manual has it).
		if out, err := r.machine.Exec(r.Context(), "ip", "-6", "neigh", "flush", "all"); err != nil {
			r.Fatal(out, err)
		}
	}
}

// dockerRestarted: Docker's daemon ends with its containers, in good order and by SIGKILL, and starts those again that it was told to.
func dockerRestarted(r *rig) {
	r.create("net", "--ipv6", "--subnet", "10.81.0.0/24", "--subnet", "fd00:81::/64")
	run := func() {
		r.run("web", "net", "--restart", "always", "--ip", "10.81.0.80", "--ip6", "fd00:81::80", "-p", "8080:80", "-p", "8080:80/udp")
		r.run("gone", "net", "-p", "8081:80")
	}
	run()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		r.end(r.dockerd, sig)
		r.startDocker()
		r.eventually(10*time.Second, func() error {
			if out := r.docker("inspect", "-f", "{{.State.Running}}", "web"); out != "true" {
				return fmt.Errorf("web runs: %s", out)
			}
			return nil
		})
		near := r.run("near", "net")
		web := r.serve("web", 80)
		r.works(web, 8080)
		r.mutual("net", web, near)
		r.docker("exec", "near", "ping", "-c", "1", "-W", "3", "web")
		if got := r.published(); len(got["80/tcp"]) != 1 {
			r.Errorf("published are %v, want those of web alone", got)
		}
		r.docker("rm", "-f", "near", "web", "gone")
		run()
	}
}

// liveRestore: Docker's daemon ends and comes back under running containers, which notice nothing.
func liveRestore(r *rig) {
	r.end(r.dockerd, syscall.SIGTERM)
	r.startDocker("--live-restore")
	r.create("net", "--ipv6")
	r.create("other", "--ipv6")
	web := r.run("web", "net", "-p", "8080:80", "-p", "8080:80/udp")
	near := r.run("near", "net")
	t := r.talk(web, near, "net", 8080)
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM} {
		r.end(r.dockerd, sig)
		t.goOn()
		r.works(web, 8080)
		r.mutualBy(web, near)
		if i == 2 { // both are away
			r.end(r.seined, syscall.SIGKILL)
			t.goOn()
			r.worksAlone(web, 8080)
			r.startSeined()
		}
		r.startDocker("--live-restore")
		t.goOn()
		r.works(web, 8080)
		r.mutual("net", web, near)
		r.docker("exec", "near", "ping", "-c", "1", "-W", "3", "web")
	}
	// Docker knows what it had: more of it can be made, and taken away. The further network's name comes after the first's,
	// so the gateway stays: newer versions can't move it after their restart, as they forget that they called its driver.
	r.docker("network", "connect", "other", "web")
	third := r.run("third", "other")
	r.mutual("other", web, third)
	r.docker("network", "disconnect", "other", "web")
	r.works(web, 8080)
	r.docker("rm", "-f", "web")
	if got := r.published(); len(got) != 0 {
		r.Errorf("published are %v, want none", got)
	}
	r.run("web2", "net", "-p", "8080:80")
}

// mutualBy is mutual for while Docker can't be asked for the addresses.
func (r *rig) mutualBy(a, b *testkit.NS) {
	r.Helper()
	for _, to := range addresses(r, b) {
		r.reach(a, to, 80, b.Name, netip.Addr{})
	}
}
