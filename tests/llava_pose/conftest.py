"""Two small bases, made as users make them, and a few generated pictures with their samples.

``base``: ConvNeXt with two feature layers, tied embeddings, Vicuna's template.
``other_base``: CLIP with merged patches, its own output layer, ChatML.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    ViTImageProcessor,
)

from data_prep.instruct.command import InstructConfig, instruct
from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.backbones.tiny import tiny_tokenizer
from llava_pose.data.records import ObjectRecord, Pose, write_records
from llava_pose.pose.geometry import TWO_PI
from llava_pose.train.arguments import DataArguments, ModelArguments
from llava_pose.train.command import train
from llava_pose.train.training_arguments import PoseTrainingArguments
from tests.forked import PATIENCE, REPOSITORY, Ended, free_port, run, run_together

SIDE = 48
# a car has a mirror plane, a guitar has none
CATEGORIES = ("car", "guitar", "chair", "airplane")
# what a run of a test is, unless the test says otherwise
RECIPE: dict[str, Any] = {
    "language": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


def save_language_model(folder: Path, tokenizer: PreTrainedTokenizerBase, *, tied: bool) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=-(-(len(tokenizer) + 2) // 64) * 64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,  # a small model at the usual 0.02 answers nearly the same to everything
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    vision = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 6, 8, 12], depths=[1, 1, 1, 1], image_size=64))
    vision.save_pretrained(folder / "vision")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "vision")
    language = save_language_model(folder / "language", tiny_tokenizer(folder / "tokenizer"), tied=True)
    return assemble(
        AssembleConfig(
            out=str(folder / "assembled"),
            vision=str(folder / "vision"),
            language=str(language),
            vision_layers="-2,-1",
            pose_head_hidden_size=24,
        )
    )


@pytest.fixture(scope="session")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other_base")
    torch.manual_seed(0)
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
    )
    vision.save_pretrained(folder / "vision")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "vision"
    )
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    language = save_language_model(folder / "language", tokenizer, tied=False)
    return assemble(
        AssembleConfig(
            out=str(folder / "assembled"),
            vision=str(folder / "vision"),
            language=str(language),
            vision_layers="-2",
            vision_merge=2,
            pose_head_hidden_size=24,
            rotation="svd9d",
        )
    )


@dataclass(frozen=True)
class TrainingData:
    """A prepared folder with a train split, and the samples that ``instruct`` makes of it."""

    prepared: Path
    train_json: Path

    @property
    def samples(self) -> list[dict[str, Any]]:
        return json.loads(self.train_json.read_text(encoding="utf-8"))

    def write(self, path: Path, samples: Sequence[Mapping[str, Any]]) -> Path:
        """These samples as a train.json of their own."""
        path.write_text(json.dumps(list(samples)), encoding="utf-8")
        return path


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    prepared = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    records = []
    for index in range(8):
        category = CATEGORIES[index % len(CATEGORIES)]
        record = ObjectRecord(
            file_name=f"{category}/{index:02d}_00.png",
            id=f"{category}/{index:02d}/0",
            category=category,
            pose=Pose(
                *(rng.uniform(0, TWO_PI), rng.uniform(-0.5, 1.0), rng.uniform(-0.3, 0.3)),
                *(rng.uniform(4, 8), rng.uniform(16, 32), rng.uniform(16, 32)),
            ),
            viewport=300.0,
            width=SIDE,
            height=SIDE,
            bbox=(8.0, 8.0, 40.0, 40.0),
        )
        path = prepared / "train" / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
        records.append(record)
    write_records(prepared, "train", records)
    train_json = prepared / "train.json"
    instruct(InstructConfig(data=str(prepared), out=str(train_json), questions_per_object=2, seed=0))
    return TrainingData(prepared, train_json)


def arguments(values: Mapping[str, Any]) -> tuple[ModelArguments, DataArguments, PoseTrainingArguments]:
    """The arguments of train.py, from the fields of a recipe."""
    kinds = (ModelArguments, DataArguments, PoseTrainingArguments)
    names = [{field.name for field in fields(kind)} for kind in kinds]
    assert values.keys() <= set().union(*names)
    filled = [
        kind(**{name: values[name] for name in values.keys() & known}) for kind, known in zip(kinds, names, strict=True)
    ]
    return tuple(filled)  # type: ignore[return-value]


def run_training(values: Mapping[str, Any]) -> Path:
    """What train.py does with a recipe; returns the folder of the run."""
    return train(*arguments(values))


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without the speed, which no two runs have alike."""
    return without_speed((Path(folder) / "metrics.jsonl").read_bytes())


def without_speed(metrics: bytes) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl without the speed."""
    lines = map(json.loads, metrics.splitlines())
    return [{name: value for name, value in line.items() if name != "samples_per_second"} for line in lines]


@pytest.fixture
def recipe(base: Path, training_data: TrainingData, tmp_path: Path) -> dict[str, Any]:
    """The options of a run in ``tmp_path / "run"``, for ``run_training(recipe)`` or a YAML file."""
    return {
        "model": str(base),
        "data": str(training_data.prepared),
        "train_json": str(training_data.train_json),
        "output_dir": str(tmp_path / "run"),
        "cache_dir": str(tmp_path / "features"),
        **RECIPE,
    }


class Launcher:
    """Starts a training in processes of its own."""

    def __init__(self, folder: Path):
        self._folder = folder

    def environment(self) -> dict[str, str]:
        # DeepSpeed compiles a kernel at its first start with the ninja beside this Python
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}

    def recipe_file(self, values: Mapping[str, Any]) -> Path:
        path = self._folder / f"recipe{len(list(self._folder.glob('recipe*.yaml')))}.yaml"
        path.write_text(json.dumps(dict(values)), encoding="utf-8")  # JSON is YAML
        return path

    def train(self, values: Mapping[str, Any], *, kill_at: str = "") -> Ended:
        """``llava-pose train``; with ``kill_at``, killed with -9 as it is about to write a file whose path ends so."""
        return run(self._words(values), self._log(), kill_at=kill_at)

    def together(self, values: Mapping[str, Any], zero: str | None = None, *, kill_at: str = "") -> Ended:
        """Two processes under DDP, or with a config of DeepSpeed; as a launcher starts them."""
        port = free_port()
        variables = {name: self.environment()[name] for name in ("PATH", "DS_ACCELERATOR")} | {"MASTER_PORT": port}
        done = run_together(self._words(values, zero), self._log(), kill_at=kill_at, environment=variables)
        free_shared_memory(port)  # a fork ends without what is done at exit
        return done

    def launched(self, values: Mapping[str, Any], zero: str | None = None) -> Ended:
        """Two processes by the real launcher: torchrun, or with a config of DeepSpeed its own; no shared memory is left."""
        port = free_port()
        if zero is None:
            launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
        else:
            launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"]
        with subprocess.Popen(
            [sys.executable, *launcher, "--master_port", port, "train.py", *self._words(values, zero)[1:]],
            cwd=REPOSITORY,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # a launcher and its workers
                output, _ = process.communicate()
                pytest.fail(f"did not end within ten minutes:\n{output[-4000:]}")
        assert free_shared_memory(port) == 0
        return Ended(process.returncode, output)

    def _words(self, values: Mapping[str, Any], zero: str | None = None) -> list[str]:
        config = [] if zero is None else ["--deepspeed", f"zero_configs/{zero}.json"]
        return ["train", "--config", str(self.recipe_file(values)), *config]

    def _log(self) -> Path:
        return self._folder / f"log{len(list(self._folder.glob('log*')))}"


def free_shared_memory(port: str) -> int:
    """Delete what DeepSpeed's processes of that port have left of their shared memory; return how many pieces it was."""
    left = list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"))
    for file in left:
        file.unlink()
    return len(left)


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)
