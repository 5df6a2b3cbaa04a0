"""Which prompts and policies are shown beside each other."""

from rlhf.report.samples import choose_prompts, samples_html, shown_policies


def sample(prompt, kind="question", language="en", policy="sft", **scores):
    return {
        "prompt": prompt,
        "kind": kind,
        "language": language,
        "policy": policy,
        "response": f"{policy} on {prompt}",
        **scores,
    }


def test_prompts_of_all_kinds_and_languages_come_in_turn():
    samples = [sample(f"q{i}") for i in range(20)] + [
        sample("h0", "harmful"),
        sample("z0", "question", "zh"),
        sample("z1", "question", "zh"),
    ]
    chosen = [answers[0]["prompt"] for answers in choose_prompts(samples, 6)]
    assert chosen == ["h0", "q0", "z0", "q1", "z1", "q2"]


def test_answers_to_one_prompt_stand_together():
    samples = [sample("q", policy="sft"), sample("p"), sample("q", policy="ppo")]
    assert [len(answers) for answers in choose_prompts(samples, 5)] == [2, 1]


def test_the_largest_best_of_n_is_shown_by_number():
    found = [
        sample("q", policy=policy) for policy in ("ppo", "best_of_8", "best_of_64", "best_of_16", "sft", "pretrained")
    ]
    assert shown_policies(found) == ["pretrained", "sft", "best_of_64", "ppo"]


def test_gold_scores_outside_the_unit_interval_still_make_a_share():
    html = samples_html([sample("q", gold_score=-3.0), sample("q", policy="ppo", gold_score=5.0)])
    assert "--good:0%" in html and "--good:100%" in html
    assert "gold\N{NO-BREAK SPACE}−3.00" in html
