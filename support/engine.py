"""Asking a vLLM server over HTTP: what may be asked again is, and an answer is taken only if it is what was asked for.
"""
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
PARALLEL = 64  # requests at once, of which the server makes batches of its own


class Away(Exception):
    """No answer, or one by which there may be another later."""


class Refused(Exception):
    """The server will not do it."""

    def __init__(self, code, message):
        super().__init__(f"HTTP {code}: {message}")
        self.code = code


class Wrong(Exception):
    """An answer that is not what was asked for."""


class Server:
    """A vLLM server."""

    def __init__(self, url, patience):
        """patience: seconds that an answer may take, and that the server may be away."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.patience = patience
        self.told = False  # whether it was said that it is away
        direct = urllib.request.ProxyHandler({})
        self.opener = urllib.request.build_opener(direct)

    def ask(self, path, seconds, body=None):
        """What the server answers, bytes.  Raises Away, Refused."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self.opener.open(request, timeout=seconds) as answer:
                found = answer.read()
        except urllib.error.HTTPError as error:
            if error.code in (429, 503):
                raise Away(f"HTTP {error.code}: {said(error)}") from error
            raise Refused(error.code, said(error)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Away(str(reason) or type(error).__name__) from error
        self.told = False
        return found

    def patiently(self, path, body):
        """The same, asked again while the server is away.  Raises UserError if it stays so, Refused."""
        until = time.time() + self.patience
        wait = 1
        while True:
            try:
                return self.ask(path, self.patience, body)
            except Away as error:
                reason = error
            if time.time() + wait > until:
                raise self.trouble(f"no answer to {path} for {self.patience:g} s (--rollouts-timeout; {reason})")
            if not self.told:
                print(f"rollouts: no answer from {self.url} ({reason}), asking again for {self.patience:g} s",
                      flush=True)
            self.told = True
            time.sleep(wait)
            wait = min(2 * wait, 30)

    def models(self):
        """[{"id", ...}] of the base and the adapters that the server knows.  Raises UserError."""
        try:
            return json.loads(self.ask("/v1/models", self.patience))["data"]
        except (Away, Refused, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--rollouts {self.url}: no vLLM server lists its models there ({error}): start one with "
                            f"{SERVE}") from error

    def trouble(self, what):
        return UserError(f"--rollouts {self.url}: {what}; what was saved is intact: put that right and run the command "
                         "again, a training run with --resume")


def said(error):
    """What an HTTP error says, in a line."""
    text = error.reason
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        text = error.read().decode(errors="replace") or text
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())[:300]


def choices(answer, body, size):
    """[(token ids, log-probabilities)] in the answer (bytes) to a request; size: of the vocabulary.  Raises Wrong."""
    stop = {*body["stop_token_ids"]}
    try:
        found = sorted(json.loads(answer)["choices"], key=lambda choice: choice["index"])
        if len(found) != body["n"]:
            raise Wrong(f"{len(found)} completions where {body['n']} were asked for")
        rows = []
        for choice in found:
            ids = choice["token_ids"]
            logps = [float(value) for value in choice["logprobs"]["token_logprobs"]]
            cut = choice["finish_reason"] == "length" and len(ids) == body["max_tokens"]
            ended = choice["finish_reason"] == "stop" and ids[-1] in stop
            if len(ids) != len(logps) or not (cut or ended) or stop & {*ids[:-1]}:
                raise Wrong(f"a completion of {len(ids)} tokens finished by {choice['finish_reason']!r}")
            if not 0 <= min(ids) <= max(ids) < size:
                raise Wrong(f"a token {max(ids)}, where the vocabulary has {size:,}: serve the base of this run")
            rows.append((ids, logps))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Wrong(f"an answer without token ids and their log-probabilities, {error!r}") from error
    return rows


def in_parallel(call, items):
    """[call(item)], PARALLEL at once; the first error ends it, and Ctrl-C waits for none."""
    answers = queue.SimpleQueue()
    ended = threading.Event()

    def work(first):
        for place in range(first, len(items), PARALLEL):
            if ended.is_set():
                return
            try:
                answers.put((place, call(items[place]), None))
            except Exception as error:
                answers.put((place, None, error))
    for first in range(min(PARALLEL, len(items))):
        threading.Thread(target=work, args=[first], daemon=True).start()
    results = [None] * len(items)
    try:
        for _ in items:
            place, results[place], error = answers.get()
            if error:
                raise error
    finally:
        ended.set()
    return results
