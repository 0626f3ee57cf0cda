// Testsum runs go test and says at the end what the run was worth: how many tests passed, failed and were skipped, and
// each reason for a skip with the number of tests that gave it, so that a machine on which half of the tests could not
// run does not look like one on which all of them passed.
//
//	testsum [NAME=VALUE...] [go test arguments] [-- [NAME=VALUE...] [go test arguments]]...
//
// Every part between "--" is one run of "go test -json", with the variables added to its environment; the sums are
// over all of them. The exit code is 0 if no run failed and at least one test passed, 1 otherwise, 2 for bad usage.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
)

func main() {
	runs := parts(os.Args[1:])
	if len(runs) == 0 {
		fmt.Fprintln(os.Stderr, "usage: testsum [NAME=VALUE...] [go test arguments] [-- ...]...")
		os.Exit(2)
	}
	s := newSummary(os.Stdout)
	for _, args := range runs {
		if err := goTest(s, args); err != nil {
			s.broken(err)
		}
	}
	if !s.report() {
		os.Exit(1)
	}
}

// parts splits arguments at "--" and drops the empty parts.
func parts(args []string) [][]string {
	var all [][]string
	for len(args) > 0 {
		i := slices.Index(args, "--")
		if i < 0 {
			return append(all, args)
		}
		if i > 0 {
			all = append(all, args[:i])
		}
		args = args[i+1:]
	}
	return all
}

var assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

// goTest does one run. An error is one that the events don't tell: go test could not be started, or it failed without
// naming a package.
func goTest(s *summary, args []string) error {
	env := os.Environ()
	for len(args) > 0 && assignment.MatchString(args[0]) {
		env, args = append(env, args[0]), args[1:]
	}
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Env, cmd.Stderr = env, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	before := s.failedPackages
	readErr := s.read(out)
	err = cmd.Wait()
	if err != nil && s.failedPackages > before {
		err = nil // it has been told already
	}
	if err != nil {
		err = fmt.Errorf("go test %q: %w", args, err)
	}
	return errors.Join(readErr, err)
}

// read takes in the events of one run. Lines that are no events are passed through.
func (s *summary) read(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil || e.Action == "" {
				fmt.Fprintf(s.out, "%s", line)
			} else {
				s.add(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
