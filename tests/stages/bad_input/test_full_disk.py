"""A disk that is full when something is saved: nothing saved before is lost, and the same command continues when there is room.

A limit on the size of files makes the kernel refuse a write as a full disk does; /dev/full refuses every write.
"""

import errno
import gc
import resource
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import pytest

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)


@contextmanager
def largest_file(size: int):
    """Lets no file grow beyond so many bytes. Compiled programs are not kept meanwhile."""
    former, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    keeping = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (former, hard))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", keeping)


def full(*arguments, **options):
    """Stands for a function that writes, and fails as it does on a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_while_a_checkpoint_is_saved(run, refused, rlhf, caplog):
    run.forget("checkpoints/4", "model", "summary.json")
    with largest_file(12_000):
        message = refused(
            run.command, run.settings, "the disk is full", "Checkpoints intact: 3", "run the same command"
        )
    gc.collect()  # asyncio reports errors that nobody asked for when they are thrown away
    assert "rror" not in message and not [record for record in caplog.records if record.name == "asyncio"]
    assert rlhf(run.command, run.settings).status == 0
    assert run.same_result()


def test_before_a_checkpoint_is_saved(run, refused, monkeypatch):
    run.forget("checkpoints/4", "model", "summary.json")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    refused(run.command, run.settings, "the disk is full (", "MB are needed, 0.0 MB are free", "Checkpoints intact: 3")
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["3"]


def test_while_the_model_is_saved(run, refused, rlhf, monkeypatch):
    former = (run.folder / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr("rlhf.models.weights.save_file", full)
    refused(run.command, run.settings, f"{run.folder}/model: the disk is full", "No space left", "free some space")
    assert (run.folder / "model" / "model.safetensors").read_bytes() == former
    assert run.checkpoint(4).is_dir()
    monkeypatch.undo()
    run.forget("model")
    assert rlhf(run.command, run.settings).status == 0
    assert run.same_result()


def test_while_metrics_are_written(run, refused, rlhf):
    run.forget("checkpoints", "model", "summary.json", "metrics.jsonl")
    (run.folder / "metrics.jsonl").symlink_to("/dev/full")
    refused(run.command, run.settings, f"{run.folder}/metrics.jsonl: the disk is full", "free some space")
    run.forget("metrics.jsonl")
    assert rlhf(run.command, run.settings).status == 0
    assert run.same_result()


@pytest.mark.parametrize("command", ["sft", "ppo", "best-of-n", "evaluate"])
def test_while_the_configuration_is_written(refused, working, tmp_path, monkeypatch, command):
    def half(config, path):
        path.write_text("output: ")
        full()

    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    monkeypatch.setattr("rlhf.stages.folder.save_config", half)
    refused(command, working[command], f"{folder}/config.yaml: the disk is full")
    assert (folder / "config.yaml").read_text() == "{}"


@pytest.mark.parametrize(("command", "settings"), [("world", {}), ("tokenizer", {"vocab_size": 300})])
def test_while_data_or_a_tokenizer_is_written(refused, tiny, tmp_path, command, settings):
    data = {"data.path": tiny.documents} if command == "tokenizer" else {}
    with largest_file(6_000):
        refused(command, {"output": tmp_path / "out"} | settings | data, f"{tmp_path}/out: the disk is full")
    assert not (tmp_path / "out" / "summary.json").exists()
