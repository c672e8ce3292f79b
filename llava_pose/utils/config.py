"""One parser from YAML and the command line to a stage's config dataclass, and one way a command ends.

A stage is ``@dataclass class XConfig``, ``def x(config)`` and ``main = command(XConfig, x, …)``. A field declares all there is
to know about an option: its type and bounds (``Literal``, pydantic's ``PositiveInt`` and the like), its default, and its help
in ``field(metadata={"help": …})``. Values from YAML, from the command line and from Python are held against it in one place.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import inspect
import json
import logging
import math
import os
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NoReturn,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from llava_pose.errors import InputError, RunError
from llava_pose.utils.files import is_disk_full, printable, read_text, write_atomic
from llava_pose.utils.other_packages import quiet_others

ConfigT = TypeVar("ConfigT")
ValueT = TypeVar("ValueT")
logger = logging.getLogger(__name__)
_NEXT = logging.getLogger("llava_pose.next")
STEP_VARIABLE = "LLAVA_POSE_STEP"  # set by a script whose steps are commands, and which says itself what comes next
_MOST_LISTED = 40  # fields in a message
_MOST_BYTES = 1 << 18  # of a YAML file, of which the parser reads about 100 KB a second
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
        values[name] = _validated(word, hints[name], f"{_option(name)}:")
    for name in ("out", "save_overlay"):
        if (
            config_file is not None
            and name in values
            and Path(values[name] or "").resolve() == Path(config_file).resolve()
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
        setattr(config, name, _validated(getattr(config, name), hints[name], f"{_option(name)}:"))


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
        fields = {field.name: field for field in _fields((kind,)) if not _holds_mappings(hints[field.name])}
        ours = [name for name in _declared(kind) if name in fields]
        for name in [*ours, *(name for name in fields if name not in ours)]:
            hidden = name in getattr(kind, "hidden_options", ())
            text = argparse.SUPPRESS if hidden else _help(fields[name])
            _add_option(parser if name in ours else inherited, fields[name], hints[name], text)
    if positional is not None:
        several = "*" if _takes_list(hints[positional]) else "?"
        parser.add_argument(
            "bare_word", metavar=positional.upper(), nargs=several, help=f"same as {_option(positional)}"
        )
    return parser


def _add_option(group: Any, field: dataclasses.Field, hint: Any, text: str) -> None:
    option, metavar = _option(field.name), field.name.upper()
    if _is_boolean(hint):
        # --flip true is understood as well: recipes of transformers are often written so
        group.add_argument(option, dest=field.name, nargs="?", const=True, metavar="", help=text)
        group.add_argument(f"--no-{option[2:]}", dest=field.name, action="store_false", help=argparse.SUPPRESS)
        return
    choices = _choices(hint)
    if choices:
        metavar = "{" + ",".join(map(str, choices)) + "}"
    several = {"nargs": "+", "action": "extend"} if _takes_list(hint) else {}
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
            raise InputError(f"{source}: there is no field '{key}'{hint}")
    return {key: _validated(value, hints[key], f"{source}: the field '{key}'") for key, value in values.items()}


def _validated(value: Any, hint: Any, where: str) -> Any:
    """The value as its type has it, with words made numbers.

    Raises:
        InputError: it is not of the type, or out of its bounds.
    """
    if value is None and not _may_be_none(hint):
        raise InputError(f"{where} must not be null or empty; give it a value, or leave the line out")
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{where} holds a NUL character, which no path or name can; mend it")
    if isinstance(value, bool) and not _is_boolean(hint):  # which is a number to Python, and no word's to YAML's
        raise InputError(f"{where} must not be {value} (YAML reads yes, no, on and off so; put a word in quotes)")
    _require_64_bits(value, where)
    try:
        valid = _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{where} {_complaint(error, hint)}, not {_shown(value)}") from error
    _require_64_bits(valid, where)
    return valid


def _require_64_bits(value: Any, where: str) -> None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # no numpy or torch integer holds it
        raise InputError(f"{where} must be a number of 64 bits, not {_shown(value)}")


def _shown(value: Any) -> str:
    """A value as a message shows it, however long or deep it is."""
    if isinstance(value, int) and abs(value) >= 10**80:
        return "a number of more than 80 digits"
    shown = reprlib.Repr()
    shown.maxstring = shown.maxlong = shown.maxother = 80
    shown.maxlevel = 3
    return shown.repr(value)


@cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def _complaint(error: ValidationError, hint: Any) -> str:
    for detail in error.errors():
        bounds = detail.get("ctx", {})
        for name, words in (("gt", "over"), ("ge", "at least"), ("lt", "less than"), ("le", "at most")):
            if name in bounds:
                bound = bounds[name]
                return f"must be {words} {int(bound) if bound == int(bound) else bound}"
        if detail["type"] == "finite_number":
            return "must be a finite number"
    choices = _choices(hint)
    return f"must be one of {', '.join(map(str, choices))}" if choices else f"must be {_described(hint)}"


def _described(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Annotated:
        return _described(get_args(hint)[0])
    if _is_union(hint):
        parts = [_described(part) for part in get_args(hint) if part is not type(None)]
        return " or ".join(dict.fromkeys(parts))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    kind = get_origin(hint) or hint
    if kind is list:
        inner = get_args(hint)
        return f"a list, each of it {_described(inner[0])}" if inner else "a list"
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _parts(hint: Any) -> list[Any]:
    """The members of a union, without None and without bounds; of anything else that."""
    if get_origin(hint) is Annotated:
        return _parts(get_args(hint)[0])
    if _is_union(hint):
        return [part for member in get_args(hint) if member is not type(None) for part in _parts(member)]
    return [hint]


def _may_be_none(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return _may_be_none(get_args(hint)[0])
    return hint in (None, type(None), Any) or (_is_union(hint) and any(map(_may_be_none, get_args(hint))))


def _is_boolean(hint: Any) -> bool:
    return bool in _parts(hint)


def _takes_list(hint: Any) -> bool:
    return all((get_origin(part) or part) is list for part in _parts(hint))


def _holds_mappings(hint: Any) -> bool:
    """Whether only YAML can say it."""
    return all(
        (get_origin(part) or part) is dict or (_takes_list(part) and dict in _parts((get_args(part) or (str,))[0]))
        for part in _parts(hint)
    )


def _choices(hint: Any) -> tuple[Any, ...]:
    return tuple(choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part))


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


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A YAML file that holds one mapping.

    Raises:
        InputError: it cannot be read, is larger than any settings are, is not UTF-8, is not YAML, is not a mapping, or has a
            field twice.
    """
    text = read_text(path, remedy="check the path, which is to lead to the YAML file of settings", most=_MOST_BYTES)
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
    any memory holds. Numbers to the base of 60 (1:30 would be 90) are text, as they are in YAML 1.2.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # a name or None, whatever the stubs say
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

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """Return the number of a scalar; text, where it would be one to the base of 60."""
        if ":" in node.value:
            return node.value
        is_whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_number)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_number)


def _unfolded(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many characters and values a node holds, those behind aliases each time; infinity if it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if id(node) not in known:
        known[id(node)] = math.inf
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(item,) for item in node.value]
        known[id(node)] = 1 + sum(_unfolded(inner, known) for pair in pairs for inner in pair)
    return known[id(node)]


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


def save_config(config: Any, path: str | os.PathLike[str], *, heading: str = "") -> None:
    """Write a config dataclass (or a mapping) as YAML, atomically: the resolved config of a run, beside its output.

    Args:
        heading: a comment to begin with, a line that starts with ``#``.
    """
    write_atomic(path, f"{heading}{heading and chr(10)}{yaml.safe_dump(as_written(config), sort_keys=False)}")


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
        for chatty in ("httpx", "trimesh"):  # a line for every request, for every mesh
            logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        try:
            with steps_of_a_whole() if os.environ.get(STEP_VARIABLE) else nullcontext():
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


def say_next(command: str) -> None:
    """Log the command that goes on from here; not where this one is a step of a larger whole, which says so itself."""
    _NEXT.info(f"next: {command}")


@contextmanager
def steps_of_a_whole() -> Iterator[None]:
    """Let no command that runs inside say what comes next."""
    level = _NEXT.level
    _NEXT.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _NEXT.setLevel(level)


def _fail(message: str, code: int, *, prefix: str = "error: ") -> int:
    sys.stderr.write(f"{prefix}{printable(message)}\n")
    return code


class Main(Protocol):
    """The main function of a command."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


@dataclass(frozen=True)
class Command(Generic[ConfigT]):
    """A command: the main function of its words, and its config and its work for whoever calls it from Python.

    Attributes:
        config_class: the dataclass of its options; :func:`fill_config` fills it from a mapping.
        run: its work; it raises what :func:`run_main` turns into exit codes.
    """

    config_class: type[ConfigT]
    run: Callable[[ConfigT], Any]
    prog: str
    description: str
    example: str
    positional: str | None = None

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        return run_main(lambda: self.run(self._parsed(argv)))

    def _parsed(self, argv: Sequence[str] | None) -> ConfigT:
        texts = {"prog": self.prog, "description": self.description, "example": self.example}
        return parse_config(self.config_class, argv, positional=self.positional, **texts)


def command(
    config_class: type[ConfigT],
    run: Callable[[ConfigT], Any],
    *,
    prog: str,
    description: str,
    example: str,
    positional: str | None = None,
) -> Command[ConfigT]:
    """Make the main function of a command: words become its config, and its end an exit code."""
    return Command(config_class, run, prog, description, example, positional)
