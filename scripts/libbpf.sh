#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Build libbpf where the distribution's own is too old (Ubuntu 22.04 has 0.5).
#
# The kernel's tree has libbpf in it, and the archive has the kernel's source as a package: no download
# but apt's.  What is built stays in build/libbpf, and nothing of the system is replaced.
#     libbpf.sh package    print the kernel source package to install: the newest there is
#     libbpf.sh missing    print what apt has to install before the build
#     libbpf.sh build      build into build/libbpf
set -euo pipefail
cd "$(dirname "$0")/.."

prefix=build/libbpf
work=$prefix.new # renamed when it is complete, so that an interrupted build is none
oldest_kernel=6  # its tools/lib/bpf is libbpf 1.0

fail() {
	printf '\nsetup: %s\n' "$@" >&2
	exit 1
}

# Debian names it linux-source-6.1, Ubuntu linux-source-6.2.0 or linux-hwe-6.8-source-6.8.0
source_package() {
	local version name
	# the search also finds what a package provides
	apt-cache search --names-only '^linux-.*source-[0-9]' 2>/dev/null |
		sed -nE 's/^(linux-([a-z0-9.+-]+-)?source-([0-9]+\.[0-9.]+)) .*/\3 \1/p' |
		while read -r version name; do
			[ "${version%%.*}" -lt $oldest_kernel ] || echo "$version $name"
		done | sort -V | tail -n 1 | cut -d ' ' -f 2 | grep .
}

tarball() { # PACKAGE
	dpkg -L "$1" 2>/dev/null | sed -n '/^\/usr\/src\/.*\.tar\.[a-z0-9]*$/p' | tail -n 1 | grep .
}

missing() {
	local package
	if package=$(source_package); then
		tarball "$package" >/dev/null || echo "$package"
	else
		echo linux-source-6.1 # a name for the message; an update may bring it
	fi
	pkg-config --exists libelf zlib 2>/dev/null || echo libelf-dev zlib1g-dev
	[ -x /usr/bin/python3 ] || echo python3 # it generates bpf_helper_defs.h
}

unpack() { # TARBALL: only what libbpf is made of, 6 MB of 1.5 GB
	mkdir -p $work/src
	tar -xf "$1" -C $work/src --strip-components=1 --wildcards --no-wildcards-match-slash \
		'*/tools/lib' '*/tools/include' '*/tools/scripts' '*/tools/build' '*/tools/arch' '*/scripts/bpf_doc.py'
}

# The environment is left behind: MAKEFLAGS, CFLAGS, ARCH, O and more would reach the kernel's makefiles.
# -w: the kernel asks for -Werror, which a compiler newer than its source need not pass.
kernel_make() {
	env -i "PATH=$PATH" CC='cc -w' HOSTCC=cc make -s -C $work/src/tools/lib/bpf \
		"DESTDIR=$PWD/$work/ready" prefix=/ libdir=/lib "$@"
}

build() {
	local package archive header
	{ package=$(source_package) && archive=$(tarball "$package"); } ||
		fail "the kernel source package that libbpf is built from is not installed: ${package:-none is in the archive}"
	echo "setup: building libbpf from $package into $prefix; this takes a minute"
	rm -rf $work
	unpack "$archive" || fail "could not unpack tools/lib/bpf from $archive; is the disk full?"
	# first, and alone: install does not ask for it
	{ kernel_make fixdep && kernel_make -j "$(nproc)" install; } ||
		fail "libbpf of $package did not build; the reason is above"
	# the kernel headers that this libbpf was made for; the system's may be as old as its libbpf
	mkdir -p $work/ready/include/linux
	for header in bpf bpf_common btf; do
		cp "$work/src/tools/include/uapi/linux/$header.h" $work/ready/include/linux/
	done
	# shellcheck disable=SC2016 # pkg-config's own variable
	sed -i -e 's|^prefix=.*|prefix=${pcfiledir}/../..|' -e 's|^libdir=.*|libdir=${prefix}/lib|' \
		$work/ready/lib/pkgconfig/libbpf.pc
	rm -rf $prefix
	mv $work/ready $prefix
	rm -rf $work
}

case ${1:-} in
package) source_package ;;
missing) missing ;;
build) build ;;
*) fail "usage: scripts/libbpf.sh package|missing|build" ;;
esac
