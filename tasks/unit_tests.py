"""Tests of functions and classes: how they are run, and whether they can fail at all.

Tests are Python source with assertions. The source runs as a script, as `__main__`. Then these are run,

    check(candidate), or any function of a parameter `candidate`     on the entry point, as in HumanEval
    test* functions without parameters, test* methods of classes     as in pytest, each method on a new object, for the
                                                                     cases of pytest.mark.parametrize
    unittest.TestCase                                                as in unittest

unless the script has called them itself. unittest.main() and pytest.main() would run the same tests, so these calls are
removed. `from solution import f` means that f is a function of the program.
"""
import ast
import sys

from support.errors import UserError

from .sandbox import PACKAGES

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FAILING = ("assert", "fail", "raises", "warns", "exit", "_exit", "abort", "eval", "exec")
BEFORE = ("setup_module", "setUpModule", "setup_function")
ELSEWHERE = {"stdin", "sys.stdin", "builtins.input", "builtins.print", "builtins.open"}  # what only a program has
CASES = """
def parametrized(test):
    found = [{}]
    for mark in test.pytestmark:
        names, values = mark.args[:2]
        alone = isinstance(names, str) and "," not in names  # then a value is no row
        names = names.replace(",", " ").split() if isinstance(names, str) else names
        rows = []
        for value in values:
            if type(value).__name__ == "ParameterSet":
                value = value.values
            elif alone:
                value = [value]
            rows.append(value)
        found = [{**case, **dict(zip(names, row, strict=True))} for case in found for row in rows]
    return found
"""
WARM = {*PACKAGES, "unittest", "asyncio", "json"}  # slow to import


class CannotJudge(UserError):
    """Tests that cannot tell whether a program is correct."""


def dotted(node):
    """The dotted name of a node, 'a.b.c'; '' for anything else."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return before and f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def runs_main(node):
    """Whether a statement calls unittest.main or pytest.main, or exits with success."""
    if isinstance(node, ast.Raise):
        node = ast.Expr(node.exc)
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Name):
        return call.id == "SystemExit"
    if not isinstance(call, ast.Call):
        return False
    if dotted(call.func) in ("unittest.main", "pytest.main"):
        return True
    ends = dotted(call.func) in ("sys.exit", "exit", "quit", "SystemExit")
    return ends and all(map(says_success, call.args))


def says_success(value):
    """Whether this argument of an exit means success."""
    if isinstance(value, ast.Constant):
        return value.value in (0, None)
    return runs_main(ast.Expr(value))


def is_guard(node):
    """Whether a node is `if __name__ == "__main__"`."""
    return isinstance(node, ast.If) and any(dotted(part) == "__name__" for part in ast.walk(node.test))


def is_known(module):
    """Whether tests can import a module (None: a relative import)."""
    return module is not None and module.partition(".")[0] in {*sys.stdlib_module_names, *PACKAGES}


class OfProgram(ast.NodeTransformer):
    """Removes from tests the imports of the program's module, that is an unknown module with the entry point. `names`
    are {name in the tests: name in the program}, `modules` the names of that module."""

    def __init__(self, tree, entry):
        self.names = {entry: entry}
        self.modules = set()
        uses = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not is_known(node.module):
                if any(alias.name in (entry, "*") for alias in node.names):
                    self.modules.add(node.module)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name
                    if not is_known(alias.name) and f"{name}.{entry}" in uses:
                        self.modules.add(name)
        self.visit(tree)

    def visit_ImportFrom(self, node):
        if node.module not in self.modules:
            return node
        self.names.update({alias.asname or alias.name: alias.name for alias in node.names if alias.name != "*"})
        return ast.Pass()

    def visit_Import(self, node):
        node.names = [alias for alias in node.names if (alias.asname or alias.name) not in self.modules]
        return node if node.names else ast.Pass()

    def visit_Attribute(self, node):
        if dotted(node.value) in self.modules:
            self.names[node.attr] = node.attr
            return ast.Name(node.attr, node.ctx)
        return self.generic_visit(node)


def reached(tree):
    """(nodes that run when a module runs, names they mention). The body of a function or class counts as run once its
    name is mentioned."""
    nodes = []
    names = set()
    parked = {}
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        inside = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.ClassDef):  # all methods of a used class
            inside += [part for method in node.body if isinstance(method, FUNCTIONS) for part in method.body]
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and node.name not in names:
            parked.setdefault(node.name, []).extend(inside)
            inside = node.decorator_list
        waiting += inside
        name = getattr(node, "id", None) or getattr(node, "attr", None)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value  # as in globals()["f"]
        if name and not isinstance(getattr(node, "ctx", None), ast.Store):
            names.add(name)
            waiting += parked.pop(name, ())
    return nodes, names


def can_fail(node):
    """Whether a wrong program can fail at this node. Assertions of tuples and constants cannot fail."""
    if isinstance(node, ast.Assert):
        constant = isinstance(node.test, ast.Constant) and node.test.value
        return not constant and not (isinstance(node.test, ast.Tuple) and node.test.elts)
    called = dotted(node.func) if isinstance(node, ast.Call) else ""
    return isinstance(node, ast.Raise) or called.rpartition(".")[2].lstrip("_").lower().startswith(FAILING)


def definitions(body):
    """The functions and classes defined in a module, also under `if`, `with` and `try`."""
    for node in body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node
        else:
            for field in ("body", "handlers", "orelse", "finalbody"):
                yield from definitions(getattr(node, field, []))


def parameters(function):
    """Names of the parameters without a default."""
    of = function.args
    places = of.posonlyargs + of.args
    named = [arg for arg, default in zip(of.kwonlyargs, of.kw_defaults) if default is None]
    return [arg.arg for arg in places[:len(places) - len(of.defaults)] + named]


def call_of(function, text, *arguments):
    """Source of a call to a function, which may be async."""
    text = f"{text}({', '.join(arguments)})"
    return f"__import__('asyncio').run({text})" if isinstance(function, ast.AsyncFunctionDef) else text


def has_cases(function):
    """Is it a test with pytest.mark.parametrize, and no other mark?"""
    marks = [dotted(getattr(decorator, "func", decorator)) for decorator in function.decorator_list]
    return bool(marks) and function.name.startswith("test") and set(marks) == {"pytest.mark.parametrize"}


def calls_of_function(node, entry):
    """Lines that run an uncalled function if it is a test.  Raises CannotJudge if it needs arguments that only a
    framework could supply."""
    wanted = parameters(node)
    if has_cases(node):
        return [f"for case_of_test in parametrized({node.name}): {call_of(node, node.name, '**case_of_test')}"]
    is_check = node.name == "check" or wanted == ["candidate"]
    if not is_check and not node.name.startswith("test"):
        return []
    if len(wanted) > is_check:
        raise CannotJudge(f"nothing says what to call {node.name}({', '.join(wanted)}) with")
    return [call_of(node, node.name, *[entry] * len(wanted))]


def calls_of_class(node):
    """Lines that run the test* methods of an unused class.  Raises CannotJudge like `calls_of_function`."""
    methods = {method.name: method for method in node.body if isinstance(method, FUNCTIONS)}
    tests = [method for name, method in methods.items() if name.startswith("test")]
    lines = []
    for method in tests:
        static = any(dotted(decorator) == "staticmethod" for decorator in method.decorator_list)
        wanted = parameters(method)[not static:]
        several = has_cases(method)
        if wanted and not several or "__init__" in methods and parameters(methods["__init__"])[1:]:
            raise CannotJudge(f"nothing says what to call {node.name}().{method.name} with")
        own = [f"{node.name}.setup_class()"] * ("setup_class" in methods)
        own.append(f"case = {node.name}()")
        if "setup_method" in methods:
            wanted = parameters(methods["setup_method"])[1:]
            own.append(f"case.setup_method({'None' * len(wanted)})")
        if several:
            own.append(call_of(method, f"case.{method.name}", "**case_of_test"))
            own = [f"for case_of_test in parametrized({node.name}.{method.name}):", *("    " + line for line in own)]
        else:
            own.append(call_of(method, f"case.{method.name}"))
        lines += own
    return lines


def calls(tree, entry):
    """Lines that run the tests that a module defines but does not run itself.  Raises CannotJudge."""
    _, names = reached(tree)
    lines = [f"{node.name}()" for node in definitions(tree.body) if node.name in BEFORE and node.name not in names]
    cases = {"TestCase", "IsolatedAsyncioTestCase"}
    for node in definitions(tree.body):
        if isinstance(node, ast.ClassDef):
            if any(dotted(base).rpartition(".")[2] in cases for base in node.bases):
                cases.add(node.name)
                lines.append(f"__import__('unittest').defaultTestLoader.loadTestsFromTestCase({node.name}).debug()")
            elif node.name not in names:
                lines += calls_of_class(node)
        elif node.name not in names:
            lines += calls_of_function(node, entry)
    return lines


def prepare(source: str, entry: str) -> tuple[str, dict[str, str]]:
    """(tests that run as they are, {name in them: name in the program}) of tests as somebody wrote them. `entry` is
    what they are about: f, Class or Class().method.  Raises SyntaxError; CannotJudge if they cannot fail."""
    tree = ast.parse(source)
    name = entry.partition("(")[0]
    program = OfProgram(tree, name)
    changed = bool(program.modules)
    for body in [tree.body, *(node.body for node in tree.body if is_guard(node))]:
        changed = changed or any(map(runs_main, body))
        body[:] = [ast.Pass() if runs_main(node) else node for node in body]
    if changed:
        source = ast.unparse(ast.fix_missing_locations(tree))
    lines = calls(tree, entry)
    helper = CASES if any(" in parametrized(" in line for line in lines) else ""
    source = "\n".join([source + helper, *lines, ""])
    nodes, mentioned = reached(ast.parse(source))
    if mentioned & ELSEWHERE:
        raise CannotJudge("its tests change what the program reads or calls, which runs elsewhere")
    if not any(map(can_fail, nodes)):
        raise CannotJudge("nothing in its tests asserts anything")
    if not mentioned & program.names.keys():
        raise CannotJudge(f"its tests never use {name}")
    return source, program.names


def modules_of(tests: str) -> list[str]:
    """Those of the modules that take long to import which tests may import."""
    return sorted(name for name in WARM if name in tests)
