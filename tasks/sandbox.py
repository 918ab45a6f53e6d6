"""Runs model-written Python under bubblewrap and decides whether it solves a problem. Only the verdict leaves.

There are three kinds of process, all implemented here. They exchange frames of plain data (`encode`, `decode`), never
objects:

    worker     outside the sandbox, trusted: starts sandboxes, monitors time and memory, compares output of programs
    candidate  a fresh sandbox per verdict: the untrusted program and a minimal harness. Whatever the program does to
               this interpreter or writes into its pipe, it can only change the values it returns
    judge      another sandbox, one per worker: the tests, with a proxy for every function and class they call. It
               forks for each verdict and kills leftovers between verdicts. It never sees code of the program, only
               plain values

The judge is kept warm because starting Python is most of the cost of a verdict. It is sandboxed too, although tests
come from the data set: a test may `eval` what it gets, and data sets are other people's code. A program sees the
arguments it is called with, or its standard input, but no expected value. Its own claims decide nothing. A function
that changes its arguments changes those of the test, as in a single process; a test that inspects them afterwards sees
the changes. A program that reads standard input must end by itself with exit code 0, as in a contest.

Requires Linux (x86_64, aarch64, riscv64) with bubblewrap 0.7 or newer and user namespaces. A program has no network, no
files except the standard library and an empty 64 MB /tmp, no environment, its own process namespace, an unprivileged
user, and limits on CPU, wall clock, memory, processes, files and output. If a cgroup can be created (as root, or in a
delegated subtree), it limits memory, processes and CPU too; the first line that a run prints says whether it does. The
interpreter is the one that runs the scripts or, if an unprivileged user cannot read that, /usr/bin/python3. Tests may
import the packages in PACKAGES if they are installed for that version of Python; programs may not.

These values pass between processes: None, booleans, numbers, text, bytes, lists, tuples, dicts and sets; from the
standard library named tuples, deques, counters, ranges, dates and times; and builtin types. For functions, iterators
and other callables or iterables that a program returns, and for its classes that the tests name, the tests get proxies
with attributes, methods, len(), str(), items, iteration and calls. Proxies have no equality, truth value or order,
because the program itself would decide those. Output that a function prints is printed again for tests that inspect
stdout. An exception arrives as the nearest class known to the tests, with arguments, attributes and text. A test that
needs more, lacks a module, name or file, or skips itself is counted as `unsupported`; what cannot be judged at all is
counted as `verifier_errors`. Both score 0. A verdict takes at most 10 times the problem's limit + 30 s.

Not guaranteed: protection against kernel bugs or side channels (timing, load), and that a program which passes its
tests is correct. Standard library only.
"""
import os
import sys
from _collections import OrderedDict, deque

NOBODY = 65534
MEMORY, TOGETHER = 1 << 30, 2 << 30  # bytes of address space of one process; resident bytes of all in a sandbox
PROCESSES, FILE, DISK = 32, 16 << 20, 64 << 20  # processes and threads; bytes of one file; bytes of all files
INODES = 10_000  # files, folders and links, whose kernel memory no byte limit covers
FRAME = 16 << 20  # longest frame in bytes
START_LIMIT = 60  # seconds for a worker or judge to start, even on a busy machine; not charged to the program
PACKAGES = {  # importable by tests -> its names in a site-packages folder
    "numpy": ("numpy", "numpy.libs"),
    "pytest": ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py.py", "exceptiongroup", "tomli",
               "typing_extensions.py"),
    "scipy": ("scipy", "scipy.libs"), "pandas": ("pandas", "pandas.libs", "dateutil", "pytz", "tzdata", "six.py"),
    "sympy": ("sympy", "mpmath"), "networkx": ("networkx",)}


def whole(limit: float) -> float:
    """Maximal total seconds of a verdict, for any number of inputs."""
    return 10 * limit + 30


# ---------------------------------------------------------------------------------------------------------- plain data

class Unsupported(BaseException):
    """A value that is not plain data. Not an Exception, so that tests cannot catch it."""


class Gone(BaseException):
    """The other side has ended or sent an invalid frame."""


MUTABLE = (list, dict, set, bytearray, deque)
PLAIN = {type(None), bool, int, float, complex, str, bytes, list, tuple, *MUTABLE, frozenset}
SINGLE = {None: b"N0:", True: b"T0:", False: b"F0:"}
CONTAINERS = {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset, b"Q": deque, b"O": OrderedDict, b"d": dict,
              b"C": dict}  # a Counter, whose module is not imported before it is needed
TUPLES = {}  # (name, fields) -> class of named tuples
LIBRARY = {"builtins": ("range",), "fractions": ("Fraction",), "decimal": ("Decimal",),
           "datetime": ("datetime", "date", "time", "timedelta", "timezone")}


def framed(body):
    """A tag, the length of the content, and the content."""
    return b"%s%x:%s" % (body[:1], len(body) - 1, body[1:])


def encode(value, objects=None, number=None):
    """Plain data -> bytes. Subclasses travel as the plain type they extend. `objects` are the mutable containers that
    both sides know: one of them, or one that comes a second time, travels as its number, and new ones are appended.
    number(value, last) is the number of an object of the program, None for anything else; last: the value is not plain
    data.  Raises Unsupported for a value that is neither."""
    objects = [] if objects is None else objects
    numbers = {id(known): number for number, known in enumerate(objects)}

    def write(value, depth):
        if depth > 100:
            raise Unsupported
        if value is None or value is True or value is False:
            return SINGLE[value]
        if number and type(value) not in PLAIN and number(value, False) is not None:
            return framed(b"o%x" % number(value, False))
        if isinstance(value, MUTABLE):
            if id(value) in numbers:
                return framed(b"r%x" % numbers[id(value)])
            numbers[id(value)] = len(objects)
            objects.append(value)
        body = scalar(value)
        if body is not None:
            return framed(body)
        maker = maker_of(value)
        if maker:
            return framed(b"x" + write(maker, depth + 1))
        tag, inside = container(value)
        if tag:
            return framed(tag + b"".join([write(part, depth + 1) for part in inside]))
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():  # a scalar from a test
            return write(value.item(), depth + 1)
        if not number or number(value, True) is None:
            raise Unsupported
        return framed(b"o%x" % number(value, True))
    return write(value, 0)


def scalar(value):
    """A number, text or bytes with its tag; None for anything else."""
    if isinstance(value, int):
        return b"i" + format(int.__index__(value), "x").encode()  # hexadecimal conversion is linear
    if isinstance(value, float):
        return b"f" + float.hex(value).encode()
    if isinstance(value, complex):
        return b"c" + f"{float.hex(value.real)} {float.hex(value.imag)}".encode()
    if isinstance(value, str):
        return b"s" + str.encode(value, "utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return b"b" + bytes(value)
    return b"a" + bytes(value) if isinstance(value, bytearray) else None


def container(value):
    """(tag, content) of a container, (b"", []) for anything else."""
    for tag, kind in CONTAINERS.items():
        if isinstance(value, kind):
            return b"C" if tag == b"d" and is_counter(value) else tag, parts(value, kind)
    return b"", []


def parts(value, kind):
    """The items of a container; keys and values of a dict alternate."""
    if not issubclass(kind, dict):
        return list(kind.__iter__(value))
    return [part for pair in kind.items(value) for part in pair]


def is_counter(value):
    return isinstance(value, getattr(sys.modules.get("collections"), "Counter", ()))


def maker_of(value):
    """(module, name, arguments): what makes a value of the library anew; None of any other value."""
    if type(value) in PLAIN:
        return None
    if isinstance(value, tuple) and hasattr(type(value), "_fields"):
        return "collections", "namedtuple", (type(value).__name__, tuple(value._fields), tuple(parts(value, tuple)))
    if isinstance(value, type) and vars(sys.modules["builtins"]).get(value.__name__) is value:
        return "builtins", "type", value.__name__
    for module, names in LIBRARY.items():
        for name in names:
            kind = getattr(sys.modules.get(module), name, ())  # no value has a type from a module that is not imported
            if isinstance(value, kind):
                return module, name, kind.__reduce__(value)[1]
    return None


def made(module, name, arguments):
    """The value that `maker_of` tells of.  Raises whatever is raised for what it cannot have told."""
    if name == "namedtuple":
        kind, fields, values = arguments
        if (kind, fields) not in TUPLES:
            from collections import namedtuple
            TUPLES[kind, fields] = namedtuple(kind, fields)
        return TUPLES[kind, fields](*values)
    if name == "type":
        found = getattr(sys.modules["builtins"], arguments)
        if isinstance(found, type):
            return found
    if name not in LIBRARY[module]:
        raise ValueError
    return getattr(__import__(module), name)(*arguments)


def integer(body):
    return int(body, 16)


def real(body):
    return float.fromhex(body.decode())


def imaginary(body):
    return complex(*map(float.fromhex, body.decode().split()))


def text(body):
    return body.decode("utf-8", "surrogatepass")


def nothing(body):
    return None


def true(body):
    return True


def false(body):
    return False


SCALARS = {b"i": integer, b"f": real, b"c": imaginary, b"s": text, b"b": bytes, b"a": bytearray}
SCALARS |= {b"N": nothing, b"T": true, b"F": false}


def decode(data, objects=None, known=None):
    """The value of bytes from anybody; `objects` as in `encode`, known(number) an object of the program.  Raises Gone
    if they are not what that makes."""
    objects = [] if objects is None else objects

    def read(at, end, depth):  # -> value, where it ends
        tag = data[at:at + 1]
        colon = data.index(b":", at + 1, at + 10)
        first = colon + 1
        stop = first + int(data[at + 1:colon], 16)
        if stop > end or stop < first or depth > 101:
            raise ValueError
        if tag in CONTAINERS:
            items = []
            value = items if tag == b"l" else empty(tag)
            if isinstance(value, MUTABLE):
                objects.append(value)  # before its content, which may refer to it
            while first < stop:
                item, first = read(first, stop, depth + 1)
                items.append(item)
            return filled(value, items), stop
        body = data[first:stop]
        if tag == b"r":
            return objects[int(body, 16)], stop
        if tag == b"o":
            return known(int(body, 16)), stop
        if tag == b"x":
            return made(*read(first, stop, depth + 1)[0]), stop
        value = SCALARS[tag](body)
        if tag == b"a":
            objects.append(value)
        return value, stop

    try:
        value, end = read(0, len(data), 0)
        if end == len(data):
            return value
    except Exception:
        pass
    raise Gone


def empty(tag):
    if tag == b"C":
        from collections import Counter
        return Counter()
    return CONTAINERS[tag]()


def filled(value, items):
    """An empty container filled with its items; a new one if it is immutable."""
    if isinstance(value, dict):
        for key, item in zip(items[::2], items[1::2], strict=True):
            value[key] = item
    elif isinstance(value, deque):
        value.extend(items)
    elif isinstance(value, set):
        value.update(items)
    elif value is not items:
        value = type(value)(items)
    return value


def send(fd, data):
    """Write a frame: its length in eight hexadecimal digits, then the bytes.  Raises Gone, Unsupported if too long."""
    if len(data) > FRAME:
        raise Unsupported
    data = memoryview(b"%08x%s" % (len(data), data))
    try:
        while data:
            data = data[os.write(fd, data):]
    except OSError:
        raise Gone from None


def receive(fd, wait=lambda: None):
    """Read one frame; `wait` is called before every read.  Raises Gone."""
    head = read_bytes(fd, 8, wait)
    if not all(c in b"0123456789abcdef" for c in head) or int(head, 16) > FRAME:
        raise Gone
    return read_bytes(fd, int(head, 16), wait)


def read_bytes(fd, missing, wait):
    """Read `missing` bytes.  Raises Gone if the other side ends first."""
    found = []
    while missing > 0:
        wait()
        part = os.read(fd, min(missing, 1 << 20))
        if not part:
            raise Gone
        found.append(part)
        missing -= len(part)
    return b"".join(found)


# ---------------------------------------------------------------------------------------------------- inside a sandbox

def limit(cpu=None):
    """Limits of this process and its children, which cannot be raised again. A core limit of 1, unlike 0, also keeps
    the kernel from piping a core to a crash reporter outside. Recursion may take all the memory there is, and numbers
    have many digits, as in contests."""
    import resource
    if cpu is not None:
        return resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    for name, value in (("CORE", 1), ("AS", MEMORY), ("FSIZE", FILE), ("NOFILE", 64), ("NPROC", PROCESSES)):
        if name != "NPROC" or os.getpid() == 1:  # outside a namespace it counts all processes of the user
            try:
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
            except (ValueError, OSError):
                if os.getpid() == 1:
                    raise  # no sandbox without its limits
    stack = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(100_000)


def sweep():
    """Kill and reap everything else in this process namespace. Only for its process 1: elsewhere it would kill every
    process of the user."""
    if os.getpid() == 1:
        try:
            os.kill(-1, 9)
        except OSError:
            pass
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass


def private():
    """Move the pipes away from 0 and 1, which become /dev/null like 2, and import nothing from the working directory
    -> (input, output)."""
    sys.path[:] = [p for p in sys.path if p]
    fds = os.dup(0), os.dup(1)
    os.dup2(2, 0)
    os.dup2(2, 1)
    return fds


def run_program(program, name, typing):
    """The globals of the program after running as module `name`, with these names of the module `typing` predefined."""
    import builtins
    builtins.exit = builtins.quit = sys.exit  # normally defined by the module `site`, which is not loaded
    module = sys.modules[name] = type(sys)(name)
    module.__file__ = os.path.abspath("program.py")
    if typing:
        known = vars(__import__("typing"))
        vars(module).update((kind, known[kind]) for kind in typing if kind in known)
    exec(compile(program, "program.py", "exec"), vars(module))
    return vars(module)


def candidate():
    """Process 1 of a program's sandbox. No code of the program runs before `run_program`."""
    source, sink = private()
    os.write(sink, b"+")
    kind, program, entries, cpu, typing, heard = decode(receive(source))
    limit()
    if kind == "stdio":
        return serve_stdio(source, sink, program, cpu, typing)
    limit(cpu)
    try:
        names = run_program(program, "program", typing)
        answer = Answers([eval(entry, names) for entry in entries], heard)
        loaded = encode(["loaded", answer.entries()], None, answer.number)
    except BaseException:
        return send(sink, encode("failed"))
    send(sink, loaded)
    while True:
        asked = receive(source)
        try:
            send(sink, answer(asked))
        except Unsupported:
            send(sink, encode(["unsupported"]))


def signature(function):
    """[name, kind, whether there is a default, default] of each parameter."""
    import inspect
    found = []
    for p in inspect.signature(function).parameters.values():
        given = p.default is not p.empty
        found.append([p.name, int(p.kind), given, p.default if given else None])
    return found


def call(function, *args, **kwargs):
    return function(*args, **kwargs)


def item(thing, key):
    return thing[key]


def put(thing, key, value):
    thing[key] = value


def following(iterator):
    """[the next value], or [] at the end."""
    try:
        return [next(iterator)]
    except StopIteration:
        return []


def is_coroutine(value):
    return type(value).__name__ == "coroutine"


def awaited(coroutine):
    import asyncio
    return asyncio.run(coroutine)


OPERATIONS = {"call": call, "get": getattr, "set": setattr, "len": len, "str": str, "repr": repr}
OPERATIONS |= {"item": item, "put": put, "signature": signature, "iter": iter, "next": following, "await": awaited}


class Answers:
    """The program's side: answers requests of the tests about its objects, which have numbers: first the things that
    the tests name, then instances of these classes, and what can be called or iterated.  heard: whether what the
    program prints from here on is for the tests."""

    def __init__(self, objects, heard=False):
        self.objects = objects
        self.stdout = None
        if heard:
            import io
            self.stdout = sys.stdout = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        self.classes = tuple(thing for thing in objects if isinstance(thing, type))
        self.numbers = {id(thing): number for number, thing in enumerate(objects) if callable(thing)}

    def number(self, value, last):
        """The number of an object, or None of what can only cross as plain data.  last: it cannot."""
        of_use = last and (callable(value) or hasattr(type(value), "__iter__") or is_coroutine(value))
        if id(value) not in self.numbers and (of_use or isinstance(value, self.classes)):
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)  # kept alive, so that no other object gets its id
        return self.numbers.get(id(value))

    def entries(self):
        """[value, names of the class and its ancestors if it is an exception class] of each name."""
        found = []
        for thing in list(self.objects):
            raised = isinstance(thing, type) and issubclass(thing, BaseException)
            found.append([thing, ancestors(thing) if raised else []])
        return found

    def said(self):
        """What the program has printed since the last request."""
        if self.stdout is None:
            return ""
        data = self.stdout.buffer.getvalue()
        self.stdout.seek(0)
        self.stdout.truncate()
        return data[:FRAME // 16].decode("utf-8", "replace")

    def __call__(self, asked):
        """The reply to a request.  Raises Unsupported."""
        containers = []  # containers in the request
        number, operation, args, kwargs = request = decode(asked, containers, self.objects.__getitem__)
        try:
            value = OPERATIONS[operation](self.objects[number], *args, **kwargs)
            answer = ["value", value]
            if is_coroutine(value):
                answer = ["coroutine", self.number(value, True)]
        except Unsupported:
            raise
        except BaseException as error:
            answer = ["error", describe(error)]
        changed = encode(request, None, self.number) != asked
        changes = [x.copy() for x in containers[1:]] if changed else None
        return encode([*answer, self.said(), changes], containers, self.number)


def ancestors(kind):
    """Names of a class and its ancestors, nearest first."""
    return [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]


def describe(error):
    """[names of its classes, arguments, attributes, text] of an exception, as plain data."""
    text = str(error)[:1000]
    parts = []
    for value, otherwise in ((list(error.args), [text]), (dict(vars(error)), {})):
        try:
            encode(value)
            parts.append(value)
        except Unsupported:
            parts.append(otherwise)
    return [ancestors(type(error)), *parts, text]


def serve_stdio(source, sink, program, cpu, typing):
    """Run the program on one input after the other, each in a separate process without the pipes. This
    process is process 1, which nobody inside can signal. Input and output are files, bounded by the file limit."""
    while True:
        data = receive(source)
        with open("stdin", "wb") as file:
            file.write(data)
        pid = os.fork()
        if pid == 0:
            os.closerange(3, 64)
            os.dup2(os.open("stdin", os.O_RDONLY), 0)
            os.dup2(os.open("stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            limit(cpu)
            sys.argv = ["program.py"]
            run_program(program, "__main__", typing)
            return  # as in any program, non-daemon threads are joined and buffers flushed
        status = os.waitpid(pid, 0)[1]
        sweep()
        with open("stdout", "rb") as file:
            data = file.read(FRAME - 100)
        os.remove("stdout")
        fate = "failed" if status else "done"  # not a process of the program, so its word can be trusted
        if os.WIFSIGNALED(status):
            fate = "killed"
        send(sink, encode([fate, data]))


# -------- the judge ---------------------------------------------------------------------------------------------------

def judge(packages):
    """Process 1 of the tests' sandbox: forks a child for every job that arrives with its pipes."""
    import socket
    for name in ("typing", "math", "re", "collections", "itertools", "functools", "random", "decimal", "fractions"):
        __import__(name)  # once, instead of in every child
    connection = socket.socket(fileno=private()[0])
    sys.path.append(packages)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    limit()
    connection.sendall(b"+")
    while True:
        _, fds, _, _ = socket.recv_fds(connection, 1, 3)
        if len(fds) not in (1, 3):
            return
        *job, modules = decode(receive(connection.fileno()))
        for name in modules:
            warm(name)
        pid = os.fork()
        if pid == 0:
            try:
                connection.close()
                os.write(fds[-1], (run_tests if len(fds) == 3 else try_tests)(*job, *fds[:-1]))
            finally:
                os._exit(0)
        for fd in fds:
            os.close(fd)
        os.waitpid(pid, 0)
        sweep()


def warm(name):
    """Import a module of the standard library or of PACKAGES once, instead of in every child. If this fails, the tests
    will report it."""
    if name not in sys.modules:
        try:
            __import__(name)
            if name == "numpy":  # seeded like `random`, else all children would draw the same numbers
                os.register_at_fork(after_in_child=sys.modules[name].random.seed)
        except Exception:
            pass


def replace(mine, new):
    """Give a container of the test the contents that the program left in it.  Raises ValueError for another kind."""
    if not any(isinstance(mine, kind) and isinstance(new, kind) for kind in MUTABLE):
        raise ValueError
    if isinstance(mine, (list, bytearray)):
        mine[:] = new
    else:
        mine.clear()
        fill = mine.extend if isinstance(mine, deque) else mine.update
        fill(new)


WITHHELD = ("eq ne lt le gt ge hash bool contains reversed instancecheck subclasscheck enter exit await "
            "aiter add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul and "
            "rand or ror xor rxor neg pos abs invert int float complex index round delitem")


class Object:
    """Proxy in the tests for a function, class or object of the program, identified by its number. It supports all
    operations except those with which the program could decide a comparison of the tests."""
    __slots__ = ("__program", "__number")

    def __init__(self, program, number):
        object.__setattr__(self, "_Object__program", program)
        object.__setattr__(self, "_Object__number", number)

    def __ask(self, operation, *args, **kwargs):
        return self.__program.ask(self.__number, operation, args, kwargs)

    def __call__(self, *args, **kwargs):
        return self.__ask("call", *args, **kwargs)

    def __getattr__(self, name):
        if name.startswith("__") and name != "__name__":  # libraries probe capabilities by such names
            raise AttributeError(name)
        return self.__ask("get", name)

    def __setattr__(self, name, value):
        self.__ask("set", name, value)

    def __len__(self):
        return self.__ask("len")

    def __getitem__(self, key):
        return self.__ask("item", key)

    def __setitem__(self, key, value):
        self.__ask("put", key, value)

    def __iter__(self):
        return self.__ask("iter")

    def __next__(self):
        for value in self.__ask("next"):
            return value
        raise StopIteration

    def __str__(self):
        return self.__ask("str")

    def __repr__(self):
        return self.__ask("repr")

    @property
    def __signature__(self):
        import inspect
        found = []
        for name, kind, given, default in self.__ask("signature"):
            parameter = inspect.Parameter(name, kind)
            found.append(parameter.replace(default=default) if given else parameter)
        return inspect.Signature(found)

    def __unsupported(self, *args):
        self.__program.unsupported = True
        raise Unsupported

    for word in WITHHELD.split():
        locals()[f"__{word}__"] = __unsupported
    del word


class Coroutine:
    """Proxy in the tests for a coroutine of the program: it can only be awaited, also by asyncio.run."""

    def __init__(self, program, number):
        self.program = program
        self.number = number

    def __await__(self):
        return self.program.ask(self.number, "await", (), {})
        yield

    def send(self, value):
        raise StopIteration(self.program.ask(self.number, "await", (), {}))

    def throw(self, error, *more):
        raise error

    def close(self):
        pass

    def __bool__(self):
        self.program.unsupported = True
        raise Unsupported


def say(text):
    """Print the program's output again."""
    if text:
        sys.stdout.write(text)


def number_of(value, last):
    return value._Object__number if type(value) is Object else None


class Ended(BaseException):
    """StopIteration or StopAsyncIteration raised by the program. In a loop of the test, as in all(map(f, cases)), they
    would end the cases without a failure, so only tests that catch them by name receive them."""


class Raised(Exception):
    """Raised by the stand-in program that only raises."""


class Program:
    """A program as its tests see it, through two pipes; without pipes, one that only raises. Its flags keep what
    happened even if the tests catch the exception."""

    def __init__(self, sink=None, source=None):
        import _thread
        self.sink, self.source = sink, source
        self.lock = _thread.allocate_lock()
        self.objects = {}  # number -> Object
        self.classes = {}  # full name -> stand-in for an exception class of the program
        self.error = None  # last exception of the program
        self.asked = False  # whether the tests have used the program
        self.gone = False  # whether it has ended or sent an invalid reply
        self.unsupported = False  # whether the tests need more than plain data

    def object(self, number):
        if number not in self.objects:  # one proxy per number, to preserve identity
            self.objects[number] = Object(self, number)
        return self.objects[number]

    def entries(self, count):
        """The objects that the tests name, in order; None if the program lacks them.  Raises Gone."""
        if self.sink is None:
            return list(map(self.object, range(count)))
        reply = decode(receive(self.source), None, self.object)
        if reply == "failed":
            return None
        entries = []
        for value, names in reply[1]:
            if names:
                value = self.classes[names[0]] = class_of(names, self.classes)
            entries.append(value)
        return entries

    def ask(self, number, operation, args, kwargs):
        """The result of an operation on an object of the program, or its exception."""
        self.asked = True
        containers, error = [], None
        try:
            with self.lock:  # tests may use threads
                asked = encode([number, operation, list(args), kwargs], containers, number_of)
                if self.sink is None:
                    raise Raised
                send(self.sink, asked)
                known = containers[1:]  # containers of the arguments; the first is the message
                reply = decode(receive(self.source), containers, self.object)
            if reply[0] == "unsupported":
                raise Unsupported
            if reply[-1] is not None:
                for mine, new in zip(known, reply[-1], strict=True):
                    replace(mine, new)
            say(reply[-2])
            if reply[0] == "value":
                return reply[1]
            if reply[0] == "coroutine":
                return Coroutine(self, reply[1])
            error = error_of(*reply[1], self.classes)
        except Raised:
            raise
        except Unsupported:
            self.unsupported = True
            raise
        except Exception:  # plain data, but not a valid reply
            pass
        except Gone:
            pass
        if error is None:
            self.gone = True
            raise Gone
        self.error = error
        raise error


def class_of(names, own):
    """The exception class for these names of a class of the program and its ancestors: one of `own` or of the standard
    library, or one derived from the nearest of those.  Raises Gone if there is none, as for SystemExit."""
    kinds = []
    for name in names:
        module, _, last = name.rpartition(".")
        kind = own.get(name)
        if kind is None and module.partition(".")[0] in sys.stdlib_module_names and not module.startswith("unittest"):
            kind = getattr(sys.modules.get(module), last, None)  # tests cannot catch a class that is not imported
        if (isinstance(kind, type) and issubclass(kind, (Exception, Ended)) and last != "ExceptionGroup"  # of no data
                and not any(issubclass(nearer, kind) for nearer in kinds)):
            if issubclass(kind, (StopIteration, StopAsyncIteration)):
                kinds.append(Ended)
                break
            kinds.append(kind)
            if name == names[0]:
                return kind
    if not kinds:
        raise Gone
    last = names[0].rpartition(".")[2]
    try:
        return type(last, tuple(kinds), {})
    except TypeError:  # incompatible instance layouts
        return type(last, kinds[:1], {})


def error_of(names, args, attributes, text, own):
    """The exception that the tests may catch, from the result of `describe`.  Raises Gone if they may not."""
    kind = class_of(names, own)

    def make(kind):
        try:
            error = kind(*args)
        except Exception:  # its constructor takes other arguments than it stores
            error = kind.__new__(kind)
        error.args = tuple(args)
        vars(error).update(attributes)
        return error
    error = make(kind)
    if str(error)[:1000] != text:
        error = make(type(kind.__name__, (kind,), {"__str__": lambda self: str(text)}))
    return error


def widened(tests):
    """Compiled tests in which handlers that name an end of iteration also catch that of the program."""
    if "StopIteration" not in tests and "StopAsyncIteration" not in tests:
        return compile(tests, "tests.py", "exec")
    import ast

    def wide(node):
        kinds = node.elts if isinstance(node, ast.Tuple) else [node]
        if not any(isinstance(kind, ast.Name) and kind.id in ("StopIteration", "StopAsyncIteration") for kind in kinds):
            return node
        return ast.Tuple([*kinds, ast.Name("EndOfProgram", ast.Load())], ast.Load())
    tree = ast.parse(tests)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            node.type = wide(node.type)
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func).endswith(("raises", "assertRaises")):
            node.args[0] = wide(node.args[0])
    return compile(ast.fix_missing_locations(tree), "tests.py", "exec")


def execute(setup, tests, names, program):
    """Run tests on a program -> the exception that ends them, or None; Gone if the program lacks what they name."""
    module = sys.modules["__main__"] = type(sys)("__main__")
    try:
        entries = program.entries(len(names))
        if entries is None:
            program.gone = True
            raise Gone
        exec(compile(setup, "setup.py", "exec"), vars(module))
        vars(module).update(zip(names, entries, strict=True), EndOfProgram=Ended)
        exec(widened(tests), vars(module))
    except BaseException as error:
        return error
    return None


def run_tests(setup, tests, names, cpu, sink, source):
    """Verdict of the tests on the program behind the pipes: b"1", b"0" or b"u" (unsupported)."""
    limit(cpu + 5)
    program = Program(sink, source)
    error = execute(setup, tests, names, program)
    if program.unsupported:
        return b"u"
    if error is None or program.gone:
        return b"0" if program.gone else b"1"
    if error is program.error:
        return b"0"
    # A name may also be missing because the program raised an exception instead of returning a value.
    missing = isinstance(error, NameError) and program.error is None
    missing = missing or isinstance(error, (ImportError, OSError, EOFError))
    return b"u" if missing or type(error).__name__ in ("Skipped", "SkipTest") else b"0"


def try_tests(setup, tests, names, cpu):
    """b"t" and the reason why the tests cannot judge any program (or empty), from running them on one that only
    raises."""
    limit(cpu + 5)
    program = Program()
    error = execute(setup, tests, names, program)
    if program.unsupported:
        reason = "its tests use the program in a way that no plain data can say"
    elif error is None:
        reason = "its tests pass on a program that only raises"
    elif not program.asked:
        reason = f"its tests end before they use the program ({type(error).__name__}: {error})"
    else:
        reason = ""
    return b"t" + reason[:300].encode("utf-8", "replace")


# -------- the worker --------------------------------------------------------------------------------------------------

DENIED = {  # system calls -> numbers on x86_64, and on aarch64 and riscv64 (which share a table)
    "socket": (41, 198), "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432),
    "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "personality": (135, 92), "syslog": (103, 116), "setpriority": (141, 140),
    "sched_setaffinity": (203, 122), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kexec_load": (246, 104), "init_module": (175, 105),
    "finit_module": (313, 273),
    # kernel memory that no limit covers: file attributes, locks, rules, requests, pages held only by pipes
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463), "flock": (73, 32),
    "io_setup": (206, 0), "inotify_init1": (294, 26), "inotify_init": (253, 26), "fanotify_init": (300, 262),
    "modify_ldt": (154, 26), "vmsplice": (278, 75), "landlock_create_ruleset": (444, 444), "mbind": (237, 235),
    "set_mempolicy": (238, 237), "set_mempolicy_home_node": (450, 450)}
MACHINES = {"x86_64": (0xC000003E, 0, 56, 302, 72, 13),  # arch, table, clone, prlimit64, fcntl, rt_sigaction
            "aarch64": (0xC00000B7, 1, 220, 261, 25, 134), "riscv64": (0xC00000F3, 1, 220, 261, 25, 134)}


def seccomp():
    """A filter (BPF program) that denies system calls no solution needs: sockets, memory outside both the address space
    and files, memory, limits and priorities of other processes, new namespaces, rarely used parts of the kernel."""
    from struct import pack
    arch, table, clone, prlimit, fcntl, sigaction = MACHINES[os.uname().machine]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000  # 1 is EPERM, 0x26 ENOSYS
    number, first, second = 0, 16, 24  # offsets to load: number of the call, low halves of its arguments
    steps = []

    def step(code, value, yes=0, no=0):  # an instruction, and how many to skip after it
        steps.append(pack("HBBI", code, yes, no, value))

    def reply_where(code, value, reply):
        step(code, value, no=1)
        step(answer, reply)
    step(load, 4)
    step(equal, arch, yes=1)
    step(answer, kill)
    step(load, number)
    reply_where(at_least, 0x40000000, refuse)  # the x32 calls of x86_64
    reply_where(equal, 435, absent)  # clone3 hides its flags; the C library then takes clone
    for numbers in DENIED.values():
        reply_where(equal, numbers[table], refuse)
    # clone with any CLONE_NEW* flag, prlimit64 of another process: both are in the first argument
    for call, code, value in ((clone, any_bit, 0x7E020080), (prlimit, at_least, 1)):
        step(equal, call, no=3)
        step(load, first)
        reply_where(code, value, refuse)
        step(load, number)
    # fcntl with a lock, lease or notification: the number of range locks on a file is unlimited
    commands = (6, 7, 37, 38, 1024, 1026)
    step(equal, fcntl, no=2 + 2 * len(commands))
    step(load, second)
    for command in commands:
        reply_where(equal, command, refuse)
    step(load, number)
    # rt_sigaction that sets (not only queries) the action for SIGCHLD: the CPU time of a child whose parent ignores
    # SIGCHLD is not accounted
    step(equal, sigaction, no=7)
    step(load, first)
    step(equal, 17, no=5)
    step(load, second)
    step(equal, 0, no=2)
    step(load, second + 4)
    step(equal, 0, yes=1)
    step(answer, refuse)
    step(answer, allow)
    return b"".join(steps)


def visible(python, folders):
    """Arguments of bubblewrap for the files in a sandbox: the standard library and the folders of its linked libraries,
    without installed packages; no /proc (so it also runs in containers that hide theirs), /dev or /etc."""
    arguments, bound = [], []
    for path in (os.path.dirname(os.__file__), *folders, "/lib64", python):
        path = os.path.realpath(path)
        if os.path.exists(path) and not any(path.startswith(b + "/") or path == b for b in bound):
            bound.append(path)
            arguments += ["--ro-bind", path, path]
    for path in ("/lib", "/lib64"):
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path) and path not in bound:
            arguments += ["--ro-bind", path, path]
    for path in filter(os.path.isdir, bound):
        for inner in ["", *(name for name in os.listdir(path) if name.startswith("python"))]:
            for name in ("site-packages", "dist-packages"):
                packages = os.path.join(path, inner, name)
                if os.path.isdir(packages):
                    arguments += ["--tmpfs", packages, "--remount-ro", packages]
    cache = "/etc/ld.so.cache"
    devices = ["--dev-bind", "/dev/null", "/dev/null", "--symlink", "/dev/null", "/dev/stderr"]
    for name in ("stdin", "stdout"):
        devices += ["--symlink", f"/tmp/{name}", f"/dev/{name}"]
    return arguments + ["--ro-bind-try", cache, cache, *devices]


def bubblewrap(bwrap, seen, filter_fd, info_fd, disk):
    """The command that starts a sandbox with the files of `visible` and a /tmp of `disk` bytes (0: nothing is
    writable)."""
    apart = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    apart += ["--unshare-cgroup-try", "--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    process = ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    process += ["--setenv", "PYTHONHASHSEED", "0"]  # same order of sets in every run
    process += ["--seccomp", str(filter_fd), "--info-fd", str(info_fd)]
    place = ["--size", str(disk), "--tmpfs", "/tmp"] if disk else ["--dir", "/tmp"]
    place += ["--chdir", "/tmp", "--remount-ro", "/"]
    return [bwrap, *apart, *process, *seen, *place]


def usage(pid):
    """(resident bytes, seconds of CPU) of a process and its descendants; 0 if /proc does not show them."""
    memory, ticks, pids = 0, 0, [pid]
    while pids:
        pid = pids.pop()
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # of the process and of children it has waited for
            pages = int(fields[21])
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    pids += map(int, file.read().split())
                if not pages:  # if the main thread has ended, it reports no memory
                    with open(f"/proc/{pid}/task/{thread}/statm") as file:
                        pages = int(file.read().split()[1])
            memory += pages * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            pass
    return memory, ticks / os.sysconf("SC_CLK_TCK")


class Late(Exception):
    """Out of time or memory."""


def seconds_of(job):
    """The CPU limit for the kernel, in whole seconds."""
    import math
    return math.ceil(job["limit"])


def clock_of(job):
    """Wall-clock seconds for all tests, or for one input: more than the CPU limit, since the CPU is shared."""
    return 3 * job["limit"] + 2


class Worker:
    """Judges jobs one after the other. It is a separate process because only the parent of a sandbox sees its end, and
    because it must be small: starting a sandbox forks it."""

    def __init__(self, source, bwrap, folders, packages, cpu_file, oom_file):
        import ctypes
        import marshal
        import signal
        import tempfile
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored SIGCHLD would be inherited from the caller
        self.code = {}  # the part of this file that each sandbox sees
        for role, end in (("candidate", "\n# -------- the judge"), ("judge", "\n# -------- the worker")):
            inside = compile(source[:source.index(end)], "sandbox.py", "exec", optimize=2)
            self.code[role] = marshal.dumps(inside)
        self.bwrap, self.python, self.judge = bwrap, os.path.realpath(sys.executable), None
        self.seen, self.cpu_file, self.oom_file = visible(self.python, folders), cpu_file, oom_file
        self.packages = {name: path for name, path in packages.items() if os.access(path, os.R_OK)}
        self.disk = self.others = None  # candidate's /tmp, and the cgroup's CPU time before it
        self.null = os.open("/dev/null", os.O_RDWR)
        if bwrap:
            self.filter = os.memfd_create("filter", 0)
            os.write(self.filter, seccomp())
            # PR_SET_CHILD_SUBREAPER: orphaned sandboxes become ours
            if ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0):
                raise OSError("prctl")
        else:
            folder = tempfile.TemporaryDirectory()
            self.folder = folder  # removed when the worker ends
            os.chdir(folder.name)
            os.mkdir("packages")
            for name, path in self.packages.items():
                os.symlink(path, f"packages/{name}")

    def start(self, role, stdin, stdout):
        """Start a sandbox with two descriptors, which are then closed -> (pid, pid of its process 1 or None)."""
        size = len(self.code[role])
        boot = ("import marshal, posix\ncode = b''\n"
                f"while len(code) < {size}: code += posix.read(0, {size} - len(code))\n"
                f"space = {{'__name__': 'sandbox'}}\nexec(marshal.loads(code), space)\n")
        folder = "/packages" if self.bwrap else os.path.abspath("packages")
        boot += f"space['judge']({folder!r})" if role == "judge" else "space['candidate']()"
        command, info, environment = [self.python, "-s", "-S", "-B", "-c", boot], None, {"PYTHONHASHSEED": "0"}
        if self.bwrap:
            info, info_end = os.pipe()
            os.set_inheritable(info_end, True)
            os.lseek(self.filter, 0, 0)
            disk, seen = DISK, self.seen
            if role == "judge":
                disk = 0  # a judge must not carry files from one verdict to the next
                seen = seen + [word for name, path in self.packages.items()
                               for word in ("--ro-bind", path, f"/packages/{name}")]
            command, environment = bubblewrap(self.bwrap, seen, self.filter, info_end, disk) + ["--"] + command, {}
        actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate((stdin, stdout, self.null))]
        pid = os.posix_spawn(command[0], command, environment, file_actions=actions,
                             **({} if info else {"setsid": True}))
        for fd in {stdin, stdout} - {self.null}:
            os.close(fd)
        if info is None:
            return pid, None
        os.close(info_end)
        text = b""
        while b"}" not in text:
            part = os.read(info, 4096)
            if not part:
                break
            text += part
        os.close(info)
        inner = text.partition(b'"child-pid":')[2].split(b",")[0].strip(b" \n}")
        for number in (pid, int(inner or pid)):
            try:  # if the cgroup runs out of memory, they are killed before the worker
                with open(f"/proc/{number}/oom_score_adj", "w") as file:
                    file.write("1000")
            except OSError:
                pass
        return pid, int(inner) if inner else None

    def kill(self, box):
        """End a sandbox. On return no process of it is left: its process 1 ends last, and has been reaped."""
        pid, inner = box
        if self.bwrap:
            os.kill(pid, 9)  # also kills process 1 (--die-with-parent), and with it the whole namespace
            os.waitpid(pid, 0)
            try:
                if inner and os.waitpid(inner, os.WNOHANG)[0] == 0:
                    os.kill(inner, 9)  # our child, so the number cannot be reused
                    os.waitpid(inner, 0)
            except ChildProcessError:
                pass  # already reaped by bwrap
        else:
            try:
                os.killpg(pid, 9)
            except (ProcessLookupError, PermissionError):
                pass
            os.waitpid(pid, 0)

    def group(self, path):
        """A counter of this worker's cgroup: seconds of CPU, or processes killed for memory; 0 without a cgroup."""
        if not path:
            return 0
        with open(path) as file:
            words = file.read().split()
        if path == self.oom_file:
            return int(words[words.index("oom_kill") + 1])
        return int(words[1]) / 1e6 if words[0] == "usage_usec" else int(words[0]) / 1e9

    def check(self, box):
        """Seconds of CPU that a sandbox has used.  Raises Late if it uses too much memory or too many files."""
        import resource
        memory, seconds = usage(box[1] or box[0])
        if self.judge and box is self.judge[0]:
            return seconds
        more, judged = usage(self.judge[0][0]) if self.judge else (0, 0.0)
        if memory + more > TOGETHER:  # memory of the tests counts too: they work on the program's values
            raise Late
        if self.disk is not None:
            files = os.fstatvfs(self.disk)
            if files.f_files - files.f_ffree > INODES:
                raise Late
        if self.cpu_file:  # everything except the worker and the judge
            me = resource.getrusage(resource.RUSAGE_SELF)
            rest = self.group(self.cpu_file) - me.ru_utime - me.ru_stime - judged
            if self.others is None:
                self.others = rest - seconds
            seconds = max(seconds, rest - self.others)
        return seconds

    def wait(self, fd, deadline, box, cpu=START_LIMIT):
        """Until fd can be read.  Raises Late at the deadline (time.monotonic), or when all processes of the sandbox
        together have used too much memory or CPU, or left too many files: many processes must neither multiply their
        limits nor starve the neighbours."""
        import select
        import time
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(0, 0)
        while True:
            left = deadline - time.monotonic()
            for ready, _ in poll.poll(max(0, min(100, 1000 * left))):
                if ready == 0:
                    os._exit(1)  # the caller is gone; sandboxes die with this process
                return
            if self.check(box) > cpu or left <= 0:
                raise Late

    def ready(self, role, sink, source, box, deadline):
        """Send a new sandbox its code and wait until it is ready.  Raises OSError."""
        code = self.code[role]
        while code:  # once there is a reader: under memory pressure pipes have only 4 kB
            code = code[os.write(sink, code):]
        try:
            self.wait(source, deadline, box)
        except Late:
            raise OSError from None
        if os.read(source, 1) != b"+":
            raise OSError

    def stop_judge(self):
        if self.judge:
            box, connection = self.judge
            self.judge = None
            connection.close()
            self.kill(box)

    def start_judge(self):
        import socket
        import time
        connection, end = socket.socketpair()
        box = self.start("judge", end.detach(), self.null)
        self.judge = box, connection
        self.ready("judge", connection.fileno(), connection.fileno(), box, time.monotonic() + START_LIMIT)

    def verdict(self, job):
        """True, False, 'timeouts', 'unsupported' or 'errors' (no verdict) for one job: {"kind": "tests", "program",
        "setup", "tests", "names", "limit"[, "modules", "typing"]} or {"kind": "stdio", "program", "inputs", "outputs",
        "limit"[, "typing"]}, limit in seconds of CPU for all tests, or for one input; of the clock it may take
        whole(limit) in all. `modules` are imported before the tests run, `typing` are names that the program finds. Of
        {"kind": "trial", "setup", "tests", "names", "limit"}: [why these tests cannot judge any program, or '']."""
        killed = self.group(self.oom_file)
        verdict = self.try_verdict(job)
        return "timeouts" if verdict is not True and self.group(self.oom_file) > killed else verdict

    def try_verdict(self, job):
        import time
        box = None
        fds = []
        try:
            if job["kind"] != "stdio" and not self.judge:
                self.start_judge()
            end = time.monotonic() + whole(job["limit"])
            if job["kind"] == "trial":
                return self.ask_judge(job, end, self.judge[0])
            theirs_in, ours_out = os.pipe()
            ours_in, theirs_out = os.pipe()
            fds += [ours_out, ours_in]
            box = self.start("candidate", theirs_in, theirs_out)
            self.ready("candidate", ours_out, ours_in, box, end)
            if box[1]:  # before the program runs, which could hide its files
                self.disk = os.open(f"/proc/{box[1]}/root/tmp", os.O_PATH)
                fds.append(self.disk)
            return self.watch(job, end, box, ours_out, ours_in)
        except Late:
            return "timeouts"
        except Gone:
            return False if job["kind"] == "stdio" else "errors"
        except (OSError, Unsupported):
            return "errors"
        finally:
            self.disk = self.others = None
            if box:
                self.kill(box)
            for fd in fds:
                os.close(fd)

    def watch(self, job, end, box, sink, source):
        """The verdict on a candidate that is ready.  end: deadline (time.monotonic).  Raises Late, Gone, OSError and
        Unsupported."""
        import time
        started = time.monotonic()
        before = self.check(box)
        entries = list(job.get("names", {}).values())
        heard = "stdout" in job.get("tests", "")
        send(sink, encode([job["kind"], job["program"], entries, seconds_of(job), job.get("typing", []), heard]))
        if job["kind"] == "tests":
            verdict = self.ask_judge(job, min(started + clock_of(job), end), box, sink, source)
            if self.check(box) - before > job["limit"]:
                return "timeouts"
            return self.late_if_false(verdict, started, job)
        for given, wanted in zip(job["inputs"], job["outputs"]):
            started = time.monotonic()
            verdict = self.try_input(job, given, wanted, end, box, sink, source)
            if verdict is not True:
                return self.late_if_false(verdict, started, job)
        return True

    def late_if_false(self, verdict, started, job):
        """A program that took too long counts as late, not as wrong."""
        import time
        late = time.monotonic() - started > job["limit"]
        return "timeouts" if verdict is False and late else verdict

    def try_input(self, job, given, wanted, end, box, sink, source):
        """Whether the program prints the expected output for an input, or 'timeouts'."""
        import time
        deadline = min(time.monotonic() + clock_of(job), end)
        before = self.check(box)
        most = before + seconds_of(job) + 1
        send(sink, given.encode())
        fate, output = decode(receive(source, lambda: self.wait(source, deadline, box, most)))
        # The kernel's limit, at which it kills, is in whole seconds.
        if fate == "killed" or self.check(box) - before > job["limit"]:
            return "timeouts"
        return fate != "failed" and same(output, wanted)

    def ask_judge(self, job, deadline, box, *pipes):
        """Pass the pipes of a candidate, or none, to the judge and wait for its verdict. box: the sandbox whose time
        and memory are limited."""
        import socket
        import time
        ours, theirs = os.pipe()
        cpu = seconds_of(job)
        try:
            _, connection = self.judge
            try:
                socket.send_fds(connection, [b"j"], [*pipes, theirs])
                tests = [job["setup"], job["tests"], list(job["names"])]
                send(connection.fileno(), encode([*tests, cpu, job.get("modules", [])]))
            except (OSError, Gone):
                self.stop_judge()
                return "errors"
            finally:
                os.close(theirs)
            try:
                # The judge's account goes back to its first job: of its own child the kernel bounds the time.
                self.wait(ours, deadline, box, cpu + 1 if pipes else float("inf"))
                word = os.read(ours, 4096)
            except Late:
                if not pipes:
                    self.stop_judge()
                    raise
                os.kill(box[0], 9)  # the judge sees the end of the pipe, rejects and is free again
                try:
                    self.wait(ours, time.monotonic() + 2, self.judge[0])
                except Late:
                    self.stop_judge()
                raise
            if not word:  # the process that ran the tests died
                self.stop_judge()
            if word[:1] == b"t" and not pipes:
                return [word[1:].decode("utf-8", "replace")]
            return {b"1": True, b"0": False, b"u": "unsupported"}.get(word, "errors")
        finally:
            os.close(ours)


def same(output, wanted):
    """Whether two outputs have the same words. Numbers with a fraction or an exponent may differ by 1e-6, relative or
    absolute, as usual in contests."""
    wanted = wanted.encode("utf-8", "surrogatepass")
    if len(output) > 10 * len(wanted) + 1000:
        return False
    words, others = output.split(), wanted.split()
    return len(words) == len(others) and all(a == b or close(a, b) for a, b in zip(words, others))


def close(word, wanted):
    import re
    number = rb"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
    if not re.search(rb"[.eE]", wanted) or not (re.fullmatch(number, word) and re.fullmatch(number, wanted)):
        return False
    a, b = float(word), float(wanted)
    return abs(a - b) <= 1e-6 * max(1.0, abs(b))


def work(source, bwrap, places, cpu_file="", oom_file=""):
    """Main loop of a worker: answer lines of JSON on stdin until it closes."""
    import json
    folders, packages, version = json.loads(places)
    if version != sys.implementation.cache_tag:  # compiled packages fit a single version
        packages = {}
    worker = Worker(source, bwrap, folders, packages, cpu_file, oom_file)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(None if job is None else worker.verdict(job)), flush=True)


# ---------------------------------------------------------------------------------------------------------- the caller

BOOT = "import sys; exec(compile(sys.argv[1], 'sandbox.py', 'exec'), {'__name__': 'worker'})"


def worker_arguments(python, bwrap):
    """Arguments of subprocess.Popen for a worker. It must not be root, to whom the process limit does not apply and
    whom bubblewrap does not confine. Its environment is empty and only pipes are open, because sandboxes inherit
    both."""
    with open(os.path.abspath(__file__)) as file:
        source = file.read()
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    return {"args": [python, "-I", "-S", "-c", BOOT, source, bwrap], "env": {}, "cwd": "/", "start_new_session": True,
            **user}


def linked(python):
    """The folders of all libraries that this Python and its standard library link; [] if it does not run.  Raises
    OSError if it does not exist."""
    import json
    import subprocess
    code = """import importlib, json, os, sys
for folder in sys.path:
    for name in sorted(os.listdir(folder)) if os.path.basename(folder) == "lib-dynload" else []:
        try: importlib.import_module(name.partition(".")[0])
        except BaseException: pass
try: import ctypes; ctypes.CDLL("libgcc_s.so.1")  # which the C library opens when a thread ends
except BaseException: pass
with open("/proc/self/maps") as file: paths = {line.split(None, 5)[5].strip() for line in file if ".so" in line}
os.write(1, json.dumps(sorted({os.path.dirname(path) for path in paths})).encode())
os._exit(0)"""
    arguments = {**worker_arguments(python, ""), "args": [python, "-I", "-S", "-c", code]}
    return json.loads(subprocess.run(**arguments, stdin=subprocess.DEVNULL, capture_output=True).stdout or "[]")


def installed():
    """{name: path} of the entries of PACKAGES that this Python has."""
    folders = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    found = {}
    for name in [name for names in PACKAGES.values() for name in names]:
        for path in [os.path.join(folder, name) for folder in folders]:
            if os.path.exists(path):
                found.setdefault(name, path)
    return found


# A cgroup limits what polling can only observe: kernel memory, and anything between two polls. It needs a hierarchy
# with these controllers in which this user may create folders: as root, or in a delegated subtree. The caller is not
# moved.
GROUP = "train-as-you-test"
GROUP_MEMORY, GROUP_PROCESSES = TOGETHER + (512 << 20), 2 * PROCESSES + 16  # of a worker, its judge and its candidate


def own_groups():
    """{controller, "" of version 2: the cgroup of this process}."""
    own = {}
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            own.update(dict.fromkeys(names.split(","), path))  # version 2 has no names
    return own


def group_mounts():
    """{controller, "" of version 2: [which cgroup is mounted, where]}."""
    mounts = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split()[:3]
            names = {"cgroup": options.split(","), "cgroup2": [""]}.get(kind, [])
            mounts.update(dict.fromkeys(names, left.split()[3:5]))
    return mounts


def remove_groups_of_the_dead(place):
    """Remove the groups of callers that were killed.  Raises OSError if the folder cannot be read."""
    from contextlib import suppress
    for old in os.listdir(place):
        if old.startswith(GROUP + "-") and not os.path.exists(f"/proc/{old.split('-')[-2]}"):
            with suppress(OSError):
                os.rmdir(os.path.join(place, old))


class Group:
    """The cgroup of one worker and all its sandboxes.  Raises OSError if none can be created."""

    made = 0

    def __init__(self):
        Group.made += 1
        self.name = f"{GROUP}-{os.getpid()}-{Group.made}"
        self.folders = []
        self.own = own_groups()
        self.mounts = group_mounts()
        try:
            folder = self.make("", {"memory.max": GROUP_MEMORY, "pids.max": GROUP_PROCESSES})
            self.note = "version 2"
            self.files = [folder + "/cpu.stat", folder + "/memory.events"]
        except OSError:
            try:
                memory = self.make("memory", {"memory.limit_in_bytes": GROUP_MEMORY})
                self.make("pids", {"pids.max": GROUP_PROCESSES})
                cpu = self.make("cpuacct", {})
            except OSError:
                self.remove()
                raise
            self.note = "version 1"
            self.files = [cpu + "/cpuacct.usage", memory + "/memory.oom_control"]

    def places(self, controller):
        """The folders of this process's cgroup and of its ancestors."""
        root, mount = self.mounts.get(controller, ("/", None))
        path = os.path.relpath(self.own.get(controller, "/"), root)
        while mount:
            yield os.path.normpath(os.path.join(mount, path))
            if path in (".", ""):
                return
            path = os.path.dirname(path)

    def make(self, controller, limits):
        """Create a group with these limits in the first folder that permits it -> its path.  Raises OSError if none
        does."""
        for place in self.places(controller):
            folder = os.path.join(place, self.name)
            try:
                remove_groups_of_the_dead(place)
                os.mkdir(folder)
                self.folders.append(folder)
                for limit, value in limits.items():
                    with open(os.path.join(folder, limit), "r+") as file:  # the controller may be missing here
                        file.write(str(value))
                return folder
            except OSError:
                if folder in self.folders:
                    self.folders.remove(folder)
                    os.rmdir(folder)
        raise OSError

    def add(self, pid):
        """Move a child process, which has no children yet, into the group.  Raises OSError."""
        for folder in self.folders:
            with open(os.path.join(folder, "cgroup.procs"), "w") as file:
                file.write(str(pid))

    def remove(self):
        """Kill everything left in the group and remove it."""
        import time
        from contextlib import suppress
        for folder in self.folders:
            with suppress(OSError), open(os.path.join(folder, "cgroup.kill"), "r+") as file:
                file.write("1")
            for _ in range(100):
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError:  # killed processes remain for a moment
                    time.sleep(0.01)


def start_worker(arguments: dict):
    """Start a worker with the arguments of `settle`, in a cgroup if possible -> Popen, with the Group or None as
    `.group`.  Raises OSError."""
    import subprocess
    arguments = {name: value for name, value in arguments.items() if name != "note"}

    def start(files):
        command = [*arguments["args"], *files]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(**{**arguments, "args": command}, **pipes, bufsize=0)
    try:
        group = Group() if arguments["args"][-2] else None  # not for programs without a sandbox
    except OSError:
        group = None
    try:
        child = start(group.files if group else ())
        if group:
            try:
                group.add(child.pid)
            except OSError:  # groups may be created, but processes not moved into them
                child.kill()
                child.communicate()
                group.remove()
                child, group = start(()), None
    except OSError:
        if group:
            group.remove()
        raise
    child.group = group
    return child


def settle(allow_unsandboxed: bool = False) -> dict:
    """Find a Python and check that sandboxes really start -> arguments for `start_worker`.  Raises UserError if they do
    not, unless unsandboxed programs are allowed; then a warning is printed."""
    import json
    import shutil
    import subprocess

    from support.errors import UserError
    job = {"kind": "tests", "program": "def f(): return 1", "setup": "", "tests": "assert f() == 1",
           "names": {"f": "f"}, "limit": 10}
    bwrap = shutil.which("bwrap") if sys.platform == "linux" and os.uname().machine in MACHINES else None
    for sandbox in [bwrap] * bool(bwrap) + [""] * allow_unsandboxed:
        for python in (os.path.realpath(sys._base_executable), "/usr/local/bin/python3", "/usr/bin/python3"):
            arguments = worker_arguments(python, sandbox)
            try:
                arguments["args"].append(json.dumps([linked(python), installed(), sys.implementation.cache_tag]))
                with start_worker(arguments) as worker:
                    worker.stdin.write(json.dumps(job).encode() + b"\n")
                    works = worker.stdout.readline() == b"true\n"
            except OSError:  # missing, or in a home directory that the unprivileged user cannot read
                continue
            if worker.group:
                worker.group.remove()
            if works:
                if not sandbox:
                    print("WARNING: no sandbox: model-written programs run without protection "
                          "(--allow-unsandboxed-code)", flush=True)
                return {**arguments, "note": "bubblewrap, memory, processes and CPU time bounded by " + (
                    f"cgroups of {worker.group.note}" if worker.group else
                    "limits of each process and by watching the sum: no cgroup can be made here")}
    reason = "it is not installed"
    if bwrap:
        trial = {**worker_arguments("", ""),
                 "args": [bwrap, "--unshare-user", "--unshare-net", "--ro-bind", "/", "/", "/bin/true"]}
        done = subprocess.run(**trial, capture_output=True, text=True, errors="replace")
        reason = (done.stderr.strip()[-200:].replace("\n", " ")
                  or "no Python >= 3.10 that an unprivileged user may read was found")
    raise UserError(f"programs run in a sandbox by bubblewrap (0.7 or newer, Linux), which does not work here ({reason}"
                    "): install it (Debian, Ubuntu: apt install bubblewrap), allow user namespaces, or run programs "
                    "without any protection with --allow-unsandboxed-code")


if __name__ == "worker":
    work(*sys.argv[1:])
