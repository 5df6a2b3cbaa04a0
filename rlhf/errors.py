"""The one error a user is meant to read: what went wrong, where, and what to do about it; and the way to stop without one."""


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


class OrderlyStop(Exception):
    """A run ends before its time, all of its processes at the same point, with everything saved."""


def require_positive(config: object, *names: str, section: str = "") -> None:
    """Raises a UserError for the first of a configuration's numbers that is set and not above 0.

    Args:
        config: holds the numbers; None is a number that is not set.
        names: fields to look at.
        section: dotted key of the configuration, ending in a dot, for the message.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not (isinstance(value, int | float) and value > 0):
            raise UserError(
                f"{section}{name} is {value!r}; expected more than 0", fix=f"set {section}{name} to a positive number."
            )
