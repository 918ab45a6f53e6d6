"""The learned verifier: a decoder with one scalar output that says how likely a completion is right."""
import functools
import inspect
import json
import os
import warnings
from dataclasses import dataclass

import torch

import common
from support import adapters, contents, load, processes, text
from support.errors import UserError
from support.folder import save_adapter, write_atomic
from support.output import to_json


@dataclass
class Verifier:
    """A decoder with one scalar output, read at the last token of prompt + completion: a logit of being right."""
    model: torch.nn.Module
    tokenizer: object
    note: str
    extra: dict  # what is known about it: base, precision, how it was fitted

    def parameters(self):
        """The trainable tensors: head and adapter."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @functools.cached_property
    def unread(self):
        """The role whose text the chat template leaves out, None if it has both."""
        return next((role for role in ("user", "assistant") if text.leaves_out(self.tokenizer, role)), None)

    def encode(self, prompt, completion, chat=False):
        """Token ids of prompt and completion as a finished answer, end-of-sequence token included."""
        if chat and self.tokenizer.chat_template:
            if self.unread:
                raise UserError(f"the chat template of the verifier leaves out what the {self.unread} says, so that "
                                "all would get one score: give --no-chat, or another verifier")
            turns = [*text.turns_of(prompt), ("assistant", completion)]
            return text.ids_of(self.tokenizer, text.render(self.tokenizer, turns))
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        ids, = text.encode(self.tokenizer, [prompt + completion])
        return ids if ids[-1:] == end else ids + end

    def save(self, folder):
        """adapter/ (for peft) and verifier.json, which load_verifier reads."""
        def write():
            save_adapter(self.model, os.path.join(folder, "adapter"))
            write_atomic(os.path.join(folder, "verifier.json"), to_json(self.extra, indent=1))
        processes.on_first(write)


def load_verifier(path, bits=None, lora_rank=None, seed=0, device=None):
    """A verifier from a folder of `fit_verifier.py`, or a reward model (hub id or directory: a decoder that
    AutoModelForSequenceClassification loads with one label). With lora_rank: a new one to be fitted, a fresh head and
    adapter on the base `path`.  Raises UserError if it is none of these."""
    path = contents.located(path, "--verifier")
    own = os.path.join(path, "verifier.json")
    extra = {"model": path, "bits": bits}
    if lora_rank is None and os.path.exists(own):
        with open(own) as file:
            extra = json.load(file)
    torch.manual_seed(common.torch_seed(seed))  # of a fresh head
    labels = {"num_labels": 1} if lora_rank or extra["model"] != path else {}
    model, tokenizer, note = load.load_base(extra["model"], bits or extra["bits"], device,
                                            "AutoModelForSequenceClassification", **labels)
    if model.config.num_labels != 1 or not hasattr(model, "score"):
        raise UserError(f"{path!r} is no verifier: give a folder of fit_verifier.py, or a decoder with one "
                        "label")
    import peft
    # transformers reads the output at the last token that is not padding, and the padding token is often the
    # end-of-sequence token. Rows are padded on the left here, so -1 makes it read the last column.
    model.config.pad_token_id = -1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if lora_rank:  # SEQ_CLS: the head is trained and saved with the adapter
                layers = [name for name in adapters.linear_layers(model) if name != "score"]
                config = peft.LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules=layers,
                                         task_type="SEQ_CLS")
                model = peft.get_peft_model(model, config)
                adapters.name_base(model, path)
            elif extra["model"] != path:
                model = peft.PeftModel.from_pretrained(model, os.path.join(path, "adapter"))
    except Exception as error:  # peft raises many types
        raise UserError(f"cannot put the verifier's adapter on {extra['model']!r} ({load.first_line(error)}): fit it "
                        "again with fit_verifier.py") from error
    return Verifier(model.eval(), tokenizer, note, extra)


def verifier_logits(verifier, rows, max_tokens=None):
    """Outputs for R rows of token ids in micro-batches, with gradient if enabled: yields (index [r], logits [r])."""
    inner = verifier.model.get_base_model() if hasattr(verifier.model, "get_base_model") else verifier.model
    max_tokens = max_tokens or load.micro_batch(inner)
    placed = "position_ids" in inspect.signature(inner.forward).parameters
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        size = max(1, max_tokens // len(rows[order[-1]]))
        index = order[-size:]
        del order[-size:]
        ids, mask = common.left_pad([rows[i] for i in index], verifier.model.device)
        places = {"position_ids": common.positions_of(mask)} if placed else {}
        out = verifier.model(input_ids=ids, attention_mask=mask, use_cache=False, **places)
        yield torch.tensor(index), out.logits[:, 0].float()


@torch.no_grad()
def verify_scores(verifier, prompts, completions, chat=False):
    """Scores of R pairs of texts -> list of float. Equal pairs are scored once, so they tie exactly."""
    pairs = list(dict.fromkeys(zip(prompts, completions, strict=True)))
    scores = torch.zeros(len(pairs), dtype=torch.float64)
    share = slice(processes.RANK, None, processes.WORLD)
    rows = [verifier.encode(prompt, completion, chat) for prompt, completion in pairs[share]]
    for index, logits in verifier_logits(verifier, rows):
        scores[share][index] = logits.double().cpu()
    scores = dict(zip(pairs, processes.all_reduce(scores).tolist()))
    return [scores[pair] for pair in zip(prompts, completions)]
