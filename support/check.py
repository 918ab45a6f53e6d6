"""Check that samples have the same log-probabilities in the sampler, in the update, and in one forward pass over the
unpadded row. If these differ, the gradient belongs to another policy than the one sampled from, and no training curve
would show it."""
import itertools

import torch

import common
from common import sample
from support import load, processes
from support.errors import UserError

ROWS = 4

# Limits of the largest and the mean gap, in nats per token. In float32, also with 4-bit weights, only the order of sums
# differs: we measured at most 3e-5 and 7e-6. In bfloat16 and 8 bits (where activations are rounded, too), products
# depend on the shape of the batch; the limits are ten times the median over batches of SmolLM2-135M. Smaller models
# have smaller gaps.
LIMITS = {"float32": (1e-3, 1e-3), "8 bits": (10 * 0.5, 10 * 0.08), "bfloat16": (10 * 0.2, 10 * 0.05)}


class Check:
    """common.sample calls it with all samples. It checks the first ones, the next ones after `again`, and those whose
    longest row is at least twice the longest checked so far."""

    def __init__(self, report=None):
        """report: called with each result, {"longest", "largest", "mean"}."""
        self.report = report
        self.longest = 0

    def again(self):
        """Check the next samples, whatever their length."""
        self.longest = 0

    @torch.no_grad()
    def __call__(self, policy, prompts, drawn, temperature):
        """Compare the log-probabilities of a few samples.  Raises UserError if they differ by more than rounding."""
        lengths = drawn.lengths.cpu()
        prompt_lengths = torch.tensor([len(x) for x in prompts])
        row_lengths = lengths + prompt_lengths[:, None]  # [B, k]
        longest = int(row_lengths.max())
        if longest < 2 * self.longest:
            return
        self.longest = longest
        rows = some_rows(lengths, row_lengths)
        x = [prompts[b] for b, _ in rows]
        tokens = drawn.lists()
        y = [tokens[b][i] for b, i in rows]
        logps = drawn.logps.float().cpu()
        sampled = [logps[b, i, :lengths[b, i]] for b, i in rows]
        unpadded = [bare(policy, *pair, temperature) for pair in zip(x, y)]
        scores = scored(policy, x, y, temperature)
        worst = max(scores, key=lambda score: gap(score, unpadded))
        results = {"the sampler": sampled, "the scorer": worst, "one unpadded forward": unpadded}
        pairs = itertools.combinations(sorted(results), 2)
        gaps = {(one, other): gap(results[one], results[other]) for one, other in pairs}
        largest = max(most for most, _ in gaps.values())
        mean = max(average for _, average in gaps.values())
        refuse_gap(policy, gaps, largest, mean)
        if self.report and not processes.RANK:
            self.report({"longest": longest, "largest": largest, "mean": mean, **drawn.notes})


def draw(policy, prompts, seeds, temperature, max_new_tokens):
    """Draw one sample per prompt for the check, in a step that draws no samples itself."""
    sample(policy, prompts, 1, seeds, temperature, max_new_tokens)


def some_rows(lengths, row_lengths):
    """Select rows to check -> at most ROWS pairs (prompt, sample): the longest and the shortest completion of the
    prompt with the longest row, and of the prompt with the most padding.  lengths of completions, row_lengths with
    their prompts  [B, k]."""
    k = lengths.shape[1]
    longest = row_lengths.argmax().item() // k
    prompt_lengths = (row_lengths - lengths)[:, 0]
    padded = prompt_lengths.argmin().item()
    rows = []
    for b in (longest, padded):
        rows.append((b, lengths[b].argmax().item()))
        rows.append((b, lengths[b].argmin().item()))
    return list(dict.fromkeys(rows))[:ROWS]


def scored(policy, x, y, temperature):
    """Log-probabilities [T_j] of completions y_j, once for each way in which the update may compute them: common.score,
    and the fast path, if the policy has one."""
    scorers = [common.score(policy, x, y, temperature)]
    if policy.fast:
        max_tokens = load.micro_batch(policy.lm)
        scorers.append(policy.fast.score(policy, x, y, temperature, max_tokens))
    results = []
    for scorer in scorers:
        out = [None] * len(y)
        for index, logps, _ in scorer:
            for j, row in zip(index.tolist(), logps):
                n = len(y[j])
                out[j] = row[:n].float().cpu()
        results.append(out)
    return results


def bare(policy, x, y, temperature):
    """Log-probabilities [T] of a completion y from one forward pass over prompt and completion, without padding, cache,
    position ids or fast paths."""
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
    """(largest, mean) absolute difference of two lists of tensors; infinite if a value is not finite."""
    difference = (torch.cat(a) - torch.cat(b)).abs()
    if not difference.isfinite().all():
        return float("inf"), float("inf")
    return difference.max().item(), difference.mean().item()


def precision(policy):
    """The key of LIMITS for a policy."""
    if policy.lm.dtype != torch.float32:
        return "bfloat16"
    quantised = getattr(policy.lm.config, "quantization_config", None)
    return "8 bits" if getattr(quantised, "load_in_8bit", False) else "float32"


def refuse_gap(policy, gaps, largest, mean):
    """Raises UserError that names what differs, if the gaps exceed the limits."""
    kind = precision(policy)
    limit, limit_mean = LIMITS[kind]
    if largest <= limit and mean <= limit_mean:
        return
    (one, other), (nearest, _) = min(gaps.items(), key=lambda item: item[1])
    odd, = {name for pair in gaps for name in pair} - {one, other}
    culprit = f"{odd} differs from {one} and {other}"
    if nearest > limit:
        culprit = "the sampler, the scorer and one unpadded forward all differ"
    hint = "use --plain, or try another --bits" if policy.fast else "try another --bits"
    raise UserError(f"log-probabilities of the same sample: {culprit}, by up to {largest:.3g} nats for a token and "
                    f"{mean:.2g} on average, where the limits in {kind} are {limit:g} and {limit_mean:g}, so "
                    f"training would be wrong: {hint} or another model (docs/troubleshooting.md)")


def words(result):
    """A result as one line of text."""
    engine = ""
    if "engine_gap" in result:
        engine = f"; the engine's: largest {result['engine_gap_max']:.1g}, mean {result['engine_gap']:.1g}"
    return (f"first samples, scored by the sampler, the update and one unpadded forward: largest gap "
            f"{result['largest']:.1g}, mean {result['mean']:.1g} nats per token{engine}")
