import json
import subprocess
import sys

import pytest

from rlhf.data.sources import DataConfig, load_comparisons, load_demonstrations, load_documents, load_prompts
from rlhf.errors import UserError


def write_texts(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def loaded(path, **options):
    return [document.text for document in load_documents(DataConfig(path, **options))]


def test_list_glob_and_folder(tmp_path):
    first, second = write_texts(tmp_path / "a.jsonl", "1"), write_texts(tmp_path / "deep/b.jsonl", "2")
    (tmp_path / "README.md").write_text("about")
    assert loaded([second, first]) == ["2", "1"]
    assert loaded(str(tmp_path / "**/*")) == ["1", "2"]
    assert loaded(str(tmp_path)) == ["1", "2"]


def test_files_of_other_splits_stay_out_of_a_folder(tmp_path):
    write_texts(tmp_path / "train-0.jsonl", "train")
    write_texts(tmp_path / "my.test.jsonl", "test")
    write_texts(tmp_path / "dev.jsonl", "dev")
    write_texts(tmp_path / "more.jsonl", "more")
    assert loaded(str(tmp_path)) == ["more", "train"]
    assert loaded(str(tmp_path), split="validation") == ["dev", "more"]
    (tmp_path / "only").mkdir()
    write_texts(tmp_path / "only/test.jsonl", "test")
    with pytest.raises(UserError, match=r"split 'train'.*test"):
        loaded(str(tmp_path / "only"))


def test_limit_counts_records_over_all_files(tmp_path):
    paths = [write_texts(tmp_path / "a.jsonl", "1", "2"), write_texts(tmp_path / "b.jsonl", "3", "4")]
    assert loaded(paths, limit=3) == ["1", "2", "3"]
    assert loaded(paths, limit=1) == ["1"]


def test_bad_records_stop_or_are_counted(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('broken\n{"text": "good"}\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"a.jsonl:1: not valid JSON"):
        loaded(str(path))
    assert loaded(str(path), on_bad_record="skip") == ["good"]
    printed = capsys.readouterr().out
    assert "layout text, 1 records; skipped 2 (bad: 2, the first at" in printed
    assert "a.jsonl:1: not valid JSON" in printed


def test_what_was_recognised_is_printed(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "q", "responses": ["a", "b", "c"]}))
    load_comparisons(DataConfig(str(path)))
    assert f"{path}: layout ranked, 1 records giving 3 comparisons" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["missing.jsonl", "./missing", "/no/such/folder", "no/such/place/here", "none*.jsonl"])
def test_a_missing_path_is_named(path):
    with pytest.raises(UserError, match=path.replace("*", r"\*")):
        loaded(path)


@pytest.mark.parametrize("path", ["", [], ["", "a.jsonl"]])
def test_a_path_that_is_not_set_does_not_mean_this_folder(path):
    with pytest.raises(UserError, match=r"data\.path is not set"):
        loaded(path)


def test_rows_in_memory_are_read_like_a_file():
    (document,) = load_documents(DataConfig(limit=1), [{"text": "first"}, {"text": "second"}])
    assert (document.text, document.origin) == ("first", "row 0")
    with pytest.raises(UserError, match="row 1: column text"):
        load_documents(DataConfig(), [{"text": "first"}, {"text": 2}])


def test_empty_data(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl is empty"):
        loaded(write_texts(tmp_path / "a.jsonl"))
    with pytest.raises(UserError, match="no documents"):
        loaded(write_texts(tmp_path / "b.jsonl", "  "))
    with pytest.raises(UserError, match="no data file"):
        (tmp_path / "empty").mkdir()
        loaded(str(tmp_path / "empty"))


def test_unknown_format_and_unknown_options(tmp_path):
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(UserError, match="unknown file format"):
        loaded(str(tmp_path / "a.xlsx"))
    for options in ({"layout": "hhh"}, {"held_out": 1.0}, {"limit": 0}):
        with pytest.raises(UserError, match=f"data.{next(iter(options))}"):
            DataConfig("x", **options)


def test_a_layout_can_be_forced_but_must_suit_the_stage(tmp_path):
    path = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path.write_text(json.dumps({"messages": turns, "conversations": [turns[0], {"role": "assistant", "content": "b"}]}))
    (demonstration,) = load_demonstrations(DataConfig(str(path), layout="sharegpt"))
    assert demonstration.messages[-1].content == "b"
    with pytest.raises(UserError, match=r"data\.layout: text holds documents"):
        load_demonstrations(DataConfig(str(path), layout="text"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_names_go_to_datasets(monkeypatch, streaming):
    import datasets

    def load_dataset(path, name, *, split, streaming):
        assert (path, name, split) == ("owner/set", "subset", "test")
        table = datasets.Dataset.from_list([{"prompt": "q", "chosen": "a", "rejected": "b", "margin": None}] * 3)
        return table.to_iterable_dataset() if streaming else table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = DataConfig("owner/set", name="subset", split="test", streaming=streaming, limit=2)
    comparisons = load_comparisons(config)
    assert [comparison.origin for comparison in comparisons] == ["owner/set[test]:row 0", "owner/set[test]:row 1"]


def test_a_hub_that_gives_nothing_is_a_user_error(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"owner/set.*offline"):
        load_prompts(DataConfig("owner/set"))


def test_a_folder_saved_by_datasets(tmp_path):
    import datasets

    splits = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert loaded(str(tmp_path / "saved"), split="test") == ["test"]
    with pytest.raises(UserError, match="train, test"):
        loaded(str(tmp_path / "saved"), split="validation")
    splits["train"].save_to_disk(tmp_path / "one")
    assert loaded(str(tmp_path / "one")) == ["train"]


def test_the_module_loads_without_the_optional_libraries():
    code = "import sys, rlhf.data.sources, rlhf.data.encoding; print({'datasets', 'transformers', 'pyarrow'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "set()"
    )


def test_real_preference_data(shared):
    folder = shared / "data/preference"
    comparisons = load_comparisons(DataConfig(str(folder / "hh_rlhf"), split="test"))
    assert len(comparisons) == 2354 + 2312 - 2 - 4
    assert all(pair.chosen and pair.chosen != pair.rejected and pair.prompt[-1].role == "user" for pair in comparisons)
    assert not any("\n\nHuman:" in pair.chosen + pair.rejected for pair in comparisons)
    assert sum(not pair.rejected for pair in comparisons) == 4
    assert len(load_comparisons(DataConfig(str(folder / "pairs_demo/dpo*")))) == 600
    ranked = load_comparisons(DataConfig(str(folder / "ranked_demo/oaast_rm_zh.json")))
    assert 760 < sum(pair.weight for pair in ranked) <= 772 + 1e-6
    with pytest.raises(UserError, match="KTO"):
        load_comparisons(DataConfig(str(folder / "pairs_demo/kto_en_demo.json")))


def test_real_demonstrations_and_prompts(shared):
    folder = shared / "data"
    assert len(load_demonstrations(DataConfig(str(folder / "sft")))) == 999 + 1000 + 300 + 175 + 500 + 1100
    assert len(load_demonstrations(DataConfig(str(folder / "preference/hh_rlhf/h*")))) == 4660
    assert len(load_prompts(DataConfig(str(folder / "sft/*.json")))) == 999 + 1000 + 300 + 500 + 1100
    assert len(load_prompts(DataConfig(str(folder / "eval/xstest/xstest_prompts.csv")))) == 450


def test_real_documents(shared):
    folder = shared / "data/pretrain"
    assert len(load_documents(DataConfig(str(folder / "c4_demo.jsonl")))) == 300
    assert len(load_documents(DataConfig(str(folder / "tinystories_sample.txt")))) == 5
    assert len(load_documents(DataConfig(str(folder / "*.txt")))) == 8
