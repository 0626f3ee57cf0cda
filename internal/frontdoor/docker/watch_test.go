package docker

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seine-net/seine/api"
)

// inBubble runs a test with a watched door in virtual time.
func inBubble(t *testing.T, f func(*testing.T, *watched)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		x, stop := newWatched(t)
		defer stop()
		f(t, x)
	})
}

// TestWatch: what there is when it begins, and what events tell, is called as Docker does.
func TestWatch(t *testing.T) {
	inBubble(t, func(t *testing.T, x *watched) {
		web := x.start("web", 'a', "www")
		x.called(time.Second, "web")
		n, _ := x.memory.Network(t.Context(), "shop")
		if !slices.Equal(n.Aliases, []string{"net_1"}) || n.Labels["tier"] != "front" {
			t.Errorf("network is %+v", n)
		}
		eps, _ := x.memory.Endpoints(t.Context())
		if e := eps[0]; e.Container.ID != web || !slices.Equal(e.Aliases, []string{web[:12], "www"}) {
			t.Errorf("endpoint is %+v", e)
		}
		x.start("db", 'b')
		x.called(time.Second, "db", "web")
		x.rename(web, "shopfront")
		x.called(time.Second, "db", "shopfront")
		if f := x.w.Finding(); f.Level != "ok" || !strings.Contains(f.Found, "20.10.24") {
			t.Errorf("finding is %+v", f)
		}

		// A network is called when Docker has made it, not before.
		id := strings.Repeat("c", 64)
		x.memory.mu.Lock()
		x.memory.networks["later"] = api.Network{Name: "later", Meta: api.Meta{Labels: map[string]string{LabelNetwork: id}}}
		x.memory.mu.Unlock()
		x.door.know(id, "later")
		x.daemon.change(func() { x.daemon.networks[id] = dockerNetwork{ID: id, Name: "net_2"} },
			`{"Type":"network","Action":"create","Actor":{"ID":"`+id+`"}}`)
		time.Sleep(time.Second)
		if n, _ := x.memory.Network(t.Context(), "later"); n.Labels[LabelName] != "net_2" {
			t.Errorf("network is %+v", n)
		}
		// What is none of ours is not looked at.
		before := x.daemon.count("/")
		x.daemon.change(func() {}, `{"Type":"network","Action":"connect","Actor":{"ID":"`+bridgeNet+`","Attributes":{"container":"`+web+`"}}}`)
		x.daemon.change(func() {}, `{"Type":"container","Action":"exec_start: sh","Actor":{"ID":"`+web+`"}}`)
		x.daemon.change(func() {}, `{"Type":"container","Action":"rename","Actor":{"ID":"../networks"}}`)
		time.Sleep(time.Second)
		if now := x.daemon.count("/"); now != before {
			t.Errorf("Docker was asked %d times for what is none of ours", now-before)
		}
	})
}

// TestWatchMissed: what Docker does while it is not listened to is learnt when it is back, with one line in the log for
// each turn.
func TestWatchMissed(t *testing.T) {
	inBubble(t, func(t *testing.T, x *watched) {
		web := x.start("web", 'a')
		x.called(time.Second, "web")
		x.daemon.restart(true)
		x.rename(web, "late")
		x.called(time.Hour, "web")
		if f := x.w.Finding(); f.Level != "note" || !strings.Contains(f.Found, "connection refused") {
			t.Errorf("finding is %+v", f)
		}
		x.daemon.restart(false)
		x.called(maxPause+time.Second, "late")
		x.daemon.restart(false) // no pause but the first
		x.rename(web, "later")
		x.called(2*firstPause, "later")
		synctest.Wait()
		if got := strings.Count(x.logged.String(), "\n"); got != 5 {
			t.Errorf("the log has %d lines, want one for each of 3 beginnings and 2 ends:\n%s", got, x.logged)
		}

		// A daemon that starts calls us before it answers.
		x.daemon.restart(true)
		time.Sleep(time.Hour)
		x.rename(web, "last")
		x.door.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/Plugin.Activate", nil))
		x.daemon.restart(false)
		x.called(2*firstPause, "last")
	})
}

// TestWatchSleeps: nobody is asked on a machine whose Docker never called.
func TestWatchSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y, stop := newWatchedOn(t, &memory{})
		defer stop()
		time.Sleep(24 * time.Hour)
		if n := y.daemon.count("/"); n != 0 {
			t.Errorf("asked %d times", n)
		}
		if f := y.w.Finding(); f.Level != "ok" || !strings.Contains(f.Found, "not asked") {
			t.Errorf("finding is %+v", f)
		}
		y.door.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/Plugin.Activate", nil))
		time.Sleep(time.Second)
		if n := y.daemon.count("/events"); n != 1 {
			t.Errorf("after Docker's first call its events were asked for %d times", n)
		}
		synctest.Wait()
		if y.logged.Len() == 0 {
			t.Error("nothing is logged")
		}
	})
}

// TestWatchHangs: a container that Docker does not tell about keeps no other waiting, nor does Docker as a whole keep a
// call or the end.
func TestWatchHangs(t *testing.T) {
	inBubble(t, func(t *testing.T, x *watched) {
		id := strings.Repeat("a", 64)
		hang := func() chan struct{} {
			stuck := make(chan struct{})
			x.daemon.change(func() { x.daemon.hung["/containers/"+id+"/json"] = stuck }, "")
			return stuck
		}
		stuck := hang()
		x.start("slow", 'a')
		x.called(time.Second, "")
		x.start("web", 'b')
		x.called(time.Second, "", "web")
		x.rename(id, "slower") // it is looked at once more, not twice at a time
		x.called(time.Second, "", "web")
		close(stuck)
		x.called(time.Second, "slower", "web")
		stuck = hang()
		x.rename(id, "slow")
		x.called(10*time.Minute, "slower", "web")
		close(stuck)
		x.called(listAgain+apiTime, "slow", "web")

		all := make(chan struct{})
		x.daemon.change(func() {
			for _, path := range []string{"/version", "/events", "/networks", "/containers/json", "/containers/" + id + "/json"} {
				x.daemon.hung[path] = all
			}
		}, "")
		x.rename(id, "web2")
		x.called(listAgain+2*apiTime+time.Second, "slow", "web")
		if f := x.w.Finding(); f.Level != "note" {
			t.Errorf("finding is %+v", f)
		}
		close(all)
		x.called(apiTime+maxPause, "web", "web2")
	})
}

// TestWatchRetells: a list is made now and then without being asked for.
func TestWatchRetells(t *testing.T) {
	inBubble(t, func(t *testing.T, x *watched) {
		web := x.start("web", 'a')
		x.called(time.Second, "web")
		x.daemon.change(func() {
			c := x.daemon.containers[web]
			c.Name = "/quiet"
			x.daemon.containers[web] = c
		}, "")
		x.called(listEvery-2*time.Second, "web")
		x.called(3*time.Second, "quiet")
	})
}

// TestCollectAsksDocker: what Docker has stays, what it has not goes after a while, and nothing goes by that while Docker
// can't be asked.
func TestCollectAsksDocker(t *testing.T) {
	inBubble(t, func(t *testing.T, x *watched) {
		collect := func(after time.Duration) {
			t.Helper()
			for range after / lostAfter {
				time.Sleep(lostAfter)
				if err := x.door.Collect(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
		x.start("web", 'a')
		db := x.start("db", 'b')
		starting := x.start("starting", 'c')
		lost := x.start("lost", 'd')
		x.called(time.Second, "db", "lost", "starting", "web")
		// All of them are in sandboxes that are still there, so that time alone says nothing; one is not in a container yet,
		// and one has no sandbox for long.
		x.memory.mu.Lock()
		for key, e := range x.memory.endpoints {
			if e.Container.Name != "web" {
				e.Labels[LabelSandbox] = "/proc/self/ns/net"
				x.memory.endpoints[key] = e
			}
		}
		x.memory.mu.Unlock()
		x.daemon.change(func() {
			delete(x.daemon.containers, lost)
			delete(x.daemon.containers, starting)
			n := x.daemon.networks[net1ID]
			n.Containers = map[string]struct{ EndpointID string }{"ep-" + starting: {strings.Repeat("c", 60) + "beef"}}
			x.daemon.networks[net1ID] = n
		}, "")
		collect(lostAfter)
		x.called(0, "db", "lost", "starting", "web")
		x.daemon.restart(true)
		collect(10 * lostAfter) // web is not collected by time yet, the others never
		x.daemon.restart(false)
		time.Sleep(maxPause)
		collect(lostAfter) // begins anew
		x.called(0, "db", "lost", "starting", "web")
		collect(2 * lostAfter)
		x.called(0, "db", "starting", "web")
		collect(2 * unusedAfter)
		x.called(0, "db", "starting", "web")

		// A network that another Docker has, or none yet, is left alone; one that was Docker's goes with what is in it.
		x.memory.mu.Lock()
		x.memory.networks["other"] = api.Network{Name: "other", Meta: api.Meta{Labels: map[string]string{LabelNetwork: bridgeNet}}}
		x.memory.mu.Unlock()
		x.daemon.change(func() { delete(x.daemon.networks, net1ID); delete(x.daemon.containers, db) }, "")
		collect(unusedAfter)
		x.called(0, "db", "starting", "web")
		collect(2 * lostAfter)
		x.called(0)
		if nets, _ := x.memory.Networks(t.Context()); len(nets) != 1 || nets[0].Name != "other" {
			t.Errorf("networks are %+v", nets)
		}
	})
}
