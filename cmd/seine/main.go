// Command seine is the command line: it makes networks on this machine, through the daemon, and runs programs on them.
package main

import (
	"context"
	"os"

	"github.com/seine-net/seine/internal/cli"
	"github.com/seine-net/seine/internal/cli/sandbox"
)

// version is set at build time.
var version = "dev"

func main() {
	if sandbox.IsInit(os.Args) { // `seine run` started this process to be the first one of a sandbox
		os.Exit(sandbox.Init())
	}
	os.Exit(cli.Main(context.Background(), version, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
