"""`deepspeed train.py --config …`, `torchrun train.py …` or `python train.py …`: see llava_pose/training.py."""

from llava_pose.noise import quiet_others

quiet_others()  # some packages speak while they are imported

from llava_pose.training import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
