"""Comparisons and truth values of tests that run in one process with the program, whose classes could say yes to everything."""

import collections
import contextlib
import operator
import os
import sys
import types


def guard(named):
    """What the tests' comparisons and truth values become in one process: they fail on a result whose class the program gave its own
    comparisons, if the tests do not name that class (named: a set of names) or if it says yes to everything.

    -> function(value) for a truth value, function(left, operators, *rights) for a comparison.
    """
    operators = {
        "Eq": operator.eq,
        "NotEq": operator.ne,
        "Lt": operator.lt,
        "LtE": operator.le,
        "Gt": operator.gt,
        "GtE": operator.ge,
        "Is": operator.is_,
        "IsNot": operator.is_not,
        "In": lambda a, b: a in b,
        "NotIn": lambda a, b: a not in b,
    }
    library = tuple(sorted({os.path.dirname(os.__file__), *(p for p in sys.path[1:] if p)}))
    deciding = (
        "__eq__",
        "__ne__",
        "__lt__",
        "__le__",
        "__gt__",
        "__ge__",
        "__contains__",
        "__sub__",
        "__rsub__",
        "__bool__",
        "__len__",
        "__hash__",
    )
    plain = (int, float, str, bool, bytes, complex, type(None))
    classes = type.__dict__["__mro__"].__get__

    def own(function):  # is it the program's, and not C or a library's?
        code = getattr(function, "__code__", None)
        return function is not None and (
            code is not None
            and not code.co_filename.startswith(library)
            or code is None
            and callable(function)
            and not isinstance(
                function,
                (
                    types.WrapperDescriptorType,
                    types.MethodDescriptorType,
                    types.BuiltinFunctionType,
                ),
            )
        )

    def trust(value):
        todo, seen = [value], set()
        while todo:
            value = todo.pop()
            kind = type(value)
            if kind in plain or id(value) in seen:
                continue
            seen.add(id(value))
            for base in (list, tuple, set, frozenset, dict, collections.deque):
                if base in classes(kind):
                    todo.extend(base.__iter__(value))
                    if base is dict:
                        todo.extend(dict.values(value))
            if kind in (
                list,
                tuple,
                set,
                frozenset,
                dict,
                types.ModuleType,
                types.FunctionType,
                type,
            ):
                continue
            with contextlib.suppress(AttributeError):
                todo.extend(object.__getattribute__(value, "__dict__").values())
            for base in classes(kind):
                if base.__name__ not in named and any(
                    own(type.__getattribute__(base, "__dict__").get(m)) for m in deciding
                ):
                    raise AssertionError("the result brings its own comparisons")
            try:
                yes = (value == object()) is True
            except Exception:
                yes = False
            if yes:
                raise AssertionError("the result equals anything")

    def check(left, kinds=None, *rights):
        trust(left)
        if kinds is None:
            return left
        for kind, right in zip(kinds, rights):
            trust(right)
            said = operators[kind](left, right)
            if len(rights) > 1 and not said:
                return said
            left = right
        return said

    return check
