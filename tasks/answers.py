r"""Where the answer of a completion is, how it is spelled, and what it is: a small tree, without evaluating anything.

`final_answer` finds the text, `clean` spells it in one way, `read` parses it, `vote_key` prints what was read.
"""
import functools
import itertools
import operator
import re
import unicodedata
from fractions import Fraction

MAX_ANSWER = 1000  # characters; anything longer is not an answer

# Unicode mathematics as LaTeX. What is not in here goes by its Unicode decomposition: see `latex_of`.
TABLE = r"""−–‐‑‒ - |×✕⨯ \times |·⋅∙•∗ \cdot |÷ \div |⁄∕ / |∶ : |± \pm |∞ \infty |≤⩽≦ \le |≥⩾≧ \ge |≠ \ne |
≈≃≅ \approx |≡ \equiv |∪ \cup |∩ \cap |∈ \in |∉ \notin |∅ \emptyset |∖ \setminus |⊂ \subset |
⊆ \subseteq |→ \to |∠ \angle |△ \triangle |∑ \sum |∫ \int |∛ √[3] |∜ √[4] |°º˚ ^\circ |′’ ' |″“” " |
… \ldots |∣ \mid |⌊ \lfloor |⌋ \rfloor |⌈ \lceil |⌉ \rceil |€£¥₹¢ |ϕ \phi |ϵ \epsilon |ϑ \theta |
∧ \land |∨ \lor |ℝ \mathbb{R} |ℤ \mathbb{Z} |ℕ \mathbb{N} |ℚ \mathbb{Q} |ℂ \mathbb{C}"""
GREEK = ("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
         "upsilon phi chi psi omega").split()
SYMBOLS = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"), "")
for row in TABLE.replace("\n", " ").split("|"):
    chars, _, latex = row.strip().partition(" ")
    SYMBOLS |= {ord(char): latex + " " * ("\\" in latex) for char in chars}
SYMBOLS |= {ord("α") + i: rf"\{name} " for i, name in enumerate(GREEK)}
SYMBOLS |= {ord(name): rf"\{GREEK[ord(name) - ord('Α')].title()} " for name in "ΓΔΘΛΞΠΣΥΦΨΩ"}  # the others look Latin

# What may follow a number without being a part of it, singular. Those of MEASURES differ in size: 5 km are not 5 m.
MEASURES = {name: names.split()[0] for names in r"""mm millimeter millimetre|cm centimeter centimetre
    |dm decimeter decimetre|km kilometer kilometre|m meter metre|in inch inche|ft foot feet|yd yard|mi mile|mg milligram
    |g gm gram|kg kilogram|ton tonne|lb pound|oz ounce|ml milliliter millilitre|l liter litre|gal gallon|quart|pint|cup
    |tablespoon|teaspoon|acre|hectare|ms millisecond|s sec second|min minute|h hr hour|day|week|month|year yr|decade
    |century centurie|dollar usd buck $|cent penny pennie ¢|euro eur|rupee|yen|peso|ruble|nickel|dime|quarter
    |deg degree|rad radian|kj kilojoule|joule|kcal|calorie|kb|mb|gb|byte|bit|mph|kph kmh kmph
    |celsius|fahrenheit|kelvin""".split("|") for name in names.split()}
UNITS = frozenset("""
    old arcminute knot hz watt newton volt ampere amp ohm mol mole pa khz mhz kw kwh eV T K F C A
    coin N J W V square sq cubic cu squared cubed per linear unit each st nd rd th
    people person persons man men woman women child children boy girl student teacher worker player member friend
    guest apple orange egg cookie book page ticket marble ball card stamp sticker pencil pen toy car bike dog cat bird
    fish cow sheep horse chicken animal tree flower plant room house seat box boxes bag piece item object part point
    time way game match matches goal step lap turn trip round digit number integer solution root value term
    factor divisor side edge vertex vertices face triangle rectangle circle line word letter question problem answer
    mark vote combination permutation arrangement outcome subset pair team group set row column bottle can glass
    glasses slice pizza meal serving shirt shoe sock hat dress dresses gift candle candies candy chocolate cupcake
    cake brownie banana pear peach peaches""".split())
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def latex_of(text):
    """Unicode mathematics as LaTeX: 5√2·x⁻¹ is 5√2\\cdot x^{-1}. Digits of other scripts stay what they are."""
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


# ------------------------------------------------------------------------------------------------ how it is spelled

def repeating(match):
    r"""0.1\overline{6} as \frac{15}{90}."""
    before, after, period = match.groups()
    top = int(before + after + period) - int("0" + before + after)
    return rf"\frac{{{top}}}{{{(10 ** len(period) - 1) * 10 ** len(after)}}}"


def upright(match):
    r"""\text{...} around what stands in \text, \mbox or \mathrm, without the braces and commands inside."""
    return rf"\text{{{re.sub(r'[{}]', '', re.sub(r'.cdot|.AA', ' ', match[1]))}}}"


STYLE = r"\\(?:math(?:bf|rm|it|sf|tt|normal)|boldsymbol|bm|pmb)(?![A-Za-z]) *"
SPACE = r"(?:(?<!\\)\\(?:[!,;: ]|q?quad(?![a-zA-Z]))|~|\s)"
E_NOTATION = r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))[eE]([-+]?)0*([0-9]+)"
SPELLING = [(re.compile(pattern), replacement) for pattern, replacement in (  # applied in this order
    (r"\{ *\\(?:bf|rm|it)(?![a-zA-Z]) *", r"\\mathrm{"),
    (r"\\(?:left|right|[bB]igg?[lrm]?|(?:display|text|script)style|bf|rm|it|limits|tiny|small|[lL]arge|[hH]uge)"
     "(?![a-zA-Z])", ""),
    (r"(?<!\\)\\[()\[\]]|(?<!\\)\$", ""),  # $5$, \(5\), \[5\]; not the row break of a matrix followed by a bracket
    (r"\\not ?=", r"\\ne "),
    (r"(?<![_^])\{ *([-+=<>.:,/]|\\(?:times|cdot|%)) *\}", r"\1"),
    (r"(?<!\\)\\[!,](?=[0-9])", ""),  # 1,\!000 and 1\,000
    (rf"(?<=[0-9]),{SPACE}+(?=[0-9])", "; "),  # '100, 200' is a list, '1,200' a number
    (r"\\(?:text(?:bf|rm|it|sf|tt|normal)?|mbox) *\{((?:[^{}]|\{[^{}]*\})*)\}", upright),
    (r"\\mathrm *\{((?:[^{}]|\{[^{}]*\})*)\}", upright),
    (rf"{SPACE}+", " "),
    (r"(?<=[0-9])\^\{? *(?:\\text\{ *)?(st|nd|rd|th) *\}{0,2}", r"\\text{\1}"),
    (STYLE + r"\{(?= *[A-Za-z]{2}[A-Za-z ]*\})", r"\\text{"),
    (STYLE, ""),
    (r"\\mathbb ([A-Z])", r"\\mathbb{\1}"),
    (r"^\\text\{ *([-+]?[0-9][^{}]*)\}$", r"\1"),
    (r"^['\"](.*)['\"]$", r"\1"),
    (r"(?:\^(?:\\circ(?![a-z])|\{ *\\circ *\})|\^?\\(?:text)?degree(?![a-z])) ?"
     r"(?:\\text\{ *[CF] *\}|[CF](?![A-Za-z]))?", r"\\degree "),
    (r"\\?%|(?:\\text\{ *| )percent(?:\}|(?![a-z]))", "%"),
    (rf"(?<=[0-9])(?: ?\\text\{{ *| )({'|'.join(SCALES)})(?![a-z])( *\}})?",  # 5\text{ million}
     lambda match: rf"\times10^{{{SCALES[match[1]]}}}" + (r"\text{" if "{" in match[0] and not match[2] else "")),
    (r"\\frac\{(\\text\{[^{}]*\})\}\{(\\text\{[^{}]*\})\}$", r"\1/\2"),
    (r"(?<![A-Za-z])mph(?![a-z])", "mi/h"),
    (r"(?<![A-Za-z])km?p?h(?![a-z])", "km/h"),
    (r"^ ?(?:\\approx(?![a-z])|=)", ""),
    (r"(.[^{}]*)\\text\{[ ,(]*(?:for|where|with|when|if|because|since)(?![a-z]).*", r"\1"),  # qualifiers
    (r"(?<=.)[;,] ?\(?[a-zA-Z] ?\\in ?\\mathbb\{[A-Z]\}.*", ""),
    (r"(?<=[^ ]) ?,? (?:for|where|with|when|if|because|since) .*", ""),
    (r"[ ,]*(?:\\text\{ *,? *and *\}|(?<![A-Za-z\\])and(?![A-Za-z])),? *", ";"),
    (r"[ ,]*(?:\\text\{ *,? *or *\}|(?<![A-Za-z\\])or(?![A-Za-z])),? *", r"\\orelse "),
    (r"(?<![0-9)}])(?<![0-9)}] )\\text\{([^{}a-z]*|[^{}A-Za-z]*[a-z][^{}A-Za-z]*)\}"
     r"|\\text\{([^{}A-Za-z]*[iexyz]?[^{}A-Za-z]*)\}", r" \1\2 "),  # \text{5}, \text{i}, \text{(A)}, \text{IV}
    (r"^ *\(?([A-Z])\) *$", r"\1"),  # a choice
    (r"\(? ?(?:\\[pb]?mod(?![a-z])|\\text\{ *mod *\}|(?<![A-Za-z\\])mod(?![a-z])) ?\{? ?([0-9]+|[a-z])\}? ?\)?",
     r"\\pmod{\1}"),
    (r"\(\\text\{ *mod *([0-9]+) *\}\)", r"\\pmod{\1}"),
    (r"\^\{([0-9])\}√", r"√[\1]"),
    (r"^-?[0-9]{1,3}(?: [0-9]{3})+(?![0-9 ])", lambda match: match[0].replace(" ", "")),
    (r"(?<![A-Za-z0-9\\])([0-9]+) ([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}"),  # 2 1/2
    (r"(?<=[0-9]) *[x*] *(?=10\^)", r"\\times "),
    (rf"^{E_NOTATION}(?= |\\|%?$)(?!.*[-+*=,])", r"\1\\times10^{\2\3}"),  # one number as a whole
    (rf"(?<=[(\[;,])(?=1e|-1e|-?[0-9]*\.){E_NOTATION}(?=[)\];,])", r"\1\\times10^{\2\3}"),
    (r"(?<![0-9.])([0-9]{0,99})\.([0-9]{0,99})\\(?:overline|bar|dot)\{?([0-9]{1,99})\}?(?![0-9])", repeating),
    (r"(?<![A-Za-z0-9)}]) +| +(?![A-Za-z0-9\\(])", ""),  # one between letters may end a word, or begin a unit
    (r"(\.[0-9]+)(?:\\[lc]?dots|\.\.\.)$|[.;:\\ ]+$|(?<!\.),$", r"\1"),
)]


def clean(answer):
    """The answer as one line of LaTeX, or None if it is empty or too long; of a text that says where its answer is,
    the answer."""
    text = find(answer) or EMPHASIS.sub(r"\2", answer.strip())
    if len(text) > MAX_ANSWER:
        return None
    if not text.isascii():
        text = latex_of(text)
    for pattern, replacement in SPELLING:
        text = pattern.sub(replacement, text)
    return text or None


COMMAND_UNIT = r"\\(?:text\{[^{}]*\}|(?:Omega|mu|AA|cdot)(?![A-Za-z]))"
POWER = r"(?:\^(?:\{-?[0-9]\}|[0-9]))?"
UNIT = re.compile(
    rf"(?:(?<=[0-9A-Za-z)}}!]) ?(?={COMMAND_UNIT})|(?<=[0-9)}}!]) ?|(?<=\\pi) ?)(?:{COMMAND_UNIT}|[A-Za-z]+\.?){POWER}"
    rf"(?:[ /*]*{COMMAND_UNIT}{POWER}|[ /*]+[A-Za-z]+\.?{POWER})*(?=$|[.,;])")
NUMBER = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|[-+]?\.[0-9]+"


def split_unit(text):
    r"""(what is left without units, tuple of the MEASURES among them). One letter is a unit within \text{...}, or
    apart from a number: 5 m has one, 5m and 2x m have none."""
    found = ["dollar"] if r"\$" in text else []

    def without(match):
        tail = match[0]
        words = re.findall("[A-Za-z]+", re.sub(r"\\(?:text|cdot)", " ", tail))
        single = words and (len(words[0]) == 1 and r"\text" not in tail or tail.startswith(("\\O", "\\mu", "\\A")))
        if single and not (tail[0] == " " and re.fullmatch(rf"(?:[A-Za-z]=)?(?:{NUMBER})", text[:match.start()])):
            return tail
        single = [word if len(word) == 1 and word != "L" or word in UNITS else word.lower() for word in words]
        known = []
        for word in single:
            plain = word if word in UNITS or word in MEASURES else word[:-1] if word[-1:] == "s" else ""
            if plain not in UNITS and plain not in MEASURES and word not in ("omega", "mu", "aa"):
                return tail
            known += [MEASURES[plain]] if plain in MEASURES else []
        power = not words or words[0] in ("squared", "cubed") or re.search(
            r"[04-9]|(?<![-{])1|(?<![A-Za-z^{.-])[23]", tail)
        if power:
            return tail
        found.extend(known)
        return ""
    bare = UNIT.sub(without, text.replace(r"\$", "")) if text[-1:] not in "0123456789" or "^" in text else text
    return re.sub(r"(?<=[0-9])['\"]$", "", bare.replace(r"\$", "")), tuple(found)


# -------------------------------------------------------------------------------------------------------- what it is

class Unreadable(ValueError):
    """An answer that the grammar does not hold."""


ALIASES = {"\\" + name: row.split()[0] for row in r"""\frac dfrac tfrac cfrac|\binom dbinom tbinom|\le leq leqq leqslant
    |\ge geq geqq geqslant|\ne neq|\{ lbrace|\} rbrace|[ lbrack|] rbrack|< lt|> gt|\land wedge|\lor vee
    |\emptyset varnothing
    |* times cdot ast|/ div|\ldots dots cdots dotsc dotsb|\infty inf infinity|: colon|\setminus backslash smallsetminus
    |\asin arcsin|\acos arccos|\atan arctan|\phi varphi|\epsilon varepsilon|\mid lvert rvert vert
    |\implies Rightarrow""".split("|") for name in row.split()[1:]}
ALIASES |= {
    "|": r"\mid", "<=": r"\le", ">=": r"\ge", "!=": r"\ne", "**": "^", "√": r"\sqrt", "...": r"\ldots", r"\%": "%"}
FUNCTIONS = {"\\" + name for name in """sin cos tan cot sec csc asin acos atan sinh cosh tanh ln log exp abs min max gcd
    lcm""".split()}
CONSTANTS = {"\\" + name for name in ("infty emptyset ldots ell hbar " + " ".join(GREEK)).split()}
CONSTANTS |= {"\\" + name.title() for name in GREEK}
ACCENTS = {"\\" + name for name in "angle triangle overline bar vec hat overrightarrow widehat".split()}
NAMES = {"sqrt", "arcsin", "arccos", "arctan", "infinity", "inf", *(
    name[1:] for name in FUNCTIONS | CONSTANTS if name[1:].islower() and name not in (r"\ell", r"\hbar"))}
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\notin", r"\equiv", r"\approx", r"\subset", r"\subseteq"}
INFIX = {"+", "-", r"\pm", r"\cup", r"\cap", r"\setminus", r"\land", r"\lor"}
CLOSING = {"(": ")", "[": "]", r"\{": r"\}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", r"\mid": r"\mid"}
TOKEN = re.compile(
    r"\\(?:begin|end)\{[a-z]+\}|\\mathbb\{[A-Z]\}|\\\\(?:\[[0-9.]+ *[a-z]+\])?|\\(?:[A-Za-z]+|[^A-Za-z])"
    r"|^[0-9A-F]+(?=_\{?\(?[0-9])|\([0-9]+\)(?=_)|[0-9]+(?:,[0-9]+)*(?:\.[0-9]+|\.(?!\.))?|\.[0-9]+"
    rf"|(?<![A-Za-z\\])(?:{'|'.join(sorted(NAMES, reverse=True))})(?![A-Za-z])"
    r"|(?<![A-Za-z0-9\\])[A-Z]{2,}(?=$|[,;)]|\\orelse)|\.\.\.|[<>!]=|\*\*|\S")


def tokens(text):
    """The tokens of an answer, each spelled in one way; a comma in a bracket separates, as in '(1,200)'."""
    found, depth = [], 0
    for token in TOKEN.findall(text):
        token = "\\" + token if token in NAMES else token
        token = ALIASES.get(token, token)
        depth += (token in ("(", "[", r"\{")) - (token in (")", "]", r"\}"))
        if "," in token[1:] and (depth > 0 or not re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\..*)?", token)):
            found += re.findall("[^,]+|,", token)
        else:
            found.append(token.replace(",", "") if token[0].isdigit() else token)
    return found


class Reader:
    """Recursive descent over the tokens of an answer: `items` returns its tree, tuples (what, *parts). Raises
    Unreadable."""

    def __init__(self, text):
        self.rest = ["", *tokens(text)[::-1]]  # backwards, so that the next one is the last

    @property
    def token(self):
        return self.rest[-1]

    def take(self, *expected):
        if not self.token or expected and self.token not in expected:
            raise Unreadable(self.token)
        return self.rest.pop()

    def items(self):
        parts, kind = [self.relation()], "list"
        while self.token in (",", ";", r"\orelse"):
            kind = "any" if self.take() == r"\orelse" else kind
            parts.append(self.relation())
        return (kind, *parts) if len(parts) > 1 else parts[0]

    def relation(self):
        parts = [self.ratio()]
        while self.token in RELATIONS:
            parts += [self.take(), self.ratio()]
        node = ("rel", *parts) if len(parts) > 1 else parts[0]
        if self.token == r"\pmod":
            self.take()
            node = ("mod", node, self.group())
        return node

    def ratio(self):
        parts = [self.sum()]
        while self.token == ":":
            self.take()
            parts.append(self.sum())
        return ("ratio", *parts) if len(parts) > 1 else parts[0]

    def sum(self):
        sign = self.take() if self.token in ("+", "-", r"\pm") else "+"
        node = self.term()
        if sign != "+":
            node = ("neg", node) if sign == "-" else (sign, ("num", "0"), node)
        while self.token in INFIX:
            node = (self.take(), node, self.term())
        return node

    def starts(self):
        """Whether a factor without a sign before it begins here."""
        token = self.token
        return token.isascii() and token[:1].isalnum() or token[:1] == "." or token in (
            "(", "{", r"\lfloor", r"\lceil", r"\frac",
                                                                    r"\sqrt", r"\binom", r"\begin{pmatrix}") \
            or token in FUNCTIONS | CONSTANTS | ACCENTS or token == r"\mid" and not self.bars

    bars = False  # open absolute values and conditions, in which | ends

    def term(self):
        node = self.signed()
        while True:
            if self.token in ("*", "/"):
                node = (self.take(), node, self.signed())
            elif self.starts():
                if node[0] == "num" and self.token[0] in "0123456789.":
                    raise Unreadable("two numbers")
                node = self.beside(node, self.power())
            else:
                return node

    @staticmethod
    def beside(left, right):
        """Two factors without a sign between them; 2\\frac{1}{2} is a sum."""
        number = left[0] == "num" and left[1].isdigit()
        if number and right[0] == "/" and all(part[0] == "num" and part[1].isdigit() for part in right[1:]):
            return ("mixed", left, right)
        if number and right[0] == "%" and right[1][0] == "/":
            return ("%", Reader.beside(left, right[1]))
        return ("*", left, right)

    def signed(self):
        if self.token in ("+", "-"):
            return ("neg", self.signed()) if self.take() == "-" else self.signed()
        return self.power()

    def power(self):
        node = self.atom()
        while self.token in ("^", "!", "%", r"\degree"):
            mark = self.take()
            node = (mark, node, self.group()) if mark == "^" else (mark, node)
        return node

    def group(self, digit=False):
        """What stands in braces, or one token; one digit of a number, as in \\frac12, if asked."""
        if self.token == "{":
            self.take()
            node = self.items()
            self.take("}")
            return node
        if self.token == "-":
            self.take()
            return ("neg", self.group())
        if digit and self.token.isdigit():
            token = self.take()
            self.rest += [token[1:]] if token[1:] else []
            return ("num", token[0])
        return self.atom()

    def name(self, name):
        """A symbol with its subscript and primes."""
        if self.token == "_":
            self.take()
            name += "_" + self.raw()
        while self.token == "'" and not name[0].isdigit():
            name += self.take()
        return ("sym", name)

    def raw(self):
        """The tokens of a group, as text."""
        if self.token != "{":
            return self.take()
        found, depth = "", 0
        while not found or depth:
            depth += (self.token == "{") - (self.token == "}")
            found += self.take()
        return re.sub("[{}()]", "", found)

    def within(self, opening):
        """The list up to the bracket that closes, and that bracket."""
        bars = self.bars
        self.bars = opening in (r"\mid", r"\{", "given")
        items = self.items()
        if self.token == r"\mid" and opening != r"\mid":
            self.take()
            items = ("mid", items, self.items())
        self.bars = bars
        return items, self.take(*([")", "]"] if opening in ("(", "[") else [CLOSING.get(opening, ")")]))

    def atom(self):
        token = self.take()
        if token[0] in "0123456789." and token != ".":
            return self.name(token) if self.token == "_" else ("num", token)
        if token in CLOSING:
            return self.bracket(token)
        if token == "(" + token[1:-1] + ")":  # (1011)_2
            return self.name(token[1:-1])
        if token == "{":
            self.rest.append(token)
            return self.group()
        if token == r"\frac":
            return self.fraction("/")
        if token == r"\binom":
            return self.fraction("binom")
        if token == r"\sqrt":
            root = ("num", "2")
            if self.token == "[":
                self.take()
                root = self.items()
                self.take("]")
            return ("root", self.group(), root)
        if token.startswith(r"\begin"):
            return self.matrix()
        if token in FUNCTIONS:
            return self.function(token)
        if token in ACCENTS:
            name = self.raw()
            while token in (r"\angle", r"\triangle") and self.token.isalpha():
                name += self.take()
            return ("sym", token + " " + name)
        if token in CONSTANTS or token.startswith(r"\mathbb") or token.isalpha() and token.isascii():
            return self.call(self.name(token))
        raise Unreadable(token)

    def bracket(self, opening):
        """(x) is x; (a,b) a tuple, which may be meant as an interval; \\{...\\} a set; and the like."""
        if opening == r"\{" and self.token == r"\}":
            self.take()
            return ("sym", r"\emptyset")
        items, closing = self.within(opening)
        if items[0] == "list" and opening in ("(", "["):
            return ("tuple", opening + closing, *items[1:])
        if opening == r"\{":
            return ("set", *(items[1:] if items[0] == "list" else [items]))
        if closing != CLOSING[opening]:
            raise Unreadable(closing)
        return items if opening in ("(", "[") else (opening, items)

    def fraction(self, kind):
        top, bottom = self.group(True), self.group(True)
        both = [part[2] if part[0] == "*" and part[1] == ("sym", "d") else None for part in (top, bottom)]
        if kind == "/" and all(both):  # \frac{dy}{dx}
            return ("sym", "d" + both[0][-1] + "/d" + both[1][-1])
        return (kind, top, bottom)

    def matrix(self):
        rows = [[]]
        while True:
            rows[-1].append(self.sum())
            mark = self.take()
            if mark.startswith(r"\\") and not self.token.startswith(r"\end"):
                rows.append([])
            elif mark != "&":
                if mark.startswith(r"\\"):
                    mark = self.take()
                if not mark.startswith(r"\end"):
                    raise Unreadable(mark)
                return ("matrix", *(("row", *row) for row in rows))

    def function(self, name):
        base = power = None
        if self.token == "_":
            self.take()
            base = self.group()
        if self.token == "^":
            self.take()
            power = self.group()
        if self.token in ("(", "{"):
            items = self.within(self.take())[0] if self.token == "(" else self.group()
        else:
            items = self.power()
            while self.starts() and self.token not in FUNCTIONS:
                items = self.beside(items, self.power())
        node = (name, *(items[1:] if items[0] == "list" else [items]), *([base] if base else []))
        if power == ("neg", ("num", "1")):
            return (r"\a" + name[1:], *node[1:])
        return ("^", node, power) if power else node

    def call(self, symbol):
        """f(x), f^{-1}(x) and P(A|B) are no products."""
        known = symbol[1][0] in "fgh"
        if not known and not (symbol[1] in "PE" and self.token == "(" and self.rest[-2].isupper()):
            return symbol
        if self.token == "^" and self.rest[-5:-1][::-1] == ["{", "-", "1", "}"] and self.rest[-6] == "(":
            del self.rest[-5:]
            symbol = ("sym", symbol[1] + "^{-1}")
        if self.token != "(":
            return symbol
        self.take()
        items = self.within("given")[0]
        return ("call", symbol, *(items[1:] if items[0] == "list" else [items]))


def read(text):
    """The tree of a `clean` answer without its unit, or None if it is no mathematics that this grammar holds."""
    reader = Reader(text)
    try:
        tree = reader.items()
        reader.rest == [""] or reader.take("")
        return tree
    except (Unreadable, RecursionError, IndexError):
        return None


# --------------------------------------------------------------------------------------------------------- vote keys

FORMS = {"+": "%s+%s", "-": "%s-%s", "neg": "-%s", "*": "%s %s", "/": r"\frac{%s}{%s}", "^": "%s^{%s}", "!": "%s!",
         "%": "%s%%", r"\degree": r"%s^\circ"}
TRUTHS = "yes|no|on|true|false|none|even|odd|am|pm|do|not"
WORDS = re.compile(rf"\\text\{{[^{{}}]*[A-Za-z]{{2}}|(?<![A-Za-z0-9\\_])(?i:{TRUTHS})(?![A-Za-z])"
                   r"|[0-9] ?(?i:[ap]\.?m(?![a-z]))")


def words_of(text):
    """The key of an answer in words, or None if it is none: no case, no points, its pieces in any order."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    found = [name for name in re.findall(r"(?<![A-Za-z\\])[A-Za-z]{3,}", plain) if name not in NAMES]
    capitals = re.fullmatch(rf"(?!(?i:{TRUTHS})$)[^a-z]*", plain) and not re.search("[0-9] ?[AP]", plain)
    if not (found or WORDS.search(text) or WORDS.search(plain)) or capitals or re.search(r"[_^={}+*<>]", plain):
        return None
    parts = re.split(r"[;,]|\\orelse|(?<=[a-z])\s*(?=[0-9])", plain.lower())
    parts = sorted(filter(None, (re.sub(r"[\s.\"']", "", part) for part in parts)))
    return r"\text{%s}" % ";".join(parts) if parts else None


def number_of(node):
    """A tree as a Fraction, or None: fractions, mixed numbers and powers of ten, but nothing is evaluated."""
    what, *parts = node
    if what == "num":
        return Fraction(parts[0]) if len(parts[0]) < 60 else None
    if what not in ("neg", "/", "mixed", "*", "^"):
        return None
    left, right = (number_of(parts[0]), number_of(parts[-1]))
    if left is None or right is None:
        return None
    if what == "^":
        return left ** int(right) if left == 10 and right.denominator == 1 and abs(right) < 100 else None
    if what == "neg":
        return -left
    if what == "mixed":
        return left + right
    if what == "*":
        return left * right if parts[1][0] == "^" else None
    return left / right if right else None


TIGHT = ("num", "sym", "call", "root", "binom", "set", "list", "tuple", r"\mid", r"\lfloor", r"\lceil")


def equal_or_plain(node):
    """Whether a tree is no inequality."""
    return node[0] != "rel" or node[2] == "="


def show(node):
    """A tree in one spelling."""
    what, *parts = node
    number = number_of(node)
    if number is not None:
        return str(number)
    if what in ("num", "sym"):
        return parts[0]
    texts = [show(part) if isinstance(part, tuple) else part for part in parts]
    if what in FORMS:
        for place, part in enumerate(parts):
            if part[0] not in TIGHT and not (what == "/" or place and what == "^" or not place and what in ("+", "-")):
                texts[place] = f"({texts[place]})"
        return FORMS[what] % tuple(texts)
    if what in ("set", "list") or what == "any" and all(map(equal_or_plain, parts)):
        return r"\{%s\}" % ",".join(sorted(texts))
    if what == "root":
        return r"\sqrt{%s}" % texts[0] if texts[1] == "2" else rf"\sqrt[{texts[1]}]{{{texts[0]}}}"
    if what in ("rel", "tuple"):
        return "; ".join(texts)
    return what + "".join(f"{{{text}}}" for text in texts)


def assigned(tree):
    """(name, value) of x=value and f(x)=value, else (None, the tree). Of a=b=c the last side is the value."""
    if tree and tree[0] == "rel" and set(tree[2::2]) <= {"=", r"\in", r"\equiv", r"\approx"} and plain(tree[1]):
        return tree[1], tree[-1]
    return None, tree


def plain(node):
    """Whether a tree is made of symbols alone, as the left side of an equation that says what is sought; or of numbers,
    which is worked out in the answer, as in 2+3=5."""
    leaves = set(leaves_of(node))
    return leaves == {"num"} or leaves <= {"sym", "call"}


def leaves_of(node):
    """What the operands of + - * / in a tree are."""
    if node[0] not in ("+", "-", "*", "/", "tuple"):
        return ["num" if number_of(node) is not None else node[0]]
    return leaves_of(node[-2]) + leaves_of(node[-1])


@functools.lru_cache(maxsize=100_000)
def identify(text):
    """(key, name that it is assigned to, MEASURES) of a `clean` answer."""
    bare, unit = split_unit(text)
    words = words_of(bare)
    if words:
        return words, None, ()
    tree = read(bare) if len(text) < 300 else None
    if not tree:
        return text, None, ()
    name, value = assigned(tree)
    value = value[1] if value[0] == r"\degree" else value
    try:
        return show(value), name, unit
    except RecursionError:
        return text, None, ()


def differ(gold, answer):
    """Whether two answers say different things about what they measure, as x=3 and y=3, 5 km and 5 m; or one or both
    are words, and not the same."""
    (key, name, unit), (other, other_name, other_unit) = identify(gold), identify(answer)
    if key.startswith(r"\text{") or other.startswith(r"\text{"):
        return key != other
    names = name and other_name and name[0] == "sym" == other_name[0] and name != other_name
    return names or any(map(operator.ne, unit, other_unit))


def vote_key(text):
    r"""One key for all spellings of a number: '1,000', '1000.0', '10^{3}'; '1/2', '0.5', '\frac{1}{2}'; '5', 'x=5',
    '5 cm'; of lists in any order and of the same expression. Exact, but nothing is evaluated, save powers of ten with
    an exponent of at most two digits."""
    return text if len(text) > 60 and text.isdigit() else identify(text)[0]


# --------------------------------------------------------------------------------------------------- where it stands

def boxes(text):
    r"""[(start, end, inside)] of the \boxed{...} and \fbox{...} whose braces balance, outer ones only, in order. One
    pass over the text."""
    stack, found = [], []  # of open braces: (start of its \boxed or -1, where its inside starts)
    for match in re.finditer(r"\\(?:boxed|fbox)\s*(?:\{|([-+]?[0-9][^\s{}$\\]*))|\\[{}]|[{}]", text):
        if match[1]:  # '\boxed 5', without braces
            found.append((match.start(), match.end(), match[1]))
        elif match[0] == "}":
            start, begin = stack.pop() if stack else (-1, 0)
            if start >= 0:
                found.append((start, match.end(), text[begin:match.start()]))
        elif match[0] not in (r"\{", r"\}"):
            stack.append((-1 if match[0] == "{" else match.start(), match.end()))
    return found


JOINT = re.compile(r"[\s$]*(?:,|;|and|or|,\s*and)[\s$]*(?:[A-Za-z]\s*=\s*)?")


def last_box(text):
    r"""What is inside the last \boxed{...}, with those that belong to the same enumeration, or None."""
    parts, begin = [], None
    for start, end, inside in sorted(boxes(text), reverse=True):
        if parts and (begin < end or not (inside.strip() and parts[0].strip()) or begin - end > 40
                      or not JOINT.fullmatch(text, end, begin)):
            if begin >= end:
                break
            if start < begin:  # around the last one
                continue
        parts.insert(0, inside)
        begin = start
    return ";".join(dict.fromkeys(parts)) if parts else None


MARK = re.compile(r"####|<answer>|(?<!this )\banswer(?:\s+is\b|\W{0,4}:)", re.IGNORECASE)
WEAK = re.compile(r"(?:our|my|your|whether|if|that) (?:the )?$", re.IGNORECASE)
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}[ ,]+[A-Za-z]{2,}|[a-z]{3,}ly\b")
EMPHASIS = re.compile(r"(?<![\w)\]}*])(\*\*?|__|`)(?=\S)(.*?\S)\1(?![\w*])")


LEAD = re.compile(r"(?:[:\s>]|[*_`]+(?=\s)|(?<=\n)[-*•]\s)*")


def unmarked(text):
    """The text without bold, italics, code, tags and quotes around its parts."""
    for _ in range(3):
        text = EMPHASIS.sub(r"\2", text)
    return text.strip("*`_ \n>")


def sentence(text):
    """What follows a mark: the display if there is one, else up to the end of the line or sentence."""
    text = text[LEAD.match(text).end():]
    display = re.match(r"(?:\$\$|\\\[)(.*?)(?:\$\$|\\\])", text, re.DOTALL)
    if display:
        return display[1]
    return re.split(r"\n|</answer|\.[*_`]*(?:\s|$)| (?:because|since|which)\b", text, maxsplit=1)[0]


def find(text):
    r"""The text of the answer, or None. What the last balanced \boxed{...} holds (then nothing else counts), else what
    follows the last '####', 'answer is', 'answer:' or '<answer>' that is not prose."""
    thought, mark, after = text.rpartition("</think>")
    if mark and (find(after) or len(after) < MAX_ANSWER and WHOLE.fullmatch(unmarked(after))):
        text = after
    inside = last_box(text)
    if inside is not None:
        return inside
    best = None
    for match in list(MARK.finditer(text))[-30:]:
        said = unmarked(sentence(text[match.end():match.end() + 3 * MAX_ANSWER]))
        rank = 2 * (not PROSE.search(said) or len(said) < 2) + (not WEAK.search(text[:match.start()][-20:]))
        if said and not MARK.search(said) and (best is None or rank >= best[0]):
            best = rank, said
    return best and (best[1] if r"\boxed" not in best[1] else None)


WHOLE = re.compile(rf"(?:[A-Z][A-Za-z ]{{0,30}}[:=] *)?\$?({NUMBER})%?(?: [a-z]+)?\.?|[A-Z][A-Za-z, ']* \$?({NUMBER})%?"
                   r"(?: [A-Za-z ]+)?\.")


def final_answer(completion):
    r"""The `clean` final answer of a completion, or None: what `find` finds, else the whole completion if it is just a
    number, or one short sentence with one. A number in passing is no answer: a completion that was cut off must not
    get a vote, let alone a reward."""
    said = find(completion)
    if said is not None:
        return clean(said) if said.strip() else None
    text = unmarked(completion.rpartition("</think>")[2] if len(completion) < MAX_ANSWER else "")
    match = WHOLE.fullmatch(text)
    if match:
        return clean(match[1] or match[2])
    text = clean(text)
    return text if text and re.fullmatch(r"-?[0-9]+(/[0-9]+)?", vote_key(text)) else None
