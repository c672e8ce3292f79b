"""The recipes of the report's three tables run whole: their networks small and random, their schedules cut to a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    BitImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    DPTConfig,
    DPTForDepthEstimation,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from eval.benchmark.command import joint, linear_probing, open_vocabulary
from eval.report.table_kinds import published_rows
from eval.systems.system import KINDS
from llava_pose.backbones.assemble import AssembleConfig, assemble
from tests.conftest import REPOSITORY
from tests.eval.benchmark.test_task import CATEGORIES, NOVEL, QUICK, SIDE, make_prepared
from tests.llava_pose.vlm_families import FAMILIES

SHAPE = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 12}
VIT = {**SHAPE, "image_size": SIDE, "patch_size": 8}
PROBED = {
    "weights/deit3-base-384-21k": lambda: Dinov2Model(Dinov2Config(**VIT)),  # which convert_deit3.py makes of it
    "facebook/vit-mae-base": lambda: ViTMAEForPreTraining(
        ViTMAEConfig(
            **VIT,
            decoder_hidden_size=8,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=8,
        )
    ),
    "facebook/dino-vitb16": lambda: ViTModel(ViTConfig(**VIT)),
    "facebook/dinov2-base": lambda: Dinov2Model(Dinov2Config(**VIT)),
    "openai/clip-vit-base-patch16": lambda: CLIPVisionModel(CLIPVisionConfig(**VIT)),
    "Intel/dpt-large": lambda: DPTForDepthEstimation(
        DPTConfig(**VIT, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8)
    ),
}
TRUNKS = {
    "microsoft/resnet-50": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "microsoft/swin-tiny-patch4-window7-224": lambda: SwinModel(
        SwinConfig(image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    ),
}
# what a schedule is cut to, and what is made small, wherever a recipe says it
NETWORK = {"image_size": SIDE, "dataloader_num_workers": 0, **QUICK}
CUT: dict[str, dict[str, Any]] = {
    "classifier": NETWORK,
    "neural-mesh": {**NETWORK, "vertices": 60, "refine_steps": 2, "stride": 4},
    "llava-pose": {},
    "trained-classifier": {},
}


def saved(folder: Path, models: dict[str, Any]) -> dict[str, str]:
    """Write each model with an image processor; return its name in the recipes -> its folder."""
    torch.manual_seed(0)
    for number, (name, make) in enumerate(models.items()):
        make().save_pretrained(folder / str(number))
        if name == "facebook/dinov2-base":
            crop = {"height": SIDE, "width": SIDE}
            processor: Any = BitImageProcessor(size={"shortest_edge": SIDE * 256 // 224}, crop_size=crop)
        else:
            processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
        processor.save_pretrained(folder / str(number))
    return {name: str(folder / str(number)) for number, name in enumerate(models)}


def recipe(name: str, folder: Path, names: dict[str, str]) -> tuple[dict[str, Any], Path]:
    """A copy of a recipe with other names for its weights; what it holds, and where it goes."""
    text = (REPOSITORY / "scripts" / "recipes" / f"{name}.yaml").read_text()
    for old, new in names.items():
        text = text.replace(old, new)
    return yaml.safe_load(text), folder / "recipe.yaml"


def words(path: Path, prepared: Path) -> list[str]:
    return ["--config", str(path), "--data", str(prepared), "--output-dir", str(path.parent / "out")]


@pytest.mark.parametrize("name", ["table1", "table1_ours"])
def test_the_recipes_of_table_1_probe_every_published_backbone(name: str, tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path / "prepared", train=4)
    values, path = recipe(name, tmp_path, saved(tmp_path / "weights", PROBED))
    path.write_text(yaml.safe_dump({**values, "epochs": 1}))
    assert linear_probing(words(path, prepared)) == 0
    table = json.loads((tmp_path / "out" / "table1.json").read_text())
    assert set(table["systems"]) == set(published_rows(1)["rows"])
    assert all(system["test_selected"] for system in table["systems"].values())
    settings = yaml.safe_load((tmp_path / "out" / "MAE-ViT-B-16" / "linear_probe.yaml").read_text())
    published = {"center_crop": True, "final_norm": False, "mae_mask": 0.75, "random_flip": True}
    assert {key: settings[key] for key in published} == published or name == "table1_ours"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table2", "table2_ours", "table3", "table3_ours"])
def test_the_recipes_of_tables_2_and_3_train_and_compare_every_system(name: str, tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path / "prepared", train=4)
    names = saved(tmp_path / "weights", TRUNKS)
    vlm = FAMILIES["llava"].save(tmp_path / "llava")
    names["bases/llava-1.5-7b"] = str(assemble(AssembleConfig(out=str(tmp_path / "base"), vlm=str(vlm))))
    for category in CATEGORIES:
        folder = tmp_path / "cad" / category
        folder.mkdir(parents=True)
        (folder / "01.off").write_text("OFF\n3 1 0\n-0.2 -0.4 -0.2\n0.2 0.4 0.2\n0 0 0\n3 0 1 2\n")
    names["imagenet3d/imagenet3d_v1/CAD"] = str(tmp_path / "cad")
    values, path = recipe(name, tmp_path, names)
    for system in values["systems"]:
        options = system.setdefault("options", {})
        options |= CUT[system["kind"]]
        if "train" in options:
            options["train"] |= QUICK
    assert {system["kind"] for system in values["systems"]} <= set(KINDS)
    path.write_text(yaml.safe_dump(values))
    assert (open_vocabulary if "table2" in name else joint)(words(path, prepared)) == 0
    table = json.loads((tmp_path / "out" / f"table{values['table']}.json").read_text())
    assert set(table["systems"]) == {system["title"] for system in values["systems"]}
    assert set(published_rows(values["table"])["rows"]) <= set(table["systems"])
    assert all(("known" in system) == (name == "table2_ours") for system in table["systems"].values())
    assert table["n_categories"] == len(NOVEL if "table2" in name else CATEGORIES)
