package node

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cluster/agreed"
	"github.com/seine-net/seine/internal/cluster/pki"
)

// What machines ask each other over HTTPS.
const (
	joinPath      = "/v1/join"      // with a token: joinRequest → joinAnswer
	renewPath     = "/v1/renew"     // with a certificate: a request → a certificate, both DER
	authorityPath = "/v1/authority" // with a certificate, of a machine that is to have a member: the authority's key
)

const (
	maxBody    = 64 << 10
	rpcTimeout = 15 * time.Second
)

type joinRequest struct {
	Token   string     `json:"token"`
	Request []byte     `json:"request"` // for a certificate, PKCS #10
	Node    string     `json:"node"`    // the ID that the machine made itself: a second try is the same machine
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`
}

type joinAnswer struct {
	Cluster string        `json:"cluster"`
	ID      string        `json:"id"`
	Cert    []byte        `json:"cert"`
	Keys    [][]byte      `json:"keys"`
	Stores  []string      `json:"stores"`
	Peers   []string      `json:"peers"`
	Etcd    *externalEtcd `json:"etcd,omitempty"`
}

// serve answers the other machines, until ctx ends. An address that is not there yet is waited for.
func (s *session) serve(ctx context.Context) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+joinPath, s.answer(s.admit))
	mux.HandleFunc("POST "+renewPath, s.answer(s.renewFor))
	mux.HandleFunc("POST "+authorityPath, s.answer(s.giveAuthority))
	for ctx.Err() == nil {
		l, err := net.Listen("tcp", s.part.at(0))
		if err == nil {
			server := &http.Server{Handler: mux, TLSConfig: s.tls().Server(true), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: rpcTimeout,
				WriteTimeout: 2 * rpcTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
			ended := context.AfterFunc(ctx, func() { server.Close() })
			err = server.ServeTLS(l, "", "")
			ended()
		}
		if ctx.Err() == nil {
			s.Log.Warn("other machines are not answered; it is tried again", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

// answer wraps what answers: with bytes, or an error of the API.
func (s *session) answer(f func(r *http.Request, body []byte) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var out any
		if err == nil {
			out, err = f(r, body)
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			var known *api.Error
			if !errors.As(err, &known) {
				known = api.Errorf(api.Internal, "cluster", "%w", err)
			}
			w.WriteHeader(known.Code.HTTPStatus())
			out = api.ErrorBody{Error: known}
		}
		_ = json.NewEncoder(w).Encode(out) // who does not listen any more has no use for an error
	}
}

// admit lets a machine join that has a token.
func (s *session) admit(r *http.Request, body []byte) (any, error) {
	var q joinRequest
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, api.Errorf(api.Invalid, "join", "%w", err)
	}
	if id, err := hex.DecodeString(q.Node); err != nil || len(id) != idBytes {
		return nil, api.FieldError("join", "node", q.Node, "is no ID of a machine", fmt.Sprintf("%d hexadecimal digits", 2*idBytes))
	}
	if q.Name == "" || len(q.Name) > 253 || !q.Address.IsValid() || q.Port == 0 {
		return nil, api.FieldError("join", "name", q.Name, "comes without a name, address or port", "all three")
	}
	if !s.part.authority.CanSign() {
		return s.passOn(r.Context(), body)
	}
	token, err := pki.ParseToken(q.Token)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "join", "%w", err)
	}
	if err := s.checkToken(r.Context(), token); err != nil {
		return nil, err
	}
	cert, err := s.part.authority.Sign(q.Request, q.Node, time.Now())
	if err != nil {
		return nil, api.Errorf(api.Invalid, "join", "%w", err)
	}
	m := Machine{ID: q.Node, Name: q.Name, Address: q.Address, Port: q.Port, Cert: cert.Raw}
	if err := s.putMachine(r.Context(), m); err != nil {
		return nil, err
	}
	s.Log.Info("a machine joins the cluster", "node", q.Name, "address", q.Address)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.part
	return joinAnswer{Cluster: p.Cluster, ID: p.ID, Cert: cert.Raw, Keys: p.Keys, Stores: p.Stores, Etcd: p.Etcd,
		Peers: append([]string{p.at(gossipPort)}, p.Peers...)}, nil
}

// putMachine notes a machine in the store. Names are told apart; the same machine may come again.
func (s *session) putMachine(ctx context.Context, m Machine) error {
	noun := fmt.Sprintf("node %q", m.Name)
	kvs, _, err := s.store.Get(ctx, nodePrefix)
	if err != nil {
		return unavailable(noun, err)
	}
	cond := agreed.Cond{Key: nodePrefix + m.ID}
	for _, kv := range kvs {
		var o Machine
		if err := json.Unmarshal(kv.Value, &o); err != nil {
			continue
		}
		switch {
		case kv.Key == cond.Key:
			cond.Revision = kv.Revision
		case o.Name == m.Name:
			return api.Errorf(api.Conflict, noun, "another machine of the cluster has that name (%s); start seined with another --node, or remove that one", o.Address)
		case o.Address == m.Address && o.Port == m.Port:
			return api.Errorf(api.Conflict, noun, "%s, port %d, is the address of node %q; want one of its own", m.Address, m.Port, o.Name)
		}
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = s.store.Txn(ctx, []agreed.Cond{cond}, []agreed.Op{{Key: cond.Key, Value: data}})
	return unavailable(noun, err)
}

// unavailable makes an error of the store one of the API.
func unavailable(noun string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, agreed.ErrUnavailable):
		return api.Errorf(api.Unavailable, noun, "%w", err)
	case errors.Is(err, agreed.ErrConflict):
		return api.Errorf(api.Stale, noun, "%w; try again", err)
	}
	return api.Errorf(api.Internal, noun, "%w", err)
}

// passOn asks a machine that can sign.
func (s *session) passOn(ctx context.Context, body []byte) (any, error) {
	var out json.RawMessage
	return out, s.askSigner(ctx, joinPath, body, &out)
}

// askSigner asks the machines that have the authority's key, one after the other: those with a member of the store.
func (s *session) askSigner(ctx context.Context, path string, body []byte, out any) error {
	kvs, _, err := s.store.Get(ctx, memberPrefix)
	if err != nil {
		return unavailable("cluster", err)
	}
	last := api.Errorf(api.Unavailable, "cluster", "no machine that can sign certificates answers")
	for _, kv := range kvs {
		id := kv.Key[len(memberPrefix):]
		s.mu.Lock()
		m, ok := s.machines[id]
		s.mu.Unlock()
		if !ok || id == s.part.Node {
			continue
		}
		err := ask(ctx, s.tls().Client(id), "https://"+m.at(0)+path, body, out)
		var known *api.Error
		if err == nil || errors.As(err, &known) && known.Code != api.Unavailable {
			return err
		}
		last = api.Errorf(api.Unavailable, "cluster", "%w", err)
	}
	return last
}

// renewFor gives a machine a new certificate for the ID that its present one has.
func (s *session) renewFor(r *http.Request, body []byte) (any, error) {
	id, err := s.caller(r)
	if err != nil {
		return nil, err
	}
	if !s.part.authority.CanSign() {
		return nil, api.Errorf(api.Unavailable, "cluster", "this machine can't sign certificates")
	}
	var request []byte
	if err := json.Unmarshal(body, &request); err != nil {
		return nil, api.Errorf(api.Invalid, "renewal", "%w", err)
	}
	cert, err := s.part.authority.Sign(request, id, time.Now())
	if err != nil {
		return nil, api.Errorf(api.Invalid, "renewal", "%w", err)
	}
	return cert.Raw, nil
}

// giveAuthority gives the authority's key to a machine that is to have a member of the store.
func (s *session) giveAuthority(r *http.Request, _ []byte) (any, error) {
	id, err := s.caller(r)
	if err != nil {
		return nil, err
	}
	kv, err := agreed.Get1(r.Context(), s.store, memberPrefix+id)
	if err != nil {
		return nil, unavailable("cluster", err)
	}
	if kv.Revision == 0 || !s.part.authority.CanSign() {
		return nil, api.Errorf(api.Conflict, "cluster", "node %q is to have no member of the store", id)
	}
	return s.part.authority.EncodePEM(true)
}

// caller gives the ID of the machine that asks.
func (s *session) caller(r *http.Request) (string, error) {
	if id := pki.PeerID(*r.TLS); id != "" && s.isMember(id) {
		return id, nil
	}
	return "", api.Errorf(api.Invalid, "cluster", "only machines of the cluster may ask that; want a certificate")
}

// ask asks another machine.
func ask(ctx context.Context, t *tlsConfig, url string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
	defer cancel()
	tr := &http.Transport{TLSClientConfig: t, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r, err := (&http.Client{Transport: tr}).Do(q)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	data, err := io.ReadAll(io.LimitReader(r.Body, 16*maxBody))
	if err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		var e api.ErrorBody
		if json.Unmarshal(data, &e) == nil && e.Error != nil {
			return e.Error
		}
		return fmt.Errorf("%s: %s", url, r.Status)
	}
	return json.Unmarshal(data, out)
}

// askToJoin has a machine of the cluster let this one in, and makes its part of the answer.
func (n *Node) askToJoin(ctx context.Context, q api.ClusterJoin, p *part) error {
	token, err := pki.ParseToken(q.Token)
	if err != nil {
		return api.Errorf(api.Invalid, "join", "%w", err)
	}
	key, err := pki.NewKey()
	if err != nil {
		return err
	}
	request, err := pki.Request(key)
	if err != nil {
		return err
	}
	body, err := json.Marshal(joinRequest{Token: q.Token, Request: request, Node: p.Node, Name: n.Name, Address: p.Address, Port: p.Port})
	if err != nil {
		return err
	}
	t := token.JoinClient(nil)
	check := t.VerifyConnection
	t.VerifyConnection = func(c tlsState) error {
		if err := check(c); err != nil {
			return err
		}
		var err error
		p.authority, err = token.AuthorityOf(c, nil)
		return err
	}
	var a joinAnswer
	if err := ask(ctx, t, "https://"+q.Address+joinPath, body, &a); err != nil {
		var known *api.Error
		if errors.As(err, &known) {
			return err
		}
		return api.Errorf(api.Unavailable, "join", "%s: %w", q.Address, err)
	}
	cert, err := x509.ParseCertificate(a.Cert)
	if err != nil {
		return api.Errorf(api.Internal, "join", "the answer: %w", err)
	}
	if _, err := p.authority.SignerOf(a.Cert, p.Node); err != nil {
		return api.Errorf(api.Internal, "join", "the answer: %w", err)
	}
	p.Cluster, p.ID, p.Keys, p.Stores, p.Peers, p.Etcd = a.Cluster, a.ID, a.Keys, a.Stores, a.Peers, a.Etcd
	p.identity = &pki.Identity{Cert: cert, Key: key}
	return nil
}
