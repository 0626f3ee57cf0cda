package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// program is a plugin that is somebody else's program: it gets our environment.
type program struct {
	r *request
	// kind is what it is for us: "ipam" or "delegate".
	kind string
	name string
	path string // "" where it is not to be found
}

// findProgram looks a plugin up in CNI_PATH.
func findProgram(r *request, kind, name string) program {
	p := program{r: r, kind: kind, name: name}
	if strings.ContainsRune(name, filepath.Separator) {
		return p
	}
	for _, dir := range filepath.SplitList(r.path) {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); dir != "" && err == nil && st.Mode().IsRegular() {
			p.path = path
			break
		}
	}
	return p
}

// execIPAM is an address plugin that is somebody else's program: it gets our stdin.
type execIPAM struct{ program }

func newExec(r *request, name string) (ipam, error) {
	e := &execIPAM{findProgram(r, "ipam", name)}
	if e.path != "" {
		return e, nil
	}
	if r.verb == verbDel || r.verb == verbGC {
		// A plugin that is gone can give nothing back, and never will: that must not keep the rest from going.
		fmt.Fprintf(r.host.Stderr, "ipam.type %q: no such plugin in CNI_PATH %q; what it gave out is not given back\n", name, r.path)
		return e, nil
	}
	if strings.ContainsRune(name, filepath.Separator) {
		return nil, invalid("ipam.type", name, "is a path", "the name of an address plugin in CNI_PATH")
	}
	return nil, invalid("ipam.type", name, "is no plugin that can be found", fmt.Sprintf("host-local, static, or the name of a program in CNI_PATH (%s)", r.path))
}

// Tries to start a program that is just being replaced ("text file busy"), and the pause in between.
const (
	busyTries = 5
	busyPause = 200 * time.Millisecond
)

func (e *program) run(ctx context.Context, verb string, stdin []byte) ([]byte, error) {
	if e.path == "" {
		return nil, nil
	}
	var out bytes.Buffer
	for try := 1; ; try++ {
		out.Reset()
		c := exec.CommandContext(ctx, e.path)
		c.Env = append(withoutCommand(e.r.host.Environ()), "CNI_COMMAND="+verb)
		c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(stdin), &out, e.r.host.Stderr
		err := c.Run()
		if err == nil {
			return out.Bytes(), nil
		}
		if !errors.Is(err, syscall.ETXTBSY) || try == busyTries {
			return nil, e.failed(err, out.Bytes())
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func withoutCommand(env []string) []string {
	var out []string
	for _, kv := range env {
		if !strings.HasPrefix(kv, "CNI_COMMAND=") {
			out = append(out, kv)
		}
	}
	return out
}

// failed takes the plugin's own error where it printed one.
func (e *program) failed(err error, stdout []byte) error {
	var said struct {
		Code    Code
		Msg     string
		Details string
	}
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		return &Error{Code: said.Code, Msg: fmt.Sprintf("%s plugin %q: %s", e.kind, e.name, said.Msg), Details: said.Details, cause: err}
	}
	return errorf(CodeInternal, "%s plugin %q: %w: %s", e.kind, e.name, err, bytes.TrimSpace(stdout))
}

func (e *execIPAM) add(ctx context.Context) (*Result, func(context.Context) error, error) {
	undo := func(ctx context.Context) error {
		_, err := e.run(ctx, verbDel, e.r.stdin)
		return err
	}
	out, err := e.run(ctx, verbAdd, e.r.stdin)
	if err != nil {
		// It may have failed after it took an address.
		return nil, nil, errors.Join(err, undo(ctx))
	}
	res, err := decodeResult(out, e.r.version)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("ipam plugin %q: result: %w", e.name, err), undo(ctx))
	}
	for i := range res.Routes {
		res.Routes[i].Dst.Prefix = res.Routes[i].Dst.Masked()
	}
	return res, undo, nil
}

func (e *execIPAM) del(ctx context.Context) error {
	_, err := e.run(ctx, verbDel, e.r.stdin)
	return err
}

func (e *execIPAM) check(ctx context.Context) error {
	_, err := e.run(ctx, verbCheck, e.r.stdin)
	return err
}

// gc and status are only called with configurations of a version that has them. A plugin that is too old for it says
// so with the code of a version, which is no error of ours.
func (e *execIPAM) gc(ctx context.Context, _ []attachment) error {
	_, err := e.run(ctx, verbGC, e.r.stdin)
	return tooOld(err)
}

func (e *execIPAM) status(ctx context.Context) error {
	_, err := e.run(ctx, verbStatus, e.r.stdin)
	return tooOld(err)
}

func tooOld(err error) error {
	var said *Error
	if errors.As(err, &said) && (said.Code == CodeVersion || said.Code == CodeEnvironment) {
		return nil
	}
	return err
}

func (e *execIPAM) held() []netip.Addr { return nil }
