package httpdoor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seine-net/seine/api"
)

// document is what the tests need of an OpenAPI document.
type document struct {
	Paths      map[string]map[string]json.RawMessage
	Components struct {
		Schemas    map[string]*schema
		Responses  map[string]*response
		Parameters map[string]*parameter
		Headers    map[string]any
	}
}

type operation struct {
	OperationID string
	Summary     string
	Parameters  []*parameter
	RequestBody *struct{ Content map[string]media }
	Responses   map[string]*response
}

type response struct {
	Ref         string `json:"$ref"`
	Description string
	Headers     map[string]any
	Content     map[string]media
}

type parameter struct {
	Ref, Name, In, Description string
	Schema                     *schema
}

func (p *parameter) UnmarshalJSON(b []byte) error {
	type plain parameter
	aux := struct {
		Ref string `json:"$ref"`
		*plain
	}{plain: (*plain)(p)}
	err := json.Unmarshal(b, &aux)
	p.Ref = aux.Ref
	return err
}

type media struct{ Schema *schema }

// schema is the subset of JSON Schema that the document uses; loading it strictly keeps it to that.
type schema struct {
	Ref                  string             `json:"$ref"`
	Type                 string             `json:"type"`
	Format               string             `json:"format"`
	Description          string             `json:"description"`
	ReadOnly             bool               `json:"readOnly"`
	Required             []string           `json:"required"`
	Properties           map[string]*schema `json:"properties"`
	AdditionalProperties *schema            `json:"additionalProperties"`
	Items                *schema            `json:"items"`
	Enum                 []string           `json:"enum"`
	Minimum              *float64           `json:"minimum"`
	Maximum              *float64           `json:"maximum"`
}

func (s *schema) UnmarshalJSON(b []byte) error {
	type plain schema
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode((*plain)(s))
}

func loadDocument(t testing.TB) *document {
	t.Helper()
	var d document
	if err := json.Unmarshal(openAPIDocument, &d); err != nil {
		t.Fatal(err)
	}
	return &d
}

// operation finds what is documented for a request; path is the template.
func (d *document) operation(t testing.TB, method, path string) (op *operation, template string) {
	t.Helper()
	for tmpl, item := range d.Paths {
		raw, ok := item[strings.ToLower(method)]
		if !ok || !matches(tmpl, path) {
			continue
		}
		op = new(operation)
		if err := json.Unmarshal(raw, op); err != nil {
			t.Fatalf("%s %s: %v", method, tmpl, err)
		}
		return op, tmpl
	}
	return nil, ""
}

func matches(template, path string) bool {
	a, b := strings.Split(template, "/"), strings.Split(path, "/")
	return len(a) == len(b) && slices.EqualFunc(a, b, func(x, y string) bool { return x == y || strings.HasPrefix(x, "{") && y != "" })
}

func (d *document) resolve(s *schema) *schema {
	for s.Ref != "" {
		s = d.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")]
	}
	return s
}

// validate says how a value does not fit a schema; properties that the schema does not name are errors too.
func (d *document) validate(at string, s *schema, v any) error {
	s = d.resolve(s)
	switch x := v.(type) {
	case map[string]any:
		if s.Type != "object" {
			return fmt.Errorf("%s: an object, want %s", at, s.Type)
		}
		for _, name := range s.Required {
			if _, ok := x[name]; !ok {
				return fmt.Errorf("%s: %q is missing", at, name)
			}
		}
		for name, val := range x {
			p := s.Properties[name]
			if p == nil {
				p = s.AdditionalProperties
			}
			if p == nil && s.Properties == nil {
				continue // an object of any kind
			}
			if p == nil {
				return fmt.Errorf("%s: %q is not documented", at, name)
			}
			if err := d.validate(at+"."+name, p, val); err != nil {
				return err
			}
		}
	case []any:
		if s.Type != "array" {
			return fmt.Errorf("%s: a list, want %s", at, s.Type)
		}
		for i, val := range x {
			if err := d.validate(fmt.Sprintf("%s[%d]", at, i), s.Items, val); err != nil {
				return err
			}
		}
	case string:
		if s.Type != "string" || s.Enum != nil && !slices.Contains(s.Enum, x) {
			return fmt.Errorf("%s: %q, want %s of %q", at, x, s.Type, s.Enum)
		}
		if s.Format == "date-time" {
			if _, err := time.Parse(time.RFC3339, x); err != nil {
				return fmt.Errorf("%s: %w", at, err)
			}
		}
	case float64:
		if s.Type != "integer" || x != math.Trunc(x) || s.Minimum != nil && x < *s.Minimum || s.Maximum != nil && x > *s.Maximum {
			return fmt.Errorf("%s: %v, want %s", at, x, s.Type)
		}
	case bool:
		if s.Type != "boolean" {
			return fmt.Errorf("%s: a boolean, want %s", at, s.Type)
		}
	default:
		return fmt.Errorf("%s: %v is of no type that is documented", at, v)
	}
	return nil
}

// conformer serves like the handler inside it and holds every exchange to the document.
type conformer struct {
	t    testing.TB
	doc  *document
	next http.Handler
	mu   sync.Mutex
	seen map[string]bool // "PUT /v1/networks/{network} 201"
}

func newConformer(t testing.TB, next http.Handler) *conformer {
	return &conformer{t: t, doc: loadDocument(t), next: next, seen: map[string]bool{}}
}

func (c *conformer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := httptest.NewRecorder()
	c.next.ServeHTTP(rec, r)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
	if err := c.check(r, rec); err != nil {
		c.t.Errorf("%s %s → %d %s: %v", r.Method, r.URL, rec.Code, rec.Body, err)
	}
}

func (c *conformer) check(r *http.Request, rec *httptest.ResponseRecorder) error {
	if r.Method == http.MethodHead {
		return nil // a server sends no body, so there is nothing to hold to the document
	}
	op, tmpl := c.doc.operation(c.t, r.Method, r.URL.EscapedPath())
	errorBody := &schema{Ref: "#/components/schemas/ErrorBody"}
	if op == nil {
		if rec.Code != 404 && rec.Code != 405 {
			return fmt.Errorf("the operation is not documented")
		}
		return c.checkBody("application/json", errorBody, rec)
	}
	c.mu.Lock()
	c.seen[fmt.Sprintf("%s %s %d", r.Method, tmpl, rec.Code)] = true
	c.mu.Unlock()
	resp := op.Responses[fmt.Sprint(rec.Code)]
	if resp == nil {
		return fmt.Errorf("the status is not documented")
	}
	if resp.Ref != "" {
		resp = c.doc.Components.Responses[strings.TrimPrefix(resp.Ref, "#/components/responses/")]
	}
	for name := range resp.Headers {
		if rec.Header().Get(name) == "" {
			return fmt.Errorf("header %s is missing", name)
		}
	}
	if len(resp.Content) == 0 {
		if rec.Body.Len() > 0 {
			return fmt.Errorf("a body where none is documented")
		}
		return nil
	}
	for kind, m := range resp.Content {
		return c.checkBody(kind, m.Schema, rec)
	}
	return nil
}

func (c *conformer) checkBody(kind string, s *schema, rec *httptest.ResponseRecorder) error {
	if got := rec.Header().Get("Content-Type"); got != kind {
		return fmt.Errorf("Content-Type %q, want %q", got, kind)
	}
	if kind == "text/event-stream" {
		return c.checkEvents(s, rec.Body.String())
	}
	var v any
	if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil {
		return err
	}
	return c.doc.validate("body", s, v)
}

func (c *conformer) checkEvents(s *schema, text string) error {
	for _, line := range strings.Split(text, "\n") {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			var v any
			if err := json.Unmarshal([]byte(data), &v); err != nil {
				return err
			}
			if err := c.doc.validate("event", s, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// unseen lists what is documented and was not answered yet.
func (c *conformer) unseen() []string {
	var out []string
	for tmpl, item := range c.doc.Paths {
		for method := range item {
			if method == "parameters" {
				continue
			}
			op, _ := c.doc.operation(c.t, method, tmpl)
			for status := range op.Responses {
				if k := strings.ToUpper(method) + " " + tmpl + " " + status; !c.seen[k] {
					out = append(out, k)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// TestDocumentHasEveryRoute holds the document to the table of routes, both ways.
func TestDocumentHasEveryRoute(t *testing.T) {
	doc := loadDocument(t)
	var want, got []string
	d := New(nil, Options{})
	for _, r := range d.routes() {
		for m := range r.methods {
			want = append(want, m+" "+r.path)
		}
		for m := range r.methods {
			op, _ := doc.operation(t, m, r.path)
			var query []string
			if op != nil {
				for _, p := range op.Parameters {
					if p.In == "query" {
						query = append(query, p.Name)
					}
				}
			}
			if !slices.Equal(query, r.query[m]) {
				t.Errorf("%s %s: documented query %q, the route has %q", m, r.path, query, r.query[m])
			}
		}
	}
	for tmpl, item := range doc.Paths {
		for m := range item {
			if m != "parameters" {
				got = append(got, strings.ToUpper(m)+" "+tmpl)
			}
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("documented:\n%s\nroutes:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// schemaTypes are the Go types behind the schemas.
var schemaTypes = map[string]reflect.Type{
	"Network": reflect.TypeFor[api.Network](), "Subnet": reflect.TypeFor[api.Subnet](), "NetworkStatus": reflect.TypeFor[api.NetworkStatus](),
	"Endpoint": reflect.TypeFor[api.Endpoint](), "Sandbox": reflect.TypeFor[api.Sandbox](), "Port": reflect.TypeFor[api.Port](),
	"Plugin": reflect.TypeFor[api.Plugin](), "PluginRoute": reflect.TypeFor[api.PluginRoute](),
	"EndpointStatus": reflect.TypeFor[api.EndpointStatus](), "Container": reflect.TypeFor[api.Container](), "PublishedPort": reflect.TypeFor[api.PublishedPort](),
	"Node": reflect.TypeFor[api.Node](), "Driver": reflect.TypeFor[api.Driver](), "Plan": reflect.TypeFor[api.Plan](), "Change": reflect.TypeFor[api.Change](),
	"Finding": reflect.TypeFor[api.Finding](), "Event": reflect.TypeFor[api.Event](), "Error": reflect.TypeFor[api.Error](),
	"ErrorBody": reflect.TypeFor[api.ErrorBody](), "NetworkList": reflect.TypeFor[api.List[api.Network]](),
	"EndpointList": reflect.TypeFor[api.List[api.Endpoint]](), "PublishedPortList": reflect.TypeFor[api.List[api.PublishedPort]](),
	"FindingList": reflect.TypeFor[api.List[api.Finding]](), "Cluster": reflect.TypeFor[api.Cluster](), "ClusterInit": reflect.TypeFor[api.ClusterInit](),
	"ClusterJoin": reflect.TypeFor[api.ClusterJoin](), "ClusterToken": reflect.TypeFor[api.ClusterToken](), "Path": reflect.TypeFor[api.Path](),
	"NodeList": reflect.TypeFor[api.List[api.Node]](), "PathList": reflect.TypeFor[api.List[api.Path]](),
}

// TestSchemasAreTheTypes holds every schema to its Go type: the same fields, of the same type, required exactly where
// Go always writes them.
func TestSchemasAreTheTypes(t *testing.T) {
	doc := loadDocument(t)
	for name := range doc.Components.Schemas {
		if schemaTypes[name] == nil {
			t.Errorf("schema %s has no Go type", name)
		}
	}
	for name, typ := range schemaTypes {
		s := doc.Components.Schemas[name]
		if s == nil {
			t.Errorf("type %s has no schema", name)
			continue
		}
		if s.Description == "" {
			t.Errorf("%s has no description", name)
		}
		fields := map[string]bool{}
		for _, f := range reflect.VisibleFields(typ) {
			tag, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.IsExported() || f.Anonymous {
				continue
			}
			if tag == "" {
				t.Errorf("%s.%s has no JSON name", typ, f.Name)
			}
			fields[tag] = true
			p := s.Properties[tag]
			if p == nil {
				t.Errorf("%s.%s is not documented", name, tag)
				continue
			}
			if got, want := doc.typeName(p), goTypeName(f.Type); got != want {
				t.Errorf("%s.%s is documented as %s and is %s", name, tag, got, want)
			}
			if p.Description == "" && p.Ref == "" {
				t.Errorf("%s.%s has no description", name, tag)
			}
			always := !strings.Contains(rest, "omitempty") && !strings.Contains(rest, "omitzero")
			if req := slices.Contains(s.Required, tag); req != always {
				t.Errorf("%s.%s: required is %v, Go always writes it: %v", name, tag, req, always)
			}
		}
		for p := range s.Properties {
			if !fields[p] {
				t.Errorf("%s.%s is documented and does not exist", name, p)
			}
		}
	}
}

func (d *document) typeName(s *schema) string {
	switch {
	case s.Ref != "":
		return strings.TrimPrefix(s.Ref, "#/components/schemas/")
	case s.Type == "array":
		return "[]" + d.typeName(s.Items)
	case s.Type == "":
		return "anything"
	case s.Type == "object":
		return "map of " + d.typeName(s.AdditionalProperties)
	}
	return s.Type
}

func goTypeName(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[json.RawMessage]() {
		return "anything"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "[]" + goTypeName(t.Elem())
	case reflect.Map:
		return "map of " + goTypeName(t.Elem())
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "integer"
	case reflect.Struct:
		if t.PkgPath() == reflect.TypeFor[api.Network]().PkgPath() {
			return t.Name()
		}
	}
	return "string" // netip types too
}

// TestDocumentEnums holds the listed values to the constants.
func TestDocumentEnums(t *testing.T) {
	s := loadDocument(t).Components.Schemas
	for _, c := range []struct {
		got  []string
		want []string
	}{
		{s["Error"].Properties["code"].Enum, []string{string(api.Invalid), string(api.NotFound), string(api.Conflict), string(api.Stale),
			string(api.InUse), string(api.Exhausted), string(api.Unsupported), string(api.Unavailable), string(api.Internal)}},
		{s["EndpointStatus"].Properties["state"].Enum, []string{string(api.Attached), string(api.Pending), string(api.Failed), string(api.Lost)}},
		{s["PublishedPort"].Properties["state"].Enum, s["EndpointStatus"].Properties["state"].Enum},
		{s["Network"].Properties["family"].Enum, []string{string(api.Dual), string(api.IPv4), string(api.IPv6)}},
		{s["Event"].Properties["type"].Enum, []string{api.EventPut, api.EventDelete, api.EventReset}},
		{s["Finding"].Properties["level"].Enum, []string{api.LevelOK, api.LevelNote, api.LevelProblem}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("documented %q, want %q", c.got, c.want)
		}
	}
}
