#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of the guest: puts the host's root together, with a writable layer in memory over it, and runs one
# script there.  From the kernel's command line: vm.share= a directory that the host reads afterwards, vm.modules= the
# unpacked kernel package, vm.headers= those of its headers.
bb=/bin/busybox

fail() {
	echo "vm: $*"
	$bb poweroff -f
}

$bb mkdir -p /proc /sys /dev /host /layer /root
$bb mount -t devtmpfs dev /dev || fail "no devtmpfs"
exec </dev/console >/dev/console 2>&1
$bb mount -t proc proc /proc
while read -r module; do
	$bb insmod "/modules/$module" || fail "the module $module cannot be loaded"
done </modules.list
for word in $($bb cat /proc/cmdline); do
	case $word in
	vm.share=*) share=${word#*=} ;;
	vm.modules=*) modules=${word#*=} ;;
	vm.headers=*) headers=${word#*=} ;;
	esac
done

$bb mount -t virtiofs -o ro host /host || fail "the host's files cannot be mounted (virtiofs)"
$bb mount -t tmpfs -o size=75% layer /layer
$bb mkdir /layer/upper /layer/work
$bb mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /root || fail "no overlay"
cd /root || fail "no root"
$bb mkdir -p proc sys dev run tmp usr/lib/modules ".$share"
$bb mount -t virtiofs share ".$share" || fail "the shared directory cannot be mounted (virtiofs)"
$bb mount -t proc proc proc
$bb mount -t sysfs sysfs sys
$bb mount -t devtmpfs dev dev
$bb mkdir -p dev/pts dev/shm
$bb mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
$bb mount -t tmpfs -o mode=1777 shm dev/shm
$bb mount -t tmpfs -o mode=755 run run
$bb ln -sfn /proc/self/fd dev/fd
$bb ln -sfn fd/0 dev/stdin
$bb ln -sfn fd/1 dev/stdout
$bb ln -sfn fd/2 dev/stderr
$bb mount -t securityfs securityfs sys/kernel/security
$bb mount -t tracefs tracefs sys/kernel/tracing
$bb mount -t bpf -o mode=700 bpf sys/fs/bpf
$bb mount -t cgroup2 cgroup2 sys/fs/cgroup
echo "+cpu +memory +io +pids" >sys/fs/cgroup/cgroup.subtree_control # as systemd would
# modules and headers where they are looked for, though nothing of them is installed
link_all() { # the files in $1 of the host, in $2
	for file in "/host$1"/*; do
		# its target may be there in the new root only; without any file the pattern is left
		[ -e "$file" ] || [ -L "$file" ] || continue
		$bb ln -sfn "$1/${file##*/}" "$2/${file##*/}"
	done
}
release=$($bb uname -r)
$bb mkdir -p usr/src "usr/lib/modules/$release"
for place in "$modules/lib/modules" "$headers/lib/modules" "$headers/usr/lib/modules"; do
	link_all "$place/$release" "usr/lib/modules/$release"
done
link_all "$headers/usr/src" usr/src
$bb hostname vm
$bb ip link set lo up
cd /
exec $bb switch_root /root /bin/sh "$share/run.sh"
