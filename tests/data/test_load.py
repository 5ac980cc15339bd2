"""Loading: every format in, every kind of damage named by file, line and field."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fairlead.core.errors import ConfigError, DataError
from fairlead.core.run import sha256_file
from fairlead.data import ChatData, Message, Row, as_rows, load_data, save_data

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
PAIR = {"prompt": "Hi", "completion": "Hello."}
HELLO = (Message("user", "Hi"), Message("assistant", "Hello."))


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "format"),
    [
        (CHAT, "chat"),
        ({"conversation": CHAT["messages"]}, "chat"),
        (PAIR, "prompt_completion"),
        ({"question": "Hi", "answer": "Hello."}, "prompt_completion"),
        ({"prompt": [CHAT["messages"][0]], "completion": [CHAT["messages"][1]]}, "prompt_completion"),
    ],
)
def test_every_way_to_write_a_chat_gives_the_same_row(tmp_path: Path, record: dict, format: str) -> None:
    data = load_data(write(tmp_path / "a.jsonl", record))
    assert data.format == format
    assert data.rows[0].messages == HELLO
    assert data.rows[0].response == "Hello."
    assert data.rows[0].prompt_messages == HELLO[:1]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."},
        {
            "chosen": CHAT["messages"],
            "rejected": [CHAT["messages"][0], {"role": "assistant", "content": "Go away."}],
        },
        {
            "prompt": [CHAT["messages"][0]],
            "chosen": [CHAT["messages"][1]],
            "rejected": [{"role": "assistant", "content": "Go away."}],
        },
        {
            "prompt": [CHAT["messages"][0]],
            "chosen": CHAT["messages"],
            "rejected": [CHAT["messages"][0], {"role": "assistant", "content": "Go away."}],
        },
    ],
)
def test_preference_pairs_hold_both_whole_conversations(tmp_path: Path, record: dict) -> None:
    data = load_data(write(tmp_path / "a.jsonl", record))
    assert data.format == "preference"
    assert data.rows[0].messages == HELLO
    assert data.rows[0].rejected == (Message("user", "Hi"), Message("assistant", "Go away."))
    assert data.rejected_rows().rows[0].response == "Go away."


def test_same_rows_from_all_file_kinds(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    records = [{"prompt": f"q{n}", "completion": f'a, "{n}"\nline two'} for n in range(5)]
    write(tmp_path / "a.jsonl", *records)
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "b.json").write_text(json.dumps({"data": records}))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(records)
    wanted = [row.messages for row in load_data(tmp_path / "a.jsonl")]
    for name in ("a.json", "b.json", "a.parquet", "a.csv"):
        assert [row.messages for row in load_data(tmp_path / name)] == wanted, name


def test_nested_messages_survive_parquet_and_csv(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([CHAT]), tmp_path / "a.parquet")
    assert load_data(tmp_path / "a.parquet").rows[0].messages == HELLO
    with open(tmp_path / "a.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([["messages"], [json.dumps(CHAT["messages"])]])
    assert load_data(tmp_path / "a.csv").rows[0].messages == HELLO


@pytest.mark.parametrize(
    ("text", "blocks", "lines"),
    [
        ("One.\nTwo.\n\nThree.\n", ["One.\nTwo.", "Three."], [1, 4]),
        ("\n\nOne.\n \n\t\nTwo.", ["One.", "Two."], [3, 6]),
        ("A story.\n\nStill it.\n<|endoftext|>\nNext.\n", ["A story.\n\nStill it.", "Next."], [1, 5]),
        ("One.\r\n\r\nTwo.\r\n", ["One.", "Two."], [1, 3]),
    ],
)
def test_text_blocks(tmp_path: Path, text: str, blocks: list[str], lines: list[int]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    data = load_data(path)
    assert [row.text for row in data] == blocks
    assert [row.line for row in data] == lines


def test_own_separator(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n\nb\n==\nc")
    assert [row.text for row in load_data(tmp_path / "a.txt", separator="==")] == ["a\n\nb", "c"]


BAD = [
    ('{"messages": [', 2, None, "broken JSON"),
    ('["a"]', 2, None, "must be an object"),
    ('{"prompt": "Hi"}', 2, "messages", "is missing"),
    ('{"messages": "Hi"}', 2, "messages", "must be a list"),
    ('{"messages": []}', 2, "messages", "no messages"),
    ('{"messages": [{"role": "user"}]}', 2, "messages[0].content", "is missing"),
    ('{"messages": [{"content": "a"}]}', 2, "messages[0].role", "is missing"),
    ('{"messages": [{"role": "pirate", "content": "a"}]}', 2, "messages[0].role", "unknown role"),
    ('{"messages": [{"role": ["user"], "content": "a"}]}', 2, "messages[0].role", "unknown role"),
    ('{"messages": [{"role": "user", "content": 3}]}', 2, "messages[0].content", "must be text, is a number"),
    ('{"messages": [{"role": "user", "content": null}]}', 2, "messages[0].content", "must be text, is null"),
    ('{"messages": [{"role": "user", "content": "a"}]}', 2, "messages", "no assistant turn"),
    ('{"messages": ["a"]}', 2, "messages[0]", "must be an object"),
    (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "  "}]}',
        2,
        "messages[1].content",
        "empty response",
    ),
    (b'{"messages": "\xff"}', 2, None, "not UTF-8"),
]


@pytest.mark.parametrize(("bad", "line", "field", "words"), BAD)
def test_a_bad_record_is_named(
    tmp_path: Path, bad: str | bytes, line: int, field: str | None, words: str
) -> None:
    path = tmp_path / "a.jsonl"
    raw = bad if isinstance(bad, bytes) else bad.encode()
    path.write_bytes(json.dumps(CHAT).encode() + b"\n" + raw + b"\n" + json.dumps(CHAT).encode())
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert (caught.value.source, caught.value.line, caught.value.field) == (str(path), line, field)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"prompt": "a"}, "completion"),
        ({"completion": "a"}, "prompt"),
        ({"prompt": "a", "completion": ""}, "completion"),
        ({"prompt": "a", "completion": 7}, "completion"),
        ({"prompt": None, "completion": "b"}, "prompt"),
        ({"chosen": "a"}, "rejected"),
        ({"chosen": "a", "rejected": " "}, "rejected"),
        ({"chosen": "a", "rejected": {"x": 1}}, "rejected"),
        ({"text": ""}, "text"),
        ({"text": ["a"]}, "text"),
    ],
)
def test_bad_pairs_and_texts_name_their_field(tmp_path: Path, record: dict, field: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(write(tmp_path / "a.jsonl", record))
    assert caught.value.field == field
    assert caught.value.line == 1


def test_unknown_fields_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found: foo.*'messages'"):
        load_data(write(tmp_path / "a.jsonl", {"foo": 1}))


def test_damage_to_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "empty.txt").write_text(" \n\n ")
    (tmp_path / "empty.json").write_text("[]")
    for name in ("empty.jsonl", "empty.txt", "empty.json"):
        with pytest.raises(DataError, match="no records"):
            load_data(tmp_path / name)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="not a readable Parquet"):
        load_data(tmp_path / "broken.parquet")
    (tmp_path / "broken.csv").write_text("prompt,completion\na,b\na,b,c\n")
    with pytest.raises(DataError, match=r":3: has 3 cells"):
        load_data(tmp_path / "broken.csv")
    (tmp_path / "broken.json").write_text('[\n{"text": "a"},\n{"text"\n]')
    with pytest.raises(DataError) as caught:
        load_data(tmp_path / "broken.json")
    assert caught.value.line == 4
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(DataError, match="unknown ending"):
        load_data(tmp_path / "a.pdf")
    with pytest.raises(DataError, match="no such file"):
        load_data(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        load_data(tmp_path)


def test_a_name_that_is_not_there_is_a_clear_error_offline() -> None:
    with pytest.raises(DataError, match=r"no data set of this name.*network"):
        load_data("nobody/nothing-of-this-name")
    with pytest.raises(DataError, match="neither a file nor the name"):
        load_data("what is this?")


def test_settings_that_contradict(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CHAT)
    with pytest.raises(ConfigError, match="format"):
        load_data(path, format="poem")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="separator"):
        load_data(path, separator="x")
    with pytest.raises(ConfigError, match="max_records"):
        load_data(path, max_records=0)
    with pytest.raises(DataError) as caught:
        load_data(path, format="text")
    assert caught.value.field == "text"


def test_hash_is_that_of_the_file_and_changes_with_what_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CHAT, PAIR | CHAT)
    assert load_data(path).sha256 == sha256_file(path)
    assert load_data(path, max_records=1).sha256 != load_data(path).sha256
    assert len(load_data(path, max_records=1)) == 1


def test_bad_records_after_max_records_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(CHAT) + "\n{broken\n")
    assert len(load_data(path, max_records=1)) == 1


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    rows = [
        Row(messages=HELLO, line=1),
        Row(messages=HELLO, rejected=(Message("user", "Hi"), Message("assistant", "No.")), line=2),
    ]
    for picked in ([rows[0]], [rows[1]], [Row(text="a\nb", line=1)]):
        path = save_data(ChatData(picked), tmp_path / "x.jsonl")
        back = load_data(path)
        assert [row.as_record() for row in back] == [row.as_record() for row in picked]


def test_subset_and_split_keep_order_and_origin() -> None:
    data = ChatData([Row(text=str(n), line=n + 1) for n in range(20)])
    first, second = data.split(0.25, seed=3)
    assert len(first) == 5
    assert sorted((first.order or ()) + (second.order or ())) == list(range(20))
    assert [row.text for row in first] == [str(n) for n in first.order or ()]
    assert data.split(0.25, seed=3)[0].sha256 == first.sha256
    assert data.split(0.25, seed=4)[0].sha256 != first.sha256
    assert first.subset([2, 0]).order == ((first.order or ())[2], (first.order or ())[0])
    tiny = ChatData([Row(text="a"), Row(text="b")])
    assert [len(part) for part in tiny.split(0.01)] == [1, 1]
    for bad in (0, 1, -0.5):
        with pytest.raises(ConfigError):
            data.split(bad)


def test_rows_of_texts_and_messages() -> None:
    rows = as_rows(["plain", CHAT["messages"], Row(text="x", line=9)])
    assert [row.line for row in rows] == [1, 2, 9]
    assert rows[1].messages == HELLO
    with pytest.raises(DataError, match="unknown role"):
        as_rows([[{"role": "x", "content": "y"}]])


@pytest.mark.realdata
def test_real_files(real_data: Path) -> None:
    stories = load_data(real_data / "text/tinystories_2MB.txt")
    assert len(stories) > 2000
    assert not any("<|endoftext|>" in (row.text or "") for row in stories)
    sums = load_data(real_data / "reasoning/gsm8k_train.jsonl", max_records=5)
    assert sums.format == "prompt_completion"
