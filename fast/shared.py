"""Each prompt of a micro-batch computed once, its keys and values handed out to its completions."""
import torch
import torch.nn.functional as F

import common


def score_shared(policy, prompts, completions, temperature, max_tokens, logits=False):
    """common.score with each prompt of a micro-batch computed once: its keys and values, through which the gradient
    flows, are handed out to its completions."""
    same = {}
    for i in sorted(range(len(prompts)), key=lambda i: -len(completions[i])):
        same.setdefault(tuple(prompts[i]), []).append(i)
    units = []  # completions of one prompt, the longest first, no more than a micro-batch holds
    for x, rows in same.items():
        g = max(1, (max_tokens - len(x)) // max(1, len(completions[rows[0]])))
        units += [rows[i:i + g] for i in range(0, len(rows), g)]
    units.sort(key=lambda rows: (len(completions[rows[0]]), len(prompts[rows[0]])))
    while units:
        some, r, L, T = [], 0, 0, 0
        while units:  # from the longest down
            rows = units[-1]
            wider = max(L, len(prompts[rows[0]])), max(T, len(completions[rows[0]]))
            if some and (len(some) + 1) * wider[0] + (r + len(rows)) * wider[1] > max_tokens:
                break
            (L, T), r = wider, r + len(rows)
            some.append(units.pop())
        owner = torch.tensor([p for p, rows in enumerate(some) for _ in rows], device=policy.device)  # [r]
        index = [i for rows in some for i in rows]
        own = torch.arange(T) < torch.tensor([len(completions[i]) for i in index])[:, None]  # [r, T]
        tokens = torch.tensor([completions[i] + [0] * (T - len(completions[i])) for i in index], dtype=torch.long)
        tokens, own = tokens.to(policy.device), own.to(policy.device)
        ids, mask = common.left_pad([prompts[rows[0]] for rows in some], policy.device)  # [p, L]
        position = common.positions_of(mask)
        out = policy.forward(ids, mask, position, 1, use_cache=True)
        scaled = out.logits[:, -1:][owner]  # [r, 1, V]: what the first token is drawn from
        if T > 1:
            cache = out.past_key_values
            cache.reorder_cache(owner)
            mask = torch.cat([mask[owner], own[:, :-1].long()], 1)  # [r, L + T - 1]
            position = position[owner, -1:] + torch.arange(1, T, device=policy.device)
            out = policy.forward(tokens[:, :-1], mask, position, T - 1, past_key_values=cache, use_cache=True)
            scaled = torch.cat([scaled, out.logits[:, 1 - T:]], 1)
        scaled = scaled[:, :T].float() / temperature  # [r, T, V]
        logps = None if logits else -F.cross_entropy(
            scaled.flatten(0, 1), tokens.flatten(), reduction="none").view_as(own).masked_fill(~own, 0.0)
        yield torch.tensor(index), scaled if logits else logps, own.float()
