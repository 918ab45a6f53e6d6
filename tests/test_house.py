"""The house stays as it is: sizes, names and keys, what is copied, what is read."""
import ast
import difflib
import importlib
import itertools
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from references import SCRIPTS, definitions, source
from test_pages import assert_as_the_page_says
from test_scripts import read_lines, run

from support.run import METRICS

SMALL = ["--steps", 1, "--prompts", 4, "--samples", 4, "--eval-samples", 4, "--eval-problems", 4]
RUNS = [("ppo_passk", ["--k", 4]), ("bon_sft", ["--n", 4]), ("bon_rl", ["--n", 4]),
        ("cat_passk", ["--n", 4, "--eval-every", 1]), ("cat_passk", ["--n", 4, "--mode", "sft"]),
        ("cat_majority", ["--n", 4]), ("cat_majority", ["--n", 4, "--mode", "sft"]), ("cat_bon", ["--n", 4]),
        ("cat_bon", ["--n", 4, "--mode", "sft", "--train-problems", 40])]


def small(script, flags):
    """SMALL, without --samples where nothing is sampled."""
    return SMALL[:4] + SMALL[6:] if "sft" in flags and script != "cat_bon" else SMALL


def files(*endings):
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True).stdout.split()
    return [path for path in listed if path.endswith(endings)]


def test_top_level():
    top = {path for path in files("") if "/" not in path}
    assert top == {".gitignore", "LICENSE", "README.md", "bench.py", "common.py", "evaluate.py", "fit_verifier.py",
                   "pyproject.toml", "requirements.txt", *(f"{script}.py" for script in SCRIPTS)}


def test_lines_are_short():
    """120 characters at most, but for rows of tables, which cannot be broken."""
    for path in files(".py", ".sh", ".toml", ".md"):
        for number, line in enumerate(source(path).split("\n"), 1):
            row = path.endswith(".md") and line.startswith("|")
            assert len(line) <= 120 or row, (path, number)


def test_loops_are_alike():
    """What a script does around its equations: that of two scripts differs in few lines."""
    loops = {}
    for script in SCRIPTS:
        found = definitions(f"{script}.py")
        loops[script] = found["step" if "step" in found else "step_rl"] + found["main"]
    for a, b in itertools.combinations(SCRIPTS, 2):
        changed = [line for line in difflib.unified_diff(loops[a], loops[b], n=0, lineterm="")
                   if line[0] in "+-" and line[:3] not in ("+++", "---")]
        assert len(changed) <= 110, (a, b, len(changed))


def test_copies_are_identical():
    """A helper that stands in several scripts, so that each can be copied out, is the same in all; the rest stands
    once. What is trained with, and how, is each paper's own."""
    own = {"parser", "check_flags", "step", "step_sft", "step_rl", "main", "plot_weights", "rl_weights",
           "rl_coefficients"}
    paths = [path for path in files(".py") if not path.startswith("tests/")]
    seen = {}
    for path in paths:
        for name, lines in definitions(path).items():
            if name in seen and path[:-3] in SCRIPTS and name not in own:
                assert lines == seen[name], (path, name)
            if path[:-3] in SCRIPTS:
                seen.setdefault(name, lines)
    assert {"lambda_n", "passn_sft_loss"} <= seen.keys()
    for path in paths:  # no script imports another one
        imported = set(re.findall(r"^(?:from|import) (\w+)", source(path), re.MULTILINE))
        assert path in ("bench.py", "support/gpu_report.py", "results/elsewhere.py") or not imported & {*SCRIPTS}, path


@pytest.mark.parametrize("script,flags", RUNS, ids=lambda v: v if isinstance(v, str) else " ".join(map(str, v)))
def test_keys_and_columns(script, flags, tmp_path):
    """Every key is in METRICS, tokens_per_s is that of sampling, and the tables have the same columns."""
    code, out, err = run(importlib.import_module(script).main, *small(script, flags), *flags, "--out", tmp_path / "r")
    assert code == 0, err
    line, = read_lines(tmp_path / "r")
    result = json.load(open(tmp_path / "r" / "result.json"))
    known = {re.sub(r"<k>", str(k), name) for name in METRICS for k in (1, 2, 4)}
    for found in (line, line.get("valid", {}), result["before"], result["after"], line.get("diversity", {})):
        assert found.keys() <= known, found.keys() - known
    sampled = "sft" not in flags
    assert_as_the_page_says(script, not sampled, tmp_path / "r")
    assert ("tokens_per_s" in line) == ("reward" in line) == sampled
    assert line["samples_per_s"] > 0 and line["length"] > 1
    if sampled:  # sampling is a part of the step, so per second of the step there are fewer tokens
        assert line["tokens_per_s"] > line["length"] * line["samples_per_s"]
    header = [row for row in out.split("\n") if re.match(r"\s+(pass|max)@1", row)][-1].split()
    best = "max" if script == "cat_bon" else "pass"
    assert header == [f"{best}@1", f"{best}@4", *([] if best == "max" else ["maj@4"]), "bon@4", "kl", "length"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_one_reads(script, tmp_path):
    """Whoever follows an algorithm reads its script, common.py and their task, whatever training calls of it: three
    files. (support/ is plumbing, evaluate.py comes before and after; without --plain fast/ takes over from loops of
    common.py.)"""
    module, called = importlib.import_module(script), set()

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(ROOT + os.sep):
            called.add((os.path.relpath(frame.f_code.co_filename, ROOT), frame.f_code.co_firstlineno))
    name = "step" if hasattr(module, "step") else "step_rl"
    step = getattr(module, name)

    def traced(*args):
        sys.setprofile(profile)
        try:
            return step(*args)
        finally:
            sys.setprofile(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, traced)
        assert run(module.main, "--plain", *SMALL[:6], "--n" if "ppo" not in script else "--k", 4, "--eval-samples", 0,
                   "--out", tmp_path / "r")[0] == 0
    read = {path for path, _ in called if not path.startswith(("support/", "tests/")) and path != "evaluate.py"}
    assert read >= {f"{script}.py", "common.py"} and len(read) == 3, read
    task, = read - {f"{script}.py", "common.py"}


def import_graph():
    """{path of a module: paths of the modules of this project that it imports, inside functions too}; tests left out.
    Who imports a module of a package imports the package too, unless from within."""
    paths = [path for path in files(".py") if not path.startswith("tests/")]
    named = {}
    for path in paths:
        name = path[:-3].replace("/", ".").removesuffix(".__init__")
        named[name] = path
        if path.startswith(("results/", "models/")):  # their folders are on the path
            named[name.split(".")[1]] = path
    graph = {}
    for path in paths:
        package, found = os.path.dirname(path), set()
        for node in ast.walk(ast.parse(source(path))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(part for part in (package if node.level else "", node.module) if part)
                inside = {f"{base}.{alias.name}" for alias in node.names}
                found |= inside if inside <= named.keys() else {base, *inside}
        found |= {name.rpartition(".")[0] for name in found} - {package}
        graph[path] = {named[name] for name in found if name in named} - {path}
    return graph


def circles(graph):
    """Strongly connected components of more than one module (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(v):
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in graph[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            component = stack[stack.index(v):]
            del stack[stack.index(v):]
            if len(component) > 1:
                found.append(sorted(component))
    for v in graph:
        if v not in index:
            visit(v)
    return found


def test_no_import_circles():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    graph = import_graph()
    assert "common.py" in graph["fast/packed.py"] and "bench.py" not in graph["support/gpu_report.py"]
    assert "support/gpu_report.py" in graph["bench.py"]  # an import inside a function
    assert circles(graph) == []
    below = [*graph["common.py"]]  # what common.py stands on, all of it
    for path in below:
        below += graph[path] - {*below}
    assert not any(path.startswith("fast/") for path in below), below


def test_the_order_of_imports_carries_no_meaning():
    """Whatever module of this project comes first, torch is loaded under the thread policy: in a file that may be read
    first a statement sets it before the import of torch, so a tool that sorts imports cannot change it."""
    torch_first = []
    for path in ("common.py", "models/make_tiny.py", "tests/conftest.py"):
        for node in ast.parse(source(path)).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                if any(name.split(".")[0] == "torch" for name in [a.name for a in node.names] + [""]):
                    torch_first.append(path)
                    break
            elif "set_thread_policy" in ast.unparse(node):
                break
    assert not torch_first
    program = "import os, sys\nimport {}\nassert 'torch' in sys.modules\nprint(os.environ['OMP_WAIT_POLICY'])"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))}
    for module in ("common", "ppo_passk"):
        done = subprocess.run([sys.executable, "-c", program.format(module)], cwd=ROOT, capture_output=True, text=True,
                              env=clean)
        assert done.stdout == "PASSIVE\n", done.stderr


@pytest.mark.parametrize("script,flags", RUNS, ids=lambda v: v if isinstance(v, str) else " ".join(map(str, v)))
def test_plain_is_the_same_run(script, flags, tmp_path, monkeypatch):
    """With --plain a run takes the loops of common.py alone; draws and figures are those without, within rounding."""
    from fast import folded, packed, shared
    steps = ["--steps", 2, *small(script, flags)[2:]]
    lines, draws, results = {}, {}, {}
    for name in ("fast", "plain"):
        if name == "plain":
            for module, function in ((folded, "Product"), (packed, "decode_packed"), (packed, "score_packs"),
                                     (shared, "score_shared")):
                monkeypatch.setattr(module, function, None)
        folder = tmp_path / name
        code, out, err = run(importlib.import_module(script).main, *steps, *flags, "--out", folder,
                             *["--plain"] * (name == "plain"))
        assert code == 0, err
        assert ("sampling and scoring: plain" in out) == (name == "plain")
        assert json.load(open(folder / "args.json"))["flags"]["plain"] is (name == "plain")
        checks = read_lines(folder, "checks.jsonl")  # before the first update, and when the adapter has moved
        assert {0, 1} <= {row["step"] for row in checks} and all(row["largest"] < 1e-4 for row in checks)
        assert out.count("first samples, scored by") == 1
        lines[name] = read_lines(folder)
        draws[name] = [json.loads(line) for line in open(folder / "samples.jsonl")]
        results[name] = json.load(open(folder / "result.json"))
    timed = {"seconds", "tokens_per_s", "samples_per_s", "memory_gb"}
    assert_close({"steps": lines["plain"], "draws": draws["plain"], **results["plain"]},
                 {"steps": lines["fast"], "draws": draws["fast"], **results["fast"]}, timed)


def assert_close(a, b, skipped):
    """Equal texts and whole numbers, floats within rounding, in nested lists and dicts."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a.keys() - skipped:
            assert_close(a[name], b[name], skipped)
    elif isinstance(a, list):
        assert len(a) == len(b)
        for pair in zip(a, b):
            assert_close(*pair, skipped)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5, nan_ok=True)
    else:
        assert a == b


def test_requirements():
    """Whatever is imported is listed, or comes with what is listed; TRL is for a comparison that asks for it, and the
    converter of Markdown for pages that are looked at."""
    modules = set()
    for path in files(".py"):
        for node in ast.walk(ast.parse(source(path))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
    own = {os.path.basename(path)[:-3] for path in files(".py")} | {"support", "tasks", "fast"}
    listed = {line.split("==")[0].replace("-", "_") for line in source("requirements.txt").split()}
    with_them = {"safetensors", "tokenizers", "accelerate", "huggingface_hub", "pyarrow", "psutil", "sympy",
                 "latex2sympy2_extended"}
    assert modules - own - listed - with_them - sys.stdlib_module_names <= {"trl", "markdown_it"}
    assert {"numpy", "mpmath"} <= listed & modules
