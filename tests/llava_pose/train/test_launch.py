"""scripts/launch/: what the launchers refuse, and real runs of theirs with two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import REPOSITORY, free_port
from tests.llava_pose.conftest import Launcher, run_training

LAUNCHERS = sorted((REPOSITORY / "scripts" / "launch").glob("*.sh"))


def start(name: str, launcher: Launcher, *words: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(REPOSITORY / "scripts" / "launch" / name), *words],
        cwd=launcher.recipe_file({}).parent,  # from any folder
        env={**launcher.environment(), "MASTER_PORT": free_port(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, output


def assert_same_weights(folder: Path, expected: Path) -> None:
    weights, others = (load_file(path / "adapter_model.safetensors") for path in (folder, expected))
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        torch.testing.assert_close(value, others[key], rtol=1e-3, atol=1e-4, msg=key)


def programs(folder: Path, **scripts: str) -> Path:
    """Write shell scripts under the names of programs, and return the folder to look in before others."""
    (folder / "bin").mkdir()
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder / "bin"


@pytest.fixture
def two_step_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    return {**recipe, "max_steps": 2, "train_sampling_strategy": "sequential"}


JOINED_BY = {
    "join_processes": "from llava_pose.utils.distributed import join_processes; join_processes()",
    "a recipe": "from llava_pose.train.training_arguments import RunArguments; RunArguments(output_dir='run', use_cpu=True)",
}


@pytest.mark.parametrize("joined_by", ["join_processes", pytest.param("a recipe", marks=pytest.mark.slow)])
def test_a_process_leaves_the_others_before_it_ends(joined_by: str, launcher: Launcher, tmp_path: Path):
    """What is asked for first at exit is done last."""
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, torch.distributed as dist\n"
        # in one write: torchrun's processes are unbuffered, and a line's end written after it may come after the other's line
        "say = lambda: print('still there\\n' if dist.is_initialized() else 'left\\n', end='')\n"
        "atexit.register(say)\n"
        f"{JOINED_BY[joined_by]}\n"
        "assert dist.get_world_size() == 2\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    environment = {**launcher.environment(), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*command, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line in ("left", "still there")] == ["left", "left"]


def alone(values: Mapping[str, Any], folder: Path) -> Path:
    """One process with the samples that two have in each step."""
    return run_training({**values, "output_dir": str(folder), "gradient_accumulation_steps": 2})


def test_there_are_five():
    names = ["hostfile.sh", "multi_gpu.sh", "multi_node.sh", "single_gpu.sh", "slurm.sh"]
    assert [path.name for path in LAUNCHERS] == names


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda path: path.name)
def test_a_launcher_is_executable_and_says_how_it_is_used(script: Path):
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert "set -euo pipefail" in script.read_text()
    done = subprocess.run([str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
    assert f"scripts/launch/{script.name} RECIPE.yaml" in done.stderr


def test_a_config_of_zero_that_is_not_there_is_named(launcher):
    code, output = finish(start("multi_gpu.sh", launcher, "r.yaml", PROCESSES="2", ZERO="zero9"))
    assert (code, output) == (2, "error: ZERO=zero9: there is no zero_configs/zero9.json\n")
    node = {"NODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    code, output = finish(start("multi_node.sh", launcher, "r.yaml", PROCESSES="1", ZERO="zero9", **node))
    assert (code, output) == (2, "error: ZERO=zero9: there is no zero_configs/zero9.json\n")


def test_a_hostfile_that_is_not_there_is_named(launcher):
    code, output = finish(start("hostfile.sh", launcher, "r.yaml", HOSTFILE="/none"))
    assert (code, output) == (2, "error: /none: there is no such file\n")


def test_several_nodes_must_be_told_apart(launcher):
    code, output = finish(start("multi_node.sh", launcher, "r.yaml", NODES="2", MASTER_ADDR="127.0.0.1"))
    assert (code, output.startswith("usage: NODES=2 NODE_RANK=0")) == (2, True)


@pytest.mark.slow
def test_one_device(launcher, two_step_recipe, tmp_path: Path):
    words = (str(launcher.recipe_file(two_step_recipe)), "--gradient-accumulation-steps", "2")
    code, output = finish(start("single_gpu.sh", launcher, *words))
    assert code == 0, output[-4000:]
    assert_same_weights(Path(two_step_recipe["output_dir"]), alone(two_step_recipe, tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("zero", ["zero2", "none"])
def test_two_processes_of_one_machine(launcher, two_step_recipe, tmp_path: Path, zero):
    recipe_file = str(launcher.recipe_file(two_step_recipe))
    code, output = finish(start("multi_gpu.sh", launcher, recipe_file, PROCESSES="2", ZERO=zero))
    assert code == 0, output[-4000:]
    assert_same_weights(Path(two_step_recipe["output_dir"]), alone(two_step_recipe, tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.distributed
def test_two_nodes_of_one_process(launcher, two_step_recipe, tmp_path: Path):
    """Both on this machine: what differs from real nodes is the host's name alone."""
    recipe_file = str(launcher.recipe_file(two_step_recipe))
    shared = {"NODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "PROCESSES": "1"}
    nodes = [start("multi_node.sh", launcher, recipe_file, NODE_RANK=str(rank), **shared) for rank in range(2)]
    for node in nodes:
        code, output = finish(node)
        assert code == 0, output[-4000:]
    assert_same_weights(Path(two_step_recipe["output_dir"]), alone(two_step_recipe, tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.distributed
def test_machines_of_a_hostfile(launcher, two_step_recipe, tmp_path: Path):
    """It names this machine alone, which DeepSpeed first asks for its name over ssh: here a program in ssh's place answers."""
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    path = f"{programs(tmp_path, ssh='echo localhost')}:{launcher.environment()['PATH']}"
    recipe_file = str(launcher.recipe_file(two_step_recipe))
    code, output = finish(start("hostfile.sh", launcher, recipe_file, PATH=path, HOSTFILE=str(hosts)))
    assert code == 0, output[-4000:]
    assert_same_weights(Path(two_step_recipe["output_dir"]), alone(two_step_recipe, tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.distributed
def test_a_job_of_slurm(launcher, two_step_recipe, tmp_path: Path):
    """With programs in the place of Slurm's that do on one machine what these do on many."""
    slurm = programs(tmp_path, scontrol="echo 127.0.0.1", srun='SLURM_NNODES=1 SLURM_NODEID=0 exec "$@"')
    job = {"SLURM_JOB_NODELIST": "node[0-0]", "SLURM_SUBMIT_DIR": str(REPOSITORY), "PROCESSES": "2", "ZERO": "none"}
    path = f"{slurm}:{launcher.environment()['PATH']}"
    code, output = finish(start("slurm.sh", launcher, str(launcher.recipe_file(two_step_recipe)), PATH=path, **job))
    assert code == 0, output[-4000:]
    assert_same_weights(Path(two_step_recipe["output_dir"]), alone(two_step_recipe, tmp_path / "alone"))
