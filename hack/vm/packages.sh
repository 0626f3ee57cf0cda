#!/usr/bin/env bash
# packages.sh: the Go packages whose tests belong into the VM lab, one per line: those that ask a kernel for what many
# a machine's kernel lacks.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' \
  ./test/vm ./internal/kernel/linux ./test/cni/cases
