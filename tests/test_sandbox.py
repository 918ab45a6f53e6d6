"""Programs that attack the sandbox, and honest ones beside them. Every attack that succeeds returns what the
tests want."""
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta, timezone
from datetime import time as dtime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT

import tasks
from tasks import programs, sandbox, workers

if shutil.which("bwrap") is None:
    pytest.skip("bubblewrap is not installed (apt install bubblewrap)", allow_module_level=True)

TESTS = "assert f(2) == 4\nassert f(3) == 9 and f(-12) == 144"
MARK = f"sandbox-mark-{os.getpid()}"
HERE = os.path.abspath(__file__)
Point = namedtuple("Point", "x y")


@pytest.fixture(scope="module")
def pool():
    pool = programs.CodePool(sandbox.settle(), 200)
    pool.judge([function("def f(x): return x * x")] * 8)  # the workers and their judges are up
    return pool


class Lane(programs.CodePool):
    """A pool of one worker: what comes after a program is judged where that one was."""

    def __init__(self, arguments):
        workers.WorkerPool.__init__(self, 200, size=1)
        self.arguments = arguments


@pytest.fixture(scope="module")
def lanes():
    """(run(check, parameters) -> a future, found): four lanes that run checks, and what they have run."""
    arguments, idle, threads = sandbox.settle(), queue.SimpleQueue(), ThreadPoolExecutor(4)
    for _ in range(4):
        idle.put(Lane(arguments))

    def run(check, parameters):
        lane = idle.get()
        try:
            check(lane, **parameters)
        finally:
            idle.put(lane)
    yield lambda *job: threads.submit(run, *job), {}
    threads.shutdown(cancel_futures=True)


@pytest.fixture
def beside(request, lanes):
    """beside(check) is check(lane, **parameters of this test), of which the first case runs those of all: most of these
    programs end by waiting for a limit, and four can wait at a time."""
    submit, found = lanes

    def ask(check):
        for item in request.session.items if request.function not in found else ():  # not those that were deselected
            if getattr(item, "function", None) is request.function:
                found.setdefault(request.function, {})[item.nodeid] = submit(check, item.callspec.params)
        found[request.function][request.node.nodeid].result()
    return ask


def function(program, tests=TESTS, limit=0.5, **more):
    return {"kind": "tests", "program": program, "setup": "", "tests": tests, "names": {"f": "f"}, "limit": limit,
            **more}


def stdio(program, cases=(("2\n", "4\n"), ("3\n", "9\n"), ("-12", "144")), limit=0.5):
    return {"kind": "stdio", "program": program, "inputs": [i for i, _ in cases], "outputs": [o for _, o in cases],
            "limit": limit}


def attack(code):
    """A program that squares if `code`, which may call win(), gets there, and fails otherwise."""
    indented = "\n".join("    " + line for line in code.strip("\n").split("\n"))
    return ("class Won(BaseException): pass\ndef win(): raise Won\n"
            f"def f(x):\n  try:\n{indented}\n  except Won:\n    return x * x\n")


def below(pid):
    """Process ids of all descendants."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            continue
        for child in children:
            try:
                found += [int(child), *below(child)]
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def left_alone(pid):
    """Whether nobody answers for this process of the sandbox's user: those above it have ended, and it belongs to init
    or to another process that is above us too. Other test runs on this machine have such processes as well, below
    theirs."""
    above, at = {1}, os.getpid()
    while at > 1:
        at = parent(at)
        above.add(at)
    try:
        while os.stat(f"/proc/{pid}").st_uid == sandbox.NOBODY:
            pid = parent(pid)
    except (FileNotFoundError, ProcessLookupError):  # it has gone, perhaps just now
        return False
    return pid in above


def traces(pool):
    """What should be there before and after a verdict: two processes per judge, and no marked file anywhere outside."""
    running = sum(len(below(child.pid)) for child in pool.children.queue if child is not None)
    judges = 2 * sum(1 for child in pool.children.queue if child is not None)
    places = ["/", "/tmp", "/dev/shm", "/var/tmp", "/run", os.path.expanduser("~"), os.path.dirname(HERE), os.getcwd(),
              "/usr/lib"]
    files = [os.path.join(place, MARK) for place in places if os.path.exists(os.path.join(place, MARK))]
    strays = []
    if os.getuid() == 0:  # then all that the sandbox runs is the unprivileged user's
        for stat in Path("/proc").glob("[0-9]*"):
            try:
                if stat.stat().st_uid == sandbox.NOBODY and b"marshal" in (stat / "cmdline").read_bytes():
                    strays.append(stat.name)
            except (FileNotFoundError, ProcessLookupError):
                pass
        ours = set(below(os.getpid()))  # after the others: what is started meanwhile is no stray, nor what has ended
        strays = [pid for pid in strays if int(pid) not in ours and left_alone(int(pid))]
    return max(0, running - judges), files, strays


def clean(pool):
    deadline = time.monotonic() + 20  # what is killed stays visible for a moment
    while traces(pool) != (0, [], []) and time.monotonic() < deadline:
        time.sleep(0.02)
    return traces(pool) == (0, [], [])


# ------------------------------------------------------------------------------------------------------------- hostile

SYSCALL = "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\n"
HOSTILE = {
    "empty": "",
    "blank": " \n\t\n",
    "prose": "I cannot do that.",
    "endless loop": "def f(x):\n    while True: pass",
    "endless import": "while True: pass",
    "endless C call": "def f(x): return 9 ** 9 ** 9",
    "sleep": "import time\ndef f(x): time.sleep(1000)",
    "ignores signals": "import signal, time\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n"
                       "  except (OSError, ValueError): pass\ndef f(x):\n  while True: time.sleep(1)",
    "fork bomb": "import os\ndef f(x):\n  while True:\n    try: os.fork()\n    except OSError: pass",
    "fork bomb of sleepers": "import os, time\ndef f(x):\n  while True:\n"
                             "    try:\n      if os.fork() == 0: time.sleep(1000)\n"
                             "    except OSError: time.sleep(1000)",
    "memory bomb": "def f(x):\n  kept = []\n  while True: kept.append(bytearray(50_000_000))",
    "memory bomb in many processes": "import os\ndef f(x):\n  for _ in range(4): os.fork()\n  kept = []\n"
                                     "  while True:\n    try: kept.append(b'x' * 20_000_000)\n"
                                     "    except MemoryError: pass",
    "disk fill": "def f(x):\n  n = 0\n  while True:\n    n += 1\n"
                 "    with open(f'/tmp/{n}', 'wb') as file: file.write(bytes(10_000_000))",
    "100 MB of output": "import os\ndef f(x):\n  print('x' * 100_000_000)\n  os.write(1, b'x' * 1000)\n"
                        "  os.write(2, b'x' * 1000)\n  return 0",
    "sys.exit(0)": "import sys\ndef f(x): sys.exit(0)",
    "sys.exit(0) at once": "import sys\nsys.exit(0)",
    "os._exit(0)": "import os\ndef f(x): os._exit(0)",
    "os._exit(0) at once": "import os\nos._exit(0)",
    "abort": "import os\ndef f(x): os.abort()",
    "segmentation fault": "import ctypes\ndef f(x): ctypes.string_at(1)",
    "kills its parent": "import os\ndef f(x): os.kill(os.getppid(), 9)",
    "kills its group": "import os\ndef f(x): os.killpg(0, 9)",
    "kills everybody": "import os, signal\ndef f(x):\n  for p in [-1, *range(1, 40000)]:\n    for s in (9, 15, 19):\n"
                       "      try: os.kill(p, s)\n      except OSError: pass",
    "kills from outside its group": "import os\ndef f(x):\n  if os.fork() == 0:\n    os.setsid()\n"
                                    "    for p in (0, -1, 1, os.getppid()):\n"
                                    "      try: os.kill(p, 9)\n      except OSError: pass\n    os._exit(0)\n"
                                    "  os.wait()\n  return 0",
    "stops everybody": "import os\ndef f(x):\n  if os.fork() == 0: os.kill(os.getppid(), 19); os.kill(-1, 19)\n"
                       "  os.kill(0, 19)\n  return 0",
    "daemon thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
                     "def f(x): return 0",
    "double fork": "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork(): os._exit(0)\n"
                   "  time.sleep(1000)\ndef f(x): return 0",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
    "deep recursion in C": "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n"
                           "  def __getattr__(self, n): return getattr(self, n + 'a')\n"
                           "  def __repr__(self): return repr(self)\ndef f(x): return repr(A())",
    "BaseException": "def f(x): raise BaseException",
    "KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "GeneratorExit": "def f(x): raise GeneratorExit",
    "asserts itself": "def f(x): raise AssertionError",
    "no error at all": "class E(Exception):\n  def __str__(self): raise SystemExit\ndef f(x): raise E",
    "NUL": "def f(x): return x * x\0",
    "half a surrogate pair": "def f(x): return x * x  # \ud800",
    "invalid UTF-8": "import os\nfor n in range(3, 64):\n  try: os.write(n, b'\\xff\\xfe\\x00' * 100)\n"
                     "  except OSError: pass\ndef f(x): return x * x",
    "closes everything": "import os\nos.closerange(0, 100)\ndef f(x): return x * x",
    "syntax error": "def f(x: return",
    "no function": "x = 1",
    "not a function": "f = 4",
    "replaces builtins": "import builtins\nbuiltins.AssertionError = builtins.Exception = OSError\n"
                         "builtins.__build_class__ = None\nbuiltins.int = builtins.isinstance = lambda *a: True\n"
                         "builtins.exec = builtins.compile = lambda *a: None\ndef f(x): return 0",
    "always equal": "class A:\n  __eq__ = __ne__ = __bool__ = __contains__ = lambda *a: True\n"
                    "  __hash__ = lambda s: 4\ndef f(x): return A()",
    "always equal int": "class A(int):\n  __eq__ = lambda *a: True\n  __hash__ = int.__hash__\n"
                        "  __index__ = __int__ = lambda s: 4\ndef f(x): return A(0)",
    "lying class": "class A:\n  __class__ = int\n  __eq__ = lambda *a: True\ndef f(x): return A()",
    "always equal class": "class f:\n  def __init__(self, x): pass\n"
                          "  __eq__ = __bool__ = __contains__ = lambda *a: True\n"
                          "  __hash__ = __len__ = __index__ = __int__ = lambda s: 4",
    "always equal objects": "class f(list):\n  def __new__(cls, x): return [object.__new__(cls) for _ in '12']\n"
                            "  __eq__ = lambda *a: True",
    "answers with an object": "import sys\ng = sys._getframe(2).f_globals\nold = g['encode']\n"
                              "g['encode'] = lambda v, o=None, n=None: old(v, o, n) if not o else "
                              "b'l14:s5:valueo1:0N0:'\n"
                              "def f(x): return 0",
    "an iterator that is always equal": "class A:\n  def __iter__(self): return iter(())\n"
                                        "  __eq__ = __bool__ = __contains__ = lambda *a: True\n"
                                        "  __hash__ = lambda s: 4\ndef f(x): return A()",
    "a coroutine": "async def f(x): return x * x",
    "makes what it may not": "import sys\nsys._getframe(2).f_globals['maker_of'] = lambda v: "
                             "('builtins', 'eval', (v.code,))\nclass A: pass\ndef f(x):\n  a = A()\n"
                             "  a.code = str(x * x)\n  return a",
    "answers with objects that there are not": "import sys\ng = sys._getframe(2).f_globals\nold = g['encode']\n"
        "g['encode'] = lambda v, o=None, n=None: old(v, o, n) if not o else b'l18:s5:valuel4:o1:7N0:'\n"
        "def f(x): return 0",
    "skips the tests": "class SkipTest(Exception): __module__ = 'unittest.case'\ndef f(x): raise SkipTest",
    "ends the tests": "class Exit(Exception): __module__ = '_pytest.outcomes'\ndef f(x): raise Exit(0)",
    "an error of no class": "import sys\ng = sys._getframe(2).f_globals\n"
                            "g['describe'] = lambda e: [['builtins.object', 'builtins.BaseException'], [], {}, '']\n"
                            "def f(x): raise ValueError",
    "an error that is a class of the harness": "import sys\ng = sys._getframe(2).f_globals\n"
        "g['describe'] = lambda e: [['sandbox.Ended', '__main__.Ended', 'builtins.SystemExit'], [0], {}, '0']\n"
        "def f(x): raise ValueError",
    "a name that is a value": "f = 4\nimport sys\ng = sys._getframe(2).f_globals\n"
                              "g['Answers'].entries = lambda s: [[True, []], [4, []]]",
    "a name that is an error": "class f(Exception):\n  def __init__(self, x): pass\n  __eq__ = lambda *a: True",
    "pickle": "class A:\n  def __reduce__(self): return (eval, ('4',))\n  __eq__ = lambda *a: True\n"
              "def f(x): return A()",
    "always equal in a list": "class A(list):\n  __eq__ = lambda *a: True\ndef f(x): return A([1])",
    "always equal text": "class A(str):\n  __eq__ = lambda *a: True\n  __hash__ = str.__hash__\n"
                         "def f(x): return A('4')",
    "not a number": "def f(x): return float('nan')",
    "endless value": "def f(x):\n  a = []\n  a.append(a)\n  return a",
    "deep value": "def f(x):\n  a = []\n  for _ in range(100_000): a = [a]\n  return a",
    "huge text": "def f(x): return 'x' * 50_000_000",
    "huge number": "def f(x): return 1 << 60_000_000",
    "colliding set": "def f(x): return {n * (2 ** 61 - 1) for n in range(30_000)}",
    "endless generator": "def f(x):\n  while True: yield 4",
    "verdicts in print": "import sys\nprint('true', '1', 'OK', 'passed', '{\"verdict\": true}', flush=True)\n"
                         "sys.stderr.write('true\\n')\ndef f(x): return 0",
    "verdicts in every file": "import os\nfor n in range(64):\n"
                              "  for b in (b'1', b'true\\n', b'00000001T', b'0000000ds6:loaded', b'+'):\n"
                              "    try: os.write(n, b)\n    except OSError: pass\ndef f(x): return 0",
    "answers before it is asked": "import sys, os\ng = sys._getframe(2).f_globals\nl = sys._getframe(2).f_locals\n"
                                  "for n in range(100): g['send'](l['sink'], g['encode'](['value', True, False]))\n"
                                  "def f(x): return 0",
    "answers with a list": "import sys\ng = sys._getframe(2).f_globals\nold = g['encode']\n"
                           "g['encode'] = lambda v, *a: old(v, *a) if v[0] == 'loaded' else b'l0:'\n"
                           "def f(x): return 0",
    "answers with another word": "import sys\ng = sys._getframe(2).f_globals\nold = g['encode']\n"
                                 "g['encode'] = lambda v, *a: old(v, *a) if v[0] == 'loaded' else "
                                 "old(['error', [['builtins.SystemExit'], [], {}, '0'], None])\n"
                                 "def f(x): return 0",
    "frames that promise more": "import sys, os\nl = sys._getframe(2).f_locals\nos.write(l['sink'], b'00ffffffs')\n"
                                "def f(x): return 0",
    "patches the harness": "import sys\nfor m in list(sys.modules.values()):\n"
                           "  for n in ('exec', 'eval', 'decode', 'run_tests', 'judge'):\n"
                           "    try: setattr(m, n, lambda *a: b'1')\n    except Exception: pass\n"
                           "for n in ('run_tests', 'same', 'decode'): "
                           "sys._getframe(2).f_globals[n] = lambda *a: b'1'\ndef f(x): return 0",
    # and attacks that would win if they got what they are after
    "reads passwd": attack("import os\nif open('/etc/passwd').read(): win()"),
    # the way to a Python that lives there is all there may be
    "reads homes": attack(f"import os\nfor p in ('/root', '/home', {os.path.expanduser('~')!r}):\n"
                          "  if os.path.exists(p) and len(os.listdir(p)) > 1: win()"),
    "reads the tests": attack(f"if 'HOSTILE' in open({HERE!r}).read(): win()"),
    "reads the repository": attack(f"import os\nif os.path.exists({os.path.dirname(HERE)!r}): win()"),
    "reads the environment": attack("import os\nif set(os.environ) - {'PYTHONHASHSEED', 'PWD', 'LC_CTYPE'}: win()"),
    "reads /proc": attack("import os\nfor p in ('/proc/1/environ', '/proc/self/status', '/sys'):\n"
                          "  if os.path.exists(p): win()"),
    "finds the tests in memory": attack("import gc, sys\nwanted = chr(102) + '(-12)'\nfor o in gc.get_objects():\n"
                                        "  if isinstance(o, (dict, list, tuple)) and wanted in str(o): win()\n"
                                        "g = sys._getframe(1)\nwhile g:\n  if wanted in str(g.f_locals): win()\n"
                                        "  g = g.f_back"),
    "socket": attack("import socket\nfor a in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):\n"
                     "  try: socket.socket(a)\n  except OSError: pass\n  else: win()"),
    "connects": attack("import socket\nsocket.create_connection(('127.0.0.1', 22), 1)\nwin()"),
    "inherited files": attack("import os\nopened = 0\nfor n in range(1024):\n  try: os.fstat(n); opened += 1\n"
                              "  except OSError: pass\nif opened > 5: win()"),
    "writes outside /tmp": attack("import os\nfor p in ('/', '/dev', '/dev/shm', '/usr', '/usr/lib', '/etc', "
                                  "'/var/tmp', '/run', '/home'):\n"
                                  f"  try: open(os.path.join(p, {MARK!r}), 'w').close()\n  except OSError: pass\n"
                                  "  else: win()"),
    "writes more than 64 MB": attack("import os\ntotal = 0\nfor n in range(40):\n  try:\n"
                                     "    with open(f'/tmp/{n}', 'wb') as file:\n"
                                     "      for _ in range(100): total += file.write(bytes(100_000)); file.flush()\n"
                                     "  except OSError: pass\nif total > 68_000_000: win()"),
    "long file": attack("with open('/tmp/a', 'wb') as file:\n    file.write(bytes(20_000_000))\nwin()"),
    "memory in no address space": attack("import os\nos.memfd_create('a')\nwin()"),
    "shared memory": attack(SYSCALL + "if c.shmget(0, 1 << 30, 0o1600) >= 0 or c.msgget(0, 0o1600) >= 0: win()"),
    "raises its limits": attack("import resource\nfor n in dir(resource):\n  if n.startswith('RLIMIT_'):\n    try:\n"
                                "      r = getattr(resource, n)\n      s, h = resource.getrlimit(r)\n"
                                "      if h > 0: resource.setrlimit(r, (h + 1, h + 1)); win()\n"
                                "    except (ValueError, OSError): pass"),
    "many processes": attack("import os, time\nn = 0\ntry:\n  while n < 60:\n"
                             "    if os.fork() == 0: time.sleep(20); os._exit(0)\n    n += 1\nexcept OSError: pass\n"
                             "if n > 32: win()"),
    "many threads": attack("import threading, time\nn = 0\ntry:\n  while n < 60: "
                           "threading.Thread(target=time.sleep, args=(1,), daemon=True).start(); n += 1\n"
                           "except RuntimeError: pass\nif n > 32: win()"),
    "other processes' limits": attack("import os, resource, time\npid = os.fork()\n"
                                      "if pid == 0: time.sleep(1); os._exit(0)\n"
                                      "resource.prlimit(pid, resource.RLIMIT_AS, (1 << 30, 1 << 30))\nwin()"),
    "priority": attack("import os\nos.setpriority(os.PRIO_PROCESS, 0, 5)\nwin()"),
    "new user namespace": attack(SYSCALL + "if c.unshare(0x10000000) == 0: win()"),
    "new user namespace by clone": attack(SYSCALL + "pid = c.syscall({'x86_64': 56}.get(os.uname().machine, 220), "
                                                    "0x10000011, 0, 0, 0, 0)\n"
                                          "if pid == 0: os._exit(0)\nif pid > 0: win()"),
    "mounts": attack(SYSCALL + "if c.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0 or "
                               "c.mount(None, b'/', None, 32, None) == 0: win()"),
    "chroot": attack("import os\nos.chroot('/tmp')\nwin()"),
    "reads the packages of the tests": attack("import os\nif os.path.exists('/packages'): win()"),
    "kernel memory by attributes": attack("import os\nopen('/tmp/a', 'w').close()\nfd = os.open('/tmp', os.O_RDONLY)\n"
                                          "for call in ((os.setxattr, '/tmp/a'), (os.setxattr, fd), "
                                          "(lambda *a: os.setxattr(*a, follow_symlinks=False), '/tmp/a')):\n"
                                          "  try: call[0](call[1], 'user.a', b'x' * 60_000); win()\n"
                                          "  except PermissionError: pass\n  except OSError: win()"),
    "kernel memory by calls": attack(SYSCALL + "x86 = os.uname().machine == 'x86_64'\nopen('/tmp/a', 'w').close()\n"
                                     "fd = os.open('/tmp/a', os.O_RDWR)\np = ctypes.create_string_buffer(4096)\n"
                                     "for a, b, *args in ((206, 0, 9, p), (73, 32, fd, 2), (294, 26, 0), "
                                     "(237, 235, p, 4096, 0, 0, 0, 0), (238, 237, 0, 0, 0), (278, 75, fd, p, 1, 0), "
                                     "(444, 444, 0, 0, 1), (300, 262, 0, 0), (463, 463)):\n  ctypes.set_errno(0)\n"
                                     "  if c.syscall(a if x86 else b, *args) >= 0 or ctypes.get_errno() not in (1,): "
                                     "win()"),
    "kernel memory by locks": attack("import fcntl\nwith open('/tmp/a', 'w') as file:\n"
                                     "  for command in (6, 7, 37, 38):\n"
                                     "    try: fcntl.fcntl(file, command, bytes([1]) + bytes(31)); win()\n"
                                     "    except PermissionError: pass"),
    "children that nobody waits for": attack("import signal\n"
                                             "for s in (signal.SIG_IGN, lambda *a: None, signal.SIG_DFL):\n"
                                             "  try: signal.signal(signal.SIGCHLD, s); win()\n"
                                             "  except PermissionError: pass"),
    "reads installed packages": attack("import os, sys\nfor folder, _, names in os.walk('/'):\n"
                                       "  if ('site-packages' in folder or 'dist-packages' in folder) and names: "
                                       "win()\nfor name in ('pytest', 'pip', 'setuptools', 'numpy', 'torch', 'apt'):\n"
                                       "  try: __import__(name); win()\n  except ImportError: pass"),
    "writes where packages would be": attack("import os\nfor folder, names, _ in os.walk('/'):\n"
                                             "  if folder.startswith('/tmp'): continue\n"
                                             "  try: open(os.path.join(folder, 'a'), 'w').close(); win()\n"
                                             "  except OSError: pass"),
    "traces": attack(SYSCALL + "if c.ptrace(0, 0, 0, 0) == 0: win()"),
    "x32 calls": attack(SYSCALL + "if os.uname().machine == 'x86_64' and "
                                  "c.syscall(0x40000000 + 41, 2, 1, 0) >= 0: win()"),
    "becomes root": attack("import os\nfor u in (0, 1000):\n  try: os.setuid(u); win()\n  except OSError: pass\n"
                           "if os.getuid() == 0: win()"),
    "signals the caller": attack(f"import os\nfor p in ({os.getpid()}, {os.getppid()}):\n  if p > 100:\n"
                                 "    try: os.kill(p, 0); win()\n    except ProcessLookupError: pass"),
    "meets its neighbours": attack("import os\nif os.getpid() != 1 or os.getppid() != 0: win()\n"
                                   "for p in range(2, 40000):\n"
                                   "  try: os.kill(p, 0); win()\n  except ProcessLookupError: pass"),
    "finds what others left": attack(f"import os\nif os.listdir('/tmp'): win()\nopen('/tmp/{MARK}', 'w').close()"),
}
STDIO_HOSTILE = {
    "endless loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "100 MB of output": "while True: print('4 9 144 ' * 100_000)",
    "all answers": "print(4)\nprint(9)\nprint(144)",
    "exit code": "import sys\nsys.exit(0)",
    "verdicts": "print('true')\nprint('1')",
    "kills process 1": "import os\nfor s in (9, 15, 19): os.kill(1, s)\nos.kill(-1, 9)",
    "fork bomb": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "blocks the harness": "import os\nos.remove('/tmp/stdout')\nos.mkfifo('/tmp/stdout')",
    "a folder in the way": "import os\nos.remove('/tmp/stdout')\nos.mkdir('/tmp/stdout')",
    "links to a device": "import os\nos.remove('/tmp/stdout')\nos.symlink('/dev/stdin', '/tmp/stdout')",
    "writes from behind": "import os, time\nif os.fork() == 0:\n  os.setsid()\n"
                          "  while True: open('/tmp/stdout', 'w').write('9')\nprint(4)",
    "remembers": "import os\nn = len(os.listdir('/tmp'))\nprint(n)\nopen(f'/tmp/{n}', 'w').close()",
    "invalid text": "import os\nos.write(1, b'\\xff\\x00\\xfe' * 10)",
    "reads on": "import os\nfor n in range(3, 64):\n  try: os.read(n, 100); print('4')\n  except OSError: pass",
    "writes frames": "import os\nfor n in range(3, 64):\n  try: os.write(n, b'000000014' * 3)\n  except OSError: pass",
    "memory of process 1": "import ctypes\nc = ctypes.CDLL(None)\nb = ctypes.create_string_buffer(8)\n"
                           "class V(ctypes.Structure): _fields_ = [('a', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
                           "l, r = V(ctypes.addressof(b), 8), V(id(None), 8)\n"
                           "if c.process_vm_readv(1, ctypes.byref(l), 1, ctypes.byref(r), 1, 0) > 0 or "
                           "c.syscall(434, 1, 0) > 0 and c.syscall(438, c.syscall(434, 1, 0), 3, 0) > 0: "
                           "print(int(input()) ** 2)",
    "NUL": "print(int(input()) ** 2)\0",
    "empty": "",
}


def within(job):
    # 15: what a busy machine adds
    return min(sandbox.whole(job["limit"]), sum(3 * job["limit"] + 2 for _ in job.get("inputs", "1"))) + 15


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_function(name, beside):
    def check(pool, name):
        job, started = function(HOSTILE[name]), time.perf_counter()
        assert pool.judge_one(job) in (False, "timeouts", "unsupported", "errors")
        assert time.perf_counter() - started < within(job)
        assert clean(pool), traces(pool)
        assert pool.judge([function("def f(x): return x * x")] * 2 + [stdio("print(int(input()) ** 2)")]) == [True] * 3
    beside(check)


@pytest.mark.parametrize("name", STDIO_HOSTILE)
def test_hostile_program(name, beside):
    def check(pool, name):
        job, started = stdio(STDIO_HOSTILE[name]), time.perf_counter()
        assert pool.judge_one(job) in (False, "timeouts", "unsupported", "errors")
        assert time.perf_counter() - started < within(job)
        assert clean(pool), traces(pool)
        assert pool.judge([function("def f(x): return x * x"), stdio("print(int(input()) ** 2)")]) == [True] * 2
    beside(check)


def test_attacks_would_win_without_a_sandbox(monkeypatch):
    """The attacks on files and processes are real: outside they reach what they are after."""
    names = ["reads passwd", "reads the tests", "reads /proc", "socket", "memory in no address space",
             "signals the caller", "shared memory"]
    for name in names:
        done = subprocess.run([sys.executable, "-c", HOSTILE[name] + "\nprint(f(3))"], capture_output=True, text=True,
                              timeout=60)
        assert done.stdout == "9\n", (name, done.stderr)


# -------------------------------------------------------------------------------------------------------------- honest

HONEST = [
    "def f(x): return x * x",
    "f = lambda x: x ** 2",
    "from typing import List\ndef f(x: int) -> int:\n    import math\n    return int(math.prod([x, x]))",
    "import threading\ndef f(x):\n  out = []\n  t = threading.Thread(target=lambda: out.append(x * x))\n  t.start()\n"
    "  t.join()\n  return out[0]",
    "import sys\nsys.setrecursionlimit(20_000)\ndef g(n): return 0 if n == 0 else 1 + g(n - 1)\n"
    "def f(x): return g(9_000) - 9_000 + x * x",
    "print('hello')\ndef f(x):\n  print('true')\n  return float(x * x)",
    "class A:\n  def f(self, x): return x * x\nf = A().f",
    "import collections, json, re, functools\n@functools.lru_cache(None)\n"
    "def f(x): return sum(abs(x) for _ in range(abs(x)))",
    "def f(x):\n  with open('/tmp/a', 'w') as file: file.write(str(x * x))\n  return int(open('/tmp/a').read())",
    "import random, time\ndef f(x):\n  time.sleep(0.01)\n  return x * x",
    "if __name__ == '__main__': exit()\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n  x: int\n"
    "def f(x): return P(x).x * P(x).x",
]
HONEST_STDIO = [
    "print(int(input()) ** 2)",
    "import sys\nfor line in sys.stdin:\n    print(int(line) ** 2, flush=True)\nexit()",
    "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(2 ** 27)\ndef main():\n"
    "  x = int(sys.stdin.buffer.read())\n  sys.stdout.write(str(x * x))\n"
    "threading.Thread(target=main).start()",
    "x = int(open('/dev/stdin').read())\nout = open(1, 'w')\nout.write(f'{x * x}\\r\\n\\n')",
    "import atexit, io, sys\nx = int(open(0).read())\nout = io.StringIO()\n"
    "atexit.register(lambda: sys.__stdout__.write(out.getvalue()))\nprint(x * x, file=out)\nraise SystemExit",
]


def test_honest_programs_beside_hostile_ones(pool):
    """200 right, 40 hostile and 20 wrong programs at once, not one wrong verdict."""
    honest = [(function(HONEST[i % len(HONEST)] + f"\n# {i}", limit=3), True) for i in range(150)]
    honest += [(stdio(HONEST_STDIO[i % len(HONEST_STDIO)] + f"\n# {i}", limit=3), True) for i in range(50)]
    slow = {"sleep", "ignores signals", "fork bomb of sleepers", "frames that promise more",
            "memory bomb in many processes"}
    hostile = [(function(program), None) for name, program in HOSTILE.items() if name not in slow and program.strip()]
    hostile = hostile[::max(1, len(hostile) // 40)][:38] + [
        (function(HOSTILE["fork bomb of sleepers"]), None), (function(HOSTILE["sleep"]), None)]
    wrong = [(function(f"def f(x): return x * x + {i}"), False) for i in range(1, 11)]
    wrong += [(stdio(f"print(int(input()) ** 2 + {i})"), False) for i in range(1, 11)]
    jobs = honest + hostile + wrong
    assert (len(honest), len(hostile)) == (200, 40)
    import random
    random.Random(0).shuffle(jobs)
    verdicts = pool.judge([job for job, _ in jobs])
    for (job, wanted), verdict in zip(jobs, verdicts):
        assert verdict is wanted if wanted is not None else verdict is not True, (verdict, job["program"])
    assert clean(pool), traces(pool)


def test_a_program_cannot_starve_its_neighbours_of_pipes(pool):
    """The kernel bounds the pipe memory of a user, and makes small pipes beyond that."""
    glutton = function("import fcntl, os, time\nfor _ in range(28):\n  if os.fork() == 0: break\nkept = []\n"
                       "try:\n  while True:\n    kept.append(os.pipe())\n"
                       "    try: fcntl.fcntl(kept[-1][0], 1031, 1 << 20)\n    except OSError: pass\n"
                       "except OSError: time.sleep(1000)", limit=2)
    results = {}
    thread = threading.Thread(target=lambda: results.update(glutton=pool.judge_one(glutton)))
    thread.start()
    time.sleep(0.7)
    verdicts = [pool.judge_one(function("def f(x): return x * x  # " + "x" * 100_000)) for _ in range(5)]
    assert thread.is_alive()
    thread.join()
    assert verdicts == [True] * 5 and results["glutton"] is not True


@pytest.mark.parametrize("value", [
    None, True, False, 0, -1, 2 ** 200, -2 ** 70, 0.1, -0.0, float("inf"), 1e-320, 1 + 2j, "", "a\0\u20ac", "\ud800",
    b"", b"\xff", bytearray(b"a"), [], (), set(), frozenset(), {}, [1, [2, (3, {4})]],
    {(1, "a"): [None], 2.5: {frozenset({1})}.pop()}, [True, 1, 1.0], range(1, 9, 2), deque([1, [2]]),
    OrderedDict(b=1, a=[2]), Counter("aab"), Point(1, [2]), int, [ValueError], Fraction(-1, 3), Decimal("1.10"),
    date(2024, 2, 29), datetime(2024, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=1))), timedelta(-1, 2), dtime(1)],
    ids=repr)
def test_plain_data_crosses_unchanged(value):
    again = sandbox.decode(sandbox.encode(value))
    assert again == value and repr(again) == repr(value)


@pytest.mark.parametrize("value", [object(), len, lambda: 0, iter([]), [object()], {1: sandbox.Object}, sandbox,
                                   NotImplemented, ..., memoryview(b"a")], ids=range(10))
def test_objects_do_not_cross(value):
    with pytest.raises(sandbox.Unsupported):
        sandbox.encode(value)


@pytest.mark.parametrize("data", [
    b"", b"x", b"i", b"i1:", b"i2:1", b"i1:1x", b"i-1:1", b"i1:g", b"N0", b"l2:N", b"l1:i", b"d1:N", b"S4:l0:N",
    b"Z3:S0:", b"s1:\xff", b"f1:x", b"c1:x", b"i00000000001:1", b"l" * 1000, b"l3:" * 400, b"t1:NN", b"NN", b"d4:l0:N"])
def test_bytes_that_are_no_plain_data(data):
    with pytest.raises(sandbox.Gone):
        sandbox.decode(data)


@pytest.mark.parametrize("told", [
    ("os", "system", ("true",)), ("builtins", "eval", ("1",)), ("builtins", "type", "len"), ("builtins", "type", "no"),
    ("fractions", "gcd", (1, 2)), ("datetime", "sys", ()), ("collections", "namedtuple", ("A", ("__eq__",), (1,))),
    ("collections", "namedtuple", ("A", ("x=1 or y",), (1,))), ("collections", "deque", ()), ("antigravity", "x", ()),
    4])
def test_what_cannot_be_made(told):
    with pytest.raises(sandbox.Gone):
        sandbox.decode(sandbox.framed(b"x" + sandbox.encode(told)))
    assert "antigravity" not in sys.modules


def test_random_bytes_never_do_more_than_fail():
    import random
    rng, base = random.Random(0), sandbox.encode([1, "a", {2: (3.0, b"b")}, {4}, frozenset([5])])
    for _ in range(20_000):
        data = bytearray(base)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b"NTFifcsbaltSZQOCxd:0123456789abcdef\xff")
        try:
            sandbox.decode(bytes(data))
        except sandbox.Gone:
            pass


# -------------------------------------------------------------------------------------------- what tests can and cannot

@pytest.mark.parametrize("program, tests, verdict", [
    ("def f(x): return 1", "while True: pass", "timeouts"),  # first, because the others need not wait for it
    ("def f(x): return [x, (x,), {x}, {x: None}, b'a', 1j]", "assert f(1) == [1, (1,), {1}, {1: None}, b'a', 1j]",
     True),
    ("def f(x): return [x]", "assert f(1) == (1,)", False),
    ("def f(*a, **k): return a, k", "assert f(1, y=[2]) == ((1,), {'y': [2]})", True),
    ("def f(x): raise ValueError(f'bad {x}')",
     "try:\n  f(1)\n  assert False\nexcept ValueError as e:\n  assert str(e) == 'bad 1'", True),
    ("class E(Exception): pass\ndef f(x): raise E", "try: f(1)\nexcept Exception: pass", True),
    ("def f(x): raise SystemExit", "try: f(1)\nexcept BaseException: pass", False),
    ("import os\ndef f(x): os._exit(0)", "try: f(1)\nexcept BaseException: pass", False),
    ("def f(x): return x", "assert f(object()) is not None", "unsupported"),
    ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))", False),  # to all() it would be the end of the cases
    ("def f(x): raise StopIteration", "assert [f(x) for x in [1]] == [] or next(map(f, [1]), True)", False),
    ("def f(x): raise StopIteration", "try: f(1)\nexcept Exception: pass", False),
    ("def f(x): raise StopAsyncIteration", "try: f(1)\nexcept Exception: pass", False),
    # which only a test that waits for it may get
    ("def f(x): return next(iter([]))", "try: f(1)\nexcept StopIteration: pass\nelse: assert False", True),
    ("def f(x): return next(iter([]))", "try: f(1)\nexcept (KeyError, StopIteration) as e: pass\nelse: assert False",
     True),
    ("def f(x): raise StopIteration(x)", "import unittest\ncase = unittest.TestCase()\n"
     "with case.assertRaises(StopIteration): f(1)\ncase.assertRaises(StopIteration, f, 1)", True),
    ("def f(x): raise StopIteration", "try: assert all(map(f, [1, 2]))\nexcept ValueError: pass\n"
     "try: next(iter([]))\nexcept StopIteration: pass", False),
    ("def f(x): raise StopIteration",
     "try:\n  assert all(f(x) for x in [1])\n  assert all(map(lambda x: f(x), [1]))\n"
     "except StopIteration: assert False",
     False),
    ("class Stop(StopIteration): pass\ndef f(x): raise Stop", "assert all(map(f, [1, 2]))", False),
    ("def f(x): raise [ValueError, KeyError, OSError][x]", "for i in range(3):\n  try: f(i)\n"
     "  except (ValueError, KeyError, OSError) as e: assert type(e) is [ValueError, KeyError, OSError][i]", True),
    ("class Bad(ValueError):\n  code = 3\n  def __init__(self, a): super().__init__(a, 2); self.a = a\n"
     "  def __str__(self): return f'bad {self.a}'\ndef f(x): raise Bad(x)",
     "try: f(1)\nexcept ValueError as e:\n"
     "  assert (str(e), e.args, e.a, type(e).__name__) == ('bad 1', (1, 2), 1, 'Bad') and type(e) is not ValueError\n"
     "else: assert False", True),
    ("class Bad(KeyError, AttributeError): pass\ndef f(x): raise Bad(x)",
     "try: f(1)\nexcept AttributeError as e: assert isinstance(e, KeyError) and not isinstance(e, ValueError)", True),
    ("class Bad(ValueError): pass\ndef f(x): raise Bad", "try: f(1)\nexcept TypeError: pass", False),
    ("def f(x): return {}[x]",
     "try: f('a')\nexcept KeyError as e: assert e.args == ('a',) and str(e) == repr('a')", True),
    ("def f(x): raise ValueError('a', [x], None)",
     "try: f(1)\nexcept ValueError as e: assert e.args == ('a', [1], None)",
     True),
    ("import json\ndef f(x): return json.loads(x)", "import json\ntry: f('[1,')\n"
     "except json.JSONDecodeError as e: assert e.pos == 3 and 'line 1' in str(e)\nelse: assert False", True),
    ("import json\ndef f(x): return json.loads(x)",
     "try: f('[1,')\nexcept ValueError as e: assert 'line 1' in str(e)", True),
    ("def f(x): return x.decode()", "try: f(b'\\xff')\n"
     "except UnicodeDecodeError as e: assert e.start == 0 and e.object == b'\\xff' and 'position 0' in str(e)", True),
    ("import statistics\ndef f(x): return statistics.mean(x)",
     "import statistics\ntry: f([])\nexcept statistics.StatisticsError: pass\nelse: assert False", True),
    ("from decimal import Decimal\ndef f(x): return Decimal(x)",
     "from decimal import InvalidOperation\ntry: f('x')\nexcept InvalidOperation: pass\nelse: assert False", True),
    ("def f(x): return open('/nowhere')",
     "try: f(1)\nexcept FileNotFoundError as e: assert e.errno == 2 and 'nowhere' in str(e)",
     True),
    ("def f(x): raise ExceptionGroup('a', [ValueError(1)])",
     "try: f(1)\nexcept Exception as e: assert str(e).startswith('a (1')", True),
    ("def f(x): raise ValueError(object(), x)", "try: f(1)\nexcept ValueError as e: assert 'object' in str(e)", True),
    # exact numbers
    ("from fractions import Fraction\ndef f(x): return Fraction(x, -4)",
     "assert f(2) == -0.5 and f(3).denominator == 4", True),
    ("from decimal import Decimal\ndef f(x): return x * Decimal('0.10')",
     "from decimal import Decimal\nassert str(f(Decimal(3))) == '0.30'", True),
    ("def f(x): return x", "try: f(len)\nexcept BaseException: pass", "unsupported"),
    ("def f(x): return object()", "try: f(1)\nexcept: pass", "unsupported"),
    ("def f(x): x.append(1)", "a = []\nf(a)\nassert a == [1]", True),
    ("def f(x): x.append(1)", "a = []\nf(a)\nassert a == [2]", False),
    ("def f(x): x.append(1)", "a = []\nf(a)\nf(a)\nassert a == [1, 1]", True),
    ("def f(x): pass", "a = []\nf(a)\nassert a == [1]", False),
    ("def f(x): x.append(object())", "a = []\nf(a)", "unsupported"),
    ("def f(d, s, b):\n  d.pop('a'); d['b'] = s; s.discard(1); b.extend(b'c')",
     "d, s, b = {'a': 1}, {1, 2}, bytearray(b'a')\nf(d, s, b)\n"
     "assert d == {'b': {2}} and s == {2} and b == b'ac' and d['b'] is s", True),
    ("def f(*, x): x[:] = x[::-1]", "a = [1, 2]\nassert f(x=a) is None and a == [2, 1]", True),
    ("def f(x):\n  x.append(1)\n  raise ValueError", "a = []\ntry: f(a)\nexcept ValueError: pass\nassert a == [1]",
     True),
    # which object is which: rows of a grid, an argument that is given back, one list twice, a list in itself
    ("def f(x):\n  x.sort()\n  x[0].append(9)\n  return x",
     "r = [1]\na = [[2], r]\nassert f(a) is a and a[0] is r and a == [[1, 9], [2]]", True),
    ("def f(x, y):\n  x.append(1)\n  return x is y",
     "a = []\nassert f(a, a) is True and f([], []) is False and a == [1]", True),
    ("def f(x):\n  x[0][0] = 1", "a = [[0] * 2] * 2\nf(a)\nassert a == [[1, 0], [1, 0]]", True),
    ("def f(x):\n  x.append(x)", "a = []\nf(a)\nassert a[0] is a", True),
    ("def f(x): return [[0]] * 2", "a = f(1)\na[0][0] = 1\nassert a == [[1], [1]]", True),
    ("def f(t): t[0].append(1)", "a = []\nf((a, 2))\nassert a == [1]", True),
    ("def f(x): x.append(1)", "class L(list): pass\na = L()\nf(a)\nassert a == [1] and type(a) is L", True),
    # a list in place of a dictionary, and too few of them
    ("import sys\ng = sys._getframe(2).f_globals\nold = g['encode']\n"
     "g['encode'] = lambda v, o=None, *a: old(['value', 1, [[1]] * 9]) if o else old(v, o, *a)\ndef f(x): return 1",
     "assert f({}) == 1", False),
    ("def f(x): return sorted(x)", "a = [2, 1]\nassert f(a) == [1, 2] and a == [2, 1]", True),
    ("def f(x):\n  x.sort()\n  return x", "assert f([2, 1]) == [1, 2]", True),
    ("def f(x):\n  x.clear()\n  return []", "a = [2, 1]\nb = sorted(a)\nassert f(a) == b", False),
    ("def f(x): return 1", "", True),
    ("def f(x): return 1", "import os\nos._exit(0)", "errors"),
    ("def f(x): return 1", "syntax error", False),
    ("import collections\ndef f(x): return collections.Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}", True),
    ("import enum\nclass E(enum.IntEnum): A = 4\ndef f(x): return E.A", "assert f(2) == 4", True),
    ("def f(x): return 'open'", "assert eval(f(1))", True),
    # what a program returns and keeps: iterators, functions, coroutines
    ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6 and [*f(0)] == []", True),
    ("def f(n): yield from range(n - 1)", "assert list(f(3)) == [0, 1, 2]", False),
    ("def f(n):\n  while True:\n    yield n\n    n *= 2",
     "g = f(1)\nassert [next(g), next(g), next(g)] == [1, 2, 4]", True),
    ("def f(n): yield n", "g = f(1)\nnext(g)\ntry: next(g)\nexcept StopIteration: pass\nelse: assert False", True),
    ("def f(n):\n  yield n\n  raise ValueError", "try: list(f(1))\nexcept ValueError: pass\nelse: assert False", True),
    ("def f(n):\n  for _ in '12': yield 0", "for a, b in zip(f(1), [0, 0, 1], strict=True): assert a == b", False),
    ("def f(d): return d.keys(), zip('ab', d.values()), map(str, d)",
     "a, b, c = f({1: 2, 3: 4})\nassert sorted(a) == [1, 3] and dict(b) == {'a': 2, 'b': 4} and [*c] == ['1', '3']",
     True),
    ("def f(n): return lambda x: x + n", "assert f(3)(4) == 7 and f(1)(1) == 2", True),
    ("def f(n): return lambda x: x - n", "assert f(3)(4) == 7", False),
    ("async def f(x): return x + 1", "import asyncio\nassert asyncio.run(f(2)) == 3\nasync def test():\n"
     "  assert await asyncio.gather(f(1), f(2)) == [2, 3]\nasyncio.run(test())", True),
    ("async def f(x): return x", "assert f(1)", "unsupported"),  # it would be true whatever it returns
    ("async def f(x): raise ValueError", "import asyncio\ntry: asyncio.run(f(2))\nexcept ValueError: pass", True),
    ("async def f(x): return x + 2", "import asyncio\nassert asyncio.run(f(2)) == 3", False),
    # values of the library
    ("from collections import *\ndef f(x): return Counter(x), OrderedDict.fromkeys(x), namedtuple('P', 'x y')(1, x)",
     "from collections import Counter, OrderedDict\na, b, c = f('ba')\nassert a.most_common(1) == [('b', 1)]\n"
     "assert b == OrderedDict(b=None, a=None) != OrderedDict(a=None, b=None) and a['z'] == 0\n"
     "assert c.y == 'ba' and c == (1, 'ba')", True),
    ("from datetime import timedelta\ndef f(d): return d + timedelta(1)",
     "from datetime import date\nassert f(date(2024, 2, 28)) == date(2024, 2, 29)", True),
    ("from datetime import timedelta\ndef f(d): return d + timedelta(2)",
     "from datetime import date\nassert f(date(2024, 2, 28)) == date(2024, 2, 29)", False),
    ("def f(x): return sum(x), type(x)", "assert f(range(4)) == (6, range)", True),
    ("def f(q): q.append(q.popleft())",
     "from collections import deque\nq = deque([1, 2])\nf(q)\nassert list(q) == [2, 1]", True),
    ("def f(c): c['a'] += 1",
     "from collections import Counter\nc = Counter('ab')\nf(c)\nassert c == Counter('aab')", True),
    ("def f(n): return 10 ** n", "assert len(str(f(5000))) == 5001", True),
    # what it prints
    ("def f(x): print('said', x)", "import contextlib, io\n"
     "with contextlib.redirect_stdout(io.StringIO()) as out: f(2)\nassert out.getvalue() == 'said 2\\n'", True),
    ("def f(x): print('sad', x)", "import contextlib, io\n"
     "with contextlib.redirect_stdout(io.StringIO()) as out: f(2)\nassert out.getvalue() == 'said 2\\n'", False),
    ("def f(x): return '__import__(\"os\").system(\"touch /tmp/mark\") or __import__(\"os\").listdir(\"/\")'",
     "assert 'home' in eval(f(1))", False),
])
def test_tests(program, tests, verdict, beside):
    def check(pool, program, tests, verdict):
        assert pool.judge_one(function(program, tests)) == verdict
        assert pool.judge_one(function("def f(x): return x * x")) is True
    beside(check)


def test_what_a_test_evaluates_does_not_reach_the_next_verdict(pool):
    """Even if a test hands the program an eval in the judge, nothing of it is left for the next one."""
    code = ("__import__('os').fork() == 0 and [__import__('os').setsid(), __import__('os').fork(), "
            "__import__('time').sleep(1000)] or __import__('os').kill(1, 9) or "
            "__import__('os').kill(__import__('os').getppid(), 19)")
    for _ in range(3):
        pool.judge([function(f"def f(x): return {code!r}", "eval(f(1))")] * 4)
        assert pool.judge([function("def f(x): return 0"), function("def f(x): return x * x")] * 4) == [False, True] * 4
        assert clean(pool), traces(pool)


def test_what_a_test_evaluates_changes_nothing_for_the_next_verdict(pool):
    """No file that a later test would import, no lower limit or priority of the process that later tests come from."""
    lines = ["open('/tmp/bisect.py', 'w').write('raise OSError')", "open('bisect.py', 'w').write('raise OSError')",
             "__import__('resource').prlimit(1, 9, (1 << 27, 1 << 27))", "__import__('os').setpriority(0, 1, 19)",
             "__import__('os').sched_setaffinity(1, {0})",
             "__import__('os').mkdir('/tmp/a')", "__import__('os').kill(1, 2)"]
    for line in lines[:-1]:
        caught = "try: eval(f(1))\nexcept OSError: pass\nelse: assert False, 'it worked'"
        assert pool.judge_one(function(f"def f(x): return {line!r}", caught)) is True, line
    honest = ("import bisect, os, resource\nkept = bytearray(300_000_000)\n"
              f"assert f(2) == 4 and os.getpriority(os.PRIO_PROCESS, 0) == {os.getpriority(os.PRIO_PROCESS, 0)}")
    for line in lines:
        pool.judge([function(f"def f(x): return {line!r}", "eval(f(1))")] * 4)
        assert pool.judge([function("def f(x): return x * x", honest, limit=3)] * 4) == [True] * 4


def test_several_names_and_expressions(pool):
    job = function("def g(x): return x\nclass Solution:\n  def h(self, x): return -x",
                   "assert g(1) == 1 and k(1) == -1", names={"g": "g", "k": "Solution().h"})
    assert pool.judge_one(job) is True
    assert pool.judge_one({**job, "names": {"g": "g", "k": "Solution().missing"}}) is False


def test_names_of_classes_and_values(pool):
    """Exception classes of the program are caught by name, values are what they are, objects stay themselves."""
    program = ("LIMIT = [3]\nclass Bad(ValueError): pass\nclass Worse(Bad): pass\nclass N:\n  next = None\n"
               "  def __init__(self, x): self.x = x\ndef f(x):\n  if x: raise Worse(x)\n  return [N(4), LIMIT]\n"
               "def depth(n): return 1 + depth(n.next) if n else 0\n")
    tests = ("try: f(1)\nexcept Bad as e: assert isinstance(e, ValueError) and e.args == (1,)\nelse: assert False\n"
             "assert LIMIT == [3]\na = N(1)\na.next = N(2)\na.next.next = N(3)\nassert depth(a) == 3\n"
             "assert a.next is a.next and a.next.x == 2 and a.next.next.next is None\n"
             "n, limit = f(0)\nassert n.x == 4 and limit == [3]\n")
    job = function(program, tests, names={name: name for name in ("f", "Bad", "LIMIT", "N", "depth")})
    assert pool.judge_one(job) is True
    assert pool.judge([{**job, "program": program.replace(*change)} for change in (
        ("[3]", "[4]"), ("Worse(Bad)", "Worse(ValueError)"), ("1 + depth", "depth"), ("N(4)", "N(5)"))]) == [False] * 4
    for test in ("assert N(1) == N(1)", "assert N(1)", "assert not N(1)", "assert {N(1)}", "assert N(1) in [2]",
                 "assert 2 in N(1)", "assert isinstance(N(1), N)", "assert sorted([N(1), N(2)])"):
        assert pool.judge_one({**job, "tests": f"try:\n  {test}\nexcept BaseException: pass"}) == "unsupported", test


def test_the_setup_is_not_the_program(pool):
    """Helpers of the tests come from the data set, whatever the program calls its own."""
    job = function("def helper(x): return 4\ndef f(x): return 0", "assert helper(f(2)) == 5",
                   setup="def helper(x): return x + 1\ndef f(x): pass")
    assert pool.judge_one(job) is False
    assert pool.judge_one({**job, "program": "def f(x): return 4"}) is True


@pytest.mark.parametrize("output, wanted, verdict", [
    ("1 2\n3", "1  2 3\n", True), ("1 2", "1 2 3", False), ("1.0000001", "1.0", True), ("1.001", "1.0", False),
    ("1e6", "1000000.0", True), ("1.0", "1", False), ("nan", "nan", True), ("nan", "1.5", False), ("inf", "1.5", False),
    ("YES", "Yes", False), ("", "", True), ("a", "", False), ("1" * 60, "1.5", False), ("1_0.0", "10.0", False),
    ("1.5" + "0" * 60, "1.5", True), ("1.5" + "0" * 60 + "x", "1.5", False), ("1.5" + "0" * 45 + "e1", "1.5", False),
    ("\u0661.0", "1.0", False), ("\uff11.5", "1.5", False), ("1.5", "1_0.5", False), ("+1.5", "1.5", True),
    (".5", "0.5", True), ("5.", "5.0", True), ("0x1.8p0", "1.5", False), ("infinity", "inf.", False),
    ("1\u30002", "1 2", False), ("1\u00852", "1 2", False), ("1e999", "1.5", False), ("\ufffd", "\ufffd", True),
    ("100000.5", "100000.7", False), ("1000000.5", "1000000.6", True), ("0.00001", "1e-05", True),
    ("1E-5", "1e-05", True), ("0.002", "1e-03", False), ("1" + "0" * 22 + ".0", "1e+22", True),
    ("0.500000000000\n" * 2000, "0.5\n" * 2000, True), ("0.51\n" * 2000, "0.5\n" * 2000, False)], ids=range(37))
def test_same(output, wanted, verdict):
    assert sandbox.same(output.encode(), wanted) is verdict


def test_output_that_is_no_text():
    assert not sandbox.same(b"\xff", "\ufffd") and sandbox.same(b"a\0b\n", "a\0b")


@pytest.mark.parametrize("program, verdict", [
    ("while True: pass", "timeouts"), ("import time\nwhile True: time.sleep(1)", "timeouts"),
    ("import os\nos.abort()", "timeouts"),
    ("import os\nos.kill(os.getpid(), 9)", "timeouts"), ("import signal\nsignal.pause()", "timeouts"),
    ("import ctypes\nctypes.string_at(1)", "timeouts"), ("exit(1)", False), ("exit('no')", False),
    ("import os\nos._exit(3)", False), ("1 / 0", False),
    ("import atexit, os\natexit.register(os._exit, 1)", False), ("raise MemoryError", False), ("exit(0)", True),
    ("import os\nos._exit(0)", True),
    ("import os\nif os.fork() == 0:\n  while True: pass", True),  # it has ended; what it leaves behind is killed
    ("import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()", "timeouts")])
def test_a_program_has_to_end_by_itself(program, verdict, beside):
    """After the right output: over the limit, or by a signal, is a time-out; another exit code a failure."""
    def check(pool, program, verdict):
        assert pool.judge([stdio(f"print(int(input()) ** 2, flush=True)\n{program}", limit=limit)
                           for limit in (0.5, 1)]) == [verdict] * 2
        assert clean(pool), traces(pool)
    beside(check)


SQUARE = "print(int(input()) ** 2)"


@pytest.mark.parametrize("program", [
    "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10 ** 6)\n@lru_cache(None)\n"
    f"def f(n): return n and 1 + f(n - 1)\nassert f(40_000) == 40_000\n{SQUARE}",
    f"assert len(str(10 ** 5000)) == 5001 and int('9' * 5000)\n{SQUARE}",
    f"import os\nassert os.path.isabs(__file__) and not open(os.devnull).read()\n{SQUARE}",
    f"import sys\nsys.stderr = open('/dev/stderr', 'w')\nprint('a', file=sys.stderr)\n{SQUARE}",
    "with open('/dev/stdout', 'w') as file: print(int(input()) ** 2, file=file)"], ids=range(5))
def test_what_programs_of_contests_use(program, pool):
    assert pool.judge_one(stdio(program, limit=3)) is True


def test_one_verdict_takes_bounded_time(pool, monkeypatch):
    """However many inputs: here two seconds in all instead of 10 times the limit and 30."""
    source = sandbox.worker_arguments
    monkeypatch.setattr(sandbox, "worker_arguments", lambda *a: {
        **(found := source(*a)),
        "args": [x.replace("10 * limit + 30", "2") if len(x) > 1000 else x for x in found["args"]]})
    short = programs.CodePool(sandbox.settle(), 100)
    program, many = "import time\ntime.sleep(0.3)\nprint(int(input()) ** 2)", [(str(n), str(n * n)) for n in range(10)]
    short.judge_one(stdio("", many))
    started = time.perf_counter()
    assert short.judge_one(stdio(program, many)) == "timeouts" and 1.5 < time.perf_counter() - started < 20
    assert pool.judge_one(stdio(program, many)) is True
    assert sandbox.whole(3) == 60


def test_sets_have_the_same_order_in_every_run(pool):
    """Hashes are not random: a program that depends on them has the same verdict again."""
    words = "{'one', 'two', 'three', 'four', 'five', 'six', 'seven'}"
    order = subprocess.run([sys.executable, "-c", f"print(list({words}))"], env={"PYTHONHASHSEED": "0"},
                           capture_output=True, text=True).stdout.strip()
    assert pool.judge([function(f"def f(x): return list({words})  # {i}", f"assert f(1) == {order}")
                       for i in range(6)]) == [True] * 6


def test_time_limits_are_of_the_problem(pool):
    program = ("import time\ndef f(x):\n  end = time.process_time() + 0.2\n  while time.process_time() < end: pass\n"
               "  return x * x")
    assert pool.judge([function(program, limit=4), function(program, limit=0.1)]) == [True, "timeouts"]
    program = "import time\nwhile time.process_time() < 0.5: pass\nprint(int(input()) ** 2)"
    # Each input has its own time.
    assert pool.judge([stdio(program, limit=3), stdio(program, limit=0.2)]) == [True, "timeouts"]


# ------------------------------------------------------------------------------------------------- memory, time, groups

MANY = {what: attack(f"import os\nfor n in range(30_000): {call}\nwin()") for what, call in (
    ("files", "open(f'/tmp/{x} {n}', 'w').close()"), ("folders", "os.mkdir(f'/tmp/{x} {n}')"),
    ("links", "os.symlink('a', f'/tmp/{x} {n}')"))}


@pytest.mark.parametrize("what", MANY)
def test_files_are_bounded_by_number(what, pool):
    """Empty ones too, which no limit of bytes counts, and also where each input has little time to leave some."""
    assert pool.judge_one(function(MANY[what].replace("30_000", "1_000"), limit=20)) is True
    assert pool.judge_one(function(MANY[what], limit=20)) == "timeouts"
    program = "import os\nx = int(input())\nfor n in range(3_000): open(f'/tmp/{x}-{n}', 'w').close()\nprint(x)"
    assert pool.judge_one(stdio(program, [(str(n), str(n)) for n in range(2)], limit=5)) is True
    assert pool.judge_one(stdio(program, [(str(n), str(n)) for n in range(9)], limit=5)) == "timeouts"
    assert clean(pool), traces(pool)


MAIN_THREAD_EXITS = """
import ctypes, threading, time
def eat():
    kept = bytearray(300_000_000)
    for i in range(0, len(kept), 4096): kept[i] = 1
    time.sleep(1000)
threading.Thread(target=eat).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_memory_behind_a_main_thread_that_has_ended():
    """/proc/PID/stat knows of none then."""
    child = subprocess.Popen([sys.executable, "-c", MAIN_THREAD_EXITS])
    try:
        deadline = time.monotonic() + 20
        while sandbox.usage(child.pid)[0] < 300_000_000 and time.monotonic() < deadline:
            time.sleep(0.05)
        deadline = time.monotonic() + 20
        while (Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[21] != "0"
               and time.monotonic() < deadline):
            time.sleep(0.05)
        assert Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[21] == "0"  # the attack is real
        assert sandbox.usage(child.pid)[0] > 300_000_000
    finally:
        child.kill()
        child.wait()


def test_time_of_children_that_nobody_waits_for(pool):
    """Each within its own limit, all of them beyond that of the program, in both kinds of problem."""
    burn = ("import os, time\ndef burn():\n  for _ in range(14):\n    if os.fork() == 0:\n      if os.fork() == 0:\n"
            "        while time.process_time() < 0.5: pass\n      os._exit(0)\n  time.sleep(4)\n")
    assert pool.judge([function(burn + "def f(x):\n  if x == 2: burn()\n  return x * x", limit=1),
                       stdio(burn + "burn()\nprint(int(input()) ** 2)", limit=1)]) == ["timeouts"] * 2


@pytest.fixture
def group():
    try:
        group = sandbox.Group()
    except OSError:
        pytest.skip("no cgroup with memory and pids can be made here (not root, and nothing delegated): "
                    "the bounds by cgroup are NOT tested")
    yield group
    group.remove()


def test_a_group_bounds_memory_and_processes(group):
    """What the kernel holds for the processes counts, and what is started later."""
    code = ("import os, sys\nsys.stdin.readline()\nn = 0\ntry:\n  while n < 200:\n"
            "    if os.fork() == 0: sys.stdin.read(); os._exit(0)\n    n += 1\n"
            "except BlockingIOError: pass\nprint(n, flush=True)\nkept = bytearray(4 << 30)\n"
            "for i in range(0, len(kept), 4096): kept[i] = 1\nprint('survived', flush=True)")
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    group.add(child.pid)
    out, _ = child.communicate("\n", timeout=60)
    assert out.startswith(f"{sandbox.GROUP_PROCESSES - 1}\n") and "survived" not in out and child.returncode == -9
    folders = list(group.folders)
    assert folders and all(os.path.isdir(folder) for folder in folders)
    group.remove()
    assert not any(os.path.exists(folder) for folder in folders)


def test_a_worker_lives_in_a_group_and_the_caller_does_not(group):
    own = Path("/proc/self/cgroup").read_text()
    note = sandbox.settle()["note"]
    pool = programs.CodePool(sandbox.settle(), 100)
    assert pool.judge([function("def f(x): return x * x"), function("def f(x):\n  while True: pass")]) == [
        True, "timeouts"]
    workers = [child for child in pool.children.queue if child is not None]
    folders = [folder for child in workers for folder in child.group.folders]
    assert f"cgroups of {group.note}" in note and Path("/proc/self/cgroup").read_text() == own
    for child in workers:
        deadline = time.monotonic() + 10
        while True:  # a judge forks the next of its kind after its verdict: between two readings
            inside = (Path(child.group.folders[0]) / "cgroup.procs").read_text().split()
            expected = {str(child.pid), *map(str, below(child.pid))}
            if expected == set(inside) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        assert expected == set(inside)
    del pool, workers, child
    deadline = time.monotonic() + 20
    while any(map(os.path.exists, folders)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(os.path.exists, folders))


def test_what_a_killed_caller_leaves_is_cleared(group):
    """An empty group of a process that is gone goes with the next one that is made."""
    place = os.path.dirname(group.folders[0])
    old = os.path.join(place, f"{sandbox.GROUP}-{2 ** 30}-1")
    os.mkdir(old)
    sandbox.Group().remove()
    assert not os.path.exists(old) and os.path.exists(group.folders[0])


def test_without_a_group_the_same_bounds_are_watched(monkeypatch):
    def refuse(self):
        raise OSError
    monkeypatch.setattr(sandbox.Group, "__init__", refuse)
    arguments = sandbox.settle()
    assert "no cgroup can be made here" in arguments["note"]
    watched = programs.CodePool(arguments, 100)
    bomb = ("import os\ndef f(x):\n  for _ in range(3): os.fork()\n  kept = bytearray(900_000_000)\n"
            "  for i in range(0, len(kept), 4096): kept[i] = 1\n  while True: pass")
    assert watched.judge([function("def f(x): return x * x"), function(bomb, limit=5),
                          function(MANY["files"], limit=5)]) == [True, "timeouts", "timeouts"]


# ----------------------------------------------------------------------------------------------- workers and the caller

def worker_code(job, seconds=100):
    return (f"import sys, json, subprocess, time; sys.path.insert(0, {ROOT!r}); from tasks import programs, sandbox\n"
            f"pool = programs.CodePool(sandbox.settle(), {seconds})\nprint('up', flush=True)\npool.judge([{job!r}])")


def test_nothing_outlives_a_caller_that_is_killed(pool):
    job = function(HOSTILE["fork bomb of sleepers"], limit=30)
    parent = subprocess.Popen([sys.executable, "-c", worker_code(job)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "up\n"
        deadline = time.monotonic() + 20
        while len(below(parent.pid)) < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        family = below(parent.pid)
        assert len(family) >= 20
        parent.kill()
        parent.wait()

        def alive():
            found = []
            for p in family:
                with contextlib.suppress(OSError):  # it has gone, perhaps just now
                    found += [p] if " Z " not in Path(f"/proc/{p}/stat").read_text() else []
            return found
        deadline = time.monotonic() + 20
        while alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive()
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def test_a_dropped_pool_takes_its_sandboxes_along():
    pool = programs.CodePool(sandbox.settle(), 100)
    assert pool.judge([function("def f(x): return x * x")] * 2) == [True, True]
    family = [p for child in pool.children.queue if child for p in [child.pid, *below(child.pid)]]
    assert len(family) >= 3
    del pool
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{p}") for p in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{p}") for p in family)


def test_killed_workers_and_judges_cost_no_verdict(pool):
    for victim in ("worker", "judge"):
        for child in [c for c in pool.children.queue if c is not None]:
            for pid in [child.pid] if victim == "worker" else below(child.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        assert pool.judge([function("def f(x): return x * x"), function("def f(x): return 0")] * 4) == [True, False] * 4
        assert clean(pool), traces(pool)


def test_no_sandbox_is_one_sentence(monkeypatch, capfd):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "bwrap" else which(name))
    with pytest.raises(tasks.UserError,
                       match="not installed.*apt install bubblewrap.*--allow-unsandboxed-code") as error:
        sandbox.settle()
    assert "\n" not in str(error.value)
    assert capfd.readouterr().out == ""
    pool = programs.CodePool(sandbox.settle(allow_unsandboxed=True), 100)
    assert "WARNING: no sandbox" in capfd.readouterr().out
    assert pool.judge([function("def f(x): return x * x"), function("def f(x): return 0"), stdio(HONEST_STDIO[0]),
                       stdio("print(0)"), function("import time\ndef f(x): time.sleep(100)"),
                       function(attack("import os\nif os.getpid() == 1: win()"))]) == [
        True, False, True, False, "timeouts", False]


def test_bubblewrap_without_namespaces_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    for path in (tmp_path, *tmp_path.parents[:3], tmp_path / "bwrap"):
        if os.getuid() == 0 or path.owner() == os.environ.get("USER"):
            path.chmod(0o755) if str(path) != "/tmp" else None
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "bwrap"))
    with pytest.raises(tasks.UserError, match="No permissions to create new namespace") as error:
        sandbox.settle()
    assert "\n" not in str(error.value)


def test_a_working_sandbox_is_used_although_it_need_not(capfd):
    pool = programs.CodePool(sandbox.settle(allow_unsandboxed=True), 100)
    assert capfd.readouterr().out == ""
    assert pool.judge_one(function(attack("import os\nif os.getpid() == 1: win()"))) is True
