import gzip
import json

import pytest

from rlhf.data.bad_records import BadRecord
from rlhf.data.readers import read_records
from rlhf.errors import UserError

RECORDS = [{"text": "first"}, {"text": "第二"}]


def write(path, text):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


def texts(path, **options):
    return [record["text"] for _, record in read_records(path, **options)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, RECORDS))),
        ("a.jsonl.gz", "\n".join(map(json.dumps, RECORDS))),
        ("a.json", json.dumps(RECORDS)),
        ("a.json", json.dumps({"version": 1, "data": RECORDS})),
        ("lines.json", "\n".join(map(json.dumps, RECORDS))),
        ("a.csv", "text\nfirst\n第二\n"),
        ("a.tsv", "text\tnote\nfirst\t1\n第二\t2\n"),
        ("a.txt", "first\n<|endoftext|>\n第二\n<|endoftext|>\n"),
    ],
)
def test_every_format_gives_the_same_records(tmp_path, name, content):
    assert texts(write(tmp_path / name, content)) == ["first", "第二"]


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    assert list(read_records(tmp_path / "a.parquet")) == [
        (f"{tmp_path}/a.parquet:row 0", RECORDS[0]),
        (f"{tmp_path}/a.parquet:row 1", RECORDS[1]),
    ]


def test_origins_name_the_line_or_the_record(tmp_path):
    lines = write(tmp_path / "a.jsonl", '{"text": "x"}\n\n{"text": "y"}\n')
    assert [origin for origin, _ in read_records(lines)] == [f"{lines}:1", f"{lines}:3"]
    listed = write(tmp_path / "a.json", json.dumps(RECORDS))
    assert [origin for origin, _ in read_records(listed)] == [f"{listed}:record 0", f"{listed}:record 1"]
    documents = write(tmp_path / "a.txt", "one\ntwo\n<|endoftext|>\n\nthree")
    assert [origin for origin, _ in read_records(documents)] == [f"{documents}:1", f"{documents}:5"]


def test_text_without_separators_is_one_document_and_by_lines_many(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\ntwo\n")
    assert texts(path) == ["one\n\ntwo"]
    assert texts(path, text_lines=True) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n[1]\n', ":2"),
        ("a.json", '[{"text": "x"}, 3]', ":record 1"),
        ("a.csv", "text,note\nx,1\ny\n", ":3"),
    ],
)
def test_a_broken_record_is_handed_on_with_its_place(tmp_path, name, content, place):
    path = write(tmp_path / name, content)
    origin, record = list(read_records(path))[1]
    assert isinstance(record, BadRecord)
    assert origin == f"{path}{place}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "[1,"),
        ("a.json", '{"a": 1}'),
        ("a.json", "3"),
        ("a.jsonl.gz", None),
        ("a.parquet", None),
        ("a.txt", None),
    ],
)
def test_an_unreadable_file_is_a_user_error_that_names_it(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(b"\xff\xfe\x80broken") if content is None else path.write_text(content)
    with pytest.raises(UserError, match=name):
        list(read_records(path))
