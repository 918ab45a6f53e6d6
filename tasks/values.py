r"""What a `clean` answer is: its normal form by its kind, of sympy's objects, and whether two of them are the same.

The grammar is a table: FLAT rewrites LaTeX as a line of operators and calls, which is split at its loosest sign; what
is left, an expression, becomes Python for sympy. Only for child processes that can be killed.
"""
import functools
import itertools
import random
import re
import sys
from fractions import Fraction
from typing import NamedTuple

import sympy
from sympy.solvers.inequalities import reduce_rational_inequalities

from .answers import FUNCTIONS, glance

sys.set_int_max_str_digits(0)
TURNED = {">": "<", "≥": "≤"}
INEQUALITY = {"<": sympy.Lt, ">": sympy.Gt, "≤": sympy.Le, "≥": sympy.Ge, "≠": sympy.Ne}
EQUAL = set("=∈≡≈")
RELATIONS = "=∈≡≈<>≤≥≠∉⊂⊆⇒"
SEPARATORS = ",⊔"
TOKEN = re.compile(r"(?P<number>[0-9]+\.?[0-9]*|\.[0-9]+)"
                   r"|(?P<call>\\[a-z]+(?=\()|[fgh]'*(?:_⟨-1⟩)?(?=\()|[PE](?=\([A-Z]))"
                   r"|(?P<symbol>(?:\\[a-z]+|[^\W\d_]|…)(?:_⟨[^⟩]*⟩)?'*|[∞∅])|(?P<open>[(\[])|(?P<close>[)\]])"
                   r"|(?P<sign>[-+*/^,|∪∩∖∧∨])")
PYTHON = {"^": "**", "∪": "|", "∩": "&", "∖": "-", "∧": "&", "∨": "|"}
CONSTANTS = {
    "e": "E",
    "i": "I",
    "π": "pi",
    "∞": "oo",
    "∅": "EmptySet",
    "ℝ": "Reals",
    "ℤ": "Integers",
    "ℕ": "Naturals",
    "ℚ": "Rationals",
    "ℂ": "Complexes"}
CONSTANTS = {sign: getattr(sympy, name) for sign, name in CONSTANTS.items()}
CALLED = {  # what sympy calls them otherwise
    "ln": "log",
    "abs": "Abs",
    "min": "Min",
    "max": "Max",
    "ceil": "ceiling",
    "binom": "binomial",
    "root": "real_root"}
SAME = ["floor", "factorial", "sqrt"]


def logarithm(x, base=10):
    return sympy.log(x, base)


def interval(low, high, *ends):
    return sympy.Interval(low, high, *map(bool, ends))


def matrix(*rows):
    return sympy.Matrix(rows)


CALLS = {rf"\{name}": getattr(sympy, CALLED.get(name, name), None) for name in [*FUNCTIONS, *CALLED, *SAME]}
CALLS |= {r"\log": logarithm, r"\interval": interval, r"\matrix": matrix}


class Unreadable(ValueError):
    """A text that is no expression."""


def symbol(name):
    return CONSTANTS.get(name) or sympy.Symbol(name)


def call(name):
    return CALLS.get(name) or sympy.Function(name)


NAMED = {"number": sympy.Rational, "symbol": symbol, "call": call}


def evaluate(text):
    """sympy's object for an expression. Its Python consists of numbers, quoted names and signs, and of nothing else."""
    code = []
    last = "sign"
    place = 0
    for match in TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if match.start() != place or kind == last == "number":
            raise Unreadable(text)
        if last in ("number", "symbol", "close") and kind not in ("sign", "close"):
            code.append("*")
        code.append(f"{kind}({token!r})" if kind in NAMED else PYTHON.get(token, token))
        last = kind
        place = match.end()
    if place != len(text) or not text:
        raise Unreadable(text)
    return sympy.sympify(eval("".join(code), {"__builtins__": {}, **NAMED}))


def split(text, signs):
    """[part, sign, part, ...] at the signs that stand in no bracket, [text] if there are none or brackets cross."""
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
    """Where an expression is evaluated: at a number for each symbol; a third of the letters are negative."""
    chosen = {}
    for name in expression.free_symbols:
        draw = random.Random(f"{name} {shift}")
        factor = -3 if (ord(str(name)[-1]) + shift) % 3 == 0 else 1
        chosen[name] = sympy.Rational(factor * draw.randint(1000, 3000), draw.randint(500, 999))
    return chosen


def values(expression, digits=30):
    """Its values at three points."""
    found = [expression.evalf(digits, subs=point(expression, shift), maxn=400) for shift in range(3)]
    for value in found:
        if value.has(sympy.nan, sympy.zoo) or value.free_symbols:
            raise Unreadable("no values")
    return found


def zero(difference):
    """Whether an expression is 0: with symbols at several points, with exact numbers to many digits."""
    if difference.is_Rational:
        return difference == 0
    if difference.atoms(sympy.core.function.AppliedUndef):
        return sympy.simplify(difference) == 0
    for value in values(difference):
        for part in value.as_real_imag():
            small = not part.is_Rational and part._prec <= 20 and abs(part) < 1e-100
            if not (part == 0 or small):
                return False
    return True


def show(form):
    """A normal form as text, the key of votes."""
    if isinstance(form, tuple):
        kind, *inner = form
        *left, right = kind if len(kind) == 2 else kind + "()"
        return "".join(left) + ",".join(map(show, inner)) + right
    if not isinstance(form, sympy.Expr) or form.is_Rational or form.is_infinite:
        return str(form)
    if form.atoms(sympy.core.function.AppliedUndef):
        return str(sympy.expand(form))
    found = values(form, 50)
    if not form.free_symbols:
        del found[1:]
    texts = []
    for value in found:
        real, imaginary = map(rounded, value.as_real_imag())
        texts.append(real if imaginary == "0" else f"{real}+{imaginary}i")
    return texts[0] if len(set(texts)) == 1 else f"f({','.join(texts)})"


def rounded(number):
    """A real number of 50 digits as a fraction if it is one, else with 30."""
    exact = Fraction(str(number)) if abs(number) > 1e-90 else Fraction(0)
    near = exact.limit_denominator(10 ** 12)
    return str(near) if abs(near - exact) <= abs(exact) / 10 ** 40 else str(number.evalf(30))


def collection(forms):
    """Elements in any order, those of collections among them too."""
    flat = []
    for form in forms:
        nested = isinstance(form, tuple) and form[0] == "{}"
        flat += form[1:] if nested else [form]
    return flat[0] if len(flat) == 1 else ("{}", *sorted(flat, key=show))


def solution(relation, name):
    """The real numbers for which an inequality holds."""
    x = sympy.Symbol("x", real=True)
    relation = relation.subs(name, x)
    if relation.lhs.is_polynomial(x) and relation.rhs.is_polynomial(x):
        return reduce_rational_inequalities([[relation]], x, relational=False)
    return relation.as_set()


def as_set(text):
    """A set of real numbers. Raises what sympy raises if a text is none."""
    parts = split(text, SEPARATORS)
    if len(parts) > 1:
        together = sympy.Union if "⊔" in parts else sympy.Intersection
        return together(*map(as_set, parts[::2]))
    parts = split(text.strip("{}"), "|")
    if len(parts) == 3:
        return as_set(parts[2])
    if text[:1] == "{":
        return sympy.FiniteSet(*map(evaluate, split(text[1:-1], ",")[::2]))
    parts = split(text, RELATIONS)
    if parts[1:2] == ["∈"]:
        return as_set(parts[2])
    if len(parts) > 1:
        sides = list(map(evaluate, parts[::2]))
        name, = set().union(*(side.free_symbols for side in sides))
        found = []
        for left, sign, right in zip(sides, parts[1::2], sides[1:]):
            inequality = INEQUALITY[sign]
            found.append(solution(inequality(left, right), name))
        return sympy.Intersection(*found)
    for left, right in itertools.product("([", ")]"):
        ends = rf"\{left}([^()\[\],]*),([^()\[\],]*)\{right}"
        open_left = int(left == "(")
        open_right = int(right == ")")
        text = re.sub(ends, rf"\\interval{{\1,\2,{open_left},{open_right}}}", text)
    found = evaluate(text.replace("{", "(").replace("}", ")"))
    if not isinstance(found, sympy.Set):
        raise Unreadable(text)
    return found


def pieces(numbers):
    """A set of reals as intervals and points."""
    if numbers == sympy.Reals:
        numbers = sympy.Interval(-sympy.oo, sympy.oo)
    if isinstance(numbers, sympy.Interval):
        left = "(" if numbers.left_open else "["
        right = ")" if numbers.right_open else "]"
        return (left + right, numbers.start, numbers.end)
    if isinstance(numbers, (sympy.Union, sympy.FiniteSet)):
        return collection(pieces(part) if isinstance(part, sympy.Set) else part for part in numbers.args)
    return str(numbers)


def assigned(text):
    """(what a value is called or None, the value) of x=3, f(x)=3, x=y=3 and 1+2=3, but not of -x=3."""
    parts = split(text, RELATIONS)
    if len(split(text, SEPARATORS)) > 1 or len(parts) < 3 or not set(parts[1::2]) <= EQUAL:
        return None, text
    if re.fullmatch(r"[-+*/^().0-9]*", parts[0]):
        return None, parts[-1]
    if re.search(r"(?<!_⟨)[0-9^](?!⟩)|^-", parts[0]):
        return None, text
    return parts[0], parts[-1]


def relation(text):
    """Equations up to a factor, inequalities up to a positive one and turned to <."""
    parts = split(text, RELATIONS)
    found = []
    for left, sign, right in zip(parts[::2], parts[1::2], parts[2::2]):
        if sign in TURNED:
            left, sign, right = right, TURNED[sign], left
        if sign in "∈∉⊂⊆⇒":
            found.append((sign, form(left), form(right)))
            continue
        at_points = values(evaluate(left) - evaluate(right))
        scale = at_points[0]
        if sign in "<≤":
            scale = abs(scale)
        found.append((sign, *(show(value / scale) for value in at_points)))
    return collection(found)


def listed(texts):
    """The elements of a list, in order as a tuple if they are called by different names: x=1, y=2."""
    pairs = [assigned(text) for text in texts]
    names = {name for name, _ in pairs}
    if len(names) > 1 and None not in names:
        return ("()", *(form(value) for _, value in sorted(pairs)))
    return collection(form(value) for _, value in pairs)


def form(text):
    """The normal form of a text by its kind: a sympy object, or a tuple of forms, which `close` compares."""
    if "±" in text:
        return collection(form(text.replace("±", sign)) for sign in "+-")
    if re.search("[<>≤≥≠∈∪∩∖ℝ∅]", text):
        try:
            return pieces(as_set(text))
        except Exception:  # sympy's are of many types
            pass
    parts = split(text, SEPARATORS)
    if len(parts) > 1:
        return listed(parts[::2])
    parts = split(text, "≢")
    if len(parts) > 1:
        modulus = evaluate(parts[2])
        return ("≢", evaluate(parts[0]) % modulus, modulus)
    if len(split(text, RELATIONS)) > 1:
        return relation(text)
    parts = split(text, ":")
    if len(parts) > 1:
        first, *rest = map(evaluate, parts[::2])
        return first / rest[0] if len(rest) == 1 else (":", *(part / first for part in rest))
    inside = split(text[1:-1], ",")
    if text[:1] in "([" and text[-1:] in ")]" and len(inside) > 1:
        return (text[0] + text[-1], *map(form, inside[::2]))
    if text[:1] == "{":
        return listed(inside[::2])
    if text[-1:] == "%":
        return ("%", form(text[:-1]))
    found = evaluate(text.replace("%", "/100"))
    if isinstance(found, sympy.MatrixBase):
        return ("matrix", str(found.shape), *found)
    return found


def close(gold, answer, digits):
    """Whether two forms are equal; a decimal of at least six places and four digits is equal to what rounds to it."""
    if isinstance(gold, tuple) and isinstance(answer, tuple):
        return len(gold) == len(answer) and all(close(a, b, digits) for a, b in zip(gold, answer))
    if gold == answer or not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return gold == answer
    if zero(gold - answer):
        return True
    if digits < 6 or gold.free_symbols or answer.free_symbols:
        return False
    off = abs((gold - answer).evalf(30))
    return bool(off <= sympy.Rational(1, 2 * 10 ** digits) and 10_000 * off < abs(gold.evalf(30)))


# ------------------------------------------------------------------------------------------------------- two answers

class Meaning(NamedTuple):
    """What an answer says. key: votes are counted by it.  name: what x=3 calls it.  forms: the normal form and others
    that it may stand for, none if it is words or unreadable.  digits: decimal places."""
    key: str
    name: str | None = None
    forms: tuple = ()
    digits: int = 0


def other_forms(text, value, main):
    """What a text may stand for besides its main form."""
    parts = split(value, SEPARATORS)
    if len(parts) > 1:
        return [("()", *(form(assigned(part)[1]) for part in parts[::2]))]
    if value[-1:] == "%":
        return [main[1], main[1] / 100]
    named = text != value and "=" in text and isinstance(main, sympy.Expr)
    return [relation(text)] if named and re.match("[^0-9]", text) else []


HARD = re.compile(r"\\(?:sum|prod|int|lim)(?![a-z])")  # what math-verify is asked about
LETTER = re.compile(r"(?<![\w\\⟨])[a-zA-Z](?![\w⟩(])")
HUGE = re.compile(r"\^\(*-?[0-9]{5,}|\^\(*[0-9]+\^|factorial\(+(?:[0-9]{5,}|\\factorial)")  # takes for ever


@functools.lru_cache(maxsize=100_000)
def understand(text):
    """The Meaning of a `clean` answer."""
    key, _, _, flat = glance(text)
    if not flat or len(text) > 300 or HARD.search(text) or HUGE.search(flat):
        return Meaning(key or text)
    name, value = assigned(flat)
    if not name and re.search("[<>≤≥]", value):
        name = "".join(set(LETTER.findall(value)))
    decimals = re.findall(r"\.([0-9]+)", flat)
    try:
        main = form(value)
        forms = (main, *other_forms(flat, value, main))
        return Meaning(show(main), name, forms, min(map(len, decimals), default=0))
    except Exception:  # sympy's are of many types
        return Meaning(text)


def same(gold, answer):
    """Whether two `clean` answers are the same, or None if that is a question for math-verify."""
    a, b = understand(gold), understand(answer)
    if not (a.forms and b.forms):
        return None
    digits = min(filter(None, (a.digits, b.digits)), default=0)
    named_alike = a.name == b.name or not (a.name and b.name)
    for x, y in itertools.product(a.forms, b.forms):
        main = named_alike and (x is a.forms[0] or y is b.forms[0])
        equation = isinstance(x, tuple) and x[0] == "="
        if (main or equation) and close(x, y, digits):
            return True
    return False
