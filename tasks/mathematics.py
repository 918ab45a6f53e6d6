"""Answers compared as mathematics: what the answer of a completion is, and which answers are the same."""
import importlib.util
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import unicodedata
from contextlib import suppress
from fractions import Fraction

from support.errors import UserError

from .embedded import Task
from .workers import WorkerPool

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
    (r"(?:\^(?:\\circ(?![a-z])|\{ *\\circ *\})|\^?\\(?:text)?degree(?![a-z])) ?"
     r"(?:\\text\{ *[CF] *\}|[CF](?![A-Za-z]))?", ""),
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
BOOT = ("import sys; root, limit = sys.argv[1:]; "
        "sys.path = [root, *filter(None, sys.path)]; "  # without the current directory
        "from tasks.mathematics import verify_worker; verify_worker(float(limit))")


class VerifierPool(WorkerPool):
    """`judge` pairs (gold, answer) by math-verify: True or False."""

    def launch(self):
        return subprocess.Popen(
            [sys.executable, "-c", BOOT, ROOT, str(self.limit)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, bufsize=0,
            start_new_session=True,  # Ctrl-C is not for it, and `stop` can kill the whole group
            env={**os.environ, "PYTHONHASHSEED": "0"})  # sympy orders terms by hash: same verdicts in every run


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
