"""HTTP client for a vLLM server: retries while the server is unavailable, and validates every answer."""
import contextlib
import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.request

from support.errors import UserError

SERVE = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank RANK --logprobs-mode "
         "processed_logprobs --generation-config vllm")
PARALLEL = 64  # concurrent requests, which the server batches itself


class Away(Exception):
    """The server is unavailable, or asks to retry later."""


class Refused(Exception):
    """The server answered with an HTTP error."""

    def __init__(self, code, message):
        super().__init__(f"HTTP {code}: {message}")
        self.code = code


class Wrong(Exception):
    """An answer that does not match the request."""


class Server:
    """A vLLM server."""

    def __init__(self, url, patience):
        """patience: seconds to wait for an answer, and for a server that is unavailable."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.patience = patience
        self.announced = False  # whether it was printed that the server is unavailable
        no_proxy = urllib.request.ProxyHandler({})
        self.opener = urllib.request.build_opener(no_proxy)

    def ask(self, path, seconds, body=None):
        """Send one request -> the answer (bytes).  Raises Away, Refused."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self.opener.open(request, timeout=seconds) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            if error.code in (429, 503):
                raise Away(f"HTTP {error.code}: {message_of(error)}") from error
            raise Refused(error.code, message_of(error)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Away(str(reason) or type(error).__name__) from error
        self.announced = False
        return answer

    def patiently(self, path, body):
        """`ask`, repeated while the server is unavailable.  Raises Refused, and UserError after `patience` seconds."""
        deadline = time.time() + self.patience
        wait = 1
        while True:
            try:
                return self.ask(path, self.patience, body)
            except Away as error:
                reason = error
            if time.time() + wait > deadline:
                raise self.trouble(f"no answer to {path} for {self.patience:g} s (--rollouts-timeout; {reason})")
            if not self.announced:
                print(f"rollouts: no answer from {self.url} ({reason}), retrying for {self.patience:g} s", flush=True)
            self.announced = True
            time.sleep(wait)
            wait = min(2 * wait, 30)

    def models(self):
        """[{"id", ...}]: the base model and the adapters that the server has loaded.  Raises UserError."""
        try:
            return json.loads(self.ask("/v1/models", self.patience))["data"]
        except (Away, Refused, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--rollouts {self.url}: cannot list the models of a vLLM server there ({error}): start "
                            f"one with {SERVE}") from error

    def trouble(self, problem):
        """A UserError for a problem with the server."""
        return UserError(f"--rollouts {self.url}: {problem}; saved files are intact: fix this and run the command "
                         "again, a training run with --resume")


def message_of(error):
    """The message of an HTTP error, on one line."""
    text = error.reason
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        text = error.read().decode(errors="replace") or text
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:300]


def choices(answer, body, size):
    """Completions in the answer (bytes) to a request -> [(token ids, log-probabilities)].  size: of the vocabulary.
    Raises Wrong."""
    stop = {*body["stop_token_ids"]}
    try:
        ordered = sorted(json.loads(answer)["choices"], key=lambda choice: choice["index"])
        if len(ordered) != body["n"]:
            raise Wrong(f"{len(ordered)} completions instead of {body['n']}")
        rows = []
        for choice in ordered:
            ids = choice["token_ids"]
            logps = [float(value) for value in choice["logprobs"]["token_logprobs"]]
            cut = choice["finish_reason"] == "length" and len(ids) == body["max_tokens"]
            ended = choice["finish_reason"] == "stop" and ids[-1] in stop
            if len(ids) != len(logps) or not (cut or ended) or stop & {*ids[:-1]}:
                raise Wrong(f"a completion of {len(ids)} tokens with finish_reason {choice['finish_reason']!r}")
            if not 0 <= min(ids) <= max(ids) < size:
                raise Wrong(f"token id {max(ids)} exceeds the vocabulary of {size:,}: serve the base model of this run")
            rows.append((ids, logps))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Wrong(f"an answer without token ids and their log-probabilities, {error!r}") from error
    return rows


def in_parallel(call, items):
    """[call(item), ...] with PARALLEL daemon threads. Raises the first error at once; Ctrl-C does not wait either."""
    answers = queue.SimpleQueue()
    stopped = threading.Event()

    def work(first):
        for i in range(first, len(items), PARALLEL):
            if stopped.is_set():
                return
            try:
                answers.put((i, call(items[i]), None))
            except Exception as error:
                answers.put((i, None, error))
    for first in range(min(PARALLEL, len(items))):
        threading.Thread(target=work, args=[first], daemon=True).start()
    results = [None] * len(items)
    try:
        for _ in items:
            i, results[i], error = answers.get()
            if error:
                raise error
    finally:
        stopped.set()
    return results
