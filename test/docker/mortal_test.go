package docker_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"strings"
	"sync"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/engine"
	"github.com/seine-net/seine/internal/frontdoor/docker"
	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/state"
)

// errDead is what is met after the daemon's end; nobody hears of it.
var errDead = errors.New("killed")

// mortal ends the daemon within a call: before one of the verbs and writes that the call is made of, or at one of the
// kernel's operations. From then on nothing reaches the disk or the kernel.
type mortal struct {
	d *desk

	mu    sync.Mutex
	steps int // that the call has taken
	at    int // at which the daemon ends; 0 for never
	disk  []byte
	// answer is what the call gives; told says that it went on after Docker had that.
	answer *httptest.ResponseRecorder
	told   bool
}

// step is taken before whatever has an effect.
func (m *mortal) step() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disk != nil {
		return errDead
	}
	if m.at == 0 {
		return nil
	}
	if m.steps++; m.steps != m.at {
		return nil
	}
	m.die()
	return errDead
}

// die keeps what is on disk at that moment; no transaction is under way then.
func (m *mortal) die() {
	var err error
	if m.disk, err = os.ReadFile(m.d.path); err != nil {
		panic(err)
	}
}

func (m *mortal) must() {
	if m.step() != nil {
		panic(errDead)
	}
}

// kill makes a call that the daemon is killed in at a step, or right after it where it has not so many, and starts the
// daemon again. It reports whether there was such a step, and whether Docker had got the answer.
func (m *mortal) kill(name, body string, at int) (reached, answered bool) {
	m.steps, m.at, m.disk, m.answer, m.told = 0, at, nil, httptest.NewRecorder(), false
	m.d.kernel.FailIf(func(kernel.Change) error { return m.step() })
	m.d.door.ServeHTTP(m.answer, httptest.NewRequest("POST", "/"+name, strings.NewReader(body)))
	_ = m.d.loop.Flush(context.Background()) // what comes after the answer can be interrupted, too
	m.mu.Lock()
	reached = m.disk != nil
	if !reached {
		m.die()
	}
	m.mu.Unlock()
	m.d.stop()
	if err := os.WriteFile(m.d.path, m.disk, 0o600); err != nil {
		m.d.Fatal(err)
	}
	m.at, m.disk = 0, nil
	m.d.kernel.Restart()
	m.d.start()
	return reached, m.told
}

// mortalEngine ends before a verb that changes something.
type mortalEngine struct {
	*engine.Engine
	m *mortal
}

var _ docker.Engine = mortalEngine{}

func (e mortalEngine) PutNetwork(ctx context.Context, n api.Network, match uint64) (api.Network, error) {
	e.m.must()
	return e.Engine.PutNetwork(ctx, n, match)
}

func (e mortalEngine) AmendNetwork(ctx context.Context, name string, edit func(*api.Network)) (bool, error) {
	e.m.told = e.m.told || e.m.answer != nil && e.m.answer.Body.Len() > 0 && e.m.disk == nil
	e.m.must()
	return e.Engine.AmendNetwork(ctx, name, edit)
}

func (e mortalEngine) DropNetwork(ctx context.Context, name string, match uint64) error {
	e.m.must()
	return e.Engine.DropNetwork(ctx, name, match)
}

func (e mortalEngine) PutEndpoint(ctx context.Context, ep api.Endpoint, match uint64) (api.Endpoint, error) {
	e.m.must()
	return e.Engine.PutEndpoint(ctx, ep, match)
}

func (e mortalEngine) AmendEndpoint(ctx context.Context, network, name string, edit func(*api.Endpoint)) (bool, error) {
	e.m.must()
	return e.Engine.AmendEndpoint(ctx, network, name, edit)
}

func (e mortalEngine) DropEndpoint(ctx context.Context, network, name string, match uint64) error {
	e.m.must()
	return e.Engine.DropEndpoint(ctx, network, name, match)
}

// mortalBook ends before a write.
type mortalBook struct {
	*state.Store
	m *mortal
}

func (b mortalBook) SetValue(name, value string) error {
	b.m.must()
	return b.Store.SetValue(name, value)
}
