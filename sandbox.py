"""Runs model-written Python under bubblewrap and says whether it solves a problem. Only the verdict comes back.

Three kinds of process, all of this file; between them go frames of plain data (`encode`, `decode`), never objects:

    worker     outside, trusted: starts the sandboxes, watches time and memory, compares the output of programs
    candidate  a fresh sandbox per verdict: the hostile program, and enough harness to feed it. Whatever the program does to
               this interpreter or writes into its pipe, it can only change the values that it answers with
    judge      another sandbox, one per worker: the tests, with a proxy in place of every function they call. It forks for
               each verdict and kills all that is left between two; it never sees code of the program, only plain values

The judge is warm because starting Python is most of the price of a verdict. It is in a sandbox too, although tests come from
the data set: a test may `eval` what it gets, and people's data sets are other people's code. A program sees the arguments it
is called with, or its standard input, and no expected value. Its exit code and its claims decide nothing.

Not guaranteed: protection from bugs of the kernel, or from side channels (timing, load). Standard library only.
"""
import os
import sys

NOBODY = 65534
MEMORY, TOGETHER = 1 << 30, 2 << 30  # bytes of address space of one process; resident bytes of all in a sandbox
PROCESSES, FILE, DISK = 32, 16 << 20, 64 << 20  # processes and threads; bytes of one file; bytes of all files
FRAME = 16 << 20  # longest frame in bytes
START_LIMIT = 60  # seconds for a sandbox to start, however busy the machine; not counted as the program's


# ------------------------------------------------------------------------------------------------------------ plain data

class Unsupported(BaseException):
    """A value that is not plain data. Not an Exception: a test must not catch it."""


class Gone(BaseException):
    """The other side has ended, or sent what is no frame."""


def encode(value, depth=0):
    """Plain data -> bytes. Subclasses travel as the plain type they extend.  Raises Unsupported for anything else."""
    if depth > 100:
        raise Unsupported
    if value is None or value is True or value is False:
        return {None: b"N", True: b"T", False: b"F"}[value]
    if isinstance(value, int):
        body = b"i" + format(int.__index__(value), "x").encode()  # hexadecimal takes linear time
    elif isinstance(value, float):
        body = b"f" + float.hex(value).encode()
    elif isinstance(value, complex):
        body = b"c" + f"{float.hex(value.real)} {float.hex(value.imag)}".encode()
    elif isinstance(value, str):
        body = b"s" + str.encode(value, "utf-8", "surrogatepass")
    elif isinstance(value, (bytes, bytearray)):
        body = (b"b" if isinstance(value, bytes) else b"a") + bytes(value)
    else:
        for tag, kind in ((b"l", list), (b"t", tuple), (b"S", set), (b"Z", frozenset), (b"d", dict)):
            if isinstance(value, kind):
                items = [x for pair in dict.items(value) for x in pair] if kind is dict else list(kind.__iter__(value))
                body = tag + b"".join([encode(x, depth + 1) for x in items])
                break
        else:
            raise Unsupported
    return b"%s%x:%s" % (body[:1], len(body) - 1, body[1:])


def decode(data):
    """The value of bytes that may come from anybody.  Raises Gone if they are not what `encode` makes."""
    def read(at, end, depth):  # -> value, where it ends
        tag, at = data[at:at + 1], at + 1
        if tag in (b"N", b"T", b"F"):
            return {b"N": None, b"T": True, b"F": False}[tag], at
        colon = data.index(b":", at, at + 9)
        stop = colon + 1 + int(data[at:colon], 16)
        if stop > end or stop <= colon or depth > 101:
            raise ValueError
        if tag in (b"l", b"t", b"S", b"Z", b"d"):
            items, at = [], colon + 1
            while at < stop:
                item, at = read(at, stop, depth + 1)
                items.append(item)
            return {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset,
                    b"d": lambda items: dict(zip(items[::2], items[1::2], strict=True))}[tag](items), stop
        body = data[colon + 1:stop]
        return {b"i": lambda b: int(b, 16), b"f": lambda b: float.fromhex(b.decode()), b"b": bytes, b"a": bytearray,
                b"c": lambda b: complex(*map(float.fromhex, b.decode().split())),
                b"s": lambda b: b.decode("utf-8", "surrogatepass")}[tag](body), stop
    try:
        value, end = read(0, len(data), 0)
        if end == len(data):
            return value
    except Exception:
        pass
    raise Gone


def send(fd, data):
    """Write one frame: its length in eight hexadecimal digits, then the bytes.  Raises Gone, Unsupported if it is too long."""
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
    parts = []
    for header in (True, False):
        missing = 8 if header else size
        while missing > 0:
            wait()
            part = os.read(fd, min(missing, 1 << 20))
            if not part:
                raise Gone
            parts.append(part)
            missing -= len(part)
        if header:
            head, parts = b"".join(parts), []
            if not all(c in b"0123456789abcdef" for c in head) or int(head, 16) > FRAME:
                raise Gone
            size = int(head, 16)
    return b"".join(parts)


# ------------------------------------------------------------------------------------------------------- inside a sandbox

def limit(cpu=None):
    """Limits of this process and its children, which cannot be raised again. A core limit of 1, unlike 0, also keeps the kernel
    from piping a core to a crash reporter outside."""
    import resource
    if cpu is not None:
        return resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    for name, value in (("CORE", 1), ("AS", MEMORY), ("FSIZE", FILE), ("NOFILE", 64), ("NPROC", PROCESSES)):
        if name != "NPROC" or os.getpid() == 1:  # outside a namespace it would count all processes of the user
            try:
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
            except (ValueError, OSError):
                if os.getpid() == 1:
                    raise  # a sandbox without its limits is none


def sweep():
    """Kill and reap everything else in this process namespace. Only its process 1 may: elsewhere that is everything."""
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


def load(program, name):
    """The globals of the program after it has run as module `name`."""
    import builtins
    builtins.exit = builtins.quit = sys.exit  # the module `site`, which has them, is not loaded
    module = sys.modules[name] = type(sys)(name)
    exec(compile(program, "program.py", "exec"), vars(module))
    return vars(module)


def candidate():
    """Process 1 of a program's sandbox. Nothing of the program has run before `load`."""
    source, sink = private()
    os.write(sink, b"+")
    kind, program, entries, cpu = decode(receive(source))
    limit()
    if kind == "stdio":
        return serve_stdio(source, sink, program, cpu)
    limit(cpu)
    try:
        names = load(program, "program")
        functions = {name: eval(entry, names) for name, entry in entries.items()}
    except BaseException:
        return send(sink, encode("failed"))
    send(sink, encode("loaded"))
    while True:
        asked = receive(source)
        name, args, kwargs = decode(asked)
        before = encode([args, kwargs])
        try:
            value = functions[name](*args, **kwargs)
            reply = encode(["value", value, encode([args, kwargs]) != before])
        except Unsupported:
            reply = encode(["unsupported"])
        except BaseException as error:
            reply = encode(["error", type(error).__name__, str(error)[:1000]])
        send(sink, reply)


def serve_stdio(source, sink, program, cpu):
    """Run the program on one input after the other, each in a process of its own that does not have the pipes; here we
    are process 1, which nobody inside can signal. Input and output are files, which the file limit bounds."""
    while True:
        data = receive(source)
        with open("stdin", "wb") as file:
            file.write(data)
        pid = os.fork()
        if pid == 0:
            os.close(source)
            os.close(sink)
            for fd, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
                os.dup2(os.open(name, flags, 0o600), fd)
            limit(cpu)
            sys.argv = ["program.py"]
            load(program, "__main__")
            return  # like any program: non-daemon threads are waited for and buffers flushed
        os.waitpid(pid, 0)
        sweep()
        with open("stdout", "rb") as file:
            data = file.read(FRAME)
        os.remove("stdout")
        send(sink, data)


def judge():
    """Process 1 of the sandbox of the tests: a child for every job that arrives with its pipes."""
    import socket
    for name in ("typing", "math", "re", "collections", "itertools", "functools", "random"):
        __import__(name)  # once here instead of in every child
    connection = socket.socket(fileno=private()[0])
    limit()
    connection.sendall(b"+")
    while True:
        _, fds, _, _ = socket.recv_fds(connection, 1, 3)
        if len(fds) != 3:
            return
        job = receive(connection.fileno())
        pid = os.fork()
        if pid == 0:
            try:
                connection.close()
                os.write(fds[2], run_tests(*decode(job), *fds[:2]))
            finally:
                os._exit(0)
        for fd in fds:
            os.close(fd)
        os.waitpid(pid, 0)
        sweep()


def run_tests(setup, tests, names, cpu, sink, source):
    """Verdict of the tests on the program behind the pipes: b"1", b"0" or b"u" (unsupported)."""
    import builtins
    flags = {"mutated": False, "gone": False, "unsupported": False}
    limit(cpu + 5)

    def proxy(name):
        def call(*args, **kwargs):
            try:
                send(sink, encode([name, list(args), kwargs]))
                reply = decode(receive(source))
                kind = reply[0]
                if kind == "value":
                    flags["mutated"] |= reply[2] is True
                    return reply[1]
                if kind == "error":
                    kind, text = getattr(builtins, reply[1], None), str(reply[2])
                else:
                    flags["unsupported"] = True
            except Unsupported:
                flags["unsupported"] = True
            except Exception:  # a reply that is plain data but no reply
                kind = None
            except Gone:
                kind = None
            if flags["unsupported"]:
                raise Unsupported
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                flags["gone"] = True
                raise Gone
            try:
                error = kind(text)
            except Exception:
                error = Exception(text)
            raise error
        return call
    try:
        if decode(receive(source)) != "loaded":
            return b"0"
        space = {"__name__": "tests"}
        exec(compile(setup, "setup.py", "exec"), space)
        space.update((name, proxy(name)) for name in names)
        exec(compile(tests, "tests.py", "exec"), space)
        passed = not flags["gone"]
    except BaseException:
        passed = False
    # A program that changed its arguments may have done so for a test that looks at them, which it cannot see here.
    return b"u" if flags["unsupported"] or flags["mutated"] and not passed else b"01"[passed:passed + 1]


# -------- the worker ----------------------------------------------------------------------------------------------------

DENIED = {  # system calls -> numbers on x86_64, and on aarch64 and riscv64 (which share a table)
    "socket": (41, 198), "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438), "kcmp": (312, 272), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432), "mount_setattr": (442, 442), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "personality": (135, 92), "syslog": (103, 116),
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kexec_load": (246, 104),
    "init_module": (175, 105), "finit_module": (313, 273)}
MACHINES = {"x86_64": (0xC000003E, 0, 56, 302), "aarch64": (0xC00000B7, 1, 220, 261),  # arch, table, clone, prlimit64
            "riscv64": (0xC00000F3, 1, 220, 261)}


def seccomp():
    """A filter (BPF program) that refuses what no solution of a problem needs: sockets, memory that is neither in the address
    space nor in a file, other processes' memory, limits and priorities, new namespaces, and large corners of the kernel."""
    from struct import pack
    arch, table, clone, prlimit = MACHINES[os.uname().machine]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000  # 1 is EPERM, 0x26 ENOSYS
    steps = [(load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, kill), (load, 0, 0, 0)]
    for code, number, reply in ((at_least, 0x40000000, refuse),  # the x32 calls of x86_64
                                (equal, 435, absent),  # clone3 hides its flags; the C library then takes clone
                                *((equal, numbers[table], refuse) for numbers in DENIED.values())):
        steps += [(code, 0, 1, number), (answer, 0, 0, reply)]
    # clone with any CLONE_NEW* flag, prlimit64 of another process: both look at the first argument
    steps += [(equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 0, 4, 0x7E020080), (answer, 0, 0, refuse),
              (equal, 0, 2, prlimit), (load, 0, 0, 16), (at_least, 1, 0, 1), (answer, 0, 0, allow), (answer, 0, 0, refuse)]
    return b"".join(pack("HBBI", *step) for step in steps)


def bubblewrap(bwrap, python, filter_fd, info_fd, disk):
    """The command that starts a sandbox. Inside: the standard library and what it links, an empty /tmp of `disk` bytes (0: not
    writable, nor is anything else); no /proc (so it also runs where containers hide theirs), no /dev, no /etc, nothing else."""
    command = [bwrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
               "--unshare-cgroup-try", "--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY), "--die-with-parent", "--new-session", "--as-pid-1",
               "--clearenv", "--setenv", "PYTHONHASHSEED", "0",  # the same order of sets in every run
               "--seccomp", str(filter_fd), "--info-fd", str(info_fd)]
    bound = []
    for path in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", sys.base_prefix + "/lib",
                 os.path.dirname(os.__file__), python):
        path = os.path.realpath(path)
        if os.path.exists(path) and not any(path.startswith(b + "/") or path == b for b in bound):
            bound.append(path)
            command += ["--ro-bind", path, path]
    for path in ("/lib", "/lib64"):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    return command + ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--symlink", "/tmp/stdin", "/dev/stdin",
                      *(["--size", str(disk), "--tmpfs", "/tmp"] if disk else ["--dir", "/tmp"]), "--chdir", "/tmp", "--remount-ro", "/"]


def usage(pid):
    """(resident bytes, seconds of CPU) of a process and its descendants; 0 where /proc does not tell."""
    memory, ticks, pids = 0, 0, [pid]
    while pids:
        pid = pids.pop()
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # its own, and that of children it has waited for
            memory += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    pids += map(int, file.read().split())
        except (OSError, ValueError, IndexError):
            pass
    return memory, ticks / os.sysconf("SC_CLK_TCK")


class Late(Exception):
    """The time is over, or the memory."""


class Worker:
    """Judges one job after the other. It is its own process because only the parent of a sandbox can see its end, and because
    it must be small: a sandbox starts with a fork."""

    def __init__(self, bwrap, source):
        import ctypes
        import marshal
        import tempfile
        inside = source[:source.index("\n# -------- the worker")]  # all that a sandbox gets to see of this file
        self.code = marshal.dumps(compile(inside, "sandbox.py", "exec", optimize=2))
        self.bwrap, self.python, self.judge = bwrap, os.path.realpath(sys.executable), None
        self.null = os.open("/dev/null", os.O_RDWR)
        if bwrap:
            self.filter = os.memfd_create("filter", 0)
            os.write(self.filter, seccomp())
            if ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0):  # PR_SET_CHILD_SUBREAPER: orphaned sandboxes become ours
                raise OSError("prctl")
        else:
            folder = tempfile.TemporaryDirectory()
            self.folder = folder  # gone when the worker ends
            os.chdir(folder.name)

    def start(self, role, stdin, stdout):
        """Start a sandbox on two descriptors, which are closed here -> (pid, pid of its process 1 or None)."""
        size = len(self.code)
        boot = (f"import marshal, posix\ncode = b''\nwhile len(code) < {size}: code += posix.read(0, {size} - len(code))\n"
                f"space = {{'__name__': 'sandbox'}}\nexec(marshal.loads(code), space)\nspace[{role!r}]()")
        command, info, environment = [self.python, "-s", "-S", "-B", "-c", boot], None, {"PYTHONHASHSEED": "0"}
        if self.bwrap:
            info, info_end = os.pipe()
            os.set_inheritable(info_end, True)
            os.lseek(self.filter, 0, 0)
            disk = 0 if role == "judge" else DISK  # one verdict of a judge leaves nothing to the next
            command, environment = bubblewrap(self.bwrap, self.python, self.filter, info_end, disk) + ["--"] + command, {}
        actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate((stdin, stdout, self.null))]
        pid = os.posix_spawn(command[0], command, environment, file_actions=actions, **({} if info else {"setsid": True}))
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
        return pid, int(inner) if inner else None

    def kill(self, box):
        """End a sandbox. When this returns none of its processes is left: its process 1 ends last, and we have reaped it."""
        pid, inner = box
        if self.bwrap:
            os.kill(pid, 9)  # which kills process 1 (--die-with-parent), and that everything in its namespace
            os.waitpid(pid, 0)
            try:
                if inner and os.waitpid(inner, os.WNOHANG)[0] == 0:
                    os.kill(inner, 9)  # ours by now, so the number cannot mean anybody else
                    os.waitpid(inner, 0)
            except ChildProcessError:
                pass  # bwrap had reaped it
        else:
            try:
                os.killpg(pid, 9)
            except (ProcessLookupError, PermissionError):
                pass
            os.waitpid(pid, 0)

    def wait(self, fd, deadline, box, cpu=START_LIMIT):
        """Until fd can be read.  Raises Late at the deadline (time.monotonic), or when all processes of the sandbox together have
        used too much memory or CPU: many processes must neither multiply their limits nor starve the neighbours."""
        import select
        import time
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(0, 0)
        while True:
            left = deadline - time.monotonic()
            for ready, _ in poll.poll(max(0, min(100, 1000 * left))):
                if ready == 0:
                    os._exit(1)  # the caller is gone, and our sandboxes die with us
                return
            memory, seconds = usage(box[1] or box[0])
            if left <= 0 or memory > TOGETHER or seconds > cpu:
                raise Late

    def ready(self, sink, source, box):
        """Give a new sandbox its code and wait for its sign of life.  Raises OSError."""
        import time
        code = self.code
        while code:  # not before there is a reader: under pressure the kernel makes pipes of 4 kB
            code = code[os.write(sink, code):]
        try:
            self.wait(source, time.monotonic() + START_LIMIT, box)
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
        connection, end = socket.socketpair()
        box = self.start("judge", end.detach(), self.null)
        self.judge = box, connection
        self.ready(connection.fileno(), connection.fileno(), box)

    def verdict(self, job):
        """True, False, 'timeouts', 'unsupported' or 'errors' (no verdict) for one job: {"kind": "tests", "program", "setup",
        "tests", "names", "limit"} or {"kind": "stdio", "program", "inputs", "outputs", "limit"}, limit in seconds of CPU."""
        import math
        import time
        cpu, wall = math.ceil(job["limit"]), 3 * job["limit"] + 2  # the clock runs on while other processes have the CPU
        box, fds = None, []
        try:
            if job["kind"] == "tests" and not self.judge:
                self.start_judge()
            theirs_in, ours_out = os.pipe()
            ours_in, theirs_out = os.pipe()
            fds += [ours_out, ours_in]
            box = self.start("candidate", theirs_in, theirs_out)
            self.ready(ours_out, ours_in, box)
            used = lambda: usage(box[1] or box[0])[1]
            started, before = time.monotonic(), used()
            send(ours_out, encode([job["kind"], job["program"], job.get("names"), cpu]))
            if job["kind"] == "tests":
                verdict = self.run_tests(job, cpu, started + wall, box, ours_out, ours_in)
                if used() - before > job["limit"]:
                    return "timeouts"
            else:
                verdict = True
                for given, wanted in zip(job["inputs"], job["outputs"]):
                    started, before = time.monotonic(), used()
                    send(ours_out, given.encode())
                    if not same(receive(ours_in, lambda: self.wait(ours_in, started + wall, box, before + cpu + 1)), wanted):
                        verdict = False
                        break
                    if used() - before > job["limit"]:  # the kernel's own limit is in whole seconds
                        return "timeouts"
            return "timeouts" if verdict is False and time.monotonic() - started > job["limit"] else verdict
        except Late:
            return "timeouts"
        except Gone:
            return False if job["kind"] == "stdio" else "errors"
        except (OSError, Unsupported):
            return "errors"
        finally:
            if box:
                self.kill(box)
            for fd in fds:
                os.close(fd)

    def run_tests(self, job, cpu, deadline, box, sink, source):
        """Hand the pipes of a candidate to the judge and wait for its word."""
        import socket
        import time
        ours, theirs = os.pipe()
        try:
            _, connection = self.judge
            try:
                socket.send_fds(connection, [b"j"], [sink, source, theirs])
                send(connection.fileno(), encode([job["setup"], job["tests"], list(job["names"]), cpu]))
            except (OSError, Gone):
                self.stop_judge()
                return "errors"
            finally:
                os.close(theirs)
            try:
                self.wait(ours, deadline, box, cpu + 1)
                word = os.read(ours, 1)
            except Late:
                os.kill(box[0], 9)  # the judge sees the end of the pipe, says no and is free again
                try:
                    self.wait(ours, time.monotonic() + 2, self.judge[0])
                except Late:
                    self.stop_judge()
                raise
            if not word:  # the process that ran the tests died
                self.stop_judge()
            return {b"1": True, b"0": False, b"u": "unsupported"}.get(word, "errors")
        finally:
            os.close(ours)


def same(output, wanted):
    """Are these the same words? Numbers with a fraction may differ by 1e-6, relative or absolute, as is usual in contests."""
    if len(output) > 2 * len(wanted.encode()) + 1000:
        return False
    words, others = output.decode("utf-8", "replace").split(), wanted.split()
    return len(words) == len(others) and all(a == b or close(a, b) for a, b in zip(words, others))


def close(word, wanted):
    try:
        a, b = float(word[:50]), float(wanted)
        return "." in wanted and abs(a - b) <= 1e-6 * max(1.0, abs(b))
    except ValueError:
        return False


def work(bwrap, source):
    """The life of a worker: answer lines of JSON on stdin until it closes."""
    import json
    worker = Worker(bwrap, source)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(None if job is None else worker.verdict(job)), flush=True)


# ------------------------------------------------------------------------------------------------------------ the caller

BOOT = "import sys; exec(compile(sys.argv[1], 'sandbox.py', 'exec'), {'__name__': 'worker'})"


def worker_arguments(python, bwrap):
    """Arguments of subprocess.Popen for a worker. It must not be root, for whom the process limit does nothing and bubblewrap
    is no jail; its environment is empty and its only open files are pipes, because sandboxes get theirs from it."""
    with open(os.path.abspath(__file__)) as file:
        source = file.read()
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    return {"args": [python, "-I", "-S", "-c", BOOT, source, bwrap], "env": {}, "cwd": "/", "start_new_session": True, **user}


def settle(allow_unsandboxed=False):
    """Find a Python and see that sandboxes really start -> arguments for Popen.  Raises UserError where they do not, unless
    unsandboxed programs are allowed; then a warning is printed."""
    import json
    import shutil
    import subprocess

    from tasks import UserError
    job = {"kind": "tests", "program": "def f(): return 1", "setup": "", "tests": "assert f() == 1", "names": {"f": "f"},
           "limit": 10}
    bwrap = shutil.which("bwrap") if sys.platform == "linux" and os.uname().machine in MACHINES else None
    for sandbox in [bwrap] * bool(bwrap) + [""] * allow_unsandboxed:
        for python in (os.path.realpath(sys._base_executable), "/usr/local/bin/python3", "/usr/bin/python3"):
            arguments = worker_arguments(python, sandbox)
            try:
                with subprocess.Popen(**arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.DEVNULL) as worker:
                    worker.stdin.write(json.dumps(job).encode() + b"\n")
                    worker.stdin.flush()
                    works = worker.stdout.readline() == b"true\n"
            except OSError:  # it may not exist, or lie in a home that the unprivileged user cannot read
                continue
            if works:
                if not sandbox:
                    print("WARNING: no sandbox: model-written programs run without protection (--allow-unsandboxed-code)", flush=True)
                return arguments
    reason = "it is not installed"
    if bwrap:
        trial = {**worker_arguments("", ""), "args": [bwrap, "--unshare-user", "--unshare-net", "--ro-bind", "/", "/", "/bin/true"]}
        done = subprocess.run(**trial, capture_output=True, text=True, errors="replace")
        reason = done.stderr.strip()[-200:].replace("\n", " ") or "no Python >= 3.10 that an unprivileged user may read was found"
    raise UserError(f"programs run in a sandbox by bubblewrap (0.7 or newer, Linux), which does not work here ({reason}): install "
                    "it (Debian, Ubuntu: apt install bubblewrap), allow user namespaces, or run programs without any protection "
                    "with --allow-unsandboxed-code")


if __name__ == "worker":
    work(sys.argv[2], sys.argv[1])
