package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/seine-net/seine/internal/kernel"
)

// markPrefix begins the alias of every link and the comment of every nftables element that a plugin made. It is not
// kernel.AliasPrefix: what containers of other runtimes hold is not for the daemon to clean up.
const markPrefix = kernel.PluginAliasPrefix

// Marks are at most this long: the kernel keeps 120 bytes of comment with an element.
const markLen = 120

// vethPrefix begins the names of the machine's ends of veths, as with the reference plugins. Ten hex digits follow,
// which some programs look for ("veth" and up to ten).
const vethPrefix = "veth"

// ident is one attachment: an interface of a container on a network. All state of the plugins is kept under all three.
type ident struct{ network, containerID, ifname string }

func (r *request) ident() ident { return ident{r.conf.Name, r.containerID, r.ifname} }

// short is the beginning of a hash of words; the words can't run into each other.
func short(n int, words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return hex.EncodeToString(sum[:])[:n]
}

// networkMark begins the marks of all attachments to a network.
func networkMark(network string) string { return markPrefix + short(16, network) + ":" }

// key begins the mark of this attachment and of no other.
func (i ident) key() string { return networkMark(i.network) + short(16, i.containerID, i.ifname) }

// mark is key and, for people, the names themselves as far as there is room.
func (i ident) mark() string {
	m := i.key() + " " + i.network + " " + i.containerID + " " + i.ifname
	return m[:min(len(m), markLen)]
}

// marked reports whether a mark is this attachment's.
func (i ident) marked(mark string) bool {
	k := i.key()
	return strings.HasPrefix(mark, k) && (len(mark) == len(k) || mark[len(k)] == ' ')
}

// sameContainer reports whether a mark is of an attachment of the same container. A mark that was cut before enough of
// the container's name is nobody's.
func (i ident) sameContainer(mark string) bool {
	words := strings.Split(markNames(mark), " ") // network, container, interface
	if len(words) < 2 {
		return false
	}
	const enough = 12
	cut := len(words) == 2 && len(mark) == markLen && len(words[1]) >= enough
	return words[1] == i.containerID || cut && strings.HasPrefix(i.containerID, words[1])
}

// veth is the name of the machine's end of the attachment's veth: DEL finds it with nothing else known.
func (i ident) veth() string { return vethPrefix + short(10, i.network, i.containerID, i.ifname) }

// markOf gives the mark that an object carries; "" for none.
func markOf(o kernel.Object) string {
	switch o := o.(type) {
	case *kernel.Link:
		return o.Alias
	case *kernel.Element:
		return o.Comment
	}
	return ""
}

// markNames gives the names in a mark, for messages.
func markNames(mark string) string {
	if _, names, ok := strings.Cut(mark, " "); ok && strings.HasPrefix(mark, markPrefix) {
		return names
	}
	return mark
}
