"""Data that is missing, empty, of another form, broken, or too long for the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LONG = "What is 1 plus one? " * 6
COMMANDS_WITH_DATA = ["pretrain", "sft", "reward", "ppo", "best-of-n", "evaluate"]


@pytest.mark.parametrize("command", COMMANDS_WITH_DATA)
def test_a_missing_file(refused, working, tmp_path, command):
    missing = tmp_path / "nowhere" / "data.jsonl"
    refused(command, working[command] | {"data.path": missing}, f"data.path {missing} does not exist", "check the path")


@pytest.mark.parametrize("command", ["sft", "reward", "ppo"])
def test_no_path_at_all(refused, working, command):
    refused(command, working[command] | {"data.path": ""}, "data.path is not set")


@pytest.mark.parametrize("command", ["pretrain", "sft", "reward", "ppo"])
@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("b.jsonl", "\n\n  \n"), ("c.json", "[]"), ("d.txt", "")]
)
def test_an_empty_file(refused, working, tmp_path, command, name, content):
    (tmp_path / name).write_text(content)
    path = tmp_path / name
    refused(command, working[command] | {"data.path": path}, f"data.path {path} is empty: there is no record in it")


@pytest.mark.parametrize(
    ("command", "accepted"),
    [
        ("pretrain", "text: text"),
        ("sft", "prompt_completion: prompt + completion"),
        ("reward", "prompt_pair: prompt + chosen + rejected"),
        ("ppo", "prompt: prompt, question"),
    ],
)
def test_columns_of_no_layout(refused, working, tmp_path, command, accepted):
    (tmp_path / "a.jsonl").write_text('{"foo": 1, "bar": 2}\n')
    found = f"{tmp_path}/a.jsonl:1: no layout for"
    refused(command, working[command] | {"data.path": tmp_path / "a.jsonl"}, found, "['bar', 'foo']", accepted)


def test_data_of_another_kind(refused, working, tiny):
    refused(
        "reward",
        working["reward"] | {"data.path": tiny.demonstrations},
        f"{tiny.demonstrations}:1",
        "['completion', 'prompt']",
        "which is the layout prompt_completion (demonstrations)",
    )


def test_broken_records_are_named_or_counted(refused, rlhf, working, tiny, tmp_path):
    path = tmp_path / "a.jsonl"
    good = Path(tiny.demonstrations).read_text()
    path.write_text(good + '{"prompt": "x",\n{"prompt": "x", "completion": 3}\n')
    settings = working["sft"] | {"data.path": path}
    refused("sft", settings, f"{path}:9: not valid JSON", "mend the record", 'data.on_bad_record to "skip"')
    # A batch larger than the data ends the command after the records have been counted.
    finished = rlhf("sft", settings | {"data.on_bad_record": "skip", "loop.batch_size": 100})
    assert "only 8 training rows" in finished.message
    assert f"8 records; skipped 2 (bad: 2, the first at {path}:9" in finished.output


def test_nothing_but_broken_records(refused, working, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{\n[1]\n")
    settings = working["sft"] | {"data.path": path, "data.on_bad_record": "skip"}
    refused("sft", settings, f"data.path {path}: none of its 2 records can be read, the first: {path}:1")


@pytest.mark.parametrize("command", ["ppo", "best-of-n", "evaluate"])
def test_a_prompt_beyond_the_limit(refused, working, tmp_path, command):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "Hi"}) + "\n" + json.dumps({"prompt": LONG}) + "\n")
    settings = working[command] | {"data.path": path}
    refused(
        command, settings, f"{path}:2: 59 tokens, but max_prompt_length is 32", "raise max_prompt_length", "too_long"
    )


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("ppo", "ppo.response_length"),
        ("best-of-n", "response_length"),
        ("evaluate", "response_length"),
        ("generate", "response_length"),
    ],
)
def test_prompt_and_response_beyond_the_context(refused, working, command, key):
    found = f"{key} is 40 and the longest prompt has"
    refused(command, working[command] | {key: 40}, found, "is 48 tokens", f"lower {key}")


def test_a_typed_prompt_beyond_the_context(refused, working):
    refused(
        "generate", working["generate"] | {"prompt": LONG}, "the longest prompt has 59 tokens", "policy is 48 tokens"
    )


@pytest.mark.parametrize(
    ("command", "record"),
    [("sft", {"prompt": "Hi", "completion": LONG}), ("reward", {"prompt": "Hi", "chosen": LONG, "rejected": "no"})],
)
def test_a_training_record_beyond_the_limit(refused, working, tmp_path, command, record):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    settings = working[command] | {"data.path": path}
    refused(command, settings, f"{path}:1: 62 tokens, but max_length is 48", "raise max_length")
    refused(command, settings | {"too_long": "skip"}, "all 1 records are longer than max_length, 48 tokens")


@pytest.mark.parametrize(
    ("command", "key"), [("pretrain", "row_length"), ("sft", "max_length"), ("reward", "max_length")]
)
def test_rows_beyond_the_context(refused, working, command, key):
    refused(
        command,
        working[command] | {key: 64},
        f"{key} is 64, but the model's context is 48 tokens",
        f"lower {key} to 48",
    )


def test_the_process_says_one_thing_and_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "rlhf", "sft", f"--output={tmp_path}/out", f"--data.path={tmp_path}/none.jsonl"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.splitlines() == [
        f"data.path {tmp_path}/none.jsonl does not exist",
        "  What to do: check the path (it is taken from the folder you run in)",
    ]
