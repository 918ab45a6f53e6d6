r"""The values of two answers, by sympy, and whether they are the same. Only for child processes that can be killed."""
import importlib
import itertools
from contextlib import suppress

from .answers import FUNCTIONS as KNOWN
from .answers import assigned, read, show, split_unit, words_of

POINTS = ("7/5", "19/11", "-13/8", "31/17", "-5/3", "23/7", "-29/13", "41/19")  # for the symbols of an expression
INEQUALITIES = {"<": "Lt", ">": "Gt", r"\le": "Le", r"\ge": "Ge", r"\ne": "Ne"}
NAMED = {"e": "E", "i": "I", "I": "I", r"\pi": "pi", r"\infty": "oo", r"\emptyset": "EmptySet", r"\mathbb{R}": "Reals",
         r"\mathbb{Z}": "Integers", r"\mathbb{N}": "Naturals", r"\mathbb{Q}": "Rationals", r"\mathbb{C}": "Complexes"}
COLLECTIONS = {"list", "any", "set", r"\pm"}
SETS = {r"\cup": "Union", r"\cap": "Intersection", r"\setminus": "Complement"}
FUNCTIONS = {"!": "factorial", "binom": "binomial", r"\mid": "Abs", r"\abs": "Abs", r"\lfloor": "floor",
             r"\lceil": "ceiling", r"\min": "Min", r"\max": "Max"}
OPERATORS = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
    "^": lambda a, b: a ** b, "neg": lambda a: -a, "mixed": lambda a, b: a + b, "root": lambda a, n: a ** (1 / n),
    "%": lambda a: a / 100, r"\degree": lambda a: a, "matrix": lambda *rows: sympy.Matrix(rows),
    "row": lambda *parts: list(parts), "call": lambda f, *x: sympy.Function(f.name)(*x)}


class Lazy:
    """sympy, which takes a second to import, when it is first used."""

    def __getattr__(self, name):
        return getattr(importlib.import_module("sympy"), name)


sympy = Lazy()


def build(node, angle=False):
    """The sympy object of a tree. Degrees count as such in an angle, the argument of a function. Raises what sympy
    raises."""
    what, *parts = node
    if what == "num":
        return sympy.Rational(parts[0].rstrip("."))
    if what == "sym":
        return getattr(sympy, NAMED[parts[0]]) if parts[0] in NAMED else sympy.Symbol(parts[0])
    if what == r"\degree" and angle:
        return build(parts[0], True) * sympy.pi / 180
    if what in SETS:
        sides = [as_set(part) for part in parts]
        if all(side is not None for side in sides):
            return getattr(sympy, SETS[what])(*sides)
    if what == "tuple":
        return interval(node)
    function = OPERATORS.get(what)
    if not function and (what in FUNCTIONS or what in KNOWN):
        function = getattr(sympy, FUNCTIONS.get(what, what[1:]))
    built = [build(part, angle or what[1:] in ("sin", "cos", "tan", "cot", "sec", "csc")) for part in parts]
    if function:
        return function(*built)
    if what in (r"\land", r"\lor", r"\cap", r"\cup"):
        built = sorted(built, key=str)
    return sympy.Function(what)(*built)


def interval(node):
    """(a,b) and the like as a set."""
    _, brackets, *ends = node
    low, high = map(build, ends)
    return sympy.Interval(low, high, brackets[0] == "(", brackets[1] == ")")


def relations(node):
    """The inequalities of a chain a < b < c, or None."""
    if node[0] != "rel" or not set(node[2::2]) <= INEQUALITIES.keys():
        return None
    sides = list(map(build, node[1::2]))
    return [getattr(sympy, INEQUALITIES[sign])(left, right) for left, sign, right in zip(sides, node[2::2], sides[1:])]


def as_set(node):
    """A tree as a set of numbers: an interval, a union, an inequality, x in one, {x|...}; None if it is no set."""
    what = node[0]
    if what == "rel" and node[2:3] == (r"\in",) and len(node) == 4:
        return as_set(node[3])
    if what == "tuple" and len(node) == 4:
        return interval(node)
    if what == "set" and node[1][0] == "mid":
        return as_set(node[1][2])
    if what == "set":
        return sympy.FiniteSet(*map(build, node[1:]))
    if what in ("list", "any"):
        parts = [inequality(part) for part in node[1:]]
        if all(part is not None for part in parts):
            return (sympy.Union if what == "any" else sympy.Intersection)(*parts)
    if what in SETS or what == "sym" and node[1] in NAMED:
        built = build(node)
        return built if isinstance(built, sympy.Set) else None
    return inequality(node)


def inequality(node):
    """The numbers for which an inequality in one symbol holds, or None."""
    found = relations(node)
    if not found:
        return None
    symbols = set().union(*(relation.free_symbols for relation in found if relation not in (True, False)))
    if len(symbols) != 1:
        return None
    real = {symbol: sympy.Symbol(symbol.name, real=True) for symbol in symbols}
    return sympy.Intersection(*(relation.xreplace(real).as_set() for relation in found))


def variables(node):
    """The names of the symbols of inequalities; a set has none."""
    if node[0] == "rel":
        return {part[1] for part in node[1::2] if part[0] == "sym" and part[1] not in NAMED}
    return set().union(*map(variables, node[1:])) if node[0] in ("list", "any") else set()


def places(node):
    """The fewest decimal places of the decimals in a tree, or None without decimals."""
    if node[0] == "num":
        return len(node[1].partition(".")[2]) or None
    found = [places(part) for part in node[1:] if isinstance(part, tuple)]
    return min(filter(None, found), default=None)


def zero(difference):
    """Whether an expression is 0: with symbols at several points, with exact numbers to many digits."""
    if difference == 0 or difference.is_Rational:
        return difference == 0
    symbols = sorted(difference.free_symbols, key=str)
    functions = difference.atoms(sympy.core.function.AppliedUndef)
    if functions:
        return sympy.expand(difference) == 0 or sympy.simplify(difference) == 0
    for shift in range(3 if symbols else 1):
        chosen = itertools.islice(itertools.cycle(POINTS), 3 * shift, None)
        point = {symbol: sympy.Rational(value) for symbol, value in zip(symbols, chosen)}
        number = difference.evalf(30, subs=point, maxn=400)
        if not number.is_number or number.has(sympy.nan, sympy.zoo, sympy.oo):
            return False
        for part in number.as_real_imag():  # what is not known to a digit has cancelled
            if part != 0 and (part.is_Rational or part._prec > 20 or abs(part) > sympy.Float("1e-100")):
                return False
    return True


def same_number(gold, answer):
    """Whether two expressions or matrices are equal, exactly; a decimal is equal to what rounds to it, if it has six
    places and four digits."""
    a, b = build(gold), build(answer)
    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        return getattr(a, "shape", 0) == getattr(b, "shape", 1) and all(map(zero, sympy.simplify(a - b)))
    if isinstance(a, sympy.Set) or isinstance(b, sympy.Set) or a == b:
        return a == b
    if zero(a - b):
        return True
    given = min(filter(None, (places(gold), places(answer))), default=0)
    if given < 6 or a.free_symbols or b.free_symbols:
        return False
    off = abs((a - b).evalf(30))
    return bool(off <= sympy.Float(10) ** -given / 2 and 10_000 * off < abs(a.evalf(30)))


def parts_of(node):
    """The elements of an unordered collection, those of n=3,5,7 without the name, or None."""
    name, value = assigned(node)
    if node[0] in ("list", "any"):
        name, first = assigned(node[1])
        rest = [assigned(part) for part in node[2:]]
        if name and all(other in (None, name) for other, _ in rest):
            return [first, *(part for _, part in rest)]
        return list(node[1:])
    if value[0] == r"\pm":
        return [("+", *value[1:]), ("-", *value[1:])]
    return list(value[1:]) if value[0] in COLLECTIONS and value[1][0] != "mid" else None


def same_parts(gold, answer):
    """Whether the elements of two collections can be paired."""
    rest = list(answer)
    for part in gold:
        match = next((other for other in rest if same(part, other)), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest


def expanded(parts):
    """The elements of a collection, each of +-x too."""
    return [element for part in parts for element in (parts_of(part) if part[0] == r"\pm" else [part])]


def proportional(gold, answer):
    """Whether the quotient of two expressions is the same number at all points, so that their equations are one."""
    quotient = gold / answer
    values = []
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    for shift in range(3):
        point = dict(zip(symbols, map(sympy.Rational, POINTS[shift:] + POINTS[:shift])))
        values.append(quotient.evalf(30, subs=point))
    return all(v.is_number and v.is_finite and abs(v - values[0]) < 1e-25 * abs(v) for v in values)


def same_equation(gold, answer):
    """Two equations or inequalities in several symbols."""
    if show(gold) == show(answer):
        return True
    if len(gold) != 4 or len(answer) != 4:
        return False
    turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    a, b = (build(node[1]) - build(node[3]) for node in (gold, answer))
    if gold[2] in turned and gold[2] != answer[2]:
        b = -b
        answer = (*answer[:2], turned.get(answer[2]), answer[3])
    if gold[2] != answer[2] or a.free_symbols != b.free_symbols:
        return False
    return zero(a - b) if gold[2] in turned else proportional(a, b)


def sets_meant(gold, answer):
    """Whether one of two trees can only be a set of numbers; (a,b) and {a,b} may be something else."""
    return any(node[0] in (*SETS, "rel") or node[0] == "tuple" and node[1] != "()" or node[0] == "set"
               and node[1][0] == "mid" or node[0] in ("list", "any") and all(part[0] == "rel" for part in node[1:])
               and not parts_named(node) or node[0] == "sym" and (node[1] == r"\emptyset" or "mathbb" in node[1])
               for node in (gold, answer))


def parts_named(node):
    """Whether the elements of a list are equations."""
    return any(assigned(part)[0] for part in node[1:])


def same(gold, answer):
    """Whether two trees have the same value: by the kind of the gold one. Raises what sympy raises."""
    if gold == answer:
        return True
    if gold[0] == "mod" or answer[0] == "mod":
        if gold[0] != answer[0] or gold[2] != answer[2]:
            return False
        difference = ("-", assigned(gold[1])[1], assigned(answer[1])[1])
        modulus = build(gold[2])
        return assigned(gold[1])[0] in (None, assigned(answer[1])[0]) and (build(difference) % modulus) == 0
    (gold_name, gold_value), (name, value) = assigned(gold), assigned(answer)
    if gold_name and name and gold_name[0] != "num" != name[0]:
        if show(gold_name) == show(name):
            return same(gold_value, value)
        return same_equation(gold, answer)
    if name and gold[0] != "rel":
        return same(gold, value)
    if gold_name and answer[0] != "rel":
        return same(gold_value, answer)
    if sets_meant(gold, answer):
        sets = as_set(gold), as_set(answer)
        if None not in sets:
            names = variables(gold), variables(answer)
            if all(names) and names[0] != names[1]:
                return False
            return sets[0] == sets[1] or bool((sets[0] ^ sets[1]).is_empty)
    if gold[0] == "rel" or answer[0] == "rel":
        return gold[0] == answer[0] and same_equation(gold, answer)
    pair = {node[0] if node[0] != "tuple" else node[1] for node in (gold, answer)}
    if pair == {"list", "()"}:  # '4,3' for (4,3): in order
        gold, answer = (node[2 if node[0] == "tuple" else 1:] for node in (gold, answer))
        return len(gold) == len(answer) and all(map(same, gold, answer))
    both = parts_of(gold), parts_of(answer)
    if any(both):
        gold_parts, parts = (part or [node] for part, node in zip(both, (gold, answer)))
        return same_parts(expanded(gold_parts), expanded(parts))
    if gold[0] == "tuple" or answer[0] == "tuple":
        return gold[:2] == answer[:2] and len(gold) == len(answer) and all(map(same, gold[2:], answer[2:]))
    if gold[0] == "ratio" or answer[0] == "ratio":
        return same_ratio(gold, answer)
    percents = [node[0] == "%" for node in (gold, answer)]
    if percents[0] != percents[1]:
        plain = [node[1] if node[0] == "%" else node for node in (gold, answer)]
        return same_number(*plain) or same_number(gold, answer)
    return same_number(gold, answer)


def same_ratio(gold, answer):
    """a:b:c and ka:kb:kc; a:b is also the quotient a/b."""
    sides = [node[1:] if node[0] == "ratio" else (node, ("num", "1")) for node in (gold, answer)]
    return len(sides[0]) == len(sides[1]) and all(
        zero(build(("-", ("*", a, sides[1][0]), ("*", b, sides[0][0])))) for a, b in zip(*sides))


def verdict(gold, answer):
    """Whether two `clean` answers are the same, or None where one of them is nothing that the grammar reads."""
    bare = [split_unit(text)[0] for text in (gold, answer)]
    trees = [None if words_of(text) else read(text) for text in bare]
    if not all(trees):
        return None
    with suppress(Exception):  # sympy's are of many types: the two are no values that it can compare
        return bool(same(*trees))
    return False
