package cni

import (
	"encoding/json"
	"errors"
)

// decode reads JSON. Keys match whatever their case, as in the reference plugins: containerd writes "HostPort" where
// Podman writes "hostPort". The error has CodeDecode and names the key; where only some keys have a wrong type, the
// others are read all the same and the error is a *wrongType.
func decode(data []byte, to any) error {
	err := json.Unmarshal(data, to)
	if err == nil {
		return nil
	}
	var t *json.UnmarshalTypeError
	if errors.As(err, &t) {
		key := t.Field
		if key == "" {
			key = "(the whole)"
		}
		return &wrongType{cause: errorf(CodeDecode, "key %q: is a %s; want a %s", key, t.Value, jsonName(t.Type.Kind().String()))}
	}
	return errorf(CodeDecode, "decode: %w", err)
}

// wrongType is an error about a key that has another type than it should.
type wrongType struct{ cause *Error }

// Error gives the Error's text.
func (w *wrongType) Error() string { return w.cause.Error() }

// Unwrap gives the Error, so that its code is found.
func (w *wrongType) Unwrap() error { return w.cause }

// lenient drops an error about wrong types: for DEL, which goes on with what could be read.
func lenient(err error) error {
	var w *wrongType
	if errors.As(err, &w) {
		return nil
	}
	return err
}

func jsonName(kind string) string {
	switch kind {
	case "int", "int64", "uint", "uint8", "uint16", "uint32", "uint64", "float64":
		return "number"
	case "slice", "array":
		return "list"
	case "struct", "map":
		return "object"
	case "ptr":
		return "value of another type"
	}
	return kind
}
