"""What one process may ask of objects in the other."""

import copy
import operator
import types

from grader.mirrors import is_remote
from grader.values import SPECIALS

BUILTIN = {
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__contains__": operator.contains,
    "__iter__": iter,
    "__len__": len,
    "__repr__": repr,
    "__str__": str,
    "__hash__": hash,
    "__bool__": bool,
    "__format__": format,
    "__next__": next,
}
NAMES = {"__name__", "__qualname__", "__doc__", "__module__"}
FRAMES = ("gi_", "cr_", "ag_", "f_", "tb_", "co_", "func_")


def call_special(value, name, args, kwargs):
    """A special method, found on the type as the interpreter does."""
    if name in BUILTIN:
        return BUILTIN[name](value, *args, **kwargs)
    return getattr(type(value), name)(value, *args, **kwargs)


def operations_of(link):
    """The operations that both ends know: name -> function."""

    def finish(value):
        """Run an awaitable to its end."""
        import asyncio

        async def wait():
            return await value

        if not link.loop:
            link.loop.append(asyncio.new_event_loop())
            asyncio.set_event_loop(link.loop[0])
        return link.loop[0].run_until_complete(wait())

    return {
        "call": lambda function, args, kwargs: function(*args, **kwargs),
        "method": lambda value, name, args, kwargs: getattr(value, name)(*args, **kwargs),
        "get": getattr,
        "set": setattr,
        "delete": delattr,
        "special": call_special,
        "dir": lambda value: list(dir(value)),
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "isinstance": isinstance,
        "await": finish,
        "subclass": subclass,
        "call_member": lambda cls, name, value, args, kwargs: getattr(cls, name)(
            value, *args, **kwargs
        ),
    }


def subclass(name, bases, body, kwargs):
    return types.new_class(name, bases, kwargs, lambda space: space.update(body))


def permitted(name):
    """May the program ask for this attribute of an object of the tests?"""
    if type(name) is not str:
        return False
    return name in NAMES or name in SPECIALS or not name.startswith(("_", *FRAMES))


def guarded(link):
    """The operations that a program may ask of the tests: calls and public attributes."""
    operations = operations_of(link)

    def allow(operation):
        def limited(value, name, *rest):
            if not permitted(name):
                raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
            return operations[operation](value, name, *rest)

        return limited

    limited = {name: allow(name) for name in ("method", "get", "set", "delete", "special")}
    limited["call"] = operations["call"]
    limited["dir"] = lambda value: [name for name in dir(value) if permitted(name)]
    return limited


def run_here_or_there(link, function, operation):
    """A function of a module: done in the program where an argument is an object of the program."""

    def call(*args, **kwargs):
        if any(is_remote(value) for value in (*args, *kwargs.values())):
            return link.request("call", operation(), args, kwargs)
        return function(*args, **kwargs)

    return call
