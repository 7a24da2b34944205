"""Takes from the running process all that generated code could do harm with, before any of that code is read.

From outside in: namespaces of its own (no network, no other processes, an empty file system) where the system lets an ordinary
user have them; limits on memory, open files, files written, processes and processor time; no new privileges; and at last a filter
that kills the process at the first system call beyond reading, writing, memory and exit. The filter alone holds; the others stand
behind it. Linux only.

Sources: user_namespaces(7), seccomp(2), prctl(2), setrlimit(2), Linux 6; numbers of system calls from asm/unistd.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import struct

MEMORY_BYTES = 1 << 30
"""Address space of the process, the interpreter and NumPy within."""
CPU_S = 3600
"""Processor time in the life of a process."""
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
_SECCOMP_FILTER = 2
_NAMESPACES = {"user": 0x10000000, "network": 0x40000000, "files": 0x00020000, "ipc": 0x08000000, "host name": 0x04000000}
_MS_PRIVATE, _MS_REC, _MS_REMOUNT, _MS_READ_ONLY, _MS_NO_SUID_DEV_EXEC, _MNT_DETACH = 1 << 18, 1 << 14, 32, 1, 14, 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CALLS = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
        "sched_yield": 24, "mremap": 25, "madvise": 28, "exit": 60, "sigaltstack": 131, "futex": 202, "restart_syscall": 219,
        "clock_gettime": 228, "exit_group": 231,
    },
    "aarch64": {
        "close": 57, "read": 63, "write": 64, "exit": 93, "exit_group": 94, "futex": 98, "clock_gettime": 113, "sched_yield": 124,
        "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "brk": 214,
        "munmap": 215, "mremap": 216, "madvise": 233,
    },
}  # fmt: skip
_MAPPING = {"x86_64": (9, 10), "aarch64": (222, 226)}
"""mmap and mprotect, which are let through unless memory is to be executable."""


def confine(*, namespaces: bool = True, limits: bool = True, filter_calls: bool = True) -> tuple[str, ...]:
    """Confine this process for good. Everything it needs must be imported and open by now.

    Args:
        namespaces: whether to try namespaces and an empty file system.
        limits: whether to set limits.
        filter_calls: whether to filter system calls. The three are left out one by one only to test the others.

    Returns:
        Names of what holds; see `holds`.
    """
    held: list[str] = []
    libc = ctypes.CDLL(None, use_errno=True)
    if namespaces:
        held += _own_namespaces(libc)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if limits:
        held += _limit()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        held.append("no new privileges")
        if filter_calls and _filter(libc):
            held.append("system calls")
    return tuple(held)


def holds(held: tuple[str, ...]) -> bool:
    """Whether that is enough to evaluate code that a model wrote."""
    return {"system calls", "limits"} <= set(held)


def _own_namespaces(libc: ctypes.CDLL) -> list[str]:
    """Namespaces and an empty root; as far as the system lets."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NAMESPACES["user"]) != 0:
        return []
    with contextlib.suppress(OSError):
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as f:
                f.write(text)
    held = ["user"]
    for name in ("network", "ipc", "host name"):
        if libc.unshare(_NAMESPACES[name]) == 0:
            held.append(name)
    if libc.unshare(_NAMESPACES["files"]) == 0 and _empty_root(libc):
        held.append("files")
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if libc.capset(header, nothing) == 0:
        held.append("no capabilities")
    return held


def _empty_root(libc: ctypes.CDLL) -> bool:
    """Put this process into an empty file system that cannot be written; what was there is let go."""
    private = libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    place = b"/proc"  # there on every Linux, and covered for this process only
    options = ctypes.c_ulong(_MS_NO_SUID_DEV_EXEC)
    if private != 0 or libc.mount(b"none", place, b"tmpfs", options, b"size=4k,mode=500") != 0:
        return False
    try:
        os.chdir(place)
        if libc.mount(b"none", place, None, ctypes.c_ulong(_MS_REMOUNT | _MS_READ_ONLY | _MS_NO_SUID_DEV_EXEC), None) != 0:
            return False
        if libc.syscall(_PIVOT_ROOT.get(platform.machine(), -1), b".", b".") != 0:
            os.chroot(place)
        else:
            libc.umount2(b".", _MNT_DETACH)
        os.chdir("/")
    except OSError:
        return False
    return True


def _limit() -> list[str]:
    """Limits that only ever get tighter."""
    for which, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_NOFILE, 0),
    ):  # fmt: skip
        resource.setrlimit(which, (most, most))
    return ["limits"]


def _filter(libc: ctypes.CDLL) -> bool:
    """A seccomp filter: listed calls pass, mapping passes without PROT_EXEC, everything else kills the process."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES or struct.calcsize("P") != 8:
        return False
    load, equal, any_bit, stop = 0x20, 0x15, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    code = [(load, 0, 0, 4), (equal, 1, 0, _ARCHITECTURES[machine]), (stop, 0, 0, kill), (load, 0, 0, 0)]
    for number in _CALLS[machine].values():
        code += [(equal, 0, 1, number), (stop, 0, 0, allow)]
    for number in _MAPPING[machine]:
        code += [(equal, 0, 4, number), (load, 0, 0, 32), (any_bit, 0, 1, 4), (stop, 0, 0, kill), (stop, 0, 0, allow)]
    code.append((stop, 0, 0, kill))
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    told = struct.pack("HP", len(code), ctypes.addressof(program))
    return libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, told, 0, 0) == 0
