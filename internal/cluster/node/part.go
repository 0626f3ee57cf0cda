package node

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/seine-net/seine/internal/cluster/etcd"
	"github.com/seine-net/seine/internal/cluster/pki"
)

// part is who this machine is in its cluster, as it is kept in cluster.json.
type part struct {
	Cluster string     `json:"cluster"` // its name
	ID      string     `json:"id"`      // the cluster's
	Node    string     `json:"node"`    // the machine's ID
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`
	// Epoch is the highest that gossip used.
	Epoch uint64 `json:"epoch"`
	// Keys are gossip's secrets, as they were last.
	Keys [][]byte `json:"keys"`
	// Stores are the addresses of the store's members that are known.
	Stores []string `json:"stores"`
	// Peers are gossip addresses of other machines.
	Peers []string `json:"peers,omitempty"`
	// Member is set where this machine has a member of the store.
	Member *etcd.MemberConfig `json:"member,omitempty"`
	// Noted says that the store knows of the member: it ends when the store does not any more. A founder's begins before.
	Noted bool `json:"noted,omitempty"`
	// Etcd is set where the store is somebody else's etcd.
	Etcd *externalEtcd `json:"etcd,omitempty"`

	dir       string
	authority *pki.Authority
	identity  *pki.Identity
}

type externalEtcd struct {
	CA   string `json:"ca,omitempty"`   // PEM
	Cert string `json:"cert,omitempty"` // PEM, certificate and key
}

// The files of a part.
const (
	partFile      = "cluster.json"
	authorityFile = "authority.pem" // certificate, and the key where this machine may sign
	caFile        = "ca.pem"        // certificate alone, for etcd
	identityFile  = "node.pem"      // certificate and key
	memberDir     = "etcd"
)

// How the four ports follow from the first.
const (
	gossipPort = 1
	clientPort = 2
	peerPort   = 3
)

func (p *part) at(offset uint16) string {
	return net.JoinHostPort(p.Address.String(), strconv.Itoa(int(p.Port+offset)))
}

func (p *part) clientURL() string { return "https://" + p.at(clientPort) }

// member gives what a member of the store on this machine is started with.
func (p *part) member(initial string, existing bool) *etcd.MemberConfig {
	file := func(name string) string { return filepath.Join(p.dir, name) }
	return &etcd.MemberConfig{Name: p.Node, Dir: file(memberDir), ClientURL: p.clientURL(), PeerURL: "https://" + p.at(peerPort),
		Initial: initial, Existing: existing, Cert: file(identityFile), Key: file(identityFile), CA: file(caFile), ServerName: pki.ServerName}
}

// load reads a part; an error of kind os.ErrNotExist says that the machine is in no cluster.
func load(dir string) (*part, error) {
	data, err := os.ReadFile(filepath.Join(dir, partFile))
	if err != nil {
		return nil, err
	}
	p := &part{dir: dir}
	if err := json.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, partFile), err)
	}
	if data, err = os.ReadFile(filepath.Join(dir, authorityFile)); err != nil {
		return nil, err
	}
	if p.authority, err = pki.ParseAuthority(data); err != nil {
		return nil, err
	}
	if data, err = os.ReadFile(filepath.Join(dir, identityFile)); err != nil {
		return nil, err
	}
	p.identity, err = pki.ParseIdentity(data)
	return p, err
}

// save keeps all of a part. cluster.json comes last: without it there is none.
func (p *part) save() error {
	authority, err := p.authority.EncodePEM(true)
	if err != nil {
		return err
	}
	ca, err := p.authority.EncodePEM(false)
	if err != nil {
		return err
	}
	identity, err := p.identity.EncodePEM()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{authorityFile, authority}, {caFile, ca}, {identityFile, identity}} {
		if err := write(filepath.Join(p.dir, f.name), f.data); err != nil {
			return err
		}
	}
	return p.saveState()
}

// saveState keeps cluster.json.
func (p *part) saveState() error {
	data, err := json.MarshalIndent(p, "", "\t")
	if err != nil {
		return err
	}
	return write(filepath.Join(p.dir, partFile), append(data, '\n'))
}

// write puts a file in place as a whole.
func write(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}
