"""The rules of docs/ARCHITECTURE.md that a program can check, held against the source files as they are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from llava_pose.cli import COMMANDS, OF_FILES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("llava_pose", "data_prep", "eval")


def module_files() -> dict[str, Path]:
    """Module name -> file, for all three packages; a package's __init__.py has the package's name."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return dict(zip(names, files, strict=True))


MODULES = module_files()
LIBRARY = sorted(MODULES)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str, *, at_import_time: bool = False) -> set[str]:
    """The names of modules that a module imports; of ``from package import module`` the module.

    Args:
        at_import_time: leave out what functions import when they are called, and what only type checkers import.
    """
    is_package = MODULES[module].name == "__init__.py"
    found: set[str] = set()
    for node in _nodes(tree_of(module), into_functions=not at_import_time):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level + is_package or None] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                member = f"{source}.{alias.name}"
                found.add(member if member in MODULES else source)
    return found


def _nodes(node: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not into_functions:
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING" and not into_functions:
            continue
        yield child
        yield from _nodes(child, into_functions=into_functions)


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    """(name of what is called, without what it is an attribute of; the call)."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call):
            function = node.func
            yield function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", ""), node


def defines_command(module: str) -> bool:
    """Whether it has a ``main`` of its own at module level."""
    names = [
        name
        for node in tree_of(module).body
        for name in (
            [node.name]
            if isinstance(node, ast.FunctionDef)
            else [target.id for target in node.targets if isinstance(target, ast.Name)]
            if isinstance(node, ast.Assign)
            else []
        )
    ]
    return "main" in names


def test_the_readers_of_this_file_see_what_they_should() -> None:
    """A checker that finds nothing would pass everything."""
    assert "llava_pose.pose.geometry" in imports("llava_pose.pose.metrics") | imports("llava_pose.inference.drawing")
    assert "data_prep.render.mesh" in imports("data_prep.render.raycast"), "relative imports"
    assert "llava_pose.pose.categories" in imports("eval.compared"), "from package import module"
    assert "llava_pose.inference.predictor" in imports("llava_pose.serve.demo"), "inside of a function"
    assert "llava_pose.inference.predictor" not in imports("llava_pose.serve.demo", at_import_time=True)
    assert defines_command("eval.score")
    assert not defines_command("eval.scoring")
    assert len(MODULES) > 60


def test_rooms_know_only_the_rooms_below_them() -> None:
    """The contracts of import-linter in pyproject.toml."""
    ended = subprocess.run(["lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert "Contracts: 3 kept, 0 broken." in ended.stdout


def test_no_module_imports_itself_round_about() -> None:
    graph = {module: imports(module, at_import_time=True) & set(MODULES) for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in LIBRARY:
        visit(module, ())


@pytest.mark.parametrize("module", LIBRARY)
def test_only_commands_write_to_stdout_and_nothing_prints(module: str) -> None:
    assert [call.lineno for name, call in calls(module) if name == "print"] == []
    writes = [
        node.lineno
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Attribute) and node.attr == "stdout" and getattr(node.value, "id", "") == "sys"
    ]
    # a command of its own, or one of those that `llava-pose inspect` starts
    if module == "llava_pose.utils.command":
        return  # where every command ends, and stdout is flushed
    assert writes == [] or defines_command(module) or "command" in {name for name, _ in calls(module)}


@pytest.mark.parametrize("module", LIBRARY)
def test_loading_is_strict_and_runs_no_code(module: str) -> None:
    for name, call in calls(module):
        options = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        given = {option: value.value for option, value in options.items() if isinstance(value, ast.Constant)}
        where = f"{MODULES[module]}:{call.lineno}"
        if name != "zip":
            assert given.get("strict") is not False, where
        assert given.get("allow_pickle") is not True, where
        assert given.get("trust_remote_code") is not True, where
        if ast.unparse(call.func) == "torch.load":
            assert given.get("weights_only") is True, where


@pytest.mark.parametrize("folder", [*PACKAGES, "scripts", "tests", "."])
def test_sources_are_of_the_oldest_python_that_is_promised(folder: str) -> None:
    """pyproject.toml says 3.10."""
    assert 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    files = list((ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 10))


def test_flash_attention_is_nowhere_needed() -> None:
    requirements = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r"flash[-_]attn", requirements + (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    for module in LIBRARY:
        assert not {name for name in imports(module) if name.split(".")[0] == "flash_attn"}, module


@pytest.mark.parametrize("module", LIBRARY)
def test_no_exception_is_caught_unnamed(module: str) -> None:
    handlers = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.ExceptHandler)]
    assert [handler.lineno for handler in handlers if handler.type is None] == []


def test_commands_are_started_in_one_way() -> None:
    """A module that is a command runs with ``python -m``, too, and none but commands does."""
    commands = {module for module in LIBRARY if defines_command(module)}
    listed = {module.partition(":")[0] for module, _ in COMMANDS.values()}
    assert commands == listed | set(OF_FILES.values()) | {"llava_pose.cli"}
    for module in LIBRARY:
        text = MODULES[module].read_text(encoding="utf-8")
        guard = '\nif __name__ == "__main__":\n    raise SystemExit(main())\n'
        assert text.endswith(guard) if module in commands else "__main__" not in text, module


def test_light_imports_stay_light() -> None:
    """Help, geometry, metrics and the two records load neither torch nor transformers."""
    script = """
import sys
import llava_pose, llava_pose.pose.geometry, llava_pose.pose.metrics, llava_pose.data.records, llava_pose.pose.categories
from llava_pose.cli import main
assert main(["--help"]) == 0
heavy = {"torch", "transformers", "peft", "accelerate", "deepspeed", "gradio", "matplotlib", "datasets"}
sys.exit(" ".join(sorted(heavy & set(sys.modules))) or 0)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "usage: llava-pose" in ended.stdout
