"""Child processes that run verifiers. Their code may hang, crash or exhaust memory; then they are killed."""
import json
import os
import queue
import select
import signal
import subprocess
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress


class WorkerPool:
    """Runs jobs in parallel child processes, at most `limit` seconds each. `launch`, which returns a Popen, starts a
    child when it is first needed. A child answers every line of JSON with one line."""
    start_limit = 60  # seconds for a child's imports, even on a busy machine

    def __init__(self, limit: float = 3.0, size: int | None = None):
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.limit, self.size = limit, size or max(1, min(8, cores))
        self.children = queue.LifoQueue()  # idle children; None: one to be started
        for _ in range(self.size):
            self.children.put(None)
        weakref.finalize(self, stop_all, self.children)  # on garbage collection and at exit

    def judge(self, jobs: list) -> list:
        """The verdict on each job, or 'timeouts' or 'errors' if there is none. Never raises; thread-safe."""
        if not jobs:
            return []
        with ThreadPoolExecutor(self.size) as threads:  # each thread only waits for its child
            return list(threads.map(self.judge_one, jobs))

    def judge_one(self, job) -> object:
        child, verdict = self.children.get(), "errors"
        try:
            for _ in range(2):  # this job need not be why a child died (memory, a kill)
                with suppress(OSError):  # out of processes or memory
                    if child is None or child.poll() is not None:
                        child = self.start(child)
                    verdict = self.exchange(child, job, self.limit)
                if verdict != "errors":
                    break
            return verdict
        finally:
            self.children.put(child)

    def start(self, dead):
        if dead is not None:
            stop(dead)
        child = self.launch()
        self.exchange(child, None, self.start_limit)  # answered after its imports
        return child

    @staticmethod
    def exchange(child, message, limit):
        """The child's reply to a message. Without a reply in time the child is stopped and the result is 'timeouts', or
        'errors' if it died."""
        failure = "timeouts"
        try:
            child.stdin.write(json.dumps(message).encode() + b"\n")
            poll = select.poll()
            poll.register(child.stdout, select.POLLIN)
            if poll.poll(1000 * limit):
                return json.loads(child.stdout.readline())  # b"" of a dead child is invalid JSON
        except (OSError, ValueError):
            failure = "errors"
        stop(child)
        return failure


def stop(child: subprocess.Popen):
    """Kill a child with everything it started, reap it and close its pipes."""
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    if getattr(child, "group", None):  # the cgroup of a worker of sandbox.py
        child.group.remove()


def stop_all(children):
    while not children.empty():
        child = children.get()
        if child is not None:
            stop(child)
