"""Imports the user's own Python file: a reward (reward.py), or a task, --task FILE.py:CLASS.

An exception in its code or a value of the wrong type stops the run with an error message; it never becomes a reward of
0. The SHA-256 of the file and of the modules it imports from its folder is stored with the run. tasks/__init__.py has
an example of each.
"""
import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import math
import numbers
import os
import re
import sys
import traceback

from support import ROOT
from support.contents import code_file
from support.errors import UserError

from .embedded import Problem, Task
from .programs import squeeze

OURS = ("bench", "common", "evaluate", "fast", "support", "tasks")  # modules of this project that a file may import
SPLITS = ("train", "valid", "test")
LOADED = []  # names of modules that the user's file imported from its folder


# ------------------------------------------------------------------------------------------------------------ the file

class File:
    """The user's imported Python file.  flag: the flag that names it; text: FILE.py or FILE.py:NAME.  Raises
    UserError."""

    def __init__(self, flag, text):
        found = code_file(text)
        if found is None:
            raise UserError(f"{flag} {text}: give FILE.py or FILE.py:NAME")
        self.path, self.name = found
        self.folder, self.base = os.path.split(self.path)
        self.flag = flag
        self.what = f"{flag} {self.base}"
        if not os.path.isfile(self.path):
            raise UserError(f"{flag} {self.path}: there is no such file")
        self.digests = {}  # {file: SHA-256} of the file and its imports from its folder
        self.module = self.load()

    def load(self):
        """Import the file, and the modules it imports from its folder, afresh and under a unique name."""
        for name in LOADED:  # another file may have imported a module of the same name
            sys.modules.pop(name, None)
        LOADED.clear()
        try:
            with open(self.path, "rb") as file:
                source = file.read()
        except OSError as error:
            raise UserError(f"{self.flag} {self.path} cannot be read ({error.strerror})") from error
        mark = hashlib.sha256(self.path.encode()).hexdigest()[:8]
        name = self.module_name = re.sub(r"\W", "_", f"{self.base[:-3]}_{mark}")
        # with a search path for submodules, so that `from .helper import f` works
        spec = importlib.util.spec_from_file_location(name, self.path, submodule_search_locations=[self.folder])
        module = importlib.util.module_from_spec(spec)
        importlib.invalidate_caches()  # the cached directory listing may be stale
        before = {*sys.modules}
        sys.modules[name] = module  # dataclasses and pickle look for it there
        sys.path.insert(0, self.folder)
        try:
            with self.sentence():
                code = compile(source, self.path, "exec", dont_inherit=True)
                exec(code, vars(module))
        finally:
            sys.path.remove(self.folder)
        if self.folder not in sys.path:
            sys.path.append(self.folder)  # for imports inside its functions
        self.refuse_mistaken(source)
        self.digests[self.base] = hashlib.sha256(source).hexdigest()
        for helper in {*sys.modules} - before - {name}:
            self.keep(helper)
        return module

    def keep(self, name):
        """Record the digest of an imported module, if it comes from the file's folder."""
        parts = name.split(".")
        if parts[0] == self.module_name:  # from .helper import f
            del parts[0]
        path = self.beside(parts)
        if path is None or path != source_of(name) or self.folder == ROOT and parts[0] in OURS:
            return
        LOADED.append(name)
        with open(path, "rb") as file:
            self.digests[os.path.relpath(path, self.folder)] = hashlib.sha256(file.read()).hexdigest()

    def beside(self, parts):
        """Path in the folder of a module a.b.c, given as its parts; None if there is no such file."""
        place = os.path.join(self.folder, *parts)
        for path in (os.path.join(place, "__init__.py"), place + ".py"):
            if os.path.isfile(path):
                return path
        return None

    def refuse_mistaken(self, source):
        """Raises UserError if an import got a different module than the one of that name next to the file."""
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                first = name.partition(".")[0]
                beside = self.beside([first])
                taken = beside and source_of(first)
                if taken != beside:
                    raise UserError(f"{self.what} imports {first}, which is {taken} here, not the file next to it: "
                                    "rename that file")

    @contextlib.contextmanager
    def sentence(self, call=""):
        """Turn any exception of its code into a UserError.  call: describes the call."""
        try:
            yield
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{self.what}{call} raised {self.told(error)}") from error

    def told(self, error):
        """An exception in one line, with its last location inside the file's folder."""
        message = str(error)
        frames = traceback.extract_tb(error.__traceback__)
        inside = re.compile(re.escape(self.folder + os.sep) + "(?!.*site-packages)")
        own = [frame for frame in frames if inside.match(frame.filename)]
        last = (own or frames)[-1]
        place = last.filename, last.lineno
        if isinstance(error, SyntaxError) and os.path.isfile(error.filename or ""):
            place = error.filename, error.lineno
            message = error.msg  # without the location, which follows
        message = squeeze(message)[:200]
        words = type(error).__name__ + f": {message}" * bool(message)
        return f"{words} ({os.path.basename(place[0])}, line {place[1]})"

    def defined(self):
        """{name: value} of what the file itself defines, without its imports."""
        own = {}
        for name, value in vars(self.module).items():
            if getattr(value, "__module__", None) == self.module.__name__:
                own[name] = value
        return own

    def pick(self, candidates, kind):
        """The object called NAME; without NAME the only one of the candidates {name: object}.  Raises UserError."""
        names = ", ".join(candidates) or "none"
        if self.name:
            if not hasattr(self.module, self.name):
                raise UserError(f"{self.what} has no {self.name}; the {kind} in it: {names}")
            return getattr(self.module, self.name)
        if len(candidates) != 1:
            raise UserError(f"{self.what}: say which of the {kind} in it is meant, as {self.base}:NAME; it has {names}")
        self.name, = candidates
        return candidates[self.name]

    def mark(self, task, kind):
        """Record the file in a task, for args.json.  kind: "class" or "function"."""
        flag = self.flag.removeprefix("--")
        task.places = {flag: f"{self.path}:{self.name}"}
        task.code = {flag: {**self.digests, kind: self.name}}


def source_of(name):
    """The file of a module, imported or not; None if it has none."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    return importlib.util.find_spec(name).origin


def refuse_other_kinds(function, call):
    """Raises UserError for async functions and generators.  call: the function in words."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise UserError(f"{call} is async: it must be a plain function, which may call asyncio.run")
    if inspect.isgeneratorfunction(function):
        raise UserError(f"{call} is a generator: it must return, not yield")


def takes(function, call, names):
    """Raises UserError unless the value is a plain function that takes these positional arguments.  call: the function
    in words."""
    if not callable(function):
        raise UserError(f"{call} is {named(function)}, but it must be a function")
    refuse_other_kinds(function, call)
    try:
        inspect.signature(function).bind(*names)
    except (TypeError, ValueError) as error:
        raise UserError(f"{call} must take ({', '.join(names)}): {error}") from error


def number(value, call, graded):
    """A reward as a float.  Raises UserError."""
    if not isinstance(value, numbers.Real):
        raise UserError(f"{call} returned {named(value)}, which is not a number: a reward is a float, an int or a bool")
    value = float(value)
    if not math.isfinite(value):
        raise UserError(f"{call} returned {value}: a reward must be finite")
    if value not in (0.0, 1.0) and not graded:
        raise UserError(f"{call} returned {value:g}: rewards other than 0 and 1 need `graded = True`, of the function "
                        "(f.graded = True) or in the class")
    return value


def list_of_numbers(values, count, call, graded):
    """Rewards of `count` samples as a list of floats.  Raises UserError."""
    if not isinstance(values, (list, tuple)):
        raise UserError(f"{call} returned {named(values)}: it must return a list with a number for each completion")
    if len(values) != count:
        raise UserError(f"{call} returned {len(values)} rewards for {count} completions: it must return one for each")
    return [number(value, call, graded) for value in values]


def named(value):
    """A value of the wrong type, in words."""
    if value is None or isinstance(value, (str, bytes)):
        return squeeze(repr(value))[:60]
    kind = type(value)
    article = "an" if kind.__name__[0].lower() in "aeiou" else "a"
    return f"{article} {kind.__name__}"


def vote(value, call):
    """A vote key as text, or None.  Raises UserError."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"{call} returned {named(value)}: it must return text, a number, or None where there is no "
                        "answer")
    return str(value)


# -------------------------------------------------------------------------------------------------------------- a task

def load_own_task(text, data=None):
    """The task defined by a class, FILE.py or FILE.py:CLASS.  data: --data, which must be None.  Raises UserError."""
    if data is not None:
        raise UserError(f"--task {text} brings its problems: leave out --data")
    file = File("--task", text)
    classes = {name: value for name, value in file.defined().items() if is_task(value)}
    chosen = file.pick(classes, "tasks")
    if not is_task(chosen):
        raise UserError(f"{file.what}: {file.name} is no subclass of tasks.Task")
    file.what = f"--task {file.base}:{file.name}"
    with file.sentence():
        task = chosen()
    task.name = task.name or file.name.lower()
    check_task(task, file.what)
    guard(task, file)
    file.mark(task, "class")
    sizes = [f"{len(getattr(task, split)):,} {split}" for split in SPLITS]
    task.understood = f"{file.path}:{file.name}: {', '.join(sizes)}"
    return task


def is_task(value):
    return inspect.isclass(value) and issubclass(value, Task)


def check_task(task, what):
    """Raises UserError if a task violates the contract of tasks/__init__.py."""
    if not isinstance(task.name, str) or not re.fullmatch(r"[\w.-]+", task.name):
        raise UserError(f"{what}: its name is {task.name!r}, but folders are called so: letters, digits, - and _")
    if type(task.max_new_tokens) is not int or task.max_new_tokens < 1:
        raise UserError(f"{what}: max_new_tokens must be a whole number of tokens, not {task.max_new_tokens!r}")
    own = type(task)
    if own.verify is Task.verify and own.rewards is Task.rewards:
        raise UserError(f"{what} has no verify(self, problem, completion), which judges a completion")
    if own.extract is Task.extract:
        raise UserError(f"{what} has no extract(self, completion), which returns what votes are counted by, or None")
    takes(task.verify, f"{what}, verify,", ["problem", "completion"])
    takes(task.rewards, f"{what}, rewards,", ["problems", "completions"])
    takes(task.extract, f"{what}, extract,", ["completion"])
    splits = {name: getattr(task, name, None) for name in SPLITS}
    if not hasattr(task, "counts") or not all(isinstance(problems, list) for problems in splits.values()):
        raise UserError(f"{what}: __init__ must begin with super().__init__() and fill the lists train, valid and test")
    check_problems(splits, what)


def check_problems(splits, what):
    """Raises UserError if the lists {split: problems} contain anything invalid or a duplicate."""
    if not any(splits.values()):
        raise UserError(f"{what} holds no problems: fill train, valid and test in __init__")
    ids = set()
    homes = {}
    for split, problems in splits.items():
        for p in problems:
            if not isinstance(p, Problem):
                raise UserError(f"{what}: {split} holds {named(p)}, but it must hold tasks.Problem")
            if not isinstance(p.prompt, str) or not p.prompt.strip():
                raise UserError(f"{what}: the prompt of problem {p.id!r} must be text, and not empty")
            if not isinstance(p.solution, (str, type(None))):
                raise UserError(f"{what}: the solution of problem {p.id!r} must be text or None")
            if p.id in ids:
                raise UserError(f"{what}: two problems have the id {p.id!r}, but every draw has its seed by the id")
            ids.add(p.id)
            if homes.setdefault(p.prompt, split) != split:
                raise UserError(f"{what}: the prompt of problem {p.id!r} is in {homes[p.prompt]} too: a problem "
                                "belongs to one split")


def guard(task, file):
    """Wrap the methods of a task: check what they return and turn exceptions into error messages."""
    rewards = task.rewards
    extract = task.extract
    target = task.target

    def checked_rewards(problems, completions):
        with file.sentence():
            returned = rewards(problems, completions)
            return list_of_numbers(returned, len(completions), file.what, task.graded)

    def checked_extract(completion):
        with file.sentence(", extract,"):
            return vote(extract(completion), f"{file.what}, extract,")

    def checked_target(problem, kind="solution"):
        with file.sentence(", target,"):
            text = target(problem, kind)
        if not isinstance(text, (str, type(None))):
            raise UserError(f"{file.what}, target, returned {named(text)}: it must return text or None")
        return text
    task.rewards = checked_rewards
    task.extract = checked_extract
    task.target = checked_target
