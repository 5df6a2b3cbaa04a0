"""Reading what a run left behind."""

import pytest

from rlhf.errors import UserError
from rlhf.report.artefacts import Measure, read_artefacts, read_lines, read_measure, series


@pytest.mark.parametrize(
    ("found", "measure"),
    [
        ({"value": 1, "low": 0, "high": 2}, Measure(1.0, 0.0, 2.0)),
        ({"value": 1}, Measure(1.0, 1.0, 1.0)),
        (0.5, Measure(0.5, 0.5, 0.5)),
        (None, None),
        ("x", None),
        (True, None),
        (float("nan"), None),
        ({"value": 1.0, "low": None, "high": 2}, None),
    ],
)
def test_measures_are_read_with_and_without_an_interval(found, measure):
    assert read_measure(found) == measure


def test_last_line_cut_short_is_left_out_and_others_are_errors(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not JSON"):
        read_lines(path)


def test_series_takes_finite_values_of_one_metric():
    records = [
        {"step": 1, "loss": 2.0},
        {"step": 2},
        {"step": 3, "loss": float("nan")},
        {"step": 4, "loss": 1},
        {"loss": 9},
    ]
    assert series(records, "loss") == ([1.0, 4.0], [2.0, 1.0])


def test_missing_parts_are_named(run_folder):
    assert read_artefacts(run_folder).missing == ()
    (run_folder / "frontier.json").unlink()
    (run_folder / "safety" / "metrics.jsonl").unlink()
    assert read_artefacts(run_folder).missing == ("frontier.json", "safety/metrics.jsonl")
