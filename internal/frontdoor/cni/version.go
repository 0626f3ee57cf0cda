package cni

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// newest is the newest version of the specification that the plugins speak.
const newest = "1.1.0"

// versions are all that the plugins speak, oldest first; a configuration's version has to be one of them literally.
var versions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", newest}

// release is what programs that look for the version of "the CNI plugins" find (nerdctl and Nomad parse it as a
// semantic version and compare): the release of the reference plugins whose behaviour these have.
const release = "v1.9.1+seine"

// supported gives a configuration's version, and an error where it is none of ours. "" is 0.1.0 as libcni has it.
func supported(version string) (string, error) {
	if version == "" {
		return versions[0], nil
	}
	if slices.Contains(versions, version) {
		return version, nil
	}
	return version, &Error{Code: CodeVersion, Msg: fmt.Sprintf("cniVersion %q is not supported", version),
		Details: fmt.Sprintf("want one of %s", strings.Join(versions, ", "))}
}

// atLeast compares versions.
func atLeast(version, other string) bool { return number(version) >= number(other) }

func number(version string) int {
	n := 0
	for i, part := range strings.SplitN(version, ".", 3) {
		v, err := strconv.Atoi(part)
		if err != nil || v < 0 || v > 999 {
			return 0
		}
		n += v * [...]int{1000000, 1000, 1}[i]
	}
	return n
}
