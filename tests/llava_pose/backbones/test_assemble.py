"""`llava-pose assemble`: the parts are whole in the base, and a LLaVA answers as it did before it had a pose head."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTImageProcessor,
)

from llava_pose.backbones.assemble import AssembleConfig, assemble, main
from llava_pose.data.conversation import IMAGE_TOKEN, POSE_TOKEN
from llava_pose.errors import InputError
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.loading import load_full, load_model
from llava_pose.model.modeling import POSE_WEIGHTS
from llava_pose.model.processing import input_size
from llava_pose.model.processors import load_processor
from tests.llava_pose.small_models import project_tokenizer

WEIGHTS = "model.safetensors"
# LLaVA-1.5's: the tokenizer's 32,000 pieces, <image>, <pad>, and 62 rows that nothing uses
LLAVA_PIECES, LLAVA_ROWS, LLAVA_IMAGE_ID, LLAVA_POSE_ID = 32_000, 32_064, 32_000, 32_002
LLAVA_SIDE, LLAVA_IMAGE_TOKENS = 336, 576
TRANSFORMER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
CONVNEXT = {"hidden_sizes": [4, 6, 8, 12], "depths": [1, 1, 1, 1]}


def picture(side: int = 64, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def pixels_of(processor: Any, image: Image.Image) -> torch.Tensor:
    return processor.image_processor([image], return_tensors="pt")["pixel_values"]


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


# A tower and a language model


TOWERS: dict[str, Callable[[], PreTrainedModel]] = {
    "convnext": lambda: ConvNextModel(ConvNextConfig(image_size=64, **CONVNEXT)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**TRANSFORMER, image_size=64, patch_size=16)),
    "clip-both": lambda: CLIPModel(
        CLIPConfig(
            vision_config=CLIPVisionConfig(**TRANSFORMER, image_size=64, patch_size=16).to_dict(),
            text_config=CLIPTextConfig(**TRANSFORMER, vocab_size=32, max_position_embeddings=8).to_dict(),
        )
    ),
    "dinov2": lambda: Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=16)
    ),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**TRANSFORMER, image_size=64, patch_size=16)),
}
LANGUAGES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tower of TOWERS, each made once. Read only."""
    root = tmp_path_factory.mktemp("towers")

    def get(name: str) -> Path:
        if not (root / name).exists():
            torch.manual_seed(0)
            TOWERS[name]().save_pretrained(root / name)
            ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(root / name)
        return root / name

    return get


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a language model with ``free`` rows more than its tokenizer has tokens. Read only."""
    root = tmp_path_factory.mktemp("languages")

    def get(name: str = "llama", *, tied: bool = False, free: int = 10) -> Path:
        folder = root / f"{name}-{tied}-{free}"
        if not folder.exists():
            torch.manual_seed(1)
            tokenizer = project_tokenizer()
            config, model = LANGUAGES[name]
            model(
                config(
                    vocab_size=len(bare_vocabulary()) + free,
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                    max_position_embeddings=256,
                    tie_word_embeddings=tied,
                    initializer_range=0.2,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ).save_pretrained(folder)
            bare_tokenizer().save_pretrained(folder)
        return folder

    return get


def bare_vocabulary() -> dict[str, int]:
    """The project's pieces, without the tokens that LLaVA-pose adds."""
    added = (IMAGE_TOKEN, POSE_TOKEN, "<|im_start|>", "<|im_end|>")
    return {piece: index for piece, index in project_tokenizer().get_vocab().items() if piece not in added}


def bare_tokenizer(pieces: int | None = None) -> LlamaTokenizer:
    """A tokenizer of those pieces, filled up to so many with ones that no text holds."""
    vocabulary = bare_vocabulary()
    for index in range(len(vocabulary), pieces or 0):
        vocabulary[f"\ue000{index}"] = index
    merges = json.loads(project_tokenizer().backend_tokenizer.to_str())["model"]["merges"]
    return LlamaTokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in merges],
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )


@pytest.mark.parametrize(
    ("name", "layers", "merge", "tokens", "channels"),
    [
        ("convnext", "-1", 1, 4, 12),
        ("convnext", "-2,-1", 2, 1, 4 * 8 + 12),
        ("clip", "-2", 1, 16, 16),
        ("clip", "1,-1", 2, 4, 32),
        ("clip-both", "-2", 1, 16, 16),
        ("dinov2", "-1", 4, 1, 16),
        ("siglip", "-1", 2, 4, 16),
    ],
)
def test_a_base_of_any_tower(tower, language, tmp_path: Path, name, layers, merge, tokens, channels):
    folder = assemble(
        AssembleConfig(
            out=str(tmp_path / "base"),
            vision=str(tower(name)),
            language=str(language()),
            vision_layers=layers,
            vision_merge=merge,
            pose_head_hidden_size=8,
        )
    )
    model, processor = load_model(folder), load_processor(folder)
    pixels = pixels_of(processor, picture())
    assert len(processor.image_ids(picture())) == model.config.image_seq_length == tokens
    assert model.config.patch_channels == model.pose_config.pooled_size == channels
    with torch.inference_mode():
        patches = model.patches({"pixel_values": pixels})
        part = AutoModel.from_pretrained(tower(name)).eval()
        part = getattr(part, "vision_model", part)
        states = part(pixels, output_hidden_states=True).hidden_states
    # the layers beside each other, in the order of their names; the classes' tokens are left out
    kept = 0
    for layer in map(int, layers.split(",")):
        expected = states[layer]
        if expected.dim() == 3:
            side = patches.shape[1]
            expected = expected[:, expected.shape[1] - side * side :].unflatten(1, (side, side))
        else:
            expected = torch.nn.functional.pixel_unshuffle(expected, expected.shape[-1] // patches.shape[1])
            expected = expected.permute(0, 2, 3, 1)
        ours = patches[..., kept : kept + expected.shape[-1]]
        torch.testing.assert_close(ours.sort(-1).values, expected.sort(-1).values, rtol=1e-5, atol=1e-6)
        kept += expected.shape[-1]
    assert kept == channels

    chat = processor.encode_chat([{"role": "user", "content": f"{IMAGE_TOKEN}\nWhat is this?"}])
    assert int((chat.input_ids == model.pose_config.image_token_id).sum()) == tokens
    with torch.inference_mode():
        seen, other = (
            model(input_ids=torch.from_numpy(chat.input_ids)[None], pixel_values=p).logits for p in (pixels, -pixels)
        )
    assert torch.isfinite(seen).all()
    assert not torch.allclose(seen[:, -1], other[:, -1])


@pytest.mark.parametrize("name", list(LANGUAGES))
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("free", [0, 10], ids=["no row free", "rows free"])
@pytest.mark.parametrize("depth", [None, 2])
def test_the_language_model_is_whole_in_the_base(tower, language, tmp_path: Path, name, tied, free, depth):
    """The same logits for text, from as many layers; rows are added only where none is free."""
    source = language(name, tied=tied, free=free)
    folder = assemble(
        AssembleConfig(
            out=str(tmp_path / "base"), vision=str(tower("convnext")), language=str(source), language_layers=depth
        )
    )
    model, processor = load_model(folder), load_processor(folder)
    alone = LANGUAGES[name][1].from_pretrained(source).eval()
    rows = alone.config.vocab_size
    embedding, output = model.vlm.get_input_embeddings().weight, model.vlm.get_output_embeddings().weight
    assert embedding.shape[0] == output.shape[0] == (rows if free else -(-(rows + 2) // 64) * 64)
    added = len(processor.tokenizer)  # of which Qwen's tokenizer has one by itself
    assert (model.pose_config.image_token_id, processor.pose_token_id) == (added - 2, added - 1)
    assert model.pose_config.pose_token_id == processor.pose_token_id
    assert model.config.tie_word_embeddings == tied
    assert (output.data_ptr() == embedding.data_ptr()) == tied
    if depth is not None:
        alone.model.layers = alone.model.layers[:depth]
    assert len(model.decoder.layers) == (depth or 3)
    chat = processor.encode_chat(
        [{"role": "user", "content": "What is the pose of the car?"}, {"role": "assistant", "content": "It is known."}]
    )
    ids = torch.from_numpy(chat.input_ids)[None]
    with torch.inference_mode():
        ours, theirs = model(input_ids=ids).logits, alone(input_ids=ids).logits
    torch.testing.assert_close(ours[..., :rows], theirs, rtol=1e-5, atol=1e-5)


def test_the_seed_decides_about_the_new_weights(tower, language, tmp_path: Path):
    parts = {"vision": str(tower("convnext")), "language": str(language())}
    bases = [
        assemble(AssembleConfig(out=str(tmp_path / str(index)), seed=seed, **parts))
        for index, seed in enumerate((3, 3, 4))
    ]
    first, same, other = ({**load_file(folder / WEIGHTS), **load_file(folder / POSE_WEIGHTS)} for folder in bases)
    assert [key for key, value in first.items() if not torch.equal(value, same[key])] == []
    different = {key.split(".")[0] for key, value in first.items() if not torch.equal(value, other[key])}
    assert different == {"model", "pose_head", "pose_encoder"}  # the projector is in "model"
    assert all(torch.equal(v, other[k]) for k, v in first.items() if "vision_tower" in k or "causal_lm" in k)


def test_a_fresh_base_is_what_its_settings_say(tower, language, tmp_path: Path):
    folder = assemble(
        AssembleConfig(
            out=str(tmp_path / "base"),
            vision=str(tower("convnext")),
            language=str(language()),
            image_size=128,
            rotation="rot6d",
            pose_head_hidden_size=12,
            chat_template="chatml",
        )
    )
    model, processor = load_model(folder), load_processor(folder)
    assert (model.pose_config.rotation, model.pose_head.linear_1.out_features) == ("rot6d", 12)
    assert model.pose_head.look.heads == 4
    assert (input_size(processor.image_processor), model.config.image_seq_length) == ((128, 128), 16)
    assert processor.render([{"role": "user", "content": "Hi"}]).startswith("<|im_start|>user")
    assert "image_size: 128" in (folder / "assemble.yaml").read_text()
    assert not model.pose_token_embedding.change.any()
    assert not model.pose_token_output.change.any()


# A LLaVA


def llava_config(**changes: Any) -> LlavaConfig:
    """LLaVA-1.5-7B's shapes, but for widths and depths."""
    values = {
        "vision_config": CLIPVisionConfig(**TRANSFORMER, image_size=LLAVA_SIDE, patch_size=14, projection_dim=8),
        "text_config": LlamaConfig(
            vocab_size=LLAVA_ROWS,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.2,
            rms_norm_eps=1e-5,
            pad_token_id=None,
        ),
        "image_token_index": LLAVA_IMAGE_ID,
        "image_seq_length": LLAVA_IMAGE_TOKENS,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "pad_token_id": LLAVA_IMAGE_ID + 1,
    }
    return LlavaConfig(**{**values, **changes})


def save_llava(folder: Path, config: LlavaConfig | None = None, *, pieces: int = LLAVA_PIECES) -> Path:
    torch.manual_seed(2)
    LlavaForConditionalGeneration(config or llava_config()).save_pretrained(folder)
    tokenizer = bare_tokenizer(pieces)
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<pad of llava>"})
    side = LLAVA_SIDE
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return save_llava(tmp_path_factory.mktemp("llava") / "llava-1.5-small")


@pytest.fixture(scope="module")
def llava_base(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llava_base")
    return assemble(AssembleConfig(out=str(out), llava=str(llava), pose_head_hidden_size=8))


CHAT = [
    {"role": "user", "content": f"{IMAGE_TOKEN}\nWhat is the pose of the car?"},
    {"role": "assistant", "content": f"The car is at {POSE_TOKEN}. It is seen from the left."},
]


def test_a_llava_answers_as_before(llava: Path, llava_base: Path):
    """The same picture and words: the same logits as transformers' own LLaVA."""
    ours, processor = load_model(llava_base), load_processor(llava_base)
    theirs = LlavaForConditionalGeneration.from_pretrained(llava).eval()
    ids = torch.from_numpy(processor.encode_chat(CHAT).input_ids)[None]
    at_pose = int((ids[0] == processor.pose_token_id).nonzero()[0])
    pixels = pixels_of(processor, picture(500))
    assert pixels.shape == (1, 3, LLAVA_SIDE, LLAVA_SIDE)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, pixel_values=pixels).logits
        fresh = ours(input_ids=ids, pixel_values=pixels).logits
        torch.testing.assert_close(fresh, expected, rtol=1e-4, atol=1e-5)

        ours.pose_token_embedding.change.add_(1.0)
        ours.pose_token_output.change.add_(1.0)
        trained = ours(input_ids=ids, pixel_values=pixels).logits
    others = torch.arange(LLAVA_ROWS) != processor.pose_token_id
    torch.testing.assert_close(trained[:, :at_pose, others], expected[:, :at_pose, others], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(trained[:, at_pose:, others], expected[:, at_pose:, others], atol=1e-2)
    assert not torch.allclose(trained[:, :at_pose, ~others], expected[:, :at_pose, ~others], atol=1e-2)


def test_a_llava_gets_its_pictures_as_from_its_own_processor(llava: Path, llava_base: Path):
    theirs, processor = LlavaProcessor.from_pretrained(llava), load_processor(llava_base)
    text = processor.render(CHAT[:1], add_generation_prompt=True)
    expected = theirs(images=[picture(500)], text=[text], add_special_tokens=False, return_tensors="pt")
    ours = processor.encode_chat(CHAT[:1], picture(500), add_generation_prompt=True)
    assert int((expected["input_ids"] == LLAVA_IMAGE_ID).sum()) == LLAVA_IMAGE_TOKENS
    assert expected["input_ids"][0].tolist() == ours.input_ids.tolist()
    assert torch.equal(expected["pixel_values"], ours.pictures["pixel_values"])
    encoded = processor.encode_chat(CHAT).input_ids
    assert encoded[: len(ours.input_ids)].tolist() == ours.input_ids.tolist()


def test_a_llava_keeps_its_weights_and_gives_the_token_a_free_row(llava: Path, llava_base: Path):
    before, after = load_file(llava / WEIGHTS), load_full(llava_base, dtype=torch.float32).vlm.state_dict()
    model, processor = LlavaForConditionalGeneration.from_pretrained(llava), load_processor(llava_base)
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, after[key])] == []
    assert len(before) == len(model.state_dict())
    assert (processor.processor.image_token_id, processor.pose_token_id) == (LLAVA_IMAGE_ID, LLAVA_POSE_ID)
    config = json.loads((llava_base / "config.json").read_text())
    assert (config["model_type"], config["text_config"]["vocab_size"]) == ("llava", LLAVA_ROWS)
    assert LlavaPoseConfig.load(llava_base).pose_token_id == LLAVA_POSE_ID
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, "default")
    assert config["image_seq_length"] == LLAVA_IMAGE_TOKENS == len(processor.image_ids(picture(500)))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_llava_without_a_free_row_gets_more(tmp_path: Path, tied):
    rows = len(bare_vocabulary()) + 2  # <image> and <pad>
    text = LlamaConfig(
        **TRANSFORMER, vocab_size=rows, max_position_embeddings=1024, initializer_range=0.2, tie_word_embeddings=tied
    )
    config = llava_config(text_config=text, image_token_index=rows - 2, pad_token_id=rows - 1, tie_word_embeddings=tied)
    source = save_llava(tmp_path / "llava", config, pieces=0)
    out = assemble(AssembleConfig(out=str(tmp_path / "base"), llava=str(source), pose_head_hidden_size=8))
    ours, processor = load_model(out), load_processor(out)
    theirs = LlavaForConditionalGeneration.from_pretrained(source).eval()
    assert processor.pose_token_id == rows
    assert ours.config.text_config.vocab_size == ours.vlm.lm_head.weight.shape[0] == -(-(rows + 1) // 64) * 64
    ids = torch.from_numpy(processor.encode_chat(CHAT[:1]).input_ids)[None]
    pixels = pixels_of(processor, picture(100))
    with torch.inference_mode():
        expected = theirs(input_ids=ids, pixel_values=pixels).logits
        torch.testing.assert_close(
            ours(input_ids=ids, pixel_values=pixels).logits[..., :rows], expected, rtol=1e-4, atol=1e-5
        )


def test_a_llava_in_half_precision_stays_so(tmp_path: Path):
    rows = len(bare_vocabulary()) + 10
    config = llava_config(
        text_config=LlamaConfig(**TRANSFORMER, vocab_size=rows), image_token_index=rows - 10, pad_token_id=rows - 9
    )
    source = save_llava(tmp_path / "llava", config, pieces=0)
    LlavaForConditionalGeneration.from_pretrained(source).to(torch.bfloat16).save_pretrained(source)
    out = assemble(AssembleConfig(out=str(tmp_path / "base"), llava=str(source), pose_head_hidden_size=8))
    assert {value.dtype for value in load_file(out / WEIGHTS).values()} == {torch.bfloat16}


# What cannot be put together


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "give either --vlm, or --vision and --language, or --preset tiny"),
        ({"preset": "tiny", "llava": "L"}, "give either --vlm, or --vision and --language, or --preset tiny"),
        ({"preset": "tiny", "language": "L"}, "give either"),
        ({"llava": "L", "vision": "V"}, "give either"),
        ({"preset": "tiny", "vision": "V"}, "--vision V: "),
        ({"preset": "huge"}, "--preset huge: not known"),
        ({"vision": "V"}, "--language is needed"),
        ({"language": "L"}, "--vision is needed"),
        ({"preset": "tiny", "rotation": "euler"}, "--rotation euler: not known; choose one of svd9d"),
        ({"preset": "tiny", "chat_template": "alpaca"}, "--chat-template alpaca: not known; choose one of chatml"),
        ({"preset": "tiny", "vision_layers": "last"}, "--vision-layers last: expected whole numbers"),
        ({"preset": "tiny", "vision_layers": "17"}, "--vision-layers 17: a bit model gives no such map of patches"),
        ({"preset": "tiny", "vision_merge": 2}, "--vision-merge 2: the tower gives 3x3 patches"),
        ({"preset": "tiny", "image_size": 65}, "9 tokens do not tile its 65x65 input; choose another --image-size"),
        ({"preset": "tiny", "image_size": 0}, "--image-size 0: must be at least 1"),
        ({"preset": "tiny", "vision_merge": 0}, "--vision-merge 0: must be at least 1"),
        ({"preset": "tiny", "pose_head_hidden_size": 0}, "--pose-head-hidden-size 0: must be at least 1"),
        ({"preset": "tiny", "pose_head_attention_heads": -1}, "--pose-head-attention-heads -1: must be 0 or divide"),
        ({"preset": "tiny", "pose_head_attention_heads": 3}, "--pose-head-hidden-size 512"),
        ({"preset": "tiny", "seed": -1}, "--seed -1: must be at least 0"),
        ({"preset": "tiny", "language_layers": 2}, "--language-layers: has no effect with --preset"),
        ({"llava": "L", "vision_merge": 2}, "--vision-merge: has no effect with --llava"),
        ({"llava": "L", "image_size": 224}, "--image-size: has no effect with --llava"),
        ({"llava": "/none"}, "--llava /none: cannot be loaded"),
        ({"vision": "/none", "language": "/none"}, "--vision /none: cannot be loaded"),
    ],
)
def test_a_senseless_choice_is_one_sentence(tmp_path: Path, options, match):
    with pytest.raises(InputError, match=match) as caught:
        assemble(AssembleConfig(out=str(tmp_path / "base"), **options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()


def test_out_must_be_a_folder(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .*file: is there already"):
        assemble(AssembleConfig(out=str(tmp_path / "file"), preset="tiny"))


@pytest.mark.parametrize("layers", [0, -1, 4])
def test_no_more_layers_than_there_are(tower, language, tmp_path: Path, layers):
    parts = {"vision": str(tower("convnext")), "language": str(language())}
    with pytest.raises(InputError, match=f"--language-layers {layers}: the language model has 3 layers"):
        assemble(AssembleConfig(out=str(tmp_path / "base"), language_layers=layers, **parts))


def test_a_part_in_the_wrong_place_is_named(tower, language, llava: Path, tmp_path: Path):
    out = str(tmp_path / "base")
    with pytest.raises(InputError, match=r"--language .*convnext: cannot be loaded"):
        assemble(AssembleConfig(out=out, vision=str(tower("convnext")), language=str(tower("convnext"))))
    with pytest.raises(InputError, match=r"--llava .*llama.*: .*no processor of pictures and text"):
        assemble(AssembleConfig(out=out, llava=str(language())))


@pytest.mark.parametrize("option", ["vision", "language", "llava"])
def test_a_part_must_be_whole(tower, language, llava: Path, tmp_path: Path, option):
    source = {"vision": tower("dinov2"), "language": language("qwen2"), "llava": llava}[option]
    broken = shutil.copytree(source, tmp_path / "broken")
    if option == "llava":
        options = {"llava": str(broken)}
    else:
        options = {"vision": str(tower("convnext")), "language": str(language()), option: str(broken)}
    weights = load_file(broken / WEIGHTS)
    key = next(key for key in weights if key.endswith("fc1.weight") or key.endswith("up_proj.weight"))
    for change, what in (({}, "missing"), ({key: weights[key][:-1].clone()}, "of another shape")):
        others = {name: value for name, value in weights.items() if name != key}
        save_file({**others, **change}, broken / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(InputError, match=rf"--{option} {broken}: 1 weights are {what}: .*") as caught:
            assemble(AssembleConfig(out=str(tmp_path / "base"), **options))
        assert key.rpartition("layers.")[2] in str(caught.value)
    (broken / WEIGHTS).write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(InputError, match=rf"--{option} {broken}: cannot be loaded"):
        assemble(AssembleConfig(out=str(tmp_path / "base"), **options))
    (broken / WEIGHTS).unlink()
    with pytest.raises(InputError, match=rf"--{option} {broken}: cannot be loaded"):
        assemble(AssembleConfig(out=str(tmp_path / "base"), **options))


def test_a_llava_and_its_tokenizer_must_agree(llava: Path, tmp_path: Path):
    broken = shutil.copytree(llava, tmp_path / "broken")
    change_json(broken / "config.json", image_token_index=7, image_token_id=7)
    with pytest.raises(InputError, match=r"puts no image token of a llava model \(7\) into a text"):
        assemble(AssembleConfig(out=str(tmp_path / "base"), llava=str(broken)))


def test_the_command(tmp_path: Path, capsys):
    assert main(["--preset", "tiny", "--out", str(tmp_path / "tiny"), "--rotation", "svd9d"]) == 0
    assert load_full(tmp_path / "tiny").pose_config.rotation == "svd9d"
    assert main(["--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: give either --vlm, or --vision and --language")
