"""One model of every row, and what a sublayer does, whatever its projections are called."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, Gemma3Config

from adapters_pl.models.placement import linear_sizes
from tests.conftest import TINY, tiny_model

HIDDEN = 32
EVERY = [*TINY, "gemma3"]


def gemma3():
    """The multimodal Gemma 3, as ``AutoModelForCausalLM`` gives it: a decoder below a model with a vision tower."""
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config={**sizes, **TINY["gemma3_text"]},
        vision_config={**vision, "num_hidden_layers": 4},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").requires_grad_(False).eval()


def model_of(name, **changes):
    return gemma3() if name == "gemma3" else tiny_model(name.partition(",")[0], **changes)


def stream(model, arch):
    """The residual stream before and after the first layer, for one row of tokens: two tensors (T, D)."""
    seen = []

    def note(module, args, kwargs, output):
        before = args[0] if args else kwargs["hidden_states"]
        seen.append((before[0].detach(), (output[0] if isinstance(output, tuple) else output).reshape(before.shape)[0]))

    hook = arch.decoder_layers(model)[0].register_forward_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 17, 201, 33, 90, 121]]))
    hook.remove()
    return seen[0]


@contextmanager
def zeroed(module):
    """Within it the module returns zero."""
    hook = module.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    yield
    hook.remove()


def kind_of(model, arch, module, feature, unchanged):
    """Whether output ``feature`` of a projection is a query, a key or a value.

    A query matters for its own token alone, a key and a value also for later ones; and for the first token,
    which sees nothing but itself, only its value matters. At least one output is disturbed far enough to see.
    """

    def changed_at(token):
        def disturb(module, args, output):
            output = output.clone()
            output[..., token, feature] += 4.0
            return output

        hook = module.register_forward_hook(disturb)
        after = stream(model, arch)[1]
        hook.remove()
        return ((after - unchanged).abs().amax(dim=-1) > 1e-6).tolist()

    first, middle = changed_at(0), changed_at(2)
    if first[0]:
        assert all(first)
        return "v"
    return "k" if any(middle[3:]) else "q" if middle[2] else "nothing"


def check_shapes(model, arch, hidden=HIDDEN):
    """Inputs read the hidden size, outputs write it, and what lies between fits."""
    for layer in arch.decoder_layers(model):
        for sublayer in (arch.attn, arch.mlp):
            entries = [*sublayer.inputs, *([sublayer.gate] if sublayer.gate else [])]
            assert all(linear_sizes(layer.get_submodule(entry))[0] == hidden for entry in entries)
            assert linear_sizes(layer.get_submodule(sublayer.output))[1] == hidden
        assert len(arch.attn.inputs) == (1 if arch.fused else 3)
        inner = linear_sizes(layer.get_submodule(arch.mlp.output))[0]
        (up,) = arch.mlp.inputs
        assert linear_sizes(layer.get_submodule(up))[1] == inner * (2 if "gate" in up or up.endswith("Wi") else 1)


def check_function(model, arch):
    """The outputs are all that a layer adds, query, key and value are what they are called, and so is the gate."""
    layer = arch.decoder_layers(model)[0]
    before, after = stream(model, arch)
    with zeroed(layer.get_submodule(arch.attn.output)):
        assert not torch.allclose(stream(model, arch)[1], after, atol=1e-3)
        assert not torch.allclose(stream(model, arch)[1], before, atol=1e-3)
        with zeroed(layer.get_submodule(arch.mlp.output)):
            assert torch.allclose(stream(model, arch)[1], before, atol=1e-6)
    if not arch.fused:
        kinds = [kind_of(model, arch, layer.get_submodule(name), slice(None), after) for name in arch.attn.inputs]
        assert kinds == ["q", "k", "v"]
    if arch.mlp.gate:
        # The MLP is linear in what leads up, and not in its gate.
        assert doubles_with(model, arch, layer, arch.mlp.inputs[0])
        assert not doubles_with(model, arch, layer, arch.mlp.gate)


def doubles_with(model, arch, layer, name):
    """Whether doubling what ``name`` returns doubles what the MLP's last projection reads."""
    read = []
    probe = layer.get_submodule(arch.mlp.output).register_forward_pre_hook(lambda module, args: read.append(args[0]))
    stream(model, arch)
    double = layer.get_submodule(name).register_forward_hook(lambda module, args, output: 2 * output)
    stream(model, arch)
    double.remove()
    probe.remove()
    return torch.allclose(read[1], 2 * read[0], atol=1e-6)
