package linux

import (
	"context"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

// TestConfOfALinkIsWhatTheFilesSay compares what a link tells with the files, for every value that is taken from there.
func TestConfOfALinkIsWhatTheFilesSay(t *testing.T) {
	k, _ := newKernel(t)
	k.proc.private = true
	ctx := context.Background()
	var want []kernel.Object
	for family, places := range map[string]map[string]int{"ipv4": devconf4, "ipv6": devconf6} {
		for name := range places {
			want = append(want, &kernel.Sysctl{Name: "net/" + family + "/conf/lo/" + name})
		}
	}
	for _, value := range []string{"0", "1"} {
		for _, o := range want {
			name := o.(*kernel.Sysctl).Name
			for _, err := range k.Apply(ctx, []kernel.Change{{Op: kernel.Create, New: &kernel.Sysctl{Name: name, Value: value}}}) {
				if err != nil {
					t.Fatal(err)
				}
			}
			got, err := k.List(ctx, kernel.Scope{Objects: []kernel.Object{o}})
			if err != nil || len(got) != 1 {
				t.Fatalf("%s: %v, %v", name, got, err)
			}
			var file string
			s := k.session()
			sp, err := s.space("")
			if err == nil {
				err = sp.do(func() (err error) { file, err = k.readSysctl(name); return err })
			}
			s.close()
			if v := got[0].(*kernel.Sysctl).Value; err != nil || v != file || v != value {
				t.Errorf("%s: the link says %q, the file %q, %v; want %q", name, v, file, err, value)
			}
		}
	}
}
