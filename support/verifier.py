"""The learned verifier: a decoder with a scalar head that scores how likely a completion is correct."""
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
    """A decoder with a scalar head, read at the last token of prompt + completion: the logit that it is correct."""
    model: torch.nn.Module
    tokenizer: object
    note: str
    extra: dict  # contents of verifier.json: base, precision, how it was fitted

    def parameters(self):
        """Trainable tensors: head and adapter."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @functools.cached_property
    def unread(self):
        """The role whose text the chat template leaves out, or None."""
        return next((role for role in ("user", "assistant") if text.leaves_out(self.tokenizer, role)), None)

    def encode(self, prompt, completion, chat=False):
        """Token ids of prompt and completion, with the EOS token.  Raises UserError if the chat template leaves out
        one of the two."""
        if chat and self.tokenizer.chat_template:
            if self.unread:
                raise UserError(f"the chat template of the verifier leaves out {self.unread} messages, so all samples "
                                "would get the same score: use --no-chat, or another verifier")
            turns = [*text.turns_of(prompt), ("assistant", completion)]
            return text.ids_of(self.tokenizer, text.render(self.tokenizer, turns))
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        ids, = text.encode(self.tokenizer, [prompt + completion])
        return ids if ids[-1:] == end else ids + end

    def save(self, folder):
        """Write adapter/ in peft's format, and verifier.json, for load_verifier."""
        def write():
            save_adapter(self.model, os.path.join(folder, "adapter"))
            write_atomic(os.path.join(folder, "verifier.json"), to_json(self.extra, indent=1))
        processes.on_first(write)


def load_verifier(path, bits=None, lora_rank=None, seed=0, device=None):
    """Load a verifier from a folder of `fit_verifier.py`, or a reward model (hub id or directory: a decoder that
    AutoModelForSequenceClassification loads with one label). With lora_rank: create a verifier to be fitted, with a new
    head and adapter on the base model `path`.  Raises UserError if it is none of these."""
    path = contents.located(path, "--verifier")
    description = os.path.join(path, "verifier.json")
    extra = {"model": path, "bits": bits}
    if lora_rank is None and os.path.exists(description):
        with open(description) as file:
            extra = json.load(file)
    torch.manual_seed(common.torch_seed(seed))  # for the initialisation of a new head
    labels = {"num_labels": 1} if lora_rank or extra["model"] != path else {}
    model, tokenizer, note = load.load_base(extra["model"], bits or extra["bits"], device,
                                            "AutoModelForSequenceClassification", **labels)
    if model.config.num_labels != 1 or not hasattr(model, "score"):
        raise UserError(f"{path!r} is not a verifier: give a folder of fit_verifier.py, or a decoder with one label")
    import peft
    # transformers reads the output at the last token that is not padding, but the padding token is often the EOS token.
    # Rows are left-padded here, so -1 makes it read the last column.
    model.config.pad_token_id = -1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if lora_rank:  # with SEQ_CLS, the head is trained and saved with the adapter
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
    """Score R rows of token ids in micro-batches, with gradients if enabled: yields (index [r], logits [r])."""
    inner = verifier.model.get_base_model() if hasattr(verifier.model, "get_base_model") else verifier.model
    max_tokens = max_tokens or load.micro_batch(inner)
    takes_positions = "position_ids" in inspect.signature(inner.forward).parameters
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        size = max(1, max_tokens // len(rows[order[-1]]))
        index = order[-size:]
        del order[-size:]
        ids, mask = common.left_pad([rows[i] for i in index], verifier.model.device)
        positions = {"position_ids": common.positions_of(mask)} if takes_positions else {}
        out = verifier.model(input_ids=ids, attention_mask=mask, use_cache=False, **positions)
        yield torch.tensor(index), out.logits[:, 0].float()


@torch.no_grad()
def verify_scores(verifier, prompts, completions, chat=False):
    """Scores of R pairs of texts (prompt, completion) -> list of float. Equal pairs are scored once, so they tie
    exactly."""
    pairs = list(dict.fromkeys(zip(prompts, completions, strict=True)))
    scores = torch.zeros(len(pairs), dtype=torch.float64)
    share = slice(processes.RANK, None, processes.WORLD)
    rows = [verifier.encode(prompt, completion, chat) for prompt, completion in pairs[share]]
    for index, logits in verifier_logits(verifier, rows):
        scores[share][index] = logits.double().cpu()
    scores = dict(zip(pairs, processes.all_reduce(scores).tolist()))
    return [scores[pair] for pair in zip(prompts, completions)]
