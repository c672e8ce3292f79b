"""What the pages say is so: commands that the parsers take, sentences that the sources hold, links that lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from data_prep.inspect.command import ROOMS
from eval.compared import align, read_systems
from eval.scoring import score_comparison
from eval.systems.system import KINDS, asked_records, load_kind, write_answers
from llava_pose import __version__
from llava_pose.cli import COMMANDS, command_of
from llava_pose.errors import InputError
from llava_pose.inference import photos
from llava_pose.train.arguments import parse_arguments
from llava_pose.utils.command import Command
from llava_pose.utils.config import parse_config
from tests.eval.benchmark.test_task import make_prepared

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GAP = "…"  # stands for whatever a page leaves out
_SHELL = ("", "bash", "console")  # languages of blocks that hold commands
_LAUNCHERS = ("torchrun", "deepspeed", "sbatch", "python")
_OURS = re.compile(r"\s*([A-Z_]+=\S+ )*(llava-pose|scripts/|python |torchrun |deepspeed |sbatch |pip )")
_MODULES = {module: name for name, (module, _) in COMMANDS.items()}


class Shown(NamedTuple):
    """A command of a page.

    Attributes:
        words: as the shell would split them, without variables that are set before.
        whole: whether nothing is left out of it.
    """

    page: Path
    words: tuple[str, ...]
    whole: bool


# The commands of the pages


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The language and the content of each block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shown_in(page: Path, text: str) -> Iterator[Shown]:
    """Every line of a block that begins with a program of the project, and every such piece of text between backticks."""
    for language, content in blocks(text):
        if language in _SHELL:
            for line in content.replace("\\\n", " ").splitlines():
                if re.match(_OURS, line):
                    yield from split_commands(page, line, whole=True)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", prose):
        if re.match(r"llava-pose [a-z-]+ .*--|(python )?train\.py .*--|python -m |torchrun ", " ".join(span.split())):
            yield from split_commands(page, " ".join(span.split()), whole=False)


def split_commands(page: Path, line: str, *, whole: bool) -> Iterator[Shown]:
    for part in re.sub(r"\[options of train\.py\]", GAP, line).split("&&"):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            kept = [
                word for word, before in zip(words, ["", *words], strict=False) if word != GAP or before[:2] == "--"
            ]
            yield Shown(page, tuple(kept), whole and GAP not in part)


SHOWN = list(dict.fromkeys(shown for page in PAGES for shown in shown_in(page, page.read_text(encoding="utf-8"))))


def stage_of(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The name of the command that is started, by whatever launcher, and its own words; None for another program."""
    words = list(words)
    if words[0] == "llava-pose":
        return words[1], words[2:]
    if words[0] not in (*_LAUNCHERS, "train.py") and not words[0].startswith("scripts/launch/"):
        return None
    for index, word in enumerate(words):
        if word == "train.py":
            return "train", words[index + 1 :]
        if word.startswith("scripts/launch/"):
            recipe = words[index + 1] if Path(words[index + 1]).is_file() else "scripts/recipes/photos_small.yaml"
            return "train", ["--config", recipe, *words[index + 2 :]]
        if word == "-m" and words[index + 1] == "llava_pose.cli":
            return words[index + 2], words[index + 3 :]
        if word == "-m" and words[index + 1] in _MODULES:
            return _MODULES[words[index + 1]], words[index + 2 :]
    return None


def parse(name: str, words: Sequence[str]) -> None:
    """Read the words by the parser of the command, as the command would before its work.

    Raises:
        InputError: as the command would.
    """
    words = [_one_of(word) for word in words if word != "--help"]
    if words[-2:] == ["--config", GAP]:
        words = words[:-2]
    if name == "train":
        _parse_training(words)
        return
    if name in KINDS and not isinstance(command_of(name), Command):
        _parse_command(Command(load_kind(name)[0], print, name, "", ""), [*words, "--use-cpu"])
        return
    if name == "inspect":
        name, words = (words[0], words[1:]) if words[0] in ROOMS else ("stats", words)
        _parse_command(ROOMS[name], words)
        return
    is_of_files = name == "predict" and words and not words[0].startswith("-")
    _parse_command(photos.main if is_of_files else command_of(name), words)


def _one_of(word: str) -> str:
    """A recipe in place of a pattern of several."""
    return next(map(str, Path().glob(word)), word) if "*" in word and word.endswith(".yaml") else word


def _parse_command(main: Command, words: Sequence[str]) -> None:
    texts = {"prog": main.prog, "description": "", "example": ""}
    parse_config(main.config_class, words, positional=main.positional, **texts)


def _parse_training(words: list[str]) -> None:
    """On a machine without a GPU, and outside of a launcher, which these two options ask for."""
    if "--deepspeed" in words:
        index = words.index("--deepspeed")
        assert Path(words[index + 1]).is_file()
        del words[index : index + 2]
    parse_arguments([*(word for word in words if word != "--bf16"), "--no-bf16", "--use-cpu"])


@contextmanager
def suppress_input_error(pattern: str) -> Iterator[None]:
    """Let an error pass whose sentence matches."""
    try:
        yield
    except InputError as error:
        if not re.search(pattern, str(error)):
            raise


STAGES = [(shown, stage) for shown in SHOWN if (stage := stage_of(shown.words)) is not None]


def test_the_pages_show_most_commands():
    assert len(STAGES) > 100
    assert set(COMMANDS) - {name for _, (name, _) in STAGES} <= {
        "doctor",
        "benchmark",
    }  # which are named without options


@pytest.mark.parametrize(
    ("shown", "stage"), STAGES, ids=[f"{shown.page.stem}-{shlex.join(shown.words)[:60]}" for shown, _ in STAGES]
)
def test_the_parser_takes_every_command_that_a_page_shows(shown, stage, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, words = stage
    assert name in COMMANDS, f"{shown.page.name}: there is no command {name}"
    cut_short = r"needed; see|is needed|expected (one|at least one) argument"
    with nullcontext() if shown.whole else suppress_input_error(cut_short):
        parse(name, words)


SCRIPTS = sorted({word for shown in SHOWN for word in shown.words if re.match(r"scripts/(?!recipes)\w", word)})


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_that_a_page_starts_is_there_and_has_the_options(script, monkeypatch):
    file = ROOT / script
    assert file.exists()
    starts = [shown.words for shown in SHOWN if script in shown.words]
    options = {word for words in starts for word in words[words.index(script) + 1 :] if re.match("--[a-z]", word)}
    if (
        "/launch/" in script or script == "scripts/test" or file.is_dir() or not options
    ):  # words of train.py, of pytest, or none
        return
    known = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        known = subprocess.run(
            [sys.executable, str(file), "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    assert not {option for option in options if not re.search(rf"{option}\b", known)}


def test_every_extra_that_a_page_installs_is_one():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(
        r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1].split("\n[")[0], re.MULTILINE
    )
    named = [
        name
        for page in PAGES
        for found in re.findall(r"(?:llava-pose|\.)\[([\w,]+)\]'", page.read_text(encoding="utf-8"))
        for name in found.split(",")
    ]
    assert set(named) >= {"demo", "serve"}
    assert set(named) <= set(extras)


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_to_a_page_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


# Sentences


def _text_of(node: ast.expr, constants: dict[str, str]) -> str | None:
    """The text of a string in the sources, with a gap for what is put in; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_of(value, constants) or GAP for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return constants.get(node.value.id) if isinstance(node.value, ast.Name) else None
    return None


def _constants(tree: ast.Module) -> dict[str, str]:
    """The texts that a module gives names to."""
    return {
        target.id: statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name) and isinstance(statement.value.value, str)
    }


@cache
def sentences_of_the_sources() -> str:
    """Every string of the packages and scripts, a line each, with a gap for what is put into it."""
    files = [file for package in ("llava_pose", "data_prep", "eval") for file in (ROOT / package).rglob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    elsewhere = {name: text for tree in trees for name, text in _constants(tree).items()}
    texts = [
        text
        for tree in trees
        for constants in [{**elsewhere, **_constants(tree)}]
        for node in ast.walk(tree)
        if isinstance(node, ast.expr) and (text := _text_of(node, constants))
    ]
    texts = [re.sub(r"%(\.\d)?[sdgfr]", GAP, text) for text in texts]
    shell = (ROOT / "scripts" / "environment.sh").read_text(encoding="utf-8")
    return "\n".join([*texts, re.sub(r"\$\w+", GAP, shell)])


def troubles() -> list[str]:
    """The sentences of TROUBLESHOOTING.md that are the project's own."""
    text = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
    heads = re.findall(r"^### `(.*)`\n(<!-- .*)?", text, re.MULTILINE)
    return [sentence for sentence, of_others in heads if not of_others]


def test_the_page_of_troubles_has_many():
    assert len(troubles()) >= 30


@pytest.mark.parametrize("sentence", troubles())
def test_every_sentence_of_the_page_of_troubles_is_one_that_is_said(sentence):
    pieces = [piece for piece in sentence.removeprefix("error: ").split(GAP) if re.search(r"\w", piece)]
    assert max(map(len, pieces)) >= 12
    missing = [piece for piece in pieces if piece.strip() not in sentences_of_the_sources()]
    assert not missing


# CONTRIBUTING and CITATION


def test_the_system_of_contributing_joins_a_benchmarks_kinds_and_is_scored(tmp_path, monkeypatch):
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = (text for language, text in blocks(page) if language == "python")
    assert len(code.splitlines()) <= 35
    name, *place = re.search(r'"(\w+)": \("([\w.]+)", "(\w+)", "(\w+)"\)', page).groups()
    assert place[0] == "eval.systems.upright"
    (tmp_path / "upright.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(KINDS, name, ("upright", *place[1:]))
    options, system = load_kind(name)
    make_prepared(tmp_path / "prepared", train=2, val=3)
    filled = options(data=str(tmp_path / "prepared"), output_dir=str(tmp_path / "out"), system=name)
    written = write_answers(system(filled), asked_records(filled), filled.output_dir)
    scores = score_comparison(align(read_systems([str(written)]), "same"))
    assert scores["systems"][name]["overall"]["n"] == len(asked_records(filled))


def test_the_citation_is_of_this_version_and_of_the_data_set():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["references"][0]["title"].startswith("ImageNet3D")
