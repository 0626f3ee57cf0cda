#!/usr/bin/env bash
# fuzz.sh [TIME]: runs every fuzz target of the module for TIME each (default 10s), one after the other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
time=${1:-10s} n=0 bad=()
while IFS=: read -r file target; do
  n=$((n + 1)); dir=./$(dirname "$file")
  echo "== $dir $target, $time"
  go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1x "$dir" || bad+=("$dir $target")
done < <(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's/func //; s|^\./||' | sort)
[ "$n" -gt 0 ] || { echo "fuzz: found no fuzz target" >&2; exit 1; }
echo "$n fuzz targets, ${#bad[@]} failed"
[ ${#bad[@]} -eq 0 ] || { printf '  %s\n' "${bad[@]}"; exit 1; }
