"""The embedded tasks: splits, gold solutions, forged completions, vote keys."""
import cmath
import itertools
import math
import random
import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT

import tasks


def test_the_package_is_light_and_hides_no_module_of_the_standard_library():
    names = [path.stem for path in Path(ROOT, "tasks").glob("*.py")]
    assert len(names) >= 7 and not set(names) & sys.stdlib_module_names
    code = ("import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
            "print([name for name in ('torch', 'numpy', 'transformers', 'datasets', 'sympy') if name in sys.modules])")
    only_in_children = {"__init__", "values"}  # tasks.values computes with sympy, where a hard limit ends it
    modules = ["tasks", *(f"tasks.{name}" for name in names if name not in only_in_children)]
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module", params=list(tasks.EMBEDDED_TASKS))
def task(request):
    return tasks.load_task(request.param)


@pytest.fixture(scope="module")
def countdown():
    return tasks.load_task("countdown")


@pytest.fixture(scope="module")
def routes():
    return tasks.load_task("routes")


def key(prompt, answer):
    """What makes two problems the same, read off the prompt: the numbers (sums) in any order, and the target; the
    function of degree 2 or less through the examples, as its values at 0, 1 and 2."""
    if prompt.startswith(">"):
        return (prompt,)
    if prompt.startswith("0:"):
        return quadratic(prompt)(0), quadratic(prompt)(1), quadratic(prompt)(2)
    if prompt.startswith("c"):
        numbers, target = re.fullmatch(r"c([\d,]+):(\d+)>", prompt).groups()
        return tuple(sorted(map(int, numbers.split(",")))), int(target)
    return tuple(sorted(re.findall(r"\d\+\d", prompt))), int(answer)


def quadratic(prompt):
    """Lagrange's formula through the three examples of a prompt of `program`."""
    points = [tuple(map(int, example.split(":"))) for example in prompt[:-1].split(",")]
    (a, _), (b, _), (c, _) = points
    others = {a: (b, c), b: (a, c), c: (a, b)}
    return lambda x: sum(Fraction(y * (x - others[at][0]) * (x - others[at][1]),
                                  (at - others[at][0]) * (at - others[at][1]))
                         for at, y in points)


def test_splits_are_disjoint_up_to_order(task):
    splits = [[key(p.prompt, p.answer) for p in split] for split in (task.train, task.valid, task.test)]
    assert [len(split) for split in splits] == [4000, 400, 400]
    assert len(set(itertools.chain(*splits))) == 4800
    ids = [p.id for p in task.train + task.valid + task.test]
    assert len(set(ids)) == 4800


def test_same_problems_in_every_process(task):
    assert task.valid[:50] == type(task)(sizes=(0, 50, 0)).valid


def test_stream_keeps_out_of_valid_and_test(task):
    # A routes prompt does not show its answer, so a line of the stream is compared by its sums.
    held_out = {key(p.prompt, p.answer)[0 if task.name == "routes" else slice(None)] for p in task.valid + task.test}
    stream = task.stream(random.Random(1))
    for prompt, completion in itertools.islice(stream, 20_000):
        assert key(prompt, 0)[0 if task.name == "routes" else slice(None)] not in held_out
        assert task.extract(completion) is not None


def test_gold_solutions_verify(task):
    assert all(p.solution is not None for p in task.train) or task.name in ("routes", "peptide")
    for p in task.train + task.valid + task.test:
        if p.solution is not None:
            assert task.verify(p, p.solution) == 1.0 and len(p.solution) <= task.max_new_tokens


@pytest.mark.parametrize("completion", [
    "", "7*3", "7*3+2+2", "7*3+2+2-2", "7*3+3", "7+7+7+2", "9+9+5", "7*3+2*1", "7+3*2", "3*7+2 ", " 7*3+2", "7*3+2\n",
    "7*3+2=23", "7**3+2", "7*3++2", "7*3+-2+4",
    "+7*3+2", "-2+7*3", "(7*3)+2", "7*3+2>", "73+2", "7*3+\u0662", "7*3+\uff12", "7*3+\u00b2", "7*3+2#", "0+7*3+2",
    "7*3+2.0", "7*3+2\x00", "23", "7*3+2" * 100_000, "1" * 100_000, "7*" * 100_000])
def test_countdown_scores_forged_completions_zero(countdown, completion):
    problem = tasks.Problem("x", "c7,3,2:23>", "2,3,7:23")
    assert countdown.verify(problem, "7*3+2") == countdown.verify(problem, "2+3*7") == 1.0
    assert countdown.verify(problem, completion) == 0.0


def test_countdown_wants_every_number_used(countdown):
    problem = tasks.Problem("x", "c7,3,1:21>", "1,3,7:21")
    assert [countdown.verify(problem, text) for text in ("7*3", "7*3*1", "7*3*1*1")] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("completion", [
    "", "A3+8", "A3+8=", "A3+8=12", "H3+8=11", "3+8=11", "A3+8=11 ", "A3+8=11\n", "A3+8=011", "A3+8=\u0661\u0661",
    "A3+8=11=11", "11", "A3+8=1" + "1" * 100_000])
def test_routes_scores_forged_completions_zero(routes, completion):
    problem = tasks.Problem("x", "rA3+8B...>", "11")
    assert routes.verify(problem, "A3+8=11") == 1.0
    assert routes.verify(problem, completion) == 0.0


def orbit(expression):
    """All ways to write an expression that differ in the order of its terms and factors, by brute force."""
    terms = [(term[0] == "-", term.strip("+-").split("*")) for term in re.findall(r"[-+]?[^-+]+", expression)]
    for order in itertools.permutations(terms):
        for factors in itertools.product(*(itertools.permutations(f) for _, f in order)):
            if not order[0][0]:  # the first term has no sign to write a minus with
                yield "".join("+-"[minus] + "*".join(f) for (minus, _), f in zip(order, factors))[1:]


@pytest.mark.parametrize("digits", ["237", "223", "2233"])
def test_countdown_vote_key_is_the_expression_up_to_order(countdown, digits):
    expressions = {"".join(itertools.chain(*zip(order, (*operators, ""))))
                   for order in set(itertools.permutations(digits))
                   for operators in itertools.product("+-*", repeat=len(digits) - 1)}
    for expression in expressions:
        same = {other for other in expressions if countdown.extract(other) == countdown.extract(expression)}
        assert same == set(orbit(expression))


def test_vote_key_of_no_answer_is_none(task):
    assert [task.extract(text) for text in ("", "hello", "c1,2,3:6>")] == [None, None, None]


def test_routes_are_sound_as_often_as_the_table_says(routes):
    rng, n, sound = random.Random(2), 20_000, dict.fromkeys(routes.sound, 0)
    for _ in range(n):
        _, prompt, answer, solution, _ = routes.generate(rng)
        sums = {label: int(a) + int(b) for label, a, b in re.findall(r"([A-G])(\d)\+(\d)", prompt)}
        assert set(sums) == set(routes.sound)
        unsound = [value for value in sums.values() if value != int(answer)]
        assert len(set(unsound)) == len(unsound)  # they never agree with each other
        assert (solution is None) == (len(unsound) == len(sums))
        for label, value in sums.items():
            sound[label] += value == int(answer)
    for label, share in routes.sound.items():
        assert abs(sound[label] / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_routes_corpus_follows_its_table(routes):
    n, stream = 20_000, routes.stream(random.Random(3))
    labels = [completion[0] for _, completion in itertools.islice(stream, n)]
    for label, share in routes.corpus.items():
        assert abs(labels.count(label) / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_rewards_judges_identical_pairs_once(countdown, monkeypatch):
    judged, verify = [], countdown.verify
    monkeypatch.setattr(countdown, "verify", lambda p, c: judged.append((p.id, c)) or verify(p, c))
    first, second = countdown.train[:2]
    problems = [first, first, second, first, second]
    completions = [first.solution, "1", first.solution, first.solution, second.solution]
    assert countdown.rewards(problems, completions) == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert len(judged) == len(set(judged)) == 4
    with pytest.raises(ValueError):
        countdown.rewards(problems, completions[:-1])


def test_need(countdown):
    assert countdown.need("test") == countdown.test
    empty = tasks.Countdown(sizes=(0, 0, 0))
    with pytest.raises(tasks.UserError, match="countdown has no train problems"):
        empty.need("train")


# -------------------------------------------------------------------------------------------------------------- program

@pytest.fixture(scope="module")
def program():
    return tasks.Program(sizes=(500, 0, 0))


def test_program_hidden_tests_are_other_inputs_of_the_same_function(program):
    for p in program.train:
        examples = [tuple(map(int, e.split(":"))) for e in p.answer.split(",")]
        assert len({x for x, _ in examples} | {int(e.split(":")[0]) for e in p.prompt[:-1].split(",")}) == 3 + 4
        assert all(quadratic(p.prompt)(x) == y for x, y in examples)


def test_program_wants_the_hidden_outputs_too(program):
    problem = tasks.Problem("x", "0:3,1:6,2:13>", "5:58,-4:31")  # 2*x*x + x + 3
    for right in ("2*x*x+x+3", "x*(2*x+1)+3", "3+x+x*x*2", "-(-3-x)--2*x*x", "(x+1)*(2*x-1)+4", "((((2*x*x))))+x+3"):
        assert program.verify(problem, right) == 1.0 and program.extract(right) == "3,1,2"
    for wrong in ("2*x*x+x+3+x*(x-1)*(x-2)", "2*x*x+x+3-x*(x-1)*(x-2)*(x-5)", "2*x*x+x+4", "x*x+2*x+3", "5*x+3",
                  "3", "0"):
        assert program.verify(problem, wrong) == 0.0 and program.extract(wrong) not in (None, "3,1,2")


@pytest.mark.parametrize("completion", [
    "", "x+", "2x", "x2", "(x)(x)", "x(1)", "2(3)", "()", "+x", "x**1", "x//1", "x/1", "x%7", "~x", "x+1.0", "x+1e1",
    "x@x", "x<x", "xx", "x*0x1", "0x1", "x+01", "1_0*x", "x+1j", "x if x else x", "x;x", "x,x", "[x]", "x\n", " x",
    "x ", "x\t", "(x\n)", "x#", "x>", "x=x", "x:=x", "X", "y", "\uff12*x", "\u0662*x", "2*\u0445", "\u00b2", "x\u2212x",
    "x\x00", "\x00", "\ud800", "__import__('os')", "x.real", "lambda x:x", "x*x*x*x*x*x*x*x*x",
    "(x*x*x*x*x)*(x*x*x*x)*0", "9999*9999*9999", "10000", "-" * 40 + "x", "x" + "+x" * 32, "(" * 32 + "x" + ")" * 32,
    "(" * 100_000, "(" * 100_000 + "x" + ")" * 100_000, "-" * 100_000 + "x", "9" * 100_000, "x*" * 100_000 + "x",
    "x" * 10_000_000, "9*" * 31 + "99"])
def test_program_is_none_of_these(program, completion):
    problem = tasks.Problem("x", "0:0,1:1,2:2>", "5:5,-3:-3")
    assert program.verify(problem, "x") == 1.0 and program.extract("x") == "0,1"
    started = time.process_time()
    assert program.verify(problem, completion) == 0.0 and program.extract(completion) is None
    assert time.process_time() - started < 0.5


def random_expression(rng, depth):
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(["x", str(rng.randint(0, 12))])
    if rng.random() < 0.15:
        return f"-({random_expression(rng, depth - 1)})"
    left, right = random_expression(rng, depth - 1), random_expression(rng, depth - 1)
    return rng.choice(["({}){}({})", "{}{}{}", "({}){}{}"]).format(left, rng.choice("+-*"), right)


def test_program_vote_key_is_the_function(program):
    """Programs share a key exactly if Python computes the same from 10 inputs: more than the highest degree."""
    rng, keys = random.Random(0), {}
    for _ in range(2000):
        text = random_expression(rng, 3)
        key = program.extract(text)
        if len(text) <= 64 and key is not None:
            keys.setdefault(tuple(eval(text, {"x": x}) for x in range(-5, 5)), set()).add(key)
    assert len(keys) > 700 and all(len(found) == 1 for found in keys.values())
    assert len(set.union(*keys.values())) == len(keys)


def test_program_judges_20_000_programs_a_second(program):
    rates = []
    for _ in range(3):
        started = time.process_time()
        assert all(program.verify(p, p.solution) for p in program.train)
        rates.append(len(program.train) / (time.process_time() - started))
    assert max(rates) > 20_000  # about 70,000 on the machine this was written on


def test_program_corpus_writes_one_function_in_several_ways(program):
    seen = {}
    for _, text in itertools.islice(program.stream(random.Random(0)), 4_000):
        assert len(text) <= program.max_new_tokens - 1  # the end-of-sequence token is one more
        seen.setdefault(program.extract(text), set()).add(text)
    assert sum(len(texts) > 1 for texts in seen.values()) > 100


# -------------------------------------------------------------------------------------------------------------- peptide

def test_peptide_moment():
    """By complex numbers; only the first 18 residues count, missing ones count as 0, anything else is worth 0."""
    task = tasks.load_task("peptide")
    problem = tasks.Problem("x", ">KLWE", "KLWE")

    def moment(chain):
        turn = 1j * math.radians(100)
        return abs(sum(tasks.RESIDUES[a] * cmath.exp(turn * n) for n, a in enumerate(chain))) / 18
    for completion in ("ALKRIVDLLKEGLR", "ALKRIVDLLKEGLRAAAAAAAA", "ALK", "", "IIIIIIIIIIIIII"):
        assert task.verify(problem, completion) == pytest.approx(moment(("KLWE" + completion)[:18]))
    assert task.verify(problem, "ALK\nRIV\n") == task.verify(problem, "ALKRIV")  # models that break lines
    assert [task.verify(problem, c) for c in ("ALXB", "alk", "A-L", "A\u0410")] == [0.0] * 4
    assert task.verify(problem, "ALKRIVDLLKEGLR" + "?") == task.verify(problem, "ALKRIVDLLKEGLR")
    assert task.extract("AL\nK") == "ALK" and task.extract("") is None
    # The published scale's sum.
    assert sum(tasks.RESIDUES.values()) == pytest.approx(-9.8) and len(tasks.RESIDUES) == 20
    best = "".join("I" if math.cos(math.radians(100) * n) > 0 else "R" for n in range(18))
    assert 2.7 < moment(best) < 2.9


def test_peptide_corpus_is_mediocre():
    task = tasks.Peptide(sizes=(0, 0, 0))
    rewards = [task.verify(tasks.Problem("x", p, p[1:]), c)
               for p, c in itertools.islice(task.stream(random.Random(0)), 2000)]
    assert 0.7 < sum(rewards) / 2000 < 0.9 and max(rewards) < 2.4
