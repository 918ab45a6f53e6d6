"""Problems and verifiers. `load_task(name, data)` gives a task with

    .train .valid .test             lists of Problem, disjoint from each other
    .need(split)                    one of these lists, or a UserError if it is empty
    .verify(problem, completion)    0 or 1; any finite float if the task is `graded`
    .extract(completion)            final answer = the key that votes are counted by, or None
    .rewards(problems, completions) verify many pairs, identical pairs only once; `.counts` counts failures

Embedded (no download): `countdown`, `countdown6`, `routes`, `program`, `peptide` (graded). From the Hugging Face hub:
`gsm8k`, `math`, and for code `humaneval`, `mbpp`, `codecontests`, `taco`. Your own problems: `--data` with a file, a
folder or the id of a data set on the hub.
Nothing here imports torch, so the verifier workers start in a fraction of a second.

A task of your own in a file, --task my_task.py:

    from tasks import Problem, Task

    class Sums(Task):
        name, max_new_tokens = "sums", 8  # graded = True: verify may return any finite number, like a reward model
        def __init__(self):
            super().__init__()
            problems = [Problem(f"{a}+{b}", f"{a}+{b}:", str(a + b)) for a in range(1, 70) for b in range(1, 70)]
            self.train, self.valid, self.test = problems[::2], problems[1::8], problems[3::8]
        def verify(self, problem, completion):
            return float(completion == problem.answer)
        def extract(self, completion):
            return completion

A reward of your own in a file, --data problems.jsonl --reward my_reward.py:right, or my_reward.py:short:

    def right(prompt, completion, answer, **row):  # one sample; row: the other columns
        return float(extract(completion) == answer)

    def short(prompts, completions, **columns):  # or a batch of samples, as in TRL
        return [-len(completion) / 100 for completion in completions]
    short.graded = True  # rewards other than 0 and 1
    short.limit = 10  # seconds per call, with --reward-processes N

    def extract(completion):  # the key for votes; without it, the whole text
        return completion.partition("=")[2].strip() or None
"""
import functools
import re

from support.contents import code_file
from support.errors import UserError

from .data import load_codecontests, load_gsm8k, load_humaneval, load_math, load_mbpp, load_own, load_taco
from .embedded import RESIDUES, Countdown, Countdown6, Peptide, Problem, Program, Routes, Task, split_of
from .mathematics import Math, clean
from .own import load_own_task
from .programs import Code, CodeProblem
from .reward import Judge, Judged

EMBEDDED_TASKS = {"countdown": Countdown, "countdown6": Countdown6, "routes": Routes, "program": Program,
                  "peptide": Peptide}
DATA_SETS = {"gsm8k": load_gsm8k, "math": load_math, "humaneval": load_humaneval, "mbpp": load_mbpp,
             "codecontests": load_codecontests, "taco": load_taco}


def keep_levels(task: Task, levels: str):
    """Keep only the problems of some levels. Done after splitting, so that a valid problem under one choice of levels
    is never a train problem under another.  Raises UserError."""
    chosen, known = set(), {p.level for p in task.train + task.valid + task.test if p.level is not None}
    for part in str(levels).split(","):
        span = re.fullmatch(r"\s*([0-9]{1,3})\s*-\s*([0-9]{1,3})\s*", part)
        chosen.update(map(str, range(int(span[1]), int(span[2]) + 1)) if span else [part.strip()])
    if not known:
        raise UserError(f"--levels: the problems of task {task.name} have no levels")
    if not chosen & known:
        raise UserError(f"--levels {levels} selects nothing: task {task.name} has {', '.join(sorted(known)[:20])}")
    for split in ("train", "valid", "test"):
        setattr(task, split, [p for p in getattr(task, split) if p.level in chosen])


def task_of(args) -> Task:
    """The task selected by command-line flags. FILE.py is replaced by FILE.py:NAME in them.  Raises UserError."""
    part = args.train_problems or None, None
    task = load_task(args.task, args.data, args.levels, args.allow_unsandboxed_code, args.columns, args.skip_bad_rows,
                     part, args.reward, args.reward_processes)
    vars(args).update(task.places)
    return task


def load_task(name: str | None = None, data: str | None = None, levels: str | None = None,
              allow_unsandboxed: bool = False, columns: str | None = None, skip_bad_rows: bool = False,
              part: tuple[int | None, str | None] | None = None, reward: str | None = None, reward_processes: int = 0
              ) -> Task:
    """Load a task.

    name: a built-in task or a class FILE.py[:CLASS]; None or 'jsonl' for the problems of `data`.
    data: local copy of a built-in data set; without a name a file, a folder or the id of a data set on the hub.
    levels: keep only some levels, like '1-3' or '1,2,5'.
    allow_unsandboxed: run programs even if there is no sandbox.
    columns: "prompt=...,answer=...", else they are recognised as shapes.py says.
    skip_bad_rows: leave out invalid rows instead of stopping.
    part: (number of train problems, split) needed from a data set on the hub; no more is read (None: all).
    reward, reward_processes: function FILE.py:FUNCTION that judges the samples, and the processes that call it.
    Raises UserError."""
    names = ", ".join([*EMBEDDED_TASKS, *DATA_SETS])
    if (columns or skip_bad_rows or reward) and (data is None or name not in (None, "jsonl")):
        raise UserError("--columns, --skip-bad-rows and --reward are for data of your own: give --data without --task")
    if reward_processes and not reward or reward_processes < 0:
        raise UserError("--reward-processes is the number of processes that call --reward (0 = none)")
    if name in EMBEDDED_TASKS:
        if data is not None:
            raise UserError(f"task {name} generates its problems: leave out --data")
        task = EMBEDDED_TASKS[name]()
    elif name in DATA_SETS:
        task = DATA_SETS[name](data)
    elif name and code_file(name):
        task = load_own_task(name, data)
    elif name not in (None, "jsonl"):
        raise UserError(f"unknown task {name!r}: choose from {names}, or give FILE.py or --data FILE")
    elif data is None:
        raise UserError(f"no task: choose from {names}, or give --data FILE")
    else:
        limit, only = part or (None, None)
        judged = functools.partial(Judged, Judge(reward), reward_processes) if reward else None
        task = load_own(data, columns, skip_bad_rows, None if levels else limit, only, judged)
        task.understood += f"\n{task}" * bool(reward)
    if levels is not None:
        keep_levels(task, levels)
    if isinstance(task, Code):
        task.open(allow_unsandboxed)
    return task
