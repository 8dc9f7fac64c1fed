"""The server: forks a tester for each run, has the keeper start the program, and holds the clock.

client.py starts it, through boot.py.
"""

import contextlib
import gc
import importlib
import marshal
import os
import select
import signal
import socket
import sys
import tempfile
import time

from grader.keeper import keep
from grader.leftovers import remove, sweep
from grader.messages import START_LIMIT, receive, send
from grader.rehearsal import rehearse
from grader.semaphores import without_files
from grader.tester import Peer, test
from grader.walls import NEWNS, NEWPID, choose_level, clone, peak_memory, prctl

USUAL = """abc argparse array bisect calendar cmath collections.abc copy dataclasses datetime
    decimal enum fractions functools hashlib heapq itertools json math numbers operator os.path
    queue random re statistics string sys textwrap time traceback typing""".split()

SIZE = [0]  # bytes of address space of the server


def serve(register_at_fork, fd, memory, most_output):
    """The server: one run after the other, until the trainer hangs up or dies."""
    sock = socket.socket(fileno=fd)
    level, nobody, why = make_ready(register_at_fork)
    folder = None
    if level != "namespaces":
        folder = os.path.join(os.environ["TMPDIR"], f"ra3-grade-{os.urandom(8).hex()}")
    try:
        if folder:
            os.mkdir(folder, 0o711)
        control, theirs = socket.socketpair()
        if (clone(NEWPID | NEWNS) if level == "namespaces" else os.fork()) == 0:
            keep(theirs, memory, most_output, level, folder, nobody)
        theirs.close()
        prctl(4, 0)  # PR_SET_DUMPABLE: no other process of the user looks into this one
        SIZE[0] = peak_memory("self")
        send(sock, marshal.dumps((level, folder, why)))
        while request := receive(sock):
            mode, seconds, numpy, body = marshal.loads(request)
            if numpy:
                load_numpy()
            run = (mode, seconds, body)
            answer = serve_run(sock, control, run, memory, most_output, folder, nobody)
            if answer is None:
                break
            send(sock, marshal.dumps(answer))
    except OSError:  # the trainer died
        pass
    finally:
        sweep()
        if folder:
            remove(folder)


def make_ready(register_at_fork):
    """All that the server does before its first fork: imports, walls, a rehearsal.

    Returns what `choose_level` does: (level, uid of nobody or None, why not the strongest level).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in USUAL:
        importlib.import_module(name)
    os.register_at_fork = register_at_fork
    level, nobody, why = choose_level()
    if level == "landlock":
        without_files()
    rehearse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gc.collect()
    gc.freeze()
    return level, nobody, why


def load_numpy():
    """Import numpy in the server: once, not once a run."""
    with contextlib.suppress(ImportError):
        importlib.import_module("numpy")
        gc.freeze()
        SIZE[0] = peak_memory("self")


def serve_run(sock, control, run, memory, most_output, folder, nobody):
    """One run, watched from outside -> (verdict, seconds, output, apart, detail).

    None if the trainer hung up meanwhile.
    """
    mode, seconds_limit, body = run
    out, err, feed = (memory_file(name) for name in ("stdout", "stderr", "stdin"))
    reading, writing = os.pipe()
    watch, watched = os.pipe()
    ours, theirs = socket.socketpair()
    cwd = make_run_directory(folder, nobody)
    pid = os.fork()
    if pid == 0:
        os.close(reading), control.close(), theirs.close(), os.close(watched)
        test(body, writing, Peer(ours, watch), mode, memory, feed, SIZE[0])
    # after the fork: see forbid_signals_out
    socket.send_fds(control, [mode.encode()], [theirs.fileno(), watched, feed, out, err])
    os.close(writing), os.close(watch), os.close(watched), ours.close(), theirs.close()
    message, started, seconds, ending = follow_tester(reading, sock, seconds_limit)
    if ending != "closed" or not message:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.close(reading)
    clean = end_run(control)
    output = os.pread(out, most_output + 1, 0) if mode == "stdio" else b""
    too_much = sum(os.fstat(f).st_size for f in (out, err)) > most_output
    os.close(out), os.close(err), os.close(feed)
    if cwd:
        remove(cwd)
    if ending == "hung_up":
        return None
    if not clean:
        raise OSError("the keeper ended")
    if ending == "timeout":
        return "timeout", seconds, b"", True, ""
    if status or not message:  # a clean exit of the tester, and its one message
        return fault_of_tester(status, message, started)
    verdict, apart, detail = marshal.loads(message)
    if too_much and verdict != "harness_error":
        verdict = "output_limit"
    return verdict, seconds, output, apart, detail


def make_run_directory(folder, nobody):
    """An empty directory for a run -> its path; None with namespaces, where the keeper has one."""
    if not folder:
        return None
    cwd = os.path.join(folder, "run")
    os.mkdir(cwd, 0o700)
    if nobody:
        os.chown(cwd, nobody, nobody)
    return cwd


def follow_tester(reading, sock, seconds_limit):
    """Read what the tester writes to the pipe, and hold the clock.

    Returns (message, did the clock start?, seconds, ending). The clock starts at the tester's b"R".
    ending: "closed" if the tester closed its pipe or never started the clock; "timeout" if the time
    was up; "hung_up" if the trainer hung up.
    """
    message, start, ending = b"", None, "closed"
    deadline = time.perf_counter() + START_LIMIT
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(sock, getattr(select, "POLLRDHUP", 0))
    while True:
        ready = dict(poll.poll(max(0, 1000 * (deadline - time.perf_counter()))))
        if sock.fileno() in ready:
            ending = "hung_up"
            break
        if reading in ready:
            data = os.read(reading, 1 << 16)
            if not data:
                break
            if start is None and data[:1] == b"R":
                data = data[1:]
                start = time.perf_counter()
                deadline = start + seconds_limit
            message += data
        elif time.perf_counter() >= deadline:
            if start is not None:
                ending = "timeout"
            break
    return message, start is not None, time.perf_counter() - (start or deadline), ending


def end_run(control):
    """Have the keeper end all that is left of a run -> did it say so?"""
    control.sendall(b"S")
    control.settimeout(START_LIMIT)
    return control.recv(1) == b"C"


def fault_of_tester(status, message, started):
    """The answer where the tester failed, not the program."""
    detail = "the run did not start"
    if started:
        detail = f"the tester ended with status {status} after {message[-300:]!r}"
    return "harness_error", 0.0, b"", True, detail


def memory_file(name):
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as f:
        return os.dup(f.fileno())
