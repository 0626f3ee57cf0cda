#!/usr/bin/env bash
# bench.sh [NAME...]: runs the programs under bench/ (all of them by default) and lets them print their tables. Each is
# a figure that the README claims. They need root; they look for seine, seined and seine-cni in bin/. "gossip" is a test in
# virtual time that is too long for make test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$(id -u)" -eq 0 ] || { echo "bench: needs root: it makes network namespaces" >&2; exit 1; }
if [ $# -eq 0 ]; then set -- $(cd bench 2>/dev/null && ls -d */ | tr -d /) gossip; fi
[ $# -gt 0 ] || { echo "bench: there is none" >&2; exit 1; }
export PATH=$PWD/bin:$PATH
rc=0
for name; do
  if [ "$name" = gossip ]; then
    echo "== gossip"
    SEINE_BENCH=1 go test -count=1 -timeout 30m -v -run TestScale ./internal/cluster/gossip | grep -v '^=== ' || { rc=1; echo "bench: $name failed" >&2; }
    echo "== a thousand of Docker's networks"
    SEINE_BENCH=1 go test -count=1 -timeout 30m -v -run TestScale ./test/docker | grep -v '^=== ' || { rc=1; echo "bench: Docker's networks failed" >&2; }
    continue
  fi
  [ -e "bench/$name/main.go" ] || continue
  echo "== bench/$name"
  for part in "bench/$name"/*/main.go; do # programs that it starts
    [ ! -e "$part" ] || go build -ldflags '-s -w' -o "bin/bench-$name-$(basename "$(dirname "$part")")" "./$(dirname "$part")"
  done
  go build -o "bin/bench-$name" "./bench/$name" && "bin/bench-$name" || { rc=1; echo "bench: $name failed" >&2; }
done
exit $rc
