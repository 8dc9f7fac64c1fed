"""What the server's interpreter runs first.

    python boot.py SOCKET MEMORY_LIMIT OUTPUT_LIMIT WITHOUT_BYTECODE

The size of the stack is set before an exec, which lays out the room for deep recursion.

Hooks at fork are not registered. random's hook reseeds. threading's hook looks for threads, and the
server has none. A fork without them costs half, and a run is the same every time.

The grader's files are loaded here, not by the interpreter's import. Their builtins are a copy that
no program can replace. None of them is in sys.modules or on sys.path, where a program would find
it.
"""

import os
import resource
import sys

STACK = 128 << 20  # bytes of the main thread's stack

soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
if sys.platform == "linux" and soft != STACK and (hard == resource.RLIM_INFINITY or hard >= STACK):
    resource.setrlimit(resource.RLIMIT_STACK, (STACK, hard))
    os.execv(sys.executable, sys.orig_argv)
register_at_fork, os.register_at_fork = os.register_at_fork, lambda **hooks: None

import builtins
import importlib.machinery
import types

*numbers, without_bytecode = map(int, sys.argv[1:])
files, own, ordinary = {}, dict(vars(builtins)), builtins.__import__


def import_file(name, *rest):
    """What `import` does in the grader's files while they are loaded.

    The files say `from grader.x import y`.
    """
    if not name.startswith("grader."):
        return ordinary(name, *rest)
    if name not in files:
        path = os.path.join(os.path.dirname(__file__), name.removeprefix("grader.") + ".py")
        files[name] = types.ModuleType(name)
        vars(files[name]).update(__file__=path, __builtins__=own)
        sys.dont_write_bytecode = bool(without_bytecode)  # the next server starts faster
        code = importlib.machinery.SourceFileLoader(name, path).get_code(name)
        sys.dont_write_bytecode = True
        exec(code, vars(files[name]))
    return files[name]


own["__import__"] = import_file
import_file("grader.server")
own["__import__"] = ordinary
files["grader.server"].serve(register_at_fork, *numbers)
