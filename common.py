"""Code that all scripts share: load a policy, sample, score completions, measure KL, estimate pass@k, maj@k and BoN@k.

Each paper's objective is in its own script. Everywhere the policy is softmax(logits / temperature) over the whole
vocabulary (no top-k, no top-p). A completion ends with an end-of-sequence token, which the policy chooses like any
other token, and log pi(y|x) is the sum over all tokens of the completion, including that last one.

`sample` and `score` are plain loops that work for every causal LM; with --plain a script runs exactly these. Without
--plain it sets `policy.fast` (fast/choose.py), the fast paths that suit the model, and prints which ones and why:
`sample` then calls `Fast.decode` instead of `decode`, and `score` calls `Fast.score` where that is cheaper. The same
tokens are drawn, and log-probabilities agree up to rounding.
"""
import inspect
import math
import random
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import support

support.set_thread_policy()  # must come before the import of torch, which reads it

import torch
import torch.nn.functional as F

from support import adapters, contents, decoding, load, model_checks, processes, text
from support.errors import UserError


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything printable. Every draw of a run has its own seed, e.g. seed_of(seed, step, i), so no
    generator state has to be saved for --resume or shared between processes."""
    name = " ".join(map(str, parts))
    return random.Random(name).getrandbits(63)


def torch_seed(seed: int) -> int:
    """Map any integer to a seed that torch accepts; a valid seed stays unchanged."""
    if 0 <= seed < 2 ** 63:
        return seed
    return seed_of(seed)


# --------------------------------------------------------------------------------------------------------- the policy

@dataclass
class Policy:
    """A causal LM with a LoRA adapter, its tokenizer, and how it is sampled and scored."""
    model: torch.nn.Module  # the peft model: saves and loads the adapter
    tokenizer: object
    device: torch.device
    note: str  # for the log: device, precision, trainable parameters, and the sampler with the reason for it
    stop: list[int]  # token ids that end a completion
    start: str | None = None  # peft's name of the frozen starting adapter, the KL reference; None: start is the base
    reference_kind: str = "start"  # KL reference: "start" or "base"
    accepts: frozenset = frozenset()  # argument names of the model's forward
    caches: bool = True  # the cache of a prompt can be copied to its samples; False: rerun the whole row for each token
    pads: bool = True  # prompts of different lengths can share a left-padded batch; False: only equal lengths
    system: str | None = None  # system message for the chat template
    end: int | None = None  # token id that ends gold completions; None: the first of `stop`
    size: int = 0  # number of parameters of the base
    check: object = None  # support/check.py, Check: verifies the Samples that `sample` returns; None: no check
    fast: object = None  # fast/choose.py, Fast: its fast paths; None: only the code in this file
    rollouts: object = None  # support/rollouts.py, Rollouts: an inference engine samples; None: `sample` does

    @property
    def lm(self):
        """The transformers model with the LoRA layers in place."""
        return self.model.get_base_model()

    @property
    def positions(self) -> float:
        """Most tokens of prompt and completion: the model's maximum, or less if longer rows would rescale all
        positions.
        """
        config = self.lm.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None) or math.inf
        unscaled, _ = decoding.rope_limit(self.lm.config)
        return min(most, unscaled)

    @property
    def limit(self) -> str:
        """`positions` for messages, with the reason if it is below the model's maximum."""
        _, kind = decoding.rope_limit(self.lm.config)
        if not kind:
            return f"{self.positions} positions"
        return f"{self.positions} positions (beyond them its {kind} rotary scaling changes all positions)"

    @property
    def window(self):
        """Shortest attention window of any layer, in tokens."""
        return decoding.window(self.lm.config)

    def decoding_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Attention mask for decoding, from the mask [P, L + T] of prompts and all future tokens. It is 4-D on a GPU,
        because transformers reads the values of a 2-D mask for every token, and each read makes the host wait."""
        wide = self.fast and self.fast.wide
        if not wide or mask.shape[1] > self.window:
            return mask
        return decoding.additive(mask, self.lm.dtype)

    def parameters(self) -> list[torch.Tensor]:
        """Trainable tensors: those of the adapter "default"."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def start_parameters(self) -> list[torch.Tensor]:
        """Frozen tensors of the starting adapter; empty if the start is the base."""
        named = self.model.named_parameters()
        return [p for name, p in named if self.start in name.split(".")]

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None, position: torch.Tensor | None, keep: int,
                **options):
        """Run the model on ids, mask, position [R, L] -> its output, with logits for the last `keep` positions. A model
        whose forward has no `logits_to_keep` returns all logits; one without `position_ids` ignores `position`."""
        cache = options.get("past_key_values")
        if isinstance(cache, decoding.Rerun):
            del options["past_key_values"]
            ids = cache.longer(ids)
            position = positions_of(mask)
            options["use_cache"] = False
        if "position_ids" in self.accepts:
            options["position_ids"] = position
        if "logits_to_keep" in self.accepts:
            options["logits_to_keep"] = keep
        return self.lm(input_ids=ids, attention_mask=mask, **options)

    def put(self, prompts: list[str], chat: bool) -> tuple[list[str], bool]:
        """Apply the chat template, if `chat` is set and the tokenizer has one -> (texts, whether it was applied).
        Raises UserError for chat messages without a template."""
        template = chat and self.tokenizer.chat_template
        if template:
            texts = [text.put(self.tokenizer, x, self.system) for x in prompts]
            return texts, True
        messages = any(isinstance(x, text.Chat) for x in prompts)
        if chat and messages:
            raise UserError("the prompts are chat messages, but the tokenizer of this model has no chat template: add "
                            "chat_template to its tokenizer_config.json, or use --no-chat to join their texts")
        return prompts, False

    def encode(self, prompts: str | list[str], chat: bool = False) -> list[int] | list[list[int]]:
        """Token ids of one prompt, or of each prompt in a list, with the chat template if `chat` is set and there
        is one. [] if the tokenizer yields no tokens.  Raises UserError for a token without an embedding."""
        if isinstance(prompts, str):
            return self.encode([prompts], chat)[0]
        texts, templated = self.put(prompts, chat)
        rows = text.encode(self.tokenizer, texts, templated)
        all_ids = [i for ids in rows for i in ids]
        self.known(all_ids)
        return rows

    def encode_solution(self, solution: str, prompt: str | None = None, chat: bool = False) -> list[int] | None:
        """Token ids of a gold completion, with the end-of-sequence token, because stopping is a decision too. They
        follow `prompt` (a text; None: any prompt). None if no token ids decode to exactly this text.  Raises
        UserError."""
        x = []
        whole = []
        if prompt is not None:
            (before,), templated = self.put([prompt], chat)
            both = [before, before + solution]
            x, whole = text.encode(self.tokenizer, both, templated)
        for ids in text.continuations(self.tokenizer, solution, x, whole):  # candidates: context changes tokenization
            stops = {*ids} & {*self.stop}
            if not stops and self.decode(ids, x) == solution:
                end = self.stop[0] if self.end is None else self.end
                return self.known(ids) + [end]
        return None

    def known(self, ids):
        """The ids, unchanged.  Raises UserError if the model has no embedding for one of them."""
        size = len(self.lm.get_input_embeddings().weight)
        if max(ids, default=0) >= size:
            name = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(f"the tokenizer produced {name!r}, for which the model has no embedding (it has {size:,}): "
                            "use the tokenizer that belongs to the model, or remove this token from the text")
        return ids

    def decode(self, tokens: list[int], prompt: list[int] | None = None) -> str:
        """Text of a completion after its prompt (lists of ids; None: any prompt), without the end-of-sequence token."""
        return self.texts([tokens], [prompt])[0]

    def texts(self, completions: list[list[int]], prompts: list[list[int]]) -> list[str]:
        """`decode` for R completions of B prompts -> R texts: the first R / B belong to the first prompt, and so on."""
        rows = []
        for row in completions:
            ended = row and row[-1] in self.stop
            rows.append(row[:-1] if ended else row)
        per_prompt = len(rows) // len(prompts)
        texts = []
        for b, x in enumerate(prompts):
            first = b * per_prompt
            rows_of_prompt = rows[first:first + per_prompt]
            texts += text.decode(self.tokenizer, rows_of_prompt, x)
        return texts

    @contextmanager
    def reference(self):
        """Context in which the model is the KL reference: the base (adapter off) or the frozen starting adapter."""
        if self.start is None or self.reference_kind == "base":
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(self.start)
            try:
                yield
            finally:  # set_adapter also sets requires_grad, so this freezes the starting adapter again
                self.model.set_adapter("default")


def load_policy(model: str = "tiny", bits: int | None = None, lora_rank: int = 16, adapter: str | None = None,
                reference: str = "start", seed: int = 0, device: str | None = None, fast=None) -> Policy:
    """Load a base model, optionally quantised, with a LoRA adapter (alpha = 2 rank, no dropout) on every linear layer
    on which it has an effect (support/adapters.py, linear_layers).

    model      hub id, local directory, FILE.gguf, or a model of this repository in models/, such as "tiny"
    bits       4 (NF4, double quantisation), 8, 16 or 32; None: 4 on a GPU, 32 on a CPU
    lora_rank  rank of a new adapter; an existing one keeps its own
    adapter    directory of a peft adapter, or a run folder, to continue from; None: a new adapter, equal to the base
    reference  KL reference, to which Policy.reference() switches: "start" (the policy as loaded) or "base". It needs no
               second model
    seed       initialises a new adapter
    fast       fast.choose.choose_fast: use the fast paths that suit the model; None: only the code in this file
    Raises UserError: unknown model or device, a precision that the hardware or a quantised checkpoint does not support,
    missing or implausible weights, a model that is not causal, an adapter that does not fit or cannot be used.
    """
    adapter = contents.located(adapter, "--adapter")
    lm, tokenizer, note = load.load_base(model, bits, device)
    model_checks.refuse(lm, model)
    size = lm.num_parameters()
    import peft  # after load_base, which silences warnings of this import
    start = None
    torch.manual_seed(torch_seed(seed))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if adapter is None:
                layers = adapters.linear_layers(lm)
                config = peft.LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, lora_dropout=0.0,
                                         task_type="CAUSAL_LM", target_modules=layers)
                wrapped = peft.get_peft_model(lm, config)
            else:
                start = "start" if reference == "start" else None
                folder = contents.adapter_of(adapter)
                wrapped = adapters.put_on(lm, folder, start)
                note += adapters.template_note(folder, tokenizer)
            adapters.name_base(wrapped, model)
    except UserError as error:
        raise UserError(f"cannot use adapter {adapter!r} on {model!r}: {error}") from error
    except Exception as error:  # peft raises many types
        reason = load.first_line(error)
        if adapter is None:
            raise UserError(f"cannot put a new LoRA adapter on {model!r} ({reason}): choose a decoder with linear "
                            "layers") from error
        reason = contents.fault_in(folder, "adapter_config.json") or reason
        raise UserError(f"cannot load adapter {adapter!r} onto {model!r} ({reason}): give a run folder or a directory "
                        "with adapter_config.json made for this model") from error
    wrapped.eval()  # no dropout: sampling and scoring use the same policy

    ends = text.ends(lm, tokenizer, model)
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    note += f", LoRA on {trained:,} parameters"
    untouched = adapters.untouched(lm)
    if untouched:
        note += f" ({untouched} stay as they are)"
    end_tokens = " or ".join(f"{text.name_of(tokenizer, token)} of its {place}" for token, place in ends.items())
    note += f", completions end with {end_tokens}"
    policy = Policy(wrapped, tokenizer, lm.device, note, [*ends], start, reference)
    policy.end = tokenizer.eos_token_id
    policy.size = size
    policy.accepts = frozenset(inspect.signature(lm.forward).parameters)
    policy.caches = model_checks.caches(lm)
    policy.pads = model_checks.pads(lm)
    why = "plain (the loops of common.py)"
    if fast:
        policy.fast, why = fast(policy)
    policy.note += f"\nsampling and scoring: {why}"
    return policy


# ----------------------------------------------------------------------------------------------- sampling and scoring

@dataclass
class Samples:
    """k completions for each of B prompts, the longest with T tokens. Tokens beyond `lengths` are arbitrary padding."""
    tokens: torch.Tensor  # [B, k, T] int64, end-of-sequence token included
    logps: torch.Tensor  # [B, k, T] float32, log softmax(logits / temperature) of each token, 0 in the padding
    lengths: torch.Tensor  # [B, k] int64, in tokens
    entropies: torch.Tensor  # [B, k, T] float32, nats: entropy of the distribution of each token, 0 in the padding
    weights: torch.Tensor  # [B, k] float32 on the CPU: pi(y|x) / q(y|x) if an inference engine sampled from q, else 1
    notes: dict = field(default_factory=dict)  # metrics of the difference between pi and q, by keys of METRICS

    def lists(self) -> list[list[list[int]]]:
        """Token ids as nested lists [B][k], without the padding."""
        completions = []
        for rows, lengths in zip(self.tokens.tolist(), self.lengths.tolist()):
            unpadded = [row[:n] for row, n in zip(rows, lengths)]
            completions.append(unpadded)
        return completions


def left_pad(prompts: list[list[int]], device=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts (lists of ids) on the left -> ids [B, L], mask [B, L]."""
    L = max(map(len, prompts))
    ids = []
    mask = []
    for prompt in prompts:
        padding = [0] * (L - len(prompt))
        ids.append(padding + prompt)
        mask.append(padding + [1] * len(prompt))
    ids = torch.tensor(ids, device=device)
    mask = torch.tensor(mask, device=device)
    return ids, mask


def right_pad(completions: list[list[int]], device=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad completions (lists of ids) on the right -> ids [R, T], mask [R, T]."""
    T = max(map(len, completions))
    ids = []
    mask = []
    for completion in completions:
        padding = [0] * (T - len(completion))
        ids.append(completion + padding)
        mask.append([1] * len(completion) + padding)
    ids = torch.tensor(ids, dtype=torch.long, device=device)
    mask = torch.tensor(mask, dtype=torch.long, device=device)
    return ids, mask


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Position of every token, for a mask [R, L] whose rows may be padded on the left -> [R, L]."""
    return mask.cumsum(-1).sub(1).clamp_min(0)


@torch.no_grad()
def sample(policy: Policy, prompts: list[list[int]], k: int, seeds: list[int], temperature: float = 1.0,
           max_new_tokens: int = 64, max_rows: int | None = None) -> Samples:
    """Draw k completions per prompt from exactly softmax(logits / temperature).

    prompts   B lists of token ids, of any lengths
    seeds     B integers: the draws for prompt b depend on seeds[b] only, not on the rest of the batch
    max_rows  most rows (prompt x sample) decoded at once, with at most 2^14 prompt tokens together; None:
              support/load.py, most_rows
    Returns Samples.  A completion that reaches max_new_tokens is cut: it has no end-of-sequence token.
    Raises UserError if prompt and completion exceed the model's positions.
    """
    if not all(prompts):
        raise UserError("a prompt has no tokens after tokenization")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    longest = max(map(len, prompts))
    width = longest + max_new_tokens
    if width > policy.positions:
        raise UserError(f"a prompt of {longest} tokens and --max-new-tokens {max_new_tokens} do not fit the model's "
                        f"{policy.limit}: lower --max-new-tokens or take a model with more")
    if policy.rollouts:
        return policy.rollouts.sample(policy, prompts, k, seeds, temperature, max_new_tokens)
    loop = policy.fast.decode if policy.fast else decode
    loop = decoding.halving(loop)
    max_rows = max_rows or load.most_rows(policy.lm, width)
    fit = min(max_rows // k, 2 ** 14 // longest)
    prompts_at_once = max(1, fit)
    samples_at_once = min(k, max_rows)  # per prompt
    shape = len(prompts), k, max_new_tokens  # [B, k, T]
    tokens = torch.zeros(shape, dtype=torch.long, device=policy.device)
    logps = torch.zeros(shape, device=policy.device)
    entropies = torch.zeros(shape, device=policy.device)
    lengths = torch.zeros(shape[:2], dtype=torch.long, device=policy.device)
    results = tokens, logps, entropies, lengths
    mine = range(processes.RANK, len(prompts), processes.WORLD)  # the prompts of this process
    mine = sorted(mine, key=lambda b: len(prompts[b]))  # batches of similar lengths need little padding
    for batch in decoding.batches(mine, prompts, prompts_at_once, policy.pads):
        x = [prompts[b] for b in batch]
        u = [uniforms(seeds[b], k, max_new_tokens) for b in batch]
        u = torch.stack(u)  # [P, k, T]
        for first in range(0, k, samples_at_once):
            samples = slice(first, first + samples_at_once)
            u_batch = u[:, samples].to(policy.device)
            drawn = loop(policy, x, u_batch, temperature)
            for result, part in zip(results, drawn):
                result[batch, samples] = part
    for result in results:
        processes.all_reduce(result)
    if not logps.isfinite().all():  # checked once: a check for every token would make the host wait for a GPU
        raise UserError("the model's logits are not finite, so nothing can be drawn: lower --lr or raise "
                        "--temperature; if this happens from the start, use another --bits or another model")
    T = int(lengths.max())
    tokens = tokens[..., :T]
    logps = logps[..., :T]
    entropies = entropies[..., :T]
    weights = torch.ones(shape[:2])
    drawn = Samples(tokens, logps, lengths, entropies, weights)
    if policy.check:
        policy.check(policy, prompts, drawn, temperature)
    return drawn


def uniforms(seed: int, k: int, T: int) -> torch.Tensor:
    """Uniform random numbers for k completions of one prompt, one per token, float64 [k, T]. They are drawn per prompt
    before the sampling loop, so the completions do not depend on the batch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(k, T, dtype=torch.float64, generator=generator)


def draw(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Inverse transform sampling: the first token whose cumulative probability exceeds u.

    p [..., V] float32, u [..., m] float64 -> token ids [..., m].  Sums are in float64, so that rare tokens keep their
    exact probability. A large vocabulary is first summed in blocks, which avoids a float64 copy of p; the probabilities
    then agree to a relative 1e-7."""
    V = p.shape[-1]
    if V <= 4096:
        cdf = p.cumsum(-1, dtype=torch.float64)
        return first_above(cdf, u * cdf[..., -1:])
    size = 256 if V % 256 == 0 else 128
    padding = -V % size
    if padding:
        p = F.pad(p, (0, padding))
    blocks = p.unflatten(-1, (-1, size))  # [..., V / size, size]
    ends = blocks.sum(-1).double().cumsum(-1).contiguous()  # cumulative, at the end of each block  [..., V / size]
    u = u * ends[..., -1:]
    block = first_above(ends, u)  # [..., m]
    bounds = F.pad(ends, (1, 0))  # [..., 1 + V / size]
    below = bounds.gather(-1, block)
    upto = bounds.gather(-1, block + 1)
    u = (u - below) / (upto - below)  # uniform within the block  [..., m]
    index = block[..., None].expand(*block.shape, size)
    cdf = blocks.gather(-2, index).cumsum(-1, dtype=torch.float64)  # [..., m, size]
    offset = first_above(cdf, u[..., None] * cdf[..., -1:])[..., 0]
    token = block * size + offset
    return token.clamp_max_(V - 1)


def first_above(cdf: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Index where cdf [..., n] first exceeds u [..., m] -> [..., m]; the last index if it never does."""
    index = torch.searchsorted(cdf, u, right=True)
    return index.clamp_max_(cdf.shape[-1] - 1)


def prefill(policy: Policy, prompts: list[list[int]], k: int):
    """Run each of P prompts once and copy its cache (keys and values, or states) to its k samples: R = P k rows.
    Returns the logits of the first new token [R, V], the cache, the mask of the prompts [P, L] and the position of
    their last token [R, 1]."""
    ids, mask = left_pad(prompts, policy.device)  # [P, L]
    position = positions_of(mask)
    out = policy.forward(ids, mask, position, 1, use_cache=policy.caches)
    cache = out.past_key_values if policy.caches else decoding.Rerun(ids)
    if k > 1:
        rows = torch.arange(len(prompts), device=policy.device)
        cache.reorder_cache(rows.repeat_interleave(k))
    decoding.make_room(cache)
    logits = out.logits[:, -1].repeat_interleave(k, 0)  # [R, V]
    position = position[:, -1:].repeat_interleave(k, 0)  # [R, 1]
    return logits, cache, mask, position


def decode(policy: Policy, prompts: list[list[int]], u: torch.Tensor, temperature: float):
    """The sampling loop: k completions for each of P prompts, determined by the uniform numbers u [P, k, T].
    Returns tokens, logps, entropies [P, k, T] and lengths [P, k], as in Samples."""
    P, k, T = u.shape
    R = P * k
    stop = torch.tensor(policy.stop, device=policy.device)
    logits, cache, mask, position = prefill(policy, prompts, k)
    L = mask.shape[1]
    mask = F.pad(mask, (0, T), value=1)  # [P, L + T]
    mask = policy.decoding_mask(mask).repeat_interleave(k, 0)
    u = u.flatten(0, 1)  # [R, T]
    rows = torch.arange(R, device=policy.device)  # row of the results that each active row writes to
    done = torch.zeros_like(rows, dtype=torch.bool)
    tokens = torch.zeros(R, T, dtype=torch.long, device=policy.device)
    logps = torch.zeros(R, T, device=policy.device)
    entropies = torch.zeros_like(logps)
    lengths = torch.zeros_like(rows)
    check_every = 1 if policy.device.type == "cpu" else 8  # finding finished rows makes the host wait for a GPU
    for t in range(T):
        logp = torch.log_softmax(logits.float() / temperature, -1)  # [R, V]
        p = logp.exp()
        token = draw(p, u[:, t:t + 1])  # [R, 1]
        token_logp = logp.gather(-1, token)[:, 0]  # [R]
        entropy = torch.special.entr(p).sum(-1)  # [R]
        tokens[rows, t] = token[:, 0]
        logps[rows, t] = token_logp.masked_fill(done, 0.0)
        entropies[rows, t] = entropy.masked_fill(done, 0.0)
        lengths[rows] += ~done
        done = done | torch.isin(token[:, 0], stop)
        if t + 1 == T:
            break
        if (t + 1) % check_every == 0:
            alive = (~done).nonzero()[:, 0]
            if len(alive) == 0:
                break
            if len(alive) < 0.9 * len(rows):  # drop finished rows if that is worth copying the cache
                cache.reorder_cache(alive)
                rows = rows[alive]
                u = u[alive]
                mask = mask[alive]
                position = position[alive]
                token = token[alive]
                done = done[alive]
        position = position + 1
        upto = mask[..., :L + t + 1]  # prompt and tokens so far
        out = policy.forward(token, upto, position, 1, past_key_values=cache, use_cache=True)
        logits = out.logits[:, -1]
    results = tokens, logps, entropies, lengths
    return tuple(x.unflatten(0, (P, k)) for x in results)


def score(policy: Policy, prompts: list[list[int]], completions: list[list[int]], temperature: float = 1.0,
          max_tokens: int | None = None, logits: bool = False):
    """Log-probabilities of completions, in micro-batches, with gradient if it is enabled.

    prompts, completions  R lists of token ids each (one prompt per completion)
    max_tokens            most tokens (rows x padded length) in a micro-batch; None: support/load.py, micro_batch
    logits                yield logits / temperature [r, T, V] instead of log-probabilities
    Yields (index [r] into the R rows, logps [r, T], mask [r, T] 1.0 on completion tokens); logps are 0 where mask is 0.
    Call backward on each micro-batch before asking for the next one: so only its logits are in memory, and no logits of
    prompt tokens.
    """
    max_tokens = max_tokens or load.micro_batch(policy.lm)
    if policy.fast and policy.fast.pays(prompts, completions, max_tokens, logits):
        yield from policy.fast.score(policy, prompts, completions, temperature, max_tokens, logits)
        return
    for index in micro_batches(prompts, completions, max_tokens, policy.pads):
        # All completions begin at the same column, so the logits of the last T + 1 positions are enough.
        prompt_ids, prompt_mask = left_pad([prompts[i] for i in index])  # [r, L]
        tokens, completion_mask = right_pad([completions[i] for i in index])  # [r, T]
        ids = torch.cat([prompt_ids, tokens], 1).to(policy.device)  # [r, L + T]
        mask = torch.cat([prompt_mask, completion_mask], 1).to(policy.device)
        position = positions_of(mask)
        L = prompt_ids.shape[1]
        T = tokens.shape[1]
        with load.checkpoints(policy.lm, ids.numel() > max_tokens):
            scaled = policy.forward(ids, mask, position, T + 1, use_cache=False).logits
        scaled = scaled[:, -T - 1:-1].float() / temperature  # [r, T, V]
        tokens = ids[:, L:]
        completion_mask = mask[:, L:].bool()
        values = scaled
        if not logits:
            values = log_probabilities(scaled, tokens, completion_mask)
        yield torch.tensor(index), values, completion_mask.float()


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [R, T] of tokens [R, T] under logits [R, T, V], 0 where the mask (boolean) is False."""
    nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
    return -nats.view_as(tokens).masked_fill(~mask, 0.0)


def micro_batches(prompts: list[list[int]], completions: list[list[int]], max_tokens: int, pads: bool):
    """Split R rows into micro-batches, lists of row indices, longest completions first. Each has at most `max_tokens`
    tokens (rows x padded length) or a single row. pads: whether prompts of different lengths may share one."""
    order = sorted(range(len(prompts)), key=lambda i: (len(completions[i]), len(prompts[i])))
    if not pads:
        order.sort(key=lambda i: len(prompts[i]))
    batches = []
    index = []
    L = 0
    T = 0
    for i in reversed(order):
        wider_L = max(L, len(prompts[i]))
        wider_T = max(T, len(completions[i]))
        size = (len(index) + 1) * (wider_L + wider_T)
        shorter = not pads and len(prompts[i]) < L
        if index and (size > max_tokens or shorter):
            batches.append(index)
            index = []
            wider_L = len(prompts[i])
            wider_T = len(completions[i])
        index.append(i)
        L = wider_L
        T = wider_T
    if index:
        batches.append(index)
    return batches


def score_weighted(policy: Policy, prompts: list[list[int]], completions: list[list[int]], weights: torch.Tensor,
                   temperature: float = 1.0):
    """`score` for the completions whose weight [B, k] is not zero; completion j of the B k belongs to prompt j // k.
    The others have no gradient and never enter a forward pass. Processes share the remaining prompts.
    Yields (j [r] into the B k completions, logps [r, T], mask [r, T])."""
    k = weights.shape[1]
    nonzero = weights.flatten().nonzero()[:, 0]
    _, prompt_rank = torch.unique(nonzero // k, return_inverse=True)  # numbers the remaining prompts 0, 1, ...
    is_mine = prompt_rank % processes.WORLD == processes.RANK
    mine = nonzero[is_mine].cpu()
    x = [prompts[j // k] for j in mine.tolist()]
    y = [completions[j] for j in mine.tolist()]
    for index, logps, mask in score(policy, x, y, temperature):
        yield mine[index], logps, mask


def score_share(policy: Policy, prompts: list[list[int]], completions: list[list[int]], temperature: float = 1.0,
                logits: bool = False):
    """`score` for this process's share of R completions, one per prompt.
    Yields (j [r] into the R completions, logps [r, T] or logits [r, T, V], mask [r, T])."""
    mine = torch.arange(processes.RANK, len(prompts), processes.WORLD)
    x = [prompts[j] for j in mine.tolist()]
    y = [completions[j] for j in mine.tolist()]
    for index, values, mask in score(policy, x, y, temperature, logits=logits):
        yield mine[index], values, mask


@torch.no_grad()
def sequence_logps(policy: Policy, prompts: list[list[int]], completions: list[list[int]],
                   temperature: float = 1.0) -> torch.Tensor:
    """log pi(y|x) of R completions (sums over tokens), without gradient -> float64 tensor [R] on the CPU."""
    out = torch.zeros(len(prompts), dtype=torch.float64)
    for j, logps, _ in score_share(policy, prompts, completions, temperature):
        total = logps.double().sum(-1)
        out[j] = total.cpu()
    return processes.all_reduce(out)


def kl_gap(policy: Policy, prompts: list[list[int]], drawn: Samples, temperature: float = 1.0,
           some: tuple[int, int] | None = None) -> torch.Tensor:
    """log pi(y|x) - log ref(y|x) of Samples, nats, detached -> float64 [B, k] on the CPU; the expected mean is
    KL(pi || ref).  some = (b, m): for a cheap estimate, only the first m samples of the first b prompts -> [b, m]."""
    B, k = drawn.lengths.shape
    b, m = some or (B, k)
    b = min(b, B)
    m = min(m, k)
    x = []
    y = []
    for prompt, rows in zip(prompts[:b], drawn.lists()):
        x += [prompt] * m
        y += rows[:m]
    with policy.reference():
        ref = sequence_logps(policy, x, y, temperature)  # [b m]
    logp = drawn.logps[:b, :m].double().sum(-1).cpu()  # [b, m]
    return logp - ref.view(b, m)


def kl_coefficients(gap: torch.Tensor) -> torch.Tensor:
    """Coefficients g_i such that E[sum_i g_i grad log pi(y_i)] = grad KL(pi || ref), for every prompt.

    gap = log pi(y) - log ref(y), detached  [B, k]  ->  (1/k) (gap_i - mean_{j != i} gap_j)  [B, k]
    This is the score-function estimator with a leave-one-out baseline (none at k = 1). With gap = log pi(y) it gives
    the gradient of minus the entropy of pi(.|x)."""
    k = gap.shape[1]
    baseline = 0.0
    if k > 1:
        others = gap.sum(1, keepdim=True) - gap
        baseline = others / (k - 1)
    return (gap - baseline) / k


def set_rate(optimizer: torch.optim.Optimizer, lr: float, number: int, steps: int) -> None:
    """Set the learning rate of step `number` (1, 2, ..., `steps`): linear decay from lr to lr / steps."""
    left = 1 - (number - 1) / steps
    for group in optimizer.param_groups:
        group["lr"] = lr * left


# ----------------------------------------------------------------------------------------------------------- estimators

def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k draws without replacement from n samples, c of them correct, include a correct one:
    1 - C(n-c,k) / C(n,k), an unbiased estimate of 1 - (1-p)^k (Chen et al. 2021, arXiv 2107.03374).  Raises ValueError
    unless 0 <= c <= n and 1 <= k <= n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    all_wrong = math.comb(n - c, k)
    return 1 - all_wrong / math.comb(n, k)


def maj_at_k(answers: list, correct, k: int) -> float:
    """Probability that `correct` wins a plurality vote of k draws without replacement from the list `answers`. A tie of
    t answers counts 1/t; None uses up a draw but casts no vote. Exact, without resampling.  Raises ValueError unless
    1 <= k <= n <= 1000 for n answers, and for correct = None.

    The sum runs over the number of votes v that `correct` gets and wins with. Answers with fewer than v copies may get
    any number of votes; every other answer gets fewer than v, or exactly v, which is a tie. Ways to draw are counted by
    multiplying polynomials in x (votes) and z (ties). All terms are positive, so float64 loses no precision.
    """
    import numpy as np
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj_at_k needs 1 <= k <= the number of answers, got k={k} for {n}")
    if n > 1000:
        raise ValueError(f"maj_at_k counts in float64, which is exact enough for up to 1000 answers, not {n}")
    if correct is None:
        raise ValueError("maj_at_k: None means no answer and cannot be the correct one")
    counts = Counter(answers)
    copies = counts.pop(correct, 0)
    blank = counts.pop(None, 0)
    others = counts.values()
    total = 0.0
    for v in range(1, min(k, copies) + 1):
        rest = k - v  # draws of other answers
        free = blank + sum(c for c in others if c < v)
        rivals = [c for c in others if c >= v]
        ways = np.zeros((rest // v + 1, rest + 1))  # number of ways to draw, by [ties, draws]
        ways[0] = [math.comb(free, d) for d in range(rest + 1)]
        for c in rivals:
            more = np.zeros_like(ways)
            if v <= rest:  # this rival ties
                fitting = ways[:-1, :rest + 1 - v]
                more[1:, v:] = fitting * math.comb(c, v)
            for u in range(1, min(v, rest + 1)):  # u < v votes: sum_u C(c,u) x^u; u = 0 leaves `ways` as it is
                more[:, u:] += ways[:, :-u] * math.comb(c, u)
            ways = ways + more
        winners = np.arange(1, len(ways) + 1)  # `correct` and the answers that tie with it
        shared = ways[:, rest] / winners
        total += math.comb(copies, v) * float(shared.sum())
    return total / math.comb(n, k)


def bon_at_k(scores: list[float], rewards: list[float], k: int) -> float:
    """Expected reward of the highest-scored of k draws without replacement from n samples; ties are broken uniformly.
    With scores = rewards this is max@k (pass@k for rewards in {0, 1}).  Raises ValueError unless 1 <= k <= n."""
    n = len(scores)
    if len(rewards) != n or not 1 <= k <= n:
        raise ValueError(f"bon_at_k needs as many rewards as scores and 1 <= k <= n, got {n} scores, {len(rewards)} "
                         f"rewards, k={k}")
    groups = {}
    for s, r in zip(scores, rewards):
        groups.setdefault(s, []).append(r)
    total = 0.0
    below = 0
    for s in sorted(groups):
        equal = groups[s]
        upto = below + len(equal)
        ways = math.comb(upto, k) - math.comb(below, k)
        top = ways / math.comb(n, k)  # probability that s is the best score drawn
        total += top * sum(equal) / len(equal)
        below = upto
    return total


# ---------------------------------------------------------------------------------------------------------- arithmetic

def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - e^x) for x < 0, accurate in value and gradient, also near 0 and for large negative x. Each branch of the
    `where` gets a safe input, because a NaN in the branch that is not taken would reach the gradient."""
    near_0 = x > -math.log(2)
    x_near_0 = torch.where(near_0, x, -1.0)
    x_far = torch.where(near_0, -1.0, x)
    value_near_0 = torch.log(-torch.expm1(x_near_0))
    value_far = torch.log1p(-torch.exp(x_far))
    return torch.where(near_0, value_near_0, value_far)


def standardise(rewards: torch.Tensor, pool: torch.Tensor | None = None, correction: int = 0) -> torch.Tensor:
    """(r - mean) / standard deviation of rewards [B, M] -> [B, M], 0 where all are equal. Mean and deviation are those
    of each prompt, or of a pool of rewards [B or 1, R]. The deviation divides by their number minus correction (0 or
    1).
    """
    if pool is None:
        pool = rewards
    correction = min(correction, pool.shape[1] - 1)
    mean = pool.mean(1, keepdim=True)
    std = pool.std(1, correction=correction, keepdim=True)
    spread = pool.amax(1, keepdim=True) - pool.amin(1, keepdim=True)
    equal = spread < 1e-6  # a smaller spread is rounding error, which division by std would amplify
    r = (rewards - mean) / std.clamp_min(1e-6)
    return torch.where(equal, 0.0, r)


def elementwise(value: torch.Tensor | float, low: float, high: float, name: str):
    """Prepare the argument of a function of tensors or numbers -> (float tensor, function that converts the result back
    to the type of `value`). Numbers are computed in float64; NaN passes through.  Raises ValueError outside [low,
    high].
    """
    is_number = not torch.is_tensor(value)
    tensor = torch.tensor(value, dtype=torch.float64) if is_number else value
    if not tensor.is_floating_point():
        tensor = tensor.float()
    outside = (tensor < low) | (tensor > high)
    if outside.any():
        raise ValueError(f"{name} must lie between {low} and {high}")
    if is_number:
        return tensor, float
    return tensor, lambda t: t.to(tensor.dtype)
