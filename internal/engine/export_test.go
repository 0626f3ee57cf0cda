package engine

import (
	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/kernel"
)

// PluginsNow has everything that is to be tried again be due now.
func (e *Engine) PluginsNow() {
	e.plugins.mu.Lock()
	defer e.plugins.mu.Unlock()
	for _, x := range e.plugins.by {
		x.next = x.next.Add(-pluginRetryMax)
	}
}

// ResetEndpoint is what a change of a network does to each of its endpoints.
func (e *Engine) ResetEndpoint(listed api.Endpoint) ([]kernel.Key, error) {
	return e.resetEndpoint(listed)
}
