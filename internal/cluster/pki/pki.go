// Package pki is the cluster's own certificate authority: it makes the authority, node certificates that say who a node
// is, the TLS settings that all traffic between nodes uses, and the tokens by which a machine may join.
//
// It opens and stores nothing, and knows nothing about revocation lists: whether a node is still a member is asked at each
// connection (Config.Member).
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"
)

// How long certificates last. A node's is renewed when a third of its time is left. Each begins a day early, for machines
// whose clocks disagree.
const (
	AuthorityLife = 20 * 365 * 24 * time.Hour
	NodeLife      = 90 * 24 * time.Hour
	early         = 24 * time.Hour
)

// Authority signs the certificates of one cluster's nodes.
type Authority struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey // nil where only the certificate is known
}

// Identity is a node's certificate with its key.
type Identity struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// NewAuthority makes the authority of a new cluster.
func NewAuthority(cluster string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("seine cluster "+cluster, now, AuthorityLife)
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &Authority{cert, key}, err
}

func template(name string, now time.Time, life time.Duration) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // crypto/rand never fails (Go 1.24)
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-early), NotAfter: now.Add(life)}
}

// CanSign reports whether the authority's key is known here.
func (a *Authority) CanSign() bool { return a.key != nil }

// Fingerprint is the SHA-256 of the authority's public key: what a token pins.
func (a *Authority) Fingerprint() [32]byte { return sha256.Sum256(a.Cert.RawSubjectPublicKeyInfo) }

// NewKey makes the key of a node.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// Request asks for a certificate for key. Who it is for is the authority's to say.
func Request(key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// Sign gives a node the certificate that it asked for with Request. The node's ID is in it as a URI, seine:node/ID.
func (a *Authority) Sign(request []byte, node string, now time.Time) (*x509.Certificate, error) {
	if a.key == nil {
		return nil, errors.New("this node can't sign certificates: it does not have the authority's key")
	}
	r, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if k, ok := r.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, errors.New("certificate request: the key is no ECDSA key on P-256")
	}
	t := template(node, now, NodeLife)
	if t.NotAfter.After(a.Cert.NotAfter) {
		t.NotAfter = a.Cert.NotAfter
	}
	t.URIs = []*url.URL{nodeURI(node)}
	t.DNSNames = []string{ServerName}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, a.Cert, r.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ServerName is the DNS name in every node's certificate, for programs that check one. It says nothing about who it is.
const ServerName = "node.seine.internal"

func nodeURI(id string) *url.URL { return &url.URL{Scheme: "seine", Opaque: "node/" + id} }

// NodeID gives the ID of the node that a certificate is for.
func NodeID(c *x509.Certificate) (string, error) {
	for _, u := range c.URIs {
		if id, ok := strings.CutPrefix(u.Opaque, "node/"); ok && u.Scheme == "seine" && id != "" && len(c.URIs) == 1 {
			return id, nil
		}
	}
	return "", fmt.Errorf("certificate %q: names no node", c.Subject.CommonName)
}

// NeedsRenewal reports whether a third of a certificate's time or less is left.
func NeedsRenewal(c *x509.Certificate, now time.Time) bool {
	return c.NotAfter.Sub(now) < c.NotAfter.Sub(c.NotBefore)/3
}

// The types of PEM blocks (RFC 7468).
const (
	certPEM = "CERTIFICATE"
	keyPEM  = "EC PRIVATE KEY"
)

// EncodePEM gives the authority as PEM: the certificate, and the key where it is known and asked for.
func (a *Authority) EncodePEM(withKey bool) ([]byte, error) {
	out := pem.EncodeToMemory(&pem.Block{Type: certPEM, Bytes: a.Cert.Raw})
	if !withKey || a.key == nil {
		return out, nil
	}
	return appendKey(out, a.key)
}

func appendKey(out []byte, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(out, pem.EncodeToMemory(&pem.Block{Type: keyPEM, Bytes: der})...), nil
}

// EncodePEM gives the certificate and the key as PEM.
func (i *Identity) EncodePEM() ([]byte, error) {
	return appendKey(pem.EncodeToMemory(&pem.Block{Type: certPEM, Bytes: i.Cert.Raw}), i.Key)
}

// ParseAuthority reads what EncodePEM gave.
func ParseAuthority(data []byte) (*Authority, error) {
	cert, key, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("authority: certificate %q is no authority's", cert.Subject.CommonName)
	}
	return &Authority{cert, key}, nil
}

// ParseIdentity reads what EncodePEM gave.
func ParseIdentity(data []byte) (*Identity, error) {
	cert, key, err := parse(data)
	if err == nil && key == nil {
		err = errors.New("there is no key")
	}
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	_, err = NodeID(cert)
	return &Identity{cert, key}, err
}

func parse(data []byte) (cert *x509.Certificate, key *ecdsa.PrivateKey, err error) {
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		switch {
		case b.Type == certPEM && cert == nil:
			cert, err = x509.ParseCertificate(b.Bytes)
		case b.Type == keyPEM && key == nil:
			key, err = x509.ParseECPrivateKey(b.Bytes)
		default:
			err = fmt.Errorf("a second or unknown part %q", b.Type)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if cert == nil {
		return nil, nil, errors.New("there is no certificate")
	}
	if key != nil && !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, errors.New("key and certificate don't belong together")
	}
	return cert, key, nil
}

// Config makes TLS settings.
type Config struct {
	Authority *Authority
	// Identity gives the node's present certificate: it is renewed while connections go on.
	Identity func() *Identity
	// Member reports whether a node is a member of the cluster; nil takes everybody whom the authority signed.
	Member func(node string) bool
	// Now is the clock; nil for time.Now.
	Now func() time.Time
}

func (c *Config) certificate() *tls.Certificate {
	id := c.Identity()
	// The authority goes along: who joins knows only its fingerprint.
	return &tls.Certificate{Certificate: [][]byte{id.Cert.Raw, c.Authority.Cert.Raw}, PrivateKey: id.Key, Leaf: id.Cert}
}

// Server gives the settings for accepting connections. Clients show a certificate of the cluster; with optional they may
// show none, and what they are served is up to who asks PeerID.
func (c *Config) Server(optional bool) *tls.Config {
	auth := tls.RequireAnyClientCert
	if optional {
		auth = tls.RequestClientCert
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: auth, Time: c.Now,
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.certificate(), nil },
		VerifyConnection: func(s tls.ConnectionState) error { return c.verify(s, "", optional) }}
}

// Client gives the settings for connections to a node, whose ID is checked; "" takes any member.
func (c *Config) Client(node string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Time: c.Now, ServerName: ServerName,
		// Go's own check is of names; ours, of the cluster and the node, is in VerifyConnection, which is called always.
		InsecureSkipVerify:   true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.certificate(), nil },
		VerifyConnection:     func(s tls.ConnectionState) error { return c.verify(s, node, false) }}
}

// verify checks that the other side is a member, and the one that was meant. It runs for resumed connections too.
func (c *Config) verify(s tls.ConnectionState, want string, optional bool) error {
	if len(s.PeerCertificates) == 0 {
		if optional {
			return nil
		}
		return errors.New("the other side shows no certificate")
	}
	id, err := c.Authority.check(s.PeerCertificates[0], c.Now)
	if err != nil {
		return err
	}
	if want != "" && id != want {
		return fmt.Errorf("the other side is node %q, want %q", id, want)
	}
	if c.Member != nil && !c.Member(id) {
		return fmt.Errorf("node %q is no member of the cluster", id)
	}
	return nil
}

func (a *Authority) check(cert *x509.Certificate, now func() time.Time) (string, error) {
	roots := x509.NewCertPool()
	roots.AddCert(a.Cert)
	o := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if now != nil {
		o.CurrentTime = now()
	}
	if _, err := cert.Verify(o); err != nil {
		return "", fmt.Errorf("the other side's certificate is not of this cluster, or its time is over: %w", err)
	}
	return NodeID(cert)
}

// SignerOf gives the public key in a certificate (DER) that the authority signed for a node, whenever that was: it is not
// for TLS, but for checking what the node signs.
func (a *Authority) SignerOf(der []byte, node string) (*ecdsa.PublicKey, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if err := cert.CheckSignatureFrom(a.Cert); err != nil {
		return nil, err
	}
	id, err := NodeID(cert)
	if err != nil {
		return nil, err
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || id != node {
		return nil, fmt.Errorf("certificate %q: is not that of node %q", cert.Subject.CommonName, node)
	}
	return key, nil
}

// PeerID gives the ID of the node at the other side of a connection that Server or Client made; "" for none.
func PeerID(s tls.ConnectionState) string {
	if len(s.PeerCertificates) == 0 {
		return ""
	}
	id, _ := NodeID(s.PeerCertificates[0]) // verify has looked at it
	return id
}
