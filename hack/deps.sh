#!/usr/bin/env bash
# deps.sh: installs the Debian packages that the tests and benches use, as far as they are missing. It never fails: a
# test whose tool is not there skips and says so. Without root, or without a mirror, it says loudly what is missing.
set -uo pipefail
# Each package with what it is for.
packages=(
  gcc          # the race detector links with cgo
  libc6-dev
  iproute2     # tests compare the kernel's state before and after in the words of ip, bridge and tc
  nftables     # the same for nft
  procps       # sysctl
  netbase      # /etc/protocols, or nft prints numbers
  iptables     # a machine whose FORWARD policy is DROP; the reference CNI plugins of the benches
  firewalld    # the CNI plugin firewall gives addresses to its zones; never started by this script
  dbus-daemon  # firewalld listens there
  iputils-ping # a second opinion on reachability
  dnsmasq-base # DHCP servers that the leases of tests come from
  kea-dhcp4-server # as its package configures it, it serves nobody
  kea-dhcp6-server
  containernetworking-plugins # what the CNI benches and tests compare with
  podman       # runtimes that call the CNI plugins; containerd is never started by this script
  containerd
  runc
  conmon
  docker.io    # uses the daemon as its network driver; never started by this script
  docker-compose # makes its networks
  busybox-static # what runs in their containers
)
command -v dpkg-query >/dev/null || { echo "deps: no Debian packages here; needed: ${packages[*]}" >&2; exit 0; }
missing=()
for p in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "deps: NOT INSTALLED, and this is not root: ${missing[*]}" >&2
  echo "deps: what needs them will be skipped" >&2
  exit 0
fi
echo "deps: installing ${missing[*]}"
# Nothing that comes along is to be started on this machine, now or when it boots.
policy=/usr/sbin/policy-rc.d own=
[ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && own=$policy; }
log=$(mktemp); trap 'rm -f "$log" $own; still' EXIT
still() { # disables what came along
  local units
  units=$(dpkg -L "${missing[@]}" 2>/dev/null | sed -nE 's|^(/usr)?/lib/systemd/system/([^/@]+\.(service\|socket\|timer))$|\2|p')
  [ -z "$units" ] || systemctl disable -q $units 2>/dev/null
}
apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Acquire::Retries=2 "$@" </dev/null >>"$log" 2>&1; }
# With lists that are there already, nothing has to be fetched but the packages.
apt install -y --no-install-recommends "${missing[@]}" && exit 0
apt update; apt install -y --no-install-recommends "${missing[@]}" && exit 0
for p in "${missing[@]}"; do apt install -y --no-install-recommends "$p" || echo "deps: COULD NOT INSTALL $p" >&2; done
tail -n 5 "$log" >&2
exit 0
