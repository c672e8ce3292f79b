"""The dry run: its sizes are those of the run that follows, it writes nothing, and what cannot work is refused with exit 2."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.data.samples import read_samples
from llava_pose.model.loading import load_full
from llava_pose.train import dry_run, forecast
from llava_pose.train.arguments import parse_arguments
from llava_pose.train.command import main
from llava_pose.train.forecast import WAYS, Batch
from llava_pose.train.run_folder import DONE_MARK
from llava_pose.train.sizes import Sizes
from llava_pose.train.trainable import choose_what_trains
from tests.llava_pose.conftest import REPOSITORY, arguments, run_training
from tests.llava_pose.vlm_families import FAMILIES

FAST = ("llava", "qwen3_vl", "gemma3", "idefics3")
RECIPES = REPOSITORY / "scripts" / "recipes"
# the recipes of train.py, told by an option that no other command has
OURS = sorted(path.name for path in RECIPES.glob("*.yaml") if "language" in (yaml.safe_load(path.read_text()) or {}))
LARGE = [
    *("llava15_13b_lora.yaml", "llava15_7b_full_zero3.yaml", "llava15_7b_lora.yaml", "llava15_7b_qlora.yaml"),
    *("qwen3_vl_2b_lora.yaml", "qwen3_vl_4b_lora.yaml", "qwen3_vl_8b_lora.yaml", "smolvlm2_2b_lora.yaml"),
]
DDP, ZERO2, ZERO2_OFFLOAD, ZERO3, ZERO3_OFFLOAD = WAYS


def look(values: dict[str, Any]) -> tuple[Sizes, Batch, bool]:
    model, data, training = arguments({**values, "dry_run": True})
    return dry_run.look(model, data, training, read_samples(data.train_json))


CHOICES = {
    "LoRA": {"language": "lora"},
    "LoRA and tower": {"language": "lora", "tune_vision": True},
    "full": {"language": "full", "tune_embeddings": False},
    "full and tower": {"language": "full", "tune_vision": True},
    "frozen": {"language": "frozen"},
}


@pytest.mark.parametrize("choice", list(CHOICES))
@pytest.mark.parametrize("name", ["base", "other_base"])
def test_the_sizes_are_those_of_the_run(recipe, request, tmp_path: Path, name: str, choice: str) -> None:
    """Parameters that train and do not, the cache of features, the result on the disk, and the steps."""
    values = {**recipe, **CHOICES[choice], "model": str(request.getfixturevalue(name))}
    values |= {
        "max_steps": -1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "cache_dir": str(tmp_path / "cache"),
    }
    sizes, batch, tower_runs = look(values)
    run = run_training(values)
    done = json.loads((run / DONE_MARK).read_text())
    assert sizes.trains.total() == done["trainable"]
    assert sizes.trains.total() + sizes.frozen.total() == done["all"]
    assert ("vision" in sizes.trains) == ("tower" in choice) == tower_runs

    model, data, training = arguments(values)
    result, _ = forecast.checkpoint_bytes(sizes, training, adapter=model.language == "lora")
    assert result == sum(tensor.nbytes for file in run.glob("*.safetensors") for tensor in load_file(file).values())
    cached = sum(file.stat().st_size for file in Path(values["cache_dir"]).rglob("features.mmap"))
    samples = read_samples(values["train_json"])
    assert cached == (0 if tower_runs else dry_run.views_of(samples, [], data) * sizes.features)
    assert forecast.steps_of(dry_run.items_of(samples, data), 1, training) == done["steps"]
    assert batch.longest >= batch.tokens >= batch.mean > batch.supervised > 0


@pytest.mark.parametrize("options", [{}, {"optim": "sgd"}, {"save_total_limit": 3}], ids=str)
def test_the_disk_that_checkpoints_take_is_that_of_the_run(recipe, options: dict[str, Any]) -> None:
    values = {**recipe, "language": "full", "save_strategy": "steps", "save_steps": 1, "max_steps": 4, **options}
    sizes, _, _ = look(values)
    run = run_training(values)
    folders = list(run.glob("checkpoint-*"))
    training = arguments(values)[-1]
    _, checkpoint = forecast.checkpoint_bytes(sizes, training, adapter=False)
    found = sum(file.stat().st_size for file in folders[0].rglob("*") if file.suffix in (".safetensors", ".pt"))
    assert checkpoint == pytest.approx(found, rel=0.15)
    assert forecast.most_checkpoints(4, training) == len(folders) + 1, "the one that is being written"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_the_disk_that_checkpoints_of_deepspeed_take(recipe, launcher, zero: str) -> None:
    values = {**recipe, "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    done = launcher.together(values, zero)
    assert done.returncode == 0, done.said[-4000:]
    sizes, _, _ = look(values)
    training = arguments({**values, "deepspeed": str(REPOSITORY / "zero_configs" / f"{zero}.json"), "dry_run": True})[
        -1
    ]
    _, checkpoint = forecast.checkpoint_bytes(sizes, training, adapter=True)
    (folder,) = Path(values["output_dir"]).glob("checkpoint-*")
    found = sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in (".safetensors", ".pt"))
    assert checkpoint == pytest.approx(found, rel=0.35), "small files are mostly headers"


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in FAMILIES])
def test_every_family_has_a_forecast(name: str, recipe, tmp_path: Path) -> None:
    source = FAMILIES[name].save(tmp_path / "source")
    base = assemble(AssembleConfig(out=str(tmp_path / "base"), vlm=str(source), pose_head_hidden_size=16))
    told = "".join(dry_run.dry_run(*arguments({**recipe, "model": str(base), "bf16": True, "dry_run": True})))
    assert "memory on each GPU, GB" in told
    sizes, _, _ = look({**recipe, "model": str(base)})
    assert sizes.a_token > sizes.a_state > 0
    assert sizes.picture_flops > 0


def of_products(recipe: dict[str, Any], **options: Any) -> tuple[float, Sizes]:
    """The operations in the blocks for one sample of 40 tokens, without a picture or an answer."""
    sizes, _, _ = look({**recipe, **options})
    training = arguments({**recipe, **options})[-1]
    batch = Batch(samples=1, tokens=40, supervised=0, pictures=0, mean=40, longest=40)
    return forecast.flops(sizes, batch, training, tower_runs=False), sizes


def test_the_operations_are_those_that_a_hand_counts(recipe, other_base: Path) -> None:
    """Two blocks of width 32 and 48: four products of attention and three of the MLP, for 40 tokens."""
    recipe = {**recipe, "model": str(other_base)}
    weights = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    attention = 2 * 40 * (40 / 2) * 32 * 4  # scores and sums, half of them masked
    found, sizes = of_products(recipe, language="full")
    assert sizes.block_weights == weights
    assert found == 6 * weights * 40 + 3 * attention
    again, _ = of_products(recipe, language="full", activation_checkpointing=True)
    assert again == 8 * weights * 40 + 4 * attention
    adapters = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 48))  # of rank four
    found, _ = of_products(recipe, language="lora")
    assert found == 4 * weights * 40 + 6 * adapters * 40 + 3 * attention
    rows = sizes.vocabulary
    batch = Batch(samples=3, tokens=0, supervised=5, pictures=1, mean=0, longest=0)
    training = arguments({**recipe, "language": "lora"})[-1]
    logits = 3 * 5 * rows * 32 * 4
    assert forecast.flops(sizes, batch, training, tower_runs=False) == logits
    with_tower = forecast.flops(sizes, batch, training, tower_runs=True)
    assert with_tower == logits + 3 * sizes.picture_flops, "a frozen tower goes forward alone"
    # three blocks of the CLIP, 16 patches and a class token each, as far as the last but one
    tower = 2 * (2 * 17 * (4 * 16 * 16 + 2 * 16 * 24) + 2 * 2 * 17 * 17 * 16) + 2 * 16 * 3 * 64 * 16
    assert sizes.picture_flops == pytest.approx(tower, rel=0.6), (
        "and a third block, which transformers runs, and the connector"
    )


@pytest.mark.parametrize("language", ["full", "lora"])
def test_the_operations_are_those_that_torch_counts(recipe, other_base: Path, language: str) -> None:
    values = {**recipe, "model": str(other_base), "language": language, "tune_embeddings": False}
    expected, _sizes = of_products(values)
    model = load_full(other_base, dtype=torch.float32)
    choose_what_trains(model, arguments(values)[0])
    embeddings = torch.zeros(1, 40, 32, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.train().decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state.sum().backward()
    masked = 3 * 2 * 40 * 40 / 2 * 32 * 4  # which plain products compute as well
    assert counter.get_total_flops() == pytest.approx(expected + masked, rel=0.02)


def test_a_dry_run_needs_no_gpu_and_writes_nothing(recipe, launcher, tmp_path: Path, capsys) -> None:
    values = {name: value for name, value in recipe.items() if name != "use_cpu"}
    file = launcher.recipe_file({**values, "bf16": True, "deepspeed": str(REPOSITORY / "zero_configs" / "zero3.json")})
    before = set(tmp_path.rglob("*"))
    assert main(["--config", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert set(tmp_path.rglob("*")) == before
    for word in (
        "samples:",
        "tokens:",
        "trains:",
        "zero2.json",
        "zero3_offload.json",
        "disk:",
        "steps:",
        "TFLOP",
        "H100",
    ):
        assert word in said
    assert "fits from 1 GPU with no ZeRO" in said
    assert "nan" not in said


def test_what_is_shared_out_takes_less_on_each_gpu(recipe) -> None:
    values = {**recipe, "language": "full", "bf16": True}
    sizes, _, _ = look(values)
    training = arguments({**values, "dry_run": True})[-1]

    def held(way: forecast.Way, gpus: int) -> tuple[float, float]:
        return forecast.state_bytes(sizes, training, way, gpus)

    trains, frozen = sizes.trains.total(), sizes.frozen.total()
    assert held(DDP, 1) == (trains * 18 + frozen * 2, 0), "float32 four times, and copies in bfloat16"
    assert held(DDP, 8) == (trains * 22 + frozen * 2, 0), "and the buckets that are sent"
    assert held(ZERO2, 1) == held(ZERO3, 1) == (trains * 16 + frozen * 2, 0), "bfloat16 twice, and float32 three times"
    assert held(ZERO2, 8) == (trains * 2 + trains * 14 / 8 + frozen * 2, 0)
    assert held(ZERO2_OFFLOAD, 8) == (trains * 2 + frozen * 2, trains * 16 / 8)
    whole = (trains + frozen) * 2  # of a small model all weights may be gathered at once
    assert held(ZERO3, 8) == ((trains * 16 + frozen * 2) / 8 + whole, 0)
    assert held(ZERO3_OFFLOAD, 8) == (whole, (trains * 18 + frozen * 2) / 8)


@pytest.mark.parametrize("way", WAYS[1:], ids=lambda way: way.name)
def test_a_way_is_read_from_its_configuration(way: forecast.Way) -> None:
    assert forecast.way_of(str(REPOSITORY / "zero_configs" / way.name)) == way


def test_four_bits_are_an_eighth_of_float32(recipe) -> None:
    plain, quantized = (look({**recipe, "quantize": kind})[0] for kind in ("none", "nf4"))
    assert quantized.quantized > 0
    saved = plain.frozen_bytes - quantized.frozen_bytes
    assert saved == pytest.approx(quantized.quantized * (4 - 0.516), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"per_device_train_batch_size": 10**8},
            "a step takes .* GB on each of 8 GPUs, and the largest known here has 141",
        ),
        ({"quantize": "nf4", "deepspeed": "zero_configs/zero3.json"}, "--quantize nf4: ZeRO-3 cannot shard 4-bit"),
        ({"deepspeed": "zero_configs/zero9.json"}, "--deepspeed zero_configs/zero9.json: there is no such file"),
        ({"val_json": "/none"}, "--val-json: is for a run that evaluates"),
        ({"val_json": "/none", "eval_strategy": "steps"}, "/none: "),
        ({"max_length": 20}, "samples .* cannot be encoded"),
        ({"model": "/none"}, "/none: no LLaVA-pose processor there"),
        ({"data": "/none"}, "--data /none: there is no such folder"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_with_its_reason(recipe, options, reason, launcher, capsys, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["--config", str(launcher.recipe_file({**recipe, **options})), "--dry-run"]) == 2
    assert re.search(f"^error: .*{reason}", capsys.readouterr().err, re.M)


def test_a_disk_that_is_too_small_is_said_before_the_run(recipe, launcher, capsys, monkeypatch) -> None:
    monkeypatch.setattr(dry_run, "free_bytes", lambda _: 1000)
    assert main(["--config", str(launcher.recipe_file(recipe)), "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert "memory on each GPU, GB" in captured.out, "what is known is said first"
    assert f"error: --cache-dir {recipe['cache_dir']}: " in captured.err
    assert captured.err.rstrip().endswith("choose another disk, or --no-cache-features")


def given(recipe: dict[str, Any]) -> list[str]:
    names = ("model", "data", "train_json", "output_dir", "cache_dir")
    return [f"--{name.replace('_', '-')}={recipe[name]}" for name in names]


def test_there_are_recipes_for_the_models_that_people_have() -> None:
    assert set(LARGE) <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_a_recipe_is_read_with_every_option_as_it_stands(name: str, recipe, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    read = {}
    for part in parse_arguments(["--config", str(RECIPES / name), *given(recipe), "--dry-run"]):
        read |= {key: getattr(value, "value", value) for key, value in vars(part).items()}
    written = yaml.safe_load((RECIPES / name).read_text())
    assert {key: read[key] for key in written} == written


@pytest.mark.parametrize("name", LARGE)
def test_the_options_of_a_recipe_go_together(name: str, recipe, monkeypatch, capsys) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["--config", str(RECIPES / name), *given(recipe), "--dry-run"]) == 0, capsys.readouterr().err


def test_qlora_trains_with_checkpointing(recipe) -> None:
    run = run_training({**recipe, "quantize": "nf4", "activation_checkpointing": True, "max_steps": 1})
    assert json.loads((run / DONE_MARK).read_text())["steps"] == 1
