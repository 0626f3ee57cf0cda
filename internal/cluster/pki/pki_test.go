package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/seine-net/seine/internal/cluster/pki"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func authority(t *testing.T) *pki.Authority {
	t.Helper()
	a, err := pki.NewAuthority("c1", now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func identity(t *testing.T, a *pki.Authority, node string, at time.Time) *pki.Identity {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	req, err := pki.Request(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(req, node, at)
	if err != nil {
		t.Fatal(err)
	}
	return &pki.Identity{Cert: cert, Key: key}
}

func config(a *pki.Authority, id *pki.Identity, skew time.Duration) *pki.Config {
	return &pki.Config{Authority: a, Identity: func() *pki.Identity { return id }, Now: func() time.Time { return now.Add(skew) }}
}

// talk connects a client to a server and gives what each of them says.
func talk(t *testing.T, server, client *tls.Config) (peer string, asServer, asClient error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		tc := tls.Server(c, server)
		if err = tc.Handshake(); err == nil {
			peer = pki.PeerID(tc.ConnectionState())
			_, err = tc.Write([]byte("x"))
		}
		done <- err
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		_, err = c.Read(make([]byte, 1)) // a refused client certificate is told here (RFC 8446 section 4.4.2)
		c.Close()
	}
	asServer = <-done // peer is told by then
	return peer, asServer, err
}

func TestMutualTLS(t *testing.T) {
	a, stranger := authority(t), authority(t)
	n1, n2 := identity(t, a, "n1", now), identity(t, a, "n2", now)
	cases := []struct {
		name           string
		server, client *tls.Config
		fails          bool
	}{
		{"two nodes", config(a, n1, 0).Server(false), config(a, n2, 0).Client("n1"), false},
		{"any member", config(a, n1, 0).Server(false), config(a, n2, 0).Client(""), false},
		{"clocks an hour apart", config(a, n1, -time.Hour).Server(false), config(a, n2, time.Hour).Client("n1"), false},
		{"another node than meant", config(a, n1, 0).Server(false), config(a, n2, 0).Client("n3"), true},
		{"a stranger's server", config(stranger, identity(t, stranger, "n1", now), 0).Server(true), config(a, n2, 0).Client("n1"), true},
		{"a stranger's client", config(a, n1, 0).Server(false), config(stranger, identity(t, stranger, "n2", now), 0).Client(""), true},
		{"no certificate", config(a, n1, 0).Server(false), &tls.Config{InsecureSkipVerify: true}, true},
		{"no certificate where it may be", config(a, n1, 0).Server(true), &tls.Config{InsecureSkipVerify: true}, false},
		{"a stranger's where none may be", config(a, n1, 0).Server(true), config(stranger, identity(t, stranger, "n2", now), 0).Client(""), true},
		{"over", config(a, n1, 0).Server(false), config(a, identity(t, a, "n2", now.Add(-2*pki.NodeLife)), 0).Client("n1"), true},
	}
	for _, c := range cases {
		peer, s, cl := talk(t, c.server, c.client)
		if failed := s != nil || cl != nil; failed != c.fails {
			t.Errorf("%s: server says %v, client says %v", c.name, s, cl)
		}
		if c.name == "two nodes" && peer != "n2" {
			t.Errorf("the server took its client for %q", peer)
		}
	}
	removed := config(a, n1, 0)
	removed.Member = func(id string) bool { return id != "n2" }
	if _, s, _ := talk(t, removed.Server(false), config(a, n2, 0).Client("n1")); s == nil {
		t.Error("a node that was removed got in")
	}
}

func TestJoin(t *testing.T) {
	a, other := authority(t), authority(t)
	clock := func() time.Time { return now }
	token, err := pki.ParseToken(pki.NewToken(a).String() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	server := config(a, identity(t, a, "n1", now), 0).Server(true)
	if peer, s, c := talk(t, server, token.JoinClient(clock)); s != nil || c != nil || peer != "" {
		t.Errorf("server says %v, client says %v, peer %q", s, c, peer)
	}
	for name, server := range map[string]*tls.Config{
		"another cluster": config(other, identity(t, other, "n1", now), 0).Server(true),
		// It knows the authority's certificate, which is no secret.
		"a stranger with our authority's certificate": config(a, identity(t, other, "n1", now), 0).Server(true),
	} {
		if _, _, c := talk(t, server, token.JoinClient(clock)); c == nil {
			t.Errorf("%s was taken for ours", name)
		}
	}
	hash := token.Hash()
	if !token.Matches(hash[:]) || pki.NewToken(a).Matches(hash[:]) || token.Matches(nil) {
		t.Error("the hash does not tell the token")
	}
	text := token.String()
	for _, bad := range []string{"", "x", text[:len(text)-2], text + "a", strings.Replace(text, "seine1", "seine2", 1), text + "-a", strings.ToUpper(text)} {
		if _, err := pki.ParseToken(bad); err == nil {
			t.Errorf("%q was taken for a token", bad)
		} else if bad != "" && bad != "x" && strings.Contains(err.Error(), bad) {
			t.Error("the error repeats the token")
		}
	}
}

func TestFiles(t *testing.T) {
	a := authority(t)
	id := identity(t, a, "n1", now)
	full, err := a.EncodePEM(true)
	if err != nil {
		t.Fatal(err)
	}
	short, _ := a.EncodePEM(false)
	own, err := id.EncodePEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := pki.ParseAuthority(full)
	if err != nil || !again.CanSign() || again.Fingerprint() != a.Fingerprint() {
		t.Errorf("the authority is read as %+v, %v", again, err)
	}
	public, err := pki.ParseAuthority(short)
	if err != nil || public.CanSign() {
		t.Errorf("the certificate alone is read as %+v, %v", public, err)
	}
	if _, err := public.Sign(nil, "n", now); err == nil {
		t.Error("signed without a key")
	}
	if back, err := pki.ParseIdentity(own); err != nil || !back.Cert.Equal(id.Cert) {
		t.Errorf("the identity is read as %+v, %v", back, err)
	}
	for name, data := range map[string][]byte{"nothing": nil, "no PEM": []byte("x"), "an identity": own, "two": append(short, short...), "cut": full[:len(full)/3]} {
		if _, err := pki.ParseAuthority(data); err == nil {
			t.Errorf("%s was taken for an authority", name)
		}
	}
	for name, data := range map[string][]byte{"an authority": full, "no key": short, "foreign key": append(append([]byte{}, short...), own[len(own)/2:]...)} {
		if _, err := pki.ParseIdentity(data); err == nil {
			t.Errorf("%s was taken for an identity", name)
		}
	}
	if pki.NeedsRenewal(id.Cert, now) || !pki.NeedsRenewal(id.Cert, now.Add(pki.NodeLife*3/4)) || !pki.NeedsRenewal(id.Cert, now.Add(2*pki.NodeLife)) {
		t.Error("renewal is not asked for when a third of the time is left")
	}
}

func TestSignRefuses(t *testing.T) {
	a := authority(t)
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := pki.NewKey()
	good, _ := pki.Request(key)
	forged := append([]byte{}, good...)
	forged[len(forged)-1] ^= 1
	for name, r := range map[string][]byte{"empty": nil, "rubbish": []byte("x"), "another kind of key": request, "a wrong signature": forged} {
		if _, err := a.Sign(r, "n", now); err == nil {
			t.Errorf("signed a request that is %s", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("seine1-aa-bb"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	a, err := pki.NewAuthority("c", now)
	if err != nil {
		f.Fatal(err)
	}
	good, _ := a.EncodePEM(true)
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		if tok, err := pki.ParseToken(string(data)); err == nil && tok.String() != strings.TrimSpace(string(data)) {
			t.Errorf("token %q is read as %s", data, tok)
		}
		_, _ = pki.ParseAuthority(data)
		_, _ = pki.ParseIdentity(data)
		_, _ = a.Sign(data, "n", now)
	})
}
