"""Programs that attack the sandbox, and honest ones beside them. Every attack returns what the tests want if it succeeds."""
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import sandbox
import tasks

if shutil.which("bwrap") is None:
    pytest.skip("bubblewrap is not installed (apt install bubblewrap)", allow_module_level=True)

TESTS = "assert f(2) == 4\nassert f(3) == 9 and f(-12) == 144"
MARK = f"sandbox-mark-{os.getpid()}"
HERE = os.path.abspath(__file__)


@pytest.fixture(scope="module")
def pool():
    pool = tasks.CodePool(sandbox.settle(), 200)
    pool.judge([function("def f(x): return x * x")] * 8)  # the workers and their judges are up
    return pool


def function(program, tests=TESTS, limit=0.5, **more):
    return {"kind": "tests", "program": program, "setup": "", "tests": tests, "names": {"f": "f"}, "limit": limit, **more}


def stdio(program, cases=(("2\n", "4\n"), ("3\n", "9\n"), ("-12", "144")), limit=0.5):
    return {"kind": "stdio", "program": program, "inputs": [i for i, _ in cases], "outputs": [o for _, o in cases], "limit": limit}


def attack(code):
    """A program that squares if `code`, which may call win(), gets there, and fails otherwise."""
    indented = "\n".join("    " + line for line in code.strip("\n").split("\n"))
    return f"class Won(BaseException): pass\ndef win(): raise Won\ndef f(x):\n  try:\n{indented}\n  except Won:\n    return x * x\n"


def below(pid):
    """Process ids of all descendants."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
            try:
                found += [int(child), *below(child)]
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found


def traces(pool):
    """What should be there before and after any verdict: two processes per judge, and no marked file anywhere outside."""
    running = sum(len(below(child.pid)) for child in pool.children.queue if child is not None)
    judges = 2 * sum(1 for child in pool.children.queue if child is not None)
    places = ["/", "/tmp", "/dev/shm", "/var/tmp", "/run", os.path.expanduser("~"), os.path.dirname(HERE), os.getcwd(), "/usr/lib"]
    files = [os.path.join(place, MARK) for place in places if os.path.exists(os.path.join(place, MARK))]
    strays = []
    if os.getuid() == 0:  # then all that the sandbox runs is the unprivileged user's
        ours = {p for child in pool.children.queue if child is not None for p in [child.pid, *below(child.pid)]}
        for stat in Path("/proc").glob("[0-9]*"):
            try:
                if stat.stat().st_uid == sandbox.NOBODY and int(stat.name) not in ours and b"marshal" in (stat / "cmdline").read_bytes():
                    strays.append(stat.name)
            except (FileNotFoundError, ProcessLookupError):
                pass
    return max(0, running - judges), files, strays


def clean(pool):
    deadline = time.monotonic() + 2  # what is killed stays visible for a moment
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
    "ignores signals": "import signal, time\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): pass\n"
                       "def f(x):\n  while True: time.sleep(1)",
    "fork bomb": "import os\ndef f(x):\n  while True:\n    try: os.fork()\n    except OSError: pass",
    "fork bomb of sleepers": "import os, time\ndef f(x):\n  while True:\n    try:\n      if os.fork() == 0: time.sleep(1000)\n"
                             "    except OSError: time.sleep(1000)",
    "memory bomb": "def f(x):\n  kept = []\n  while True: kept.append(bytearray(50_000_000))",
    "memory bomb in many processes": "import os\ndef f(x):\n  for _ in range(4): os.fork()\n  kept = []\n"
                                     "  while True:\n    try: kept.append(b'x' * 20_000_000)\n    except MemoryError: pass",
    "disk fill": "def f(x):\n  n = 0\n  while True:\n    n += 1\n    with open(f'/tmp/{n}', 'wb') as file: file.write(bytes(10_000_000))",
    "100 MB of output": "import os\ndef f(x):\n  print('x' * 100_000_000)\n  os.write(1, b'x' * 1000)\n  os.write(2, b'x' * 1000)\n  return 0",
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
    "kills from outside its group": "import os\ndef f(x):\n  if os.fork() == 0:\n    os.setsid()\n    for p in (0, -1, 1, os.getppid()):\n"
                                    "      try: os.kill(p, 9)\n      except OSError: pass\n    os._exit(0)\n  os.wait()\n  return 0",
    "stops everybody": "import os\ndef f(x):\n  if os.fork() == 0: os.kill(os.getppid(), 19); os.kill(-1, 19)\n  os.kill(0, 19)\n  return 0",
    "daemon thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\ndef f(x): return 0",
    "double fork": "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork(): os._exit(0)\n  time.sleep(1000)\ndef f(x): return 0",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
    "deep recursion in C": "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n  def __getattr__(self, n): return getattr(self, n + 'a')\n"
                           "  def __repr__(self): return repr(self)\ndef f(x): return repr(A())",
    "BaseException": "def f(x): raise BaseException",
    "KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "GeneratorExit": "def f(x): raise GeneratorExit",
    "asserts itself": "def f(x): raise AssertionError",
    "no error at all": "class E(Exception):\n  def __str__(self): raise SystemExit\ndef f(x): raise E",
    "NUL": "def f(x): return x * x\0",
    "half a surrogate pair": "def f(x): return x * x  # \ud800",
    "invalid UTF-8": "import os\nfor n in range(3, 64):\n  try: os.write(n, b'\\xff\\xfe\\x00' * 100)\n  except OSError: pass\ndef f(x): return x * x",
    "closes everything": "import os\nos.closerange(0, 100)\ndef f(x): return x * x",
    "syntax error": "def f(x: return",
    "no function": "x = 1",
    "not a function": "f = 4",
    "replaces builtins": "import builtins\nbuiltins.AssertionError = builtins.Exception = OSError\nbuiltins.__build_class__ = None\n"
                         "builtins.int = builtins.isinstance = lambda *a: True\nbuiltins.exec = builtins.compile = lambda *a: None\ndef f(x): return 0",
    "always equal": "class A:\n  __eq__ = __ne__ = __bool__ = __contains__ = lambda *a: True\n  __hash__ = lambda s: 4\ndef f(x): return A()",
    "always equal int": "class A(int):\n  __eq__ = lambda *a: True\n  __hash__ = int.__hash__\n  __index__ = __int__ = lambda s: 4\ndef f(x): return A(0)",
    "lying class": "class A:\n  __class__ = int\n  __eq__ = lambda *a: True\ndef f(x): return A()",
    "pickle": "class A:\n  def __reduce__(self): return (eval, ('4',))\n  __eq__ = lambda *a: True\ndef f(x): return A()",
    "always equal in a list": "class A(list):\n  __eq__ = lambda *a: True\ndef f(x): return A([1])",
    "always equal text": "class A(str):\n  __eq__ = lambda *a: True\n  __hash__ = str.__hash__\ndef f(x): return A('4')",
    "not a number": "def f(x): return float('nan')",
    "endless value": "def f(x):\n  a = []\n  a.append(a)\n  return a",
    "deep value": "def f(x):\n  a = []\n  for _ in range(100_000): a = [a]\n  return a",
    "huge text": "def f(x): return 'x' * 50_000_000",
    "huge number": "def f(x): return 1 << 60_000_000",
    "colliding set": "def f(x): return {n * (2 ** 61 - 1) for n in range(30_000)}",
    "endless generator": "def f(x):\n  while True: yield 4",
    "verdicts in print": "import sys\nprint('true', '1', 'OK', 'passed', '{\"verdict\": true}', flush=True)\nsys.stderr.write('true\\n')\ndef f(x): return 0",
    "verdicts in every file": "import os\nfor n in range(64):\n  for b in (b'1', b'true\\n', b'00000001T', b'0000000ds6:loaded', b'+'):\n"
                              "    try: os.write(n, b)\n    except OSError: pass\ndef f(x): return 0",
    "answers before it is asked": "import sys, os\ng = sys._getframe(2).f_globals\nl = sys._getframe(2).f_locals\n"
                                  "for n in range(100): g['send'](l['sink'], g['encode'](['value', True, False]))\ndef f(x): return 0",
    "answers with a list": "import sys\ng = sys._getframe(2).f_globals\ng['encode'] = lambda v, d=0: b'l0:'\ndef f(x): return 0",
    "answers with another word": "import sys\ng = sys._getframe(2).f_globals\nold = g['encode']\n"
                                 "g['encode'] = lambda v, d=0: old(['error', 'SystemExit', '0'])\ndef f(x): return 0",
    "frames that promise more": "import sys, os\nl = sys._getframe(2).f_locals\nos.write(l['sink'], b'00ffffffs')\ndef f(x): return 0",
    "patches the harness": "import sys\nfor m in list(sys.modules.values()):\n  for n in ('exec', 'eval', 'decode', 'run_tests', 'judge'):\n"
                           "    try: setattr(m, n, lambda *a: b'1')\n    except Exception: pass\n"
                           "for n in ('run_tests', 'same', 'decode'): sys._getframe(2).f_globals[n] = lambda *a: b'1'\ndef f(x): return 0",
    # and attacks that would win if they got what they are after
    "reads passwd": attack("import os\nif open('/etc/passwd').read(): win()"),
    "reads homes": attack(f"import os\nfor p in ('/root', '/home', {os.path.expanduser('~')!r}):\n  if os.path.exists(p): win()"),
    "reads the tests": attack(f"if 'HOSTILE' in open({HERE!r}).read(): win()"),
    "reads the repository": attack(f"import os\nif os.path.exists({os.path.dirname(HERE)!r}): win()"),
    "reads the environment": attack("import os\nif set(os.environ) - {'PYTHONHASHSEED', 'PWD', 'LC_CTYPE'}: win()"),
    "reads /proc": attack("import os\nfor p in ('/proc/1/environ', '/proc/self/status', '/sys'):\n  if os.path.exists(p): win()"),
    "finds the tests in memory": attack("import gc, sys\nwanted = 'f(' + '-12)'\nfor o in gc.get_objects():\n  if isinstance(o, (dict, list, tuple)) and wanted in str(o): win()\n"
                                        "g = sys._getframe(1)\nwhile g:\n  if wanted in str(g.f_locals): win()\n  g = g.f_back"),
    "socket": attack("import socket\nfor a in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):\n  try: socket.socket(a)\n  except OSError: pass\n  else: win()"),
    "connects": attack("import socket\nsocket.create_connection(('127.0.0.1', 22), 1)\nwin()"),
    "inherited files": attack("import os\nopened = 0\nfor n in range(1024):\n  try: os.fstat(n); opened += 1\n  except OSError: pass\nif opened > 5: win()"),
    "writes outside /tmp": attack("import os\nfor p in ('/', '/dev', '/dev/shm', '/usr', '/usr/lib', '/etc', '/var/tmp', '/run', '/home'):\n"
                                  f"  try: open(os.path.join(p, {MARK!r}), 'w').close()\n  except OSError: pass\n  else: win()"),
    "writes more than 64 MB": attack("import os\ntotal = 0\nfor n in range(40):\n  try:\n    with open(f'/tmp/{n}', 'wb') as file:\n"
                                     "      for _ in range(100): total += file.write(bytes(100_000)); file.flush()\n  except OSError: pass\nif total > 68_000_000: win()"),
    "long file": attack("with open('/tmp/a', 'wb') as file:\n    file.write(bytes(20_000_000))\nwin()"),
    "memory in no address space": attack("import os\nos.memfd_create('a')\nwin()"),
    "shared memory": attack(SYSCALL + "if c.shmget(0, 1 << 30, 0o1600) >= 0 or c.msgget(0, 0o1600) >= 0: win()"),
    "raises its limits": attack("import resource\nfor n in dir(resource):\n  if n.startswith('RLIMIT_'):\n    try:\n      r = getattr(resource, n)\n"
                                "      s, h = resource.getrlimit(r)\n      if h > 0: resource.setrlimit(r, (h + 1, h + 1)); win()\n    except (ValueError, OSError): pass"),
    "many processes": attack("import os, time\nn = 0\ntry:\n  while n < 60:\n    if os.fork() == 0: time.sleep(20); os._exit(0)\n    n += 1\nexcept OSError: pass\nif n > 32: win()"),
    "many threads": attack("import threading, time\nn = 0\ntry:\n  while n < 60: threading.Thread(target=time.sleep, args=(1,), daemon=True).start(); n += 1\n"
                           "except RuntimeError: pass\nif n > 32: win()"),
    "new user namespace": attack(SYSCALL + "if c.unshare(0x10000000) == 0: win()"),
    "new user namespace by clone": attack(SYSCALL + "pid = c.syscall({'x86_64': 56}.get(os.uname().machine, 220), 0x10000011, 0, 0, 0, 0)\n"
                                          "if pid == 0: os._exit(0)\nif pid > 0: win()"),
    "mounts": attack(SYSCALL + "if c.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0 or c.mount(None, b'/', None, 32, None) == 0: win()"),
    "chroot": attack("import os\nos.chroot('/tmp')\nwin()"),
    "traces": attack(SYSCALL + "if c.ptrace(0, 0, 0, 0) == 0: win()"),
    "x32 calls": attack(SYSCALL + "if os.uname().machine == 'x86_64' and c.syscall(0x40000000 + 41, 2, 1, 0) >= 0: win()"),
    "becomes root": attack("import os\nfor u in (0, 1000):\n  try: os.setuid(u); win()\n  except OSError: pass\nif os.getuid() == 0: win()"),
    "signals the caller": attack(f"import os\nfor p in ({os.getpid()}, {os.getppid()}):\n  if p > 100:\n    try: os.kill(p, 0); win()\n    except ProcessLookupError: pass"),
    "meets its neighbours": attack("import os\nif os.getpid() != 1 or os.getppid() != 0: win()\nfor p in range(2, 40000):\n"
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
    "writes from behind": "import os, time\nif os.fork() == 0:\n  os.setsid()\n  while True: open('/tmp/stdout', 'w').write('9')\nprint(4)",
    "remembers": "import os\nn = len(os.listdir('/tmp'))\nprint(n)\nopen(f'/tmp/{n}', 'w').close()",
    "invalid text": "import os\nos.write(1, b'\\xff\\x00\\xfe' * 10)",
    "reads on": "import os\nfor n in range(3, 64):\n  try: os.read(n, 100); print('4')\n  except OSError: pass",
    "writes frames": "import os\nfor n in range(3, 64):\n  try: os.write(n, b'000000014' * 3)\n  except OSError: pass",
    "memory of process 1": "import ctypes\nc = ctypes.CDLL(None)\nb = ctypes.create_string_buffer(8)\n"
                           "class V(ctypes.Structure): _fields_ = [('a', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
                           "l, r = V(ctypes.addressof(b), 8), V(id(None), 8)\n"
                           "if c.process_vm_readv(1, ctypes.byref(l), 1, ctypes.byref(r), 1, 0) > 0 or c.syscall(434, 1, 0) > 0 and c.syscall(438, c.syscall(434, 1, 0), 3, 0) > 0: print(int(input()) ** 2)",
    "NUL": "print(int(input()) ** 2)\0",
    "empty": "",
}


def within(job):
    return sum(3 * job["limit"] + 2 for _ in job.get("inputs", "1")) + 15  # and what a busy machine adds


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_function(name, pool):
    job, started = function(HOSTILE[name]), time.perf_counter()
    assert pool.judge_one(job) in (False, "timeouts", "unsupported", "errors")
    assert time.perf_counter() - started < within(job)
    assert clean(pool), traces(pool)
    assert pool.judge([function("def f(x): return x * x")] * 2 + [stdio("print(int(input()) ** 2)")]) == [True] * 3


@pytest.mark.parametrize("name", STDIO_HOSTILE)
def test_hostile_program(name, pool):
    job, started = stdio(STDIO_HOSTILE[name]), time.perf_counter()
    assert pool.judge_one(job) in (False, "timeouts", "unsupported", "errors")
    assert time.perf_counter() - started < within(job)
    assert clean(pool), traces(pool)
    assert pool.judge([function("def f(x): return x * x"), stdio("print(int(input()) ** 2)")]) == [True] * 2


def test_attacks_would_win_without_a_sandbox(monkeypatch):
    """The attacks on files and processes are real: outside they reach what they are after."""
    names = ["reads passwd", "reads the tests", "reads /proc", "socket", "memory in no address space", "signals the caller", "shared memory"]
    for name in names:
        done = subprocess.run([sys.executable, "-c", HOSTILE[name] + "\nprint(f(3))"], capture_output=True, text=True, timeout=60)
        assert done.stdout == "9\n", (name, done.stderr)
