package testkit

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>BUS</listen><auth>EXTERNAL</auth><policy context="default"><allow send_destination="*"/>
<allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy></busconfig>`

// firewalldConfig leaves the kernel's modules alone.
const firewalldConfig = "DefaultZone=public\nFirewallBackend=nftables\nIndividualCalls=yes\nCleanupModulesOnExit=no\n"

// Firewalld runs a firewalld of its own in a namespace until the test ends, on a D-Bus of its own, whose address it
// gives. cli runs firewall-cmd with some words.
func Firewalld(t TB, n *NS) (bus string, cli func(args string) string) {
	t.Helper()
	Need(t, "program:dbus-daemon", "program:firewalld", "program:firewall-cmd")
	dir, err := os.MkdirTemp("", "seine-bus-") // a socket's path is short
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	bus = "unix:path=" + dir + "/bus"
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatalf("%v", err)
		}
	}
	for _, sub := range []string{"", "zones", "services", "policies", "ipsets", "icmptypes", "helpers"} {
		if err := os.MkdirAll(filepath.Join(dir, "etc", sub), 0o700); err != nil {
			t.Fatalf("%v", err)
		}
	}
	write("bus.conf", strings.Replace(busConfig, "BUS", bus, 1))
	write("etc/firewalld.conf", firewalldConfig)
	env := append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+bus)
	start := func(name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.Env = env
		if err := n.Start(cmd); err != nil {
			t.Fatalf("%v", err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
	await := func(what string, ok func() bool) {
		for end := time.Now().Add(time.Minute); !ok(); <-time.After(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s does not come up", what)
			}
		}
	}
	run := func(args string) (string, error) {
		return n.Exec(context.Background(), "env", append([]string{"DBUS_SYSTEM_BUS_ADDRESS=" + bus, "firewall-cmd"}, strings.Fields(args)...)...)
	}
	start("dbus-daemon", "--config-file="+dir+"/bus.conf", "--nofork", "--nopidfile")
	await("the bus", func() bool { _, err := os.Stat(dir + "/bus"); return err == nil })
	start("firewalld", "--nofork", "--nopid", "--system-config", dir+"/etc", "--log-file", dir+"/log")
	await("firewalld", func() bool { _, err := run("--state"); return err == nil })
	return bus, func(args string) string {
		t.Helper()
		out, err := run(args)
		if err != nil {
			t.Fatalf("firewall-cmd %s: %v: %s", args, err, out)
		}
		return strings.TrimSpace(out)
	}
}
