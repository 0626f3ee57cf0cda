#!/usr/bin/env bash
# record.sh [FOLDER]: makes testdata/*.golden anew, which say what the reference plugins do. As root.
#
# The plugins are built from their modules, in the versions below, or taken from FOLDER. Those configurations that need
# an ability of the kernel which many a machine lacks are recorded in the VM lab (hack/vm). See what changed with git diff.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
root=$(cd ../../.. && pwd)
plugins=github.com/containernetworking/plugins
version=v1.9.1
# sbr has keys that are in no release yet; flannel's plugin is a project of its own.
sbr=v1.9.2-0.20260413145558-3d27709faaa4
flannel=v1.9.1-flannel1

work=$(mktemp -d); trap 'rm -rf "$work" testdata/reference' EXIT
bin=${1:-$work/bin}
[ -z "${1:-}" ] || bin=$(cd "$1" && pwd)
build() { # VERSION PACKAGE
  GOBIN=$bin CGO_ENABLED=0 go install -ldflags "-s -w -X $plugins/pkg/utils/buildversion.BuildVersion=$1 \
    -X main.Version=$1 -X main.Program=flannel" "$2@$1"
}
if [ -z "${1:-}" ]; then
  build $version $plugins/plugins/...
  build $sbr $plugins/plugins/meta/sbr
  build $flannel github.com/flannel-io/cni-plugin && mv "$bin/cni-plugin" "$bin/flannel"
fi
go test -count=1 -timeout 30m . -reference "$bin"

# The lab takes testdata along and gives nothing back but what is printed.
cp -r "$bin" testdata/reference
CGO_ENABLED=0 go test -count=1 -timeout 30m -v -exec "$root/hack/vm/run.sh -m 1G --" . \
  -reference testdata/reference | tee "$work/log" | grep -v '^=== ' || true
tr -d '\r' <"$work/log" | awk '/^=== testdata/ { f = $2; printf "" >f; next } /^=== end/ { f = "" } f { print >f }'
