package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// how says what is to be learnt of a call.
type how int

const (
	timed    how = iota // wall clock and processor time
	traced              // processes and system calls, by strace
	resident            // the most memory that one plugin held
)

// cost is what a whole chain took for one container.
type cost struct {
	Wall, CPU time.Duration // from fork to exit, summed over the plugins; of all their processes
	Procs     int           // programs that the plugins started
	Calls     int           // system calls of all, save those by which threads wait for each other
	Trips     int           // netlink round trips of all
	RSS       int           // bytes, of the plugin that held most
}

func (c *cost) add(d cost) {
	c.Wall += d.Wall
	c.CPU += d.CPU
	c.Procs += d.Procs
	c.Calls += d.Calls
	c.Trips += d.Trips
	c.RSS = max(c.RSS, d.RSS)
}

// results are what the ADDs printed, kept for the DELs as a runtime does.
var results sync.Map // int -> json.RawMessage

func (s setup) serve(r request) reply {
	rep := reply{Costs: make([]cost, r.Count)}
	errs := make([]error, r.Count)
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(r.Width, r.Count) {
		wg.Go(func() {
			for i := range next {
				rep.Costs[i], errs[i] = s.call(r, r.From+i)
			}
		})
	}
	for i := range r.Count {
		next <- i
	}
	close(next)
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			rep.Err = fmt.Sprintf("container %d: %v", r.From+i, err)
			break
		}
	}
	return rep
}

// call runs the chain for one container.
func (s setup) call(r request, i int) (sum cost, err error) {
	var prev json.RawMessage
	plugins, command := s.Chain.Plugins, "ADD"
	if r.Del {
		command = "DEL"
	}
	if s.Impl == impls[floorImpl] {
		return s.floor(r.How, command, i)
	}
	if r.Del {
		plugins = slices.Clone(plugins)
		slices.Reverse(plugins)
		if v, ok := results.LoadAndDelete(i); ok {
			prev = v.(json.RawMessage)
		}
	}
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND=" + command,
		fmt.Sprintf("CNI_CONTAINERID=container%d", i), "CNI_NETNS=" + netnsPath(s.Impl, i), "CNI_IFNAME=" + s.Chain.IfName, "CNI_PATH=" + s.Programs}
	for _, p := range plugins {
		stdin, err := s.Chain.stdin(p, i, prev)
		if err != nil {
			return sum, err
		}
		name := p["type"].(string)
		c, out, err := start(r.How, []string{filepath.Join(s.Programs, name)}, env, stdin)
		if err != nil {
			return sum, fmt.Errorf("%s %s: %w", name, command, err)
		}
		sum.add(c)
		if !r.Del {
			prev = out
		}
	}
	if !r.Del {
		results.Store(i, prev)
	}
	return sum, nil
}

// floor runs the floor's program as often as the chain has plugins, for CNI wants a process of each: the first one does all
// the work, the others start and end.
func (s setup) floor(h how, verb string, i int) (sum cost, err error) {
	args := append([]string{s.Programs}, s.Chain.floor(verb, netnsPath(s.Impl, i), i)...)
	for range s.Chain.Plugins {
		c, _, err := start(h, args, nil, nil)
		if err != nil {
			return sum, fmt.Errorf("%s: %w", verb, err)
		}
		sum.add(c)
		args = args[:1]
	}
	return sum, nil
}

// memfd makes a file in memory: unlike a pipe it needs nobody who serves it while the plugin runs.
func memfd(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "memfd")
	if _, err := f.Write(data); err != nil {
		return nil, err
	}
	_, err = f.Seek(0, 0)
	return f, err
}

func contents(f *os.File) []byte {
	st, err := f.Stat()
	if err != nil {
		return nil
	}
	b := make([]byte, st.Size())
	n, _ := f.ReadAt(b, 0)
	return b[:n]
}

// start runs one program.
func start(h how, args, env []string, stdin []byte) (c cost, out []byte, err error) {
	var files [3]*os.File
	for i, data := range [][]byte{stdin, nil, nil} {
		if files[i], err = memfd(data); err != nil {
			return c, nil, err
		}
		defer files[i].Close()
	}
	attr := &os.ProcAttr{Env: env, Files: files[:]}
	switch h {
	case timed:
		c, err = clock(args, attr)
	case traced:
		c, err = trace(args, attr)
	case resident:
		c, err = highWater(args, attr)
	}
	out = contents(files[1])
	if err != nil {
		return c, nil, fmt.Errorf("%w: %s%s", err, bytes.TrimSpace(out), bytes.TrimSpace(contents(files[2])))
	}
	return c, out, nil
}

func clock(args []string, attr *os.ProcAttr) (cost, error) {
	t := time.Now()
	p, err := os.StartProcess(args[0], args, attr)
	if err != nil {
		return cost{}, err
	}
	st, err := p.Wait()
	wall := time.Since(t)
	if err != nil {
		return cost{}, err
	}
	if !st.Success() {
		err = fmt.Errorf("%s", st)
	}
	return cost{Wall: wall, CPU: st.UserTime() + st.SystemTime()}, err
}
