package engine_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/seine-net/seine/api"
)

func TestResolverOptions(t *testing.T) {
	r := newRig(t)
	r.network(api.Network{Name: "a", Options: map[string]string{"dns.search": "a.seine.internal,corp.test", "dns.options": "ndots:2,timeout:1"}})
	r.network(api.Network{Name: "b", Driver: "ptp", Options: map[string]string{"dns.search": "."}})
	st := r.attach("a", "web").Status
	if got := fmt.Sprint(st.Search, st.DNSOptions); got != "[a.seine.internal corp.test] [ndots:2 timeout:1]" {
		t.Errorf("status has %s", got)
	}
	if st := r.attach("b", "web2").Status; fmt.Sprint(st.Search, st.DNSOptions) != "[.] []" {
		t.Errorf("status has %v %v", st.Search, st.DNSOptions)
	}
	for _, c := range []struct{ key, value string }{
		{"dns.search", "a b"}, {"dns.search", "a,."}, {"dns.search", "a..b"}, {"dns.search", "a\nnameserver 192.0.2.1"}, {"dns.search", strings.Repeat("a", 64)},
		{"dns.search", "a,b,c,d,e,f,g"}, {"dns.options", "ndots:1 timeout:2"}, {"dns.options", "a\nb"}, {"dns.options", "NDOTS:1"},
	} {
		_, err := r.PutNetwork(context.Background(), api.Network{Name: "c", Options: map[string]string{c.key: c.value}}, 0)
		code(t, err, api.Invalid, "options."+c.key)
	}
	_, err := r.PutNetwork(context.Background(), api.Network{Name: "c", Driver: "host", Options: map[string]string{"dns.search": "a"}}, 0)
	code(t, err, api.Invalid, "options")
}
