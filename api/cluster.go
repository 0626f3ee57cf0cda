package api

import "net/netip"

// Cluster is the set of machines that this one shares networks with, as it sees it.
type Cluster struct {
	// Name is the user's; ID tells the cluster from others of that name.
	Name string `json:"name"`
	ID   string `json:"id"`
	// Node is this machine's ID.
	Node string `json:"node"`
	// Store says where the agreed truth is: "embedded" or "etcd"; Endpoints are its addresses.
	Store     string   `json:"store"`
	Endpoints []string `json:"endpoints"`
	// Members are the IDs of the machines that have a member of the embedded store.
	Members []string `json:"members,omitempty"`
	// StoreError is why the store can't be used now; "" when it can.
	StoreError string `json:"storeError,omitempty"`
	// Problems are why definitions of the cluster can't be used on this machine, by network.
	Problems map[string]string `json:"problems,omitempty"`
}

// ClusterInit asks a machine to found a cluster.
type ClusterInit struct {
	// Name of the cluster. Default "default".
	Name string `json:"name,omitempty"`
	// Address is this machine's own address that the others reach it at. Default: that of the link with the default route.
	Address netip.Addr `json:"address,omitzero"`
	// Port is the first of the four that the cluster uses; see ClusterPort.
	Port uint16 `json:"port,omitempty"`
	// Etcd has the addresses of an existing etcd, https://HOST:PORT, to be used in place of one of our own.
	Etcd []string `json:"etcd,omitempty"`
	// EtcdCA, EtcdCert and EtcdKey are PEM files on the daemon's machine for that etcd.
	EtcdCA   string `json:"etcdCA,omitempty"`
	EtcdCert string `json:"etcdCert,omitempty"`
	EtcdKey  string `json:"etcdKey,omitempty"`
}

// ClusterJoin asks a machine to join a cluster.
type ClusterJoin struct {
	// Address is that of a machine of the cluster, with its port where that is not ClusterPort.
	Address string `json:"address"`
	// Token is what that machine's `seine cluster token` prints.
	Token string `json:"token"`
	// Self is this machine's own address that the others reach it at. Default: the one that it reaches Address from.
	Self netip.Addr `json:"self,omitzero"`
	// Port is the first of this machine's four.
	Port uint16 `json:"port,omitempty"`
}

// ClusterToken lets machines join.
type ClusterToken struct {
	Token string `json:"token"`
	// Expires is when it ends, RFC 3339 in UTC.
	Expires string `json:"expires"`
}

// ClusterPort is the first of four ports that machines of a cluster listen at: on it joining and certificates (HTTPS), on
// the next gossip (UDP and TCP), on the two after the embedded store for clients and for its members.
const ClusterPort = 7460

// Path is the way to another machine in a network.
type Path struct {
	Network string `json:"network"`
	// Node is the other machine's name.
	Node string `json:"node"`
	// Fabric is the way that was chosen, and Reason why.
	Fabric string `json:"fabric,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Error is why there is no way.
	Error string `json:"error,omitempty"`
}
