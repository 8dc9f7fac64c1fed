"""What the grader's processes say to each other: verdicts, levels, and messages over sockets (8 bytes of length, then the bytes)."""

import struct

VERDICTS = {  # where several apply: the first of timeout, output_limit, memory_limit, abnormal_exit, then the rest
    "passed": "every assertion completed and held",
    "wrong_answer": "an assertion failed, or an output differs",
    "exception": "the program, or a call that the tests made, raised something else",
    "syntax_error": "the program does not compile",
    "timeout": "no verdict within the time limit",
    "memory_limit": "the program took, or asked for, more memory than the limit, whatever it did next",
    "output_limit": "it wrote more than the limit to its output or to a file",
    "abnormal_exit": "the process ended, or tried to end, before the tests did; a stdio program ended with a status other than 0",
}
LEVELS = ("namespaces", "landlock", "process")
START_LIMIT = 60.0  # seconds for a server or a run to start; more is a fault of the machine, not of the program


class HarnessError(RuntimeError):
    """The grader failed, not the program."""


class TooLong(Exception):
    """A message is longer than the reader takes."""


def ended_by(e):
    """The verdict on an exception that nobody caught."""
    kind = type(e)
    return (
        "memory_limit"
        if issubclass(kind, MemoryError)
        else "abnormal_exit"
        if issubclass(kind, SystemExit)
        else "exception"
    )


def send(sock, data):
    sock.sendall(struct.pack("<Q", len(data)) + data)


def receive(sock, most=1 << 40, before=None):
    """The next message, or None at the end of the stream. before: called before each wait. Raises TooLong."""

    def exactly(size):
        parts = []
        while size:
            if before:
                before()
            part = sock.recv(min(size, 1 << 20))
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    head = exactly(8)
    size = head and struct.unpack("<Q", head)[0]
    if size and size > most:
        raise TooLong
    return head and exactly(size)
