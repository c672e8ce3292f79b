"""The exceptions that end a command with one sentence instead of a traceback."""


class InputError(ValueError):
    """Bad input or usage. The message is one sentence that names the file, the field and the remedy.

    Command lines end with exit code 2 on it, without a traceback.
    """


class RunError(RuntimeError):
    """The input was right, and what came of it is not: a loss that is no number, weights that a disk lost.

    Command lines end with exit code 1 on it, without a traceback.
    """
