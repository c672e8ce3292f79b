"""`llava-pose …`: one line a command, each calling the stage's own main, imported only when it is asked for."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from llava_pose.utils.other_packages import quiet_others

# group -> command -> (module, or module:function where that is not main; what it does)
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "start here": {
        "chat": ("llava_pose.serve.chat", "Ask about one picture in the terminal."),
        "demo": ("llava_pose.serve.demo", "Ask about pictures in the browser."),
        "serve": ("llava_pose.serve.command", "Serve a checkpoint to programs, over OpenAI's protocol."),
        "orient-boxes": ("llava_pose.inference.orient_boxes", "Find the front of 3D boxes that have none."),
        "doctor": ("llava_pose.utils.doctor", "Say what is installed, and what will and will not run here."),
    },
    "data": {
        "import": ("data_prep.import_.command", "Bring another data set into ImageNet3D's raw layout."),
        "annotate": ("data_prep.annotate.command", "Label photographs in the browser, into the raw layout."),
        "render": ("data_prep.render.generate", "Render objects with known poses into ImageNet3D's raw layout."),
        "convert": ("llava_pose.data.convert", "Bring poses into the convention of another program, or back."),
        "align": ("data_prep.align", "Turn CAD models and annotations of a raw dataset into one frame."),
        "prepare": ("data_prep.prepare.command", "Crop every annotated object and write its record."),
        "export": ("data_prep.export", "Write prepared data in the processed layout of ImageNet3D's loaders."),
        "inspect": (
            "data_prep.inspect.command",
            "Show what any stage's output holds, as statistics, pages and sheets.",
        ),
        "caption": ("data_prep.caption.command", "Write a caption for each picture, with <pose6D> after each object."),
        "instruct": ("data_prep.instruct.command", "Write LLaVA conversations with <pose6D> from the records."),
        "validate": ("data_prep.instruct.validate", "Check a train.json against the prepared folder of its pictures."),
    },
    "train": {
        "assemble": ("llava_pose.backbones.assemble", "Join a vision tower and a language model to a base."),
        "train": (
            "llava_pose.train.command",
            "Fine-tune a base; train.py does the same under deepspeed and torchrun.",
        ),
        "merge": ("llava_pose.backbones.merge", "Merge what was trained into one checkpoint of plain transformers."),
        "classifier": ("eval.systems.classifier.command", "Train a pose classifier and predict with it."),
        "neural-mesh": ("eval.systems.neural_mesh.command", "Train NMM-Sphere or NOVUM and predict with it."),
    },
    "evaluate": {
        "predict": ("eval.predict", "Predict photographs, or every object of a prepared split."),
        "vlm-api": ("eval.systems.vlm_api", "Predict with a vision-language model behind an OpenAI-compatible server."),
        "orient-anything": ("eval.systems.orient_anything", "Bring Orient Anything's answers into our convention."),
        "objectron": ("eval.systems.objectron", "Predict chairs, cups, cameras and shoes with Objectron's networks."),
        "benchmark": ("eval.benchmark.command", "Train, predict and compare a list of systems: Tables 1 to 3."),
        "linear-probing": (
            "eval.benchmark.command:linear_probing",
            "Probe frozen backbones over the whole grid: Table 1.",
        ),
        "open-vocabulary": (
            "eval.benchmark.command:open_vocabulary",
            "Train on known categories, predict novel ones: Table 2.",
        ),
        "joint": ("eval.benchmark.command:joint", "Train on all categories, predict class and pose: Table 3."),
        "score": ("eval.score", "Turn predictions into tables and plots."),
        "tables": ("eval.tables", "Print the report's tables 1 to 3, with intervals and the published rows."),
        "leaderboard": ("eval.leaderboard", "Make the page of a data set's tables from files that people sent."),
        "report": (
            "eval.report.html_report",
            "Make one HTML page of predictions: tables, plots, best and worst answers.",
        ),
        "calibrate": ("eval.calibrate", "Find on held-out objects how far a checkpoint's confidence can be believed."),
        "sheet": ("eval.report.contact_sheet", "Draw predictions as axes on their pictures."),
    },
}
OF_FILES = {"predict": "llava_pose.inference.photos"}  # what a command does where its first word is a file
COMMANDS: dict[str, tuple[str, str]] = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def command_of(name: str) -> Any:
    """Return the main function of a command, for whoever wants its options or its work and not its words.

    What comes before training and what comes after it do not import each other; they meet here.
    """
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(import_module(module), function or "main")


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
        near = difflib.get_close_matches(words[0].strip().lower(), COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "llava-pose --help lists them"
        sys.stderr.write(f"error: there is no command '{words[0]}'; {hint}\n")
        return 2
    quiet_others()  # some speak while they are imported
    try:
        if words[0] in OF_FILES and words[1:] and not words[1].startswith("-"):
            return import_module(OF_FILES[words[0]]).main(words[1:])
        return command_of(words[0])(words[1:])
    except KeyboardInterrupt:  # in the seconds of the import, before the stage's own main can say it
        sys.stderr.write("stopped; run the same command again to go on\n")
        return 1


def _help() -> str:
    lines = ["usage: llava-pose COMMAND [options]    (llava-pose COMMAND --help says more, with an example)"]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<16} {what}" for name, (_, what) in commands.items())]
    lines += ["", "example:", "  llava-pose prepare --data-root imagenet3d --out prepared", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
