package httpdoor

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seine-net/seine/api"
)

// readBody reads the JSON object in a request's body into into, a pointer to a struct. It is stricter than
// encoding/json: field names must be known, spelt as documented and given once, and each error names the path of the
// field that is wrong.
func readBody(w http.ResponseWriter, r *http.Request, noun string, into any) error {
	kind := r.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(kind); err != nil || media != "application/json" {
		return statusError{http.StatusUnsupportedMediaType,
			api.FieldError(noun, "Content-Type", kind, "is not what is read here", "application/json")}
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // a recorder in a test has none
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = rc.SetReadDeadline(time.Time{})
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return statusError{http.StatusRequestEntityTooLarge,
			api.FieldError(noun, "body", fmt.Sprintf("> %d bytes", maxBody), "is too large", fmt.Sprintf("at most %d bytes", maxBody))}
	}
	if err != nil {
		return api.Errorf(api.Invalid, noun, "body: %w", err)
	}
	return decode(noun, data, into)
}

// decode reads one JSON object into a pointer to a struct.
func decode(noun string, data []byte, into any) error {
	const want = "one JSON object"
	if !utf8.Valid(data) {
		return api.FieldError(noun, "body", brief(data), "is not UTF-8", want)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		if errors.Is(err, io.EOF) {
			return api.FieldError(noun, "body", "", "is empty", want)
		}
		return api.FieldError(noun, "body", brief(data), fmt.Sprintf("is no JSON at byte %d: %v", dec.InputOffset(), err), want)
	}
	if rest := bytes.TrimSpace(data[dec.InputOffset():]); len(rest) > 0 {
		return api.FieldError(noun, "body", brief(rest), "is data after the end of the object", want)
	}
	if raw[0] != '{' {
		return api.FieldError(noun, "body", brief(raw), "is no object", want)
	}
	return fill(noun, "", raw, reflect.ValueOf(into).Elem())
}

// fill sets v from valid JSON; path is where that stands. null leaves v as it is, as encoding/json has it.
func fill(noun, path string, raw json.RawMessage, v reflect.Value) error {
	raw = bytes.TrimSpace(raw)
	if string(raw) == "null" {
		return nil
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		return fill(noun, path, raw, v.Elem())
	}
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return fillLeaf(noun, path, raw, v)
	}
	switch {
	case v.Kind() == reflect.Struct && raw[0] == '{':
		return fillStruct(noun, path, raw, v)
	case v.Kind() == reflect.Slice && raw[0] == '[':
		return fillSlice(noun, path, raw, v)
	case v.Kind() == reflect.Map && raw[0] == '{':
		return fillMap(noun, path, raw, v)
	}
	return fillLeaf(noun, path, raw, v)
}

func fillLeaf(noun, path string, raw json.RawMessage, v reflect.Value) error {
	if err := json.Unmarshal(raw, v.Addr().Interface()); err != nil {
		want, what := wanted(v)
		return api.FieldError(noun, path, brief(raw), "is no "+what, want)
	}
	return nil
}

func fillStruct(noun, path string, raw json.RawMessage, v reflect.Value) error {
	fields := map[string][]int{}
	for _, f := range reflect.VisibleFields(v.Type()) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.IsExported() && name != "" && name != "-" {
			fields[name] = f.Index
		}
	}
	return eachMember(noun, path, raw, func(key, at string, val json.RawMessage) error {
		index, ok := fields[key]
		if !ok {
			return api.FieldError(noun, at, brief(val), "is no field", "one of "+strings.Join(sortedKeys(fields), ", "))
		}
		return fill(noun, at, val, v.FieldByIndex(index))
	})
}

func fillMap(noun, path string, raw json.RawMessage, v reflect.Value) error {
	v.Set(reflect.MakeMap(v.Type()))
	return eachMember(noun, path, raw, func(key, at string, val json.RawMessage) error {
		elem := reflect.New(v.Type().Elem()).Elem()
		if err := fill(noun, at, val, elem); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(key), elem)
		return nil
	})
}

func fillSlice(noun, path string, raw json.RawMessage, v reflect.Value) error {
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return api.FieldError(noun, path, brief(raw), "is no list", "a list")
	}
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, item := range items {
		if err := fill(noun, fmt.Sprintf("%s[%d]", path, i), item, v.Index(i)); err != nil {
			return err
		}
	}
	return nil
}

// eachMember calls do for each member of a JSON object, in its order, with the path of the member.
func eachMember(noun, path string, raw json.RawMessage, do func(key, at string, val json.RawMessage) error) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return api.FieldError(noun, path, brief(raw), "is no object", "an object")
	}
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		key, ok := tok.(string)
		var val json.RawMessage
		if err == nil && ok {
			err = dec.Decode(&val)
		}
		if err != nil || !ok {
			return api.FieldError(noun, path, brief(raw), "is no object", "an object")
		}
		at := key
		if path != "" {
			at = path + "." + key
		}
		if seen[key] {
			return api.FieldError(noun, at, brief(val), "is given twice", "each field once")
		}
		seen[key] = true
		if err := do(key, at, val); err != nil {
			return err
		}
	}
	return nil
}

// wanted says what a field of v's type takes, and what that is called.
func wanted(v reflect.Value) (want, what string) {
	switch v.Interface().(type) {
	case netip.Addr:
		return "an address such as 10.1.0.2 or fd00::2", "IP address"
	case netip.Prefix:
		return "an address range such as 10.1.0.0/24 or fd00:1::/64", "address range"
	}
	switch v.Kind() {
	case reflect.String:
		return "a string", "string"
	case reflect.Bool:
		return "true or false", "boolean"
	case reflect.Int, reflect.Int64:
		return "a whole number", "whole number in range"
	case reflect.Uint16:
		return "a whole number from 0 to 65535", "whole number in range"
	case reflect.Uint64:
		return "a whole number from 0", "whole number in range"
	case reflect.Slice:
		return "a list", "list"
	}
	return "an object", "object"
}

// brief is a JSON value as an error shows it: a string without its quotes, and not too much of anything.
func brief(raw []byte) string {
	const most = 80
	raw = bytes.TrimSpace(raw)
	s := string(raw)
	if strings.HasPrefix(s, `"`) {
		_ = json.Unmarshal(raw, &s) // what is no JSON is shown as it is
	}
	if len(s) > most {
		cut := most
		for !utf8.RuneStart(s[cut]) && cut > most-utf8.UTFMax {
			cut--
		}
		s = s[:cut] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

func sortedKeys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
