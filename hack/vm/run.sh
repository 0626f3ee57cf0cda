#!/usr/bin/env bash
# run.sh [-k FLAVOUR] [-c CPUS] [-m MEMORY] [-t SECONDS] [-v] [-e NAME=VALUE | -p PROGRAM | -M MODULE]... -- BIN [ARG]...
#
# Boots a Debian kernel in qemu under software emulation, with a small initramfs and nothing else, runs the static
# program BIN in it as root, and ends with BIN's exit code. A few seconds in all; no root and no KVM needed. As a test
# runner:  CGO_ENABLED=0 go test -exec "$PWD/hack/vm/run.sh --" ./internal/kernel/linux
#   -k  kernel: 6.1-cloud (default), 6.1, 6.12-cloud, 6.12; see setup.sh      -c  processors (1)   -m  memory (512M)
#   -t  time limit (600 s)   -e  a variable in BIN's environment   -M  a module to load first   -v  kernel log to stderr
#   -p  a further program of this machine to take along with its libraries
# Taken along in any case: those of this machine's network programs that it has (see programs=), and the folder testdata
# where the caller stands. BIN's working folder is /lab, and SEINE_VM=1 is set.
# Exit codes of its own: 3 the lab is not to be had here, 124 the time limit was reached, 125 the VM died.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
flavour=6.1-cloud cpus=1 memory=512M limit=600 console= modules= vars=() more=()
while getopts 'k:c:m:t:e:p:M:v' o; do
  case $o in
    k) flavour=$OPTARG ;; c) cpus=$OPTARG ;; m) memory=$OPTARG ;; t) limit=$OPTARG ;;
    e) vars+=("$OPTARG") ;; p) more+=("$OPTARG") ;;
    M) modules+=" $OPTARG" ;; v) console=/dev/stderr ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
kernel=$("$here/setup.sh" "$flavour")
cache=${kernel%/kernel/*}

work=$(mktemp -d "${TMPDIR:-/tmp}/seine-vm.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/lab"
bin=$(command -v -- "$1") || { echo "vm lab: no program $1" >&2; exit 2; }; shift
cp -L "$bin" "$work/root/lab/bin"; chmod 755 "$work/root/lab/bin"
[ ! -d testdata ] || cp -rL testdata "$work/root/lab/testdata"
# nsenter and sysctl replace busybox's, of which the first would run busybox's ip again.
programs=(nft ip bridge tc nsenter sysctl {iptables,ip6tables}-nft{,-save,-restore})
extensions=/usr/lib/x86_64-linux-gnu/xtables # of the iptables programs
take() { # PROGRAM, to where init's PATH looks before it looks at busybox's
  local at lib
  at=$(PATH=$PATH:/usr/sbin:/sbin command -v -- "$1") || return 1
  install -D "$at" "$work/root/usr/sbin/$1"
  ldd "$at" 2>/dev/null | grep -oE '/[^ ]+' | while read -r lib; do install -D "$lib" "$work/root$lib"; done
}
for p in "${programs[@]}"; do take "$p" || true; done
[ ! -d "$extensions" ] || { mkdir -p "$work/root${extensions%/*}"; cp -r "$extensions" "$work/root${extensions%/*}/"; }
for p in "${more[@]}"; do take "$p" || { echo "vm lab: program $p is not on this machine" >&2; exit 2; }; done
{
  for v in "${vars[@]}"; do printf "export %s='%s'\n" "${v%%=*}" "$(printf %s "${v#*=}" | sed "s/'/'\\\\''/g")"; done
  printf 'cd /lab; exec /lab/bin'
  for a in "$@"; do printf " '%s'" "$(printf %s "$a" | sed "s/'/'\\\\''/g")"; done
  echo
} >"$work/root/lab/run"
echo "modules='$modules'" >"$work/root/lab/conf"
# The kernel unpacks archives that follow one another into one root.
{ cat "$kernel/base.cpio"; (cd "$work/root" && find . | "$cache/qemu/bin/busybox" cpio -o -H newc 2>/dev/null); } >"$work/initrd"

image=$kernel/vmlinux; [ -e "$image" ] || image=$kernel/vmlinuz
quiet="quiet loglevel=4 panic=-1 reboot=t audit=0 apparmor=0 random.trust_cpu=on cryptomgr.notests 8250.nr_uarts=3"
# An emulated clock and processor need no calibration and no mitigations.
fast="mitigations=off nokaslr no_timer_check tsc=reliable"
rc=0
LD_LIBRARY_PATH=$cache/qemu/lib/x86_64-linux-gnu:$cache/qemu/usr/lib/x86_64-linux-gnu \
  setpriv --pdeathsig TERM timeout --foreground -k 5 "$limit" "$cache/qemu/usr/bin/qemu-system-x86_64" \
  -L "$cache/qemu/usr/share/qemu" -L "$cache/qemu/usr/share/seabios" \
  -nodefaults -no-user-config -no-reboot -display none -machine q35,usb=off,vmport=off,hpet=off \
  -accel tcg,thread=multi,tb-size=256 -cpu max -smp "$cpus" -m "$memory" -device virtio-rng-pci \
  -kernel "$image" -initrd "$work/initrd" -append "console=ttyS0,115200 $quiet $fast" \
  -serial "file:${console:-$work/console}" -chardev stdio,id=out,signal=off -serial chardev:out \
  -serial "file:$work/rc" </dev/null || rc=$?
if [ $rc -eq 124 ] || [ $rc -eq 137 ]; then
  rc=124; echo "vm lab: time limit of $limit s" >&2
elif [ -s "$work/rc" ]; then
  rc=$(tr -dc 0-9 <"$work/rc")
else
  rc=125; echo "vm lab: the VM ended without a result" >&2
fi
case $rc in 124 | 125) [ -n "$console" ] || tail -n 30 "$work/console" >&2 || true ;; esac
exit "$rc"
