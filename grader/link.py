"""The link between the tester and the program: calls in both directions, each with its values.

Plain data crosses by value. A mutable container that both processes still hold after a call has a
number, and every message brings its changes. So what the tests keep, change or compare by identity
is what it would be in one process. All else crosses as a reference (mirrors.py): its attributes and
methods are asked for where it lives.

    short form   (number, CALL, object, method or None, arguments, keywords, first)
                 (number, DO, operation, plain arguments)
                 (number, VALUE, result) or (number, FUNCTION, its number)
    long form    (number, ASK, operation, pack)
                 (number, LONG or RAISED, pack, are the arguments of the short form shared?)

The short form holds where all is plain, nothing changed in place and nothing was kept. A pack is a
dict: nodes (one for each value that is no atom), fills (contents of containers), drops (numbers of
containers that one side gave up), roots (the values). A reference to a node is (index,).

Messages are pickles; what the program sends is read by an unpickler that knows no class.
"""

import collections
import gc
import importlib
import io
import os
import pickle
import sys
import threading
import types

from grader.messages import TooLong, receive, send
from grader.mirrors import (
    Function,
    Mirror,
    Remote,
    class_facts,
    function_facts,
    function_of,
    is_remote,
    locate,
    mirror_of,
    reference_to,
    secret,
)
from grader.values import (
    ATOMS,
    KINDS,
    MUTABLE,
    OTHERS,
    SAFE_CLASSES,
    VALUED,
    VALUES,
    atoms_only,
    container_kind,
    content,
    count_for_one,
    count_references,
    details,
    empty,
    fill,
    is_atom,
    isinstance_exactly,
    plain_containers,
    unchanged,
    value_pieces,
)

CALL, DO, ASK = "call", "do", "ask"
VALUE, FUNCTION, LONG, RAISED = "value", "function", "long", "raised"
NAN = pickle.dumps(float("nan"))[2:-1][-9:]
ONE = count_for_one()
FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)
CALLED = {types.FunctionType, types.MethodType}
DESCRIPTORS = {"staticmethod": staticmethod, "classmethod": classmethod, "property": property}


class Ended(BaseException):
    """The other process ended, or broke the protocol."""


class ClassFree(pickle.Unpickler):
    """Reads builtin data only: no class and no function can be named, so nothing is ever called."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_plain(data):
    return ClassFree(io.BytesIO(data)).load()


class Shared:
    """A container that both processes hold: its kind, and its content as the other one knows it."""

    __slots__ = ("value", "kind", "known", "pinned")

    def __init__(self, value, kind, known=None, pinned=False):
        self.value = value
        self.kind = kind
        self.known = known  # None: the other process must be told
        self.pinned = (
            pinned  # its class lives here, so the other process may ask for more than content
        )


def shared_base():
    entry = Shared([], "list")
    return sys.getrefcount(entry.value)


HELD_BY_LINK = shared_base()


class Link:
    """One end. host: the end of the tests, which distrusts the other."""

    def __init__(self, host):
        self.channel = None
        self.host = host
        self.most = 1 << 40  # bytes of a message
        self.number = 0
        self.next_id = 2 if host else 1  # the ends count up in twos
        self.shared = {}  # id: Shared
        self.exports = {}  # id: object of this process
        self.imports = {}  # id: object that stands for one of the other process
        self.ids = {}  # id(object): number, for all three
        self.released = set()
        self.shareable = {}  # name: class whose objects cross with their attributes
        self.names = {}  # of the program
        self.turn = threading.RLock()
        self.pid = os.getpid()
        self.apart = True  # no truth was decided by the program's code
        self.judges = set()  # classes of the program that the tests look up, and use as classes
        self.libraries = set()  # classes that the tests took from modules of the program's process
        self.trouble = None
        self.operations = {}
        self.modules = {}  # name: a module of the other process
        self.overlays = {}  # name: a module as the tests see it
        self.loop = []  # the event loop of `await`
        self.on_call = []  # done before a call of the tests, and after it
        self.on_return = []
        self.stopped = []  # StopIteration that a function of the program raised

    def open(self, channel, most=1 << 40):
        """Begin. The link was made before the fork, which is cheaper than one in every run."""
        self.channel = channel
        self.most = most
        self.pid = os.getpid()
        return self

    # ---------------------------------------------------------------- numbers of objects

    def new_id(self):
        self.next_id += 2
        return self.next_id

    def share(self, number, value, kind, known=None, pinned=False):
        self.shared[number] = Shared(value, kind, known, pinned)
        self.ids[id(value)] = number

    def export(self, value):
        number = self.new_id()
        self.exports[number] = value
        self.ids[id(value)] = number
        return number

    def adopt(self, number, value):
        """Remember what stands for an object of the other process, until it is released."""
        self.released.discard(number)
        self.imports[number] = reference_to(value)
        if not is_remote(value):
            self.ids[id(value)] = number
        return value

    def known(self, number):
        """What stands for an object of the other process, if there is something still; or None."""
        reference = self.imports.get(number)
        return reference and reference()

    def number_of(self, value):
        """The number of an object that has one, or None."""
        number = self.ids.get(id(value))
        if number is None and is_remote(value):
            return locate(value)
        return number

    def forget(self, number):
        """The other process has no stand-in any more."""
        entry = self.shared.pop(number, None)
        value = entry.value if entry else self.exports.pop(number, None)
        if self.ids.get(id(value)) == number:
            del self.ids[id(value)]

    def find(self, number):
        if number in self.shared:
            return self.shared[number].value
        if number in self.exports:
            return self.exports[number]
        return self.imports[number]()

    # ---------------------------------------------------------------- packing

    def pack(self, values):
        pack = Pack(self)
        roots = [pack.ref(value) for value in values]
        for number, entry in list(self.shared.items()):
            pack.add_changes(number, entry)
        pack.finish()
        drops = self.drop_dead()
        released, self.released = list(self.released), set()
        return pickle.dumps(
            {
                "roots": roots,
                "nodes": pack.nodes,
                "fills": pack.fills,
                "drops": drops,
                "released": released,
            },
            5,
        )

    def drop_dead(self):
        """Give up the containers that nothing else here holds; their numbers."""
        drops = []
        for number in list(self.shared):
            entry = self.shared[number]
            if not entry.pinned and sys.getrefcount(entry.value) <= HELD_BY_LINK:
                drops.append(number)
                self.ids.pop(id(entry.value), None)
                del self.shared[number], entry
        return drops

    def unpack(self, data):
        """The values of a pack. Raises Ended where it is malformed."""
        try:
            pack = read_plain(data) if self.host else pickle.loads(data)
            for number in pack["released"]:
                self.forget(number)
            objects = []
            for node in pack["nodes"]:
                objects.append(build(self, node, objects))
            for number, pieces in pack["fills"]:
                self.refill(number, pieces, objects)
            roots = [value_at(objects, item) for item in pack["roots"]]
            for number in pack["drops"]:
                entry = self.shared.pop(number, None)
                if entry is not None:
                    self.ids.pop(id(entry.value), None)
            return roots
        except (MemoryError, Ended):
            raise
        except Exception:
            if not self.host:
                raise
            raise Ended from None

    def refill(self, number, pieces, objects):
        entry = self.shared[number]
        if type(pieces) is not bytes:
            pieces = tuple([value_at(objects, item) for item in piece] for piece in pieces)
        if entry.kind in self.shareable:
            set_state(entry.value, pieces)
        else:
            fill(entry.value, entry.kind, pieces)
        entry.known = self.content(entry.value, entry.kind)

    def class_called(self, name):
        """A class whose objects cross with their attributes; in the program, its own."""
        return self.shareable[name] if self.host else self.names[name]

    def content(self, value, kind):
        return state_of(value) if kind in self.shareable else content(value, kind)

    # ---------------------------------------------------------------- conversation

    def send(self, *message):
        self.send_bytes(pickle.dumps(message, 5))

    def send_bytes(self, data):
        if os.getpid() != self.pid:  # a fork of the program came back here: it has no say
            os._exit(0)
        try:
            send(self.channel, data)
        except OSError:
            raise Ended from None

    def receive(self):
        try:
            data = receive(self.channel, self.most)
        except TooLong:
            raise MemoryError from None
        except OSError:
            data = None
        if data is None:
            raise Ended
        if not self.host:
            return pickle.loads(data), data
        try:
            message = read_plain(data)
        except MemoryError:
            raise
        except Exception:
            raise Ended from None
        if type(message) is not tuple or len(message) < 3:
            raise Ended
        return message, data

    def request(self, operation, *values):
        """Have the other process do something -> its result. Raises what it raised; Ended."""
        with self.turn:
            if self.trouble:  # the tests swallowed it
                raise self.trouble
            try:
                self.number += 1
                number = self.number
                self.send(number, ASK, operation, self.pack(values))
                return self.answer(number)
            except Ended as e:
                self.trouble = e
                raise

    def ask(self, operation, *values):
        """As `request`, with plain arguments that are not shared."""
        if self.trouble:
            raise self.trouble
        if self.released:
            return self.request(operation, *values)
        try:
            self.number += 1
            self.send(self.number, DO, operation, values)
            return self.answer(self.number)
        except Ended as e:
            self.trouble = e
            raise

    def answer(self, number, containers=(), first=0):
        """The answer to a request, after the requests that come before it."""
        while True:
            message, _ = self.receive()
            if message[0] == number and message[1] == VALUE:
                return message[2]
            if message[0] == number and message[1] == FUNCTION:
                return self.function(message[2])
            if message[0] == number and message[1] in (LONG, RAISED):
                if message[3]:
                    for i, container in enumerate(containers):
                        self.share(first + 2 * i, container, container_kind(container))
                (result,) = self.unpack(message[2])
                if message[1] == RAISED:
                    raise result if isinstance(result, BaseException) else Ended
                return result
            if message[1] != ASK or len(message) != 4:
                raise Ended
            self.perform(message)

    def call(self, target, args, kwargs, method=None):
        """Call a function of the other process, or a method of an object there."""
        for step in self.on_call:
            step()
        try:
            return self.call_there(target, args, kwargs, method)
        except StopIteration as e:
            self.stopped.append(e)
            raise
        finally:
            for step in self.on_return if self.trouble is None else ():
                step()

    def call_there(self, target, args, kwargs, method):
        short = self.host and not self.shared and not self.released
        if short and not kwargs and ATOMS.issuperset(map(type, args)):
            containers = ()
        else:
            containers = plain_containers((args, kwargs) if kwargs else args) if short else None
        with self.turn:
            if self.trouble:
                raise self.trouble
            first = self.next_id + 2
            data = b""
            if containers is not None:
                message = (
                    self.number + 1,
                    CALL,
                    self.number_of(target),
                    method,
                    args,
                    kwargs,
                    first,
                )
                data = dumped(message)
            if not data or NAN in data:
                if method is None:
                    return self.request("call", target, args, kwargs)
                return self.request("method", target, method, args, kwargs)
            self.number += 1
            self.next_id += 2 * len(containers)
            try:
                self.send_bytes(data)
                return self.answer(self.number, containers, first)
            except Ended as e:
                self.trouble = e
                raise

    # ---------------------------------------------------------------- the side that is asked

    def serve(self):
        """Do what the other process asks, until it hangs up."""
        while True:
            try:
                message, data = self.receive()
            except Ended:
                return
            if message[1] == DO:
                self.perform_plain(*message)
            elif message[1] == CALL:
                box, message, data = [message, data], None, None
                self.perform_call(box)
            else:
                self.perform(message)

    def function(self, number):
        """What stands for a function of the program."""
        if type(number) is not int:
            raise Ended
        value = self.known(number)
        if value is None:
            value = object.__new__(Function)
            Remote.bind(value, self, number)
            self.adopt(number, value)
        return value

    def perform_plain(self, number, _, operation, values):
        try:
            result, form = self.operations[operation](*values), LONG
        except BaseException as e:
            result, form = self.frameless(e), RAISED
        if type(result) in CALLED and form is LONG:
            self.send(number, FUNCTION, self.ids.get(id(result)) or self.export(result))
        elif (
            form is LONG
            and plain_containers((result,)) is not None
            and (data := dumped((number, VALUE, result)))
        ):
            self.send_bytes(data)
        else:
            self.send(number, form, self.packed(result), False)

    def perform(self, message):
        number, _, operation, data = message
        values = result = None
        try:
            values = self.unpack(data)
            result = self.operations[operation](*values)
            values = None
            data, form = self.packed(result), LONG
        except Ended:
            raise
        except BaseException as e:
            values = None
            data, form = self.packed(self.frameless(e)), RAISED
        self.send(number, form, data, False)

    def frameless(self, error):
        """An exception on its way; without its frames, which hold arguments."""
        if not self.host:
            error.__traceback__ = None
        return error

    def packed(self, result):
        try:
            return self.pack((result,))
        except RecursionError:
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(1 << 20)
            try:
                return self.pack((result,))
            finally:
                sys.setrecursionlimit(limit)

    def perform_call(self, box):
        """A call in the short form: answered alike, if nothing was changed or kept."""
        data, message = box.pop(), box.pop()
        number, _, target, method, args, kwargs, first = message
        containers, form, count = (), LONG, 0
        if kwargs or not ATOMS.issuperset(map(type, args)):
            containers = plain_containers((args, kwargs) if kwargs else args)
            count = count_references(containers)
        result = None
        try:
            function = self.find(target)
            result = (getattr(function, method) if method else function)(*args, **kwargs)
        except BaseException as e:
            result, form = self.frameless(e), RAISED
        function = None
        retained = containers and self.retained(containers, count)
        retained = retained or containers and dumped(message) != data
        box.append(result)
        result = None
        if form is LONG and not retained and self.short_answer(number, box, containers):
            return
        if containers:
            for i, container in enumerate(containers):
                self.share(first + 2 * i, container, container_kind(container))
        shared = bool(containers)
        message = args = kwargs = data = containers = container = None
        self.send(number, form, self.packed(box.pop()), shared)

    def retained(self, containers, count):
        """Did the program keep any of these?"""
        if count_references(containers) == count:
            return False
        gc.collect(1)  # closures that call themselves hold what they were called with
        return count_references(containers) != count

    def short_answer(self, number, box, containers):
        """Send the result that is in the box in the short form, if it can be."""
        result = box.pop()
        if type(result) not in ATOMS:
            root = (result,)
            pieces = plain_containers(root)
            top = type(result) in MUTABLE  # this function's variable holds it, too
            if (
                pieces is None
                or pieces
                and count_references(pieces) != ONE * len(pieces) + top
                or pieces
                and containers
                and not {id(c) for c in containers}.isdisjoint(map(id, pieces))
            ):
                box.append(result)
                return False
        data = dumped((number, VALUE, result))
        if not data or NAN in data:
            box.append(result)
            return False
        self.send_bytes(data)
        return True


def dumped(message):
    """Plain data as bytes; none where it is nested too deeply for the short form."""
    try:
        return pickle.dumps(message, 5)
    except RecursionError:
        return b""


def value_at(objects, item):
    return objects[item[0]] if type(item) is tuple else item


class Pack:
    """Values on their way out."""

    def __init__(self, link):
        self.link = link
        self.nodes = []
        self.fills = []
        self.index = {}  # id(object): its node
        self.alive = []  # so that no id is used twice
        self.todo = collections.deque()
        self.unseen = set()  # numbers of containers that are new in this message
        self.underway = set()  # ids of exceptions

    def add(self, value, node):
        self.index[id(value)] = len(self.nodes)
        self.alive.append(value)
        self.nodes.append(node)
        return (len(self.nodes) - 1,)

    def refs(self, values):
        values = list(values)
        return values if atoms_only(values) else [self.ref(value) for value in values]

    def ref(self, value):
        """What stands for a value in this message."""
        if is_atom(value) or type(value) is types.TracebackType and self.link.host:
            return None if type(value) is types.TracebackType else value
        if id(value) in self.index:
            return (self.index[id(value)],)
        link = self.link
        number = link.number_of(value)
        if number is not None:
            if number in link.exports:
                return self.reference(value, number)
            return self.add(value, ("known", number))
        cls = type(value)
        if cls is tuple or cls is frozenset:
            return self.add(value, (cls.__name__, self.refs(value)))
        if cls is float:
            return self.nan(value)
        return self.container(value) or self.immutable(value) or self.reference(value)

    def nan(self, value):
        number = self.link.new_id()
        self.link.share(number, value, "nan", b"", True)
        return self.add(value, ("nan", number))

    def container(self, value):
        link, cls = self.link, type(value)
        kind, extra, owner = cls.__name__, None, None
        shareable = link.shareable.get(kind)
        if shareable is None or link.host and shareable is not cls:
            kind = container_kind(value)
            if kind is None:
                return None
            extra = self.ref(details(value, kind))
            if cls is not KINDS.get(kind) and kind in KINDS:
                owner = self.ref(cls)
        number = link.new_id()
        link.share(number, value, kind, pinned=owner is not None)
        self.unseen.add(number)
        self.todo.append(number)
        return self.add(value, ("new", number, kind, extra, owner))

    def immutable(self, value):
        pieces = value_pieces(value)
        if pieces is not None:
            return self.add(value, ("value", pieces[0], self.refs(pieces[1])))
        cls = type(value)
        if self.link.host and (pieces := definition(value)) is not None:
            return self.add(value, ("value", cls.__name__, self.refs(pieces)))
        if isinstance_exactly(value, type):
            return self.class_name(value)
        return None

    def class_name(self, cls):
        """A class that both processes have, by its name; None for others."""
        known = cls in SAFE_CLASSES or cls is type or (cls.__module__, cls.__name__) in OTHERS
        if known and importable(cls) or self.link.host and importable(cls):
            return self.add(cls, ("global", cls.__module__, cls.__qualname__))
        if type.__subclasscheck__(BaseException, cls) and importable(cls):
            return self.add(cls, ("global", cls.__module__, cls.__qualname__))
        return None

    def reference(self, value, number=None):
        """An object that stays here."""
        link, cls = self.link, type(value)
        if link.host and number is None:
            if secret(value):
                raise TypeError(f"{cls.__name__} of the tests")
            if isinstance(value, types.ModuleType):
                return self.add(value, ("module", value.__name__))
            if isinstance(value, FUNCTIONS) and importable(value):
                return self.add(value, ("global", module_of(value), value.__qualname__))
            if (copy := pickled(value)) is not None:
                return self.add(value, ("pickle", copy))
        number = number or link.export(value)
        if link.host and isinstance(value, FUNCTIONS):
            return self.add(value, ("function", number, function_facts(value)))
        if cls is types.FunctionType:
            return self.add(value, ("function", number, None))
        if isinstance_exactly(value, type):
            return self.own_class(value, number)
        if isinstance_exactly(value, BaseException):
            return self.error(value, number)
        for base in VALUED:
            if isinstance_exactly(value, base):
                return self.add(
                    value, ("mine", number, self.class_of(value), self.ref(core(value, base)))
                )
        return self.add(value, ("mine", number, self.class_of(value), None))

    def class_of(self, value):
        """The class of an object that stays here: described, even where both processes have it."""
        cls = type(value)
        if id(cls) in self.index:
            return (self.index[id(cls)],)
        number = self.link.ids.get(id(cls)) or self.link.number_of(cls)
        if number is not None and number not in self.link.exports:
            return self.ref(cls)
        return self.own_class(cls, number or self.link.export(cls))

    def own_class(self, cls, number):
        bases = [self.ref(base) for base in type.__dict__["__bases__"].__get__(cls)]
        meta = type(cls)
        usual = meta is type or meta.__module__ in ("abc", "enum", "typing")
        meta = None if usual else self.ref(meta)
        return self.add(cls, ("class", number, meta, bases, class_facts(cls)))

    def error(self, value, number):
        cls, cause, context = type(value), value.__cause__, value.__context__
        args, attributes = value.args, dict(vars(value))
        if cls.__module__ == "builtins":
            if isinstance(value, OSError):
                args = value.__reduce__()[1]
            if isinstance(value, BaseExceptionGroup):
                args = (value.message, value.exceptions)
            for name in ("name", "obj", "path"):
                if getattr(value, name, None) is not None:
                    attributes[name] = getattr(value, name)
        if id(value) in self.underway:  # it holds itself
            return None
        self.underway.add(id(value))
        names = [name for name in attributes if type(name) is str]
        pieces = self.refs(args), names, self.refs(attributes[name] for name in names)
        return self.add(
            value, ("error", number, self.ref(cls), *pieces, self.ref(cause), self.ref(context))
        )

    def add_changes(self, number, entry):
        """Tell the other process what changed in a container that it knows."""
        if number in self.unseen or entry.kind == "nan":
            return
        pieces = self.link.content(entry.value, entry.kind)
        if entry.known is None or not unchanged(entry.known, pieces):
            self.add_fill(number, entry, pieces)

    def add_fill(self, number, entry, pieces):
        entry.known = pieces
        out = pieces if type(pieces) is bytes else tuple(self.refs(piece) for piece in pieces)
        self.fills.append((number, out))

    def finish(self):
        while self.todo:
            number = self.todo.popleft()
            entry = self.link.shared[number]
            self.add_fill(number, entry, self.link.content(entry.value, entry.kind))


def core(value, base):
    """The value of an object of a subclass of a builtin type."""
    return base(base.__iter__(value)) if base in (tuple, frozenset) else base.__new__(base, value)


def definition(value):
    """The parts of what stands in the body of a class of the tests; of a memoryview, too."""
    if type(value) is property:
        return value.fget, value.fset, value.fdel
    if type(value) in (staticmethod, classmethod):
        return (value.__func__,)
    return (bytes(value),) if type(value) is memoryview else None


def module_of(value):
    return getattr(getattr(value, "__objclass__", value), "__module__", None)


def importable(value):
    """Is it what its module and name say, in the standard library?"""
    module, name = module_of(value), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return False
    if module.split(".")[0] not in sys.stdlib_module_names or module == "__main__":
        return False
    return resolve(sys.modules.get(module), name) is value


def resolve(value, name):
    for piece in name.split("."):
        value = getattr(value, piece, None)
    return value


def pickled(value):
    """A copy for the program of an object of a library that is no iterator and no function."""
    cls = type(value)
    if isinstance(value, FUNCTIONS) or isinstance_exactly(value, type) or hasattr(cls, "__next__"):
        return None
    if isinstance_exactly(value, BaseException) or cls.__module__.split(".")[0] in (
        "tests",
        "io",
        "_io",
    ):
        return None
    try:
        return pickle.dumps(value, 5)
    except Exception:
        return None


def state_of(value):
    """The attributes of an object of a shareable class."""
    names = list(vars(value)) if hasattr(value, "__dict__") else list(type(value).__slots__)
    names = [name for name in names if hasattr(value, name)]
    return names, [getattr(value, name) for name in names]


def set_state(value, pieces):
    """Give an object these attributes. Raises ValueError for one that would hide a method."""
    for name, item in zip(*pieces, strict=True):
        if name.startswith("__") or callable(getattr(type(value), name, None)):
            raise ValueError(name)
        object.__setattr__(value, name, item)


# -------------------------------------------------------------------------------- building


def build(link, node, objects):
    """The value that a node of a pack stands for. Containers are filled later."""
    code, *fields = node
    return BUILDERS[code](link, objects, *fields)


def build_tuple(link, objects, items):
    return tuple(value_at(objects, item) for item in items)


def build_frozenset(link, objects, items):
    return frozenset(value_at(objects, item) for item in items)


def build_new(link, objects, number, kind, extra, owner):
    extra = value_at(objects, extra)
    if kind in link.shareable:
        value = object.__new__(link.class_called(kind))
    else:
        cls = None if owner is None else value_at(objects, owner)
        value = empty(kind, extra, cls)
        if cls is not None:
            Remote.bind(value, link, number)
    link.share(number, value, kind)
    return value


def build_nan(link, objects, number):
    value = float("nan")
    link.share(number, value, "nan", b"", True)
    return value


def build_known(link, objects, number):
    return link.find(number)


def build_value(link, objects, name, args):
    args = [value_at(objects, item) for item in args]
    if name in DESCRIPTORS and not link.host:
        return DESCRIPTORS[name](*args)
    return VALUES[name](*args)


def build_global(link, objects, module, name):
    if link.host:
        if (module, name) in OTHERS:
            return getattr(importlib.import_module(module), name)
        if module not in sys.modules or module.split(".")[0] not in sys.stdlib_module_names:
            raise ValueError(module)
        value = resolve(sys.modules[module], name)
        if value is type:
            return Mirror
        if value not in SAFE_CLASSES and not issubclass(value, BaseException):
            raise ValueError(name)
        return value
    importlib.import_module(module)
    return resolve(sys.modules[module], name)


def build_pickle(link, objects, data):
    if link.host:
        raise ValueError
    return pickle.loads(data)


def build_mine(link, objects, number, cls, core):
    if (value := link.known(number)) is not None:
        return value
    value = Remote.make(value_at(objects, cls), value_at(objects, core))
    Remote.bind(value, link, number)
    return link.adopt(number, value)


def build_class(link, objects, number, meta, bases, pieces):
    if (cls := link.known(number)) is not None:
        return cls
    bases = [value_at(objects, base) for base in bases]
    return link.adopt(number, mirror_of(link, number, value_at(objects, meta), bases, pieces))


def build_function(link, objects, number, pieces):
    if link.host:
        return link.function(number)
    return link.known(number) or link.adopt(number, function_of(link, pieces))


def build_module(link, objects, name):
    if link.host:
        raise ValueError(name)
    return importlib.import_module(name)


def build_error(link, objects, number, cls, args, names, attributes, *chain):
    if (value := link.known(number)) is not None:
        return value
    cls = value_at(objects, cls)
    if not issubclass(cls, BaseException):
        raise ValueError(cls)
    args = tuple(value_at(objects, item) for item in args)
    value = make_error(cls, args)
    if isinstance(cls, Mirror):
        Remote.bind(value, link, number)
    else:
        for name, item in zip(names, attributes, strict=True):
            set_attribute(value, name, value_at(objects, item))
    cause, context = (value_at(objects, item) for item in chain)
    if isinstance(context, BaseException):
        value.__context__ = context
    if isinstance(cause, BaseException):
        value.__cause__ = cause
    return link.adopt(number, value)


def set_attribute(value, name, item):
    try:
        object.__setattr__(value, name, item)
    except (AttributeError, TypeError):
        pass


def make_error(cls, args):
    """An exception without running what the class defines in Python."""
    if isinstance(cls, Mirror) or cls.__module__ != "builtins":
        base = next(b for b in cls.__mro__ if b.__module__ == "builtins")
        value = base.__new__(cls, *args)
        BaseException.args.__set__(value, args)
        return value
    try:
        return cls(*args)
    except (TypeError, ValueError):
        value = cls.__new__(cls, *args)
        BaseException.args.__set__(value, args)
        return value


BUILDERS = {
    "later": lambda link, objects: None,
    "tuple": build_tuple,
    "frozenset": build_frozenset,
    "new": build_new,
    "nan": build_nan,
    "known": build_known,
    "value": build_value,
    "global": build_global,
    "pickle": build_pickle,
    "mine": build_mine,
    "class": build_class,
    "function": build_function,
    "module": build_module,
    "error": build_error,
}
