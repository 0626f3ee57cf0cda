package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/ipam/hostlocal"
	"github.com/seine-net/seine/internal/kernel"
)

// Code is an error code of the CNI specification, section "Error".
type Code uint

// The codes.
const (
	CodeVersion     Code = 1   // the configuration's cniVersion is not supported
	CodeUnsupported Code = 2   // a field or its value is not supported
	CodeEnvironment Code = 4   // an environment variable is missing or wrong
	CodeIO          Code = 5   // reading or writing failed
	CodeDecode      Code = 6   // what was read could not be decoded
	CodeConfig      Code = 7   // the configuration is not valid
	CodeNetns       Code = 8   // CNI_NETNS names no network namespace, or the plugin's own (as the reference's skeleton)
	CodeTryAgain    Code = 11  // may work later
	CodeUnavailable Code = 50  // STATUS: an ADD can't be served
	CodeLimited     Code = 51  // STATUS: as 50, and existing containers may be limited too
	CodeInternal    Code = 999 // everything else, as the reference's skeleton
)

// Error is what a plugin prints when it fails.
type Error struct {
	Code    Code
	Msg     string
	Details string
	cause   error
}

// Error gives message and details on one line.
func (e *Error) Error() string {
	if e.Details != "" {
		return e.Msg + "; " + e.Details
	}
	return e.Msg
}

// Unwrap gives the cause, if there is one.
func (e *Error) Unwrap() error { return e.cause }

func errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Msg: err.Error(), cause: errors.Unwrap(err)}
}

// asError finds the code that belongs to an error of a layer below.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		if e.Error() == err.Error() {
			return e
		}
		return &Error{Code: e.Code, Msg: err.Error(), cause: err}
	}
	code := CodeInternal
	var f *api.Error
	switch {
	case errors.As(err, &f) && f.Code == api.Unsupported:
		code = CodeUnsupported
	case errors.As(err, &f) && f.Code == api.Invalid:
		code = CodeConfig
	case errors.Is(err, kernel.ErrUnsupported):
		code = CodeUnsupported
	case errors.Is(err, kernel.ErrNamespaceGone):
		code = CodeNetns
	case errors.Is(err, hostlocal.ErrExhausted):
		code = CodeTryAgain
	}
	return &Error{Code: code, Msg: err.Error(), cause: err}
}

// invalid is an error about a key of the configuration.
func invalid(key string, value any, message, want string) error {
	return api.FieldError("", key, value, message, want)
}

// unsupported is an error about a key that is understood but can't be honoured.
func unsupported(key string, value any, why string) error {
	return &api.Error{Code: api.Unsupported, Field: key, Value: fmt.Sprint(value), Message: why}
}

// print writes the error as the specification says.
func (e *Error) print(w io.Writer, version string) {
	out, err := json.MarshalIndent(struct {
		CNIVersion string `json:"cniVersion,omitempty"`
		Code       Code   `json:"code"`
		Msg        string `json:"msg"`
		Details    string `json:"details,omitempty"`
	}{version, e.Code, e.Msg, e.Details}, "", "    ")
	if err == nil {
		_, _ = w.Write(append(out, '\n')) // the exit status tells as well
	}
}
