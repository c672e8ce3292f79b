"""README.md of a checkpoint: what the folder itself says, for people and for the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from llava_pose.backbones.merge import MergeConfig, merge
from llava_pose.errors import InputError
from llava_pose.inference.pipeline import pipeline
from llava_pose.model.card import bases_of, learning_of, part_of, put_part, write_card
from llava_pose.model.configuration import LlavaPoseConfig
from tests.llava_pose.conftest import SIDE, run_training


def folder_of(path: Path, **changes: object) -> Path:
    """A folder with a pose_config.json alone."""
    path.mkdir()
    sizes = {"hidden_size": 8, "embedding_size": 8, "pooled_size": 8}
    LlavaPoseConfig(pose_token_id=4, image_token_id=3, **sizes, **changes).save(path)
    return path


def test_a_run_leaves_a_card_which_merging_carries_on(recipe, base: Path, tmp_path: Path):
    write_card(base, ["org/tower", "org/language"])  # as if its parts were of the hub
    folder = run_training({**recipe, "learning_rate": 5e-3})
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.base_model == ["org/tower", "org/language"]
    assert "llava-pose" in card.data.tags
    assert card.data.license is None
    taught = LlavaPoseConfig.load(folder)
    assert f"{len(taught.categories)} categories: {', '.join(taught.categories)}." in card.text
    assert f"Kinds of questions: {', '.join(taught.kinds)}." in card.text
    learning = part_of(folder, "learning")
    assert "learning_rate: 0.005" in learning
    assert "lora_r: 4" in learning
    assert "seed" not in learning  # its default
    assert str(tmp_path) not in card.text  # paths of this machine are nobody's business
    put_part(folder, "scores", "| better | than before |")
    merged = merge(MergeConfig(checkpoint=str(folder), out=str(tmp_path / "merged")))
    after = ModelCard.load(merged / "README.md")
    assert after.data.library_name == "transformers"
    assert after.data.base_model == card.data.base_model
    assert part_of(merged, "learning") == learning
    assert part_of(merged, "scores") == "| better | than before |"


def test_what_the_card_says_of_loading_loads(recipe, training_data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = run_training({**recipe, "max_steps": 1})
    [program] = [
        block for block in ModelCard.load(folder / "README.md").text.split("```") if block.startswith("python\n")
    ]
    assert program.splitlines()[2] == 'pipe = llava_pose.pipeline("run")'
    picture = next(training_data.prepared.glob("train/*/*.png"))
    (tmp_path / "picture.jpg").write_bytes(picture.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(program.removeprefix("python\n"), {})
    answer = pipeline("run")("picture.jpg", category="car")
    assert 0 <= answer.pose.px <= SIDE


def test_a_model_of_the_hub_is_its_own_base_and_a_folder_has_those_of_its_card(tmp_path: Path):
    assert bases_of("org/model") == ["org/model"]
    folder = folder_of(tmp_path / "base")
    assert bases_of(folder) == []
    write_card(folder, ["org/model"])
    assert bases_of(folder) == ["org/model"]
    # somebody else's card speaks of another model's base
    (folder / "README.md").write_text("---\nbase_model: org/other\n---\n# A model\n")
    assert bases_of(folder) == []


@pytest.mark.parametrize(
    "content",
    [
        b"---\n[\n---\n",
        b"\xff\xfe",
        b"---\ntags: llava-pose\n---\n",
        b"---\ntags: [llava-pose]\n---\n",
        b"",
        b"---\n&a [*a]\n---\n",
    ],
)
def test_a_card_that_is_none_of_ours_is_passed_by_and_not_written_into(tmp_path: Path, content: bytes):
    folder = folder_of(tmp_path / "run")
    (folder / "README.md").write_bytes(content)
    assert bases_of(folder) == []
    with pytest.raises(
        InputError, match=r"README.md: there is no model card with <!-- scores --> and <!-- /scores --> in it"
    ):
        put_part(folder, "scores", "| 1 |")
    assert (folder / "README.md").read_bytes() == content


def test_what_others_named_brings_no_markup_of_its_own(tmp_path: Path):
    folder = folder_of(tmp_path / "run", categories=["<!-- scores -->", "[a](b)\n# c"], kinds=["`pose`"])
    write_card(folder, [], name='a"b', learning=learning_of("x\n<!-- /learning -->", {"system": "```\n# a\u202e"}))
    text = (folder / "README.md").read_text()
    assert text.count("<!-- scores -->") == text.count("<!-- /learning -->") == 1
    assert "\n# c" not in text
    assert "\u202e" not in text
    assert part_of(folder, "scores").startswith("None yet")
    put_part(folder, "scores", r"\1 | two")
    assert part_of(folder, "scores") == r"\1 | two"
