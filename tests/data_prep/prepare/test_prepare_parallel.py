"""prepare on several cores and machines: shards, a Ray cluster, kills at any moment, and memory that does not grow."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.prepare.command import PrepareConfig, main, prepare
from data_prep.raw.imagenet3d import write_annotation, write_list
from llava_pose.data.records import read_records
from llava_pose.errors import InputError
from tests.conftest import RawDataset

ROOT = Path(__file__).parents[3]


def run(dataset: Any, out: Path, **options: Any) -> Path:
    return prepare(
        PrepareConfig(
            data_root=str(dataset.root), out=str(out), **{"workers": 1, "splits": "train", "size": 32, **options}
        )
    )


def command(dataset: Any, out: Path, *words: str) -> list[str]:
    options = ["--data-root", str(dataset.root), "--out", str(out), "--splits", "train", "--size", "32"]
    return [sys.executable, "-m", "data_prep.prepare.command", *options, *words]


def tree(out: Path) -> dict[str, bytes]:
    """Every file that prepare promises, without what a stopped run goes on from."""
    paths = (path for path in out.rglob("*") if path.is_file() and ".prepare" not in path.parts)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(paths)}


def filled(dataset: Any, count: int, width: int = 120, height: int = 90) -> Any:
    """Many copies of one image with two objects, cars and buses; the fourth car has no annotation."""
    for category in ("bus", "car"):
        objects = [dataset.object(width, height, **{"class": category})] * 2
        dataset.add("seed", category=category, image=dataset.picture(width, height), objects=objects)
        for index in range(count // 2):
            for path in (dataset.layout.image(category, "seed"), dataset.layout.annotation(category, "seed")):
                shutil.copy(path, path.with_name(f"n{index}{path.suffix}"))
        write_list(dataset.layout.list_file(category, "train"), [f"n{index}" for index in range(count // 2)])
    dataset.layout.annotation("car", "n3").unlink(missing_ok=True)
    return dataset


def done(out: Path) -> int:
    """How many images of the split train are done."""
    return len(list(out.glob(".prepare/train/*/*.json")))


@pytest.mark.parametrize(("text", "expected"), [("", None), ("1/1", (1, 1)), (" 2/8 ", (2, 8))])
def test_shards_by_name(text: str, expected: tuple[int, int] | None) -> None:
    assert PrepareConfig(data_root="raw", out="out", shard=text).part == expected


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "1.0/2"])
def test_what_is_no_shard_is_said(raw_dataset: Any, tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=rf"--shard {text}: give part/parts, such as 1/8"):
        run(raw_dataset, tmp_path / "out", shard=text)


@pytest.mark.parametrize(("items", "count"), [(10, 3), (2, 5), (8, 1)])
def test_shards_are_all_of_the_work_once_and_nearly_equal(
    raw_dataset: Any, tmp_path: Path, items: int, count: int
) -> None:
    filled(raw_dataset, items)
    parts = []
    for index in range(1, count + 1):
        before = done(tmp_path / "out")
        run(raw_dataset, tmp_path / "out", shard=f"{index}/{count}")
        parts.append(done(tmp_path / "out") - before)
    assert sum(parts) == items
    assert max(parts) - min(parts) <= 1


def test_shards_in_one_folder_are_joined_by_a_whole_run(raw_dataset: Any, tmp_path: Path) -> None:
    filled(raw_dataset, 24)
    whole = tree(run(raw_dataset, tmp_path / "whole"))
    out = tmp_path / "out"
    for shard in ("2/3", "1/3", "3/3"):
        run(raw_dataset, out, shard=shard)
        assert not (out / "summary.json").exists()
        assert not (out / "train/metadata.jsonl").exists()
    pictures = {path: path.stat().st_ino for path in out.rglob("*.JPEG")}
    assert len(pictures) == 2 * 23
    run(raw_dataset, out)
    assert tree(out) == whole
    assert {path: path.stat().st_ino for path in out.rglob("*.JPEG")} == pictures, "nothing was done again"


def test_a_whole_run_does_what_shards_have_left(raw_dataset: Any, tmp_path: Path) -> None:
    filled(raw_dataset, 12)
    out = run(raw_dataset, tmp_path / "out", shard="1/2")
    (out / ".prepare/train/bus/.n0.json.1.tmp").write_text('{"key": "bus/n')  # the shard was killed here
    run(raw_dataset, out)
    assert tree(out) == tree(run(raw_dataset, tmp_path / "whole"))


def test_a_shard_does_not_do_again_what_is_done_and_does_what_has_changed(raw_dataset: Any, tmp_path: Path) -> None:
    filled(raw_dataset, 12)
    out = run(raw_dataset, tmp_path / "out")
    before = {path: path.stat().st_ino for path in out.rglob("*.JPEG")}
    write_annotation(raw_dataset.layout.annotation("bus", "n0"), [raw_dataset.object(120, 90, azimuth=1.5)])
    for shard in ("1/2", "2/2"):
        run(raw_dataset, out, shard=shard)
    changed = [path.name for path, inode in before.items() if path.stat().st_ino != inode]
    assert changed == ["n0_00.JPEG"]
    run(raw_dataset, out)
    assert [r.pose.azimuth for r in read_records(out, "train") if r.id.startswith("bus/n0/")] == [1.5]
    assert tree(out) == tree(run(raw_dataset, tmp_path / "whole"))


def test_shards_of_machines_without_a_common_folder_are_joined_by_copying(raw_dataset: Any, tmp_path: Path) -> None:
    filled(raw_dataset, 12)
    out = tmp_path / "out"
    for index in (1, 2):
        own = run(raw_dataset, tmp_path / f"machine{index}", shard=f"{index}/2")
        shutil.copytree(own, out, dirs_exist_ok=True)
    before = {path: path.stat().st_ino for path in out.rglob("*.JPEG")}
    run(raw_dataset, out)
    assert {path: path.stat().st_ino for path in out.rglob("*.JPEG")} == before
    assert tree(out) == tree(run(raw_dataset, tmp_path / "whole"))


def test_shards_keep_out_what_would_hurt_them(raw_dataset: Any, tmp_path: Path) -> None:
    filled(raw_dataset, 8)
    out = run(raw_dataset, tmp_path / "out", shard="1/2")
    with pytest.raises(InputError, match="was begun with size 32, not 64"):
        run(raw_dataset, out, shard="2/2", size=64)
    with pytest.raises(InputError, match="--overwrite with --shard: would drop what other shards have done"):
        run(raw_dataset, out, shard="2/2", overwrite=True)
    with open(out / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as another shard holds it
        run(raw_dataset, out, shard="2/2")
        with pytest.raises(InputError, match="another prepare is writing there"):
            run(raw_dataset, out)
        with open(out / ".prepare/.shard-2-of-2.lock", "a+") as own:
            fcntl.flock(own, fcntl.LOCK_EX)
            with pytest.raises(InputError, match="another prepare of 2/2 is writing there"):
                run(raw_dataset, out, shard="2/2")
    run(raw_dataset, out, size=64, overwrite=True)
    assert {record.width for record in read_records(out, "train")} == {64}


@pytest.mark.parametrize("damage", [b"", b'{"key": "car/n1", "rec', bytes(100), b"[]", b'{"key": "car/n1"}'])
def test_an_image_of_which_it_is_not_known_what_became_is_done_again(
    raw_dataset: Any, tmp_path: Path, damage: bytes
) -> None:
    filled(raw_dataset, 8)
    out = run(raw_dataset, tmp_path / "out")
    whole = tree(out)
    (out / ".prepare/train/car/n1.json").write_bytes(damage)
    (out / "train/car/n1_00.JPEG").unlink()
    run(raw_dataset, out)
    assert tree(out) == whole


def test_two_shards_of_other_settings_do_not_begin_together(raw_dataset: Any, tmp_path: Path) -> None:
    """The second comes after the first has written its settings down, and before it has done an image."""
    filled(raw_dataset, 8)
    out = run(raw_dataset, tmp_path / "out", shard="1/2")
    shutil.rmtree(out / ".prepare")
    shutil.rmtree(out / "train")
    with pytest.raises(InputError, match="was begun with size 32, not 64"):
        run(raw_dataset, out, shard="2/2", size=64)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes under /proc")
def test_two_shards_at_once_killed_again_and_again_lose_and_double_nothing(raw_dataset: Any, tmp_path: Path) -> None:
    """Real processes, SIGKILL at moments of all kinds; then the join."""
    filled(raw_dataset, 2400, 900, 700)
    out = tmp_path / "out"
    kills = 0
    for round_number in range(3):
        processes = [
            subprocess.Popen(
                command(raw_dataset, out, "--shard", f"{index}/2", "--workers", "1"),
                stderr=subprocess.DEVNULL,
                cwd=ROOT,
            )
            for index in (1, 2)
        ]
        before = done(out)
        deadline = time.monotonic() + 60
        running = dict(enumerate(processes, start=1))
        while running:
            assert time.monotonic() < deadline
            for index, process in list(running.items()):
                if process.poll() is not None or done(out) > before + index:
                    time.sleep(0.01 * round_number)
                    process.send_signal(signal.SIGKILL)
                    kills += running.pop(index).wait() == -signal.SIGKILL
            time.sleep(0.001)
    assert kills >= 3, "the work was done before it could be disturbed"
    assert 0 < done(out) < 2400
    for index in (1, 2):
        subprocess.run(
            command(raw_dataset, out, "--shard", f"{index}/2", "--workers", "1"),
            check=True,
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
    joined = run(raw_dataset, out)
    assert tree(joined) == tree(run(raw_dataset, tmp_path / "whole"))
    ids = [record.id for record in read_records(joined, "train")]
    assert len(ids) == len(set(ids)) == 2 * 2399


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes under /proc")
def test_a_killed_worker_ends_the_run_and_the_next_one_goes_on(raw_dataset: Any, tmp_path: Path) -> None:
    """As the kernel does when memory runs out."""
    filled(raw_dataset, 1200, 900, 700)
    out = tmp_path / "out"
    process = subprocess.Popen(command(raw_dataset, out, "--workers", "2"), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while process.poll() is None and not done(out):
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "BrokenProcessPool" in said
    assert 0 < done(out) < 1200
    run(raw_dataset, out)
    assert tree(out) == tree(run(raw_dataset, tmp_path / "whole"))


MEMORY = """
import resource, sys
from data_prep.prepare.command import PrepareConfig, prepare
options = dict(zip(("data_root", "out", "splits"), sys.argv[1:4]))
prepare(PrepareConfig(**options, size=16, crop="whole", workers=int(sys.argv[4])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, workers: int) -> None:
    """Annotations of 30 KB each: what is kept of them for every image would show."""
    (tmp_path / "raw").mkdir()
    dataset = RawDataset(tmp_path / "raw")
    few, many = 40, 1000
    dataset.add("seed", image=dataset.picture(48, 32), objects=[dataset.object(48, 32, note="x" * 30_000)])
    for index in range(many):
        for path in (dataset.layout.image("car", "seed"), dataset.layout.annotation("car", "seed")):
            os.link(path, path.with_name(f"n{index}{path.suffix}"))
    for split, count in (("few", few), ("many", many)):
        write_list(dataset.layout.list_file("car", split), [f"n{index}" for index in range(count)])
    peaks = {}
    for split in ("few", "many"):
        words = [str(dataset.root), str(tmp_path / f"out_{split}"), split, str(workers)]
        ended = subprocess.run(
            [sys.executable, "-c", MEMORY, *words], capture_output=True, text=True, check=True, cwd=ROOT
        )
        peaks[split] = int(ended.stdout) / 1024
        assert len((tmp_path / f"out_{split}/{split}/metadata.jsonl").read_bytes()) > 30_000 * (
            few if split == "few" else many
        )
    grown = peaks["many"] - peaks["few"]
    assert grown < 12, f"{grown:.0f} MiB more for {many - few} images, whose annotations are {many * 30 // 1024} MiB"


def test_without_ray_one_sentence(raw_dataset: Any, tmp_path: Path) -> None:
    filled(raw_dataset, 8)
    script = "import sys; sys.modules['ray'] = None; from llava_pose.cli import main; sys.exit(main(sys.argv[1:]))"
    words = command(raw_dataset, tmp_path / "out", "--engine", "ray")[3:]
    ended = subprocess.run([sys.executable, "-c", script, "prepare", *words], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    sentence = "--engine ray needs ray; install it with: pip install 'llava-pose[ray]', or leave --engine out"
    assert ended.stderr == f"error: {sentence}\n"
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def cluster() -> Any:
    """The address of a local Ray cluster of two machines of one core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=options)
    made.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield made.address
    made.shutdown()


@pytest.mark.slow
def test_on_a_ray_cluster_of_two_machines(
    raw_dataset: Any, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    filled(raw_dataset, 120, 900, 700)
    whole = tree(run(raw_dataset, tmp_path / "whole", workers=2))
    words = command(raw_dataset, tmp_path / "out", "--engine", "ray")
    ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert tree(tmp_path / "out") == whole
    assert "next: llava-pose instruct" in ended.stderr

    # stopped in the middle, and gone on with, on Ray and then with processes
    out = tmp_path / "killed"
    process = subprocess.Popen(command(raw_dataset, out, "--engine", "ray"), stderr=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None and not done(out):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < done(out) < 120
    again = subprocess.run(
        command(raw_dataset, out, "--engine", "ray", "--workers", "1"), capture_output=True, text=True, cwd=ROOT
    )
    assert again.returncode == 0, again.stderr
    assert tree(out) == whole
    run(raw_dataset, out)
    assert tree(out) == whole

    # a picture that cannot be written is said in one sentence, not in a traceback of the cluster
    blocked = run(raw_dataset, tmp_path / "blocked")
    shutil.rmtree(blocked / "train")
    (blocked / "train").write_text("a file where a folder is needed")
    ended = subprocess.run(command(raw_dataset, blocked, "--engine", "ray"), capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert "cannot write" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_command_line_of_a_shard(raw_dataset: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(raw_dataset, 8)
    words = command(raw_dataset, tmp_path / "out", "--workers", "1", "--shard", "2/2")[3:]
    with caplog.at_level("INFO"):
        assert main(words) == 0
    last = caplog.records[-1].getMessage()
    assert f"4 images of shard 2/2 are done in {tmp_path / 'out'}" in last
    assert "the same command without --shard" in last
