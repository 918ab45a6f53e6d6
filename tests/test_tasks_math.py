"""Math answers, the verifier pool, the hub data sets from local copies, and problems from a file."""
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT

import tasks
from tasks import answers, mathematics

HANG = r"\boxed{5^{5^{5^{5^5}}}-4}"  # math-verify never comes back, in spite of its own timeout


def problem(answer, id="p"):
    return tasks.Problem(id, "?", answer)


@pytest.fixture(scope="module")
def task():
    return tasks.Math("test", [], [], [])


@pytest.fixture
def fresh():
    """A task with a pool of two and a limit of one second, for the tests that break things."""
    task = tasks.Math("test", [], [], [])
    task.pool = mathematics.VerifierPool(limit=1.0, size=2)
    return task


def pids(pool):
    return [child.pid for child in pool.children.queue if child is not None]


# -------------------------------------------------------------------------------------------------- the final answer

@pytest.mark.parametrize("completion, answer", [
    (r"so \boxed{5}", "5"),
    (r"\boxed{4}, no: \boxed{5}.", "5"),
    (r"\boxed{5} #### 4. The answer is 3", "5"),
    (r"\fbox{5}", "5"),
    (r"\boxed {5}", "5"),
    (r"$\boxed 5$.", "5"),
    (r"\boxed{\frac{\sqrt{3}}{x^{2}}}", r"\frac{\sqrt{3}}{x^{2}}"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{[0,1\}}", r"[0,1\}"),
    (r"}} \boxed{5} {{", "5"),
    (r"{ \boxed{5}", "5"),
    (r"\boxed{5} and \boxed{6", "5"),  # the last one whose braces balance
    (r"\boxed{ \boxed{5}", "5"),
    (r"\boxed{5", None),
    (r"The answer is \boxed{5", None),
    (r"\boxed", None),
    (r"put it in \boxed{}", None),
    (r"\boxed{4} \boxed{}", None),
    (r"\boxed{} #### 4", None),
    (r"\boxed{ $ $ }", None),
    ("2 + 3 = <<2+3=5>>5\n#### 5", "5"),
    ("#### 1,005\nDone.", "1005"),
    ("#### 4\n#### 5", "5"),
    ("The answer is 4. Wait. The answer is 5.", "5"),
    ("The answer is $x+1$.", "x+1"),
    ("The final answer is: 2.5. I hope it is correct.", "5/2"),
    ("**Answer:** 5", "5"),
    ("**Final Answer**: \n\n5\nbye", "5"),
    ("the ANSWER IS\n5", "5"),
    ("#### ", None),
    ("The answer is ", None),
    ("5", "5"),
    (" -1/2 \n", "-1/2"),
    ("I have 3 apples and 5", None),  # cut off: a number in passing is no answer
    ("x+1", None),
    ("", None),
    ("\\boxed{5\x00}", "5\x00"),
    ("\\boxed{\u0665}", "\u0665"),  # an Arabic five is left as it is
    ("\\boxed{\ud800}", "\ud800"),
    ("The correct option is B.", "B"),
    ("The answer is choice (B).", "B"),
    (r"\boxed{" + "1" * 1001 + "}", None),
    ("#### " + "1" * 1001, None),
    (r"\boxed{" + " " * 2000 + "5}", "5"),
])
def test_extract(task, completion, answer):
    key = task.extract(completion)
    assert key == answer or answer and key == task.extract(rf"\boxed{{{answer}}}")


@pytest.mark.parametrize("unit", [
    r"\boxed{", r"\boxed", r"\boxed ", "{", "}", "\\", "\\{", " ", r"\fbox{}", "####", "answer", "answer is", "answer:",
    "answer*", "answer ", "1", "1,000", "1.", ".", "$", "\n", "\u0663", "\x00", r"\frac{", "a ", "√", "√(", "²", "½",
    "π", r"\text{", r"\text{m}", r"\text{m}/", "m/", "cm ", "1e", "1e9", r"1.\overline{", "1 000 ", r"\mathrm{",
    r"^\circ"])
def test_extract_in_linear_time(task, unit):
    started = time.perf_counter()
    task.extract(unit * (1_000_000 // len(unit)))
    assert time.perf_counter() - started < 3


SAME = [
    ["1,000", "1000", "1000.0", "1000.", "+1000", "$1000$", r"\$1,000.00", r"1,\!000", r"1\,000", "1{,}000", "01000",
     "n=1000", r"\(1000\)", r"\[ 1000 \]", r"1000^\circ", r"1000^{\circ}", r"1000\degree", r"1000\text{ cm}",
     r"2000/2"],
    ["1/2", "0.5", ".5", "0.50", r"\frac12", r"\frac{1}{2}", r"\dfrac{1}{2}", r"\tfrac12", "2/4", r"x=\frac12",
     r"\frac{-1}{-2}", r"\frac{1,000}{2,000}", r"\displaystyle\frac{1}{2}", "$.5$."],
    ["-1/2", "-0.5", r"-\frac{1}{2}", r"\frac{-1}{2}", r"\frac{1}{-2}", "\u22120.5"],
    ["0", "-0", "0.0", "0/7"],
    [r"\pi r^2", r"\pi r^{2}", r" \pi  r^2 ", r"\pi \, r^2"],
    ["(1,2)", "(1, 2)", r"\left(1,2\right)", r"\left( 1,\ 2 \right)", r"(1,\;2)"],
    [r"\frac{\sqrt3}{3}", r"\frac{\sqrt{3}}{3}", r"\dfrac{\sqrt3}3"],
    ["East", r"\text{East}", r"\text{ East }", r"\textbf{East}", r"\mathrm{East}"],
    ["50%", r"50\%", r"50 \%"],
]


def test_equal_answers_share_a_key_and_different_ones_do_not(task):
    keys = [{task.extract(rf"\boxed{{{answer}}}") for answer in group} for group in SAME]
    assert all(len(group) == 1 and None not in group for group in keys), keys
    assert len(set.union(*keys)) == len(SAME)


@pytest.mark.parametrize("a, b", [
    ("1,000", "1,00"), ("1/2", "1/20"), ("12", "1,2"), (r"2\frac{1}{2}", r"\frac{21}{2}"), ("2^10", "210"),
    ("2^10", r"2^{1}0"), ("x+1", "x1"), ("-5", "5"), ("1/0", "0"), ("1/0", "1"), ("(1,2)", "[1,2]"), ("50%", "50"),
    ("50%", "0.5"), ("x", "X"), ("1.5", "15"), (r"\sqrt{23}", r"\sqrt{2}3"), ("x_1", "x1"), ("3\u00b2", "32"),
    ("\u0663", "3"), (r"\pi r", r"\pir"), ("1" * 61, "1" * 60), ("1e3", "100"), ("east", "seat"), ("5", "5!"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1 2\end{pmatrix}"), ("1\\\\(2)", "12")])
def test_different_answers_have_different_keys(task, a, b):
    assert task.extract(rf"\boxed{{{a}}}") != task.extract(rf"\boxed{{{b}}}")


def test_number_keys_are_exact(task):
    digits = "0." + "3" * 50
    assert task.extract(digits) == str(Fraction(digits))
    assert task.extract(rf"\boxed{{{'0' * 999}1}}") == "0" * 999 + "1"  # too long to be converted


@pytest.mark.parametrize("answer", [
    "{", "√", "√(", "√(()", "²", "½", r"\text{", r"\text{m}", r"\text{m}/", "m/", "cm ", "1 cm/", "1e", "1e9",
    r"1.\overline{", "1 000 ", r"\mathrm{", r"{\bf ", "^{", "2(", "9", r"\quad ", "5 million ", "x*10^"])
def test_clean_is_quick_on_any_answer(answer):
    started = time.process_time()
    text = tasks.clean(answer * (answers.MAX_ANSWER // len(answer)))
    answers.glance(text or "")
    assert time.process_time() - started < 0.2


def test_row_breaks_are_not_mathematics_delimiters():
    for text in (r"1\\(2)", r"1\\[2]", r"1\\,2"):
        assert tasks.clean(text) == text


# ---------------------------------------------------------------------------------------------- verify and the pool

def test_equal_keys_need_no_pool(fresh):
    for group in SAME:
        assert fresh.rewards([problem(group[0])] * len(group), [rf"\boxed{{{a}}}" for a in group]) == [1.0] * len(group)
    assert pids(fresh.pool) == []  # no child was started


@pytest.mark.parametrize("gold, answer, reward", [
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}", 1), ("x^2+2x+1", "(x+1)^2", 1), (r"\{1,2\}", r"\{2,1\}", 1),
    ("50%", "0.5", 1), ("50", r"50\%", 1), ("1/3", "0.333333", 1), ("2", "1+1", 1), ("y=x+1", "y=1+x", 1),
    ("1/3", "0.33", 0), ("(1,2)", "(2,1)", 0), ("5", "6", 0), ("[0,1]", "(0,1)", 0), ("east", "seat", 0),
    ("5", "6\x005", 0), ("5", "\ud800", 0), ("5", "))((", 0), ("5", r"\frac", 0), ("5", r"\text{", 0),
    ("5", "5$ or $6", 0),
])
def test_verify(task, gold, answer, reward):
    assert task.verify(problem(gold), rf"the result is \boxed{{{answer}}}") == reward
    assert not task.counts


CORPUS = r"""
\text{Monday}: x=\text{Monday} monday | \text{Friday} x=\text{Friday}
\frac{V_0}{R}: \frac{V_0}{R} | \frac{v_0}{R} \frac{V_0}{r} 1
P(1+r)^t: P(r+1)^t | p(1+r)^t P(1+R)^t
\Sigma: \Sigma | \sigma
\Omega-\omega: -\omega+\Omega | 0
N(n+1): Nn+N | n^2+n
250,~750: 750,~250 250~and~750 \{750,250\} 250,\~750 | 250750 250,750
3000: 3,000 3{,}000 3\,000 | 3,~000 3\text{~and~}000
2,~4,~128: 128,~2,~4 2,~4~and~128 | 24128 2,4128 2,~4
1,2,3: 3,2,1 \{1,2,3\} | 123 6
2e: e+e 2\cdot~e | 2 200
e^{2}+5e3: e^2+15e | e^2+5000
\ln(2e): 1+\ln~2 \ln~2+1 | \ln~2
2.5e4: 25000 2.5\times10^4 | 2.5 2500
1-\frac{1}{100!}: \frac{100!-1}{100!} | 1 1-\frac{1}{99!}
1-(2/3)^{150}: 1-\frac{2^{150}}{3^{150}} | 1-(2/3)^{151} 1
2^{200}: 4^{100} 16^{50} | 2^{200}+1 2^{201}
\frac{5^{60}-1}{4}: \frac{5^{60}}{4}-\frac14 | \frac{5^{60}}{4}
0.1234567: \frac{1234567}{10^7} | 0.1234568
\frac17: | 0.14 0.142858 | 0.142857
\sqrt2: | 1.41 1.414215 | 1.414214
4:6:8: 2:3:4 4~:~6~:~8 | 4:8:6 1:2 \frac{1}{12}
3:5: 6:10 \frac35 3~:~5 | 5:3 15 \frac53
\text{XIV}: XIV | XVI VIX
\angle~PQR: \angle~PQR | \angle~QPR \angle~RPQ
BCA: BCA \text{BCA} | ABC
\triangle~DEF: \triangle~DEF | \triangle~DFE
a=7: 7 a~=~7 | a=8 |  | b=7
z=2i: 2i | 2 |  | x=2i
8\text{~kg}: 8 8\text{~kilograms} 8\,\mathrm{kg} | 8000\text{~g} |  | 8\text{~g}
30\text{~minutes}: 30 30~min 30\text{~mins} |  |  | 30\text{~hours} 30\text{~seconds}
75\text{~cents}: 75 75¢ |  |  | 75\text{~dollars} \$75
\$12.50: 12.5 12.50\text{~dollars} \frac{25}{2} | 1250 |  | 12.50\text{~cents}
\frac{dV}{dt}: \frac{dV}{dt} \dfrac{dV}{dt} | \frac{dt}{dV} \frac{V}{t} \frac{dv}{dt}
g^{-1}(x): g^{-1}(x) | \frac{1}{g(x)} g(x)
h(x+1): h(1+x) | h(x)+1 hx+h
3\sqrt~5: 3\sqrt5 \sqrt{45} 3*sqrt(5) sqrt(45) | 3\sqrt[5]{} 15
3pi/4: \frac{3\pi}{4} 0.75\pi \frac34\pi | \frac{3}{4} \frac{4\pi}{3}
x**3-2*x: x^3-2x x(x^2-2) | x^3-2 x^3-2x^2
cos(2x): \cos~2x \cos(2x) 2\cos^2~x-1 | 2\cos~x \cos^2~x
ln(5)/ln(2): \log_2~5 \frac{\ln5}{\ln2} | \log_5~2 \ln~3
exp(3*x)/2: \frac{e^{3x}}{2} \frac12\exp(3x) | \frac{e^{2x}}{3}
phi+1: \phi+1 1+\varphi | \phi
\frac~3~4: \frac34 0.75 3/4 | \frac43
\frac\pi6: \frac{\pi}{6} pi/6 30^\circ\cdot\frac{\pi}{180} | \frac{6}{\pi}
\binom73: 35 \binom{7}{3} \dbinom{7}{4} | \binom72 73
{-}8: -8 | 8
x{=}-2: -2 x=-2 | 2
2{.}75: 2.75 \frac{11}{4} | 275
[2,\infty): x\ge2 2\le~x x~\geq~2 x\in[2,\infty) [2,+\infty) | (2,\infty) x>2 x\le2
(-3,4): -3<x<4 4>x>-3 x>-3\text{~and~}x<4 x\in(-3,4) | -3\le~x<4 (4,-3) [-3,4]
x<-1\text{~or~}x>1: (-\infty,-1)\cup(1,\infty) x>1\text{~or~}x<-1 x~\in~(-\infty,-1)\cup(1,\infty)
x<-1\text{~or~}x>1: | -1<x<1 x<-1 (-\infty,-1]\cup[1,\infty)
a\ge~b: b\le~a | a\le~b a>b
2x+1>7: x>3 3<x (3,\infty) | x<3 x\ge3
0\le~t\le~5: [0,5] 5\ge~t\ge0 t\in[0,5] | 0<t<5 [0,5)
n^2+1: n^2+1\text{~for~all~integers~}n n^2+1~for~n\ge0 1+n^2~\text{~where~}~n\in\mathbb{N} | n^2-1 n^2
g(x)=2x: 2x g(x)=2x\text{~for~all~}x | g(x)=x
9:15\text{~a.m.}: 9:15~AM 9{:}15\text{~am} \text{9:15~AM} | 9:15\text{~p.m.} 9:51\text{~a.m.}
12:05: 12{:}05 | 12:50
\begin{pmatrix}0&1\\-1&0\end{pmatrix}: \begin{bmatrix}0&1\\[4pt]-1&0\end{bmatrix}
\begin{pmatrix}0&1\\-1&0\end{pmatrix}: \begin{pmatrix}0~&~1\\~-1~&~0\\~\end{pmatrix}
\begin{pmatrix}0&1\\-1&0\end{pmatrix}: | \begin{pmatrix}0&-1\\1&0\end{pmatrix}
\begin{pmatrix}0&1\\-1&0\end{pmatrix}: | \begin{pmatrix}0&1&-1&0\end{pmatrix}
\begin{bmatrix}x\\y\end{bmatrix}: \begin{pmatrix}x\\y\end{pmatrix} | \begin{pmatrix}y\\x\end{pmatrix}
n\equiv3\pmod{8}: n~\equiv~3~\mod~8 n\equiv~11\pmod~8 n\equiv3\~(\text{mod~}8) n~\equiv~3~(mod~8)
n\equiv3\pmod{8}: | n\equiv5\pmod8 n\equiv3\pmod{4}
\sin~45^\circ: \frac{\sqrt2}{2} \frac{1}{\sqrt2} \sin(45^\circ) | \sin~45 \frac12
\tan~60^\circ: \sqrt3 \tan\frac{\pi}{3} | \frac{\sqrt3}{3}
66\frac23\%: 66\frac{2}{3}\% | 66\% 0.66 | \frac23 66\frac{2}{3}
12.5\%: | 1.25 | \frac18 0.125 12.5
\lbrace~2,7\rbrace: \{7,2\} 2,7 2\text{~and~}7 | \{2\} 27 [2,7]
\varnothing: \emptyset ∅ \{\} | 0
\mathbb~Q: \mathbb{Q} | \mathbb{R} Q
P(A\mid~B): P(A|B) P(A~\mid~B) | P(B|A) P(AB)
A\cup~B: B\cup~A | A\cap~B
p\lor~q: q~\vee~p | p\land~q
9.8\text{~m/s}^2: 9.8 9.8\,\mathrm{m/s^2} 9.8\~\frac{\text{m}}{\text{s}^2} 9.8~m/s^2 | 98
4: 4\,\mathrm{N\cdot~m} 4\,\text{m}^3 4\text{~cubic~meters} 4\,\mathrm{mol\,L^{-1}} 4\text{~km/h} | 4^3 4m
\text{Tuesday}: Tuesday \text{tuesday.} tuesday \textbf{Tuesday} | \text{Thursday} \text{Tue}
\text{Alice~and~Bob}: Alice~and~Bob \text{Alice}\text{~and~}\text{Bob} \text{Bob~and~Alice}
\text{Alice~and~Bob}: | \text{Alice} \text{Alice,~Carl}
\text{yes}: Yes \text{Yes.} yes | no \text{No}
\text{(B)}: B (B) B. \textbf{(B)} | A \text{(C)} b
\text{odd}: odd \text{Odd} | \text{even} ddo
|x+2|: \left|x+2\right| abs(x+2) |2+x| | x+2 |x-2|
\lfloor~7/2\rfloor: 3 | 4
\pm\sqrt3: \sqrt3,-\sqrt3 -\sqrt{3},~\sqrt{3} \{\sqrt3,-\sqrt3\} | \sqrt3 3
2\pm\sqrt5: 2+\sqrt5,~2-\sqrt5 2-\sqrt{5}\text{~and~}2+\sqrt{5} | 2+\sqrt5
x=1\text{~or~}x=2: 1,2 x=1,2 x\in\{1,2\} x=2\text{~or~}x=1 | x=1 x=3
x^2+y^2=9: y^2+x^2=9 x^2+y^2-9=0 2x^2+2y^2=18 | x^2+y^2=3 x^2-y^2=9
y=2x+3: 2x+3 y=3+2x | y=2x-3 x=2y+3 | y-2x=3 2x-y+3=0
(2,-1): (2,~-1) \left(2,-1\right) x=2,\~y=-1 | (-1,2) (2,1)
(x,y)=(2,5): (2,5) (x,~y)~=~(2,~5) | (5,2)
3-2i: -2i+3 3-2\mathrm{i} | 3+2i 1
i^3: -i | i 1
\frac{1+i}{2}: \frac12+\frac~i2 0.5+0.5i | \frac{1-i}{2}
\frac{a+b}{2}: \frac~a2+\frac~b2 (a+b)/2 0.5(a+b) | a+\frac~b2 \frac{ab}{2}
\sqrt{a^2+b^2}: \sqrt{b^2+a^2} (a^2+b^2)^{1/2} | a+b
\frac{n(n+1)}{2}: \frac{n^2+n}{2} \binom{n+1}{2} n(n+1)/2 | \frac{n(n-1)}{2}
\sum_{k=1}^{3}k^2: | 13 | 14
1+2+\cdots+n: 1+2+\dots+n | 1+2+n
10!/(5!5!): 252 \binom{10}{5} | 250
243_5: 243_{5} 243₅ | 243 243_6
\log_3~81: 4 \log_{3}81 | 3
x_1: x_{1} | x_2 x
\vec~v: \vec{v} | v
2\sin~x\cos~x: \sin~2x \sin(2x) | \sin~x
\sec^2~x-1: \tan^2~x \tan^{2}(x) | \tan~x
\sin^{-1}(1/2): \frac{\pi}{6} \arcsin\frac12 | 2
x\ne0: x~\neq~0 x≠0 0\ne~x | x=0 0
x\in\mathbb{R}: \mathbb{R} (-\infty,\infty) | x\in\mathbb{Z}
5: | \text{six}
5\text{~feet~}6\text{~inches}: 5~feet~6~inches \text{5~feet~6~inches} | 5\text{~feet} 6\text{~feet~}5\text{~inches}
\frac{22}{7}: 3\frac17 22/7 3~1/7 | 3.14 \frac{31}{7}
1{,}234{,}567: 1234567 1,234,567 1\,234\,567 1~234~567 | 1,234 123,4567
-0.5: -\frac12 -.5 \frac{-1}{2} | 0.5 | -50\%
324: 18² 18^{2} √104976 | 18 18³
18: √324 3√36 | 18² 18ⁿ 18₂ 18π 18½ 18→19 18+ 18) 18/ 18! 18e2 18=19
5\sqrt{2}: 5√2 5√(2) √50 5·√2 5×√2 5*sqrt(2) \boldsymbol{5\sqrt{2}} {\bf~5√2} 10/√2 5·2^(1/2) | 5 5√3 52 10 7
4^n: 4ⁿ 2²ⁿ 2^{2n} | 4 4n 4⁻ⁿ
15: 5·3 5×3 5⋅3 3∙5 (5)(3) 5(3) \mathbf{15} 15\,\text{ft}^2 | 5 3 8 5~3
5/2: 2½ 2~½ 2~1/2 2\tfrac{1}{2} 5⁄2 5÷2 5·½ 25e-1 \frac{5}{2}\text{~miles} \$2.50 | 1 2 3 5 2⅓ \frac{5}{2}x
1500: 1.5e3 1.5E+03 1.5×10³ 1.5·10^3 1.5\times10^{3} 1.5~x~10^3 15e2 1~500 1.5\text{~thousand}
1500: | 1.5 15 1.5e4 1.5e-3 150
120: 5! 5·4·3·2·1 5·4! 6!/6 5!\text{~ways} | 5 6! 24 5!!
90: 90° 90º 90^\circ 90^{\circ} 90\text{~degrees} 90~degrees | 90² 9 90_2
25\pi: 25π 5²π π·25 25\pi\text{~cm}^2 25π~cm² | 25 25π² π 5π
3: ∛27 ³√27 ∜81 √9 √(4+5) ⌊3.5⌋ ∣−3∣ \log_2~8 | √27 27 −3 3₄
-5: −5 –5 \mathbf{-5} −(5) | 5 −5²
\alpha+2\theta: α+2θ 2·θ+α | α+θ α
(-\infty,1)\cup(2,\infty): (−∞,1)∪(2,∞) (2,∞)∪(−∞,1) | (−∞,1]∪(2,∞) (−∞,1) (−∞,1)∩(2,∞)
[0,1]: x∈[0,1] [0,½+½] | [0,1) [0,1 (0,1)
x\le5: x≤5 x⩽5 5≥x x\leqslant~5 | x<5 x≥5 5
\mathbb{R}: ℝ (−∞,∞) | ℤ R
-3,3: ±3 \pm3 3\text{~and~}−3 | 3 ±9
\frac{\sqrt{3}}{2}: √3/2 ½√3 √¾ √(3/4) \frac{√3}{2} | √3 3/2 √(3/2)
x^2-4: x²−4 (x−2)(x+2) | x² x²−4+ (x-2)²
a_1+x^{-1}: a₁+x⁻¹ a₁+1/x | a+1/x a₁+x
\begin{pmatrix}1\\2\end{pmatrix}: \begin{bmatrix}1\\√4\end{bmatrix} | \begin{pmatrix}2\\1\end{pmatrix} 1
5: ５ 𝟓 \text{5} {5} {\bf~5} 5. 5, x=5 5° 5°C €5 5th 5\text{cm²} 5\,{\rm~cm} 5~cm 5cm 5~m/s
5: 5\mathrm{m}/\mathrm{s}
5: | | 5%
5: 5\text{~cubic~feet~per~second} \text{5~cm} 5\frac{\text{m}}{\text{s}} 5~miles~per~hour 5~m
5: 5\text{m} 5\text{~apples}
5: | 5i 5\text{i} 5\mathrm{i} 5\text{~million} 5~thousand 5m 5x 5\text{x} 5\text{~blorps} 5\text{~squared} 5\vec{v}
5: | 5_3 5_{10} 5₃ 5+ 5) 5] 5& 5? 5→6 5≠6 \ne~5 x\ne5 x≠5 x\not=5 5\text{~or~}6 5,6,\ldots 5^T 5.5.5 2(3) (2)(3) 2~3
5\text{~cm}: 5 5~cm 5\,\mathrm{cm} 5.0\text{~centimeters} | 5² 5i 5\text{~million} cm
5\text{~million}: 5~million 5000000 5×10⁶ 5e6 \$5\text{~million} | 5 5\text{~thousand} 5\text{~billion}
5i: 5\text{i} 5·i 5\mathbf{i} | 5 i
-2: 2i² i²−1 2i^2 | 2i 2
2m: m+m 2·m | 2 2h 2c
\pi~r^2~h: πr²h π~r²~h h·\pi~r^2 | \pi~r^2 πr²
52_8: 52_{8} 52₈ | 52 52_{16} 42
1E6_{16}: 1E6_16 | 1000000 1E6
1011_2: 1011_{2} 1011₂ (1011)_2 1011_{(2)} | 1011 1011_3 1011_{10} 11
10: 5·2 \binom{5}{2} | 10_2 10₂ 1e10 2\binom{5}{2}
20: 2\binom{5}{2} 4(5) \frac{8}{2}(5) | 12 9
x\ne2: x≠2 x\neq2 x\not=2 | 2 x=2 x≠3
0.0000001: 1e-7 10⁻⁷ \frac{1}{10^7} 0.00000010 | 0.0000002 0.00000005 0 10^{-8} \frac{1}{20000000}
(0.0000001,1): (1e-7,1) | (0.0000002,1) (0,1)
1/2^{100}: 2^{-100} 2⁻¹⁰⁰ \frac{1}{4^{50}} | 2^{-101} 0 \frac{3}{2^{100}}
6.63\times10^{-34}: 6.63e-34 0.663·10⁻³³ | 3e-34 6.64e-34 0
1/3: ⅓ 0.\overline{3} 0.\bar3 3⁻¹ | 0.33 0 0.\overline{31} | 0.333333
1/70: | 0.0143 | 0.014286
1024: 2^10 2¹⁰ 32² | 210 20 2
GM/r^2: \frac{GM}{r^2} GMr^{-2} | \frac{gm}{r^2} GM/r \frac{GM}{R^2}
m~g~h: mgh ghm hgm | Mgh mgH mg+h
k_B~T: k_BT k_{B}T Tk_B | k_b~T kBT
AB+BC: BC+AB | AC CB+BA+1 AB-BC
10,~20,~300: 300,20,10 10,20,300 10,~20~and~300 | 10,20300 10,20,30
11,\!~111,\!~100: 11111100 11,111,100 | 11,~111,~100 11
\frac{1}{1+\frac{1}{x}}: \frac{x}{x+1} \frac{1}{1+1/x} | 1+x \frac{x+1}{x}
\frac{\frac{1}{2}}{3}: \frac16 1/6 | \frac32 \frac23
{8~\choose~3}: 56 \binom83 | \frac83 \binom82
[0,\infty[: [0,\infty) x\ge0 | ]0,\infty[ x>0
]2,5]: (2,5] 2<x\le5 | [2,5] 3
\{x:x>3\}: x>3 (3,\infty) \{x\mid~x>3\} | \{x:x\ge3\} x<3
\begin{vmatrix}1&2\\3&4\end{vmatrix}: -2 | 2 \begin{pmatrix}1&2\\3&4\end{pmatrix}
2\operatorname{cis}30^\circ: \sqrt3+i 2\cos30^\circ+2i\sin30^\circ | 2\operatorname{cis}30 1+\sqrt3i
\langle3,-1\rangle: (3,-1) | (3,1) (-1,3)
\max\{a,b\}: \max(a,b) \max(b,a) | \min(a,b)
\log_{2}{3}: \log_2~3 \frac{\ln~3}{\ln~2} | \log_3~2 \log_{23}
\tan^{-1}~x: \arctan~x | \cot~x
f\circ~g: f~\circ~g | g\circ~f fg
a\mid~b: a|b | b|a
5:0: 5:0 | 6:0 0:5 0
x>1,~y<2: y<2,~x>1 | y>1,~x<2
x+y=3: y+x=3 | x+y=4 | y=3-x 2x+2y=6 | 3
xy=1: yx=1 | 2 |  | 1 x+y=1
20^\circ\mathrm{C}: 20 20°C 20^\circ~C | 21 | | 20^\circ\text{F}
45^\circ: 45 45\text{~degrees} | \frac{\pi}{4} 45\%
4.5e33: 4.5\times10^{33}\text{~erg} 4.5\cdot10^{33} | 4.5e32
3\,\mu\text{m}: 3 3\text{~μm} | 4
1000000: 1.000.000 1'000'000 1_000_000 1~000~000 | 1.000 1.000.00
1234.56: 1.234,56 1{,}234.56 | 1234,56 123456
3.14: 3{,}14 | 314 3,14,15
0.125: 0{,}125 | 125
1,2,3: 1、2、3 1，2，3 | 123 |  [1,2,3]
①③④: ①,~③,~④ ①、③、④ | 134 ①③
1/7: 0.(142857) 0.\dot{1}4285\dot{7} | 0.(142856)
1/6: 0.1(6) 0.1\dot6 | 0.(16)
1011_2: 1011\text{~base~}2 1011\text{~(base~2)} 1011_{\text{two}} | 1011\text{~base~}3
2A_{16}: 2\text{A}_{16} \text{2A}_{16} | 2B_{16}
5: \text{five} \text{Five} \emph{5} \framebox{5} 5\tag{1} \hspace{1cm}5 5\checkmark \text{The~answer~is~}5
5: \text{The~answer~is~5} \text{ANSWER:~}5 \sqrt{25}=5 S=1+4=5 \log_2~32=5 f(3)=5 \gcd(10,15)=5
5: P(X=3)=5 5!/24=5 \|v\|=5 \text{Area}=5\text{~cm}^2
5: | x^2=5 f(5)=3 \text{six} \text{five~or~six} 5\text{~or~more} 4\lor5
5: | 5\text{~if~}n\text{~is~even~and~}6\text{~if~}n\text{~is~odd} 5\text{~if~}x>0,~6\text{~if~}x\le0
120: 5!=120 | 5!=100
2\pi: 2\pi\approx6.28 C=2\pi\approx6.283 | 3\pi\approx9.42
18: \text{USD~}18 US\$18 \pounds~18 Rs.~18 18~元 18\text{~red~marbles} 18\text{~different~ways} 18\text{~real~solutions}
72^\circ: 72^o 72^{\text{o}} | 72^0
25\%: 25\text{~per~cent} 25\text{\%} | 2.5\%
7/2: \nicefrac{7}{2} \sfrac{7}{2} | \nicefrac{2}{7}
\frac12: \\frac{1}{2} \\dfrac12 | \\frac{2}{1}
\sqrt[3]{x}: x^{1/3} x^{\frac{1}{3}} \root~3~\of~x | \sqrt{x}
\frac{1}{3x^{2/3}}: \frac{1}{3\sqrt[3]{x}^2} \frac{1}{3\sqrt[3]{x^2}} | \frac{1}{3x^{3/2}}
-2: \sqrt[3]{-8} (-8)^{1/3} | 2
12.5^{1/3}: \sqrt[3]{12.5} \sqrt[3]{\frac{25}{2}} | 12\sqrt[3]{5}
\lg~2: \log_{10}2 \frac{\ln2}{\ln10} | \ln~2
-3: \log_2\frac18 | 3
\tan~x: \operatorname{tg}~x \mathrm{tan}\,x | \operatorname{ctg}~x
|x-3|: \text{abs}(x-3) | \text{abs}(x)-3
\binom{2n}{n}: C(2n,n) C_{2n}^{n} | C_{2n}^{2}
(1,2): \begin{cases}x=1\\y=2\end{cases} \left\{\begin{array}{l}x=1,\\y=2.\end{array}\right. | x=2,y=1
(1,2): \begin{aligned}x&=1\\y&=2\end{aligned} \begin{align*}x&=1\\y&=2\end{align*} | (2,1)
(1,2): \begin{array}{l}x=1\\y=2\end{array} | \begin{cases}x=2\\y=1\end{cases}
x=1,~x=2: |  | x_1=1,~x_2=2
\begin{pmatrix}1&2\\3&4\end{pmatrix}: \left[\begin{array}{cc}1&2\\3&4\end{array}\right]
\begin{pmatrix}1&2\\3&4\end{pmatrix}: \begin{pmatrix}1&2\cr3&4\end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix}: A=\begin{pmatrix}1&2\\3&4\end{pmatrix} \begin{Bmatrix}1&2\\3&4\end{Bmatrix}
\begin{cases}x&x>0\\-x&x\le0\end{cases}: | \begin{cases}-x&x>0\\x&x\le0\end{cases}
\{1,2\}: {1,~2} \{2,1\} | (1,2)
-2,0,2: 0,\pm2 \{0,\pm2\} x=0,\pm2 | \pm2 0,2
\emptyset: \text{no~solution} \text{There~are~no~solutions.} | \text{no} 0
\mathbb{R}: \text{all~real~numbers} \R \mathbf{R} | \text{all~integers}
(-\infty,2)\cup(2,\infty): x\in\mathbb{R},~x\ne2 x<2\lor~x>2 (-\infty,2)\bigcup(2,\infty) | x=2
x=k\pi,k\in\mathbb{Z}: k\pi x=k\pi\~(k\in\mathbb{Z}) x=n\pi,n\in\mathbb{Z} x=k\pi,k\in\mathbf{Z} n\pi x=\pi~k,~k\in~Z
x=k\pi,k\in\mathbb{Z}: \{x|x=k\pi,k\in\mathbb{Z}\} | 2k\pi \pi k\pi+1
2\pi\sqrt{\frac{m}{k}}: 2π√(m/k) | 2\pi\sqrt{\frac{k}{m}}
\pi~r~l: \pi~l~r | \pi~rk
2:3: 2\text{~to~}3 | 3\text{~to~}2
2\mathbf{i}+3\mathbf{j}: 2\hat{i}+3\hat{j} 2\hat{\mathbf{i}}+3\hat{\mathbf{j}} | 3\hat{i}+2\hat{j}
3\text{~apples},~2\text{~oranges}: 2\text{~oranges},~3\text{~apples} 3\text{~apples~and~}2\text{~oranges}
3\text{~apples},~2\text{~oranges}: | 2\text{~apples},~3\text{~oranges} 5
2\text{~hours~}30\text{~minutes}: 2\text{~hr~}30\text{~min} \text{2~hours~and~30~minutes} | 2\text{~hr~}3\text{~min}
\text{ellipse}: \text{an~ellipse} \text{the~ellipse} \mathtt{ellipse} | \text{circle}
B: \text{Option~B} | \text{(A)~3~(B)~5} |  \textbf{(B)}\~12 \text{B:~an~apple} \text{B)~}12 | 
15: \textbf{(D)}\~15 \text{D)~}15 | \textbf{(D)}\~16
\textbf{(D)}\~15: 15 \text{(D)~}15 | \textbf{(D)}\~16 | D | \textbf{(C)}\~15
\textcolor{red}{7}: 7 \color{blue}7 \underline{7} 7\phantom{0} | \textcolor{red}{8} 70
"""


@pytest.mark.parametrize("line", CORPUS.strip().split("\n"))
def test_nothing_in_an_answer_is_ignored(task, line):
    """Gold: right answers | wrong answers; ~ is a space. Right ones share the vote key of the gold one, wrong ones do
    not. Where being the same is no equivalence, there are two more lists: | right ones with another key (percent is
    the number or its hundredth, a decimal stands for what rounds to it, y=2x stands for 2x and for the equation) |
    wrong ones with its key (3 stands for x=3 and y=3, 5 for 5 km and 5 m)."""
    gold, rest = line.replace("~", "\0").split(": ", 1)
    sides = (re.split(r"(?:^| )\|(?= |$)", rest) + [""] * 3)[:4]
    right, wrong, apart, together = ([text.replace("\0", " ") for text in side.split()] for side in sides)
    gold, answers = gold.replace("\0", " "), right + apart + wrong + together
    rewards = task.rewards([problem(gold)] * len(answers), [rf"\boxed{{{answer}}}" for answer in answers])
    expected = [1.0] * len(right + apart) + [0.0] * len(wrong + together)
    assert rewards == expected, list(zip(answers, rewards))
    key = task.extract(rf"\boxed{{{gold}}}")
    shared = [task.extract(rf"\boxed{{{answer}}}") == key for answer in right + together + wrong + apart]
    assert shared == [True] * len(right + together) + [False] * len(wrong + apart), list(zip(right + wrong, shared))
    assert not task.counts


@pytest.mark.parametrize("answers", [
    r"1500 1.5e3 1.5×10³ 1.5\times10^{3} 1.5\cdot10^3 15e2 1~500", "x² x^2 x^{2}", r"π/2 \pi/2",
    r"5/2 2.5 2½ 2\frac{1}{2} 2~1/2 5⁄2 25e-1 \mathbf{\frac52}", r"5√2 5\sqrt{2} 5\sqrt2 5√(2) 5sqrt(2)",
    "1011_2 1011_{2} 1011₂", r"x≠2 x\ne2 x\neq~2", r"5i 5\text{i} 5~i 5\mathbf{i}", "0.0000001 1e-7 10⁻⁷",
    r"5~million 5000000 5\text{~million} 5e6", r"1/3 0.\overline{3} ⅓",
    r"5 5~cm 5\text{~cm}^2 5~mph 5° \text{5~cm} \$5"])
def test_spellings_share_a_vote_key(task, answers):
    assert len({task.extract(rf"\boxed{{{answer.replace('~', ' ')}}}") for answer in answers.split()}) == 1


RULES = [line[54:] for line in mathematics.__doc__.split("\n") if " | " in line[54:] and line[:4] == "    "]


@pytest.mark.parametrize("row", [row for line in RULES for row in line.split(";  ")])
def test_the_rules_are_as_the_table_says(task, row):
    """Each row of the docstring: gold | equal to it | not equal, and the vote keys of what is not equal differ, too,
    where names and units do not say otherwise."""
    gold, right, wrong = ([answer.strip() for answer in side.split(";") if answer.strip()] for side in row.split("|"))
    rewards = task.rewards([problem(gold[0])] * len(right + wrong), [rf"\boxed{{{a}}}" for a in right + wrong])
    assert rewards == [1.0] * len(right) + [0.0] * len(wrong), list(zip(right + wrong, rewards))
    keys = [task.extract(rf"\boxed{{{answer}}}") for answer in wrong]
    assert "=" in gold[0] or "text" in gold[0] or task.extract(rf"\boxed{{{gold[0]}}}") not in keys


@pytest.mark.parametrize("a, b", [
    ("x-(y+z)", "x-y+z"), ("-(x+y)", "-x+y"), ("(2x)^2", "2x^2"), ("(2n)!", "2n!"), ("(x,yz)", "(xy,z)"),
    ("(a+b)c", "a+bc"), ("(-2)^2", "-2^2"), (r"\sin(x+1)", r"\sin x+1"), ("x>1 or x<3", "x>1 and x<3"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}2&1\end{pmatrix}"), (r"\sqrt{x}y", r"\sqrt{xy}"),
    (r"\frac{1}{2}x", r"\frac{1}{2x}"), ("a-(b-c)", "a-b-c"), ("(a^b)^c", "a^{b^c}"), ("x/(yz)", "x/yz"),
    (r"\sin 30^\circ", r"\sin 30"), ("1+(2,3)", "(1+2,3)"), ("f(x)", "fx"), ("|x|y", "|xy|")])
def test_brackets_are_in_the_key(task, a, b):
    assert task.extract(rf"\boxed{{{a}}}") != task.extract(rf"\boxed{{{b}}}")
    assert task.rewards([problem(a), problem(b)], [rf"\boxed{{{b}}}", rf"\boxed{{{a}}}"]) == [0.0, 0.0]


def test_there_are_rules():
    assert len(RULES) >= 18


@pytest.mark.parametrize("gold, right, wrong", [
    (r"\pi(R^2-r^2)", [r"\pi(R-r)(R+r)"], ["0", r"\pi(r^2-R^2)"]), (r"\Delta", [r"\Delta"], [r"\delta"]),
    (r"\ln(3e+2)", [r"\ln(2+3e)"], [r"\ln 300"]), ("e^2-2e+1", ["(e-1)^2"], ["e^2-20"]),
    (r"1-\frac{1}{2024!}", [r"\frac{2024!-1}{2024!}"], [r"1-\frac{1}{2023!}"]),
    ("1-(5/6)^{200}", [r"1-\frac{5^{200}}{6^{200}}"], ["1-(5/6)^{201}"]),
    (r"1+\sqrt2\cdot10^{-17}", [r"\sqrt2\cdot10^{-17}+1"], [r"1-\sqrt2\cdot10^{-17}"]),
    ("IV", [r"\text{IV}"], ["VI"]), (r"\angle ABC", [r"\angle ABC"], [r"\angle ACB"]),
    (r"\frac{dy}{dx}", [r"\dfrac{dy}{dx}"], ["0", r"\frac{dx}{dy}"]), ("f^{-1}(x)", ["f^{-1}(x)"], ["1/f(x)"]),
    ("log(2)/log(3)", [r"\log_3 2", r"\frac{\ln 2}{\ln 3}"], [r"\log_2 3"]), ("2pi", [r"2\pi", "2π"], [r"\pi"]),
    ("exp(-2*t)", ["e^{-2t}"], ["e^{2t}"]), ("theta/2", [r"\frac{\theta}{2}"], [r"\theta"]),
    (r"(-\infty,2]\cup[5,\infty)", [r"x\le2\text{ or }x\ge5"], [r"x<2\text{ or }x\ge5"]),
    ("x>3", ["3<x", r"x\in(3,\infty)"], ["y>3", r"x\ge3"]), (r"x+y\le5", [r"5\ge x+y"], [r"x+y\ge5"]),
    (r"10:30\text{ a.m.}", ["10:30 AM", r"10{:}30\,\text{am}"], [r"10:30\text{ p.m.}"]),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", [r"\begin{bmatrix}1&2\\[2pt]3&4\end{bmatrix}"],
     [r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"]),
    (r"x\equiv7\pmod{12}", [r"x \equiv 7 \bmod 12", r"x\equiv 7\ (\text{mod }12)"], [r"x\equiv7\pmod{13}"]),
    (r"\cos 60^\circ", [r"\frac12"], [r"\cos 60"]), (r"\frac13", [r"33\frac13\%"], [r"33\%"]),
    ("60\\text{ mph}", [r"60\text{ miles per hour}", "60"], ["60 km/h"]),
    (r"\int_0^1 x\,dx", [r"\frac12"], ["1"]), (r"\sum_{i=1}^{4}i", ["10"], ["9"]),
    ("5", [r"5\,\mathrm{kg\cdot m/s^2}", r"5\,\mu\text{m}", r"5\,\text{kJ/mol}", "{+}5"], ["{-}5"]),
    (r"\frac12", [r"\frac 1 2"], ["2"]), ("10", [r"\binom52", r"\binom 5 2"], [r"\binom51"]),
])
def test_kinds(task, gold, right, wrong):
    rewards = task.rewards([problem(gold)] * len(right + wrong), [rf"so \boxed{{{a}}}" for a in right + wrong])
    assert rewards == [1.0] * len(right) + [0.0] * len(wrong), list(zip(right + wrong, rewards))
    assert not task.counts


@pytest.mark.parametrize("completion, answer", [
    (r"<think>\boxed{5}</think>The answer is $7$.", "7"), (r"<think>\boxed{7}</think>Done.", "7"),
    (r"$\boxed{3}$ and $\boxed{4}$", "{3,4}"), ("The answer is:\n\n$$7$$", "7"), ("The answer is:\n- 7", "7"),
    ("The answer is **7** cm.", "7"), ("The answer is `7`.", "7"), ("Answer: __7__", "7"), ("<answer>7</answer>", "7"),
    ("The answer is 7.\nI hope this answer helps!", "7"), ("Answer: 7\nConfidence in this answer: 90%", "7"),
    ("The answer is 7, because 3+4=7.", "7"), ("**26**", "26"), ("Total: 26", "26"), ("She has 26 apples.", "26"),
    ("She has 26 apples", None), ("She has 26 apples. Then", None), ("The answer is -7", "-7"),
    ("The answer is 7, in total.", "7"), ("The answer is 7<|im_end|>", "7"), ("The answer is 7, not 8.", "7"),
    ("The answer is 7, 8.", "{7,8}"), ("So our answer is 7.", "7"),
    ("The answer is 7.\nSo our answer is correct.", "7"), (r"<think>so \boxed{7}, let me check", None),
    ("<think>The answer is 7. Wait,", None), ("The answer is 7!", "7"), ("The answer is [7]", "7"),
    ("<ANSWER>7</ANSWER>", "7"),
    ("<final_answer>7</final_answer>", "7"), ("La réponse est 7.", "7"), ("A resposta é 7.", "7"),
    ("答案是 **7**。", "7"), ("答えは7です。", "7"), ("Ответ: $7$.", "7"), ("정답은 7입니다.", "7"),
    ("## Final Answer\n\n7", "7"), ("**Answer**\n\n$7$", "7"), ("#### Final Answer\n7", "7"), ("Answer - 7", "7"),
    ("Answer → 7", "7"), ("The answer is equal to 7.", "7"), ("The answer to the question is 7.", "7"),
    ("The answers are 7 and 8.", "{7,8}"), ("Answer:\n```python\n7\n```", "7"), ("The answer is 7</s>", "7"),
    ("The answer is 7 (seven).", "7"), ("The answer is 7; this can be checked.", "7"), ("The answer isn't 7.", None),
    ("The answer cannot be 7.", None), ("The answer is seven.", "7"), ("(7)", "7"), ("$x = 7$", "7"),
    ("3 + 4 = 7", "7"), ("Thus $x = 7$.", "7"), ('{"answer": "7"}', "7"), (r"\boxed{\frac{7}{1}\\}", "7"),
    (r"$$\text{ANSWER: } \$7$$", "7"),
])
def test_where_the_answer_stands(task, completion, answer):
    assert task.extract(completion) == answer


@pytest.mark.parametrize("gold", [r"3+4 is \boxed{7}", "3+4=7\n#### 7", "The answer is 7.", "**7**", "7"])
def test_a_gold_answer_may_be_a_solution(task, gold):
    assert task.rewards([problem(gold)] * 2, [r"\boxed{7}", r"\boxed{8}"]) == [1.0, 0.0]


def test_it_is_known_whether_any_sample_holds_an_answer():
    task = tasks.Math("test", [], [], [])
    assert task.unanswered is None
    task.rewards([problem("7")] * 2, ["who knows", "x"])
    assert task.unanswered == "who knows"
    task.rewards([problem("7")], [r"\boxed{8}"])
    task.rewards([problem("7")], ["who knows"])
    assert task.unanswered == ""


def test_unbalanced_answers_are_read_whole(task):
    assert task.rewards([problem("5")] * 3, ["The answer is 5}", "#### 5}{", "The answer is 5²"]) == [0.0] * 3


@pytest.mark.parametrize("answer", [
    "1e999999999", "10^{10^{10}}", "999999999!", "1e-999999999", "9" * 900 + "e" + "9" * 50,
    "2(" * 300 + "1" + ")" * 300])
def test_huge_numbers_stay_out_of_the_main_process(fresh, answer):
    started = time.process_time()
    assert fresh.extract(rf"\boxed{{{answer}}}")
    assert time.process_time() - started < 0.1
    assert fresh.verify(problem("5"), rf"\boxed{{{answer}}}") == 0.0


def test_a_timeout_scores_zero_is_counted_and_does_not_block_the_others(fresh):
    fresh.pool.judge([("1", "2")] * 4)  # both children are up
    hang = [problem("5"), problem("6"), problem("7")]
    good = [problem(r"\sqrt{2}", str(i)) for i in range(60)]
    completions = [HANG] * 3 + [rf"\boxed{{{i}\sqrt{{2}}-{i - 1}\sqrt{{2}}}}" for i in range(60)]
    started = time.perf_counter()
    rewards = fresh.rewards(hang + good, completions)
    assert rewards == [0.0] * 3 + [1.0] * 60
    assert fresh.counts == {"verifier_timeouts": 3}
    assert time.perf_counter() - started < 20  # 3 seconds on two idle children


def test_each_pair_is_judged_once_and_the_memo_is_bounded(fresh, monkeypatch):
    asked, judge = [], fresh.pool.judge
    monkeypatch.setattr(fresh.pool, "judge", lambda pairs: asked.append(pairs) or judge(pairs))
    problems = [problem("2", str(i)) for i in range(6)]
    completions = [r"\boxed{1+1^1}", r"\boxed{1 + 1^1}", r"\boxed{1^1+2}", "nothing", r"\boxed{2}", r"\boxed{1+1^1}"]
    for _ in range(2):
        assert fresh.rewards(problems, completions) == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert asked == [[("2", "1+1^1"), ("2", "1^1+2")], []]
    fresh.memo.update((("2", str(i)), 0.0) for i in range(100_001))
    assert fresh.rewards(problems, completions) == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert len(fresh.memo) < 10
    with pytest.raises(ValueError):
        fresh.rewards(problems, completions[:-1])


def test_throughput(task):
    pairs = [pair for i in range(2, 102) for pair in (
        (f"{i}", f"{i}+1"), (f"{i}", rf"\frac{{{i}}}{{7}}"), (f"{i}", rf"{i + 1}\text{{ cm}}"),
        (rf"{i}\sqrt{{2}}", f"{i}"))]
    task.pool.judge([("1", "2")] * 4)
    started = time.perf_counter()
    verdicts = task.pool.judge(pairs)
    assert set(verdicts) == {False}
    assert len(pairs) / (time.perf_counter() - started) > 2000 / 60


def test_a_child_killed_between_batches_is_replaced(fresh):
    assert fresh.pool.judge([("2", "1+1")] * 4) == [True] * 4
    before = pids(fresh.pool)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert fresh.rewards([problem("2")] * 4, [rf"\boxed{{{i}+1}}" for i in range(4)]) == [0.0, 1.0, 0.0, 0.0]
    assert not fresh.counts and not set(before) & set(pids(fresh.pool))


def test_a_child_killed_during_a_batch_costs_nothing(fresh):
    fresh.pool.judge([("1", "2")] * 4)
    victim = pids(fresh.pool)[0]
    os.kill(victim, signal.SIGSTOP)  # so that it is sure to have a pair in hand, and not to be done, when it is killed
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    n = 150
    completions = [rf"\boxed{{{i + 1}\sqrt{{{i + 2}}}}}" for i in range(n)]
    golds = [problem(rf"\sqrt{{{(i + 1) ** 2 * (i + 2)}}}") for i in range(n)]
    started = time.perf_counter()
    assert fresh.rewards(golds, completions) == [1.0] * n
    assert time.perf_counter() - started > 0.3  # the batch had to wait for the killed child's pair
    assert not fresh.counts and victim not in pids(fresh.pool)


def test_stopped_child_is_a_timeout(fresh):
    fresh.pool = mathematics.VerifierPool(limit=0.5, size=1)
    fresh.pool.judge([("1", "2")])
    os.kill(pids(fresh.pool)[0], signal.SIGSTOP)
    assert fresh.verify(problem("2"), r"\boxed{1+1^1}") == 0.0 and fresh.counts == {"verifier_timeouts": 1}
    assert fresh.verify(problem("2"), r"\boxed{1+1^1+0}") == 1.0


def test_works_off_the_main_thread_and_from_many_threads(task):
    results = {}

    def work(i):
        results[i] = task.rewards([problem("2"), problem("3")], [rf"\boxed{{{i}+2-{i}}}"] * 2)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {i: [1.0, 0.0] for i in range(5)}
    assert not task.counts and len(pids(task.pool)) <= task.pool.size


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A stand-in for math-verify inside the children, which fails in ways the real one hardly can be made to."""
    (tmp_path / "math_verify.py").write_text(f'''
import os, sys, time
class grader: sympy_numeric_eq = None
def LatexExtractionConfig(**_): pass
def parse(text, config, parsing_timeout): return text.strip("$")
def verify(gold, answer, timeout_seconds):
    with open({str(tmp_path / "asked")!r}, "a") as file: file.write(answer + "\\n")
    if answer == "noise": print("true"); os.write(1, b"true\\n"); sys.stderr.write("x" * 1000000); sys.stdout.flush()
    if answer == "crash": os.abort()
    if answer == "exit": sys.exit()
    if answer == "raise": raise KeyError
    if answer == "sleep": time.sleep(1)
    if answer == "once" and open({str(tmp_path / "asked")!r}).read().count("once") < 2: os._exit(1)
    if answer == "memory": bytearray(3 << 30)
    if answer == "length": return gold == "g" * 900
    if answer == "stdin": return gold == os.environ["PYTHONHASHSEED"]
    return gold == answer
''')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "asked"


def test_children_that_die_and_children_that_print(fake):
    pool = mathematics.VerifierPool(limit=5.0, size=1)
    ask = ["noise", "same", "crash", "exit", "raise", "memory", "once", "length", "stdin", "same"]
    gold = {"length": "g" * 900, "stdin": "0", "noise": "other", "crash": "x"}
    expected = [False, True, "errors", "errors", "errors", "errors", True, True, True, True]
    assert pool.judge([(gold.get(word, word), word) for word in ask]) == expected
    asked = fake.read_text().split()  # what failed was tried twice
    assert [asked.count(word) for word in ask[:-1]] == [1, 2, 2, 2, 2, 2, 2, 1, 1]


def test_errors_score_zero_and_are_counted(fake, fresh):
    fake.with_name("math_verify.py").write_text(
        "import os\nparse = lambda *_, **__: os.abort()\nverify = LatexExtractionConfig = lambda **_: None\n"
        "class grader: sympy_numeric_eq = None")
    sums = [rf"\sum_{{i=0}}^1 {i}" for i in (1, 1, 2)]  # which only math-verify reads
    completions = [rf"\boxed{{{answer}}}" for answer in (*sums, "2")]
    assert fresh.rewards([problem("2")] * 4, completions) == [0.0, 0.0, 0.0, 1.0]
    assert fresh.counts == {"verifier_errors": 2}


def test_children_work_in_parallel(fake):
    pool = mathematics.VerifierPool(limit=10.0, size=4)
    pool.judge([("1", "sleep")] * 4)
    assert len(pids(pool)) == 4
    started = time.perf_counter()
    assert pool.judge([("sleep", "sleep")] * 8) == [True] * 8
    assert time.perf_counter() - started < 7  # 2 seconds, but 8 one after the other


def test_a_pool_that_cannot_start_children_reports_errors(monkeypatch):
    pool = mathematics.VerifierPool(size=2)
    monkeypatch.setattr(mathematics.subprocess, "Popen",
                        lambda *a, **k: (_ for _ in ()).throw(OSError("no more processes")))
    assert pool.judge([("1", "2")] * 5) == ["errors"] * 5
    monkeypatch.undo()
    assert pool.judge([("1", "1+0")]) == [True]
    monkeypatch.setattr(mathematics.sys, "executable", "/bin/false")
    assert mathematics.VerifierPool(size=1).judge([("1", "2")]) == ["errors"]


def test_children_start_in_any_directory(tmp_path, monkeypatch):
    """And take nothing that lies there for a module of theirs."""
    for name in ("tasks", "support", "random", "sympy"):
        (tmp_path / f"{name}.py").write_text("raise OSError")
    monkeypatch.chdir(tmp_path)
    assert mathematics.VerifierPool(size=1).judge([("1", "1+0")]) == [True]


def test_overlong_answers_never_reach_the_pool(fresh):
    fresh.pool.judge = lambda pairs: pytest.fail("sent") if pairs else []
    assert fresh.verify(problem("2"), rf"\boxed{{{'1+' * 600}1}}") == 0.0


def alive(pid):
    try:  # a zombie that nobody reaps is dead
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", ["killed", "exits"])
def test_no_child_outlives_its_parent(how):
    code = (f"import sys, threading, time; sys.path.insert(0, {ROOT!r}); import tasks\n"
            "task = tasks.Math('t', [], [], [])\n"
            "task.pool = tasks.mathematics.VerifierPool(1 if sys.argv[1] == 'exits' else 3, 2)\n"
            "task.pool.judge([('1', '2')] * 4)\n"
            f"threading.Thread(target=task.verify, args=(tasks.Problem('', '', '5'), {HANG!r})).start()\n"
            "time.sleep(0.5); print('up', flush=True); time.sleep(60 * (sys.argv[1] == 'killed'))\n")
    parent = subprocess.Popen([sys.executable, "-c", code, how], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "up\n"
        children = children_of(parent.pid)
        assert children
        if how == "killed":
            assert len(children) == 2
            parent.kill()
        parent.wait(20)
        # The idle child sees the end of its input at once; the one that hangs is ended by its own alarm.
        assert wait_until(lambda: sum(map(alive, children)) <= 1, 2)
        assert wait_until(lambda: not any(map(alive, children)), 8)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_dropped_pool_takes_its_children_along():
    pool = mathematics.VerifierPool(size=2)
    pool.judge([("1", "2")] * 4)
    children = pids(pool)
    assert children and all(map(alive, children))
    del pool
    assert wait_until(lambda: not any(map(alive, children)), 2)


def test_import_is_light(tmp_path):
    """Against a loop of a million squares: a busy or slow machine slows both. With bytecode, which the first of three
    tries makes: to compile takes most of the time, and how much against the loop depends on how Python was built."""
    code = ("import sys, time; started = time.process_time(); import tasks; taken = time.process_time() - started; "
            "started = time.process_time(); sum(i * i for i in range(10**6)); "
            "print(taken / (time.process_time() - started), "
            "[m for m in ('torch', 'transformers', 'datasets', 'math_verify', 'sympy') if m in sys.modules])")
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    results = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=environment,
                              text=True, check=True).stdout.split(" ", 1) for _ in range(3)]
    assert {modules for _, modules in results} == {"[]\n"}
    assert min(float(loops) for loops, _ in results) < 3, results


def test_missing_math_verify_is_a_user_error(monkeypatch):
    monkeypatch.setattr(mathematics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tasks.UserError, match="pip install math-verify"):
        tasks.Math("test", [], [], [])


# ----------------------------------------------------------------------------------------- hub data sets, local copies

def readme(configs):
    lines = ["---", "configs:"]
    for config in configs:
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in ("train", "test"):
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    return "\n".join(lines + ["---"])


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets.config


def gsm8k_row(i):
    return {"question": f"How much is {i} and {i}?",
            "answer": f"It is {i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i:,}"}


@pytest.fixture
def gsm8k(tmp_path, cache):
    folder = tmp_path / "gsm8k"
    train = [gsm8k_row(i) for i in range(40)] + [gsm8k_row(7), gsm8k_row(1000), {"question": "?", "answer": "no mark"}]
    write_parquet(folder / "main/train-00000-of-00001.parquet", train)
    write_parquet(folder / "main/test-00000-of-00001.parquet", [gsm8k_row(i) for i in range(1000, 1005)])
    (folder / "README.md").write_text(readme(["main"]))
    return folder


def test_gsm8k_from_a_local_copy(gsm8k, capfd):
    task = tasks.load_task("gsm8k", data=str(gsm8k))
    assert (task.name, task.chat, task.graded, task.max_new_tokens) == ("gsm8k", True, False, 512)
    # 43 rows: one twice, one also in test, one without an answer (which carve may put into train or valid)
    assert len(task.train) + len(task.valid) == 40 and len(task.valid) in (3, 4) and len(task.test) == 5
    assert sum(task.counts.values()) == 1 and set(task.counts) <= {"train_without_answer", "valid_without_answer"}
    prompts = [p.prompt for p in task.train + task.valid + task.test]
    assert len(set(prompts)) == 45 and len({p.id for p in task.train + task.valid + task.test}) == 45
    first = task.test[0]
    assert first.answer == "2000" and first.level is None
    assert first.prompt == "How much is 1000 and 1000?\nReason step by step and put the final answer in \\boxed{}."
    assert first.solution == "It is 1000+1000=2000.\nThe answer is \\boxed{2000}."
    for p in task.train + task.valid + task.test:
        assert task.verify(p, p.solution) == 1.0
    assert task.valid == tasks.load_task("gsm8k", data=str(gsm8k)).valid
    with pytest.raises(tasks.UserError, match="no levels"):
        tasks.load_task("gsm8k", data=str(gsm8k), levels="1-3")
    assert capfd.readouterr() == ("", "")


def test_gsm8k_local_copy_in_jsonl(tmp_path, cache):
    folder = tmp_path / "copy"
    (folder / "main").mkdir(parents=True)
    (folder / "README.md").write_text(readme(["main"]))
    for split, numbers in (("train", range(20)), ("test", range(20, 25))):
        (folder / f"main/{split}-0.jsonl").write_text("\n".join(json.dumps(gsm8k_row(i)) for i in numbers))
    task = tasks.load_task("gsm8k", data=str(folder))
    assert list(map(len, (task.train, task.valid, task.test))) == [18, 2, 5]


def math_row(subject, i, level="Level 3", solution=None):
    return {"problem": f"{subject}: what is ${i}/7$?", "level": level, "type": subject.title(),
            "solution": solution or rf"Not \boxed{{1}} but $\boxed{{\frac{{{i}}}{{7}}}}$."}


@pytest.fixture
def math(tmp_path, cache):
    folder = tmp_path / "math"
    for subject in tasks.data.MATH_SUBJECTS:
        rows = [math_row(subject, i, f"Level {i % 5 + 1}") for i in range(10)]
        if subject == "algebra":
            rows += [math_row(subject, 100, "Level ?"), math_row(subject, 101, solution=r"$\boxed 5$"),
                     math_row(subject, 102, solution="no box")]
        for split in ("train", "test"):
            write_parquet(folder / f"hendrycks_math/{subject}/{split}-00000-of-00001.parquet", rows)
    (folder / "hendrycks_math/README.md").write_text(readme(tasks.data.MATH_SUBJECTS))
    (folder / "MATH-500").mkdir()
    tests = [{"problem": " geometry: what\n is $3/7$?", "solution": r"\boxed{\frac37}", "answer": r"\frac{3}{7}",
              "subject": "Geometry", "level": 4, "unique_id": "test/geometry/3.json"},
             {"problem": "new?", "solution": r"\boxed{5}", "answer": "5", "subject": "Algebra", "level": 1,
              "unique_id": "test/algebra/1.json"}]
    (folder / "MATH-500/test.jsonl").write_text("\n".join(map(json.dumps, tests)))
    return folder


def test_math_from_a_local_copy(math, capfd):
    task = tasks.load_task("math", data=str(math))
    assert (task.name, task.chat, task.max_new_tokens) == ("math", True, 1024)
    # 73 train rows: one is in MATH-500 but for white space, one has no answer
    assert len(task.train) + len(task.valid) == 71 and len(task.valid) in (6, 7)
    assert not any("geometry: what is $3/7$?" in p.prompt for p in task.train + task.valid)
    assert [(p.id, p.answer, p.level) for p in task.test] == [
        ("math/test/geometry/3.json", r"\frac{3}{7}", "4"), ("math/test/algebra/1.json", "5", "1")]
    by_id = {p.id: p for p in task.train + task.valid}
    assert len(by_id) == 71
    assert by_id["math/train/algebra/4"].answer == r"\frac{4}{7}" and by_id["math/train/algebra/4"].level == "5"
    assert by_id["math/train/algebra/10"].level == "?" and by_id["math/train/algebra/11"].answer == "5"
    assert all(p.prompt.endswith("put the final answer in \\boxed{}.") for p in by_id.values())
    for p in [*by_id.values(), *task.test]:
        assert task.verify(p, p.solution) == 1.0
    assert capfd.readouterr() == ("", "")


def test_math_levels(math):
    whole = tasks.load_task("math", data=str(math))
    for levels, kept in (("1-3", "123"), ("1,2,5", "125"), ("2-3, 5", "235"), ("4", "4")):
        task = tasks.load_task("math", data=str(math), levels=levels)
        for split in ("train", "valid", "test"):  # the same split, whatever the levels
            assert getattr(task, split) == [p for p in getattr(whole, split) if p.level in kept]
    with pytest.raises(tasks.UserError, match="no test problems"):
        tasks.load_task("math", data=str(math), levels="5").need("test")
    for levels in ("7", "3-1", "", "x", "1-", "-1", "0-0", "1.5"):
        with pytest.raises(tasks.UserError, match="selects nothing: task math has 1, 2, 3, 4, 5, ?"):
            tasks.load_task("math", data=str(math), levels=levels)


def one_sentence(message):
    return "\n" not in message and len(message) < 600


def test_broken_local_copies(tmp_path, gsm8k, math, capfd, caplog):
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "empty").mkdir()
    for name, data, match in (
            ("gsm8k", tmp_path / "nowhere", "not a directory"), ("gsm8k", file, "cannot tell which split"),
            ("math", file, "cannot tell which split"),
            ("math", gsm8k, "train-0.*, row 1: lacks the field 'problem'"),
            ("gsm8k", tmp_path / "empty", "cannot load the train split"),
            ("gsm8k", math / "MATH-500", "cannot load the train split")):
        with pytest.raises(tasks.UserError, match=match) as error:
            tasks.load_task(name, data=str(data))
        assert one_sentence(str(error.value))
    (gsm8k / "main/test-00000-of-00001.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(tasks.UserError, match="cannot read .*test-00000-of-00001.parquet") as error:
        tasks.load_task("gsm8k", data=str(gsm8k))
    assert one_sentence(str(error.value))
    for row in ({"question": "q", "answer": None}, {"question": "q", "text": "a"}):
        for split in ("train", "test"):
            write_parquet(gsm8k / f"main/{split}-00000-of-00001.parquet", [row] * 2)
        with pytest.raises(tasks.UserError, match="train-00000.*, row 1: lacks the field 'answer'"):
            tasks.load_task("gsm8k", data=str(gsm8k))
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize("name, repository", [("gsm8k", "openai/gsm8k"), ("math", "EleutherAI/hendrycks_math")])
def test_no_network_is_one_quick_sentence(cache, monkeypatch, name, repository, capfd, caplog):
    import huggingface_hub
    monkeypatch.setattr(cache, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # refused at once
    monkeypatch.setattr(cache, "HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.perf_counter()
    match = f"cannot load {repository}:.*local copy with --data DIR"
    with pytest.raises(tasks.UserError, match=match) as error:
        tasks.load_task(name)
    assert one_sentence(str(error.value))
    assert time.perf_counter() - started < 20
    assert capfd.readouterr() == ("", "") and not caplog.records


# -------------------------------------------------------------------------------------------- problems from a file

@pytest.fixture
def write(tmp_path):
    def write(*lines):
        """A file of lines: bytes and text as they are, anything else as JSON."""
        path = tmp_path / "own.jsonl"
        lines = [json.dumps(line, ensure_ascii=False) if not isinstance(line, (str, bytes)) else line for line in lines]
        path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
        return str(path)
    return write


def test_jsonl_with_splits(write):
    path = write(b"\xef\xbb\xbf" + b'{"prompt": "a", "answer": 1000, "split": "train", "id": [1]}', "", "  \t",
                 {"prompt": "b\u2028", "answer": "1/2", "solution": r"\boxed{0.5}", "level": 2, "split": "validation"},
                 {"prompt": "c", "answer": 2.5, "split": "test"},
                 {"prompt": "d", "answer": "x", "split": "val", "level": "hard"},
                 {"prompt": "a", "answer": 1000, "split": "train", "solution": None}, "")
    for name in (None, "jsonl"):
        task = tasks.load_task(name, data=path)
        assert (task.name, task.chat, task.max_new_tokens) == ("jsonl", True, 512)
        assert task.train == [tasks.Problem("own.jsonl:1", "a", "1000"), tasks.Problem("own.jsonl:7", "a", "1000")]
        assert task.valid == [tasks.Problem("own.jsonl:4", "b\u2028", "1/2", r"\boxed{0.5}", "2"),
                              tasks.Problem("own.jsonl:6", "d", "x", None, "hard")]
        assert [p.answer for p in task.test] == ["2.5"]
    assert task.rewards([task.train[0], task.valid[0], task.test[0]], ["1,000", r"\boxed{.5}", "#### 5/2"]) == [1.0] * 3
    assert [p.prompt for p in tasks.load_task(None, data=path, levels="hard").valid] == ["d"]
    with pytest.raises(tasks.UserError, match="no train problems"):
        tasks.load_task(None, data=path, levels="2").need("train")


@pytest.mark.parametrize("n, sizes", [
    (1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1)), (9, (7, 1, 1)), (100, (80, 10, 10))])
def test_jsonl_without_splits(write, n, sizes):
    rows = [{"prompt": f"{i}?", "answer": i} for i in range(n)]
    task = tasks.load_task(data=write(*rows))
    assert tuple(map(len, (task.train, task.valid, task.test))) == sizes
    assert sorted(p.answer for p in task.train + task.valid + task.test) == sorted(str(i) for i in range(n))
    again = tasks.load_task(data=write(*rows))
    assert (task.train, task.valid, task.test) == (again.train, again.valid, again.test)
    if n == 100:
        assert [p.answer for p in task.test] != [str(i) for i in range(10)]  # shuffled
        for split in ("train", "valid", "test"):
            assert task.need(split) == getattr(task, split)


def test_jsonl_without_splits_keeps_equal_prompts_together(write):
    task = tasks.load_task(data=write(*({"prompt": f"{i % 10} ?" + " " * (i % 3), "answer": i} for i in range(60))))
    prompts = [{p.prompt.strip() for p in split} for split in (task.train, task.valid, task.test)]
    assert [len(split) for split in prompts] == [8, 1, 1]
    assert not any(a & b for a, b in itertools.combinations(prompts, 2))


OK = {"prompt": "a", "answer": "1"}


@pytest.mark.parametrize("line, match", [
    ("{", "not valid JSON"), ("{'prompt': 'a'}", "not valid JSON"),
    ('{"prompt": "a", "answer": "\\ud800"}', "not valid JSON"),
    ("[" * 100_000, "not valid JSON"), ('{"prompt": "a", "answer": ' + "1" * 5000 + "}", "not valid JSON"),
    ("[1]", "not a JSON object"), ("3", "not a JSON object"), ("null", "not a JSON object"),
    ({"answer": "1"}, '"prompt" is missing'), ({"prompt": "a"}, '"answer" is missing'),
    ({"prompt": "a", "answer": None}, '"answer" is missing'), ({"prompt": 1, "answer": "1"}, '"prompt" must be text'),
    ({"prompt": "a", "answer": []}, '"answer" is missing'),
    ({"prompt": "a", "answer": [None]}, '"answer" must not hold'),
    ({"prompt": "a", "answer": {"x": {"y": None}}}, '"answer" must not hold'),
    (OK | {"solution": 5}, '"solution" must be text'), (OK | {"level": [1]}, '"level" must be text or a number'),
    (OK | {"split": 1}, '"split" must be text'), (OK | {"split": "dev"}, "\"split\" must be .*'dev'"),
    (OK | {"split": ""}, '"split" must be'), ({"prompt": " ", "answer": "1"}, "must not be empty"),
    ({"prompt": "a", "answer": " $ "}, "must not be empty"),
    ({"prompt": "a", "answer": "1" * 1001}, "longer than 1000"),
    (b'{"prompt": "\xff", "answer": "1"}', "not UTF-8"),
    ('{"prompt": "a", "answer": NaN}', "finite"), ('{"prompt": "a", "answer": 1e999}', "finite"),
])
def test_jsonl_names_the_broken_line(write, line, match):
    with pytest.raises(tasks.UserError, match=rf"own\.jsonl, line 3: .*{match}") as error:
        tasks.load_task(None, data=write(OK, "", line, OK))
    assert one_sentence(str(error.value))


@pytest.mark.parametrize("rows, match", [
    ([OK | {"split": "train"}, {"prompt": "b", "answer": "1"}], 'line 2: "split" is missing'),
    ([{"prompt": "b", "answer": "1"}, OK | {"split": "train"}], 'line 1: "split" is missing'),
    ([OK | {"split": "train"}, {"prompt": " a\n", "answer": "2", "split": "test"}], "line 2: .* in another split"),
])
def test_jsonl_split_errors(write, rows, match):
    with pytest.raises(tasks.UserError, match=match):
        tasks.load_task(None, data=write(*rows))


def test_unreadable_files(tmp_path, write):
    for data, match in (("none.jsonl", "No such file"), ("", "holds no file of rows"), ("a\x00b", "cannot read")):
        with pytest.raises(tasks.UserError, match=match) as error:
            tasks.load_task(None, data=os.path.join(tmp_path, data))
        assert one_sentence(str(error.value))
    for lines in ((), ("", " ")):
        with pytest.raises(tasks.UserError, match="holds no problems"):
            tasks.load_task(None, data=write(*lines))


# --------------------------------------------------------------------------------------------------------- load_task

@pytest.mark.parametrize("arguments, match", [
    ({}, "no task: choose from countdown, countdown6, routes, program, peptide, gsm8k, math"),
    ({"name": "jsonl"}, "no task"),
    ({"name": "aime"}, "unknown task 'aime'"), ({"name": "aime", "data": "x.jsonl"}, "unknown task"),
    ({"name": ""}, "unknown task"), ({"name": "countdown", "data": "x"}, "countdown generates its problems"),
    ({"name": "routes", "levels": "1"}, "no levels"),
])
def test_load_task_errors(arguments, match):
    with pytest.raises(tasks.UserError, match=match):
        tasks.load_task(**arguments)


def test_levels_on_a_file_without_levels(write):
    with pytest.raises(tasks.UserError, match="no levels"):
        tasks.load_task(data=write(OK), levels="1")
