#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Install what building ebpftrace needs from the distribution's archive: only what is missing.
#
# Everything is looked for by what it can do, not by package name, so a clang, CMake or Python that
# came from elsewhere will do.  A complete machine is left alone, and needs no network and no apt.
set -euo pipefail
cd "$(dirname "$0")/.."

# where scripts/libbpf.sh puts what it builds; the Makefile exports the same
export PKG_CONFIG_PATH=${PKG_CONFIG_PATH:+$PKG_CONFIG_PATH:}$PWD/build/libbpf/lib/pkgconfig

clang_newest=22
clang_oldest=15 # clang 14 crashes on relocatable bit field reads

fail() {
	printf '\nsetup: %s\n' "$@" >&2
	exit 1
}

at_least() { # VERSION MINIMUM
	[ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

have_cmake() {
	command -v cmake >/dev/null && at_least "$(cmake --version | sed -n '1s/[^0-9]*//p')" 3.22
}

# pkg-config also checks libelf and zlib, which libbpf asks for
have_libbpf() {
	[ -z "${EBPFTRACE_BUILD_LIBBPF:-}" ] || [ -e build/libbpf/lib/pkgconfig/libbpf.pc ] || return
	command -v pkg-config >/dev/null && pkg-config --exists 'libbpf >= 1.0'
}

# Is libbpf to be built?  Where the archive's is too old, or where somebody asks for it.
builds_libbpf() {
	[ -n "${EBPFTRACE_BUILD_LIBBPF:-}" ] || { apt_offers libbpf-dev && ! apt_offers libbpf-dev 1.0; }
}

libbpf_packages() {
	if builds_libbpf; then
		scripts/libbpf.sh missing
	else
		echo libbpf-dev
	fi
}

have_clang() {
	local version suffix
	for version in $(seq $clang_newest -1 $clang_oldest) ''; do
		suffix=${version:+-$version}
		{ command -v "clang$suffix" && command -v "llvm-strip$suffix"; } >/dev/null || continue
		at_least "$("clang$suffix" -dumpversion)" $clang_oldest && return
	done
	return 1
}

apt_offers() { # PACKAGE [MINIMUM VERSION]
	local candidate
	candidate=$(LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p')
	case $candidate in '' | '(none)') return 1 ;; esac
	at_least "${candidate#*:}" "${2:-0}" # without the epoch
}

clang_packages() {
	local version
	for version in $(seq $clang_newest -1 $clang_oldest); do
		if apt_offers "clang-$version" && apt_offers "llvm-$version"; then
			echo "clang-$version llvm-$version"
			return
		fi
	done
	echo "clang-19 llvm-19" # a name for the message; an update may bring it
}

# The system's own Python when it is new enough, for it is there already.
python_packages() {
	local version system=
	system=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || true
	for version in $system 3.11 3.12 3.13 3.14; do
		if at_least "$version" 3.11 && apt_offers "python$version-venv"; then
			echo "python$version python$version-dev python$version-venv"
			return
		fi
	done
	echo "python3.11 python3.11-dev python3.11-venv"
}

missing_packages() {
	command -v make >/dev/null || echo make
	command -v cc >/dev/null || echo gcc libc6-dev
	have_cmake || echo cmake
	command -v ninja >/dev/null || echo ninja-build
	command -v pkg-config >/dev/null || echo pkg-config
	have_libbpf || libbpf_packages
	have_clang || clang_packages
	scripts/python.sh >/dev/null 2>&1 || { [ -n "${PYTHON:-}" ] || python_packages; }
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif ! command -v sudo >/dev/null; then
		fail "installing packages needs root, and there is no sudo; as root, run: apt-get install ${packages[*]}"
	elif [ -t 0 ]; then
		sudo "$@"
	else
		sudo -n "$@" # nobody is there to type a password
	fi
}

apt() {
	as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
		apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >/dev/null
}

collect() {
	mapfile -t packages < <(missing_packages | tr ' ' '\n')
}

known() {
	local package
	for package in "${packages[@]}"; do
		apt_offers "$package" || return 1
	done
}

no_new_libbpf() {
	fail "this distribution's libbpf-dev is older than 1.0 (Ubuntu 22.04 has 0.5), and ebpftrace needs 1.0 or newer.
Its archive has no kernel source package of 6.0 or newer either (linux-source-6.x or linux-hwe-6.x-source-6.x.0)
that libbpf could be built from; on Ubuntu, are jammy-updates and universe enabled in /etc/apt?
Build libbpf from its own sources and tell pkg-config where it is:
    make -C libbpf/src install PREFIX=/opt/libbpf LIBDIR=/opt/libbpf/lib
    export PKG_CONFIG_PATH=/opt/libbpf/lib/pkgconfig
or use Debian 12, Ubuntu 24.04 or newer, whose own package is new enough."
}

install_missing() {
	command -v apt-get >/dev/null ||
		fail "no apt-get here, and this is missing (Debian's names): ${packages[*]}" \
			"install it with your distribution's package manager, then run make again"
	if ! known; then
		echo "setup: apt-get update"
		apt update || fail "apt-get update failed (no network?); needed: ${packages[*]}"
		collect # now with what the archive really offers
	fi
	if ! have_libbpf && builds_libbpf && ! scripts/libbpf.sh package >/dev/null; then
		no_new_libbpf
	fi
	echo "setup: apt-get install ${packages[*]}"
	if ! apt install -y --no-install-recommends "${packages[@]}"; then
		# the usual reason: old lists, whose files the archive no longer has
		{ apt update && apt install -y --no-install-recommends "${packages[@]}"; } ||
			fail "apt-get could not install: ${packages[*]}" "install it by hand, then run make again"
	fi
}

collect
if [ "${#packages[@]}" -gt 0 ]; then
	install_missing
fi
if ! have_libbpf && builds_libbpf; then
	scripts/libbpf.sh build
	have_libbpf || fail "libbpf was built in build/libbpf, but pkg-config does not take it:
$(pkg-config --print-errors --exists 'libbpf >= 1.0' 2>&1)"
fi
if [ "${#packages[@]}" -gt 0 ]; then
	collect
	[ "${#packages[@]}" -eq 0 ] || fail "installed, but still not found: ${packages[*]}"
fi
scripts/python.sh >/dev/null # says what is wrong with PYTHON=, if anything
