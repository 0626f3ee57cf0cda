package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// mergeDNS puts name servers into the text of a dockerd's daemon.json(5), before those that are there already, and leaves
// every other byte as it is. others are the servers that were there. A text that has them first is given back unchanged.
func mergeDNS(text []byte, servers []string) (merged []byte, others []string, err error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return []byte("{\n  \"dns\": " + jsonList(servers) + "\n}\n"), nil, nil
	}
	o, err := readObject(text)
	if err != nil {
		return nil, nil, err
	}
	if o.dns == nil {
		entry := `"dns": ` + jsonList(servers)
		if o.keys == 0 {
			return slices.Concat(text[:o.open], []byte("\n  "+entry+"\n"), text[o.end-1:]), nil, nil
		}
		return slices.Concat(text[:o.last], []byte(","+o.indent+entry), text[o.last:]), nil, nil
	}
	var have []string
	if err := json.Unmarshal(o.dns, &have); err != nil {
		return nil, nil, errors.New(`"dns" is no list of addresses`)
	}
	for _, s := range have {
		if !slices.Contains(servers, s) {
			others = append(others, s)
		}
	}
	all := slices.Concat(servers, others)
	if slices.Equal(all, have) {
		return text, others, nil
	}
	start := o.dnsEnd - len(o.dns)
	return slices.Concat(text[:start], []byte(jsonList(all)), text[o.dnsEnd:]), others, nil
}

func jsonList(all []string) string {
	var out []string
	for _, s := range all {
		out = append(out, fmt.Sprintf("%q", s))
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// object is where things are in the text of an object of JSON.
type object struct {
	open, end int    // behind its "{" and "}"
	keys      int    // how many
	last      int    // behind the last value
	indent    string // white space before the first key
	dns       []byte // the value of "dns", nil for none
	dnsEnd    int
}

func readObject(text []byte) (o object, err error) {
	if !json.Valid(text) { // the decoder below is content with less
		var v any
		return o, fmt.Errorf("is no JSON: %w", json.Unmarshal(text, &v))
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return o, errors.New("is no object of JSON")
	}
	o.open = int(dec.InputOffset())
	rest := text[o.open:]
	o.indent = string(rest[:len(rest)-len(bytes.TrimLeft(rest, " \t\r\n"))])
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return o, err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return o, err
		}
		o.keys, o.last = o.keys+1, int(dec.InputOffset())
		if key == "dns" {
			if o.dns != nil {
				return o, errors.New(`has "dns" twice`)
			}
			o.dns, o.dnsEnd = value, o.last
		}
	}
	if o.indent == "" {
		o.indent = " "
	}
	if _, err := dec.Token(); err != nil {
		return o, err
	}
	o.end = int(dec.InputOffset())
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return o, errors.New("goes on after its end")
	}
	return o, nil
}

// lineDiff shows how a text changes: lines that stay begin with " ", those that go with "-", those that come with "+".
func lineDiff(was, now string) string {
	a, b := splitLines(was), splitLines(now)
	// common[i][j] is the length of the longest sequence of lines that a[i:] and b[j:] have in common.
	common := make([][]int, len(a)+1)
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out strings.Builder
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out.WriteString("  " + a[i] + "\n")
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || common[i+1][j] >= common[i][j+1]):
			out.WriteString("- " + a[i] + "\n")
			i++
		default:
			out.WriteString("+ " + b[j] + "\n")
			j++
		}
	}
	return out.String()
}

func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}
