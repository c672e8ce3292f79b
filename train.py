"""`deepspeed train.py --config …`, `torchrun train.py …` or `python train.py …`: see llava_pose/train/training.py."""

from llava_pose.utils.other_packages import quiet_others

quiet_others()  # some packages speak while they are imported

from llava_pose.train.training import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
