"""What the grader's processes say to each other: verdicts, levels, and messages over sockets.

A message is 8 bytes of length, then the bytes.
"""

import struct

# Where several verdicts apply, the first of this order is given: timeout, output_limit,
# memory_limit, abnormal_exit, then the rest.
VERDICTS = {
    "passed": "every assertion completed and held",
    "wrong_answer": "an assertion failed, or an output differs",
    "exception": "the program, or a call that the tests made, raised something else",
    "syntax_error": "the program does not compile",
    "timeout": "no verdict within the time limit",
    "memory_limit": "the program took, or asked for, more memory than the limit, "
    "whatever it did next",
    "output_limit": "it wrote more than the limit to its output or to a file",
    "abnormal_exit": "the process ended, or tried to end, before the tests did; "
    "a stdio program ended with a status other than 0",
}
LEVELS = ("namespaces", "landlock", "process")
# Seconds for a server or a run to start. More is a fault of the machine, not of the program.
START_LIMIT = 60.0


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


def receive(sock, most=1 << 40):
    """The next message, or None at the end of the stream. Raises TooLong.

    The ends speak in turn, so nothing follows a message.
    """
    chunk = sock.recv(1 << 16)
    while chunk and len(chunk) < 8:
        more = sock.recv(1 << 16)
        chunk = chunk + more if more else b""
    if not chunk:
        return None
    size = struct.unpack_from("<Q", chunk)[0] + 8
    if size == len(chunk):
        return chunk[8:]
    if size > 1 << 40 or size < len(chunk):  # no message
        return None
    if size > most:
        raise TooLong
    chunks, missing = [chunk[8:]], size - len(chunk)
    while missing:
        chunk = sock.recv(min(missing, 1 << 20))
        if not chunk:
            return None
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)
