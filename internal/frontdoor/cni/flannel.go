package cni

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// flannel is the plugin "flannel": it makes a configuration from what flanneld wrote about this node's subnet, and has
// another plugin, bridge if none is named, do the rest. That runs in this process where it is one of ours.
//
//	subnet.env ─┐
//	delegate ───┼─► configuration of the delegate ─► dataDir/CONTAINER (for DEL, see flannelstate.go)
//	ipam ───────┘                  └─► its add, del, check, gc, status
type flannel struct{}

// flannelConf is the configuration of the plugin "flannel".
type flannelConf struct {
	SubnetFile    string                     `json:"subnetFile"`
	DataDir       string                     `json:"dataDir"`
	Delegate      map[string]json.RawMessage `json:"delegate"`
	IPAM          map[string]json.RawMessage `json:"ipam"`
	RuntimeConfig json.RawMessage            `json:"runtimeConfig"`
}

// flannelCall is a request to flannel, validated.
type flannelCall struct {
	r    *request
	conf flannelConf
	// kind is the type of the delegate.
	kind string
}

// loadFlannel reads the configuration; on DEL and GC what is wrong in it is passed over.
func loadFlannel(r *request) (*flannelCall, error) {
	const subnetFile, dataDir = "/run/flannel/subnet.env", "/var/lib/cni/flannel"
	f := &flannelCall{r: r, conf: flannelConf{SubnetFile: subnetFile, DataDir: dataDir}, kind: "bridge"}
	err := decode(r.stdin, &f.conf)
	if err == nil {
		err = f.validate()
	}
	if r.verb != verbDel && r.verb != verbGC {
		return f, err
	}
	f.conf.SubnetFile, f.conf.DataDir = cmp.Or(f.conf.SubnetFile, subnetFile), cmp.Or(f.conf.DataDir, dataDir)
	return f, nil
}

func (f *flannelCall) validate() error {
	if f.conf.SubnetFile == "" {
		return invalid("subnetFile", "", "is empty", "the path of the file that flanneld writes, or no such key")
	}
	if f.conf.DataDir == "" {
		return invalid("dataDir", "", "is empty", "the path of a folder, or no such key")
	}
	for _, key := range []string{"name", "ipam"} {
		if raw, ok := f.conf.Delegate[key]; ok {
			return invalid("delegate."+key, string(raw), "is flannel's to set", map[string]string{"name": "none", "ipam": "the key ipam beside delegate"}[key])
		}
	}
	if raw, ok := f.conf.Delegate["type"]; ok {
		if err := json.Unmarshal(raw, &f.kind); err != nil || f.kind == "" || f.kind == "flannel" {
			f.kind = "bridge"
			return invalid("delegate.type", string(raw), "is no plugin that can do it", "the name of an interface plugin such as bridge")
		}
	}
	_, err := f.routes(nil)
	return err
}

// routes gives ipam.routes and behind them those to the networks.
func (f *flannelCall) routes(env *subnetEnv) ([]json.RawMessage, error) {
	var out []json.RawMessage
	if raw := f.conf.IPAM["routes"]; given(raw) {
		if err := decode(raw, &out); err != nil {
			return nil, fmt.Errorf("key %q: %w", "ipam.routes", err)
		}
	}
	if env != nil {
		for _, n := range env.networks {
			out = append(out, raw(map[string]any{"dst": n}))
		}
	}
	return out, nil
}

// raw is JSON of what can always be written as such.
func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("flannel: %T: %v", v, err)) // can't happen: strings, numbers and what was JSON
	}
	return b
}

// build makes the delegate's configuration. Without env, for DEL and GC, it is enough to find what was made.
func (f *flannelCall) build(env *subnetEnv) map[string]json.RawMessage {
	out := maps.Clone(f.conf.Delegate)
	if out == nil {
		out = map[string]json.RawMessage{}
	}
	set := func(key string, value any) {
		if _, ok := out[key]; !ok {
			out[key] = raw(value)
		}
	}
	out["name"], out["type"] = raw(f.r.conf.Name), raw(f.kind)
	if v := f.r.conf.CNIVersion; v != "" {
		out["cniVersion"] = raw(v)
	}
	if given(f.conf.RuntimeConfig) {
		out["runtimeConfig"] = f.conf.RuntimeConfig
	}
	// Who does not know looks for what may be there.
	set("ipMasq", env == nil || !env.ipMasq)
	if env != nil {
		set("mtu", env.mtu)
	}
	if f.kind == "bridge" {
		set("isGateway", true)
	}
	ipam := maps.Clone(f.conf.IPAM)
	if ipam == nil {
		ipam = map[string]json.RawMessage{}
	}
	if _, ok := ipam["type"]; !ok {
		ipam["type"] = raw("host-local")
	}
	if env != nil {
		var ranges [][]map[string]any
		for _, s := range env.subnets {
			ranges = append(ranges, []map[string]any{{"subnet": s}})
		}
		routes, _ := f.routes(env) // validated
		ipam["ranges"], ipam["routes"] = raw(ranges), raw(routes)
	}
	out["ipam"] = raw(ipam)
	return out
}

// delegate gives the plugin that does the rest and the request to it, with keys of this request added.
func (f *flannelCall) delegate(conf map[string]json.RawMessage) (plugin, *request, error) {
	conf = maps.Clone(conf)
	if given(f.r.conf.PrevResult) {
		conf["prevResult"] = f.r.conf.PrevResult
	}
	if f.r.verb == verbGC {
		conf["cni.dev/valid-attachments"] = f.r.conf.Valid
	}
	kind := f.kind
	_ = json.Unmarshal(conf["type"], &kind) // of a file of an earlier configuration
	q := *f.r
	q.stdin, q.conf, q.prev = raw(conf), netConf{}, nil
	if err := q.parse(); err != nil {
		return nil, nil, err
	}
	if p := plugins[kind]; p != nil && kind != "flannel" {
		return p, &q, nil
	}
	p := findProgram(&q, "delegate", kind)
	switch {
	case p.path != "":
	case f.r.verb == verbDel || f.r.verb == verbGC:
		fmt.Fprintf(f.r.host.Stderr, "delegate.type %q: no such plugin in CNI_PATH %q; what it made is not taken back\n", kind, f.r.path)
	default:
		return nil, nil, invalid("delegate.type", kind, "is no plugin that can be found", fmt.Sprintf("one of ours, or the name of a program in CNI_PATH (%s)", f.r.path))
	}
	return execPlugin{p}, &q, nil
}

func (flannel) add(ctx context.Context, r *request) (*Result, error) {
	f, err := loadFlannel(r)
	if err != nil {
		return nil, err
	}
	env, err := readSubnetEnv(f.conf.SubnetFile)
	if err != nil {
		return nil, err
	}
	conf := f.build(env)
	p, q, err := f.delegate(conf)
	if err != nil {
		return nil, err
	}
	undo, err := f.save(conf)
	if err != nil {
		return nil, err
	}
	res, err := p.add(ctx, q)
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	return res, nil
}

func (flannel) del(ctx context.Context, r *request) error {
	f, _ := loadFlannel(r)
	conf, path := f.saved()
	if conf == nil {
		env, _ := readSubnetEnv(f.conf.SubnetFile) // without it there is less to look for
		conf = f.build(env)
	}
	p, q, err := f.delegate(conf)
	if err != nil { // the file is of no use
		p, q, err = f.delegate(f.build(nil))
	}
	if err == nil {
		err = p.del(ctx, q)
	}
	if err == nil && path != "" {
		err = remove(path)
	}
	return err
}

func (flannel) check(ctx context.Context, r *request) error {
	f, err := loadFlannel(r)
	if err != nil {
		return err
	}
	if err := r.needPrev(); err != nil {
		return err
	}
	conf, _ := f.saved()
	if conf == nil {
		env, err := readSubnetEnv(f.conf.SubnetFile)
		if err != nil {
			return err
		}
		conf = f.build(env)
	}
	p, q, err := f.delegate(conf)
	if err != nil {
		return err
	}
	return p.check(ctx, q)
}

func (flannel) gc(ctx context.Context, r *request) error {
	valid, err := r.valid()
	if err != nil {
		return err
	}
	f, _ := loadFlannel(r)
	env, _ := readSubnetEnv(f.conf.SubnetFile)
	p, q, err := f.delegate(f.build(env))
	if err == nil {
		err = p.gc(ctx, q)
	}
	return errors.Join(err, f.prune(valid))
}

func (flannel) status(ctx context.Context, r *request) error {
	f, err := loadFlannel(r)
	if err != nil {
		return err
	}
	env, err := readSubnetEnv(f.conf.SubnetFile)
	if err != nil {
		return errorf(CodeUnavailable, "%w", err)
	}
	p, q, err := f.delegate(f.build(env))
	if err != nil {
		return err
	}
	return p.status(ctx, q)
}

// execPlugin is an interface plugin that is somebody else's program.
type execPlugin struct{ program }

func (e execPlugin) add(ctx context.Context, r *request) (*Result, error) {
	out, err := e.run(ctx, verbAdd, r.stdin)
	if err == nil {
		var res *Result
		if res, err = decodeResult(out, r.version); err == nil {
			return res, nil
		}
		err = fmt.Errorf("%s plugin %q: result: %w", e.kind, e.name, err)
	}
	// What it made before it failed is its to take back.
	return nil, errors.Join(err, e.del(context.WithoutCancel(ctx), r))
}

func (e execPlugin) del(ctx context.Context, r *request) error {
	_, err := e.run(ctx, verbDel, r.stdin)
	return err
}

func (e execPlugin) check(ctx context.Context, r *request) error {
	_, err := e.run(ctx, verbCheck, r.stdin)
	return err
}

func (e execPlugin) gc(ctx context.Context, r *request) error {
	_, err := e.run(ctx, verbGC, r.stdin)
	return tooOld(err)
}

func (e execPlugin) status(ctx context.Context, r *request) error {
	_, err := e.run(ctx, verbStatus, r.stdin)
	return tooOld(err)
}

// keep reports whether GC's list has an attachment; with ifname "" any of the container's.
func keep(valid []attachment, containerID, ifname string) bool {
	return slices.ContainsFunc(valid, func(a attachment) bool {
		return a.ContainerID == containerID && (ifname == "" || a.IfName == ifname)
	})
}
