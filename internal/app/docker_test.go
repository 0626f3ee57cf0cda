package app

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/frontdoor/docker"
	"github.com/seine-net/seine/internal/handover"
)

// TestDockerFindings: the doctor says what is the case with Docker's socket, at every time.
func TestDockerFindings(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	own := &sockets{manager: &handover.Manager{}, log: log} // no service manager keeps them
	is := func(d *dockerDoor, level, part string) {
		t.Helper()
		f := d.findings()
		if len(f) != 1 || f[0].Level != level || !strings.Contains(f[0].Found, part) {
			t.Errorf("findings are %+v, want %s: %s", f, level, part)
		}
	}
	path := filepath.Join(t.TempDir(), "plugins", "seine.sock")
	d := &dockerDoor{path: path, sockets: own, log: log}
	is(d, "note", "about to answer")
	l := d.listen()
	if l == nil {
		t.Fatal("no socket")
	}
	defer l.Close()
	is(d, "ok", "answer at "+path)
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|docker.SocketMode {
		t.Errorf("socket is %v, %v", info, err)
	}

	second := &dockerDoor{path: path, sockets: own, log: log}
	if second.listen() != nil {
		t.Error("two daemons have one socket")
	}
	is(second, "note", "another daemon")

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := &dockerDoor{path: filepath.Join(file, "seine.sock"), sockets: own, log: log}
	if broken.listen() != nil {
		t.Error("a socket below a file")
	}
	is(broken, "problem", "not served")
	is(&dockerDoor{sockets: own, log: log}, "ok", "turned off")
}
