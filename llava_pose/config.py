"""One parser from YAML and the command line to a stage's config dataclass, and one way a command ends.

A stage is ``@dataclass class XConfig``, ``def x(config)`` and ``main = command(XConfig, x, …)``. Fields say what they
are in ``field(metadata={"help": …})``; their defaults stand in the dataclass and nowhere else.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import json
import logging
import math
import os
import reprlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from llava_pose.errors import InputError, RunError
from llava_pose.noise import quiet_others
from llava_pose.utils.files import is_disk_full, printable, read_text, write_atomic

ConfigT = TypeVar("ConfigT")
logger = logging.getLogger(__name__)
_MOST_UNFOLDED = 10_000_000  # characters and values of a YAML file, its aliases written out


def parse_config(
    config_class: type[ConfigT],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    example: str,
    positional: str | None = None,
) -> ConfigT:
    """Fill a config dataclass from ``--config file.yaml`` and ``--field value`` options; the command line wins.

    Args:
        config_class: a dataclass as transformers' HfArgumentParser reads it.
        argv: the words after the command's name; those of the process by default.
        positional: a field that may also be given as a bare word (``predictions.jsonl``).

    Raises:
        InputError: the YAML file is missing, is not a mapping, or names a field that the config has not.
        SystemExit: usage errors (exit code 2) and ``--help`` (0), as argparse does.
    """
    from transformers import HfArgumentParser

    words = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        config_class,
        prog=prog,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="a YAML file of these options; the command line wins")
    for action in parser._actions:  # --two-words is what is shown, --two_words is understood as well
        action.option_strings = sorted(
            action.option_strings, key=lambda option: ("_" in option, option.startswith("--"))
        )
    names = [field.name for field in dataclasses.fields(config_class) if field.init]
    needs_word = positional is not None and _accept_bare_word(parser, positional)

    usage = parser.format_usage().removeprefix("usage: ")
    pre = argparse.ArgumentParser(prog=prog, usage=usage, add_help=False, allow_abbrev=False)
    pre.add_argument("--config")
    config_file = pre.parse_known_args(words)[0].config
    if config_file is not None:
        yaml_values = read_yaml(config_file)
        _check_names(yaml_values, names, config_file)
        _set_yaml_defaults(parser, yaml_values, get_type_hints(config_class), config_file)
    values = vars(parser.parse_args(words))
    bare = values.pop("bare_word", None)
    if bare is not None and bare != []:
        values[positional] = bare
    if needs_word and values[positional] is None:
        parser.error(f"the following argument is required: {positional.upper()}")
    return _make(config_class, {name: values[name] for name in names}, prog)


def fill_config(config_class: type[ConfigT], values: Mapping[str, Any], *, source: str) -> ConfigT:
    """Fill a config dataclass from a mapping, under the checks that the fields of a ``--config`` file get.

    Args:
        source: what names the mapping in a message, such as its file and its place there.

    Raises:
        InputError: a field is not known, of a wrong type, missing, or refused by the config itself.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(config_class, allow_abbrev=False)
    _check_names(dict(values), [field.name for field in dataclasses.fields(config_class) if field.init], source)
    _set_yaml_defaults(parser, dict(values), get_type_hints(config_class), source)
    missing = next((action.dest for action in parser._actions if action.required), None)
    if missing is not None:
        raise InputError(f"{source}: the field '{missing}' is needed")
    return _make(config_class, vars(parser.parse_args([])), source)


def _make(config_class: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    try:
        return config_class(**values)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults where there are any, and each option once, however it may be spelt."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action, argparse._StoreFalseAction):
            return f"turns --{action.dest.replace('_', '-')} off"
        if action.default is None or action.default == "" or action.default == []:
            return action.help
        if isinstance(action.default, list):
            words = " ".join(map(str, action.default)).replace("%", "%%")
            return f"{action.help} (default: {words})"
        return super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = [option for option in action.option_strings if "_" not in option]
        arguments = "" if action.nargs == 0 else self._format_args(action, action.dest.upper())
        return f"{', '.join(names)} {arguments}".rstrip()


def _accept_bare_word(parser: argparse.ArgumentParser, field: str) -> bool:
    """Let ``field`` be given as a bare word too; whether one of the two must be given."""
    action = next(action for action in parser._actions if action.dest == field)
    nargs = "*" if action.nargs in ("+", "*") else "?"  # a field that holds a list takes several words
    parser.add_argument("bare_word", metavar=field.upper(), nargs=nargs, default=None, help=f"same as --{field}")
    # argparse cannot say "this word or that option": parse_config asks for whichever was not given
    required, action.required = action.required, False
    return required


def _check_names(values: dict[str, Any], names: list[str], file: str) -> None:
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known fields: {', '.join(sorted(names))}"
            raise InputError(f"{file}: there is no field '{key}'{hint}")


def _set_yaml_defaults(
    parser: argparse.ArgumentParser, values: dict[str, Any], hints: dict[str, Any], file: str
) -> None:
    for key, value in values.items():
        action = next(action for action in parser._actions if action.dest == key)
        parser.set_defaults(**{key: _typed(action, value, hints[key], f"{file}: the field '{key}'")})
        action.required = False


def _typed(action: argparse.Action, value: Any, hint: Any, where: str) -> Any:
    """A YAML value under the same checks as a word of the command line: argparse checks no default that is not a string."""
    takes_list = action.nargs in ("+", "*")
    if value is None:
        if (action.default is None and not action.required) or _mentions(hint, type(None)):
            return None
        raise InputError(f"{where} must not be null or empty; give it a value, or leave the line out")
    if isinstance(value, Mapping):
        if _mentions(hint, dict) and not takes_list:
            return value
        raise InputError(f"{where} takes {'a list' if takes_list else 'one value'}, not the mapping {_shown(value)}")
    if isinstance(value, list):
        if takes_list:
            return [_typed_item(action, item, hint, where) for item in value]
        if _mentions(hint, list):
            return value
        raise InputError(f"{where} takes one value, not the list {_shown(value)}")
    if takes_list:
        raise InputError(f"{where} takes a list, such as [{value}], not {_shown(value)}")
    return _typed_word(action, value, hint, where)


def _typed_item(action: argparse.Action, item: Any, hint: Any, where: str) -> Any:
    if isinstance(item, Mapping) and _mentions(hint, dict):
        return item
    if item is None or isinstance(item, list | Mapping):
        raise InputError(f"{where} takes a list of plain values, and {_shown(item)} is none")
    return _typed_word(action, item, hint, where)


def _shown(value: Any) -> str:
    """A value as a message shows it, however long or deep it is."""
    if isinstance(value, int) and abs(value) >= 10**80:
        return "a number of more than 80 digits"
    shown = reprlib.Repr()
    shown.maxstring = shown.maxlong = shown.maxother = 80
    shown.maxlevel = 3
    return shown.repr(value)


def _typed_word(action: argparse.Action, value: Any, hint: Any, where: str) -> Any:
    if isinstance(value, bool):
        if _mentions(hint, bool):
            return value
        raise InputError(f"{where} must not be {value} (YAML reads yes, no, on and off so; put a word in quotes)")
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{where} holds a NUL character, which no path or name can; mend it")
    if not isinstance(value, str | int | float | date):
        raise InputError(f"{where} takes one value, not the {type(value).__name__} {_shown(value)}")
    try:
        typed = value if action.type is None else action.type(str(value))
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        kind = getattr(action.type, "__name__", "value")
        kind = "bool" if kind == "string_to_bool" else kind
        raise InputError(f"{where} must be of type {kind}, not {_shown(value)}") from error
    if action.choices is not None and typed not in action.choices:
        raise InputError(f"{where} must be one of {', '.join(map(str, action.choices))}, not {_shown(value)}")
    return typed


def _mentions(hint: Any, kind: type) -> bool:
    return hint is kind or get_origin(hint) is kind or any(_mentions(part, kind) for part in get_args(hint))


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A YAML file that holds one mapping.

    Raises:
        InputError: it cannot be read, is not UTF-8, is not YAML, is not a mapping, or has a field twice.
    """
    text = read_text(path)
    try:
        values = yaml.load(text, Loader=_PlainLoader)
    except RecursionError as error:
        raise InputError(f"{path}: not valid YAML: it is nested too deeply; write it flatter") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # PyYAML lets the errors of numbers, dates and tags through as they are
        raise InputError(
            f"{path}: a number, date or tag is none ({error}); put the value in quotes, or mend it"
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected 'field: value' lines, found a {type(values).__name__}")
    return values


class _PlainLoader(yaml.SafeLoader):
    """YAML's safe loader, but what a recipe has no use for is an error.

    That is a field that stands there twice, of whose values the last would hold unseen, and aliases that unfold to more than
    any memory holds.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    problem=f"the field '{key.value}' stands there twice, the second time on line {line}; take one out"
                )
            seen.add(key.value)
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _unfolded(node, {}) > _MOST_UNFOLDED:
            raise yaml.composer.ComposerError(problem="its aliases (*name) unfold without a bound; write them out")
        return node


def _unfolded(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many characters and values a node holds, those behind aliases each time; infinity if it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if id(node) not in known:
        known[id(node)] = math.inf
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(item,) for item in node.value]
        known[id(node)] = 1 + sum(_unfolded(inner, known) for pair in pairs for inner in pair)
    return known[id(node)]


def require(value: Any, option: str) -> None:
    """Raise InputError where a field that has no default was given neither on the command line nor in YAML."""
    if value is None or value == "":
        raise InputError(f"the option {option} is needed; see --help")


def require_seed(seed: int) -> None:
    """Raise InputError for a seed that numpy and torch do not take."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed}: must be at least 0 and less than 2^32")


def require_folder(path: str | os.PathLike[str], option: str, remedy: str) -> Path:
    """The path if it is a folder.

    Raises:
        InputError: naming the path, the option and the remedy.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{option} {path}: there is no such folder; {remedy}")
    return folder


def make_folder(path: str | os.PathLike[str], option: str) -> Path:
    """The folder, made if it is not there: before long work, not after it.

    Raises:
        InputError: it cannot be made, or not written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written ({error.strerror}); give another folder") from error
    return folder


def save_config(config: Any, path: str | os.PathLike[str]) -> None:
    """Write a config dataclass (or a mapping) as YAML, atomically: the resolved config of a run, beside its output."""
    write_atomic(path, yaml.safe_dump(as_written(config), sort_keys=False))


def as_written(config: Any) -> dict[str, Any]:
    """A config dataclass (or a mapping) as :func:`read_yaml` gives it back after :func:`save_config`."""
    values = dict(config) if isinstance(config, Mapping) else dataclasses.asdict(config)
    return json.loads(json.dumps(values, default=str))


# what any look at a path can end in, also at one that is only asked whether it is there
_BAD_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR)


class _PrintableRecord(logging.LogRecord):
    """A log line without the control characters that a data set or a checkpoint may hold, whoever writes it."""

    def getMessage(self) -> str:
        return printable(super().getMessage())


def run_main(run: Callable[[], Any]) -> int:
    """Run a command's work and turn its end into an exit code: 0 done, 2 bad input or usage, 1 stopped by the
    user or come to nothing.

    Any other exception passes through with its traceback, which ends a process with 1.
    """
    quiet_others()
    logging.setLogRecordFactory(_PrintableRecord)  # transformers, for one, has a handler of its own
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        try:
            run()
        finally:
            sys.stdout.flush()  # what a closed pipe does not take must not be met at the interpreter's end
    except InputError as error:
        return _fail(f"{error}", 2)
    except RunError as error:
        return _fail(f"{error}", 1)
    except KeyboardInterrupt:
        return _fail("stopped; run the same command again to go on", 1, prefix="")
    except BrokenPipeError:
        # whoever read the output, such as head, has enough; the interpreter would complain as it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _BAD_PATH and error.filename:
            return _fail(f"{error.filename}: cannot be used ({error.strerror}); give another path", 2)
        if not is_disk_full(error):
            raise
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return _fail(f"{where}the disk is full; make room and run the same command again, which goes on from here", 1)
    return 0


def _fail(message: str, code: int, *, prefix: str = "error: ") -> int:
    sys.stderr.write(f"{prefix}{printable(message)}\n")
    return code


def command(
    config_class: type[ConfigT],
    run: Callable[[ConfigT], Any],
    *,
    prog: str,
    description: str,
    example: str,
    positional: str | None = None,
) -> Callable[[Sequence[str] | None], int]:
    """The ``main(argv=None) -> exit code`` of a stage."""

    def main(argv: Sequence[str] | None = None) -> int:
        return run_main(
            lambda: run(
                parse_config(
                    config_class, argv, prog=prog, description=description, example=example, positional=positional
                )
            )
        )

    return main
