r"""Finds the answer of a completion (`final_answer`) and normalises its spelling (`clean`, `split_unit`, `words_of`).

Its mathematical value is computed in `values.py`.
"""
import functools
import re
import unicodedata
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

MAX_ANSWER = 1000  # characters; longer text is not an answer

# A sign followed by its other spellings. Signs not listed here are replaced by their Unicode normal form.
SIGNS = r"""
    - − – ‐ ‑ ‒ ⁻ ₋
    * × ✕ ⨯ · ⋅ ∙ • ∗ \times \cdot \ast
    / ÷ ∕ \div
    : ∶ \colon
    | ∣ \mid \vert \lvert \rvert
    ‖ ∥ \Vert \lVert \rVert
    ( ⟨ \langle
    ) ⟩ \rangle
    < \lt
    > \gt
    ≤ ⩽ ≦ \le \leq \leqq \leqslant \lte <=
    ≥ ⩾ ≧ \ge \geq \geqq \geqslant \gte >=
    ≠ \ne \neq !=
    ≈ ≃ ≅ \approx \simeq
    ≡ \equiv
    ± \pm
    ∞ \infty \infinity \inf
    ∪ \cup \bigcup
    ∩ \cap \bigcap
    ∈ \in
    ∉ \notin
    ∅ \emptyset \varnothing
    ∖ \setminus \backslash \smallsetminus
    ⊂ \subset
    ⊆ \subseteq
    ∧ \land \wedge
    ∨ \lor \vee
    → \to \rightarrow
    ⇒ \Rightarrow \implies
    ∠ \angle
    △ \triangle
    ∑ \sum
    ∫ \int
    Å \AA
    ° º ˚ \degree \textdegree
    ∘ \circ
    ' ’ ′ \prime
    " ″ “ ”
    … \ldots \cdots \dots \dotsc \dotsb ...
    √ \sqrt \surd
    √[3] ∛
    √[4] ∜
    ⌊ \lfloor
    ⌋ \rfloor
    ⌈ \lceil
    ⌉ \rceil
    \{ \lbrace
    \} \rbrace
    φ \varphi
    ε \varepsilon
    ℝ \mathbb{R} \R \Reals
    ℤ \mathbb{Z} \Z
    ℕ \mathbb{N} \N
    ℚ \mathbb{Q} \Q
    ℂ \mathbb{C} \C
    0 zero Zero
    1 one One
    2 two Two
    3 three Three
    4 four Four
    5 five Five
    6 six Six
    7 seven Seven
    8 eight Eight
    9 nine Nine
    10 ten Ten
    11 eleven Eleven
    12 twelve Twelve
    *10^{2} hundred
    *10^{3} thousand
    *10^{6} million
    *10^{9} billion
    *10^{12} trillion
"""
GREEK = ("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
         "upsilon phi chi psi omega").split()
SIGNS = {name: row.split()[0] for row in SIGNS.split("\n") for name in row.split()}
for i, name in enumerate(GREEK):
    SIGNS |= {rf"\{name}": chr(ord("α") + i), rf"\{name.title()}": chr(ord("Α") + i)}
LATEX = {ord(sign): f"{name} " for name, sign in reversed(SIGNS.items()) if name[0] == "\\" and "~" < sign}

# Units (singular) that may follow a number without being part of it. Those in MEASURES matter: 5 km is not 5 m.
MEASURES = r"""mm millimeter millimetre|cm centimeter centimetre
    |dm decimeter decimetre|km kilometer kilometre|m meter metre|in inch inche|ft foot feet|yd yard|mi mile|mg milligram
    |g gm gram|kg kilogram|ton tonne|lb pound|oz ounce|ml milliliter millilitre|l liter litre L|gal gallon|quart|pint
    |cup|tablespoon|teaspoon|acre|hectare|ms millisecond|s sec second|min minute|h hr hour|day|week|month|year yr|decade
    |century centurie|dollar usd buck|cent penny pennie|euro eur|rupee|yen|peso|ruble|nickel|dime|quarter
    |deg degree|rad radian|kj kilojoule|joule|kcal|calorie|kb|mb|gb|byte|bit|mph|kph kmh kmph
    |celsius|fahrenheit|kelvin"""
COUNTED = """
    old arcminute knot hz watt newton volt ampere amp ohm mol mole pa khz mhz kw kwh ev Ω Å μ μm μs μg μl
    more fewer less extra additional left remaining total altogether of the different distinct possible real integral
    small large big red blue green yellow black white unit area volume nm rpm legs revolution rotation bushel leg wing
    erg dyne tesla farad henry lumen pc parsec atm torr psi arcsec arcsecond T K F C A
    N J W V coin square sq cubic cu squared cubed per linear each st nd rd th
    people person persons man men woman women child children boy girl student teacher worker player member friend
    guest apple orange egg cookie book page ticket marble ball card stamp sticker pencil pen toy car bike dog cat bird
    fish cow sheep horse chicken animal tree flower plant room house seat box boxes bag piece item object part point
    time way game match matches goal step lap turn trip round digit number integer solution root value term
    factor divisor side edge vertex vertices face triangle rectangle circle line word letter question problem answer
    mark vote combination permutation arrangement outcome subset pair team group set row column bottle can glass
    glasses slice pizza meal serving shirt shoe sock hat dress dresses gift candle candies candy chocolate cupcake
    clip sandwich sandwiches crayon shell rock balloon necklace
    bracelet puzzle video song movie photo picture flag sheet block brick board nail screw bolt wheel tire
    bus buses train boat ship truck vehicle passenger driver nurse doctor customer visitor neighbor cousin
    brother sister puppy puppies kitten duck goose geese pig goat rabbit hamster bee ant spider potato potatoes
    tomato tomatoes carrot onion pepper grape cherry cherries strawberry strawberries lemon melon watermelon cracker
    muffin donut doughnut bagel loaf loaves pancake waffle burger hot taco jar bucket basket crate carton packet pack
    package envelope folder notebook magazine newspaper chapter paragraph essay test exam quiz class classes lesson
    course inning run yard medal prize trophy token chip dice die coupon receipt bill sweet
    key seed petal leaf leaves branch branches stick stone order call message email text post click view file
    stair floor story stories building window door table chair desk shelf shelves plate bowl cup spoon fork bead ribbon
    button ring coat glove scarf scarves doll robot kite soldier knight pet hen pony ponies lion tiger bear wolf wolves
    fox foxes deer squirrel mouse mice snake frog turtle whale dolphin crab butterfly butterflies peanut walnut almond
    berry berries mango mangoes pineapple coconut plum cucumber bean pumpkin pie bun biscuit scoop lollipop
    cube polygon diagonal angle tile pile stack layer coloring path route function polynomial
    graph node prime multiple case choice option sequence string
    cake brownie banana pear peach peaches"""
UNITS = dict.fromkeys(COUNTED.split(), "")
UNITS |= {name: names.split()[0] for names in MEASURES.split("|") for name in names.split()}
UNITS = {f"{name}s": unit for name, unit in UNITS.items()} | UNITS

# Names read as one symbol or function, not as a product of letters.
FUNCTIONS = "sinh cosh tanh asin acos atan sin cos tan cot sec csc ln log exp abs min max gcd lcm".split()
NAMES = {*FUNCTIONS, *GREEK, "sqrt", "arcsin", "arccos", "arctan", "infinity", "inf"}


# ------------------------------------------------------------------------------------------------ how it is spelled

def repeating(match):
    r"""0.1\overline{6} as \frac{15}{90}."""
    before, after, period = match.groups()
    top = int(before + after + period) - int("0" + before + after)
    return rf"\frac{{{top}}}{{{(10 ** len(period) - 1) * 10 ** len(after)}}}"


def upright(match):
    r"""The content of \text, \mbox or \mathrm as \text{...}, without the braces and commands inside."""
    return rf"\text{{{re.sub(r'[{}]', '', re.sub(r'[*]', ' ', match[1]))}}}"


def sign(match):
    """The entry of SIGNS for a command or character, else its Unicode normal form."""
    return SIGNS.get(match[0], unicodedata.normalize("NFKC", match[0]))


# Pattern ==> replacement, applied in this order; ~ in a replacement is a space. Lines with # are comments.
SPELLING = r"""
    # Signs of Unicode and commands
    [\u200b-\u200d\u2060\ufeff€£¥₹✓✔✅]|\\checkmark|\\(?:pounds|euro)(?![a-z])|US(?=\\?\$) ==>
    (?:\\text\{ *)?(?:Rs\.?|USD|EUR|INR)(?: *\})? *(?=[0-9])|(?<=[0-9]) ?[元个人岁天种次]$ ==>
    ¢ ==> \\text{cents}
    # Commands escaped twice; row breaks are followed by an \end
    \\\\(?=[A-Za-z%])(?!.*\\end) ==> \\
    ([①-⑳])[、, ]*(?=[①-⑳]) ==> \1;~
    、 ==> ;~
    或者? ==> \\text{~or~}
    (\\in|∈) *\\?(?:(?:mathbf|mathrm|text|bf|rm) *\{?)?([RZNQC])(?![A-Za-z0-9_^'(])\}? ==> \1~\\mathbb{\2}
    ^\\mathbf\{([RZNQC])\}$ ==> \\mathbb{\1}
    \\hat *\{?([ijk])(?![a-z])\}?|\\(?:hat|vec) *\{(?:\\(?:mathbf|mathrm|bf) *\{?)?([ijk])\}{1,2} ==> \1\2
    \\\| ==> ‖
    \\root *\{?([0-9n])\}? *\\of *\{?([0-9A-Za-z])\}? ==> √[\1]{\2}
    (?<![-A-Za-z\\ ])(?:[Zz]ero|[Oo]ne|[Tt]wo|[Tt]hree|[Ff]our|[Ff]ive|[Ss]ix)(?![-A-Za-z ]) ==> SIGN
    (?<![-A-Za-z\\ ])(?:[Ss]even|[Ee]ight|[Nn]ine|[Tt]en|[Ee]leven|[Tt]welve)(?![-A-Za-z ]) ==> SIGN
    ([⁰¹²³⁴-⁹⁺⁻⁼⁽⁾ⁿⁱᵃᵇᶜᵈᵏᵐᵗˣʸᵀ]+) ==> ^{\1}
    ([₀-₉₊₋₌₍₎ₐₑₓᵢⱼₖₘₙ]+) ==> _{\1}
    ([¼-¾⅐-⅞]) ==> ~\1
    \\operatorname\*? ?\{([A-Za-z]+)\} ==> \\\1~
    \\mathbb ?([A-Z]) ==> \\mathbb{\1}
    \\mathbb\{[A-Z]\}|\\[A-Za-z]+|[^\x00-\x7f]|[<>]=|(?<![0-9)}])!=|\.\.\. ==> SIGN
    ([0-9]+)⁄([0-9]+) ==> \\frac{\1}{\2}
    # Style, delimiters and spaces. \\( is the row break of a matrix followed by a bracket
    \{ *\\(?:bf|rm|it)(?![a-zA-Z]) * ==> \\mathrm{
    \\(?:left|right|[bB]igg?[lrm]?|(?:display|text|script)style|bf|rm|it)(?![a-zA-Z]) ==>
    \\(?:limits|tiny|small|[lL]arge|underline)(?![a-zA-Z]) ==>
    \\(?:(?:text)?color|h?phantom|[hv]space|tag|label) *\{[^{}]*\} ==>
    (?<!\\)\\[()\[\]]|(?<!\\)\$ ==>
    \\not ?= ==> ≠
    (?<=[0-9])\{,\}(?=[0-9]{1,2}(?![0-9])|[0-9]{4})|(?<=(?<![0-9])0)\{,\}(?=[0-9]) ==> .
    (?<![_^])(?<!\\text)\{ *([-+=<>.:,/*]|\\%) *\} ==> \1
    # 1'000'000, 1_000_000, 1.000.000 and 1.234,56
    (?<=[0-9])'(?=[0-9]{3}(?![0-9]))|(?<=[0-9])_(?=[0-9]{3}_[0-9]{3})|(?<=_[0-9]{3})_(?=[0-9]{3}(?![0-9])) ==>
    (?<=[0-9])\.(?=[0-9]{3}\.[0-9]{3}(?![0-9]))|(?<=\.[0-9]{3})\.(?=[0-9]{3}(?![0-9.])) ==>
    ^([^(\[{.,]*[0-9])\.([0-9]{3}),([0-9]{1,2})(?![0-9.,]) ==> \1\2.\3
    (?<!\\)\\(?:! *|,)(?=[0-9]) ==>
    # '100, 200' is a list, '1,200' a number
    (?<=[0-9]),(?:(?<!\\)\\(?:[!,;: ]|q?quad(?![a-zA-Z]))|~|\s)+(?=[0-9]) ==> ;~
    \\(?:text(?:bf|rm|it|sf|tt|sc|normal)?|mbox|emph|mathrm|mathtt) *\{((?:[^{}]|\{[^{}]*\})*)\} ==> UPRIGHT
    (?:(?<!\\)\\(?:[!,;: ]|q?quad(?![a-zA-Z]))|~|\s)+ ==> ~
    (?<=[0-9])\^\{? *(?:\\text\{ *)?(st|nd|rd|th) *\}{0,2} ==> \\text{\1}
    \\(?:math(?:bf|rm|it|sf|tt|normal|cal|op|ord)|boldsymbol|bm|pmb)(?![A-Za-z]) * ==>
    (?<![0-9)}])(?<![0-9)}] )\\text\{ *(NAMES|floor|ceil|lcm) *\} ?(?=[\\(A-Za-z0-9]) ==> \\\1~
    \\(arc)?tg(?![a-z]) ==> \\\1tan
    \\ctg(?![a-z]) ==> \\cot
    \\lg(?![a-z]) ==> \\log
    ^\\text\{ *([-+]?[0-9][^{}]*)\}$ ==> \1
    ^['"](.*)['"]$ ==> \1
    # Degrees, percent and units with several spellings
    \^ ?[∘°]|\^ ?\{ ?[∘°] ?\}|(?<=[0-9])\^ ?\{?(?:\\text\{)?o\}{0,2}(?![A-Za-z]) ==> °
    \^ ?('+)|\^ ?\{ ?('+) ?\} ==> \1\2
    ° ?(?:C(?![A-Za-z])|\\text\{ *C *\}) ==> \\text{~celsius}
    ° ?(?:F(?![A-Za-z])|\\text\{ *F *\}) ==> \\text{~fahrenheit}
    \\?%|(?:\\text\{ *| )per ?cent(?:\}|(?![a-z])) ==> %
    (?<=[0-9]) ?\\text\{ *(hundred|thousand|million|billion|trillion)(?![a-z]) *\} ==> ~\1
    (?<=[0-9]) ?\\text\{ *(hundred|thousand|million|billion|trillion)(?![a-z]) ==> ~\1\\text{
    (?<=[0-9] )(?:hundred|thousand|million|billion|trillion)(?![a-z]) ==> SIGN
    \\frac\{(\\text\{[^{}]*\})\}\{(\\text\{[^{}]*\}(?:\^\{?[0-9]\}?)?)\}$ ==> \1/\2
    (?<![A-Za-z])mph(?![a-z]) ==> mi/h
    (?<![A-Za-z])km?p?h(?![a-z]) ==> km/h
    # Qualifiers and list separators
    \\text\{ *(?:if|for|when|otherwise),? *\}(?=.*\\end\{cases) ==>
    (.[^{}]*)\\text\{[ ,(]*(?:for|where|with|when|if|because|since)(?![a-z])(?!.*(?:for|when|if|[li]se)[ },]).* ==> \1
    (?<=.)(?:[;,] ?\(?|(?:\\text\{)? ?\()[a-zA-Z] ?∈ ?[ℝℤℕℚℂ](?:(?!\\\}).)* ==>
    ^([a-z]) ?∈ ?ℝ ?[,;] ?(?=\1) ==>
    (?<=[^ ]) ?,? (?:for|where|with|when|if|because|since) (?!.*(?:for|when|if|[li]se) ).* ==>
    ^\\text\{ *(?i:there (?:is|are) )?(?i:no solutions?)\.? *\}$|^(?i:no solutions?)$ ==> ∅
    ^(?:\\text\{)? *(?i:all real numbers|all reals)\.? *\}?$ ==> ℝ
    (?<=[0-9π}∞]) ?∨ ? ==> ⊔
    (?<=[0-9π}∞]) ?∧ ? ==> ;
    (?<=[0-9π}])(?<!_[0-9])(?<!_\{[0-9]\}) ?≈.* ==>
    (?<=[0-9]) ?(?:\\text\{ *to *\}| to ) ?(?=[0-9]) ==> :
    \\text\{([^{}]*[^{} ]) +(and|or) *\} ==> \\text{\1}\\text{~\2~}
    [ ,]*(?:\\text\{ *,? *and *\}|(?<![A-Za-z\\])and(?![A-Za-z])),? * ==> ;
    [ ,]*(?:\\text\{ *,? *or *\}|(?<![A-Za-z\\])or(?![A-Za-z])),? * ==> ⊔
    ^[A-Za-z] ?= ?(?=\\text\{ *[A-Za-z]) ==>
    # \text{5}, \text{i}, \text{(A)}, \text{IV}, and a choice
    (?<![0-9)}])(?<![0-9)}] )\\text\{([^{}a-z]*|[^{}A-Za-z]*[a-z][^{}A-Za-z]*)\} ==> ~\1~
    \\text\{([^{}A-Za-zΩμÅ]*[iexyz]?[^{}A-Za-zΩμÅ]*)\} ==> ~\1~
    ^ *\(?([A-Z])\) *$ ==> \1
    ^(?:\\text\{)? *(?i:option|choice) *\(?([A-Z])\)? *\}?$ ==> \1
    # Spellings of one notation
    \\text\{ *mod *\}|\\[pb]?mod(?![a-z])|(?<![A-Za-z\\])mod(?![a-z]) ==> \\pmod
    \(? ?\\pmod ?\{? ?([0-9]+|[a-z])\}? ?\)? ==> \\pmod{\1}
    \\[dtc]?frac\{d(\\?[A-Za-z]+)\}\{d(\\?[A-Za-z]+)\} ==> \\deriv_{\1/\2}
    (?<![A-Za-z\\])([fgh])\^\{-1\}(?=\() ==> \1_{-1}
    \\(sin|cos|tan)\^\{-1\} ? ==> \\a\1~
    \\cr(?![a-z]) ==> \\\\
    (?:[.,; ]|\\\\(?:\[[0-9.]+ *[a-z]+\])?)*(?=\\end) ==>
    (\\\\)\[[0-9.]+ *[a-z]+\] ==> \1
    # Systems of equations are lists
    \\(begin|end)\{(?:align(?:ed)?\*?|gathered|split)\} ==> \\\1{aligned}
    \\begin\{array\}\{[lcr]\}([^&=]*=[^&]*)\\end\{array\} ==> \\begin{cases}\1\\end{cases}
    \\\{ *\\begin\{(?:array|aligned|cases)\}(?:\{[lcr| ]*\})?(?=.*\\end\{([a-z]+)\}) ==> \\begin{cases\1}
    \\begin\{cases([a-z]+)\}(.*)\\end\{\1\} ==> \\begin{cases}\2\\end{cases}
    [,;]? *& *(?==) ==>
    [,;]? *& *(?=.*\\end\{cases) ==> &
    [,;. ]*\\\\ *(?=[^&]*\\end\{(?:cases|aligned)\}) ==> ,
    \\begin\{(?:cases|aligned)\}((?:[^&\\]|\\(?!end|\\))*)\\end\{(?:cases|aligned)\} ==> \1
    ^[fgh]\([a-z]\) ?= ?(?=\\begin\{cases\}) ==>
    [(\[] *(\\begin\{(?:array|smallmatrix|matrix)\}.*?\\end\{(?:array|smallmatrix|matrix)\}) *[)\]] ==> \1
    (?<=\\begin\{array\})\{[lcr| ]*\} ==>
    # Numbers to a base
    (?<=[0-9A-F]) ?(?:\\text\{)? *\(?base *\}? *\{?([0-9]+)\}? *\)? *\}?$ ==> _{\1}
    ([0-9])\\text\{([0-9A-F]+)\}(?=_) ==> \1\2
    \(([0-9]+)\)_ ==> \1_
    \{([^{}]*)\\choose(?![a-z])([^{}]*)\} ==> \\binom{\1}{\2}
    \{([^{}]*)\\over(?![a-z])([^{}]*)\} ==> \\frac{\1}{\2}
    \^\{([0-9])\}√ ==> √[\1]
    (?<![A-Za-z0-9\\])([0-9]+) ([0-9]+)/([0-9]+)$ ==> \1\\frac{\2}{\3}
    (?<=[0-9]) *[x*] *(?=10\^) ==> *
    # e-notation, for a single number or in a tuple
    ^([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))[eE]([-+]?)0*([0-9]+)(?= |\\|%?$)(?!.*[-+*=,]) ==> \1*10^{\2\3}
    (?<=[(\[;,])(?=1e|-1e|-?[0-9]*\.)([-+]?[0-9]*\.?[0-9]*)[eE]([-+]?)0*([0-9]+)(?=[)\];,]) ==> \1*10^{\2\3}
    \\dot *\{?([0-9])\}?([0-9]*)\\dot *\{?([0-9])\}? ==> \\overline{\1\2\3}
    ^([-+]?[0-9]*\.[0-9]*)\(([0-9]+)\)$ ==> \1\\overline{\2}
    (?<![0-9.])([0-9]{0,99})\.([0-9]{0,99})\\(?:overline|bar|dot) ?\{?([0-9]{1,99})\}?(?![0-9]) ==> REPEATING
    (?<![A-Za-z0-9)}]) +| +(?![A-Za-z0-9\\(ΩμÅ]) ==>
    (\.[0-9]+)…$|[.;:\\ ]+$|(?<!\.),$ ==> \1
    ^\{([^{}]*[,;][^{}]*)\}$ ==> \\{\1\\}
    ^\[(-?[0-9.]+)\]$ ==> \1
    # A choice with its value: (B) 12 as B=12
    ^\\text\{ *\(?([A-Z])[).:] *(?=[^} ])(?!.*[A-Z][).:]) ==> \1=\\text{
    ^(?:\(([A-Z])\)|([A-Z])[).:]) *(?=-?[0-9a-z\\√$]|[A-Z][a-z ])(?!.*[A-Z][).:]) ==> \1\2=
"""


# Rules of `flatten`, applied until nothing changes. ATOM is an argument without brackets, BRACKET one with brackets.
FLAT = r"""
    (?<![0-9.,])([1-9][0-9]{0,2}(?:[0-9]{3})*),(?=[0-9]{3}(?:,[0-9]{3})*(?!,?[0-9]))(?![^(\[]*(?:[)\]]|\\\})) ==> \1
    (?<=[0-9]) (?=[0-9]{3}(?: [0-9]{3})*(?![0-9])) ==>
    (?<![A-Za-z\\])(NAMES)(?![A-Za-z]) ==> \\\1~
    \\[A-Za-z]+ ==> SIGN
    \*\* ==> ^
    \\begin\{vmatrix\} ==> \\det(\\matrix([[
    \\end\{vmatrix\} ==> ]]))
    \\begin\{[A-Za-z]+\} ==> \\matrix([[
    \\end\{[A-Za-z]+\} ==> ]])
    \\\\ ==> ],[
    & ==> ,
    \\arc(sin|cos|tan) ==> \\a\1
    \\(?:[dtcs]|nice)frac(?![a-z]) ==> \\frac
    (?<![A-Za-z\\])C *_ *\{?([0-9a-z]+)\}? *\^ *\{?([0-9a-z]+)\}? ==> \\binom(\1)(\2)
    (?<![A-Za-z\\])C\(([^(),]+),([^(),]+)\) ==> \\binom(\1,\2)
    \\[dt]binom(?![a-z]) ==> \\binom
    \\(frac|binom) *([0-9A-Za-zα-ω]) ==> \\\1(\2)
    (\\(?:frac|binom) *BRACKET) *([0-9A-Za-zα-ω]) ==> \1(\2)
    \\widehat ==> \\hat
    (\\(?:overline|bar|d?dot|tilde|vec|hat|overrightarrow)|[∠△]) *(?:\{([A-Za-z]+)\}|([A-Z]+|[a-z])) ==> \1_⟨\2\3⟩
    (\\(?:FUNCTIONS)(?: *_ *(?:\{[^{}]*\}|[0-9A-Za-z]))?) *\{([^{}]*)\} ==> \1(\2)
    \\log *_ *(?:\{([^{}]*)\}|([0-9A-Za-z])) *(BRACKET|ATOM) ==> (\\ln(\3)/\\ln(\1\2))
    \\log *(BRACKET|ATOM) ==> (\\ln(\1)/\\ln(10))
    (?<!\\log)(?<!\\log )_ *(?:\{\(?([^{}()]*)\)?\}|([0-9]+|[A-Za-z])) ==> _⟨\1\2⟩
    √ *\[([^][]*)\] *(?:\{([^{}]*)\}|([0-9]+|[A-Za-z])) ==> \\root(\2\3,\1)
    √ *([0-9]+(?:\.[0-9]+)?|[A-Za-zα-ω]) ==> √(\1)
    # Odd roots of negative numbers are real
    ([A-Za-zα-ω]|(?<![0-9.])[0-9.]+|(?<![A-Za-z√])BRACKET)\^\((-?)([0-9]+)/([3579])\) ==> \\root(\1,\4)^(\2\3)
    \^\((-?)\(\(([0-9]+)\)/\(([3579])\)\)\) ==> ^(\1\2/\3)
    (\\(?:max|min|gcd|lcm)) *\\\{([^{}]*)\\\} ==> \1(\2)
    (?<!\\)\{((?:[^{}\\]|\\[^{}])*)\} ==> (\1)
    \\frac *(BRACKET) *(BRACKET) ==> (\1/\2)
    \\binom *(BRACKET) *(BRACKET) ==> \\binom(\1,\2)
    (?<![0-9)/.^_])([0-9]+) *\(\(([0-9]+)\)/\(([0-9]+)\)\) ==> (\1+\2/\3)
    \|((?:[^|()]|BRACKET)*)\| ==> \\abs(\1)
    ⌊([^⌊⌋]*)⌋ ==> \\floor(\1)
    ⌈([^⌈⌉]*)⌉ ==> \\ceil(\1)
    (BRACKET|[0-9]+|[A-Za-z])! ==> \\factorial(\1)
    \\(FUNCTIONS)(?![a-z]) *\^ *(\([^()]*\)|[0-9a-z]) *(BRACKET|ATOM) ==> (\\\1(\3))^\2
    \\(FUNCTIONS)(?![a-z]) *(ATOM) ==> \\\1(\2)
    \\(FUNCTIONS) +\( ==> \\\1(
    ^(?=.*π)((?:[^A-Za-z]|[a-z][=|:])*)([kmn])((?:[^A-Za-z]|[a-z]=|\2)*)$ ==> \1ν\3
    \\cis *(BRACKET|ATOM) ==> (\\cos(\1)+i*\\sin(\1))
    (\\(?:sin|cos|tan|cot|sec|csc)\((?:[^()]|BRACKET)*)° ==> \1π/180
"""
# Rules applied once after that.
LAST = r"""
    (?<![0-9]) | (?![0-9]) ==>
    \\([{}]) ==> \1
    ^\{\}$ ==> ∅
    °|∘$ ==>
    [∈≡≈] ==> =
    ^\{[a-z](?:=ℝ)?[|:](.*)\}$ ==> \1
    √ ==> \\sqrt
    \^\(([0-9]+|[a-z])\)(?![0-9a-z.(]) ==> ^\1
    ; ==> ,
    \\pmod\(([0-9a-z]+)\)$ ==> ≢\1
    \(([^()|]*)\|([^()|]*)\) ==> (\1,\2)
    ^\((\([^()]*\))\)$ ==> \1
    ^\[([^][()]*,[^][()]*,[^][()]*)\]$ ==> (\1)
    ^\]([^][,]*,[^][,]*[][])$ ==> (\1
    ^([(\[][^][,]*,[^][,]*)\[$ ==> \1)
    ^([0-9A-F]+)_⟨([0-9]+)⟩$ ==> \\name_⟨\1;\2⟩
    (?:^|(?<=[,;⊔{=]))([A-Z]{2,})(?=$|[,;⊔}]) ==> \\name_⟨\1⟩
"""


def rules(table):
    """The lines of a table as (pattern, replacement)."""
    bracket = r"\([^()]*\)"
    for _ in range(6):
        bracket = rf"\((?:[^()]|{bracket})*\)"
    atom = rf"(?:[0-9.A-Za-zα-ω°]|_⟨[^⟩]*⟩|\^[0-9a-z]|\^\([^()]*\)|(?:√|\\abs|\\root){bracket})+"
    macros = {"BRACKET": bracket, "ATOM": atom, "FUNCTIONS": "|".join(FUNCTIONS), "NAMES": "|".join(NAMES)}
    functions = {"UPRIGHT": upright, "REPEATING": repeating, "SIGN": sign}
    for line in table.split("\n"):
        pattern, mark, replacement = line[4:].partition(" ==>")
        for name, text in macros.items():
            pattern = pattern.replace(name, text)
        if mark:
            replacement = replacement.strip()
            yield re.compile(pattern), functions.get(replacement, replacement.replace("~", " "))


SPELLING, FLAT, LAST = map(list, map(rules, (SPELLING, FLAT, LAST)))


def flatten(text):
    r"""LaTeX as one line of Unicode signs, brackets and calls: \frac{\sqrt2}{x^2} is ((√(2))/(x^(2)))."""
    before = None
    while text != before:
        before = text
        for pattern, replacement in FLAT:
            text = pattern.sub(replacement, text)
    for pattern, replacement in LAST:
        text = pattern.sub(replacement, text)
    return text


def clean(answer):
    """The answer as one line of LaTeX, or None if it is empty or too long. If the text marks its answer, only that part
    counts."""
    if re.fullmatch("[1-9][0-9]{0,99}", answer):  # the most common case, which no pattern changes
        return answer
    text = find(answer) or EMPHASIS.sub(r"\2", answer.strip())
    if len(text) > MAX_ANSWER:
        return None
    for pattern, replacement in SPELLING:
        text = pattern.sub(replacement, text)
    return text or None


SIGNED = {r"\$": "dollar", "%": "percent", "°": "deg"}
TEXT_UNIT = r"\\text\{[^{}⊔]*\}"
POWER = r"(?:\^(?:\{-?[0-9]\}|[0-9]))?"
UNIT = re.compile(
    rf"(?:(?<=[0-9A-Za-zπ)}}!]) ?(?={TEXT_UNIT})|(?<=[0-9π)}}!]) ?)(?:{TEXT_UNIT}|[A-Za-zΩμÅ]+\.?){POWER}"
    rf"(?:[ /*]*{TEXT_UNIT}{POWER}|[ /*]+[A-Za-zΩμÅ]+\.?{POWER})*(?=$|[.,;])")
NO_POWER = re.compile(r"^[ {]*(?:squared|cubed)|[04-9]|(?<![-{])1|(?<![A-Za-z^{.-])[23]")
LONE = re.compile(r"(?:[A-Za-z]=)?[-+]?[0-9.,]+")


def split_unit(text):
    r"""(text without units, tuple of the MEASURES among them). A single letter is a unit inside \text{...} or separated
    from a number: 5 m has one, 5m and 2x m have none. If things of several kinds are counted, their names stay."""
    found = [unit for sign, unit in SIGNED.items() if sign in text]
    counted = set()

    def without(match):
        tail = re.sub(r"\\text", " ", match[0])
        words = re.findall("[A-Za-zΩμÅ]+", tail)
        units = [UNITS.get(word if len(word) == 1 else word.lower()) for word in words]
        lone = match[0][0] == " " and LONE.fullmatch(text[:match.start()])
        letter = match[0].strip(" ")[:5] != r"\text" and len(words[0]) == 1
        if None in units or NO_POWER.search(tail) or letter and not lone:
            return match[0]
        counted.add(" ".join(words).rstrip("s"))
        found.extend(filter(None, units))
        return ""
    bare = UNIT.sub(without, text.replace(r"\$", ""))
    if len(counted) > 1 or re.search(r"[0-9] ?(?:\\text|[a-z]{2,} [0-9])", bare):  # 2 hours 30, without its minutes
        return text, ()
    return bare, tuple(found)


TRUTHS = "yes|no|on|true|false|none|even|odd|am|pm|do|not"
WORDS = re.compile(rf"\\text\{{[^{{}}]*[A-Za-z]{{2}}|(?<![A-Za-z0-9\\_])(?i:{TRUTHS})(?![A-Za-z])"
                   r"|[0-9] ?(?i:[ap]\.?m(?![a-z]))")
WORD = re.compile(r"(?<![A-Za-z\\])(?=[A-Za-z]*[aeiouAEIOU])(?:[A-Z][a-z]{2,}|[a-z]{3,}|[A-Z]{3,})(?![A-Za-z])")
LETTERS = re.compile(rf"(?!(?i:{TRUTHS})$)(?!.*[0-9] ?[AP])[^a-z]*")  # as in IV, which is a name


def words_of(text):
    """The key of an answer in words, or None for other answers: lower case, no punctuation, parts sorted."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    found = set(WORD.findall(plain)) - NAMES
    if not (found or WORDS.search(text) or WORDS.search(plain)):
        return None
    if LETTERS.fullmatch(plain) or re.search(r"[_^={}+*/<>]", plain):
        return None
    plain = re.sub("[a-z]+", lambda word: UNITS.get(word[0]) or word[0], plain.lower())
    plain = re.sub(r"[.\"'`]|^ *(?:an?|the) |(?<=[0-9])(?:st|nd|rd|th)\b|\s", "", plain)
    parts = sorted(filter(None, re.split("[;,⊔]|(?<=[a-z])(?=[0-9])", plain)))
    return rf"\text{{{';'.join(parts)}}}" if parts else None


NUMERIC = re.compile(r"(?:([A-Za-zα-ω])=)?((?:(?<![0-9.])10\^(?:[0-9](?![0-9])|\(-?[0-9]{1,2}\))|[-+*/()0-9.])+)")


class Glance(NamedTuple):
    """What is known of an answer without sympy. key: of words or of a number, else None.  name: x in x=3.  flat: the
    result of `flatten`, empty for words."""
    key: str | None
    name: str
    units: tuple
    flat: str


@functools.lru_cache(maxsize=100_000)
def glance(text):
    """The Glance of a `clean` answer. Numbers are evaluated only if that is fast: quotients and powers of ten."""
    bare, units = split_unit(text)
    key = words_of(bare)
    flat = ""
    if not key:
        flat = bare if len(text) > 300 else flatten(bare)
    name = ""
    number = NUMERIC.fullmatch(flat) if len(text) < 300 else None
    if number:
        code = re.sub(r"[0-9.]+", r"F('\g<0>')", number[2].replace("^", "**"))
        with suppress(SyntaxError, TypeError, ArithmeticError, MemoryError, ValueError):
            key = str(eval(code, {"__builtins__": {}, "F": Fraction}))
            name = number[1] or ""
    return Glance(key, name, units, flat)


# --------------------------------------------------------------------------------------------------- where it stands

def boxes(text):
    r"""[(start, end, inside)] of the outermost \boxed{...} and \fbox{...} with balanced braces, in order, in a single
    pass over the text."""
    stack, found = [], []  # open braces: (start of the \boxed or -1, start of the inside)
    text = re.sub(r"\\boxed\s*([-+]?[0-9][^\s{}$\\]*)", r"\\boxed{\1}", text)  # '\boxed 5', without braces
    for match in re.finditer(r"(?s)\\{1,2}(?:boxed|f(?:rame)?box|bbox(?:\[[^]]*\])?)\s*\{|\\.|[{}]", text):
        if match[0] == "{" or match[0][2:]:
            stack.append((-1 if match[0] == "{" else match.start(), match.end()))
        elif match[0] == "}" and stack:
            start, begin = stack.pop()
            while start >= 0 and found and found[-1][0] > start:
                found.pop()
            if start >= 0:
                found.append((start, match.end(), text[begin:match.start()]))
    return found


JOINT = re.compile(r"[\s$]*(?:,|;|and|or|,\s*and)[\s$]*(?:[A-Za-z]\s*=\s*)?")


def last_box(text):
    r"""The inside of the last \boxed{...}, joined with earlier ones of the same enumeration, or None."""
    found = boxes(text)
    parts = [found[-1][2]] if found else []
    for (_, end, inside), (begin, _, _) in zip(found[-2::-1], found[::-1]):
        if not (inside.strip() and JOINT.fullmatch(text, end, begin)):
            break
        parts.insert(0, inside)
    return ";".join(dict.fromkeys(parts)) if parts else None


MARK = re.compile(
    r"^[#*_> ]{0,9}(?:final )?answer[*_: ]{0,4}\n|####|<(?:final_)?answer>|correct (?:option|choice) is\b|(?<!this )\b"
    r"(?:answers?(?: to [a-z ]{1,40}| \([a-z ]{1,20}\))?|r[ée]ponse|antwort|respuesta|risposta|resposta|ответ|정답)"
    r"(?:\s+(?:is|are|equals|(?:should|must|would) be|est|ist|lautet|es|è|é)\b(?: (?:therefore|thus|then|simply|just"
    r"|exactly|indeed|equal to|approximately|about)\b)?|\W{0,4}[:：]|\W{0,3}(?:[=→]|->|[-–—]\s)|[은는])"
    r"|(?:答案|答え)\W{0,4}[是为為はは:：]", re.IGNORECASE | re.MULTILINE)
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}[ ,]+[A-Za-z]{2,}|[a-z]{3,}ly\b|^(?:in)?correct|^right|^wrong")
EMPHASIS = re.compile(r"(?<![\w)\]}*])(\*\*?|__|`)(?=\S)(.*?\S)\1(?![\w*])")
LEAD = re.compile(r"(?:[:：\s>\"]|```[a-z]*\n|[*_`]+(?=\s)|(?<=\n)[-*•]\s)*")
DISPLAY = re.compile(r"(?:\$\$|\\\[)(.*?)(?:\$\$|\\\])", re.DOTALL)
END = re.compile(r"\n|</|\"\s*\}|<\||\.[*_`]*(?:\s|$)|。|です|입니다|(?<=[0-9])!+\s*(?:\n|$)|\s\((?=[A-Za-z ]{4,}\))"
                 r"|; (?=[a-z]{3,} )|,? (?:because|since|which)\b|, (?:so|as|in|not|but)\b")
NUMBER = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|[-+]?\.[0-9]+"
VALUE = rf"(?:\$|\\[(\[])? *(?:[A-Za-z] *= *)?((?:{NUMBER})(?:/[0-9]+)?|-?\\[dt]?frac[0-9{{}} ]+) *(?:\$|\\[)\]])?%?"
WHOLE = re.compile(  # a completion that is one number, or one short sentence with one
    rf"(?:[A-Za-z][A-Za-z ]{{0,30}}[:=] *|[-+*/0-9. ]*= *)?(?:{VALUE}|\({VALUE}\))(?: [a-z]+)?\.?"
    rf"|(?!.*(?:n't|not))[A-Z][A-Za-z, ']* {VALUE}(?: [A-Za-z ]+)?\.")


def unmarked(text):
    """The text without markup for bold, italics and code, tags and quotes."""
    for _ in range(3):
        text = EMPHASIS.sub(r"\2", text)
    return text.strip("*`_ \n>\"")


def sentence(text):
    """The answer after a mark: a displayed formula, else the text up to the end of the line or sentence."""
    text = text[LEAD.match(text).end():]
    display = DISPLAY.match(text)
    return display[1] if display else unmarked(END.split(text, maxsplit=1)[0])


def find(text):
    r"""The text of the answer, or None: the inside of the last balanced \boxed{...} or, without a box, the text after
    the last '####', 'answer is', 'answer:' or '<answer>' that is not prose. A truncated <think> section has no
    answer."""
    thought, mark, after = text.rpartition("</think>")
    if mark and (find(after) or len(after) < MAX_ANSWER and WHOLE.fullmatch(unmarked(after))):
        text = after
    if "<think>" in after:
        return None  # truncated while thinking
    text = re.sub(r"(?i)\\text\{([^{}]{0,60}answer[^{}]{0,60})\}", r"\1", text)
    inside = last_box(text)
    if inside is not None:
        return inside
    best = (False, "")
    for match in list(MARK.finditer(text))[-30:]:
        said = sentence(text[match.end():match.end() + 3 * MAX_ANSWER])
        plain = not PROSE.search(said) or len(said) == 1
        if said and not MARK.search(said) and plain >= best[0]:
            best = (plain, said)
    return best[1] if best[1] and r"\boxed" not in best[1] else None  # a truncated box


def final_answer(completion):
    r"""The `clean` final answer of a completion, or None: the result of `find`, else the whole completion if it is just
    a number or a short sentence with one. A number mentioned in passing is not an answer: a truncated completion must
    get neither a vote nor a reward."""
    said = find(completion)
    if said is None:
        last = completion.rpartition("</think>")[2]
        match = WHOLE.fullmatch(unmarked(last)) if len(last) < MAX_ANSWER else None
        said = match and match[match.lastindex]
    return clean(said) if said and said.strip() else None
