package linux_test

import (
	"testing"

	"github.com/seine-net/seine/internal/kernel/kerneltest"
	"github.com/seine-net/seine/internal/kernel/linux"
)

func TestConformance(t *testing.T) {
	kerneltest.Run(t, func(t *testing.T) kerneltest.Rig {
		h := kerneltest.NewTools(t)
		k := linux.New(linux.Options{Netns: h.Base})
		t.Cleanup(func() { k.Close() })
		return kerneltest.Rig{Kernel: k, Hands: h}
	})
}
