"""Tests, on the trainer's side: jobs that could not fail are refused; assertions are counted, and in one process guarded; outputs are compared."""

import ast
import builtins
import decimal
import functools
import marshal
import re
import symtable
import sys

SHARED = set(
    """builtins contextlib decimal gc globals input inspect io locale locals logging open os pathlib print random signal sys tempfile threading
    time unittest vars warnings weakref""".split()
)  # what tests may change, or look at, in the interpreter that they share with a program


def check_job(job, who):
    """Raises ValueError if the job cannot be graded, or could not fail."""
    if job.kind == "stdio":
        if not isinstance(job.tests, (list, tuple)) or not job.tests:
            raise ValueError(
                f"{who}: kind stdio needs a list of at least one {{'input', 'output'}} as tests; with none, everything would pass"
            )
        for test in job.tests:
            if (
                not isinstance(test, dict)
                or not isinstance(test.get("input"), str)
                or not isinstance(test.get("output"), str)
            ):
                raise ValueError(
                    f"{who}: a stdio test is {{'input': text, 'output': text}}; given {str(test)[:60]}"
                )
    elif job.kind == "assert":
        if not isinstance(job.tests, str) or not job.tests.strip():
            raise ValueError(f"{who} has no tests: everything would pass")
        if (
            re.search(r"^def check\(", job.tests, re.M)
            and not re.search(r"^check\(", job.tests, re.M)
            and not job.entry_point.strip()
        ):
            raise ValueError(
                f"{who}: its tests define check(candidate), so it needs an entry_point"
            )
    else:
        raise ValueError(f"{who}: kind {job.kind!r}; expected assert or stdio")
    if job.time_limit is not None and not job.time_limit > 0:
        raise ValueError(f"{who}: time_limit={job.time_limit} must be positive")


class Instrument(ast.NodeTransformer):
    """Counts assertions that begin and that hold; with `guarded`, results, comparisons and truth values go through `guard`. Names in <> cannot be a program's."""

    def __init__(self, guarded):
        self.guarded = guarded

    def helper(self, node, name, *args):
        return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), list(args), []), node)

    def visit_Assert(self, node):
        self.generic_visit(node)
        if self.guarded:
            node.test = self.helper(node, "<truth>", node.test)
        return [
            ast.copy_location(ast.Expr(self.helper(node, "<begun>")), node),
            node,
            ast.copy_location(ast.Expr(self.helper(node, "<held>")), node),
        ]

    def visit_Call(self, node):
        self.generic_visit(node)
        return self.helper(node, "<truth>", node) if self.guarded else node

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        if self.guarded and isinstance(node.op, ast.Not):
            node.operand = self.helper(node, "<truth>", node.operand)
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        if not self.guarded:
            return node
        kinds = ast.Tuple([ast.Constant(type(op).__name__) for op in node.ops], ast.Load())
        return self.helper(node, "<compare>", node.left, kinds, *node.comparators)


@functools.lru_cache(4096)
def prepare(tests, entry, guarded):
    """Tests as code that counts assertions -> (marshalled code, entry point, names it wants of the program, names and marks in it, assertions that
    must hold, modules it imports). Marks: "f." where an attribute of f is used; "<calls check>": the tests call check() themselves; "<shares>": they
    may depend on a state or an identity that is shared with the program; "<no failure is caught>": an assertion that fails ends them.
    Raises ValueError if they do not compile."""
    try:
        tree = ast.parse(tests)
        compile(entry or "None", "<entry point>", "eval", dont_inherit=True)
    except (SyntaxError, ValueError) as e:
        raise ValueError(f"the tests or the entry point do not compile: {e}") from None
    inside = list(ast.walk(tree))
    named = {n.id for n in inside if isinstance(n, ast.Name)} | {
        n.attr for n in inside if isinstance(n, ast.Attribute)
    }
    named |= {
        n.value.id + "."
        for n in inside
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    }
    named |= {
        n.id for n in ast.walk(ast.parse(entry or "None", mode="eval")) if isinstance(n, ast.Name)
    }
    imports = {a.name for n in inside if isinstance(n, ast.Import) for a in n.names} | {
        n.module for n in inside if isinstance(n, ast.ImportFrom) and n.module
    }
    named |= {name.split(".")[0] for name in imports}
    calls = [
        n.value.func.id
        for n in tree.body
        if isinstance(n, ast.Expr)
        and isinstance(n.value, ast.Call)
        and isinstance(n.value.func, ast.Name)
    ]
    checks = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"]
    direct = sum(isinstance(n, ast.Assert) for n in tree.body)
    if (
        checks
        and (entry or "check" in calls)
        and not any(isinstance(n, ast.Return) for n in ast.walk(checks[-1]))
    ):
        direct += sum(isinstance(n, ast.Assert) for n in checks[-1].body)
    if "check" in calls:
        named.add("<calls check>")
    if not any(isinstance(n, (ast.Try, ast.TryStar)) for n in inside) and not named & {
        "suppress",
        "raises",
        "assertRaises",
    }:
        named.add("<no failure is caught>")
    if named & SHARED or any(
        isinstance(n, ast.Compare)
        and any(
            isinstance(op, (ast.Is, ast.IsNot)) and not isinstance(c, ast.Constant)
            for op, c in zip(n.ops, n.comparators)
        )
        for n in inside
    ):
        named.add("<shares>")
    imports |= named & set(sys.stdlib_module_names) & set(sys.modules)
    tables, free, bound = [symtable.symtable(tests, "<tests>", "exec")], set(), set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if top and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()):
                bound.add(symbol.get_name())
            if symbol.is_referenced() and (top or symbol.is_global()):
                free.add(symbol.get_name())
    wanted = {n for n in free - bound if n == entry or not hasattr(builtins, n)}
    tree = ast.fix_missing_locations(Instrument(guarded).visit(tree))
    code = marshal.dumps(compile(tree, "<tests>", "exec", dont_inherit=True))
    return code, entry, wanted, named, direct, sorted(imports) if guarded else []


def same_output(given, expected):
    """LiveCodeBench's comparison: as many lines, stripped; each equal, or equal token by token as decimal numbers.
    Example: ("1.50 2\\n", "1.5 2.0") -> True"""
    given, expected = (
        [line.strip() for line in text.strip().split("\n")] for text in (given, expected)
    )
    if len(given) != len(expected):
        return False
    for a, b in zip(given, expected):
        if a != b:
            try:
                if [decimal.Decimal(x) for x in a.split()] != [
                    decimal.Decimal(x) for x in b.split()
                ]:
                    return False
            except decimal.InvalidOperation:
                return False
    return True
