r"""The normal form of a `clean` answer by its kind, and whether two answers are equal.

The table FLAT rewrites LaTeX as one line of operators and calls. The line is split at the operators that bind loosest;
the remaining expressions become Python for sympy. A normal form is again one line, of numbers and brackets. Used only
in child processes that can be killed.
"""
import functools
import itertools
import random
import re
import sys
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

import sympy

from .answers import FUNCTIONS, glance

sys.set_int_max_str_digits(0)
DIGITS = 150  # of computed numbers; the last thirty may be rounding errors
TURNED = {">": "<", "≥": "≤"}
RELATION = {"≤": "<=", "≥": ">=", "≠": "!="}
RELATIONS = "=<>≤≥≠"
SEPARATORS = ",⊔"
SETS = re.compile("[<>≤≥≠∪∩∖ℝ∅]")
TOKEN = re.compile(r"(?P<number>[0-9]+\.?[0-9]*|\.[0-9]+)"
                   r"|(?P<call>\\[a-z]+(?=\()|[fgh]'*(?:_⟨-1⟩)?(?=\()|[PE](?=\([A-Z]))"
                   r"|(?P<symbol>(?:\\[a-z]+|[^\W\d_]|[…∠△])(?:_⟨[^⟩]*⟩)?'*|[∞∅])|(?P<open>[(\[])|(?P<close>[)\]])"
                   r"|(?P<sign>[-+*/^,∪∩∖∧∨])")
PYTHON = {"^": "**", "∪": "|", "∩": "&", "∖": "-", "∧": "&", "∨": "|"}
KNOWN = {  # names in sympy
    "e": "E",
    "i": "I",
    "π": "pi",
    "∞": "oo",
    "∅": "EmptySet",
    "ℝ": "Reals",
    "ℤ": "Integers",
    "ℕ": "Naturals",
    "ℚ": "Rationals",
    "ℂ": "Complexes",
    "⊔": "Union",
    ",": "Intersection",
    "∪": "Union",
    "∩": "Intersection",
    "∖": "Complement",
    "\\ln": "log",
    "\\abs": "Abs",
    "\\min": "Min",
    "\\max": "Max",
    "\\floor": "floor",
    "\\ceil": "ceiling",
    "\\factorial": "factorial",
    "\\binom": "binomial",
    "\\root": "real_root",
    "\\sqrt": "sqrt",
    "\\det": "det",
    "\\matrix": "Matrix"}
KNOWN = {rf"\{name}": name for name in FUNCTIONS} | KNOWN


def symbol(name):
    return getattr(sympy, KNOWN[name]) if name in KNOWN else sympy.Symbol(name)


def call(name):
    """A function of sympy; for an unknown f, f(x+1) becomes a symbol of that name."""
    return symbol(name) if name in KNOWN else lambda *inputs: sympy.Symbol(f"{name}({','.join(map(line, inputs))})")


NAMED = {"number": sympy.Rational, "symbol": symbol, "call": call}


def evaluate(text):
    """sympy's object for an expression. The evaluated Python consists only of numbers, quoted names and operators."""
    if TOKEN.sub("", text):
        raise ValueError(text)
    code = ""
    last = ""
    for match in TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if last in ("number", "symbol", "close") and kind not in ("sign", "close"):
            code += " " if kind == last == "number" else "*"
        code += f"{kind}({token!r})" if kind in NAMED else PYTHON.get(token, token)
        last = kind
    return sympy.sympify(eval(code, {"__builtins__": {}, **NAMED}))


def split(text, signs):
    """Split a text at signs outside brackets: [part, sign, part, ...]; [text] without signs or with unbalanced
    brackets."""
    depth = 0
    parts = [""]
    for char in text:
        depth += (char in "([{⟨") - (char in ")]}⟩")
        if depth < 0:
            return [text]
        if char in signs and not depth:
            parts += [char, ""]
        else:
            parts[-1] += char
    return parts


# ------------------------------------------------------------------------------------------------------ normal forms

def point(expression, shift):
    """A number for each symbol of an expression. Among three points each symbol is negative once."""
    chosen = {}
    for name in expression.free_symbols:
        draw = random.Random(f"{name} {shift}")
        factor = (1, 1, -3)[(ord(str(name)[-1]) + shift) % 3]
        chosen[name] = sympy.Rational(factor * draw.randint(1000, 3000), draw.randint(500, 999))
    return chosen


def number(value):
    """A real number of sympy as text: a fraction if it is close to one, else 100 digits."""
    if getattr(value, "_prec", 99) < 20:  # no precision left: the difference of equal numbers
        return "0"
    exact = Fraction(str(value))
    near = exact.limit_denominator(10 ** 12)
    return str(near if abs(near - exact) * 10 ** (DIGITS - 30) <= abs(exact) else value.evalf(100))


def line(expression):
    """An expression as text: its value or, with symbols, f and its values at three points."""
    if not isinstance(expression, sympy.Expr) or expression.is_Rational or expression in (sympy.oo, -sympy.oo):
        return str(expression)
    texts = []
    for shift in range(3 if expression.free_symbols else 1):
        value = expression.evalf(DIGITS, subs=point(expression, shift), maxn=500)
        if not value.is_finite:
            raise ValueError(expression)
        texts.append("+".join(map(number, value.as_real_imag())).removesuffix("+0"))
    return texts[0] if len(set(texts)) == 1 else f"f({','.join(texts)})"


def collection(forms):
    """A set of normal forms as text: flattened, sorted, without duplicates."""
    flat = []
    for form in forms:
        flat += split(form[1:-1], ",")[::2] if form[0] == "{" else [form]
    return flat[0] if len(flat) == 1 else f"{{{','.join(sorted(set(flat)))}}}"


def inequality(left, sign, right):
    """The set of real numbers that satisfy an inequality."""
    holds = sympy.Rel(evaluate(left), evaluate(right), RELATION.get(sign, sign))
    name, = holds.free_symbols
    return holds.subs(name, sympy.Symbol("x", real=True)).as_set()


def as_set(text):
    """The set of real numbers that a text denotes. Raises sympy's exceptions for other texts."""
    for sign in "⊔,∪∩∖":
        parts = split(text, sign)[::2]
        if len(parts) > 1:
            return symbol(sign)(*map(as_set, parts))
    parts = split(text, RELATIONS)
    if len(parts) > 1:
        return sympy.Intersection(*map(inequality, parts[::2], parts[1::2], parts[2::2]))
    inside = split(text[1:-1], ",")[::2]
    if text[0] == "{":
        return sympy.FiniteSet(*map(evaluate, inside))
    if len(inside) == 2:
        return sympy.Interval(*map(evaluate, inside), text[0] == "(", text[-1] == ")")
    return evaluate(text)


def pieces(numbers):
    """A set of real numbers as text, in intervals and points."""
    if isinstance(numbers, sympy.Interval):
        left = "(" if numbers.left_open else "["
        right = ")" if numbers.right_open else "]"
        return f"{left}{line(numbers.start)},{line(numbers.end)}{right}"
    if isinstance(numbers, (sympy.Union, sympy.FiniteSet)):
        return collection(map(pieces, numbers.args))
    return line(numbers)


def assigned(text):
    """(name or "", value) of x=3, f(2)=3, x=y=3 and 1+2=3; -x=3 is not split."""
    name, *rest = split(text, SEPARATORS + RELATIONS)
    if set(rest[::2]) != {"="}:
        return "", text
    with suppress(Exception):  # sympy's are of many types
        if evaluate(name).is_number:
            return "", rest[-1]
    if re.search(r"[0-9^]|^-", re.sub(r"(?<=[A-Zfghpqu'])\([^()]*\)|_⟨[^⟩]*⟩", "", name)):
        return "", text
    return name, rest[-1]


def relation(parts):
    """Normal form of equations (up to a factor) and inequalities (up to a positive factor, turned to <)."""
    found = []
    for left, sign, right in zip(parts[::2], parts[1::2], parts[2::2]):
        if sign in TURNED:
            left, sign, right = right, TURNED[sign], left
        difference = evaluate(left) - evaluate(right)
        scale = difference.subs(point(difference, 0))
        found.append(sign + line(difference / (abs(scale) if sign in "<≤" else scale)))
    return collection(found)


def ordered(texts, brackets="()"):
    return f"{brackets[0]}{','.join(map(form, texts))}{brackets[1]}"


def listed(parts):
    """Normal form of a list; with different names, as in x=1, y=2, it is a tuple ordered by name."""
    pairs = [assigned(text) for text in parts[::2]]
    names = {name for name, _ in pairs}
    if len(names) > 1 and "" not in names:
        return ordered(value for _, value in sorted(pairs))
    return collection(form(value) for _, value in pairs)


def remainder(parts):
    value, modulus = map(evaluate, parts[::2])
    return f"{line(value % modulus)}≢{line(modulus)}"


def ratio(parts):
    first, *rest = map(evaluate, parts[::2])
    return ":".join(line(first / part) for part in rest)


KINDS = {SEPARATORS: listed, "≢": remainder, RELATIONS: relation, ":": ratio}  # from the loosest to the tightest


def form(text):
    """The normal form of a text, according to its kind."""
    if "±" in text:
        return collection(form(text.replace("±", sign)) for sign in "+-")
    for signs, read in KINDS.items():
        parts = split(text, signs)
        if len(parts) > 1:
            return read(parts)
    inside = split(text[1:-1], ",")
    if text[:1] == "{":
        return listed(inside)
    if text[:1] in "([" and text[-1:] in ")]" and len(inside) > 1:
        return ordered(inside[::2], text[0] + text[-1])
    if text[-1:] == "%":
        return form(text[:-1]) + "%"
    found = evaluate(text.replace("%", "/100"))
    if isinstance(found, sympy.MatrixBase):
        return f"matrix{found.shape}({','.join(map(line, found))})"
    return line(found)


# ------------------------------------------------------------------------------------------------------- two answers

class Meaning(NamedTuple):
    """The meaning of an answer. key: for votes.  name: x in x=3.  forms: its normal form, then alternatives; [] if it
    is unreadable, None if math-verify has to decide.  digits: decimal places, 99 if exact."""
    key: str
    name: str = ""
    forms: list | None = None
    digits: int = 99


def readings(text):
    """(name or "", [normal form, alternatives]) of a text."""
    name, value = assigned(text)
    letters = "".join(set(LETTER.findall(value)))
    if SETS.search(value) and len(letters) < 2:
        with suppress(Exception):  # sympy's are of many types
            return name or letters, [pieces(as_set(value))]
    forms = [form(value)]
    parts = split(value, SEPARATORS)
    if len(parts) > 1:
        pairs = [assigned(part) for part in parts[::2]]
        forms.append(ordered(value for _, value in pairs))
        if len({name.split("_")[0] for name, _ in pairs}) == 1:  # x_1 and x_2 may be solutions
            forms.append(collection(form(value) for _, value in pairs))
    elif value[-1:] == "%":
        forms += [forms[0][:-1], form(f"({value[:-1]})/100")]
    elif name:
        with suppress(Exception):
            forms.append(relation(split(text, RELATIONS)))
    return name, forms


HARD = re.compile(r"[∑∫]|\\(?:prod|lim)(?![a-z])")  # left to math-verify
LETTER = re.compile(r"(?<![\w\\⟨])[a-zA-Z](?![\w⟩(])")
PLAIN_NAME = re.compile(r"[A-Z]*|\\\w+|[^-+*/]?_?'*")  # brackets removed
HUGE = re.compile(r"\^\(*-?[0-9]{5,}|\^\(*[0-9]+\^|factorial\(+(?:[0-9]{5,}|\\factorial)")  # would take forever


@functools.lru_cache(maxsize=100_000)
def understand(text):
    """The Meaning of a `clean` answer."""
    key, _, _, flat = glance(text)
    if not flat or len(text) > 300 or HARD.search(text) or HUGE.search(flat):
        return Meaning(key or text)
    decimals = re.findall(r"\.([0-9]+)", flat)
    try:
        name, forms = readings(flat)
    except Exception:  # sympy's are of many types
        return Meaning(text, forms=[])
    return Meaning(forms[0], name, forms, min(map(len, decimals), default=99))


NUMBER = re.compile(r"(-?[0-9][0-9./]*(?:e[-+][0-9]+)?)")


def close(gold, answer, digits):
    """Whether two forms are equal. A decimal with at least six places and four digits equals any number that rounds or
    truncates to it."""
    if gold == answer or not 6 <= digits < 99 or "f" in gold:
        return gold == answer
    gold, answer = NUMBER.split(gold), NUMBER.split(answer)
    near = gold[::2] == answer[::2]
    for right, given in zip(map(Fraction, gold[1::2]), map(Fraction, answer[1::2])):
        off = abs(right - given)
        cut = int(right * 10 ** digits) == int(given * 10 ** digits)
        near &= off <= abs(right) / 10_000 and (cut or 2 * off * 10 ** digits <= 1)
    return near


def same(gold, answer):
    """Whether two `clean` answers are equal; None if math-verify has to decide."""
    a, b = understand(gold), understand(answer)
    if None in (a.forms, b.forms):
        return None
    named_alike = a.name in (b.name, "") or not b.name and PLAIN_NAME.fullmatch(re.sub(r"[(⟨].*[)⟩]", "", a.name))
    for x, y in itertools.product(a.forms, b.forms):
        main = named_alike and (x is a.forms[0] or y is b.forms[0])
        if (main or x[0] == "=") and close(x, y, min(a.digits, b.digits)):
            return True
    return False
