#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Mount the kernel's tracing and BPF file systems where they are not mounted yet.
# Most of ebpftrace does without them, so a refusal is told and is no error.
set -uo pipefail

mount_at() { # TYPE DIRECTORY NAME-IN-STAT
	[ "$(stat -f -c %T "$2" 2>/dev/null)" = "$3" ] && return
	mount -t "$1" "$1" "$2" 2>/dev/null || echo "note: $2 is not mounted, and mounting it was refused" >&2
}

mount_at tracefs /sys/kernel/tracing tracefs
mount_at bpf /sys/fs/bpf bpf_fs
exit 0
