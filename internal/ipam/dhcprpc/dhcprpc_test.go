package dhcprpc

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/rpc"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// daemon answers as the reference's does: the same types, the same packages.
type daemon struct {
	got  skel.CmdArgs
	give types100.Result
	fail error
	hang chan struct{}
}

func (d *daemon) Allocate(args *skel.CmdArgs, result *types100.Result) error {
	if d.hang != nil {
		<-d.hang
	}
	d.got, *result = *args, d.give
	return d.fail
}

func (d *daemon) Release(args *skel.CmdArgs, _ *struct{}) error {
	d.got = *args
	return d.fail
}

func serve(t *testing.T, d *daemon) string {
	t.Helper()
	srv := rpc.NewServer()
	if err := srv.RegisterName("DHCP", d); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Server{Handler: srv}
	done := make(chan struct{})
	go func() { defer close(done); _ = h.Serve(l) }()
	t.Cleanup(func() { _ = h.Close(); <-done })
	return path
}

func cidr(s string) net.IPNet {
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return net.IPNet{IP: ip, Mask: n.Mask}
}

func TestCallsAReferenceDaemon(t *testing.T) {
	link, table := 253, 100
	d := &daemon{give: types100.Result{CNIVersion: "1.1.0",
		Interfaces: []*types100.Interface{{Name: "x", Mtu: 3}},
		IPs: []*types100.IPConfig{{Address: cidr("10.1.0.2/24"), Gateway: net.ParseIP("10.1.0.1")},
			{Interface: &link, Address: cidr("fd00::2/64")}},
		Routes: []*types.Route{{Dst: cidr("0.0.0.0/0"), GW: net.IPv4(10, 1, 0, 1).To4(), Priority: 300},
			{Dst: cidr("10.9.0.0/16"), GW: net.IPv4zero, Scope: &link, Table: &table, MTU: 1400, AdvMSS: 1360}},
		DNS: types.DNS{Nameservers: []string{"10.1.0.1", "fd00::1"}, Domain: "a.b", Search: []string{"a.b", ""}}}}
	path := serve(t, d)
	args := &Args{ContainerID: "c", Netns: "/n", IfName: "eth0", Args: "A=b", Path: "/p", StdinData: bytes.Repeat([]byte(`{"x":1}`), 50)}
	for method, want := range map[string]*Result{Release: {}, Allocate: {
		IPs: []IP{{netip.MustParsePrefix("10.1.0.2/24"), netip.MustParseAddr("10.1.0.1")}, {Address: netip.MustParsePrefix("fd00::2/64")}},
		Routes: []Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: netip.MustParseAddr("10.1.0.1"), Priority: 300},
			{Dst: netip.MustParsePrefix("10.9.0.0/16"), Scope: &link, Table: &table, MTU: 1400, AdvMSS: 1360}},
		DNS: DNS{Nameservers: []string{"10.1.0.1", "fd00::1"}, Domain: "a.b", Search: []string{"a.b", ""}}}} {
		d.got = skel.CmdArgs{}
		got, err := Call(t.Context(), path, method, args)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", method, got, err, want)
		}
		if g := d.got; g.ContainerID != "c" || g.Netns != "/n" || g.IfName != "eth0" || g.Args != "A=b" || g.Path != "/p" ||
			g.NetnsOverride != "" || !bytes.Equal(g.StdinData, args.StdinData) {
			t.Errorf("%s: the daemon got %+v, want %+v", method, g, args)
		}
	}
	d.fail = errors.New("no lease for you")
	if _, err := Call(t.Context(), path, Allocate, args); err == nil || !strings.Contains(err.Error(), "no lease for you") || errors.Is(err, ErrNoMethod) {
		t.Errorf("got %v, want the daemon's error", err)
	}
	if _, err := Call(t.Context(), path, Status, args); !errors.Is(err, ErrNoMethod) {
		t.Errorf("got %v, want ErrNoMethod", err)
	}
}

func TestWaitsNoLongerThanTheCaller(t *testing.T) {
	d := &daemon{hang: make(chan struct{})}
	path := serve(t, d)
	defer close(d.hang)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := Call(ctx, path, Allocate, &Args{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 3*time.Second {
		t.Errorf("got %v after %s, want the context's error at once", err, time.Since(began))
	}
}

func TestNobodyListens(t *testing.T) {
	dir := t.TempDir()
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	other, err := net.Listen("unix", filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "HTTP/1.1 404 Not Found\r\n\r\n")
			c.Close()
		}
	}()
	for _, name := range []string{"absent", "stale", "other"} {
		if _, err := Call(t.Context(), filepath.Join(dir, name), Status, &Args{}); !errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: got %v, want ErrNoDaemon", name, err)
		}
	}
	other.Close()
	<-done
}

// What we write, encoding/gob reads; for every combination of fields left empty.
func TestRequestIsGob(t *testing.T) {
	for mask := range 1 << 7 {
		pick := func(i int, s string) string {
			if mask>>i&1 == 0 {
				return ""
			}
			return s
		}
		want := skel.CmdArgs{ContainerID: pick(0, "c"), Netns: pick(1, "n"), IfName: pick(2, "i"), Args: pick(3, strings.Repeat("a", 300)),
			Path: pick(4, "p"), NetnsOverride: pick(5, "o")}
		if s := pick(6, strings.Repeat("{", 70000)); s != "" {
			want.StdinData = []byte(s)
		}
		a := Args(want)
		in := gob.NewDecoder(bytes.NewReader(request(Allocate, &a)))
		var head rpc.Request
		var got skel.CmdArgs
		if err := errors.Join(in.Decode(&head), in.Decode(&got)); err != nil {
			t.Fatal(err)
		}
		if head.ServiceMethod != Allocate || head.Seq != 1 || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
}

func TestReadsGobOfAllKinds(t *testing.T) {
	type inner struct{ A []int }
	type outer struct {
		B bool
		I int64
		U uint64
		S string
		M map[string]inner
		L [2]inner
		T time.Time // GobEncoder
		Z string
	}
	var b bytes.Buffer
	enc := gob.NewEncoder(&b)
	v := outer{true, -1 << 62, 1<<64 - 1, "s", map[string]inner{"k": {[]int{1}}}, [2]inner{{[]int{-5, 6}}, {}}, time.Unix(1, 0), "end"}
	if err := errors.Join(enc.Encode(v), enc.Encode("plain"), enc.Encode(v)); err != nil {
		t.Fatal(err)
	}
	d := newDecoder(&b)
	for i := range 3 {
		got, err := d.next()
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			if got != "plain" {
				t.Errorf("got %v", got)
			}
			continue
		}
		l := list(got, "L")
		if get(got, "B") != uint64(1) || get(got, "I") != int64(-1<<62) || get(got, "U") != uint64(1<<64-1) || get(got, "S") != "s" ||
			get(got, "Z") != "end" || len(l) != 2 || fmt.Sprint(list(l[0], "A")) != "[-5 6]" {
			t.Errorf("got %v", got)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	var b bytes.Buffer
	enc := gob.NewEncoder(&b)
	one := 1
	_ = enc.Encode(rpc.Response{ServiceMethod: Allocate, Seq: 1})
	_ = enc.Encode(types100.Result{IPs: []*types100.IPConfig{{Interface: &one, Address: cidr("10.1.0.2/24"), Gateway: net.IPv4(1, 2, 3, 4)}},
		Routes: []*types.Route{{Dst: cidr("::/0"), Scope: &one}}, DNS: types.DNS{Nameservers: []string{"a"}}})
	f.Add(b.Bytes())
	f.Add([]byte{0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		res, err := answer(bytes.NewReader(data), Allocate)
		if (res == nil) == (err == nil) {
			t.Fatalf("%v and %v", res, err)
		}
	})
}
