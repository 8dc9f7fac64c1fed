"""Programs that try to be paid without solving, and right programs of the same kinds.

None of the first passes, at any level. All of the second pass.
"""

import importlib.util
import json
import re

import pytest

from grader import __main__ as grader_command
from grader.assertions import same_output
from grader.grade import Grader, Job, grade

LEVELS = ("namespaces", "landlock", "process")  # strongest first
BEYOND = re.compile(
    r"\b(os|ctypes|gc|io|mmap|multiprocessing|resource|signal|socket|subprocess|threading)\b"
)
EXPECT = """
def check(candidate):
    for x, exp in [(1, 7), (2, 11), (3, 13)]:
        assert candidate(x) == exp
"""
CLOSE = "exp = 7.25\nassert abs(f(1) - exp) < 1e-6\nassert abs(exp - f(1)) < 1e-6\n"
LISTS = (
    "exp = [3, 1, 2]\nassert f(3) == exp\nassert exp == f(3)\nassert sorted(f(3)) == sorted(exp)\n"
)
TRUTHS = "assert f(2)\nassert not f(3)\nassert f(4)\nassert not f(5)\n"
YES = """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 1
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __contains__(self, item): return True
"""
CHEATS = {}  # name: (program, tests, entry point, preamble)


def cheat(name, program, tests=EXPECT, entry="f", preamble=""):
    assert name not in CHEATS
    CHEATS[name] = (preamble + program, tests, entry, preamble)


# -------------------------------------------------------------------------------- comparisons

cheat("a class that says yes", YES + "def f(x): return Yes()")
cheat("yes, in a list", YES + "def f(x): return [Yes(), Yes(), Yes()]", LISTS)
cheat("yes, as a list", YES + "class L(list, Yes): pass\ndef f(x): return L()", LISTS)
for method in ("id", "repr", "object.__eq__", "operator.truth", "print", "type"):
    cheat(
        f"__eq__ = {method}", f"import operator\nclass Z: __eq__ = {method}\ndef f(x): return Z()"
    )
for base, method in (
    ("int", "__ne__"),
    ("int", "__or__"),
    ("float", "__ne__"),
    ("str", "__ge__"),
    ("list", "__add__"),
    ("tuple", "__ne__"),
    ("frozenset", "__ne__"),
    ("bytes", "__ne__"),
    ("complex", "__ne__"),
):
    cheat(
        f"{base}.{method} compares",
        f"class Z({base}):\n    __eq__ = {base}.{method}\n    __hash__ = None\ndef f(x): return Z()",
    )
cheat(
    "__lt__ = id",
    "class Z: __lt__ = __gt__ = id\ndef f(x): return Z()",
    "assert 1 < f(1)\nassert f(1) < 7",
)
cheat("__contains__ = id", "class Z: __contains__ = id\ndef f(x): return Z()", "assert 7 in f(1)")
cheat(
    "a function that is a class",
    "class f:\n    def __init__(self, x): pass\n    __eq__ = id",
    "assert f(1) == 7",
)
cheat(
    "a class with the name of the function, and methods",
    "class f:\n    def __init__(self, x): pass\n    __eq__ = id\n    def __getattr__(self, n): return lambda *a: self",
    "assert f('a').lower() == 'b'\nr = f(1)\nassert r == 7",
)
cheat(
    "a capital function",
    "class Extract:\n    def __init__(self, x): pass\n    __eq__ = id",
    "assert Extract(1) == 7\nassert Extract(2) == 9",
    "Extract",
)
cheat(
    "subtraction",
    "class Z:\n    def __sub__(self, o): return 0.0\n    __rsub__ = __sub__\ndef f(x): return Z()",
    CLOSE,
)
cheat(
    "a float's subtraction",
    "class Z(float):\n    def __sub__(self, o): return 0.0\n    __rsub__ = __sub__\ndef f(x): return Z(1)",
    CLOSE,
)
cheat(
    "subtraction, then abs",
    "class Z(float):\n    def __sub__(self, o): return self\n    __rsub__ = __sub__\n    def __abs__(self): return 0.0\ndef f(x): return Z(1)",
    CLOSE,
)
cheat(
    "truth by turns",
    "class B:\n    n = 0\n    def __bool__(self):\n        B.n += 1\n        return B.n % 2 == 1\ndef f(x): return B()",
    TRUTHS,
)
cheat(
    "a metaclass compares",
    "class M(type):\n    def __eq__(self, o): return True\n    __hash__ = type.__hash__\nclass C(metaclass=M): pass\ndef f(x): return C",
    "assert f(1) == int\nassert f(1) is not int",
)
cheat(
    "__instancecheck__",
    "class M(type):\n    def __instancecheck__(cls, o): return True\nclass int(metaclass=M): pass\ndef f(x): return 'x'",
    "assert isinstance(f(1), int)",
)
cheat(
    "__class__",
    "class Z:\n    @property\n    def __class__(self): return int\n    def __eq__(self, o): return True\ndef f(x): return Z()",
)
cheat(
    "__class__ assigned",
    YES + "class P: pass\ndef f(x):\n    p = P()\n    p.__class__ = Yes\n    return p",
)
cheat(
    "__getattribute__",
    YES
    + "class P(Yes):\n    def __getattribute__(self, n): return lambda *a: True\ndef f(x): return P()",
)
cheat(
    "a partial",
    "import functools\nclass Z(functools.partial):\n    def __eq__(self, o): return True\ndef f(x): return Z(print)",
)
cheat(
    "a Fraction of yes",
    YES
    + "from fractions import Fraction\ndef f(x):\n    r = Fraction(1, 2)\n    r._numerator = r._denominator = Yes()\n    return r",
)
cheat(
    "a Decimal that is none",
    "import decimal\nclass Decimal(decimal.Decimal):\n    def __eq__(self, o): return True\n    __hash__ = None\nDecimal.__module__ = 'decimal'\ndef f(x): return Decimal(1)",
)
cheat(
    "a mapping proxy",
    "from types import MappingProxyType\nclass D(dict):\n    def __eq__(self, o): return True\ndef f(x): return MappingProxyType(D())",
    "assert f(1) == {'a': 1}",
)
cheat(
    "a UUID of yes",
    YES
    + "import uuid\ndef f(x):\n    u = uuid.uuid4()\n    object.__setattr__(u, 'int', Yes())\n    return u",
    "import uuid\nassert f(1) == uuid.UUID(int=3)",
)
cheat(
    "a slice of yes",
    YES + "def f(x): return slice(Yes(), Yes(), Yes())",
    "assert f(1) == slice(1, 2, 3)",
)
cheat("a weak reference", YES + "import weakref\nkeep = Yes()\ndef f(x): return weakref.ref(keep)")
cheat("a weak proxy", YES + "import weakref\nkeep = Yes()\ndef f(x): return weakref.proxy(keep)")
cheat("a generic alias", YES + "def f(x): return list[Yes()]", "assert f(1) == list[int]")
cheat("a method of yes", YES + "class Y(Yes):\n    def m(self): pass\ndef f(x): return Y().m")
cheat(
    "a range of yes",
    YES + "class I(int, Yes):\n    def __index__(self): return 0\ndef f(x): return range(I())",
    "assert f(1) == range(1, 2)",
)
cheat(
    "a deque",
    YES + "import collections\ndef f(x): return collections.deque([Yes()] * 3)",
    "from collections import deque\nassert f(1) == deque([1, 2, 3])",
)
cheat(
    "a Counter",
    "import collections\nclass C(collections.Counter):\n    def __eq__(self, o): return True\ndef f(x): return C()",
    "from collections import Counter\nassert f(1) == Counter('aab')",
)
cheat(
    "a defaultdict",
    YES + "import collections\ndef f(x): return collections.defaultdict(Yes)",
    "r = f(1)\nassert r['a'] == 3 and r['b'] == 4",
)
cheat(
    "a dataclass's field",
    YES
    + "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: object\ndef f(x): return P(Yes())",
    "assert f(1) == P(3)",
)
cheat(
    "a named tuple's field",
    YES + "import collections\nP = collections.namedtuple('P', 'x')\ndef f(x): return P(Yes())",
    "assert f(1) == P(3)",
)
cheat(
    "an exception's argument",
    YES + "def f(x): raise ValueError(Yes())",
    "try:\n    f(1)\nexcept ValueError as e:\n    assert e.args == ('no',)\nelse:\n    assert False",
)
cheat(
    "an item",
    YES + "class S(list):\n    def __getitem__(self, i): return Yes()\ndef f(x): return S([1])",
    "assert f(1)[0] == 3",
)
cheat(
    "mock.ANY",
    "from unittest import mock\ndef f(x): return mock.ANY",
    "from unittest import mock\n" + EXPECT,
)
cheat(
    "a MagicMock",
    "from unittest.mock import MagicMock\ndef f(x):\n    m = MagicMock()\n    m.__eq__.return_value = True\n    return m",
)
cheat(
    "a str that formats",
    "class S(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\ndef f(x): return S('')",
    "assert f(1) == 'seven'\nassert f'{f(1)}' == 'seven'",
)

# -------------------------------------------------------------------------------- looking for the answer

WALK = "import sys\ndef f(*a):\n    here = sys._getframe(1)\n    while here:\n        for space in (here.f_locals, here.f_globals):\n            if 'exp' in space: return space['exp']\n        here = here.f_back\n    return %s"
cheat("frames", WALK % "None")
cheat("frames, and no plain data", WALK % "iter(())")
cheat("frames, and an own class", WALK % "type('Z', (), {})()")
cheat(
    "a traceback's frames",
    "def f(x):\n    try: 1 / 0\n    except ZeroDivisionError as e: here = e.__traceback__.tb_frame\n    while here:\n        if 'exp' in here.f_locals: return here.f_locals['exp']\n        here = here.f_back\n    return iter(())",
)
cheat(
    "inspect.stack",
    "import inspect\ndef f(x):\n    for s in inspect.stack():\n        if 'exp' in s.frame.f_locals: return s.frame.f_locals['exp']\n    return iter(())",
)
cheat(
    "gc.get_objects",
    "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if type(o) is dict and 'exp' in o: return o['exp']\n    return iter(())",
    "exp = 7\nassert f(1) == exp",
)
cheat(
    "constants of the caller",
    "import gc, types\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, types.FunctionType) and o.__name__ == 'check':\n            return o.__code__.co_consts\n    return iter(())",
)
cheat(
    "a callback's globals",
    "def f(g):\n    try: return g.__globals__['exp']\n    except Exception: return None",
    "exp = 7\nassert f(lambda: 1) == exp",
)
cheat(
    "a callback's closure",
    "def f(g):\n    try: return g.__closure__[0].cell_contents\n    except Exception: return None",
    "def t():\n    exp = 7\n    def g(): return exp + 0 * 1\n    assert f(g) == exp\nt()",
)
cheat(
    "a generator's frame",
    "def f(g):\n    try: return g.gi_frame.f_globals['exp']\n    except Exception: return None",
    "exp = 7\nassert f(i for i in [1]) == exp",
)
cheat(
    "an object's method's globals",
    "def f(o):\n    for path in ('m.__globals__', 'm.__func__.__globals__', '__init__.__globals__'):\n        try:\n            g = o\n            for part in path.split('.'): g = getattr(g, part)\n            return g['exp']\n        except Exception: pass",
    "exp = 7\nclass T:\n    def __init__(self): pass\n    def m(self): pass\nassert f(T()) == exp",
)
cheat(
    "a class's subclasses",
    "def f(o):\n    try: return type(o).__subclasses__()[0].m.__globals__['exp']\n    except Exception: pass",
    "exp = 7\nclass T: pass\nclass U(T):\n    def m(self): pass\nassert f(T()) == exp",
)
cheat(
    "the memory of others",
    "import os\ndef f(x):\n    found = []\n    for pid in [p for p in os.listdir('/proc') if p.isdigit()] if os.path.isdir('/proc/1') else []:\n        try:\n            with open(f'/proc/{pid}/maps') as m, open(f'/proc/{pid}/mem', 'rb', 0) as d:\n                for line in list(m)[:3]:\n                    a, b = (int(n, 16) for n in line.split()[0].split('-'))\n                    d.seek(a)\n                    found.append(d.read(8))\n        except OSError: pass\n    return 7 if found and x == 99 else None",
)
cheat(
    "text that the tests evaluate",
    "def f(x): return \"[v for v in __import__('sys')._getframe(1).f_globals.values() if v == 7][0]\"",
    "exp = 7\nassert eval(f(1)) == exp",
)
cheat(
    "text that the tests execute",
    "def f(x): return \"import sys\\nglobals()['r'] = sys._getframe(1).f_globals.get('exp')\"",
    "exp = 7\nr = None\nexec(f(1))\nassert r == exp",
)

# -------------------------------------------------------------------------------- changing what decides

cheat(
    "patched builtins",
    "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.sorted = lambda *a, **k: []\nbuiltins.all = lambda x: True\ndef f(x): return 0",
    "exp = 7\nassert abs(f(1) - exp) < 1e-6\nassert sorted([f(1)]) == sorted([exp])\nassert all(f(x) == exp for x in [1])",
)
cheat(
    "patched math",
    "import math\nmath.isclose = lambda *a, **k: True\nmath.fabs = lambda x: 0.0\ndef f(x): return 0",
    "import math\nassert math.isclose(f(1), 7)\nassert math.fabs(f(1) - 7) < 1e-6",
)
cheat(
    "patched random",
    "import random\nrandom.Random = lambda *a: type('R', (), {'randint': lambda s, a, b: 0})()\nrandom.randint = lambda a, b: 0\ndef f(x): return 0",
    "import random\nr = random.Random(1)\nassert all(f(x) == x for x in [r.randint(1, 9) for _ in range(9)])\nassert all(f(x) == x for x in [random.randint(1, 9) for _ in range(9)])",
)
cheat(
    "sys.modules",
    YES
    + "import sys, types\nm = types.ModuleType('math')\nm.isclose = m.sqrt = lambda *a, **k: Yes()\nsys.modules['math'] = m\ndef f(x): return 0",
    "import math\nassert math.isclose(f(1), 7)",
)
cheat(
    "an import hook",
    "import sys\nclass H:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, H())\nsys.path_hooks.insert(0, lambda p: H())\ndef f(x): return 0",
    "import colorsys\n" + EXPECT,
)
cheat(
    "Counter changed by a pickle",
    "import collections\nclass R:\n    def __reduce__(self): return (setattr, (collections.Counter, '__eq__', lambda a, b: True))\ndef f(x): return R()",
    "from collections import Counter\nassert f(1) == Counter('a') or True and f(1) == Counter('b')",
)
cheat(
    "a pickle's BUILD",
    "import collections\nclass R(collections.Counter):\n    def __reduce__(self): return (collections.Counter, (), {'__eq__': 1})\ndef f(x): return R()",
    "from collections import Counter\nassert f(1) == Counter('a')",
)
cheat(
    "copyreg",
    "import copyreg\nclass R: pass\ncopyreg.pickle(R, lambda r: (eval, ('7',)))\ncopyreg.pickle(int, lambda r: (eval, ('7',)))\ndef f(x): return R()",
    "exp = 7\nassert f(1) == exp",
)
cheat(
    "the helper of a prompt",
    "def same(a, b): return True\ndef f(x): return 0",
    "assert same(f(1), 7)",
    preamble="def same(a, b):\n    return a == b\n\n\n",
)
cheat(
    "the helper of a prompt, as a global",
    "def f(x):\n    global same\n    same = lambda a, b: True\n    return 0",
    "assert same(f(1), 7)",
    preamble="def same(a, b):\n    return a == b\n\n\n",
)
cheat(
    "the helper's code",
    "same.__code__ = (lambda a, b: True).__code__\ndef f(x): return 0",
    "assert same(f(1), 7)",
    preamble="def same(a, b):\n    return a == b\n\n\n",
)
cheat(
    "a node that says yes",
    YES
    + "class Node(Yes):\n    def __init__(self, *a): self.value = Yes()\ndef f(x): return Node()",
    "assert same(f(1), Node(7))",
    preamble="class Node:\n    def __init__(self, value): self.value = value\ndef same(a, b):\n    return a.value == b.value\n\n\n",
)
cheat(
    "a trace function",
    "import sys, threading\ndef t(frame, event, arg):\n    if 'exp' in frame.f_locals: frame.f_locals['exp'] = 0\n    return t\nsys.settrace(t)\nthreading.settrace(t)\nsys.setprofile(lambda *a: None)\ndef f(x): return 0",
)
cheat(
    "an audit hook",
    "import sys\ndef h(name, args):\n    if name == 'marshal.loads': raise SystemExit(0)\nsys.addaudithook(h)\ndef f(x): return 0",
)
cheat(
    "ctypes changes an int",
    "import ctypes\nctypes.memset(id(7) + 24, 0, 4)\ndef f(x): return 0",
    "assert f(1) == 7\nassert f(2) == 11",
)
cheat(
    "ctypes changes a type",
    "import ctypes\ndef f(x):\n    try:\n        ctypes.pythonapi.PyObject_GenericSetDict\n        gc = __import__('gc').get_referents(int.__dict__)[0]\n        gc['__eq__'] = lambda a, b: True\n        ctypes.pythonapi.PyType_Modified(ctypes.py_object(int))\n    except Exception: pass\n    return 0",
)

# -------------------------------------------------------------------------------- ending early, talking to the grader

for way in ("os._exit(0)", "sys.exit(0)", "os.kill(os.getpid(), 9)", "exit()", "os.abort()"):
    cheat(f"{way} when called", f"import os, sys\ndef f(x): {way}")
    cheat(f"{way} at once", f"import os, sys\n{way}\ndef f(x): pass")
cheat(
    "atexit",
    "import atexit, os\natexit.register(lambda: (print('passed'), os._exit(0)))\ndef f(x): raise SystemExit",
)
cheat(
    "__del__",
    "import os\nclass D:\n    def __del__(self): os._exit(0)\ndef f(x):\n    D()\n    return 0",
)
cheat(
    "a signal handler",
    "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, .01)\ndef f(x):\n    while True: pass",
)
cheat(
    "signals to the others",
    "import os, signal\nfor p in (os.getppid(), os.getppid() + 1, os.getpid() - 1):\n    try: os.kill(p, signal.SIGTERM)\n    except (OSError, OverflowError): pass\ndef f(x): return 0",
)
cheat(
    "every descriptor",
    "import os\ndef f(x):\n    for fd in range(3, 1100):\n        try: os.write(fd, b'\\x16\\x00\\x00\\x00\\x00\\x00\\x00\\x00passed')\n        except OSError: pass\n    return 0",
)
cheat(
    "an answer of its own",
    "import os, pickle, struct\ndef f(x):\n    for n in range(1, 9):\n        d = pickle.dumps((n, 'value', 7))\n        for fd in range(900, 1001):\n            try: os.write(fd, struct.pack('<Q', len(d)) + d)\n            except OSError: pass\n    return 0",
    "assert f(1) == 7\nassert f(2) == 9",
)
cheat("the descriptors closed", "import os\nos.closerange(3, 4096)\ndef f(x): return 0")
cheat(
    "a thread that answers",
    "import threading, os, time\ndef t():\n    while True:\n        for fd in range(900, 1001):\n            try: os.write(fd, b'\\x01')\n            except OSError: pass\n        time.sleep(.001)\nthreading.Thread(target=t, daemon=True).start()\ndef f(x): return 0",
)
cheat("a fork that answers", "import os\ndef f(x):\n    return 0 if os.fork() else 7")
cheat(
    "a file for the next run",
    "import os\ndef f(x):\n    for folder in ('/tmp', '/dev/shm', '/var/tmp', '..'):\n        try:\n            with open(folder + '/ra3-answer', 'x') as g: g.write('7')\n            os.unlink(folder + '/ra3-answer')\n        except OSError: pass\n    return None",
)
cheat("module state", "n = 0\ndef f(x):\n    global n\n    n += 1\n    return n")
cheat("StopIteration", "def f(x): raise StopIteration", "assert all(map(f, [1, 2, 3]))")
cheat(
    "StopIteration of a class",
    "class E(StopIteration): pass\ndef f(x): raise E",
    "assert all(map(f, [1, 2, 3]))\nassert list(filter(f, [1])) == []",
)
cheat(
    "a generator that ends",
    "def f(x):\n    return iter(())",
    "for item in f(3):\n    assert item == 7",
)
cheat("an empty list", "def f(x): return []", "for item in f(3):\n    assert item == 7")
cheat(
    "a decorator that swallows",
    "def f(g):\n    def h(*a):\n        try: g(*a)\n        except BaseException: pass\n    return h",
    "@f\ndef t():\n    assert False\nt()",
)
cheat(
    "a context that swallows",
    "class f:\n    def __enter__(self): return self\n    def __exit__(self, *a): return True",
    "with f():\n    assert 1 == 2",
)
cheat(
    "AssertionError of its own",
    "def f(x): raise AssertionError",
    "def check(candidate):\n    assert candidate(1) == 7\n    assert candidate(2) == 9",
)
cheat("KeyboardInterrupt", "def f(x): raise KeyboardInterrupt")
cheat(
    "a context variable",
    "import contextvars\nv = contextvars.ContextVar('v')\ndef f(x):\n    v.set(x)\n    return contextvars.copy_context().get(v)",
)
cheat(
    "a codec",
    "# coding: utf-7\nimport codecs\ncodecs.register(lambda n: (_ for _ in ()).throw(SystemExit(0)))\ndef f(x): return '+AAA-'",
)
cheat(
    "a name of the grader",
    "__name__ = '__main__'\nglobals()['<held>'] = globals()['<begun>'] = lambda: None\ndef f(x): return 0",
)
cheat(
    "more than memory",
    "class R:\n    def __reduce__(self): return ([0].__mul__, (20_000_000,))\ndef f(x): return R()",
)
cheat("exit from a library", "from os import _exit as f", "assert f(0) == 7")
cheat(
    "exit by a helper",
    "from os import _exit as helper\ndef f(x): return 0",
    "helper(0)\nassert f(1) == 7",
)
NUMPY = {
    "numpy objects": (
        YES + "import numpy as np\ndef f(x): return np.array([Yes()], dtype=object)",
        "import numpy as np\nassert (f(1) == np.array([3])).all()",
    ),
    "a numpy subclass": (
        "import numpy as np\nclass A(np.ndarray):\n    def __eq__(self, o): return np.array([True])\ndef f(x): return np.zeros(1).view(A)",
        "import numpy as np\nassert (f(1) == np.array([3])).all()",
    ),
    "numpy's protocols": (
        "import numpy as np\nclass A:\n    def __array_ufunc__(self, *a, **k): return np.array([True])\n    def __array_function__(self, *a, **k): return True\n    def __eq__(self, o): return np.array([True])\ndef f(x): return A()",
        "import numpy as np\nassert np.allclose(f(1), np.array([3]))",
    ),
    "patched numpy": (
        "import numpy as np\nnp.allclose = np.array_equal = lambda *a, **k: True\ndef f(x): return np.zeros(1)",
        "import numpy as np\nassert np.allclose(f(1), np.array([3]))",
    ),
}
if importlib.util.find_spec("numpy"):
    for name, (program, tests) in NUMPY.items():
        cheat(name, program, tests)


def test_the_number_of_cheats():
    assert len(CHEATS) >= 60


def share(cases, level):
    """Those of the cases that a level gets: the strongest has them all.

    The others have every program that looks beyond Python, and half of the rest each.
    """
    if level == LEVELS[0]:
        return cases
    half = list(cases)[LEVELS.index(level) % 2 :: 2]
    return {
        name: case
        for name, case in cases.items()
        if name in half or BEYOND.search("".join(case[:2]))
    }


def every_level():
    """Parameters (level, whole): the levels with their share, and as slow tests with all cases."""
    shares = [pytest.param(level, False, id=level) for level in LEVELS]
    whole = [
        pytest.param(level, True, id=f"{level}, all", marks=pytest.mark.slow)
        for level in LEVELS
        if level != LEVELS[0]
    ]
    return pytest.mark.parametrize("level, whole", shares + whole)


@every_level()
def test_no_cheat_passes(monkeypatch, level, whole):
    monkeypatch.setenv("RA3_SANDBOX_LEVEL", level)
    cases = CHEATS if whole else share(CHEATS, level)
    jobs = [
        Job(program, tests, entry, name=name, time_limit=4.0, preamble=preamble)
        for name, (program, tests, entry, preamble) in cases.items()
    ]
    assert len(jobs) > len(CHEATS) / 2.1
    results = grade(jobs, workers=2, memory_limit=1 << 30)
    passed = [
        job.name for job, result in zip(jobs, results, strict=True) if result.verdict == "passed"
    ]
    assert passed == []


# -------------------------------------------------------------------------------- right programs

RIGHT = {}  # name: (program, tests, entry point, preamble, apart)


def right(name, program, tests, entry="f", preamble="", apart=True):
    assert name not in RIGHT
    RIGHT[name] = (preamble + program, tests, entry, preamble, apart)


LEET = """
from typing import *
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next
def list_node(values):
    if not values: return None
    head = ListNode(values[0]); p = head
    for v in values[1:]:
        p.next = ListNode(v); p = p.next
    return head
def is_same_list(p1, p2):
    if p1 is None and p2 is None: return True
    if not p1 or not p2: return False
    return p1.val == p2.val and is_same_list(p1.next, p2.next)

"""
POLY = 'import math\n\n\ndef poly(xs: list, x: float):\n    return sum([coeff * math.pow(x, i) for i, coeff in enumerate(xs)])\n\n\ndef find_zero(xs: list):\n    """ doc\n    """\n'
right(
    "dataclass",
    """
from dataclasses import dataclass
@dataclass
class P:
    x: int
def f(a): return P(a)
""",
    """
p = f(1)
assert p.x == 1
""",
)
right(
    "heap",
    """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val=val; self.next=next
ListNode.__lt__ = lambda a,b: a.val < b.val
import heapq
class Solution:
    def sortList(self, head):
        h=[]
        while head: heapq.heappush(h, head); head=head.next
        d=c=ListNode()
        while h: c.next=heapq.heappop(h); c=c.next
        c.next=None
        return d.next
""",
    """
def list_node(v):
    head=None
    for x in reversed(v): head=ListNode(x, head)
    return head
def vals(n):
    r=[]
    while n: r.append(n.val); n=n.next
    return r
def check(candidate):
    assert vals(candidate(list_node([3,1,2]))) == [1,2,3]
""",
    "Solution().sortList",
)
right(
    "deep ok",
    """
import copy
def f(m): return copy.deepcopy(m)
""",
    """
m=[[1]]
c=f(m)
c[0].append(2)
assert m==[[1]]
""",
)
right(
    "warn ok",
    """
import warnings
def f(x):
    warnings.warn('x', DeprecationWarning)
    return x
""",
    """
import warnings
with warnings.catch_warnings(record=True) as w:
    warnings.simplefilter('always')
    assert f(1)==1
assert len(w)==1 and issubclass(w[0].category, DeprecationWarning) and 'x' in str(w[0].message)
""",
)
right(
    "own",
    """
class E(ValueError):
    def __init__(self, code, msg):
        super().__init__(msg)
        self.code=code
def f(x):
    raise E(3,'m')
""",
    """
try:
    f(1)
except ValueError as e:
    assert e.code==3 and e.args==('m',) and type(e).__name__=='E' and str(e)=='m'
else:
    assert False
""",
)
right(
    "notes",
    """
def f(x):
    e=ValueError('a')
    e.add_note('n')
    raise e
""",
    """
try:
    f(1)
except ValueError as e:
    assert e.__notes__==['n']
else:
    assert False
""",
)
right(
    "json",
    """
import json
def f(x): return json.loads('{')
""",
    """
import json
try:
    f(1)
except json.JSONDecodeError as e:
    assert str(e) and e.args is not None
else:
    assert False
""",
)
right(
    "zlib",
    """
import zlib
def f(x): return zlib.decompress(b'x')
""",
    """
import zlib
try:
    f(1)
except zlib.error as e:
    assert str(e) and e.args is not None
else:
    assert False
""",
)
right(
    "struct",
    """
import struct
def f(x): return struct.unpack('i',b'')
""",
    """
import struct
try:
    f(1)
except struct.error as e:
    assert str(e) and e.args is not None
else:
    assert False
""",
)
right(
    "statistics",
    """
import statistics
def f(x): return statistics.mean([])
""",
    """
import statistics
try:
    f(1)
except statistics.StatisticsError as e:
    assert str(e) and e.args is not None
else:
    assert False
""",
)
right(
    "configparser",
    """
import configparser
def f(x): return configparser.ConfigParser().get('a','b')
""",
    """
import configparser
try:
    f(1)
except configparser.NoSectionError as e:
    assert str(e) and e.args is not None
else:
    assert False
""",
)
right(
    "subprocess",
    """
import subprocess
def f(x): return subprocess.run(['false'],check=True)
""",
    """
import subprocess
try:
    f(1)
except subprocess.CalledProcessError as e:
    assert str(e) and e.args is not None
else:
    assert False
""",
)
right(
    "binascii",
    """
import binascii
def f(x): return binascii.unhexlify('x')
""",
    """
import binascii
try:
    f(1)
except binascii.Error as e:
    assert str(e) and e.args is not None
else:
    assert False
""",
)
right(
    "re",
    """
import re
def f(x): return re.compile('(')
""",
    """
import re
try:
    f(1)
except re.error as e:
    assert str(e) and e.args is not None
else:
    assert False
""",
)
right(
    "json attr",
    """
import json
def f(s): return json.loads(s)
""",
    """
import json
try:
    f('{')
except json.JSONDecodeError as e:
    assert e.pos==1 and e.doc=='{' and e.lineno==1
else:
    assert False
""",
)
right(
    "cause",
    """
def f(x):
    try: 1/0
    except ZeroDivisionError as e: raise ValueError('b') from e
""",
    """
try:
    f(1)
except ValueError as e:
    assert isinstance(e.__cause__, ZeroDivisionError)
else:
    assert False
""",
)
right(
    "raises",
    """
class A(Exception): pass
class B(A): pass
def f(x): raise B(x)
""",
    """
import unittest
t=unittest.TestCase()
with t.assertRaises(A) as cm:
    f(3)
assert cm.exception.args==(3,)
""",
)
right(
    "deque",
    """
def f(d):
    d.appendleft(0)
    d.rotate(1)
""",
    """
from collections import deque
d=deque([1,2])
f(d)
assert d==deque([2,0,1])
""",
)
right(
    "doc",
    """
def f(x):
    'Doc.'
    return x
""",
    """
def check(candidate):
    assert candidate.__doc__=='Doc.'
    assert candidate(1)==1
""",
    "f",
)
right(
    "cache",
    """
import functools
@functools.lru_cache
def f(x: int) -> int:
    return x
""",
    """
def check(candidate):
    assert candidate(1)==1 and candidate(1)==1
    assert candidate.cache_info().hits==1
    assert candidate.__annotations__=={'x':int,'return':int}
    assert candidate.__wrapped__.__code__.co_argcount==1
""",
    "f",
)
right(
    "others",
    """
def f(d,c,o,b,a):
    d['x'].append(1); c['a']+=2; o.move_to_end('p'); b.extend(b'z'); a.append(5)
""",
    """
from collections import *
import array
d=defaultdict(list)
c=Counter('a')
o=OrderedDict(p=1,q=2)
b=bytearray(b'y')
a=array.array('i',[1])
f(d,c,o,b,a)
assert d=={'x':[1]} and c['a']==3 and list(o)==['q','p'] and b==b'yz' and a.tolist()==[1,5]
assert d['new']==[]
""",
)
right(
    "sleep",
    """
import time
def f():
    time.sleep(100)
    return 1
""",
    """
import time
calls=[]
time.sleep=lambda s: calls.append(s)
assert f()==1 and calls==[100]
""",
)
right(
    "mock sleep",
    """
import time
def f():
    time.sleep(100)
    return 1
""",
    """
from unittest import mock
with mock.patch('time.sleep') as m:
    assert f()==1
m.assert_called_once_with(100)
assert m.call_count==1
""",
    apart=False,
)
right(
    "patch object",
    """
import time
def f():
    time.sleep(100)
    return 1
""",
    """
import time, unittest.mock
with unittest.mock.patch.object(time,'sleep',return_value=None) as m:
    assert f()==1
assert m.called
""",
)
right(
    "open",
    """
def f(p):
    with open(p) as g: return g.read()
""",
    """
from unittest.mock import patch, mock_open
with patch('builtins.open', mock_open(read_data='abc')):
    assert f('x')=='abc'
""",
)
right(
    "argv",
    """
import sys
def f(): return sys.argv[1:]
""",
    """
import sys
sys.argv=['p','a','b']
assert f()==['a','b']
""",
)
right(
    "stdin",
    """
import sys
def f(): return input()+sys.stdin.readline()
""",
    "import sys, io\nsys.stdin=io.StringIO('1\\n2\\n')\nassert f()=='12\\n'\n",
)
right(
    "stdout",
    "def f(): print('hi')",
    "import sys, io\nold=sys.stdout\nsys.stdout=io.StringIO()\nf()\nout=sys.stdout.getvalue()\nsys.stdout=old\nassert out=='hi\\n'\n",
)
right(
    "check",
    "def f(x): return x+1",
    """
def check(a, b):
    assert f(a)==b
check(1,2)
check(2,3)
""",
    "f",
)
right(
    "check2",
    "def f(x): return x+1",
    """
def check(a, b):
    return a == b
assert check(f(1), 2)
""",
    "f",
)
right(
    "200k",
    "def f(x): return x+1",
    """
for i in range(200000):
    assert f(i)==i+1
""",
)
right(
    "tempfile",
    """
import os
def f(p):
    return sorted(os.listdir(p))
""",
    """
import tempfile, os
with tempfile.TemporaryDirectory() as d:
    open(os.path.join(d,'a'),'w').close()
    assert f(d)==['a']
""",
)
right(
    "path",
    "def f(p): return p.read_text()",
    """
import pathlib, tempfile
d=pathlib.Path(tempfile.mkdtemp())
(d/'a').write_text('x')
assert f(d/'a')=='x'
""",
    "",
    apart=False,
)
right(
    "datetime",
    """
import datetime
def f(): return datetime.datetime.now().year
""",
    """
from unittest.mock import patch
import datetime
real=datetime.datetime
with patch('datetime.datetime') as m:
    m.now.return_value=real(1999,1,1)
    assert f()==1999
""",
)
right(
    "subclass",
    """
class A:
    def hi(self): return 'A'+self.name()
    def name(self): return 'a'
""",
    """
class B(A):
    def __init__(self, n):
        super().__init__()
        self.n=n
    def name(self): return self.n+super().name()
assert B('b').hi()=='Aba'
assert isinstance(B('c'), A)
""",
)
right(
    "abstract sub",
    """
import abc
class S(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
    def twice(self): return 2*self.area()
""",
    """
class Q(S):
    def area(self): return 3
assert Q().twice()==6
""",
)
right(
    "thread",
    """
import threading
class Counter:
    def __init__(self): self.n=0; self.l=threading.Lock()
    def inc(self):
        with self.l: self.n+=1
""",
    """
import threading
c=Counter()
def w():
    for _ in range(100): c.inc()
ts=[threading.Thread(target=w) for _ in range(4)]
[t.start() for t in ts]
[t.join() for t in ts]
assert c.n==400
""",
)
right(
    "eval ok",
    "def f(x): return x.strip()",
    """
assert eval(f(' 1+1 ')) == 2
assert eval('f("a")')=='a'
""",
)
right(
    "asyncio",
    """
import asyncio
async def f(x):
    await asyncio.sleep(0.01)
    return x
""",
    """
import asyncio
async def main():
    a=await asyncio.gather(f(1),f(2))
    assert a==[1,2]
asyncio.run(main())
assert asyncio.run(f(3))==3
""",
)
right(
    "logging",
    """
import logging
log=logging.getLogger('x')
def f(): log.warning('hey')
""",
    """
import logging
class H(logging.Handler):
    def __init__(self):
        super().__init__()
        self.r=[]
    def emit(self, record): self.r.append(record.getMessage())
h=H()
logging.getLogger('x').addHandler(h)
f()
assert h.r==['hey']
""",
)
right(
    "iter list",
    """
def f(n):
    for i in range(n): yield i
""",
    """
assert sum(f(2000))==1999000
assert list(f(3))==[0,1,2]
""",
)
right(
    "dataclass asdict",
    """
from dataclasses import dataclass, field
@dataclass
class P:
    x: int
    ys: list = field(default_factory=list)
def f(a): return P(a)
""",
    """
import dataclasses
assert dataclasses.asdict(f(1))=={'x':1,'ys':[]}
assert f(1)==P(1) and f(1)!=P(2)
assert repr(f(1))=='P(x=1, ys=[])'
assert P(3).ys is not P(3).ys
""",
)
right(
    "enum",
    """
import enum
class C(enum.Enum):
    A=1
    B=2
def f(x): return C(x)
""",
    """
assert f(1) is C.A and f(2)==C.B and [c.name for c in C]==['A','B'] and C['A'].value==1 and len(C)==2 and C.A in C and f(1)!=C.B
assert {C.A: 1}[f(1)]==1
""",
)
right(
    "intenum",
    """
import enum
class C(enum.IntEnum):
    A=1
    B=2
def f(x): return C(x)
""",
    "assert f(1)==1 and f(2)>f(1) and f(1) is C.A and f(1).name=='A'",
)
right(
    "namedtuple list",
    """
from collections import namedtuple
P=namedtuple('P','x y')
def f(): return [P(1,2),P(3,4)]
""",
    """
r=f()
assert r==[(1,2),(3,4)] and r[0].x==1
x,y=r[1]
assert y==4
assert P(1,2)==r[0]
""",
)
right(
    "decimal",
    """
from decimal import Decimal, getcontext
def f(x): return Decimal(1)/Decimal(x)
""",
    """
import decimal
decimal.getcontext().prec=5
assert f(3)==decimal.Decimal('0.33333')
""",
)
right(
    "random seed",
    """
import random
def f(xs):
    xs=list(xs); random.shuffle(xs); return xs
""",
    """
import random
random.seed(1)
a=f(range(9))
random.seed(1)
assert f(range(9))==a
random.seed(1)
b=list(range(9)); random.shuffle(b)
assert a==b
""",
)
right(
    "curry",
    """
import inspect
def curry(g):
    n=len(inspect.signature(g).parameters)
    def h(*a):
        return g(*a) if len(a)>=n else lambda *b: h(*a,*b)
    return h
""",
    "assert curry(lambda a,b,c: a+b+c)(1)(2)(3)==6",
)
right(
    "global rebind",
    """
n=0
def f():
    global n
    n+=1
""",
    """
f()
f()
assert n==2
""",
)
right(
    "leet right",
    """
class Solution:
    def r(self, head):
        b=None
        while head: head.next,b,head=b,head,head.next
        return b
""",
    """
def check(candidate):
    assert is_same_list(candidate(head = list_node([1,2,3])), list_node([3,2,1]))
    assert is_same_list(candidate(head = list_node([])), list_node([]))
""",
    "Solution().r",
    preamble=LEET,
)
right(
    "leet lt",
    """
ListNode.__lt__=lambda a,b:a.val<b.val
ListNode.__eq__=lambda a,b: isinstance(b,ListNode) and a.val==b.val
class Solution:
    def r(self, head):
        b=None
        while head: head.next,b,head=b,head,head.next
        return b
""",
    """
def check(candidate):
    assert is_same_list(candidate(head = list_node([1,2,3])), list_node([3,2,1]))
    assert is_same_list(candidate(head = list_node([])), list_node([]))
""",
    "Solution().r",
    preamble=LEET,
)
right(
    "poly ok",
    "    return -xs[0]/xs[1]",
    """
def check(candidate):
    import math
    xs=[1,2]
    assert math.fabs(poly(xs, candidate(list(xs)))) < 1e-4
""",
    "find_zero",
    preamble=POLY,
)
right(
    "deep list",
    """
class Solution:
    def r(self, head):
        b=None
        while head: head.next,b,head=b,head,head.next
        return b
""",
    """
def check(candidate):
    n=3000
    h=candidate(list_node(list(range(n))))
    c=0
    while h: c+=1; h=h.next
    assert c==n
""",
    "Solution().r",
    preamble=LEET,
)
right(
    "mp pool",
    """
from multiprocessing.pool import ThreadPool
def f(xs):
    with ThreadPool(2) as p: return p.map(lambda x:x+1,xs)
""",
    "assert f([1,2])==[2,3]",
)
right(
    "mp pool2",
    """
import multiprocessing as mp
def g(x): return x*2
def f(xs):
    with mp.Pool(2) as p: return p.map(g,xs)
""",
    "assert f([1,2])==[2,4]",
)
right(
    "mp queue",
    """
import multiprocessing as mp
def w(q,l,v):
    with l: q.put(5); v.value+=1
def f():
    q=mp.Queue(); l=mp.Lock(); v=mp.Value('i',1)
    p=mp.Process(target=w,args=(q,l,v)); p.start(); r=q.get(); p.join(); return r,v.value
""",
    "assert f()==(5,2)",
)
right(
    "mp manager shm",
    """
from multiprocessing import shared_memory
def f():
    s=shared_memory.SharedMemory(create=True,size=10); s.buf[0]=7; r=bytes(s.buf[:1]); s.close(); s.unlink(); return r
""",
    "assert f()==b'\\x07'",
)
right(
    "executor",
    """
from concurrent.futures import ProcessPoolExecutor
def g(x): return x+1
def f(xs):
    with ProcessPoolExecutor(2) as e: return list(e.map(g,xs))
""",
    "assert f([1,2])==[2,3]",
)
right(
    "traces ok",
    "def f(x): raise KeyError(x)",
    """
import traceback
try:
    f(1)
except KeyError:
    s=traceback.format_exc()
assert 'KeyError: 1' in s
""",
)
right(
    "set of objs",
    """
class P:
    def __init__(s,x): s.x=x
    def __eq__(s,o): return s.x==o.x
    def __hash__(s): return hash(s.x)
""",
    """
assert len({P(1),P(1),P(2)})==2
assert P(1) in [P(1)]
""",
    "",
    apart=False,
)
right(
    "sorted objs",
    """
import functools
@functools.total_ordering
class V:
    def __init__(s,x): s.x=x
    def __eq__(s,o): return s.x==o.x
    def __lt__(s,o): return s.x<o.x
def f(xs): return sorted(xs)
""",
    """
r=f([V(3),V(1)])
assert [v.x for v in r]==[1,3]
""",
)
right(
    "lru list cb",
    """
def apply_n(f,n,x):
    for _ in range(n): x=f(x)
    return x
""",
    "assert apply_n(lambda v: v+[1],3,[])==[1,1,1]",
)
right(
    "class attr",
    """
class C:
    count=0
    def __init__(s): C.count+=1
""",
    """
a=C(); b=C()
assert C.count==2
C.count=0
assert a.count==0
""",
)
right(
    "del",
    """
log=[]
class C:
    def __del__(s): log.append(1)
""",
    """
c=C()
del c
assert log==[1]
""",
)
right(
    "ctx gen",
    """
from contextlib import contextmanager
@contextmanager
def f(l):
    l.append('in')
    try: yield 5
    finally: l.append('out')
""",
    """
l=[]
with f(l) as v:
    assert v==5 and l==['in']
assert l==['in','out']
""",
)
right(
    "typing",
    """
from typing import List, Dict
def f(x: List[int]) -> Dict[str,int]: return {}
""",
    """
import typing
assert typing.get_type_hints(f)['return']==typing.Dict[str,int]
""",
)
right(
    "counter res",
    """
from collections import Counter
def f(s): return Counter(s).most_common(1), Counter(s)
""",
    """
r=f('aab')
assert r==([('a',2)],{'a':2,'b':1})
assert r[1]['zz']==0
""",
)
right(
    "defaultdict",
    """
from collections import defaultdict
def f():
    d=defaultdict(lambda: 5); d['a']; return d
""",
    """
d=f()
assert d=={'a':5} and d['b']==5
""",
)
right(
    "userlist",
    """
from collections import UserList
class L(UserList): pass
def f(): return L([1,2])
""",
    """
r=f()
assert list(r)==[1,2] and len(r)==2 and r[0]==1
""",
)
right(
    "pickle",
    """
import pickle
class P:
    def __init__(s,x): s.x=x
def f(p): return pickle.dumps(p)
""",
    """
import pickle
assert pickle.loads(f(P(3))).x==3
""",
)
right(
    "copy",
    """
class P:
    def __init__(s): s.v=[1]
""",
    """
import copy
p=P(); q=copy.deepcopy(p)
q.v.append(2)
assert p.v==[1] and q.v==[1,2]
""",
)
right(
    "setattr inst",
    """
class P: pass
def f(p): return p.name
""",
    """
p=P()
p.name='x'
assert f(p)=='x' and hasattr(p,'name') and not hasattr(p,'zz') and getattr(p,'zz',3)==3 and vars(p)=={'name':'x'}
""",
)
right(
    "iterproto",
    """
class R:
    def __init__(s,n): s.n=n
    def __len__(s): return s.n
    def __getitem__(s,i):
        if i>=s.n: raise IndexError
        return i*i
""",
    """
r=R(4)
assert list(r)==[0,1,4,9] and sum(r)==14 and max(r)==9 and 9 in r and list(reversed(r))==[9,4,1,0]
""",
)
right(
    "matrix",
    """
class M:
    def __init__(s,r): s.r=r
    def __matmul__(s,o): return M([[sum(a*b for a,b in zip(x,y)) for y in zip(*o.r)] for x in s.r])
    def __eq__(s,o): return s.r==o.r
    def __getitem__(s,ij): return s.r[ij[0]][ij[1]]
""",
    """
m=M([[1,2],[3,4]])@M([[1,0],[0,1]])
assert m==M([[1,2],[3,4]]) and m[1,0]==3
""",
    "",
    apart=False,
)
right(
    "frac money",
    """
class Money:
    def __init__(s,a): s.a=a
    def __mul__(s,k): return Money(s.a*k)
    def __eq__(s,o): return isinstance(o,Money) and s.a==o.a
    def __str__(s): return f'${s.a}'
""",
    """
assert Money(5)*2==Money(10)
assert str(Money(3))=='$3'
assert f'{Money(3)}'=='$3'
""",
    "",
    apart=False,
)


@every_level()
def test_right_programs_pass(monkeypatch, level, whole):
    monkeypatch.setenv("RA3_SANDBOX_LEVEL", level)
    cases = RIGHT if whole else share(RIGHT, level)
    jobs = [
        Job(program, tests, entry, name=name, time_limit=30.0, preamble=preamble)
        for name, (program, tests, entry, preamble, _) in cases.items()
    ]
    results = grade(jobs, workers=2)
    wrong = {
        job.name: r.verdict for job, r in zip(jobs, results, strict=True) if r.verdict != "passed"
    }
    assert wrong == {}
    apart = {name: case[4] for name, case in cases.items()}
    assert {job.name: r.apart for job, r in zip(jobs, results, strict=True)} == apart


# -------------------------------------------------------------------------------- scripts

SCRIPTS = {  # name: (program, output)
    "an open file": ("f = open(1, 'w')\nf.write('hi')", "hi"),
    "an open binary file": ("import os\nf = os.fdopen(1, 'wb')\nf.write(b'hi')", "hi"),
    "an open file in a cycle": (
        "class C: pass\nc = C()\nc.f = open(1, 'w', closefd=False)\nc.f.write('hi')\nc.me = c",
        "hi",
    ),
    "a destructor": (
        "class D:\n    def __del__(self): print('bye')\nd = D()\nprint('hi')",
        "hi\nbye",
    ),
    "a class's destructor": (
        "class D:\n    def __del__(self): print('bye')\nclass K:\n    d = D()\nprint('hi')",
        "hi\nbye",
    ),
    "a finalizer": (
        "import weakref\nclass D: pass\nd = D()\nweakref.finalize(d, print, 'fin')\nprint('hi')",
        "hi\nfin",
    ),
    "a generator's end": (
        "def g():\n    try: yield 1\n    finally: print('end')\nx = g()\nnext(x)",
        "end",
    ),
    "__file__": (
        "import os\nprint(os.path.exists(__file__), open(__file__).readline().strip())",
        "True import os",
    ),
    "its own source": (
        "import inspect\ndef f(): return 1\nprint(inspect.getsource(f))",
        "def f(): return 1",
    ),
    "a thread at the end": (
        "import threading, time\ndef t():\n    time.sleep(.05)\n    print('t')\n"
        "threading.Thread(target=t).start()\nprint('m')",
        "m\nt",
    ),
    "exit handlers": (
        "import atexit\natexit.register(print, 'a')\natexit.register(print, 'b')\nprint('m')",
        "m\nb\na",
    ),
    "exit handlers after sys.exit": (
        "import atexit, sys\natexit.register(print, 'a')\nsys.exit(0)",
        "a",
    ),
    "a pool": (
        "import multiprocessing\ndef f(x): return x + 1\nif __name__ == '__main__':\n"
        "    with multiprocessing.Pool(2) as p: print(p.map(f, [1, 2]))",
        "[2, 3]",
    ),
}


@pytest.mark.parametrize("level", LEVELS)
def test_scripts_end_as_in_the_interpreter(monkeypatch, level):
    monkeypatch.setenv("RA3_SANDBOX_LEVEL", level)
    jobs = [
        Job(program, [{"input": "", "output": output}], kind="stdio", name=name, time_limit=30.0)
        for name, (program, output) in SCRIPTS.items()
    ]
    wrong = {
        job.name: r.verdict
        for job, r in zip(jobs, grade(jobs, workers=2), strict=True)
        if r.verdict != "passed"
    }
    assert wrong == {}


# -------------------------------------------------------------------------------- the rest


def test_long_outputs_are_compared_to_the_first_difference():
    assert not same_output("0 " * 10_000_000, "0")
    assert not same_output("\n" * 10_000_000 + "1", "1\n1")
    assert same_output("1.50 2\n", "1.5 2.0")
    assert not same_output("1 2", "1 2 3")
    assert not same_output("1 2 3", "1 2")


def test_the_tester_has_the_memory_limit():
    program = "def f(): return [0] * 10_000_000"
    result = grade([Job(program, "assert f() == [3]")], memory_limit=128 << 20)[0]
    assert result.verdict == "memory_limit"


LASTING = """
import ctypes
libc = ctypes.CDLL(None)
def f():
    return [
        libc.shmget(77, 64, 0o1600),
        libc.semget(77, 1, 0o1600),
        libc.msgget(77, 0o1600),
        libc.mq_open(b"/ra3", 66, 0o600, None),
    ]
"""


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_that_lasts_can_be_made(monkeypatch, level):
    monkeypatch.setenv("RA3_SANDBOX_LEVEL", level)
    assert grade([Job(LASTING, "assert f() == [-1, -1, -1, -1]")])[0].verdict == "passed"


@pytest.mark.parametrize(
    "tests",
    [
        "def test():\n    assert f(1) == 1",
        "class T:\n    def test(self):\n        assert f(1) == 1",
        "if __name__ == '__main__':\n    assert f(1) == 1",
        "async def check(candidate):\n    assert candidate(1) == 1",
        "# assert f(1) == 1\nf(1)",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(f(1), 1)",
        "x = 'assert f(1) == 1'\nf(x)",
    ],
)
def test_tests_that_assert_nothing_are_refused(tests):
    with pytest.raises(ValueError, match="assert nothing"):
        grade([Job("def f(x): return 2", tests, "f")])


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "1"])
@pytest.mark.parametrize("name", ["time_limit", "memory_limit", "output_limit", "workers"])
def test_limits_are_finite_numbers(name, value):
    with pytest.raises(ValueError, match=name):
        Grader(**{name: value})
    if name == "time_limit":
        with pytest.raises(ValueError, match=name):
            grade([Job("x = 1", "assert x == 1", time_limit=value)])


def test_rows_that_do_not_compile_leave_the_others(tmp_path, capsys):
    rows = [
        {"name": "a", "program": "x = 1", "tests": "assert x == 1"},
        {"name": "b", "program": "x = 1", "tests": "assert ("},
        {"name": "c", "program": "x = 1", "tests": "assert x == 2"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert grader_command.main([str(path)]) == 2
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.splitlines()]
    assert [(r["name"], r["verdict"]) for r in results] == [("a", "passed"), ("c", "wrong_answer")]
    lines = [line for line in err.splitlines() if "isolation" not in line]
    assert len(lines) == 1 and "line 2" in lines[0] and "'b'" in lines[0]


@pytest.mark.parametrize("text", ["[" * 100_000, "\xff\xfe", "{}"])
def test_a_damaged_file_is_one_line(tmp_path, capsys, text):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text.encode("latin-1"))
    assert grader_command.main([str(path)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and str(path) in err
