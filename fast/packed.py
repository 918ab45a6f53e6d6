"""Pack several completions of one prompt in a row, with a 4-D mask that hides them from each other."""
import torch

import common

PACK = 128  # most completion tokens in a row: in longer rows, wider attention costs more than the shared prompt saves


def decode_packed(policy, prompts, u, temperature):
    """As common.decode, with g samples of one prompt in a row, u [P, k/g, g, T]. The keys of the prompt are stored and
    read once for all of them."""
    P, repeat, g, T = u.shape
    R = P * repeat  # rows
    shape = (R, g, T)
    stop = torch.tensor(policy.stop)
    ids, prompt = common.left_pad(prompts)  # [P, L]
    L = ids.shape[1]
    position = common.positions_of(prompt)
    out = policy.forward(ids, prompt, position, 1, use_cache=True)
    cache = out.past_key_values
    memory = {"past_key_values": cache, "use_cache": True}
    owner = torch.arange(P).repeat_interleave(repeat)  # prompt of each row
    if repeat > 1:
        cache.reorder_cache(owner)
    logits = out.logits[owner, -1:]
    logits = logits.expand(-1, g, -1)  # [R, g, V]
    position = position[owner, -1:].repeat(1, g)  # [R, g]
    mask = mask_of_samples(prompt[owner], g, T, logits.dtype)
    u = u.flatten(0, 1)
    rows = torch.arange(R)  # row of the results that each active row writes to
    done = torch.zeros(R, g, dtype=torch.bool)
    lengths = torch.zeros(R, g, dtype=torch.long)
    tokens = torch.zeros(shape, dtype=torch.long)
    logps = torch.zeros(shape)
    entropies = torch.zeros(shape)
    for t in range(T):
        logp = torch.log_softmax(logits.float() / temperature, -1)  # [R, g, V]
        p = logp.exp()
        token = common.draw(p, u[..., t:t + 1])  # [R, g, 1]
        drawn = logp.gather(-1, token).squeeze(-1)
        entropy = torch.special.entr(p).sum(-1)
        token = token.squeeze(-1)
        tokens[rows, :, t] = token
        logps[rows, :, t] = drawn.masked_fill(done, 0.0)
        entropies[rows, :, t] = entropy.masked_fill(done, 0.0)
        lengths[rows] += ~done
        done = done | torch.isin(token, stop)
        ended = done.all(1)
        alive = torch.argwhere(~ended)[:, 0]
        if len(alive) == 0 or t + 1 == T:
            break
        if len(alive) < 0.9 * len(rows):
            cache.reorder_cache(alive)
            rows = rows[alive]
            u = u[alive]
            mask = mask[alive]
            position = position[alive]
            token = token[alive]
            done = done[alive]
        position = position + 1
        seen = mask[..., :L + g * (t + 1)]
        out = policy.forward(token, seen, position, g, **memory)
        logits = out.logits
    whole = [x.view(P, -1, T) for x in (tokens, logps, entropies)]
    return (*whole, lengths.view(P, -1))


def mask_of_samples(prompt, g, T, dtype):
    """Additive mask [R, 1, g, L + g T] for the g queries of each step. A sample attends to the prompt, with mask
    [R, L], and to its own column in each later group of g columns (one per sample)."""
    own_columns = torch.eye(g).repeat(1, T)  # [g, g T]
    own_columns = own_columns.expand(len(prompt), 1, -1, -1)
    prompt = prompt[:, None, None].expand(-1, 1, g, -1)
    seen = torch.cat([prompt, own_columns], -1)
    return (1 - seen) * torch.finfo(dtype).min


def packs_of(policy, prompts, completions):
    """Group completions that share a row -> lists of indices, each of one prompt and at most PACK tokens. If a row may
    exceed the model's attention window, all completions are alone."""
    lengths = [len(y) for y in completions]
    longest = max(map(len, prompts), default=0) + max(lengths, default=0)
    alone = longest > policy.window
    groups = {}
    for i in sorted(range(len(prompts)), key=lengths.__getitem__):
        key = i if alone else tuple(prompts[i])
        groups.setdefault(key, []).append(i)
    packs = []
    for rows in groups.values():
        while rows:
            longest = max(1, lengths[rows[-1]])
            g = max(1, PACK // longest)
            packs.append(rows[-g:])
            del rows[-g:]
    return packs


def score_packs(policy, prompts, completions, packs, temperature, max_tokens):
    """As common.score, for rows that contain a prompt and its completions packs[row], one after the other. Each
    completion starts at the position after the prompt, and attends only to the prompt and itself."""
    def size(pack):
        longest = max(len(completions[i]) for i in pack)
        return len(pack), longest, len(prompts[pack[0]])
    order = sorted(packs, key=size)
    while order:
        rows = micro_batch(order, prompts, completions, max_tokens)
        yield score_rows(policy, prompts, completions, rows, temperature)


def micro_batch(order, prompts, completions, max_tokens):
    """Remove packs from the end of a list, longest first, for one micro-batch -> the packs. Its width is given by its
    longest prompt and its longest completion."""
    rows = []
    g = len(order[-1])
    L = 0
    T = 0
    while order:
        pack = order[-1]
        L = max(L, len(prompts[pack[0]]))
        for i in pack:
            T = max(T, len(completions[i]))
        width = L + g * T
        if rows and (len(rows) + 1) * width > max_tokens:
            break
        rows.append(order.pop())
    return rows


def score_rows(policy, prompts, completions, rows, temperature):
    """One micro-batch of score_packs -> (index [r], logps [r, T], mask [r, T])."""
    g = len(rows[0])
    index = [i for pack in rows for i in pack]
    slot = []  # index of each completion among the p g slots of the rows
    for row, pack in enumerate(rows):
        first = row * g
        slot += range(first, first + len(pack))
    slot = torch.tensor(slot)
    x = [prompts[pack[0]] for pack in rows]
    y = [completions[i] for i in index]
    ids, prompt = common.left_pad(x)  # [p, L]
    tokens, completion_mask = common.right_pad(y)  # [r, T]
    L = ids.shape[1]
    T = tokens.shape[1]

    def in_rows(values):
        slots = torch.zeros(len(rows) * g, T, dtype=torch.long)
        slots[slot] = values.long()
        return slots.view(-1, g * T)
    ids = torch.cat([ids, in_rows(tokens)], 1)  # [p, L + g T]
    mask = torch.cat([prompt, in_rows(completion_mask)], 1)
    prompt_position = common.positions_of(prompt)
    first = prompt_position[:, -1:] + 1
    completion_position = first + torch.arange(T).repeat(g)
    position = torch.cat([prompt_position, completion_position], 1)
    if g > 1:
        mask = mask_of_completions(mask, L, g, T, policy.lm.dtype)
    out = policy.forward(ids, mask, position, g * T + 1, use_cache=False)
    logits = out.logits[:, -g * T - 1:]
    scaled = logits.float() / temperature  # [p, 1 + g T, V]
    if g == 1:
        scaled = scaled[:, :-1]  # [r, T, V]
    else:  # token t of a completion is predicted at the previous token, or at the prompt's last one for t = 0
        columns = torch.arange(g * T).view(g, T)
        columns[:, 0] = 0
        row = slot[:, None] // g
        scaled = scaled[row, columns[slot % g]]  # [r, T, V]
    logps = common.log_probabilities(scaled, tokens, completion_mask.bool())
    return torch.tensor(index), logps, completion_mask.float()


def mask_of_completions(mask, L, g, T, dtype):
    """Additive mask for rows of a prompt and g completions: each position attends to the prompt and to the earlier
    tokens of its completion.  mask [p, L + g T] -> [p, 1, L + g T, L + g T]."""
    prompt = torch.full((L,), -1)
    owner = torch.arange(g).repeat_interleave(T)
    owner = torch.cat([prompt, owner])
    same_completion = owner == owner[:, None]
    seen = (owner == -1) | same_completion
    seen = seen.tril() & mask[:, None, None].bool()
    unseen = (~seen).to(dtype)
    return unseen * torch.finfo(dtype).min
