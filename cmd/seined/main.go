// Command seined is the daemon of a node: it keeps the machine's networks and answers the API on a unix socket.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/seine-net/seine/internal/app"
)

// version is set at build time.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if len(os.Args) == 2 && os.Args[1] == app.MemberCommand { // the daemon's own child
		end(app.RunMember(ctx))
		return
	}
	opts := app.Options{Version: version}
	show := false
	fs := flag.NewFlagSet("seined", flag.ContinueOnError)
	opts.Flags(fs)
	fs.BoolVar(&show, "version", false, "print the version and exit")
	if err := fs.Parse(os.Args[1:]); errors.Is(err, flag.ErrHelp) {
		return
	} else if err != nil {
		os.Exit(2)
	}
	if show {
		fmt.Println("seined", version)
		return
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "seined: argument %q: is not known; want only flags (see seined -h)\n", fs.Arg(0))
		os.Exit(2)
	}
	run := app.Run
	if opts.Hold && !app.Held() {
		run = app.Hold
	}
	end(run(ctx, opts))
}

func end(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "seined:", err)
		os.Exit(1)
	}
}
