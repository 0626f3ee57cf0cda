package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seine-net/seine/api"
	"github.com/seine-net/seine/internal/cli/replace"
)

func TestMergeDNS(t *testing.T) {
	servers := []string{"169.254.255.53", "fd5c::53"}
	const list = `["169.254.255.53", "fd5c::53"]`
	for _, c := range []struct{ was, now, others string }{
		{"", "{\n  \"dns\": " + list + "\n}\n", ""},
		{" \n", "{\n  \"dns\": " + list + "\n}\n", ""},
		{"{}", "{\n  \"dns\": " + list + "\n}", ""},
		{"{\n}\n", "{\n  \"dns\": " + list + "\n}\n", ""},
		{`{"a": 1}`, `{"a": 1, "dns": ` + list + `}`, ""},
		{"{\n\t\"log-driver\": \"local\",\n\t\"x\": {\"dns\": [1, 2.50, \"\\u00e9\"]}\n}\n", "{\n\t\"log-driver\": \"local\",\n\t\"x\": {\"dns\": [1, 2.50, \"\\u00e9\"]},\n\t\"dns\": " + list + "\n}\n", ""},
		{"{ \"b\": 1,\n  \"dns\": [\n    \"1.1.1.1\"\n  ], \"a\": 1e3 }\n", "{ \"b\": 1,\n  \"dns\": [\"169.254.255.53\", \"fd5c::53\", \"1.1.1.1\"], \"a\": 1e3 }\n", "1.1.1.1"},
		{`{"dns":[]}`, `{"dns":` + list + `}`, ""},
		{`{"dns":["fd5c::53","169.254.255.53"]}`, `{"dns":` + list + `}`, ""},
		{`{"dns": ` + list + `, "a":  0}`, `{"dns": ` + list + `, "a":  0}`, ""},
	} {
		now, others, err := mergeDNS([]byte(c.was), servers)
		if err != nil || string(now) != c.now || strings.Join(others, " ") != c.others {
			t.Errorf("%q became %q, %q, %v", c.was, now, others, err)
		}
		if !json.Valid(now) {
			t.Errorf("%q is no JSON", now)
		}
		if again, _, err := mergeDNS(now, servers); err != nil || string(again) != string(now) {
			t.Errorf("%q became %q the second time, %v", now, again, err)
		}
	}
	for was, why := range map[string]string{
		"# no\n{}": "is no JSON", "{": "is no JSON", "[]": "no object", "null": "no object", `"x"`: "no object", "{} {}": "is no JSON",
		`{"dns": "1.1.1.1"}`: `"dns" is no list`, `{"dns": [1]}`: `"dns" is no list`, `{"dns": [], "dns": []}`: "twice", `{"a": 1,}`: "is no JSON",
	} {
		if now, _, err := mergeDNS([]byte(was), servers); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q became %q, %v", was, now, err)
		}
	}
}

func FuzzMergeDNS(f *testing.F) {
	for _, s := range []string{"", "{}", `{"a": 1, "dns": ["1.1.1.1"]}`, "{\n  \"x\": {\"dns\": []}\n}\n", `{"dns": [], "dns": []}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		now, _, err := mergeDNS(text, []string{"169.254.255.53"})
		if err != nil {
			return
		}
		var was, is map[string]any
		if len(strings.TrimSpace(string(text))) > 0 {
			if err := json.Unmarshal(text, &was); err != nil {
				t.Fatalf("%q is no object and was taken", text)
			}
		}
		if err := json.Unmarshal(now, &is); err != nil {
			t.Fatalf("%q became %q: %v", text, now, err)
		}
		for k, v := range was {
			if a, b := fmt.Sprint(v), fmt.Sprint(is[k]); k != "dns" && a != b {
				t.Fatalf("%q: %q became %s", text, k, b)
			}
		}
		if got, _ := is["dns"].([]any); len(got) == 0 || got[0] != "169.254.255.53" {
			t.Fatalf("%q became %q", text, now)
		}
		if again, _, err := mergeDNS(now, []string{"169.254.255.53"}); err != nil || string(again) != string(now) {
			t.Fatalf("%q became %q the second time, %v", now, again, err)
		}
	})
}

// machineFiles makes the files of a machine with Docker, and gives its root.
func machineFiles(t *testing.T, config string) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"/etc/docker", "/etc/systemd/system", "/usr/lib/systemd/system"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, text string, mode fs.FileMode) {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	if config != "" {
		write(dockerConfig, config, 0o640)
	}
	write("/usr/lib/systemd/system/docker.service", "[Service]\nExecStart=/usr/sbin/dockerd -H fd:// --dns-search corp.example # not --dns\n", 0o644)
	return root
}

// tree is all of a folder that can be seen.
func tree(t *testing.T, root string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %s", strings.TrimPrefix(path, root), info.Mode())
		if !d.IsDir() {
			text, _ := os.ReadFile(path)
			line += fmt.Sprintf(" inode %d %s %q", info.Sys().(*syscall.Stat_t).Ino, info.ModTime(), text)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

const someConfig = "{\n  \"log-driver\": \"local\",\n  \"default-address-pools\": [{\"base\": \"10.0.0.0/8\", \"size\": 24}]\n}\n"

func TestDockerSetup(t *testing.T) {
	for name, config := range map[string]string{"new": "", "there": someConfig} {
		t.Run(name, func(t *testing.T) {
			root := machineFiles(t, config)
			before := tree(t, root)
			setup := func(args ...string) (int, string) {
				code, out, errs := command(t, append([]string{"docker", "setup", "--root", root, "--dns", "169.254.255.53", "--dns", "fd5c::53"}, args...)...)
				return code, out + errs
			}
			code, out := setup()
			want := "+   \"dns\": [\"169.254.255.53\", \"fd5c::53\"]\n"
			if code != 0 || !strings.Contains(out, want) || !strings.Contains(out, "Nothing was written") || !strings.Contains(out, "+ Wants=seined.service\n") || tree(t, root) != before {
				t.Errorf("shown is %d:\n%s\n%s", code, out, tree(t, root))
			}
			if code, out := setup("--yes"); code != 0 || !strings.Contains(out, "systemctl restart docker") {
				t.Fatalf("%d: %s", code, out)
			}
			text, err := os.ReadFile(filepath.Join(root, dockerConfig))
			var got map[string]any
			if err == nil {
				err = json.Unmarshal(text, &got)
			}
			if err != nil || fmt.Sprint(got["dns"]) != "[169.254.255.53 fd5c::53]" || config != "" && got["log-driver"] != "local" {
				t.Errorf("the configuration is %s (%v)", text, err)
			}
			if st, err := os.Stat(filepath.Join(root, dockerConfig)); config != "" && (err != nil || st.Mode() != 0o640) {
				t.Errorf("the configuration's mode is %v, %v", st.Mode(), err)
			}
			after := tree(t, root)
			if code, out := setup("--yes"); code != 0 || !strings.Contains(out, "is as it has to be") || tree(t, root) != after {
				t.Errorf("a second time: %d %s", code, out)
			}
			// Another address takes the place of the first one.
			if code, out, errs := command(t, "docker", "setup", "--root", root, "--dns", "169.254.0.9", "--yes"); code != 0 {
				t.Fatalf("%d: %s%s", code, out, errs)
			}
			if text, _ := os.ReadFile(filepath.Join(root, dockerConfig)); !strings.Contains(string(text), `"dns": ["169.254.0.9"]`) {
				t.Errorf("the configuration is %s", text)
			}
			changed := tree(t, root)
			if code, out := setup("--undo"); code != 0 || !strings.Contains(out, "Nothing was changed") || tree(t, root) != changed {
				t.Errorf("undo shows %d: %s", code, out)
			}
			if code, out := setup("--undo", "--yes"); code != 0 || tree(t, root) != before {
				t.Errorf("undo: %d %s, then\n%s\nwas\n%s", code, out, tree(t, root), before)
			}
			if code, out := setup("--undo", "--yes"); code != 0 || !strings.Contains(out, "nothing to do") {
				t.Errorf("undo again: %d %s", code, out)
			}
		})
	}
}

func TestDockerSetupRefuses(t *testing.T) {
	root := machineFiles(t, "# mine\n{}\n")
	before := tree(t, root)
	run := func(args ...string) (int, string) {
		code, out, errs := command(t, append([]string{"docker", "setup", "--root", root, "--yes"}, args...)...)
		return code, out + errs
	}
	is := func(what, want string, args ...string) {
		t.Helper()
		if code, out := run(args...); code == 0 || !strings.Contains(out, want) {
			t.Errorf("%s: %d %s", what, code, out)
		}
	}
	is("no JSON", "is no JSON", "--dns", "169.254.255.53")
	is("no address", "is no address", "--dns", "here")
	is("no daemon", "only seined knows", "--socket", filepath.Join(root, "none"))
	if now := tree(t, root); now != before {
		t.Errorf("something was changed:\n%s", now)
	}
	if err := os.WriteFile(filepath.Join(root, "/etc/systemd/system/docker.service"), []byte("[Service]\nExecStart=dockerd --dns=1.1.1.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	is("servers on the command line", "gives dockerd --dns", "--dns", "169.254.255.53")

	// What somebody wrote since is kept.
	root = machineFiles(t, someConfig)
	if code, out := run("--dns", "169.254.255.53"); code != 0 {
		t.Fatal(out)
	}
	mine := []byte(`{"dns": ["169.254.255.53"], "mine": true}`)
	if err := os.WriteFile(filepath.Join(root, dockerConfig), mine, 0o644); err != nil {
		t.Fatal(err)
	}
	is("a file that was changed", "changed since", "--undo")
	if text, err := os.ReadFile(filepath.Join(root, dockerConfig)); err != nil || string(text) != string(mine) {
		t.Errorf("the configuration is %s, %v", text, err)
	}
	if _, err := os.Stat(filepath.Join(root, dockerDropIn)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the other file was not taken back: %v", err)
	}

	root = machineFiles(t, `{"dns": ["192.0.2.1"]}`)
	if err := os.RemoveAll(filepath.Join(root, systemdUnits)); err != nil {
		t.Fatal(err)
	}
	code, out := run("--dns", "169.254.255.53")
	text, _ := os.ReadFile(filepath.Join(root, dockerConfig))
	if code != 0 || !strings.Contains(out, `asked ["192.0.2.1"] so far`) || !strings.Contains(out, "no systemd") || string(text) != `{"dns": ["169.254.255.53", "192.0.2.1"]}` {
		t.Errorf("with servers, without systemd: %d %s %s", code, out, text)
	}
}

// TestDockerSetupCrashes: it ends at each step, and then setup or undo goes on.
func TestDockerSetupCrashes(t *testing.T) {
	crash := errors.New("crash")
	for _, config := range []string{"", someConfig} {
		for _, then := range []string{"undo", "setup and undo"} {
			for _, ends := range []string{"setup", "undo"} {
				for at, done := 1, false; !done; at++ {
					root := machineFiles(t, config)
					before := tree(t, root)
					p := dockerPlaces{root, dockerConfig}
					step := 0
					dying := replace.Options{Step: func(string) error {
						if step++; step == at {
							return crash
						}
						return nil
					}}
					setup := func(o replace.Options) error {
						files, _, err := p.plan([]string{"169.254.255.53"})
						if err == nil {
							err = writeDocker(files, o)
						}
						return err
					}
					undo := func(o replace.Options) error { _, err := undoDocker(p, o); return err }
					var err error
					if ends == "setup" {
						err = setup(dying)
					} else if err = setup(replace.Options{}); err == nil {
						err = undo(dying)
					}
					if done = !errors.Is(err, crash); done && err != nil {
						t.Fatal(err)
					}
					if then != "undo" {
						if err := setup(replace.Options{}); err != nil {
							t.Fatalf("%s ended at step %d; setup: %v", ends, at, err)
						}
						if text, _ := os.ReadFile(filepath.Join(root, dockerConfig)); !strings.Contains(string(text), `"dns": ["169.254.255.53"]`) {
							t.Fatalf("%s ended at step %d; the configuration is %s", ends, at, text)
						}
					}
					if err := undo(replace.Options{}); err != nil {
						t.Fatalf("%s ended at step %d, then %s: %v", ends, at, then, err)
					}
					if now := tree(t, root); now != before {
						t.Fatalf("%s ended at step %d, then %s:\n%s\nwas\n%s", ends, at, then, now, before)
					}
				}
			}
		}
	}
}

// inspect is what Docker says about a network with a container, and one that has no equal.
const inspect = `[{"Name": "shop", "Id": "11", "Scope": "local", "Driver": "bridge", "IPAM": {"Config": [{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.254",
"IPRange": "10.77.0.128/25", "AuxiliaryAddresses": {"a": "10.77.0.5"}}, {"Subnet": "fd00:77::/64"}]}, "Internal": true, "Labels": {"k": "it's"},
"Options": {"com.docker.network.bridge.enable_icc": "false", "x": "y"}, "Containers": {"c1": {"Name": "web"}}},
{"Name": "swarm", "Id": "22", "Scope": "swarm", "Driver": "overlay", "IPAM": {"Config": []}}]`

func TestDockerImport(t *testing.T) {
	d := newDaemon(t)
	socket := filepath.Join(t.TempDir(), "d")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var all []json.RawMessage
	if err := json.Unmarshal([]byte(inspect), &all); err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/networks":
			_, _ = w.Write([]byte(`[{"Id": "11"}, {"Id": "22"}, {"Id": "33"}]`)) // 33 is removed meanwhile
		case "/networks/11":
			_, _ = w.Write(all[0])
		case "/networks/22":
			_, _ = w.Write(all[1])
		default:
			http.Error(w, `{"message": "no such network"}`, http.StatusNotFound)
		}
	})}}
	s.Start()
	t.Cleanup(s.Close)
	run := func(args ...string) (int, string) {
		code, out, errs := command(t, append([]string{"--socket", d.socket, "docker", "import", "--docker-api", socket}, args...)...)
		return code, out + errs
	}
	code, out := run()
	want := `NETWORK  DRIVER  SUBNETS                     HERE
shop     bridge  10.77.0.0/24, fd00:77::/64  would be made
swarm    -       -                           no equal
shop: -o x=y has no equal
swarm: it is a network of a swarm

# shop: its range is Docker's as long as Docker's network is there
docker network disconnect --force shop web
docker network rm shop
seine network create --driver bridge --subnet 10.77.0.0/24 --gateway 10.77.0.254 --ip-range 10.77.0.128/25 --reserve 10.77.0.5 --subnet fd00:77::/64 --internal --icc=false --label 'k=it'\''s' shop
docker network create --driver seine --ipam-driver seine --subnet 10.77.0.0/24 --gateway 10.77.0.254 --ip-range 10.77.0.128/25 --ipv6 --subnet fd00:77::/64 --internal --label 'k=it'\''s' --opt seine.network=shop shop
docker network connect shop web

Nothing was made; --yes makes what can be made now.
`
	if code != 0 || out != want {
		t.Errorf("%d:\n%s", code, out)
	}
	if code, out := run("shop", "nope"); code == 0 || !strings.Contains(out, `docker network "nope"`) {
		t.Errorf("a network that is not there: %d %s", code, out)
	}
	if code, out := run("--yes", "shop"); code != 0 || !strings.Contains(out, "  made\n") || strings.Contains(out, "docker network rm") {
		t.Errorf("%d: %s", code, out)
	}
	n, err := d.Network(context.Background(), "shop")
	if err != nil || len(n.Subnets) != 2 || n.Subnets[0].Range.String() != "10.77.0.128/25" || !n.Internal || n.ICCOn() || len(n.Subnets[0].Reserved) != 1 {
		t.Errorf("made is %+v, %v", n, err)
	}
	if code, out := run("--yes", "shop"); code != 0 || !strings.Contains(out, "is there already") {
		t.Errorf("a second time: %d %s", code, out)
	}
	// The commands say the same as what was made.
	line := strings.Split(want, "\n")[9]
	if err := d.DeleteNetwork(context.Background(), "shop", 0); err != nil {
		t.Fatal(err)
	}
	args := strings.Fields(strings.TrimPrefix(strings.Replace(line, `'k=it'\''s'`, "k=it's", 1), "seine "))
	if code, out, errs := command(t, append([]string{"--socket", d.socket}, args...)...); code != 0 {
		t.Fatalf("%s: %d %s%s", line, code, out, errs)
	}
	again, err := d.Network(context.Background(), "shop")
	if again.Meta, n.Meta = (api.Meta{Labels: again.Labels}), (api.Meta{Labels: n.Labels}); err != nil || fmt.Sprintf("%+v", *again.ICC) != fmt.Sprintf("%+v", *n.ICC) ||
		fmt.Sprintf("%+v", again.Subnets) != fmt.Sprintf("%+v", n.Subnets) || again.Labels["k"] != "it's" || again.Internal != n.Internal {
		t.Errorf("the command made %+v, not %+v (%v)", again, n, err)
	}
	// Another network has the name; a file in place of Docker.
	file := filepath.Join(t.TempDir(), "networks.json")
	if err := os.WriteFile(file, []byte(strings.Replace(inspect, "10.77.0", "10.78.0", -1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := command(t, "--socket", d.socket, "docker", "import", "--from", file, "--yes"); code != 4 || !strings.Contains(out, "another network has its name") {
		t.Errorf("%d: %s%s", code, out, errs)
	}
	if code, out, errs := command(t, "--socket", d.socket, "docker", "import", "--docker-api", filepath.Join(t.TempDir(), "none")); code == 0 || !strings.Contains(errs, "docker daemon") {
		t.Errorf("without Docker: %d %s%s", code, out, errs)
	}
}

// command runs a command line that need not have a daemon.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	out, errs := newWatched(), newWatched()
	code = Main(t.Context(), "v0.0.0-test", args, Streams{In: strings.NewReader(""), Out: out, Err: errs})
	return code, out.String(), errs.String()
}
