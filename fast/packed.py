"""Several completions of one prompt in one row, under a 4-D mask by which each looks past the others."""
import torch
import torch.nn.functional as F

import common

PACK = 128  # most completion tokens in a row: beyond that, looking past each other costs more than the prompt saves


def decode_packed(policy, prompts, u, temperature):
    """common.decode for u [P, k/g, g, T], g samples of one prompt to a row: its keys are stored and read once for all
    of them, but each looks past the others."""
    (P, repeat, g, T), stop = u.shape, torch.tensor(policy.stop)
    ids, mask = common.left_pad(prompts)
    position = common.positions_of(mask)  # [P, L]
    out = policy.forward(ids, mask, position, 1, use_cache=True)
    cache, L, R = out.past_key_values, ids.shape[1], P * repeat
    if repeat > 1:
        cache.reorder_cache(torch.arange(P).repeat_interleave(repeat))
    logits = out.logits[:, -1:].repeat_interleave(repeat, 0).expand(-1, g, -1)  # [R, g, V]
    position = position[:, -1:].repeat_interleave(repeat, 0).repeat(1, g)  # [R, g]
    # The g queries of a step see the prompt, and of the samples' columns (token by token, g each) their own.
    own = torch.eye(g).repeat(1, T).expand(R, 1, g, -1)
    seen = torch.cat([mask.repeat_interleave(repeat, 0)[:, None, None].expand(-1, 1, g, -1), own], -1)
    mask = (1 - seen) * torch.finfo(logits.dtype).min  # [R, 1, g, L + g T], added to the scores
    u, rows = u.flatten(0, 1), torch.arange(R)
    done = torch.zeros(R, g, dtype=torch.bool)
    tokens, lengths = torch.zeros(R, g, T, dtype=torch.long), torch.zeros(R, g, dtype=torch.long)
    logps, entropies = torch.zeros(2, R, g, T)
    for t in range(T):
        logp = torch.log_softmax(logits.float() / temperature, -1)  # [R, g, V]
        p = logp.exp()
        token = common.draw(p, u[..., t:t + 1])
        logps[rows, :, t] = logp.gather(-1, token)[..., 0].masked_fill(done, 0.0)
        entropies[rows, :, t] = torch.special.entr(p).sum(-1).masked_fill(done, 0.0)
        token = token[..., 0]  # [R, g]
        tokens[rows, :, t] = token
        lengths[rows] += ~done
        done = done | torch.isin(token, stop)
        alive = (~done.all(1)).nonzero()[:, 0]
        if len(alive) == 0 or t + 1 == T:
            break
        if len(alive) < 0.9 * len(rows):
            cache.reorder_cache(alive)
            rows, u, mask, position, token, done = (x[alive] for x in (rows, u, mask, position, token, done))
        position = position + 1
        logits = policy.forward(token, mask[..., :L + g * (t + 1)], position, g, past_key_values=cache,
                                use_cache=True).logits
    return (*(x.view(P, repeat * g, T) for x in (tokens, logps, entropies)), lengths.view(P, repeat * g))


def packs_of(policy, prompts, completions):
    """Which completions share a row: lists of indices, of one prompt each, of at most PACK tokens; alone where the
    model's window does not hold a row."""
    longest = max(map(len, prompts), default=0) + max(map(len, completions), default=0)
    apart = longest > policy.window
    same, packs = {}, []
    for i in sorted(range(len(prompts)), key=lambda i: len(completions[i])):
        same.setdefault(i if apart else tuple(prompts[i]), []).append(i)
    for rows in same.values():
        while rows:
            g = max(1, min(len(rows), PACK // max(1, len(completions[rows[-1]]))))
            packs.append(rows[-g:])
            del rows[-g:]
    return packs


def score_packs(policy, prompts, completions, packs, temperature, max_tokens):
    """common.score for rows that each hold one prompt and the completions packs[row] of it, one after the other:
    completion j starts at the position after the prompt, and sees the prompt and itself only."""
    order = sorted(packs, key=lambda pack: (len(pack), max(len(completions[i]) for i in pack), len(prompts[pack[0]])))
    while order:
        # From the longest down; a micro-batch is as wide as its longest prompt and its longest completion make it.
        rows, g, L, T = [], len(order[-1]), 0, 0
        while order:
            wider = max(L, len(prompts[order[-1][0]])), max(T, *(len(completions[i]) for i in order[-1]), 0)
            if rows and (len(rows) + 1) * (wider[0] + g * wider[1]) > max_tokens:
                break
            L, T = wider
            rows.append(order.pop())
        ids, mask = common.left_pad([prompts[pack[0]] for pack in rows])  # [p, L]
        ys = [completions[i] for pack in rows for i in pack]
        slot = torch.tensor([row * g + j for row, pack in enumerate(rows) for j in range(len(pack))])  # [r] of p g
        own = torch.arange(T) < torch.tensor([len(y) for y in ys])[:, None]  # [r, T]
        tokens = torch.tensor([y + [0] * (T - len(y)) for y in ys], dtype=torch.long)  # [r, T]
        slots, real = (torch.zeros(len(rows) * g, T, dtype=torch.long).index_put((slot,), x.long()).view(len(rows), -1)
                       for x in (tokens, own))  # [p, g T]
        position = common.positions_of(mask)  # [p, L]
        position = torch.cat([position, position[:, -1:] + 1 + torch.arange(T).repeat(g)], 1)  # [p, L + g T]
        ids, mask = torch.cat([ids, slots], 1), torch.cat([mask, real], 1)
        if g > 1:
            owner = torch.cat([torch.full((L,), -1), torch.arange(g).repeat_interleave(T)])  # -1: the prompt, for all
            seen = ((owner == -1) | (owner == owner[:, None])).tril()  # [L + g T, L + g T]
            mask = (~(seen & mask[:, None, None].bool())).to(policy.lm.dtype) * torch.finfo(policy.lm.dtype).min
        scaled = policy.forward(ids, mask, position, g * T + 1, use_cache=False).logits
        scaled = scaled[:, -g * T - 1:].float() / temperature  # [p, 1 + g T, V]
        if g == 1:
            scaled = scaled[:, :-1]  # [r, T, V]
        else:  # what predicts token t of completion j: the prompt's last position for t = 0, else the token before it
            column = torch.cat([torch.zeros(g, 1, dtype=torch.long), 1 + torch.arange(g * T).view(g, T)[:, :-1]], 1)
            scaled = scaled[slot[:, None] // g, column[slot % g]]  # [r, T, V]
        logps = -F.cross_entropy(scaled.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
        yield torch.tensor([i for pack in rows for i in pack]), logps.masked_fill(~own, 0.0), own.float()
