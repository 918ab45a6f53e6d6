"""The user's own reward function for the samples of --data: --reward FILE.py:FUNCTION.

There are two forms, distinguished by their parameter names:

    f(prompt, completion, answer=None, **row)    one sample -> a number; equal samples of a batch are judged once
    f(prompts, completions, **columns)           a batch of samples, as in TRL -> a list of one number per sample

All arguments are passed by keyword; a function without ** gets only those that it names. `prompt` and `completion` are
text. Columns are passed as they are in the file, None if a row lacks one. In the first form `answer` is text, as read
from --data; in TRL's form it is that text only if there is no column of this name. With chat messages, TRL's form gets
lists of {"role", "content"} as prompts and completions, as from TRL. A batch is what one process judges at once. It
contains all samples of a prompt, unless several processes share them.

With --reward-processes N, N processes import the file and make the calls, TRL's form with one prompt per call. A call
that exceeds FUNCTION.limit seconds (default 60) is stopped: its samples score 0 and are counted as verifier_timeouts,
or as verifier_errors if its process died. Any other invalid result stops the run with an error: an exception, NaN,
None, a tensor, a wrong number of rewards, or a reward other than 0 and 1 without FUNCTION.graded = True.

Votes are counted by extract(completion) from the same file or, without it, by the whole text.
"""
import base64
import inspect
import json
import math
import os
import pickle
import signal
import subprocess
import sys

from support import ROOT
from support.errors import UserError
from support.text import messages_of

from .embedded import Task
from .own import File, list_of_numbers, named, number, refuse_other_kinds, takes, vote
from .workers import WorkerPool

LIMIT = 60.0  # seconds per call in a separate process, unless the function sets its own
OF_SAMPLES = ("prompt", "prompts", "completion", "completions")  # columns of these names are hidden by the samples


class Judge:
    """The user's reward function: FILE.py:FUNCTION, or the only one in FILE.py.  Raises UserError."""

    def __init__(self, text):
        file = File("--reward", text)
        functions = {name: value for name, value in file.defined().items() if name != "extract" and judges(value)}
        self.file = file
        self.function = file.pick(functions, "functions that judge")
        file.what = f"--reward {file.base}:{file.name}"
        self.read_parameters()
        self.graded = bool(getattr(self.function, "graded", False))
        self.limit = getattr(self.function, "limit", LIMIT)
        if not isinstance(self.limit, (int, float)) or not 0 < self.limit < math.inf:
            raise UserError(f"{file.what}: its limit must be a number of seconds, not {self.limit!r}")
        self.extract = getattr(file.module, "extract", None)
        if self.extract is not None:
            takes(self.extract, f"--reward {file.base}, extract,", ["completion"])

    def read_parameters(self):
        """Determine its form and its parameters.  Raises UserError."""
        what = self.file.what
        if not callable(self.function) or inspect.isclass(self.function):
            raise UserError(f"{what} is {named(self.function)}, but it must be a function")
        refuse_other_kinds(self.function, what)
        try:
            parameters = [*inspect.signature(self.function).parameters.values()]
        except (TypeError, ValueError) as error:
            raise UserError(f"{what}: its parameters cannot be read ({error}): wrap it in a function") from error
        names = [p.name for p in parameters]
        if ("completion" in names) == ("completions" in names):
            raise UserError(f"{what} takes ({', '.join(names)}): it must name completion, for one sample a call, or "
                            "completions, for a batch as in TRL")
        if any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters):
            raise UserError(f"{what} takes parameters without names (* or /), but they are given by their names")
        self.batched = "completions" in names
        self.takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters)
        self.names = {p.name for p in parameters if p.kind != p.VAR_KEYWORD}
        self.needs = [p.name for p in parameters if p.kind != p.VAR_KEYWORD and p.default is p.empty]

    def check_columns(self, problems):
        """Collect the columns of all problems.  Raises UserError if the function needs a column that no row has."""
        self.columns = list(dict.fromkeys(name for p in problems for name in p.row if name not in OF_SAMPLES))
        given = {*self.columns, "prompts" if self.batched else "prompt"}
        given.add("completions" if self.batched else "completion")
        if any(p.answer is not None for p in problems):
            given.add("answer")
        for name in self.needs:
            if name not in given:
                raise UserError(f"{self.file.what} needs {name}, which no row of --data has: give it a default, or a "
                                f"column; there are {', '.join(sorted(given))}")

    def keywords(self, problems, completions):
        """Keyword arguments for some samples; the form for one sample gets exactly one."""
        if self.batched:
            arguments = self.columns_of(problems)
            arguments["prompts"] = [messages_or_text(p.prompt) for p in problems]
            arguments["completions"] = [as_message(c, p.prompt) for p, c in zip(problems, completions, strict=True)]
        else:
            (problem,), (completion,) = problems, completions
            arguments = {name: problem.row.get(name) for name in self.columns}
            arguments |= {"prompt": str(problem.prompt), "completion": completion, "answer": problem.answer}
        if self.takes_all:
            return arguments
        return {name: value for name, value in arguments.items() if name in self.names}

    def columns_of(self, problems):
        """{column: values, one per problem}."""
        columns = {name: [p.row.get(name) for p in problems] for name in self.columns}
        if "answer" not in columns and any(p.answer is not None for p in problems):
            columns["answer"] = [p.answer for p in problems]
        return columns

    def call(self, keywords, count, words):
        """The rewards of `count` samples.  words: describes the samples in errors.  Raises UserError."""
        with self.file.sentence(words):
            returned = self.function(**keywords)
            call = self.file.what + words
            if self.batched:
                return list_of_numbers(returned, count, call, self.graded)
            return [number(returned, call, self.graded)]


def judges(value):
    """Whether a value defined in a file is a reward function."""
    return inspect.isfunction(value) and bool({"completion", "completions"} & {*inspect.signature(value).parameters})


def messages_or_text(prompt):
    return messages_of(prompt).get("messages") or str(prompt)


def as_message(completion, prompt):
    return [{"role": "assistant", "content": completion}] if messages_of(prompt) else completion


class Judged(Task):
    """Problems of --data judged by a Judge, in this process or in `processes` others."""
    name = "jsonl"

    def __init__(self, judge, processes, train, valid, test):
        super().__init__()
        judge.check_columns([*train, *valid, *test])
        self.judge = judge
        self.graded = judge.graded
        self.train = train
        self.valid = valid
        self.test = test
        self.pool = Processes(judge, processes) if processes else None
        judge.file.mark(self, "function")

    def __str__(self):
        kinds = ["a batch a call" if self.judge.batched else "one sample a call"]
        kinds += ["graded"] * self.graded
        kinds.append("votes by its extract" if self.judge.extract else "votes by the whole text")
        return f"judged by {self.judge.file.path}:{self.judge.file.name} ({', '.join(kinds)})"

    def verify(self, problem, completion):
        return self.rewards([problem], [completion])[0]

    def extract(self, completion):
        """The vote key of a completion: from `extract` of the file or, without it, the whole text."""
        if self.judge.extract is None:
            return completion.strip()
        with self.judge.file.sentence(", extract,"):
            return vote(self.judge.extract(completion), f"{self.judge.file.what}, extract,")

    def rewards(self, problems, completions):
        """One call per distinct sample; in batched form one call, or one per prompt in other processes."""
        groups = self.groups(problems, completions)
        jobs = [self.job(group, problems, completions) for group in groups]
        rewards = [0.0] * len(completions)
        for group, result in zip(groups, self.judged(jobs)):
            if isinstance(result, str):  # 'timeouts' or 'errors'
                self.counts[f"verifier_{result}"] += len(group) if self.judge.batched else 1
                continue
            values = result if self.judge.batched else result * len(group)
            for i, value in zip(group, values, strict=True):
                rewards[i] = value
        return rewards

    def groups(self, problems, completions):
        """Indices of the samples judged by each call: the whole batch, those of one prompt, or equal samples."""
        groups = {}
        for i, (problem, completion) in enumerate(zip(problems, completions, strict=True)):
            key = "all"
            if not self.judge.batched:
                key = problem.id, completion
            elif self.pool:
                key = problem.id
            groups.setdefault(key, []).append(i)
        return [*groups.values()]

    def job(self, group, problems, completions):
        """Arguments of Judge.call for a group of samples."""
        problem = problems[group[0]]
        words = f", of {problem.id} and {completions[group[0]][:60]!r},"
        if self.judge.batched:
            words = ""
        else:
            group = group[:1]
        keywords = self.judge.keywords([problems[i] for i in group], [completions[i] for i in group])
        return keywords, len(group), words

    def judged(self, jobs):
        """The rewards of each group, or 'timeouts' or 'errors'.  Raises UserError."""
        if self.pool:
            return self.pool.judge_all(jobs)
        return [self.judge.call(*job) for job in jobs]


# ------------------------------------------------------------------------------------------------- in other processes

BOOT = ("import sys; root, text, limit = sys.argv[1:]; "
        "sys.path = [root, *filter(None, sys.path)]; "  # not the current directory
        "from tasks.reward import worker; worker(text, float(limit))")


class Processes(WorkerPool):
    """Processes that import the file of a Judge and call it. Nothing from the file is pickled."""

    def __init__(self, judge, size):
        own = size // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        super().__init__(judge.limit, max(1, own))
        self.text = f"{judge.file.path}:{judge.file.name}"

    def launch(self):
        command = [sys.executable, "-c", BOOT, ROOT, self.text, str(self.limit)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        # in its own session, Ctrl-C does not reach it and `stop` can kill the whole group
        return subprocess.Popen(command, start_new_session=True, **pipes)

    def judge_all(self, jobs):
        """What Judge.call returns for each of its arguments, or 'timeouts' or 'errors'.  Raises UserError."""
        messages = [base64.b64encode(pickle.dumps(job)).decode() for job in jobs]  # rows may hold types that JSON lacks
        replies = self.judge(messages)
        for reply in replies:
            if isinstance(reply, dict) and "error" in reply:
                raise UserError(reply["error"])
        return [reply if isinstance(reply, str) else reply["rewards"] for reply in replies]


def worker(text, limit):
    """Main loop of a child: answer lines on standard input until it closes, also when the parent dies."""
    requests = os.fdopen(os.dup(0))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # prints of the function must not be taken for a reply
    judge = None
    failure = {}
    try:
        judge = Judge(text)
    except UserError as error:
        failure = {"error": str(error)}
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in requests:
        signal.alarm(math.ceil(limit) + 2)  # if the parent, which would stop it earlier, is gone
        message = json.loads(line)
        reply = failure
        if message and judge:
            reply = answer(judge, message)
        signal.alarm(0)
        print(json.dumps(reply), file=replies, flush=True)


def answer(judge, message):
    """The reply to a message: rewards, or an error message."""
    try:
        return {"rewards": judge.call(*pickle.loads(base64.b64decode(message)))}
    except UserError as error:
        return {"error": str(error)}
