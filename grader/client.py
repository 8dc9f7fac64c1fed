"""The trainer's end of a server: starts it, sends it runs, ends it."""

import contextlib
import marshal
import os
import socket
import subprocess
import sys
import tempfile

from grader.leftovers import remove
from grader.messages import LEVELS, START_LIMIT, HarnessError, receive, send

BOOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "boot.py")


def server_environment():
    """All environment variables of the server."""
    return dict(
        PATH="/usr/local/bin:/usr/bin:/bin",
        LANG="C.UTF-8",
        PYTHONHASHSEED="0",
        PYTHONUTF8="1",
        PYTHONSAFEPATH="1",
        PYTHONDONTWRITEBYTECODE="1",
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        MALLOC_ARENA_MAX="2",
        TMPDIR=tempfile.gettempdir(),
        RA3_SANDBOX_LEVEL=os.environ.get("RA3_SANDBOX_LEVEL", LEVELS[0]),
    )


def start_server(fd, env, memory_limit, output_limit):
    """Start a server that speaks over the socket `fd` -> its process. Raises OSError."""
    arguments = (fd, memory_limit, output_limit, int(sys.dont_write_bytecode))
    return subprocess.Popen(
        [sys.executable, "-s", BOOT, *map(str, arguments)],
        env=env,
        cwd="/",
        pass_fds=[fd],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


class Server:
    """A server process and the socket to it. Starts at the first run, and again after it died."""

    told = False  # has this process told the level?

    def __init__(self):
        self.process = self.sock = self.level = self.folder = None

    def start(self, memory_limit, output_limit):
        self.sock, theirs = socket.socketpair()
        env = server_environment()
        with theirs:
            try:
                self.process = start_server(theirs.fileno(), env, memory_limit, output_limit)
            except OSError as e:
                raise HarnessError(
                    f"the server could not be started with {sys.executable}: {e.strerror}"
                ) from e
        self.sock.settimeout(START_LIMIT)
        hello = receive(self.sock)
        if hello is None:
            raise HarnessError("the server ended before it was ready")
        self.level, self.folder, why = marshal.loads(hello)
        if not Server.told:
            Server.told = True
            print(f"grader: isolation level {self.level}{why}", file=sys.stderr, flush=True)

    def run(self, mode, body, limits, numpy, stop):
        """One run -> (verdict, seconds, output, apart). Tried twice. Raises HarnessError."""
        for attempt in range(2):
            try:
                if self.process is None:
                    self.start(*limits[1:])
                send(self.sock, marshal.dumps((mode, limits[0], numpy, marshal.dumps(body))))
                self.sock.settimeout(limits[0] + 2 * START_LIMIT)
                answer = receive(self.sock)
                if answer is None:
                    raise HarnessError("the server ended in the middle of a run")
                verdict, seconds, output, apart, detail = marshal.loads(answer)
                if verdict == "harness_error":
                    raise HarnessError(detail)
                return verdict, seconds, output, apart
            except (HarnessError, OSError) as e:
                self.close()
                if stop.is_set():
                    raise HarnessError("grading was interrupted") from None
                if attempt:
                    raise (
                        e if isinstance(e, HarnessError) else HarnessError(f"lost the server: {e}")
                    ) from e

    def hang_up(self):
        """End the conversation; the server ends its run and leaves nothing. From any thread."""
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        if self.process:
            self.hang_up()
            try:
                self.process.wait(START_LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.sock.close()
            if self.folder:
                remove(self.folder)  # the server did, unless it was killed
        elif self.sock:
            self.sock.close()
        self.process = self.sock = self.folder = None
