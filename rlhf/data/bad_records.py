"""Why a record of a data set is not used: broken (the user decides) or unusable by nature (always left out, always counted)."""


class BadRecord(Exception):
    """The record is broken or does not fit its layout: an error, or skipped when `on_bad_record` is "skip"."""


class LeftOut(Exception):
    """The record is well formed but has nothing to teach, such as a tie; left out and counted under this reason."""
