"""`llava-pose …`: one line a command, each calling the stage's own main, imported only when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from llava_pose.noise import quiet_others

COMMANDS = {
    "render": (
        "data_prep.render.generate",
        "make training pictures of parametric objects and mesh files, in ImageNet3D's raw layout",
    ),
    "align": ("data_prep.align", "CAD models and annotations of a raw dataset into one frame"),
    "prepare": ("data_prep.prepare", "raw annotations and images to crops and records"),
    "export": ("data_prep.export", "prepared data to the processed layout that ImageNet3D's loaders read"),
    "inspect": (
        "data_prep.inspect_data",
        "what any stage's output holds: statistics, samples, differences, CAD sheets",
    ),
    "caption": ("data_prep.caption", "a caption for each picture, with <pose6D> after each object that it names"),
    "instruct": ("data_prep.instructions", "records to LLaVA-format conversations with <pose6D>"),
    "validate": ("data_prep.validate", "work every answer of a train.json out again from the records"),
    "assemble": ("llava_pose.model.assemble", "a vision tower and a language model to a LLaVA-pose base"),
    "train": (
        "llava_pose.training",
        "fine-tune a base on one device; train.py is the same under deepspeed and torchrun",
    ),
    "merge": ("llava_pose.model.merge", "an adapter and its base to one full checkpoint that answers the same"),
    "classifier": ("eval.baselines.classifier", "train a pose classifier and predict with it"),
    "neural-mesh": ("eval.baselines.neural_mesh", "train a neural mesh model (NMM-Sphere, NOVUM) and predict with it"),
    "linear-probing": ("eval.linear_probing", "linear probes of frozen backbones, the whole grid of each at once"),
    "vlm-api": ("eval.baselines.vlm_api", "poses from a vision-language model behind an OpenAI-compatible server"),
    "orient-anything": ("eval.baselines.orient_anything", "answers in Orient Anything's convention to predictions"),
    "open-vocabulary": ("eval.open_vocabulary", "systems trained on known categories, predicting novel ones: Table 2"),
    "joint": ("eval.joint", "systems trained on all categories, predicting class and pose: Table 3"),
    "predict": ("eval.predict", "a checkpoint's answer for every object of a split"),
    "score": ("eval.score", "predictions to tables and plots"),
    "tables": ("eval.tables", "the report's tables 1, 2 and 3, with intervals and the published rows"),
    "sheet": ("eval.report.contact_sheet", "predictions drawn as axes on their pictures"),
    "chat": ("llava_pose.serve.chat", "ask about one picture in the terminal"),
    "demo": ("llava_pose.serve.demo", "ask about pictures in the browser"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 2 bad input or usage, 1 anything else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from llava_pose import __version__

        sys.stdout.write(f"llava-pose {__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        sys.stderr.write(f"error: there is no command '{words[0]}'; there are {', '.join(COMMANDS)}\n")
        return 2
    quiet_others()  # some speak while they are imported
    try:
        return import_module(COMMANDS[words[0]][0]).main(words[1:])
    except KeyboardInterrupt:  # in the seconds of the import, before the stage's own main can say it
        sys.stderr.write("stopped; run the same command again to go on\n")
        return 1


def _help() -> str:
    lines = [f"  {name:<16} {what}" for name, (_, what) in COMMANDS.items()]
    return (
        "usage: llava-pose COMMAND [options]    (llava-pose COMMAND --help says more, with an example)\n\n"
        + "\n".join(lines)
        + "\n\nexample:\n  llava-pose prepare --data-root imagenet3d --out prepared\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
