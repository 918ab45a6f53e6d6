"""Programs in completions: extracts them and judges whether they pass. They run in sandbox.py: tests in a process
separate from the program, or output compared outside it."""
import ast
import builtins
import collections
import itertools
import json
import re
import subprocess
import typing
import warnings
from collections.abc import Iterable
from contextlib import suppress

from support.errors import UserError

from . import sandbox
from .embedded import Problem, Task
from .unit_tests import modules_of
from .workers import WorkerPool


class CodeProblem(Problem):
    """Its answer is JSON: {"tests", "names", "prefix", "limit"}, or for standard input and output {"inputs", "outputs",
    "limit"}.
    tests   source with assertions
    names   {name in the tests: expression in the program}, what the tests use of the program
    prefix  the prompt, if it is the beginning of a program up to the docstring of the function to write; else empty
    typing  true if programs get List, Optional and so on without importing them; may be absent"""


# The program is found from the text of a completion alone. Nothing is run, only short text is parsed, and the rest is a
# single pass, because a completion may be a megabyte of anything.

MAX_SOURCE = 10_000  # characters; longer model output is not parsed
FENCE = re.compile(r"([ \t]*(?:>[ \t]?)?[ \t]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)*)(`{3,}|~{3,})"
                   r"[ \t]*([^\s`]*)[ \t]*(.*)")
DEFINITION = r"(?:(?:async[ \t]+)?def|class)[ \t]+"
STATEMENT = re.compile(  # a line that starts like code and unlike prose
    rf"^[ \t]*(?:{DEFINITION}\w|import[ \t]+\w[\w.]*[ \t]*(?:,|;|#|as\b|$)|from[ \t]+[\w.]+[ \t]+import\b"
    r"|@\w|return\b|print\("
    r"|(?:for|while|if|with|try)\b.*:[ \t]*(?:#.*)?$|\w+(?:[ \t]*,[ \t]*\w+)*[ \t]*[-+*/%|&^]?=(?!=))", re.MULTILINE)
FUNCTION = re.compile(  # or its body
    rf"^(?:{DEFINITION}(?!test|check\b)\w|(?:[^#\n\"']*[\s:;])?(?:return|yield)\b)", re.MULTILINE)
READS = re.compile(r"\binput\(|\bopen\(0|\bread\(0|\bstdin\b(?! *=)")
FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[ \t]*(?:\([^()]*\)|.*)", re.MULTILINE)
NOISE = re.compile(  # a byte order mark, or chat template tokens at the end of a line
    r"^\ufeff|(?<!>)(?:<[|｜][^\s<>]{1,40}[|｜]>|</s>)+[ \t]*$", re.MULTILINE)
LANGUAGE = r"[ \t]*(?:python[0-9.]*|py)"  # a language name that lost its fence
FIRST_LANGUAGE = re.compile(rf"\A(?:[ \t]*\n)*{LANGUAGE}[ \t]*\n", re.IGNORECASE)
TYPING = ({name for name in typing.__all__ if name[0].isupper()}  # others could hide a missing import
          - {"Text", *collections.__all__})
WORD = re.compile(r"[^\W\d]\w*")
COUNTED = {"timeouts": "program_timeouts", "errors": "verifier_errors"}  # verdict -> name of its count
AT_ONCE = 2_000  # up to this many rows, tests are tried when a file is loaded; otherwise when they are needed
INDENTED = re.compile(r"(?:[ \t]*\n)*(?:  |\t)")  # not by one space, with which some tokenizers begin


def parse(text: str) -> ast.Module:
    """Syntax tree of Python source.  Raises SyntaxError, also for text that is too long or nested too deeply."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in strings
            return ast.parse(text if len(text) <= MAX_SOURCE else "(")
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError from error


def leading(text, head=""):
    """The longest initial lines of a text for which head + lines is valid Python; '' if there are none."""
    lines = text.split("\n")
    for _ in range(10):
        try:
            parse(head + "\n".join(lines))
            return "\n".join(lines)
        except SyntaxError as error:
            del lines[max(0, min((error.lineno or 0) - head.count("\n"), len(lines)) - 1):]
    return ""


def unindent(code):
    """The code dedented by the indentation of its first line."""
    margin = re.match(r"(?:[ \t]*\n)*([ \t]*)", code)[1]
    return re.sub(f"^{margin}", "", code, flags=re.MULTILINE) if margin else code


def bodies(code):
    """Readings of code as a function body: as it is, indented differently, or with the first line stripped."""
    moved = "\n" + re.sub(r"^(?=[ \t]*\S)", "    ", unindent(code), flags=re.MULTILINE)
    return (code, moved) if INDENTED.match(code) else (moved, "\n    " + code.lstrip())


def blocks_of(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(blocks, outside): (language, code) of each block between ``` or ~~~ fences, also in lists and quotes, and the
    text between blocks. As in Markdown, a fence does not end a block if it is shorter than the opening fence or
    indented by four more columns; nor does one inside a docstring. A block also ends at a fence with a language, and at
    the end of the text. A completion that starts with code, as those of base models may, starts inside a block, which a
    bare fence ends."""
    blocks = []
    outside = []
    lines = []
    language = ""
    column = 0
    quoted = False
    string = 0  # 1 inside a docstring
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
                if fence is not None and not name + rest and mark.startswith(fence) and not string:
                    end()
                    fence, quoted = None, False
                    continue
                if (name or not fence) and (code or "`" not in rest):
                    end()
                    fence, language, column, quoted = mark, name, depth, ">" in before
                    string = 0
                    if not code:
                        continue
                    line = rest
        if fence and line.endswith(fence) and line.count(fence) == 1 and line.strip() != fence:  # right after the code
            end(line.removesuffix(fence))
            fence, quoted = None, False
        else:
            lines.append(line)
            string ^= bool(fence) & line.count('"""')
    end()
    return blocks, outside


def body_of(text):
    """The function body at the start of a base model's completion (Chen et al. 2021)."""
    return re.split(r"\n(?=class|def|#|if|print)", text, maxsplit=1)[0]


def unfenced(text, kind, head=""):
    """The code in text that may start and end with prose; '' if none of it matches `kind`."""
    # not code: [PYTHON], Solution, python, - item
    text = re.sub(rf"^(?:\[\w+\]|[A-Z]\w*|{LANGUAGE}|-[ \t].*)[ \t]*$", "", text, flags=re.MULTILINE)
    starts = re.finditer(r"^(?:  |\t)|" * bool(head) + STATEMENT.pattern, text, re.MULTILINE)
    for start in [0, *(match.start() for match in itertools.islice(starts, 10))]:
        rest = text[start:]
        if head or INDENTED.match(rest):
            rest = body_of(rest)
        ways = bodies(rest) if head else [unindent(rest)]
        codes = [leading(body, head) for body in ways]
        code = max(codes, key=lambda code: code.strip().count("\n"))
        if kind.search(code):
            return code
    return ""


def codes_outside(texts, kind, head):
    """The code that matches `kind` in the first and last of these texts."""
    texts = [text for text in texts if len(text) <= MAX_SOURCE and kind.search(flush(text))]
    codes = [unfenced(text, kind, head) for text in texts[:5] + texts[5:][-5:]]
    return [code for code in codes if code]


def flush(text):
    """The text with all indentation removed."""
    return re.sub(r"^[ \t]+", "", text, flags=re.MULTILINE)


def defines(names, *more):
    """Pattern of a line that defines one of the names; `more`: further patterns, with {} for the names."""
    names = "|".join(map(re.escape, sorted(names))) or "(?!)"
    patterns = (DEFINITION + r"(?:{})\b", r"(?:{})[ \t]*(?::.*)?=(?!=)", *more)
    return re.compile("|".join("^" + pattern.replace("{}", names) for pattern in patterns), re.MULTILINE)


def together(*parts):
    """The parts of a program joined by lines, with imports from __future__ moved to the top."""
    text = "\n".join(parts)
    return "\n".join([*FUTURE.findall(text), FUTURE.sub("", text)])


def with_helpers(code, earlier, names):
    """The code preceded by the earlier blocks that define what it lacks, as in the cells of a notebook."""
    with suppress(SyntaxError):
        lacks = lacking(code, names)
        for block in reversed(earlier[-20:]):
            if lacks.search(block) and leading(block) == block:
                code = together(f"{block}\n", code)
                lacks = lacking(code, names)
    return code


def lacking(code, names):
    """Pattern of a line that defines or imports one of `names` or of the names that the code uses but does not define.
    Raises SyntaxError."""
    used = set(names)
    bound = set(dir(builtins))
    for node in ast.walk(parse(code)):
        if isinstance(node, ast.Name):
            kind = used if isinstance(node.ctx, ast.Load) else bound
            kind.add(node.id)
        for field in ("name", "asname", "arg"):
            name = str(getattr(node, field, ""))
            bound.add(name.split(".")[0])
    return defines(used - bound, r"(?:from|import)[ \t].*\b(?:{})\b")


def program_of(completion: str, prefix: str = "", names: Iterable[str] = ()) -> str:
    """The program in a completion, after </think> if there is one.

    names: expressions that the tests use. With names, the program is the last fenced block that defines one of them,
    else text outside blocks that does, else (with a prefix) the same for a function body. Without names, it is the last
    block that reads standard input, else that has a function, else a statement, because usage, samples and output come
    after the program. Blocks in another language count only if no block is in Python or without a language.

    prefix: a prompt that is the beginning of a function. It is put in front of the program: unchanged if the completion
    continues with the body, at any indentation, or as a stub with imports and helpers if it repeats the function."""
    names = {node.id for name in names for node in ast.walk(ast.parse(name)) if isinstance(node, ast.Name)}
    names.discard("globals")
    answer = NOISE.sub("", completion.replace("\r\n", "\n").rpartition("</think>")[2])
    blocks, outside = blocks_of(FIRST_LANGUAGE.sub("", answer))
    blocks = [(language, FIRST_LANGUAGE.sub("", code)) for language, code in blocks]
    views = [unindent(code) for _, code in blocks]
    order = sorted(range(len(blocks)), key=lambda i: (not blocks[i][0] or "py" in blocks[i][0], i))
    own = defines(names)
    i = order[-1] if blocks else 0
    if blocks:
        code = blocks[i][1]
    else:
        code = "".join(outside[:1])
        if prefix:
            code = body_of(code)
    kinds = (READS, FUNCTION, STATEMENT)
    if names:
        kinds = (own, FUNCTION) if prefix else (own,)
    for kind in kinds:
        hits = [i for i in order if kind.search(views[i])]
        if hits:
            i = hits[-1]
            code = blocks[i][1]
            break
        head = prefix if kind is not own and names else ""
        found = codes_outside(outside, kind, head)
        if found:
            i = 0
            code = found[0 if head else -1]  # after the body a base model writes something else
            break
    whole = unindent(code)
    if not prefix or own.search(whole):
        code = with_helpers(whole, views[:i], names)
        return together(stub(prefix), code) if prefix else code
    for body in bodies(code) if code.strip() else ():
        if leading(prefix + body) == prefix + body:
            return prefix + body
    return prefix + code


def stub(prefix: str) -> str:
    """The beginning of a program, completed so that it can run."""
    if not prefix:
        return ""
    outer = re.findall(r"^(?:async[ \t]+)?(def|class)\b", prefix, re.MULTILINE)
    margin = 8 if outer[-1:] == ["class"] else 4
    return f"{prefix}\n{' ' * margin}pass\n"


def definitions_of(prompt):
    """The functions and classes in the beginning of a program; [] if the prompt is not one."""
    try:
        tree = ast.parse(stub(prompt))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]


def prefix_of(prompt: str, name: str) -> str:
    """The prompt if it is Python that ends inside the function or class `name`, else ''."""
    return prompt if name in [node.name for node in definitions_of(prompt)] else ""


def unfinished(prompt: str) -> str:
    """The name of the function that a prompt, as the beginning of a program, leaves without a body, or ''."""
    for node in definitions_of(prompt)[-1:]:
        body = node.body if ast.get_docstring(node) is None else node.body[1:]
        if len(body) == 1 and isinstance(body[0], ast.Pass):
            return node.name
    return ""


def fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


def squeeze(text: str) -> str:
    return " ".join(text.split())


class Code(Task):
    """Reward 1 for programs that pass all tests, else 0. The vote key is the program without comments and
    formatting."""

    def __init__(self, name: str, train: list[Problem], valid: list[Problem], test: list[Problem],
                 max_new_tokens: int = 512):
        super().__init__()
        self.name = name
        self.max_new_tokens = max_new_tokens
        self.train = train
        self.valid = valid
        self.test = test
        self.pool = None
        self.memo = {}
        self.flaws = {}  # problem id -> why its tests cannot judge, '' if they can; only problems tried so far

    def open(self, allow_unsandboxed: bool = False):
        """Start the sandbox, and leave out the rows of a file whose tests cannot judge a program.  Raises UserError if
        programs cannot be run, or if no row is left."""
        problems = self.train + self.valid + self.test
        specs = {problem.id: json.loads(problem.answer) for problem in problems}
        longest = max((spec["limit"] for spec in specs.values()), default=0)
        arguments = sandbox.settle(allow_unsandboxed)
        self.pool = CodePool(arguments, sandbox.whole(longest) + 3 * sandbox.START_LIMIT)
        if arguments["args"][-2]:
            print(f"programs run in a sandbox: {arguments['note']}", flush=True)
        if self.name == "jsonl" and len(problems) <= AT_ONCE:
            self.try_tests(specs)
            left = {id: flaw for id, flaw in self.flaws.items() if flaw}
            for split in ("train", "valid", "test"):
                setattr(self, split, [problem for problem in getattr(self, split) if problem.id not in left])
            report_left_out(left, len(problems))

    def try_tests(self, specs: dict[str, dict]):
        """Try the tests of problems {id: spec} once, on a program that only raises, and store in `flaws` why they
        cannot judge any program."""
        new = {id: spec for id, spec in specs.items() if "tests" in spec and id not in self.flaws}
        if new:
            verdicts = self.pool.judge([job_of(spec, kind="trial") for spec in new.values()])
            for id, verdict in zip(new, verdicts):
                self.flaws[id] = verdict[0] if isinstance(verdict, list) else ""  # tests that hang are noticed later

    def verify(self, problem: Problem, completion: str) -> float:
        return self.rewards([problem], [completion])[0]

    def rewards(self, problems: list[Problem], completions: list[str]) -> list[float]:
        """1.0 if the program of a completion passes; each distinct (problem, program) is judged once. What cannot be
        judged scores 0.0 and is counted as `unsupported` (tests that cannot judge or lack something they need, values
        that are not plain data) or `verifier_errors`. `program_timeouts` counts programs that exceed time, memory or
        files, or are killed by a signal."""
        specs, pairs = {}, []
        for problem, completion in zip(problems, completions, strict=True):
            if problem.id not in specs:
                specs[problem.id] = json.loads(problem.answer)
            spec = specs[problem.id]
            names = spec.get("names", {}).values()
            program = program_of(completion, spec.get("prefix", ""), names)
            pairs.append((problem.id, program))
        known = set(self.flaws)
        self.try_tests(specs)
        report_left_out({id: self.flaws[id] for id in specs if id not in known and self.flaws.get(id)})
        scores = {pair: self.memo.get(pair) for pair in pairs}
        for pair in scores:
            if not pair[1].strip():
                scores[pair] = 0.0
        new = [pair for pair, score in scores.items() if score is None]
        verdicts = {pair: "unsupported" for pair in new if self.flaws.get(pair[0])}
        jobs = {(id, program): job_of(specs[id], program) for id, program in new if not self.flaws.get(id)}
        verdicts.update(zip(jobs, self.pool.judge(list(jobs.values()))))
        for pair, verdict in verdicts.items():
            if isinstance(verdict, str):
                self.counts[COUNTED.get(verdict, verdict)] += 1
            scores[pair] = float(verdict is True)
        if len(self.memo) > 100_000:
            self.memo.clear()
        self.memo.update(scores)
        return [scores[pair] for pair in pairs]

    def extract(self, completion: str) -> str | None:
        code = program_of(completion)
        if len(code) > MAX_SOURCE:
            return squeeze(code)
        for body in bodies(code):  # the same key at any indentation
            with suppress(SyntaxError, RecursionError):
                return ast.unparse(parse("def body():\n" + body))
        return None


def job_of(spec: dict, program: str = "", kind: str = "tests") -> dict:
    """The job for a worker of sandbox.py: judge a program by the spec of its problem."""
    given = TYPING if spec.get("typing") else set()
    job = {**spec, "program": program, "typing": sorted(given.intersection(WORD.findall(program)))}
    if "inputs" in spec:
        return {**job, "kind": "stdio"}
    setup = stub(spec["prefix"])
    names = ", ".join(sorted(given.intersection(WORD.findall(setup))))
    if names:
        setup = together(f"from typing import {names}", setup)
    return {**job, "kind": kind, "setup": setup, "modules": modules_of(spec["tests"])}


def report_left_out(flaws: dict[str, str], of: int | None = None):
    """Print which problems {id: reason} cannot be judged, grouped by reason. of: number of problems in the file. 
    Raises UserError if none is left."""
    reasons = {}
    for id, reason in flaws.items():
        reasons.setdefault(squeeze(reason), []).append(id)
    parts = []
    for reason, ids in reasons.items():
        more = f" and {len(ids) - 20} more" if len(ids) > 20 else ""
        parts.append(f"{', '.join(ids[:20])}{more} ({reason})")
    text = "; ".join(parts)
    if flaws and len(flaws) == of:
        raise UserError(f"no problem can be judged: {text}")
    if flaws:
        what = "left out" if of else "score 0, as unsupported,"
        print(f"{len(flaws)} problem{'s' * (len(flaws) > 1)} {what} because of the tests: {text}", flush=True)


class CodePool(WorkerPool):
    """A pool of the workers of sandbox.py. They enforce time limits themselves; `limit` is for a stuck worker."""

    def __init__(self, arguments: dict, limit: float):
        super().__init__(limit)
        self.arguments = arguments

    def launch(self) -> subprocess.Popen:
        return sandbox.start_worker(self.arguments)
