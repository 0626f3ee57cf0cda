#!/usr/bin/env bash
# test.sh: every test there is, each in the way it needs, and one sum at the end.
#   with the race detector   all packages
#   without it               packages with a test file that says "//go:build !race", once more
#   in the VM lab            test/vm, kernel/linux and what test/cni tells of every plugin, on a kernel that has every ability; where the lab is not to be
#                            had, test/vm runs here and skips what this kernel lacks
# SEINE_TEST_VM=0 leaves the VM lab out. TESTFLAGS are further flags for go test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
read -ra flags <<<"${TESTFLAGS:-}"
# -count=1: the tests of whole programs build these by themselves, which the cache of results does not see.
common=(-count=1 -timeout 10m -vet=off "${flags[@]}") # make test vets by itself
say() { echo "== $*"; }

race=(-race)
if ! command -v "${CC:-gcc}" >/dev/null; then
  say "NO C COMPILER: the tests run WITHOUT the race detector"
  race=()
fi
mapfile -t all < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...)
mapfile -t norace < <(grep -rlE --include='*_test.go' '^//go:build .*!race' . | xargs -r -n1 dirname | sort -u)

vm=()
if [ "${SEINE_TEST_VM:-1}" = 0 ]; then
  say "VM LAB LEFT OUT (SEINE_TEST_VM=0)"
else
  rc=0; hack/vm/setup.sh >/dev/null || rc=$?
  case $rc in
    0) mapfile -t all < <(printf '%s\n' "${all[@]}" | grep -v '/test/vm$')
       mapfile -t vm < <(hack/vm/packages.sh) ;;
    3) say "NO VM LAB: see above why; what only it can show is skipped" ;;
    *) say "the VM lab is broken: hack/vm/setup.sh ended with $rc"; exit 1 ;;
  esac
fi

runs=(-p 2 "${race[@]}" "${common[@]}" "${all[@]}")
[ ${#norace[@]} -eq 0 ] || [ ${#race[@]} -eq 0 ] || runs+=(-- "${common[@]}" "${norace[@]}")
if [ ${#vm[@]} -ne 0 ]; then
  # What is about numbers and not about abilities runs natively alone: the lab's processor is emulated.
  lab=(-- CGO_ENABLED=0 -p 2 -exec "$PWD/hack/vm/run.sh --" "${common[@]}" -skip '^Test(Many.*|ListOfMany|BigTransaction|Parallel)$')
  runs+=("${lab[@]}" "${vm[@]}" "${lab[@]}" -run 'EveryPlugin/(vlan|ipvlan|dummy|vrf)' ./test/cni)
fi
exec go run ./hack/testsum "${runs[@]}"
