"""A checkpoint folder gives back the model that was saved, weight for weight, or says which weight stands in the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llava_pose.data.conversation import IMAGE_TOKEN, POSE_TOKEN
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import stored_shapes
from llava_pose.model.configuration import POSE_CONFIG, LlavaPoseConfig
from llava_pose.model.loading import ADAPTER_CONFIG, load_full, load_model
from llava_pose.model.modeling import POSE_PARTS, POSE_WEIGHTS
from llava_pose.model.processors import load_processor
from llava_pose.train.trainable import add_lora
from llava_pose.utils.apart import apart

BASES = ["base", "other_base"]  # tied and untied embeddings, norm and no norm, two kinds of towers and templates
WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
CHAT = [
    {"role": "user", "content": f"{IMAGE_TOKEN}\nThe cup is at {POSE_TOKEN}. Where is the car?"},
    {"role": "assistant", "content": f"The car is at {POSE_TOKEN}."},
]


def stir(model: nn.Module, *, only_trained: bool = False) -> None:
    """No weight is left at its first value: zeros and ones would be the same without a checkpoint."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad or not only_trained:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def outputs_of(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """Logits and poses of one picture with a pose in the question."""
    processor = load_processor(folder)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    chat = processor.encode_chat(CHAT, Image.fromarray(coarse))
    ids = torch.from_numpy(chat.input_ids)[None]
    with torch.inference_mode():
        output = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **chat.pictures,
            input_poses=torch.tensor([[0.5, 0.2, -0.1, 0.3, 0.05, -0.1]]),
            input_pose_mask=(ids == processor.pose_token_id) & torch.from_numpy(chat.labels == -100)[None],
        )
        poses = model.read_poses(output.states[0, -3:], output.image_tokens, torch.zeros(3, dtype=torch.long))
    return {
        "logits": output.logits,
        "rotation": poses.rotation,
        "location": poses.location,
        "confidence": poses.confidence,
    }


def assert_same_outputs(ours: nn.Module, theirs: nn.Module, folder: Path) -> None:
    first, second = outputs_of(ours, folder), outputs_of(theirs, folder)
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


@pytest.fixture
def full_checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], tuple[Path, nn.Module]]:
    """Saves a stirred copy of the base that a fixture names."""

    def make(name: str = "base") -> tuple[Path, nn.Module]:
        source, folder = request.getfixturevalue(name), tmp_path / "checkpoint"
        model = load_full(source, dtype=torch.float32).eval()
        stir(model)
        model.save_pretrained(folder)
        load_processor(source).save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., tuple[Path, nn.Module]]:
    """Saves an adapter with stirred weights, its folder called after something that it is not."""

    def make(name: str = "base", *, tune_vision: bool = False) -> tuple[Path, nn.Module]:
        source, folder = request.getfixturevalue(name), tmp_path / "full-model"
        model = add_lora(
            load_full(source, dtype=torch.float32), r=4, alpha=8, dropout=0.1, tune_vision=tune_vision
        ).eval()
        stir(model, only_trained=True)
        model.save_pretrained(folder)
        load_processor(source).save_pretrained(folder)
        return folder, model

    return make


def change_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


# There and back


@pytest.mark.parametrize("name", BASES)
def test_a_full_checkpoint_comes_back_as_it_was(full_checkpoint, request, name):
    folder, model = full_checkpoint(name)
    again = load_model(folder)
    assert not again.training
    assert_same_outputs(model, again, folder)
    fresh = load_model(request.getfixturevalue(name))
    assert not torch.allclose(outputs_of(fresh, folder)["logits"], outputs_of(model, folder)["logits"], atol=1e-2)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("tune_vision", [False, True], ids=["frozen tower", "tuned tower"])
def test_an_adapter_comes_back_on_its_base(adapter, request, name, tune_vision):
    folder, model = adapter(name, tune_vision=tune_vision)
    again = load_model(folder)  # the base from the adapter's own config
    assert not again.training
    assert_same_outputs(model, again, folder)
    fresh = load_model(request.getfixturevalue(name))
    assert not torch.allclose(outputs_of(fresh, folder)["rotation"], outputs_of(model, folder)["rotation"], atol=1e-2)


def test_one_folder_holds_all_that_trained(adapter):
    """The connector is in the adapter, the pose parts lie beside it; the base's own weights do not."""
    folder, _ = adapter()
    keys = load_file(folder / ADAPTER_WEIGHTS)
    assert any(".multi_modal_projector." in key for key in keys)
    assert [key for key in keys if "lora_" not in key and ".multi_modal_projector." not in key] == []
    assert {key.partition(".")[0] for key in load_file(folder / POSE_WEIGHTS)} == set(POSE_PARTS)
    assert not (folder / WEIGHTS).exists()


def test_a_moved_base_is_given_by_name(adapter, base: Path, tmp_path: Path):
    folder, model = adapter()
    moved = shutil.copytree(base, tmp_path / "moved")
    gone = tmp_path / "was here"
    change_json(folder / ADAPTER_CONFIG, base_model_name_or_path=str(gone))
    with pytest.raises(InputError, match=rf"the adapter's base {gone} is not there; say where it is with --base"):
        load_model(folder)
    assert_same_outputs(model, load_model(folder, base=moved), folder)


def test_the_precision_is_that_asked_for(full_checkpoint):
    folder, _ = full_checkpoint()
    assert {p.dtype for p in load_model(folder, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_model(folder).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", BASES)
def test_attention_is_torchs_own_unless_asked_for(request, name):
    """SDPA in every part that has attention; no flash-attn, which is hard to install; eager where somebody wants it."""
    folder = request.getfixturevalue(name)
    model = load_model(folder)
    parts = [model.vlm, model.decoder, model.tower]
    attending = [part for part in parts if part._supports_sdpa]
    assert model.decoder in attending
    assert {part.config._attn_implementation for part in attending} == {"sdpa"}
    assert "flash_attn" not in sys.modules
    eager = load_model(folder, attn_implementation="eager").decoder
    assert eager.config._attn_implementation == "eager"


# Strictness


def removed(key: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda weights: weights.pop(key)


def added(key: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda weights: weights.update({key: torch.zeros(3)})


def reshaped(key: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda weights: weights.update({key: torch.zeros(weights[key].shape[0] + 1, *weights[key].shape[1:])})


@pytest.mark.parametrize(
    ("file", "key"),
    [
        (POSE_WEIGHTS, "pose_head.linear_2.weight"),
        (POSE_WEIGHTS, "pose_token_output.change"),
        (WEIGHTS, "model.multi_modal_projector.linear_1.bias"),
        (WEIGHTS, "model.causal_lm.model.layers.1.mlp.up_proj.weight"),
    ],
)
@pytest.mark.parametrize(
    ("change", "what"),
    [(removed, "1 weights are missing"), (reshaped, "1 weights are of another shape")],
    ids=["missing", "another shape"],
)
def test_a_full_checkpoint_is_loaded_whole_or_not_at_all(full_checkpoint, file, key, change, what):
    folder, _ = full_checkpoint()
    change_weights(folder / file, change(key))
    with pytest.raises(InputError) as caught:
        load_model(folder)
    place = folder if file == WEIGHTS else folder / file
    assert str(caught.value).startswith(f"{place}: {what}")
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weight_too_many_is_named(full_checkpoint):
    folder, _ = full_checkpoint()
    for file, key in ((WEIGHTS, "model.linear_3.weight"), (POSE_WEIGHTS, "pose_head.linear_3.weight")):
        before = load_file(folder / file)
        change_weights(folder / file, added(key))
        with pytest.raises(InputError, match=rf"1 weights are not of this model: {key}"):
            load_model(folder)
        save_file(before, folder / file, metadata={"format": "pt"})


@pytest.mark.parametrize("change", [removed, added, reshaped])
@pytest.mark.parametrize(
    "part", ["multi_modal_projector.linear_2.weight", "lora_B.weight", "pose_token_embedding.change"]
)
def test_an_adapter_is_loaded_whole_or_not_at_all(adapter, change, part):
    folder, _ = adapter()
    file = folder / (POSE_WEIGHTS if part.startswith("pose") else ADAPTER_WEIGHTS)
    key = next(key for key in load_file(file) if key.endswith(part))
    key = key if change is not added else key.replace(part, f"other.{part}")
    change_weights(file, change(key))
    with pytest.raises(InputError) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert key.removeprefix("base_model.model.") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_does_not_go_on_another_base(adapter, other_base: Path):
    folder, _ = adapter("base")
    with pytest.raises(InputError, match=str(folder)):
        load_model(folder, base=other_base)


# Folders that are no checkpoint


@pytest.mark.parametrize("files", [{}, {"readme.txt": "x"}, {WEIGHTS: "x"}])
def test_a_folder_that_is_no_checkpoint(tmp_path: Path, files: Mapping[str, str]):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"^{tmp_path}: neither config\.json nor adapter_config\.json is in it"):
        load_model(tmp_path)
    with pytest.raises(InputError, match=rf"^{tmp_path}: no LLaVA-pose processor there"):
        load_processor(tmp_path)
    (tmp_path / "processor_config.json").write_text("[]")
    with pytest.raises(InputError, match=rf"^{tmp_path}/processor_config\.json: must hold a JSON object, not '\[\]'"):
        load_processor(tmp_path)


def test_a_path_that_is_not_there(tmp_path: Path):
    for load in (load_model, load_full, load_processor):
        with pytest.raises(InputError, match=rf"^{tmp_path}/none: "):
            load(tmp_path / "none")


def test_a_file_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(InputError, match=rf"^{tmp_path}/model\.bin: .*is this a checkpoint folder"):
        load_model(tmp_path / "model.bin")


def test_damaged_files_are_named(full_checkpoint, adapter):
    folder, _ = full_checkpoint()
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=rf"^{folder / WEIGHTS}: cannot be read"):
        load_model(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=rf"^{folder}: cannot load the model"):
        load_model(folder)
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(InputError, match=rf"^{folder / 'config.json'}: cannot be read"):
        load_model(folder)

    folder, _ = adapter()
    weights = (folder / ADAPTER_WEIGHTS).read_bytes()
    (folder / ADAPTER_WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=rf"^{folder / ADAPTER_WEIGHTS}: "):
        load_model(folder)
    (folder / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(InputError, match="no such file; the checkpoint is incomplete"):
        load_model(folder)
    (folder / ADAPTER_CONFIG).write_text('{"peft_type": "LORA"')
    with pytest.raises(InputError, match=rf"^{folder / ADAPTER_CONFIG}: cannot be read"):
        load_model(folder)


def test_another_kind_of_model_is_refused(tmp_path: Path):
    """A whole checkpoint, of a language model."""
    LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"^{tmp_path}: a llama model without pose parts"):
        load_model(tmp_path)


# transformers' own ways


def test_auto_classes_know_the_model(full_checkpoint):
    """In a process of its own, which has imported nothing of the model before."""
    folder, model = full_checkpoint()
    program = (
        "import sys, llava_pose.compact\n"
        "from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor\n"
        "folder = sys.argv[1]\n"
        "config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)\n"
        "model = AutoModelForImageTextToText.from_pretrained(folder)\n"
        "for one in (config, processor, model): print(type(one).__module__, type(one).__name__)\n"
        "print(config.vision_merge, processor.image_token_id, model.model.causal_lm.lm_head.weight.double().sum().item())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = model.vlm.get_output_embeddings().weight.double().sum().item()
    assert done.stdout.splitlines() == [
        "llava_pose.compact.configuration CompactLlavaConfig",
        "llava_pose.compact.processing CompactLlavaProcessor",
        "llava_pose.compact.modeling CompactLlavaForConditionalGeneration",
        f"{model.config.vision_merge} {model.pose_config.image_token_id} {expected}",
    ]


def test_import_brings_in_torch_only_with_the_model():
    program = (
        "import sys, llava_pose, llava_pose.pose.geometry, llava_pose.pose.metrics\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
        "from llava_pose import LlavaPoseConfig\n"
        "from transformers import AutoConfig\n"
        "print(AutoConfig.for_model('compact_llava').__class__.__name__ == 'CompactLlavaConfig')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "False", "True"], done.stderr


def test_the_configuration_comes_back_as_it_was(full_checkpoint):
    folder, model = full_checkpoint("other_base")
    again = load_model(folder)
    ours, theirs = (
        {key: value for key, value in one.config.to_dict().items() if key not in ("_name_or_path", "dtype")}
        for one in (again, model)
    )
    assert ours == theirs
    assert LlavaPoseConfig.load(folder) == again.pose_config == model.pose_config


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"pose_head_hidden_size": 10**12}, "pose_config.json: cannot be used"),
        ({"pose_head_hidden_size": 32}, "weights are of another shape"),
        ({"hidden_size": "many"}, "'hidden_size' must be"),
        ({"embedding_size": 64}, "embedding_size is 64, and the backbone's is 32"),
        ({"image_places": 0}, "'image_places' must be"),
        ({"connector": "evil"}, "connector 'evil' is no module of the backbone"),
        ({"rotation": "quaternion"}, "'rotation' must be one of"),
        ({"pose_token_id": 10**9}, "pose_token_id is 1000000000, and the vocabulary has"),
        ({"image_token_id": -1}, "'image_token_id' must be"),
        ({"hidden_size": None}, "'hidden_size' must"),
        ({"strange": 1}, "there is no field 'strange'"),
        ({"confidence_threshold": float("nan")}, "confidence_threshold|not JSON"),
    ],
)
def test_a_configuration_of_pose_parts_that_makes_no_sense_is_a_sentence(full_checkpoint, values, match):
    folder, _ = full_checkpoint()
    change_json(folder / POSE_CONFIG, **values)
    with pytest.raises(InputError, match=match) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_an_older_version_is_said_to_be_one(full_checkpoint):
    folder, _ = full_checkpoint()
    change_json(folder / "config.json", model_type="llava_pose")
    with pytest.raises(InputError, match=rf"^{folder}: a checkpoint of an older LLaVA-pose.* make its base again"):
        load_model(folder)


@pytest.mark.parametrize("name", BASES)
def test_a_processor_comes_back_as_it_was(request, tmp_path: Path, name):
    first = load_processor(request.getfixturevalue(name))
    first.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    for chat in (CHAT, CHAT[:1], [*CHAT, {"role": "user", "content": "Ü, 車?"}]):
        one, other = first.encode_chat(chat), again.encode_chat(chat)
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert first.render(chat, add_generation_prompt=True) == again.render(chat, add_generation_prompt=True)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    assert torch.equal(*(p.picture_inputs(picture)["pixel_values"] for p in (first, again)))
    for what in ("image_token_id", "patch_size", "vision_merge", "chat_template"):
        assert getattr(first.processor, what) == getattr(again.processor, what), what
    assert (first.pose_token_id, first.expanded_image) == (again.pose_token_id, again.expanded_image)
    assert again.tokenizer.padding_side == "left"  # the side to generate with


@pytest.mark.parametrize("path", ["runs/quick/chekpoint", "./base", "/nowhere/base", "base/", "../base"])
def test_a_path_that_is_not_there_is_said_to_be_just_that(path):
    with pytest.raises(InputError, match=r"cannot load the model \(there is no such folder\); check the path$"):
        load_model(path)


def test_weights_larger_than_the_limits_of_a_trial_are_read(tmp_path: Path) -> None:
    """As those of any model of some billion parameters in one file; this one is sparse, and takes no disk."""
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2, 2**30], "data_offsets": [0, 2**32]}}).encode()
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        opened.truncate(8 + len(header) + 2**32)
    assert apart(lambda: stored_shapes(file), memory=2**30, seconds=20) == {"a": (2, 2**30)}
    with file.open("r+b") as opened:
        opened.truncate(2**28)
    with pytest.raises(InputError, match="cannot be read"):
        apart(lambda: stored_shapes(file), memory=2**30, seconds=20)
