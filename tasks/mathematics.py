r"""Answers compared as mathematics: what the answer of a completion is, and which answers are equal.

`answers.py` finds an answer and normalises its spelling. `values.py` computes its normal form with sympy, in a child
process. Sums, products, integrals and limits are left to math-verify. An unreadable answer equals only the same text.

Conventions for debatable cases (gold | equal | not equal), as tested in tests/test_tasks_math.py:

    letter case counts in formulas, not in words      R-r | -r+R | r-R;  \text{Maria} | maria |
    '1,200' is a number; with a space, or in a        1200 | 1,200 | 1, 200;  (1,200) | (1, 200) | 1200
        bracket, a comma separates
    elements of lists and sets in any order           100, 200 | 200 and 100; \{100,200\} | 100200
    those of tuples and matrices in theirs            (1,2) | 1,2 | (2,1); 2,1
    e is Euler's but in one number as a whole         e^2-2e+1 | (e-1)^2 | e^2-20;  1500 | 1.5e3 |
    exact sides are compared exactly                  1-\frac{1}{2^{60}} | \frac{2^{60}-1}{2^{60}} | 1-\frac{1}{2^{61}}
    a decimal stands for what is rounded or cut to    \frac23 | 0.666667; 0.666666 | 0.67; 0.666668
        it, with six decimal places and four digits
    ratios up to a factor; of two also the quotient   2:3 | 4:6; \frac23 | 3:2;  1:2:3 | 2:4:6 | \frac16
    capitals alone are a name, other letters factors, AB | \text{AB} | BA;  xy | yx |;  mgh | ghm | Mgh
        if they have no vowel or are fewer than three
    words: no case, no points, pieces in any order    \text{Paris, France} | paris, france. | \text{Paris}
    a name before = is needed on no side, but two     y=3 | 3 | x=3
        different ones differ; one of several letters x+y=3 | y+x=3 | 3;  204 | m+n=204 |
        may be missing in the gold answer only
    of a chain the last value counts, before any ≈    5 | S=2+3=5; \sqrt{25}=5 | 6;  2\pi | 2\pi\approx6.28 | 6.28
    named values count in the order of their names,   (2,1) | x=2,\ y=1; y=1,\ x=2; y=2,\ x=1 | x=1,\ y=2
        and as written; x_1 and x_2 in any            x_1=1,\ x_2=2 | x=2\text{ or }x=1; (1,2) | 1,3
    an equation of a number is not that number        5 | 2+3=5 | n^2=5; -x=5
    a unit is needed on no side, but units of         5\text{ km} | 5; 5\text{ kilometers} | 5\text{ m}; 5000\text{ m}
        another size differ, and none is converted;   45^\circ | 45 | 45\%
        so do percent, degrees and dollars
    things of several kinds keep their names          3\text{ cats, }2\text{ dogs} | 2 dogs, 3 cats | 2 cats, 3 dogs
    a choice is its letter or what stands beside it   B | \text{(B) }12 | \text{(C) }12;  12 | (B)\ 12 | (B)\ 13
    percent is the number or its hundredth            50\% | 0.5; 50 | 0.05
    degrees are their number, but angles in functions 60^\circ | 60 | \frac{\pi}{3};  \sin 30^\circ | \frac12 |
    (a,b) is also an interval, if the other side is   (0,7) | 0<x<7 | 0\le x\le 7
    k, m and n are the same in a family with π        k\pi | n\pi,\ n\in\mathbb{Z} | 2k\pi;  k\pi r | | n\pi r
    what follows 'for', 'where' or 'with' is ignored  2^n-1 | 2^n-1\text{ for all }n | 2^n
    remainders are equal modulo the same number       7\pmod{12} | 19 \bmod 12 | 7\pmod{13}

A reward compares two normal forms, a vote counts keys. They agree except where equality is not transitive. Answers
without a name or unit vote together with those that have one (x=3, 3 and y=3; 5 km, 5 and 5 m). Separate keys have 50\%
and 0.5 and 50; 0.333333 and 1/3; the equation y-2x=3 and y=2x+3, which votes as 2x+3. x+y=3 votes as 3, (B) 12 as 12,
and x_1=1, x_2=2 as (1,2).
"""
import importlib.util
import json
import math
import operator
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

from support.errors import UserError

from .answers import LATEX, clean, final_answer, glance
from .embedded import Task
from .workers import WorkerPool


class Math(Task):
    """Answers compared as mathematics: `final_answer` finds the answer of a completion, `judge` compares."""

    def __init__(self, name, train, valid, test, max_new_tokens=512):
        super().__init__()
        if importlib.util.find_spec("math_verify") is None:
            raise UserError("math answers are compared by math-verify, which is not installed: pip install math-verify")
        self.name, self.max_new_tokens = name, max_new_tokens
        for split, problems in zip(("train", "valid", "test"), (train, valid, test)):
            setattr(self, split, [p for p in problems if p.answer and clean(p.answer)])
            if len(problems) > len(getattr(self, split)):
                self.counts[f"{split}_without_answer"] = len(problems) - len(getattr(self, split))
        self.pool, self.memo = VerifierPool(), {}
        self.unanswered = None  # a completion, while none that was judged had an answer; then ""

    def target(self, problem, kind="solution"):
        return f"\\boxed{{{problem.answer}}}" if kind == "answer" else problem.solution

    def extract(self, completion):
        """The key of the final answer, shared by equal answers, or None."""
        answer = final_answer(completion)
        if answer is None or glance(answer).key:
            return answer and glance(answer).key
        verdict = self.judge([(answer,)])[0]
        return answer if verdict in ("timeouts", "errors") else verdict

    def verify(self, problem, completion):
        return self.rewards([problem], [completion])[0]

    def rewards(self, problems, completions):
        """1.0 if the final answer equals the gold answer; each distinct pair is judged once. Undecided pairs score 0.0
        and are counted in `.counts`."""
        pairs = [(clean(p.answer) or "", final_answer(c)) for p, c in zip(problems, completions, strict=True)]
        if self.unanswered != "" and completions:
            self.unanswered = "" if any(answer is not None for _, answer in pairs) else completions[0]
        return [float(verdict is True) for verdict in self.judge(pairs)]

    def judge(self, jobs):
        """The verdict on each distinct job: for (gold, answer) whether they are equal, for (answer,) its key."""
        known = {job: at_once(*job) for job in jobs}
        known = {job: self.memo.get(job) if verdict is None else verdict for job, verdict in known.items()}
        unknown = [job for job, verdict in known.items() if verdict is None]
        known.update(zip(unknown, self.pool.judge(unknown)))
        for job in unknown:
            if known[job] in ("timeouts", "errors"):
                self.counts[f"verifier_{known[job]}"] += 1
        if len(self.memo) > 100_000:
            self.memo.clear()
        self.memo.update(known)
        return [known[job] for job in jobs]


def at_once(gold, answer=""):
    """The verdict on two answers if it needs no child (words, equal numbers, different units), else None."""
    if answer is None:
        return False
    for letter, choice in ((gold, answer), (answer, gold)):
        if re.fullmatch("[A-Z]", letter) and choice.startswith(f"{letter}="):
            return True
    a, b = glance(gold), glance(answer)
    if any(map(operator.ne, a.units, b.units)):
        return False
    same = (a.key or a.flat) == (b.key or b.flat)
    if "\\" in f"{a.key}{b.key}":
        return same
    return True if same and (a.name == b.name or "" in (a.name, b.name)) else None


# math-verify passes the policy's text to a computer algebra system. Some answers make it run forever inside one C call
# (5^{5^{5^{5^5}}}-4: math-verify's own timeout never fires), exhaust memory or crash, and it works only on the main
# thread. So it runs in child processes that can be killed. They are plain `python -c` processes that exchange lines of
# JSON, because children of multiprocessing either import the caller's main script again, with torch (spawn,
# forkserver), or are unsafe with threads (fork).

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOOT = ("import sys; root, limit = sys.argv[1:]; "
        "sys.path = [root, *filter(None, sys.path)]; "  # not the current directory
        "from tasks.mathematics import verify_worker; verify_worker(float(limit))")


class VerifierPool(WorkerPool):
    """Judges pairs (gold, answer) with math-verify: True or False."""

    def launch(self):
        command = [sys.executable, "-c", BOOT, ROOT, str(self.limit)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "bufsize": 0}
        environment = {**os.environ, "PYTHONHASHSEED": "0"}  # sympy orders terms by hash: same verdicts every run
        # In its own session, Ctrl-C does not reach it and `stop` can kill the whole group.
        return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


READING = (  # (pattern, replacement) for notation that math-verify misreads
    (r"([0-9]+)_\{([^{}]*)\}", r"\\text{\1 base \2}"),  # 1011_{2} is not 1011
    (r"(?<=[0-9]) (?=[0-9])|\\text\{[^{}]*\}(?=[0-9])|\\[lc]?dots(?![a-z])", r"\\?"),  # unreadable
    (r"(?<=[A-Za-z0-9)}])'(?![A-Za-z])", r"^{\\prime}"),
    (r"(?<=[A-Za-z0-9)])\^(?:T|\{T\})", "^{(T)}"),  # transposed
)


def strict_math_verify():
    r"""A function that compares two answers with math-verify (0.9.0, latex2sympy2 1.11.0), but more strictly. Its
    parser stops at the first thing it does not understand ((5)+1 would be 5) and ignores letter case. Here a text that
    is not fully parsed stays a string, and R differs from r."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy2
    from math_verify import LatexExtractionConfig, parse, verify
    Parser = latex2sympy2._Latex2Sympy
    create_parser = Parser.create_parser

    def whole(self, text):
        parser = create_parser(self, text)
        math_rule = parser.math

        def math_then_end():
            tree = math_rule()
            if parser.getTokenStream().LA(1) != -1:  # antlr's end of file
                raise ValueError("not all of it is mathematics")
            return tree
        parser.math = math_then_end
        return parser
    Parser.create_parser = whole
    object.__setattr__(latex2sympy2.latex2sympy.__defaults__[-1], "lowercase_symbols", False)
    config = LatexExtractionConfig(normalization_config=NormalizationConfig(
        units=False, malformed_operators=True, nits=True, boxed="none"))

    def compare(*texts):
        for pattern, replacement in READING:
            texts = [re.sub(pattern, replacement, text.translate(LATEX)) for text in texts]
        found = [parse(f"${text}$", [config], parsing_timeout=None) or [""] for text in texts]
        return bool(verify(*found, timeout_seconds=None))
    return compare


def verify_worker(limit):
    """Main loop of a child: answer lines on stdin until it closes, also when the parent dies."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of libraries must not be taken for a reply
    with suppress(ImportError, ValueError):  # no such limit on this system, or already tighter
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    compare = strict_math_verify()
    from . import values  # sympy is slow to import
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin:
        # The parent kills a child that hangs. If the parent is gone, this alarm does: its default action ends the
        # process even inside a C call.
        signal.alarm(math.ceil(limit) + 2)
        message, verdict = json.loads(line), None
        if message is not None:
            verdict = values.same(*message) if message[1:] else values.understand(*message).key
            verdict = compare(*message) if verdict is None else verdict
        signal.alarm(0)
        print(json.dumps(verdict), file=replies, flush=True)
