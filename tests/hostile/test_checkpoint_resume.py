"""A damaged checkpoint-N that is marked whole is passed over for the one before; a hostile one runs nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_pose.cli import main
from llava_pose.train.checkpoints import COMPLETE_MARK, damage_of, last_complete_checkpoint
from llava_pose.train.run_folder import DONE_MARK
from llava_pose.utils.files import sync_folder
from tests.llava_pose.conftest import RECIPE, TrainingData, base, read_log, run_training, training_data  # noqa: F401 (fixtures)

Change = Callable[[Path, Path], Any]
WEIGHTS = "adapter_model.safetensors"


class Hostile:
    """A pickle of it writes a file when it is read."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.canary, "ran")


@pytest.fixture(scope="module")
def ended(
    base: Path,  # noqa: F811
    training_data: TrainingData,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Path]:
    """The recipe of a run of four steps with whole checkpoints after the second and the last, and its folder. Read only."""
    root = tmp_path_factory.mktemp("ended")
    recipe = {
        **RECIPE,
        "model": str(base),
        "data": str(training_data.prepared),
        "train_json": str(training_data.train_json),
        "cache_dir": str(root / "features"),
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    return recipe, run_training({**recipe, "output_dir": str(root / "run")})


@pytest.fixture
def stopped(ended: tuple[dict[str, Any], Path], tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """As it was before its end was marked: what is done next goes on from checkpoint-4, or from the one before."""
    recipe, folder = ended
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    (run / DONE_MARK).unlink()
    (run / WEIGHTS).unlink()
    return {**recipe, "output_dir": str(run)}, run


def state_of(**changes: Any) -> Change:
    def change(folder: Path, canary: Path) -> None:
        file = folder / "trainer_state.json"
        same_size(file, json.dumps({**json.loads(file.read_text()), **changes}).encode())

    return change


def same_size(file: Path, content: bytes) -> None:
    """Written, and the mark with it: what an attacker would do."""
    file.write_bytes(content)
    mark = file.parents[len(file.relative_to(next(p for p in file.parents if (p / COMPLETE_MARK).exists())).parts) - 1]
    values = json.loads((mark / COMPLETE_MARK).read_text())
    values["files"][file.relative_to(mark).as_posix()] = len(content)
    (mark / COMPLETE_MARK).write_text(json.dumps(values))


def hostile(name: str) -> Change:
    def change(folder: Path, canary: Path) -> None:
        torch.save({"state": Hostile(canary)}, folder / "hostile")
        content = (folder / "hostile").read_bytes()
        (folder / "hostile").unlink()
        (folder / name).parent.mkdir(exist_ok=True)
        same_size(folder / name, content)

    return change


def states(name: str, change: Callable[[Any], Any]) -> Change:
    """A change of the states that a file holds."""

    def changed(folder: Path, canary: Path) -> None:
        values = torch.load(folder / name, weights_only=True)
        change(values)
        torch.save(values, folder / "changed")
        content = (folder / "changed").read_bytes()
        (folder / "changed").unlink()
        same_size(folder / name, content)

    return changed


def averages(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    """A change of every mean of gradients."""
    return lambda values: [state.update(exp_avg=make(state["exp_avg"])) for state in values["state"].values()]


DAMAGES: dict[str, Change] = {
    "weights cut off": lambda f, _: os.truncate(f / WEIGHTS, 5000),
    "weights empty": lambda f, _: os.truncate(f / WEIGHTS, 0),
    "weights not there": lambda f, _: (f / WEIGHTS).unlink(),
    "weights of zeros": lambda f, _: same_size(f / WEIGHTS, bytes((f / WEIGHTS).stat().st_size)),
    "weights a pickle": lambda f, c: same_size(f / WEIGHTS, pickle.dumps(Hostile(c))),
    "optimizer cut off": lambda f, _: os.truncate(f / "optimizer.pt", 5000),
    "optimizer of zeros": lambda f, _: same_size(f / "optimizer.pt", bytes(5000)),
    "optimizer not there": lambda f, _: (f / "optimizer.pt").unlink(),
    "scheduler empty": lambda f, _: os.truncate(f / "scheduler.pt", 0),
    "random states cut off": lambda f, _: os.truncate(f / "rng_state.pth", 100),
    "state not there": lambda f, _: (f / "trainer_state.json").unlink(),
    "state no JSON": lambda f, _: same_size(f / "trainer_state.json", b"{"),
    "state a list": lambda f, _: same_size(f / "trainer_state.json", b"[]"),
    "state of another step": state_of(global_step=10**9),
    "state of a step in words": state_of(global_step="four"),
    "log in words": state_of(log_history="x"),
    "entries of the log in words": state_of(log_history=["x"]),
    "logs every x steps": state_of(logging_steps="x"),
    "steps in words": state_of(max_steps="x"),
    "averages of one number for all": states("optimizer.pt", averages(lambda t: torch.zeros(1).expand(2 * 10**9))),
    "averages that overlap": states(
        "optimizer.pt", averages(lambda t: torch.zeros(t.numel() + 1).as_strided((2, t.numel()), (1, 1)))
    ),
    "averages that are no numbers": states("optimizer.pt", averages(lambda t: t * float("nan"))),
    "mark a list": lambda f, _: (f / COMPLETE_MARK).write_text("[]"),
    "mark of other files": lambda f, _: (f / COMPLETE_MARK).write_text('{"files": {"../x": 7}}'),
    "mark of a list of files": lambda f, _: (f / COMPLETE_MARK).write_text('{"files": [1]}'),
    "hostile optimizer": hostile("optimizer.pt"),
    "hostile scheduler": hostile("scheduler.pt"),
    "hostile random states": hostile("rng_state.pth"),
    "hostile scaler": hostile("scaler.pt"),
    "hostile pickled weights": hostile("pytorch_model.bin"),
    "hostile states of DeepSpeed": hostile("global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    "a plain pickle": lambda f, c: same_size(f / "optimizer.pt", pickle.dumps(Hostile(c))),
    "states of DeepSpeed elsewhere": lambda f, _: same_size(f / "latest", b"../../elsewhere"),
}


@pytest.mark.parametrize("damage", [pytest.param(d, id=name) for name, d in DAMAGES.items()])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: Change, stopped: tuple[dict[str, Any], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, run = stopped
    damage(run / "checkpoint-4", tmp_path / "canary")
    assert last_complete_checkpoint(run) == run / "checkpoint-2"
    assert f"{run}/checkpoint-4: is damaged (" in caplog.text
    assert "set aside as damaged-checkpoint-4" in caplog.text
    assert (run / "damaged-checkpoint-4").is_dir()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("damage", ["weights cut off", "hostile optimizer"])
def test_the_run_goes_on_and_ends_as_an_undisturbed_one(
    damage: str, stopped: tuple[dict[str, Any], Path], ended: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    recipe, run = stopped
    DAMAGES[damage](run / "checkpoint-4", tmp_path / "canary")
    run_training(recipe)
    weights, expected = load_file(run / WEIGHTS), load_file(ended[1] / WEIGHTS)
    assert weights.keys() == expected.keys()
    assert [key for key, value in weights.items() if not torch.equal(value, expected[key])] == []
    assert read_log(run) == read_log(ended[1])
    assert last_complete_checkpoint(run) == run / "checkpoint-4"
    assert not (tmp_path / "canary").exists()


def test_a_run_without_a_whole_checkpoint_says_so_and_starts_over(
    stopped: tuple[dict[str, Any], Path], ended: tuple[dict[str, Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    recipe, run = stopped
    for step in (2, 4):
        os.truncate(run / f"checkpoint-{step}" / WEIGHTS, 100)
    run_training(recipe)
    assert f"{run}: no checkpoint in it is whole; the run starts over" in caplog.text
    assert read_log(run) == read_log(ended[1])


MISFITS: dict[str, Change] = {
    "no state": states("optimizer.pt", lambda v: (v["state"].clear(), v["param_groups"].clear())),
    "a list": states("optimizer.pt", lambda v: (v.clear(), v.update(state=[], param_groups=[]))),
    "averages of three numbers": states("optimizer.pt", averages(lambda t: torch.zeros(3))),
    "averages of whole numbers": states("optimizer.pt", averages(lambda t: torch.zeros(t.shape, dtype=torch.int64))),
    "averages that are no tensors": states("optimizer.pt", averages(lambda t: 5)),
    "no averages": states("optimizer.pt", lambda v: [state.pop("exp_avg") for state in v["state"].values()]),
    "steps of many numbers": states(
        "optimizer.pt", lambda v: [s.update(step=torch.zeros(9)) for s in v["state"].values()]
    ),
    "a weight that is not there": states("optimizer.pt", lambda v: v["state"].update({10**6: v["state"][0]})),
    "learning rate in words": states("optimizer.pt", lambda v: v["param_groups"][0].update(lr="x")),
    "one beta": states("optimizer.pt", lambda v: v["param_groups"][0].update(betas=(5,))),
    "last epoch in words": states("scheduler.pt", lambda v: v.update(last_epoch="x")),
    "a step that is no function": states("scheduler.pt", lambda v: v.update(step="x")),
}


QUICK = ("no state", "averages of three numbers", "last epoch in words")


@pytest.mark.parametrize(
    "misfit", [pytest.param(m, id=n, marks=() if n in QUICK else pytest.mark.slow) for n, m in MISFITS.items()]
)
def test_states_of_another_model_are_a_sentence(
    misfit: Change, stopped: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They can be read, and are of no use: only the model tells that."""
    recipe, run = stopped
    misfit(run / "checkpoint-4", tmp_path / "canary")
    assert ended_with(recipe, tmp_path, capsys, 2).startswith(
        f"error: {run}/checkpoint-4: cannot be gone on from; delete it, and the run goes on from the one before"
    )


def ended_with(recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Start the run again; return the last line that it says."""
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    assert main(["train", "--config", str(file)]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_log_that_is_no_file_is_a_sentence(
    make: Callable[[Path], None],
    stopped: tuple[dict[str, Any], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, run = stopped
    (run / "metrics.jsonl").unlink()
    make(run / "metrics.jsonl")
    assert ended_with(recipe, tmp_path, capsys, 2).startswith(f"error: {run}/metrics.jsonl: is no regular file")


@pytest.mark.parametrize("line", ["{}", '{"step": "x"}', '{"step": null, "loss": 1}', "[1]", "[" * 100_000])
def test_a_log_of_other_lines_is_a_sentence(
    line: str, stopped: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = stopped
    with (run / "metrics.jsonl").open("a") as log:
        log.write(f"{line}\n")
    assert ended_with(recipe, tmp_path, capsys, 2).startswith(f"error: {run}/metrics.jsonl:")


def test_a_base_that_has_changed_is_a_sentence(
    stopped: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In place: its name is the same, and the adapter would go on on other weights than it was begun on."""
    recipe, run = stopped
    changed = Path(shutil.copytree(recipe["model"], tmp_path / "base"))
    settings = run / "train.yaml"
    settings.write_text(settings.read_text().replace(recipe["model"], str(changed)))
    recipe = {**recipe, "model": str(changed)}
    weights = load_file(changed / "model.safetensors")
    save_file({name: w * 0.5 for name, w in weights.items()}, changed / "model.safetensors", metadata={"format": "pt"})
    said = ended_with(recipe, tmp_path, capsys, 2)
    assert said.startswith(f"error: {run}: its run was begun when {changed} held other weights")
    assert "--no-resume" in said


def test_every_file_of_a_checkpoint_is_on_the_disk_before_the_mark(
    ended: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by what the run asks of the system: a file that is not synced may be empty after the power has failed."""
    synced: list[str] = []
    marked: dict[str, set[str]] = {}
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def note_mark(source: Any, target: Any, **kwargs: Any) -> None:
        if Path(target).name in (COMPLETE_MARK, DONE_MARK):
            marked[str(target)] = set(synced)
        replace(source, target, **kwargs)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_mark)
    run = run_training({**ended[0], "output_dir": str(tmp_path / "run"), "max_steps": 2})
    folder = run / "checkpoint-2"
    for mark, written in ((folder / COMPLETE_MARK, folder), (run / DONE_MARK, run)):
        files = {str(path) for path in written.iterdir() if path.is_file() and not path.name.endswith("_MARK")}
        unsynced = files - {str(mark)} - marked[str(mark)]
        assert {Path(path).name for path in unsynced} <= {".lock"}


def marked(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / COMPLETE_MARK).write_text('{"step": 7, "files": {}}')
    return folder


@pytest.mark.parametrize("kind", ["a linked folder", "a linked file", "a FIFO", "a FIFO of weights"])
def test_a_checkpoint_that_holds_more_than_files_is_damaged(kind: str, tmp_path: Path) -> None:
    checkpoint = marked(tmp_path / "checkpoint-7")
    (tmp_path / "elsewhere").mkdir()
    if kind.startswith("a FIFO"):
        os.mkfifo(checkpoint / ("model.safetensors" if "weights" in kind else "latest"))
    else:
        (checkpoint / "global_step7").symlink_to(tmp_path / ("elsewhere" if "folder" in kind else "nothing"))
    assert "is no regular file" in (damage_of(checkpoint, 7) or "")


@pytest.mark.parametrize("name", ["checkpoint-best-7", "checkpoint-\u00b2", "checkpoint-7-copy"])
def test_a_folder_that_a_user_put_beside_the_checkpoints_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert last_complete_checkpoint(tmp_path) is None
    assert (tmp_path / name).is_dir()


def test_a_link_in_the_place_of_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").symlink_to(tmp_path / "nothing")
    assert last_complete_checkpoint(tmp_path) is None


def test_links_and_pipes_do_not_stop_what_is_forced_to_disk(tmp_path: Path) -> None:
    (tmp_path / ".#metrics.jsonl").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    sync_folder(tmp_path)
