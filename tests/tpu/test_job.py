"""What comes over a connection that breaks: no byte of the program's output is lost or shown twice."""

from hypothesis import given
from hypothesis import strategies as st
from launcher.job import LOST, LogReader, Status, parse_status

LINES = st.lists(st.text(alphabet="ab @", max_size=6), max_size=12)


def follow_output(log: bytes, first_byte: int, end: bytes | None) -> bytes:
    """What `job.sh follow` writes of a log."""
    trailer = b"" if end is None else b"\n@@rlhf-job " + end + b"\n"
    return b"@@rlhf-job from %d\n" % first_byte + log[first_byte - 1 :] + trailer


@given(LINES, st.integers(0, 200), st.integers(1, 7), st.booleans())
def test_every_byte_is_shown_once_however_the_connection_breaks(lines, cut, size, repeated_by_gcloud):
    log = "".join(f"{line}\n" for line in lines).encode()
    shown = []
    first = LogReader(0, shown.append)
    sent = follow_output(log, 1, None)[: len(b"@@rlhf-job from 1\n") + cut]
    for start in range(0, len(sent), size):
        first.feed(sent[start : start + size])
    assert first.status == LOST
    if repeated_by_gcloud:  # the same command again, in the same stream
        first.feed(b"\n" if not sent.endswith(b"\n") else b"")
    second = LogReader(first.position, shown.append)
    sent = follow_output(log, 1 if repeated_by_gcloud else first.position + 1, b"exited a1 3")
    for start in range(0, len(sent), size):
        second.feed(sent[start : start + size])
    if not repeated_by_gcloud:
        assert b"".join(shown) == log and second.position == len(log)
    assert second.status == Status("exited", "a1", 3)


def test_a_repeated_part_is_left_out():
    shown = []
    reader = LogReader(0, shown.append)
    reader.feed(follow_output(b"one\ntwo\n", 1, None))
    reader.feed(follow_output(b"one\ntwo\n\nthree\n", 1, b"exited a1 0"))
    assert b"".join(shown) == b"one\ntwo\n\nthree\n"
    assert reader.position == 15 and reader.status.exit_code == 0


def test_statuses():
    assert parse_status("running a1") == Status("running", "a1")
    assert parse_status("exited a1 143\n").exit_code == 143
    assert parse_status("absent") == Status("absent")
    assert parse_status("") == LOST
