"""Text and tokens: what a chat template and a tokenizer add to a text, and what a completion adds to its prompt."""
import contextlib
import datetime
import functools
import os
import re
import string

from support.errors import UserError

# What the clock of a chat template says, so that a run, its resume and its evaluation have the same prompts. It is the
# day that the templates of Llama 3 write where there is no clock.
DAY = datetime.datetime(2024, 7, 26)
CLOCK = re.compile(r"""strftime_now\s*\(\s*("|')(.*?)\1\s*\)""")
CONTEXT = 8  # tokens at the end of a prompt that a completion is read after
OPENERS = "\n:a1"  # characters that a text is encoded after, where it cannot be after its prompt
CUT = "\ufffd"  # what stands for bytes that are no character


# ----------------------------------------------------------------------------------------------------------- templates

class Chat(str):
    """A prompt of chat messages: `turns`, (role, text) each. As a string it is the texts of its messages in order,
    which a model without a chat template gets with --no-chat."""

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
    """The messages of a prompt; a plain text becomes one message of the user."""
    return prompt.turns if isinstance(prompt, Chat) else (("user", prompt),)


def messages_of(prompt):
    """{"messages": [{"role", "content"}, ...]} of a prompt that is chat messages, else {}: for files, in which it is
    only its text."""
    if not isinstance(prompt, Chat):
        return {}
    return {"messages": [{"role": role, "content": content} for role, content in prompt.turns]}


def render(tokenizer, turns, answer=False):
    """The turns of a chat, (role, text) each, as the template writes them; answer: with the beginning of one.  Raises
    UserError where the template has a clock that cannot be held; and what else a template raises, which is a
    program."""
    template = CLOCK.sub(lambda call: repr(DAY.strftime(call[2])), tokenizer.get_chat_template())
    if re.search(r"strftime_now\s*\(", template):
        raise UserError("it writes the time in a format that is not in it, so prompts would change from day to day")
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=answer)


def put(tokenizer, prompt, system=None):
    """A prompt as the template writes it, with the beginning of an answer.  system: text of a system message.  Raises
    UserError where the template refuses the messages of a prompt; of a text what it raises itself."""
    before = [("system", system)] if system else []
    if not isinstance(prompt, Chat):
        return render(tokenizer, [*before, ("user", prompt)], answer=True)
    if system and any(role == "system" for role, _ in prompt.turns):
        raise UserError("--system: there are prompts with a system message of their own: leave it out")
    try:
        return render(tokenizer, [*before, *prompt.turns], answer=True)
    except Exception as error:  # a template is a program, and raises what it likes
        roles = ", ".join(role for role, _ in prompt.turns)
        raise UserError(f"the chat template of this model does not take messages of {roles} "
                        f"({str(error).strip()[:100]}): change the prompts, or give --no-chat for their texts alone"
                        ) from error


def has_clock(tokenizer):
    """Whether the chat template writes the date or time."""
    return CLOCK.search(tokenizer.get_chat_template()) is not None


def leaves_out(tokenizer, role):
    """Whether the chat template leaves out what a message of this role says: some ignore the system, some look for a
    list of parts and find none in a text."""
    before = [("user", "prompt")] * (role == "assistant")
    after = [("user", "prompt")] * (role == "system")
    try:
        found = {render(tokenizer, [*before, (role, said), *after], answer=not before) for said in ("4711", "4712")}
    except Exception:  # a template is a program, and raises what it likes
        return False
    return len(found) == 1


def end_of_turn(tokenizer, stop):
    """The token that the chat template puts after what the model says: one that is added to the vocabulary, or in
    `stop`. None where text follows, or nothing: such a template says nothing about it."""
    answer = "4711"
    marks = {*stop, *tokenizer.added_tokens_decoder} - ({tokenizer.unk_token_id} - {*stop})
    turns = [("user", "prompt"), ("assistant", answer)]
    for more in ([], [("user", "prompt")]):  # in some templates it is the beginning of the next turn
        with contextlib.suppress(Exception):
            rest = render(tokenizer, turns + more).rpartition(answer)[2]
            for token in ids_of(tokenizer, rest):
                if token in marks:
                    return token
                if read(tokenizer, [token]).strip():
                    return None
    return None


def is_written(tokenizer, prompts):
    """Of each text, whether it ends as the chat template begins an answer, tags such as <think> aside: it has been
    through the template. Chat messages have not."""
    opening = opening_of_answer(tokenizer)
    if not opening:
        return [False] * len(prompts)
    end = re.compile(re.escape(opening) + r"\s*(</?\w+>\s*)*\Z")
    return [not isinstance(prompt, Chat) and bool(end.search(prompt)) for prompt in prompts]


def opening_of_answer(tokenizer):
    """What the chat template puts between a message of the user and any answer, without white space around it; "" if
    it takes no such messages."""
    user = ("user", "4711")
    answer = ("assistant", "4712")
    try:
        asked = render(tokenizer, [user], answer=True)
        answered = render(tokenizer, [user, answer])
    except Exception:  # a template is a program, and raises what it likes
        return ""
    after = asked.rpartition("4711")[2]
    between = answered.rpartition("4712")[0].rpartition("4711")[2]
    return os.path.commonprefix([after, between]).strip()


# ---------------------------------------------------------------------------------------------------------------- ends

def name_of(tokenizer, token):
    """A token in words: its text, if there is one, and its id."""
    text = tokenizer.convert_ids_to_tokens(token)
    return str(token) if text is None else f"{text!r} ({token})"


def ends(lm, tokenizer, model):
    """The tokens that end a completion of a loaded model -> {token id: which file says so}.  Raises UserError if there
    is none, or one that the model cannot say."""
    found = {}
    told = getattr(getattr(lm, "generation_config", None), "eos_token_id", None)
    if not isinstance(told, (list, tuple)):
        told = [told]
    for token in told:
        found.setdefault(token, []).append("generation_config")
    found.setdefault(tokenizer.eos_token_id, []).append("tokenizer")
    found.pop(None, None)
    if not found:
        raise UserError(f"model {model!r} has no end-of-sequence token: add eos_token to its tokenizer_config.json")
    size = len(lm.get_input_embeddings().weight)
    for token, places in found.items():
        if type(token) is not int:
            raise UserError(f"model {model!r}: the end-of-sequence token of its {places[0]} is {token!r}, which is no "
                            "token id: set eos_token_id there to a whole number, or a list of them")
        if not 0 <= token < size:
            raise UserError(f"model {model!r} has {size:,} embeddings and none for its end-of-sequence token "
                            f"{name_of(tokenizer, token)} of its {' and '.join(places)}: set eos_token_id in "
                            "generation_config.json, or eos_token in tokenizer_config.json, to one that it has")
    return {token: " and ".join(places) for token, places in sorted(found.items())}


# ------------------------------------------------------------------------------------------------------------ encoding

def ids_of(tokenizer, text):
    """Token ids of a text, or of each text in a list, without the special tokens that the tokenizer adds."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode(tokenizer, prompts, written=False):
    """Token ids of prompts that are to be continued: with what the tokenizer puts before every text, unless they begin
    with it, and without what it puts after. written: a template has put everything there. [] where nothing is left."""
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
            ids.pop()  # written at the end of the prompt: all would be said
        start = next((i for i in range(len(whole)) if whole[i:i + len(ids)] == ids), 0)
        again = ids[:start] == whole[:start]  # it has been through a template
        rows.append(ids if again or not ids else whole[:start] + ids)
    return rows


def continuations(tokenizer, text, prompt, whole):
    """Candidate token ids of a text after a prompt, the likeliest first.  prompt, whole: token ids of the prompt, and
    of prompt and text encoded as one."""
    if prompt and whole[:len(prompt)] == prompt:
        yield whole[len(prompt):]
    added = {str(token): [i] for i, token in tokenizer.added_tokens_decoder.items()}
    names = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
    ids = []  # part by part: after an added token some tokenizers begin anew, with a space that the text does not have
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
    """Token ids of a letter that the tokenizer knows."""
    known = [*string.ascii_letters, *string.digits]
    for character in known:
        ids = ids_of(tokenizer, character)
        if read(tokenizer, ids).strip() in known:
            return ids
    return []


def tail(tokenizer, prompt):
    """The last tokens of a prompt. The first of them is text by itself: a part of a character could be read otherwise
    where the rest of it is missing."""
    start = max(0, len(prompt) - CONTEXT)
    while start and CUT in read(tokenizer, prompt[start:start + 1]):
        start -= 1
    return prompt[start:]


def decode(tokenizer, rows, prompt=None):
    """The texts that rows of tokens add to a prompt (lists of ids; None: to any text), as many tokenizers read a token
    at the beginning of a text in another way. Special tokens are a part of it, but for those that stand for no text:
    start, padding, and what the tokenizer does not know. A part of a character at the end is read as U+FFFD."""
    t = tokenizer
    silent = {i for i in (t.bos_token_id, t.cls_token_id, t.pad_token_id, t.unk_token_id) if not is_character(t, i)}
    before = [tail(t, prompt)] if prompt else []
    before.append(letter(t))
    contexts = [(context, read(t, context)) for context in before]
    return [addition(t, [i for i in row if i not in silent], contexts) for row in rows]


def is_character(tokenizer, token):
    """Whether a token is a single character: some models are padded with `!` or `0`, which remains text."""
    text = None if token is None else tokenizer.convert_ids_to_tokens(token)
    return isinstance(text, str) and len(text.lstrip("▁Ġ")) == 1


def addition(tokenizer, tokens, contexts, cut=3):
    """The text that tokens add to the first of the contexts (token ids and their text) that they leave as it is.  cut:
    most tokens that a part of a character has."""
    for context, before in contexts:
        text = read(tokenizer, context + tokens)
        if text.startswith(before):  # unless a part of a character takes bytes before it along
            text = text[len(before):]
            break
    else:
        text = read(tokenizer, tokens)
    for n in range(1, min(cut, len(tokens)) + 1) if text.endswith(CUT) else ():
        whole = addition(tokenizer, tokens[:-n], contexts, cut=0)
        if not whole.endswith(CUT):  # some tokenizers read the characters before as U+FFFD too
            return text if text.startswith(whole) else whole + CUT
    return text
