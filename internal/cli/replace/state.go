package replace

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// state is what is at a path.
type state struct {
	// Kind is "file" or "link", "" for anything else.
	Kind string `json:"kind"`
	// Sum is the SHA-256 of a file, Link the target of a link.
	Sum  string `json:"sha256,omitempty"`
	Link string `json:"link,omitempty"`
	Size int64  `json:"size"`
	Mode uint32 `json:"mode"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	// Changed is the time of modification.
	Changed time.Time `json:"mtime"`
	info    fs.FileInfo
}

// look gives what is at a path; nil for nothing.
func look(path string) (*state, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &state{Size: info.Size(), Mode: uint32(info.Mode()), Changed: info.ModTime().UTC(), info: info}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.UID, s.GID = st.Uid, st.Gid
	}
	switch {
	case info.Mode().IsRegular():
		s.Kind = "file"
		s.Sum, err = sum(path)
	case info.Mode().Type() == fs.ModeSymlink:
		s.Kind = "link"
		s.Link, err = os.Readlink(path)
	}
	return s, err
}

func sum(path string) (string, error) {
	r, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// identity says what something is, whoever put it there.
func (s *state) identity() string { return s.Kind + " " + s.Sum + s.Link }

func (s *state) mode() fs.FileMode {
	if s.Kind == "link" {
		return 0 // it has none
	}
	return fs.FileMode(s.Mode)
}

// sameFile reports whether it is the very file at path, by another name.
func (s *state) sameFile(path string) bool {
	other, err := os.Lstat(path)
	return err == nil && os.SameFile(s.info, other)
}

// equal reports whether it is as other was, as far as a manifest tells.
func (s *state) equal(other *state) bool {
	return s != nil && other != nil && s.identity() == other.identity() && s.Mode == other.Mode && s.UID == other.UID &&
		s.GID == other.GID && s.Changed.Equal(other.Changed)
}

// String describes it for people; "" for nothing.
func (s *state) String() string {
	switch {
	case s == nil:
		return ""
	case s.Kind == "link":
		return "link to " + s.Link
	case s.Kind == "file":
		return fmt.Sprintf("file of %d bytes, sha256 %.12s", s.Size, s.Sum)
	}
	return "neither file nor link"
}

func (x File) identity() string {
	if x.Link != "" {
		return "link " + x.Link
	}
	h := sha256.Sum256(x.Data)
	return "file " + hex.EncodeToString(h[:])
}

// String describes it as what is put there is described.
func (x File) String() string {
	if x.Link != "" {
		return "link to " + x.Link
	}
	h := sha256.Sum256(x.Data)
	return fmt.Sprintf("file of %d bytes, sha256 %.12s", len(x.Data), hex.EncodeToString(h[:]))
}
