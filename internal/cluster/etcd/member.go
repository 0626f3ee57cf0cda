package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// MemberConfig is what a member is started with.
type MemberConfig struct {
	// Name is the node's ID.
	Name string `json:"name"`
	// Dir keeps the member's data.
	Dir string `json:"dir"`
	// ClientURL and PeerURL are where the others find it; it listens there.
	ClientURL string `json:"clientURL"`
	PeerURL   string `json:"peerURL"`
	// Initial lists the members of the cluster at the start, NAME=PEERURL with commas; it counts while Dir is empty.
	Initial string `json:"initial"`
	// Existing says that Initial is of a cluster that runs already, which this member was added to.
	Existing bool `json:"existing"`
	// Cert, Key, CA and CRL are files. The certificate is read at each connection, so it may be renewed. CRL, where set,
	// lists certificates that are no longer valid.
	Cert, Key, CA string
	CRL           string `json:"crl,omitempty"`
	// ServerName is in the certificate of every member.
	ServerName string `json:"serverName"`
}

// The limits of a member. What a cluster agrees on is small: some thousands of definitions and leases.
const (
	quotaBytes  = 1 << 30
	keepHistory = "1000" // revisions; a watch that is further behind begins anew
	readyIn     = 2 * time.Minute
)

// RunMember is the process of a member: it reads its configuration from in, runs until ctx ends or in does, which is when
// the daemon is gone, and writes a line with "ready" to out when it serves.
func RunMember(ctx context.Context, in io.Reader, out io.Writer) error {
	var c MemberConfig
	d := json.NewDecoder(in)
	if err := d.Decode(&c); err != nil {
		return fmt.Errorf("member: configuration: %w", err)
	}
	gone := make(chan struct{})
	go func() { // ends with the process at the latest
		_, _ = io.Copy(io.Discard, in)
		close(gone)
	}()
	cfg, err := c.embed()
	if err != nil {
		return err
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("member: %w", err)
	}
	defer e.Close()
	ready := e.Server.ReadyNotify()
	limit := time.After(readyIn)
	for {
		select {
		case <-ready:
			ready, limit = nil, nil
			if _, err := fmt.Fprintln(out, "ready"); err != nil {
				return err
			}
		case <-limit:
			return errors.New("member: the others were not found in time")
		case err := <-e.Err():
			return fmt.Errorf("member: %w", err)
		case <-e.Server.StopNotify(): // it was removed
			return errors.New("member: etcd ended")
		case <-gone:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *MemberConfig) embed() (*embed.Config, error) {
	client, err1 := url.Parse(c.ClientURL)
	peer, err2 := url.Parse(c.PeerURL)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("member: %w", err)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("member: %w", err)
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = c.Name, c.Dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = c.Initial
	cfg.ClusterState = embed.ClusterStateFlagNew
	if c.Existing {
		cfg.ClusterState = embed.ClusterStateFlagExisting
	}
	info := transport.TLSInfo{CertFile: c.Cert, KeyFile: c.Key, TrustedCAFile: c.CA, CRLFile: c.CRL, ClientCertAuth: true,
		// Nodes are told apart by the authority that signed them, not by their addresses, which change.
		ServerName: c.ServerName, AllowedHostnames: []string{c.ServerName}, SkipClientSANVerify: true}
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = info, info
	cfg.QuotaBackendBytes = quotaBytes
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModeRevision, keepHistory
	cfg.MaxLearners = 1
	cfg.InitialElectionTickAdvance = true
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger())
	return cfg, nil
}

// logger writes what etcd has to complain about to standard error, where the daemon reads it.
func logger() *zap.Logger {
	enc := zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "msg", LevelKey: "level", EncodeLevel: zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder})
	return zap.New(zapcore.NewCore(enc, zapcore.AddSync(os.Stderr), zapcore.WarnLevel))
}
