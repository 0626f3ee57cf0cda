package docker

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Plugins finds plugins and calls them.
type Plugins struct {
	// Sockets is the folder of sockets, Specs those of .spec and .json files.
	Sockets string
	Specs   []string
	// Timeout bounds one call; Docker itself waits for good.
	Timeout time.Duration
	// Pauses are those between tries to connect: a plugin may be about to be started.
	Pauses []time.Duration

	mu     sync.Mutex
	active map[string][]string // what each plugin that was activated implements
}

// NewPlugins makes Plugins that look where Docker does.
func NewPlugins() *Plugins {
	return &Plugins{Sockets: "/run/docker/plugins", Specs: []string{"/etc/docker/plugins", "/usr/lib/docker/plugins"},
		Timeout: 30 * time.Second, Pauses: []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second}, active: map[string][]string{}}
}

// maxAnswer is the size of an answer in bytes.
const maxAnswer = 1 << 20

// accept is what Docker says that it speaks.
const accept = "application/vnd.docker.plugins.v1.2+json"

// Errors of call.
var (
	// errUnsent says that nothing was sent: the plugin knows nothing of the call.
	errUnsent = errors.New("can't be reached")
	// errSaid says that the plugin answered, and what it says: it did not do what it was asked.
	errSaid = errors.New("says")
	// errMethod says that the plugin has no such method.
	errMethod = errors.New("has no such method")
)

// address is where a plugin is.
type address struct {
	network, host string // for net.Dial
	tls           *tls.Config
}

// find gives where a plugin is, in Docker's order.
func (p *Plugins) find(name string) (address, error) {
	if err := checkName(name); err != nil {
		return address{}, err
	}
	for _, path := range []string{filepath.Join(p.Sockets, name+".sock"), filepath.Join(p.Sockets, name, name+".sock")} {
		if st, err := os.Stat(path); err == nil && st.Mode()&fs.ModeSocket != 0 {
			return address{network: "unix", host: path}, nil
		}
	}
	for _, dir := range p.Specs {
		for _, base := range []string{filepath.Join(dir, name), filepath.Join(dir, name, name)} {
			for ext, read := range map[string]func([]byte) (address, error){".spec": readSpec, ".json": readJSON} {
				file, err := os.Open(base + ext)
				if err != nil {
					continue
				}
				text, err := io.ReadAll(io.LimitReader(file, maxAnswer))
				file.Close()
				if err == nil {
					var a address
					if a, err = read(text); err == nil {
						return a, nil
					}
				}
				return address{}, fmt.Errorf("%s: %w", base+ext, err)
			}
		}
	}
	return address{}, fmt.Errorf("%w: there is no %s.sock in %s and no %s.spec or .json in %s", errUnsent, name, p.Sockets, name, strings.Join(p.Specs, " or "))
}

func checkName(name string) error {
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("name %q is none of a plugin's", name)
	}
	return nil
}

func readSpec(text []byte) (address, error) { return parseAddr(strings.TrimSpace(string(text)), nil) }

func readJSON(text []byte) (address, error) {
	var f struct {
		Addr      string
		TLSConfig *struct {
			InsecureSkipVerify        bool
			CAFile, CertFile, KeyFile string
		}
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return address{}, err
	}
	if f.TLSConfig == nil {
		return parseAddr(f.Addr, nil)
	}
	c := &tls.Config{InsecureSkipVerify: f.TLSConfig.InsecureSkipVerify}
	if file := f.TLSConfig.CAFile; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return address{}, err
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return address{}, fmt.Errorf("%s has no certificate", file)
		}
	}
	if f.TLSConfig.CertFile != "" || f.TLSConfig.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(f.TLSConfig.CertFile, f.TLSConfig.KeyFile)
		if err != nil {
			return address{}, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return parseAddr(f.Addr, c)
}

// parseAddr reads unix://PATH, tcp://HOST:PORT, http://HOST:PORT and https://HOST:PORT.
func parseAddr(s string, c *tls.Config) (address, error) {
	const want = "want unix:///PATH, tcp://HOST:PORT or https://HOST:PORT"
	u, err := url.Parse(s)
	if err != nil {
		return address{}, fmt.Errorf("address %q: is none; %s", s, want)
	}
	switch {
	case u.Scheme == "unix" && filepath.IsAbs(u.Path) && u.Host == "":
		return address{network: "unix", host: u.Path}, nil
	case (u.Scheme == "tcp" || u.Scheme == "http" || u.Scheme == "https") && u.Port() != "" && strings.Trim(u.Path, "/") == "":
		if u.Scheme == "https" && c == nil {
			c = &tls.Config{}
		}
		if c != nil && c.ServerName == "" {
			c.ServerName = u.Hostname()
		}
		return address{network: "tcp", host: u.Host, tls: c}, nil
	}
	return address{}, fmt.Errorf("address %q: can't be used; %s", s, want)
}

// activate has a plugin say what it implements, once.
func (p *Plugins) activate(ctx context.Context, name, subsystem string) error {
	p.mu.Lock()
	has, known := p.active[name]
	p.mu.Unlock()
	if !known || !slices.Contains(has, subsystem) {
		var out struct{ Implements []string }
		if err := p.call(ctx, name, "Plugin.Activate", nil, &out); err != nil {
			return err
		}
		has = out.Implements
		p.mu.Lock()
		p.active[name] = has
		p.mu.Unlock()
	}
	if !slices.Contains(has, subsystem) {
		return fmt.Errorf("plugin %q is no %s: it implements %q", name, subsystem, has)
	}
	return nil
}

// call makes one call. A plugin that can't be reached is tried again a few times; nothing is ever sent twice.
func (p *Plugins) call(ctx context.Context, name, method string, in, out any) error {
	fail := func(err error) error { return fmt.Errorf("plugin %q: %s: %w", name, method, err) }
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fail(err)
		}
	}
	for try := 0; ; try++ {
		err := p.once(ctx, name, method, body, out)
		if !errors.Is(err, errUnsent) || try == len(p.Pauses) || ctx.Err() != nil {
			if err != nil {
				return fail(err)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fail(err)
		case <-time.After(p.Pauses[try]):
		}
	}
}

func (p *Plugins) once(ctx context.Context, name, method string, body []byte, out any) error {
	at, err := p.find(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	scheme := "http"
	if at.tls != nil {
		scheme = "https"
	}
	t := &http.Transport{DisableKeepAlives: true, TLSClientConfig: at.tls, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, at.network, at.host)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnsent, err)
		}
		return c, nil
	}}
	c := http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	host := "plugin.moby.localhost"
	if at.network == "tcp" {
		host = at.host
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, scheme+"://"+host+"/"+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	// The transport would send a request again, if it could get at its body again.
	r.GetBody = nil
	r.Header.Set("Accept", accept)
	a, err := c.Do(r)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the address says nothing
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("did not answer within %s: %w", p.Timeout, err)
		}
		return err
	}
	defer a.Body.Close()
	text, err := io.ReadAll(io.LimitReader(a.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("its answer breaks off: %w", err)
	}
	if len(text) > maxAnswer {
		return fmt.Errorf("its answer is longer than %d bytes", maxAnswer)
	}
	return read(a.StatusCode, text, out)
}

// read takes an answer apart. The network driver's errors are in Err, the IPAM driver's in Error.
func read(status int, text []byte, out any) error {
	var said struct{ Err, Error string }
	err := json.Unmarshal(text, &said)
	switch {
	case status == http.StatusNotFound:
		return errMethod
	case said.Err+said.Error != "":
		return fmt.Errorf("%w: %.500s", errSaid, cmp.Or(said.Err, said.Error))
	case status != http.StatusOK:
		return fmt.Errorf("%w: status %d: %.500q", errSaid, status, text)
	case err == nil && out != nil:
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		return fmt.Errorf("its answer is not as specified: %w", err)
	}
	return nil
}

// done says that a plugin did not do what it was asked, for sure: there is nothing to take back.
func undone(err error) bool {
	return errors.Is(err, errUnsent) || errors.Is(err, errSaid) || errors.Is(err, errMethod)
}

// forgotten makes success of an answer that says that what is to be removed is not there.
func forgotten(err error) error {
	if !errors.Is(err, errSaid) {
		return err
	}
	text := strings.ToLower(err.Error())
	for _, s := range []string{"not found", "no such", "does not exist", "not exist", "unknown", "not known", "is not docker's"} {
		if strings.Contains(text, s) {
			return nil
		}
	}
	return err
}

// or404 makes success of a method that is not there.
func or404(err error) error {
	if errors.Is(err, errMethod) {
		return nil
	}
	return err
}
