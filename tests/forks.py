"""Scripts in processes of their own, without the seconds in which each would import its libraries: run as a program,
this has imported them and forks. A child is the script from its first line to the end of its interpreter.

On standard input lines of JSON: [argv, environment, file for standard error] starts a script and is answered by its
process id; a process id is answered by its exit code as subprocess has it, or null."""
import json
import os
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Child:
    """A script, like subprocess.Popen; its standard output is not kept."""
    program, lock = None, threading.Lock()

    def __init__(self, argv, environment, errors):
        with Child.lock:
            if Child.program is None:
                Child.program = subprocess.Popen([sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE,
                                                 stdout=subprocess.PIPE, text=True, bufsize=1)
        self.errors, self.returncode = str(errors), None
        self.pid = self.ask([list(map(str, argv)), environment, self.errors])

    @staticmethod
    def ask(message):
        with Child.lock:
            Child.program.stdin.write(json.dumps(message) + "\n")
            return json.loads(Child.program.stdout.readline())

    def poll(self):
        if self.returncode is None:
            self.returncode = self.ask(self.pid)
        return self.returncode

    def wait(self, timeout=60):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return self.returncode

    def communicate(self, timeout=60):
        self.wait(timeout)
        with open(self.errors) as file:
            return None, file.read()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(9)


def serve():
    """Answer until standard input closes -> None, or, in a child, the arguments of its script."""
    for line in sys.stdin:
        message = json.loads(line)
        if isinstance(message, int):
            pid, status = os.waitpid(message, os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        argv, environment, errors = message
        os.environ.clear()
        os.environ.update(environment)
        for fd, path in ((0, os.devnull), (1, os.devnull), (2, errors)):
            os.dup2(os.open(path, os.O_RDONLY if fd == 0 else os.O_WRONLY | os.O_CREAT, 0o600), fd)
        return argv


if __name__ == "__main__":
    sys.path[0] = ROOT
    import runpy

    import support

    support.set_thread_policy()  # torch reads it when it is loaded; the project's other modules are the child's own

    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import torch.distributed  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    argv = serve()
    if argv:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
