# SPDX-License-Identifier: Apache-2.0
"""Runs the kernel tests and the demos on the distribution's own kernels, each in a virtual machine.

From a kernel's name to a row of the matrix:

    apt      which kernels the archives offer; fetching one
    image    the package, unpacked; what boots: a vmlinux and an initramfs
    shares   this machine's files, for the guest
    vm       one boot, one command in it, its end
    guest    what runs in there (in a module of its own: it imports nothing of these)
    results  what it left behind
    matrix   the page docs/reference/kernels.md
"""
