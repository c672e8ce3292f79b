"""``python -m data_prep.render``: the same as ``llava-pose render``."""

from .generate import main

if __name__ == "__main__":
    raise SystemExit(main())
