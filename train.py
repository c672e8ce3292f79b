"""`deepspeed train.py --config …`, `torchrun train.py …` or `python train.py …`: see llava_pose/training.py."""

from llava_pose.training import main

if __name__ == "__main__":
    raise SystemExit(main())
