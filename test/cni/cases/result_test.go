package cases_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// result adds the lines of what ADD printed: one for each value, by its path.
func (r *run) result(a attachment, out []byte) error {
	numbers := json.NewDecoder(bytes.NewReader(out))
	numbers.UseNumber()
	var v any
	if err := numbers.Decode(&v); err != nil {
		return fmt.Errorf("result of %s: %q: %w", a, out, err)
	}
	w, err := r.world()
	if err != nil {
		return err
	}
	if top, ok := v.(map[string]any); ok {
		list, _ := top["interfaces"].([]any)
		for _, i := range list {
			w.judgeMAC(i)
		}
	}
	flatten("", v, func(path string, v any) {
		text, _ := json.Marshal(v)
		r.lines = append(r.lines, fmt.Sprintf("result %s: %s %s", a, path, w.stable(string(text))))
	})
	return nil
}

// judgeMAC says of an interface of a result whether its hardware address is the one that the link has.
func (w *world) judgeMAC(v any) {
	i, ok := v.(map[string]any)
	if !ok || i["mac"] == nil {
		return
	}
	n := w.machine.host
	if path, _ := i["sandbox"].(string); path != "" {
		n = w.machine.inside[strings.TrimPrefix(path, netnsDir+"/")]
	}
	if n == nil {
		return // the line with the sandbox says so
	}
	for _, l := range w.links[n] {
		if l.Attrs().Name == i["name"] && l.Attrs().HardwareAddr.String() != i["mac"] {
			i["mac"] = "not the link's"
		}
	}
}

// flatten calls leaf for each value of v.
func flatten(path string, v any, leaf func(path string, v any)) {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			leaf(path, v)
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			flatten(strings.TrimPrefix(path+"."+key, "."), v[key], leaf)
		}
	case []any:
		if len(v) == 0 {
			leaf(path, v)
		}
		for i, x := range v {
			flatten(fmt.Sprintf("%s[%d]", path, i), x, leaf)
		}
	default:
		leaf(path, v)
	}
}
