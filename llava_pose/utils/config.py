"""One parser from YAML and the command line to a stage's config dataclass, and one way a command ends.

A stage is ``@dataclass class XConfig``, ``def x(config)`` and ``main = command(XConfig, x, …)``. A field declares all there is
to know about an option: its type and bounds (``Literal``, pydantic's ``PositiveInt`` and the like), its default, and its help
in ``field(metadata={"help": …})``. Values from YAML, from the command line and from Python are held against it in one place.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from llava_pose.errors import InputError
from llava_pose.utils.files import shortened
from llava_pose.utils.values import choices_of, holds_mappings, is_boolean, takes_list, validated
from llava_pose.utils.yaml_files import read_yaml

ConfigT = TypeVar("ConfigT")

ValueT = TypeVar("ValueT")

logger = logging.getLogger(__name__)

_MOST_LISTED = 40  # fields in a message


def parse_config(
    config_class: type[ConfigT],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    example: str,
    positional: str | None = None,
) -> ConfigT:
    """Fill one config dataclass, as :func:`parse_configs` fills several."""
    filled = parse_configs(
        (config_class,), argv, prog=prog, description=description, example=example, positional=positional
    )
    return filled[0]


def parse_configs(
    config_classes: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    example: str,
    positional: str | None = None,
    closing: str = "",
) -> tuple[Any, ...]:
    """Fill config dataclasses from ``--config file.yaml`` and ``--field value`` options; the command line wins.

    Args:
        config_classes: dataclasses, no two with a field of one name, which are filled in this order; help leaves out the
            fields that their ``hidden_options`` name. A boolean field is the
            options ``--field`` and ``--no-field``, one that holds a list takes several words, and one that holds mappings
            stands in YAML alone.
        argv: the words after the command's name; those of the process by default.
        positional: a field that may also be given as a bare word (``predictions.jsonl``).
        closing: what help ends with.

    Raises:
        InputError: an option is not known, is missing, or has a value that its field does not take; so for a YAML file.
        SystemExit: ``--help`` was given (0).
    """
    parser = _parser(config_classes, prog, description, f"{example}{closing and chr(10)}{closing}", positional)
    given = vars(parser.parse_args([_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]))
    config_file = given.pop("config", None)
    bare = given.pop("bare_word", None)
    if bare and positional is not None:
        given[positional] = bare
    values: dict[str, Any] = {}
    if config_file is not None:
        values = _checked(config_classes, read_yaml(config_file), config_file)
    hints = _hints(tuple(config_classes))
    for name, word in given.items():
        values[name] = validated(word, hints[name], f"{_option(name)}:")
    for name in ("out", "save_overlay"):
        if (
            config_file is not None
            and name in values
            and os.path.realpath(values[name] or "") == os.path.realpath(config_file)
        ):
            raise InputError(f"{_option(name)} {values[name]}: is the recipe itself; name another")
    missing = [_option(name) for name in _required(config_classes) if name not in values]
    if missing:
        raise InputError(f"{_these('option', missing)} needed; see {prog} --help")
    return tuple(
        _make(kind, {name: values[name] for name in _names((kind,)) if name in values}, prog) for kind in config_classes
    )


def fill_config(config_class: type[ConfigT], values: Mapping[str, Any], *, source: str) -> ConfigT:
    """Fill a config dataclass from a mapping, under the checks that the fields of a ``--config`` file get.

    Args:
        source: what names the mapping in a message, such as its file and its place there.

    Raises:
        InputError: a field is not known, of a wrong type, missing, or refused by the config itself.
    """
    return fill_configs((config_class,), values, source=source)[0]


def fill_configs(config_classes: Sequence[type], values: Mapping[str, Any], *, source: str) -> tuple[Any, ...]:
    """Fill several config dataclasses, no two with a field of one name, as :func:`fill_config` fills one."""
    checked = _checked(config_classes, values, source)
    missing = [f"'{name}'" for name in _required(config_classes) if name not in checked]
    if missing:
        raise InputError(f"{source}: {_these('field', missing)} needed")
    return tuple(
        _make(kind, {name: checked[name] for name in _names((kind,)) if name in checked}, source)
        for kind in config_classes
    )


def check_fields(config: Any, names: Iterable[str] | None = None) -> None:
    """Hold the fields of a config that was made in Python against their types and bounds, for its ``__post_init__``.

    Args:
        names: check these fields only; by default all.

    Raises:
        InputError: naming the option and what it must be.
    """
    hints = _hints((type(config),))
    for name in _names((type(config),)) if names is None else names:
        setattr(config, name, validated(getattr(config, name), hints[name], f"{_option(name)}:"))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows a boolean as ``--flip / --no-flip``."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.const is True and action.nargs == "?":
            return f"{action.option_strings[0]} / --no-{action.option_strings[0][2:]}"
        return super()._format_action_invocation(action)


class _Parser(argparse.ArgumentParser):
    """Reads words; what they may be is checked afterwards, with the values of YAML, so that both get the same sentences."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        values, strange = self.parse_known_args(args, namespace)
        if strange:
            known = [option for action in self._actions for option in action.option_strings]
            self.error(f"there is no option {strange[0]}{_did_you_mean(strange[0].partition('=')[0], known)}")
        return values


def _parser(
    config_classes: Sequence[type], prog: str, description: str, example: str, positional: str | None
) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [options]" if positional is None else f"{prog} {positional.upper()} … [options]",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="a YAML file of these options; the command line wins")
    inherited = parser.add_argument_group("options of transformers' TrainingArguments")
    hints = _hints(tuple(config_classes))
    for kind in config_classes:
        fields = {field.name: field for field in _fields((kind,)) if not holds_mappings(hints[field.name])}
        ours = [name for name in _declared(kind) if name in fields]
        for name in [*ours, *(name for name in fields if name not in ours)]:
            hidden = name in getattr(kind, "hidden_options", ())
            text = argparse.SUPPRESS if hidden else _help(fields[name])
            _add_option(parser if name in ours else inherited, fields[name], hints[name], text)
    if positional is not None:
        several = "*" if takes_list(hints[positional]) else "?"
        parser.add_argument(
            "bare_word", metavar=positional.upper(), nargs=several, help=f"same as {_option(positional)}"
        )
    return parser


def _add_option(group: Any, field: dataclasses.Field, hint: Any, text: str) -> None:
    option, metavar = _option(field.name), field.name.upper()
    if is_boolean(hint):
        # --flip true is understood as well: recipes of transformers are often written so
        group.add_argument(option, dest=field.name, nargs="?", const=True, metavar="", help=text)
        group.add_argument(f"--no-{option[2:]}", dest=field.name, action="store_false", help=argparse.SUPPRESS)
        return
    choices = choices_of(hint)
    if choices:
        metavar = "{" + ",".join(map(str, choices)) + "}"
    several = {"nargs": "+", "action": "extend"} if takes_list(hint) else {}
    group.add_argument(option, dest=field.name, metavar=metavar, help=text, **several)


def _help(field: dataclasses.Field) -> str:
    text = str(field.metadata.get("help", "")).replace("%", "%%")
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = " ".join(map(str, field.default_factory()))
    if default is dataclasses.MISSING:
        return f"{text} (required)"
    if default is None or default == "":
        return text
    shown = {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default).replace("%", "%%")
    return f"{text} (default: {shown})"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _dashed(word: str) -> str:
    """``--two_words`` is understood as ``--two-words``, which is how help shows it."""
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


@cache
def _hints(config_classes: tuple[type, ...]) -> dict[str, Any]:
    return {name: hint for kind in config_classes for name, hint in get_type_hints(kind, include_extras=True).items()}


def _fields(config_classes: Sequence[type]) -> list[dataclasses.Field]:
    return [field for kind in config_classes for field in dataclasses.fields(kind) if field.init]


def _names(config_classes: Sequence[type]) -> list[str]:
    return [field.name for field in _fields(config_classes)]


def _required(config_classes: Sequence[type]) -> list[str]:
    return [
        field.name
        for field in _fields(config_classes)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


def _these(kind: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"the {kind} {names[0]} is"
    return f"the {kind}s {', '.join(names[:-1])} and {names[-1]} are"


def _checked(config_classes: Sequence[type], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values of a mapping, as their fields have them."""
    names, hints = _names(config_classes), _hints(tuple(config_classes))
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            known = (
                f"; known fields: {', '.join(sorted(names))}" if len(names) <= _MOST_LISTED else "; --help lists them"
            )
            hint = f"; did you mean '{near[0]}'?" if near else known
            raise InputError(f"{source}: there is no field {shortened(str(key))}{hint}")
    return {key: validated(value, hints[key], f"{source}: the field '{key}'") for key, value in values.items()}


def _declared(config_class: type) -> list[str]:
    """The fields that are ours, or to which we give another default than transformers does, base classes first."""
    kinds = [kind for kind in reversed(config_class.__mro__) if not kind.__module__.startswith("transformers.")]
    return list(dict.fromkeys(name for kind in kinds for name in inspect.get_annotations(kind)))


def _make(config_class: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    try:
        return config_class(**values)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error


def require(value: ValueT | None, option: str) -> ValueT:
    """A field that has no default; InputError where it was given neither on the command line nor in YAML."""
    if value is None or value == "":
        raise InputError(f"the option {option} is needed; see --help")
    return value


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
