#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Print the first Python that can build ebpftrace: 3.11 or newer, with its C headers and with venv.
# PYTHON=... in the environment is the only candidate when it is set.
set -euo pipefail

usable='
import os, sys, sysconfig
if sys.version_info < (3, 11):
    sys.exit("older than 3.11")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit("without its C headers (Python.h)")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("without the venv module")
print(sys.executable)
'

seen=
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3}; do
	# isolated: nothing in this directory must stand in for the standard library
	if found=$("$candidate" -I -c "$usable" 2>&1); then
		echo "$found"
		exit 0
	fi
	seen+="  $candidate: ${found##*$'\n'}"$'\n'
done
printf 'No usable Python; ebpftrace needs 3.11 or newer with C headers and venv. Looked at:\n%s' "$seen" >&2
exit 1
