"""ruff has nothing to say with the rules of pyproject.toml; what is imported is required; what is public has types."""
import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from test_house import SCRIPTS, files, source

OWN = {"common", "evaluate", "bench", "support", "fast", "tasks", "claims", "draw", "elsewhere", "pages", "runner",
       "table", "which", "words", *SCRIPTS}
OPTIONAL = {"trl"}  # what is asked for in one sentence where it is needed


def test_ruff():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def imported(path):
    """The packages that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source(path))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_what_is_imported_is_required():
    required = {re.split("[=<>]", line)[0].replace("-", "_") for line in source("requirements.txt").split()}
    for path in files(".py"):
        if not path.startswith("tests/"):
            foreign = {*imported(path)} - OWN - sys.stdlib_module_names - OPTIONAL
            assert foreign <= required, (path, foreign - required)


TYPED = ["common.py", "evaluate.py", "fit_verifier.py", *(f"{script}.py" for script in SCRIPTS)]


@pytest.mark.parametrize("path", TYPED)
def test_public_functions_have_types(path):
    """Every parameter of a public function or method but `self` and at most one that takes anything."""
    body = ast.parse(source(path)).body
    methods = [node for kind in body if isinstance(kind, ast.ClassDef) for node in kind.body]
    for node in body + methods:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        untyped = [a.arg for a in node.args.args if a.arg != "self" and not a.annotation]
        assert len(untyped) <= 1, (path, node.name, untyped)
