"""Problems and verifiers. `load_task(name, data)` gives a task with

    .train .valid .test             lists of Problem, disjoint from each other
    .verify(problem, completion)    finite float; in [0, 1] unless the task is `graded`
    .extract(completion)            final answer = the key that votes are counted by, or None
    .rewards(problems, completions) verify for many pairs, identical pairs once; `.counts` holds what went wrong

Embedded (no download): `countdown`, `routes`. From the hub: `gsm8k`, `math`. Your own problems: `--data FILE.jsonl`.
This module never imports torch: its verifier workers start in a fraction of a second.
"""
import random
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from math import prod


class UserError(ValueError):
    """A mistake in what the user gave (flag, file, model). Its message is one sentence: what is wrong, what to do."""


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    answer: str  # what the verifier compares with; stored, because it cannot always be recomputed from the prompt
    solution: str | None = None  # a gold completion without the end-of-sequence token, for supervised fine-tuning
    level: str | None = None


class Task:
    """Base of all tasks; the docstring of this module is the contract."""
    name = ""
    graded = False  # True: rewards are real numbers and max@k takes the place of pass@k
    max_new_tokens = 512  # long enough for the gold solutions
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


# ---------------------------------------------------------------------------------------------------- embedded tasks
# Problems are generated, never stored. Whether a problem belongs to train, valid or test is read off a checksum of its
# key (the sorted numbers and the target), so the splits are disjoint up to the order of the numbers, and make_tiny.py
# keeps valid and test problems out of the pretraining stream by the same function.

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


# ------------------------------------------------------------------------------------------------------- all the tasks

EMBEDDED = {"countdown": Countdown, "routes": Routes}


def load_task(name=None, data=None):
    """The task called `name`.  Raises UserError."""
    if name not in EMBEDDED:
        raise UserError(f"unknown task {name!r}: choose from {', '.join(EMBEDDED)}")
    return EMBEDDED[name]()
