package dhcprpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// This file is as much of encoding/gob's format as the protocol needs: values of structs that it writes, any value that
// it reads (encoding/gob's documentation is the specification). A message is its length, a type's number, and either
// the description of a type (the number is negative) or a value of the type.

// The numbers of types that need no description.
const (
	gobBool = iota + 1
	gobInt
	gobUint
	gobFloat
	gobBytes
	gobString
	gobComplex
	gobInterface
)

// The first numbers of types that a stream may describe.
const firstType = 64

type field struct {
	name  string
	value any // a string, a uint64 or a []byte
}

func appendUint(b []byte, n uint64) []byte {
	if n < 128 {
		return append(b, byte(n))
	}
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], n)
	i := 0
	for raw[i] == 0 {
		i++
	}
	return append(append(b, byte(-(8-i))), raw[i:]...)
}

func appendInt(b []byte, n int64) []byte {
	if n < 0 {
		return appendUint(b, uint64(^n)<<1|1)
	}
	return appendUint(b, uint64(n)<<1)
}

func appendString(b []byte, s string) []byte { return append(appendUint(b, uint64(len(s))), s...) }

// writeStruct writes the description of a struct's type under a number, then the value.
func writeStruct(to *bytes.Buffer, id int64, name string, fields []field) {
	// wireType{StructT: {CommonType: {Name, Id}, Field: []{Name, Id}}}; each field is told by how many it is after the
	// last one that was told, and 0 ends a struct.
	d := appendInt(nil, -id)
	d = append(d, 3, 1, 1) // StructT is the third field
	d = appendString(d, name)
	d = append(appendInt(append(d, 1), id), 0, 1)
	d = appendUint(d, uint64(len(fields)))
	for _, f := range fields {
		kind := int64(gobString)
		switch f.value.(type) {
		case uint64:
			kind = gobUint
		case []byte:
			kind = gobBytes
		}
		d = appendString(append(d, 1), f.name)
		d = append(appendInt(append(d, 1), kind), 0)
	}
	d = append(d, 0, 0)
	v, skip := appendInt(nil, id), byte(1)
	for _, f := range fields {
		switch x := f.value.(type) {
		case string:
			if x != "" {
				v, skip = appendString(append(v, skip), x), 0
			}
		case uint64:
			if x != 0 {
				v, skip = appendUint(append(v, skip), x), 0
			}
		case []byte:
			if len(x) != 0 {
				v, skip = append(appendUint(append(v, skip), uint64(len(x))), x...), 0
			}
		}
		skip++
	}
	v = append(v, 0)
	for _, m := range [][]byte{d, v} {
		to.Write(appendUint(nil, uint64(len(m))))
		to.Write(m)
	}
}

// kinds of described types.
type gobType struct {
	kind      byte // 's'truct, 'l'ist (slice or array), 'm'ap, 'o'paque
	names     []string
	types     []int64
	key, elem int64
}

type decoder struct {
	in    io.Reader
	types map[int64]gobType
	// left is what may still be made of the message: every value takes one, so that a small message can't become a
	// large one.
	left int
}

func newDecoder(in io.Reader) *decoder { return &decoder{in: in, types: map[int64]gobType{}} }

var errGob = errors.New("answer: is no gob")

// maxDepth bounds how deep values lie in each other.
const maxDepth = 16

// next reads messages up to the next value: structs are map[string]any, lists []any, numbers int64, uint64 or float64.
// Fields that were not sent are not there.
func (d *decoder) next() (any, error) {
	for {
		m, err := d.message()
		if err != nil {
			return nil, err
		}
		r := &reader{b: m}
		id := r.int()
		if id >= 0 {
			if t := d.types[id]; t.kind != 's' {
				r.uint() // a value that is no struct has a 0 before it
			}
			d.left = len(m) + 1
			v := d.value(r, id, 0)
			if r.bad || len(r.b) > 0 {
				return nil, errGob
			}
			return v, nil
		}
		if !d.define(-id, r) {
			return nil, errGob
		}
	}
}

func (d *decoder) message() ([]byte, error) {
	n, err := readUint(d.in)
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if n > maxAnswer {
		return nil, errGob
	}
	m := make([]byte, n)
	_, err = io.ReadFull(d.in, m)
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	return m, nil
}

func readUint(in io.Reader) (uint64, error) {
	var raw [8]byte
	if _, err := io.ReadFull(in, raw[:1]); err != nil {
		return 0, err
	}
	if raw[0] < 128 {
		return uint64(raw[0]), nil
	}
	n := -int(int8(raw[0]))
	if n > 8 {
		return 0, errGob
	}
	raw[0] = 0
	if _, err := io.ReadFull(in, raw[8-n:]); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(raw[:]), nil
}

// reader takes a message apart; after the first mistake it gives zeros and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uint() uint64 {
	in := bytes.NewReader(r.b)
	n, err := readUint(in)
	if err != nil {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[len(r.b)-in.Len():]
	return n
}

func (r *reader) int() int64 {
	n := r.uint()
	if n&1 != 0 {
		return ^int64(n >> 1)
	}
	return int64(n >> 1)
}

func (r *reader) bytes() []byte {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

// fields calls f for each field of a struct that was sent, by its number from 0, until f says no.
func (r *reader) fields(f func(n int) bool) {
	for n := -1; ; {
		delta := r.uint()
		if r.bad || delta == 0 {
			return
		}
		if delta > 1<<10 || n+int(delta) > 1<<10 {
			r.bad = true
			return
		}
		if n += int(delta); !f(n) {
			r.bad = true
			return
		}
	}
}

// common reads a CommonType, which begins every description.
func (r *reader) common() {
	r.fields(func(n int) bool {
		switch n {
		case 0:
			r.bytes()
		case 1:
			r.int()
		}
		return n < 2
	})
}

// define reads a wireType: one field says which kind of type it describes.
func (d *decoder) define(id int64, r *reader) bool {
	if len(d.types) > 1<<8 || id < firstType {
		return false
	}
	var t gobType
	r.fields(func(kind int) bool {
		switch kind {
		case 0, 1: // ArrayT{CommonType, Elem, Len}, SliceT{CommonType, Elem}
			t.kind = 'l'
		case 2: // StructT{CommonType, Field}
			t.kind = 's'
		case 3: // MapT{CommonType, Key, Elem}
			t.kind = 'm'
		default: // GobEncoderT and the like: their values are bytes
			t.kind = 'o'
		}
		r.fields(func(n int) bool {
			switch {
			case n == 0:
				r.common()
			case t.kind == 's' && n == 1:
				return t.structFields(r)
			case t.kind == 'm' && n == 1:
				t.key = r.int()
			case t.kind != 's':
				last := r.int()
				if n == 1 || t.kind == 'm' {
					t.elem = last
				}
			default:
				return false
			}
			return n < 3
		})
		return kind < 7
	})
	d.types[id] = t
	return !r.bad && t.kind != 0
}

func (t *gobType) structFields(r *reader) bool {
	count := r.uint()
	if count > uint64(len(r.b)) {
		return false
	}
	for range count {
		var name string
		var kind int64
		r.fields(func(n int) bool {
			switch n {
			case 0:
				name = string(r.bytes())
			case 1:
				kind = r.int()
			}
			return n < 2
		})
		t.names, t.types = append(t.names, name), append(t.types, kind)
	}
	return !r.bad
}

// value reads a value of a type.
func (d *decoder) value(r *reader, id int64, depth int) any {
	if d.left--; d.left < 0 || depth > maxDepth {
		r.bad = true
	}
	if r.bad {
		return nil
	}
	switch id {
	case gobBool, gobUint, gobFloat:
		return r.uint()
	case gobInt:
		return r.int()
	case gobBytes:
		return r.bytes()
	case gobString:
		return string(r.bytes())
	}
	t := d.types[id]
	switch t.kind {
	case 's':
		out := map[string]any{}
		r.fields(func(n int) bool {
			if n >= len(t.names) {
				return false
			}
			out[t.names[n]] = d.value(r, t.types[n], depth+1)
			return !r.bad
		})
		return out
	case 'l':
		var out []any
		for n := r.uint(); n > 0 && !r.bad; n-- {
			out = append(out, d.value(r, t.elem, depth+1))
		}
		return out
	case 'm':
		var out []any // nothing here has maps; they are read over
		for n := r.uint(); n > 0 && !r.bad; n-- {
			d.value(r, t.key, depth+1)
			d.value(r, t.elem, depth+1)
		}
		return out
	case 'o':
		return r.bytes()
	}
	r.bad = true // complex numbers, interfaces, types that were not described
	return nil
}
