"""Programs for the grader, each with the verdict that it must get: ill-behaved ones that must fail, unusual ones that must pass.

CASES maps a name to (fields of its Job, its verdicts). There is one verdict, unless the specification leaves it open: then a comment
says what is open. SETTINGS are the limits that the verdicts hold under. Data only; tests/test_sandbox.py grades it.

Every program is run for real, so all are bounded: no more than 101 processes, no signal but to the grader's own processes (`ours`), no
file outside the own directory but those of LEFT. A process that tries to outlive its run calls itself MARK.
"""

import os
import sys

SETTINGS = dict(time_limit=2.0, memory_limit=1 << 30, output_limit=16 << 20)
MARK = f"ra3-{os.getpid()}"
LEFT = [f"{folder}/{MARK}" for folder in ("/tmp", "/var/tmp", "/dev/shm", "~", "..")]
CASES = {}
NEEDS = {}  # name -> the module without which the case is skipped
BOUNDED = sys.version_info >= (
    3,
    12,
)  # calls through C have a limit of their own: 3.12.1 allows 470

PASSED, WRONG_ANSWER, EXCEPTION, SYNTAX = (
    ("passed",),
    ("wrong_answer",),
    ("exception",),
    ("syntax_error",),
)
TIMEOUT, MEMORY, OUTPUT, ABNORMAL = (
    ("timeout",),
    ("memory_limit",),
    ("output_limit",),
    ("abnormal_exit",),
)
SPOILED = (
    "wrong_answer",
    "abnormal_exit",
    "exception",
)  # open: what a wrong program is called that also broke the grader's channel
MAYBE_FORKS = ("passed", "exception")  # open: whether there is a limit on the number of processes

ADD = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
SUM = [{"input": "1 2\n", "output": "3\n"}, {"input": "-1 1\n", "output": "0\n"}]
SUM_RIGHT = "a, b = map(int, input().split())\nprint(a + b)\n"
SUM_WRONG = "a, b = map(int, input().split())\nprint(a - b)\n"


def case(verdicts, name, program, tests=ADD, entry_point="add", **more):
    assert name not in CASES, name
    kind = "stdio" if isinstance(tests, list) else "assert"
    if verdicts == TIMEOUT:
        more.setdefault("time_limit", 0.5)  # they do not end in two seconds either
    CASES[name] = (
        dict(
            program=program,
            tests=tests,
            entry_point="" if kind == "stdio" else entry_point,
            kind=kind,
            name=name,
            **more,
        ),
        verdicts,
    )


# ---------------------------------------------------------------------------------------------------------------- simple ones

case(PASSED, "plain: right", RIGHT)
case(PASSED, "plain: right, no entry point", RIGHT, ADD, "")
case(PASSED, "plain: right, check", RIGHT, CHECK)
case(PASSED, "plain: right, check calls itself", RIGHT, CHECK + "check(add)", "")
case(
    PASSED,
    "plain: right, METADATA",
    RIGHT,
    "\n\nMETADATA = {\n    'author': 'jt',\n    'dataset': 'test'\n}\n\n\n" + CHECK,
)
case(
    PASSED,
    "plain: right, a method",
    "class Solution:\n    def add(self, a, b):\n        return a + b\n",
    CHECK,
    "Solution().add",
)
case(PASSED, "plain: right, stdio", SUM_RIGHT, SUM)
case(WRONG_ANSWER, "plain: wrong", WRONG)
case(WRONG_ANSWER, "plain: wrong, no entry point", WRONG, ADD, "")
case(WRONG_ANSWER, "plain: wrong, check", WRONG, CHECK)
case(
    WRONG_ANSWER, "plain: wrong in the last assertion only", "def add(a, b):\n    return 3\n", CHECK
)
case(
    WRONG_ANSWER,
    "plain: wrong, a method",
    "class Solution:\n    def add(self, a, b):\n        return a - b\n",
    CHECK,
    "Solution().add",
)
case(WRONG_ANSWER, "plain: wrong, stdio", SUM_WRONG, SUM)
case(WRONG_ANSWER, "plain: wrong type", "def add(a, b):\n    return str(a + b)\n")
case(WRONG_ANSWER, "plain: returns nothing", "def add(a, b):\n    print(a + b)\n")
case(WRONG_ANSWER, "plain: returns itself", "def add(a, b):\n    return add\n")
case(
    WRONG_ANSWER,
    "plain: a list for a tuple",
    "def f():\n    return [1, 2]\n",
    "assert f() == (1, 2)",
    "f",
)
case(WRONG_ANSWER, "plain: NaN", "def f():\n    return float('nan')\n", "assert f() == 0.5", "f")
case(
    WRONG_ANSWER,
    "plain: a default list is shared",
    "def f(x, out=[]):\n    out.append(x)\n    return out\n",
    "a = f(1)\nassert a == [1]\nb = f(2)\nassert b == [2]",
    "f",
)
case(
    WRONG_ANSWER,
    "plain: forgets to change its argument",
    "def f(xs):\n    xs = sorted(xs)\n",
    "xs = [2, 1]\nf(xs)\nassert xs == [1, 2]",
    "f",
)
case(
    WRONG_ANSWER,
    "plain: changes its argument",
    "def f(xs):\n    xs.sort()\n    return xs[-1]\n",
    "xs = [2, 1]\nassert f(xs) == 2\nassert xs == [2, 1]",
    "f",
)
case(
    WRONG_ANSWER,
    "plain: the expected error is not raised",
    "def f(x):\n    return x\n",
    "assert f(1) == 1\ntry:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False, 'no error'",
    "f",
)
case(
    WRONG_ANSWER,
    "plain: a method of an own class",
    "class Stack(list):\n    def push(self, x):\n        self.insert(0, x)\n",
    "s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2",
    "Stack",
)


# ---------------------------------------------------------------------------------------------------------------- early exits

case(ABNORMAL, "exit: sys.exit", RIGHT + "import sys\nsys.exit(0)\n")
case(ABNORMAL, "exit: exit()", RIGHT + "exit()\n")
case(ABNORMAL, "exit: quit()", RIGHT + "quit()\n")
case(ABNORMAL, "exit: os._exit", RIGHT + "import os\nos._exit(0)\n")
case(ABNORMAL, "exit: SystemExit", RIGHT + "raise SystemExit\n", CHECK)
case(ABNORMAL, "exit: SystemExit in the function", "def add(a, b):\n    raise SystemExit(0)\n")
case(
    ABNORMAL,
    "exit: a kind of SystemExit",
    "class Done(SystemExit):\n    pass\ndef add(a, b):\n    raise Done(0)\n",
    CHECK,
)
case(ABNORMAL, "exit: quit() in the function", "def add(a, b):\n    quit()\n", CHECK)
case(
    ABNORMAL,
    "exit: os._exit in the function",
    "import os\ndef add(a, b):\n    os._exit(0)\n",
    CHECK,
)
case(
    ABNORMAL,
    "exit: os._exit in the second call",
    """
import os
calls = []
def add(a, b):
    calls.append(a)
    if len(calls) == 2:
        os._exit(0)
    return a + b
""",
)
case(
    ABNORMAL,
    "exit: os._exit in a thread",
    """
import os, threading, time
def add(a, b):
    threading.Timer(0.1, os._exit, (0,)).start()
    time.sleep(1)
    return a + b
""",
)
case(
    ABNORMAL,
    "exit: os._exit in a signal handler",
    """
import os, signal, time
signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
def add(a, b):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    time.sleep(1)
    return a + b
""",
)
case(
    ABNORMAL,
    "exit: os._exit in __del__",
    """
import os
class D:
    def __del__(self):
        os._exit(0)
def add(a, b):
    D()
    return a + b
""",
)
case(
    ABNORMAL,
    "exit: os._exit in a generator",
    "import os\ndef f():\n    yield 1\n    os._exit(0)\n",
    "assert list(f()) == [1, 2]",
    "f",
)
case(
    ABNORMAL,
    "exit: os._exit in a method",
    "import os\nclass P:\n    def f(self):\n        os._exit(0)\n",
    "assert P().f() == 1",
    "P",
)
case(
    ABNORMAL,
    "exit: SystemExit in a constructor",
    "class P:\n    def __init__(self):\n        raise SystemExit\n",
    "assert P().f() == 1",
    "P",
)
case(
    ABNORMAL + WRONG_ANSWER,
    "exit: os._exit in __eq__",
    """
import os
class E:
    def __eq__(self, other):
        os._exit(0)
def add(a, b):
    return E()
""",
)  # open: whether a comparison of the program's is asked at all
case(
    WRONG_ANSWER, "exit: exit handler", WRONG + "import atexit, os\natexit.register(os._exit, 0)\n"
)
case(
    PASSED, "exit: exit handler, right", RIGHT + "import atexit, os\natexit.register(os._exit, 1)\n"
)
case(
    PASSED,
    "exit: exit handler that sleeps, right",
    RIGHT + "import atexit, time\natexit.register(time.sleep, 60)\n",
)
case(
    WRONG_ANSWER,
    "exit: sys.exit in a thread",
    WRONG + "import sys, threading\nt = threading.Thread(target=sys.exit)\nt.start(); t.join()\n",
)
case(ABNORMAL, "exit: kills itself", RIGHT + "import os\nos.kill(os.getpid(), 9)\n")
case(
    ABNORMAL,
    "exit: terminates itself",
    RIGHT + "import os, signal\nsignal.raise_signal(signal.SIGTERM)\n",
)
case(
    ABNORMAL,
    "exit: kills itself in the function",
    "import os\ndef add(a, b):\n    os.kill(os.getpid(), 9)\n",
    CHECK,
)
case(ABNORMAL, "exit: abort", RIGHT + "import os\nos.abort()\n")
case(
    ABNORMAL + EXCEPTION,
    "exit: becomes /bin/true",
    RIGHT + "import os\nos.execv('/bin/true', ['true'])\n",
)  # open: exec may be forbidden
case(
    ABNORMAL + EXCEPTION,
    "exit: becomes /bin/true in the function",
    "import os\ndef add(a, b):\n    os.execv('/bin/true', ['true'])\n",
)  # as above
case(ABNORMAL, "exit: segmentation fault", RIGHT + "import ctypes\nctypes.string_at(0)\n")
case(
    ABNORMAL,
    "exit: segmentation fault in the function",
    "import ctypes\ndef add(a, b):\n    ctypes.string_at(0)\n",
    CHECK,
)
case(
    ABNORMAL,
    "exit: recursion in C without a limit",
    """
import sys, threading
sys.setrecursionlimit(10 ** 9)
threading.stack_size(1 << 16)  # too small for the limit of BOUNDED, too
def deep(x):
    return list(map(deep, [x]))
def add(a, b):
    t = threading.Thread(target=deep, args=(a,))
    t.start(); t.join()
    return a + b
""",
)
case(ABNORMAL, "exit: the child goes on", "import os\nif os.fork():\n    os._exit(0)\n" + RIGHT)
case(
    ABNORMAL,
    "exit: the child goes on in the function",
    "import os\ndef add(a, b):\n    if os.fork():\n        os._exit(0)\n    return a + b\n",
)
case(
    ABNORMAL,
    "exit: the child holds on",
    "import os, time\nif os.fork() == 0:\n    time.sleep(30)\nos._exit(0)\n",
)
case(
    ABNORMAL,
    "exit: swallows its SystemExit and exits",
    "import os\ntry:\n    exit()\nexcept SystemExit:\n    os._exit(0)\n",
)
case(
    PASSED,
    "exit: the tests expect SystemExit",
    """
import argparse
def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("n", type=int)
    return parser.parse_args(argv).n
""",
    "assert main(['3']) == 3\ntry:\n    main(['x'])\nexcept SystemExit as e:\n    assert e.code == 2\nelse:\n    assert False",
    "main",
)
case(
    PASSED,
    "exit: catches its own SystemExit",
    "import sys\ntry:\n    sys.exit(1)\nexcept SystemExit:\n    pass\n" + RIGHT,
)


# ------------------------------------------------------------------------------------- results that answer yes to every comparison

YES = "class Yes:\n    def __eq__(self, other):\n        return True\n    def __hash__(self):\n        return 1\n"
RETURNS_YES = "def f(*args):\n    return {}\n"

for name, value, tests in [
    ("bare", "Yes()", "assert f() == 3"),
    ("check", "Yes()", "def check(candidate):\n    assert candidate() == 3"),
    ("on the right", "Yes()", "assert 3 == f()"),
    ("in a list", "[[Yes()]]", "assert f() == [[3]]"),
    ("in a tuple", "(1, Yes())", "assert f() == (1, 2)"),
    ("in a dict", "{'a': Yes()}", "assert f() == {'a': 3}"),
    ("as a key", "{Yes(): 2}", "assert f() == {1: 2}"),
    ("in a set", "{Yes()}", "assert f() == {1}"),
    (
        "in a deque",
        "__import__('collections').deque([Yes()])",
        "from collections import deque\nassert f() == deque([3])",
    ),
    (
        "in a list that holds itself",
        "(lambda xs: xs.append(xs) or xs)([Yes()])",
        "assert f()[0] == 3",
    ),
    ("a member of a set", "Yes()", "assert f() in {1, 2}"),
    ("a member of a list", "Yes()", "assert f() in [2, 3]"),
    ("yielded", "(Yes() for _ in range(2))", "assert list(f()) == [1, 2]"),
    ("mapped", "map(lambda x: Yes(), [1, 2])", "assert [x for x in f()] == [1, 2]"),
    ("unpacked", "(Yes(), Yes())", "a, b = f()\nassert a == 1 and b == 2"),
    ("from a closure", "lambda: Yes()", "assert f()() == 3"),
    ("an attribute", "__import__('types').SimpleNamespace(x=Yes())", "assert f().x == 3"),
    ("in a UserList", "__import__('collections').UserList([Yes()])", "assert f() == [3]"),
    (
        "an argument of an error",
        "(_ for _ in ()).throw(ValueError(Yes()))",
        "try:\n    f()\nexcept ValueError as e:\n    assert e.args == ('bad',)\nelse:\n    assert False",
    ),
    ("for a sort", "[Yes(), Yes()]", "assert sorted(f(), key=str) == [1, 2]"),
    (
        "for a comparison inside all",
        "[Yes(), Yes()]",
        "assert all(a == b for a, b in zip(f(), [1, 2]))",
    ),
]:
    case(WRONG_ANSWER, f"lie: {name}", YES + RETURNS_YES.format(value), tests, "f")

for name, program, tests in [
    (
        "subclass of int",
        """
class I(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(): return I(0)
""",
        "assert 3 == f()",
    ),
    (
        "subclass of str",
        """
class S(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(): return S('no')
""",
        "assert f() == 'yes'",
    ),
    (
        "subclass of float",
        """
class F(float):
    def __sub__(self, other): return 0.0
    __rsub__ = __sub__
def f(): return F(9.5)
""",
        "assert abs(f() - 0.5) < 1e-6",
    ),
    (
        "subclass of list",
        """
class L(list):
    def __eq__(self, other): return True
def f(): return L([9])
""",
        "assert f() == [1, 2]",
    ),
    (
        "subclass of tuple",
        """
class T(tuple):
    def __eq__(self, other): return True
    __hash__ = tuple.__hash__
def f(): return T()
""",
        "assert f() == (1, 2)",
    ),
    (
        "subclass of dict",
        """
class D(dict):
    def __eq__(self, other): return True
def f(): return D()
""",
        "assert f() == {'a': 1}",
    ),
    (
        "items of a list",
        YES
        + """
class L(list):
    def __getitem__(self, i): return Yes()
def f(): return L([9])
""",
        "assert f()[0] == 1",
    ),
    (
        "iterator",
        YES
        + """
class It:
    def __iter__(self): return iter([Yes(), Yes()])
def f(): return It()
""",
        "assert list(f()) == [1, 2]",
    ),
    (
        "any attribute",
        YES
        + """
class A:
    def __getattr__(self, name): return lambda *a: Yes()
def f(): return A()
""",
        "assert f().strip() == 'x'",
    ),
    (
        "__ne__",
        "class N:\n    def __ne__(self, other): return False\ndef f(): return N()\n",
        "assert not f() != 3",
    ),
    (
        "__lt__",
        """
class B:
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
def f(): return B()
""",
        "assert 2 < f() < 4\nassert f() <= 3",
    ),
    (
        "__contains__",
        "class C:\n    def __contains__(self, x): return True\ndef f(): return C()\n",
        "assert 3 in f()",
    ),
    (
        "__sub__",
        "class Z:\n    def __sub__(self, other): return 0.0\ndef f(): return Z()\n",
        "assert abs(f() - 0.5) < 1e-6",
    ),
    (
        "__rsub__",
        "class Z:\n    def __rsub__(self, other): return 0.0\ndef f(): return Z()\n",
        "assert abs(0.5 - f()) < 1e-6",
    ),
    (
        "__abs__",
        """
class Z:
    def __sub__(self, other): return self
    def __abs__(self): return self
    def __lt__(self, other): return True
def f(): return Z()
""",
        "assert abs(f() - 0.5) < 1e-6",
    ),
    (
        "__round__",
        YES + "class R:\n    def __round__(self, n=0): return Yes()\ndef f(): return R()\n",
        "assert round(f(), 2) == 0.33",
    ),
    (
        "__radd__",
        YES + "class A:\n    def __radd__(self, x): return Yes()\ndef f(): return [A()]\n",
        "assert sum(f()) == 6",
    ),
    (
        "__str__",
        """
class S(str):
    def __eq__(self, other): return True
class A:
    def __str__(self): return S('no')
def f(): return A()
""",
        "assert str(f()) == 'yes'",
    ),
    (
        "__bool__ that alternates",
        """
class B:
    asked = 0
    def __bool__(self):
        B.asked += 1
        return B.asked % 2 == 1
def even(n): return B()
""",
        "assert even(2)\nassert not even(3)\nassert even(4)",
    ),
    (
        "__class__",
        """
class I:
    __class__ = property(lambda self: int)
    def __eq__(self, other): return True
def f(): return I()
""",
        "assert isinstance(f(), int) and f() == 3",
    ),
    (
        "metaclass",
        """
class M(type):
    def __eq__(self, other): return True
    __hash__ = type.__hash__
class C(metaclass=M): pass
def f(): return C
""",
        "assert f() == 3",
    ),
    (
        "metaclass asked for the type",
        """
class M(type):
    def __eq__(self, other): return True
    __hash__ = type.__hash__
class C(metaclass=M): pass
def f(): return C()
""",
        "assert type(f()) == int",
    ),
    (
        "yes to builtins, no to object()",
        """
class Sly:
    def __eq__(self, other): return type(other) is not object and type(other).__module__ == 'builtins'
def f(): return Sly()
""",
        "assert f() == 3",
    ),
    (
        "yes only where tests ask",
        """
import sys
class Sly:
    def __eq__(self, other): return sys._getframe(1).f_code.co_name in ('<module>', 'check')
def f(): return Sly()
""",
        "assert f() == 3",
    ),
    (
        "compares the other with itself",
        "class Sly:\n    def __eq__(self, other): return other == other\ndef f(): return Sly()\n",
        "assert f() == 3",
    ),
    ("a mock's ANY", "from unittest.mock import ANY\ndef f(): return ANY\n", "assert f() == 3"),
    (
        "a mock's ANY in a list",
        "from unittest.mock import ANY\ndef f(): return [1, ANY]\n",
        "assert f() == [1, 2]",
    ),
    (
        "a MagicMock",
        """
from unittest.mock import MagicMock
def f():
    m = MagicMock()
    m.__eq__.return_value = True
    return m
""",
        "assert f() == 3",
    ),
    (
        "subclass of ANY's class",
        "from unittest.mock import ANY\nclass A(type(ANY)): pass\ndef f(): return A()\n",
        "assert f() == 3",
    ),
    (
        "a builtin as __eq__",
        "class T:\n    __eq__ = bool\ndef f(): return T()\n",
        "assert f() == 3",
    ),
    (
        "__eq__ with other globals",
        "d = {}\nexec('def eq(self, other): return True', d)\nclass T:\n    __eq__ = d['eq']\ndef f(): return T()\n",
        "assert f() == 3",
    ),
    (
        "__eq__ by setattr",
        "class T: pass\nT.__eq__ = T.__ne__ = lambda self, other: True\ndef f(): return T()\n",
        "assert f() == 3",
    ),
    (
        "__eq__ after the call",
        "class T: pass\ndef f():\n    T.__eq__ = lambda self, other: True\n    return T()\n",
        "assert f() == 3",
    ),
    (
        "named like a class of the tests",
        """
class Counter(dict):
    def __eq__(self, other): return True
def f(s, kind=Counter): return kind()
""",
        "from collections import Counter\nassert f('aab') == Counter('aab')",
    ),
    (
        "says that it is a Decimal",
        """
class Decimal:
    def __eq__(self, other): return True
Decimal.__module__ = 'decimal'
def f(kind=Decimal): return kind()
""",
        "from decimal import Decimal\nassert f() == Decimal('0.5')",
    ),
    (
        "changes Counter",
        """
from collections import Counter
Counter.__eq__ = lambda self, other: True
def f(s): return Counter()
""",
        "from collections import Counter\nassert f('aab') == Counter('aab')",
    ),
    (
        "changes Fraction",
        """
from fractions import Fraction
Fraction.__eq__ = lambda self, other: True
def f(): return Fraction(9)
""",
        "from fractions import Fraction\nassert f() == Fraction(1, 2)",
    ),
    (
        "in a coroutine",
        YES + "async def f(): return Yes()\n",
        "import asyncio\nassert asyncio.run(f()) == 3",
    ),
    (
        "from a method",
        YES + "class Stack:\n    def pop(self): return Yes()\n",
        "assert Stack().pop() == 3",
    ),
    (
        "from a property",
        YES + "class Stack:\n    top = property(lambda self: Yes())\n",
        "assert Stack().top == 3",
    ),
    (
        "from an item",
        YES + "class Stack:\n    def __getitem__(self, i): return [Yes()]\n",
        "assert Stack()[0] == [3]",
    ),
    (
        "from an operator",
        YES + "class V:\n    def __add__(self, other): return Yes()\n",
        "assert V() + V() == 3",
    ),
    (
        "from a context manager",
        YES
        + """
class Timer:
    def __enter__(self): return Yes()
    def __exit__(self, *a): pass
""",
        "with Timer() as t:\n    assert t == 3",
    ),
    (
        "in a field",
        YES
        + """
import dataclasses
@dataclasses.dataclass
class P:
    x: object
def f(): return P(Yes())
""",
        "assert f() == P(3)",
    ),
    (
        "in a field of a namedtuple",
        YES
        + """
import collections
P = collections.namedtuple('P', 'x')
def f(): return P(Yes())
""",
        "assert f() == P(3)",
    ),
]:
    case(
        WRONG_ANSWER,
        f"lie: {name}",
        program,
        tests,
        "even" if "even(" in tests else "f" if "f(" in tests else "",
    )


case(
    WRONG_ANSWER,
    "lie: from Solution",
    YES + "class Solution:\n    def add(self, a, b):\n        return Yes()\n",
    CHECK,
    "Solution().add",
)
case(
    WRONG_ANSWER,
    "lie: from Solution, in a list",
    YES + "class Solution:\n    def f(self):\n        return [Yes()]\n",
    "def check(candidate):\n    assert candidate() == [3]",
    "Solution().f",
)
EVALPLUS = """
def is_floats(x):
    return isinstance(x, float) or isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x)
def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert type(out) == type(exp)
        assert abs(out - exp) <= atol
    else:
        assert exact_match, f"out: {out}, exp: {exp}"
def check(candidate):
    inputs, results = [[1, 2], [0.1, 0.2]], [3, 0.3]
    for inp, exp in zip(inputs, results):
        assertion(candidate(*inp), exp, 0)
"""
case(
    WRONG_ANSWER,
    "lie: in the form of EvalPlus",
    YES + "def add(a, b):\n    return Yes()\n",
    EVALPLUS,
)
case(WRONG_ANSWER, "plain: wrong, the form of EvalPlus", WRONG, EVALPLUS)
case(PASSED, "plain: right, the form of EvalPlus", RIGHT, EVALPLUS)


# ----------------------------------------------------------------------------- builtins and modules that the tests use, replaced

for name, lie, value, tests in [
    ("all", "lambda x: True", "[0, 1]", "assert all(f())"),
    ("any", "lambda x: True", "[0]", "assert any(f())"),
    ("len", "lambda x: 3", "[1]", "assert len(f()) == 3"),
    ("sorted", "lambda *a, **k: [1, 2]", "[7]", "assert sorted(f()) == [1, 2]"),
    ("abs", "lambda x: 0", "9.9", "assert abs(f() - 0.5) < 1e-6"),
    ("round", "lambda *a: 0.5", "9.9", "assert round(f(), 1) == 0.5"),
    ("sum", "lambda *a: 6", "[1]", "assert sum(f()) == 6"),
    ("set", "lambda *a: 0", "[1]", "assert set(f()) == set([2])"),
    ("isinstance", "lambda *a: True", "'1'", "assert isinstance(f(), int)"),
    ("type", "lambda x: int", "'1'", "assert type(f()) == int"),
    ("range", "lambda *a: []", "0", "for i in range(3):\n    assert f() == 1"),
    ("zip", "lambda *a: []", "[1]", "for a, b in zip(f(), [2]):\n    assert a == b"),
    ("AssertionError", "KeyError", "0", "assert f() == 1"),
    (
        "__build_class__",
        "lambda *a, **k: lambda *a, **k: True",
        "0",
        "class Same:\n    def __init__(self, a, b):\n        assert a == b\nSame(f(), 1)",
    ),
]:
    patch = f"import builtins\nbuiltins.{name} = {lie}\n"
    case(WRONG_ANSWER, f"builtin replaced: {name}", f"{patch}def f(): return {value}\n", tests, "f")
    if name in ("all", "len", "abs", "range"):
        late = f"import builtins\ndef f():\n    builtins.{name} = {lie}\n    return {value}\n"
        own = f"{patch}class P:\n    def f(self): return {value}\n"
        case(WRONG_ANSWER, f"builtin replaced when called: {name}", late, "f()\n" + tests, "f")
        case(
            WRONG_ANSWER,
            f"builtin replaced, own class: {name}",
            own,
            tests.replace("f()", "P().f()"),
            "P",
        )

for name, patch, value, tests in [
    (
        "math.isclose",
        "import math\nmath.isclose = lambda *a, **k: True",
        "9.9",
        "import math\nassert math.isclose(f(), 0.5)",
    ),
    (
        "math.fabs",
        "import math\nmath.fabs = lambda x: 0.0",
        "9.9",
        "import math\nassert math.fabs(f() - 0.5) < 1e-6",
    ),
    (
        "collections.Counter",
        "import collections\ncollections.Counter = lambda *a: 0",
        "'x'",
        "from collections import Counter\nassert Counter(f()) == Counter('aab')",
    ),
    (
        "json.loads",
        "import json\njson.loads = lambda *a, **k: 0",
        "'1'",
        "import json\nassert json.loads(f()) == json.loads('[1]')",
    ),
    (
        "copy.deepcopy",
        "import copy\ncopy.deepcopy = lambda x: 1",
        "0",
        "import copy\nassert copy.deepcopy(f()) == 1",
    ),
    (
        "random.Random",
        "import random\nrandom.Random.randint = lambda self, a, b: 0",
        "0",
        "import random\nr = random.Random(1)\nassert f() == r.randint(1, 9)",
    ),
    (
        "sys.modules",
        "import sys, types\nsys.modules['math'] = types.SimpleNamespace(isclose=lambda *a, **k: True)",
        "9.9",
        "import math\nassert math.isclose(f(), 0.5)",
    ),
    (
        "__import__",
        "import builtins, types\nbuiltins.__import__ = lambda *a: types.SimpleNamespace(isclose=lambda *a, **k: True)",
        "9.9",
        "import math\nassert math.isclose(f(), 0.5)",
    ),
    (
        "finder",
        """
import sys, types, importlib.machinery, importlib.abc
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "statistics" else None
    def create_module(self, spec): return types.SimpleNamespace(mean=lambda x: 2)
    def exec_module(self, module): pass
sys.modules.pop("statistics", None)
sys.meta_path.insert(0, Finder())
""",
        "[7]",
        "import statistics\nassert statistics.mean(f()) == 2",
    ),
    (
        "file in the directory",
        "open('statistics.py', 'w').write('mean = lambda x: 2')\n__import__('sys').path.insert(0, '.')",
        "[7]",
        "import statistics\nassert statistics.mean(f()) == 2",
    ),
    (
        "file on PYTHONPATH",
        "import os\nopen('statistics.py', 'w').write('mean = lambda x: 2')\nos.environ['PYTHONPATH'] = os.getcwd()",
        "[7]",
        "import statistics\nassert statistics.mean(f()) == 2",
    ),
]:
    case(
        WRONG_ANSWER, f"module replaced: {name}", f"{patch}\ndef f(): return {value}\n", tests, "f"
    )
    if name in ("math.isclose", "collections.Counter", "sys.modules", "__import__", "finder"):
        case(
            WRONG_ANSWER,
            f"module replaced, own class: {name}",
            f"{patch}\nclass P:\n    def f(self): return {value}\n",
            tests.replace("f()", "P().f()"),
            "P",
        )
case(
    WRONG_ANSWER,
    "module replaced when called: math.isclose",
    "import math\ndef f():\n    math.isclose = lambda *a, **k: True\n    return 9.9\n",
    "import math\nx = f()\nassert math.isclose(x, 0.5)",
    "f",
)

case(
    WRONG_ANSWER,
    "builtin replaced: in check",
    "import builtins\nbuiltins.all = builtins.any = lambda x: True\n" + WRONG,
    "def check(candidate):\n    assert all(candidate(a, 1) == a + 1 for a in range(9))",
)
case(
    WRONG_ANSWER,
    "builtin shadowed: all",
    "def all(x):\n    return True\ndef f():\n    return [0]\n",
    "assert all(f())",
    "f",
)
case(
    WRONG_ANSWER,
    "builtin shadowed: len",
    "len = lambda x: 3\ndef f():\n    return [0]\n",
    "assert len(f()) == 3",
    "f",
)
case(
    WRONG_ANSWER,
    "builtin replaced: print with exit",
    WRONG + "import builtins\nbuiltins.print = exit\n",
    "print('start')\n" + ADD,
)
case(
    WRONG_ANSWER,
    "builtin replaced: compile drops assertions",
    """
import builtins
real = builtins.compile
def lax(source, filename, mode, *args, **kwargs):
    return real(source, filename, mode, optimize=2)
builtins.compile = lax
builtins.exec = lambda *args: None
"""
    + WRONG,
)
case(
    WRONG_ANSWER,
    "builtin replaced: a thread keeps doing it",
    """
import builtins, threading, time
def keep():
    while True:
        builtins.all = lambda x: True
        time.sleep(0.001)
threading.Thread(target=keep, daemon=True).start()
class P:
    def f(self):
        time.sleep(0.1)
        return [0]
""",
    "r = P().f()\nassert all(r)",
    "P",
)
case(
    WRONG_ANSWER,
    "module replaced: numpy.allclose",
    "import numpy\nnumpy.allclose = lambda *a, **k: True\ndef f():\n    return [1.0]\n",
    "import numpy as np\nassert np.allclose(f(), [2.0])",
    "f",
    time_limit=10.0,
)
NEEDS["module replaced: numpy.allclose"] = "numpy"


# ----------------------------------------------------------------------------------------- assertions that the program swallows

case(
    WRONG_ANSWER,
    "swallows: __exit__",
    """
class Timer:
    value = 1
    def __enter__(self): return self
    def __exit__(self, *error): return True
""",
    "with Timer() as t:\n    assert t.value == 3",
    "Timer",
)
case(
    WRONG_ANSWER,
    "swallows: a generator's context manager",
    """
import contextlib
@contextlib.contextmanager
def opened():
    try:
        yield 1
    except BaseException:
        pass
""",
    "with opened() as x:\n    assert x == 3",
    "opened",
)
case(
    WRONG_ANSWER,
    "swallows: a decorator",
    """
def twice(f):
    def call(*args):
        try:
            f(*args)
        except BaseException:
            pass
    return call
""",
    "calls = []\n@twice\ndef g():\n    calls.append(1)\n    assert len(calls) == 2\ng()",
    "twice",
)
case(
    WRONG_ANSWER,
    "swallows: a callback of the tests",
    """
def each(f, xs):
    for x in xs:
        try:
            f(-x)
        except BaseException:
            pass
    return True
""",
    "def positive(x):\n    assert x > 0\nassert each(positive, [1, 2])",
    "each",
)
case(
    WRONG_ANSWER,
    "swallows: sends a callback the wrong thing",
    "def each(f, xs):\n    for x in xs:\n        f(-x)\n",
    "def positive(x):\n    assert x > 0\neach(positive, [1, 2])\nassert True",
    "each",
)
case(
    PASSED,
    "swallows: only what the tests want it to",
    """
class Suppress:
    def __init__(self, *kinds): self.kinds = kinds
    def __enter__(self): return self
    def __exit__(self, kind, *rest): return kind is not None and issubclass(kind, self.kinds)
""",
    "with Suppress(KeyError):\n    {}[0]\nn = 0\nwith Suppress(KeyError) as s:\n    n = 1\nassert n == 1 and s.kinds == (KeyError,)",
    "Suppress",
)


# ------------------------------------------------------------------------------------------------------- markers, channels, frames

MARKERS = [
    "passed",
    "PASSED",
    "True",
    "0",
    "ok 1",
    '{"verdict": "passed"}',
    "all tests passed",
    "\\x00passed",
]
case(
    WRONG_ANSWER, "marker: stdout", WRONG + "".join(f"print('{m}', flush=True)\n" for m in MARKERS)
)
case(
    WRONG_ANSWER,
    "marker: stderr",
    WRONG
    + "import sys\n"
    + "".join(f"print('{m}', file=sys.stderr, flush=True)\n" for m in MARKERS),
)
case(
    WRONG_ANSWER,
    "marker: in the function",
    "def add(a, b):\n" + "".join(f"    print('{m}', flush=True)\n" for m in MARKERS),
)
case(ABNORMAL, "marker: then exit", "import os\nprint('passed', flush=True)\nos._exit(0)\n")
case(WRONG_ANSWER, "marker: stdio", "print('passed')\n", SUM)
case(WRONG_ANSWER, "marker: return value", "def add(a, b):\n    return 'passed'\n")
case(EXCEPTION, "marker: exception", "def add(a, b):\n    raise Exception('passed')\n")
ALL_DESCRIPTORS = """
import os
for fd in range(256):
    for text in (b'passed', b'passed\\n', b'\\x00\\x00\\x00\\x06passed', b'{"verdict": "passed"}\\n'):
        try:
            os.write(fd, text)
        except OSError:
            pass
"""
case(SPOILED, "marker: every descriptor", WRONG + ALL_DESCRIPTORS)
case(
    SPOILED,
    "marker: every descriptor, in the function",
    "def add(a, b):\n" + ALL_DESCRIPTORS.replace("\n", "\n    ") + "\n    return a - b\n",
)
case(ABNORMAL, "marker: every descriptor, then exit", ALL_DESCRIPTORS + "os._exit(0)\n")
case(
    SPOILED,
    "marker: every descriptor, by a child",
    WRONG
    + "import os\nif os.fork() == 0:\n"
    + ALL_DESCRIPTORS.replace("\n", "\n    ")
    + "\n    os._exit(0)\nos.wait()\n",
)
case(SPOILED, "channel: closerange", "import os\nos.closerange(3, 1000)\n" + WRONG)
case(SPOILED, "channel: closes everything", "import os\nos.closerange(0, 1000)\n" + WRONG)
case(
    SPOILED,
    "channel: closes everything in the function",
    "import os\ndef add(a, b):\n    os.closerange(0, 1000)\n    return 0\n",
)
case(
    SPOILED,
    "channel: every descriptor is /dev/null",
    """
import os
null = os.open('/dev/null', os.O_RDWR)
for fd in range(64):
    if fd != null:
        try:
            os.fstat(fd)
            os.dup2(null, fd)
        except OSError:
            pass
"""
    + WRONG,
)
case(
    SPOILED + TIMEOUT,
    "channel: reads from every descriptor",
    """
import os, threading
def read(fd):
    try:
        os.read(fd, 1 << 16)
    except OSError:
        pass
for fd in range(3, 64):
    threading.Thread(target=read, args=(fd,), daemon=True).start()
"""
    + WRONG,
)  # open as well: it may take a question away

FRAMES = """
import sys
def values():
    frame = sys._getframe(1)
    while frame:
        yield from list(frame.f_locals.values()) + list(frame.f_globals.values())
        frame = frame.f_back
"""
GC = """
import gc
def values():
    return gc.get_objects()
"""
MODULES = """
import sys
def values():
    for name, module in list(sys.modules.items()):
        if name == '__main__' or 'sandbox' in name or 'grader' in name:
            yield from list(vars(module).values())
"""
TELL = """
import os, socket
for value in list(values()):
    try:
        if type(value) is list:
            value.append('passed')
        elif type(value) is dict:
            value.update(verdict='passed', passed=True, result='passed', ok=True)
        elif isinstance(value, socket.socket):
            value.send(b'passed\\n')
        elif type(value) is bytes and 8 <= len(value) <= 64:
            for fd in range(3, 16):
                os.write(fd, value + b'passed\\n')
        elif hasattr(value, 'put'):
            value.put('passed')
        elif hasattr(value, 'fileno') and hasattr(value, 'write'):
            value.write(b'passed\\n')
    except BaseException:
        pass
"""
METHOD = "class P:\n    def add(self, a, b):\n        return a - b\n"
METHOD_TESTS = "assert P().add(1, 2) == 3\nassert P().add(-1, 1) == 0"
for name, finder in (("frames", FRAMES), ("modules", MODULES)):
    case(SPOILED, f"finds: {name}", finder + TELL + WRONG)
    case(SPOILED, f"finds: {name}, own class", finder + TELL + METHOD, METHOD_TESTS, "P")
case(
    SPOILED,
    "finds: garbage collector",
    GC
    + TELL.replace("type(value) is list", "False").replace("type(value) is dict", "False")
    + WRONG,
)
case(
    SPOILED,
    "finds: frames, in the function",
    FRAMES + "def add(a, b):\n" + TELL.replace("\n", "\n    ") + "\n    return a - b\n",
)
case(
    SPOILED,
    "finds: names of the grader become yes",
    """
import sys
frame = sys._getframe()
while frame:
    if frame.f_globals is not globals():
        for name, value in list(frame.f_globals.items()):
            if callable(value) and not name.startswith('__'):
                frame.f_globals[name] = lambda *a, **k: 'passed'
    frame = frame.f_back
"""
    + WRONG,
)
case(
    SPOILED + TIMEOUT,
    "finds: closures become yes",
    """
import gc, types
for cell in gc.get_objects():
    if isinstance(cell, types.CellType):
        try:
            if callable(cell.cell_contents) and 'importlib' not in str(cell.cell_contents):
                cell.cell_contents = lambda *a, **k: True
        except ValueError:
            pass
"""
    + WRONG,
)  # open as well: a grader that lost its own functions may fall silent
case(
    WRONG_ANSWER,
    "finds: the tests in memory",
    """
import gc
def f():
    wanted = ''.join(['ass', 'ert f() == '])
    for held in gc.get_objects():
        if isinstance(held, (dict, list, tuple)):
            for text in held.values() if isinstance(held, dict) else held:
                if isinstance(text, str) and wanted in text:
                    return int(text.split('== ')[1])
""",
    "assert f() == 12345",
    "f",
)
case(
    WRONG_ANSWER,
    "finds: the answer among the constants of the tests",
    """
import sys
def f():
    frame = sys._getframe(1)
    while frame:
        for value in frame.f_code.co_consts:
            if isinstance(value, int) and value > 10_000:
                return value
        frame = frame.f_back
""",
    "assert f() == 12345",
    "f",
)
case(
    SPOILED,
    "finds: the expected list",
    """
import sys
def f(xs):
    frame = sys._getframe(1)
    while frame:
        for value in list(frame.f_locals.values()):
            if type(value) is list:
                value[:] = [0]
        frame = frame.f_back
    return [0]
""",
    "want = [6]\nassert f((1, 2, 3)) == want",
    "f",
)
case(
    WRONG_ANSWER,
    "finds: the code of check",
    """
import gc, types
def add(a, b):
    for f in gc.get_objects():
        if isinstance(f, types.FunctionType) and f.__name__ == 'same':
            f.__code__ = (lambda a, b: True).__code__
    return a - b
""",
    "def same(a, b):\n    return a == b\ndef check(candidate):\n    assert candidate(1, 0) == 1\n    r = candidate(1, 2)\n    assert same(r, 3)",
)
case(
    SPOILED,
    "finds: replaces marshal and os.write",
    """
import marshal, os, pickle, json
marshal.dumps = marshal.loads = pickle.dumps = pickle.loads = json.dumps = json.loads = lambda *a, **k: b'passed'
os.write = lambda fd, data: len(data)
"""
    + WRONG,
)
case(
    WRONG_ANSWER,
    "trace: sys.settrace",
    "import sys, os\nsys.settrace(lambda *a: os._exit(0) if a[0].f_code.co_name == 'check' else None)\n"
    + WRONG,
    CHECK,
)
case(
    WRONG_ANSWER,
    "trace: sys.setprofile",
    "import sys, os\nsys.setprofile(lambda *a: os._exit(0) if a[0].f_code.co_name == 'check' else None)\n"
    + WRONG,
    CHECK,
)
JUMP = """
import sys
def jump(frame, event, arg):
    if event == 'line' and frame.f_lineno == 1 and frame.f_code.co_name == '<module>':
        frame.f_lineno = 2
    return jump
frame = sys._getframe()
while frame:
    frame.f_trace = jump
    frame = frame.f_back
sys.settrace(jump)
"""
case(
    WRONG_ANSWER,
    "trace: jumps over the assertion",
    JUMP + "def f():\n    return 0\n",
    "assert f() == 1\nx = 1",
    "f",
)
case(
    WRONG_ANSWER,
    "trace: jumps over the assertion, own class",
    JUMP + "class P:\n    f = 0\n",
    "assert P().f == 1\nx = 1",
    "P",
)
case(
    PASSED,
    "trace: own use",
    "import sys\nlines = []\nsys.settrace(lambda *a: lines.append(a))\nlen([])\nsys.settrace(None)\n"
    + RIGHT,
)
case(
    SPOILED,
    "trace: audit hook that exits",
    "import sys\ndef hook(event, args):\n    raise SystemExit\n"
    + WRONG
    + "sys.addaudithook(hook)\n",
)
case(
    PASSED,
    "trace: audit hook that counts",
    "import sys\nseen = []\nsys.addaudithook(lambda event, args: seen.append(event))\n" + RIGHT,
)


# ---------------------------------------------------------------------------------------------------------------------- time

case(TIMEOUT, "time: loops", "while True:\n    pass\n")
case(
    TIMEOUT, "time: loops in the function", "def add(a, b):\n    while True:\n        pass\n", CHECK
)
case(TIMEOUT, "time: sleeps", RIGHT + "import time\ntime.sleep(60)\n")
case(
    TIMEOUT,
    "time: sleeps in a method",
    "import time\nclass P:\n    def f(self):\n        time.sleep(60)\n",
    "assert P().f() == 1",
    "P",
)
case(
    TIMEOUT,
    "time: an endless generator",
    "import time\ndef f():\n    while True:\n        time.sleep(0.01)\n        yield 1\n",
    "assert list(f()) == [1]",
    "f",
)
case(TIMEOUT, "time: long arithmetic", "def add(a, b):\n    return 9 ** 9 ** 9\n")
case(
    TIMEOUT,
    "time: a regular expression",
    "import re\ndef add(a, b):\n    return re.match('(a+)+$', 'a' * 60 + 'b')\n",
)
case(
    TIMEOUT,
    "time: a deadlock",
    "import threading\nlock = threading.Lock()\nlock.acquire()\ndef add(a, b):\n    with lock:\n        return a + b\n",
)
case(
    TIMEOUT,
    "time: swallows everything",
    """
import time
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
""",
)
case(
    TIMEOUT,
    "time: swallows and answers",
    """
import time
def add(a, b):
    try:
        time.sleep(60)
    except BaseException:
        pass
    return a + b
""",
)
case(TIMEOUT, "time: answers late", "import time\ntime.sleep(2.5)\n" + RIGHT)
case(
    TIMEOUT,
    "time: answers late in the function",
    "import time\ndef add(a, b):\n    time.sleep(1.5)\n    return a + b\n",
    time_limit=2.0,
)
case(
    TIMEOUT,
    "time: ignores every signal",
    """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
time.sleep(60)
""",
)
case(
    TIMEOUT,
    "time: blocks every signal",
    "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(60)\n",
)
case(
    TIMEOUT,
    "time: own SIGALRM handler",
    "import signal, time\nsignal.signal(signal.SIGALRM, lambda *a: None)\nfor _ in range(60):\n    time.sleep(1)\n",
)
case(
    TIMEOUT,
    "time: stops itself",
    RIGHT + "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n",
)
case(
    TIMEOUT,
    "time: stops itself in the function",
    "import os, signal\ndef add(a, b):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    return a + b\n",
)
case(
    TIMEOUT,
    "time: waits for a child",
    "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nos.wait()\n" + RIGHT,
)
case(
    TIMEOUT,
    "time: joins a thread",
    "import threading, time\nt = threading.Thread(target=time.sleep, args=(60,))\nt.start()\nt.join()\n"
    + RIGHT,
)
case(
    TIMEOUT,
    "time: the tests never end",
    "def step(n):\n    return n\n",
    "import time\nn = 1\nwhile n < 10:\n    n = step(n)\n    time.sleep(0.01)\nassert n == 10",
    "step",
)
case(
    TIMEOUT,
    "time: stdio",
    SUM_RIGHT + "import sys, time\nsys.stdout.flush()\ntime.sleep(60)\n",
    SUM,
)
case(
    TIMEOUT,
    "time: stdio, a thread stays",
    SUM_RIGHT + "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n",
    SUM,
)
case(
    TIMEOUT,
    "time: stdio, an exit handler",
    SUM_RIGHT + "import atexit, time\natexit.register(time.sleep, 60)\n",
    SUM,
)
case(
    PASSED,
    "time: own alarm",
    """
import signal, time
class Late(Exception): pass
def ring(*args): raise Late
def late():
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        time.sleep(1)
    except Late:
        return True
    return False
""",
    "assert late()\nassert late()",
    "late",
)
case(
    PASSED,
    "time: half a second",
    "import time\ndef add(a, b):\n    time.sleep(0.25)\n    return a + b\n",
)
case(
    PASSED,
    "time: blocks signals, right",
    "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n" + RIGHT,
)
case(
    PASSED,
    "time: ignores SIGCHLD, right",
    "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" + RIGHT,
)


# -------------------------------------------------------------------------------------------------------------------- memory

case(MEMORY, "memory: one block", RIGHT + "x = bytearray(3 << 30)\n")
case(MEMORY, "memory: one list", RIGHT + "x = [0] * (1 << 29)\n")
case(MEMORY, "memory: an absurd block", RIGHT + "x = bytearray(1 << 46)\n")
case(MEMORY, "memory: grows", RIGHT + "x = []\nwhile True:\n    x.append(bytes(1 << 24))\n")
case(MEMORY, "memory: in the function", "def add(a, b):\n    return bytearray(3 << 30)\n", CHECK)
case(
    MEMORY,
    "memory: grows in the function",
    "def add(a, b):\n    x = []\n    while True:\n        x.append(bytes(1 << 24))\n",
)
case(
    MEMORY,
    "memory: in a method",
    "class P:\n    def f(self):\n        return len(bytearray(3 << 30))\n",
    "assert P().f() == 1",
    "P",
)
case(
    MEMORY,
    "memory: caught, then right",
    "try:\n    x = bytearray(3 << 30)\nexcept MemoryError:\n    pass\n" + RIGHT,
)
case(
    MEMORY,
    "memory: caught as anything, then right",
    "try:\n    x = bytearray(3 << 30)\nexcept:\n    pass\n" + RIGHT,
    CHECK,
)
case(
    MEMORY,
    "memory: grows, caught, then right",
    "x = []\ntry:\n    while True:\n        x.append(bytes(1 << 24))\nexcept MemoryError:\n    x = []\n"
    + RIGHT,
)
case(
    MEMORY,
    "memory: caught in the function, then right",
    "def add(a, b):\n    try:\n        x = bytearray(3 << 30)\n    except MemoryError:\n        pass\n    return a + b\n",
)
case(
    MEMORY,
    "memory: caught, then wrong",
    "try:\n    x = bytearray(3 << 30)\nexcept MemoryError:\n    pass\n" + WRONG,
)
case(
    MEMORY,
    "memory: caught, then an error",
    "try:\n    x = bytearray(3 << 30)\nexcept MemoryError:\n    pass\n1 / 0\n",
)
case(
    MEMORY,
    "memory: lifts the limit",
    """
import resource
for hard in (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_AS)[1]):
    try:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        break
    except (ValueError, OSError):
        pass
x = bytearray(3 << 30)
"""
    + RIGHT,
)
case(MEMORY, "memory: stdio", SUM_RIGHT + "x = bytearray(3 << 30)\n", SUM)
case(
    MEMORY,
    "memory: stdio, caught, then right",
    "try:\n    x = bytearray(3 << 30)\nexcept MemoryError:\n    pass\n" + SUM_RIGHT,
    SUM,
)
case(
    MEMORY + EXCEPTION, "memory: mmap", RIGHT + "import mmap\nx = mmap.mmap(-1, 3 << 30)\n"
)  # open: mmap says OSError
case(PASSED, "memory: a fifth of it", "x = bytearray(200 << 20)\n" + RIGHT)
case(
    PASSED,
    "memory: again and again",
    "def add(a, b):\n    for _ in range(100):\n        x = bytes(100 << 20)\n    return a + b\n",
)
case(
    PASSED,
    "memory: a thread with a large stack",
    """
import sys, threading
threading.stack_size(1 << 27)
sys.setrecursionlimit(10 ** 6)
def depth(n):
    return 0 if n == 0 else 1 + max(map(depth, [n - 1]))
def deep(n):
    out = []
    t = threading.Thread(target=lambda: out.append(depth(n)))
    t.start(); t.join()
    return out[0]
""",
    "assert deep({0}) == {0}".format(400 if BOUNDED else 30_000),
    "deep",
)


# -------------------------------------------------------------------------------------------------------------------- output

case(OUTPUT, "output: one print", RIGHT + "print('x' * 100_000_000, flush=True)\n")
case(
    OUTPUT,
    "output: in the function",
    "def add(a, b):\n    print('x' * 50_000_000, flush=True)\n    return a + b\n",
    CHECK,
)
case(OUTPUT, "output: without end", "while True:\n    print('x' * 1000)\n")
case(
    OUTPUT,
    "output: without end, caught",
    """
while True:
    try:
        while True:
            print('x' * 1000)
    except BaseException:
        pass
""",
)
case(
    OUTPUT,
    "output: caught, then right",
    "try:\n    print('x' * 100_000_000, flush=True)\nexcept BaseException:\n    pass\n" + RIGHT,
)
case(
    OUTPUT,
    "output: stderr",
    RIGHT + "import sys\nprint('x' * 100_000_000, file=sys.stderr, flush=True)\n",
)
case(
    OUTPUT,
    "output: os.write",
    RIGHT + "import os\nfor _ in range(1000):\n    os.write(1, b'x' * 100_000)\n",
)
case(
    OUTPUT,
    "output: by a thread",
    RIGHT
    + "import threading\nt = threading.Thread(target=print, args=('x' * 100_000_000,), kwargs={'flush': True})\nt.start(); t.join()\n",
)
case(
    OUTPUT,
    "output: by a child",
    RIGHT
    + "import os\nif os.fork() == 0:\n    print('x' * 100_000_000, flush=True)\n    os._exit(0)\nos.wait()\n",
)
case(OUTPUT, "output: stdio", "while True:\n    print('x' * 1000)\n", SUM)
case(
    OUTPUT,
    "output: stdio, after the right answer",
    SUM_RIGHT + "print('\\n' * 100_000_000, flush=True)\n",
    SUM,
)
case(
    OUTPUT,
    "output: stdio, stderr",
    SUM_RIGHT + "import sys\nsys.stderr.write('x' * 100_000_000)\n",
    SUM,
)
case(
    OUTPUT,
    "output: stdio, before the right answer",
    "import sys\nprint('x' * 100_000_000, file=sys.stderr)\n" + SUM_RIGHT,
    SUM,
)
case(OUTPUT, "output: wrong as well", WRONG + "print('x' * 100_000_000, flush=True)\n")
case(
    PASSED, "output: a megabyte", "for i in range(10000):\n    print('debug', 'x' * 100)\n" + RIGHT
)
case(
    PASSED,
    "output: a megabyte in the function",
    "import sys\ndef add(a, b):\n    print('x' * 1_000_000)\n    sys.stderr.write('y' * 1_000_000)\n    return a + b\n",
)
case(PASSED, "output: unicode", "print('\\u2713 \\U0001f600 \\u6f22')\n" + RIGHT)
case(
    PASSED,
    "output: logging",
    "import logging\nlogging.basicConfig(level=logging.DEBUG)\nlogging.debug('start')\n" + RIGHT,
)
TOO_LARGE = EXCEPTION + OUTPUT  # open: a file is not output, but it fills the disk as well
case(
    TOO_LARGE,
    "output: a file too large",
    "with open('x', 'wb') as f:\n    for _ in range(200):\n        f.write(bytes(1 << 20))\n"
    + RIGHT,
)
case(
    TOO_LARGE,
    "output: a file with a hole",
    "with open('x', 'wb') as f:\n    f.truncate(1 << 40)\n" + RIGHT,
)
case(
    TOO_LARGE,
    "output: a file too large in the function",
    "def add(a, b):\n    with open('x', 'wb') as f:\n        f.write(bytes(200 << 20))\n    return a + b\n",
)


# ----------------------------------------------------------------------------------------------------------- processes, threads

NAME = f"import ctypes, os, signal, sys, time\nctypes.CDLL(None).prctl(15, b'{MARK}', 0, 0, 0)\n"  # children inherit the name
case(
    PASSED,
    "process: a child sleeps on",
    NAME + "if os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\n" + RIGHT,
)
case(
    PASSED,
    "process: a child sleeps on in its own session",
    NAME + "if os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n    os._exit(0)\n" + RIGHT,
)
DAEMON = (
    NAME
    + """
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (1, 2, 13, 15):
                signal.signal(number, signal.SIG_IGN)
            os.closerange(0, 256)
            time.sleep(60)
        os._exit(0)
    os.wait()
"""
)
case(PASSED, "process: a daemon", DAEMON + "daemon()\n" + RIGHT)
case(
    PASSED,
    "process: a daemon from the function",
    DAEMON + "def add(a, b):\n    daemon()\n    return a + b\n",
)
case(
    PASSED,
    "process: a daemon from a method",
    DAEMON + "class P:\n    def f(self):\n        daemon()\n        return 1\n",
    "assert P().f() == 1",
    "P",
)
case(TIMEOUT, "process: a daemon, then sleeps", DAEMON + "daemon()\ntime.sleep(60)\n")
case(ABNORMAL, "process: a daemon, then exits", DAEMON + "daemon()\nos._exit(0)\n")
case(PASSED, "process: a daemon, stdio", DAEMON + "daemon()\n" + SUM_RIGHT, SUM)
case(
    PASSED,
    "process: a child holds stdout, stdio",
    NAME
    + SUM_RIGHT
    + "sys.stdout.flush()\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\n",
    SUM,
)
case(
    ABNORMAL,
    "process: daemonises itself",
    NAME
    + "if os.fork():\n    os._exit(0)\nos.setsid()\nif os.fork():\n    os._exit(0)\n"
    + RIGHT
    + "time.sleep(60)\n",
)
case(
    MAYBE_FORKS,
    "process: 100 sleepers",
    NAME
    + "for _ in range(100):\n    if os.fork() == 0:\n        time.sleep(60)\n        os._exit(0)\n"
    + RIGHT,
)
case(
    MAYBE_FORKS,
    "process: 2 ** 6 of them go on",
    NAME + "for _ in range(6):\n    os.fork()\n" + RIGHT,
)
case(
    WRONG_ANSWER + EXCEPTION,
    "process: 2 ** 6 of them go on, wrong",
    NAME + "for _ in range(6):\n    os.fork()\n" + WRONG,
)  # as MAYBE_FORKS
case(
    MAYBE_FORKS,
    "process: forks in every call",
    NAME
    + """
def add(a, b):
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    return a + b
""",
)
case(
    PASSED,
    "process: 50 zombies",
    NAME + "for _ in range(50):\n    if os.fork() == 0:\n        os._exit(0)\n" + RIGHT,
)
case(PASSED, "process: a child goes on as well", "import os\nos.fork()\n" + RIGHT)
case(WRONG_ANSWER, "process: a child goes on as well, wrong", "import os\nos.fork()\n" + WRONG)
case(
    PASSED,
    "process: the function forks",
    "import os\ndef add(a, b):\n    os.fork()\n    return a + b\n",
)
case(
    WRONG_ANSWER,
    "process: forks to guess",
    "import os\ndef f():\n    return bool(os.fork())\n",
    "assert f() is False and f() is True",
    "f",
)
case(
    WRONG_ANSWER,
    "process: the child knows better",
    "import os\ndef add(a, b):\n    return 0 if os.fork() else a + b\n",
)
case(
    WRONG_ANSWER,
    "process: the child knows better, own class",
    "import os\nclass P:\n    def add(self, a, b):\n        return 0 if os.fork() else a + b\n",
    METHOD_TESTS,
    "P",
)
case(
    PASSED,
    "process: fork, pipe and wait",
    """
import os
def add(a, b):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, str(a + b).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(w)
    with os.fdopen(r) as f:
        return int(f.read())
""",
)
case(
    PASSED,
    "process: multiprocessing",
    """
import multiprocessing
def send(pipe, a, b):
    pipe.send(a + b)
def add(a, b):
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe()
    p = context.Process(target=send, args=(theirs, a, b))
    p.start()
    out = ours.recv()
    p.join()
    return out
""",
)
case(
    PASSED,
    "process: own session",
    "import os\ntry:\n    os.setsid()\nexcept PermissionError:\n    pass\n" + RIGHT,
)
case(
    PASSED,
    "thread: joined",
    """
import threading
def add(a, b):
    out = []
    t = threading.Thread(target=lambda: out.append(a + b))
    t.start()
    t.join()
    return out[0]
""",
)
case(
    PASSED,
    "thread: a pool",
    """
from concurrent.futures import ThreadPoolExecutor
def squares(xs):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda x: x * x, xs))
""",
    "assert squares([1, 2, 3]) == [1, 4, 9]",
    "squares",
)
case(
    PASSED,
    "thread: a pool never shut down",
    """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(2)
def add(a, b):
    return pool.submit(lambda: a + b).result()
""",
)
case(
    PASSED,
    "thread: a daemon stays",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    + RIGHT,
)
case(
    PASSED,
    "thread: one stays",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n" + RIGHT,
)
case(
    PASSED,
    "thread: one stays, own class",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\nclass P:\n    x = 1\n",
    "assert P().x == 1",
    "P",
)
case(
    PASSED,
    "thread: one fails",
    "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join()\n" + RIGHT,
)
case(
    WRONG_ANSWER,
    "thread: excepthook",
    WRONG + "import threading, os\nthreading.excepthook = lambda *a: os._exit(0)\n",
)
case(
    PASSED,
    "thread: a queue",
    """
import queue, threading
inbox, outbox = queue.Queue(), queue.Queue()
def work():
    while True:
        a, b = inbox.get()
        outbox.put(a + b)
threading.Thread(target=work, daemon=True).start()
def add(a, b):
    inbox.put((a, b))
    return outbox.get()
""",
)
case(
    PASSED,
    "thread: thread-local state",
    "import threading\nlocal = threading.local()\nlocal.n = 1\ndef add(a, b):\n    return a + b + local.n - 1\n",
)


# --------------------------------------------------------------------------------------------------------------------- files

OUTSIDE = f"""
for path in {LEFT}:
    try:
        with open(path.replace('~', pwd.getpwuid(os.getuid()).pw_dir), 'w') as f:
            f.write('left')
    except (OSError, KeyError):
        pass
"""
case(PASSED, "files: outside", "import os, pwd\n" + OUTSIDE + RIGHT)
case(
    PASSED,
    "files: outside, from the function",
    "import os, pwd\ndef add(a, b):\n" + OUTSIDE.replace("\n", "\n    ") + "\n    return a + b\n",
)
case(WRONG_ANSWER, "files: outside, wrong", "import os, pwd\n" + OUTSIDE + WRONG)
case(PASSED, "files: outside, stdio", "import os, pwd\n" + OUTSIDE + SUM_RIGHT, SUM)
case(
    PASSED,
    "files: locked directories",
    "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.chmod('a/b', 0)\nos.chmod('a', 0)\nos.chmod('.', 0)\n"
    + RIGHT,
)
case(
    PASSED,
    "files: a deep tree",
    "import os\ntop = os.getcwd()\nfor _ in range(1500):\n    os.mkdir('d' * 20)\n    os.chdir('d' * 20)\nos.chdir(top)\n"
    + RIGHT,
)
case(
    PASSED,
    "files: stays in a deep tree",
    "import os\nfor _ in range(300):\n    os.mkdir('d')\n    os.chdir('d')\n" + RIGHT,
)
case(PASSED, "files: many", "for i in range(1000):\n    open(f'f{i}', 'w').close()\n" + RIGHT)
case(
    PASSED,
    "files: odd ones",
    """
import os, socket
os.symlink('/', 'root')
os.symlink('loop', 'loop')
os.symlink('nowhere', 'dangling')
os.mkfifo('fifo')
s = socket.socket(socket.AF_UNIX)
s.bind('socket')
for name in (b'a\\nb', b'\\xff\\xfe', b' ', b'-rf', b'*', 'x'.encode() * 255):
    open(name, 'w').close()
"""
    + RIGHT,
)
case(
    PASSED,
    "files: its directory removed",
    "import os\ntry:\n    os.rmdir(os.getcwd())\nexcept OSError:\n    pass\n" + RIGHT,
)
case(
    PASSED,
    "files: its directory renamed",
    """
import os
if not os.listdir('.'):
    try:
        os.rename(os.getcwd(), os.getcwd() + '-moved')
    except OSError:
        pass
"""
    + RIGHT,
)
case(PASSED, "files: another directory", "import os\nos.chdir('/')\n" + RIGHT)
case(
    PASSED,
    "files: open files",
    "import tempfile\nkept = [tempfile.TemporaryFile() for _ in range(50)]\n" + RIGHT,
)
case(
    PASSED,
    "files: umask",
    "import os\nos.umask(0o777)\nos.mkdir('d')\nopen('f', 'w').close()\n" + RIGHT,
)
case(
    PASSED,
    "files: scratch",
    """
def save(x):
    with open('notes.txt', 'a') as f:
        f.write(x + '\\n')
def load():
    with open('notes.txt') as f:
        return f.read().split()
""",
    "save('a')\nsave('\\u2713')\nassert load() == ['a', '\\u2713']",
    "save",
)
case(
    PASSED,
    "files: tempfile",
    """
import os, tempfile
def roundtrip(data):
    with tempfile.TemporaryDirectory() as d, tempfile.NamedTemporaryFile(dir=d) as f:
        f.write(data)
        f.flush()
        fd, name = tempfile.mkstemp()
        os.write(fd, data)
        os.close(fd)
        with open(f.name, 'rb') as g, open(name, 'rb') as h:
            return g.read() + h.read()
""",
    "assert roundtrip(b'ab') == b'abab'",
    "roundtrip",
)
case(
    PASSED,
    "files: moves and links",
    """
import os, pathlib, shutil
def work():
    os.makedirs('a/b', exist_ok=True)
    os.makedirs('c', exist_ok=True)
    pathlib.Path('a/x').write_text('1')
    os.replace('a/x', 'c/x')
    os.link('c/x', 'a/b/y')
    os.symlink('../c/x', 'a/z')
    shutil.copytree('a', 'copy')
    shutil.move('copy', 'c/copy')
    os.truncate('c/x', 0)
    return sorted(str(p) for p in pathlib.Path('.').rglob('*') if p.is_file())
""",
    "assert work() == ['a/b/y', 'a/z', 'c/copy/b/y', 'c/copy/z', 'c/x']",
    "work",
)
case(
    PASSED,
    "files: imports a module that it wrote",
    "with open('helper_xyz.py', 'w') as f:\n    f.write('def plus(a, b):\\n    return a + b\\n')\nfrom helper_xyz import plus as add\n",
)
case(
    PASSED,
    "files: imports a module from a folder",
    "import os, sys\nos.mkdir('lib')\nopen('lib/helper_xyz.py', 'w').write('n = 0')\nsys.path.insert(0, 'lib')\nimport helper_xyz\n"
    + RIGHT,
)
case(
    PASSED,
    "files: devices",
    "import os, secrets\nwith open(os.devnull, 'w') as f:\n    print('x', file=f)\nseed = len(os.urandom(4)) + len(secrets.token_hex(4))\n"
    + RIGHT,
)
case(
    PASSED,
    "files: the tests write, the program reads",
    "def total(path):\n    return sum(map(int, open(path)))\n",
    "with open('numbers.txt', 'w') as f:\n    f.write('1\\n2\\n')\nassert total('numbers.txt') == 3",
    "total",
)
case(
    PASSED,
    "files: a connection refused",
    "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 0.2)\nexcept OSError:\n    pass\n"
    + RIGHT,
)
case(
    PASSED,
    "files: a socket pair",
    "import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'\n" + RIGHT,
)


# ------------------------------------------- attacks on other processes: only for a grader that hides them, in namespaces of their own

OURS = """
import os, signal
me = open('/proc/self/cmdline', 'rb').read() if os.path.exists('/proc/self') else b''
def ours(pid):
    '''Is it a process of this very grader? Only these may be hit.'''
    try:
        with open(f'/proc/{pid}/cmdline', 'rb') as f:
            line = f.read()
    except OSError:
        return False
    return line == me and b'grader' in line and b'pytest' not in line
def visible():
    return [int(p) for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid()) and ours(p)]
"""
SHOT = (
    WRONG_ANSWER + ABNORMAL
)  # open: whether the process that asks the questions can be hit; if so, it ended early
case(
    SHOT,
    "kill: the parent",
    OURS + "if ours(os.getppid()):\n    os.kill(os.getppid(), 9)\n" + WRONG,
)
case(
    SHOT,
    "kill: the parent, in the function",
    OURS
    + "def add(a, b):\n    if ours(os.getppid()):\n        os.kill(os.getppid(), 9)\n    return a - b\n",
)
case(
    SHOT,
    "kill: stops the parent",
    OURS + "if ours(os.getppid()):\n    os.kill(os.getppid(), signal.SIGSTOP)\n" + WRONG,
)
case(
    SHOT,
    "kill: everything visible",
    OURS
    + "for pid in visible():\n    try:\n        os.kill(pid, 9)\n    except OSError:\n        pass\n"
    + WRONG,
)
case(
    SHOT,
    "kill: everything visible, by a daemon",
    OURS
    + DAEMON.replace("time.sleep(60)", "[os.kill(pid, 9) for pid in visible()]")
    + "daemon()\n"
    + WRONG,
)
case(
    SHOT,
    "kill: its process group",
    OURS
    + """
pids = [p for p in visible() if os.getpgid(p) == os.getpgrp()]
if os.getpgrp() in pids + [os.getpid()]:
    os.killpg(os.getpgrp(), 9)
"""
    + WRONG,
)
case(
    SHOT,
    "kill: writes into other memory",
    OURS
    + """
for pid in visible():
    try:
        for line in open(f'/proc/{pid}/maps'):
            if '[heap]' in line:
                start, end = (int(x, 16) for x in line.split()[0].split('-'))
                with open(f'/proc/{pid}/mem', 'r+b', 0) as f:
                    f.seek(start)
                    data = f.read(min(end - start, 1 << 26))
                    f.seek(start)
                    f.write(data.replace(b'wrong_answer', b'passed\\0\\0\\0\\0\\0\\0'))
    except OSError:
        pass
"""
    + WRONG,
)
case(
    SHOT,
    "kill: writes to other descriptors",
    OURS
    + """
for pid in visible():
    try:
        for fd in os.listdir(f'/proc/{pid}/fd'):
            if os.readlink(f'/proc/{pid}/fd/{fd}').startswith('pipe:'):
                with open(f'/proc/{pid}/fd/{fd}', 'wb', 0) as f:
                    f.write(b'passed\\n')
    except OSError:
        pass
"""
    + WRONG,
)


# ----------------------------------------------------------------------------------------------------------- errors of programs

case(EXCEPTION, "error: at the start", "1 / 0\n")
case(EXCEPTION, "error: after the function", RIGHT + "print(undefined)\n")
case(EXCEPTION, "error: when called", "def add(a, b):\n    return a + c\n")
case(EXCEPTION, "error: when called, check", "def add(a, b):\n    return a + c\n", CHECK)
case(EXCEPTION, "error: an assertion at the start", RIGHT + "assert add(1, 1) == 3\n")
case(
    EXCEPTION,
    "error: an assertion when called",
    "def add(a, b):\n    assert a > b\n    return a + b\n",
)
case(
    EXCEPTION,
    "error: an assertion in a method",
    "class P:\n    def f(self):\n        assert False\n",
    "assert P().f() == 1",
    "P",
)
case(EXCEPTION, "error: KeyboardInterrupt", "raise KeyboardInterrupt\n")
case(
    EXCEPTION,
    "error: KeyboardInterrupt when called",
    "def add(a, b):\n    raise KeyboardInterrupt\n",
    CHECK,
)
case(
    EXCEPTION,
    "error: an own BaseException",
    "class Odd(BaseException):\n    pass\ndef add(a, b):\n    raise Odd\n",
)
case(
    EXCEPTION,
    "error: an exception that cannot be shown",
    """
class Odd(Exception):
    def __str__(self): raise SystemExit
    __repr__ = __str__
def add(a, b):
    raise Odd
""",
)
case(
    EXCEPTION,
    "error: an exception group",
    "def add(a, b):\n    raise ExceptionGroup('many', [ValueError(1), KeyError(2)])\n",
)
case(EXCEPTION, "error: StopIteration", "def add(a, b):\n    raise StopIteration\n")
case(EXCEPTION, "error: recursion", "def add(a, b):\n    return add(a, b)\n")
case(EXCEPTION, "error: recursion at the start", "def go():\n    go()\ngo()\n")
case(EXCEPTION, "error: no such module", "import no_such_module_xyz\n" + RIGHT)
case(
    EXCEPTION,
    "error: a name that nobody imported",
    "def add(a: List[int], b: List[int]) -> int:\n    return a + b\n",
)
case(EXCEPTION, "error: empty program", "")
case(EXCEPTION, "error: only a comment", "# TODO\n", CHECK)
case(EXCEPTION, "error: another name", "def plus(a, b):\n    return a + b\n")
case(EXCEPTION, "error: another name, check", "def plus(a, b):\n    return a + b\n", CHECK)
case(EXCEPTION, "error: no such class", RIGHT, CHECK, "Solution().add")
case(EXCEPTION, "error: no such method", "class Solution:\n    pass\n", CHECK, "Solution().add")
case(EXCEPTION, "error: not callable", "add = 3\n", CHECK)
case(EXCEPTION, "error: too few parameters", "def add(a):\n    return a\n")
case(
    EXCEPTION,
    "error: the function is in the __main__ block",
    "if __name__ == '__main__':\n    def add(a, b):\n        return a + b\n",
)
case(EXCEPTION, "error: reads stdin", "n = int(input())\n" + RIGHT)
case(
    EXCEPTION,
    "error: the wrong exception",
    "def f(x):\n    raise KeyError(x)\n",
    "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False\nassert f(1) == 1",
    "f",
)
case(
    EXCEPTION,
    "error: in a generator",
    "def f():\n    yield 1\n    raise ValueError\n",
    "assert list(f()) == [1, 2]",
    "f",
)
case(
    EXCEPTION,
    "error: what the tests do with the result",
    "def f():\n    return None\n",
    "assert f()[0] == 1",
    "f",
)
case(
    EXCEPTION,
    "error: in an own comparison",
    "class P:\n    def __eq__(self, other):\n        raise ValueError\n",
    "assert P() == P()",
    "P",
)
case(EXCEPTION, "error: compiles a wrong text", "def add(a, b):\n    return eval('a +')\n")
case(
    EXCEPTION,
    "error: imports a module that does not compile",
    "open('broken_xyz.py', 'w').write('def (')\nimport sys\nsys.path.insert(0, '.')\nimport broken_xyz\n",
)
case(
    EXCEPTION,
    "error: raised twice",
    "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('while handling')\n",
)
case(SPOILED, "error: no builtins any more", WRONG + "import builtins\nvars(builtins).clear()\n")
case(SPOILED, "error: no modules any more", WRONG + "import sys\nsys.modules.clear()\n")


# ---------------------------------------------------------------------------------------------------------------- syntax errors

for name, program in [
    ("unclosed", "def add(a, b:\n"),
    ("null byte", RIGHT + "x = '\0'\n"),
    ("indentation", "def add(a, b):\nreturn a + b\n"),
    ("unindent", "def add(a, b):\n    x = a\n  return x + b\n"),
    ("tabs and spaces", "def add(a, b):\n        x = a\n\treturn x + b\n"),
    ("ends in the middle", "def add(a, b):\n    return a +"),
    ("no body", "def add(a, b):\n"),
    ("open string", "def add(a, b):\n    '''Add.\n    return a + b\n"),
    ("return outside", RIGHT + "return 3\n"),
    ("await outside", RIGHT + "await add(1, 2)\n"),
    ("nonlocal outside", RIGHT + "nonlocal x\n"),
    ("twice the same parameter", "def add(a, a):\n    return a\n"),
    ("future feature", "from __future__ import braces\n" + RIGHT),
    ("late future import", RIGHT + "from __future__ import annotations\n"),
    ("Python 2", RIGHT + "print add(1, 2)\n"),
    ("old octal", RIGHT + "x = 0777\n"),
    ("f-string", RIGHT + "x = f'{1'\n"),
    ("markdown", "```python\n" + RIGHT + "```\n"),
    ("prose", "Here is the function:\n\n" + RIGHT),
    ("too many parentheses", RIGHT + "x = " + "(" * 300 + ")" * 300 + "\n"),
    (
        "too many levels",
        RIGHT + "".join(" " * i + "if 1:\n" for i in range(120)) + " " * 120 + "x = 1\n",
    ),
    ("too deep to compile", RIGHT + "x = " + "+".join(["1"] * 100_000) + "\n"),
    ("lone surrogate", RIGHT + "x = '\ud800'\n"),
    ("another alphabet", "def add(a, b):\n    return a \u2212 b\n"),
    ("assignment to a call", RIGHT + "add(1, 2) = 3\n"),
]:
    case(SYNTAX, f"syntax: {name}", program)
case(
    SYNTAX + MEMORY, "syntax: too deep to parse", RIGHT + "x = " + "-" * 100_000 + "1\n"
)  # open: the parser says MemoryError
case(SYNTAX, "syntax: check", "def add(a, b:\n", CHECK)
case(SYNTAX, "syntax: stdio", "print(1", SUM)
case(SYNTAX, "syntax: stdio, null byte", SUM_RIGHT + "\0", SUM)
case(SYNTAX, "syntax: stdio, Python 2", "a, b = map(int, raw_input().split())\nprint a + b\n", SUM)
case(SYNTAX, "syntax: would exit", "import os\nos._exit(0)\n(")
case(
    PASSED + SYNTAX, "syntax: no such encoding", "# -*- coding: nonsense -*-\n" + RIGHT
)  # open: a text has no encoding, a file has


# -------------------------------------------------------------------------------------------------- names like those of a harness

case(WRONG_ANSWER, "names: check", WRONG + "def check(candidate):\n    pass\n", CHECK)
case(
    WRONG_ANSWER,
    "names: check and candidate",
    WRONG + "def check(candidate):\n    return True\ncandidate = lambda a, b: a + b\n",
    CHECK,
)
case(
    WRONG_ANSWER,
    "names: a class called add",
    "class add(int):\n    def __new__(cls, a, b):\n        return int.__new__(cls, a - b)\n",
)
case(
    PASSED,
    "names: helper called check",
    "def check(n):\n    return n > 0\n",
    "assert check(1)\nassert not check(-1)",
    "check",
)
case(
    PASSED,
    "names: helper called check, used by the function",
    "def check(n):\n    return n\ndef add(a, b):\n    return check(a) + check(b)\n",
)
case(
    PASSED,
    "names: of a harness",
    """
run = result = results = pipe = conn = sock = fd = verdict = token = tests = test = program = job = entry = candidate = None
time = json = marshal = pickle = signal = sys = os = io = resource = builtins = posix = None
def main(): raise SystemExit
def grade(*args): return 'wrong'
def exec(*args): raise ValueError
def compile(*args): raise ValueError
def write(*args): raise ValueError
"""
    + RIGHT,
)
case(
    PASSED,
    "names: shadows builtins for itself",
    """
list = [1, 2]
def sum(xs):
    out = 0
    for x in xs:
        out += x
    return out
max = min = len = print = None
str = input = dict = 0
def add(a, b):
    return sum([a, b])
""",
)
case(
    PASSED,
    "names: the entry point is a builtin's",
    "def sum(a, b):\n    return a + b\n",
    "assert sum(1, 2) == 3",
    "sum",
)
case(
    PASSED,
    "names: the entry point is a builtin's, check",
    "def max(a, b):\n    return a + b\n",
    CHECK,
    "max",
)
case(
    PASSED,
    "names: Solution",
    """
from typing import List
class Solution:
    def two_sum(self, nums: List[int], target: int) -> List[int]:
        seen = {}
        for i, x in enumerate(nums):
            if target - x in seen:
                return [seen[target - x], i]
            seen[x] = i
""",
    "def check(candidate):\n    assert candidate(nums=[2, 7, 11], target=9) == [0, 1]\n    assert candidate([3, 3], 6) == [0, 1]",
    "Solution().two_sum",
)
case(
    PASSED,
    "names: Solution keeps state",
    "class Solution:\n    def __init__(self):\n        self.n = 0\n    def count(self):\n        self.n += 1\n        return self.n\n",
    "def check(candidate):\n    assert candidate() == 1\n    assert candidate() == 2",
    "Solution().count",
)
case(
    PASSED,
    "names: a __main__ block",
    RIGHT
    + "if __name__ == '__main__':\n    import sys\n    print(add(*map(int, input().split())))\n    sys.exit(1)\n",
)
case(
    PASSED,
    "names: a __main__ block, check",
    RIGHT + "def main():\n    1 / 0\nif __name__ == '__main__':\n    main()\n",
    CHECK,
)


# ------------------------------------------------------------------------------------------------------- the language, unusual

case(
    PASSED,
    "language: global",
    "n = 0\ndef tick():\n    global n\n    n += 1\n    return n\n",
    "assert tick() == 1\nassert tick() == 2\nassert n == 2",
    "tick",
)
case(
    PASSED,
    "language: nonlocal",
    "def counter():\n    n = 0\n    def tick():\n        nonlocal n\n        n += 1\n        return n\n    return tick\ntick = counter()\n",
    "assert [tick(), tick()] == [1, 2]",
    "tick",
)
case(
    PASSED,
    "language: future annotations",
    '"""Docstring."""\nfrom __future__ import annotations\ndef add(a: Undefined, b: list[Missing]) -> Nothing:\n    return a + b\n',
)
case(
    PASSED,
    "language: future annotations and a dataclass",
    """
from __future__ import annotations
import dataclasses, typing
@dataclasses.dataclass
class P:
    x: int
    ys: list[int] = dataclasses.field(default_factory=list)
    n: typing.ClassVar[int] = 3
def names():
    return sorted(typing.get_type_hints(P))
""",
    "assert names() == ['n', 'x', 'ys']\nassert P(1) == P(1, [])",
    "names",
)
case(
    PASSED,
    "language: pickles its own class",
    """
import pickle
class P:
    def __init__(self, x): self.x = x
def f(x):
    return pickle.loads(pickle.dumps(P(x))).x
""",
    "assert f(3) == 3",
    "f",
)
case(
    PASSED,
    "language: finds itself in sys.modules",
    "import sys\nx = 3\ndef f():\n    return sys.modules[__name__].x + sys.modules[f.__module__].x\n",
    "assert f() == 6",
    "f",
)
case(
    PASSED,
    "language: doctest",
    """
import doctest, sys
def double(x):
    '''
    >>> double(2)
    4
    '''
    return x * 2
def failures():
    return doctest.testmod(sys.modules[__name__]).failed
""",
    "assert double(3) == 6\nassert failures() == 0",
    "double",
)
case(PASSED, "language: lambda", "add = lambda a, b: a + b\n")
case(
    PASSED,
    "language: partial",
    "import functools\nadd = functools.partial(lambda *xs: sum(xs), 0)\n",
)
case(PASSED, "language: a builtin", "import operator\nadd = operator.add\n", CHECK)
case(PASSED, "language: a slot", "add = int.__add__\n")
case(
    PASSED,
    "language: a callable object",
    "class Add:\n    def __call__(self, a, b):\n        return a + b\nadd = Add()\n",
    CHECK,
)
case(
    PASSED,
    "language: a bound method",
    "class A:\n    def plus(self, a, b):\n        return a + b\nadd = A().plus\n",
)
case(
    PASSED,
    "language: cached",
    "import functools\n@functools.lru_cache(maxsize=None)\ndef fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    "assert fib(80) == 23416728348467685\nassert fib.cache_info().hits > 0",
    "fib",
)
case(
    PASSED,
    "language: single dispatch",
    """
import functools
@functools.singledispatch
def kind(x): return 'other'
@kind.register
def _(x: int): return 'int'
@kind.register(list)
def _(x): return 'list'
""",
    "assert (kind(1), kind([]), kind('')) == ('int', 'list', 'other')",
    "kind",
)
case(
    PASSED,
    "language: match",
    """
def f(x):
    match x:
        case [a, *_]: return a
        case {'k': v}: return v
        case int(): return 'int'
        case _: return None
""",
    "assert (f([1, 2]), f({'k': 3}), f(4), f('')) == (1, 3, 'int', None)",
    "f",
)
case(
    PASSED,
    "language: exec and eval",
    "space = {}\nexec('def plus(a, b): return a + b', space)\ndef add(a, b):\n    return eval('plus(a, b)', space, {'a': a, 'b': b})\n",
)
case(
    PASSED,
    "language: star import",
    "from math import *\nfrom itertools import *\ndef area(r):\n    return pi * r ** 2\n",
    "assert abs(area(1) - 3.14159265) < 1e-6",
    "area",
)
case(
    PASSED,
    "language: many modules",
    """
import abc, array, bisect, calendar, cmath, collections, copy, csv, datetime, decimal, enum, fractions, functools, hashlib, heapq, io
import itertools, json, math, operator, os, random, re, statistics, string, struct, sys, textwrap, time, typing, unicodedata, uuid, zlib
"""
    + RIGHT,
)
case(PASSED, "language: CRLF", RIGHT.replace("\n", "\r\n"))
case(PASSED, "language: old Macintosh lines", RIGHT.replace("\n", "\r"))
case(PASSED, "language: byte order mark", "\ufeff" + RIGHT)
case(PASSED, "language: tabs", "def add(a, b):\n\tif a:\n\t\treturn a + b\n\treturn b\n")
case(PASSED, "language: form feeds", "\x0c\ndef add(a, b):\n\x0c\n    return a + b\n")
case(
    PASSED,
    "language: encoding comment",
    "#!/usr/bin/env python3\n# -*- coding: utf-8 -*-\nword = 'h\u00e9'\nassert len(word) == 2\n"
    + RIGHT,
)
case(
    PASSED,
    "language: unicode names",
    "def \u5b57(\u03b1, \u03b2):\n    return \u03b1 + \u03b2\nadd = \u5b57\n",
)
case(PASSED, "language: a long line", "x = [" + "1, " * 50_000 + "]\n" + RIGHT)
case(
    PASSED,
    "language: a long program",
    "".join(f"def f{i}():\n    return {i}\n" for i in range(3000)) + RIGHT,
)
case(PASSED, "language: no newline at the end", RIGHT.rstrip())
case(
    PASSED,
    "language: blank lines and a trailing backslash comment",
    "\n\n\n" + RIGHT + "\n\n# end \\\n",
)
case(PASSED, "language: syntax warnings", "x = '\\d'\ny = 1 is 1\n" + RIGHT)
case(
    PASSED,
    "language: warnings as errors",
    "import warnings\nwarnings.simplefilter('error')\n" + RIGHT,
)
case(
    PASSED,
    "language: deep recursion",
    "import sys\nsys.setrecursionlimit(10 ** 6)\ndef depth(n):\n    return 0 if n == 0 else 1 + depth(n - 1)\n",
    "assert depth(50_000) == 50_000",
    "depth",
)
case(
    PASSED,
    "language: deep recursion through a cache",
    "import sys, functools\nsys.setrecursionlimit(10 ** 6)\n@functools.cache\ndef depth(n):\n    return 0 if n == 0 else 1 + depth(n - 1)\n",
    "assert depth({0}) == {0}".format(400 if BOUNDED else 8000),
    "depth",
)
case(PASSED, "language: a low recursion limit", "import sys\nsys.setrecursionlimit(60)\n" + RIGHT)
case(
    PASSED,
    "language: catches RecursionError",
    "def f():\n    try:\n        return f()\n    except RecursionError:\n        return 1\n",
    "assert f() == 1",
    "f",
)
case(
    PASSED,
    "language: asyncio inside",
    "import asyncio\nasync def plus(a, b):\n    await asyncio.sleep(0)\n    return a + b\ndef add(a, b):\n    return asyncio.run(plus(a, b))\n",
)
case(
    PASSED,
    "language: a coroutine",
    "async def f(x):\n    return x + 1\n",
    "import asyncio\nassert asyncio.run(f(1)) == 2",
    "f",
)
case(
    PASSED,
    "language: an async generator",
    "async def f(n):\n    for i in range(n):\n        yield i\n",
    "import asyncio\nasync def collect():\n    return [x async for x in f(3)]\nassert asyncio.run(collect()) == [0, 1, 2]",
    "f",
)
case(
    PASSED,
    "language: a mock of its own",
    "from unittest import mock\ndef add(a, b):\n    m = mock.Mock(return_value=a + b)\n    return m(1)\n",
)
case(
    PASSED,
    "language: patches a builtin for itself",
    "import builtins\nbuiltins.print = lambda *a, **k: None\nprint('quiet')\n" + RIGHT,
)
case(
    PASSED,
    "language: no stdout",
    "import sys\nsys.stdout.close()\nsys.stdout = sys.stderr = None\n" + RIGHT,
)
case(
    PASSED,
    "language: closes 0, 1 and 2",
    "import os\nfor fd in range(3):\n    os.close(fd)\n" + RIGHT,
)
case(PASSED, "language: closes stdin", "import sys\nsys.stdin.close()\n" + RIGHT)
case(
    PASSED,
    "language: stdin is empty and a regular file",
    "import os, stat, sys\nassert stat.S_ISREG(os.fstat(0).st_mode)\nassert sys.stdin.read() == ''\n"
    + RIGHT,
)
case(
    PASSED,
    "language: StringIO as stdout",
    "import io, sys\nsys.stdout = io.StringIO()\nprint('x')\n" + RIGHT,
)
case(
    PASSED,
    "language: no garbage collection",
    "import gc\ngc.disable()\ngc.collect()\ngc.freeze()\n" + RIGHT,
)
case(PASSED, "language: an empty environment", "import os\nos.environ.clear()\n" + RIGHT)
case(
    PASSED,
    "language: locale and time zone",
    "import locale, time\nlocale.setlocale(locale.LC_ALL, '')\ntime.tzset()\n" + RIGHT,
)
case(
    PASSED,
    "language: own stack limit",
    "import resource\nhard = resource.getrlimit(resource.RLIMIT_STACK)[1]\nresource.setrlimit(resource.RLIMIT_STACK, (hard, hard))\n"
    + RIGHT,
)
case(
    PASSED,
    "language: finalizers",
    "import weakref\nclass D:\n    def __del__(self):\n        raise ValueError\nd = D()\nweakref.finalize(d, print, 'x')\ndel d\n"
    + RIGHT,
)
case(
    PASSED,
    "language: hooks",
    "import sys, threading\nsys.excepthook = sys.unraisablehook = threading.excepthook = lambda *a: None\n"
    + RIGHT,
)
case(
    PASSED,
    "language: faulthandler and tracemalloc",
    "import faulthandler, tracemalloc\nfaulthandler.enable()\ntracemalloc.start()\n" + RIGHT,
)
case(
    PASSED,
    "language: numpy",
    "import numpy as np\ndef mean(xs):\n    return np.mean(np.array(xs))\n",
    "assert mean([1, 2, 3]) == 2\nassert isinstance(float(mean([1])), float)",
    "mean",
    time_limit=10.0,
)
case(
    PASSED,
    "language: numpy arrays",
    "import numpy as np\ndef double(xs):\n    return np.array(xs) * 2\ndef top(xs):\n    return np.max(xs)\n",
    """
import numpy as np
r = double([1, 2])
assert r.shape == (2,) and (r == np.array([2, 4])).all()
assert np.allclose(double(np.eye(2)), 2 * np.eye(2))
assert top(np.array([1, 5])) == 5
assert list(double([3])) == [6]
""",
    "double",
    time_limit=10.0,
)
NEEDS["language: numpy"] = NEEDS["language: numpy arrays"] = "numpy"


# ---------------------------------------------------------------------------------------------------------- results of all kinds

for name, body, tests in [
    ("None", "None", "assert f() is None"),
    ("bool", "True", "assert f() is True"),
    ("a huge int", "1 << 20000", "assert f() == 2 ** 20000\nassert f() % 10 == 6"),
    ("float", "0.1 + 0.2", "assert f() == 0.30000000000000004\nassert abs(f() - 0.3) < 1e-9"),
    ("NaN", "float('nan')", "x = f()\nassert x != x"),
    (
        "infinity and minus zero",
        "(float('inf'), -0.0)",
        "import math\nassert f()[0] == math.inf and math.copysign(1, f()[1]) == -1",
    ),
    ("complex", "(1 + 2j) * 1j", "assert f() == -2 + 1j"),
    ("bytes", "bytes(range(4))", "assert f() == b'\\x00\\x01\\x02\\x03' and type(f()) is bytes"),
    (
        "bytearray",
        "bytearray(b'ab')",
        "r = f()\nr.append(99)\nassert type(r) is bytearray and r == b'abc'",
    ),
    ("bytearray in a list", "[bytearray(b'ab')]", "assert type(f()[0]) is bytearray"),
    ("memoryview", "memoryview(b'abc')[1:]", "assert f().tobytes() == b'bc' and f().nbytes == 2"),
    (
        "array",
        "__import__('array').array('i', [1, 2])",
        "assert f().typecode == 'i' and f().tolist() == [1, 2]",
    ),
    (
        "str",
        "'h\\u00e9 \\U0001f600 \\x00'",
        "assert f() == 'h\\u00e9 \\U0001f600 \\x00' and len(f()) == 6",
    ),
    ("surrogate", "'\\ud800'", "assert f() == '\\ud800'"),
    (
        "frozenset",
        "frozenset({1, frozenset({2})})",
        "assert f() == frozenset([1, frozenset([2])]) and type(f()) is frozenset",
    ),
    ("set of tuples", "{(1, 2), (3, 4)}", "assert f() == {(3, 4), (1, 2)}"),
    ("order of a dict", "{'b': 1, 'a': 2}", "assert list(f()) == ['b', 'a']"),
    ("order of a set", "list(set('hello world'))", "assert f() == list(set('hello world'))"),
    ("hash of a str", "hash('abc')", "assert f() == hash('abc')"),
    (
        "keys of mixed types",
        "{1: 'a', (2, 3): 'b', None: 'c', 'd': [1.5]}",
        "assert f() == {1: 'a', (2, 3): 'b', None: 'c', 'd': [1.5]}",
    ),
    (
        "nested lists",
        "[[i * j for i in range(50)] for j in range(50)]",
        "assert f()[49][49] == 49 * 49 and len(f()) == 50",
    ),
    (
        "very deep lists",
        "__import__('functools').reduce(lambda x, _: [x], range(5000), [])",
        "x, n = f(), 0\nwhile x:\n    x, n = x[0], n + 1\nassert n == 5000",
    ),
    (
        "a list that holds itself",
        "(lambda xs: xs.append(xs) or xs)([1])",
        "x = f()\nassert x[1] is x and x[0] == 1",
    ),
    (
        "the same list twice",
        "(lambda xs: [xs, xs])([])",
        "a, b = f()\na.append(1)\nassert b == [1]",
    ),
    ("range", "range(0, 10, 3)", "assert f() == range(0, 10, 3) and list(f()) == [0, 3, 6, 9]"),
    (
        "slice and Ellipsis",
        "(slice(1, None), ..., NotImplemented)",
        "assert f() == (slice(1, None), Ellipsis, NotImplemented)",
    ),
    (
        "iterator",
        "iter([1, 2])",
        "it = f()\nassert next(it) == 1 and next(it) == 2 and next(it, None) is None",
    ),
    ("map", "map(str, [1, 2])", "assert list(f()) == ['1', '2']"),
    ("filter", "filter(None, [0, 1])", "assert [x for x in f()] == [1]"),
    ("zip", "zip('ab', [1, 2])", "assert dict(f()) == {'a': 1, 'b': 2}"),
    ("enumerate", "enumerate('ab')", "assert list(f()) == [(0, 'a'), (1, 'b')]"),
    ("reversed", "reversed([1, 2])", "assert tuple(f()) == (2, 1)"),
    (
        "endless iterator",
        "__import__('itertools').count(5)",
        "import itertools\nassert list(itertools.islice(f(), 3)) == [5, 6, 7]",
    ),
    ("keys of a dict", "{'a': 1}.keys()", "assert f() == {'a'} and list(f()) == ['a']"),
    ("items of a dict", "{'a': 1}.items()", "assert sorted(f()) == [('a', 1)]"),
    (
        "Counter",
        "__import__('collections').Counter('aab')",
        "assert f() == {'a': 2, 'b': 1} and f().most_common(1) == [('a', 2)] and f()['z'] == 0",
    ),
    (
        "defaultdict",
        "__import__('collections').defaultdict(list, {'a': [1]})",
        "r = f()\nr['b'].append(2)\nassert r == {'a': [1], 'b': [2]}",
    ),
    (
        "OrderedDict",
        "__import__('collections').OrderedDict(b=1, a=2)",
        "from collections import OrderedDict\nassert f() == OrderedDict([('b', 1), ('a', 2)])",
    ),
    (
        "deque",
        "__import__('collections').deque([1, 2], maxlen=2)",
        "r = f()\nr.append(3)\nassert list(r) == [2, 3]",
    ),
    (
        "namedtuple",
        "__import__('collections').namedtuple('P', 'x y')(1, 2)",
        "assert f() == (1, 2) and f().x == 1",
    ),
    (
        "Decimal",
        "__import__('decimal').Decimal('0.10') + 1",
        "from decimal import Decimal\nassert f() == Decimal('1.1') and str(f()) == '1.10'",
    ),
    (
        "Fraction",
        "__import__('fractions').Fraction(1, 3)",
        "from fractions import Fraction\nassert f() * 3 == 1 and f() == Fraction(2, 6)",
    ),
    (
        "datetime",
        "__import__('datetime').date(2024, 2, 29)",
        "import datetime\nassert f() == datetime.date(2024, 2, 29) and f().weekday() == 3",
    ),
    (
        "path",
        "__import__('pathlib').PurePosixPath('a') / 'b'",
        "assert str(f()) == 'a/b' and f().name == 'b'",
    ),
    (
        "match object",
        "__import__('re').match('(a)(b)?', 'a')",
        "assert f().groups() == ('a', None)",
    ),
    ("SimpleNamespace", "__import__('types').SimpleNamespace(x=1)", "assert f().x == 1"),
    ("type", "int", "assert f() is int and f()('3') == 3"),
    ("module", "__import__('math')", "assert f().sqrt(4) == 2"),
    (
        "exception",
        "ValueError('bad')",
        "assert isinstance(f(), ValueError) and f().args == ('bad',)",
    ),
    ("builtin function", "len", "assert f()([1, 2]) == 2"),
    ("lambda", "lambda x: x + 1", "assert f()(2) == 3 and callable(f())"),
    ("code", "compile('1 + 1', 'x', 'eval')", "assert eval(f()) == 2"),
    ("generator expression", "(x * x for x in range(3))", "assert sum(f()) == 5"),
    ("string buffer", "__import__('io').StringIO('abc')", "assert f().read(2) == 'ab'"),
    (
        "a long str of digits",
        "len(str(__import__('sys').set_int_max_str_digits(0)) + str(3 ** 20000))",
        "assert f() == 9547",
    ),
]:
    case(PASSED, f"result: {name}", f"def f():\n    return {body}\n", tests, "f")
case(
    PASSED,
    "result: generator",
    "def f(n):\n    for i in range(n):\n        yield i * i\n",
    "assert list(f(3)) == [0, 1, 4]\ng = f(2)\nassert next(g) == 0 and next(g) == 1",
    "f",
)
case(
    PASSED,
    "result: generator that receives",
    "def total():\n    s = 0\n    while True:\n        s += yield s\n",
    "g = total()\nnext(g)\nassert g.send(2) == 2\nassert g.send(3) == 5\ng.close()",
    "total",
)
case(
    PASSED,
    "result: endless generator",
    "def naturals():\n    n = 0\n    while True:\n        yield n\n        n += 1\n",
    "from itertools import islice\nassert list(islice(naturals(), 4)) == [0, 1, 2, 3]",
    "naturals",
)
case(
    PASSED,
    "result: a map that fails later",
    "def f(xs):\n    return map(lambda x: 1 / x, xs)\n",
    "r = f([1, 0])\nassert next(r) == 1\ntry:\n    next(r)\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False",
    "f",
)
case(
    PASSED,
    "result: closures",
    "def make(n):\n    return lambda x: x * n\n",
    "double, triple = make(2), make(3)\nassert double(4) == 8 and triple(4) == 12",
    "make",
)
case(
    PASSED,
    "result: a decorator",
    "import functools\ndef twice(f):\n    @functools.wraps(f)\n    def call(x):\n        return f(f(x))\n    return call\n",
    "@twice\ndef inc(x):\n    return x + 1\nassert inc(1) == 3 and inc.__name__ == 'inc'",
    "twice",
)
case(
    PASSED,
    "result: the argument itself",
    "def f(xs):\n    xs.sort()\n    return xs\n",
    "xs = [2, 1]\nassert f(xs) is xs and xs == [1, 2]",
    "f",
)
case(
    PASSED,
    "result: the NaN it was given",
    "def f(xs):\n    return list(xs)\n",
    "nan = float('nan')\nassert f([nan, 1]) == [nan, 1]",
    "f",
)
case(
    PASSED,
    "result: a long list",
    "def f(n):\n    return list(range(n))\n",
    "assert f(100_000) == list(range(100_000))\nassert sum(f(1000)) == 499500",
    "f",
)
case(
    PASSED,
    "result: precision",
    "import decimal\ndecimal.getcontext().prec = 50\ndef f():\n    return decimal.Decimal(1) / 7\n",
    "assert len(str(f())) == 52",
    "f",
)


# ------------------------------------------------------------------------------------------------ arguments, changes and state

case(
    PASSED,
    "state: sorts in place",
    "def f(xs):\n    xs.sort(reverse=True)\n",
    "xs = [1, 3, 2]\nassert f(xs) is None\nassert xs == [3, 2, 1]",
    "f",
)
case(
    PASSED,
    "state: changes a dict",
    "def f(d):\n    d.pop('a')\n    d['b'] = [1]\n    return len(d)\n",
    "d = {'a': 1, 'c': 2}\nassert f(d) == 2 and d == {'c': 2, 'b': [1]} and list(d) == ['c', 'b']",
    "f",
)
case(
    PASSED,
    "state: changes a set and a bytearray",
    "def f(s, b):\n    s.add(3)\n    b[0] = 120\n",
    "s, b = {1}, bytearray(b'ab')\nf(s, b)\nassert s == {1, 3} and b == bytearray(b'xb')",
    "f",
)
case(
    PASSED,
    "state: changes a grid in place",
    "def f(g):\n    for row in g:\n        row.reverse()\n",
    "g = [[1, 2], [3, 4]]\nfirst = g[0]\nf(g)\nassert g == [[2, 1], [4, 3]] and g[0] is first",
    "f",
)
case(
    PASSED,
    "state: changes a list inside a tuple",
    "def f(t):\n    t[0].append(1)\n",
    "t = ([], 2)\nf(t)\nassert t == ([1], 2)",
    "f",
)
case(
    PASSED,
    "state: changes a keyword argument",
    "def f(*, out):\n    out += [1]\n",
    "out = []\nf(out=out)\nassert out == [1]",
    "f",
)
case(
    PASSED,
    "state: one list as two arguments",
    "def f(a, b):\n    a.append(1)\n    return len(b)\n",
    "x = []\nassert f(x, x) == 1\nassert f([], []) == 0",
    "f",
)
case(
    PASSED,
    "state: one row twice",
    "def f(g):\n    g[0][0] = 1\n",
    "row = [0]\ng = [row, row]\nf(g)\nassert g == [[1], [1]] and row == [1]",
    "f",
)
case(
    PASSED,
    "state: swaps rows",
    "def f(g):\n    g[0], g[1] = g[1], g[0]\n",
    "a, b = [1], [2]\ng = [a, b]\nf(g)\nassert g[0] is b and g[1] is a",
    "f",
)
case(
    PASSED,
    "state: changes and raises",
    "def f(xs):\n    xs.append(1)\n    raise ValueError\n",
    "xs = []\ntry:\n    f(xs)\nexcept ValueError:\n    pass\nassert xs == [1]",
    "f",
)
case(
    PASSED,
    "state: leaves its argument alone",
    "def f(xs):\n    return sorted(xs)\n",
    "xs = [2, 1]\nassert f(xs) == [1, 2]\nassert xs == [2, 1]",
    "f",
)
case(
    PASSED,
    "state: makes its argument hold itself",
    "def f(xs):\n    xs.append(xs)\n",
    "xs = []\nf(xs)\nassert xs[0] is xs",
    "f",
)
case(
    PASSED,
    "state: Solution changes its argument",
    "class Solution:\n    def rotate(self, nums, k):\n        nums[:] = nums[-k:] + nums[:-k]\n",
    "def check(candidate):\n    nums = [1, 2, 3]\n    assert candidate(nums=nums, k=1) is None\n    assert nums == [3, 1, 2]",
    "Solution().rotate",
)
case(
    PASSED,
    "state: counts calls",
    "calls = 0\ndef f():\n    global calls\n    calls += 1\n    return calls\n",
    "for i in range(200):\n    assert f() == i + 1",
    "f",
)
case(
    PASSED,
    "state: keeps what it got",
    "memory = []\ndef f(x):\n    memory.append(x)\n    return memory\n",
    "f(1)\nassert f(2) == [1, 2]\nassert memory == [1, 2]",
    "f",
)
case(
    PASSED,
    "state: an attribute of the function",
    "def f():\n    f.calls += 1\n    return f.calls\nf.calls = 0\n",
    "assert f() == 1\nassert f() == 2 and f.calls == 2",
    "f",
)
case(
    PASSED,
    "state: several functions",
    "users = {}\ndef register(name):\n    users[name] = len(users)\n    return users[name]\ndef find(name):\n    return users.get(name)\n",
    "assert register('a') == 0 and register('b') == 1\nassert find('b') == 1 and find('c') is None\nassert users == {'a': 0, 'b': 1}",
    "register",
)
case(
    PASSED,
    "arguments: keywords and defaults",
    "def f(a, /, b=2, *args, c, d=4, **rest):\n    return (a, b, args, c, d, rest)\n",
    """
assert f(1, c=3) == (1, 2, (), 3, 4, {})
assert f(1, 5, 6, 7, c=8, x=9) == (1, 5, (6, 7), 8, 4, {'x': 9})
assert f(*[1], **{'c': 3}) == (1, 2, (), 3, 4, {})
""",
    "f",
)
case(
    PASSED,
    "arguments: callables",
    "def apply(f, *xs):\n    return [f(x) for x in xs]\n",
    """
assert apply(lambda x: x * 2, 1, 2) == [2, 4]
assert apply(len, 'ab', []) == [2, 0]
assert apply(str.upper, 'a') == ['A']
assert apply(int, '3') == [3]
""",
    "apply",
)
case(
    PASSED,
    "arguments: callables that change the tests' state",
    "def each(f, xs):\n    for x in xs:\n        f(x)\n",
    "seen = []\neach(seen.append, [1, 2])\nassert seen == [1, 2]",
    "each",
)
case(
    PASSED,
    "arguments: a callback raises",
    "def each(f, xs):\n    for x in xs:\n        f(x)\n",
    "def bad(x):\n    raise KeyError(x)\ntry:\n    each(bad, [1])\nexcept KeyError as e:\n    assert e.args == (1,)\nelse:\n    assert False",
    "each",
)
case(
    PASSED,
    "arguments: iterators",
    "def total(xs):\n    return sum(xs)\n",
    """
assert total(iter([1, 2])) == 3 and total(range(4)) == 6 and total(x for x in (1, 2)) == 3
it = iter([1, 2, 3])
next(it)
assert total(it) == 5 and list(it) == []
""",
    "total",
)
case(
    PASSED,
    "arguments: kinds that marshal would change",
    "import array\ndef kind(x):\n    return type(x).__name__\n",
    """
import array, collections
assert [kind(x) for x in (bytearray(), array.array('i'), memoryview(b''))] == ['bytearray', 'array', 'memoryview']
assert [kind(x) for x in (True, frozenset(), collections.OrderedDict())] == ['bool', 'frozenset', 'OrderedDict']
""",
    "kind",
)
case(
    PASSED,
    "arguments: objects of the tests",
    "def total(node):\n    return 0 if node is None else node.value + total(node.next)\n",
    """
class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next
assert total(Node(1, Node(2))) == 3
assert total(None) == 0
""",
    "total",
)
case(
    PASSED,
    "arguments: functions passed to builtins",
    "def square(x):\n    return x * x\n",
    """
import functools
assert list(map(square, [1, 2])) == [1, 4]
assert sorted([-2, 1], key=square) == [1, -2]
assert max([-3, 2], key=square) == -3
""",
    "square",
)


# -------------------------------------------------------------------------------------------------------------------- classes

for name, program, tests in [
    (
        "stack",
        """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self):
        if not self.items: raise IndexError('empty')
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __bool__(self): return bool(self.items)
""",
        """
s = Stack()
assert not s
s.push(1); s.push(2)
assert len(s) == 2 and s.pop() == 2
try:
    Stack().pop()
except IndexError as e:
    assert str(e) == 'empty'
else:
    assert False
""",
    ),
    (
        "operators",
        """
class Vector:
    def __init__(self, x, y): self.x, self.y = x, y
    def __add__(self, o): return Vector(self.x + o.x, self.y + o.y)
    def __mul__(self, k): return Vector(self.x * k, self.y * k)
    __rmul__ = __mul__
    def __neg__(self): return self * -1
    def __matmul__(self, o): return self.x * o.x + self.y * o.y
    def __abs__(self): return (self @ self) ** .5
    def __eq__(self, o): return isinstance(o, Vector) and (self.x, self.y) == (o.x, o.y)
    def __hash__(self): return hash((self.x, self.y))
    def __repr__(self): return f'Vector({self.x}, {self.y})'
    def __iter__(self): return iter((self.x, self.y))
    def __getitem__(self, i): return (self.x, self.y)[i]
""",
        """
v = Vector(1, 2) + 2 * Vector(1, 1)
assert v == Vector(3, 4) and v != Vector(0, 0) and abs(v) == 5
assert repr(-v) == 'Vector(-3, -4)'
assert list(v) == [3, 4] and v[0] == 3
assert len({v, Vector(3, 4)}) == 1
""",
    ),
    (
        "order",
        """
import functools
@functools.total_ordering
class Version:
    def __init__(self, s): self.key = tuple(map(int, s.split('.')))
    def __eq__(self, o): return self.key == o.key
    def __lt__(self, o): return self.key < o.key
""",
        "assert Version('1.2') < Version('1.10') and Version('2') >= Version('1.9')\nassert max(Version('1'), Version('2')) == Version('2')",
    ),
    (
        "container",
        """
class Bag:
    def __init__(self, xs): self.xs = list(xs)
    def __contains__(self, x): return x in self.xs
    def __len__(self): return len(self.xs)
    def __setitem__(self, i, x): self.xs[i] = x
    def __delitem__(self, i): del self.xs[i]
    def __getitem__(self, i): return self.xs[i]
""",
        "b = Bag('abc')\nassert 'a' in b and 'z' not in b\nb[0] = 'x'\ndel b[1]\nassert len(b) == 2 and list(b) == ['x', 'c']",
    ),
    (
        "context manager",
        """
class Log:
    def __init__(self): self.events = []
    def __enter__(self): self.events.append('in'); return self
    def __exit__(self, kind, value, trace): self.events.append(kind.__name__ if kind else 'out')
""",
        """
log = Log()
with log as l:
    assert l is log
try:
    with log:
        raise KeyError
except KeyError:
    pass
assert log.events == ['in', 'out', 'in', 'KeyError']
""",
    ),
    (
        "properties",
        """
class Celsius:
    def __init__(self, t): self.t = t
    @property
    def fahrenheit(self): return self.t * 9 / 5 + 32
    @fahrenheit.setter
    def fahrenheit(self, f): self.t = (f - 32) * 5 / 9
    @classmethod
    def boiling(cls): return cls(100)
    @staticmethod
    def zero(): return -273.15
""",
        "c = Celsius(0)\nc.fahrenheit = 212\nassert c.t == 100 and Celsius.boiling().fahrenheit == 212 and Celsius.zero() == -273.15",
    ),
    (
        "dataclass",
        """
import dataclasses
@dataclasses.dataclass(order=True, frozen=True)
class P:
    x: int
    y: int = 0
def mirror(p): return dataclasses.replace(p, x=-p.x)
""",
        """
assert mirror(P(1, 2)) == P(-1, 2) and P(1) < P(2)
assert sorted([P(2), P(1)]) == [P(1), P(2)]
try:
    P(1).x = 2
except AttributeError:
    pass
else:
    assert False
""",
    ),
    (
        "enum",
        """
import enum
class Color(enum.Enum):
    RED = 1
    BLUE = 2
def other(c): return Color.BLUE if c is Color.RED else Color.RED
""",
        "assert other(Color.RED) is Color.BLUE and other(Color.BLUE) == Color.RED and Color(1).name == 'RED'",
    ),
    (
        "NamedTuple",
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: int = 0\n",
        "assert P(1) == (1, 0) and P(1)._replace(y=2).y == 2",
    ),
    (
        "abstract",
        """
import abc
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
class Square(Shape):
    def __init__(self, a): self.a = a
    def area(self): return self.a ** 2
""",
        "assert Square(3).area() == 9 and issubclass(Square, Shape)\ntry:\n    Shape()\nexcept TypeError:\n    pass\nelse:\n    assert False",
    ),
    (
        "iterator",
        """
class Countdown:
    def __init__(self, n): self.n = n
    def __iter__(self): return self
    def __next__(self):
        if self.n == 0: raise StopIteration
        self.n -= 1
        return self.n + 1
""",
        "assert list(Countdown(3)) == [3, 2, 1]",
    ),
    (
        "callable",
        "class Adder:\n    def __init__(self, n): self.n = n\n    def __call__(self, x): return x + self.n\n",
        "assert Adder(2)(3) == 5",
    ),
    (
        "metaclass",
        """
class Registry(type):
    seen = []
    def __init__(cls, *a):
        super().__init__(*a)
        Registry.seen.append(cls.__name__)
class A(metaclass=Registry): pass
class B(A): pass
""",
        "assert Registry.seen == ['A', 'B']\nassert type(B) is Registry",
    ),
    (
        "singleton",
        "class One:\n    it = None\n    def __new__(cls):\n        cls.it = cls.it or super().__new__(cls)\n        return cls.it\n",
        "assert One() is One()",
    ),
    (
        "slots",
        "class P:\n    __slots__ = ('x',)\n    def __init__(self, x): self.x = x\n",
        "p = P(1)\np.x = 2\nassert p.x == 2\ntry:\n    p.y = 1\nexcept AttributeError:\n    pass\nelse:\n    assert False",
    ),
    (
        "generic",
        "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass Box(Generic[T]):\n    def __init__(self, x: T): self.x = x\n",
        "assert Box[int](3).x == 3",
    ),
    (
        "subclass of a builtin",
        """
class Stats(list):
    def mean(self): return sum(self) / len(self)
class Lower(dict):
    def __missing__(self, k): return self[k.lower()]
""",
        "s = Stats([1, 2, 3])\nassert s.mean() == 2 and s == [1, 2, 3] and s[1:] == [2, 3]\nassert Lower(a=1)['A'] == 1",
    ),
    (
        "linked list",
        """
class ListNode:
    def __init__(self, val=0, next=None): self.val, self.next = val, next
def build(xs): return ListNode(xs[0], build(xs[1:])) if xs else None
def reverse(node):
    before = None
    while node: node.next, before, node = before, node, node.next
    return before
""",
        """
n = reverse(build([1, 2, 3]))
out = []
while n:
    out.append(n.val)
    n = n.next
assert out == [3, 2, 1]
assert reverse(None) is None
""",
    ),
    (
        "object without comparisons",
        "class Node:\n    def __init__(self, v): self.v = v\ndef make(v): return Node(v)\n",
        "n = make(3)\nassert n.v == 3 and n == n and n != make(3)",
    ),
]:
    case(PASSED, f"class: {name}", program, tests, "")


# ---------------------------------------------------------------------------------------------------------- tests, unusual

case(
    PASSED,
    "tests: own exception",
    """
class TooSmall(ValueError):
    def __init__(self, n):
        super().__init__(f'{n} is too small')
        self.n = n
def f(n):
    if n < 0:
        raise TooSmall(n)
    return n
""",
    "assert f(1) == 1\ntry:\n    f(-1)\nexcept TooSmall as e:\n    assert e.n == -1 and str(e) == '-1 is too small'\nelse:\n    assert False",
    "f",
)
case(
    PASSED,
    "tests: own exception by its base",
    "class TooSmall(ValueError): pass\ndef f(n):\n    if n < 0:\n        raise TooSmall('no')\n    return n\n",
    "assert f(1) == 1\ntry:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'no' in str(e)",
    "f",
)
case(
    PASSED,
    "tests: builtin exceptions",
    """
def f(kind):
    return {'key': lambda: {}['k'], 'zero': lambda: 1 / 0, 'file': lambda: open('nowhere'), 'int': lambda: int('x'),
            'decode': lambda: b'\\xff'.decode()}[kind]()
""",
    """
import errno
def error(kind):
    try:
        f(kind)
    except Exception as e:
        return e
assert error('key').args == ('k',) and type(error('key')) is KeyError
assert isinstance(error('zero'), ZeroDivisionError) and isinstance(error('zero'), ArithmeticError)
assert error('file').errno == errno.ENOENT and error('file').filename == 'nowhere' and type(error('file')) is FileNotFoundError
assert error('decode').start == 0 and error('decode').reason == 'invalid start byte'
assert "invalid literal" in str(error('int'))
""",
    "f",
)
case(
    PASSED,
    "tests: an assertion of the program, expected",
    "def f(n):\n    assert n > 0, 'positive'\n    return n\n",
    "assert f(1) == 1\ntry:\n    f(-1)\nexcept AssertionError as e:\n    assert str(e) == 'positive'\nelse:\n    raise RuntimeError",
    "f",
)
case(
    PASSED,
    "tests: a helper for errors",
    "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return x ** .5\n",
    """
def raises(kind, g, *args):
    try:
        g(*args)
    except kind:
        return True
    return False
assert raises(ValueError, f, -1)
assert not raises(ValueError, f, 4)
""",
    "f",
)
case(
    PASSED,
    "tests: random cases and a reference",
    "def f(xs):\n    return sorted(xs)[::-1]\n",
    """
import random
def reference(xs):
    return list(reversed(sorted(xs)))
rng = random.Random(42)
for n in range(100):
    xs = [rng.randint(-9, 9) for _ in range(n)]
    assert f(list(xs)) == reference(xs), f'{xs} gave {f(xs)}'
""",
    "f",
)
case(
    PASSED,
    "tests: share the state of random",
    "import random\ndef roll():\n    return random.randint(1, 10 ** 9)\n",
    "import random\nrandom.seed(42)\nexpected = random.randint(1, 10 ** 9)\nrandom.seed(42)\nassert roll() == expected",
    "roll",
)
case(
    PASSED,
    "tests: read what the function prints",
    "def hello(name):\n    print(f'Hello, {name}!')\n",
    """
import contextlib, io
out = io.StringIO()
with contextlib.redirect_stdout(out):
    hello('you')
assert out.getvalue() == 'Hello, you!\\n'
""",
    "hello",
)
case(
    PASSED,
    "tests: replace input",
    "def ask():\n    return int(input('n? ')) + 1\n",
    "from unittest.mock import patch\nwith patch('builtins.input', return_value='5'):\n    assert ask() == 6",
    "ask",
)
case(
    PASSED,
    "tests: set the environment",
    "import os\ndef home():\n    return os.environ.get('RA3_CORPUS', 'none')\n",
    "import os\nassert home() == 'none'\nos.environ['RA3_CORPUS'] = 'x'\nassert home() == 'x'",
    "home",
)
case(
    PASSED,
    "tests: use two functions of the program",
    "import math\ndef poly(xs, x):\n    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\ndef zero(xs):\n    return -xs[0] / xs[1]\n",
    """
def check(candidate):
    import math, random
    rng = random.Random(1)
    for _ in range(50):
        xs = [rng.randint(-9, 9), rng.randint(1, 9)]
        assert math.fabs(poly(xs, candidate(list(xs)))) < 1e-4
""",
    "zero",
)
case(
    PASSED,
    "tests: use a module that the program imported",
    "import math\nfrom typing import List\ndef area(r):\n    return math.pi * r * r\n",
    "assert math.isclose(area(2), 4 * math.pi)",
    "area",
)
case(
    PASSED,
    "tests: use a constant of the program",
    "LIMIT = 7\ntable = {'a': [1]}\ndef f():\n    return LIMIT\n",
    "assert f() == LIMIT == 7\nassert table['a'] == [1]",
    "f",
)
case(
    PASSED,
    "tests: tolerance",
    "def mean(xs):\n    return sum(xs) / len(xs)\n",
    """
import math
assert abs(mean([.1, .2, .3]) - .2) < 1e-9
assert math.isclose(mean([1, 2]), 1.5, rel_tol=1e-9)
assert round(mean([1, 1, 2]), 3) == 1.333
""",
    "mean",
)
case(
    PASSED,
    "tests: print",
    RIGHT,
    "print('start')\nfor a in range(3):\n    print(a, add(a, a), flush=True)\n    assert add(a, a) == 2 * a\nimport sys\nsys.stderr.write('done')",
)
case(PASSED, "tests: print a lot", RIGHT, "print('x' * 500_000)\n" + ADD)
case(
    PASSED,
    "tests: shapes of assertions",
    "def f(x):\n    return None if x < 0 else x\n",
    """
assert f(-1) is None
assert not f(0)
assert f(1) == f(1) == 1
assert (f(1), f(2)) == (1, 2), 'message'
assert [f(i) for i in range(3)] == [0, 1, 2]
assert all(f(i) == i for i in range(9)) and any(f(i) for i in range(2))
assert {f(1): f(2)} == {1: 2} and f(3) in (3, 4) and f(4) not in [5]
assert f(5) == 6 or f(5) == 5
assert 0 < f(2) <= 2
assert (lambda y: y + f(y))(1) == 2
assert isinstance(f(2), int) and type(f(2.0)) is float
if True: assert f(7) == 7
assert (n := f(8)) and n == 8
""",
    "f",
)
case(
    PASSED,
    "tests: ask about the function",
    "def add(a, b=2):\n    '''Adds.'''\n    return a + b\n",
    """
import inspect
assert callable(add) and add.__name__ == 'add' and add.__doc__ == 'Adds.'
assert list(inspect.signature(add).parameters) == ['a', 'b'] and add.__defaults__ == (2,)
assert add(1) == 3
""",
)
case(
    PASSED,
    "tests: classes and functions of their own",
    RIGHT,
    """
import dataclasses
@dataclasses.dataclass
class Case:
    a: int
    b: int
    out: int
class Test:
    cases = [Case(1, 2, 3), Case(0, 0, 0)]
    def run(self):
        for c in self.cases:
            assert add(c.a, c.b) == c.out, c
Test().run()
""",
)
case(PASSED, "tests: CRLF", RIGHT, ADD.replace("\n", "\r\n"))
case(
    PASSED,
    "tests: no newline, a docstring, unicode",
    RIGHT,
    "'''Tests. \u2713'''\nassert add('h\u00e9', '\U0001f600') == 'h\u00e9\U0001f600'",
)
case(
    PASSED,
    "tests: thousands of calls",
    RIGHT,
    "for i in range(2000):\n    assert add(i, 1) == i + 1",
)
case(
    PASSED,
    "tests: with, del, global, walrus, star",
    RIGHT,
    """
import contextlib
n = 0
def bump():
    global n
    n += add(1, 0)
with contextlib.suppress(ValueError):
    bump()
first, *rest = [add(i, 0) for i in range(3)]
del first
assert n == 1 and rest == [1, 2]
""",
)
case(
    PASSED,
    "tests: a coroutine of their own",
    "import asyncio\nasync def fetch(x):\n    await asyncio.sleep(0)\n    return x * 2\n",
    """
import asyncio
async def main():
    assert await fetch(2) == 4
    assert await asyncio.gather(fetch(1), fetch(2)) == [2, 4]
asyncio.run(main())
""",
    "fetch",
)
case(
    PASSED,
    "tests: call the program from threads",
    RIGHT,
    """
import threading
out = []
ts = [threading.Thread(target=lambda i=i: out.append(add(i, i))) for i in range(4)]
for t in ts: t.start()
for t in ts: t.join()
assert sorted(out) == [0, 2, 4, 6]
""",
)
case(
    PASSED,
    "tests: compare whole structures",
    "def group(words):\n    out = {}\n    for w in words:\n        out.setdefault(len(w), []).append(w)\n    return out\n",
    "assert group(['a', 'bb', 'c']) == {1: ['a', 'c'], 2: ['bb']}\nassert set(map(tuple, group(['x']).values())) == {('x',)}",
    "group",
)
LEETCODE = """
from typing import *
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
def is_same_list(a, b):
    while a and b and a.val == b.val:
        a, b = a.next, b.next
    return not a and not b
class Solution:
    def reverse(self, head: Optional[ListNode]) -> Optional[ListNode]:
        before = None
        while head:
            head.next, before, head = before, head, head.next
        return before
"""
LEETCODE_TESTS = """
def check(candidate):
    assert is_same_list(candidate(head = list_node([1, 2, 3])), list_node([3, 2, 1]))
    assert is_same_list(candidate(head = list_node([])), list_node([]))
"""
case(PASSED, "tests: lists of LeetCode", LEETCODE, LEETCODE_TESTS, "Solution().reverse")
case(
    WRONG_ANSWER,
    "tests: lists of LeetCode, wrong",
    LEETCODE.replace("return before", "return head"),
    LEETCODE_TESTS,
    "Solution().reverse",
)
case(
    WRONG_ANSWER,
    "tests: in a thread of the tests",
    WRONG,
    "import threading\nout = []\nt = threading.Thread(target=lambda: out.append(add(1, 2)))\nt.start(); t.join()\nassert out == [3]",
)
case(
    WRONG_ANSWER,
    "tests: the message raises",
    WRONG,
    "assert add(1, 2) == 3, f'{add(1, 2)} is wrong'",
)
case(
    EXCEPTION,
    "tests: raise something else",
    RIGHT,
    "assert add(1, 2) == 3\nraise KeyError('in the tests')",
)


# ---------------------------------------------------------------------------------------------------------------- stdio: input

for name, program in [
    ("input", SUM_RIGHT),
    ("sys.stdin.readline", "import sys\nprint(sum(map(int, sys.stdin.readline().split())))\n"),
    ("sys.stdin.read", "import sys\nprint(sum(map(int, sys.stdin.read().split())))\n"),
    (
        "sys.stdin.readlines",
        "import sys\nprint(sum(int(x) for line in sys.stdin.readlines() for x in line.split()))\n",
    ),
    ("iteration", "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))\n"),
    ("sys.stdin.buffer", "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))\n"),
    (
        "sys.stdin.buffer.readline",
        "import sys\ninput = sys.stdin.buffer.readline\nprint(sum(map(int, input().split())))\n",
    ),
    ("open(0)", "print(sum(map(int, open(0).read().split())))\n"),
    ("open(0, 'rb')", "data = open(0, 'rb').read().split()\nprint(int(data[0]) + int(data[1]))\n"),
    ("iteration over open(0)", "for line in open(0):\n    print(sum(map(int, line.split())))\n"),
    ("os.read", "import os\nprint(sum(map(int, os.read(0, 1 << 20).split())))\n"),
    (
        "fstat",
        "import os, stat\ns = os.fstat(0)\nassert stat.S_ISREG(s.st_mode) and s.st_size > 0\nprint(sum(map(int, os.read(0, s.st_size).split())))\n",
    ),
    (
        "mmap",
        "import mmap\nwith mmap.mmap(0, 0, access=mmap.ACCESS_READ) as m:\n    print(sum(map(int, m.read().split())))\n",
    ),
    ("/dev/stdin", "print(sum(map(int, open('/dev/stdin').read().split())))\n"),
    (
        "fileinput",
        "import fileinput\nfor line in fileinput.input():\n    print(sum(map(int, line.split())))\n",
    ),
    (
        "reads twice",
        "import sys\nfirst = sys.stdin.read()\nsys.stdin.seek(0)\nassert sys.stdin.read() == first\nprint(sum(map(int, first.split())))\n",
    ),
    (
        "until EOFError",
        "while True:\n    try:\n        print(sum(map(int, input().split())))\n    except EOFError:\n        break\n",
    ),
    (
        "iter(input)",
        "import sys\nfor line in iter(sys.stdin.readline, ''):\n    print(sum(map(int, line.split())))\n",
    ),
    (
        "replaced stdin",
        "import io, os, sys\nsys.stdin = io.TextIOWrapper(io.BytesIO(os.read(0, os.fstat(0).st_size)))\nprint(sum(map(int, input().split())))\n",
    ),
    (
        "reopened stdin",
        "import os, sys\nsys.stdin = os.fdopen(0)\nprint(sum(map(int, sys.stdin.readline().split())))\n",
    ),
    (
        "properties of stdin",
        """
import sys
assert not sys.stdin.isatty() and sys.stdin.fileno() == 0 and sys.__stdin__ is sys.stdin
assert sys.stdin.mode == 'r' and sys.stdin.name == '<stdin>' and sys.stdin.encoding.lower() == 'utf-8'
"""
        + SUM_RIGHT,
    ),
    ("select", "import select, sys\nassert select.select([sys.stdin], [], [], 0)[0]\n" + SUM_RIGHT),
    (
        "a thread with a large stack",
        """
import sys, threading
sys.setrecursionlimit(1 << 25)
threading.stack_size(1 << 27)
def main():
    print(sum(map(int, input().split())))
t = threading.Thread(target=main)
t.start()
t.join()
""",
    ),
    (
        "only one token read",
        "import sys\nread = lambda: int(next(tokens))\ntokens = (t for line in sys.stdin for t in line.split())\nprint(read() + read())\n",
    ),
    (
        "a closed stdin afterwards",
        "import sys\ndata = sys.stdin.read()\nsys.stdin.close()\nprint(sum(map(int, data.split())))\n",
    ),
]:
    case(PASSED, f"input: {name}", program, SUM)
case(
    PASSED,
    "input: the fast reader of contests",
    """
import os
import sys
from io import BytesIO, IOBase

BUFSIZE = 8192


class FastIO(IOBase):
    newlines = 0

    def __init__(self, file):
        self._file = file
        self._fd = file.fileno()
        self.buffer = BytesIO()
        self.writable = "x" in file.mode or "r" not in file.mode
        self.write = self.buffer.write if self.writable else None

    def read(self):
        while True:
            b = os.read(self._fd, max(os.fstat(self._fd).st_size, BUFSIZE))
            if not b:
                break
            ptr = self.buffer.tell()
            self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)
        self.newlines = 0
        return self.buffer.read()

    def readline(self):
        while self.newlines == 0:
            b = os.read(self._fd, max(os.fstat(self._fd).st_size, BUFSIZE))
            self.newlines = b.count(b"\\n") + (not b)
            ptr = self.buffer.tell()
            self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)
        self.newlines -= 1
        return self.buffer.readline()

    def flush(self):
        if self.writable:
            os.write(self._fd, self.buffer.getvalue())
            self.buffer.truncate(0), self.buffer.seek(0)


class IOWrapper(IOBase):
    def __init__(self, file):
        self.buffer = FastIO(file)
        self.flush = self.buffer.flush
        self.writable = self.buffer.writable
        self.write = lambda s: self.buffer.write(s.encode("ascii"))
        self.read = lambda: self.buffer.read().decode("ascii")
        self.readline = lambda: self.buffer.readline().decode("ascii")


sys.stdin, sys.stdout = IOWrapper(sys.stdin), IOWrapper(sys.stdout)
input = lambda: sys.stdin.readline().rstrip("\\r\\n")
print(sum(map(int, input().split())))
sys.stdout.flush()
""",
    SUM,
)
LINES = "import sys\nlines = sys.stdin.read().split('\\n')\nprint(len(lines), repr(lines[-1]))\n"
case(
    PASSED,
    "input: as it is",
    LINES,
    [
        {"input": "a\nb\n", "output": "3 ''"},
        {"input": "a\nb", "output": "2 'b'"},
        {"input": "", "output": "1 ''"},
        {"input": "a\r\nb\r", "output": "2 'b\\r'"},
    ],
)
case(
    PASSED,
    "input: CRLF",
    "n = int(input())\nprint(n, input().split())\n",
    [{"input": "3\r\na b\r\n", "output": "3 ['a', 'b']"}],
)
case(
    PASSED,
    "input: unicode",
    "s = input()\nprint(len(s), s[::-1])\n",
    [{"input": "h\u00e9\U0001f600", "output": "3 \U0001f600\u00e9h"}],
)
case(
    PASSED,
    "input: large",
    "print(sum(map(int, open(0))))\n",
    [{"input": "7\n" * 300_000, "output": "2100000"}],
)
case(
    PASSED,
    "input: not all of it is read",
    "print(input())\n",
    [{"input": "1\n" + "2\n" * 100_000, "output": "1"}],
)
case(
    PASSED,
    "input: numpy",
    "import sys, numpy as np\nprint(int(np.array(sys.stdin.read().split(), dtype=np.int64).sum()))\n",
    SUM,
    time_limit=10.0,
)
NEEDS["input: numpy"] = "numpy"
case(EXCEPTION, "input: more than there is", SUM_RIGHT + "input()\n", SUM)
case(EXCEPTION, "input: of another form", "n = int(input())\nprint(n)\n", SUM)


# ---------------------------------------------------------------------------------------------------------------- stdio: output

READ = "a, b = map(int, input().split())\n"
for name, program in [
    ("sys.stdout.write", READ + "import sys\nsys.stdout.write(str(a + b))\n"),
    ("writelines", READ + "import sys\nsys.stdout.writelines([str(a + b), '\\n'])\n"),
    ("sys.stdout.buffer", READ + "import sys\nsys.stdout.buffer.write(b'%d\\n' % (a + b))\n"),
    ("os.write", READ + "import os\nos.write(1, str(a + b).encode())\n"),
    ("open(1)", READ + "print(a + b, file=open(1, 'w'))\n"),
    (
        "StringIO",
        READ
        + "import io, sys\nsys.stdout = io.StringIO()\nprint(a + b)\nsys.__stdout__.write(sys.stdout.getvalue())\n",
    ),
    (
        "at exit",
        READ
        + """
import atexit, io, os, sys
sys.stdout = io.BytesIO()
atexit.register(lambda: os.write(1, sys.stdout.getvalue()))
sys.stdout.write(b'%d' % (a + b))
""",
    ),
    (
        "print replaced",
        READ
        + "import builtins, sys\nbuiltins.print = lambda *a: sys.stdout.write(' '.join(map(str, a)) + '\\n')\nprint(a + b)\n",
    ),
    (
        "reconfigured",
        READ
        + "import sys\nsys.stdout.reconfigure(line_buffering=True, encoding='ascii')\nprint(a + b, flush=True)\n",
    ),
    ("closed afterwards", READ + "import sys\nprint(a + b)\nsys.stdout.close()\n"),
    (
        "properties of stdout",
        READ
        + """
import sys
assert not sys.stdout.isatty() and sys.stdout.fileno() == 1 and sys.__stdout__ is sys.stdout
assert sys.stdout.mode == 'w' and sys.stdout.encoding.lower() == 'utf-8'
print(a + b)
""",
    ),
    ("blanks around it", READ + "print('\\n', a + b, '  \\n\\n')\n"),
    ("CRLF", READ + "print(a + b, end='\\r\\n')\n"),
    ("as a float", READ + "print(float(a + b))\n"),
    ("with an exponent", READ + "print(f'{a + b:e}')\n"),
    (
        "notes on stderr",
        READ + "import sys\nprint('debug ' * 1000, file=sys.stderr)\nprint(a + b)\n",
    ),
    (
        "by a thread after the end",
        READ
        + "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), print(a + b))).start()\n",
    ),
    (
        "by a child",
        READ
        + "import os\nif os.fork() == 0:\n    print(a + b, flush=True)\n    os._exit(0)\nos.wait()\n",
    ),
    (
        "from the __main__ block",
        "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()\n",
    ),
    ("__main__ is this program", READ + "import __main__\n__main__.total = a + b\nprint(total)\n"),
    (
        "a pickled class",
        READ
        + "import pickle\nclass P:\n    def __init__(self, x): self.x = x\nprint(pickle.loads(pickle.dumps(P(a + b))).x)\n",
    ),
    (
        "a dataclass with future annotations",
        "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\n"
        + READ
        + "print(P(a + b).x)\n",
    ),
    (
        "a global changed by a function",
        "total = 0\ndef add(x):\n    global total\n    total += x\nfor x in input().split():\n    add(int(x))\nprint(total)\n",
    ),
    ("byte order mark", "\ufeff" + SUM_RIGHT),
    ("CRLF source", SUM_RIGHT.replace("\n", "\r\n")),
    (
        "encoding comment",
        "#!/usr/bin/python3\n# coding: utf-8\nname = 'h\u00e9'\nassert len(name) == 2\n"
        + SUM_RIGHT,
    ),
    (
        "asyncio",
        "import asyncio\nasync def main():\n    print(sum(map(int, input().split())))\nasyncio.run(main())\n",
    ),
    ("own alarm", "import signal\nsignal.alarm(30)\n" + SUM_RIGHT),
    (
        "doctest",
        """
def add(a, b):
    '''
    >>> add(1, 2)
    3
    '''
    return a + b
if __name__ == '__main__':
    import doctest
    assert doctest.testmod().attempted == 1
    print(add(*map(int, input().split())))
""",
    ),
    (
        "stack limit and recursion",
        """
import resource, sys
hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
sys.setrecursionlimit(10 ** 6)
def depth(n):
    return n and 1 + depth(n - 1)
depth(40000)
"""
        + SUM_RIGHT,
    ),
    (
        "a daemon thread stays",
        SUM_RIGHT
        + "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
    ),
    (
        "a scratch file",
        READ
        + "with open('scratch', 'w') as f:\n    f.write(str(a + b))\nprint(open('scratch').read())\n",
    ),
]:
    case(PASSED, f"stdout: {name}", program, SUM)
case(
    PASSED,
    "stdout: unicode",
    "print(input() + '\\u2713')\n",
    [{"input": "h\u00e9", "output": "h\u00e9\u2713"}],
)
case(
    PASSED,
    "stdout: nothing, as expected",
    "n = int(input())\nif n > 0:\n    print(n)\n",
    [{"input": "5", "output": "5"}, {"input": "-1", "output": ""}],
)
case(
    PASSED,
    "stdout: numbers, token by token",
    "print('YES')\nprint(1.50, 2, '3e2')\n",
    [{"input": "", "output": "YES\n1.5 2.0 300\n"}],
)
case(
    PASSED,
    "stdout: many lines",
    "for i in range(50_000):\n    print(i, i * i)\n",
    [{"input": "", "output": "".join(f"{i} {i * i}\n" for i in range(50_000))}],
)
case(PASSED, "stdout: huge integers", "print(3 ** 5000)\n", [{"input": "", "output": str(3**5000)}])

for name, program in [
    ("nothing", ""),
    ("nothing, it is in a function", "def main():\n    print(sum(map(int, input().split())))\n"),
    ("too little", READ + "print(a + b if a > 0 else '')\n"),
    ("too much", SUM_RIGHT + "print('done')\n"),
    ("a prompt", "a, b = map(int, input('numbers? ').split())\nprint(a + b)\n"),
    ("to stderr", READ + "import sys\nprint(a + b, file=sys.stderr)\n"),
    ("digits apart", READ + "print(*str(a + b + 10))\n"),
    ("nearly", READ + "print(a + b + 1e-9)\n"),
    ("NaN", "print('nan')\n"),
    ("signalling NaN", "print('sNaN')\n"),
    ("infinity", "print('Infinity')\n"),
    ("a vast exponent", "print('1e999999999')\n"),
    ("not UTF-8", READ + "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')\n"),
    ("null bytes", READ + "print(a + b, end='\\0')\n"),
    ("as a word", READ + "print({3: 'three', 0: 'zero'}[a + b])\n"),
    ("the input", "print(input())\n"),
    ("the same for all", "print(3)\n"),
    ("os._exit before the flush", SUM_RIGHT + "import os\nos._exit(0)\n"),
    (
        "by a daemon thread, too late",
        READ
        + "import threading, time\nthreading.Thread(target=lambda: (time.sleep(1), print(a + b, flush=True)), daemon=True).start()\n",
    ),
    ("exits before it", "import sys\nsys.exit(0)\n" + SUM_RIGHT),
    ("exits with os._exit before it", "import os\nos._exit(0)\n"),
    ("stdout replaced and never shown", "import io, sys\nsys.stdout = io.StringIO()\n" + SUM_RIGHT),
    (
        "files beside the input",
        """
import glob, os
here = os.path.realpath('/proc/self/fd/0')
asked = open(0).read()
for name in glob.glob(os.path.dirname(here) + '/*') + glob.glob('*') + glob.glob('../*'):
    try:
        with open(name) as f:
            text = f.read(100)
        if text.strip() in ('3', '0'):
            print(text)
    except (OSError, UnicodeDecodeError):
        pass
""",
    ),
    (
        "the expected output in memory",
        """
import gc
found = [x for x in gc.get_objects() if isinstance(x, dict) and 'output' in x]
print(found[0]['output'] if found else '')
""",
    ),
]:
    case(WRONG_ANSWER, f"stdout wrong: {name}", program, SUM)
case(WRONG_ANSWER, "stdout wrong: case", "print('Yes')\n", [{"input": "", "output": "YES"}])
case(
    WRONG_ANSWER,
    "stdout wrong: order of lines",
    "print(2)\nprint(1)\n",
    [{"input": "", "output": "1\n2\n"}],
)
case(
    WRONG_ANSWER,
    "stdout wrong: one line for two",
    "print(1, 2)\n",
    [{"input": "", "output": "1\n2\n"}],
)
case(
    WRONG_ANSWER,
    "stdout wrong: two lines for one",
    "print(1)\nprint(2)\n",
    [{"input": "", "output": "1 2\n"}],
)
case(
    WRONG_ANSWER,
    "stdout wrong: fewer digits",
    "print(0.3333)\n",
    [{"input": "", "output": "0.33333"}],
)
case(
    WRONG_ANSWER,
    "stdout wrong: last of three tests",
    "n = int(input())\nprint(n if n < 3 else 0)\n",
    [{"input": str(i), "output": str(i)} for i in (1, 2, 3)],
)
case(
    WRONG_ANSWER,
    "stdout wrong: a list's brackets",
    "print([1, 2])\n",
    [{"input": "", "output": "1 2"}],
)
case(
    WRONG_ANSWER,
    "stdout wrong: remembers the last test",
    """
try:
    n = int(open('memory').read())
except OSError:
    n = 0
open('memory', 'w').write(str(n + 1))
print(n)
""",
    [{"input": "", "output": "0"}, {"input": " ", "output": "1"}],
)


# ------------------------------------------------------------------------------------------------------------ stdio: the end

for name, program in [
    ("sys.exit()", SUM_RIGHT + "import sys\nsys.exit()\n"),
    ("sys.exit(0)", SUM_RIGHT + "import sys\nsys.exit(0)\n"),
    ("exit()", SUM_RIGHT + "exit()\n"),
    ("quit()", SUM_RIGHT + "quit()\n"),
    ("SystemExit", SUM_RIGHT + "raise SystemExit\n"),
    (
        "exit in a function",
        "def main():\n    print(sum(map(int, input().split())))\n    exit(0)\nmain()\n",
    ),
    ("os._exit after the flush", SUM_RIGHT + "import os, sys\nsys.stdout.flush()\nos._exit(0)\n"),
    (
        "sys.exit in a thread",
        SUM_RIGHT + "import sys, threading\nthreading.Thread(target=sys.exit, args=(1,)).start()\n",
    ),
    ("an exit handler fails", SUM_RIGHT + "import atexit\natexit.register(lambda: 1 / 0)\n"),
]:
    case(PASSED, f"end: {name}", program, SUM)
case(ABNORMAL, "end: sys.exit(1)", SUM_RIGHT + "import sys\nsys.exit(1)\n", SUM)
case(ABNORMAL, "end: sys.exit(message)", SUM_RIGHT + "import sys\nsys.exit('done')\n", SUM)
case(
    ABNORMAL,
    "end: os._exit(3)",
    SUM_RIGHT + "import os, sys\nsys.stdout.flush()\nos._exit(3)\n",
    SUM,
)
case(
    ABNORMAL,
    "end: killed",
    SUM_RIGHT + "import os, sys\nsys.stdout.flush()\nos.kill(os.getpid(), 9)\n",
    SUM,
)
case(
    ABNORMAL,
    "end: terminated",
    SUM_RIGHT
    + "import os, sys, signal\nsys.stdout.flush()\nos.kill(os.getpid(), signal.SIGTERM)\n",
    SUM,
)
case(ABNORMAL, "end: abort", SUM_RIGHT + "import os, sys\nsys.stdout.flush()\nos.abort()\n", SUM)
case(
    ABNORMAL,
    "end: segmentation fault",
    SUM_RIGHT + "import ctypes, sys\nsys.stdout.flush()\nctypes.string_at(0)\n",
    SUM,
)
case(ABNORMAL, "end: wrong, and exit status 1", SUM_WRONG + "exit(1)\n", SUM)
case(EXCEPTION, "end: an error after the answer", SUM_RIGHT + "1 / 0\n", SUM)
case(
    EXCEPTION,
    "end: an error after the flush",
    SUM_RIGHT + "import sys\nsys.stdout.flush()\nraise ValueError\n",
    SUM,
)
case(EXCEPTION, "end: an error before the answer", "1 / 0\n" + SUM_RIGHT, SUM)
case(
    EXCEPTION, "end: an error in the last test only", SUM_RIGHT + "1 / a if a > 0 else 1 / 0\n", SUM
)
case(EXCEPTION, "end: an assertion", SUM_RIGHT + "assert a > b\n", SUM)
case(EXCEPTION, "end: a late syntax error", SUM_RIGHT + "exec('(')\n", SUM)
case(EXCEPTION, "end: no such module", "import no_such_module_xyz\n" + SUM_RIGHT, SUM)
case(EXCEPTION, "end: recursion", "def f():\n    return f()\n" + SUM_RIGHT + "f()\n", SUM)
case(
    EXCEPTION,
    "end: stdout closed before the answer",
    "import sys\nsys.stdout.close()\n" + SUM_RIGHT,
    SUM,
)
case(
    EXCEPTION + ABNORMAL, "end: KeyboardInterrupt", SUM_RIGHT + "raise KeyboardInterrupt\n", SUM
)  # open: Python ends by SIGINT
