"""Whole iterations: what is drawn, what is logged, how often XLA compiles. On several devices: test_meshes.py."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.compilation.costs import count_costs
from rlhf.compilation.hlo import parse
from rlhf.data.batches import PromptBatch
from rlhf.data.records import Message, Prompt
from rlhf.errors import UserError
from rlhf.losses.kl import adaptive_kl_coefficient
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.transformer import Transformer
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import batch_sharding, gather_over, shard_state
from rlhf.randomness import step_key
from rlhf.rl.config import KLConfig
from rlhf.rl.iteration import Iteration, PPOState, begin
from rlhf.rl.programs import FrozenModels, Programs
from rlhf.rl.update import begin_learning
from rlhf.training.compilations import CompilationCounter
from rlhf.training.optimizer import OptimizerConfig, make_optimizer

WORDS = ["pad", "begin", "end", *(f"word{number}" for number in range(13))]
# Adam divides by the gradient's size; with an epsilon that is not tiny it does not blow rounding up to whole steps.
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, schedule="constant", epsilon=1e-2)
COEFFICIENT = 0.2
EARLIER_TURNS = (Message("user", "hello"), Message("assistant", "hello to you"))


class Decoder:
    """As much of a tokenizer as an iteration needs: it decodes each token to a word."""

    chat_template = None
    eos_token_id = 2


@pytest.fixture(scope="module", autouse=True)
def decode_words():
    """Puts the decoder above in the place of a real tokenizer's decoding, end token kept visible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf.rl.iteration.decode_response", lambda _, tokens: " ".join(WORDS[token] for token in tokens))
        yield


def mean_length(prompts, texts):
    return np.array([len(text.split()) for text in texts], np.float32)


def half(prompts, texts):
    return np.full(len(texts), 0.5, np.float32)


@pytest.fixture(scope="module")
def ppo_config(plain_config):
    return replace(
        plain_config,
        minibatch_size=4,
        epochs=2,
        temperature=0.7,
        whiten_advantages=True,
        rule_weight=0.25,
        kl=KLConfig(coefficient=COEFFICIENT, controller="adaptive", target=0.01, horizon=40),
    )


@pytest.fixture(scope="module")
def make_run(rl, ppo_config):
    """Everything of a run on a mesh: programs, prompts, and a state of its own at each call."""

    def make_run(mesh_config: MeshConfig, **changes):
        mesh = make_mesh(mesh_config)

        def place(model):
            definition, state = nnx.split(model)
            return nnx.merge(definition, shard_state(state, mesh))

        config = replace(ppo_config, **changes)
        optimizer = make_optimizer(OPTIMIZER, 100)
        policy, value = place(rl.make_policy(0)), place(rl.make_scorer(2))
        frozen = FrozenModels(place(rl.make_policy(0)), place(rl.make_scorer(3)), place(rl.make_scorer(4)))
        rollout = rl.make_rollout()
        prompts = PromptBatch(
            tokens=rollout.tokens[:, :6],
            mask=rollout.mask[:, :6],
            is_safety=rollout.is_safety,
            index=jnp.arange(8, dtype=jnp.int32)[::-1],
        )
        programs = Programs(
            policy, value, frozen, (optimizer, optimizer), end_token=rl.END, pad_token=rl.PAD, config=config
        )
        iteration = Iteration(
            programs=programs,
            prompts=[Prompt((*EARLIER_TURNS, Message("user", f"prompt {number}"))) for number in range(8)],
            tokenizer=Decoder(),
            rules={"length": mean_length, "half": half},
            config=config,
            seed=3,
            sampled_rows=5,
            max_skipped_steps=2,
        )

        def start() -> PPOState:
            # Copies, for an iteration consumes its state.
            learners = begin_learning(policy, value, (optimizer, optimizer))
            return begin(jax.tree.map(jnp.copy, learners), config)

        return SimpleNamespace(
            iteration=iteration,
            programs=programs,
            prompts=jax.device_put(prompts, batch_sharding(mesh)),
            start=start,
        )

    return make_run


@pytest.fixture(scope="module")
def single(make_run):
    return make_run(MeshConfig(data=1))


@pytest.fixture(scope="module")
def history(single):
    """Three iterations on the same prompts: reports, states after each (on the host), and compilations during each."""
    state, reports, states, compilations = single.start(), [], [], []
    for number in range(3):
        with CompilationCounter() as counter:
            state, report = single.iteration(state, single.prompts, number)
        reports.append(report)
        states.append(jax.device_get(state))
        compilations.append(counter.count)
    return SimpleNamespace(reports=reports, states=states, compilations=compilations)


def responses(report):
    return [row["response"] for row in report.rows]


def test_first_iteration_starts_at_the_reference_and_the_next_does_not(history):
    first, second = history.reports[0].metrics, history.reports[1].metrics
    assert first["objective/kl"] == 0
    assert all(row["kl"] == 0 for row in history.reports[0].rows)
    assert second["objective/kl"] != 0
    assert any(row["kl"] != 0 for row in history.reports[1].rows)


def test_rollouts_of_different_iterations_differ_and_of_equal_ones_are_equal(single):
    learners = single.start().learners
    draws = [
        np.asarray(single.programs.rollout(learners, single.prompts, step_key(3, "rollout", number)).tokens)
        for number in (0, 1, 0)
    ]
    assert not np.array_equal(draws[0][:, 6:], draws[1][:, 6:])
    np.testing.assert_array_equal(draws[0], draws[2])
    np.testing.assert_array_equal(draws[0][:, :6], single.prompts.tokens)


def test_an_iteration_is_a_function_of_state_and_number(single, history):
    state, report = single.iteration(single.start(), single.prompts, 0)
    assert report.rows == history.reports[0].rows
    assert report.metrics == history.reports[0].metrics
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), history.states[0])
    _, other = single.iteration(single.start(), single.prompts, 1)
    assert responses(other) != responses(report)


def test_nothing_is_compiled_after_the_first_iteration(history):
    assert history.compilations[0] > 0
    assert history.compilations[1:] == [0, 0]


def test_rows_carry_prompt_response_and_every_reward(history):
    row = history.reports[0].rows[2]
    assert row["prompt"] == "prompt 5"
    assert len(history.reports[0].rows) == 5
    assert row["length"] == len(row["response"].split()) and row["half"] == 0.5
    dialogue = {"prompt", "messages", "response", "end_token"}
    assert set(row) == dialogue | {"helpfulness", "safety", "length", "half", "score", "kl"}


def test_rows_carry_all_turns_and_whether_the_response_came_to_its_end(history):
    rows = [row for report in history.reports for row in report.rows]
    for row in rows:
        *earlier, last = (Message(**turn) for turn in row["messages"])
        assert tuple(earlier) == EARLIER_TURNS and last == Message("user", row["prompt"])
        assert row["end_token"] is row["response"].endswith("end")
    assert {row["end_token"] for row in rows} == {True, False}


def test_rules_are_weighted_and_added_to_the_score(history):
    metrics, rows = history.reports[0].metrics, history.reports[0].rows
    assert metrics["rule/half"] == 0.5
    assert metrics["rule/length"] == metrics["objective/response_length"]
    assert len({row["length"] for row in rows}) > 1
    for row in rows:
        penalty = 0.0 if row["response"].endswith("end") else 1.0
        rest = row["score"] - 0.25 * (row["length"] + row["half"]) + penalty
        assert min(abs(rest - row["safety"]), abs(rest - row["helpfulness"])) < 1e-5


def test_adaptive_controller_moves_the_coefficient_by_the_kl_of_the_iteration(history):
    coefficient = COEFFICIENT
    for report, state in zip(history.reports, history.states, strict=True):
        assert report.metrics["objective/kl_coefficient"] == pytest.approx(coefficient, rel=1e-6)
        kl = report.metrics["objective/kl"]
        coefficient = float(adaptive_kl_coefficient(coefficient, kl, target=0.01, horizon=40, episodes=8))
        assert float(state.kl_coefficient) == pytest.approx(coefficient, rel=1e-6)
    assert float(history.states[0].kl_coefficient) < COEFFICIENT  # a KL of 0 is below the target
    assert len({float(state.kl_coefficient) for state in history.states}) == 3


def test_counts_and_speeds(history):
    report = history.reports[1]
    assert report.metrics["episode"] == 16
    assert report.response_tokens == round(report.metrics["objective/response_length"] * 8)
    assert set(report.timings) == {"rollout", "score", "update", "tokens_per_second"}
    assert all(value > 0 for value in report.timings.values())


def test_it_learns_what_is_rewarded(single):
    state, scores = single.start(), []
    for number in range(80):
        state = replace(state, kl_coefficient=jnp.float32(0))
        state, report = single.iteration(state, single.prompts, number)
        scores.append(report.metrics["objective/scores"])
    assert np.mean(scores[-10:]) > np.mean(scores[:10]) + 0.5


def test_updates_that_stay_infinite_stop_the_run(single):
    state = single.start()
    spoilt = jax.tree.map(lambda leaf: leaf * jnp.nan, state.learners.value.trainable)
    learners = replace(state.learners, value=replace(state.learners.value, trainable=spoilt))
    with pytest.raises(UserError, match="ppo iteration 1: 4 updates in a row"):
        single.iteration(replace(state, learners=learners), single.prompts, 0)


def test_gathered_weights_are_gathered_once_a_rollout(make_run):
    """Left alone, they are for the prompt and again for the tokens."""

    def gathered_bytes(**changes) -> float:
        mesh = MeshConfig(data=1, fsdp=4)
        run = make_run(mesh, **changes)
        with jax.set_mesh(make_mesh(mesh)):
            compiled = run.programs.lower_rollout(run.start().learners, run.prompts, jax.random.key(0)).compile()
        traffic = count_costs(parse(compiled.as_text())).collectives
        return traffic["all-gather"].bytes

    once, left_alone = gathered_bytes(rollout_weights="gathered"), gathered_bytes()
    assert 0 < once < 0.7 * left_alone, (once, left_alone)


def test_kernels_are_gathered_as_they_are_multiplied():
    compute = ComputeConfig(dtype="bfloat16")
    model = Transformer(
        ModelConfig(vocab_size=16, width=8, layers=2, heads=2, mlp_width=8), compute=compute, rngs=nnx.Rngs(0)
    )
    definition, state = nnx.split(model)
    mesh = make_mesh(MeshConfig(data=1, fsdp=4))
    tokens = jnp.arange(8).reshape(2, 4)
    with jax.set_mesh(mesh):
        gathered = jax.jit(lambda state: gather_over("fsdp", state, compute.dtype))(shard_state(state, mesh))
    on_one_device = (state, jax.device_get(gathered))
    hidden = [nnx.merge(definition, part)(tokens, jnp.ones_like(tokens)) for part in on_one_device]
    for path, variable in nnx.to_flat_state(gathered):
        value = variable.get_value()
        assert value.dtype == (jnp.bfloat16 if path[-1] == "kernel" else jnp.float32), path
        assert value.sharding.is_fully_replicated, path
    np.testing.assert_array_equal(*hidden)
