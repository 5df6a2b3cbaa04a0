"""A reward model from its folder: texts in, scores out."""

import numpy as np
import pytest
from flax import nnx

from rlhf.data.encoding import encode_prompt, encode_response
from rlhf.data.records import Message
from rlhf.data.templates import apply_template
from rlhf.data.tokenizers import train_tokenizer
from rlhf.errors import UserError
from rlhf.models.config import ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import save_scorer, save_transformer
from rlhf.models.transformer import Transformer
from rlhf.rewards.text import RewardModel, score_token_sequences

ARCHITECTURE = ModelConfig(vocab_size=260, width=16, layers=1, heads=2, mlp_width=16, context=72, initializer_std=0.4)
PROMPTS = ["What is it?", "Why?", "Who was there, and when?"]
RESPONSES = ["A cat.", "Because it was cold in the garden.", "No one."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    tokenizer = train_tokenizer(PROMPTS, 260)
    apply_template(tokenizer, "user_ai")
    scorer = SequenceScorer(Transformer(ARCHITECTURE, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    scorer.shift[...], scorer.scale[...] = scorer.shift[...] + 0.5, scorer.scale[...] * 2.0
    save_scorer(scorer, folder / "model", tokenizer)
    save_transformer(scorer.transformer, folder / "language_model", tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(folder) -> RewardModel:
    return RewardModel.load(folder)


@pytest.fixture(scope="module")
def scores(model):
    return model.score(PROMPTS, RESPONSES)


def test_scores_are_the_networks_with_its_shift_and_scale(model, scores):
    turns = [Message("user", PROMPTS[1])]
    tokens = np.concatenate(
        [encode_prompt(model.tokenizer, turns), encode_response(model.tokenizer, turns, RESPONSES[1])]
    )
    assert tokens[-1] == model.tokenizer.eos_token_id
    hidden = model.scorer.transformer(tokens[None], np.ones((1, len(tokens)), np.int32))
    raw = float((hidden @ model.scorer.kernel[...])[0, -1, 0])
    assert scores[1] == pytest.approx(2.0 * (raw - 0.5), abs=1e-5)
    assert np.std(scores) > 0.05


def test_a_text_is_a_dialogue_of_one_turn_and_context_counts(model, scores):
    one_turn = [[Message("user", text)] for text in PROMPTS]
    np.testing.assert_array_equal(model.score(one_turn, RESPONSES), scores)
    longer = [Message("user", "Hi."), Message("assistant", "Hello."), Message("user", PROMPTS[0])]
    assert model.score([longer], RESPONSES[:1])[0] != scores[0]


def test_neither_order_nor_batches_matter(folder, scores):
    for batch_size in (1, 2):
        model = RewardModel.load(folder, batch_size=batch_size)
        np.testing.assert_allclose(model.score(PROMPTS[::-1], RESPONSES[::-1])[::-1], scores, atol=1e-5)


def test_sequences_at_the_edge_of_the_context(model):
    random = np.random.default_rng(0)
    sequences = [random.integers(3, 259, length) for length in (72, 1, 33)]
    together = score_token_sequences(model.scorer, sequences, 8)
    alone = [score_token_sequences(model.scorer, [sequence], 1)[0] for sequence in sequences]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    with pytest.raises(UserError, match="sequence 1 has 73 tokens; the model's context is 72"):
        score_token_sequences(model.scorer, [sequences[0], np.arange(73)], 8)


def test_what_does_not_fit_together_is_refused(model, folder):
    with pytest.raises(UserError, match="3 prompts but 1 responses"):
        model.score(PROMPTS, RESPONSES[:1])
    with pytest.raises(UserError, match="language model, not a reward model"):
        RewardModel.load(folder / "language_model")


def test_nothing_to_score(model):
    assert model.score([], []).shape == (0,)
