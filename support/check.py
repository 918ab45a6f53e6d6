"""Before training, samples are scored in three ways: by the sampler, by the update, and by one forward pass over the
unpadded row. If these differ, gradients would belong to another policy than the sampled one, and no curve would show
it."""
import itertools

import torch

import common
from common import sample
from support import load, processes
from support.errors import UserError

ROWS = 4

# Largest and mean gap in nats per token. In float32, 4-bit weights included, only the order of sums differs: 3e-5 and
# 7e-6 at most. The others are ten times the median over batches of SmolLM2-135M (.2 and .05 in bfloat16, .5 and .08 in
# 8 bits, where activations are rounded too; smaller models differ by less): rounded products depend on the shape of the
# batch.
LIMITS = {"float32": (1e-3, 1e-3), "8 bits": (10 * 0.5, 10 * 0.08), "bfloat16": (10 * 0.2, 10 * 0.05)}


class Check:
    """Called by common.sample with all its samples. Checks the first ones, the next ones after `again`, and those whose
    longest row is twice the longest checked so far."""

    def __init__(self, report=None):
        """report: called with each finding, {"longest", "largest", "mean"}."""
        self.report = report
        self.longest = 0

    def again(self):
        """Look at the next samples, whatever their length."""
        self.longest = 0

    @torch.no_grad()
    def __call__(self, policy, prompts, drawn, temperature):
        """Compare, for a few of the samples.  Raises UserError if they differ by more than rounding."""
        lengths = drawn.lengths.cpu()
        before = torch.tensor([len(x) for x in prompts])
        whole = lengths + before[:, None]  # [B, k]
        longest = int(whole.max())
        if longest < 2 * self.longest:
            return
        self.longest = longest
        rows = some_rows(lengths, whole)
        x = [prompts[b] for b, _ in rows]
        tokens = drawn.lists()
        y = [tokens[b][i] for b, i in rows]
        logps = drawn.logps.float().cpu()
        sampled = [logps[b, i, :lengths[b, i]] for b, i in rows]
        alone = [bare(policy, *pair, temperature) for pair in zip(x, y)]
        ways = scored(policy, x, y, temperature)
        worst = max(ways, key=lambda way: gap(way, alone))
        found = {"the sampler": sampled, "the scorer": worst, "one unpadded forward": alone}
        pairs = itertools.combinations(sorted(found), 2)
        gaps = {(one, other): gap(found[one], found[other]) for one, other in pairs}
        largest = max(most for most, _ in gaps.values())
        mean = max(average for _, average in gaps.values())
        refuse_gap(policy, gaps, largest, mean)
        if self.report and not processes.RANK:
            self.report({"longest": longest, "largest": largest, "mean": mean, **drawn.notes})


def draw(policy, prompts, seeds, temperature, max_new_tokens):
    """Draw one sample per prompt, only for the check, if a step draws none."""
    sample(policy, prompts, 1, seeds, temperature, max_new_tokens)


def some_rows(lengths, whole):
    """[(prompt, sample)] of the longest row, of the longest and the shortest completion of its prompt, and of a sample
    of the prompt with the most padding. lengths [B, k] of completions, whole [B, k] with their prompts."""
    k = lengths.shape[1]
    longest = whole.argmax().item() // k
    prompts = (whole - lengths)[:, 0]
    padded = prompts.argmin().item()
    rows = []
    for b in (longest, padded):
        rows.append((b, lengths[b].argmax().item()))
        rows.append((b, lengths[b].argmin().item()))
    return list(dict.fromkeys(rows))[:ROWS]


def scored(policy, x, y, temperature):
    """Log-probabilities [T_j] of completions y_j in each of the ways that the update may compute them: by common.score,
    and by the fast path, which it takes only where that pays."""
    ways = [common.score(policy, x, y, temperature)]
    if policy.fast:
        most = load.micro_batch(policy.lm)
        ways.append(policy.fast.score(policy, x, y, temperature, most))
    results = []
    for way in ways:
        out = [None] * len(y)
        for index, logps, _ in way:
            for j, row in zip(index.tolist(), logps):
                n = len(y[j])
                out[j] = row[:n].float().cpu()
        results.append(out)
    return results


def bare(policy, x, y, temperature):
    """Log-probabilities [T] of a completion y by one forward pass over prompt and completion: no padding, no cache, no
    positions given, no fast path."""
    ids = torch.tensor([x + y], device=policy.device)
    options = {}
    if "logits_to_keep" in policy.accepts:
        options["logits_to_keep"] = len(y) + 1
    out = policy.lm(input_ids=ids, use_cache=False, **options)
    logits = out.logits[0, -len(y) - 1:-1].float()
    logp = torch.log_softmax(logits / temperature, -1)  # [T, V]
    tokens = ids[0, len(x):, None]
    return logp.gather(-1, tokens)[:, 0].cpu()


def gap(a, b):
    """(largest, mean) absolute difference of two lists of tensors; infinite where one is not finite."""
    difference = (torch.cat(a) - torch.cat(b)).abs()
    if not difference.isfinite().all():
        return float("inf"), float("inf")
    return difference.max().item(), difference.mean().item()


def precision(policy):
    """Key of LIMITS."""
    if policy.lm.dtype != torch.float32:
        return "bfloat16"
    quantised = getattr(policy.lm.config, "quantization_config", None)
    return "8 bits" if getattr(quantised, "load_in_8bit", False) else "float32"


def refuse_gap(policy, gaps, largest, mean):
    """Raises UserError, naming what differs, if a gap is larger than rounding."""
    kind = precision(policy)
    most, most_mean = LIMITS[kind]
    if largest <= most and mean <= most_mean:
        return
    (one, other), _ = min(gaps.items(), key=lambda item: item[1])  # the two that are nearest
    odd, = {name for pair in gaps for name in pair} - {one, other}
    near = gaps[one, other][0]
    who = f"{odd} differs from {one} and {other}"
    if near > most:
        who = "the sampler, the scorer and one unpadded forward all differ"
    hint = "give --plain, or try another --bits" if policy.fast else "try another --bits"
    raise UserError(f"log-probabilities of the same sample: {who}, by up to {largest:.3g} nats for a token and "
                    f"{mean:.2g} on average, where {most:g} and {most_mean:g} are the limits in {kind}, so training "
                    f"would be wrong: {hint} or another model (docs/troubleshooting.md)")


def words(found):
    """A finding in a line."""
    engine = ""
    if "engine_gap" in found:
        engine = f"; the engine's own: largest {found['engine_gap_max']:.1g}, mean {found['engine_gap']:.1g}"
    return (f"the first samples, scored by the sampler, by the update and by one unpadded forward: largest gap "
            f"{found['largest']:.1g}, mean {found['mean']:.1g} nats per token{engine}")
