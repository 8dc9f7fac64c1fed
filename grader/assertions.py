"""Tests, on the trainer's side.

Jobs that could not fail are refused, tests are made ready, outputs are compared.
"""

import ast
import builtins
import decimal
import functools
import itertools
import marshal
import math
import re
import symtable
import typing

CATCHES = {"suppress", "raises", "assertRaises", "assertRaisesRegex"}
OF_BUILTINS = set().union(
    *(dir(cls) for cls in (list, dict, str, set, tuple, int, float, bytes, bytearray))
)
DYNAMIC = {"globals", "locals", "vars", "eval", "exec", "dir"}  # may look up any name


def check_job(job, who):
    """Raises ValueError if the job cannot be graded, or could not fail."""
    if job.kind == "stdio":
        check_stdio(job.tests, who)
    elif job.kind == "assert":
        if not isinstance(job.tests, str) or not job.tests.strip():
            raise ValueError(f"{who} has no tests: everything would pass")
        if needs_entry(job.tests) and not job.entry_point.strip():
            raise ValueError(
                f"{who}: its tests define check(candidate), so it needs an entry_point"
            )
    else:
        raise ValueError(f"{who}: kind {job.kind!r}; expected assert or stdio")
    limit = job.time_limit
    if limit is not None and not is_limit(limit):
        raise ValueError(f"{who}: time_limit={limit} must be a positive, finite number")


def is_limit(value):
    """Is it a number above zero, and finite? Example: nan -> False"""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def check_stdio(tests, who):
    if not isinstance(tests, (list, tuple)) or not tests:
        raise ValueError(
            f"{who}: kind stdio needs a list of at least one {{'input', 'output'}} as tests; "
            "with none, everything would pass"
        )
    for test in tests:
        fields = test if isinstance(test, dict) else {}
        if not all(isinstance(fields.get(name), str) for name in ("input", "output")):
            raise ValueError(
                f"{who}: a stdio test is {{'input': text, 'output': text}}; given {str(test)[:60]}"
            )


def needs_entry(tests):
    """Do the tests define check(), and call it nowhere?"""
    defined = len(re.findall(r"^(?:async )?def check\(", tests, re.M))
    return defined and len(re.findall(r"\bcheck\(", tests)) == defined


class Prepared(typing.NamedTuple):
    """Tests made ready, in the order in which the tester reads them."""

    code: bytes  # marshalled
    entry: str
    calls_check: bool  # the tester calls check(entry)
    wanted: list  # names that the tests need of the program
    direct: int  # assertions that must hold
    any_assertion: bool  # at least one must
    catches: bool  # an assertion that fails may be caught
    judges: list  # names that the tests use as classes
    dynamic: bool  # names are looked up by their text
    constants: list  # texts in the tests
    uses: list  # modules and names that bring a state shared with the program
    preamble: bytes  # code that defines some of the names apart from the program; may be empty
    borrowed: list  # those names


class Instrument(ast.NodeTransformer):
    """Counts assertions that begin and that hold. A method called at once is one message.

    Names in <> cannot be a program's.
    """

    def helper(self, node, name, *args):
        return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), list(args), []), node)

    def visit_Assert(self, node):
        self.generic_visit(node)
        return [
            ast.copy_location(ast.Expr(self.helper(node, "<begun>")), node),
            node,
            ast.copy_location(ast.Expr(self.helper(node, "<held>")), node),
        ]

    def visit_Call(self, node):
        self.generic_visit(node)
        method = node.func
        if not isinstance(method, ast.Attribute) or method.attr.startswith("__"):
            return node
        node.func = self.helper(method, "<method>", method.value, ast.Constant(method.attr))
        return node


@functools.lru_cache(4096)
def prepare(tests, entry, preamble=""):
    """The tests as code that counts assertions -> Prepared.

    preamble: text in front of the program, not the program's, that may define names for the tests.
    Raises ValueError if they do not compile, or assert nothing that is ever run.
    """
    try:
        tree = ast.parse(tests)
        compile(tests, "<tests>", "exec", dont_inherit=True)
        entry_tree = ast.parse(entry or "None", mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise ValueError(f"the tests or the entry point do not compile: {e}") from None
    nodes = list(ast.walk(tree))
    named = names_in(nodes) | names_in(ast.walk(entry_tree))
    read, bound = global_names(tests)
    calls_check = bool(entry) and takes_candidate(tree) and "check" not in read
    live = nodes if named & DYNAMIC else reached(tree, calls_check)
    if not any(asserts(node) for node in live):
        raise ValueError("the tests assert nothing that is ever run: everything would pass")
    entry_names = names_in(ast.walk(entry_tree))
    wanted = {n for n in read - bound if n in entry_names or not hasattr(builtins, n)}
    code, borrowed = borrow(preamble, wanted - entry_names)
    tree = ast.fix_missing_locations(Instrument().visit(ast.parse(tests)))
    return Prepared(
        code=marshal.dumps(compile(tree, "<tests>", "exec", dont_inherit=True)),
        entry=entry,
        calls_check=calls_check,
        wanted=sorted(wanted),
        direct=direct_assertions(tree, calls_check),
        any_assertion=any(isinstance(node, ast.Assert) for node in live),
        catches=bool(named & CATCHES) or any(isinstance(n, (ast.Try, ast.TryStar)) for n in nodes),
        judges=sorted(used_as_classes(nodes, wanted, entry_names)),
        dynamic=bool(named & DYNAMIC),
        constants=[n.value for n in nodes if isinstance(n, ast.Constant) and type(n.value) is str],
        uses=sorted(
            named & {"random", "getcontext", "setcontext", "localcontext", "stdout", "stderr"}
            | named & {"redirect_stdout", "redirect_stderr", "threading", "concurrent"}
            | named & {"eval", "exec", "compile", "open", "print", "input", "help"}
        ),
        preamble=code,
        borrowed=borrowed,
    )


def names_in(nodes):
    """Names, attributes and modules that stand in a tree."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names.update(a.name for a in node.names)
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            names.update(word for a in node.names for word in a.name.split("."))
    return names


def takes_candidate(tree):
    """Do the tests define check(candidate), with one argument?"""
    checks = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"]
    if not checks:
        return False
    arguments = checks[-1].args
    positional = len(arguments.posonlyargs) + len(arguments.args)
    needed = positional - len(arguments.defaults)
    return needed <= 1 <= positional or bool(arguments.vararg)


def reached(tree, calls_check):
    """The nodes of the tests that may run: top-level code, and the definitions that it names."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    defined, live, seen = {}, [], set()
    for node in ast.walk(tree):
        if isinstance(node, (*functions, ast.ClassDef)):
            defined.setdefault(node.name, []).append(node)
    started = {id(node) for node in defined["check"]} if calls_check else set()
    todo = [*tree.body, *(defined["check"] if calls_check else ())]
    while todo:
        node = todo.pop()
        if id(node) in seen or is_main_block(node):
            continue
        if isinstance(node, functions) and id(node) not in started and not node.decorator_list:
            todo += node.args.defaults
            continue
        seen.add(id(node))
        live.append(node)
        for definition in defined.get(getattr(node, "id", getattr(node, "attr", None)), ()):
            started.add(id(definition))
            todo.append(definition)
            if isinstance(definition, ast.ClassDef):
                started.update(id(n) for n in definition.body)
                todo += definition.body
        todo += ast.iter_child_nodes(node)
    return live


def is_main_block(node):
    """if __name__ == "__main__": which is not run here."""
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and "__main__" in [getattr(n, "value", None) for n in ast.walk(node.test)]
        and not node.orelse
    )


def asserts(node):
    """Can the tests fail here by what they say themselves?"""
    if isinstance(node, (ast.Assert, ast.Raise)):
        return True
    name = getattr(node, "attr", getattr(node, "id", ""))
    return isinstance(node, (ast.Attribute, ast.Name)) and bool(
        re.match(r"assert|_?_?exit$|fail$|raises$", name)
    )


def global_names(text):
    """(global names that a text reads, those that it defines)."""
    tables, free, bound = [symtable.symtable(text, "<tests>", "exec")], set(), set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if top and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()):
                bound.add(symbol.get_name())
            if symbol.is_referenced() and (top or symbol.is_global()):
                free.add(symbol.get_name())
    return free, bound


def direct_assertions(tree, calls_check):
    """How many assertions must be run: those at the top level, and in check(candidate)."""
    bodies = [tree.body]
    if calls_check:
        check = [n for n in tree.body if getattr(n, "name", "") == "check"][-1]
        if not any(isinstance(n, ast.Return) for n in ast.walk(check)):
            bodies.append(check.body)
    return sum(isinstance(node, ast.Assert) for node in itertools.chain(*bodies))


def used_as_classes(nodes, wanted, entry_names):
    """Names of the program that the tests use as classes. See docs/grader.md.

    A name in isinstance, except or a list of bases is one. So is a name with a capital whose
    objects have attributes that no builtin type has. Of such names, but for the entry point, more
    is taken as use: any attribute, an operator between two of its objects, the name as a value.
    """
    certain = {n.id for node in nodes for n in class_positions(node) if isinstance(n, ast.Name)}
    by_attribute, by_use = uses_of_objects(nodes, wanted)
    capital = {name for name in wanted if is_class_name(name)}
    return wanted & (certain | capital & by_attribute | capital & by_use - entry_names)


def class_positions(node):
    """The expressions that can only be classes, in a node of the tests."""
    if isinstance(node, ast.ExceptHandler):
        kinds = node.type
    elif isinstance(node, ast.ClassDef):
        return node.bases
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
        "isinstance",
        "issubclass",
    ):
        kinds = node.args[-1] if node.args else None
    else:
        return []
    return kinds.elts if isinstance(kinds, ast.Tuple) else [kinds]


def uses_of_objects(nodes, wanted):
    """(names whose objects have attributes of their own, names that are used like classes)."""
    calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    called, functions = {id(n): n.func.id for n in calls}, {id(n.func) for n in calls}
    by_attribute, by_use, objects = set(), set(), objects_of(nodes, called)
    for node in nodes:
        if isinstance(node, ast.Name) and id(node) not in functions:
            by_use.add(node.id)
        if isinstance(node, ast.Attribute):
            makers = made_in(node.value, called, objects) | {getattr(node.value, "id", "")}
            by_use |= makers
            if node.attr not in OF_BUILTINS:
                by_attribute |= makers
        if isinstance(node, (ast.Compare, ast.BinOp)):
            sides = [made_in(side, called, objects) for side in ast.iter_child_nodes(node)]
            makers = list(itertools.chain.from_iterable(sides))
            by_use.update(name for name in makers if makers.count(name) > 1)
    return by_attribute, by_use


def objects_of(nodes, called):
    """{variable: names whose call it was assigned from}."""
    objects = {}
    for node in nodes:
        if isinstance(node, (ast.Assign, ast.NamedExpr, ast.AnnAssign, ast.withitem)):
            value = node.context_expr if isinstance(node, ast.withitem) else node.value
            for name in stored(node):
                objects.setdefault(name, set()).update(made_in(value, called, objects))
    return objects


def is_class_name(name):
    return bool(re.fullmatch(r"(_?[A-Z][a-z0-9]*)+", name))


def stored(node):
    targets = getattr(node, "targets", None) or [
        getattr(node, "target", None) or getattr(node, "optional_vars", None)
    ]
    names = (n for target in targets if target for n in ast.walk(target))
    return [n.id for n in names if isinstance(n, ast.Name)]


def made_in(node, called, objects):
    """Names of what makes a value: P in P(1), P(1) + x, (P(1), 2), and in v after v = P(1)."""
    if id(node) in called:
        return {called[id(node)]}
    if isinstance(node, ast.Name):
        return set(objects.get(node.id, ()))
    if isinstance(node, (ast.BinOp, ast.Tuple, ast.List, ast.UnaryOp)):
        inner = [made_in(child, called, objects) for child in ast.iter_child_nodes(node)]
        return set().union(*inner)
    return set()


@functools.lru_cache(4096)
def parsed(preamble):
    """The statements of a preamble; without one that is not finished at its end."""
    lines = preamble.split("\n")
    while lines:
        try:
            return ast.parse("\n".join(lines)).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            starts = [i for i, line in enumerate(lines) if line[:1].strip() and i]
            lines = lines[: starts[-1]] if starts else []
    return []


def borrow(preamble, wanted):
    """(code of the preamble, wanted names that it defines). No code if it defines none."""
    if not preamble.strip():
        return b"", []
    body = parsed(preamble)
    bound = set()
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound.update((a.asname or a.name).split(".")[0] for a in node.names)
        elif hasattr(node, "name"):
            bound.add(node.name)
        else:
            bound.update(
                n.id
                for n in ast.walk(node)
                if isinstance(getattr(n, "ctx", None), ast.Store) and isinstance(n, ast.Name)
            )
    stars = any(isinstance(n, ast.ImportFrom) and n.names[0].name == "*" for n in body)
    borrowed = sorted(wanted if stars else wanted & bound)
    if not borrowed:
        return b"", []
    tree = ast.Module(body, [])
    return marshal.dumps(compile(tree, "<preamble>", "exec", dont_inherit=True)), borrowed


def same_output(output, expected):
    """LiveCodeBench's comparison of an output with the expected one.

    As many lines, stripped; each equal, or equal token by token as decimal numbers.
    Stops at the first difference, and never holds more of the output than a line.
    Example: ("1.50 2\\n", "1.5 2.0") -> True
    """
    output, expected = output.strip(), expected.strip()
    if output.count("\n") != expected.count("\n"):
        return False
    return all(map(same_line, lines_of(output), lines_of(expected)))


def lines_of(text):
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end].strip()
        start = end + 1
    yield text[start:].strip()


def same_line(line, expected):
    if line == expected:
        return True
    tokens = (match[0] for match in re.finditer(r"\S+", line))
    try:
        return all(
            token is not None and target is not None and same_number(token, target)
            for token, target in itertools.zip_longest(tokens, expected.split())
        )
    except decimal.InvalidOperation:
        return False


def same_number(token, target):
    return decimal.Decimal(token) == decimal.Decimal(target)
