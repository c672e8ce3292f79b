"""The DeiT III converter, against the network written out by hand in the names of either publisher."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_deit3.py"
WIDTH, PATCH, GRID, LAYERS = 128, 8, 3, 2


def published(scale_name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    state = {
        "cls_token": normal(1, 1, WIDTH),
        "pos_embed": normal(1, GRID**2, WIDTH),
        "patch_embed.proj.weight": normal(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": normal(WIDTH),
        "norm.weight": 1 + normal(WIDTH),
        "norm.bias": normal(WIDTH),
        "head.weight": normal(10, WIDTH),
        "head.bias": normal(10),
    }
    for layer in range(LAYERS):
        for norm in ("norm1", "norm2"):
            state[f"blocks.{layer}.{norm}.weight"] = 1 + normal(WIDTH)
            state[f"blocks.{layer}.{norm}.bias"] = normal(WIDTH)
        for name, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            state[f"blocks.{layer}.{name}.weight"] = normal(rows, columns)
            state[f"blocks.{layer}.{name}.bias"] = normal(rows)
        for number in (1, 2):
            state[f"blocks.{layer}.{scale_name.format(number)}"] = 1 + normal(WIDTH)
    return state


def by_hand(state: dict[str, Tensor], scale_name: str, pixels: Tensor) -> Tensor:
    """DeiT III (Touvron et al., 2022): all tokens after the final norm."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    patches = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = patches.flatten(2).transpose(1, 2) + state["pos_embed"]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1)
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, WIDTH // 64, 64)).permute(2, 0, 3, 1, 4)
        attended = ((q * 64**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        attended = linear(attended.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + state[f"{block}.{scale_name.format(1)}"] * attended
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + state[f"{block}.{scale_name.format(2)}"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_deit3", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(("suffix", "scale_name"), [(".pth", "gamma_{}"), (".safetensors", "ls{}.gamma")])
def test_the_folder_is_the_network(script, suffix, scale_name, tmp_path):
    state = published(scale_name)
    weights = tmp_path / f"deit3{suffix}"
    if suffix == ".pth":
        torch.save({"model": state}, weights)
    else:
        save_file(state, weights)
    assert script.main(["--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    pixels = torch.randn(2, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = AutoModel.from_pretrained(tmp_path / "out").eval()(pixels).last_hidden_state
    torch.testing.assert_close(found, by_hand(state, scale_name, pixels), rtol=1e-4, atol=1e-4)


def test_another_file_is_refused(script, tmp_path, capsys):
    torch.save({"model": {"pos_embed": torch.zeros(1, 9, 8)}}, tmp_path / "other.pth")
    assert script.main(["--weights", str(tmp_path / "other.pth"), "--out", str(tmp_path / "out")]) == 2
    assert "not a DeiT III checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
