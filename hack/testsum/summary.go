package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is a line of "go test -json" (go doc test2json, go help buildjson).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of a build event
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// summary collects events. A test with subtests is not counted, its subtests are, unless it failed by itself.
type summary struct {
	out            io.Writer
	passed         int
	failedPackages int
	failed         []string            // "package test"
	skipped        map[string][]string // reason → "package test"
	running        map[string]*pkg
	builds         map[string]*strings.Builder // output by the import path of what was built
}

// pkg is what is known of a package whose tests are not all done.
type pkg struct {
	output                  strings.Builder // what belongs to no test
	tests                   map[string]*test
	passed, failed, skipped int
}

type test struct {
	output             strings.Builder
	parent, childFails bool
}

func newSummary(out io.Writer) *summary {
	return &summary{out: out, skipped: map[string][]string{}, running: map[string]*pkg{}, builds: map[string]*strings.Builder{}}
}

func (p *pkg) test(name string) *test {
	t := p.tests[name]
	if t == nil {
		t = &test{}
		p.tests[name] = t
		if i := strings.LastIndex(name, "/"); i >= 0 {
			p.test(name[:i]).parent = true
		}
	}
	return t
}

// add takes in one event.
func (s *summary) add(e event) {
	if e.Action == "build-output" {
		if s.builds[e.ImportPath] == nil {
			s.builds[e.ImportPath] = &strings.Builder{}
		}
		s.builds[e.ImportPath].WriteString(e.Output)
		return
	}
	if e.Package == "" {
		return
	}
	p := s.running[e.Package]
	if p == nil {
		p = &pkg{tests: map[string]*test{}}
		s.running[e.Package] = p
	}
	if e.Test == "" {
		s.addPackage(e, p)
		return
	}
	t := p.test(e.Test)
	switch e.Action {
	case "output":
		t.output.WriteString(e.Output)
	case "pass":
		if !t.parent {
			s.passed++
			p.passed++
		}
	case "skip":
		s.skip(e, p, t)
	case "fail":
		s.fail(e, p, t)
	}
}

func (s *summary) skip(e event, p *pkg, t *test) {
	if t.parent {
		return
	}
	p.skipped++
	why := reason(t.output.String())
	s.skipped[why] = append(s.skipped[why], e.Package+" "+e.Test)
}

func (s *summary) fail(e event, p *pkg, t *test) {
	if i := strings.LastIndex(e.Test, "/"); i >= 0 {
		p.test(e.Test[:i]).childFails = true
	}
	fmt.Fprintf(s.out, "%s", t.output.String())
	if t.parent && t.childFails {
		return
	}
	p.failed++
	s.failed = append(s.failed, e.Package+" "+e.Test)
}

func (s *summary) addPackage(e event, p *pkg) {
	switch e.Action {
	case "output":
		p.output.WriteString(e.Output)
		return
	case "pass", "skip", "fail":
	default:
		return
	}
	delete(s.running, e.Package)
	if e.Action == "fail" {
		s.failedPackages++
		if b := s.builds[e.FailedBuild]; b != nil {
			fmt.Fprint(s.out, b.String())
		}
		fmt.Fprint(s.out, p.output.String())
		if p.failed == 0 { // it did not build, ran out of time, or ended by itself
			s.failed = append(s.failed, e.Package)
		}
	}
	if p.passed+p.failed+p.skipped > 0 || e.Action == "fail" {
		fmt.Fprintf(s.out, "%-4s %-60s %4d passed %3d failed %3d skipped %7.1fs\n",
			map[string]string{"pass": "ok", "skip": "ok", "fail": "FAIL"}[e.Action], e.Package,
			p.passed, p.failed, p.skipped, e.Elapsed)
	}
}

// broken notes a failure that belongs to no package.
func (s *summary) broken(err error) { s.failed = append(s.failed, err.Error()) }

// report prints the sums and reports whether all is well. A run in which nothing passed is not.
func (s *summary) report() bool {
	for name := range s.running { // go test ended without telling the end of it
		s.failed = append(s.failed, name)
	}
	n := 0
	for _, why := range slices.Sorted(maps.Keys(s.skipped)) {
		if n == 0 {
			fmt.Fprintln(s.out, "\nskipped, and why:")
		}
		tests := s.skipped[why]
		n += len(tests)
		more := ""
		if len(tests) > 1 {
			more = fmt.Sprintf(" and %d more", len(tests)-1)
		}
		fmt.Fprintf(s.out, "%5d  %s\n       (%s%s)\n", len(tests), why, tests[0], more)
	}
	if len(s.failed) > 0 {
		fmt.Fprintln(s.out, "\nfailed:")
		for _, f := range s.failed {
			fmt.Fprintln(s.out, "       "+f)
		}
	}
	if s.passed == 0 {
		fmt.Fprintln(s.out, "\nno test passed: that is a failure")
	}
	fmt.Fprintf(s.out, "\n%d passed, %d failed, %d skipped\n", s.passed, len(s.failed), n)
	return len(s.failed) == 0 && s.passed > 0
}

var (
	place  = regexp.MustCompile(`^\s+[^\s:]+\.go:\d+: `)
	framed = regexp.MustCompile(`^\s*(=== |--- )`)
)

// reason finds what a skipped test said last.
func reason(output string) string {
	var said []string
	for _, line := range strings.Split(strings.TrimSpace(output), "\n") {
		switch {
		case framed.MatchString(line):
		case place.MatchString(line):
			said = []string{strings.TrimSpace(place.ReplaceAllString(line, ""))}
		case len(said) > 0:
			said = append(said, strings.TrimSpace(line))
		}
	}
	if len(said) == 0 {
		return "(no reason given)"
	}
	return strings.TrimPrefix(strings.Join(said, " "), "skip: ")
}
