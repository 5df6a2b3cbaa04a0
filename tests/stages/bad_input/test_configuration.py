"""Keys and values that cannot be: mistyped, of the wrong type, at odds with each other, the data, the devices or the disk."""

import pytest


@pytest.mark.parametrize(
    ("setting", "value", "parts"),
    [
        ("loop.batchsize", 4, ["command line: unknown key loop.batchsize", "did you mean loop.batch_size?"]),
        ("learning_rate", 4, ["command line: unknown key learning_rate", "did you mean optimizer.learning_rate?"]),
        ("loop.batch_size", "many", ["command line: loop.batch_size should be int, found 'many'"]),
        ("optimizer.schedule", "cosin", ["should be one of constant, linear, cosine, wsd, found 'cosin'"]),
        ("optimizer.learning_rate", -1, ["optimizer.learning_rate is -1"]),
        ("template", "chatlm", ["no chat template is called 'chatlm'", "user_ai"]),
        ("data.layout", "alpca", ["data.layout: no layout is called 'alpca'", "alpaca"]),
        ("data.held_out", 1.5, ["data.held_out: expected a fraction from 0 to below 1, found 1.5"]),
        ("loop.steps", 0, ["loop.steps is 0; expected more than 0"]),
        ("loop.steps", None, ["give either steps or epochs, and not both; found neither"]),
        ("loop.epochs", 1, ["found steps = 2 and epochs = 1"]),
        ("loop.batch_size", 9, ["loop.batch_size is 9, but there are only 8 training rows"]),
        ("loop.micro_batches", 3, ["loop.batch_size (4) is not a multiple of loop.micro_batches (3)"]),
        ("mesh.data", 0, ["mesh: expected positive sizes", "data=0"]),
        ("mesh.data", 1000, ["needs 1000 devices, found "]),
        ("mesh.data", 8, ["loop.batch_size is 4, which is no multiple of the 8 devices", "choose a multiple of 8"]),
        ("mesh.tensor", 4, ["mesh.tensor = 4 does not divide the axis"]),
    ],
)
def test_one_wrong_setting_of_sft(refused, working, setting, value, parts):
    refused("sft", working["sft"] | {setting: value}, *parts)


@pytest.mark.parametrize(
    ("setting", "value", "parts"),
    [
        ("rules", [], ["nothing to optimise: helpfulness, safety and rules are all unset"]),
        ("rules", ["lenght_near:3"], ['no reward rule "lenght_near:3"', 'did you mean "length_near"?']),
        ("rules", ["no.module:function"], ['no reward rule "no.module:function"', "package.module:function"]),
        ("ppo.minibatch_size", 3, ["ppo.minibatch_size (3) does not divide ppo.rollout_batch_size (4)"]),
        ("ppo.minibatch_size", 0, ["ppo.minibatch_size is 0; expected more than 0"]),
        ("ppo.micro_batches", 3, ["ppo.micro_batches (3) does not divide ppo.minibatch_size (2)"]),
        ("ppo.score_micro_batches", 3, ["ppo.score_micro_batches (3) does not divide ppo.rollout_batch_size (4)"]),
        ("ppo.rollout_batch_size", 16, ["ppo.rollout_batch_size is 16, but there are only 8 prompts"]),
        ("ppo.response_length", 0, ["ppo.response_length is 0; expected more than 0"]),
        ("checkpoint_every", 0, ["checkpoint_every is 0; expected more than 0"]),
        ("mesh.data", 8, ["ppo.rollout_batch_size is 4, which is no multiple of the 8 devices"]),
    ],
)
def test_one_wrong_setting_of_ppo(refused, working, setting, value, parts):
    refused("ppo", working["ppo"] | {setting: value}, *parts)


@pytest.mark.parametrize(
    ("command", "setting", "value", "parts"),
    [
        ("best-of-n", "helpfulness", None, ["neither helpfulness nor safety is set"]),
        ("best-of-n", "n", [0], ["n is [0]"]),
        ("best-of-n", "batch_size", 0, ["batch_size is 0; expected more than 0"]),
        ("best-of-n", "batch_size", 3, ["batch_size is 3, which is no multiple of the 8 devices"]),
        ("evaluate", "policies", {}, ["policies is empty"]),
        ("evaluate", "samples_per_prompt", 0, ["samples_per_prompt is 0; expected more than 0"]),
        ("generate", "samples", 0, ["samples is 0; expected more than 0"]),
    ],
)
def test_one_wrong_setting_of_another_command(refused, working, command, setting, value, parts):
    devices = {} if command == "generate" else {"mesh.data": 8}
    refused(command, working[command] | devices | {setting: value}, *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model:\n  init_form: x\n", [":2: unknown key model.init_form", "did you mean model.init_from?"]),
        ("loop:\n  steps: [1]\n", [":2: loop.steps should be int | null, found [1]"]),
        ("loop: nowhere.yaml\n", [":1: loop names a configuration file that does not exist"]),
        ("loop: {steps: 1\n", ["is not YAML", "line 1"]),
    ],
)
def test_a_wrong_configuration_file(refused, tmp_path, text, parts):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    refused("sft", {"config": path}, str(path), *parts)


def test_a_missing_configuration_file(refused, tmp_path):
    refused("sft", {"config": tmp_path / "none.yaml"}, f"configuration file {tmp_path}/none.yaml: No such file")


def test_held_out_records_that_leave_nothing(refused, working):
    settings = working["sft"] | {"data.held_out": 0.5}
    refused("sft", settings | {"data.limit": 1}, "data.held_out is 0.5, but the data has only 1 different prompt")
    refused("sft", settings | {"data.held_out": 0.99}, "loop.batch_size is 4, but there are only 1 training rows")


@pytest.mark.parametrize("command", ["pretrain", "sft", "reward", "ppo", "best-of-n", "evaluate"])
def test_an_output_that_is_a_file(refused, working, tmp_path, command):
    path = tmp_path / "a"
    path.write_text("precious")
    refused(command, working[command] | {"output": path}, f"output: the folder {path} cannot be made", "another folder")
    refused(command, working[command] | {"output": path / "b"}, f"output: the folder {path}/b cannot be made")
    assert path.read_text() == "precious"


def test_an_output_that_cannot_be_written(refused, working, tmp_path, monkeypatch):
    # Root may write everywhere, so the system's answer is pretended.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    refused("sft", working["sft"], f"output: nothing can be written in the folder {tmp_path}/out", "permissions")


def test_a_pipeline_without_a_model(refused, tmp_path):
    settings = {"output": tmp_path / "out", "world": {}}
    refused("pipeline", settings, "neither pretrain nor sft.model.init_from is set", "set sft.model.init_from")
    assert not (tmp_path / "out").exists()


def test_a_pipeline_without_data(refused, tiny, tmp_path):
    settings = {"output": tmp_path / "out", "sft.model.init_from": tiny.policy, "sft.data.path": tiny.demonstrations}
    message = refused("pipeline", settings, "helpfulness.data.path, safety.data.path, ppo.data.path", "world={}")
    assert "sft.data.path" not in message and not (tmp_path / "out").exists()


def test_a_refused_command_leaves_a_finished_folder_as_it_was(refused, working, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("config.yaml", "summary.json"):
        (folder / name).write_text("{}")
    refused("best-of-n", working["best-of-n"] | {"data.path": tmp_path / "none.jsonl"}, "does not exist")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"config.yaml": "{}", "summary.json": "{}"}
