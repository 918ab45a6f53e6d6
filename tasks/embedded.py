"""The base classes of tasks, and the tasks that need no download: countdown, countdown6, routes, program, peptide."""
import ast
import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from support.errors import UserError


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str  # a support.text.Chat for chat messages
    answer: str  # for the verifier; stored because it cannot always be recomputed from the prompt
    solution: str | None = None  # gold completion for supervised fine-tuning, without the end-of-sequence token
    level: str | None = None


class Task:
    """Base class of all tasks; the docstring of tasks/__init__.py is the contract."""
    name = ""
    graded = False  # True: rewards are real numbers, and max@k replaces pass@k
    max_new_tokens = 512  # long enough for the gold solutions
    base = "tiny"  # embedded model that scripts use without --model
    chat = True  # prompts go through the tokenizer's chat template, if it has one
    places = {}  # {flag: FILE.py:NAME} of the user's own class or function
    code = {}  # {flag: {file: SHA-256}} of its file and the modules imported from its folder
    understood = ""  # for the user's own data: how columns were read, and the number of problems

    def __init__(self):
        self.train, self.valid, self.test = [], [], []
        self.counts = Counter()  # since the start of the process, e.g. verifier_timeouts

    def verify(self, problem: Problem, completion: str) -> float:
        raise NotImplementedError

    def extract(self, completion: str) -> str | None:
        raise NotImplementedError

    def rewards(self, problems: list[Problem], completions: list[str]) -> list[float]:
        """Rewards of (problem, completion) pairs, given as two lists of equal length -> list of float."""
        memo = {}
        for problem, completion in zip(problems, completions, strict=True):
            if (problem.id, completion) not in memo:
                memo[problem.id, completion] = self.verify(problem, completion)
        return [memo[p.id, c] for p, c in zip(problems, completions)]

    def target(self, problem: Problem, kind: str = "solution") -> str | None:
        """A gold completion, or None. kind: "solution" for the whole solution, "answer" for the shortest text that
        states the answer. By default they are the same."""
        return problem.solution

    def check_can_verify(self):
        """Raises UserError if no completion can be judged."""

    def need(self, split: str) -> list[Problem]:
        """The problems of a split.  Raises UserError if there are none."""
        problems = getattr(self, split)
        if not problems:
            sizes = f"{len(self.train)} train, {len(self.valid)} valid, {len(self.test)} test"
            raise UserError(f"task {self.name} has no {split} problems ({sizes}): add some to its data, name "
                            "splits in its column `split`, or choose other levels")
        return problems


# Problems are generated, never stored. A checksum of the problem's key (sorted numbers and target, or the function of a
# program) decides its split. So the splits are disjoint up to the order of the numbers, and make_tiny.py keeps valid
# and test problems out of the pretraining stream with the same function.

def split_of(key: object) -> str:
    """'train' (90 %), 'valid' or 'test' (5 % each) for a problem key, by checksum."""
    return {0: "test", 1: "valid"}.get(zlib.crc32(repr(key).encode()) % 20, "train")


class Embedded(Task):
    """A task whose problems come from `generate(rng) -> (key, prompt, answer, solution, corpus)`. solution: a correct
    completion or None; corpus: the completion in the pretraining corpus."""
    chat = False

    def __init__(self, sizes: tuple[int, int, int] = (4000, 400, 400)):
        super().__init__()
        for split, size in zip(("train", "valid", "test"), sizes):
            setattr(self, split, self.problems(split, size))

    def problems(self, split: str, size: int, seed: int = 0) -> list[Problem]:
        """`size` problems of one split with distinct keys, determined by the seed."""
        rng = random.Random(f"{self.name} {split} {seed}")
        seen = set()
        problems = []
        while len(problems) < size:
            key, prompt, answer, solution, _ = self.generate(rng)
            if split_of(key) == split and key not in seen:
                seen.add(key)
                name = f"{self.name}/{split}/{len(problems)}"
                problems.append(Problem(name, prompt, answer, solution))
        return problems

    def stream(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Endless (prompt, completion) pairs from the train split, for pretraining the tiny base."""
        while True:
            key, prompt, _, _, corpus = self.generate(rng)
            if split_of(key) == "train":
                yield prompt, corpus


# countdown: make the target from all the numbers with + - *, each number once.  'c7,3,2,9:23>' -> '2*7+9' ...

def countdown_terms(text: str) -> list[tuple[int, tuple[int, ...]]] | None:
    """Parse digits joined by + - *: '2*7+9-3' -> [(-1, (3,)), (1, (2, 7)), (1, (9,))], the sorted terms with sign and
    sorted factors; None for any other text. The text is never evaluated."""
    if not re.fullmatch(r"[1-9]([-+*][1-9])*", text, re.ASCII):
        return None
    terms = []
    for term in re.findall(r"[-+]?[^-+]+", text):
        sign = -1 if term[0] == "-" else 1
        factors = sorted(map(int, term.lstrip("+-").split("*")))
        terms.append((sign, tuple(factors)))
    return sorted(terms)


def value_of(terms: list[tuple[int, tuple[int, ...]]]) -> int:
    return sum(sign * prod(factors) for sign, factors in terms)


def listed(numbers):
    return ",".join(map(str, numbers))


class Countdown(Embedded):
    """Search-like: many candidates, few correct, so pass@k grows a lot with k. The vote key is the expression up to the
    order of terms and factors: '2*7+9' and '9+7*2' are the same answer."""
    name = "countdown"
    max_new_tokens = 12
    count = 3, 5  # fewest and most numbers
    targets = 1, 99
    cut = 0.0  # share of corpus lines cut before all numbers are used (models/make_tiny.py)

    def generate(self, rng: random.Random) -> tuple:
        while True:
            numbers = [rng.randint(1, 9) for _ in range(rng.randint(*self.count))]
            solution = str(numbers[0])
            for number in numbers[1:]:
                solution += rng.choice("++-**") + str(number)
            target = value_of(countdown_terms(solution))
            if self.targets[0] <= target <= self.targets[1]:
                break
        rng.shuffle(numbers)
        prompt = f"c{listed(numbers)}:{target}>"
        used = tuple(sorted(numbers))
        answer = f"{listed(used)}:{target}"
        corpus = solution
        if self.cut and rng.random() < self.cut:
            corpus = solution[:1 + 2 * rng.randrange(len(numbers) - 1)]
        return (used, target), prompt, answer, solution, corpus

    def verify(self, problem: Problem, completion: str) -> float:
        terms = countdown_terms(completion)
        if terms is None:
            return 0.0
        used = sorted(d for _, factors in terms for d in factors)
        return float(f"{listed(used)}:{value_of(terms)}" == problem.answer)

    def extract(self, completion: str) -> str | None:
        terms = countdown_terms(completion)
        if terms is None:
            return None
        key = ""
        for sign, factors in terms:
            key += "-" if sign < 0 else "+"
            key += "*".join(map(str, factors))
        return key


class Countdown6(Countdown):
    """Countdown with six numbers and three-digit targets. The base is rarely correct, and never in 64 samples on a
    third of the problems, so there is room for improvement at every k."""
    name = "countdown6"
    base = "tiny_countdown6"
    count = 6, 6
    targets = 100, 999


# routes: choose one of seven labelled sums.  'rA3+8B7+4C9+5D2+6E1+1F8+7G4+4>' -> 'B7+4=11'

class Routes(Embedded):
    """Engineered so that voting pays. The correct answer is hidden. Each route is sound (its sum is the answer) on its
    own random share of the problems, and unsound routes disagree with each other. A single route does not show whether
    it is sound. The best one is correct on 55 % of the problems; spreading the samples over the routes is correct less
    often per sample but wins the vote on two thirds. The corpus overuses route A, the worst."""
    name = "routes"
    max_new_tokens = 10
    sound = {"A": .15, "B": .55, "C": .48, "D": .48, "E": .48, "F": .48, "G": .48}
    corpus = {"A": .4, "B": .1, "C": .1, "D": .1, "E": .1, "F": .1, "G": .1}

    def generate(self, rng: random.Random) -> tuple:
        answer = rng.randint(2, 18)
        wrong = rng.sample([v for v in range(2, 19) if v != answer], len(self.sound))
        sums = []
        lines = {}
        for (label, share), other in zip(self.sound.items(), wrong):
            value = answer if rng.random() < share else other
            first = rng.randint(max(1, value - 9), min(9, value - 1))
            sums.append(f"{first}+{value - first}")
            lines[label] = f"{label}{sums[-1]}={value}"
        routes = [line.split("=")[0] for line in lines.values()]
        right = [line for line in lines.values() if line.endswith(f"={answer}")]
        shown, = rng.choices(list(self.corpus), self.corpus.values())
        solution = rng.choice(right) if right else None
        key = (tuple(sorted(sums)), answer)
        return key, f"r{''.join(routes)}>", str(answer), solution, lines[shown]

    def verify(self, problem: Problem, completion: str) -> float:
        return float(self.extract(completion) == problem.answer)

    def extract(self, completion: str) -> str | None:
        match = re.fullmatch(r"[A-G][1-9]\+[1-9]=([1-9][0-9]?)", completion, re.ASCII)
        return match and match[1]


# program: write the expression that produced the examples.  '0:3,2:13,10:213>' -> '2*x*x+x+3', or 'x*(2*x+1)+3' ...

def polynomial(text):
    """Coefficients (constant first, no trailing zeros) of an expression of x, integers, + - * and parentheses. None for
    any other text, or one that exceeds the limits: 64 characters, 4 digits, depth 32, degree 8, coefficients of 10^9.
    The text is parsed, never run. Two polynomials are equal exactly if the programs agree on every x."""
    # The pattern excludes 0x1, which Python reads as a number.
    if len(text) > 64 or not re.fullmatch(r"(?:[-+*()x]|[0-9]{1,4}(?![0-9x]))+", text, re.ASCII):
        return None
    try:
        return expand(ast.parse(text, mode="eval").body, 32)
    except (SyntaxError, OverflowError):
        return None


def expand(node, depth):
    """`polynomial` of a syntax tree node.  Raises OverflowError beyond the limits, SyntaxError for other nodes."""
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
        result = product(left, right)
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


def product(left, right):
    """Coefficients of the product of two polynomials."""
    result = [0] * (len(left) + len(right) - 1) if left and right else []
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            result[i + j] += a * b
    return result


def written(*terms):
    """A sum of terms (number, power of x), positive terms first: '9-x'."""
    text = ""
    for number, power in sorted(terms, key=lambda term: term[0] < 0):
        if number:
            text += f"{number:+d}{power}"
    return re.sub(r"(?<![0-9])1\*", "", text).removeprefix("+")


class Program(Embedded):
    """Code-like: the prompt shows a program's outputs for three inputs; the answer must also produce the hidden outputs
    for others, which are stored with the problem. Problems are split by function, however it is written: no function
    of valid or test occurs in pretraining or in train, and the problems of a split have distinct functions.
    Engineered for a model of this size: functions are a*x*x + b*x + c with a = 0..4, |b| <= 9 and c = 0..99. The inputs
    0 and 10 are always shown, where the digits reveal most. What remains is to split f(10) - f(0) into a and b, which
    the third input, 1 to 5, decides. Linear functions are easy, the others hard. The corpus writes a function in
    several ways; the vote key is the function."""
    name = "program"
    base = "tiny_program"
    max_new_tokens = 16

    def generate(self, rng: random.Random) -> tuple:
        a = rng.choice((0, 0, 1, 2, 3, 4))
        b = rng.choice([-1, 1]) * rng.randint(1, 9)
        c = rng.randint(0, 99)
        shown = [0, rng.randint(1, 5), 10]
        others = [x for x in range(-9, 10) if x not in shown]
        hidden = rng.sample(others, 4)

        def examples(xs):
            return ",".join(f"{x}:{(a * x + b) * x + c}" for x in xs)
        solution = written((a, "*x*x"), (b, "*x"), (c, ""))
        if a and rng.random() < 0.5:
            inner = written((a, "*x"), (b, ""))
            solution = f"x*({inner})"
            if c:
                solution += f"{c:+d}"
        elif not a and b > 1 and c and c % b == 0 and rng.random() < 0.5:
            inner = written((1, "*x"), (c // b, ""))
            solution = f"{b}*({inner})"
        return (a, b, c), examples(shown) + ">", examples(hidden), solution, solution

    def verify(self, problem: Problem, completion: str) -> float:
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

    def extract(self, completion: str) -> str | None:
        coefficients = polynomial(completion)
        if coefficients is None:
            return None
        return listed(coefficients) or "0"


# peptide: continue a peptide so that its helix has one hydrophobic side.  '>KLWE' -> 'ALKRIVDLLKEGLR'

RESIDUES = {  # hydropathy: Kyte, Doolittle 1982
    "A": 1.8, "R": -4.5, "N": -3.5, "D": -3.5, "C": 2.5, "Q": -3.5, "E": -3.5, "G": -0.4, "H": -3.2, "I": 4.5,
    "L": 3.8, "K": -3.9, "M": 1.9, "F": 2.8, "P": -1.6, "S": -0.8, "T": -0.7, "W": -0.9, "Y": -1.3, "V": 4.2}


class Peptide(Embedded):
    """Synthetic, in the spirit of protein design: a real-valued reward with room for better samples. The reward is the
    hydrophobic moment of the first 18 residues, including the prompt, as a helix (100 degrees per residue, so 18
    residues are 5 turns): |sum_n H_n exp(i n 100 deg)| / 18, from 0 to about 2.8. Missing residues count as H = 0; any
    other letter makes the reward 0. It predicts nothing about real peptides. The base (tiny_peptide) has learned
    sequences that are hydrophobic more often on one side of the helix (65 % against 25 %) and otherwise random."""
    name = "peptide"
    graded = True
    base = "tiny_peptide"
    max_new_tokens = 16
    length = 18

    def generate(self, rng: random.Random) -> tuple:
        hydrophobic = [a for a, h in RESIDUES.items() if h > 0]
        others = [a for a, h in RESIDUES.items() if h <= 0]
        chain = ""
        for n in range(self.length):
            side = math.cos(math.radians(100) * n)
            wanted = hydrophobic if rng.random() < 0.45 + 0.2 * side else others
            chain += rng.choice(wanted)
        start = chain[:4]
        return start, ">" + start, start, None, chain[4:]  # ">" marks where residues are counted from

    def verify(self, problem: Problem, completion: str) -> float:
        chain = (problem.answer + "".join(completion.split()))[:self.length]  # models like ProtGPT2 insert line breaks
        if not all(a in RESIDUES for a in chain):
            return 0.0
        x = 0
        y = 0
        for n, residue in enumerate(chain):
            angle = math.radians(100) * n
            x += RESIDUES[residue] * math.cos(angle)
            y += RESIDUES[residue] * math.sin(angle)
        return math.hypot(x, y) / self.length

    def extract(self, completion: str) -> str | None:
        chain = "".join(completion.split())
        return chain if chain and set(chain) <= set(RESIDUES) else None
