"""Problems and verifiers. `load_task(name, data)` gives a task with

    .train .valid .test             lists of Problem, disjoint from each other
    .need(split)                    one of these lists, or a UserError if it is empty
    .verify(problem, completion)    0 or 1; any finite float if the task is `graded`
    .extract(completion)            final answer = the key that votes are counted by, or None
    .rewards(problems, completions) verify for many pairs, identical pairs once; `.counts` holds what went wrong

Embedded (no download): `countdown`, `countdown6`, `routes`, `program`, `peptide` (graded). From the hub: `gsm8k`,
`math`, and code: `humaneval`, `mbpp`, `codecontests`, `taco`. Your own problems: `--data FILE`, a folder or an id of
the hub.
Nothing here imports torch: the verifier workers start in a fraction of a second.

A task of your own in a file, --task my_task.py:

    from tasks import Problem, Task

    class Sums(Task):
        name, max_new_tokens = "sums", 8  # graded = True: verify returns any finite number, as a reward model does
        def __init__(self):
            super().__init__()
            problems = [Problem(f"{a}+{b}", f"{a}+{b}:", str(a + b)) for a in range(1, 70) for b in range(1, 70)]
            self.train, self.valid, self.test = problems[::2], problems[1::8], problems[3::8]
        def verify(self, problem, completion):
            return float(completion == problem.answer)
        def extract(self, completion):
            return completion

A reward of your own in a file, --data problems.jsonl --reward my_reward.py:right, or my_reward.py:short:

    def right(prompt, completion, answer, **row):  # one sample; row: the other columns of its row
        return float(extract(completion) == answer)

    def short(prompts, completions, **columns):  # or all samples of a batch, as in TRL
        return [-len(completion) / 100 for completion in completions]
    short.graded = True  # rewards other than 0 and 1
    short.limit = 10  # seconds of a call, with --reward-processes N

    def extract(completion):  # what votes are counted by, without it the whole text
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
    """Keep the problems of some levels. This comes after the split, so that no valid problem of one choice of levels is
    a train problem of another.  Raises UserError."""
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
    """The task that the flags of a command line ask for; FILE.py becomes FILE.py:NAME in them.  Raises UserError."""
    part = args.train_problems or None, None
    task = load_task(args.task, args.data, args.levels, args.allow_unsandboxed_code, args.columns, args.skip_bad_rows,
                     part, args.reward, args.reward_processes)
    vars(args).update(task.places)
    return task


def load_task(name: str | None = None, data: str | None = None, levels: str | None = None,
              allow_unsandboxed: bool = False, columns: str | None = None, skip_bad_rows: bool = False,
              part: tuple[int | None, str | None] | None = None, reward: str | None = None, reward_processes: int = 0
              ) -> Task:
    """The task called `name`, from a local copy of its data set if `data` is given, or of a class FILE.py[:CLASS];
    without a name (or as 'jsonl') the problems of `data`: a file, a folder or an id of the hub, whose `columns` are
    what shapes.py says or "prompt=...,answer=...", without the rows that are no problems if `skip_bad_rows`, judged by
    the function `reward`, FILE.py:FUNCTION, if it is given, in `reward_processes`. `levels`, like '1-3' or '1,2,5',
    keeps some of them. Programs run in a sandbox, or where that is not possible only if `allow_unsandboxed`.  part: how
    many train problems and which split are needed of a data set of the hub, of which no more is read (None: all).
    Raises UserError."""
    names = ", ".join([*EMBEDDED_TASKS, *DATA_SETS])
    if (columns or skip_bad_rows or reward) and (data is None or name not in (None, "jsonl")):
        raise UserError("--columns, --skip-bad-rows and --reward are for data of your own: give --data without --task")
    if reward_processes and not reward or reward_processes < 0:
        raise UserError("--reward-processes is how many processes call --reward, 0 = none")
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
