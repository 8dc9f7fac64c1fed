"""The keeper: parent of the programs.

It starts each in the same surroundings and limits, watches it, and ends all that is left of its
run.
"""

import atexit
import contextlib
import gc
import io
import os
import resource
import select
import signal
import socket
import sys
import threading
import traceback

from grader.leftovers import sweep
from grader.program import program
from grader.walls import (
    LINUX,
    MACHINE,
    NOATIME,
    NODEV,
    NOSUID,
    PROCESSES,
    enter_processes,
    forbid_large_mappings,
    forbid_lasting,
    libc,
    mount,
    peak_memory,
    prctl,
    system,
)


def keep(control, memory, most_output, level, folder, nobody):
    """Starts a process for each run, watches it, and ends all that is left of it.

    The keeper never sees a program or a test, so a fork of it is clean. At level namespaces it is
    init of its namespace of processes, and its kill(-1) reaches every process of a run. At the
    other levels it is their subreaper. Never returns.
    """
    status = 1
    try:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not without the server
        prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
        if level == "namespaces":
            enter_processes()
        cwd = os.path.join(folder, "run") if folder else "/dev/shm/run"
        streams = dress(cwd, memory, most_output)
        prctl(4, 0)  # PR_SET_DUMPABLE: no other process of the user looks into this one
        gc.freeze()
        untouched = None  # the state of the directory; None: there is none
        while True:
            mode, fds, _, _ = socket.recv_fds(control, 64, 5)
            if not mode:
                break
            channel, watch, *files = fds
            if level == "namespaces" and untouched is None:
                untouched = mount_directory(cwd)
            pid = os.fork()
            if pid == 0:
                try:
                    program(channel, mode.decode(), level, cwd, nobody, files, streams)
                except BaseException:
                    traceback.print_exc()
                os._exit(70)
            for fd in files:
                os.close(fd)
            with socket.socket(fileno=channel) as link:
                watch_run(control, watch, link, pid, memory, level)
            os.close(watch)
            if level == "namespaces" and directory_state(cwd) != untouched:
                system(libc.umount2(b"/dev/shm", 2), "umount")
                untouched = None
            control.sendall(b"C")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def mount_directory(cwd):
    """A directory in memory for the next run -> its state."""
    options = b"size=512m,nr_inodes=20k,mode=0755"
    mount(b"ra3", "/dev/shm", b"tmpfs", NOSUID | NODEV | NOATIME, options)
    os.mkdir(cwd, 0o700)
    return directory_state(cwd)


def directory_state(cwd):
    """All that a run could leave in its directory; None if the directory cannot be read.

    A directory that no run touched serves the next run.
    """
    try:
        below = os.path.dirname(cwd)
        facts = [os.listdir(below), os.listdir(cwd), os.listxattr(below), os.listxattr(cwd)]
        for path in (below, cwd):
            s = os.stat(path)
            facts.append((s.st_ino, s.st_mode, s.st_uid, s.st_nlink, s.st_mtime_ns, s.st_ctime_ns))
        return facts
    except OSError:
        return None


def why_too_much(pid, memory, level):
    """M for too much memory, N for too many processes, else S."""
    if peak_memory(pid) > memory:
        return b"M"
    many = level == "namespaces" and sum(map(str.isdigit, os.listdir("/proc"))) > PROCESSES
    return b"N" if many else b"S"


def watch_run(control, watch, link, pid, memory, level):
    """Watch a run until the server says that it is over; then end whatever is left of it.

    How the program's process ended goes to `watch`, as a letter and its status. The letter is M if
    it took too much memory, N if it made too many processes, else S.
    """
    poll, reason, status, over = select.poll(), b"S", None, False
    poll.register(control, select.POLLIN)
    handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    if handle is not None:
        poll.register(handle, select.POLLIN)
    while not over:
        ready = dict(poll.poll(50))
        if status is None:
            reason = why_too_much(pid, memory, level)
            if reason != b"S":
                os.kill(pid, signal.SIGKILL)
            ended, how = os.waitpid(pid, 0 if reason != b"S" else os.WNOHANG)
            if ended:
                status = how
                with contextlib.suppress(BrokenPipeError):  # the tester has its verdict already
                    os.write(watch, b"%s%d" % (reason, status))
                with contextlib.suppress(OSError):  # its children may hold the link, too
                    link.shutdown(socket.SHUT_RDWR)
                if handle is not None:
                    poll.unregister(handle)
        if control.fileno() in ready:
            over = True
            control.recv(1)  # at its end, too: the server is gone
    if handle is not None:
        os.close(handle)
    if level == "namespaces":
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
    else:
        if not LINUX:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        sweep()


def dress(cwd, memory, most_output):
    """What all programs find, done once: limits, seccomp, environment, streams, signals.

    Returns the three streams.
    """
    limit_resources(memory, most_output)
    for number in (signal.SIGTERM, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(
        PATH="/usr/local/bin:/usr/bin:/bin",
        HOME=cwd,
        TMPDIR=cwd,
        LANG="C.UTF-8",
        PYTHONHASHSEED="0",
        PYTHONUTF8="1",
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
    )
    threading.stack_size(8 << 20)
    atexit._clear()
    sys.argv[:], sys.path[:0] = [os.path.join(cwd, "program.py")], [cwd]
    return open_streams()


def limit_resources(memory, most_output):
    """Limits and seccomp filters of the keeper and of all its children."""
    seccomp = LINUX and MACHINE
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, most_output + 1),
        (resource.RLIMIT_NOFILE, 4096),
        (resource.RLIMIT_AS, 2 * memory + (64 << 20) if seccomp else memory),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit of address space
            resource.setrlimit(limit, (value, value))
    if LINUX:
        system(prctl(38, 1), "no new privileges")
    if seccomp:
        forbid_large_mappings(memory)
        forbid_lasting()


def open_streams():
    """stdin, stdout and stderr on the descriptors 0 to 2, as the interpreter opens them."""
    streams = []
    for fd, (name, mode) in enumerate((("<stdin>", "r"), ("<stdout>", "w"), ("<stderr>", "w"))):
        stream = io.TextIOWrapper(
            open(fd, mode + "b", closefd=False),
            "utf-8",
            "surrogateescape" if fd < 2 else "backslashreplace",
            "\n",
            fd == 2,
        )
        stream.buffer.raw.name, stream.mode = name, mode
        streams.append(stream)
    return streams
