"""A real HTTP server on the loopback address, with the endpoints of vLLM that support/rollouts.py asks: it draws with
common.sample from its own copy of a model, with adapters read from disk, and has faults on demand."""
import contextlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import peft
import torch
from conftest import load_policy

import common


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Engine:
    """`with Engine() as engine`: engine.url. `faults` holds functions of (handler, path, body), each used up by the
    first request that it says something to: "answered", or "changed" where the answer is still to come, as it changes
    it. `log` holds (path, body) of all requests."""

    def __init__(self, model="tiny", raw=False, top=None, longest=512, most_rank=16, **options):
        """raw: log-probabilities before the temperature; top: tokens that are drawn from at most, whatever is asked."""
        self.policy = load_policy(model, **options)
        self.raw = raw
        self.top = top
        self.longest = longest
        self.most_rank = most_rank
        self.adapters = {}  # {name: folder}
        self.faults = []
        self.log = []
        self.loaded = None
        self.lock = threading.Lock()
        self.given = {}  # {(prompt, completion): sum of its log-probabilities}
        self.server = Server(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def restart(self):
        """What a new process at the same address would be: it knows no adapter."""
        self.adapters.clear()

    def asked(self, path):
        return [body for where, body in self.log if where == path]

    def handler(engine):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, code, value):
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(data)

            def error(self, code, message):
                self.answer(code, {"error": {"message": message, "type": "x", "code": code}})

            def hang_up(self):
                self.close_connection = True

            def do_GET(self):
                self.served(None)

            def do_POST(self):
                self.served(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def served(self, body):
                with engine.lock:
                    engine.log.append((self.path, body))
                    for fault in list(engine.faults):
                        used = fault(self, self.path, body)
                        if used and fault in engine.faults:  # the test may have cleared them meanwhile
                            engine.faults.remove(fault)
                        if used == "answered":
                            return
                        if used:
                            break
                    getattr(engine, self.path.rsplit("/", 1)[1])(self, body)
        return Handler

    def models(self, handler, _):
        known = [{"id": "base", "max_model_len": self.longest}] + [{"id": name} for name in self.adapters]
        handler.answer(200, {"data": known})

    def load_lora_adapter(self, handler, body):
        name, path = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            return handler.error(400, f"The lora adapter '{name}' has already been loaded.")
        with open(os.path.join(path, "adapter_config.json")) as file:
            rank = json.load(file)["r"]
        if rank > self.most_rank:
            return handler.error(500, f"LoRA rank {rank} is greater than max_lora_rank {self.most_rank}.")
        assert path not in self.adapters.values()
        self.adapters[name] = path
        handler.answer(200, f"Success: LoRA adapter '{name}' added successfully.")

    def unload_lora_adapter(self, handler, body):
        if self.adapters.pop(body["lora_name"], None) is None:
            return handler.error(404, "The lora adapter cannot be found.")
        handler.answer(200, "Success")

    def completions(self, handler, body):
        if body["model"] not in self.adapters:
            return handler.error(404, f"The model `{body['model']}` does not exist.")
        self.take(self.adapters[body["model"]])
        ids = body["prompt"]
        T = body["temperature"]
        if len(ids) + body["max_tokens"] > self.longest:
            return handler.error(400, "This model's maximum context length is exceeded.")
        self.policy.stop = body["stop_token_ids"]
        drawn = self.drawn(ids, body, T)
        logps = drawn.logps[0].tolist()
        if self.raw:
            rows = drawn.lists()[0]
            logps = [None] * len(rows)
            for index, found, _ in common.score(self.policy, [ids] * len(rows), rows, 1.0):
                for j, row in zip(index.tolist(), found.tolist()):
                    logps[j] = row
        choices = []
        for j, row in enumerate(drawn.lists()[0]):
            ended = row[-1] in body["stop_token_ids"]
            self.given[tuple(ids), tuple(row)] = sum(logps[j][:len(row)])
            choices.append({"index": j, "token_ids": row, "finish_reason": "stop" if ended else "length",
                            "logprobs": {"token_logprobs": logps[j][:len(row)]}})
        handler.answer(200, {"choices": choices[::-1]})

    def drawn(self, ids, body, T):
        """What common.sample draws; from the most likely tokens alone where there is a `top`."""
        what = self.policy, [ids], body["n"], [body["seed"]], T, body["max_tokens"]
        if not self.top:
            return common.sample(*what)
        whole = torch.log_softmax

        def cut(logits, dim):
            least = logits.topk(self.top, dim).values[..., -1:]
            return whole(logits.masked_fill(logits < least, -1e9), dim)
        torch.log_softmax = cut
        try:
            return common.sample(*what)
        finally:
            torch.log_softmax = whole

    @torch.no_grad()
    def take(self, folder):
        if folder != self.loaded:
            weights = peft.utils.load_peft_weights(folder, device="cpu")
            peft.set_peft_model_state_dict(self.policy.model, weights)
            self.loaded = folder


def once(code=None, message="a fault", path="/v1/completions", change=None, wait=0):
    """A fault of the next request to a path: an HTTP error; no answer after `wait` seconds; or an answer that `change`
    makes of the right one."""
    def fault(handler, where, body):
        if where != path:
            return False
        threading.Event().wait(wait)
        if change:
            answer = handler.answer
            handler.answer = lambda status, value: answer(status, change(value))
            return "changed"
        if code:
            handler.error(code, message)
        else:
            handler.hang_up()
        return "answered"
    return fault
