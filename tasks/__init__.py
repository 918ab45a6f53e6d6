"""Problems and verifiers. `load_task(name, data)` gives a task with

    .train .valid .test             lists of Problem, disjoint from each other
    .need(split)                    one of these lists, or a UserError if it is empty
    .verify(problem, completion)    finite float; in [0, 1] unless the task is `graded`
    .extract(completion)            final answer = the key that votes are counted by, or None
    .rewards(problems, completions) verify for many pairs, identical pairs once; `.counts` holds what went wrong

Embedded (no download): `countdown`, `routes`, `program`, `peptide` (graded). From the hub: `gsm8k`, `math`, and code: `humaneval`, `mbpp`,
`codecontests`, `taco`. Your own problems: `--data FILE.jsonl`.
This module never imports torch: its verifier workers start in a fraction of a second.
"""
import ast
import builtins
import gzip
import importlib.util
import itertools
import json
import math
import os
import queue
import random
import re
import select
import signal
import subprocess
import sys
import unicodedata
import warnings
import weakref
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from support.errors import UserError

from . import sandbox


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    answer: str  # what the verifier compares with; stored, because it cannot always be recomputed from the prompt
    solution: str | None = None  # a gold completion without the end-of-sequence token, for supervised fine-tuning
    level: str | None = None


class Task:
    """Base of all tasks; the docstring of the package is the contract."""
    name = ""
    graded = False  # True: rewards are real numbers and max@k takes the place of pass@k
    max_new_tokens = 512  # long enough for the gold solutions
    base = "tiny"  # the embedded model that the scripts take where no --model is given
    chat = True  # prompts go through the tokenizer's chat template where the model has one

    def __init__(self):
        self.train, self.valid, self.test = [], [], []
        self.counts = Counter()  # e.g. verifier_timeouts, since the start of the process

    def verify(self, problem, completion):
        raise NotImplementedError

    def extract(self, completion):
        raise NotImplementedError

    def rewards(self, problems, completions):
        """Rewards of many (problem, completion) pairs, two lists of one length -> list of float."""
        memo = {}
        for problem, completion in zip(problems, completions, strict=True):
            if (problem.id, completion) not in memo:
                memo[problem.id, completion] = self.verify(problem, completion)
        return [memo[p.id, c] for p, c in zip(problems, completions)]

    def target(self, problem, kind="solution"):
        """Text of a gold completion, or None: the whole solution, or ("answer") as little as states the answer. Here the
        solution is nothing but the answer, so they coincide."""
        return problem.solution

    def need(self, split):
        """The problems of a split that the caller cannot do without.  Raises UserError if there are none."""
        problems = getattr(self, split)
        if not problems:
            raise UserError(f"task {self.name} has no {split} problems: add some to its data, or choose other levels")
        return problems


# ---------------------------------------------------------------------------------------------------- embedded tasks
# Problems are generated, never stored. Whether a problem belongs to train, valid or test is read off a checksum of its
# key (the sorted numbers and the target; of a program its function), so the splits are disjoint up to the order of the
# numbers, and make_tiny.py keeps valid and test problems out of the pretraining stream by the same function.

def split_of(key):
    """'train' (90 %), 'valid' or 'test' (5 % each) for a problem key, by checksum."""
    return {0: "test", 1: "valid"}.get(zlib.crc32(repr(key).encode()) % 20, "train")


class Embedded(Task):
    """A task whose problems are drawn from `generate(rng) -> (key, prompt, answer, solution, corpus)`: a right
    completion (None if there is none) and the line that the pretraining corpus has for this prompt."""
    chat = False

    def __init__(self, sizes=(4000, 400, 400)):
        super().__init__()
        for split, size in zip(("train", "valid", "test"), sizes):
            setattr(self, split, self.problems(split, size))

    def problems(self, split, size, seed=0):
        """`size` problems of one split, no two with the same key; the same ones for the same seed."""
        rng, seen, problems = random.Random(f"{self.name} {split} {seed}"), set(), []
        while len(problems) < size:
            key, prompt, answer, solution, _ = self.generate(rng)
            if split_of(key) == split and key not in seen:
                seen.add(key)
                problems.append(Problem(f"{self.name}/{split}/{len(problems)}", prompt, answer, solution))
        return problems

    def stream(self, rng):
        """Endless (prompt, completion) pairs from the train split: what the tiny base is pretrained on."""
        while True:
            key, prompt, _, _, corpus = self.generate(rng)
            if split_of(key) == "train":
                yield prompt, corpus


# countdown: make the target from all the numbers with + - *, each number once.  'c7,3,2,9:23>' -> '2*7+9' ...

def countdown_terms(text):
    """Parse digits joined by + - *: '2*7+9-3' -> [(1, (2, 7)), (1, (9,)), (-1, (3,))], sign and sorted factors of each
    term, the terms sorted; None if the text is anything else. Never evaluates the text."""
    if not re.fullmatch(r"[1-9]([-+*][1-9])*", text, re.ASCII):
        return None
    return sorted((-1 if term[0] == "-" else 1, tuple(sorted(int(d) for d in term.lstrip("+-").split("*"))))
                  for term in re.findall(r"[-+]?[^-+]+", text))


class Countdown(Embedded):
    """Search-like: many ways to try, few right, so pass@k grows a lot with k. The vote key is the expression up to the
    order of its terms and factors ('2*7+9' and '9+7*2' are one answer)."""
    name = "countdown"
    max_new_tokens = 12

    def generate(self, rng):
        while True:
            numbers = [rng.randint(1, 9) for _ in range(rng.randint(3, 5))]
            solution = str(numbers[0]) + "".join(rng.choice("++-**") + str(d) for d in numbers[1:])
            target = sum(sign * prod(factors) for sign, factors in countdown_terms(solution))
            if 1 <= target <= 99:
                break
        rng.shuffle(numbers)
        prompt = f"c{','.join(map(str, numbers))}:{target}>"
        answer = f"{','.join(map(str, sorted(numbers)))}:{target}"
        return (tuple(sorted(numbers)), target), prompt, answer, solution, solution

    def verify(self, problem, completion):
        terms = countdown_terms(completion)
        if terms is None:
            return 0.0
        used = sorted(d for _, factors in terms for d in factors)
        value = sum(sign * prod(factors) for sign, factors in terms)
        return float(f"{','.join(map(str, used))}:{value}" == problem.answer)

    def extract(self, completion):
        terms = countdown_terms(completion)
        return None if terms is None else "".join("+-"[sign < 0] + "*".join(map(str, f)) for sign, f in terms)


# routes: seven labelled sums lead to one number; take one.  'rA3+8B7+4C9+5D2+6E1+1F8+7G4+4>' -> 'B7+4=11'

class Routes(Embedded):
    """Engineered so that voting pays. The right answer is hidden; each route is sound (its sum is the answer) on its
    own random share of the problems, and unsound routes disagree with each other. Nothing in a single route shows
    whether it is sound: the best single route is right on 55 % of the problems, while spreading the samples over the
    routes is right less often per sample but wins the vote on two thirds. The corpus overuses route A, the worst."""
    name = "routes"
    max_new_tokens = 10
    sound = {"A": .15, "B": .55, "C": .48, "D": .48, "E": .48, "F": .48, "G": .48}
    corpus = {"A": .4, "B": .1, "C": .1, "D": .1, "E": .1, "F": .1, "G": .1}

    def generate(self, rng):
        answer = rng.randint(2, 18)
        wrong = rng.sample([v for v in range(2, 19) if v != answer], len(self.sound))
        sums, lines = [], {}
        for (label, share), w in zip(self.sound.items(), wrong):
            value = answer if rng.random() < share else w
            first = rng.randint(max(1, value - 9), min(9, value - 1))
            sums.append(f"{first}+{value - first}")
            lines[label] = f"{label}{sums[-1]}={value}"
        prompt = "r" + "".join(line.split("=")[0] for line in lines.values()) + ">"
        right = [line for line in lines.values() if line.endswith(f"={answer}")]
        corpus = lines[rng.choices(list(self.corpus), self.corpus.values())[0]]
        return (tuple(sorted(sums)), answer), prompt, str(answer), rng.choice(right) if right else None, corpus

    def verify(self, problem, completion):
        return float(self.extract(completion) == problem.answer)

    def extract(self, completion):
        match = re.fullmatch(r"[A-G][1-9]\+[1-9]=([1-9][0-9]?)", completion, re.ASCII)
        return match and match[1]


# program: write the expression that made the examples.  '0:3,2:13,10:213>' -> '2*x*x+x+3', or 'x*(2*x+1)+3' ...

def polynomial(text):
    """Coefficients (constant first, no zeros at the end) of an expression in x, integers, + - * and parentheses, or None if
    the text is anything else or too big: 64 characters, 4 digits, depth 32, degree 8, coefficients of 10^9. The text is
    parsed and never run; polynomials are equal exactly where the programs agree on every x."""
    if len(text) > 64 or not re.fullmatch(r"(?:[-+*()x]|[0-9]{1,4}(?![0-9x]))+", text, re.ASCII):  # 0x1 is a number to Python
        return None
    try:
        return expand(ast.parse(text, mode="eval").body, 32)
    except (SyntaxError, OverflowError):
        return None


def expand(node, depth):
    """`polynomial` of a node of the syntax tree.  Raises OverflowError if it is too big, SyntaxError for other nodes."""
    kind = type(node)
    if depth == 0:
        raise OverflowError
    if kind is ast.Constant and type(node.value) is int:
        return (node.value,) if node.value else ()
    if kind is ast.Name and node.id == "x":
        return (0, 1)
    if kind is ast.UnaryOp and type(node.op) is ast.USub:
        return tuple(-c for c in expand(node.operand, depth - 1))
    if kind is not ast.BinOp or type(node.op) not in (ast.Add, ast.Sub, ast.Mult):
        raise SyntaxError
    left, right = expand(node.left, depth - 1), expand(node.right, depth - 1)
    if type(node.op) is ast.Mult:
        result = [0] * (len(left) + len(right) - 1) if left and right else []
        for i, a in enumerate(left):
            for j, b in enumerate(right):
                result[i + j] += a * b
    else:
        sign = 1 if type(node.op) is ast.Add else -1
        result = [*left, *[0] * (len(right) - len(left))]
        for j, b in enumerate(right):
            result[j] += sign * b
    while result and result[-1] == 0:
        result.pop()
    if len(result) > 9 or any(abs(c) > 10 ** 9 for c in result):
        raise OverflowError
    return tuple(result)


class Program(Embedded):
    """Code-like: the prompt shows a program's outputs for three inputs, and the answer must also give the hidden outputs
    for others, which are stored with the problem. The splits are by function, however it is written: no function of valid
    or test is in the pretraining stream or in train, and within a split no two problems share one. Engineered for a model
    of this size: the functions are a*x*x + b*x + c with a = 0..4, |b| <= 9 and c = 0..99, and the inputs 0 and 10 are
    always shown, where digits tell most: the rest is to split f(10) - f(0) into a and b, which the third input, 1 to 5,
    decides. Straight lines are easy, the others hard. The corpus writes a function in several ways; the vote key is the
    function."""
    name = "program"
    base = "tiny_program"
    max_new_tokens = 16

    def generate(self, rng):
        a, b, c = rng.choice((0, 0, 1, 2, 3, 4)), rng.choice([-1, 1]) * rng.randint(1, 9), rng.randint(0, 99)
        shown = [0, rng.randint(1, 5), 10]
        hidden = rng.sample([x for x in range(-9, 10) if x not in shown], 4)
        prompt, answer = (",".join(f"{x}:{(a * x + b) * x + c}" for x in xs) for xs in (shown, hidden))

        def total(*terms):  # the positive ones first: '9-x'
            text = "".join(f"{n:+d}{power}" for n, power in sorted(terms, key=lambda term: term[0] < 0) if n)
            return re.sub(r"(?<![0-9])1\*", "", text).removeprefix("+")
        solution = total((a, "*x*x"), (b, "*x"), (c, ""))
        if a and rng.random() < 0.5:
            solution = f"x*({total((a, '*x'), (b, ''))})" + (f"{c:+d}" if c else "")
        elif not a and b > 1 and c and c % b == 0 and rng.random() < 0.5:
            solution = f"{b}*({total((1, '*x'), (c // b, ''))})"
        return (a, b, c), prompt + ">", answer, solution, solution

    def verify(self, problem, completion):
        coefficients = polynomial(completion)
        if coefficients is None:
            return 0.0
        for example in f"{problem.prompt[:-1]},{problem.answer}".split(","):
            x, y = map(int, example.split(":"))
            value = 0
            for c in reversed(coefficients):
                value = value * x + c
            if value != y:
                return 0.0
        return 1.0

    def extract(self, completion):
        coefficients = polynomial(completion)
        return None if coefficients is None else ",".join(map(str, coefficients)) or "0"


# peptide: continue a peptide so that its helix has one greasy side.  '>KLWE' -> 'ALKRIVDLLKEGLR'

RESIDUES = {"A": 1.8, "R": -4.5, "N": -3.5, "D": -3.5, "C": 2.5, "Q": -3.5, "E": -3.5, "G": -0.4, "H": -3.2, "I": 4.5,  # hydropathy:
            "L": 3.8, "K": -3.9, "M": 1.9, "F": 2.8, "P": -1.6, "S": -0.8, "T": -0.7, "W": -0.9, "Y": -1.3, "V": 4.2}  # Kyte, Doolittle 1982


class Peptide(Embedded):
    """Synthetic, in the spirit of protein design: a real-valued reward that a better sample always exceeds. The reward is
    the hydrophobic moment of the first 18 residues, prompt included, were they a helix (100 degrees per residue, 18 are 5
    turns): |sum_n H_n exp(i n 100 deg)| / 18, from 0 to about 2.8. Residues that are missing count as H = 0; any other
    letter makes it 0. It says nothing about what a real peptide does. The base (tiny_peptide) knows sequences that are
    greasy a little more often on one side of the helix, 65 % against 25 %, and random otherwise."""
    name = "peptide"
    graded = True
    base = "tiny_peptide"
    max_new_tokens = 16
    length = 18

    def generate(self, rng):
        greasy = [a for a, h in RESIDUES.items() if h > 0]
        others = [a for a, h in RESIDUES.items() if h <= 0]
        chain = "".join(rng.choice(greasy if rng.random() < 0.45 + 0.2 * math.cos(math.radians(100) * n) else others)
                        for n in range(self.length))
        return chain[:4], ">" + chain[:4], chain[:4], None, chain[4:]  # with a mark to count residues from

    def verify(self, problem, completion):
        chain = (problem.answer + "".join(completion.split()))[:self.length]  # models like ProtGPT2 break lines
        if not all(a in RESIDUES for a in chain):
            return 0.0
        x, y = (sum(RESIDUES[a] * turn(math.radians(100) * n) for n, a in enumerate(chain)) for turn in (math.cos, math.sin))
        return math.hypot(x, y) / self.length

    def extract(self, completion):
        chain = "".join(completion.split())
        return chain if chain and set(chain) <= set(RESIDUES) else None


# -------------------------------------------------------------------------------------------------------- math answers

MAX_ANSWER = 1000  # characters; anything longer is not an answer
NUMBER = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|[-+]?\.[0-9]+"  # '1,234' is a number, never a list

# Unicode mathematics as LaTeX. What is not in here goes by its Unicode decomposition: see `latex_of`.
SYMBOLS = {ord(char): latex for chars, latex in (
    ("−–‐‑‒", "-"), ("×✕⨯", r"\times "), ("·⋅∙•∗", r"\cdot "), ("÷", r"\div "), ("⁄∕", "/"), ("∶", ":"), ("±", r"\pm "),
    ("∞", r"\infty "), ("≤⩽≦", r"\le "), ("≥⩾≧", r"\ge "), ("≠", r"\ne "), ("≈≃≅", r"\approx "), ("≡", r"\equiv "),
    ("∪", r"\cup "), ("∩", r"\cap "), ("∈", r"\in "), ("∉", r"\notin "), ("∅", r"\emptyset "), ("∖", r"\setminus "),
    ("⊂", r"\subset "), ("⊆", r"\subseteq "), ("→", r"\to "), ("∠", r"\angle "), ("△", r"\triangle "), ("∑", r"\sum "),
    ("∫", r"\int "), ("∛", "√[3]"), ("∜", "√[4]"), ("°º˚", r"^\circ "), ("′’", "'"), ("″“”", '"'), ("…", r"\ldots "),
    ("∣", "|"), ("⌊", r"\lfloor "), ("⌋", r"\rfloor "), ("⌈", r"\lceil "), ("⌉", r"\rceil "), ("€£¥₹¢", r"\$"),
    ("ϕ", r"\phi "), ("ϵ", r"\epsilon "), ("ϑ", r"\theta "), ("\u200b\u200c\u200d\u2060\ufeff", ""),
    *((letter, rf"\mathbb{{{plain}}}") for letter, plain in zip("ℝℤℕℚℂ", "RZNQC"))) for char in chars}
GREEK = ("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
         "upsilon phi chi psi omega").split()
SYMBOLS |= {ord("α") + i: rf"\{name} " for i, name in enumerate(GREEK)}
SYMBOLS |= {ord(name): rf"\{GREEK[ord(name) - ord('Α')].title()} " for name in "ΓΔΘΛΞΠΣΥΦΨΩ"}  # the others look Latin

# Words that may follow a number without being a part of it, singular. In the plain text of an answer, too.
UNITS = frozenset("""
    mm cm dm m km in inch inches ft foot feet yd yard mi mile meter metre millimeter millimetre centimeter centimetre
    decimeter decimetre kilometer kilometre mg g gm kg gram kilogram ton tonne lb pound oz ounce ml l liter litre
    milliliter millilitre gal gallon quart pint cup tablespoon teaspoon acre hectare ms s sec second min minute h hr
    hour day week month year old yr decade century centuries degree deg rad radian arcminute celsius fahrenheit kelvin
    mph kph kmh kmph knot hz joule watt newton volt ampere amp ohm calorie kcal kj bit byte kb mb gb dollar cent usd
    eur euro buck penny pennies nickel dime quarter coin rupee yen peso ruble lbs yds hrs yrs mins secs N J W V
    square sq cubic cu squared cubed per linear unit each st nd rd th
    people person persons man men woman women child children boy girl student teacher worker player member friend
    guest apple orange egg cookie book page ticket marble ball card stamp sticker pencil pen toy car bike dog cat bird
    fish cow sheep horse chicken animal tree flower plant room house seat box boxes bag piece item object part point
    time way game match matches goal step lap turn trip round minute digit number integer solution root value term
    factor divisor side edge vertex vertices face triangle rectangle circle line word letter question problem answer
    mark vote combination permutation arrangement outcome subset pair team group set row column bottle can glass
    glasses slice pizza meal serving shirt shoe sock hat dress dresses gift candle candies candy chocolate cupcake
    cake brownie banana pear peach peaches""".split())
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def latex_of(text):
    """Unicode mathematics as LaTeX: 5√2·x⁻¹ is 5√2\\cdot x^{-1} (roots get their braces in SPELLING). Digits of other
    scripts stay what they are."""
    def kind(char):  # of compatibility character: super, sub, fraction, font, wide, ...
        decomposition = unicodedata.decomposition(char)
        return decomposition[1:].split(">")[0] if decomposition[:1] == "<" and ord(char) not in SYMBOLS else ""

    parts = []
    for name, run in itertools.groupby(text, kind):
        run = (" " if name == "fraction" else "").join(run)
        plain = unicodedata.normalize("NFKC", run) if name else run
        if name in ("super", "sub"):
            plain = f"{'^' if name == 'super' else '_'}{{{plain}}}"
        elif name == "fraction":
            plain = re.sub("([0-9]+)\u2044([0-9]+)", r"\\frac{\1}{\2}", plain)
        parts.append(plain)
    return "".join(parts).translate(SYMBOLS)


def without_unit(match):
    r"""'' for a match of units alone: '\text{ cm}^2', ' miles per hour'; else the match as it is. One letter is a unit
    within \text{...}, or apart from a number: 5 m has one, 5m and 2x m have none."""
    tail = match[0]
    words = re.findall("[A-Za-z]+", re.sub(r"\\(?:text|cdot)", " ", tail))
    if words and len(words[0]) == 1 and "\\" not in tail:
        if tail[0] != " " or not re.fullmatch(rf"(?:[A-Za-z]=)?(?:{NUMBER})", match.string[:match.start()]):
            return tail
    words = [word if len(word) == 1 and word != "L" else word.lower() for word in words]
    known = all(word in UNITS or len(word) > 3 and word.removesuffix("s") in UNITS for word in words)
    power = not words or words[0] in ("squared", "cubed") or re.search(r"[04-9]|(?<!-)1|(?<![A-Za-z^{-])[23]", tail)
    return "" if known and not power else tail


def repeating(match):
    r"""0.1\overline{6} as \frac{15}{90}."""
    before, after, period = match.groups()
    top = int(before + after + period) - int("0" + before + after)
    return rf"\frac{{{top}}}{{{(10 ** len(period) - 1) * 10 ** len(after)}}}"


STYLE = r"\\(?:math(?:bf|rm|it|sf|tt|normal)|boldsymbol|bm|pmb)(?![A-Za-z]) *"
TEXT_UNIT = r"\\text\{[^{}]*\}(?:\^(?:\{-?[0-9]\}|[0-9]))?"
WORD_UNIT = r"[A-Za-z]+\.?(?:\^(?:\{-?[0-9]\}|[0-9]))?"
SPELLING = [(re.compile(pattern), replacement) for pattern, replacement in (  # applied in this order
    (r"\{ *\\(?:bf|rm|it)(?![a-zA-Z]) *", r"\\mathrm{"),
    (r"\\(?:left|right|[bB]igg?[lrm]?|(?:display|text|script)style|bf|rm|it|limits|tiny|small|[lL]arge|[hH]uge)"
     "(?![a-zA-Z])", ""),
    (r"(?<!\\)\\[$()\[\]]|\$", ""),  # \$5, $5$, \(5\), \[5\]; not the row break of a matrix followed by a bracket
    (r"\{,\}", ","),
    (r"(?<!\\)\\[!,](?=[0-9])", ""),  # 1,\!000 and 1\,000
    (r"(?:(?<!\\)\\(?:[!,;: ]|q?quad(?![a-zA-Z]))|~|\s)+", " "),
    (r"\\(?:text(?:bf|rm|it|sf|tt|normal)?|mbox) *\{|\\mathrm *\{(?=[^\\{}]*\})", r"\\text{"),
    (r"(\\text\{[^{}]*)\^\{([23])\}", r"\1^\2"),
    (r"(?<=[0-9])\^\{? *(?:\\text\{ *)?(st|nd|rd|th) *\}{0,2}", r"\\text{\1}"),
    (STYLE + r"\{(?= *[A-Za-z]{2}[A-Za-z ]*\})", r"\\text{"),
    (STYLE, ""),
    (r"^\\text\{ *([-+]?[0-9][^{}]*)\}$", r"\1"),
    (r"(?:\^(?:\\circ(?![a-z])|\{ *\\circ *\})|\^?\\(?:text)?degree(?![a-z])) ?(?:\\text\{ *[CF] *\}|[CF](?![A-Za-z]))?", ""),
    # Percent signs stay: 50% may be meant as 50 or as 0.5, and math-verify accepts both.
    (r"\\?%|(?:\\text\{ *| )percent(?:\}|(?![a-z]))", "%"),
    (rf"(?<=[0-9])(?: ?\\text\{{ *| )({'|'.join(SCALES)})(?![a-z])( *\}})?",  # 5\text{ million}
     lambda match: rf"\times10^{{{SCALES[match[1]]}}}" + (r"\text{" if "{" in match[0] and not match[2] else "")),
    (r"\\frac\{(\\text\{[^{}]*\})\}\{(\\text\{[^{}]*\})\}$", r"\1/\2"),
    (rf"(?<=[0-9A-Za-z)}}!]) ?{TEXT_UNIT}(?:[ /*]*(?:\\cdot)? ?{TEXT_UNIT})*(?=$|[.,;])", without_unit),
    (rf"(?:(?<=[0-9)}}!])|(?<=\\pi)) ?{WORD_UNIT}(?: ?[ /*] ?{WORD_UNIT})*$", without_unit),
    (r"(?<=[0-9])['\"]$", ""),  # feet and inches
    (r"^ ?(?:\\approx(?![a-z])|=)", ""),
    (r",? ?\\text\{ *,? *(?:and|or) *\} ?", ","),
    (r"\\text\{([^{}A-Za-z]*[A-Za-z]?[^{}A-Za-z]*)\}", r" \1 "),  # \text{5}, \text{i}, \text{(A)}
    (r"\^\{([0-9])\}√", r"√[\1]"),
    (r"(?:√|\\?sqrt)(\[[^][{}]*\])? ?\(((?:[^()]|\([^()]*\))*)\)", r"\\sqrt\1{\2}"),
    (r"(?:√|(?<!\\)sqrt)(\[[^][{}]*\])? ?([0-9]+(?:\.[0-9]+)?|[A-Za-z]|\\frac\{[^{}]*\}\{[^{}]*\}|\\[A-Za-z]+)",
     r"\\sqrt\1{\2}"),
    ("√|(?<![\\\\A-Za-z])sqrt", r"\\sqrt"),
    (r"^-?[0-9]{1,3}(?: [0-9]{3})+(?![0-9 ])", lambda match: match[0].replace(" ", "")),
    (r"(?<![A-Za-z0-9\\])([0-9]+) ([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}"),  # 2 1/2
    (r"(?<=[0-9]) *[x*] *(?=10\^)", r"\\times"),
    (r"(?<![A-Za-z0-9.\\}])([0-9]+\.?[0-9]*|\.[0-9]+)[eE]([-+]?)0*([0-9]+)(?![0-9A-Za-z._])",
     lambda match: rf"{match[1]}\times10^{{{match[2].strip('+')}{match[3]}}}"),
    (r"(?<![0-9.])([0-9]{0,99})\.([0-9]{0,99})\\(?:overline|bar|dot)\{?([0-9]{1,99})\}?(?![0-9])", repeating),
    (r"(?<=[0-9]) +(?=\\?[A-Za-z])|(\\[A-Za-z]+) +(?=[0-9])", r"\1"),
    (r"(?<![A-Za-z0-9]) +| +(?![A-Za-z0-9])", ""),  # a space between letters may end a \command or a word
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\([lg])eq?(?:slant)?(?![A-Za-z])", r"\\\1e"),
    (r"\\not ?=|\\neq?(?![A-Za-z])", r"\\neq"),
    (r"\\frac([0-9])(?=[0-9{])", r"\\frac{\1}"),  # \frac12 -> \frac{1}{2}
    (r"(\\frac\{[^{}]*\})([0-9])", r"\1{\2}"),
    (r"\\sqrt([0-9])", r"\\sqrt{\1}"),
    (r"(\\log_)([0-9])(?![0-9])", r"\1{\2}"),
    (r"((?<!\\log)_|\^)(-?[0-9]+(?:\.[0-9]+)?)", r"\1{\2}"),  # in TeX 2^10 is 2^{1}0, but who writes it means 1024
    (r"\(([0-9]+)\)_", r"\1_"),
    (r"_\{\(([0-9]+)\)\}", r"_{\1}"),
    (r"(\.[0-9]+)(?:\\[lc]?dots)$|[.,;:\\ ]+$", r"\1"),
    (r"(?<![A-Za-z0-9\]}_^\\])\{([A-Za-z0-9.]+)\}(?![0-9])", r"\1"),  # {\bf 5}
    (r"(?<![A-Za-z\]}_^\\])\{([A-Za-z])\}", r"\1"),
    (r"^\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}$", r"\1"),
    (r"^\"(.*)\"$", r"\1"),
    (r"^[A-Za-z]{3}[A-Za-z ]*$", r"\\text{\g<0>}"),  # to math-verify, 'east' is the product e*a*s*t and equals 'seat'
)]


def clean(answer):
    """The answer as one line of LaTeX without the spelling that means nothing, or None if it is empty or too long."""
    text = answer.strip()
    if len(text) > MAX_ANSWER:
        return None
    if not text.isascii():
        text = latex_of(text)
    for pattern, replacement in SPELLING:
        text = pattern.sub(replacement, text)
    return text or None


def vote_key(text):
    r"""One key for all spellings of a number: '1,000', '1000.0', '10^{3}'; '1/2', '0.5', '\frac{1}{2}'; '5', 'x=5';
    also before a percent sign. Any other `clean` answer is its own key. Exact, but nothing is evaluated, save powers of
    ten with an exponent of at most two digits."""
    if len(text) > 60:
        return text
    number, percent = re.fullmatch(r"(?:[A-Za-z]=)?(.*?)(%?)", text, re.DOTALL).groups()
    number = re.sub(r"^([-+]?)\\frac\{([^{}]+)\}\{([^{}]+)\}$", r"\1\2/\3", number)
    if match := re.fullmatch(rf"({NUMBER})(?:/({NUMBER}))?", number):
        top, bottom = (Fraction((part or "1").replace(",", "")) for part in match.groups())
    elif match := re.fullmatch(r"([-+]?)([0-9]+)\\frac\{([0-9]+)\}\{([0-9]+)\}", number):  # 2\frac{1}{2}
        whole, part, bottom = map(int, match.groups()[1:])
        top = (whole * bottom + part) * (-1 if match[1] == "-" else 1)
    elif match := re.fullmatch(rf"(?:({NUMBER})\\(?:times|cdot))?10\^\{{(-?[0-9]{{1,2}})\}}", number):
        top, bottom = Fraction((match[1] or "1").replace(",", "")) * Fraction(10) ** int(match[2]), 1
    else:
        return text
    return str(Fraction(top, bottom)) + percent if bottom else text


def last_box(text):
    r"""What is inside the last \boxed{...} (or \fbox) whose braces balance, or None. One pass over the text."""
    stack, last, inside = [], -1, None  # of open braces: (start of its \boxed or -1, where its inside starts)
    for match in re.finditer(r"\\(?:boxed|fbox)\s*(?:\{|([-+]?[0-9][^\s{}$\\]*))|\\[{}]|[{}]", text):
        if match[1]:  # '\boxed 5', without braces
            last, inside = match.start(), match[1]
        elif match[0] == "}":
            start, begin = stack.pop() if stack else (-1, 0)
            if start > last:
                last, inside = start, text[begin:match.start()]
        elif match[0] not in (r"\{", r"\}"):
            stack.append((-1 if match[0] == "{" else match.start(), match.end()))
    return inside


def final_answer(completion):
    r"""The `clean` final answer of a completion, or None. It is what the last balanced \boxed{...} holds (then nothing
    else counts); else what follows the last '####' (gsm8k), 'answer is' or 'answer:', up to the end of the line or
    sentence; else the whole completion if that is just a number. A number in passing is no answer: a completion that
    was cut off must not get a vote, let alone a reward."""
    inside = last_box(completion)
    if inside is not None:
        return clean(inside)
    *before, after = re.split(r"####|\banswer(?:\s+is\b|\**\s*:)", completion, flags=re.IGNORECASE)
    if before:
        sentence = re.split(r"\n|\.(?:\s|$)", after.lstrip(":* \n"), maxsplit=1)[0]
        return None if r"\boxed" in sentence else clean(sentence.rstrip("* "))  # a box that was cut off
    text = clean(completion)
    return text if text and re.fullmatch(r"-?[0-9]+(/[0-9]+)?", vote_key(text)) else None


class Math(Task):
    """Answers compared as mathematics. `final_answer` says what counts as the answer, `vote_key` what is the same."""

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

    def target(self, problem, kind="solution"):
        return f"\\boxed{{{problem.answer}}}" if kind == "answer" else problem.solution

    def extract(self, completion):
        answer = final_answer(completion)
        return None if answer is None else vote_key(answer)

    def verify(self, problem, completion):
        return self.rewards([problem], [completion])[0]

    def rewards(self, problems, completions):
        """1.0 where the final answer equals the gold one: by vote key, else by math-verify in the pool, each distinct
        (gold, answer) pair once. What math-verify fails to decide scores 0.0 and is counted in `.counts`."""
        pairs = [(clean(p.answer) or "", final_answer(c)) for p, c in zip(problems, completions, strict=True)]
        scores = {pair: self.memo.get(pair) for pair in pairs}  # None: not judged yet
        for gold, answer in scores:
            if answer is None or vote_key(answer) == vote_key(gold):
                scores[gold, answer] = float(answer is not None)
        unjudged = [pair for pair, score in scores.items() if score is None]
        for pair, verdict in zip(unjudged, self.pool.judge(unjudged)):
            if verdict in ("timeouts", "errors"):
                self.counts[f"verifier_{verdict}"] += 1
            scores[pair] = float(verdict is True)
        if len(self.memo) > 100_000:
            self.memo.clear()
        self.memo.update(scores)
        return [scores[pair] for pair in pairs]


# math-verify hands the policy's text to a computer algebra system. Some answers make that run for ever inside one C
# call (5^{5^{5^{5^5}}}-4: math-verify's own timeout never fires), eat the memory or crash it, and off the main thread
# it does not work at all. So it runs in children that can be killed. They are plain `python -c` children which talk
# lines of JSON, because those of multiprocessing either import the caller's main script again, and torch with it
# (spawn, forkserver), or are unsafe beside threads (fork).

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOOT = ("import sys; root, limit = sys.argv[1:]; sys.path = [root, *filter(None, sys.path)]; "  # not the current directory
        "from tasks import verify_worker; verify_worker(float(limit))")

class VerifierPool:
    """`judge` pairs in parallel, at most `limit` seconds each. The children start when they are first needed."""
    start_limit = 60  # seconds for a child to import math-verify, however busy the machine

    def __init__(self, limit=3.0, size=None):
        self.limit, self.size = limit, size or max(1, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        self.children = queue.LifoQueue()  # the idle ones; None stands for one that is to be started
        for _ in range(self.size):
            self.children.put(None)
        weakref.finalize(self, stop_all, self.children)  # when the pool is dropped and at exit

    def judge(self, pairs):
        """For each (gold, answer) True, False, or 'timeouts' or 'errors' where there is no verdict. Never raises; may
        be called from any thread."""
        if not pairs:
            return []
        with ThreadPoolExecutor(self.size) as threads:  # a thread does nothing but wait for its child
            return list(threads.map(self.judge_one, pairs))

    def judge_one(self, pair):
        child, verdict = self.children.get(), "errors"
        try:
            for _ in range(2):  # the death of a child (memory, somebody's kill) need not be this pair's fault
                with suppress(OSError):  # the machine is out of processes or memory
                    if child is None or child.poll() is not None:
                        child = self.start(child)
                    verdict = self.exchange(child, pair, self.limit)
                if verdict != "errors":
                    break
            return verdict
        finally:
            self.children.put(child)

    def start(self, dead):
        if dead is not None:
            stop(dead)
        child = subprocess.Popen(
            [sys.executable, "-c", BOOT, ROOT, str(self.limit)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, bufsize=0,
            start_new_session=True,  # Ctrl-C is not for it, and `stop` can kill the whole group
            env={**os.environ, "PYTHONHASHSEED": "0"})  # sympy orders terms by hash: same verdicts in every run
        self.exchange(child, None, self.start_limit)  # it answers when its imports are done
        return child

    @staticmethod
    def exchange(child, message, limit):
        """The child's reply to a message. Without one in time the child is stopped: 'timeouts', or 'errors' if it
        died."""
        failure = "timeouts"
        try:
            child.stdin.write(json.dumps(message).encode() + b"\n")
            poll = select.poll()
            poll.register(child.stdout, select.POLLIN)
            if poll.poll(1000 * limit):
                return json.loads(child.stdout.readline())  # of a dead child b"", which is no JSON
        except (OSError, ValueError):
            failure = "errors"
        stop(child)
        return failure


def stop(child):
    """Kill a child and whatever it started, reap it and close its pipes."""
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    if getattr(child, "group", None):  # the cgroup of a worker of sandbox.py
        child.group.remove()


def stop_all(children):
    while not children.empty():
        child = children.get()
        if child is not None:
            stop(child)


READING = [(re.compile(pattern), replacement) for pattern, replacement in (  # what math-verify would read past
    (r"([0-9]+)_\{([^{}]*)\}", r"\\text{\1 base \2}"),  # 1011_{2} is no 1011
    (r"(?<=[0-9]) (?=[0-9])|\\text\{[^{}]*\}(?=[0-9])|\\[lc]?dots(?![a-z])", r"\\?"),  # unreadable
    (r"(?<=[A-Za-z0-9)}])'(?![A-Za-z])", r"^{\\prime}"),
    (r"(?<=[A-Za-z0-9)])\^(?:T|\{T\})", "^{(T)}"),  # transposed
)]


def strict_math_verify():
    r"""`parse(text)` and `verify(gold, answer)` of math-verify without what it lets pass (0.9.0, latex2sympy2 1.11.0):
    - The parser stops where it no longer understands: 5)+1 is 5. Where it understands nothing, the first number counts,
      so that 18² is 18. Here only the whole text counts, else it is just a string.
    - A \text{...} or a letter behind a number is dropped as a unit. `clean` knows better.
    - Two rationals side by side are a mixed number: 2(3) is 5. Here only 2\frac{1}{2} is one.
    - Numbers are equal if they agree to 6 decimal places, or to 15 for expressions: 0.0000001 and 0.0000002,
      2^{-60} and 2^{-61}. Here they must also agree to 4 digits."""
    from latex2sympy2_extended import NormalizationConfig
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy as Parser
    from math_verify import LatexExtractionConfig, grader, parse, verify
    from sympy import Mul, Rational, UnevaluatedExpr
    create_parser, convert_postfix_list, numeric_eq = (
        Parser.create_parser, Parser.convert_postfix_list, grader.sympy_numeric_eq)

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

    def product(self, nodes, i=0):
        if i == len(nodes) - 2 and not re.fullmatch(
                r"[0-9]+\\frac\{[0-9]+\}\{[0-9]+\}", nodes[i].getText() + nodes[i + 1].getText()):
            left, right = map(self.convert_postfix, nodes[i:])
            if isinstance(left, Rational) and isinstance(right, Rational):
                return Mul(left, right, evaluate=False)
        return convert_postfix_list(self, nodes, i)

    def close(a, b, *precision):
        if not numeric_eq(a, b, *precision):
            return False
        with suppress(Exception):  # no numbers, or a percentage, which may equal the number
            if a.is_number and b.is_number and not (a.has(UnevaluatedExpr) or b.has(UnevaluatedExpr)):
                x, y = a.doit().evalf(), b.doit().evalf()
                return bool(x == y or 1e4 * abs(x - y) < max(abs(x), abs(y)))
        return True
    Parser.create_parser, Parser.convert_postfix_list, grader.sympy_numeric_eq = whole, product, close
    config = LatexExtractionConfig(normalization_config=NormalizationConfig(
        units=False, malformed_operators=True, nits=True, boxed="none"))

    def read(text):
        for pattern, replacement in READING:
            text = pattern.sub(replacement, text)
        imaginary = text  # to the parser the imaginary unit is I, and I^2 the same as I
        if "_{i=" not in text:
            imaginary = re.sub(r"(?<![A-Za-z\\_])(?<!_\{)i(?![A-Za-z_])", "I", text)
        imaginary = re.sub(r"(?<![A-Za-z\\])I(?=\^)", "{I}", imaginary)
        for text in dict.fromkeys((imaginary, text)):  # with i a variable where I cannot stand: in pairs
            if not isinstance((found := parse(f"${text}$", [config], parsing_timeout=None) or [""])[0], str):
                break
        return found
    return read, verify


def verify_worker(limit):
    """The life of a child: answer lines on stdin until it closes, which it does when the parent dies."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not pass for a reply
    with suppress(ImportError, ValueError):  # not on this system; the limit is tighter already
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    read, verify = strict_math_verify()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin:
        # The parent kills a child that hangs. If the parent itself is gone, nobody closes in on it but this alarm,
        # whose default action ends the process even in the middle of a C call.
        signal.alarm(math.ceil(limit) + 2)
        message, verdict = json.loads(line), None
        if message is not None:
            gold, answer = map(read, message)
            verdict = bool(verify(gold, answer, timeout_seconds=None))
        signal.alarm(0)
        print(json.dumps(verdict), file=replies, flush=True)


# ---------------------------------------------------------------------------------------------------------------- code
# Programs are judged by sandbox.py: tests in a process apart from the program, or output compared outside of it.

LIMIT = 3.0  # seconds of CPU for all tests of a function or one input of a program, where the data set does not say
MAX_TESTS, MAX_TEST_TEXT = 50, 300_000  # of one problem: inputs, and characters of inputs and outputs


class CodeProblem(Problem):
    """Its answer is JSON: {"tests", "names", "prefix", "limit"} for functions, {"inputs", "outputs", "limit"} for programs.
    tests   source that asserts; its names {name in the tests: expression in the program} are what it reaches of the program
    prefix  the beginning of a program that the prompt is, up to the docstring of the function to write, or nothing"""


# Which part of a completion is the program is read off its text. Nothing is run to find out, only short text is parsed, and
# the rest is one pass, because a completion may be a megabyte of anything.

MAX_SOURCE = 10_000  # characters; no longer text of a model is parsed
FENCE = re.compile(r"([ \t]*(?:>[ \t]?)?[ \t]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)*)(`{3,}|~{3,})[ \t]*([^\s`]*)[ \t]*(.*)")
DEFINITION = r"(?:(?:async[ \t]+)?def|class)[ \t]+"
STATEMENT = re.compile(  # a line that begins like code, as hardly any prose does
    rf"^[ \t]*(?:{DEFINITION}\w|import[ \t]+\w[\w.]*[ \t]*(?:,|;|#|as\b|$)|from[ \t]+[\w.]+[ \t]+import\b|@\w|return\b|print\("
    r"|(?:for|while|if|with|try)\b.*:[ \t]*(?:#.*)?$|\w+(?:[ \t]*,[ \t]*\w+)*[ \t]*[-+*/%|&^]?=(?!=))", re.MULTILINE)
FUNCTION = re.compile(rf"^(?:{DEFINITION}(?!test|check\b)\w|(?:[^#\n\"']*[\s:;])?(?:return|yield)\b)", re.MULTILINE)  # or a body
READS = re.compile(r"\binput\(|\bopen\(0|\bstdin\b(?! *=)")
INDENTED = re.compile(r"(?:[ \t]*\n)*(?:  |\t)")  # by one space is how some tokenizers begin


def parse(text):
    """Syntax tree of Python.  Raises SyntaxError, also for a text that is too long or too deep."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in strings
            return ast.parse(text if len(text) <= MAX_SOURCE else "(")
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError from error


def leading(text, head=""):
    """The first lines of a text, up to where head + text stops being Python; '' if there are none."""
    lines = text.split("\n")
    for _ in range(10):
        try:
            parse(head + "\n".join(lines))
            return "\n".join(lines)
        except SyntaxError as error:
            del lines[max(0, min((error.lineno or 0) - head.count("\n"), len(lines)) - 1):]
    return ""


def unindent(code):
    """The code without the indentation of its first line."""
    margin = re.match(r"(?:[ \t]*\n)*([ \t]*)", code)[1]
    return re.sub(f"^{margin}", "", code, flags=re.MULTILINE) if margin else code


def bodies(code):
    """Ways to read code as the body of a function: as it is, at another indentation, with the first line stripped."""
    moved = "\n" + re.sub(r"^(?=[ \t]*\S)", "    ", unindent(code), flags=re.MULTILINE)
    return (code, moved) if INDENTED.match(code) else (moved, "\n    " + code.lstrip())


def blocks_of(text):
    """(blocks, outside): (language, code) of each block between ``` or ~~~ fences, which may stand in lists and quotes, and the
    runs of text around them. As in Markdown, a fence ends no block if it is shorter than the one that began it, or four columns
    deeper. A block also ends where another begins with its language, and where the text does. A completion that begins with
    code, as that of a base model may, begins inside a block, and a bare fence ends that."""
    blocks, outside, lines, quoted = [], [], [], False
    first = re.match(r"(?:\s*\n)?", text).end()
    fence = "" if STATEMENT.match(text, first) or INDENTED.match(text, first) else None  # None: outside of blocks

    def end(*line):
        lines.extend(line)
        if fence:
            blocks.append((language.lower(), "\n".join(lines)))
        elif any(map(str.strip, lines)):
            outside.append("\n".join(lines))
        lines.clear()
    for line in text.split("\n"):
        match = FENCE.fullmatch(line) if "```" in line or "~~~" in line else None
        if quoted:
            line = re.sub(r"^[ \t]*>[ \t]?", "", line)
        if match:
            before, mark, name, rest = match.groups()
            depth = len(before.expandtabs())
            code = re.match(r"(?:async|class|def|from|import|return)\s", rest) is not None  # on the line of its fence
            if not fence or depth < column + 4:
                if fence is not None and not name + rest and mark.startswith(fence):
                    end()
                    fence, quoted = None, False
                    continue
                if (name or not fence) and (code or "`" not in rest):
                    end()
                    fence, language, column, quoted = mark, name, depth, ">" in before
                    if not code:
                        continue
                    line = rest
        if fence and line.endswith(fence) and line.count(fence) == 1 and line.strip() != fence:  # right after the last line
            end(line.removesuffix(fence))
            fence, quoted = None, False
        else:
            lines.append(line)
    end()
    return blocks, outside


def body_of(text):
    """The body of a function that a base model writes, and goes on (Chen et al. 2021)."""
    return re.split(r"\n(?=class|def|#|if|print)", text, maxsplit=1)[0]


def unfenced(text, kind, head=""):
    """The code in a text that may begin and end with prose; '' if none of it is of that kind."""
    text = re.sub(r"^(?:\[\w+\]|[A-Z]\w*|-[ \t].*)[ \t]*$", "", text, flags=re.MULTILINE)  # [PYTHON], Solution, - item: no code
    starts = re.finditer(r"^(?:  |\t)|" * bool(head) + STATEMENT.pattern, text, re.MULTILINE)
    for start in [0, *(match.start() for match in itertools.islice(starts, 10))]:
        rest = text[start:]
        if head or INDENTED.match(rest):
            rest = body_of(rest)
        code = max([leading(body, head) for body in (bodies(rest) if head else [unindent(rest)])], key=lambda code: code.strip().count("\n"))
        if kind.search(code):
            return code
    return ""


def defines(names, *more):
    """Pattern of a line that defines one of the names; `more` are other such patterns, with {} in place of the names."""
    names = "|".join(map(re.escape, sorted(names))) or "(?!)"
    patterns = (DEFINITION + r"(?:{})\b", r"(?:{})[ \t]*(?::.*)?=(?!=)", *more)
    return re.compile("|".join("^" + pattern.replace("{}", names) for pattern in patterns), re.MULTILINE)


def with_helpers(code, earlier, names):
    """The code after those of the earlier blocks that define what it uses and lacks, as in the cells of a notebook."""
    with suppress(SyntaxError):
        for block in [code, *reversed(earlier[-20:])]:
            if block is not code:
                if not pattern.search(block) or leading(block) != block:
                    continue
                code = f"{block}\n\n{code}"
            used, bound = set(names), set(dir(builtins))
            for node in ast.walk(parse(code)):
                if isinstance(node, ast.Name):
                    (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
                bound.update(str(getattr(node, field, "")).split(".")[0] for field in ("name", "asname", "arg"))
            pattern = defines(used - bound, r"(?:from|import)[ \t].*\b(?:{})\b")
    return code


def program_of(completion, prefix="", names=()):
    """The program in a completion. If the tests reach `names` of it, it is the last fenced block that defines one, else text
    outside of blocks that does, else (after a prefix) the same for the body of a function. Without names it is the last that
    reads standard input, else has a function, else a statement: usage, samples and output come after. A block in another
    language counts only if none is in Python or in no language. Where the prompt is the beginning of a function it goes before
    that: as it is if the completion goes on with the body, at whatever indentation, as a stub with its imports and helpers if
    the completion has the function itself."""
    names = {name.split("(")[0] for name in names}
    blocks, outside = blocks_of(completion.replace("\r\n", "\n"))
    views = [unindent(code) for _, code in blocks]
    order = sorted(range(len(blocks)), key=lambda i: (not blocks[i][0] or "py" in blocks[i][0], i))
    own = defines(names)
    i, code = (order[-1], blocks[order[-1]][1]) if blocks else (0, body_of(outside[0]) if prefix and outside else "".join(outside[:1]))
    for kind in (READS, FUNCTION, STATEMENT) if not names else (own, FUNCTION) if prefix else (own,):
        hits = [i for i in order if kind.search(views[i])]
        if hits:
            i, code = hits[-1], blocks[hits[-1]][1]
            break
        head = prefix if kind is not own and names else ""
        texts = [text for text in outside if len(text) <= MAX_SOURCE and kind.search(re.sub(r"^[ \t]+", "", text, flags=re.MULTILINE))]
        found = [found for text in texts[:5] + texts[5:][-5:] if (found := unfenced(text, kind, head))]
        if found:
            i, code = 0, found[0 if head else -1]  # after the body a base model goes on with something else
            break
    whole = unindent(code)
    if not prefix or own.search(whole):
        code = with_helpers(whole, views[:i], names)
        return code if not prefix or code.startswith("from __future__") else f"{prefix}\n    pass\n\n{code}"
    for body in bodies(code) if code.strip() else ():
        if leading(prefix + body) == prefix + body:
            return prefix + body
    return prefix + code


def prefix_of(prompt, name):
    """The prompt if it is Python up to the docstring of the function `name`, else ''."""
    try:
        tree = ast.parse(prompt + "\n    pass\n")
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    return prompt if any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body) else ""


class Code(Task):
    """Programs that pass all tests: 1, else 0. The vote key is the program without comments and layout."""

    def __init__(self, name, train, valid, test, max_new_tokens=512):
        super().__init__()
        self.name, self.max_new_tokens, self.train, self.valid, self.test = name, max_new_tokens, train, valid, test
        self.pool, self.memo = None, {}

    def open(self, allow_unsandboxed=False):
        """See that programs can be run.  Raises UserError if they cannot."""
        longest = max((json.loads(p.answer)["limit"] for p in self.train + self.valid + self.test), default=0)
        arguments = sandbox.settle(allow_unsandboxed)
        self.pool = CodePool(arguments, sandbox.WHOLE(longest) + 3 * sandbox.START_LIMIT)
        if arguments["args"][-2]:
            print(f"programs run in a sandbox: {arguments['note']}", flush=True)

    def verify(self, problem, completion):
        return self.rewards([problem], [completion])[0]

    def rewards(self, problems, completions):
        """1.0 where the program of the completion passes; each distinct (problem, program) once. What cannot be judged scores
        0.0 and is counted: `unsupported` (a test or the program passes objects, functions or iterators, which are no plain
        data), `verifier_errors`; so are `program_timeouts` (more time, memory or files than allowed, or killed by a signal)."""
        specs, pairs = {}, []
        for problem, completion in zip(problems, completions, strict=True):
            if problem.id not in specs:
                specs[problem.id] = json.loads(problem.answer)
            spec = specs[problem.id]
            pairs.append((problem.id, program_of(completion, spec.get("prefix", ""), spec.get("names", {}).values())))
        scores = {pair: self.memo.get(pair) for pair in pairs}
        for pair in scores:
            if not pair[1].strip():
                scores[pair] = 0.0
        jobs = {}
        for (i, program), score in scores.items():
            if score is None:
                spec = specs[i]
                rest = {"kind": "stdio"} if "inputs" in spec else {
                    "kind": "tests", "setup": spec["prefix"] and spec["prefix"] + "\n    pass\n"}
                jobs[i, program] = {**spec, **rest, "program": program}
        for pair, verdict in zip(jobs, self.pool.judge(list(jobs.values()))):
            if isinstance(verdict, str):
                self.counts[{"timeouts": "program_timeouts", "errors": "verifier_errors"}.get(verdict, verdict)] += 1
            scores[pair] = float(verdict is True)
        if len(self.memo) > 100_000:
            self.memo.clear()
        self.memo.update(scores)
        return [scores[pair] for pair in pairs]

    def extract(self, completion):
        code = program_of(completion)
        if len(code) > MAX_SOURCE:
            return squeeze(code)
        for body in bodies(code):  # a body has one key at any indentation
            with suppress(SyntaxError, RecursionError):
                return ast.unparse(parse("def body():\n" + body))
        return None


class CodePool(VerifierPool):
    """The same pool over the workers of sandbox.py. They keep the time themselves; `limit` is for a worker that is stuck."""

    def __init__(self, arguments, limit):
        super().__init__(limit)
        self.arguments = arguments

    def start(self, dead):
        if dead is not None:
            stop(dead)
        child = sandbox.start_worker(self.arguments)
        self.exchange(child, None, self.start_limit)
        return child


# --------------------------------------------------------------------------------------------- data sets and own files

SPLITS = {"train": "train", "valid": "valid", "test": "test", "validation": "valid", "val": "valid"}
INSTRUCTION = "\nReason step by step and put the final answer in \\boxed{}."
MATH_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
                 "prealgebra", "precalculus")


def squeeze(text):
    return " ".join(text.split())


def tenth(n):
    return max(1, n // 10) if n >= 3 else 0


def carve(train, test):
    """(train, valid): valid is a seeded tenth of train, at most 500. A problem whose text is in test is left out, one
    whose text comes again is kept once."""
    unique, held_out = {}, {squeeze(p.prompt) for p in test}
    for problem in train:
        if squeeze(problem.prompt) not in held_out:
            unique.setdefault(squeeze(problem.prompt), problem)
    problems = list(unique.values())
    random.Random(0).shuffle(problems)
    size = min(500, tenth(len(problems)))
    return problems[size:], problems[:size]


def local(data, folder=""):
    """The path of a local copy of a data set, a file or a folder.  Raises UserError if there is none."""
    path = os.path.abspath(os.path.join(data, folder))  # absolute: `datasets` would take 'json' for a file format
    if not os.path.isdir(path) and not (os.path.isfile(path) and not folder):
        raise UserError(f"--data: {path} is not a directory or file, but it should be a local copy of the data set")
    return path


def rows_in(path):
    """The rows of one file: Parquet, or JSON (lines, a list or one object), gzipped or not.  Raises UserError."""
    try:
        if path.endswith(".parquet"):
            import pyarrow.parquet
            yield from (row for batch in pyarrow.parquet.ParquetFile(path).iter_batches() for row in batch.to_pylist())
            return
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except Exception as error:  # of files that are damaged, Parquet and gzip raise too many types to list
        raise UserError(f"cannot read {path} ({squeeze(str(error))[:100] or type(error).__name__})") from error
    try:
        rows = json.loads(text)
        rows = enumerate(rows if isinstance(rows, list) else [rows], start=1)
    except (ValueError, RecursionError):
        rows = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    for number, row in rows:
        try:
            row = json.loads(row) if isinstance(row, str) else row
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object")
        yield row


def local_files(path, config, split):
    """(files of a split, files that name no split) of a local copy; of one `config` where folders are called so. The split is the
    first of train, test, valid(ation), val, dev and prompt that a file's name holds, or else a folder's."""
    found = [path] if os.path.isfile(path) else sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
        if re.search(r"\.(?:jsonl|json|parquet)(?:\.gz)?$", name) and not re.match(r"dataset_infos?\.json|\.", name))
    parts = {file: os.path.relpath(file, os.path.dirname(path) if file == path else path).split(os.sep) for file in found}
    if any(config in part[:-1] for part in parts.values()):
        found = [file for file in found if config in parts[file][:-1]]
    named = {"dev": "valid", "prompt": "prompt", **SPLITS}
    splits = {}
    for file in found:
        match = next(filter(None, (re.search(rf"(?<![a-z])({'|'.join(named)})(?![a-z])", part.lower())
                                   for part in reversed(parts[file]))), None)
        splits[file] = match and named[match[1]]
    mine = [file for file in found if splits[file] == SPLITS[split]]
    exact = [file for file in mine if parts[file][-1].split(".")[0].lower() == split]  # not train_socratic.jsonl beside train.jsonl
    return exact or mine, [file for file in found if not splits[file]]


def rows_of(path, config, split, make, first=None):
    """make(row) of the rows of a data set on the hub or in a local file or folder, those that are None left out. With `first` it
    is streamed, and no more than so many rows are.  Raises UserError."""
    try:
        files = local_files(path, config, split)[0] if os.path.exists(path) else []
        if files:
            data = (row for file in files for row in rows_in(file))
        else:
            import datasets
            datasets.disable_progress_bars()
            datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the errors come up as exceptions too
            if not os.path.isdir(path) and not datasets.config.HF_HUB_OFFLINE:
                import huggingface_hub
                try:
                    huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
                except Exception:  # no network: `datasets` would retry for half a minute before it looks into its cache
                    datasets.config.HF_HUB_OFFLINE = True
            data = datasets.load_dataset(path, config, split=split, streaming=first is not None)
        return [made for made in map(make, itertools.islice(data, first)) if made is not None]
    except Exception as error:  # the network, the hub, file formats and their libraries raise too many types to list
        reason = squeeze(str(error.__cause__ or error))[:200] or type(error).__name__
        if isinstance(error, UserError):
            reason = str(error)
        elif isinstance(error, KeyError):
            reason = f"a row lacks the field {error}"
        raise UserError(f"cannot load the {split} split of {path} ({reason}): check the network, or give a local copy "
                        "with --data DIR") from error


def fetch(path, config, split, columns):
    """Rows {column: str} of a data set on the hub or in a local file or folder; of one file none, where it is called after another
    split.  Raises UserError."""
    if os.path.isfile(path):
        mine, unnamed = local_files(path, config, split)
        if unnamed:
            raise UserError(f"cannot tell which split {path} is: call it train.jsonl or test.jsonl")
        if not mine:
            return []
    rows = rows_of(path, config, split, lambda row: {column: row.get(column) for column in columns})
    if not rows or any(value is None for row in rows for value in row.values()):
        raise UserError(f"the {split} split of {path} is empty or lacks values in its columns {', '.join(columns)}")
    return [{column: str(value) for column, value in row.items()} for row in rows]


def load_gsm8k(data=None):
    """Grade school word problems, https://arxiv.org/abs/2110.14168; valid is carved out of train.  Raises UserError."""
    path = "openai/gsm8k" if data is None else local(data)
    splits = {"train": [], "test": []}
    for split, problems in splits.items():
        for i, row in enumerate(fetch(path, "main", split, ("question", "answer"))):
            rationale, mark, answer = row["answer"].rpartition("####")
            answer = answer.strip().replace(",", "") if mark else None
            solution = f"{re.sub('<<.*?>>', '', rationale).strip()}\nThe answer is \\boxed{{{answer}}}."
            problems.append(Problem(f"gsm8k/{split}/{i}", row["question"] + INSTRUCTION, answer, solution))
    return Math("gsm8k", *carve(splits["train"], splits["test"]), splits["test"])


def load_math(data=None):
    """Competition problems of levels 1 to 5, https://arxiv.org/abs/2103.03874; test is the MATH-500 subset of the test
    split (of a local copy without a folder MATH-500 the whole), valid is carved out of train.  Raises UserError."""
    path, path_500, subjects = "EleutherAI/hendrycks_math", "HuggingFaceH4/MATH-500", MATH_SUBJECTS
    if data is not None:
        path = path_500 = local(data)
        if os.path.isdir(os.path.join(path, "hendrycks_math")):
            path = os.path.join(path, "hendrycks_math")
        if os.path.isdir(os.path.join(path_500, "MATH-500")):
            path_500 = os.path.join(path_500, "MATH-500")
        folders = {part for folder, _, _ in os.walk(path) for part in folder.split(os.sep)}
        subjects = [s for s in MATH_SUBJECTS if s in folders] or [None]
    train, test = [], []
    for subject in subjects:
        for i, row in enumerate(fetch(path, subject, "train", ("problem", "level", "solution"))):
            answer = last_box(row["solution"])
            train.append(Problem(f"math/train/{subject or 'all'}/{i}", row["problem"] + INSTRUCTION, answer, row["solution"],
                                 row["level"].removeprefix("Level ")))
    released = data is not None and path_500 == local(data)
    for subject in subjects if released else [None]:
        for i, row in enumerate(fetch(path_500, subject, "test", ("problem", "level", "solution") + (() if released else ("answer", "unique_id")))):
            answer, name = row.get("answer") or last_box(row["solution"]), row.get("unique_id") or f"test/{subject or 'all'}/{i}"
            test.append(Problem(f"math/{name}", row["problem"] + INSTRUCTION, answer, row["solution"], row["level"].removeprefix("Level ")))
    return Math("math", *carve(train, test), test, max_new_tokens=1024)


ASK_PROGRAM = "\n\nWrite a Python program that reads standard input and writes standard output, in one ```python block."


def code_problem(id, prompt, solution, spec, level=None):
    return CodeProblem(id, prompt, json.dumps(spec), solution, level)


def fenced(code):
    return f"```python\n{code.strip()}\n```"


def with_fields(files, columns):
    """The rows of files that name no split.  Raises UserError if one lacks a field."""
    for file in files:
        for number, row in enumerate(rows_in(file), start=1):
            missing = [column for column in columns if row.get(column) is None]
            if missing:
                raise UserError(f"{file}, row {number}: lacks the field {missing[0]!r}")
            yield row


def load_humaneval(data=None):
    """164 functions to complete, https://arxiv.org/abs/2107.03374: all of them test problems.  Raises UserError."""
    path = "openai/openai_humaneval" if data is None else local(data)
    test, columns = [], ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    unnamed = local_files(path, "openai_humaneval", "test")[1] if data is not None else []
    for row in [{c: str(row[c]) for c in columns} for row in with_fields(unnamed, columns)] or fetch(path, "openai_humaneval", "test", columns):
        name = row["entry_point"]
        spec = {"tests": f"{row['test']}\ncheck({name})\n", "names": {name: name}, "prefix": row["prompt"], "limit": LIMIT}
        test.append(code_problem(f"humaneval/{row['task_id']}", row["prompt"], row["canonical_solution"], spec))
    return Code("humaneval", [], [], test)


def load_mbpp(data=None):
    """974 functions from a sentence, https://arxiv.org/abs/2108.07732, in the data set's own splits. The prompt shows the first
    test, which says what the function is called; the others are hidden.  Raises UserError."""
    path = "google-research-datasets/mbpp" if data is None else local(data)

    def make(row):
        tests = "\n".join([*row["test_list"], *(row.get("challenge_test_list") or [])])
        used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
        defined = [node.name for node in ast.parse(row["code"]).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
        names = {name: name for name in defined if name in used or name in setup}
        if not names:  # a test that calls nothing of the program would pass or fail whatever that is
            return None
        spec = {"tests": f"{setup}\n{tests}\n", "names": names, "prefix": "", "limit": LIMIT}
        text = row["text"] if row.get("text") else row["prompt"]  # as the sanitized release calls it
        prompt = f"{text.strip()}\nYour code should pass this test:\n{row['test_list'][0]}\n\nWrite it in one ```python block."
        return code_problem(f"mbpp/{row['task_id']}", prompt, fenced(row["code"].replace("\r", "")), spec)
    unnamed = local_files(path, "full", "test")[1] if data is not None else []
    if not unnamed:
        return Code("mbpp", *(rows_of(path, "full", split, make) for split in ("train", "validation", "test")))
    splits = {"train": [], "validation": [], "test": []}  # by the numbers of the release; 1 to 10 are for prompting
    try:
        for row in with_fields(unnamed, ("task_id", "code", "test_list")):
            i = int(row["task_id"])
            split = "train" if i > 600 else "validation" if i > 510 else "test"
            made = make(row) if i > 10 else None
            if made is not None:
                splits[split].append(made)
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--data: {unnamed[0]} is not the release of mbpp ({type(error).__name__}: {squeeze(str(error))[:100]})") from error
    return Code("mbpp", *splits.values())


def stdio_spec(inputs, outputs, limit):
    """The spec of a program, its tests cut to MAX_TESTS and MAX_TEST_TEXT; None if there are none."""
    kept, size = [], 0
    for given, wanted in zip(inputs, outputs):
        size += len(given) + len(wanted)
        if len(kept) < MAX_TESTS and size <= MAX_TEST_TEXT:
            kept.append((given, wanted))
    return {"inputs": [i for i, _ in kept], "outputs": [o for _, o in kept], "limit": limit} if kept else None


def load_codecontests(data=None, first=1000):
    """Programs from programming contests, https://arxiv.org/abs/2203.07814, streamed; of the train split the `first` rows.
    Public, private and generated tests in this order. A problem with several right outputs has one here.  Raises UserError."""
    path = "deepmind/code_contests" if data is None else local(data)

    def make(row):
        inputs, outputs = ([text for kind in ("public_tests", "private_tests", "generated_tests") for text in row[kind][side]]
                           for side in ("input", "output"))
        time = row["time_limit"]
        spec = stdio_spec(inputs, outputs, time["seconds"] + time["nanos"] / 1e9 if time else LIMIT)
        if spec is None or row["input_file"] or row["output_file"]:
            return None
        gold = [text for language, text in zip(row["solutions"]["language"], row["solutions"]["solution"]) if language == 3]  # Python 3
        problems.append(row["name"])
        return code_problem(f"codecontests/{split}/{len(problems)}", row["description"] + ASK_PROGRAM, fenced(gold[0]) if gold else None,
                            spec, str(row["difficulty"]))
    splits = []
    for split in ("train", "valid", "test"):
        problems = []
        splits.append(rows_of(path, None, split, make, first if split == "train" else 10 ** 6))
    return Code("codecontests", *splits, max_new_tokens=1024)


SAME = """
def plain(value):
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value
def same(value, wanted):
    return plain(value) == wanted or isinstance(wanted, list) and wanted and plain(value) == wanted[0]
"""


def load_taco(data=None):
    """Programs and functions, https://arxiv.org/abs/2312.14852; valid is carved out of train. The data set on the hub has a
    loading script, which the library `datasets` no longer runs, so it takes a local copy of its rows.  Raises UserError."""
    path = "BAAI/TACO" if data is None else local(data)

    def make(row):
        try:
            tests, golds = json.loads(row["input_output"]), json.loads(row["solutions"] or "[]")
        except ValueError:  # some rows have no tests, some numbers of more digits than Python reads
            return None
        time = re.match(r"\s*([0-9]+(?:\.[0-9]+)?)", str(row.get("time_limit") or ""))
        limit, name, starter = float(time[1]) if time else LIMIT, tests.get("fn_name"), row.get("starter_code") or ""
        if name:
            entry = f"Solution().{name}" if "class Solution" in starter else name
            cases = [f"assert same(candidate(*{args if isinstance(args, list) else [args]!r}), {wanted!r})"
                     for args, wanted in zip(tests["inputs"], tests["outputs"])][:MAX_TESTS]
            spec = {"tests": SAME + "\n".join(cases), "names": {"candidate": entry}, "prefix": "", "limit": limit} if cases else None
        else:
            inputs, outputs = (["\n".join(x) if isinstance(x, list) else x for x in tests[side]] for side in ("inputs", "outputs"))
            spec = stdio_spec(inputs, outputs, limit)
        if spec is None:
            return None
        problems.append(name)
        prompt = row["question"] + (f"\n\n{starter}\n\nComplete this code in one ```python block." if name else ASK_PROGRAM)
        return code_problem(f"taco/{split}/{len(problems)}", prompt, fenced(golds[0]) if golds else None, spec, row.get("difficulty"))
    splits = {}
    for split in ("train", "test"):
        problems = []
        try:
            splits[split] = rows_of(path, None, split, make)
        except UserError as error:
            raise UserError(f"{error}; on the hub TACO comes with a loading script, which datasets no longer runs: save its rows as "
                            "Parquet or JSON lines, DIR/train.* and DIR/test.*") from error
    return Code("taco", *carve(splits["train"], splits["test"]), splits["test"], max_new_tokens=1024)


def code_answer(row):
    """The answer of a CodeProblem from a line of JSON.  Raises UserError."""
    limit = row.get("time_limit", LIMIT)
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit <= 3600:
        raise UserError('"time_limit" must be a number of seconds, more than 0 and at most 3600')
    if "tests" in row:
        tests, name = row["tests"], row.get("entry_point")
        if isinstance(tests, list) and all(isinstance(test, str) for test in tests):
            tests = "\n".join(tests)
        if not isinstance(tests, str) or not tests.strip():
            raise UserError('"tests" must be Python source, or a list of lines of it, and not empty')
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError('"entry_point" must be the name of the function that is tested')
        try:
            tree = ast.parse(tests)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise UserError('"tests" is not valid Python') from error
        if any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
            tests += f"\ncheck({name})\n"  # as in HumanEval
        prefix = prefix_of(row["prompt"], name) if isinstance(row.get("prompt"), str) else ""
        return json.dumps({"tests": tests, "names": {name: name}, "prefix": prefix, "limit": float(limit)})
    inputs, outputs = row.get("inputs"), row.get("outputs")
    if any(not isinstance(side, list) or not side or not all(isinstance(text, str) for text in side) for side in (inputs, outputs)) \
            or len(inputs) != len(outputs):
        raise UserError('"inputs" and "outputs" must be lists of text of one length, and not empty')
    return json.dumps({"inputs": inputs, "outputs": outputs, "limit": float(limit)})


def parse_problem(line, name):
    """(Problem called name, split or None) from a line of JSON.  Raises UserError that does not say where."""
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair passes for JSON but is no text
    except (ValueError, RecursionError) as error:
        raise UserError("not valid JSON") from error
    if not isinstance(row, dict):
        raise UserError("not a JSON object")
    code = "answer" not in row and ("tests" in row or "inputs" in row)
    if code:
        row = {**row, "answer": code_answer(row)}
    texts = {}
    for field in ("prompt", "answer", "solution", "level", "split"):
        value = row.get(field)
        if field in ("answer", "level") and isinstance(value, (int, float)) and not isinstance(value, bool):
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f'"{field}" must be finite')
            value = str(value)
        if value is None and field in ("prompt", "answer"):
            raise UserError(f'"{field}" is missing')
        if value is not None and not isinstance(value, str):
            raise UserError(f'"{field}" must be text' + ' or a number' * (field in ("answer", "level")))
        texts[field] = value
    split = texts.pop("split")
    if split not in (None, *SPLITS):
        raise UserError(f'"split" must be train, valid or test, not {split!r}')
    if not texts["prompt"].strip() or not code and clean(texts["answer"]) is None:
        raise UserError(f'"prompt" and "answer" must not be empty, nor the answer longer than {MAX_ANSWER} characters')
    return (CodeProblem if code else Problem)(name, **texts), SPLITS.get(split)


def load_jsonl(path):
    """Problems from lines {"prompt", "answer"[, "solution", "level", "split"]}; other fields are ignored. The prompt is
    used as it is, so let it ask for a \\boxed{} answer. Without any "split", a seeded 80/10/10.  Raises UserError.
    Code has {"tests", "entry_point"} or {"inputs", "outputs"} in place of "answer", and may have a "time_limit"."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[:error.start].count(b"\n") + 1
        raise UserError(f"--data {path}, line {number}: not UTF-8 text") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"cannot read --data {path}: {getattr(error, 'strerror', None) or error}") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split inside JSON strings
        if line.strip():
            try:
                rows.append((number, *parse_problem(line, f"{os.path.basename(path)}:{number}")))
            except UserError as error:
                raise UserError(f"--data {path}, line {number}: {error}") from error
    if not rows:
        raise UserError(f"--data {path} holds no problems")
    if len({type(problem) for _, problem, _ in rows}) > 1:
        number = next(number for number, problem, _ in rows if type(problem) is not type(rows[0][1]))
        raise UserError(f"--data {path}, line {number}: a file holds problems with an answer, or code, but not both")

    homes = {}  # the split of each prompt; one prompt in two splits would leak from one into the other
    if any(split for _, _, split in rows):
        for number, problem, split in rows:
            if split is None:
                raise UserError(f'--data {path}, line {number}: "split" is missing, but other lines have one')
            if homes.setdefault(squeeze(problem.prompt), split) != split:
                raise UserError(f"--data {path}, line {number}: this prompt is in another split too")
    else:
        prompts = list(dict.fromkeys(squeeze(problem.prompt) for _, problem, _ in rows))
        random.Random(0).shuffle(prompts)
        size = tenth(len(prompts))
        for i, prompt in enumerate(prompts):
            homes[prompt] = "test" if i < size else "valid" if i < 2 * size else "train"
    kind = Code if isinstance(rows[0][1], CodeProblem) else Math
    return kind("jsonl", *([p for _, p, _ in rows if homes[squeeze(p.prompt)] == split]
                           for split in ("train", "valid", "test")))


# ------------------------------------------------------------------------------------------------------- all the tasks

EMBEDDED = {"countdown": Countdown, "routes": Routes, "program": Program, "peptide": Peptide}
DATA_SETS = {"gsm8k": load_gsm8k, "math": load_math, "humaneval": load_humaneval, "mbpp": load_mbpp,
             "codecontests": load_codecontests, "taco": load_taco}


def keep_levels(task, levels):
    """Keep the problems of some levels. This comes after the split, so that no valid problem of one choice of levels is
    a train problem of another.  Raises UserError."""
    chosen, known = set(), {p.level for p in task.train + task.valid + task.test if p.level is not None}
    for part in str(levels).split(","):
        span = re.fullmatch(r"\s*([0-9]{1,3})\s*-\s*([0-9]{1,3})\s*", part)
        chosen.update(map(str, range(int(span[1]), int(span[2]) + 1)) if span else [part.strip()])
    if not known:
        raise UserError(f"--levels: the problems of task {task.name} have no levels")
    if not chosen & known:
        raise UserError(f"--levels {levels} selects nothing: task {task.name} has {', '.join(sorted(known)[:20])}")
    for split in ("train", "valid", "test"):
        setattr(task, split, [p for p in getattr(task, split) if p.level in chosen])


def load_task(name=None, data=None, levels=None, allow_unsandboxed=False):
    """The task called `name`, from a local copy of its data set if `data` is given; without a name (or as 'jsonl') the
    problems of the file `data`. `levels`, like '1-3' or '1,2,5', keeps some of them. Programs run in a sandbox, or where
    that is not possible only if `allow_unsandboxed`.  Raises UserError."""
    names = ", ".join([*EMBEDDED, *DATA_SETS])
    if name in EMBEDDED:
        if data is not None:
            raise UserError(f"task {name} generates its problems: leave out --data")
        task = EMBEDDED[name]()
    elif name in DATA_SETS:
        task = DATA_SETS[name](data)
    elif name not in (None, "jsonl"):
        raise UserError(f"unknown task {name!r}: choose from {names}, or give --data FILE.jsonl")
    elif data is None:
        raise UserError(f"no task: choose from {names}, or give --data FILE.jsonl")
    else:
        task = load_jsonl(data)
    if levels is not None:
        keep_levels(task, levels)
    if isinstance(task, Code):
        task.open(allow_unsandboxed)
    return task
