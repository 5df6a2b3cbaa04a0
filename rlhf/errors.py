"""The one error a user is meant to read: what went wrong, where, and what to do about it."""


class UserError(ValueError):
    """A mistake in the input (configuration, data, files) that the user can mend.

    The command line prints it without a traceback and exits with status 2; library callers catch it as a `ValueError`.

    Args:
        message: what was wrong and where: the config key or file and line, what was expected and what was found.
        fix: what to do, in one sentence.
    """

    def __init__(self, message: str, *, fix: str | None = None):
        self.fix = fix
        super().__init__(message if fix is None else f"{message}\n  What to do: {fix}")
