package cni

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
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
		return &wrongType{cause: errorf(CodeDecode, "key %q: %s", keyOf(t.Field, reflect.TypeOf(to)), typeText(t, data))}
	}
	return errorf(CodeDecode, "decode: %w", err)
}

// keyOf leaves out of a key's place the names of embedded structs, which no configuration has.
func keyOf(field string, t reflect.Type) string {
	if field == "" {
		return "(the whole)"
	}
	var out []string
	for name := range strings.SplitSeq(field, ".") {
		for t != nil && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice) {
			t = t.Elem()
		}
		embedded := false
		if t != nil && t.Kind() == reflect.Struct {
			var f reflect.StructField
			f, embedded = t.FieldByName(name)
			if embedded = embedded && f.Anonymous; embedded {
				t = f.Type
			} else {
				t = fieldOf(t, name)
			}
		} else {
			t = nil
		}
		if !embedded {
			out = append(out, name)
		}
	}
	return strings.Join(out, ".")
}

// fieldOf gives the type of a struct's field by its key.
func fieldOf(t reflect.Type, key string) reflect.Type {
	for i := range t.NumField() {
		if tag, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); tag == key {
			return t.Field(i).Type
		}
	}
	return nil
}

// typeText says what is wrong with a value, and what would be right.
func typeText(t *json.UnmarshalTypeError, data []byte) string {
	kind, value, _ := strings.Cut(t.Value, " ") // "number -1" is one that is out of range
	names := map[string]string{"array": "a list", "object": "an object", "bool": "a boolean"}
	is := cmp.Or(names[kind], "a "+kind)
	if value == "" && kind != "array" && kind != "object" && t.Offset <= int64(len(data)) {
		value = lastValue(data[:t.Offset])
	}
	if value != "" {
		is += " (" + value + ")"
	}
	return "is " + is + "; want " + jsonName(t.Type)
}

// lastValue gives the string, number or boolean that a text ends with.
func lastValue(text []byte) string {
	text = bytes.TrimRight(text, " \t\r\n")
	start := 1 + bytes.LastIndexAny(text, " \t\r\n:,[{")
	if n := len(text) - 1; n > 0 && text[n] == '"' {
		for start = bytes.LastIndexByte(text[:n], '"'); start > 0 && text[start-1] == '\\'; {
			start = bytes.LastIndexByte(text[:start], '"')
		}
	}
	const most = 100 // for people
	if start < 0 || len(text)-start > most {
		return ""
	}
	return string(text[start:])
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

// jsonName says what is read into a type.
func jsonName(t reflect.Type) string {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return "a string"
	}
	switch t.Kind() {
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(math.MaxUint64)>>(64-t.Bits()))
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Pointer:
		return jsonName(t.Elem())
	case reflect.Bool:
		return "a boolean"
	}
	return "a " + t.Kind().String()
}
