package cases_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
)

// golden is what the reference plugins did with a configuration: lines by mode.
type golden map[string][]string

func goldenPath(c *configuration) string { return filepath.Join(testdata, c.name+".golden") }

// readGolden reads NAME.golden: comments, which say what the plugins called themselves, and a section for each mode.
func readGolden(c *configuration) (golden, error) {
	text, err := os.ReadFile(goldenPath(c))
	if err != nil {
		return nil, err
	}
	g, mode := golden{}, ""
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			mode = strings.Trim(line, "[]")
		case mode == "":
			return nil, fmt.Errorf("%s:%d: want a [mode] first", goldenPath(c), i+1)
		default:
			g[mode] = append(g[mode], line)
		}
	}
	for _, mode := range modes {
		if len(g[mode]) == 0 {
			return nil, fmt.Errorf("%s: mode %q is missing", goldenPath(c), mode)
		}
	}
	return g, c.expected(g)
}

// expected tells whether ADD ended as the configuration's meta says.
func (c *configuration) expected(g golden) error {
	failed := ""
	for _, line := range g["normal"] {
		if strings.HasPrefix(line, "ADD ") && !strings.HasSuffix(line, ": ok") {
			failed = line
		}
	}
	want := fmt.Sprintf(": error %d of ", c.Expect.Code)
	if c.Expect.Add == "" && failed != "" || c.Expect.Add == "error" && !strings.Contains(failed, want) {
		return fmt.Errorf("%s: %q, but the configuration's meta expects %+v", goldenPath(c), failed, c.Expect)
	}
	return nil
}

// text is what readGolden reads.
func (g golden) text(c *configuration, bin string) []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(c.plugins())) {
		said := "not there"
		// Without CNI_COMMAND, a plugin says on stderr which it is.
		if out, err := exec.Command(filepath.Join(bin, name)).CombinedOutput(); err == nil || errors.As(err, new(*exec.ExitError)) {
			said, _, _ = strings.Cut(string(out), "\n")
		}
		fmt.Fprintf(&b, "# %s: %s\n", name, said)
	}
	for _, mode := range modes {
		fmt.Fprintf(&b, "\n[%s]\n%s\n", mode, strings.Join(g[mode], "\n"))
	}
	return b.Bytes()
}

// difference is a difference from the reference that is right.
type difference struct {
	where       string // in the file
	cases, line *regexp.Regexp
	modes       []string
	more        bool // ours has the line; else the reference has it
	used        atomic.Bool
}

const differencesPath = testdata + "/differences.txt"

// readDifferences reads the list of differences that are right. It has paragraphs: the reason, then, indented, rows of
//
//	CASES MODES SIGN LINE
//
// CASES names configurations, MODES modes or all, with commas between them; + is a line that we have and the reference
// has not, - is the other way round. * stands for anything.
func readDifferences() ([]*difference, error) {
	text, err := os.ReadFile(differencesPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*difference
	reason := false
	for i, line := range strings.Split(string(text), "\n") {
		where := fmt.Sprintf("%s:%d", differencesPath, i+1)
		if !strings.HasPrefix(line, "\t") {
			reason = line != ""
			continue
		}
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if len(f) != 4 || f[2] != "+" && f[2] != "-" || !reason {
			return nil, fmt.Errorf("%s: want a reason above, and CASES MODES +|- LINE: %q", where, line)
		}
		d := &difference{where: where, cases: wild(f[0]), modes: strings.Split(f[1], ","), more: f[2] == "+", line: wild(f[3])}
		if f[1] == "all" {
			d.modes = modes
		}
		for _, mode := range d.modes {
			if !slices.Contains(modes, mode) {
				return nil, fmt.Errorf("%s: mode %q: want one of %q, or all", where, mode, modes)
			}
		}
		all = append(all, d)
	}
	return all, nil
}

// wild compiles a pattern; commas separate alternatives where there are no spaces.
func wild(pattern string) *regexp.Regexp {
	text := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*")
	if !strings.Contains(pattern, " ") {
		text = strings.ReplaceAll(text, ",", "|")
	}
	return regexp.MustCompile("^(?:" + text + ")$")
}

// expectation is what a run should show.
type expectation struct {
	golden []string
	list   []*difference // those about this configuration and mode
}

func expect(c *configuration, mode string, golden []string, all []*difference) *expectation {
	e := &expectation{golden: golden}
	for _, d := range all {
		if d.cases.MatchString(c.name) && slices.Contains(d.modes, mode) {
			e.list = append(e.list, d)
		}
	}
	return e
}

// has says whether a line of ours (more), or the lack of one, is as it should be, and by which difference, if by any.
func (e *expectation) has(line string, more bool) (*difference, bool) {
	if more && slices.Contains(e.golden, line) {
		return nil, true
	}
	for _, d := range e.list {
		if d.more == more && d.line.MatchString(line) {
			return d, true
		}
	}
	return nil, false
}

// wrong gives the lines that are not as they should be, among those that begin with prefix, and notes which differences
// were needed.
func (e *expectation) wrong(prefix string, lines []string, note bool) (all []string) {
	judge := func(sign, line string, more bool) {
		if !strings.HasPrefix(line, prefix) {
			return
		}
		d, ok := e.has(line, more)
		if !ok {
			all = append(all, sign+" "+line)
		} else if d != nil && note {
			d.used.Store(true)
		}
	}
	for _, line := range e.golden {
		if !slices.Contains(lines, line) {
			judge("-", line, false)
		}
	}
	for _, line := range lines {
		judge("+", line, true)
	}
	return all
}

// more says whether a line of ours is as it should be.
func (e *expectation) more(line string) bool { _, ok := e.has(line, true); return ok }

// met says whether nothing is wrong with the lines that begin with prefix.
func (e *expectation) met(prefix string, lines []string) bool {
	return len(e.wrong(prefix, lines, false)) == 0
}
