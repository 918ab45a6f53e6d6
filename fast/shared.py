"""Each prompt of a micro-batch computed once, its keys and values handed out to its completions."""
import torch

import common


def score_shared(policy, prompts, completions, temperature, max_tokens, logits=False):
    """common.score with each prompt of a micro-batch computed once: its keys and values, through which the gradient
    flows, are handed out to its completions."""
    units = units_of(prompts, completions, max_tokens)
    while units:
        some = micro_batch(units, prompts, completions, max_tokens)
        yield score_units(policy, prompts, completions, some, temperature, logits)


def units_of(prompts, completions, max_tokens):
    """Indices of completions of one prompt, the longest first, no more than a micro-batch holds; the longest last."""
    lengths = [len(y) for y in completions]
    same = {}
    for i in sorted(range(len(prompts)), key=lambda i: -lengths[i]):
        same.setdefault(tuple(prompts[i]), []).append(i)
    units = []
    for x, rows in same.items():
        room = max_tokens - len(x)
        longest = max(1, lengths[rows[0]])
        g = max(1, room // longest)
        while rows:
            units.append(rows[:g])
            del rows[:g]
    units.sort(key=lambda rows: (lengths[rows[0]], len(prompts[rows[0]])))
    return units


def micro_batch(units, prompts, completions, max_tokens):
    """Takes units from the end of a list, from the longest down, as many as a micro-batch holds."""
    some = []
    r = 0  # completions
    L = 0
    T = 0
    while units:
        rows = units[-1]
        r += len(rows)
        L = max(L, len(prompts[rows[0]]))
        T = max(T, len(completions[rows[0]]))
        size = (len(some) + 1) * L + r * T
        if some and size > max_tokens:
            break
        some.append(units.pop())
    return some


def score_units(policy, prompts, completions, units, temperature, logits):
    """One micro-batch of score_shared -> (index [r], logps [r, T] or logits [r, T, V], mask [r, T])."""
    index = []
    owner = []  # the prompt of each completion
    for p, rows in enumerate(units):
        index += rows
        owner += [p] * len(rows)
    owner = torch.tensor(owner, device=policy.device)
    x = [prompts[rows[0]] for rows in units]
    y = [completions[i] for i in index]
    ids, mask = common.left_pad(x, policy.device)  # [p, L]
    tokens, own = common.right_pad(y, policy.device)  # [r, T]
    T = tokens.shape[1]
    position = common.positions_of(mask)
    out = policy.forward(ids, mask, position, 1, use_cache=True)
    scaled = out.logits[:, -1:][owner]  # [r, 1, V]: what the first token is drawn from
    if T > 1:
        cache = out.past_key_values
        cache.reorder_cache(owner)
        mask = torch.cat([mask[owner], own[:, :-1]], 1)  # [r, L + T - 1]
        places = torch.arange(1, T, device=policy.device)
        position = position[owner, -1:] + places
        out = policy.forward(tokens[:, :-1], mask, position, T - 1, past_key_values=cache, use_cache=True)
        scaled = torch.cat([scaled, out.logits[:, 1 - T:]], 1)
    scaled = scaled[:, :T].float() / temperature  # [r, T, V]
    values = scaled
    if not logits:
        values = common.log_probabilities(scaled, tokens, own.bool())
    return torch.tensor(index), values, own.float()
