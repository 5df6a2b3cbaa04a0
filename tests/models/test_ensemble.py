"""Several reward models that score as one."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.data.templates import apply_template
from rlhf.data.tokenizers import train_tokenizer
from rlhf.errors import UserError
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.ensemble import EnsembleScorer, combine_members
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import save_scorer, save_transformer
from rlhf.models.source import ModelSource, load_reward_model, load_scorer_to_train
from rlhf.models.transformer import Transformer
from rlhf.rewards.text import RewardModel
from rlhf.stages import ensemble

ARCHITECTURE = ModelConfig(vocab_size=260, width=16, layers=1, heads=2, mlp_width=16, context=64, initializer_std=0.4)
PROMPTS, RESPONSES = ["What is it?", "Why?"], ["A cat.", "Because."]


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("members")
    tokenizer = train_tokenizer(PROMPTS, 260)
    apply_template(tokenizer, "user_ai")
    for seed in range(3):
        scorer = SequenceScorer(Transformer(ARCHITECTURE, rngs=nnx.Rngs(seed)), rngs=nnx.Rngs(seed))
        save_scorer(scorer, root / str(seed), tokenizer)
    save_transformer(scorer.transformer, root / "policy", tokenizer)
    other = train_tokenizer(["Something else entirely, with other words in it"], 262)
    save_scorer(scorer, root / "other_tokenizer", other)
    return [str(root / str(seed)) for seed in range(3)]


def make(members, output, **settings) -> str:
    ensemble.run(ensemble.Config(output=str(output), members=members, **settings))
    return str(output)


def test_combinations_are_those_of_the_paper():
    scores = np.random.default_rng(0).normal(size=(4, 3))
    given = jnp.asarray(scores)
    np.testing.assert_allclose(combine_members(given, "mean", 0.5), scores.sum(axis=0) / 4, rtol=1e-5)
    np.testing.assert_allclose(combine_members(given, "minimum", 0.5), np.sort(scores, axis=0)[0], rtol=1e-5)
    variance = sum((row - scores.mean(axis=0)) ** 2 for row in scores) / 4
    np.testing.assert_allclose(
        combine_members(given, "uncertainty", 0.3), scores.mean(axis=0) - 0.3 * variance, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("combination", ["mean", "minimum", "uncertainty"])
def test_an_ensembles_folder_scores_as_its_members_together(members, tmp_path, combination):
    single = np.stack([RewardModel.load(member).score(PROMPTS, RESPONSES) for member in members])
    folder = make(members, tmp_path / "out", combination=combination, uncertainty_weight=2.0)
    model = RewardModel.load(folder)
    assert isinstance(model.scorer, EnsembleScorer) and model.scorer.transformer.config.context == 64
    expected = combine_members(jnp.asarray(single), combination, 2.0)
    np.testing.assert_allclose(model.score(PROMPTS, RESPONSES), expected, rtol=1e-5, atol=1e-6)


def test_a_value_model_starts_from_the_first_member(members, tmp_path):
    folder = make(members, tmp_path / "out")
    value = load_scorer_to_train(ModelSource(init_from=folder), seed=0)
    first = load_reward_model(members[0], ComputeConfig(), "helpfulness")
    assert type(value) is SequenceScorer
    np.testing.assert_array_equal(value.kernel[...], first.kernel[...])


def test_what_does_not_fit_together_is_refused(members, tmp_path):
    root = members[0].rsplit("/", 1)[0]
    for given, said in (
        (members[:1], "at least two"),
        ([members[0], f"{root}/policy"], "is no single reward model"),
        ([members[0], f"{root}/other_tokenizer"], "different tokenizers"),
    ):
        with pytest.raises(UserError, match=said):
            make(given, tmp_path / "out")
    folder = make(members, tmp_path / "out")
    config = tmp_path / "out" / "model" / "config.json"
    config.write_text(config.read_text().replace(members[1], "/gone"))
    with pytest.raises(UserError, match="member /gone is not there"):
        RewardModel.load(folder)
