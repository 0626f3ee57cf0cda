package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/seine-net/seine/api"
)

// The forms that a command can answer in.
const (
	formTable = "table"
	formJSON  = "json"
	formYAML  = "yaml"
	formName  = "name"
)

var forms = []string{formTable, formJSON, formYAML, formName}

// form is the value of -o.
type form string

// String implements pflag.Value.
func (f *form) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *form) Type() string { return strings.Join(forms, "|") }

// Set implements pflag.Value.
func (f *form) Set(s string) error {
	for _, known := range forms {
		if s == known {
			*f = form(s)
			return nil
		}
	}
	return fmt.Errorf("want one of %s", strings.Join(forms, ", "))
}

// formFlag gives a command -o.
func formFlag(cmd *cobra.Command, value form) *form {
	f := &value
	cmd.Flags().VarP(f, "output", "o", "how to print it")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(forms, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return f
}

// print writes an answer: the value as JSON or YAML, or the names, one on a line, or the table.
func (a *app) print(f form, value any, names []string, t *table) error {
	switch f {
	case formJSON:
		enc := json.NewEncoder(a.Out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(value)
	case formYAML:
		b, err := yaml.Marshal(value)
		if err == nil {
			_, err = a.Out.Write(b)
		}
		return err
	case formName:
		for _, n := range names {
			fmt.Fprintln(a.Out, n)
		}
		return nil
	}
	return t.write(a.Out)
}

// table is text in columns.
type table struct {
	head []string // nil for none
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// write aligns the columns. An empty cell shows as "-" where there is a head, so that columns can be counted.
func (t *table) write(w io.Writer) error {
	rows := t.rows
	if t.head != nil {
		rows = append([][]string{t.head}, rows...)
	}
	var widths []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c), 1)
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for i, c := range r {
			if c == "" && t.head != nil {
				c = "-"
			}
			b.WriteString(c)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// list joins what can be written as text.
func list[T fmt.Stringer](items []T) string {
	var s []string
	for _, x := range items {
		s = append(s, x.String())
	}
	return strings.Join(s, ", ")
}

// publishedAt writes the machine's side of a port: "*:8080" for all addresses of both families.
func publishedAt(p api.Port) string {
	if !p.HostIP.IsValid() {
		return fmt.Sprintf("*:%d", p.HostPort)
	}
	return netip.AddrPortFrom(p.HostIP, p.HostPort).String()
}
