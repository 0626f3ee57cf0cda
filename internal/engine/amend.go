package engine

import (
	"context"
	"reflect"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/state"
)

// AmendEndpoint changes what an endpoint is called: its container, aliases and labels. The kernel is not touched. edit
// gets the endpoint as it is stored: it must not keep it, block, or write into its slices and maps, and what else it
// changes stays as it was. changed tells whether anything did; NotFound where there is no such endpoint, or none any more.
func (e *Engine) AmendEndpoint(ctx context.Context, network, name string, edit func(*api.Endpoint)) (changed bool, err error) {
	noun := api.EndpointNoun(network, name)
	unlock, err := e.busy.lock(ctx, noun) // a verb that fails goes back to what it found
	if err != nil {
		return false, refused(noun, err)
	}
	defer unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	was, ok := e.Store.Endpoint(network + "/" + name)
	if !ok {
		return false, api.Errorf(api.NotFound, noun, "does not exist")
	}
	asked, now := was, was
	edit(&asked)
	now.Container, now.Aliases, now.Labels = asked.Container, asked.Aliases, asked.Labels
	if reflect.DeepEqual(was, now) {
		return false, nil
	}
	if err := now.Validate(); err != nil {
		return false, err
	}
	if _, err := e.Store.Commit(&state.Change{PutEndpoints: []api.Endpoint{now}}); err != nil {
		return false, refused(noun, err)
	}
	e.announceNames(now)
	return true, nil
}

// AmendNetwork changes a network's aliases and labels, as AmendEndpoint changes what an endpoint is called.
func (e *Engine) AmendNetwork(ctx context.Context, name string, edit func(*api.Network)) (changed bool, err error) {
	noun := api.NetworkNoun(name)
	unlock, err := e.busy.lock(ctx, noun)
	if err != nil {
		return false, refused(noun, err)
	}
	defer unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	was, ok := e.Store.Network(name)
	if !ok {
		return false, api.Errorf(api.NotFound, noun, "does not exist")
	}
	asked, now := was, was
	edit(&asked)
	now.Aliases, now.Labels = asked.Aliases, asked.Labels
	if reflect.DeepEqual(was, now) {
		return false, nil
	}
	if err := now.Validate(); err != nil {
		return false, err
	}
	if _, err := e.Store.Commit(&state.Change{PutNetworks: []api.Network{now}}); err != nil {
		return false, refused(noun, err)
	}
	if reflect.DeepEqual(was.Aliases, now.Aliases) {
		return true, nil
	}
	for _, ep := range e.Store.Endpoints() {
		if ep.Network == name {
			e.announceNames(ep)
		}
	}
	return true, nil
}
