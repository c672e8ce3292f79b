"""`llava-pose merge`: what was trained as one checkpoint of the backbone alone, which answers as before or is not written.

An adapter goes into its base, and the vectors of `<pose6D>` into the backbone's own rows, those of a full checkpoint as well:
plain transformers then emit the token with the same logits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from llava_pose.data.conversation import IMAGE_TOKEN, POSE_ANSWER, POSE_QUESTIONS, POSE_TOKEN
from llava_pose.errors import InputError
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import require, require_folder
from llava_pose.utils.output_folder import own_new_folder
from llava_pose.utils.yaml_files import read_yaml, save_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
    from llava_pose.model.processing import LlavaPoseProcessor

logger = logging.getLogger(__name__)
# the largest difference of an output, as a share of its largest value; a weight in 16 bits is rounded to 1 in 500 or finer
TOLERANCES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.05}
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class MergeConfig:
    """The options of ``llava-pose merge``."""

    checkpoint: str = field(
        default="", metadata={"help": "The folder that llava-pose train wrote, an adapter or a full checkpoint."}
    )
    out: str = field(default="", metadata={"help": "The folder of the merged checkpoint, new or empty."})
    base: str | None = field(
        default=None, metadata={"help": "The adapter's base, if it has moved or was stored in four bits."}
    )
    dtype: str = field(
        default="auto",
        metadata={"help": f"The type of the stored weights, one of {', '.join(DTYPES)}; auto is that of the base."},
    )
    push_to: str | None = field(
        default=None,
        metadata={
            "help": "The repository of the hub, USER/NAME, that the merged checkpoint goes to; a new one is private."
        },
    )


def merge(config: MergeConfig) -> Path:
    """Write the merged checkpoint and return its folder.

    The sums are worked out in float32. What was written is read back and asked beside what was merged: a random picture and
    the first question for a pose. Since it answers the same, a calibration of the checkpoint is one of it, too, and goes along.

    Raises:
        InputError: there is nothing to merge, an adapter's base is not there or is quantised, the folder is taken, the hub
            does not take the checkpoint, calibration.json is damaged, or what was written answers otherwise; then nothing is
            left under ``out``.
        RunError: the upload failed; the folder is whole.
    """
    from llava_pose.backbones.hub import push, require_repository  # seconds, which --help does without

    require(config.checkpoint, "--checkpoint")
    require(config.out, "--out")
    if config.dtype not in DTYPES:
        raise InputError(f"--dtype {config.dtype}: not known; choose one of {', '.join(DTYPES)}")
    folder = require_folder(config.checkpoint, "--checkpoint", "give the folder that llava-pose train wrote")
    out = Path(config.out)
    with own_new_folder(out, "--out", "merge") as written:
        if config.push_to is not None:
            require_repository(config.push_to)
        share, dtype = _merge(config, folder, written)
    logger.info(f"{out}: a full checkpoint in {dtype}; its outputs are those of {folder} to {share:.1e} of their size")
    if config.push_to is not None:
        push(out, config.push_to)
    say_next(f"llava-pose predict --checkpoint {out} --data PREPARED --split val --out predictions.jsonl")
    return out


def _merge(config: MergeConfig, folder: Path, out: Path) -> tuple[float, str]:
    """Write the merged checkpoint, and return the largest share by which its outputs differ, and its type of numbers."""
    import torch

    from llava_pose.model.calibration import Calibration
    from llava_pose.model.card import bases_of, part_of, write_card
    from llava_pose.model.checkpoint_files import ADAPTER_CONFIG, require_finite
    from llava_pose.model.loading import load_full, load_model
    from llava_pose.model.processors import load_processor

    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if config.base is not None and not is_adapter:
        raise InputError(f"--base {config.base}: {folder} is a full checkpoint and needs no base; leave it out")
    processor, calibration = load_processor(folder), Calibration.load(folder)
    base = _whole_base(folder, config.base) if is_adapter else None

    model = load_model(folder, base=base, dtype=torch.float32)
    if not is_adapter and not has_vectors(model):
        raise InputError(
            f"--checkpoint {folder}: there is nothing to merge, neither an adapter nor vectors of {POSE_TOKEN} that are not in "
            "its vocabulary yet"
        )
    dtype = _stored_dtype(config.dtype, base or str(folder))
    wanted = probe(model, processor)
    merged = model.merged()
    bake_token(merged)
    require_finite(merged.to(dtype), config.out, remedy="nothing was written; try --dtype float32")
    merged.save_pretrained(out)
    processor.save_pretrained(out)
    if calibration is not None:
        calibration.save(out)
    parts = {part: text for part in ("learning", "scores") if (text := part_of(folder, part)) is not None}
    write_card(out, bases_of(folder), name=config.push_to, **parts)
    save_config(vars(config) | ({"base": base} if base else {}), out / "merge.yaml")
    del model, merged  # one model of full size at a time
    share = require_same_outputs(wanted, probe(load_full(out, dtype=torch.float32), processor), dtype)
    return share, _name(dtype)


def has_vectors(model: LlavaPoseForConditionalGeneration) -> bool:
    """Return whether `<pose6D>` has learned vectors beside the backbone's rows."""
    return bool(model.pose_token_embedding.change.any() or model.pose_token_output.change.any())


def bake_token(model: LlavaPoseForConditionalGeneration) -> None:
    """Put the two vectors of `<pose6D>` into the backbone's rows, so that it emits the token by itself; they are zero then.

    A tied output layer gets a matrix of its own, since one row cannot change in two ways.
    """
    import torch
    from torch import nn

    with torch.no_grad():
        vlm, row = model.vlm, model.pose_config.pose_token_id
        embedding, output = cast(Any, vlm.get_input_embeddings()), cast(Any, vlm.get_output_embeddings())
        inward, outward = model.pose_token_embedding.change, model.pose_token_output.change
        if not has_vectors(model):
            return
        if output.weight is embedding.weight:
            output.weight = nn.Parameter(embedding.weight.clone())
            for config in (vlm.config, vlm.config.get_text_config()):
                config.tie_word_embeddings = False
        # some families multiply what they look up: by how much shows at the largest row, for a free one may be zero
        largest = embedding.weight.norm(dim=1).argmax().view(1, 1)
        looked_up = embedding(largest) - model.pose_token_embedding(largest == row)
        scale = float(looked_up.norm() / embedding.weight[largest].norm())
        embedding.weight[row] += inward[0] / scale
        output.weight[row] += outward[0]
        inward.zero_()
        outward.zero_()


def _whole_base(folder: Path, base: str | None) -> str:
    """The base to merge into; one that was quantised for training only is loaded whole, and that is said.

    Raises:
        InputError: the base cannot be read, or is stored quantised.
    """
    from llava_pose.model.adapter_config import base_of, read_adapter_config
    from llava_pose.model.checkpoint_files import CONFIG_FILE, read_config
    from llava_pose.model.loading import built
    from llava_pose.model.trial import try_apart

    base = base_of(folder, read_adapter_config(folder), base)
    try:
        try_apart(base, CONFIG_FILE, lambda: built(base))
        read_config(base)
    except InputError as error:
        raise InputError(f"{error}; give the whole base with --base") from error
    recipe = folder / "train.yaml"
    quantized = read_yaml(recipe).get("quantize", "none") if recipe.is_file() else "none"
    if quantized != "none":
        logger.warning(
            f"{folder}: was trained on {base} in {quantized}; it is merged into the whole base, where it answers nearly "
            "as it did on the quantised one; outputs are compared with the adapter on the whole base"
        )
    return base


def _config_of(base: str) -> Any:
    from transformers import AutoConfig

    from llava_pose.model.checkpoint_files import NO_CODE, blaming

    with blaming(f"{base}: cannot load the base; say where it is with --base"):
        return AutoConfig.from_pretrained(base, **NO_CODE)


def _stored_dtype(name: str, base: str) -> torch.dtype:
    import torch

    if name == "auto":
        own = _config_of(base).dtype
        return own if _name(own) in TOLERANCES else torch.float32
    return getattr(torch, name)


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def probe(model: LlavaPoseForConditionalGeneration, processor: LlavaPoseProcessor) -> dict[str, Tensor]:
    """Return what a model, bare or behind an adapter, makes of a random picture and the first question for a pose.

    Returns:
        logits (length, vocabulary), and the pose head's raw rotation, location and confidence (1, …), float32.
    """
    import torch

    words = {"object": "object", "pose": POSE_TOKEN}
    turns = [
        {"role": "user", "content": f"{IMAGE_TOKEN}\n{POSE_QUESTIONS[0].format(**words)}"},
        {"role": "assistant", "content": POSE_ANSWER.format(**words)},
    ]
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)
    chat = processor.encode_chat(turns, picture, where="the probe")
    ids = torch.from_numpy(chat.input_ids)[None]
    predicting = (ids[0, 1:] == processor.pose_token_id).nonzero()[:, 0]
    with torch.inference_mode():
        output = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **chat.pictures)
        poses = model.read_poses(output.states[0, predicting], output.image_tokens, torch.zeros_like(predicting))
    return {
        "logits": output.logits[0].float(),
        "rotation": poses.raw_rotation.float(),
        "location": poses.location.float(),
        "confidence": poses.confidence_logit.float(),
    }


def require_same_outputs(wanted: dict[str, Tensor], found: dict[str, Tensor], dtype: torch.dtype) -> float:
    """The largest difference, as a share of the output's largest value.

    Args:
        wanted, found: of :func:`probe`, before and after.
        dtype: of the stored weights, which sets the tolerance.

    Raises:
        InputError: it is over the tolerance, or not a number.
    """
    shares = {}
    for name, value in wanted.items():
        size = max(float(value.abs().max()), 1e-6)
        shares[name] = float((found[name] - value).abs().max()) / size
    worst = max(shares, key=lambda name: (not np.isfinite(shares[name]), shares[name]))
    if not shares[worst] <= TOLERANCES[_name(dtype)]:
        raise InputError(
            f"the merged model's {worst} differs from the checkpoint's by {shares[worst]:.1e} of its size, more than "
            f"{TOLERANCES[_name(dtype)]:g}; nothing was written; try --dtype float32, or use the checkpoint as it is"
        )
    return shares[worst]


main = command(
    MergeConfig,
    merge,
    prog="llava-pose merge",
    description="Merge what was trained, an adapter or the vectors of <pose6D>, into one checkpoint that transformers load by "
    "themselves; it is compared with what was merged before it is kept.",
    example="llava-pose merge --checkpoint runs/first --out runs/first_merged",
)

if __name__ == "__main__":
    raise SystemExit(main())
