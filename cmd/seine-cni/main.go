// Command seine-cni is every CNI plugin in one program: it is the one by whose name it is called.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/seine-net/seine/internal/frontdoor/cni"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/kernel/linux"
)

func main() {
	// It ends before there is anything worth collecting.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(64 << 20)
	host := cni.SystemHost(func() kernel.Kernel { return linux.New(linux.Options{Brief: true}) })
	os.Exit(cni.Main(context.Background(), host))
}
