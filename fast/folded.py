"""Fold the adapter into a copy of the weights, so that a linear layer is one product instead of three."""
from contextlib import contextmanager

import torch
import torch.nn.functional as F


def lora_layers(policy):
    """[(parent module, attribute name, LoRA layer)] of all layers with an adapter."""
    layers = []
    for path, layer in policy.lm.named_modules():
        if hasattr(layer, "base_layer"):
            parent_path, _, name = path.rpartition(".")
            parent = policy.lm.get_submodule(parent_path)
            layers.append((parent, name, layer))
    return layers


def plain_lora(policy):
    """Whether all adapters have the form W + s B A."""
    for config in policy.model.peft_config.values():
        if config.peft_type != "LORA" or config.use_dora or config.lora_bias:
            return False
    return True


class Product(torch.nn.Module):
    """A linear layer with `delta` added to a copy of its weight. Gradients reach delta."""

    def __init__(self, base, delta):
        super().__init__()
        weight = base.weight + delta
        if not isinstance(base, torch.nn.Linear):
            weight = weight.T  # GPT-2's Conv1D stores [in, out]
        self.weight = weight
        self.bias = base.bias

    def forward(self, x):
        if x.dim() < 3 or len(x) < 16 or x.shape[1] < 8 or x.numel() < 2 ** 15:
            return F.linear(x, self.weight, self.bias)
        # On a CPU, a 1 x 1 convolution uses oneDNN and a linear layer MKL, which can take twice as long on AMD.
        image = x.unsqueeze(2).permute(0, 3, 1, 2)
        y = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).squeeze(2)  # [rows, out, 1, tokens] as [rows, tokens, out]


def product(layer):
    """The Product of a LoRA layer with its active adapters."""
    active = [] if layer.disable_adapters else layer.active_adapters
    delta = sum(layer.get_delta_weight(name) for name in active)
    return Product(layer.base_layer, delta)


@contextmanager
def folded(layers):
    """Context that replaces each of these LoRA layers by one product with W + s B A, the active adapter added to a copy
    of the weight. Gradients reach A and B through the copy. The base weights are not modified, because merging in place
    and unmerging is not exact."""
    products = [product(layer) for _, _, layer in layers]
    try:
        for (parent, name, _), replacement in zip(layers, products, strict=True):
            setattr(parent, name, replacement)
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)
