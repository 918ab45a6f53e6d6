"""Score completions that share the keys and values of their prompt, which is computed once per micro-batch."""
import torch

import common


def score_shared(policy, prompts, completions, temperature, max_tokens, logits=False):
    """As common.score, but each prompt of a micro-batch is computed once. Its completions share its keys and values,
    through which gradients flow."""
    units = units_of(prompts, completions, max_tokens)
    while units:
        batch = micro_batch(units, prompts, completions, max_tokens)
        yield score_units(policy, prompts, completions, batch, temperature, logits)


def units_of(prompts, completions, max_tokens):
    """Split the completions into units -> lists of indices. A unit has completions of one prompt, longest first, and
    fits into a micro-batch. The unit with the longest completion is last."""
    lengths = [len(y) for y in completions]
    by_prompt = {}
    for i in sorted(range(len(prompts)), key=lambda i: -lengths[i]):
        by_prompt.setdefault(tuple(prompts[i]), []).append(i)
    units = []
    for x, rows in by_prompt.items():
        room = max_tokens - len(x)
        longest = max(1, lengths[rows[0]])
        g = max(1, room // longest)
        while rows:
            units.append(rows[:g])
            del rows[:g]
    units.sort(key=lambda rows: (lengths[rows[0]], len(prompts[rows[0]])))
    return units


def micro_batch(units, prompts, completions, max_tokens):
    """Remove units from the end of a list, longest first, for one micro-batch -> the units."""
    batch = []
    r = 0  # number of completions
    L = 0
    T = 0
    while units:
        rows = units[-1]
        r += len(rows)
        L = max(L, len(prompts[rows[0]]))
        T = max(T, len(completions[rows[0]]))
        size = (len(batch) + 1) * L + r * T
        if batch and size > max_tokens:
            break
        batch.append(units.pop())
    return batch


def score_units(policy, prompts, completions, units, temperature, logits):
    """One micro-batch of score_shared -> (index [r], logps [r, T] or logits [r, T, V], mask [r, T])."""
    index = []
    owner = []  # prompt of each completion, as a row of ids
    for p, rows in enumerate(units):
        index += rows
        owner += [p] * len(rows)
    owner = torch.tensor(owner, device=policy.device)
    x = [prompts[rows[0]] for rows in units]
    y = [completions[i] for i in index]
    ids, mask = common.left_pad(x, policy.device)  # [p, L]
    tokens, completion_mask = common.right_pad(y, policy.device)  # [r, T]
    T = tokens.shape[1]
    position = common.positions_of(mask)
    out = policy.forward(ids, mask, position, 1, use_cache=True)
    scaled = out.logits[:, -1:][owner]  # logits of the first token  [r, 1, V]
    if T > 1:
        cache = out.past_key_values
        cache.reorder_cache(owner)
        mask = torch.cat([mask[owner], completion_mask[:, :-1]], 1)  # [r, L + T - 1]
        offsets = torch.arange(1, T, device=policy.device)
        position = position[owner, -1:] + offsets
        out = policy.forward(tokens[:, :-1], mask, position, T - 1, past_key_values=cache, use_cache=True)
        scaled = torch.cat([scaled, out.logits[:, 1 - T:]], 1)
    scaled = scaled[:, :T].float() / temperature  # [r, T, V]
    values = scaled
    if not logits:
        values = common.log_probabilities(scaled, tokens, completion_mask.bool())
    return torch.tensor(index), values, completion_mask.float()
