#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Install what `make test-vm` needs beside what `make test` does, from the distribution's archive: only what is missing.
set -euo pipefail

missing_packages() {
	command -v qemu-system-x86_64 >/dev/null || echo qemu-system-x86
	[ -x /usr/lib/qemu/virtiofsd ] || echo qemu-system-common
	# the one that needs no libraries
	{ [ -x /usr/bin/busybox ] && ! grep -q /ld-linux /usr/bin/busybox; } || echo busybox-static
	command -v depmod >/dev/null || [ -x /sbin/depmod ] || echo kmod
	command -v zstd >/dev/null || echo zstd
	command -v lz4 >/dev/null || echo lz4
	command -v xz >/dev/null || echo xz-utils
	command -v losetup >/dev/null || echo mount
	command -v ip >/dev/null || echo iproute2
	# for tests/bpfcc; the headers of the kernels are unpacked for the guests only
	[ -e /usr/lib/python3/dist-packages/bcc/__init__.py ] || echo python3-bpfcc
	command -v opensnoop-bpfcc >/dev/null || [ -x /usr/sbin/opensnoop-bpfcc ] || echo bpfcc-tools
}

mapfile -t packages < <(missing_packages)
[ "${#packages[@]}" -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
	printf 'vm: no apt-get here, and this is missing (names of Debian 12): %s\n' "${packages[*]}" >&2
	exit 1
fi
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
echo "vm: apt-get install ${packages[*]}"
install() {
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
		install -y --no-install-recommends "${packages[@]}" >/dev/null
}
# at first with the lists that are there, which may be too old
install || { $sudo apt-get -qq update && install; } || {
	printf 'vm: apt-get could not install: %s\nvm: is there a network? Install them by hand, then run make again\n' \
		"${packages[*]}" >&2
	exit 1
}
