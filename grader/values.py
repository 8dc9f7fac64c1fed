"""Plain data: what it is, how its containers are taken apart and filled again."""

import array
import collections
import datetime
import decimal
import fractions
import gc
import importlib
import itertools
import math
import operator
import sys
import types
import typing

ATOMS = {type(None), bool, int, float, str, bytes}
BRANCHES = {list, tuple, dict, set, frozenset, bytearray}  # containers of the short form
SEQUENCES = {list, tuple}
MUTABLE = {list, dict, set, bytearray}
DICTS = (collections.OrderedDict, collections.Counter, collections.defaultdict, dict)
KINDS = {
    cls.__name__: cls for cls in (*DICTS, list, set, bytearray, collections.deque, array.array)
}
NAMES = {cls: name for name, cls in KINDS.items()}
VALUED = (int, float, complex, str, bytes, tuple, frozenset)  # subclasses cross with their value

COMPARISONS = {f"__{name}__" for name in "eq ne lt le gt ge".split()}
ARITHMETIC = {
    f"__{prefix}{name}__"
    for name in (
        "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or".split()
    )
    for prefix in ("", "r", "i")
}
SPECIALS = (
    COMPARISONS
    | ARITHMETIC
    | {
        f"__{name}__"
        for name in """abs aenter aexit aiter anext await bool bytes call ceil complex contains
    delitem enter exit float floor format fspath getitem hash index int invert iter len length_hint
    missing neg next pos repr reversed round setitem str trunc""".split()
    }
)


def plain_containers(value):
    """The mutable containers in plain data, each once; None if there is anything but plain data.

    Plain are exact builtin types. Both processes list the containers of equal data in one order.
    """
    known, level = {}, [value]
    while level:
        if (
            len(level) == 1
            and type(level[0]) in SEQUENCES
            and ATOMS.issuperset(map(type, level[0]))
        ):
            break
        if dict in set(map(type, level)):
            pieces = [(c, c.values()) if type(c) is dict else (c,) for c in level]
            level = list(itertools.chain.from_iterable(pieces))
        level = [c for c in level if type(c) is not bytearray]
        if ATOMS.issuperset(map(type, itertools.chain.from_iterable(level))):
            break
        items = itertools.chain.from_iterable(level)
        inner = [item for item in items if type(item) not in ATOMS]
        if not BRANCHES.issuperset(map(type, inner)):
            return None
        unseen = {id(item): item for item in inner}
        if not known.keys().isdisjoint(unseen):
            unseen = {key: item for key, item in unseen.items() if key not in known}
        known.update(unseen)
        level = list(unseen.values())
    return [item for item in known.values() if type(item) in MUTABLE]


def count_references(containers):
    """How many references there are to these objects, all together."""
    return sum(map(sys.getrefcount, containers))


def count_for_one():
    """What `references` gives for one object in one list that a list of containers holds."""
    outer = [[]]
    containers = plain_containers(outer)
    return count_references(containers)


def container_kind(value):
    """The name of the kind of a mutable container, or None. Subclasses are of their base's kind."""
    name = NAMES.get(type(value))
    if name is None:
        for base in (*DICTS, list, set, bytearray, collections.deque):
            if isinstance_exactly(value, base):
                return NAMES[base]
        if type(value) is types.SimpleNamespace:
            return "SimpleNamespace"
        if is_numeric_array(value):
            return "ndarray"
    return name


def isinstance_exactly(value, base):
    """Is the type a subclass, whatever `__class__` and a metaclass say?"""
    return type.__subclasscheck__(base, type(value))


def is_numeric_array(value):
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None and type(value) is getattr(numpy, "ndarray", None) and plain_dtype(value)
    )


def plain_dtype(value):
    return value.dtype.kind in "biufcSUmMO"


def details(value, kind):
    """What a container of this kind is made with, beside its content."""
    if kind == "deque":
        return value.maxlen
    if kind == "defaultdict":
        return value.default_factory
    if kind == "array":
        return value.typecode
    if kind == "ndarray":
        return (value.dtype.str, value.shape)
    return None


def content(value, kind):
    """What is in a container: a tuple of lists, or bytes."""
    if kind in ("bytearray", "array"):
        return bytes(value)
    if kind == "ndarray":
        return value.tobytes() if value.dtype.kind != "O" else (list(value.flat),)
    if kind == "SimpleNamespace":
        return list(vars(value)), list(vars(value).values())
    cls = KINDS[kind]
    if cls in DICTS:
        cls = collections.OrderedDict if cls is collections.OrderedDict else dict
        return list(cls.keys(value)), list(cls.values(value))
    return (list(cls.__iter__(value)),)


def empty(kind, extra, cls=None):
    """A container without content. cls: a subclass of the kind's type."""
    if kind == "SimpleNamespace":
        return types.SimpleNamespace()
    if kind == "ndarray":
        import numpy

        return numpy.zeros(extra[1], extra[0])
    base = KINDS[kind]
    if cls is not None:
        container = base.__new__(cls)
        if base in (collections.deque, collections.defaultdict):
            base.__init__(container, *([] if base is collections.defaultdict else [()]), extra)
        return container
    if kind == "deque":
        return collections.deque((), extra)
    return base() if kind not in ("defaultdict", "array") else base(extra)


def fill(value, kind, pieces):
    """Give a container this content, in place. Raises ValueError or TypeError."""
    if kind == "bytearray":
        bytearray.__setitem__(value, slice(None), pieces)
    elif kind == "array":
        del value[:]
        value.frombytes(pieces)
    elif kind == "ndarray" and value.dtype.kind == "O":
        value.flat[:] = pieces[0]
    elif kind == "ndarray":
        value[...] = sys.modules["numpy"].frombuffer(pieces, value.dtype).reshape(value.shape)
    elif kind == "SimpleNamespace":
        vars(value).clear()
        vars(value).update(zip(*pieces, strict=True))
    elif KINDS[kind] in DICTS:
        cls = collections.OrderedDict if kind == "OrderedDict" else dict
        cls.clear(value)
        for key, item in zip(*pieces, strict=True):
            cls.__setitem__(value, key, item)
    elif kind == "list":
        list.__setitem__(value, slice(None), pieces[0])
    else:
        cls = KINDS[kind]
        cls.clear(value)
        (cls.extend if kind == "deque" else cls.update)(value, pieces[0])


def unchanged(old, new):
    """Are two contents the same, object by object?"""
    if type(old) is not tuple:
        return old == new
    return all(
        len(a) == len(b) and all(map(operator.is_, a, b)) for a, b in zip(old, new, strict=True)
    )


def is_atom(value):
    return type(value) in ATOMS and not (type(value) is float and math.isnan(value))


def atoms_only(items):
    """Do these items cross as they are? NaN does not: its identity counts."""
    kinds = set(map(type, items))
    return ATOMS.issuperset(kinds) and (float not in kinds or all(map(operator.eq, items, items)))


# ------------------------------------------------------------------------------ immutable values

SINGLETONS = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}


def zone(value):
    """The time zone of a datetime if it is a fixed offset."""
    return value is None or type(value) is datetime.timezone


def value_pieces(value):
    """(name, arguments) of an immutable value of the standard library, or None. See `VALUES`."""
    cls = type(value)
    if cls in AS_TEXT:
        return cls.__name__, (str(value),)
    if cls in VIEWS:
        return cls.__name__, (tuple(value),)
    if cls in BY_ATTRIBUTES:
        return cls.__name__, tuple(getattr(value, name) for name in BY_ATTRIBUTES[cls])
    if cls in DATES:
        if cls in AWARE and not zone(value.tzinfo):
            return None
        return cls.__name__, value.__reduce__()[1]
    if (cls.__module__, cls.__name__) in OTHERS and is_other(cls):
        number = cls.__module__ == "ipaddress"
        return cls.__name__, (int(value) if number else str(value),)
    if cls is types.MappingProxyType:
        (mapping,) = gc.get_referents(value)
        return None if type(mapping) is not dict else ("mappingproxy", (mapping,))
    if value is Ellipsis or value is NotImplemented:
        return repr(value), ()
    if cls in ALIASES and value._name in ALIASED:
        return "typing", ("Union" if value._name == "Optional" else value._name, value.__args__)
    return numpy_pieces(value)


def numpy_pieces(value):
    numpy = sys.modules.get("numpy")
    if not hasattr(numpy, "generic") or not isinstance_exactly(value, numpy.generic):
        return None
    return ("numpy", (value.dtype.str, value.tobytes())) if plain_dtype(value) else None


def numpy_scalar(dtype, data):
    import numpy

    return numpy.frombuffer(data, dtype)[0]


def fraction(numerator, denominator):
    if type(numerator) is not int or type(denominator) is not int:
        raise ValueError("a fraction of what is no integer")
    return fractions.Fraction(numerator, denominator)


def is_other(cls):
    return getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls


def other(module, name):
    """What makes a value of a class whose module few programs import."""

    def make(text):
        if type(text) is not (int if module == "ipaddress" else str):
            raise ValueError(text)
        return getattr(importlib.import_module(module), name)(text)

    return make


OTHERS = {
    ("pathlib", "PurePosixPath"),
    ("pathlib", "PureWindowsPath"),
    ("ipaddress", "IPv4Address"),
    ("ipaddress", "IPv6Address"),
    ("uuid", "UUID"),
}
AS_TEXT = {decimal.Decimal}
VIEWS = {type({}.keys()), type({}.values()), type({}.items())}
DATES = {datetime.date, datetime.datetime, datetime.time, datetime.timezone}
AWARE = {datetime.datetime, datetime.time}
BY_ATTRIBUTES = {
    complex: ("real", "imag"),
    fractions.Fraction: ("numerator", "denominator"),
    range: ("start", "stop", "step"),
    slice: ("start", "stop", "step"),
    datetime.timedelta: ("days", "seconds", "microseconds"),
    types.GenericAlias: ("__origin__", "__args__"),
}
ALIASES = {type(typing.List[int]), type(typing.Optional[int])}
ALIASED = {*"List Dict Set FrozenSet Tuple Type Union Optional Iterable Iterator Sequence".split()}
VALUES = {  # name: what makes the value from its arguments
    **{cls.__name__: cls for cls in (decimal.Decimal, range, slice, complex, memoryview)},
    **{name: other(module, name) for module, name in OTHERS},
    "GenericAlias": types.GenericAlias,
    **{name: getattr(datetime, name) for name in "date datetime time timedelta timezone".split()},
    "Fraction": fraction,
    "mappingproxy": types.MappingProxyType,
    "dict_keys": lambda items: dict.fromkeys(items).keys(),
    "dict_values": lambda items: dict(enumerate(items)).values(),
    "dict_items": lambda items: dict(items).items(),
    "numpy": numpy_scalar,
    "typing": lambda name, args: {n: getattr(typing, n) for n in ALIASED}[name][args],
    **{name: lambda value=value: value for name, value in SINGLETONS.items()},
}
SAFE_CLASSES = {  # classes that cross as names, and are called where they arrive
    *(cls for cls in (*ATOMS, *BRANCHES, *KINDS.values()) if cls is not type(None)),
    *(decimal.Decimal, fractions.Fraction, range, slice, complex, object),
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
    *(type(None), types.SimpleNamespace),
}
