package httpdoor

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/seine-net/seine/api"
)

func TestDecodeErrors(t *testing.T) {
	for _, c := range []struct{ body, field, value, message string }{
		{``, "body", "", "is empty"},
		{`[]`, "body", "[]", "is no object"},
		{`null`, "body", "null", "is no object"},
		{`"x"`, "body", "x", "is no object"},
		{`{`, "body", "{", "is no JSON"},
		{`{} {}`, "body", "{}", "is data after the end"},
		{`{}x`, "body", "x", "is data after the end"},
		{"{\"name\":\"\xff\"}", "body", "{\"name\":\"\uFFFD\"}", "is not UTF-8"},
		{`{"nam":"x"}`, "nam", "x", "is no field"},
		{`{"Name":"x"}`, "Name", "x", "is no field"},
		{`{"name":"x","name":"y"}`, "name", "y", "is given twice"},
		{`{"name":7}`, "name", "7", "is no string"},
		{`{"name":{}}`, "name", "{}", "is no string"},
		{`{"index":1.5}`, "index", "1.5", "is no whole number"},
		{`{"addresses":"10.0.0.1"}`, "addresses", "10.0.0.1", "is no list"},
		{`{"addresses":["10.0.0.1","x"]}`, "addresses[1]", "x", "is no IP address"},
		{`{"addresses":[1]}`, "addresses[0]", "1", "is no IP address"},
		{`{"sandbox":{"netn":"/x"}}`, "sandbox.netn", "/x", "is no field"},
		{`{"sandbox":[]}`, "sandbox", "[]", "is no object"},
		{`{"sandbox":{"pid":"1"}}`, "sandbox.pid", "1", "is no whole number"},
		{`{"ports":[{"hostPort":1,"containerPort":65536}]}`, "ports[0].containerPort", "65536", "is no whole number"},
		{`{"ports":[{},{"hostport":1}]}`, "ports[1].hostport", "1", "is no field"},
		{`{"ports":[{"hostPort":-1}]}`, "ports[0].hostPort", "-1", "is no whole number"},
		{`{"ports":[{"hostIP":"1.2.3"}]}`, "ports[0].hostIP", "1.2.3", "is no IP address"},
		{`{"labels":{"a":1}}`, "labels.a", "1", "is no string"},
		{`{"labels":{"a":"","a":""}}`, "labels.a", "", "is given twice"},
		{`{"status":{"prefixes":["10.0.0.0"]}}`, "status.prefixes[0]", "10.0.0.0", "is no address range"},
		{`{"mac":["` + strings.Repeat("ä", 200) + `"]}`, "mac", `["` + strings.Repeat("ä", 39) + "…", "is no string"},
	} {
		var ep api.Endpoint
		err := decode("noun", []byte(c.body), &ep)
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.Invalid || e.Noun != "noun" || e.Field != c.field || e.Value != c.value ||
			!strings.HasPrefix(e.Message, c.message) || e.Want == "" {
			t.Errorf("%s:\n got %#v\nwant field %q, value %q, message %q", c.body, err, c.field, c.value, c.message)
		}
	}
	var n api.Network
	err := decode("noun", []byte(`{"icc":"yes"}`), &n)
	if err == nil || err.Error() != `noun: icc "yes": is no boolean; want true or false` {
		t.Errorf("%v", err)
	}
}

// TestDecodeWhole: what the decoder takes, encoding/json reads to the same value.
func TestDecodeWhole(t *testing.T) {
	body := `{"revision":7,"created":"x","labels":{"a":"b","":"c"},"network":"n","name":"w","aliases":["x",null],
 "sandbox":{"netns":"/run/netns/x","interface":"eth5","pid":7,"pidStart":18446744073709551615},"addresses":["10.0.0.1","fd00::1"],
 "mac":"02:00:00:00:00:01","ports":[{"protocol":"udp","hostIP":"::1","hostPort":1,"containerPort":65535},null],"index":3,
 "status":{"state":"failed","error":"x","prefixes":["10.0.0.1/8"],"gateways":[],"dns":null,"mtu":9}}` + "\n\t "
	var got, want api.Endpoint
	if err := decode("n", []byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(body), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

// FuzzBody: no body makes the decoder panic; what it takes encoding/json takes too, with the same result; each error
// names a field; and a noun that passes Validate comes back the same after a trip through JSON.
func FuzzBody(f *testing.F) {
	for _, s := range []string{`{}`, `{"name":"a","icc":false,"subnets":[{"prefix":"10.1.0.0/24","gateway":"10.1.0.1","reserved":["10.1.0.7"]}]}`,
		`{"network":"a","name":"b","sandbox":{"netns":"/run/x","pid":3},"ports":[{"hostPort":1,"containerPort":2,"protocol":"udp","hostIP":"::1"}]}`,
		`{"labels":{"a":"b"},"options":null}`, `{"name":"\ud800"}`, `{"a":1}{"b":2}`, `[{}]`, `{"sandbox":{"sandbox":{}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var n, n2 api.Network
		fuzzOne(t, body, &n, &n2, n.Validate)
		var e, e2 api.Endpoint
		fuzzOne(t, body, &e, &e2, e.Validate)
	})
}

func fuzzOne(t *testing.T, body []byte, into, again any, validate func() error) {
	if err := decode("noun", body, into); err != nil {
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.Invalid || e.Field == "" && !strings.Contains(string(body), `""`) {
			t.Fatalf("%q: %#v", body, err)
		}
		if !utf8.ValidString(e.Value) {
			t.Fatalf("%q: value %q", body, e.Value)
		}
		return
	}
	if err := json.Unmarshal(body, again); err != nil {
		t.Fatalf("%q was taken, encoding/json says %v", body, err)
	}
	if !reflect.DeepEqual(into, again) {
		t.Fatalf("%q:\n%+v\n%+v", body, into, again)
	}
	if validate() != nil {
		return
	}
	b, err := json.Marshal(into)
	if err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	back := reflect.New(reflect.TypeOf(into).Elem()).Interface()
	if err := decode("noun", b, back); err != nil {
		t.Fatalf("%q → %s: %v", body, b, err)
	}
}
