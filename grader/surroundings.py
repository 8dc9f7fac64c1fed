"""What the tests import.

Modules are the tests' own, but for what has a state that they share with the program. A file, an
output stream or a patched function must be the program's to have an effect on it, so these names
lead to the program's process. Everything that decides a comparison stays here.
"""

import builtins
import decimal
import importlib
import os
import random
import sys
import types

from grader.mirrors import Method, Mirror, is_remote
from grader.operations import run_here_or_there

WHOLE = {  # modules that are the program's, but for their constants
    *"io tempfile shutil glob pathlib subprocess locale logging warnings gc weakref".split(),
    *"tarfile gzip zipfile configparser linecache fileinput sqlite3 mmap tracemalloc".split(),
    *"pickle marshal shelve ctypes runpy inspect multiprocessing".split(),
    "unittest.mock",
}
PART = {  # names that are the program's
    "sys": """stdin stdout stderr argv path modules setrecursionlimit getrecursionlimit settrace
        gettrace setprofile displayhook excepthook""".split(),
    "contextlib": ["redirect_stdout", "redirect_stderr", "chdir"],
    "importlib": ["import_module", "reload", "util"],
    "builtins": ["open", "input", "print"],
}
OF_OS = set("name sep linesep pathsep curdir pardir extsep devnull fspath PathLike".split())
OF_PATHS = set("join basename dirname split splitext normpath isabs commonprefix sep".split())
EITHER = {  # functions that work where their arguments are
    "dataclasses": "asdict astuple replace fields is_dataclass".split(),
    "typing": ["get_type_hints"],
    "asyncio": ["wait_for"],
    "sys": ["getsizeof", "getrefcount"],
    "json": ["dumps", "dump"],
    "pprint": ["pformat"],
}
CONSTANTS = (int, float, str, bytes, bool, type(None), tuple, frozenset)


BUILTINS = dict(vars(builtins))  # of the tests: one run a process, so it is copied once


class Overlay(types.ModuleType):
    """A module of the tests. What they change in it is changed in the program's, too."""

    def __getattr__(self, name):
        link, module, remote = vars(self)["_ra3_module"]
        if name in remote:
            value = link.request("get", remote_module(link, module.__name__), name)
            if is_remote(value):
                link.libraries.add(value if isinstance(value, Mirror) else type(value))
            return value
        return getattr(module, name)

    def __setattr__(self, name, value):
        link, module, remote = vars(self)["_ra3_module"]
        if name not in remote:
            vars(self)[name] = value
        link.request("set", remote_module(link, module.__name__), name, value)

    def __delattr__(self, name):
        link, module, remote = vars(self)["_ra3_module"]
        vars(self).pop(name, None)
        link.request("delete", remote_module(link, module.__name__), name)


def remote_module(link, name):
    if name not in link.modules:
        link.modules[name] = link.request("import", name)
    return link.modules[name]


def remote_names(module):
    """The names of a module that are the program's."""
    name = module.__name__
    if name == "os":
        names = set(vars(module)) - OF_OS
        return {n for n in names if n == "environ" or callable(getattr(module, n))} - {"error"}
    if name == os.path.__name__:
        return {n for n in vars(module) if callable(getattr(module, n))} - OF_PATHS
    if name in WHOLE:
        return {n for n, v in vars(module).items() if not isinstance(v, CONSTANTS)}
    return set(PART.get(name, ()))


class Surroundings:
    """The builtins of the tests."""

    def __init__(self, link, uses, constants):
        self.link = link
        self.constants = set(constants)
        self.builtins = BUILTINS
        self.builtins["__import__"] = self.import_module
        shared = {"stdout", "stderr", "redirect_stdout", "redirect_stderr"}
        names = {"open", "input"} | ({"print"} if shared & set(uses) else set())
        for name in names & set(uses):
            self.builtins[name] = self.forwarded(name)
        for name in {"eval", "exec", "compile"} & set(uses):
            self.builtins[name] = self.evaluator(name)

    @staticmethod
    def method(value, name):
        """A method that is called at once."""
        cls = type(value)
        if type(cls) is Mirror and name not in cls.__dict__.get("_ra3_here", ()):
            link = object.__getattribute__(value, "_ra3")[0]
            if name.startswith("assert"):  # a mock's: it decides where the program is
                link.apart = False
            if name not in ("with_traceback", "add_note"):
                return Method(link, value, name)
        return getattr(value, name)

    def forwarded(self, name):
        def call(*args, **kwargs):
            module = remote_module(self.link, "builtins")
            return self.link.call(module, args, kwargs, name)

        return call

    def evaluator(self, name):
        """eval and exec: text that does not stand in the tests is run where the program is."""
        builtin = vars(builtins)[name]

        def run(source, *scopes):
            if type(source) is str and source in self.constants:
                frame = sys._getframe(1)
                scopes = scopes or ((frame.f_globals, frame.f_locals) if name != "compile" else ())
                return builtin(source, *scopes)
            if name == "compile":
                return self.link.call(
                    remote_module(self.link, "builtins"), (source, *scopes), {}, name
                )
            return self.link.request(name, source, *scopes)

        return run

    def import_module(self, name, globals=None, locals=None, fromlist=(), level=0):
        if name in ("program", "solution") and not level:
            return remote_module(self.link, "program")
        module = builtins.__import__(name, globals, locals, fromlist, level)
        if name.split(".")[0] not in sys.stdlib_module_names:
            return module
        if fromlist:
            for member in fromlist:
                self.stand_in(self.link, f"{name}.{member}", missing_ok=True)
        elif "." in name:
            self.stand_in(self.link, name)
        return self.stand_in(self.link, module.__name__)

    @staticmethod
    def stand_in(link, name, missing_ok=False):
        """The tests' view of a module of the standard library."""
        if name in link.overlays:
            return link.overlays[name]
        module = sys.modules.get(name)
        if module is None:
            if missing_ok:
                return None
            module = importlib.import_module(name)
        if name.split(".")[0] not in sys.stdlib_module_names:
            return module
        view = link.overlays[name] = Overlay(name)
        remote = remote_names(module)
        space = {n: v for n, v in vars(module).items() if n not in remote}
        for function in EITHER.get(name, ()):
            space[function] = either(link, module, function)
        if name == "os":
            space["path"] = Surroundings.stand_in(link, os.path.__name__)
        vars(view).update(space, _ra3_module=(link, module, remote))
        parent, _, last = name.rpartition(".")
        if parent and parent != "os":
            vars(Surroundings.stand_in(link, parent))[last] = view
        return view


def either(link, module, function):
    def there():
        return link.request("get", remote_module(link, module.__name__), function)

    return run_here_or_there(link, getattr(module, function), there)


# -------------------------------------------------------------------------------- shared state


def share_random(link):
    """The tests and the program draw from one state of `random`: brought along where it changed."""
    known = [None]

    def before():
        state = random.getstate()
        if state != known[0]:
            known[0] = state
            link.request("set_random", state)

    def after():
        state = link.request("random_changes")
        if state is not None:
            random.setstate(state)
            known[0] = random.getstate()

    link.on_call.append(before)
    link.on_return.append(after)


def share_decimal_context(link):
    """Precision and rounding that the tests set hold in the program."""
    known = [None]

    def before():
        context = decimal.getcontext()
        settings = context.prec, context.rounding
        if settings != known[0]:
            known[0] = settings
            link.request("set_decimal", *settings)

    link.on_call.append(before)


def share_states(link, uses, text):
    """Share what the tests name, and the program could use."""
    if "random" in uses and "random" in text:
        share_random(link)
    if {"getcontext", "setcontext", "localcontext"} & set(uses) and "ecimal" in text:
        share_decimal_context(link)
