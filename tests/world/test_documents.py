"""Documents state every fact, carry marked noise, and give nothing held out away."""

from collections import Counter

from rlhf.world.documents import write_documents
from rlhf.world.draw import generator_for
from rlhf.world.facts import FACTS, LANGUAGES
from rlhf.world.prompts import split_prompts

NOISE = {"boilerplate": 0.03, "html": 0.02, "duplicate": 0.02, "near_duplicate": 0.02, "gibberish": 0.01}


def write(count=2000):
    train, _ = split_prompts(0)
    return write_documents(count, NOISE, train, LANGUAGES, generator_for(0, "test"))


def test_noise_is_in_its_share_and_marked():
    documents = write(1000)
    counts = Counter(document.metadata["noise"] for document in documents)
    assert counts == {None: 900, "boilerplate": 30, "html": 20, "duplicate": 20, "near_duplicate": 20, "gibberish": 10}
    clean = {document.text for document in documents if document.metadata["noise"] is None}
    assert len(clean) == 900
    for document in documents:
        assert (document.text in clean) == (document.metadata["noise"] in (None, "duplicate"))


def test_every_fact_is_stated_in_both_languages():
    texts = {language: [d.text for d in write() if d.metadata["language"] == language] for language in LANGUAGES}
    for fact in FACTS:
        for language in LANGUAGES:
            entity, answer = fact.entity[language].lower(), fact.answer[language][0].lower()
            assert any(entity in text.lower() and answer in text.lower() for text in texts[language]), fact


def test_held_out_prompts_are_not_in_the_documents():
    _, held_out = split_prompts(0)
    everything = "\n".join(document.text for document in write())
    for pool in held_out.prompts.values():
        for prompt in pool:
            assert prompt.messages[0].content not in everything.split("\n")


def test_languages_are_in_equal_measure():
    counts = Counter(document.metadata["language"] for document in write() if document.metadata["noise"] is None)
    assert counts["en"] == counts["zh"]
