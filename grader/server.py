"""The server: forks a tester for each run, has the keeper start the program, and holds the clock. Started by client.py, through boot.py."""

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
from grader.tester import Peer, test
from grader.walls import NEWNS, NEWPID, choose_level, clone, prctl

USUAL = """abc argparse array bisect calendar cmath collections.abc copy dataclasses datetime decimal enum fractions functools hashlib heapq itertools
    json math numbers operator os.path queue random re statistics string sys textwrap time traceback typing""".split()


def serve(register_at_fork, fd, memory, most_output):
    """The server: one run after the other, until the trainer hangs up or dies."""
    sock = socket.socket(fileno=fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in USUAL:
        importlib.import_module(name)
    os.register_at_fork = register_at_fork
    level, nobody, why = choose_level()
    folder = (
        None
        if level == "namespaces"
        else os.path.join(os.environ["TMPDIR"], f"ra3-grade-{os.urandom(8).hex()}")
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gc.collect()
    gc.freeze()
    try:
        if folder:
            os.mkdir(folder, 0o711)
        control, theirs = socket.socketpair()
        if (clone(NEWPID | NEWNS) if level == "namespaces" else os.fork()) == 0:
            keep(theirs, memory, most_output, level, folder, nobody)
        theirs.close()
        prctl(4, 0)  # PR_SET_DUMPABLE: no other process of the user looks into this one
        send(sock, marshal.dumps((level, folder, why)))
        while header := receive(sock):
            mode, seconds, numpy = marshal.loads(header)
            if numpy:
                with contextlib.suppress(ImportError):
                    import numpy  # once, not once a run

                    gc.freeze()
            answer = serve_run(sock, control, mode, seconds, memory, most_output, folder, nobody)
            if answer is None:
                break
            send(sock, marshal.dumps(answer))
    except OSError:  # the trainer died
        pass
    finally:
        sweep()
        if folder:
            remove(folder)


def serve_run(sock, control, mode, seconds_limit, memory, most_output, folder, nobody):
    """One run, watched from outside -> (verdict, seconds, output, detail); None if the trainer hung up meanwhile."""
    out, err, feed = (memory_file(name) for name in ("stdout", "stderr", "stdin"))
    reading, writing = os.pipe()
    watch, watched = os.pipe()
    ours, theirs = socket.socketpair()
    cwd = folder and os.path.join(folder, "run")  # with namespaces the keeper has one
    if cwd:
        os.mkdir(cwd, 0o700)
        if nobody:
            os.chown(cwd, nobody, nobody)
    pid = os.fork()
    if pid == 0:
        os.close(reading), control.close(), theirs.close(), os.close(watched)
        test(sock, writing, Peer(ours, watch), mode, memory, feed)
    socket.send_fds(
        control, [mode.encode()], [theirs.fileno(), watched, feed, out, err]
    )  # after the fork: see forbid_signals_out
    os.close(writing), os.close(watch), os.close(watched), ours.close(), theirs.close()
    said, start, hung_up, timed_out = b"", None, False, False
    deadline = time.perf_counter() + START_LIMIT
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(sock, getattr(select, "POLLRDHUP", 0))
    while True:
        ready = dict(poll.poll(max(0, 1000 * (deadline - time.perf_counter()))))
        if sock.fileno() in ready:
            hung_up = True
            break
        if reading in ready:
            part = os.read(reading, 1 << 16)
            if not part:
                break
            if start is None and part[:1] == b"R":
                part, start = part[1:], time.perf_counter()
                deadline = start + seconds_limit
            said += part
        elif time.perf_counter() >= deadline:
            timed_out = start is not None
            break
    seconds = time.perf_counter() - (start or deadline)
    if hung_up or timed_out or not said:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.close(reading)
    control.sendall(b"S")  # the keeper ends all that is left of the run
    control.settimeout(START_LIMIT)
    clean = control.recv(1) == b"C"
    output = os.pread(out, most_output + 1, 0) if mode == "stdio" else b""
    too_much = sum(os.fstat(f).st_size for f in (out, err)) > most_output
    os.close(out), os.close(err), os.close(feed)
    if cwd:
        remove(cwd)
    if hung_up:
        return None
    if not clean:
        raise OSError("the keeper ended")
    if timed_out:
        return "timeout", seconds, b"", ""
    if status or not said:  # a clean exit of the tester, and its one message
        return (
            "harness_error",
            0.0,
            b"",
            f"the tester ended with status {status} after {said[-300:]!r}"
            if start
            else "the run did not start",
        )
    verdict, detail = marshal.loads(said)
    return (
        ("output_limit" if too_much and verdict != "harness_error" else verdict),
        seconds,
        output,
        detail,
    )


def memory_file(name):
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as f:
        return os.dup(f.fileno())
