"""The adapter folded into a copy of the weights, so that a linear layer is one product instead of three."""
from contextlib import contextmanager

import torch
import torch.nn.functional as F


def lora_layers(policy):
    """(parent module, attribute name, LoRA layer) of every layer with an adapter."""
    return [(policy.lm.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer)
            for name, layer in policy.lm.named_modules() if hasattr(layer, "base_layer")]


class Product(torch.nn.Module):
    """A linear layer with `delta` added to a copy of its weight; a gradient reaches delta."""

    def __init__(self, base, delta):
        super().__init__()
        weight = base.weight + delta
        self.weight = weight if isinstance(base, torch.nn.Linear) else weight.T  # GPT-2's Conv1D has [in, out]
        self.bias = base.bias

    def forward(self, x):
        if x.dim() == 3 and len(x) >= 16 and x.shape[1] >= 8 and x.numel() >= 2 ** 15:
            # A convolution of size 1 goes to oneDNN, a linear layer to MKL, which is up to half as fast on AMD.
            y = F.conv2d(x.unsqueeze(2).permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias)
            return y.permute(0, 2, 3, 1).squeeze(2)  # [rows, out, 1, tokens] as [rows, tokens, out]
        return F.linear(x, self.weight, self.bias)


@contextmanager
def folded(layers):
    """Inside, each of these LoRA layers is one product with W + s B A (the active adapter added to a copy of its
    weight) instead of three. Gradients reach A and B through the copy. The base is never written: merging in place and
    back is not exact."""
    products = [Product(layer.base_layer, sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters
                                              if not layer.disable_adapters)) for _, _, layer in layers]
    try:
        for (parent, name, _), product in zip(layers, products):
            setattr(parent, name, product)
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)
