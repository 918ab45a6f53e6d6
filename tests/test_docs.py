"""The pages: words, links, lines, formulas, commands, figures; the functions to paste run, and so do those for TRL."""
import functools
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zlib

import pytest
import references
import render
import torch
from conftest import ROOT
from references import SCRIPTS, blocks, pages, source, taken
from test_house import SMALL

OTHERS = ["results/README.md", "results/claims.md", "results/elsewhere.md", "results/which.md"]
HEADINGS = ["The question", "The objective", "From the definition to the coefficient",
            "From equation to line, test and result", "A first run", "Differences from the paper",
            "The paper's settings", "Copy it out", "In TRL", "Exercises"]


@functools.cache
def page(script):
    return source(references.page_of(script))


def part(script, heading):
    """The text below a heading of a script's page."""
    return page(script).split(f"\n## {heading}\n")[1].split("\n## ")[0]


# ----------------------------------------------------------------------------------------------------------- the pages

@pytest.mark.parametrize("script", SCRIPTS)
def test_a_page_is_short_and_built_like_the_others(script):
    assert 700 <= len(references.prose(page(script))) <= 1200, len(references.prose(page(script)))
    headings = re.findall(r"^## (.+)$", page(script), re.MULTILINE)
    assert headings in (HEADINGS, HEADINGS[:-1])
    exercises = part(script, "Exercises") if len(headings) == len(HEADINGS) else ""
    assert exercises.count("<details>\n<summary>") == exercises.count("</summary>\n\n") <= 4
    assert exercises.count("\n\n</details>") == exercises.count("<details>")


@pytest.mark.parametrize("path", pages())
def test_lines_and_claims_are_where_the_links_say(path):
    assert references.mended(path) == source(path), "python tests/references.py"


def test_numbers_are_written_anew(tmp_path, monkeypatch, capsys):
    """Lines, claims and sizes of lists after the code has moved; what cannot be found is one sentence."""
    monkeypatch.setattr(references, "ROOT", str(tmp_path))
    for folder in ("docs", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "results" / "claims.md").write_text("# Claims\n\n### `more`: in part\n\n### `more-yet`: holds\n")
    (tmp_path / "common.py").write_text("import os\n\n\ndef kl(x):\n    return x\n")
    (tmp_path / "ppo_passk.py").write_text("def kl_of(x):\n    y = x[0] * 2\n    return y\n\n\nclass A:\n    pass\n")
    (tmp_path / "README.md").write_text("`common.py:1` `kl`\n")
    page = tmp_path / "docs" / "ppo_passk.md"
    page.write_text("[`A`](../ppo_passk.py#L1), [`y = x[0] * 2`](../ppo_passk.py#L1)\n"
                    "[`more`](../results/claims.md#more-holds)\n```\nweight 9  kl_of A\nloss 9  common.kl\n```\n")
    references.main()
    assert capsys.readouterr().out == "README.md\ndocs/ppo_passk.md\n"
    assert (tmp_path / "README.md").read_text() == "`common.py:4` `kl`\n"
    assert page.read_text() == (
        "[`A`](../ppo_passk.py#L6), [`y = x[0] * 2`](../ppo_passk.py#L2)\n"
        "[`more`](../results/claims.md#more-in-part)\n```\nweight   5  kl_of A\nloss     2  common.kl\n```\n")
    references.main()
    assert not capsys.readouterr().out
    for words in ("[`B`](../ppo_passk.py#L1)", "[`return`](../common.py#L1)", "[`x`](../ppo_passk.py#L1)",
                  "[`less`](../results/claims.md#less-holds)"):
        page.write_text(words)
        with pytest.raises(LookupError):
            references.main()


@pytest.mark.parametrize("text,wanted", [
    ("# One `two` [three](x.md), four!\n## One\n## One\n", {"one-two-three-four", "one", "one-1"}),
    ("```\n# no\n```\n### `a-b`: in part\n", {"a-b-in-part"})])
def test_anchors(text, wanted):
    assert references.anchors(text) == wanted


def test_what_counts_as_a_word_and_as_a_formula():
    text = ("# Title\nOne $`x_1`$ two `code` [three](a.md) $y$ costs 5$ or 6.\n\n$$\nz\n$$\n| cell |\n```\ncode\n```\n"
            "<details>\n<summary>why</summary>\n\nmore\n</details>\n")
    assert references.prose(text) == ["One", "two", "three", "costs", "5$", "or", "6."]
    assert references.formulas(text) == [("x_1", False), ("y", False), ("z", True)]


@pytest.mark.parametrize("path", [*pages(), *OTHERS])
def test_links(path):
    """Files and anchors are there; a picture says in words what it shows."""
    found = references.links(source(path))
    assert found
    for picture, words, target in found:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path
        assert os.path.exists(os.path.join(ROOT, file)), target
        if picture:
            assert len(words.split()) >= 4, words
        elif file.endswith(".md") and anchor:
            assert anchor in references.anchors(source(file)), target
        elif anchor:
            assert 1 <= int(anchor.removeprefix("L")) <= source(file).count("\n"), target


@pytest.mark.parametrize("script", SCRIPTS)
def test_equations_are_numbered_and_found(script):
    """Each number has a row with a line of the code and a test; tests and claims are named by what they are."""
    numbers = [int(n) for tex, _ in references.formulas(page(script)) for n in re.findall(r"\\tag\{(\d+)\}", tex)]
    assert numbers == [*range(1, len(numbers) + 1)] and len(numbers) >= 5
    rows = re.findall(r"^\| \((.+)$", part(script, HEADINGS[3]), re.MULTILINE)
    found = set()
    claims = 0
    for row in rows:
        first, line, test, result, _ = ("(" + row).split(" |")
        for start, stop in re.findall(r"\((\d+)\)(?: to \((\d+)\))?", first):
            found |= {*range(int(start), int(stop or start) + 1)}
        assert re.search(r"\.py#L", line) and not re.search(r"\.\./tests/", line), row
        assert re.fullmatch(r"( \[`test_\w+`\]\(\.\./tests/test_\w+\.py#L\d+\),?)+", test), row
        claims += result.count("results/claims.md#")
    assert found == {*numbers} and claims >= 2


@pytest.mark.parametrize("path", pages())
def test_formulas_survive_markdown(path):
    """What a reader of Markdown would take for its own: a backslash before punctuation is eaten, < begins a tag, | ends
    a cell, * may begin emphasis; a line that begins with - or = is an item or a heading."""
    for tex, display in references.formulas(source(path)):
        assert not re.search(r"\\[^a-zA-Z]|<|\*", tex), tex
        assert tex.count("{") == tex.count("}")
        assert display or not re.search(r"\||\n", tex), tex
        assert not display or not re.search(r"^\s*[-+=>#|]", tex, re.MULTILINE), tex
    left = references.without_code(source(path))
    assert "$" not in re.sub(r"`[^`]*`", "", left), re.findall(r".*\$.*", left)


@pytest.mark.parametrize("script", SCRIPTS)
def test_figures_with_an_interval_are_those_of_the_records(script):
    number = r"[+-]\.\d{3}"
    records = " ".join("".join(map(source, OTHERS)).split())
    text = " ".join(page(script).split())
    for figure in re.findall(rf"{number} \[{number}, {number}\]", text):
        assert figure in records, figure


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_exist(script):
    """Those named outside of commands, too. (Commands are in test_readme_commands_parse.)"""
    known = importlib.import_module(script).parser().format_help()
    for span in re.findall(r"`([^`]*)`", references.FENCE.sub("", page(script))):
        text = known
        if other := re.match(r"(?:python )?(\w+)\.py .*--", span):
            text = importlib.import_module(other[1]).parser().format_help()
        for flag in re.findall(r"--[a-z][a-z-]*", span):
            assert re.search(rf"{flag}\b(?!-)", text), (span, flag)


def shown(table):
    """[(first cell, [the numbers of each other cell])] of the rows of a table that hold numbers alone."""
    rows = [line.strip("|").split("|") for line in table.split("\n") if re.fullmatch(r"[| .,\d-]*\d[| .,\d-]*", line)]
    return [(row[0].strip(), [cell.strip().split(", ") for cell in row[1:]]) for row in rows]


def as_printed(value, text):
    """Whether a value, rounded as the text is, is that text."""
    return abs(value - float(text)) <= 0.501 * 10.0 ** -len(text.partition(".")[2])


def test_the_coefficients_shown_for_bon_rl():
    from bon_rl import variant_coefficients
    rows = shown(part("bon_rl", HEADINGS[2]).split("**What it does.**")[1])
    assert len(rows) == 4
    for right, cells in rows:
        r = torch.tensor([[1.0] * int(right) + [0.0] * (16 - int(right))])
        for variant, texts in zip(("bp", "b", "s", "rl"), cells, strict=True):
            c = variant_coefficients(variant, r, None, 8)[0]
            values = [c[0], c[-1]][:len(texts)]
            assert all(map(as_printed, values, texts)), (right, variant, values)


def test_the_coefficients_shown_for_cat_bon():
    from cat_bon import rl_coefficients
    table = part("cat_bon", HEADINGS[2]).split("**What it does.**")[1]
    places = [int(x) for x in re.search(r"\| place from the top \|(.*)\|\n", table)[1].split("|")]
    rewards = torch.arange(16.0).flip(0)[None]
    for name, call in (("`--n 1`", (1,)), ("`rank`", (8,)), ("`exact`", (8, "exact"))):
        texts = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", table, re.MULTILINE)[1].split("|")
        c = rl_coefficients(rewards, *call)[0]
        for place, text in zip(places, texts, strict=True):
            assert as_printed(c[place - 1].item(), text.strip()), (name, place)


def test_maxrl_as_an_operator():
    """The operator on docs/cat_passk.md: its slope is the sum of (1/j) slopes of pass@j; times the log weight of Pass@N
    it is the raw one; --operator takes it."""
    from cat_passk import check_operator, passn_weight, powers, weight_of
    space = {}
    code, = (block for block in blocks(page("cat_passk"), "python") if "def maxrl" in block)
    exec(code, space)
    maxrl = space["maxrl"]
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    for n in (1, 2, 5, 16):
        w = weight_of(p, n, "raw", maxrl)
        assert torch.allclose(w, sum(passn_weight(p, j, "raw") / j for j in range(1, n + 1)), rtol=1e-12, atol=0)
        assert torch.allclose(w, powers(1 - p, n), rtol=1e-12, atol=0)
        assert torch.allclose(w * passn_weight(p, n, "log"), passn_weight(p, n, "raw"), rtol=1e-12, atol=0)
        for form in ("raw", "log"):
            check_operator(maxrl, n, form, "maxrl")


def test_docstrings_link_the_pages():
    for script in SCRIPTS:
        assert f"\nDerivation: {references.page_of(script)}" in importlib.import_module(script).__doc__, script


def test_readme_is_one_screen_and_a_little():
    """At most 1,000 words, the first command in the first 15 lines, and a way to every page."""
    text = source("README.md")
    assert len(text.split()) <= 1000
    assert "\npython ppo_passk.py " in "\n".join(text.split("\n")[:15])
    for path in pages():
        assert path == "README.md" or f"]({path}" in text or f"]({os.path.basename(path)}" in source("docs/running.md")


@pytest.mark.parametrize("path", [*pages(), *OTHERS])
def test_pages_render(path):
    """As tests/render.py has it, with KaTeX where KATEX names the folder that npm installed it into."""
    pytest.importorskip("markdown_it")
    body, faults = render.convert(path, os.environ.get("KATEX"))
    assert faults + render.dead(path, body) == []
    assert "FORMULA" not in body and body.count("<h1>") == 1


# --------------------------------------------------------------------------------------------------------- copying out

MARK = "# paste here\n"


def copying_out(script):
    """What a page says of pasting -> (its lists, the code above the functions, the code below them)."""
    block, = blocks(part(script, "Copy it out"), "python")
    above, below = block.split(MARK)
    return references.lists(script), above, below


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


def pasted(script, *kinds):
    """What is there after lists were pasted into an empty file."""
    lists, above, _ = copying_out(script)
    names = [name for kind in kinds for name in lists.get(kind, ([], 0))[0]]
    namespace = {}
    exec(above + taken(script, names)[0], namespace)
    return namespace


@pytest.mark.parametrize("script", SCRIPTS)
def test_copying_out_the_weight_and_the_loss(script):
    """Each list, pasted below its imports, runs with torch alone and says what the script says."""
    values = {"r": torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]]), "p": torch.tensor([1e-9, 0.1, 0.5, 0.99]),
              "answers": [["a", "b", "a", None], ["c", "c", "b", "a"]], "torch": torch}
    lists, *_ = copying_out(script)
    for names, lines in lists.values():
        assert taken(script, names)[1] == lines, "python tests/references.py"
    for call, kinds in zip(CALLS[script], (["weight"], ["weight", "loss"])):
        found = eval(call, {**pasted(script, *kinds), **values})
        wanted = eval(call, {**vars(importlib.import_module(script)), **values})
        for a, b in zip(found if isinstance(found, tuple) else [found],
                        wanted if isinstance(wanted, tuple) else [wanted], strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), (script, call)


# A newcomer's file: five completions, of which the second is right; the page's lines for coefficients and loss. M
# samples and budget N = 3.
RIGHT, ANSWERS, N, M = [0.0, 1.0, 0.0, 0.0, 0.0], ["a", "b", "c", "c", None], 3, 4


def by_the_page(script, namespace, rewards, answers, logp):
    """The coefficients and the loss of a batch, by the page's own lines below the functions."""
    scores = torch.cat([torch.ones(len(rewards), 1), rewards], 1)  # the gold completion goes first
    namespace = {**namespace, "rewards": rewards, "answers": answers, "n": N, "k": N, "scores": scores, "logp": logp,
                 "B": len(rewards)}
    exec(copying_out(script)[2], namespace)
    return namespace["coefficients"], namespace["loss"]


def expected_step(coefficients, theta):
    """Exact expectation over all V^M draws of minus the gradient of the page's loss, -(coefficients * logp).sum() / B,
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
    """The expected step of the page's loss is the gradient stated, or where the docstring says biased it points where
    that does. The right completion gets likelier and no wrong one does, from an even policy."""
    namespace = pasted(script, "weight")
    for call, objective, exact in STATED[script]:
        step = expected_step(lambda r, answers: eval(call, {**namespace, "rewards": r, "answers": answers,
                                                            "torch": torch}), THETA)
        wanted = gradient(objective, THETA)
        if exact:
            assert torch.allclose(step, wanted, atol=1e-12), call
        cosine = step @ wanted / (step.norm() * wanted.norm())
        assert cosine > 0.9, (call, cosine)
    even = torch.zeros(5, dtype=torch.float64)

    def coefficients(r, answers):
        logp = torch.zeros(len(r), M + (script == "bon_sft"))
        return by_the_page(script, namespace, r, answers, logp)[0]

    def one_by_one(r, answers):  # normalising would tie all draws together
        if script != "cat_passk" and script != "cat_majority":
            return coefficients(r, answers)
        return torch.cat([coefficients(r[i:i + 1], answers[i:i + 1]) for i in range(len(r))])
    step = expected_step(one_by_one, even)
    moved = step - step.mean()  # of log pi, from an even policy
    assert moved[1] > 0.01 and moved[[0, 2, 3, 4]].max() < 0, (script, moved)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_pasted_list_trains(script):
    """200 steps of the newcomer's file, sampled, 8 prompts a step that share a policy of five completions."""
    namespace, generator = pasted(script, "weight"), torch.Generator().manual_seed(0)
    theta = torch.zeros(5, requires_grad=True)
    for _ in range(200):
        logp = torch.log_softmax(theta, 0)
        y = torch.multinomial(logp.detach().exp(), 8 * M, replacement=True, generator=generator).view(8, M)
        answers = [[ANSWERS[i] for i in row] for row in y.tolist()]
        rewards = torch.tensor(RIGHT)[y]
        if script == "bon_sft":
            y = torch.cat([torch.ones(8, 1, dtype=torch.long), y], 1)
        _, loss = by_the_page(script, namespace, rewards, answers, logp[y])
        gradient, = torch.autograd.grad(loss, theta)
        theta = (theta - 0.5 * gradient).detach().requires_grad_()
    p = torch.softmax(theta, 0)
    assert p[1] > 0.6 and p[[0, 2, 3, 4]].max() < 0.2, (script, p)


def test_copying_out_the_whole(tmp_path):
    """The scripts run with the files that the pages list beside them, and nothing else of this project. (That none
    needs another one is in test_copies_are_identical.)"""
    lists = {" ".join(re.search(r"take\s+the\s+whole script, with (.*?) next\s+to it", part(script, "Copy it out"),
                                re.DOTALL)[1].split()) for script in SCRIPTS}
    listed, = lists
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


# ------------------------------------------------------------------------------------------------------------------ TRL

OURS = {  # the coefficients of a budget of 3, rewards [B, M]; in bon_sft.py the first of them is of the gold completion
    "ppo_passk": "advantages(rewards, 3, 'passk')", "bon_sft": "sft_coefficients(rewards, 3)",
    "bon_rl": "bon_rlb_coefficients(rewards, 3, 'positive')", "cat_bon": "rl_coefficients(rewards, 3)",
    "cat_passk": "rl_coefficients(rewards, 3)", "cat_majority": "rl_coefficients(rewards, answers, 3)"}


def snippet(script):
    """The subclass of a page, for TRL."""
    code, = blocks(part(script, "In TRL"), "python")
    return code


def trl_trainer(script, folder, n, **settings):
    """A trainer of the page's class on the embedded model, the rewards that it will have asked for, and the texts."""
    import datasets
    import peft
    import transformers
    import trl
    namespace = {}
    exec(snippet(script), namespace)
    kind, = (x for x in namespace.values() if isinstance(x, type) and x.__module__ == "builtins")
    rewards = []
    texts = []

    def reward(completions, **_):
        texts.extend(completions)
        rewards.extend(float(zlib.crc32(text.encode()) % 4 == 0) for text in completions)
        return rewards[-len(completions):]
    path = os.path.join(ROOT, "models", "tiny")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    rows = [{"prompt": "c4,6,5,8:57>", "gold": "6*8+5+4"}, {"prompt": "c1,9,8:18>", "gold": "9+8+1"}]
    args = trl.GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], save_strategy="no",
                          disable_tqdm=True, beta=0.0, temperature=1.0, max_completion_length=12, num_generations=n,
                          per_device_train_batch_size=2 * n, max_steps=1, loss_type="dr_grpo",
                          gradient_checkpointing=False, **settings)
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = kind(model=model, processing_class=tokenizer, reward_funcs=reward, peft_config=lora, args=args,
                   train_dataset=datasets.Dataset.from_list(rows))
    return trainer, rewards, texts, [row for row in rows for _ in range(n)]


def gradient_of(loss, model):
    found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return torch.cat([g.flatten() for g in found])


def test_a_wrapped_reward_is_biased():
    """What docs/ppo_passk.md says of coefficients minus the mean of their group: .625 instead of .5, exactly."""
    from ppo_passk import advantages
    k, n = 4, 8
    rewards = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)
    A = advantages(rewards, k, "passk")
    for p in (0.5, 0.1, 0.7):
        chance = (rewards * p + (1 - rewards) * (1 - p)).prod(1)
        slope = rewards / p - (1 - rewards) / (1 - p)  # of log pi, by p
        exact, wrapped = ((chance * (c * slope).sum(1)).sum() for c in (A, A - A.mean(1, keepdim=True)))
        bias = k / n * ((1 - p) ** (k - 1) - (k - 1) * p * (1 - p) ** (k - 2))
        assert exact.item() == pytest.approx(k * (1 - p) ** (k - 1))
        assert wrapped.item() == pytest.approx(exact.item() - bias)
        assert p != 0.5 or (exact.item(), wrapped.item()) == pytest.approx((0.5, 0.625))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_gradient_in_trl_is_ours(script, tmp_path):
    """One batch of TRL's own samples: its loss with the page's class, and minus the sum of coefficient times log pi
    over the number of prompts, have one gradient. A step of its trainer runs."""
    pytest.importorskip("trl")
    assert len(snippet(script).strip().split("\n")) <= 25
    n = 8
    trainer, rewards, texts, batch = trl_trainer(script, tmp_path, n)
    trainer.budget = 3
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions(batch)
    theirs = gradient_of(trainer.compute_loss(trainer.model, inputs), trainer.model)
    if script == "bon_sft":
        first = trainer.processing_class.batch_decode(inputs["completion_ids"][::n], skip_special_tokens=True)
        assert first == [row["gold"] for row in batch[::n]]
    r = torch.tensor(rewards).view(2, n)
    answers = [[text.strip() or None for text in texts[:n]], [text.strip() or None for text in texts[n:]]]
    names = {"rewards": r, "answers": answers}
    coefficients = eval(OURS[script], {**vars(importlib.import_module(script)), **names})
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    T = inputs["completion_ids"].shape[1]
    logits = trainer.model(input_ids=ids, attention_mask=mask, position_ids=position).logits[:, -T - 1:-1]
    logp = torch.log_softmax(logits, -1).gather(-1, ids[:, -T:, None])[..., 0]
    logp = (logp * inputs["completion_mask"]).sum(1).view(2, n)
    ours = gradient_of(-(coefficients * logp).sum() / 2, trainer.model)
    assert coefficients.any() and ours.norm() > 1e-3
    assert torch.allclose(theirs, ours, rtol=1e-3, atol=1e-5 * ours.norm().item()), (theirs.norm(), ours.norm())
    trainer.train()
