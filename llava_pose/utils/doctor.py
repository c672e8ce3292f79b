"""`llava-pose doctor`: what is installed, what the machine has, and what will and will not run on it, in one screen."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

from llava_pose import __version__
from llava_pose.errors import RunError
from llava_pose.utils.command import command
from llava_pose.utils.files import free_bytes, printable

BASICS = "basics"  # what pip installs without an extra
_LEAST_PYTHON = (3, 10)
_LEAST_SHARED = 1 << 30  # bytes of /dev/shm: pictures go from the workers that load them to a run through it
_GIB = 1 << 30
# the extras of pyproject.toml, and what needs each; "dev" is the sum of them
_NEED = {
    "render": "render",
    "demo": "demo",
    "serve": "serve, annotate",
    "caption": "caption --api-base, vlm-api",
    "ray": "prepare --engine ray",
    "objectron": "objectron",
    "rerun": "convert --to-format rerun",
    "weights": "scripts/fetch_small_weights.py",
}


@dataclass
class DoctorConfig:
    """The options of ``llava-pose doctor``."""

    folder: str = field(
        default=".", metadata={"help": "The folder that outputs are to go to; the room on its disk is looked at."}
    )


class Package(NamedTuple):
    """A package that is needed: what is installed of it (None: nothing), which versions will do, and whether that one does."""

    name: str
    installed: str | None
    wanted: str
    will_do: bool

    @property
    def fault(self) -> str:
        """Return what is wrong with it in words; "" where nothing is."""
        if self.will_do:
            return ""
        return f"{self.name} is missing" if self.installed is None else f"{self.name} must be {self.wanted}"


class Answer(NamedTuple):
    """Something that one may want to run, whether it will, and why not or how."""

    what: str
    will_run: bool
    why: str


def packages() -> dict[str, list[Package]]:
    """Return what is needed, by extra, as the installed project says it; nothing where it is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = requires("llava-pose") or []
    except PackageNotFoundError:
        return {}
    found: dict[str, list[Package]] = defaultdict(list)
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        extras = [extra for extra in _NEED if marker is not None and marker.evaluate({"extra": extra})]
        if marker is None or marker.evaluate({"extra": ""}):
            extras = [BASICS]
        for extra in extras:
            found[extra].append(_package(requirement))
    return dict(found)


def _package(requirement: Any) -> Package:
    wanted = str(requirement.specifier)
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return Package(requirement.name, None, wanted, False)
    # a build's own mark ("2.13.0+cpu") says nothing of the version, and a preview of a later one will do
    return Package(requirement.name, installed, wanted, requirement.specifier.contains(installed, prereleases=True))


@dataclass(frozen=True)
class Machine:
    """The machine as torch sees it, and what it has.

    Attributes:
        gpus: the name and the bytes of memory of each.
        bf16: whether they compute in bfloat16.
        torch_fault: why torch cannot be imported; "" if it can.
        memory: bytes in all and bytes that are free; None where the system does not say.
        disk: bytes that are free where outputs are to go.
        shared: bytes of /dev/shm; None where there is none.
        locks: whether files there can be locked.
    """

    gpus: list[tuple[str, int]]
    bf16: bool
    torch_fault: str
    cores: int
    memory: tuple[int, int] | None
    disk: int
    shared: int | None
    locks: bool


def this_machine(folder: Path) -> Machine:
    """Return what this machine has."""
    gpus: list[tuple[str, int]] = []
    bf16, fault = False, ""
    try:
        import torch

        if torch.cuda.is_available():
            found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
            gpus = [(card.name, card.total_memory) for card in found]
            bf16 = torch.cuda.is_bf16_supported()
    except (ImportError, OSError, RuntimeError) as error:  # a library that is missing, or a driver that is too old
        fault = " ".join(str(error).split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = free_bytes("/dev/shm") if os.path.isdir("/dev/shm") else None
    return Machine(gpus, bf16, fault, cores, _memory(), free_bytes(folder), shared, _has_locks(folder))


def _memory() -> tuple[int, int] | None:
    """Return the bytes of memory in all, and those that a new program can have."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return kib["MemTotal"] << 10, kib["MemAvailable"] << 10
    except (OSError, ValueError, LookupError):
        return None


def _has_locks(folder: Path) -> bool:
    """Return whether a file of the folder can be locked; True where none can be written, which is said elsewhere."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
    except OSError:
        pass
    return True


def answers(found: dict[str, list[Package]], machine: Machine) -> list[Answer]:
    """Return what will and will not run, the basics first."""
    faults = [package.fault for package in found.get(BASICS, []) if package.fault]
    if not found:
        faults = ["the project is not installed; run pip install -e . in its folder"]
    if sys.version_info < _LEAST_PYTHON:
        faults.append(f"Python must be {'.'.join(map(str, _LEAST_PYTHON))} or newer")
    if machine.torch_fault:
        faults.append(f"torch cannot be imported ({machine.torch_fault})")
    rest = "" if not faults else f"{'; '.join(faults)}. pip install -U llava-pose mends what is missing or too old"
    told = [Answer("prepare, instruct, predict, score, chat", not faults, rest or "on the CPU" * (not machine.gpus))]
    why = "on the CPU: small models alone, such as those of scripts/quickstart" if not machine.gpus else "one GPU"
    why = f"{len(machine.gpus)} GPUs, by deepspeed or torchrun" if len(machine.gpus) > 1 else why
    told.append(Answer("train", not faults, rest or why))
    told.append(
        Answer(
            "train --bf16",
            not faults and machine.bf16,
            "" if machine.bf16 else "no GPU" if not machine.gpus else "the GPU has no bfloat16; use --fp16",
        )
    )
    tools = [
        name
        for name, there in (("a C++ compiler", _has_compiler()), ("ninja", bool(shutil.which("ninja"))))
        if not there
    ]
    why = "" if machine.gpus else f"{' and '.join(tools)} missing" if tools else "with DS_ACCELERATOR=cpu"
    told.append(Answer("train under deepspeed", not faults and not (tools and not machine.gpus), why))
    for extra, what in _NEED.items():
        faulty = [package.fault for package in found.get(extra, []) if package.fault]
        if extra in found:
            why = f"{', '.join(faulty)}: pip install 'llava-pose[{extra}]'" if faulty else ""
            told.append(Answer(what, not faulty, why))
    return told


def _has_compiler() -> bool:
    return any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++")))


def examine(config: DoctorConfig) -> None:
    """Write the screen to stdout.

    Raises:
        RunError: the basics will not run; the screen says why.
    """
    folder = Path(config.folder)
    found, machine = packages(), this_machine(folder)
    told = answers(found, machine)
    sys.stdout.write(printable("\n".join(screen(found, machine, told, folder))) + "\n")
    if not told[0].will_run:
        raise RunError(f"the basics do not run here: {told[0].why}")


def screen(found: dict[str, list[Package]], machine: Machine, told: list[Answer], folder: Path) -> list[str]:
    """Return the lines to show, none much wider than a terminal."""
    lines = [
        f"llava-pose {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "",
    ]
    for extra, of_extra in found.items():
        text = ", ".join(
            f"{package.name} {package.installed or '–'}{'' if package.will_do else ' (!)'}" for package in of_extra
        )
        lines += _wrapped(extra, text)
    memory = "not known" if machine.memory is None else "{} in all, {} free".format(*map(_size, machine.memory))
    cards = ", ".join(f"{name} ({_size(bytes_)})" for name, bytes_ in machine.gpus)
    none = "not known, for torch cannot be imported" if machine.torch_fault else "none that torch can use"
    lines += ["", *_wrapped("accelerator", cards or none)]
    lines += _wrapped("processor", f"{machine.cores} core{'s' * (machine.cores > 1)}, memory {memory}")
    lines += _wrapped("disk", f"{_size(machine.disk)} free at {folder.absolute()}")
    if machine.shared is not None and machine.shared < _LEAST_SHARED:
        lines += _wrapped("", f"/dev/shm has {_size(machine.shared)} free: in a container give it more, --shm-size 8g")
    if not machine.locks:
        lines += _wrapped("", "files there cannot be locked: let no two commands write to one output")
    lines.append("")
    for answer in told:
        lines += _wrapped("runs" if answer.will_run else "will not", f"{answer.what}{answer.why and ': '}{answer.why}")
    return lines


def _wrapped(head: str, text: str) -> list[str]:
    from textwrap import wrap

    return wrap(text, 96, initial_indent=f"{head:<13}", subsequent_indent=" " * 13, break_on_hyphens=False)


def _size(number: int) -> str:
    return f"{number / _GIB:.1f} GiB"


main = command(
    DoctorConfig,
    examine,
    prog="llava-pose doctor",
    description="Say what is installed, what the machine has, and what will and will not run on it. Exit 0 if the basics run.",
    example="llava-pose doctor",
)

if __name__ == "__main__":
    raise SystemExit(main())
