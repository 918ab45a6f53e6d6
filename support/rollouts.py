"""Rollouts by an engine: a running vLLM server draws the samples, and is sent nothing but the adapter.

Requests are those of its OpenAI-compatible HTTP server. Token ids go in and come out, so that no tokenizer of the
server's is asked. Each version of the adapter is written to a new folder and loaded under a new name, the one before is
unloaded and removed: the server's prefix cache is keyed by both. What was drawn is scored again here. Log-probabilities
and entropies of Samples are the policy's; the engine's only weigh them (Samples.weights), and are held to what they
must be if the samples were drawn by them.

The server is started as support/engine.py, SERVE, says, where it reads the same folders, at an address that nobody else
reaches: whoever does can have it load any path. Tensor parallelism, several nodes and paging are its own. The model
that is trained has to fit this process: sharding gathers its parts in every forward pass of all processes, and here
they do different numbers of these, because samples without weight are skipped.
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

TRIES = 3  # of a request that is answered, but not by what was asked for
GOODBYE = 10  # seconds for an adapter to be unloaded
COLDEST = 0.01  # temperature, which vLLM raises lower ones to
LIMIT = 0.5  # mean gap in nats per token, ten times what bfloat16 does (support/check.py)
SURE = 6  # standard errors

OPEN = []  # every Rollouts of this process


def connect(policy, args, folder):
    """Have the server of --rollouts, if there is one, draw for a policy; folder: of the run.  Raises UserError."""
    if args.rollouts:
        place = args.rollouts_dir or os.path.join(folder, "rollouts")
        server = Server(args.rollouts, args.rollouts_timeout)
        correction = getattr(args, "rollouts_correction", None)  # an evaluation has none
        policy.rollouts = Rollouts(server, place, folder, correction, getattr(args, "rollouts_bound", 1))
        policy.rollouts.begin(policy)
        words = f", correction {correction}" * bool(correction)
        policy.note += f"\nrollouts by {server.url}{words}"


def leave():
    """Have the servers forget the adapters of this process."""
    while OPEN:
        OPEN.pop().close()


class Rollouts:
    """Policy.rollouts: has an engine draw what common.sample is asked for. `begin` comes first."""

    def __init__(self, server, folder, run, correction, bound):
        """folder: where adapters are written for the server; run: the run's own folder; correction: "none" for weights
        of 1; bound: the largest weight."""
        self.server = server
        self.folder = os.path.abspath(folder)
        self.correction = correction
        self.bound = bound
        owner = f"{socket.gethostname()} {os.path.abspath(run)}"
        self.prefix = f"rollouts-{hashlib.sha256(owner.encode()).hexdigest()[:12]}-"  # of a killed run's, too
        self.names = []  # of the adapters that are on the server, the last one drawn from
        self.sent = []  # what is in it
        self.longest = math.inf  # most tokens of a row
        self.lock = threading.Lock()
        OPEN.append(self)

    def begin(self, policy):
        """See that the server is there and takes the adapter; have it forget those of a killed run.  Raises UserError.
        """
        reason = refusal(policy.model.peft_config["default"])
        if reason:
            raise UserError(f"--rollouts: vLLM does not draw with this adapter, {reason}")
        self.longest = on_first(self.tidy)
        self.send(policy)

    def tidy(self):
        """-> the most tokens of a row that the server takes."""
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
        """Have the server know the adapter as it is."""
        current = [p.detach() for p in policy.parameters()]
        if self.sent and all(map(torch.equal, current, self.sent)):
            return
        self.names = on_first(lambda: self.replace(policy))
        self.sent = [p.clone() for p in current]

    def replace(self, policy):
        """Load the adapter under a new name, unload and remove the one before -> [the name]."""
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
        place = self.path(name)
        try:
            self.server.patiently("/v1/load_lora_adapter", {"lora_name": name, "lora_path": place})
        except Refused as error:
            if "already been loaded" not in str(error):  # by another thread or process, or its answer was lost
                raise self.server.trouble(f"the server does not load the adapter {place} ({error}): start it with "
                                          f"{SERVE}, where it can read --rollouts-dir") from error

    def drop(self, name):
        """Have the server forget an adapter, and remove its folder. What fails here is left to the next `begin`."""
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
        """common.sample. The draws of a prompt depend on its seed, and on how the server rounds."""
        if temperature < COLDEST:
            raise UserError(f"--temperature {temperature:g}: with --rollouts at least {COLDEST}")
        longest = max(map(len, prompts))
        if longest + max_new_tokens > self.longest:
            raise UserError(f"a prompt of {longest} tokens and --max-new-tokens {max_new_tokens} do not fit the "
                            f"{self.longest} tokens of a row of the server: start it with another --max-model-len")
        self.send(policy)
        mine = range(processes.RANK, len(prompts), processes.WORLD)
        fields = sampling(policy, k, temperature, max_new_tokens)
        size = len(policy.lm.get_input_embeddings().weight)

        def draw(b):
            return self.draw({"prompt": prompts[b], "seed": seeds[b] % 2 ** 62, **fields}, size)
        rows = [row for found in in_parallel(draw, mine) for row in found]
        x = [prompts[b] for b in mine for _ in range(k)]
        own = rescored(policy, x, [ids for ids, _ in rows], temperature)
        # 1, the token, log q; log pi, entropy, log pi at temperature 1
        whole = torch.zeros(len(prompts), k, max_new_tokens, 6, dtype=torch.float64)
        for j, (ids, logps) in enumerate(rows):
            drawn = torch.tensor([[1] * len(ids), ids, logps], dtype=torch.float64)
            whole[mine[j // k], j % k, :len(ids)] = torch.cat([drawn, own[j]]).T
        whole = processes.all_reduce(whole.to(policy.device))
        lengths = whole[..., 0].sum(-1).long()
        whole = whole[:, :, :int(lengths.max())]
        self.judge(whole)
        tokens = whole[..., 1].long()
        logps = whole[..., 3].float()
        entropies = whole[..., 4].float()
        drawn = common.Samples(tokens, logps, lengths, entropies, *self.weigh(whole))
        if policy.check:
            policy.check(policy, prompts, drawn, temperature)
        return drawn

    def draw(self, body, size):
        """[(token ids, log-probabilities by the engine)] of the completions of a prompt.  Raises UserError."""
        for _ in range(TRIES):
            try:
                body["model"] = self.names[-1]
                answer = self.server.patiently("/v1/completions", body)
                return choices(answer, body, size)
            except Wrong as error:
                reason = error
            except Refused as error:
                reason = error
                if error.code == 404:  # started again, it knows no adapter
                    with self.lock:
                        self.load()
                elif error.code < 500:
                    break
        raise self.server.trouble(f"no samples ({reason})")

    def weigh(self, whole):
        """Weights pi(y|x) / q(y|x) [B, k] on the CPU, and how far the engine is off, of what `sample` put together."""
        gap = whole[..., 3] - whole[..., 2]  # log pi - log q, by token
        ratio = gap.sum(-1).cpu()
        most = math.log(self.bound)
        notes = {"engine_gap": (gap.abs().sum() / whole[..., 0].sum()).item()}
        notes["engine_gap_max"] = gap.abs().max().item()
        notes["engine_cut"] = (ratio > most).double().mean().item()
        weights = ratio.clamp(max=most).exp().float()
        if self.correction == "none":
            weights = torch.ones_like(weights)
        return weights, notes

    def judge(self, whole):
        """Raises UserError where the engine's log-probabilities are not those that it drew by, or of another base."""
        own = whole[whole[..., 0] == 1].cpu()
        _, _, q, logp, entropy, raw = own.unbind(-1)
        if not logp.isfinite().all():
            raise UserError("the model's logits are not finite: lower --lr or raise --temperature")
        if fault(logp, q, entropy, raw):
            gap = (logp - q).abs().mean()
            raise UserError(f"--rollouts {self.server.url}: the log-probabilities that it gives its samples, {gap:.3g} "
                            "nats per token from the policy's, are not those that they were drawn by, or of another "
                            "base: serve the base of this run as MODEL, with --logprobs-mode processed_logprobs (after "
                            "the temperature) and --generation-config vllm (all tokens, no penalty)")


def fault(logp, q, entropy, raw):
    """Whether samples of N tokens cannot have been drawn by q from a model like the policy's.  logp, q: their log pi,
    and log q as the engine says; entropy: of pi; raw: log pi at temperature 1  [N], float64.

    If q drew them, with full support, the mean of pi / q is 1, however different pi is; and near pi the mean of log pi
    is minus the entropy. Given the tokens before it each term has that expectation, so that the standard error of the
    mean is that of independent ones."""
    gap = (logp - q).abs().mean()
    ratio = (logp - q).exp() - 1
    surprise = logp + entropy
    errors = [SURE * x.std() / len(q) ** 0.5 for x in (ratio, surprise)]
    unscaled = gap > 1e-4 and (raw - q).abs().mean() < gap / 2
    unlike = ratio.mean().abs() > errors[0] + 0.002
    cut = surprise.mean().abs() > errors[1] + 0.02 + 2 * gap
    return gap > LIMIT or unscaled or unlike or cut


def refusal(config):
    """Why vLLM loads no adapter of this kind, in words that end a sentence; None if it may."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        return f"it loads LoRA alone, not {kind}"
    if config.use_dora:
        return "it loads no DoRA: train a plain LoRA"
    if config.bias != "none" or config.lora_bias:
        return "it loads no biases: train a LoRA without"
    if config.modules_to_save:
        return f"it loads no whole modules ({', '.join(config.modules_to_save)}): train a LoRA alone"
    return None


def sampling(policy, k, temperature, max_new_tokens):
    """Every field of a request that sampling depends on: those left out come from the server's files. Completions end
    with the policy's tokens alone (ignore_eos)."""
    fields = {"n": k, "temperature": temperature, "max_tokens": max_new_tokens, "min_tokens": 0}
    fields |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    fields |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    fields |= {"stop_token_ids": policy.stop, "ignore_eos": True}
    return fields | {"logprobs": 0, "return_token_ids": True, "skip_special_tokens": False}


def rescored(policy, x, y, temperature):
    """By the policy, for each completion y_j, a float64 tensor [3, T_j] on the CPU: log-probabilities, entropies, and
    the log-probabilities at temperature 1."""
    found = [None] * len(y)
    for index, logits, _ in common.score(policy, x, y, temperature, logits=True):
        for j, row in zip(index.tolist(), logits):
            scaled = row[:len(y[j])]  # [T_j, V]
            logp = torch.log_softmax(scaled, -1)
            raw = torch.log_softmax(scaled * temperature, -1)
            tokens = torch.tensor(y[j], device=logp.device)[:, None]
            chosen = [x.gather(-1, tokens)[:, 0] for x in (logp, raw)]
            entropy = torch.special.entr(logp.exp()).sum(-1)
            found[j] = torch.stack([chosen[0], entropy, chosen[1]]).double().cpu()
    return found
