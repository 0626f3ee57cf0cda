package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/api"
)

const (
	// netnsDir is where ip-netns(8) has its namespaces, so that `ip netns exec` can be used on ours as well.
	netnsDir   = "/run/netns"
	namePrefix = "seine-lab-"
)

// isNetns reports whether a path is a network namespace, and not only the file that one is to be mounted at.
func isNetns(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// newNetns makes an empty namespace in place of what has its name.
func newNetns(ctx context.Context, name string) error {
	if err := deleteNetns(name); err != nil {
		return err
	}
	return command(ctx, "network namespaces (CONFIG_NET_NS)", "", "ip", "netns", "add", name)
}

// deleteNetns takes a namespace's name away, mounted or not; with the last process in it the namespace ends.
func deleteNetns(name string) error {
	path := filepath.Join(netnsDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ip runs a script of ip(8) in a namespace. needs says what the kernel has to have for it.
func ip(ctx context.Context, needs, netns, script string) error {
	return command(ctx, needs, script, "ip", "-netns", netns, "-batch", "-")
}

// nft runs a script of nft(8) in a namespace.
func nft(ctx context.Context, netns, script string) error {
	return command(ctx, "nftables, for bridges too (CONFIG_NF_TABLES, CONFIG_NF_TABLES_BRIDGE)", script, "ip", "netns", "exec", netns, "nft", "-f", "-")
}

func command(ctx context.Context, needs, stdin, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return api.Errorf(api.Unsupported, "lab", "%s: %w: %s; it needs %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out), needs)
	}
	return nil
}

// enter puts the calling goroutine, which is bound to its thread for good, into a namespace.
func enter(netns string) error {
	runtime.LockOSThread()
	path := filepath.Join(netnsDir, netns)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace %q: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace %q: %w", path, err)
	}
	return nil
}

// forward has a namespace pass packets on.
func forward(netns string, families ...string) error {
	failed := make(chan error)
	go func() { // its thread ends with it
		err := enter(netns)
		for _, f := range families {
			if err == nil {
				err = os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0)
			}
		}
		failed <- err
	}()
	return <-failed
}
