package engine

// PluginsNow has everything that is to be tried again be due now.
func (e *Engine) PluginsNow() {
	e.plugins.mu.Lock()
	defer e.plugins.mu.Unlock()
	for _, x := range e.plugins.by {
		x.next = x.next.Add(-pluginRetryMax)
	}
}
