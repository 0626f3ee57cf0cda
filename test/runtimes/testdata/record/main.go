// Command record stands for a CNI plugin: it runs the real one of its name, hands everything on and adds a line about
// the call to a log. The file "record" beside it has the folder of the real plugins and the log's path, a line each.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	here, name := filepath.Split(os.Args[0])
	conf, err := os.ReadFile(filepath.Join(here, "record"))
	check(err)
	where := strings.Split(string(conf), "\n")
	in, err := io.ReadAll(os.Stdin)
	check(err)
	cmd := exec.Command(filepath.Join(where[0], name), os.Args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), io.MultiWriter(&out, os.Stdout), io.MultiWriter(&errs, os.Stderr)
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) {
		check(err)
	}
	call := map[string]any{"plugin": name, "stdin": string(in), "out": out.String(), "err": errs.String(), "code": cmd.ProcessState.ExitCode()}
	for _, v := range []string{"COMMAND", "CONTAINERID", "NETNS", "IFNAME", "ARGS", "PATH"} {
		call[strings.ToLower(v)] = os.Getenv("CNI_" + v)
	}
	line, err := json.Marshal(call)
	check(err)
	f, err := os.OpenFile(where[1], os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	check(err)
	_, err = f.Write(append(line, '\n'))
	check(err)
	os.Exit(cmd.ProcessState.ExitCode())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
