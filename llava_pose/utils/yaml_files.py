"""YAML files of settings: read as plain values, whatever they try, and written whole."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import yaml

from llava_pose.errors import InputError
from llava_pose.utils.files import read_text, write_atomic

MOST_BYTES = 1 << 18  # of a YAML file

_MOST_BITS = 1 << 10  # of a whole number: Python cannot write down what hexadecimal can say

_MOST_UNFOLDED = 10_000_000  # characters and values of a YAML file, its aliases written out


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A YAML file that holds one mapping.

    Raises:
        InputError: it cannot be read, is larger than any settings are, is not UTF-8, is not YAML, is not a mapping, or has a
            field twice.
    """
    text = read_text(path, remedy="check the path, which is to lead to the YAML file of settings", most=MOST_BYTES)
    return parse_yaml(text, str(path))


def parse_yaml(text: str, path: str) -> dict[str, Any]:
    """The mapping that a text of YAML holds; the parser reads some 100 KB a second.

    Args:
        path: of the file that the text is from, for messages.

    Raises:
        InputError: as :func:`read_yaml`.
    """
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
    any memory holds. Numbers to the base of 60 (1:30 would be 90) are text, as they are in YAML 1.2, and so are whole numbers
    of more than 1,024 bits.
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
        """Return the number of a scalar; text, where it would be one to the base of 60, or one that is too long."""
        if ":" in node.value:
            return node.value
        if node.tag != "tag:yaml.org,2002:int":
            return self.construct_yaml_float(node)
        number = self.construct_yaml_int(node)
        return number if number.bit_length() <= _MOST_BITS else node.value


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
