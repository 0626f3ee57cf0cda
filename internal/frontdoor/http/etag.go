package httpdoor

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
)

// etag writes a revision as an entity tag.
func etag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

// parseETag reads what etag writes.
func parseETag(s string) (revision uint64, ok bool) {
	inner, ok := strings.CutPrefix(s, `"`)
	if !ok {
		return 0, false
	}
	if inner, ok = strings.CutSuffix(inner, `"`); !ok || inner == "" || inner[0] < '1' || inner[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(inner, 10, 64)
	return n, err == nil && n != api.CreateOnly
}

// matchOf reads the condition of a PUT or DELETE: the revision that the noun must have, 0 for any, api.CreateOnly for
// "none yet".
func matchOf(r *http.Request, noun string) (uint64, error) {
	match, none := r.Header.Values("If-Match"), r.Header.Values("If-None-Match")
	if len(match) > 0 && len(none) > 0 {
		return 0, api.FieldError(noun, "If-None-Match", none[0], "can't stand beside If-Match", "one of the two headers")
	}
	if len(none) > 0 {
		if len(none) != 1 || none[0] != "*" || r.Method != http.MethodPut {
			return 0, api.FieldError(noun, "If-None-Match", strings.Join(none, ", "), "can't be used in a "+r.Method,
				`* in a PUT, so that it only creates`)
		}
		return api.CreateOnly, nil
	}
	if len(match) == 0 {
		return 0, nil
	}
	revision, ok := parseETag(match[0])
	if len(match) != 1 || !ok {
		return 0, api.FieldError(noun, "If-Match", strings.Join(match, ", "), "is no revision", `one ETag as it was answered, such as "17"`)
	}
	return revision, nil
}

// knows reports whether the If-None-Match of a GET names the revision: * or a list of ETags, weak ones too (RFC 9110,
// section 13.1.2).
func knows(r *http.Request, revision uint64) (bool, error) {
	if match := r.Header.Get("If-Match"); match != "" {
		return false, api.FieldError("", "If-Match", match, "can't be used in a "+r.Method, "If-None-Match")
	}
	for _, v := range r.Header.Values("If-None-Match") {
		for _, tag := range strings.Split(v, ",") {
			tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
			if tag == "*" || tag == etag(revision) {
				return true, nil
			}
		}
	}
	return false, nil
}
