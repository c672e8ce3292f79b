"""The one exception of the project that a user can mend."""


class InputError(ValueError):
    """Bad input or usage. The message is one sentence that names the file, the field and the remedy.

    Command lines end with exit code 2 on it, without a traceback.
    """
