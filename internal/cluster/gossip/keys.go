package gossip

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/hashicorp/memberlist"
)

// mostKeys is how many keys there can be: the one that encrypts and the one before or after it. With more, memberlist's
// RemoveKey (v0.7.0) would move keys about in an array that others are just reading.
const mostKeys = 2

// InstallKey adds a key that decrypts, a second one at most. To change the key of a cluster: InstallKey on all nodes,
// then UseKey on all, then RemoveKey of the old one on all.
func (g *Gossip) InstallKey(key []byte) error {
	if err := memberlist.ValidateKey(key); err != nil {
		return fmt.Errorf("key: has %d bytes; want 16, 24 or 32", len(key))
	}
	g.keyLock.Lock()
	defer g.keyLock.Unlock()
	if n := len(g.keyring.GetKeys()); n >= mostKeys && !g.installed(key) {
		return fmt.Errorf("key: there are %d; want RemoveKey of one first", n)
	}
	return g.keyring.AddKey(slices.Clone(key))
}

// UseKey makes an installed key the one that encrypts.
func (g *Gossip) UseKey(key []byte) error {
	g.keyLock.Lock()
	defer g.keyLock.Unlock()
	if !g.installed(key) {
		return fmt.Errorf("key: is not installed; want one of the %d that are", len(g.keyring.GetKeys()))
	}
	return g.keyring.UseKey(key)
}

// RemoveKey forgets a key that is not the one that encrypts. One that is not there is removed.
func (g *Gossip) RemoveKey(key []byte) error {
	g.keyLock.Lock()
	defer g.keyLock.Unlock()
	if bytes.Equal(key, g.keyring.GetPrimaryKey()) {
		return fmt.Errorf("key: is the one that encrypts; want UseKey of another first")
	}
	if !g.installed(key) {
		return nil
	}
	return g.keyring.RemoveKey(key)
}

func (g *Gossip) installed(key []byte) bool {
	return slices.ContainsFunc(g.keyring.GetKeys(), func(k []byte) bool { return bytes.Equal(k, key) })
}
