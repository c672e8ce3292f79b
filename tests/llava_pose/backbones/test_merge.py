"""`llava-pose merge`: one full checkpoint that answers as the adapter on its base did, or nothing at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig

from llava_pose.backbones.merge import MergeConfig, has_vectors, main, merge, probe, require_same_outputs
from llava_pose.errors import InputError
from llava_pose.inference.predictor import PosePredictor
from llava_pose.model.calibration import Calibration
from llava_pose.model.loading import load_full, load_model
from llava_pose.model.processors import load_processor
from llava_pose.train.trainable import add_lora
from tests.llava_pose.conftest import run_training


def save_adapter(base: Path, folder: Path, *, tune_vision: bool = False) -> Path:
    """Trained parts stirred, so that neither LoRA's zeros nor the base's own head would pass for them."""
    model = add_lora(load_full(base, dtype=torch.float32), r=4, alpha=8, dropout=0.1, tune_vision=tune_vision)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    load_processor(base).save_pretrained(folder)
    return folder


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-4, msg=name)


def outputs(path: Path) -> dict[str, torch.Tensor]:
    return probe(load_model(path, dtype=torch.float32), load_processor(path))


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["base", "other_base"])
@pytest.mark.parametrize("tune_vision", [False, True], ids=["frozen tower", "tuned tower"])
def test_a_merged_checkpoint_is_whole_and_answers_as_the_adapter(request, tmp_path: Path, name, tune_vision, capsys):
    base = request.getfixturevalue(name)
    adapter = save_adapter(base, tmp_path / "adapter", tune_vision=tune_vision)
    out = tmp_path / "new" / "merged"
    assert main(["--checkpoint", str(adapter), "--out", str(out)]) == 0
    assert left_in(out.parent) == ["merged"]
    assert not (out / "adapter_config.json").exists()
    assert_close(outputs(adapter), outputs(out))
    assert not torch.allclose(outputs(base)["rotation"], outputs(out)["rotation"], atol=1e-2)
    assert not torch.allclose(outputs(base)["logits"], outputs(out)["logits"], atol=1e-2)
    # and as the predictor asks, about another picture
    picture = [Image.linear_gradient("L").convert("RGB")]
    one, other = (
        PosePredictor.from_checkpoint(path, device="cpu").predict(picture, ["car"]) for path in (adapter, out)
    )
    assert one[0].pose.angles == pytest.approx(other[0].pose.angles, abs=1e-3)


def test_a_calibration_goes_along_and_gives_the_same_confidence(base: Path, tmp_path: Path):
    adapter = save_adapter(base, tmp_path / "adapter")
    Calibration(scale=0.4, shift=-1.0, coverage=0.9, mass=0.7, objects=9, instances=3, data="held out").save(adapter)
    out = merge(MergeConfig(checkpoint=str(adapter), out=str(tmp_path / "merged")))
    assert Calibration.load(out) == Calibration.load(adapter)
    picture = [Image.linear_gradient("L").convert("RGB")]
    [[one], [other]] = (
        PosePredictor.from_checkpoint(path, device="cpu").predict(picture, ["car"]) for path in (adapter, out)
    )
    [plain] = PosePredictor.from_checkpoint(out, device="cpu", calibrated=False).predict(picture, ["car"])
    assert other.confidence == pytest.approx(one.confidence, abs=1e-4)
    assert other.confidence != pytest.approx(plain.confidence, abs=1e-2)
    assert len(other.prediction_set or []) == len(one.prediction_set or []) > 0


def test_a_damaged_calibration_is_refused_before_anything_is_merged(base: Path, tmp_path: Path):
    adapter = save_adapter(base, tmp_path / "adapter")
    (adapter / "calibration.json").write_text('{"scale": "much"}')
    with pytest.raises(InputError, match=r"calibration\.json"):
        merge(MergeConfig(checkpoint=str(adapter), out=str(tmp_path / "merged")))
    assert left_in(tmp_path) == ["adapter"]


def test_what_is_merged_is_a_base_to_train_again(recipe, base: Path, tmp_path: Path):
    merged = merge(MergeConfig(checkpoint=str(save_adapter(base, tmp_path / "adapter")), out=str(tmp_path / "merged")))
    folder = run_training({**recipe, "model": str(merged), "max_steps": 1})
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(merged)


@pytest.mark.parametrize("name", ["base", "other_base"])
def test_a_full_checkpoint_is_merged_with_the_vectors_of_its_token(request, recipe, tmp_path: Path, name: str):
    values = {**recipe, "model": str(request.getfixturevalue(name)), "language": "full"}
    folder = run_training(values)
    out = merge(MergeConfig(checkpoint=str(folder), out=str(tmp_path / "merged")))
    assert has_vectors(load_full(folder))
    assert not has_vectors(load_full(out))
    assert_close(outputs(folder), outputs(out))
    with pytest.raises(InputError, match="there is nothing to merge"):
        merge(MergeConfig(checkpoint=str(out), out=str(tmp_path / "again")))


def test_a_moved_base_and_half_precision(base: Path, tmp_path: Path):
    adapter = save_adapter(base, tmp_path / "adapter")
    settings = adapter / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": "/gone"}))
    with pytest.raises(InputError, match=r"the adapter's base /gone is not there; say where it is with --base"):
        merge(MergeConfig(checkpoint=str(adapter), out=str(tmp_path / "merged")))
    out = merge(MergeConfig(checkpoint=str(adapter), out=str(tmp_path / "merged"), base=str(base), dtype="bfloat16"))
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_an_adapter_of_a_quantised_base_is_merged_into_the_whole_one(recipe, tmp_path: Path, caplog):
    folder = run_training({**recipe, "quantize": "nf4", "max_steps": 2})
    with caplog.at_level("WARNING"):
        out = merge(MergeConfig(checkpoint=str(folder), out=str(tmp_path / "merged")))
    assert "was trained on" in caplog.text
    assert "in nf4; it is merged into the whole base" in caplog.text
    weights = load_file(out / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert_close(outputs(folder), outputs(out))


def test_a_base_that_is_stored_quantised_is_refused(base: Path, tmp_path: Path):
    adapter = save_adapter(base, tmp_path / "adapter")
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, llm_int8_skip_modules=["model.vision_tower", "model.causal_lm.lm_head"]
    )
    load_full(base, quantization_config=four_bits).save_pretrained(tmp_path / "quantised")
    with pytest.raises(InputError, match=r"quantization_config is .*; give the whole base with --base"):
        merge(MergeConfig(checkpoint=str(adapter), out=str(tmp_path / "merged"), base=str(tmp_path / "quantised")))


def test_a_merge_that_answers_otherwise_is_not_kept(base: Path, tmp_path: Path):
    """In two bytes a weight of 70,000 is infinite: the merged model is another one."""
    adapter = save_adapter(base, tmp_path / "adapter")
    file = adapter / "pose_head.safetensors"
    weights = load_file(file)
    key = "pose_head.linear_2.bias"
    weights[key][0] = 70_000.0
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"pose_head\.linear_2\.bias is not finite; nothing was written; try --dtype float32"
    ):
        merge(MergeConfig(checkpoint=str(adapter), out=str(tmp_path / "merged"), dtype="float16"))
    assert left_in(tmp_path) == ["adapter"]
    merge(MergeConfig(checkpoint=str(adapter), out=str(tmp_path / "merged")))  # float32 holds it


@pytest.mark.parametrize("part", ["lora", "head", "nan"])
def test_a_part_that_was_lost_is_seen(base: Path, tmp_path: Path, part: str):
    """The comparison itself: against a model whose layer of LoRA, or head, is not the adapter's."""
    adapter = save_adapter(base, tmp_path / "adapter")
    processor = load_processor(adapter)
    wanted = probe(load_model(adapter, dtype=torch.float32), processor)
    other = load_model(adapter, dtype=torch.float32).merged()
    assert require_same_outputs(wanted, probe(other, processor), torch.float32) < 1e-4
    lost(other, load_full(base, dtype=torch.float32), part)
    with pytest.raises(InputError, match="differs from the checkpoint's"):
        require_same_outputs(wanted, probe(other, processor), torch.float32)


def lost(model: nn.Module, base: Any, part: str) -> None:
    if part == "lora":
        layers = (each.decoder.layers[1].mlp.down_proj for each in (model, base))
    else:
        layers = (each.pose_head.linear_2 for each in (model, base))
    ours, theirs = layers
    ours.load_state_dict(theirs.state_dict())
    if part == "nan":
        nn.init.constant_(ours.bias, float("nan"))


def test_what_cannot_be_merged_is_one_sentence(base: Path, tmp_path: Path, capsys):
    adapter = save_adapter(base, tmp_path / "adapter")
    capsys.readouterr()  # the bars of loading
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").touch()
    for words, sentence in (
        (["--out", "x"], "the option --checkpoint is needed"),
        (["--checkpoint", str(adapter)], "the option --out is needed"),
        (["--checkpoint", "/none", "--out", "x"], "--checkpoint /none: there is no such folder"),
        (["--checkpoint", str(base), "--out", "x", "--base", str(base)], "is a full checkpoint and needs no base"),
        (["--checkpoint", str(taken), "--out", "x"], "no LLaVA-pose processor there"),
        (["--checkpoint", str(adapter), "--out", str(taken)], f"--out {taken}: is there already; give a new folder"),
        (
            ["--checkpoint", str(adapter), "--out", "x", "--dtype", "int8"],
            "--dtype int8: not known; choose one of auto",
        ),
        (["--checkpoint", str(adapter), "--out", "x", "--base", "/none"], "the adapter's base /none is not there"),
        (
            ["--checkpoint", str(adapter), "--out", str(tmp_path / "y"), "--push-to", "me/it"],
            "--push-to me/it: the hub does not",
        ),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
    assert left_in(taken) == ["notes.txt"]
    assert main(["--checkpoint", str(base), "--out", str(tmp_path / "new")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]  # behind the bar of loading
    assert last.startswith(
        f"error: --checkpoint {base}: there is nothing to merge, neither an adapter nor vectors of <pose6D>"
    )
    assert not (tmp_path / "new").exists()
