"""Rollouts by an inference engine: a running vLLM server draws the samples, with the current adapter.

Requests use the server's OpenAI-compatible HTTP API. Prompts and completions are token ids, so the server's tokenizer
is not used. Each version of the adapter is saved to a new folder and loaded under a new name, because the server's
prefix cache is keyed by both; the previous version is unloaded and removed. All samples are scored again by the policy:
log-probabilities and entropies of Samples are the policy's. The engine's log-probabilities are used for importance
weights (Samples.weights), after a test whether the samples can come from them.

Start the server with the command SERVE of support/engine.py, where it can read the same folders, at an address that
nobody else can reach: any client can make it load any path. The server may use tensor parallelism and several nodes;
the policy has to fit into this process. Sharding it is not supported, because every process would have to run the same
number of forward passes, and samples with weight 0 are skipped.
"""
import contextlib
import hashlib
import math
import os
import shutil
import socket
import threading
import time

import torch

import common
from support import processes
from support.engine import SERVE, Away, Refused, Server, Wrong, choices, in_parallel
from support.errors import UserError
from support.folder import save_adapter, writing
from support.processes import on_first

TRIES = 3  # attempts for a request whose answer is invalid
GOODBYE = 10  # seconds to wait for an adapter to be unloaded
COLDEST = 0.01  # lowest temperature of vLLM, which raises lower ones to it
LIMIT = 0.5  # limit of the mean gap in nats per token: ten times that of bfloat16 (support/check.py)
SURE = 6  # standard errors by which a mean must be off to be refused

OPEN = []  # every Rollouts of this process


def connect(policy, args, folder):
    """With --rollouts, make the server sample for this policy.  folder: of the run.  Raises UserError."""
    if args.rollouts:
        adapters = args.rollouts_dir or os.path.join(folder, "rollouts")
        server = Server(args.rollouts, args.rollouts_timeout)
        correction = getattr(args, "rollouts_correction", None)  # evaluate.py has no correction
        policy.rollouts = Rollouts(server, adapters, folder, correction, getattr(args, "rollouts_bound", 1))
        policy.rollouts.begin(policy)
        suffix = f", correction {correction}" * bool(correction)
        policy.note += f"\nrollouts by {server.url}{suffix}"


def leave():
    """Unload the adapters of this process from all servers."""
    while OPEN:
        OPEN.pop().close()


class Rollouts:
    """Policy.rollouts: an engine that samples in place of common.sample. Call `begin` first."""

    def __init__(self, server, folder, run, correction, bound):
        """folder: where adapters are saved for the server; run: the run folder; correction: "none" for weights of 1;
        bound: upper bound of the weights."""
        self.server = server
        self.folder = os.path.abspath(folder)
        self.correction = correction
        self.bound = bound
        owner = f"{socket.gethostname()} {os.path.abspath(run)}"
        self.prefix = f"rollouts-{hashlib.sha256(owner.encode()).hexdigest()[:12]}-"  # the same for a resumed run
        self.names = []  # adapters on the server; the last one is used for sampling
        self.sent = []  # tensors of that adapter
        self.longest = math.inf  # most tokens of prompt and completion
        self.lock = threading.Lock()
        OPEN.append(self)

    def begin(self, policy):
        """Check that the server runs and supports the adapter, remove the adapters of a killed run, and load this one.
        Raises UserError."""
        reason = refusal(policy.model.peft_config["default"])
        if reason:
            raise UserError(f"--rollouts: vLLM does not support this adapter, {reason}")
        self.longest = on_first(self.tidy)
        self.send(policy)

    def tidy(self):
        """Remove the adapters of a killed run -> the server's maximum length of a row in tokens."""
        models = self.server.models()
        with writing(self.folder):
            os.makedirs(self.folder, exist_ok=True)
            known = [model["id"] for model in models] + os.listdir(self.folder)
        for name in known:
            if name.startswith(self.prefix):
                self.drop(name)
        sizes = [model.get("max_model_len") for model in models]
        return min(filter(None, sizes), default=math.inf)

    def send(self, policy):
        """Load the current adapter on the server, unless it has not changed."""
        current = [p.detach() for p in policy.parameters()]
        if self.sent and all(map(torch.equal, current, self.sent)):
            return
        self.names = on_first(lambda: self.replace(policy))
        self.sent = [p.clone() for p in current]

    def replace(self, policy):
        """Save and load the adapter under a new name, unload and remove the previous ones -> [the name]."""
        name = f"{self.prefix}{time.time_ns():x}"
        self.names.append(name)
        save_adapter(policy.model, self.path(name))
        self.load()
        for old in self.names[:-1]:
            self.drop(old)
        return [name]

    def path(self, name):
        return os.path.join(self.folder, name)

    def load(self):
        name = self.names[-1]
        path = self.path(name)
        try:
            self.server.patiently("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except Refused as error:
            if "already been loaded" not in str(error):  # by another thread or process, or the answer was lost
                raise self.server.trouble(f"the server does not load the adapter {path} ({error}): start it with "
                                          f"{SERVE}, where it can read --rollouts-dir") from error

    def drop(self, name):
        """Unload an adapter from the server and remove its folder. Failures are left to the next `begin`."""
        with contextlib.suppress(Away, Refused):
            self.server.ask("/v1/unload_lora_adapter", GOODBYE, {"lora_name": name})
        shutil.rmtree(self.path(name), ignore_errors=True)

    def close(self):
        if not processes.RANK:
            for name in self.names:
                self.drop(name)
            with contextlib.suppress(OSError):
                os.rmdir(self.folder)

    @torch.no_grad()
    def sample(self, policy, prompts, k, seeds, temperature, max_new_tokens):
        """As common.sample, except that samples depend on the server's seeds and rounding."""
        if temperature < COLDEST:
            raise UserError(f"--temperature {temperature:g}: with --rollouts it must be at least {COLDEST}")
        longest = max(map(len, prompts))
        if longest + max_new_tokens > self.longest:
            raise UserError(f"a prompt of {longest} tokens and --max-new-tokens {max_new_tokens} exceed the server's "
                            f"limit of {self.longest} tokens: start it with a larger --max-model-len")
        self.send(policy)
        mine = range(processes.RANK, len(prompts), processes.WORLD)
        fields = sampling(policy, k, temperature, max_new_tokens)
        size = len(policy.lm.get_input_embeddings().weight)

        def draw(b):
            return self.draw({"prompt": prompts[b], "seed": seeds[b] % 2 ** 62, **fields}, size)
        rows = [row for completions in in_parallel(draw, mine) for row in completions]
        x = [prompts[b] for b in mine for _ in range(k)]
        rescores = rescored(policy, x, [ids for ids, _ in rows], temperature)
        # Per token: 1, token id, log q; log pi, entropy, log pi at temperature 1.  [B, k, T, 6]
        table = torch.zeros(len(prompts), k, max_new_tokens, 6, dtype=torch.float64)
        for j, (ids, logps) in enumerate(rows):
            drawn = torch.tensor([[1] * len(ids), ids, logps], dtype=torch.float64)
            table[mine[j // k], j % k, :len(ids)] = torch.cat([drawn, rescores[j]]).T
        table = processes.all_reduce(table.to(policy.device))
        lengths = table[..., 0].sum(-1).long()
        table = table[:, :, :int(lengths.max())]
        self.judge(table)
        tokens = table[..., 1].long()
        logps = table[..., 3].float()
        entropies = table[..., 4].float()
        drawn = common.Samples(tokens, logps, lengths, entropies, *self.weigh(table))
        if policy.check:
            policy.check(policy, prompts, drawn, temperature)
        return drawn

    def draw(self, body, size):
        """Completions of one prompt -> [(token ids, the engine's log-probabilities)].  Raises UserError."""
        for _ in range(TRIES):
            try:
                body["model"] = self.names[-1]
                answer = self.server.patiently("/v1/completions", body)
                return choices(answer, body, size)
            except Wrong as error:
                reason = error
            except Refused as error:
                reason = error
                if error.code == 404:  # the server was restarted and has no adapter
                    with self.lock:
                        self.load()
                elif error.code < 500:
                    break
        raise self.server.trouble(f"no samples ({reason})")

    def weigh(self, table):
        """Importance weights pi(y|x) / q(y|x) [B, k] on the CPU, and statistics of the gap between engine and policy.
        table: from `sample`."""
        gap = table[..., 3] - table[..., 2]  # log pi - log q, by token
        log_ratio = gap.sum(-1).cpu()
        bound = math.log(self.bound)
        notes = {"engine_gap": (gap.abs().sum() / table[..., 0].sum()).item()}
        notes["engine_gap_max"] = gap.abs().max().item()
        notes["engine_cut"] = (log_ratio > bound).double().mean().item()
        weights = log_ratio.clamp(max=bound).exp().float()
        if self.correction == "none":
            weights = torch.ones_like(weights)
        return weights, notes

    def judge(self, table):
        """Raises UserError if the engine did not sample from its log-probabilities, or has another base model."""
        drawn = table[table[..., 0] == 1].cpu()  # [N, 6]
        _, _, q, logp, entropy, raw = drawn.unbind(-1)
        if not logp.isfinite().all():
            raise UserError("the model's logits are not finite: lower --lr or raise --temperature")
        if fault(logp, q, entropy, raw):
            gap = (logp - q).abs().mean()
            raise UserError(f"--rollouts {self.server.url}: the server's log-probabilities, {gap:.3g} nats per token "
                            "from the policy's, are not those that its samples were drawn with, or belong to another "
                            "base model: serve the base model of this run as MODEL, with --logprobs-mode "
                            "processed_logprobs (after the temperature) and --generation-config vllm (all tokens, no "
                            "penalty)")


def fault(logp, q, entropy, raw):
    """Whether samples of N tokens cannot come from q, or q is not close to the policy.

    logp     log pi of each token  [N], float64; so are the others
    q        log q, as the engine reports it
    entropy  of pi
    raw      log pi at temperature 1
    If the samples come from q and it has full support, the mean of pi / q is 1, however different pi is. If q is close
    to pi, the mean of log pi is minus the mean entropy. Each term has this expectation given the tokens before it, so
    the terms are uncorrelated, and the standard error of the mean is that of independent terms."""
    gap = (logp - q).abs().mean()
    ratio = (logp - q).exp() - 1
    surprise = logp + entropy
    errors = [SURE * x.std() / len(q) ** 0.5 for x in (ratio, surprise)]
    unscaled = gap > 1e-4 and (raw - q).abs().mean() < gap / 2
    biased = ratio.mean().abs() > errors[0] + 0.002
    truncated = surprise.mean().abs() > errors[1] + 0.02 + 2 * gap
    return gap > LIMIT or unscaled or biased or truncated


def refusal(config):
    """Why vLLM does not support this adapter, as the end of a sentence; None if it may."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        return f"it loads only LoRA, not {kind}"
    if config.use_dora:
        return "it does not load DoRA: train a plain LoRA"
    if config.bias != "none" or config.lora_bias:
        return "it does not load biases: train a LoRA without"
    if config.modules_to_save:
        return f"it does not load whole modules ({', '.join(config.modules_to_save)}): train only a LoRA"
    return None


def sampling(policy, k, temperature, max_new_tokens):
    """Every field of a request that affects sampling, because the server's defaults come from its model's files.
    Completions end only with the policy's stop tokens (ignore_eos)."""
    fields = {"n": k, "temperature": temperature, "max_tokens": max_new_tokens, "min_tokens": 0}
    fields |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    fields |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    fields |= {"stop_token_ids": policy.stop, "ignore_eos": True}
    return fields | {"logprobs": 0, "return_token_ids": True, "skip_special_tokens": False}


def rescored(policy, x, y, temperature):
    """For each completion y_j, a float64 tensor [3, T_j] on the CPU: the policy's log-probabilities, entropies, and
    log-probabilities at temperature 1."""
    results = [None] * len(y)
    for index, logits, _ in common.score(policy, x, y, temperature, logits=True):
        for j, row in zip(index.tolist(), logits):
            scaled = row[:len(y[j])]  # [T_j, V]
            logp = torch.log_softmax(scaled, -1)
            raw = torch.log_softmax(scaled * temperature, -1)
            tokens = torch.tensor(y[j], device=logp.device)[:, None]
            chosen = [x.gather(-1, tokens)[:, 0] for x in (logp, raw)]
            entropy = torch.special.entr(logp.exp()).sum(-1)
            results[j] = torch.stack([chosen[0], entropy, chosen[1]]).double().cpu()
    return results
