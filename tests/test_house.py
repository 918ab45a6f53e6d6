"""The house stays as it is: sizes, names and keys, what is copied, what is read, what can be copied out."""
import ast
import difflib
import functools
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from test_scripts import read_lines, readme, run

from support.run import METRICS

SCRIPTS = ["ppo_passk", "bon_sft", "bon_rl", "cat_passk", "cat_majority", "cat_bon"]
SMALL = ["--steps", 1, "--prompts", 4, "--samples", 4, "--eval-samples", 4, "--eval-problems", 4]
RUNS = [("ppo_passk", ["--k", 4]), ("bon_sft", ["--n", 4]), ("bon_rl", ["--n", 4]),
        ("cat_passk", ["--n", 4, "--eval-every", 1]), ("cat_passk", ["--n", 4, "--mode", "sft"]),
        ("cat_majority", ["--n", 4]), ("cat_majority", ["--n", 4, "--mode", "sft"]), ("cat_bon", ["--n", 4]),
        ("cat_bon", ["--n", 4, "--mode", "sft"])]


def small(script, flags):
    """SMALL, without --samples where nothing is sampled."""
    return SMALL[:4] + SMALL[6:] if "sft" in flags and script != "cat_bon" else SMALL


def source(path):
    with open(os.path.join(ROOT, path)) as file:
        return file.read()


def files(*endings):
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True).stdout.split()
    return [path for path in listed if path.endswith(endings)]


def definitions(path):
    """{name: its lines} of the functions and classes at the top level of a file, decorators included."""
    text = source(path)
    lines = text.split("\n")
    return {node.name: lines[min(d.lineno for d in [*node.decorator_list, node]) - 1:node.end_lineno]
            for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_top_level():
    top = {path for path in files("") if "/" not in path}
    assert top == {".gitignore", "LICENSE", "README.md", "bench.py", "common.py", "evaluate.py", "fit_verifier.py",
                   "pyproject.toml", "requirements.txt", *(f"{script}.py" for script in SCRIPTS)}


def test_lines_are_short():
    """120 characters at most; in results/ all but rows of tables, which cannot be broken."""
    for path in files(".py", ".sh", ".toml", ".md"):
        for number, line in enumerate(source(path).split("\n"), 1):
            assert len(line) <= 120 or path.startswith("results/") and line.startswith("|"), (path, number)


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
    assert result.keys() <= {"before", "after", "seconds", "verifier before", "verifier after"}
    sampled = "sft" not in flags
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
        assert out.count("the first samples, scored by") == 1
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


# ---------------------------------------------------------------------------------------------------------- copying out

def copying_out():
    """The rows of the README's list -> [(script, functions of the weight, their lines, of the loss, their lines)]."""
    section = readme().split("## Copying out")[1].split("\n## ")[0]
    names = r"((?: +[\w.]+|\n {20,}[\w.]+)+)\n"
    rows = re.findall(rf"^(\w+)\.py +weight +(\d+){names}(?: +loss +(\d+){names})?", section, re.MULTILINE)
    return [(script, weight.split(), int(n), loss.split(), int(m or 0)) for script, n, weight, m, loss in rows]


def taken(script, names):
    """The source of functions, `common.name` from common.py, as somebody would paste them -> (text, lines)."""
    parts = [definitions("common.py" if name.startswith("common.") else f"{script}.py")[name.split(".")[-1]]
             for name in names]
    return "\n\n\n".join("\n".join(part) for part in parts), sum(map(len, parts))


CALLS = {  # what the pasted functions are called with, and which function of the script must say the same
    "ppo_passk": ("advantages(r, 2, 'passk'), advantages(r, 2, 'majority', answers), advantages(r, 3, 'maxrl')",
                  "ppo_loss(r, r - .1, torch.ones(2, 4), r[:, 0], .2), kl_coefficients(r)"),
    "bon_sft": ("bon_sft_coefficients(r, r[:, 1], 4)",),
    "bon_rl": ("bon_rl_coefficients(r, r, 4), bon_rlb_coefficients(r, 4, 'minus')", "kl_coefficients(r)"),
    "cat_passk": ("rl_coefficients(r, 4), rl_coefficients(r, 4, 'raw', 'sequence', p.log().expand(2, 4))",
                  "passn_sft_loss(p.log(), 4), kl_coefficients(r)"),
    "cat_majority": ("rl_coefficients(r, answers, 5), rl_coefficients(r, answers, 5, 'log', 3)",
                     "majority_sft_loss(p.log(), 5, 3), kl_coefficients(r)"),
    "cat_bon": ("rl_coefficients(r, 3), rl_coefficients(r, 3, 'exact'), rl_coefficients(r, 3, 'rank', [0., 1., 1.])",
                "passn_sft_loss(p.log(), 4), kl_coefficients(r)")}


def pasted(script, names):
    """What is there after a list was pasted into an empty file."""
    namespace = {}
    exec("import math\nimport torch\nfrom collections import Counter\nfrom math import comb\n"
         + taken(script, names)[0], namespace)
    return namespace


def test_copying_out_the_weight_and_the_loss():
    """Each list of the README, pasted below its imports, runs with torch alone and says what the script says."""
    rows = copying_out()
    assert [script for script, *_ in rows] == SCRIPTS
    values = {"r": torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]]), "p": torch.tensor([1e-9, 0.1, 0.5, 0.99]),
              "answers": [["a", "b", "a", None], ["c", "c", "b", "a"]]}
    for script, weight, n, loss, m in rows:
        assert (taken(script, weight)[1], taken(script, loss)[1]) == (n, m), script
        for call, names in zip(CALLS[script], (weight, weight + loss)):
            found = eval(call, {**pasted(script, names), **values})
            wanted = eval(call, {**vars(importlib.import_module(script)), **values})
            for a, b in zip(found if isinstance(found, tuple) else [found],
                            wanted if isinstance(wanted, tuple) else [wanted], strict=True):
                assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), (script, call)


# A newcomer's file: five completions, of which the second is right; the README's line of each script for the
# coefficients, and its loss. M samples and budget N = 3.
RIGHT, ANSWERS, N, M = [0.0, 1.0, 0.0, 0.0, 0.0], ["a", "b", "c", "c", None], 3, 4


def calls_of_the_readme():
    """{script: the call that gives the coefficients}."""
    calls = readme().split("## Copying out")[1].split("```")[1]
    return dict(re.findall(r"^(\w+)\.py +(.+)$", calls, re.MULTILINE))


def coefficients_by_readme(script, namespace, rewards, answers):
    line = calls_of_the_readme()[script]
    scores = torch.cat([torch.ones(len(rewards), 1), rewards], 1)  # the gold completion goes first
    values = {"rewards": rewards, "answers": answers, "n": N, "k": N, "scores": scores}
    return eval(line, {**namespace, **values})


def expected_step(coefficients, theta):
    """Exact expectation over all V^M draws of minus the gradient of the README loss, -(coefficients * logp).sum() / B,
    for one prompt and softmax(theta). coefficients(rewards [R, M], answers [R][M]) -> [R, M]."""
    draws = torch.tensor(list(itertools.product(range(len(theta)), repeat=M)))  # [R, M]
    theta = theta.clone().requires_grad_()
    logp = torch.log_softmax(theta, 0)
    chance = logp.detach()[draws].sum(1).exp()
    rewards = torch.tensor(RIGHT, dtype=torch.float64)[draws]
    c = coefficients(rewards, [[ANSWERS[y] for y in row] for row in draws.tolist()])
    rows = logp[draws]
    if c.shape[1] == M + 1:  # the gold completion goes first
        rows = torch.cat([logp[1].expand(len(draws), 1), rows], 1)
    loss = -(chance[:, None] * c * rows).sum()
    return -torch.autograd.grad(loss, theta)[0]


def gradient(J, theta):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(J(torch.softmax(theta, 0)), theta)[0]


def vote_of(count, pi):
    """Chance that the right answer wins a vote of so many, ties shared, None casting no vote."""
    total = 0.0
    for ys in itertools.product(range(5), repeat=count):
        votes = [ANSWERS[y] for y in ys if y != 4]
        top = max(map(votes.count, votes), default=0)
        winners = {a for a in votes if votes.count(a) == top}
        if "b" in winners:
            total = total + pi[list(ys)].prod() / len(winners)
    return total


def log_bon_of_gold(pi):
    """log of the tilted policy at the right completion, scores = rewards: it beats all, the others all but it."""
    from bon_sft import lambda_n
    Q = torch.ones(5, dtype=torch.float64) * (1 - pi[1]) + torch.tensor(RIGHT) * pi[1]
    return (pi.log() + lambda_n(N) * Q).log_softmax(0)[1]


THETA = torch.tensor([0.3, -0.5, 0.2, -0.2, 0.2], dtype=torch.float64)
PASS = lambda pi: 1 - (1 - pi[1]) ** N  # pass@N, and the best of N
STATED = {  # another call of the pasted list, the gradient that its docstring states, and whether exactly
    "ppo_passk": [("advantages(rewards, 3, 'passk')", PASS, True),
                  ("advantages(rewards, 1, 'maxrl')", lambda pi: pi[1], True),
                  ("advantages(rewards, 4, 'majority', answers)", functools.partial(vote_of, 4), True)],
    "bon_sft": [("sft_coefficients(torch.cat([torch.ones(len(rewards), 1), rewards], 1), 3)", log_bon_of_gold, False)],
    "bon_rl": [("bon_rlb_coefficients(rewards, 3, 'positive', 'pool')", PASS, True),
               ("bon_rl_coefficients(rewards, rewards, 3)", PASS, False)],
    "cat_passk": [("rl_coefficients(rewards, 3, 'pool', standardised=False, normalised=False)", PASS, True),
                  ("rl_coefficients(rewards, 3, normalised=False)", PASS, False)],
    "cat_majority": [("rl_coefficients(rewards, answers, 3, normalised=False)", functools.partial(vote_of, 3), False)],
    "cat_bon": [("rl_coefficients(rewards, 3, 'exact', standardised=False)", PASS, True),
                ("rl_coefficients(rewards, 3)", PASS, False)]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_pasted_list_gives_the_step_that_it_states(script):
    """The expected step of the README's loss is the gradient stated, or where the docstring says biased it points
    where that does. The right completion gets likelier and no wrong one does, from an even policy."""
    weight = {name: row for name, row, *_ in copying_out()}[script]
    namespace = pasted(script, weight)
    for call, objective, exact in STATED[script]:
        step = expected_step(lambda r, answers: eval(call, {**namespace, "rewards": r, "answers": answers}), THETA)
        wanted = gradient(objective, THETA)
        if exact:
            assert torch.allclose(step, wanted, atol=1e-12), call
        cosine = step @ wanted / (step.norm() * wanted.norm())
        assert cosine > 0.9, (call, cosine)
    even = torch.zeros(5, dtype=torch.float64)

    def by_readme(r, answers):  # batch by batch: normalising would tie all draws together
        if script != "cat_passk" and script != "cat_majority":
            return coefficients_by_readme(script, namespace, r, answers)
        return torch.cat([coefficients_by_readme(script, namespace, r[i:i + 1], answers[i:i + 1])
                          for i in range(len(r))])
    step = expected_step(by_readme, even)
    moved = step - step.mean()  # of log pi, from an even policy
    assert moved[1] > 0.01 and moved[[0, 2, 3, 4]].max() < 0, (script, moved)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_pasted_list_trains(script):
    """200 steps of the newcomer's file, sampled, 8 prompts a step that share a policy of five completions."""
    weight = {name: row for name, row, *_ in copying_out()}[script]
    namespace, generator = pasted(script, weight), torch.Generator().manual_seed(0)
    theta = torch.zeros(5, requires_grad=True)
    for _ in range(200):
        logp = torch.log_softmax(theta, 0)
        y = torch.multinomial(logp.detach().exp(), 8 * M, replacement=True, generator=generator).view(8, M)
        answers = [[ANSWERS[i] for i in row] for row in y.tolist()]
        c = coefficients_by_readme(script, namespace, torch.tensor(RIGHT)[y], answers)
        if c.shape[1] == M + 1:
            y = torch.cat([torch.ones(8, 1, dtype=torch.long), y], 1)
        loss = -(c * logp[y]).sum() / 8
        gradient, = torch.autograd.grad(loss, theta)
        theta = (theta - 0.5 * gradient).detach().requires_grad_()
    p = torch.softmax(theta, 0)
    print(script, p[1].item())
    assert p[1] > 0.6 and p[[0, 2, 3, 4]].max() < 0.2, (script, p)


def test_copying_out_the_whole(tmp_path):
    """The scripts run with the files that the README lists beside them, and nothing else of this project. (That none
    needs another one is in test_copies_are_identical.)"""
    section = readme().split("## Copying out")[1].split("\n## ")[0]
    listed = re.search(r"The whole algorithm is the script with (.*?) beside\s+it", section, re.DOTALL)[1]
    for name in [*(f"{script}.py" for script in SCRIPTS), *re.findall(r"`([\w./]+)`", listed)]:
        if name.endswith("/"):
            shutil.copytree(os.path.join(ROOT, name), tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(os.path.join(ROOT, name), tmp_path / name)
    flags = [*map(str, SMALL), "--task", "countdown"]
    program = "import importlib, json, sys\nfor script, flags in json.loads(sys.argv[1]):\n" \
              "    importlib.import_module(script).main(flags)"
    runs = [[script, [*flags, "--k" if script == "ppo_passk" else "--n", "4", "--out", script]] for script in SCRIPTS]
    done = subprocess.run([sys.executable, "-c", program, json.dumps(runs)], cwd=tmp_path, capture_output=True,
                          text=True, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert all(os.path.exists(tmp_path / script / "result.json") for script in SCRIPTS)


def test_requirements():
    """Whatever is imported is listed, or comes with what is listed; TRL is for a comparison that asks for it."""
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
    assert modules - own - listed - with_them - sys.stdlib_module_names <= {"trl"}
    assert {"numpy", "mpmath"} <= listed & modules
