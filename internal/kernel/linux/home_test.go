package linux_test

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/kerneltest"
	"github.com/seine-net/seine/internal/kernel/linux"
)

// TestKernelBringsDevicesBack: a device that is no software comes back to the machine's first namespace when the one that
// it was moved to ends, with the name and the alias that it had there; giving it back once more gives it its own name.
func TestKernelBringsDevicesBack(t *testing.T) {
	if os.Getenv("SEINE_VM") != "1" {
		t.Skip("skip: needs the VM lab (make vm): moves a device of the first network namespace")
	}
	if out, err := exec.Command("modprobe", "sch_teql").CombinedOutput(); err != nil {
		t.Skipf("skip: needs teql0, a device of no link type: modprobe sch_teql: %v: %s", err, out)
	}
	h := kerneltest.NewTools(t)
	ns := h.AddNamespace(t)
	k := linux.New(linux.Options{})
	defer k.Close()
	do := func(op kernel.Op, l *kernel.Link) {
		t.Helper()
		c := kernel.Change{Op: op, New: l}
		if op == kernel.Delete {
			c = kernel.Change{Op: op, Old: l}
		}
		if err := k.Apply(t.Context(), []kernel.Change{c})[0]; err != nil {
			t.Fatal(err)
		}
	}
	there := func(name string) *kernel.Link {
		t.Helper()
		objs, err := k.List(t.Context(), kernel.Scope{Objects: []kernel.Object{&kernel.Link{Name: name}}})
		if err != nil {
			t.Fatal(err)
		}
		if len(objs) == 0 {
			return nil
		}
		return objs[0].(*kernel.Link)
	}
	if l := there("teql0"); l == nil || l.Type != "" {
		t.Fatalf("teql0 is %v", l)
	}
	do(kernel.Create, &kernel.Link{NS: ns, Name: "net1", Home: "teql0"})
	if l := there("teql0"); l != nil {
		t.Fatalf("after it was moved there is %s", l)
	}
	h.RemoveNamespace(t, ns)
	for end := time.Now().Add(20 * time.Second); there("net1") == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the kernel did not bring the device back")
		}
	}
	if l := there("net1"); l.Alias != "teql0" {
		t.Fatalf("the device came back as %s", l)
	}
	do(kernel.Delete, &kernel.Link{Name: "net1", Home: "teql0"})
	if l := there("teql0"); l == nil || l.Alias != "" || there("net1") != nil {
		t.Fatalf("after it was given back teql0 is %v", l)
	}
}
