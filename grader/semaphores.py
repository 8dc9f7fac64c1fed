"""Semaphores and shared memory for programs that may not write to /dev/shm (level landlock).

The C library keeps a named semaphore in a file there. multiprocessing never uses the name: it
removes the file at once, and processes inherit the semaphore. So a semaphore without a name, in
memory that forks share, does the same.
"""

import ctypes
import os

SIZE = 32  # bytes of a sem_t, at most


def without_files():
    """Of the server: what multiprocessing finds in every program from now on."""
    try:
        import _multiprocessing
        import _posixshmem
        import mmap
        import multiprocessing.heap
    except ImportError:
        return
    library, memory = ctypes.CDLL(None, use_errno=True), []

    class SemLock(_multiprocessing.SemLock):
        def __new__(cls, kind, value, maxvalue, name=None, unlink=True):
            block = mmap.mmap(-1, SIZE)
            address = ctypes.addressof(ctypes.c_char.from_buffer(block))
            if library.sem_init(ctypes.c_void_p(address), 1, value):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            memory.append(block)
            return cls._rebuild(address, kind, maxvalue, None)

    def place(name):
        return os.path.join(os.environ["TMPDIR"], "shm" + name.replace("/", "_"))

    def shm_open(path, flags, mode=0o777):
        return os.open(place(path), flags | os.O_CLOEXEC, mode)

    def shm_unlink(path):
        os.unlink(place(path))

    _multiprocessing.SemLock = SemLock
    multiprocessing.heap.Arena._dir_candidates = []
    _posixshmem.shm_open, _posixshmem.shm_unlink = shm_open, shm_unlink
