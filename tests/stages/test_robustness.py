"""A made-up training whose score grows by length alone, read with a rule that does not care for length."""

import json

import pytest

from rlhf.errors import UserError
from rlhf.stages import robustness


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "ppo"
    folder.mkdir()
    rows = [
        {
            "step": step,
            "prompt": "Well?",
            "response": "so " * step + "yes.",
            "helpfulness": step + 0.1 * number,
            "kl": step / 2,
        }
        for step in range(1, 9)
        for number in range(6)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_scores_are_read_anew_and_their_parting_is_found(run, tmp_path, capsys):
    config = robustness.Config(output=str(tmp_path / "out"), run=run, test_model="keyword:yes", bins=4)
    result = robustness.run(config)
    assert json.loads((tmp_path / "out" / "robustness.json").read_text()) == result
    first = result["along_training"][0]
    assert (first["first_step"], first["last_step"], first["responses"]) == (1, 2, 12)
    assert first["test"]["value"] == pytest.approx(0.25)  # one mention in two words and in three, of ten that are free
    assert result["first_departure"] == 3 and "part from iteration 3 on" in capsys.readouterr().err
    assert (tmp_path / "out" / "robustness.png").stat().st_size > 5_000


def test_what_is_missing_is_named(run, tmp_path):
    for settings, said in (
        ({"test_model": "ends_properly"}, "run is not set"),
        ({"run": run}, "test_model is not set"),
        ({"run": run, "test_model": "ends_properly", "trained_on": "nothing"}, "no responses with a score 'nothing'"),
    ):
        with pytest.raises(UserError, match=said):
            robustness.run(robustness.Config(output=str(tmp_path / "out"), **settings))
