"""System calls that a candidate may not make, and the count of its processes: two seccomp filters, no library but libc.

Landlock (sandbox.py) confines files, and signals to the outside. What it leaves open is closed here: sockets of every
family, looking into or re-prioritising other processes, changing the mode, owner or times of files that it may only read
(Landlock knows none of these), kernel facilities that hide memory from the supervisor, and everything that takes
privileges. A call that no candidate needs fails with EPERM, one newer than this file with ENOSYS, so that libraries fall back.

Filters are classic BPF over the call's number and register arguments (man 2 seccomp). Numbers come from sandlock, for the
architecture at hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
from collections.abc import Callable, Iterable

from frozen_env.contract import SandboxUnavailable

NETWORK = "connect accept accept4 bind listen sendmsg sendmmsg"  # sendmsg: could park open files in a socket's queue
OTHER_PROCESSES = (
    "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp setpriority "
    "ioprio_set migrate_pages move_pages"
)
FILES_OF_OTHERS = (
    "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat setxattr lsetxattr "
    "fsetxattr removexattr lremovexattr fremovexattr inotify_init inotify_init1 inotify_add_watch fanotify_init "
    "name_to_handle_at open_by_handle_at"
)
HIDDEN_MEMORY = (
    "memfd_create memfd_secret shmget shmat shmctl semget semop semctl msgget msgsnd mq_open io_uring_setup "
    "io_uring_enter io_uring_register userfaultfd"
)
# Which pages of a library are in memory is a note that one process leaves for another. What asks the kernel, or takes pages
# out again, is refused; that reading a page brings it in, and takes longer when it was not, cannot be.
PAGE_CACHE = "mincore cachestat readahead fadvise64 preadv2"
PRIVILEGED = (
    "mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr unshare setns bpf "
    "perf_event_open add_key request_key keyctl init_module finit_module delete_module kexec_load kexec_file_load reboot "
    "swapon swapoff acct quotactl quotactl_fd settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname "
    "iopl ioperm syslog vhangup seccomp personality"
)
# CUDA's start makes a socket (AF_UNIX, SOCK_SEQPACKET) and listens on an abstract name, or fails: "@cuda-uvmfd-…" in the
# profiles of snapd's cuda-support interface, https://github.com/canonical/snapd/tree/master/interfaces/builtin.
FOR_CUDA = ("bind", "listen")
DENIED = " ".join((NETWORK, OTHER_PROCESSES, FILES_OF_OTHERS, HIDDEN_MEMORY, PAGE_CACHE, PRIVILEGED)).split()
ONLY_ITSELF = [
    "prlimit64",
    "sched_setaffinity",
    "sched_setscheduler",
    "sched_setattr",
    "sched_setparam",
]  # first argument 0
LAST_KNOWN = "mseal"  # the newest call that this file has looked at

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000  # calls of a second x86-64 ABI, which would slip past a list of numbers
AF_UNIX, SOCK_SEQPACKET, SOCKET_TYPE = 1, 5, 0xF
CLONE_THREAD = 0x00010000
CLONE_OUTSIDE = 0x7E028000  # new namespaces, or a sibling instead of a child
MADV_COLD, MADV_PAGEOUT = 20, 21
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38

KILL_PROCESS, ERRNO, USER_NOTIF, ALLOW = 0x80000000, 0x00050000, 0x7FC00000, 0x7FFF0000
LOAD, JUMP_EQUAL, JUMP_GREATER, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
# Offsets into struct seccomp_data; of arguments the low words, little-endian.
NUMBER, ARCH, FIRST_ARG, SECOND_ARG, THIRD_ARG, FIFTH_ARG = 0, 4, 16, 24, 32, 48

SET_MODE_FILTER, NEW_LISTENER = 1, 8
NOTIF_BYTES, NOTIF_RECV, NOTIF_SEND, FLAG_CONTINUE = 80, 0xC0502100, 0xC0182101, 1

_libc = ctypes.CDLL(None, use_errno=True)
Program = list[tuple[int, int, int, int]]  # (operation, jump if true, jump if false, constant)


def number(name: str) -> int | None:
    """The system call's number on this machine; None when the architecture does not have it."""
    from sandlock._sdk import _lib

    found = int(_lib.sandlock_syscall_nr(name.encode()))
    return found if found >= 0 else None


def _numbers(names: Iterable[str]) -> list[int]:
    return [found for name in names if (found := number(name)) is not None]


def _architecture() -> int:
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        raise SandboxUnavailable(
            f"there is no list of system calls for {machine!r}, only for {', '.join(AUDIT_ARCH)}. Run candidates on one of "
            "these, or, if you trust every candidate, --set environment.sandbox=off (it is written on every result)."
        )
    return AUDIT_ARCH[machine]


def deny_program(device: str = "cpu") -> Program:
    """The filter that refuses what is listed above. A process on a GPU ("cuda") may make a socket that CUDA listens on; nobody
    can connect to it, nor it to anybody."""

    def refuse(code: int) -> tuple[int, int, int, int]:
        return (RETURN, 0, 0, ERRNO | code)

    last = number(LAST_KNOWN)
    assert last is not None, "sandlock knows the calls of its own time"
    program: Program = [
        (LOAD, 0, 0, ARCH),
        (JUMP_EQUAL, 1, 0, _architecture()),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
        (JUMP_GREATER, 0, 1, last),  # x32 calls lie beyond, too
        refuse(errno.ENOSYS),
    ]
    denied = [name for name in DENIED if not (device == "cuda" and name in FOR_CUDA)]
    for found in _numbers(denied):
        program += [(JUMP_EQUAL, 0, 1, found), refuse(errno.EPERM)]
    for found in _numbers(["socket"]):  # what libraries expect of a kernel without that network
        if device == "cuda":
            program += [(JUMP_EQUAL, 0, 7, found), (LOAD, 0, 0, FIRST_ARG), (JUMP_EQUAL, 0, 3, AF_UNIX)]
            program += [(LOAD, 0, 0, SECOND_ARG), (AND, 0, 0, SOCKET_TYPE), (JUMP_EQUAL, 1, 0, SOCK_SEQPACKET)]
            program += [refuse(errno.EAFNOSUPPORT), (RETURN, 0, 0, ALLOW)]
        else:
            program += [(JUMP_EQUAL, 0, 1, found), refuse(errno.EAFNOSUPPORT)]
    for found in _numbers(["sendto"]):  # with an address, a pair's end reaches any datagram socket that has a path
        program += [(JUMP_EQUAL, 0, 6, found), (LOAD, 0, 0, FIFTH_ARG), (JUMP_EQUAL, 0, 2, 0)]
        program += [(LOAD, 0, 0, FIFTH_ARG + 4), (JUMP_EQUAL, 1, 0, 0), refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
    for found in _numbers(["clone3"]):  # its flags lie in memory, where no filter can see; libc falls back to clone
        program += [(JUMP_EQUAL, 0, 1, found), refuse(errno.ENOSYS)]
    for found in _numbers(ONLY_ITSELF):
        program += [(JUMP_EQUAL, 0, 4, found), (LOAD, 0, 0, FIRST_ARG), (JUMP_EQUAL, 1, 0, 0)]
        program += [refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
    for found in _numbers(["prctl"]):
        # Not a candidate's to take back: the kernel's promise to kill it with its parent, and that its user may look into it,
        # without which a supervisor who is not root sees neither its memory nor its deleted files.
        program += [(JUMP_EQUAL, 0, 6, found), (LOAD, 0, 0, FIRST_ARG), (JUMP_EQUAL, 2, 0, PR_SET_PDEATHSIG)]
        program += [(JUMP_EQUAL, 1, 0, PR_SET_DUMPABLE), (JUMP_EQUAL, 0, 1, PR_SET_SECCOMP)]
        program += [refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
    for found in _numbers(["madvise"]):
        program += [(JUMP_EQUAL, 0, 5, found), (LOAD, 0, 0, THIRD_ARG), (JUMP_EQUAL, 1, 0, MADV_PAGEOUT)]
        program += [(JUMP_EQUAL, 0, 1, MADV_COLD), refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
    for found in _numbers(["clone"]):
        program += [(JUMP_EQUAL, 0, 4, found), (LOAD, 0, 0, FIRST_ARG), (JUMP_ANY_BIT, 0, 1, CLONE_OUTSIDE)]
        program += [refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
    return [*program, (RETURN, 0, 0, ALLOW)]


def process_program() -> Program:
    """The filter that asks the supervisor before a new process (not a thread) is made."""
    program: Program = [(LOAD, 0, 0, NUMBER)]
    for found in _numbers(["fork", "vfork"]):
        program += [(JUMP_EQUAL, 0, 1, found), (RETURN, 0, 0, USER_NOTIF)]
    for found in _numbers(["clone"]):
        program += [(JUMP_EQUAL, 0, 3, found), (LOAD, 0, 0, FIRST_ARG), (JUMP_ANY_BIT, 1, 0, CLONE_THREAD)]
        program += [(RETURN, 0, 0, USER_NOTIF)]
    return [*program, (RETURN, 0, 0, ALLOW)]


def install(program: Program, *, listen: bool = False) -> int:
    """Put a filter on this process and all that it will start, for good. Return the listener's descriptor, or 0."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(buffer)))
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    found = int(_libc.syscall(number("seccomp"), SET_MODE_FILTER, NEW_LISTENER if listen else 0, header))
    if found < 0:
        raise OSError(ctypes.get_errno(), "seccomp(SECCOMP_SET_MODE_FILTER)")
    return found


class ProcessListener:
    """The supervisor's end: a candidate that wants a new process waits in the kernel until answer() has been called."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def answer(self, allow: Callable[[], bool]) -> bool:
        """Answer every process that is waiting: yes, or EAGAIN as at any process limit. Never waits.

        Return False when nobody is left who could ask.
        """
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while events := poll.poll(0):
            if not events[0][1] & select.POLLIN:
                return False
            request = bytearray(NOTIF_BYTES)
            try:
                fcntl.ioctl(self.fd, NOTIF_RECV, request)
            except FileNotFoundError:  # it was killed meanwhile
                continue
            (identity,) = struct.unpack_from("=Q", request)
            error, flags = (0, FLAG_CONTINUE) if allow() else (-errno.EAGAIN, 0)
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.fd, NOTIF_SEND, bytearray(struct.pack("=QqiI", identity, 0, error, flags)))
        return True

    def close(self) -> None:
        os.close(self.fd)
