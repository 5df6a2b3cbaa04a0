import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rlhf.errors import UserError
from rlhf.training.checkpoint import Checkpointer

# Orbax leaves its coroutines and event loop unfinished when a read fails.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)


def make_state(seed: int = 0):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(seed), param_dtype=jnp.bfloat16)
    _, parameters = nnx.split(model)
    return {
        "parameters": parameters,
        "optimizer": optax.adam(0.1).init(parameters),
        "key": jax.random.key(seed),
        "step": 7 + seed,
        "coefficient": 0.1 + seed,
        "host": np.arange(3, dtype=np.int64) + seed,
        "not_finite": jnp.array([jnp.nan, -jnp.inf, -0.0], jnp.float32),
    }


def as_bits(tree):
    def bits(leaf):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return type(leaf).__name__, str(np.asarray(leaf).dtype), np.asarray(leaf).tobytes()

    return [bits(leaf) for leaf in jax.tree.leaves(tree)]


def save_three(folder, **options):
    with Checkpointer(folder, keep=3, **options) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), {"step": step})


def test_round_trip_is_bit_exact(tmp_path):
    state = make_state(1)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(5, state, {"best_loss": 0.25})
    with Checkpointer(tmp_path) as checkpoints:
        restored, step, metadata = checkpoints.restore_latest(make_state(2))
    assert step == 5 and metadata == {"best_loss": 0.25}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert as_bits(restored) == as_bits(state)


def test_restores_onto_abstract_state(tmp_path):
    state = {"parameters": make_state()["parameters"], "key": jax.random.key(3)}
    abstract = jax.eval_shape(lambda: state)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        restored, _, _ = checkpoints.restore_latest(abstract)
    assert as_bits(restored) == as_bits(state)


def test_nothing_to_restore(tmp_path):
    with Checkpointer(tmp_path / "new") as checkpoints:
        assert checkpoints.restore_latest(make_state()) is None


def test_arrays_may_be_donated_after_save(tmp_path):
    step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    array = step(jnp.zeros((512, 1024)))
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"array": array}, {})
        for _ in range(20):
            array = step(array)
        restored, _, _ = checkpoints.restore_latest({"array": array}) or pytest.fail("not saved")
    assert np.all(np.asarray(restored["array"]) == 1.0)


def test_another_mesh(tmp_path):
    def on_mesh(shape, spec):
        mesh = jax.make_mesh(shape, ("data", "fsdp"), (AxisType.Auto, AxisType.Auto))
        values = jnp.arange(64, dtype=jnp.float32).reshape(8, 8)
        return {"w": jax.device_put(values, NamedSharding(mesh, spec))}

    saved, wanted = on_mesh((2, 4), PartitionSpec("fsdp")), on_mesh((4, 2), PartitionSpec("data", "fsdp"))
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, saved, {})
        checkpoints.wait()
        restored, _, _ = checkpoints.restore_latest(jax.tree.map(jnp.zeros_like, wanted))
    assert restored["w"].sharding == wanted["w"].sharding
    assert as_bits(restored) == as_bits(wanted)


def test_keeps_newest_and_best(tmp_path):
    state = {"w": jnp.ones(2)}
    with Checkpointer(tmp_path, keep=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, state, {}, best=step == 2)
    with Checkpointer(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.best_step == 2
        checkpoints.save(6, state, {}, best=True)
        checkpoints.wait()
        assert checkpoints.steps() == [5, 6] and checkpoints.best_step == 6


def truncate_data(folder):
    for path in folder.rglob("*"):
        if path.is_file() and "state" in path.parts and path.stat().st_size > 0:
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)


def delete_data(folder):
    for path in list((folder / "state").rglob("*")):
        if path.is_file() and path.parent.name == "d":
            path.unlink()


def spoil_metadata(folder):
    (folder / "metadata" / "metadata").write_text("{")


@pytest.mark.parametrize("damage", [truncate_data, delete_data, spoil_metadata])
def test_falls_back_from_an_unreadable_checkpoint(tmp_path, damage, capsys):
    save_three(tmp_path)
    damage(tmp_path / "3")
    with Checkpointer(tmp_path) as checkpoints:
        restored, step, _ = checkpoints.restore_latest(make_state())
        assert step == 2 and as_bits(restored) == as_bits(make_state(2))
        checkpoints.save(3, make_state(3), {})
    message = capsys.readouterr().err
    assert "Checkpoint 3" in message and "cannot be read" in message and "from checkpoint 2" in message
    assert (tmp_path / "3.unreadable").is_dir()
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_state())[1] == 3


def test_all_unreadable_is_an_error_not_a_silent_restart(tmp_path):
    save_three(tmp_path)
    for step in (1, 2, 3):
        truncate_data(tmp_path / str(step))
    with Checkpointer(tmp_path) as checkpoints, pytest.raises(UserError, match="none of the checkpoints"):
        checkpoints.restore_latest(make_state())
    assert (tmp_path / "3").is_dir()


def test_refuses_another_configuration(tmp_path):
    save_three(tmp_path, fingerprint={"optimizer": {"learning_rate": 0.1, "b1": 0.9}, "seed": 1})
    changed = {"optimizer": {"learning_rate": 0.2, "b1": 0.9}, "steps": 3}
    with Checkpointer(tmp_path, fingerprint=changed) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore_latest(make_state())
    message = str(error.value)
    assert "optimizer.learning_rate: checkpoint 0.1, now 0.2" in message
    assert "seed: checkpoint 1, now (absent)" in message and "steps: checkpoint (absent), now 3" in message
    assert "b1" not in message and "output folder" in message


def test_refuses_another_model(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones((2, 3))}, {})
        checkpoints.wait()
        with pytest.raises(UserError, match=r"another model:\n    w: checkpoint float32\[2, 3\], now float32\[2, 4\]"):
            checkpoints.restore_latest({"w": jnp.ones((2, 4))})


FILL_THE_DISK = """
    import resource, signal, sys
    import jax, jax.numpy as jnp, numpy as np
    from rlhf.errors import UserError
    from rlhf.training.checkpoint import Checkpointer

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    noise = lambda seed: {"w": jax.random.normal(jax.random.key(seed), (300, 300))}
    checkpoints = Checkpointer(sys.argv[1], keep=1)
    checkpoints.save(1, noise(1), {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    try:
        checkpoints.save(2, noise(2), {})
        checkpoints.wait()
    except UserError as error:
        print(error)
    else:
        sys.exit("no error")
    restored, step, _ = Checkpointer(sys.argv[1]).restore_latest(noise(0))
    assert step == 1 and np.array_equal(restored["w"], noise(1)["w"])
"""


def test_full_disk_is_explained_and_loses_nothing(tmp_path):
    """A limit on file size makes the kernel refuse the write in the background thread, as a full disk does."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FILL_THE_DISK), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (
        "the disk is full" in run.stdout and "Checkpoints intact: 1" in run.stdout and "free some space" in run.stdout
    )


def test_full_disk_at_the_beginning_of_a_save(tmp_path, monkeypatch):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.wait()

        def refuse(*arguments, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints._manager, "save", refuse)
        with pytest.raises(UserError, match="the disk is full"):
            checkpoints.save(2, make_state(2), {})
        monkeypatch.undo()
        assert as_bits(checkpoints.restore_latest(make_state())[0]) == as_bits(make_state(1))
