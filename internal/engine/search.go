package engine

import (
	"fmt"
	"strings"

	"github.com/seine-net/seine/api"
)

// The options of every network with addresses that are about its containers' resolvers (resolv.conf(5)). They are handed
// on to who writes a container's resolv.conf: `seine run`, and CNI runtimes.
const (
	optSearch     = "dns.search"  // domains to append to short names, separated by commas; "." for none at all
	optDNSOptions = "dns.options" // such as "ndots:2,timeout:1"
)

// The most that a C library takes (resolv.conf(5), glibc before 2.26).
const (
	maxSearch      = 6
	maxSearchBytes = 256
)

// isDNSOption reports whether a key of a network's options is none of its driver's.
func isDNSOption(key string) bool { return key == optSearch || key == optDNSOptions }

// resolverOptions gives a network's search list and resolver options.
func resolverOptions(n api.Network) (search, options []string) {
	return commaList(n.Options[optSearch]), commaList(n.Options[optDNSOptions])
}

func commaList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// checkResolver refuses what a resolver would not understand.
func checkResolver(noun string, n api.Network) error {
	bad := func(key, message, want string) error {
		return api.FieldError(noun, "options."+key, n.Options[key], message, want)
	}
	search, options := resolverOptions(n)
	if len(search) > maxSearch || len(n.Options[optSearch]) > maxSearchBytes {
		return bad(optSearch, "is too long", fmt.Sprintf("at most %d domains and %d bytes", maxSearch, maxSearchBytes))
	}
	for _, d := range search {
		if !isDomain(d) && !(d == "." && len(search) == 1) {
			return bad(optSearch, fmt.Sprintf("has %q, which is no domain", d), `domains separated by commas, or "." for none`)
		}
	}
	for _, o := range options {
		if strings.Trim(o, "abcdefghijklmnopqrstuvwxyz0123456789-:") != "" {
			return bad(optDNSOptions, fmt.Sprintf("has %q, which is no option", o), "options of resolv.conf(5) separated by commas, such as ndots:2,timeout:1")
		}
	}
	return nil
}

// isDomain holds a name to what RFC 1035 section 2.3.4 and RFC 2181 section 11 let one be, and to letters that are safe in
// a file: a name of letters, digits, '-' and '_'.
func isDomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if len(label) == 0 || len(label) > 63 {
			return false
		}
		for _, r := range label {
			if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_') {
				return false
			}
		}
	}
	return true
}
