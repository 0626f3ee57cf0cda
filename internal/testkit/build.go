package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildProgram builds one of this module's programs, by its name below cmd, into a folder. It needs the compiler and the
// module's sources.
func BuildProgram(dir, program string) error {
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, program), "github.com/seine-net/seine/cmd/"+program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", program, err, out)
	}
	return nil
}

// BuildCNI builds seine-cni into a folder and puts it there under each of the names too, as on a node: links of both
// kinds, for either works.
func BuildCNI(dir string, names ...string) error {
	if err := BuildProgram(dir, "seine-cni"); err != nil {
		return err
	}
	link := os.Link
	for _, name := range names {
		if err := link(filepath.Join(dir, "seine-cni"), filepath.Join(dir, name)); err != nil {
			return err
		}
		link = os.Symlink
	}
	return nil
}
