"""Walls around a program, the strongest that the machine offers:

    namespaces  user, pid, mount, network, IPC: a read-only machine, a directory in memory that
                ends with the run, no network but loopback
    landlock    writes only below its own directory, no TCP, no signals to others
    process     signals only to itself and younger processes (seccomp), a sweep of all descendants
                (the keeper is their subreaper)

At the levels landlock and process, root becomes `nobody` where that user can read Python.

At every level: no new privileges, no capabilities, limits on address space, files and processes.
The memory limit is watched. A seccomp filter ends a program that asks at once for more memory
than the limit. So a failed allocation whose error was caught counts too.

The system is called by ctypes: no module of the standard library has these calls.
"""

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import struct
import sys

from grader.messages import LEVELS, HarnessError

LINUX = sys.platform == "linux"
PROCESSES = 256  # processes and threads of a run
# PyDLL: calls keep the interpreter's lock, so a clone() is whole.
libc = ctypes.PyDLL(None, use_errno=True)
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
NOSUID, NODEV, NOEXEC, RDONLY, REC, PRIVATE = 2, 4, 8, 1, 0x4000, 0x40000
NOATIME = 0x400
NO_CAPABILITIES = struct.pack("=Ii", 0x20080522, 0)
# Numbers of system calls. signals: kill, tkill, tgkill, rt_sigqueueinfo, pidfd_open.
# lasting: shmget, semget, msgget, mq_open, add_key, request_key, keyctl, which make what outlives a
# process.
MACHINE = {
    "x86_64": dict(
        arch=0xC000003E,
        mmap=9,
        mremap=25,
        clone=56,
        signals=(62, 200, 234, 129, 434),
        traces=(101, 310, 311),
        lasting=(29, 64, 68, 240, 248, 249, 250),
    ),
    "aarch64": dict(
        arch=0xC00000B7,
        mmap=222,
        mremap=216,
        clone=220,
        signals=(129, 130, 131, 138, 434),
        traces=(117, 270, 271),
        lasting=(194, 190, 186, 180, 217, 218, 219),
    ),
}.get(os.uname().machine)


def prctl(what, value):
    return libc.prctl(what, value, 0, 0, 0) if LINUX else -1


def system(result, what):
    """The result of a C call. Raises OSError if it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def mount(source, target, kind, flags, data=None):
    system(
        libc.mount(source, target.encode(), kind, ctypes.c_ulong(flags), data), f"mount {target}"
    )


def choose_level():
    """Build the strongest walls there are around the server.

    Returns (level, uid of nobody or None, why it is not the strongest level).
    """
    strongest = os.environ.get("RA3_SANDBOX_LEVEL", LEVELS[0])
    if strongest not in LEVELS:
        raise HarnessError(f"RA3_SANDBOX_LEVEL={strongest}: expected one of {', '.join(LEVELS)}")
    why = "" if strongest == LEVELS[0] else f" (asked for {strongest})"
    if strongest == "namespaces":
        trouble = trial(try_namespaces) if LINUX and MACHINE else "not Linux"
        if not trouble:
            enter_namespaces()
            return "namespaces", None, ""
        why = f" (no namespaces: {trouble})"
    nobody = None
    if LINUX and os.geteuid() == 0 and not trial(try_nobody):
        nobody = 65534
    # 444: landlock_create_ruleset, asked for its version
    if strongest != "process" and LINUX and libc.syscall(444, None, 0, 1) >= 1:
        return "landlock", nobody, why
    return "process", nobody, why


def trial(function):
    """Run a function in a child; what it raised, as text, or "" if all went well."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as e:
            os.write(writing, (str(e) or repr(e)).encode()[:500])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as f:
        said = f.read().decode()
    status = os.waitpid(pid, 0)[1]
    return said or (f"status {status}" if status else "")


def enter_namespaces():
    """Of the server: a read-only machine without network, in which this user seems privileged."""
    uid, gid = os.geteuid(), os.getegid()
    system(libc.unshare(NEWUSER | NEWNS | NEWNET | NEWIPC), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as f:
            f.write(text)
    mount(None, "/", None, REC | PRIVATE)
    attributes = struct.pack("4Q", RDONLY, 0, 0, 0)
    # 0x8000: recursively
    system(libc.syscall(442, -100, b"/", 0x8000, attributes, len(attributes)), "mount_setattr")
    mount(b"ra3", "/dev/shm", b"tmpfs", NOSUID | NODEV, b"size=1m,mode=0755")  # hides what is there
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:  # loopback up
        fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 1 | 64))


def enter_processes():
    """Of the keeper: a view of its own processes only, and a limit on their number."""
    try:
        mount(b"proc", "/proc", b"proc", NOSUID | NODEV | NOEXEC)
    except OSError:  # a container that masks parts of /proc forbids it: none, then
        mount(b"ra3", "/proc", b"tmpfs", NOSUID | NODEV | NOEXEC | RDONLY, b"size=4k")
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/pid_max", "w") as f:  # of this namespace, since Linux 6.14
            f.write(str(300 + PROCESSES))


def try_namespaces():
    enter_namespaces()
    pid = clone(NEWPID | NEWNS)
    if pid == 0:
        try:
            enter_processes()
            os._exit(0)
        except OSError as e:
            os._exit(e.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code) if code > 0 else f"signal {-code}")


def try_nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    for folder in {p for p in sys.path if os.path.isdir(p)} | {os.path.dirname(os.__file__)}:
        os.listdir(folder)
    importlib.import_module("colorsys")  # of the standard library, and not imported yet


def clone(flags):
    """fork() into new namespaces."""
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = libc.syscall(
        MACHINE["clone"], ctypes.c_ulong(flags | signal.SIGCHLD), None, None, None, None
    )
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return system(pid, "clone")


def landlock(cwd):
    """Of a program: from now on it writes below cwd and to /dev/null only.

    It opens no TCP connection, and signals nobody outside.
    """
    version = libc.syscall(444, None, 0, 1)
    writes = sum(
        1 << bit
        for bit in (
            1,
            4,
            5,
            6,
            7,
            8,
            9,
            10,
            11,
            12,
            *([13] * (version >= 2)),
            *([14] * (version >= 3)),
        )
    )
    ruleset = struct.pack("QQQ", writes, 3 if version >= 4 else 0, 3 if version >= 6 else 0)[
        : 8 if version < 4 else 16 if version < 6 else 24
    ]
    fd = system(libc.syscall(444, ruleset, len(ruleset), 0), "landlock")
    for path, allowed in ((cwd, writes), ("/dev/null", 2 | writes & 1 << 14)):
        beneath = os.open(path, os.O_PATH)
        system(libc.syscall(445, fd, 1, struct.pack("=Qi", allowed, beneath), 0), "landlock")
        os.close(beneath)
    system(libc.syscall(446, fd, 0), "landlock")
    os.close(fd)


# Of seccomp filters.
LOAD, EQUAL, GREATER, AT_LEAST, RETURN, ALLOW, KILL, REFUSE = (
    0x20,
    0x15,
    0x25,
    0x35,
    0x06,
    0x7FFF0000,
    0x80000000,
    0x50001,
)


def filter_calls(code):
    """Install a seccomp filter, behind a check of the machine.

    code: steps (operation, jump if true, jump if false, operand).
    """
    code = [
        (LOAD, 0, 0, 4),
        (EQUAL, 1, 0, MACHINE["arch"]),
        (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, 0),
        *code,
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
    rule = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(code))
    )
    system(libc.prctl(22, 2, rule, 0, 0), "seccomp")


def forbid_large_mappings(most):
    """A single mmap or mremap of more than `most` bytes ends the process with SIGSYS."""
    high, low = most >> 32, most & 0xFFFFFFFF

    # Is the 64-bit argument at this offset larger? `on`: instructions from behind this to ALLOW.
    def too_large(at, on):
        return [
            (LOAD, 0, 0, at + 4),
            (GREATER, on + 4, 0, high),
            (EQUAL, 0, on + 2, high),
            (LOAD, 0, 0, at),
            (GREATER, on + 1, on, low),
        ]

    filter_calls(
        [
            (EQUAL, 1, 0, MACHINE["mmap"]),
            (EQUAL, 5, 10, MACHINE["mremap"]),
            *too_large(24, 5),  # mmap's length
            *too_large(32, 0),  # mremap's new length
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, KILL),
        ]
    )


def forbid_lasting():
    """No System V memory, semaphores or queues, no POSIX queues, no keys.

    The next run would find them.
    """
    calls = MACHINE["lasting"]
    filter_calls(
        [
            *((EQUAL, len(calls) - i, 0, call) for i, call in enumerate(calls)),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, REFUSE),
        ]
    )


def forbid_signals_out(pid):
    """Without a namespace of processes: signals go only to the process itself and to younger ones.

    They also go to its own groups. All processes of the grader are older.
    """
    never, asked = MACHINE["traces"], MACHINE["signals"]
    n = len(never) + len(asked)
    filter_calls(
        [
            *((EQUAL, n - i + 5, 0, call) for i, call in enumerate(never)),  # to REFUSE
            *((EQUAL, len(asked) - i, 0, call) for i, call in enumerate(asked)),
            (RETURN, 0, 0, ALLOW),  # to the next line
            (LOAD, 0, 0, 16),
            (AT_LEAST, 2, 0, 0x80000000),
            (EQUAL, 3, 0, 0),
            (AT_LEAST, 2, 1, pid),
            (GREATER, 0, 1, (1 << 32) - pid),
            (RETURN, 0, 0, REFUSE),
            (RETURN, 0, 0, ALLOW),
        ]
    )


def peak_memory(pid):
    """The largest address space that a process had, bytes; 0 if it cannot be known."""
    try:
        with open(f"/proc/{pid}/status", "rb") as f:
            return 1024 * int(f.read().partition(b"VmPeak:")[2].split()[0])
    except (OSError, IndexError):
        return 0
