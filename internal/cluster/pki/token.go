package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Token lets a machine join: it tells the machine whom to trust, and the cluster that the machine may.
type Token struct {
	// Authority is the fingerprint of the cluster's authority, against a stranger who answers in the cluster's place.
	Authority [32]byte
	// Secret is known to those who have the token; the cluster keeps its hash only.
	Secret [20]byte
}

const tokenPrefix = "seine1"

// base32 in lower case without padding: a token can be selected by a double click and read aloud.
var tokenEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewToken makes a token with a new secret.
func NewToken(a *Authority) Token {
	t := Token{Authority: a.Fingerprint()}
	_, _ = rand.Read(t.Secret[:]) // never fails (Go 1.24)
	return t
}

// String gives the token as it is typed: seine1, the fingerprint, the secret.
func (t Token) String() string {
	return tokenPrefix + "-" + tokenEncoding.EncodeToString(t.Authority[:]) + "-" + tokenEncoding.EncodeToString(t.Secret[:])
}

// ParseToken reads what String gave. The error does not repeat the token.
func ParseToken(s string) (Token, error) {
	var t Token
	s = strings.TrimSpace(s)
	if parts := strings.Split(s, "-"); len(parts) == 3 {
		a, _ := tokenEncoding.DecodeString(parts[1])
		b, _ := tokenEncoding.DecodeString(parts[2])
		copy(t.Authority[:], a)
		copy(t.Secret[:], b)
		if t.String() == s { // what is no token is not the text of what was read from it
			return t, nil
		}
	}
	return Token{}, errors.New("token: is none, or not all of one; want what `seine cluster token` prints, " + tokenPrefix + "-…-…")
}

// Hash is what the cluster keeps of a token's secret.
func (t Token) Hash() [32]byte { return sha256.Sum256(t.Secret[:]) }

// Matches reports whether the secret is the one with that hash, in constant time.
func (t Token) Matches(hash []byte) bool {
	h := t.Hash()
	return subtle.ConstantTimeCompare(h[:], hash) == 1
}

// JoinClient gives the TLS settings of a machine that has a token and no certificate yet: the other side must be a node of
// the cluster whose authority the token pins.
func (t Token) JoinClient(now func() time.Time) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: ServerName, Time: now,
		InsecureSkipVerify: true, // there is nothing to check by yet but the fingerprint, which VerifyConnection does
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := t.authority(s.PeerCertificates, now)
			return err
		}}
}

// AuthorityOf gives the authority that the other side of a JoinClient connection showed.
func (t Token) AuthorityOf(s tls.ConnectionState, now func() time.Time) (*Authority, error) {
	return t.authority(s.PeerCertificates, now)
}

func (t Token) authority(chain []*x509.Certificate, now func() time.Time) (*Authority, error) {
	if len(chain) != 2 || !chain[1].IsCA {
		return nil, errors.New("the other side does not show a cluster's authority: is it a node's cluster address?")
	}
	a := &Authority{Cert: chain[1]}
	if f := a.Fingerprint(); subtle.ConstantTimeCompare(f[:], t.Authority[:]) != 1 {
		return nil, errors.New("the other side is of another cluster than the token")
	}
	if _, err := a.check(chain[0], now); err != nil {
		return nil, fmt.Errorf("the other side is no node of the token's cluster: %w", err)
	}
	return a, nil
}
