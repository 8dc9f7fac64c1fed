"""Stand-ins for objects of the other process.

Their classes have the same names, bases and special methods; the work is done over the link.

In the tests' process they also judge. A method of the program decides a comparison only between two
objects of the program that both inherit it, or where the tests use its class as a class. In all
other comparisons it has no say, as if it had returned NotImplemented. A subclass of a builtin type
is then compared by its value.
"""

import abc
import operator
import sys
import types
import weakref

from grader.values import (
    ARITHMETIC,
    COMPARISONS,
    KINDS,
    SPECIALS,
    VALUED,
    isinstance_exactly,
)

BUILTIN_BASES = (*VALUED, *KINDS.values())
HERE = {"__copy__", "__deepcopy__"}
OF_ERRORS = {
    *("__traceback__", "__context__", "__cause__", "__suppress_context__"),
    *("with_traceback", "__setstate__"),
}
OF_CLASSES = {
    *("__class__", "__mro__", "__bases__", "__base__", "__name__", "__qualname__", "__module__"),
    *("__dict__", "__subclasses__", "__instancecheck__", "__subclasscheck__", "__new__", "mro"),
    *("__abstractmethods__", "__flags__", "__basicsize__", "__copy__", "__deepcopy__"),
}
COUNTERPARTS = {  # types that isinstance() of the tests may ask for
    cls.__name__: cls
    for cls in (
        *(types.GeneratorType, types.FunctionType, types.CoroutineType, types.AsyncGeneratorType),
        *(types.BuiltinFunctionType, types.MethodType, types.ModuleType, types.CodeType),
        *(map, zip, filter, enumerate, reversed, memoryview, property, types.MappingProxyType),
        *(type(iter([])), type(iter(())), type(iter("")), type(iter({})), type(iter(set()))),
        *(type({}.keys()), type({}.values()), type({}.items()), type(iter(range(0)))),
    )
}


class Forwarding(type):
    """The type of classes whose work is done in the other process."""

    def __call__(cls, *args, **kwargs):
        if locate_class(cls) is None:
            return type.__call__(cls, *args, **kwargs)
        if len(args) == 3 and issubclass(cls, type):
            return derive(cls, *args, **kwargs)
        return link_of(cls).call(cls, args, kwargs)

    def __getattribute__(cls, name):
        if name in OF_CLASSES or name.startswith("__array") or locate_class(cls) is None:
            return type.__getattribute__(cls, name)
        return link_of(cls).request("get", cls, name)

    def __setattr__(cls, name, value):
        if locate_class(cls) is None:
            type.__setattr__(cls, name, value)
        elif name != "__abstractmethods__":
            link_of(cls).request("set", cls, name, value)

    def __delattr__(cls, name):
        link_of(cls).request("delete", cls, name)

    def __iter__(cls):
        return link_of(cls).request("special", cls, "__iter__", (), {})

    def __len__(cls):
        return link_of(cls).request("special", cls, "__len__", (), {})

    def __bool__(cls):
        return True

    def __getitem__(cls, key):
        return link_of(cls).request("special", cls, "__getitem__", (key,), {})

    def __contains__(cls, item):
        return link_of(cls).request("special", cls, "__contains__", (item,), {})

    def __repr__(cls):
        if locate_class(cls) is None:
            return type.__repr__(cls)
        return link_of(cls).request("special", cls, "__repr__", (), {})

    def __dir__(cls):
        return link_of(cls).request("dir", cls)

    def __instancecheck__(cls, value):
        if type.__instancecheck__(cls, value):
            return True
        if locate_class(cls) is None or not type.__getattribute__(cls, "__dict__").get(
            "_ra3_checks"
        ):
            return False
        link_of(cls).apart = False
        return link_of(cls).request("isinstance", value, cls)


class Mirror(Forwarding, metaclass=Forwarding):
    """The type of the classes of the other process."""

    def __new__(meta, name, bases, body, **kwargs):
        return derive(meta, name, bases, body, **kwargs)

    def __init__(cls, *args, **kwargs):
        pass


def derive(meta, name, bases, body, **kwargs):
    """A class of the tests that inherits from the program's: made there, with methods here."""
    link = next(link_of(base) for base in bases if isinstance_exactly(base, Mirror))
    body = dict(body)
    cell = body.pop("__classcell__", None)
    cls = link.request("subclass", name, tuple(bases), body, kwargs)
    if cell is not None:
        cell.cell_contents = cls
    return cls


def locate_class(cls):
    place = type.__getattribute__(cls, "__dict__").get("_ra3_class")
    return place and place[1]


def link_of(cls):
    return type.__getattribute__(cls, "__dict__")["_ra3_class"][0]


class Remote:
    """An object of the other process."""

    @staticmethod
    def make(cls, core):
        for base in VALUED:
            if base in cls.__mro__:
                return base.__new__(cls, core)
        if isinstance_exactly(cls, Mirror):
            return object.__new__(cls)
        raise ValueError(cls)

    @staticmethod
    def bind(value, link, number):
        object.__setattr__(value, "_ra3", (link, number))

    def __getattribute__(self, name):
        cls = type(self)
        if name == "__class__":
            return type.__getattribute__(cls, "__dict__").get("_ra3_counterpart", cls)
        if name.startswith("__array"):  # numpy of the tests takes no data from there
            raise AttributeError(name)
        if name in HERE or name in OF_ERRORS and issubclass(cls, BaseException):
            return object.__getattribute__(self, name)
        if name in type.__getattribute__(cls, "__dict__").get("_ra3_here", ()):
            return object.__getattribute__(self, name)
        link = object.__getattribute__(self, "_ra3")[0]
        return link.request("get", self, name)

    def __setattr__(self, name, value):
        if name in OF_ERRORS and BaseException in type(self).__mro__:
            object.__setattr__(self, name, value)
        else:
            object.__getattribute__(self, "_ra3")[0].request("set", self, name, value)

    def __delattr__(self, name):
        object.__getattribute__(self, "_ra3")[0].request("delete", self, name)

    def __repr__(self):
        return ask_special(self, "__repr__")

    def __str__(self):
        return ask_special(self, "__str__")

    def __format__(self, form):
        return ask_special(self, "__format__", form)

    def __dir__(self):
        return object.__getattribute__(self, "_ra3")[0].request("dir", self)

    def __copy__(self):
        return object.__getattribute__(self, "_ra3")[0].request("copy", self)

    def __deepcopy__(self, known):
        return object.__getattribute__(self, "_ra3")[0].request("deepcopy", self)

    def __init__(self, *args, **kwargs):
        pass

    def __del__(self):
        try:
            link, number = object.__getattribute__(self, "_ra3")
            link.released.add(number)
        except AttributeError:
            pass


class Method:
    """A method of an object of the other process that is called at once: one message."""

    __slots__ = ("link", "value", "name")

    def __init__(self, link, value, name):
        self.link = link
        self.value = value
        self.name = name

    def __call__(self, *args, **kwargs):
        return self.link.call(self.value, args, kwargs, self.name)


def ask_special(value, name, *args):
    return object.__getattribute__(value, "_ra3")[0].request("special", value, name, args, {})


def is_remote(value):
    return isinstance_exactly(value, Remote) or isinstance_exactly(value, Forwarding)


def locate(value):
    """The number of an object of the other process; None for a class that is not from there."""
    if isinstance_exactly(value, Forwarding):
        return locate_class(value)
    return object.__getattribute__(value, "_ra3")[1]


def reference_to(value):
    """What gives back a stand-in: weak where the other process is told of its end."""
    try:
        if isinstance_exactly(value, Remote):
            return weakref.ref(value)
    except TypeError:  # of a subclass of int, say
        pass
    return lambda: value


def call_function(function, *args, **kwargs):
    return object.__getattribute__(function, "_ra3")[0].call(function, args, kwargs)


def bind_function(function, value, cls=None):
    return function if value is None else types.MethodType(function, value)


# What stands for a function of the program: made once, as nearly every run needs it.
Function = type.__new__(
    Mirror,
    "function",
    (Remote,),
    {
        "__module__": "builtins",
        "__call__": call_function,
        "__get__": bind_function,
        "_ra3_counterpart": types.FunctionType,
    },
)


# ---------------------------------------------------------------- classes


def class_facts(cls):
    """What the other process is told of a class: see `mirror_of`."""
    attributes = type.__dict__["__dict__"].__get__(cls)
    texts = [type.__dict__[name].__get__(cls) for name in ("__name__", "__qualname__")]
    module = attributes.get("__module__", "builtins")
    specials = [name for name in attributes if type(name) is str and name in SPECIALS]
    functions = [
        name
        for name, value in attributes.items()
        if type(name) is str and isinstance(value, (types.FunctionType, types.MethodDescriptorType))
    ]
    checks = "__instancecheck__" in dir(type(cls)) and type(cls) not in (type, abc.ABCMeta)
    return (
        *(str(text) for text in texts),
        module if type(module) is str else "",
        [(name, attributes[name] is None) for name in specials],
        functions,
        checks and type(cls).__module__ != "enum",
        compared_fields(attributes),
    )


def compared_fields(attributes):
    """The fields by which a dataclass compares; None where it has a comparison of its own."""
    fields = attributes.get("__dataclass_fields__")
    method = attributes.get("__eq__")
    if fields is None or getattr(method, "__qualname__", "") != "__create_fn__.<locals>.__eq__":
        if (
            fields is None
            or getattr(getattr(method, "__code__", None), "co_filename", "") != "<string>"
        ):
            return None
    return [f.name for f in fields.values() if f.compare and f._field_type.name == "_FIELD"]


def mirror_of(link, number, meta, bases, facts):
    """The stand-in of a class. Raises ValueError, TypeError where the parts make none."""
    name, qualname, module, specials, functions, checks, fields = facts
    bases = local_bases(bases)
    body = {
        "__module__": module,
        "__qualname__": qualname,
        "_ra3_class": (link, number),
        "_ra3_checks": checks,
        "_ra3_fields": fields,
    }
    if type in bases:
        return type.__new__(Forwarding, name, (Mirror,), body)
    owner = []
    for special_name, absent in specials:
        if special_name in SPECIALS:
            body[special_name] = None if absent else forwarding_method(link, special_name, owner)
    for function in functions:
        if function not in body and (function == "__init__" or not hidden(function)):
            body[function] = Member(link, owner, function)
    if module == "builtins" and name in COUNTERPARTS:
        body["_ra3_counterpart"] = COUNTERPARTS[name]
    if "__await__" in body:
        of_awaitables(link, body)
    meta = meta if isinstance(meta, type) and issubclass(meta, Mirror) else Mirror
    try:
        cls = type.__new__(meta, name, bases, body)
    except TypeError:
        cls = type.__new__(meta, name, fallback(bases), body)
    owner.append(cls)
    if module in ("collections.abc", "numbers") and hasattr(sys.modules.get(module), name):
        getattr(sys.modules[module], name).register(cls)
    return cls


def hidden(name):
    """Would the interpreter, or this file, look for a function of this name?"""
    return name.startswith(("__", "_ra3"))


def local_bases(bases):
    """Bases of a stand-in: mirrors, or Remote, before classes of this process."""
    if type in bases or any(isinstance(b, type) and issubclass(b, Forwarding) for b in bases):
        return (type,)
    mirrors = [base for base in bases if Remote in base.__mro__]
    others = [base for base in bases if Remote not in base.__mro__ and base is not object]
    return (*(mirrors or [Remote]), *others)


def fallback(bases):
    error = next((base for base in bases if issubclass(base, BaseException)), None)
    return (Remote,) if error is None else (Remote, Exception)


class Member:
    """A function in the body of a class, for super()."""

    def __init__(self, link, owner, name):
        self.link = link
        self.owner = owner
        self.name = name

    def __get__(self, value, cls=None):
        if value is None:
            return self.link.request("get", self.owner[0], self.name)
        return lambda *args, **kwargs: self.link.request(
            "call_member", self.owner[0], self.name, value, args, kwargs
        )


def of_awaitables(link, body):
    def __await__(self):
        if False:
            yield
        return link.request("await", self)

    def send(self, value):
        raise StopIteration(link.request("await", self))

    def throw(self, *error):
        return link.request("method", self, "throw", error, {})

    def close(self):
        return link.request("method", self, "close", (), {})

    body.update(__await__=__await__, send=send, throw=throw, close=close)
    body["_ra3_here"] = {"__await__", "send", "throw", "close"}


# ---------------------------------------------------------------- special methods


def forwarding_method(link, name, owner):
    """A special method that the other process does. owner: [the class that defines it]."""
    if name == "__call__":

        def method(self, *args, **kwargs):
            return link.call(self, args, kwargs)

    elif link.host and name in COMPARISONS | ARITHMETIC:

        def method(self, other, *rest):
            return compare_objects(link, self, name, owner[0], other, *rest)

    elif link.host and name == "__contains__":

        def method(self, item):
            return holds_item(link, self, owner[0], item)

    elif link.host and name == "__bool__":

        def method(self):
            return truth(link, self)

    else:

        def method(self, *args):
            return link.request("special", self, name, args, {})

    method.__name__ = name
    return method


def decides(link, value, owner, other):
    """May the program's method decide between its object and another?"""
    if isinstance_exactly(other, Remote):
        return owner in type(other).__mro__
    classes = link.judges | link.libraries
    return any(cls in classes for cls in type(value).__mro__)


def builtin_base(cls):
    return next((base for base in cls.__mro__ if base in BUILTIN_BASES), None)


def compare_objects(link, value, name, owner, other, *rest):
    """A comparison, or arithmetic, of a program's object. See the file's head."""
    fields = type.__getattribute__(owner, "__dict__").get("_ra3_fields")
    if fields is not None and name in COMPARISONS:
        return compare_fields(value, name, other, fields)
    if decides(link, value, owner, other):
        if name in COMPARISONS or not (
            isinstance_exactly(other, Remote) or owner in link.libraries
        ):
            link.apart = False
        return link.request("special", value, name, (other, *rest), {})
    base = builtin_base(type(value))
    if base is not None and hasattr(base, name):
        return getattr(base, name)(value, other, *rest)
    if name in ("__eq__", "__ne__"):
        return NotImplemented
    raise AssertionError("the result brings its own comparisons")


def holds_item(link, value, owner, item):
    """Is an item in a program's object? We look, where its own method may not decide."""
    if decides(link, value, owner, item):
        link.apart = False
        return link.request("special", value, "__contains__", (item,), {})
    base = builtin_base(type(value))
    if base is not None and hasattr(base, "__contains__"):
        return base.__contains__(value, item)
    if not hasattr(type(value), "__iter__") and not hasattr(type(value), "__getitem__"):
        raise AssertionError("the result brings its own comparisons")
    return any(each is item or each == item for each in iter(value))


def truth(link, value):
    """The truth value of a program's object, where the tests use its class as a class."""
    if not decides(link, value, None, None):
        raise AssertionError("the result brings its own truth value")
    link.apart = False
    return link.request("special", value, "__bool__", (), {})


def compare_fields(value, name, other, fields):
    """The comparison of a dataclass, done here."""
    if type(value) is not type(other):
        return NotImplemented
    sides = [tuple(getattr(each, field) for field in fields) for each in (value, other)]
    return getattr(operator, name)(*sides)


# ------------------------------------------------ functions of the tests, in the program


def function_facts(function):
    """What a program may know of a function of the tests: its name, text and parameters."""
    code = getattr(function, "__code__", None)
    names = None
    if (
        isinstance(function, types.FunctionType)
        and not function.__defaults__
        and not code.co_flags & 12
    ):
        if not code.co_kwonlyargcount:
            names = list(code.co_varnames[: code.co_argcount])
    name, text = getattr(function, "__name__", "function"), getattr(function, "__doc__", None)
    return str(name), text if type(text) is str else None, names


def function_of(link, facts):
    """A function of this process that calls one of the other."""
    name, text, names = facts

    def function(*args, **kwargs):
        return link.call(function, args, kwargs)

    if names and all(n.isidentifier() for n in names):
        source = f"lambda {', '.join(names)}: _ra3({', '.join(names)})"
        function = eval(source, {"_ra3": lambda *args: link.call(function, args, {})})
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    function.__module__ = "tests"
    return function


def secret(value):
    """Would it lead a program to what the tests hold?"""
    return isinstance(value, (types.FrameType, types.CodeType, types.TracebackType))
