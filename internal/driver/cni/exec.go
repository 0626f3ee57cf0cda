package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Bounds of what a plugin may print, in bytes; more is cut off.
const (
	maxStdout = 1 << 20
	maxStderr = 2 << 10
)

// killWait is how long the pipes of a plugin that was killed are waited for: a child of its own may hold them.
const killWait = 2 * time.Second

// forgetNetns leaves the namespace out where its path leads nowhere any more; plugins have to cope.
func (a *attachment) forgetNetns() {
	if _, err := os.Stat(a.Netns); errors.Is(err, fs.ErrNotExist) {
		a.Netns = ""
	}
}

// exec runs one plugin of the list and gives what it printed. In the error is the plugin's own, or what it wrote to stderr.
func (a *attachment) exec(ctx context.Context, l *list, i int, verb string, prev json.RawMessage) (json.RawMessage, error) {
	kind := l.Plugins[i].kind
	fail := func(err error) error { return fmt.Errorf("plugin %s: %s: %w", kind, verb, err) }
	path, err := look(kind, a.Path)
	if err != nil {
		return nil, fail(err)
	}
	in, err := l.stdin(i, a.Runtime, prev)
	if err != nil {
		return nil, fail(err)
	}
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	c := exec.CommandContext(ctx, path)
	c.Env = append(environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+a.ID, "CNI_NETNS="+a.Netns, "CNI_IFNAME="+a.Interface,
		"CNI_PATH="+a.network.Path)
	stdout, stderr := &limited{most: maxStdout}, &limited{most: maxStderr}
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(in), stdout, stderr
	// A group of its own: what the plugin started, such as its IPAM, ends with it.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = killWait
	err = c.Run()
	out := bytes.TrimSpace(stdout.buf.Bytes())
	switch {
	case err == nil && stdout.cut:
		return nil, fail(fmt.Errorf("printed more than %d bytes", maxStdout))
	case err == nil && len(out) > 0 && !json.Valid(out):
		return nil, fail(fmt.Errorf("printed no JSON: %.100q", out))
	case err == nil:
		return out, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fail(fmt.Errorf("did not end within %s, and was killed", a.Timeout))
	}
	var said struct {
		Code         uint
		Msg, Details string
	}
	if json.Unmarshal(out, &said) == nil && said.Msg != "" {
		text := said.Msg
		if said.Details != "" {
			text += "; " + said.Details
		}
		return nil, fail(fmt.Errorf("%s (code %d)", text, said.Code))
	}
	return nil, fail(fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.buf.String()+" "+fmt.Sprintf("%.200s", out))))
}

// environ is our environment without what is about CNI.
func environ() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CNI_") {
			out = append(out, kv)
		}
	}
	return out
}

// limited keeps the first bytes of what is written.
type limited struct {
	buf  bytes.Buffer
	most int
	cut  bool
}

// Write implements io.Writer; it takes everything.
func (l *limited) Write(b []byte) (int, error) {
	n := len(b)
	if free := l.most - l.buf.Len(); n > free {
		b, l.cut = b[:free], true
	}
	l.buf.Write(b)
	return n, nil
}
