package archtest

import (
	"slices"
	"testing"
)

// row says what a package (or, with "*" for a path segment, each of several) may import from this module. The most
// exact row counts. A pattern ending in "/..." stands for everything below.
type row struct {
	pkg string
	may []string
	// pure packages compute: they have no way to the kernel, the network, the clock or chance.
	pure bool
	// planned rows are about packages to come; the mark goes when the package comes.
	planned bool
	why     string
}

var (
	nouns  = []string{"api", "internal/kernel"}
	layers = []row{
		// 0: nouns
		{pkg: "api", why: "users hold it: it must not drag anything along"},
		{pkg: "internal/kernel", pure: true, why: "the words of all others; values that are compared and ordered"},
		// 1: mechanisms
		{pkg: "internal/kernel/fake", may: nouns, why: "a kernel in memory knows what a kernel knows, not who asks"},
		{pkg: "internal/kernel/kerneltest", may: nouns, why: "one suite for every kernel, so it names none"},
		{pkg: "internal/kernel/linux", may: nouns, why: "the one door to side effects decides nothing"},
		{pkg: "internal/desired", may: nouns, why: "a union of sets; it knows no owner's meaning"},
		{pkg: "internal/reconcile", may: with(nouns, "internal/desired"), why: "it makes the kernel hold what desired says, whatever that is"},
		{pkg: "internal/state", may: nouns, why: "it keeps nouns and never acts on them"},
		{pkg: "internal/ruleset", may: nouns, pure: true, why: "the shape of our nftables table, which drivers and addons fill"},
		{pkg: "internal/cluster", may: with(nouns[:1], "internal/cluster/agreed", "internal/cluster/blocks"), why: "it keeps definitions and leases in the store; the engine is told, not known"},
		{pkg: "internal/cluster/agreed", may: nil, why: "what a store of agreed truth is, and one in memory; it knows keys, not meaning"},
		{pkg: "internal/cluster/agreed/agreedtest", may: []string{"internal/cluster/agreed"}, why: "one suite for every such store"},
		{pkg: "internal/cluster/blocks", may: []string{"internal/cluster/agreed"}, why: "who holds which addresses is agreed; who has one of them is the engine's"},
		{pkg: "internal/cluster/etcd", may: []string{"internal/cluster/agreed"}, why: "one store of agreed truth; what is in it is not its business"},
		{pkg: "internal/cluster/node", may: with(nouns[:1], "internal/cluster", "internal/cluster/agreed", "internal/cluster/blocks", "internal/cluster/etcd",
			"internal/cluster/gossip", "internal/cluster/pki"), why: "it puts a machine's part together and lives it; the engine is told, not known"},
		{pkg: "internal/cluster/pki", why: "certificates and tokens; it opens and stores nothing"},
		{pkg: "internal/cluster/gossip", may: []string{"internal/cluster/gossip/table"}, why: "it spreads bytes that nodes announce; what they mean, and what is done about them, is for others"},
		{pkg: "internal/cluster/gossip/table", pure: true, why: "what two nodes have to tell each other is computed; clock, chance and sockets are package gossip's"},
		{pkg: "internal/cluster/gossip/gossiptest", why: "a network in memory knows nothing of what goes over it"},
		// 2: meaning
		{pkg: "internal/driver", may: with(nouns, "internal/ruleset"), pure: true, why: "what every driver gets and gives"},
		{pkg: "internal/driver/*", may: with(nouns, "internal/ruleset", "internal/driver"), pure: true, why: "a driver is replaced by deleting its folder: none may need another"},
		{pkg: "internal/driver/cni", may: with(nouns, "internal/driver"), why: "it runs CNI plugins, which are programs of others"},
		{pkg: "internal/driver/docker", may: with(nouns, "internal/driver"), why: "it calls Docker's plugins, which are programs of others"},
		{pkg: "internal/driver/drivertest", may: with(nouns, "internal/ruleset", "internal/driver", "internal/kernel/fake", "internal/reconcile"), why: "what every driver has to pass: its objects are made and removed on the fake kernel"},
		{pkg: "internal/addon", may: with(nouns, "internal/ruleset"), pure: true, why: "what every addon gets and gives"},
		{pkg: "internal/addon/*", may: with(nouns, "internal/ruleset", "internal/addon"), pure: true, why: "addons don't know each other or the drivers"},
		{pkg: "internal/fabric", may: with(nouns, "internal/ruleset"), pure: true, why: "what every fabric gets and gives"},
		{pkg: "internal/fabric/*", may: with(nouns, "internal/ruleset", "internal/fabric"), pure: true, why: "a fabric is replaced by deleting its folder: none may need another"},
		{pkg: "internal/fabric/udp", may: with(nouns, "internal/ruleset", "internal/fabric"), why: "its Runner carries packets: sockets, a device, goroutines; which peers there are is told to it"},
		{pkg: "internal/fabric/fabrictest", may: with(nouns, "internal/ruleset", "internal/fabric", "internal/desired", "internal/kernel/fake", "internal/reconcile"), why: "what every fabric has to pass: its objects are made and removed on the fake kernel"},
		{pkg: "internal/ipam/*", may: nouns, why: "addresses know nothing of interfaces"},
		{pkg: "internal/ipam/dhcp", may: with(nouns, "internal/ipam/dhcprpc"), why: "it answers what dhcprpc asks; the kernel and the store are given to it"},
		{pkg: "internal/dns", may: nouns, why: "names and answers; who is there is told to it"},
		{pkg: "internal/handover", why: "sockets that outlive a process, and the protocol of service managers; what is asked on them it does not know"},
		{pkg: "internal/loopback", may: nouns, why: "it carries bytes for published ports; which ones is told to it"},
		// 3: verbs
		{pkg: "internal/engine", may: with(nouns, "internal/desired", "internal/reconcile", "internal/state", "internal/ruleset",
			"internal/driver", "internal/fabric", "internal/addon", "internal/ipam/*"), why: "it orders the work and gets drivers, addons and the kernel as arguments"},
		// 4: doors
		{pkg: "internal/frontdoor/http", may: nouns[:1], why: "a door translates; it declares the engine it wants"},
		{pkg: "internal/frontdoor/http/fakeengine", may: []string{"api", "internal/frontdoor/http"}, why: "an engine in memory, for tests of the door, the client and the command line"},
		{pkg: "internal/frontdoor/docker", may: nouns[:1], why: "a door translates Docker's words; it declares the engine it wants"},
		{pkg: "internal/frontdoor/cni", may: with(nouns, "internal/ruleset", "internal/desired", "internal/reconcile", "internal/driver",
			"internal/driver/*", "internal/addon", "internal/addon/*", "internal/ipam/*"), why: "with no daemon it is its own engine, but the kernel comes from the program"},
		{pkg: "client", may: nouns[:1], why: "users import it: it must not drag anything along"},
		{pkg: "internal/cli", may: []string{"api", "client", "internal/cli/lab", "internal/cli/replace", "internal/cli/sandbox", "internal/frontdoor/docker"}, why: "the command line has no other way in than every user has; what Docker says it reads by the words of Docker's door"},
		{pkg: "internal/cli/lab", may: []string{"api", "client"}, why: "namespaces and daemons for seine lab; it asks the daemons as every user does"},
		{pkg: "internal/cli/replace", why: "files in place of others and back; it knows no plugins"},
		{pkg: "internal/cli/sandbox", why: "namespaces, mounts and processes for seine run; it knows no network"},
		// 5: wiring
		{pkg: "internal/builtin", may: []string{"internal/kernel", "internal/driver", "internal/driver/*", "internal/fabric", "internal/fabric/*", "internal/addon", "internal/addon/*", "internal/ipam/*"}, why: "the one list of what there is"},
		{pkg: "internal/app", may: []string{"..."}, why: "it puts the daemon together"},
		{pkg: "cmd/seine", may: []string{"api", "client", "internal/cli", "internal/cli/sandbox"}, why: "the command line must not grow the daemon's parts"},
		{pkg: "cmd/seined", may: []string{"internal/app"}, why: "a main is flags and one call"},
		{pkg: "cmd/seine-cni", may: []string{"api", "client", "internal/frontdoor/cni", "internal/kernel", "internal/kernel/linux"}, why: "it gives the CNI door a kernel; its start-up time is part of every ADD"},
		// beside the layers
		{pkg: "internal/testkit", may: with(nouns, "internal/kernel/fake", "internal/kernel/linux"), why: "namespaces that stand for hosts, for tests, benches and demos"},
		{pkg: "internal/archtest", why: "it reads the code, it does not run it"},
		{pkg: "hack/...", why: "what make calls must build when nothing else does"},
		{pkg: "bench/...", may: []string{"..."}, why: "a bench measures whatever there is"},
		{pkg: "test/...", may: []string{"..."}, why: "a story is about the whole"},
	}
	// What tests may import beyond what their package may: the fakes, the suites, the lab, and a real kernel.
	forTests = []string{"internal/kernel/fake", "internal/kernel/kerneltest", "internal/kernel/linux", "internal/testkit",
		"internal/driver/drivertest", "internal/fabric/fabrictest", "internal/cluster/agreed/agreedtest", "internal/cluster/gossip/gossiptest", "internal/cluster/pki", "internal/builtin",
		"internal/frontdoor/http", "internal/frontdoor/http/fakeengine"}
	// notPure is what a pure package has no use for.
	notPure = []string{"log", "log/slog", "math/rand", "math/rand/v2", "net", "net/http", "os", "os/exec", "sync", "syscall", "time"}
)

// light lists what must stay out of a program with all that it pulls in.
var light = []struct{ program, out, why string }{
	{"cmd/seine-cni", "go.etcd.io/bbolt", "it keeps no store of its own"},
	{"cmd/seine-cni", "github.com/miekg/dns", "names are the daemon's"},
	{"cmd/seine-cni", "net/http", "its start-up time is part of every ADD, and of every DEL"},
	{"cmd/seine-cni", "github.com/spf13/cobra", "it has no command line"},
	{"cmd/seine", "go.etcd.io/bbolt", "only the daemon opens the store"},
	{"cmd/seine", "github.com/miekg/dns", "names are the daemon's"},
	{"cmd/seine", "go.etcd.io/etcd/client/v3", "the daemon speaks to the cluster"},
	{"cmd/seine-cni", "go.etcd.io/etcd/client/v3", "the daemon speaks to the cluster"},
	{"cmd/seined", "github.com/spf13/cobra", "the daemon's flags are few"},
}

func with(a []string, b ...string) []string { return slices.Concat(a, b) }

func TestLayers(t *testing.T) {
	used := map[int]bool{}
	for _, p := range ours(t) {
		i := mostExact(p.rel)
		if i < 0 {
			t.Errorf("package %q is in no row of layers: say what it may import and why", p.rel)
			continue
		}
		used[i] = true
		r := layers[i]
		for _, imp := range p.own(p.Imports) {
			if !matches(imp, r.may) {
				t.Errorf("package %q imports %q; it may import %q: %s", p.rel, imp, r.may, r.why)
			}
		}
		for _, imp := range p.own(slices.Concat(p.TestImports, p.XTestImports)) {
			if imp != p.rel && !matches(imp, r.may) && !matches(imp, forTests) {
				t.Errorf("a test of package %q imports %q; it may import %q and %q: %s", p.rel, imp, r.may, forTests, r.why)
			}
		}
		for _, imp := range p.Imports {
			if r.pure && slices.Contains(notPure, imp) {
				t.Errorf("package %q imports %q but computes only: %s", p.rel, imp, r.why)
			}
		}
	}
	for i, r := range layers {
		switch {
		case !used[i] && !r.planned:
			t.Errorf("row %q of layers is about no package: remove it", r.pkg)
		case used[i] && r.planned:
			t.Errorf("row %q of layers is marked as planned, but the package is there: remove the mark", r.pkg)
		}
	}
}

// mostExact finds the row for a package: the one without patterns, or else the longest pattern.
func mostExact(pkg string) int {
	best := -1
	for i, r := range layers {
		if r.pkg == pkg {
			return i
		}
		if match(pkg, r.pkg) && (best < 0 || len(r.pkg) > len(layers[best].pkg)) {
			best = i
		}
	}
	return best
}

func TestLightPrograms(t *testing.T) {
	everything := map[string]bool{}
	deps := map[string][]string{}
	for _, p := range ours(t) {
		deps[p.rel] = p.Deps
		for _, d := range p.Deps {
			everything[d] = true
		}
	}
	for _, l := range light {
		if !everything[l.out] {
			t.Errorf("nothing imports %q any more: remove its rows", l.out)
		}
		if _, ok := deps[l.program]; !ok && !layers[mostExact(l.program)].planned {
			t.Errorf("there is no program %q any more: remove its rows", l.program)
		}
		if slices.Contains(deps[l.program], l.out) {
			t.Errorf("%s pulls in %q: %s (go mod why, or go list -deps, says by which way)", l.program, l.out, l.why)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pkg, pattern string
		want         bool
	}{
		{"api", "api", true},
		{"api/x", "api", false},
		{"internal/driver/bridge", "internal/driver/*", true},
		{"internal/driver", "internal/driver/*", false},
		{"internal/driver/a/b", "internal/driver/*", false},
		{"bench/a/b", "bench/...", true},
		{"bench", "bench/...", true},
		{"benches", "bench/...", false},
		{"anything/at/all", "...", true},
	} {
		if got := match(tt.pkg, tt.pattern); got != tt.want {
			t.Errorf("match(%q, %q) is %v, want %v", tt.pkg, tt.pattern, got, tt.want)
		}
	}
}
