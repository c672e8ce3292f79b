"""The sizes of a model that a dry run computes with, without its weights and by a little of its own work.

The model is built on the device meta. Then one block of its language model, and two, run on a few tokens, and the tower on one
picture, all with zeros for weights: what autograd keeps there it keeps of every other block and token.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from llava_pose.model.checkpoint_files import CONFIG_FILE, blaming
from llava_pose.model.loading import built, pose_config_of
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.trial import try_apart
from llava_pose.train.arguments import ModelArguments
from llava_pose.train.trainable import blocks_prefix, choose_what_trains, parts_of, train_in_float32

# bytes a weight: four bits, its share of a block's scale, which takes eight bits, and of that one's own scale
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# torch counts the attention of GPUs alone
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    )
}


@dataclass(frozen=True)
class Sizes:
    """The sizes that memory, disk and time are computed from.

    Attributes:
        trains, frozen: parameters by part.
        quantized: of the frozen ones, those in four bits.
        half: bytes of a number of the forward pass.
        blocks: of the language model.
        block_weights: of all of them together, in products of matrices.
        width: of the states.
        attention_width: of all heads of a block together.
        a_token, a_picture: bytes that autograd keeps, of a token in one block, and of a picture in tower and connector.
        a_state: bytes of one token between two blocks.
        vocabulary: rows of the output layer.
        features: bytes of a picture's cached features, in one view; 0 where they cannot be kept.
        picture_flops: of tower and connector, forward, for a picture.
    """

    trains: Counter[str]
    frozen: Counter[str]
    quantized: int
    half: int
    blocks: int
    block_weights: int
    width: int
    attention_width: int
    a_token: float
    a_picture: float
    a_state: int
    vocabulary: int
    features: int
    picture_flops: int

    @property
    def frozen_bytes(self) -> float:
        """Bytes of the weights that do not train."""
        return (self.frozen.total() - self.quantized) * self.half + self.quantized * _NF4


def meta_model(base: str | os.PathLike[str], arguments: ModelArguments) -> LlavaPoseForConditionalGeneration:
    """Build a base without its weights, with what trains chosen as the run would.

    Raises:
        InputError: it is none, or cannot be trained so.
    """
    with blaming(f"{base}: cannot load the model"):
        try_apart(base, CONFIG_FILE, lambda: built(base))
        backbone = built(base)
        backbone.tie_weights()
    with torch.device("meta"):
        model = LlavaPoseForConditionalGeneration(backbone, pose_config_of(backbone, Path(base)))
        choose_what_trains(model, arguments)
    return model.train()


def sizes_of(
    model: LlavaPoseForConditionalGeneration,
    pictures: dict[str, Tensor],
    arguments: ModelArguments,
    *,
    half: bool,
    float32: bool,
) -> Sizes:
    """Measure a model of :func:`meta_model`, which is of no other use afterwards.

    Args:
        pictures: what the processor gives of one picture.
        half: whether the forward pass is in 16 bits.
        float32: whether what trains stays in float32 even so, as without DeepSpeed.
    """
    vlm, parts = model.vlm, parts_of(model)
    trains: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = "LoRA" if "lora_" in name else {"new": "connector and pose parts"}.get(parts[name], parts[name])
        (trains if parameter.requires_grad else frozen)[part] += parameter.numel()
    prefix, _, last = blocks_prefix(vlm).rpartition(".")
    holder = cast(Any, vlm.get_submodule(prefix))
    blocks = list(getattr(holder, last))
    in_products = [p for block in blocks for p in block.parameters() if p.dim() > 1]
    output = cast(nn.Linear, vlm.get_output_embeddings())
    width = model.pose_config.embedding_size
    if half:
        model.to(torch.bfloat16)
        if float32:
            train_in_float32(model)
    autocast = torch.autocast("cpu", torch.bfloat16) if half and float32 else nullcontext()

    decoder = cast(Any, model.decoder)
    _fill(model, leave=(*blocks[2:], vlm.get_input_embeddings(), output))
    state: list[int] = []

    def kept_by(count: int, tokens: int) -> float:
        setattr(holder, last, nn.ModuleList(blocks[:count]))
        dtype = torch.bfloat16 if half else torch.float32
        embeddings = torch.zeros(1, tokens, width, dtype=dtype, requires_grad=True)

        def run() -> None:
            states = decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state
            state.append(states.shape[-1] * states.element_size())

        with autocast:
            return kept(run, decoder)

    # differences: neither copies of weights nor what lies round the blocks is in them
    few, many = 32, 96
    one = kept_by(1, many) - kept_by(1, few)
    two = kept_by(2, many) - kept_by(2, few) if len(blocks) > 1 else 2 * one
    seen: list[Any] = []
    with autocast, FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        a_picture = kept(lambda: seen.append(model.see(pictures)), model)
    patches = seen[0].patches
    return Sizes(
        trains=trains,
        frozen=frozen,
        quantized=sum(p.numel() for p in in_products if not p.requires_grad) if arguments.quantize == "nf4" else 0,
        half=2 if half else 4,
        blocks=len(blocks),
        block_weights=sum(p.numel() for p in in_products),
        width=width,
        attention_width=_attention_width(model.decoder.config, width),
        a_token=(two - one) / (many - few),
        a_picture=a_picture,
        a_state=state[0],
        vocabulary=output.weight.shape[0],
        features=0 if patches is None else patches[0].numel() * 2,
        picture_flops=counter.get_total_flops(),
    )


def _attention_width(config: Any, width: int) -> int:
    config = config.get_text_config(decoder=True)
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    return config.num_attention_heads * head


def _fill(module: nn.Module, *, leave: Iterable[nn.Module]) -> None:
    """Give a module zeros in the place of weights that are not there, but for some parts of it."""
    left = {id(each) for part in leave for each in part.modules()}
    for part in module.modules():
        if id(part) not in left:
            part.to_empty(device="cpu", recurse=False)
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                tensor.data.zero_()


def kept(run: Callable[[], Any], module: nn.Module) -> float:
    """Return the bytes that autograd keeps of a forward pass, beside the weights."""
    weights = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held.setdefault(tensor.untyped_storage()._cdata, tensor)  # held, or another could come to lie there
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return float(sum(tensor.untyped_storage().nbytes() for key, tensor in held.items() if key not in weights))
