package cni

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// semver is what libraries take for a semantic version (semver.org), with the "v" that they let pass.
var semver = regexp.MustCompile(`^v?(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// probe calls a plugin with no more of an environment than a verb.
func probe(t *testing.T, plugin, verb, stdin string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	env := map[string]string{"CNI_COMMAND": verb}
	code := Main(t.Context(), &Host{Args: []string{"/opt/cni/bin/" + plugin}, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs,
		Getenv: func(key string) string { return env[key] }})
	if code != 0 {
		t.Errorf("%s %q ends with %d: %s%s", plugin, verb, code, &out, &errs)
	}
	return out.String(), errs.String()
}

// TestAbout: programs call a plugin without a verb and look for its version. nerdctl reads the line "CNI firewall plugin v…" of
// standard error and wants 1.1.0 or newer for ingressPolicy; Nomad takes the first word of both streams that is a semantic
// version, and wants 1.3.0 or newer of bridge for CHECK.
func TestAbout(t *testing.T) {
	for _, name := range Names() {
		out, errs := probe(t, name, "", "")
		if out != "" {
			t.Errorf("%s prints %q on standard output, want nothing", name, out)
		}
		lines := strings.Split(errs, "\n")
		word, ok := strings.CutPrefix(lines[0], "CNI "+name+" plugin ")
		if !ok || word != release {
			t.Errorf("%s says %q first, want the plugin and its release", name, lines[0])
		}
		words := strings.Fields(errs)
		i := slices.IndexFunc(words, semver.MatchString)
		if i < 0 || words[i] != release {
			t.Fatalf("%s: the first version in %q is not %s", name, errs, release)
		}
		v := semver.FindStringSubmatch(words[i])
		major, _ := strconv.Atoi(v[1])
		minor, _ := strconv.Atoi(v[2])
		if major != 1 || minor < 3 || v[4] != "" {
			t.Errorf("release %s: want 1.3 or newer, and no pre-release", release)
		}
	}
}

// TestVersionVerb: runtimes ask every plugin of a network for the versions that it speaks, with nothing more (libcni) or
// with a network that means nothing (Podman).
func TestVersionVerb(t *testing.T) {
	for _, name := range Names() {
		for _, stdin := range []string{"", `{"cniVersion": "0.2.0"}`, `{"cniVersion": "9.0.0"}`, "{"} {
			out, errs := probe(t, name, "VERSION", stdin)
			var got struct {
				CNIVersion        string
				SupportedVersions []string
			}
			err := json.Unmarshal([]byte(out), &got)
			if err != nil || errs != "" || got.CNIVersion != newest || !slices.Equal(got.SupportedVersions, versions) {
				t.Errorf("%s VERSION of %q: %v: %s%s", name, stdin, err, out, errs)
			}
		}
	}
}
