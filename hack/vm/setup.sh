#!/usr/bin/env bash
# setup.sh [FLAVOUR]: fetches and unpacks what the VM lab needs, once, and prints the folder of that kernel.
#
# Nothing is installed and root is not needed: apt runs on folders of its own beside the machine's, the packages are
# unpacked into the cache, $SEINE_VM_CACHE or ~/.cache/seine/vm.
#   qemu/             qemu 10 and those of its libraries that the machine lacks (Debian 12's own qemu 7.2 emulates
#                     cmpxchg16b wrongly: newer kernels die in it at boot), busybox-static
#   kernel/FLAVOUR/   vmlinux (or vmlinuz), release, base.cpio: busybox, /init and the network modules
# FLAVOUR is 6.1-cloud (default), 6.1, 6.12-cloud or 6.12: Debian 12's kernels and those of its backports.
# It needs a Debian machine's apt-get and dpkg-deb (amd64), and some 60 MB from a Debian mirror (SEINE_VM_MIRROR,
# else the one that apt uses). Exit code 3: not to be had on this machine; the reason is on stderr.
set -euo pipefail
flavour=${1:-6.1-cloud}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
give_up() { echo "vm lab: $*" >&2; exit 3; }

cache=${SEINE_VM_CACHE:-${XDG_CACHE_HOME:-${HOME:-$here/../..}/.cache}/seine/vm}
mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ] || give_up "can't write to $cache (SEINE_VM_CACHE names another folder)"
cache=$(cd "$cache" && pwd)
kernel=$cache/kernel/$flavour
bb=$cache/qemu/bin/busybox
# what was unpacked finds its libraries beside it
tools() { PATH=$cache/qemu/usr/bin:$PATH LD_LIBRARY_PATH=$cache/qemu/lib/x86_64-linux-gnu:$cache/qemu/usr/lib/x86_64-linux-gnu "$@"; }

exec 3>&1 1>&2                 # stdout is for the answer alone
exec 9>"$cache/lock"; flock 9  # several tests may ask at once

# private_apt makes apt work on folders of ours, with Debian 12 and its backports as the only sources.
private_apt() {
  local mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg s
  export APT_CONFIG=$cache/apt/apt.conf
  [ -z "${apt_ready:-}" ] || return 0
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || give_up "needs apt-get and dpkg-deb (Debian)"
  [ "$(dpkg --print-architecture)" = amd64 ] || give_up "knows amd64 only, this is $(dpkg --print-architecture)"
  [ -r "$keys" ] || give_up "needs $keys (package debian-archive-keyring)"
  mirror=${SEINE_VM_MIRROR:-$(env -u APT_CONFIG apt-get indextargets --format '$(REPO_URI)' 2>/dev/null |
    grep -E '/debian/?$' | head -n 1 || true)}
  mirror=${mirror:-http://deb.debian.org/debian}; mirror=${mirror%/}
  mkdir -p "$cache"/apt/{none,state/lists/partial,cache/archives/partial}
  for s in bookworm bookworm-backports; do echo "deb [signed-by=$keys] $mirror $s main"; done >"$cache/apt/sources.list"
  echo "deb [signed-by=$keys] ${mirror}-security bookworm-security main" >>"$cache/apt/sources.list"
  cat >"$APT_CONFIG" <<X
Dir::Etc::sourcelist "$cache/apt/sources.list";
Dir::Etc::sourceparts "$cache/apt/none";
Dir::Etc::preferencesparts "$cache/apt/none";
Dir::State "$cache/apt/state";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "$cache/apt/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "2";
Acquire::http::Timeout "20";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
X
  apt-get -qq update || give_up "can't read the package lists of $mirror"
  apt_ready=1
}

# download FOLDER PACKAGE...: the .deb files into FOLDER.
download() {
  local dir=$1; shift
  rm -rf "$dir"; mkdir -p "$dir"
  (cd "$dir" && apt-get -qq download "$@") || give_up "can't download $*"
}

setup_qemu() {
  [ ! -e "$cache/qemu/.done" ] || return 0
  private_apt
  # What an installation would add to this machine is qemu and exactly the libraries that are missing here.
  local missing dir=$cache/qemu.new
  missing=$(apt-get -qq -y --no-install-recommends --print-uris -t bookworm-backports \
    install qemu-system-x86 busybox-static lz4 | awk '{print $2}' |
    sed -E 's/^([^_]+)_([^_]+)_[^_]+$/\1=\2/; s/%3a/:/g') || give_up "apt can't resolve qemu-system-x86 here"
  # shellcheck disable=SC2086
  download "$cache/debs" $missing
  rm -rf "$dir"; mkdir -p "$dir"
  for f in "$cache"/debs/*.deb; do dpkg-deb -x "$f" "$dir"; done
  rm -rf "$cache/debs" "$cache/qemu" "$dir/usr/share/doc"
  touch "$dir/.done"; mv "$dir" "$cache/qemu"
}

# unpack_kernel makes $kernel with lib/modules, vmlinuz and, where the payload's packing is known, vmlinux.
unpack_kernel() {
  [ ! -e "$kernel/release" ] || return 0
  private_apt
  local meta=linux-image-amd64 suite=bookworm pkg rel dir=$kernel.new f
  case $flavour in *-cloud) meta=linux-image-cloud-amd64 ;; esac
  case $flavour in
    6.1 | 6.1-cloud) ;;
    6.12 | 6.12-cloud) suite=bookworm-backports ;;
    *) give_up "flavour \"$flavour\" is unknown; want 6.1-cloud, 6.1, 6.12-cloud or 6.12" ;;
  esac
  # Of a meta package's several versions the newest that belongs to the flavour.
  pkg=$(apt-cache show "$meta" | awk -v want="linux-image-${flavour%%-*}." '/^Depends:/ && !p {
    n = split($2, d, ","); if (index(d[1], want) == 1) p = d[1] } END { print p }')
  [ -n "$pkg" ] || give_up "no kernel $flavour in $suite"
  download "$cache/debs" "$pkg"
  rm -rf "$dir"; mkdir -p "$dir"
  for f in "$cache"/debs/*.deb; do dpkg-deb -x "$f" "$dir"; done
  rm -rf "$cache/debs"
  if [ -d "$dir/usr/lib/modules" ]; then mkdir -p "$dir/lib"; mv "$dir/usr/lib/modules" "$dir/lib/modules"; fi
  rel=${pkg#linux-image-}
  find "$dir/lib/modules" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 "$bb" unxz
  mv "$dir/boot/vmlinuz-$rel" "$dir/vmlinuz"
  rm -rf "$dir/boot" "$dir/usr"
  carve "$dir/vmlinuz" "$dir/vmlinux"
  echo "$rel" >"$dir/release"
  mkdir -p "${kernel%/*}"; rm -rf "$kernel"; mv "$dir" "$kernel"
}

# carve IN OUT takes the ELF kernel out of a bzImage (its place: Linux boot protocol, payload_offset at 0x248). Started
# as PVH it saves the time that the emulated processor needs for unpacking; the bzImage does as well.
carve() {
  local setup off len magic
  setup=$(od -An -tu1 -j $((0x1f1)) -N1 "$1"); [ "$setup" -ne 0 ] || setup=4
  read -r off len < <(od -An -tu4 -j $((0x248)) -N8 "$1")
  off=$(((setup + 1) * 512 + off))
  magic=$(od -An -tx1 -j "$off" -N4 "$1" | tr -d ' ')
  case $magic in
    02214c18) # legacy lz4, followed by four bytes of length
      tail -c +$((off + 1)) "$1" | head -c $((len - 4)) | tools lz4 -dcq >"$2" 2>/dev/null || true ;;
    fd377a58) tail -c +$((off + 1)) "$1" | head -c "$len" | "$bb" unxz -c >"$2" 2>/dev/null || true ;;
    1f8b*) tail -c +$((off + 1)) "$1" | head -c "$len" | gzip -dc >"$2" 2>/dev/null || true ;;
  esac
  [ "$(head -c 4 "$2" 2>/dev/null | od -An -tx1 | tr -d ' ')" = 7f454c46 ] || rm -f "$2"
}

# base_initramfs packs busybox, /init and the modules that a container network can want, with all that they need.
base_initramfs() {
  local out=$kernel/base.cpio
  if [ -e "$out" ] && [ "$out" -nt "$here/init" ] && [ "$out" -nt "$here/setup.sh" ]; then return 0; fi
  local rel from root
  rel=$(cat "$kernel/release"); from=$kernel/lib/modules/$rel
  root=$(mktemp -d); trap 'rm -rf "$root"' EXIT
  mkdir -p "$root"/{bin,sbin,dev,proc,sys,tmp,run,root,etc/modprobe.d,lab} "$root/lib/modules/$rel"
  cp "$bb" "$root/bin/busybox"
  for a in $("$bb" --list); do [ "$a" = busybox ] || ln -s busybox "$root/bin/$a"; done
  ln -s ../bin/busybox "$root/sbin/modprobe"
  install -m 755 "$here/init" "$root/init"
  # Modules that make devices by being loaded would put them into every namespace of the tests.
  printf 'options dummy numdummies=0\noptions bonding max_bonds=0\noptions ifb numifbs=0\n' >"$root/etc/modprobe.d/lab.conf"
  echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
  echo root:x:0: >"$root/etc/group"
  printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
  printf 'ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n' >"$root/etc/protocols"
  [ -e "$from/modules.dep" ] || "$bb" depmod -b "$kernel" "$rel"
  # modules.dep lists every module with all that it needs, so one pass closes over the dependencies.
  (cd "$from" && find kernel/net kernel/drivers/net kernel/drivers/virtio kernel/drivers/char/hw_random \
    kernel/lib kernel/crypto kernel/arch/x86/crypto -name '*.ko' |
    grep -Ev '^kernel/net/(ax25|bluetooth|can|ceph|mac80211|rds|sunrpc|tipc|wireless|9p|smc|batman-adv)/' |
    grep -Ev '^kernel/drivers/net/(ethernet|wireless|usb|phy|can|hyperv|vmxnet3|fddi|hamradio|wwan|mdio|pcs|dsa)/' |
    sort >"$root/lab/want")
  awk -F: 'NR == FNR { want[$1]; next }
    { f = $1; sub(/^\.\//, "", f); if (f in want) { print f; n = split($2, d, " "); for (i = 1; i <= n; i++) print d[i] } }' \
    "$root/lab/want" "$from/modules.dep" | sort -u >"$root/lab/all"
  while read -r f; do
    mkdir -p "$root/lib/modules/$rel/${f%/*}"; cp "$from/$f" "$root/lib/modules/$rel/$f"
  done <"$root/lab/all"
  cp "$from"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$rel/"
  rm "$root"/lab/*
  "$bb" depmod -b "$root" "$rel"
  (cd "$root" && find . | "$bb" cpio -o -H newc) >"$out.new" 2>/dev/null
  rm -rf "$root"; trap - EXIT
  mv "$out.new" "$out"
}

setup_qemu
unpack_kernel
base_initramfs
echo "$kernel" >&3
