"""Encoding: the loss is on the response and its end, whatever the template; prompts line up token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.errors import ConfigError, DataError
from fairlead.data import (
    ChatData,
    Encoded,
    Message,
    Row,
    check_aligned,
    encode,
    encode_aligned,
    encode_prompt,
    response_positions,
)
from fairlead.data import template as template_module

ONE = Row(messages=(Message("user", "2+2?"), Message("assistant", "It is 4.")), line=1)
TWO = Row(
    messages=(
        Message("system", "Be brief."),
        Message("user", "2+2?"),
        Message("assistant", "4."),
        Message("user", "3+3?"),
        Message("assistant", "6."),
        Message("user", "left over"),
    ),
    line=2,
)
Make = Callable[..., Any]


def in_loss(tokenizer: Any, item: Encoded) -> str:
    return tokenizer.decode([item.input_ids[p] for p in response_positions(item)])


@pytest.mark.parametrize(
    ("name", "one", "two"),
    [
        ("chatml", "It is 4.<|im_end|>", "4.<|im_end|>6.<|im_end|>"),
        ("generation", "It is 4.<|im_end|>", "4.<|im_end|>6.<|im_end|>"),
        ("plain", " It is 4.</s>", " 4.</s> 6.</s>"),
        (
            "thinking",
            "<think>\n\n</think>\n\nIt is 4.<|im_end|>",
            "4.<|im_end|><think>\n\n</think>\n\n6.<|im_end|>",
        ),
    ],
)
def test_loss_is_on_every_answer_and_its_end(make_tokenizer: Make, name: str, one: str, two: str) -> None:
    tokenizer = make_tokenizer(name)
    first, second = encode([ONE, TWO], tokenizer, max_length=None)
    assert in_loss(tokenizer, first) == one
    assert in_loss(tokenizer, second) == two
    assert "left over" not in tokenizer.decode(second.input_ids)
    assert not first.loss_mask[0]


def test_generation_marks_and_prefix_difference_agree(make_tokenizer: Make) -> None:
    marked = encode([ONE, TWO], make_tokenizer("generation"), max_length=None)
    by_prefix = encode([ONE, TWO], make_tokenizer("chatml"), max_length=None)
    assert [(e.input_ids, e.loss_mask) for e in marked] == [(e.input_ids, e.loss_mask) for e in by_prefix]


@pytest.mark.parametrize("name", ["chatml", "generation", "plain", "thinking", "no_system"])
@pytest.mark.parametrize("system", [None, "Talk like a pirate."])
def test_generation_prompt_is_a_prefix_of_the_training_row(
    make_tokenizer: Make, name: str, system: str | None
) -> None:
    tokenizer = make_tokenizer(name)
    for row in (ONE, TWO):
        if name == "no_system" and row is TWO and system is None:
            continue
        item = encode([row], tokenizer, max_length=None, system=system)[0]
        assert row.messages is not None
        prompt = encode_prompt(row.prompt_messages, tokenizer, system=system)
        assert item.input_ids[: len(prompt)] == prompt
        assert item.loss_mask[len(prompt)], "the first token after the prompt is the first predicted one"


@pytest.mark.parametrize("name", ["treacherous", "forgetful"])
def test_a_mask_is_never_guessed(make_tokenizer: Make, name: str) -> None:
    with pytest.raises(DataError) as caught:
        encode(ChatData([ONE], source="d.jsonl"), make_tokenizer(name), max_length=None)
    assert caught.value.source == "d.jsonl"
    assert caught.value.line == 1


def test_system_prompt_is_put_first_or_replaced(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("chatml")
    first, second = encode([ONE, TWO], tokenizer, max_length=None, system="Arr.")
    assert tokenizer.decode(first.input_ids).startswith("<|im_start|>system\nArr.<|im_end|>")
    assert "Be brief." not in tokenizer.decode(second.input_ids)


def test_a_template_without_system_role_gets_it_in_the_first_user_turn(
    make_tokenizer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    template_module._warned.clear()
    tokenizer = make_tokenizer("no_system")
    items = encode([ONE, ONE], tokenizer, max_length=None, system="Arr.")
    assert "user\nArr.\n\n2+2?<|im_end|>" in tokenizer.decode(items[0].input_ids)
    assert in_loss(tokenizer, items[0]) == "It is 4.<|im_end|>"
    assert capsys.readouterr().err.count("takes no system message") == 1


def test_plain_template_warns_once(make_tokenizer: Make, capsys: pytest.CaptureFixture[str]) -> None:
    template_module._warned.clear()
    tokenizer = make_tokenizer("plain", bos=True)
    item = encode([ONE, ONE], tokenizer, max_length=None)[0]
    encode([TWO], tokenizer, max_length=None)
    assert tokenizer.decode(item.input_ids) == "<s>User: 2+2?\nAssistant: It is 4.</s>"
    assert capsys.readouterr().err.count("no chat template") == 1


@pytest.mark.parametrize("bos", [False, True])
def test_text_has_every_token_but_the_first_in_the_loss(make_tokenizer: Make, bos: bool) -> None:
    tokenizer = make_tokenizer("plain", bos=bos)
    item = encode(["abcd"], tokenizer, max_length=None)[0]
    assert item.loss_mask == [False] + [True] * (len(item) - 1)
    assert len(item) == 4 + bos
    with_system = encode(["abcd"], tokenizer, max_length=None, system="ctx")[0]
    assert in_loss(tokenizer, with_system) == in_loss(tokenizer, item)
    assert with_system.num_loss_tokens == item.num_loss_tokens


@pytest.mark.parametrize("name", ["plain", "chatml", "generation", "thinking"])
@settings(max_examples=25)
@given(
    question=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<>|"), max_size=20),
    answer=st.text(
        st.characters(exclude_categories=("Cs",), exclude_characters="<>|"), min_size=1, max_size=20
    ),
    system=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<>|"), max_size=20),
)
def test_response_tokens_are_the_same_under_any_prompt(
    name: str, question: str, answer: str, system: str
) -> None:
    tokenizer = _cached(name)
    if not answer.strip():
        return
    row = Row(messages=(Message("user", question), Message("assistant", answer)))
    bare, prompted = encode_aligned([row, row], tokenizer, systems=[None, system], max_length=None)
    for one, two in zip(bare, prompted, strict=True):
        a, b = response_positions(one), response_positions(two)
        assert [one.input_ids[p] for p in a] == [two.input_ids[p] for p in b]
        assert b[0] > a[0]


_TOKENIZERS: dict[str, Any] = {}


def _cached(name: str) -> Any:
    return _TOKENIZERS[name]


@pytest.fixture(autouse=True, scope="module")
def _tokenizers() -> None:
    from importlib import util
    from pathlib import Path

    spec = util.spec_from_file_location("data_conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, text in module.TEMPLATES.items():
        _TOKENIZERS[name] = module.byte_tokenizer(text)


def test_aligned_rows_stay_aligned_when_cut_or_dropped(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("chatml")
    long = Row(messages=(Message("user", "q"), Message("assistant", "x" * 60)), line=7)
    for on_long, num in (("truncate", 2), ("drop", 1)):
        bare, prompted = encode_aligned(
            [ONE, long], tokenizer, systems=[None, "p" * 20], max_length=100, on_long=on_long
        )
        assert len(bare) == len(prompted) == num
        assert [e.index for e in bare] == [e.index for e in prompted]
        for one, two in zip(bare, prompted, strict=True):
            check_aligned(one, two)
            assert max(len(one), len(two)) <= 100
    with pytest.raises(ConfigError):
        encode_aligned([ONE], tokenizer, systems=[], max_length=None)


def test_misaligned_encodings_are_refused(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("chatml")
    other = Row(messages=(Message("user", "2+2?"), Message("assistant", "It is 5.")))
    one, two = encode([ONE, other], tokenizer, max_length=None)
    with pytest.raises(DataError, match="other tokens under another prompt"):
        check_aligned(one, two)


def test_long_examples(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("plain")
    data = ChatData([Row(text="a" * n, line=n) for n in (3, 12, 5, 20)], source="t.txt")
    with pytest.raises(
        DataError, match=r"t.txt:12: 2 of 4 examples are longer than 10 .*longest has 20"
    ) as caught:
        encode(data, tokenizer, max_length=10)
    assert caught.value.line == 12
    assert [len(e) for e in encode(data, tokenizer, max_length=10, truncate=True)] == [3, 10, 5, 10]
    dropped = encode(data, tokenizer, max_length=10, on_long="drop")
    assert [e.index for e in dropped] == [0, 2]
    assert dropped[1].row is data.rows[2]
    with pytest.raises(DataError, match="no example left"):
        encode(data, tokenizer, max_length=2, on_long="drop")
    with pytest.raises(ConfigError, match="on_long"):
        encode(data, tokenizer, max_length=2, on_long="shrug")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_length"):
        encode(data, tokenizer, max_length=1)


def test_nothing_to_learn_is_an_error(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("chatml")
    with pytest.raises(DataError, match="is empty"):
        encode([], tokenizer, max_length=None)
    with pytest.raises(DataError, match="no token to learn from"):
        encode([ONE], tokenizer, max_length=8, truncate=True)


@pytest.mark.realdata
def test_real_sentencepiece_style_tokenizer(real_data: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / "models/stories260K")
    item = encode([ONE], tokenizer, max_length=None)[0]
    prompt = encode_prompt(ONE.prompt_messages, tokenizer)
    assert item.input_ids[: len(prompt)] == prompt
    assert in_loss(tokenizer, item).strip().startswith("It is 4.")
    bare, prompted = encode_aligned(
        ["Once upon a time"], tokenizer, systems=[None, "Speak."], max_length=None
    )
    check_aligned(bare[0], prompted[0])
