"""Hold the forecast of ``llava-pose train --dry-run`` against runs on this machine, one process and one thread each.

    python scripts/benchmarks/forecast.py [NAME …]                 # all figures go to scripts/benchmarks/forecast.json

Small models of several shapes, with random weights, train two steps in processes of their own. What is measured is the
growth of the memory that the system counts for the process, at its highest, with an allocator that gives back what is free;
the forecast is without what a GPU's own libraries take.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# large blocks go back to the system at once, so that what it counts is what is in use
SETTINGS["MALLOC_MMAP_THRESHOLD_"] = "65536"
LORA = {"language": "lora", "lora_r": 16, "lora_alpha": 32}
# name -> (width, blocks, side of a picture in patches, options)
SHAPES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "LoRA, 64 image tokens": (512, 8, 8, {**LORA, "per_device_train_batch_size": 16}),
    "LoRA, 256 image tokens": (512, 8, 16, {**LORA, "per_device_train_batch_size": 6}),
    "LoRA, 256, checkpointing": (
        512,
        8,
        16,
        {**LORA, "per_device_train_batch_size": 12, "activation_checkpointing": True},
    ),
    "full, 64 image tokens": (512, 8, 8, {"language": "full", "per_device_train_batch_size": 16}),
    "full and tower, 256": (384, 6, 16, {"language": "full", "tune_vision": True, "per_device_train_batch_size": 6}),
}


def make_data(folder: Path, side: int = 96) -> None:
    """Write a prepared folder of a few random pictures of so many pixels a side, and questions about them."""
    import numpy as np
    from PIL import Image

    from data_prep.instruct.command import InstructConfig, instruct
    from llava_pose.data.records import ObjectRecord, Pose, write_records

    rng = np.random.default_rng(0)
    records = []
    for index in range(48):
        record = ObjectRecord(
            file_name=f"car/{index:02d}_00.png",
            id=f"car/{index:02d}/0",
            category="car",
            pose=Pose(rng.uniform(0, 6.28), 0.3, 0.0, 5.0, side / 2, side / 2),
            viewport=300.0,
            width=side,
            height=side,
            bbox=(8.0, 8.0, side - 8.0, side - 8.0),
        )
        path = folder / "prepared" / "train" / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
        records.append(record)
    write_records(folder / "prepared", "train", records)
    instruct(InstructConfig(data=str(folder / "prepared"), out=str(folder / "train.json"), kinds=["pose", "joint"]))


def make_base(folder: Path, width: int, blocks: int, side: int) -> Path:
    """Assemble a base of this shape with random weights."""
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    from llava_pose.backbones.assemble import AssembleConfig, assemble
    from llava_pose.backbones.tiny import tiny_tokenizer

    torch.manual_seed(0)
    size = {"image_size": side * 14, "patch_size": 14}
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, **size
    )
    CLIPVisionModel(vision).save_pretrained(folder / "vision")
    pixels = {"height": side * 14, "width": side * 14}
    CLIPImageProcessor(size={"shortest_edge": side * 14}, crop_size=pixels).save_pretrained(folder / "vision")
    tokenizer = tiny_tokenizer(folder / "language")
    language = LlamaConfig(
        vocab_size=8192,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(language).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    parts = {"vision": str(folder / "vision"), "language": str(folder / "language"), "vision_layers": "-2"}
    return assemble(AssembleConfig(out=str(folder / "base"), **parts))


def status(name: str) -> float:
    """Return a line of this process's /proc status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith(f"{name}:"))


def measure(recipe: dict[str, Any]) -> dict[str, float]:
    """Forecast a run in this process, then do it."""
    from llava_pose.data.samples import read_samples
    from llava_pose.train import forecast
    from llava_pose.train.arguments import parse_arguments
    from llava_pose.train.command import train
    from llava_pose.train.dry_run import look

    words = [word for name, value in recipe.items() for word in _option(name, value)]
    model, data, training = parse_arguments(words)
    sizes, batch, _ = look(model, data, training, read_samples(data.train_json))
    states, _ = forecast.state_bytes(sizes, training, forecast.WAYS[0], 1)
    expected = states + forecast.activations(sizes, batch, training)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    train(model, data, training)
    return {"forecast_gb": expected / 1e9, "measured_gb": (status("VmHWM") - before) / 1e9}


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    return [option] if value is True else [f"--no-{option[2:]}"] if value is False else [option, str(value)]


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
        return
    file = Path(__file__).with_suffix(".json")
    figures = json.loads(file.read_text()) if file.exists() else {}
    for name in sys.argv[1:] or SHAPES:
        found = measured(name)
        figures[name] = {key: round(value, 3) for key, value in found.items()}
        off = found["forecast_gb"] / found["measured_gb"] - 1
        print(f"{name:28}{found['measured_gb']:>8.2f} GB{found['forecast_gb']:>8.2f} GB{off:>+7.1%}", flush=True)
        file.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def measured(name: str) -> dict[str, float]:
    """Return the memory of a run of a shape, in gigabytes, as it is forecast and as it is."""
    width, blocks, side, options = SHAPES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder)
        recipe = {"model": str(make_base(folder, width, blocks, side)), "data": str(folder / "prepared")}
        recipe |= {"train_json": str(folder / "train.json"), "output_dir": str(folder / "run"), **options}
        recipe |= {"max_steps": 2, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
        command = [sys.executable, __file__, "--measure", json.dumps(recipe)]
        done = subprocess.run(command, env={**os.environ, **SETTINGS}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
