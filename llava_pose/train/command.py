"""``llava-pose train``: the page train.py, which stands beside the package, in a clone as in an installed wheel."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import llava_pose


@cache
def page() -> ModuleType:
    """Load train.py as the module ``llava_pose_train_page``."""
    file = Path(llava_pose.__file__).resolve().parents[1] / "train.py"
    spec = spec_from_file_location("llava_pose_train_page", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file}: cannot be loaded")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(model_args: Any, data_args: Any, training_args: Any) -> Path:
    """Do what train.py does with these arguments; return the folder of the trained model."""
    return page().train(model_args, data_args, training_args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run train.py with these words."""
    return page().main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
