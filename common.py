"""What the papers share: loading a policy, sampling from it, scoring completions, the KL gap, pass@k-type estimators.

No paper's objective is in here; each stands in its own script. One convention runs through all of them: the policy is
softmax(logits / temperature) over the whole vocabulary (no top-k, no top-p), a completion ends with an end-of-sequence
token that is a decision of the policy like any other, and log pi(y|x) is the sum over the completion's tokens, that one
included.

`sample` and `score` are the plain versions, right for any causal LM that loads, and what a run with --plain executes.
Without that flag a script gives the policy its fast paths (`policy.fast`, fast/choose.py; the run prints which, and
why). Then `sample` hands over to `Fast.decode` instead of `decode` below, and `score`, where it pays, to `Fast.score`
instead of the rest of its body: the same draws, the same numbers.
"""
import inspect
import math
import random
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import support

support.set_thread_policy()  # torch reads it when it is loaded

import torch
import torch.nn.functional as F

from support import adapters, contents, decoding, load, model_checks, processes, text
from support.errors import UserError


def seed_of(*parts):
    """A 63-bit seed from anything printable. Every draw of a run has a seed of its own, e.g. seed_of(seed, step, i), so
    no state of a generator has to be carried over a resume or between processes."""
    return random.Random(" ".join(map(str, parts))).getrandbits(63)


def torch_seed(seed):
    """A seed as torch takes it: an integer of any size, itself where torch takes it."""
    return seed if 0 <= seed < 2 ** 63 else seed_of(seed)


# --------------------------------------------------------------------------------------------------------- the policy

@dataclass
class Policy:
    """A causal LM with a LoRA adapter, and what is needed to talk to it."""
    model: torch.nn.Module  # the peft model: saves and loads the adapter
    tokenizer: object
    device: torch.device
    note: str  # device, precision, path of the sampler, and why
    stop: list[int]  # token ids that end a completion
    start: str | None = None  # peft name of the frozen starting adapter, the KL reference
    reference_kind: str = "start"
    accepts: frozenset = frozenset()  # argument names of the model's forward
    caches: bool = True  # the model's cache can be shared out to samples; False: a row is run again for each token
    pads: bool = True  # prompts of several lengths share a batch, padded on the left; False: only those of one length
    system: str | None = None  # text of a system message, where prompts go through the chat template
    end: int | None = None  # the end-of-sequence token of gold completions; None: the first of `stop`
    size: int = 0  # parameters of the base
    check: object = None  # support/check.py, Check: called with what was drawn; None: nothing is checked
    fast: object = None  # fast/choose.py, Fast: the fast paths it takes; None: `sample` and `score` as below

    @property
    def lm(self):
        """The transformers model with the LoRA layers in place."""
        return self.model.get_base_model()

    @property
    def positions(self):
        """Most tokens of a row: those that the model has positions for, and that leave all positions as they are."""
        most = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None) or math.inf
        return min(most, decoding.rope_limit(self.lm.config)[0])

    @property
    def limit(self):
        """`positions` in words, with the reason where it is not the model's size."""
        kind = decoding.rope_limit(self.lm.config)[1]
        why = f" (beyond them its {kind} rotary scaling changes all positions)" if kind else ""
        return f"{self.positions} positions{why}"

    @property
    def window(self):
        """Most tokens that a position looks back on."""
        return decoding.window(self.lm.config)

    def decoding_mask(self, mask):
        """The mask [P, L + T] of prompts and all tokens to come, as decoding reads it: 4-D on a GPU, where transformers
        would look at the values of a 2-D one for each token, and the host wait for the device."""
        if not (self.fast and self.fast.wide) or mask.shape[1] > self.window:
            return mask
        return decoding.additive(mask, self.lm.dtype)

    def parameters(self):
        """The trainable tensors: those of the adapter "default"."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def start_parameters(self):
        """The frozen tensors of the starting adapter; none where the start is the base."""
        return [p for n, p in self.model.named_parameters() if self.start in n.split(".")]

    def forward(self, ids, mask, position, keep, **options):
        """The model's output for ids, mask, position [R, L], with the logits of the last `keep` positions; of more, or
        without positions, where the model knows no better."""
        if isinstance(options.get("past_key_values"), decoding.Rerun):
            ids = options.pop("past_key_values").longer(ids)
            position = positions_of(mask)
            options["use_cache"] = False
        known = {"position_ids": position, "logits_to_keep": keep}
        options |= {name: value for name, value in known.items() if name in self.accepts}
        return self.lm(input_ids=ids, attention_mask=mask, **options)

    def put(self, prompts, chat):
        """Prompts as the model meets them -> (texts, whether they went through the chat template: if `chat` and the
        tokenizer has one)."""
        template = chat and self.tokenizer.chat_template
        if chat and not template and any(isinstance(x, text.Chat) for x in prompts):
            raise UserError("the prompts are chat messages, and the tokenizer of this model has no chat template: add "
                            "chat_template to its tokenizer_config.json, or give --no-chat for their texts alone")
        if not template:
            return prompts, False
        return [text.put(self.tokenizer, x, self.system) for x in prompts], True

    def encode(self, prompts, chat=False):
        """Token ids of a prompt or of each of a list; through the chat template if `chat` and the tokenizer has one.
        [] where the tokenizer leaves nothing of it.  Raises UserError: a token without an embedding."""
        if isinstance(prompts, str):
            return self.encode([prompts], chat)[0]
        rows = text.encode(self.tokenizer, *self.put(prompts, chat))
        self.known([i for ids in rows for i in ids])
        return rows

    def encode_solution(self, solution, prompt=None, chat=False):
        """Token ids that a gold completion adds to those of its prompt (a text; None: to any), end-of-sequence token
        included: to stop is a decision too. None where no ids are read as exactly this text.  Raises UserError."""
        x, whole = [], []
        if prompt is not None:
            (before,), written = self.put([prompt], chat)
            x, whole = text.encode(self.tokenizer, [before, before + solution], written)
        for ids in text.continuations(self.tokenizer, solution, x, whole):
            if not {*ids} & {*self.stop} and self.decode(ids, x) == solution:
                return self.known(ids) + [self.stop[0] if self.end is None else self.end]
        return None

    def known(self, ids):
        """The ids, all of which the model has an embedding for.  Raises UserError."""
        size = len(self.lm.get_input_embeddings().weight)
        if max(ids, default=0) >= size:
            name = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(f"the tokenizer knows {name!r}, for which the model has no embedding (it has {size:,}): "
                            "they do not belong together, or the text must do without it")
        return ids

    def decode(self, tokens, prompt=None):
        """Text that a completion adds to its prompt (lists of ids; None: to any), without the token that ends it."""
        return self.texts([tokens], [prompt])[0]

    def texts(self, completions, prompts):
        """`decode` of R completions: the first R / B of them belong to the first of B prompts, and so on."""
        rows = [row[:-1] if row and row[-1] in self.stop else row for row in completions]
        share = len(rows) // len(prompts)
        parts = [text.decode(self.tokenizer, rows[b * share:(b + 1) * share], x) for b, x in enumerate(prompts)]
        return [found for part in parts for found in part]

    @contextmanager
    def reference(self):
        """Inside, the model is the KL reference: the base (adapter off) or the frozen starting adapter."""
        if self.start is None or self.reference_kind == "base":
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(self.start)
            try:
                yield
            finally:  # set_adapter also switches requires_grad: the trainable one is trainable again, the start not
                self.model.set_adapter("default")


def load_policy(model="tiny", bits=None, lora_rank=16, adapter=None, reference="start", seed=0, device=None, fast=None):
    """Load a base model, quantised if asked, with a LoRA adapter (alpha = 2 rank, no dropout) on all linear layers that
    one reaches (support/adapters.py, linear_layers).

    model      hub id, local directory, FILE.gguf, or an embedded model: those in models/, like "tiny"
    bits       4 (NF4, double quantisation), 8, 16 or 32; None: 4 on a GPU, 32 on a CPU
    adapter    directory of a peft adapter, or a run folder, to continue from (lora_rank is then the adapter's own);
               None: a new adapter, equal to the base
    reference  what Policy.reference() is: "start" (the policy as loaded) or "base". Costs no second model.
    fast       fast.choose.choose_fast: sample and score by the fast paths that suit the model; None: by this file alone
    Raises UserError: unknown model, no such device, bits that the hardware or a quantised checkpoint cannot do, weights
    that are missing or odd, a model that is not causal, an adapter that does not fit or cannot be used.
    """
    adapter = contents.located(adapter, "--adapter")
    lm, tokenizer, note = load.load_base(model, bits, device)
    model_checks.refuse(lm, model)
    size = lm.num_parameters()
    import peft  # after load_base, which quietens what it imports
    start = None
    torch.manual_seed(torch_seed(seed))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if adapter is None:
                wrapped = peft.get_peft_model(lm, peft.LoraConfig(
                    r=lora_rank, lora_alpha=2 * lora_rank, lora_dropout=0.0, task_type="CAUSAL_LM",
                    target_modules=adapters.linear_layers(lm)))
            else:
                start = "start" if reference == "start" else None
                wrapped = adapters.put_on(lm, contents.adapter_of(adapter), start)
            adapters.name_base(wrapped, model)
    except UserError as error:
        raise UserError(f"cannot use adapter {adapter!r} on {model!r}: {error}") from error
    except Exception as error:  # as in load_base
        reason = load.first_line(error)
        raise UserError(f"cannot put a new LoRA adapter on {model!r} ({reason}): choose a decoder with linear layers"
                        if adapter is None else
                        f"cannot load adapter {adapter!r} onto {model!r} ({reason}): give a run folder or a directory "
                        "with adapter_config.json made for this model") from error
    wrapped.eval()  # no dropout anywhere: what is scored is what was sampled

    ends = text.ends(lm, tokenizer, model)
    note += f", LoRA on {sum(p.numel() for p in wrapped.parameters() if p.requires_grad):,} parameters"
    untouched = adapters.untouched(lm)
    note += f" ({untouched} stay as they are)" if untouched else ""
    words = " or ".join(f"{text.name_of(tokenizer, token)} of its {place}" for token, place in ends.items())
    note += f", completions end with {words}"
    policy = Policy(wrapped, tokenizer, lm.device, note, [*ends], start, reference, end=tokenizer.eos_token_id,
                    size=size, accepts=frozenset(inspect.signature(lm.forward).parameters),
                    caches=model_checks.caches(lm), pads=model_checks.pads(lm))
    policy.fast, why = fast(policy) if fast else (None, "plain (the loops of common.py)")
    policy.note += f"\nsampling and scoring: {why}"
    return policy


# ----------------------------------------------------------------------------------------------- sampling and scoring

@dataclass
class Samples:
    """k completions for each of B prompts, T the longest; padding after `lengths` is arbitrary."""
    tokens: torch.Tensor  # [B, k, T] int64, end-of-sequence token included
    logps: torch.Tensor  # [B, k, T] float32, log softmax(logits / temperature) of each token, 0 in the padding
    lengths: torch.Tensor  # [B, k] int64
    entropies: torch.Tensor  # [B, k, T] float32, nats: entropy of what each token was drawn from, 0 in the padding

    def lists(self):
        """Token ids as nested lists [B][k], without the padding."""
        return [[row[:n] for row, n in zip(rows, ns)] for rows, ns in zip(self.tokens.tolist(), self.lengths.tolist())]


def left_pad(prompts, device=None):
    """Prompts (lists of ids) padded on the left -> ids [B, L], mask [B, L]."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def positions_of(mask):
    """Position of every token under a mask [R, L] whose rows may be padded on the left."""
    return mask.cumsum(-1).sub(1).clamp_min(0)


@torch.no_grad()
def sample(policy, prompts, k, seeds, temperature=1.0, max_new_tokens=64, max_rows=None):
    """Draw k completions per prompt from exactly softmax(logits / temperature).

    prompts  B lists of token ids, of any lengths
    seeds    B integers: the draws of prompt b depend on seeds[b] alone, not on what else is in the batch
    max_rows most rows (prompt x sample) decoded at once, of 2^14 tokens of prompts; None: support/load.py, most_rows
    Returns Samples.  A completion cut at max_new_tokens has no end-of-sequence token; its text is verified as it is.
    Raises UserError if prompt and completion do not fit the model's positions.
    """
    if not all(prompts):
        raise UserError("a prompt has no tokens: the tokenizer leaves nothing of it")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    longest = max(map(len, prompts))
    if longest + max_new_tokens > policy.positions:
        raise UserError(f"a prompt of {longest} tokens and --max-new-tokens {max_new_tokens} do not fit the model's "
                        f"{policy.limit}: lower --max-new-tokens or take a model with more")
    loop = decoding.halving(policy.fast.decode if policy.fast else decode)
    max_rows = max_rows or load.most_rows(policy.lm, longest + max_new_tokens)
    chunk, share = max(1, min(max_rows // k, 2 ** 14 // longest)), min(k, max_rows)  # prompts, samples of each at once
    shape = len(prompts), k, max_new_tokens
    tokens = torch.zeros(shape, dtype=torch.long, device=policy.device)
    logps, entropies = torch.zeros(2, *shape, device=policy.device)
    lengths = torch.zeros(shape[:2], dtype=torch.long, device=policy.device)
    mine = sorted(range(processes.RANK, len(prompts), processes.WORLD), key=lambda b: len(prompts[b]))
    for chosen in decoding.batches(mine, prompts, chunk, policy.pads):  # of about equal lengths: little padding
        # All uniforms at once and per prompt: nothing random inside the loop, the same draw in any batch.
        u = torch.stack([torch.rand(k, max_new_tokens, dtype=torch.float64,
                                    generator=torch.Generator().manual_seed(seeds[b])) for b in chosen])  # [P, k, T]
        for some in range(0, k, share):
            drawn = loop(policy, [prompts[b] for b in chosen], u[:, some:some + share].to(policy.device), temperature)
            for whole, part in zip((tokens, logps, entropies, lengths), drawn):
                whole[chosen, some:some + share] = part
    for whole in (tokens, logps, entropies, lengths):
        processes.all_reduce(whole)
    if not logps.isfinite().all():  # here and not at each token, for which a GPU would be waited for
        raise UserError("the model's logits are not finite, so nothing can be drawn: lower --lr or raise "
                        "--temperature; if it is so from the start, take another --bits or another model")
    longest = int(lengths.max())
    drawn = Samples(tokens[..., :longest], logps[..., :longest], lengths, entropies[..., :longest])
    if policy.check:
        policy.check(policy, prompts, drawn, temperature)
    return drawn


def draw(p, u):
    """Inverse transform: the first token whose cumulative probability exceeds u, in float64, which keeps the far tail
    exact.  p [..., V] float32, u [..., m] float64 -> [..., m].  Of a large vocabulary blocks are summed first, with no
    float64 copy of p: the same probabilities to a relative 1e-7."""
    if p.shape[-1] <= 4096:
        cdf = p.cumsum(-1, dtype=torch.float64)
        return torch.searchsorted(cdf, u * cdf[..., -1:], right=True).clamp_max_(cdf.shape[-1] - 1)
    size, V = 256 if p.shape[-1] % 256 == 0 else 128, p.shape[-1]
    if V % size:
        p = F.pad(p, (0, -p.shape[-1] % size))
    blocks = p.unflatten(-1, (-1, size))  # [..., V / size, size]
    total = F.pad(blocks.sum(-1).double().cumsum(-1), (1, 0))  # [..., 1 + V / size]: before each block, and in all
    u = u * total[..., -1:]
    block = torch.searchsorted(total[..., 1:].contiguous(), u, right=True).clamp_max_(blocks.shape[-2] - 1)
    below, upto = total.gather(-1, block), total.gather(-1, block + 1)
    cdf = blocks.gather(-2, block[..., None].expand(*block.shape, size)).cumsum(-1, dtype=torch.float64)
    u = ((u - below) / (upto - below))[..., None] * cdf[..., -1:]  # [..., m, 1]; cdf [..., m, size]
    return (block * size + torch.searchsorted(cdf, u, right=True)[..., 0].clamp_max_(size - 1)).clamp_max_(V - 1)


def decode(policy, prompts, u, temperature):
    """The sampling loop: one completion of each of P prompts for each of k rows of uniforms u [P, k, T].
    Returns tokens, logps, entropies [P, k, T] and lengths [P, k], as in Samples."""
    (P, k, T), stop = u.shape, torch.tensor(policy.stop, device=policy.device)
    ids, mask = left_pad(prompts, policy.device)  # [P, L]
    position = positions_of(mask)
    out = policy.forward(ids, mask, position, 1, use_cache=policy.caches)  # each prompt once ...
    cache = out.past_key_values if policy.caches else decoding.Rerun(ids)
    if k > 1:  # ... and its keys and values, or states, shared out to its samples
        cache.reorder_cache(torch.arange(P, device=policy.device).repeat_interleave(k))
    decoding.make_room(cache)
    logits = out.logits[:, -1].repeat_interleave(k, 0)  # [R, V], R = P k
    position = position[:, -1:].repeat_interleave(k, 0)  # [R, 1]
    L, mask = mask.shape[1], policy.decoding_mask(F.pad(mask, (0, T), value=1)).repeat_interleave(k, 0)
    u, rows = u.flatten(0, 1), torch.arange(P * k, device=policy.device)  # the row of the result that each row writes
    done = torch.zeros_like(rows, dtype=torch.bool)
    tokens, lengths = torch.zeros(P * k, T, dtype=torch.long, device=policy.device), torch.zeros_like(rows)
    logps, entropies = torch.zeros(2, P * k, T, device=policy.device)
    every = 1 if policy.device.type == "cpu" else 8  # asking a GPU whether rows have ended makes it wait
    for t in range(T):
        logp = torch.log_softmax(logits.float() / temperature, -1)  # [R, V]
        p = logp.exp()
        token = draw(p, u[:, t:t + 1])  # [R, 1]
        tokens[rows, t] = token[:, 0]
        logps[rows, t] = logp.gather(-1, token)[:, 0].masked_fill(done, 0.0)
        entropies[rows, t] = torch.special.entr(p).sum(-1).masked_fill(done, 0.0)
        lengths[rows] += ~done
        done = done | torch.isin(token[:, 0], stop)
        if t + 1 == T:
            break
        if (t + 1) % every == 0:
            alive = (~done).nonzero()[:, 0]
            if len(alive) == 0:
                break
            if len(alive) < 0.9 * len(rows):  # finished rows leave the batch, once it is worth the copy
                cache.reorder_cache(alive)
                rows, u, mask, position, token, done = (x[alive] for x in (rows, u, mask, position, token, done))
        position = position + 1
        logits = policy.forward(token, mask[..., :L + t + 1], position, 1, past_key_values=cache, use_cache=True).logits
        logits = logits[:, -1]
    return (*(x.unflatten(0, (P, k)) for x in (tokens, logps, entropies)), lengths.view(P, k))


def score(policy, prompts, completions, temperature=1.0, max_tokens=None, logits=False):
    """Log-probabilities of completions, in micro-batches; the gradient flows if it is enabled.

    prompts, completions  R lists of token ids each (one prompt per completion)
    max_tokens            most tokens (rows x padded length) in a micro-batch; None: support/load.py, micro_batch
    logits                yield the logits divided by the temperature, [r, T, V], in place of the log-probabilities
    Yields (index [r] into the R rows, logps [r, T], mask [r, T] 1.0 on completion tokens); logps are 0 where mask is 0.
    Backward through one micro-batch before the next: logits exist for one at a time, and never for prompt tokens.
    """
    max_tokens = max_tokens or load.micro_batch(policy.lm)
    if policy.fast and policy.fast.pays(prompts, completions, max_tokens, logits):
        yield from policy.fast.score(policy, prompts, completions, temperature, max_tokens, logits)
        return
    order = sorted(range(len(prompts)), key=lambda i: (len(completions[i]), len(prompts[i])))
    if not policy.pads:
        order.sort(key=lambda i: len(prompts[i]))
    while order:  # from the longest down
        index, L, T = [], 0, 0
        while order:
            wider = max(L, len(prompts[order[-1]])), max(T, len(completions[order[-1]]))
            if index and (len(index) + 1) * sum(wider) > max_tokens:
                break
            if index and not policy.pads and len(prompts[order[-1]]) < L:
                break
            L, T = wider
            index.append(order.pop())
        # Prompts end and completions begin at one column, so the logits of the last T + 1 positions are enough.
        ids, mask = left_pad([prompts[i] for i in index])  # [r, L]
        own = torch.arange(T) < torch.tensor([len(completions[i]) for i in index])[:, None]  # [r, T]
        tokens = torch.tensor([completions[i] + [0] * (T - len(completions[i])) for i in index], dtype=torch.long)
        ids, mask = (torch.cat(pair, 1).to(policy.device) for pair in ((ids, tokens), (mask, own.long())))  # [r, L + T]
        with load.checkpoints(policy.lm, ids.numel() > max_tokens):
            scaled = policy.forward(ids, mask, positions_of(mask), T + 1, use_cache=False).logits
        scaled, own = scaled[:, -T - 1:-1].float() / temperature, mask[:, L:].bool()  # [r, T, V], [r, T]
        logps = None if logits else -F.cross_entropy(
            scaled.flatten(0, 1), ids[:, L:].flatten(), reduction="none").view_as(own).masked_fill(~own, 0.0)
        yield torch.tensor(index), scaled if logits else logps, own.float()


def score_weighted(policy, prompts, completions, weights, temperature=1.0):
    """`score` of those of B k completions, number j of prompt j // k, whose weight [B, k] is not zero: the others have
    no gradient and never enter a forward pass. Each process takes its share of the prompts that are left.
    Yields (j [r] into the B k completions, logps [r, T], mask [r, T])."""
    k = weights.shape[1]
    kept = weights.flatten().nonzero()[:, 0]
    _, place = torch.unique(kept // k, return_inverse=True)
    mine = kept[place % processes.WORLD == processes.RANK].cpu()
    x = [prompts[j // k] for j in mine.tolist()]
    y = [completions[j] for j in mine.tolist()]
    for index, logps, mask in score(policy, x, y, temperature):
        yield mine[index], logps, mask


def score_share(policy, prompts, completions, temperature=1.0, logits=False):
    """`score` of this process's share of R completions, one of each prompt.
    Yields (j [r] into the R completions, logps [r, T] or logits, mask [r, T])."""
    mine = torch.arange(processes.RANK, len(prompts), processes.WORLD)
    x = [prompts[j] for j in mine.tolist()]
    y = [completions[j] for j in mine.tolist()]
    for index, values, mask in score(policy, x, y, temperature, logits=logits):
        yield mine[index], values, mask


@torch.no_grad()
def sequence_logps(policy, prompts, completions, temperature=1.0):
    """log pi(y|x) of R completions (sums over tokens), without gradient -> float64 tensor [R] on the CPU."""
    out = torch.zeros(len(prompts), dtype=torch.float64)
    for j, logps, _ in score_share(policy, prompts, completions, temperature):
        out[j] = logps.double().sum(-1).cpu()
    return processes.all_reduce(out)


def kl_gap(policy, prompts, drawn, temperature=1.0, some=None):
    """log pi(y|x) - log ref(y|x) of Samples, nats, detached -> float64 [B, k] on the CPU; their expected mean is
    KL(pi || ref).  some = (b, m): only of the first m samples of the first b prompts, [b, m], to watch it cheaply."""
    b, m = map(min, some or drawn.lengths.shape, drawn.lengths.shape)
    pairs = [(x, y) for x, ys in zip(prompts[:b], drawn.lists()) for y in ys[:m]]
    with policy.reference():
        ref = sequence_logps(policy, [x for x, _ in pairs], [y for _, y in pairs], temperature)
    return drawn.logps[:b, :m].double().sum(-1).cpu() - ref.view(b, m)


def kl_coefficients(gap):
    """Coefficients of grad log pi(y_i) whose expected sum is grad KL(pi || ref), as the score-function form has it:
    (1/k) (gap_i - mean_{j != i} gap_j), gap = log pi(y) - log ref(y) [B, k], detached. With gap = log pi(y) it is the
    gradient of minus the entropy of pi(.|x)."""
    k = gap.shape[1]
    baseline = (gap.sum(1, keepdim=True) - gap) / (k - 1) if k > 1 else 0.0
    return (gap - baseline) / k


def set_rate(optimizer, lr, number, steps):
    """Learning rate of step `number` (1, 2, ..., `steps`): it falls from lr to lr / steps."""
    left = 1 - (number - 1) / steps
    for group in optimizer.param_groups:
        group["lr"] = lr * left


# ----------------------------------------------------------------------------------------------------------- estimators

def pass_at_k(n, c, k):
    """Chance that k draws without replacement from n samples, c of them right, hold a right one: 1 - C(n-c,k) / C(n,k).
    Unbiased for 1 - (1-p)^k (Chen et al. 2021, arXiv 2107.03374).  Raises ValueError unless 0 <= c <= n and
    1 <= k <= n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers, correct, k):
    """Chance that `correct` wins a plurality vote of k draws without replacement from the pool `answers`; a tie of t
    answers counts 1/t; None consumes a draw and casts no vote. Exact, no resampling.  Raises ValueError unless
    1 <= k <= n <= 1000 and `correct` is an answer.

    Sum over the winning number of votes v: `correct` gets v, answers with fewer than v copies get anything, each answer
    with at least v copies gets fewer than v or ties at v. Counting the ways is a product of polynomials in x (votes)
    and z (ties); its float64 terms are all positive, so nothing cancels.
    """
    import numpy as np
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj_at_k needs 1 <= k <= the number of answers, got k={k} for {n}")
    if n > 1000:
        raise ValueError(f"maj_at_k counts in float64, which holds pools of up to 1000 answers, not {n}")
    if correct is None:
        raise ValueError("maj_at_k: None is the absence of an answer and cannot be the correct one")
    counts = Counter(answers)
    mine, blank = counts.pop(correct, 0), counts.pop(None, 0)
    total = 0.0
    for v in range(1, min(k, mine) + 1):
        rest = k - v  # draws for everybody else
        free = blank + sum(c for c in counts.values() if c < v)
        ways = np.zeros((rest // v + 1, rest + 1))  # [ties, draws]
        ways[0] = [math.comb(free, d) for d in range(rest + 1)]
        for c in (c for c in counts.values() if c >= v):
            tied = np.zeros_like(ways)
            if v <= rest:
                tied[1:, v:] = ways[:-1, :rest + 1 - v] * math.comb(c, v)
            for u in range(1, min(v, rest + 1)):  # fewer votes: times sum_{u<v} C(c,u) x^u, the term u = 0 below
                tied[:, u:] += ways[:, :-u] * math.comb(c, u)
            ways = ways + tied
        total += math.comb(mine, v) * float((ways[:, rest] / np.arange(1, len(ways) + 1)).sum())
    return total / math.comb(n, k)


def bon_at_k(scores, rewards, k):
    """Expected reward of the highest-scored of k draws without replacement; equal scores share the choice equally.
    With scores = rewards this is max@k (pass@k for rewards in {0, 1}).  Raises ValueError unless 1 <= k <= n."""
    n = len(scores)
    if len(rewards) != n or not 1 <= k <= n:
        raise ValueError(f"bon_at_k needs as many rewards as scores and 1 <= k <= n, got {n}, {len(rewards)}, k={k}")
    groups = {}
    for s, r in zip(scores, rewards):
        groups.setdefault(s, []).append(r)
    total, below = 0.0, 0
    for s in sorted(groups):
        upto = below + len(groups[s])
        top = (math.comb(upto, k) - math.comb(below, k)) / math.comb(n, k)  # chance that s is the best score drawn
        total, below = total + top * sum(groups[s]) / len(groups[s]), upto
    return total


# ---------------------------------------------------------------------------------------------------------- arithmetic

def log1mexp(x):
    """log(1 - e^x) for x < 0, value and gradient: each branch of a `where` needs an input that is safe for it, because
    a NaN of the branch not taken would reach the gradient."""
    near = x > -math.log(2)
    return torch.where(near, torch.log(-torch.expm1(torch.where(near, x, -1.0))),
                       torch.log1p(-torch.exp(torch.where(near, -1.0, x))))


def standardise(rewards, pool=None):
    """(r - mean) / standard deviation of rewards [B, M], 0 where all are equal; by those of a pool [B or 1, R] if one
    is given, else by each prompt's own."""
    pool = rewards if pool is None else pool
    mean, std = pool.mean(1, keepdim=True), pool.std(1, correction=0, keepdim=True)
    equal = pool.amax(1, keepdim=True) - pool.amin(1, keepdim=True) < 1e-6  # rounding would pass for a deviation
    return torch.where(equal, 0.0, (rewards - mean) / std.clamp_min(1e-6))


def elementwise(value, low, high, name):
    """For functions of a tensor or a number -> (float tensor, function that gives a result the type of `value`).
    A number is computed in float64; NaN passes.  Raises ValueError outside [low, high]."""
    tensor = value if torch.is_tensor(value) else torch.tensor(value, dtype=torch.float64)
    tensor = tensor if tensor.is_floating_point() else tensor.float()
    if ((tensor < low) | (tensor > high)).any():
        raise ValueError(f"{name} must lie between {low} and {high}")
    return tensor, (lambda t: t.to(tensor.dtype)) if torch.is_tensor(value) else float
