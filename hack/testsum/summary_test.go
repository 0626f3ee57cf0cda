package main

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// line makes the JSON of an event.
func line(action, pkg, test, output string) string {
	return fmt.Sprintf(`{"Action":%q,"Package":%q,"Test":%q,"Output":%q}`+"\n", action, pkg, test, output)
}

func TestSums(t *testing.T) {
	ok := line("pass", "p", "TestA", "") + line("pass", "p", "", "")
	skip := line("output", "p", "TestS", "=== RUN   TestS\n") +
		line("output", "p", "TestS", "    a_test.go:7: skip: needs root: it makes a namespace\n") +
		line("output", "p", "TestS", "--- SKIP: TestS (0.00s)\n") + line("skip", "p", "TestS", "")
	for _, tt := range []struct {
		name, in string
		well     bool
		want     []string // in the report
	}{
		{"pass", ok, true, []string{"\n1 passed, 0 failed, 0 skipped\n"}},
		{"nothing", "", false, []string{"no test passed", "\n0 passed, 0 failed, 0 skipped\n"}},
		{"skip", skip + ok, true, []string{"    1  needs root: it makes a namespace\n       (p TestS)\n", "\n1 passed, 0 failed, 1 skipped\n"}},
		{"only skips", skip + line("pass", "p", "", ""), false, []string{"\n0 passed, 0 failed, 1 skipped\n"}},
		{"a parent is not counted", line("run", "p", "TestA", "") + line("run", "p", "TestA/x", "") +
			line("pass", "p", "TestA/x", "") + ok, true, []string{"\n1 passed, 0 failed, 0 skipped\n"}},
		{"a failed child counts once", line("output", "p", "TestA/x", "    a_test.go:1: boom\n") + line("fail", "p", "TestA/x", "") +
			line("fail", "p", "TestA", "") + line("pass", "p", "TestB", "") + line("fail", "p", "", ""), false,
			[]string{"boom", "p TestA/x\n", "\n1 passed, 1 failed, 0 skipped\n"}},
		{"a parent that fails by itself counts", line("pass", "p", "TestA/x", "") + line("fail", "p", "TestA", "") +
			line("fail", "p", "", ""), false, []string{"p TestA\n", "\n1 passed, 1 failed, 0 skipped\n"}},
		{"build failure", `{"Action":"build-output","ImportPath":"p","Output":"x.go:1: syntax error\n"}` + "\n" +
			`{"Action":"fail","Package":"p","FailedBuild":"p"}` + "\n" + strings.ReplaceAll(ok, `"p"`, `"q"`), false,
			[]string{"x.go:1: syntax error", "FAIL p ", "\n1 passed, 1 failed, 0 skipped\n"}},
		{"a package that never ends", ok + line("run", "q", "TestA", ""), false, []string{"\n1 passed, 1 failed, 0 skipped\n"}},
		{"noise", "go: downloading\n" + ok, true, []string{"go: downloading\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			s := newSummary(&b)
			if err := s.read(strings.NewReader(tt.in)); err != nil {
				t.Fatal(err)
			}
			if well := s.report(); well != tt.well {
				t.Errorf("report says %v, want %v", well, tt.well)
			}
			for _, w := range tt.want {
				if !strings.Contains(b.String(), w) {
					t.Errorf("no %q in\n%s", w, b.String())
				}
			}
		})
	}
}

func TestParts(t *testing.T) {
	got := parts(strings.Fields("-race ./a -- -- X=1 ./b"))
	want := [][]string{{"-race", "./a"}, {"X=1", "./b"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parts %q, want %q", got, want)
	}
}

func TestReason(t *testing.T) {
	for in, want := range map[string]string{
		"=== RUN   T\n    a_test.go:1: note\n    b_test.go:2: needs x\n        and y\n--- SKIP: T (0.00s)\n": "needs x and y",
		"=== RUN   T\n--- SKIP: T (0.00s)\n": "(no reason given)",
	} {
		if got := reason(in); got != want {
			t.Errorf("reason %q, want %q", got, want)
		}
	}
}
