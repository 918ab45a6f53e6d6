"""Chat templates, end-of-sequence tokens, encoding of prompts, and decoding of completions after their prompts."""
import contextlib
import datetime
import functools
import os
import re
import string

from support.errors import UserError

# The date for chat templates that write today's date, so that a run, its resume and its evaluation have the same
# prompts. It is the default date in the templates of Llama 3.
DAY = datetime.datetime(2024, 7, 26)
CLOCK = re.compile(r"""strftime_now\s*\(\s*("|')(.*?)\1\s*\)""")
CONTEXT = 8  # last tokens of a prompt, as context for decoding a completion
OPENERS = "\n:a1"  # context characters for encoding a text without its prompt
CUT = "\ufffd"  # replacement character for incomplete UTF-8 bytes


# ----------------------------------------------------------------------------------------------------------- templates

class Chat(str):
    """A prompt of chat messages, `turns` of (role, text). As a string it is the texts of its messages in order, the
    prompt with --no-chat."""

    def __new__(cls, turns):
        turns = tuple(turns)
        chat = super().__new__(cls, "\n\n".join(text for _, text in turns))
        chat.turns = turns
        return chat

    def __getnewargs__(self):
        return (self.turns,)

    def __eq__(self, other):
        return str.__eq__(self, other) is True and self.turns == turns_of(other)

    def __ne__(self, other):
        return not self == other

    __hash__ = str.__hash__


def turns_of(prompt):
    """The messages of a prompt; a plain text becomes one user message."""
    return prompt.turns if isinstance(prompt, Chat) else (("user", prompt),)


def messages_of(prompt):
    """{"messages": [{"role", "content"}, ...]} for a prompt of chat messages, else {}: for files, which otherwise have
    only its text."""
    if not isinstance(prompt, Chat):
        return {}
    return {"messages": [{"role": role, "content": content} for role, content in prompt.turns]}


def render(tokenizer, turns, answer=False):
    """Format turns (role, text) with the chat template.  answer: add the generation prompt.  Raises UserError if the
    template's date cannot be fixed, and whatever the template raises."""
    template = CLOCK.sub(lambda call: repr(DAY.strftime(call[2])), tokenizer.get_chat_template())
    if re.search(r"strftime_now\s*\(", template):
        raise UserError("it writes the date in a format that it computes, so prompts would change from day to day")
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=answer)


def put(tokenizer, prompt, system=None):
    """Format a prompt with the chat template and its generation prompt.  system: text of a system message.  Raises
    UserError if the template rejects chat messages; for a text, whatever the template raises."""
    before = [("system", system)] if system else []
    if not isinstance(prompt, Chat):
        return render(tokenizer, [*before, ("user", prompt)], answer=True)
    if system and any(role == "system" for role, _ in prompt.turns):
        raise UserError("--system: there are prompts that already have a system message: leave it out")
    try:
        return render(tokenizer, [*before, *prompt.turns], answer=True)
    except Exception as error:  # a template is a program and may raise anything
        roles = ", ".join(role for role, _ in prompt.turns)
        raise UserError(f"the chat template of this model rejects messages with the roles {roles} "
                        f"({str(error).strip()[:100]}): change the prompts, or use --no-chat to join their texts"
                        ) from error


def has_clock(tokenizer):
    """Whether the chat template writes the date or time."""
    return CLOCK.search(tokenizer.get_chat_template()) is not None


def leaves_out(tokenizer, role):
    """Whether the chat template leaves out the text of messages with this role. Some ignore system messages, some
    expect a list of parts and ignore a text."""
    before = [("user", "prompt")] * (role == "assistant")
    after = [("user", "prompt")] * (role == "system")
    try:
        texts = {render(tokenizer, [*before, (role, text), *after], answer=not before) for text in ("4711", "4712")}
    except Exception:  # a template is a program and may raise anything
        return False
    return len(texts) == 1


def end_of_turn(tokenizer, stop):
    """The token that the chat template writes after an assistant message, if it is an added token or in `stop`. None if
    text or nothing follows: such a template has no end-of-turn token."""
    answer = "4711"
    marks = {*stop, *tokenizer.added_tokens_decoder} - ({tokenizer.unk_token_id} - {*stop})
    turns = [("user", "prompt"), ("assistant", answer)]
    for more in ([], [("user", "prompt")]):  # some templates write it at the beginning of the next turn
        with contextlib.suppress(Exception):
            rest = render(tokenizer, turns + more).rpartition(answer)[2]
            for token in ids_of(tokenizer, rest):
                if token in marks:
                    return token
                if read(tokenizer, [token]).strip():
                    return None
    return None


def is_written(tokenizer, prompts):
    """For each prompt, whether it is a text already formatted with the chat template: it ends with the generation
    prompt, possibly followed by tags such as <think>."""
    opening = opening_of_answer(tokenizer)
    if not opening:
        return [False] * len(prompts)
    end = re.compile(re.escape(opening) + r"\s*(</?\w+>\s*)*\Z")
    return [not isinstance(prompt, Chat) and bool(end.search(prompt)) for prompt in prompts]


def opening_of_answer(tokenizer):
    """The text that the chat template writes between a user message and any answer, stripped of white space; "" if the
    template rejects such messages."""
    user = ("user", "4711")
    answer = ("assistant", "4712")
    try:
        question = render(tokenizer, [user], answer=True)
        answered = render(tokenizer, [user, answer])
    except Exception:  # a template is a program and may raise anything
        return ""
    after = question.rpartition("4711")[2]
    between = answered.rpartition("4712")[0].rpartition("4711")[2]
    return os.path.commonprefix([after, between]).strip()


# ---------------------------------------------------------------------------------------------------------------- ends

def name_of(tokenizer, token):
    """A token for messages: its text, if it has one, and its id."""
    text = tokenizer.convert_ids_to_tokens(token)
    return str(token) if text is None else f"{text!r} ({token})"


def ends(lm, tokenizer, model):
    """The tokens that end a completion of a loaded model -> {token id: the files that name it}.  Raises UserError if
    there is none, or if one has no embedding."""
    sources = {}
    configured = getattr(getattr(lm, "generation_config", None), "eos_token_id", None)
    if not isinstance(configured, (list, tuple)):
        configured = [configured]
    for token in configured:
        sources.setdefault(token, []).append("generation_config")
    sources.setdefault(tokenizer.eos_token_id, []).append("tokenizer")
    sources.pop(None, None)
    if not sources:
        raise UserError(f"model {model!r} has no end-of-sequence token: add eos_token to its tokenizer_config.json")
    size = len(lm.get_input_embeddings().weight)
    for token, files in sources.items():
        if type(token) is not int:
            raise UserError(f"model {model!r}: the end-of-sequence token of its {files[0]} is {token!r}, which is not "
                            "a token id: set eos_token_id there to a whole number, or a list of them")
        if not 0 <= token < size:
            raise UserError(f"model {model!r} has {size:,} embeddings and none for its end-of-sequence token "
                            f"{name_of(tokenizer, token)} of its {' and '.join(files)}: set eos_token_id in "
                            "generation_config.json, or eos_token in tokenizer_config.json, to one that it has")
    return {token: " and ".join(files) for token, files in sorted(sources.items())}


# ------------------------------------------------------------------------------------------------------------ encoding

def ids_of(tokenizer, text):
    """Token ids of a text, or of each text in a list, without added special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode(tokenizer, prompts, written=False):
    """Token ids of prompts, for continuation: with the special tokens that the tokenizer adds in front, unless a prompt
    begins with them, and without those that it adds at the end.  written: the chat template has been applied, so
    nothing is added. [] for a prompt without tokens."""
    plain = ids_of(tokenizer, prompts) if prompts else []
    if written or not prompts:
        return plain
    wholes = plain
    if tokenizer.num_special_tokens_to_add():
        wholes = tokenizer(prompts)["input_ids"]
    rows = []
    end = tokenizer.eos_token_id
    for ids, whole in zip(plain, wholes):
        while len(ids) > 1 and ids[-1] == end:
            ids.pop()  # an EOS token at the end of a prompt would end the text
        start = next((i for i in range(len(whole)) if whole[i:i + len(ids)] == ids), 0)
        has_start = ids[:start] == whole[:start]  # a template may have written the special tokens
        rows.append(ids if has_start or not ids else whole[:start] + ids)
    return rows


def continuations(tokenizer, text, prompt, whole):
    """Candidate token ids for a text after a prompt, most likely first.  prompt, whole: token ids of the prompt, and of
    prompt and text encoded together."""
    if prompt and whole[:len(prompt)] == prompt:
        yield whole[len(prompt):]
    added = {str(token): [i] for i, token in tokenizer.added_tokens_decoder.items()}
    names = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
    ids = []  # encode part by part, because some tokenizers insert a space after an added token
    for part in re.split(f"({names})", text) if added else [text]:
        known = part in added and decode(tokenizer, [added[part]]) == [part]
        ids += added[part] if known else after(tokenizer, part)
    yield ids


def after(tokenizer, text):
    """Token ids of a text encoded as the continuation of another text."""
    for opener in OPENERS if text else ():
        first, both = ids_of(tokenizer, [opener, opener + text])
        ids = both[len(first):]
        if both[:len(first)] == first and decode(tokenizer, [ids]) == [text]:
            return ids
    return ids_of(tokenizer, text)


# ------------------------------------------------------------------------------------------------------------ decoding

def read(tokenizer, tokens):
    """The text of tokens without context."""
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@functools.lru_cache(maxsize=8)
def letter(tokenizer):
    """Token ids of a letter or digit in the tokenizer's vocabulary."""
    characters = [*string.ascii_letters, *string.digits]
    for character in characters:
        ids = ids_of(tokenizer, character)
        if read(tokenizer, ids).strip() in characters:
            return ids
    return []


def tail(tokenizer, prompt):
    """The last tokens of a prompt, starting at a complete character, because an incomplete one may be decoded
    differently."""
    start = max(0, len(prompt) - CONTEXT)
    while start and CUT in read(tokenizer, prompt[start:start + 1]):
        start -= 1
    return prompt[start:]


def decode(tokenizer, rows, prompt=None):
    """The texts of rows of tokens that continue a prompt (token ids; None: any text). The context matters, because many
    tokenizers decode a token differently at the beginning of a text. Special tokens are kept, except BOS, CLS, padding
    and unknown tokens. An incomplete character at the end is decoded as U+FFFD."""
    t = tokenizer
    silent = {i for i in (t.bos_token_id, t.cls_token_id, t.pad_token_id, t.unk_token_id) if not is_character(t, i)}
    contexts = [tail(t, prompt)] if prompt else []
    contexts.append(letter(t))
    contexts = [(context, read(t, context)) for context in contexts]
    return [addition(t, [i for i in row if i not in silent], contexts) for row in rows]


def is_character(tokenizer, token):
    """Whether a token is a single character. Some models use `!` or `0` as the padding token, which remains text."""
    text = None if token is None else tokenizer.convert_ids_to_tokens(token)
    return isinstance(text, str) and len(text.lstrip("▁Ġ")) == 1


def addition(tokenizer, tokens, contexts, cut=3):
    """The text that tokens add to a context: the first of the contexts (token ids, text) whose text stays the same.
    cut: most tokens of an incomplete character."""
    for context, before in contexts:
        text = read(tokenizer, context + tokens)
        if text.startswith(before):  # not if incomplete characters merge
            text = text[len(before):]
            break
    else:
        text = read(tokenizer, tokens)
    for n in range(1, min(cut, len(tokens)) + 1) if text.endswith(CUT) else ():
        whole = addition(tokenizer, tokens[:-n], contexts, cut=0)
        if not whole.endswith(CUT):  # some tokenizers decode preceding characters as U+FFFD, too
            return text if text.startswith(whole) else whole + CUT
    return text
