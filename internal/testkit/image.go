package testkit

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
)

// BusyboxImage is a root file system as a tar archive, for `docker import`: the program busybox, which has to be linked
// statically, with links for some of its programs in /bin, and a page that says "hello" in /www.
func BusyboxImage() ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content []byte) error {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	if err := add(tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox); err != nil {
		return nil, err
	}
	for _, name := range []string{"sh", "ping", "wget", "httpd", "ip", "nslookup", "sleep"} {
		if err := add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil); err != nil {
			return nil, err
		}
	}
	if err := add(tar.Header{Name: "www/index.html", Mode: 0o644}, []byte("hello")); err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
}
