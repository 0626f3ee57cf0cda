// Package api holds the nouns of Seine as users see them in JSON: Network, Endpoint, Node and what belongs to them.
// They are plain structs with JSON tags and a Validate method; the package changes nothing and imports only the
// standard library.
package api

import (
	"errors"
	"fmt"
	"strings"
)

// Code classes an Error. The HTTP status and the exit code of the command line follow from it.
type Code string

// The codes.
const (
	Invalid     Code = "invalid"     // a field of a request is wrong; HTTP 400, exit code 2
	NotFound    Code = "not-found"   // no such noun; HTTP 404, exit code 3
	Conflict    Code = "conflict"    // it is in the way of something that exists; HTTP 409, exit code 4
	Stale       Code = "stale"       // If-Match names another revision than the present one; HTTP 412, exit code 4
	InUse       Code = "in-use"      // it can't be removed while others hang on it; HTTP 409, exit code 4
	Exhausted   Code = "exhausted"   // no address (or pool) is left; HTTP 409, exit code 4
	Unsupported Code = "unsupported" // this kernel or driver can't do that; HTTP 422, exit code 5
	Unavailable Code = "unavailable" // not now, try again; HTTP 503, exit code 6
	Internal    Code = "internal"    // the kernel or the store said no; HTTP 500, exit code 1
)

// Error is the one form of an error in every answer of the API. Field, Value and Want are set where the error is
// about something that the caller wrote.
type Error struct {
	Code Code `json:"code"`
	// Noun is what the error is about: `network "a"`, `endpoint "default/web"`.
	Noun string `json:"noun,omitempty"`
	// Field is the JSON path of the field that is wrong: "subnets[0].prefix".
	Field string `json:"field,omitempty"`
	// Value is what stood there.
	Value string `json:"value,omitempty"`
	// Want says what would be right.
	Want string `json:"want,omitempty"`
	// Message says what is wrong, in lower case and without a full stop.
	Message string `json:"message"`
	cause   error
}

// Error gives the whole of it on one line: noun, field with value, message, what would be right.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Noun != "" {
		b.WriteString(e.Noun + ": ")
	}
	if e.Field != "" {
		fmt.Fprintf(&b, "%s %q: ", e.Field, e.Value)
	}
	b.WriteString(e.Message)
	if e.Want != "" {
		b.WriteString("; want " + e.Want)
	}
	return b.String()
}

// Unwrap gives the cause, if there is one.
func (e *Error) Unwrap() error { return e.cause }

// Errorf makes an Error about a noun; a %w in format becomes its cause.
func Errorf(code Code, noun, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Noun: noun, Message: err.Error(), cause: errors.Unwrap(err)}
}

// FieldError makes an Invalid error about a field.
func FieldError(noun, field string, value any, message, want string) *Error {
	return &Error{Code: Invalid, Noun: noun, Field: field, Value: fmt.Sprint(value), Message: message, Want: want}
}

// CodeOf gives the code of the first Error in err's chain, Internal where there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// Meta is the part that every stored noun has.
type Meta struct {
	// Revision counts the changes of the whole store; that of a noun is the one of its last change. It is the ETag.
	Revision uint64 `json:"revision,omitempty"`
	// Created is when the noun was first stored, RFC 3339 in UTC.
	Created string `json:"created,omitempty"`
	// Labels are the user's own; Seine gives them no meaning.
	Labels map[string]string `json:"labels,omitempty"`
}

// checkName holds a name to what works as a DNS label, a file name and part of an URL alike.
func checkName(noun, field, name string, most int) error {
	const want = "1 to %d letters, digits, '-', '_' and '.', the first a letter or digit"
	bad := func(msg string) error { return FieldError(noun, field, name, msg, fmt.Sprintf(want, most)) }
	if name == "" {
		return bad("is empty")
	}
	if len(name) > most {
		return bad("is too long")
	}
	for i, r := range name {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			i > 0 && (r == '-' || r == '_' || r == '.')
		if !ok {
			return bad(fmt.Sprintf("has %q", r))
		}
	}
	return nil
}

func checkIfname(noun, field, name string) error {
	const want = "1 to 15 bytes without '/', ':' and white space, not . or .."
	if name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r\x00%") {
		return FieldError(noun, field, name, "is no interface name", want)
	}
	return nil
}

func checkLabels(noun string, labels map[string]string) error {
	for k, v := range labels {
		if k == "" || len(k) > 256 || len(v) > 4096 {
			return FieldError(noun, "labels", k, "is no label", "keys of 1 to 256 bytes and values of at most 4096")
		}
	}
	return nil
}
