package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/seine-net/seine/bench/internal/rig"
)

var (
	dockerd   = flag.String("dockerd", "dockerd", "dockerd: the `program` to measure with")
	rounds    = flag.Int("rounds", 15, "dockerd: rounds, each with a sample of both drivers")
	endpoints = flag.String("endpoints", "1,50,200", "dockerd: numbers of endpoints of a network to connect one more to, rising")
	proxied   = flag.Int("proxied", 50, "dockerd: ports to publish for the memory that one takes of docker-proxy; twenty times that for seined's")
)

// drivers are measured in turns, with the order changing from round to round.
var drivers = []string{"bridge", "seine"}

// figure is a row: what both drivers took in each round.
type figure struct {
	name  string
	goal  string
	times map[string][]float64
}

// duel is a dockerd with both drivers under measurement.
type duel struct {
	*engine
	figures []*figure
}

// note takes a time down under a row's name.
func (d *duel) note(name, goal, driver string, ms float64) {
	for _, f := range d.figures {
		if f.name == name {
			f.times[driver] = append(f.times[driver], ms)
			return
		}
	}
	d.figures = append(d.figures, &figure{name, goal, map[string][]float64{driver: {ms}}})
}

// turns calls f for each round and driver.
func turns(f func(round int, driver string) error) error {
	for round := range *rounds {
		for i := range drivers {
			if err := f(round, drivers[(i+round)%len(drivers)]); err != nil {
				return err
			}
		}
	}
	return nil
}

// asUser is the part that is Docker's user.
func asUser(ctx context.Context) (err error) {
	for _, program := range []string{*dockerd, "containerd", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			fmt.Fprintf(os.Stderr, "bench/docker: part dockerd is skipped: %v\n", err)
			return nil
		}
	}
	levels, err := rig.ParseLevels(*endpoints)
	if err != nil || levels[0] < 1 || *rounds < 1 || *proxied < 1 {
		return errors.Join(err, errors.New("flags endpoints, rounds, proxied: want at least 1"))
	}
	p, err := startPlugin(ctx, filepath.Join(engineDir, "seine"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	e, err := startEngine(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	d := &duel{engine: e}
	defer func() { err = errors.Join(err, d.clear(context.WithoutCancel(ctx))) }()
	var info struct{ ServerVersion string }
	if err := e.ask(ctx, http.MethodGet, "/info", nil, &info); err != nil {
		return err
	}
	fmt.Printf("\nDocker %s through its API, with its own bridge driver and with ours in turns; %d rounds, load average %s; medians in ms\n",
		info.ServerVersion, *rounds, rig.LoadAverage())
	if err := errors.Join(d.networks(ctx), d.containers(ctx)); err != nil {
		return err
	}
	memory, err := d.memory(ctx, p.daemon.Process.Pid)
	if err != nil {
		return err
	}
	if err := d.connects(ctx, levels); err != nil {
		return err
	}
	d.report()
	rig.Table(os.Stdout, memory)
	return nil
}

// network makes a network of a driver; ours gives the addresses too.
func (d *duel) network(ctx context.Context, name, driver string) (float64, error) {
	in := object{"Name": name, "Driver": driver}
	if driver == "seine" {
		in["IPAM"] = object{"Driver": "seine"}
	}
	return d.timed(ctx, http.MethodPost, "/networks/create", in)
}

// networks measures making and removing a network.
func (d *duel) networks(ctx context.Context) error {
	return turns(func(_ int, driver string) error {
		ms, err := d.network(ctx, "net", driver)
		if err != nil {
			return err
		}
		d.note("network create", "0.50", driver, ms)
		if ms, err = d.timed(ctx, http.MethodDelete, "/networks/net", nil); err == nil {
			d.note("network rm", "", driver, ms)
		}
		return err
	})
}

// published is how many ports the containers have that have some.
const published = 5

// containers measures starting and removing a container with and without published ports.
func (d *duel) containers(ctx context.Context) error {
	for _, driver := range drivers {
		if _, err := d.network(ctx, driver+"-net", driver); err != nil {
			return err
		}
	}
	return turns(func(round int, driver string) error {
		for i := range 2 {
			ports := published * ((i + round) % 2)
			if err := d.create(ctx, "web", driver+"-net", 8000, ports); err != nil {
				return err
			}
			ms, err := d.timed(ctx, http.MethodPost, "/containers/web/start", nil)
			if err != nil {
				return err
			}
			d.note(fmt.Sprintf("start with %d ports", ports), "", driver, ms)
			if ms, err = d.timed(ctx, http.MethodDelete, "/containers/web?force=1", nil); err != nil {
				return err
			}
			d.note(fmt.Sprintf("rm with %d ports", ports), map[int]string{published: "0.40"}[ports], driver, ms)
		}
		return nil
	})
}

// connects measures connecting a running container to networks that have endpoints already. The containers of these are
// on the networks of both drivers.
func (d *duel) connects(ctx context.Context, levels []int) error {
	// The one that comes and goes is on a network of its own.
	if _, err := d.network(ctx, "home", drivers[0]); err != nil {
		return err
	}
	if err := d.create(ctx, "guest", "home", 0, 0); err != nil {
		return err
	}
	if err := d.ask(ctx, http.MethodPost, "/containers/guest/start", nil, nil); err != nil {
		return err
	}
	have := 0
	for _, level := range levels {
		for ; have < level; have++ {
			if err := d.fill(ctx, have); err != nil {
				return err
			}
		}
		err := turns(func(_ int, driver string) error {
			for _, verb := range []string{"connect", "disconnect"} {
				ms, err := d.timed(ctx, http.MethodPost, "/networks/"+driver+"-net/"+verb, object{"Container": "guest"})
				if err != nil {
					return err
				}
				d.note(fmt.Sprintf("%s at %d endpoints", verb, level), "0.70", driver, ms)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// fill adds a container on the networks of both drivers.
func (d *duel) fill(ctx context.Context, i int) error {
	name := fmt.Sprintf("c%d", i)
	if err := d.create(ctx, name, drivers[0]+"-net", 0, 0); err != nil {
		return err
	}
	if err := d.ask(ctx, http.MethodPost, "/networks/"+drivers[1]+"-net/connect", object{"Container": name}, nil); err != nil {
		return err
	}
	return d.ask(ctx, http.MethodPost, "/containers/"+name+"/start", nil, nil)
}

// memory measures what published ports take, where the driver's part lies: in dockerd's proxies and in seined.
func (d *duel) memory(ctx context.Context, seined int) ([][]string, error) {
	rows := [][]string{{"memory of a published port", "bytes", "processes", "goal"}}
	for _, driver := range drivers {
		ports, of := 20**proxied, func() (int, int) { return anon(seined), 0 }
		if driver == "bridge" {
			ports, of = *proxied, func() (bytes, n int) {
				for _, pid := range children(d.daemon.Process.Pid, "docker-proxy") {
					bytes, n = bytes+anon(pid), n+1
				}
				return bytes, n
			}
		}
		if err := d.create(ctx, "web", driver+"-net", 9000, ports); err != nil {
			return nil, err
		}
		before, _ := of()
		if err := d.ask(ctx, http.MethodPost, "/containers/web/start", nil, nil); err != nil {
			return nil, err
		}
		after, n := of()
		if err := d.ask(ctx, http.MethodDelete, "/containers/web?force=1", nil, nil); err != nil {
			return nil, err
		}
		goal := ""
		if driver == "seine" {
			goal = "1024"
		}
		rows = append(rows, []string{driver, fmt.Sprint((after - before) / ports), fmt.Sprint(n), goal})
	}
	return rows, nil
}

// anon is a process's memory in bytes that is not backed by a file; 0 for one that is gone.
func anon(pid int) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if kb, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(kb), " kB"))
			return n << 10
		}
	}
	return 0
}

// children gives the processes with a name whose parent is pid.
func children(pid int, name string) (out []int) {
	found, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range found {
		text, _ := os.ReadFile(path)
		head, rest, ok := strings.Cut(string(text), ") ") // proc_pid_stat(5)
		f := strings.Fields(rest)
		id, comm, _ := strings.Cut(head, " (")
		if n, err := strconv.Atoi(id); ok && err == nil && comm == name && len(f) > 1 && f[1] == strconv.Itoa(pid) {
			out = append(out, n)
		}
	}
	return out
}

func (d *duel) report() {
	rows := [][]string{{"", "bridge", "seine", "ratio", "goal"}}
	add := func(f *figure, goal string) {
		a, b := f.times[drivers[0]], f.times[drivers[1]]
		rows = append(rows, []string{f.name, fmt.Sprintf("%.1f", rig.Median(a)), fmt.Sprintf("%.1f", rig.Median(b)), fmt.Sprintf("%.2f", rig.Median(rig.Ratios(b, a))), goal})
	}
	byName := map[string]*figure{}
	for _, f := range d.figures {
		add(f, f.goal)
		byName[f.name] = f
	}
	bare, with := byName["start with 0 ports"], byName[fmt.Sprintf("start with %d ports", published)]
	row := []string{fmt.Sprintf("start with %d ports : with none", published)}
	for _, driver := range drivers {
		row = append(row, fmt.Sprintf("%.2f", rig.Median(rig.Ratios(with.times[driver], bare.times[driver]))))
	}
	rows = append(rows, append(row, "", "seine 1.10"))
	rig.Table(os.Stdout, rows)
}

// clear removes all containers and networks.
func (d *duel) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var all []struct{ ID string }
	err := d.ask(ctx, http.MethodGet, "/containers/json?all=1", nil, &all)
	for _, c := range all {
		err = errors.Join(err, d.ask(ctx, http.MethodDelete, "/containers/"+c.ID+"?force=1", nil, nil))
	}
	return errors.Join(err, d.ask(ctx, http.MethodPost, "/networks/prune", nil, nil))
}
