"""Every field of transformers' TrainingArguments is honoured, refused before anything is loaded, or proved harmless."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SchedulerType

from llava_pose.errors import InputError
from llava_pose.train.arguments import RunOptions
from llava_pose.train.command import main
from llava_pose.train.training_arguments import EVALUATION, REFUSED, PoseTrainingArguments, RunArguments
from tests.llava_pose.conftest import REPOSITORY, read_log, run_training

TESTS = Path(__file__).resolve().parents[2]
# field -> the test that holds it, here or in another file of this folder (or of tests/eval)
HONOURED = {
    **dict.fromkeys(("output_dir", "max_steps", "logging_steps"), "test_the_command_line_wins_over_the_recipe"),
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "train_sampling_strategy"),
        "test_a_batch_of_eight_is_eight_batches_of_one",
    ),
    **dict.fromkeys(("num_train_epochs", "lr_scheduler_type", "warmup_steps"), "test_the_published_schedule"),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
        "test_the_optimizer_has_what_the_arguments_say",
    ),
    **dict.fromkeys(
        ("optim_args", "lr_scheduler_kwargs"), "test_optimizer_and_schedule_are_tried_before_a_model_is_loaded"
    ),
    **dict.fromkeys(("bf16", "fp16", "report_to"), "test_what_makes_no_sense_is_one_sentence"),
    **dict.fromkeys(("activation_checkpointing", "deepspeed"), "test_two_processes_end_where_one_ends"),
    **dict.fromkeys(
        ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "tf32", "log_level", "log_level_replica"),
        "test_what_the_trainer_would_refuse_later_is_refused_now",
    ),
    **dict.fromkeys(
        ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        "test_what_the_trainer_would_refuse_later_is_refused_now",
    ),
    **dict.fromkeys(("seed", "data_seed", "max_grad_norm"), "test_what_changes_a_run_changes_it"),
    "gradient_checkpointing": "test_harmless_options_leave_the_losses_as_they_are",
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit"), "test_torn_checkpoints_are_passed_over"),
    **dict.fromkeys(("logging_strategy", "logging_first_step"), "test_the_log_has_the_lines_that_are_asked_for"),
    "enable_jit_checkpoint": "test_a_run_that_gets_a_signal_goes_on_where_it_was",
    "dataloader_drop_last": "test_a_run_that_took_no_step_is_an_error",
    "dataloader_num_workers": "test_what_does_not_touch_the_weights_may_change",
    "remove_unused_columns": "test_what_makes_no_sense_is_one_sentence",
    "use_cpu": "test_a_process_leaves_the_others_before_it_ends",
    "local_rank": "test_two_processes_end_where_one_ends",
    **dict.fromkeys(("eval_strategy", "eval_steps", "eval_delay"), "test_a_run_evaluates_when_it_is_asked_to"),
    "per_device_eval_batch_size": "test_the_batch_of_an_evaluation_changes_no_figure",
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model"),
        "test_the_best_checkpoint_is_kept_and_its_weights_are_the_end",
    ),
    "ddp_backend": "test_two_processes_remember_and_learn_what_one_does",
    "ddp_find_unused_parameters": "test_two_processes_end_where_one_ends",
}
# field -> a value that is not the default; a run with all of them has the same losses
HARMLESS: dict[str, Any] = {
    "torch_empty_cache_steps": 1,
    "log_on_each_node": False,
    "logging_nan_inf_filter": False,
    "include_num_input_tokens_seen": "all",
    "disable_tqdm": False,
    "run_name": "a name",
    "project": "a project",
    "full_determinism": False,  # asks for settings of CUDA; on a CPU there is nothing to set
    "skip_memory_metrics": False,
    "dataloader_pin_memory": False,
    "ddp_bucket_cap_mb": 1,
    "ddp_broadcast_buffers": True,
    "ddp_timeout": 60,
}
# a value of each field that is refused, where neither True nor a word will do
REFUSED_VALUES: dict[str, Any] = {
    "average_tokens_across_devices": False,
    "dataloader_in_order": False,
    "eval_do_concat_batches": False,
    "label_smoothing_factor": 0.1,
    "hub_strategy": "end",
    "neftune_noise_alpha": 5.0,
    "eval_accumulation_steps": 3,
    **{name: ["labels"] for name in ("include_for_metrics", "label_names")},
    **{name: {"split_batches": True} for name in ("accelerator_config", "fsdp_config", "liger_kernel_config")},
    **dict.fromkeys(("fsdp", "debug", "length_column_name", "optim_target_modules"), "other"),
}


def of(**values: Any) -> PoseTrainingArguments:
    return PoseTrainingArguments(**{"output_dir": "run", "use_cpu": True, **values})


# The table


def test_every_field_has_its_place() -> None:
    """Fails when transformers gains a field: find out what it does here, and put it where it belongs."""
    places = [set(REFUSED), set(HONOURED), set(HARMLESS)]
    everything = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert everything - set().union(*places) == set(), "has no place yet"
    assert set().union(*places) - everything == set(), "is no field of this transformers"
    assert sum(map(len, places)) == len(everything), "has two places"


def test_the_tests_of_the_table_are_there() -> None:
    files = [*TESTS.glob("llava_pose/**/test_*.py"), *TESTS.glob("eval/**/test_*.py")]
    there = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.M)}
    assert set(HONOURED.values()) - there == set()


def refused_value(name: str) -> Any:
    default = next(field.default for field in dataclasses.fields(TrainingArguments) if field.name == name)
    return REFUSED_VALUES.get(name, True if isinstance(default, bool) else "other")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_is_refused_with_its_reason(name: str) -> None:
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(InputError) as caught:
        of(**{name: refused_value(name)})
    message = str(caught.value)
    assert message.startswith(option)
    assert message.endswith(f"{REFUSED[name]}; leave it out") or message.startswith(f"{option}: must be")
    assert "\n" not in message


@pytest.mark.parametrize("name", EVALUATION)
def test_runs_of_other_kinds_evaluate_nothing(name: str) -> None:
    value = {"eval_strategy": "epoch", "metric_for_best_model": "loss", "load_best_model_at_end": True}.get(name, 3)
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} .*: a run of this kind evaluates nothing"):
        RunArguments(output_dir="run", use_cpu=True, **{name: value})


def test_refused_options_end_the_command_before_a_model_is_loaded(recipe, launcher, capsys) -> None:
    file = launcher.recipe_file({**recipe, "model": "/none"})
    assert main(["--config", str(file), "--resume-from-checkpoint", "checkpoint-2"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --resume-from-checkpoint checkpoint-2: a run goes on from its last whole checkpoint")
    assert not Path(recipe["output_dir"]).exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"save_strategy": "best"}, "--save-strategy best: a run that was killed would go back to its best step"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            "--lr-scheduler-type reduce_lr_on_plateau: its rates would hang on a sample",
        ),
        ({"dataloader_persistent_workers": True}, "persistent_workers"),
        ({"dataloader_prefetch_factor": 2}, "prefetch_factor"),
        ({"dataloader_multiprocessing_context": "spawn"}, "multiprocessing_context"),
        ({"activation_checkpointing_kwargs": {"determinism_check": "x"}}, "takes use_reentrant alone"),
        ({"gradient_checkpointing_kwargs": '{"foo": 1}'}, "takes use_reentrant alone"),
        ({"tf32": True}, "tf32"),
        ({"log_level": "loud"}, "loud"),
        (
            {"optim": "sgd", "optim_args": "momentum=0.9,no_such=1"},
            "--optim-args no_such: has no effect on --optim sgd",
        ),
        ({"log_level_replica": "loud"}, "loud"),
        ({"torch_empty_cache_steps": 0}, "torch_empty_cache_steps"),
        ({"deepspeed": "zero_configs/zero4.json"}, "there is no such file; did you mean zero_configs/zero3.json?"),
    ],
)
def test_what_the_trainer_would_refuse_later_is_refused_now(options, match, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match=re.escape(match)) as caught:
        of(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"lr_scheduler_type": "warmup_stable_decay"},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"no_such": 1}},
        {"lr_scheduler_type": "no_such"},
        {"optim": "no_such"},
        {"adam_beta1": 1.5},
        {"optim": "galore_adamw"},
        {"optim": "lomo"},
    ],
    ids=str,
)
def test_optimizer_and_schedule_are_tried_before_a_model_is_loaded(options) -> None:
    with pytest.raises(InputError, match=r"^the training options: ") as caught:
        of(**options)
    assert "\n" not in str(caught.value)


def test_schedules_are_taken_where_they_need_nothing_more() -> None:
    needing = {
        "reduce_lr_on_plateau",
        "greedy",
        "warmup_stable_decay",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
    }
    for kind in SchedulerType:
        if kind.value not in needing:
            of(lr_scheduler_type=kind.value)


def test_refused_options_are_not_shown(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help-all"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    for name in (*REFUSED, "remove_unused_columns", "local_rank"):
        assert f"--{name.replace('_', '-')} " not in shown
    assert "--activation-checkpointing " in shown
    assert shown.index("--lora-r") < shown.index("--adam-beta1")


def test_help_is_there_without_torch() -> None:
    program = (
        "import sys\nfrom llava_pose.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "sys.exit(' '.join({'torch', 'transformers', 'accelerate'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for field in dataclasses.fields(RunOptions):
        assert f"--{field.name.replace('_', '-')} " in done.stdout
    assert done.stdout.endswith("is not refused is taken too; --help-all shows them.\n")


def test_both_kinds_of_arguments_have_one_default_each() -> None:
    light = {field.name: field.default for field in dataclasses.fields(RunOptions)}
    whole = {field.name: field.default for field in dataclasses.fields(RunArguments)}
    assert {name: whole[name] for name in light} == light


# What is honoured, and what is harmless


def test_the_optimizer_has_what_the_arguments_say(tmp_path: Path) -> None:
    values = {"learning_rate": 0.5, "weight_decay": 0.25, "adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": 0.1}
    model = torch.nn.Linear(2, 2)
    (group, undecayed) = (
        Trainer(model=model, args=of(**values, output_dir=str(tmp_path))).create_optimizer().param_groups
    )
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (0.5, 0.25, (0.5, 0.6), 0.1)
    assert undecayed["weight_decay"] == 0.0


def losses(values: dict[str, Any], folder: Path, **changes: Any) -> list[float]:
    run_training({**values, **changes, "output_dir": str(folder)})
    return [line["loss"] for line in read_log(folder)]


def test_harmless_options_leave_the_losses_as_they_are(recipe, tmp_path: Path) -> None:
    expected = losses(recipe, tmp_path / "plain")
    assert losses({**recipe, **HARMLESS}, tmp_path / "harmless") == expected
    again = losses(recipe, tmp_path / "checkpointing", gradient_checkpointing=True)
    assert again == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"data_seed": 7}, {"max_grad_norm": 1e-3, "optim": "sgd"}], ids=str)
def test_what_changes_a_run_changes_it(recipe, tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = {"optim": changes["optim"]} if "optim" in changes else {}
    assert losses({**recipe, **plain}, tmp_path / "plain") != losses(recipe, tmp_path / "changed", **changes)


def test_the_log_has_the_lines_that_are_asked_for(recipe, tmp_path: Path) -> None:
    run_training({**recipe, "logging_steps": 3, "logging_first_step": True})
    assert [line["step"] for line in read_log(recipe["output_dir"])] == [1, 3]
    run_training({**recipe, "logging_strategy": "no", "output_dir": str(tmp_path / "silent")})
    assert not (tmp_path / "silent" / "metrics.jsonl").exists()
