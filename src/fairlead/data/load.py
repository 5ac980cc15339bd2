"""Files and `datasets` names to `ChatData`.

JSONL and JSON, Parquet, CSV/TSV, plain text in blocks, or the name of a Hugging Face data set (only where no
such path exists). Records are read one by one; the first bad one is a `DataError` that names file, line and
field, and nothing is skipped silently.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairlead.core.errors import ConfigError, DataError
from fairlead.core.run import sha256_file, sha256_json
from fairlead.data.formats import Format, Reader, check_record, choose_reader
from fairlead.data.rows import ChatData, Row

_SEPARATORS = ("<|endoftext|>", "</s>", "\n%%%%\n")
_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
}


def load_data(
    source: str | Path,
    *,
    format: Format = "auto",
    split: str = "train",
    max_records: int | None = None,
    separator: str | None = None,
) -> ChatData:
    """Load a data set.

    Args:
        source: A file (.jsonl, .json, .parquet, .csv, .tsv, .txt), or a `datasets` name ("owner/name" or
            "owner/name:config") where no such path exists.
        format: "auto" (told by the first record), "chat", "prompt_completion", "preference" or "text".
        split: Split of a `datasets` name; files have none.
        max_records: Read at most so many records.
        separator: What stands between the blocks of a .txt file. By default `<|endoftext|>` where the file
            has it, otherwise blank lines.

    Raises:
        DataError: Missing or empty file, or a bad record; names file, line and field.
        ConfigError: Unknown format or a setting that contradicts the file.
    """
    if max_records is not None and max_records < 1:
        raise ConfigError(f"max_records is {max_records}; it must be at least 1.")
    path = Path(source)
    if path.is_dir():
        raise DataError("is a folder. Next: name one file in it.", source=str(source))
    if not path.is_file():
        if (
            path.suffix.lower() in _ENDINGS
            or str(source).startswith((".", "/", "~"))
            or str(source).count("/") > 1
        ):
            raise DataError("no such file. Next: check the path.", source=str(source))
        return _load_hub(str(source), format=format, split=split, max_records=max_records)
    kind = _ENDINGS.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"unknown ending '{path.suffix}'. Next: use {', '.join(_ENDINGS)}.", source=str(source)
        )
    if separator is not None and kind != "text":
        raise ConfigError("separator is only for .txt files. Next: leave it out.")
    if kind == "text" and format not in ("auto", "text"):
        raise ConfigError(f"{path}: a .txt file holds plain text, not '{format}'. Next: leave format out.")
    records = {
        "jsonl": _read_jsonl,
        "json": _read_json,
        "parquet": _read_parquet,
        "csv": _read_csv,
    }
    numbered = _read_text(path, separator) if kind == "text" else records[kind](path)
    rows, found = _rows(numbered, format=format, source=str(source), max_records=max_records)
    sha256 = sha256_file(path)
    options = {"format": format, "max_records": max_records, "separator": separator}
    if options != {"format": "auto", "max_records": None, "separator": None}:
        sha256 = sha256_json([sha256, options])
    return ChatData(rows=rows, source=str(source), sha256=sha256, format=found)


def save_data(data: ChatData, path: str | Path) -> Path:
    """Write rows as JSONL that `load_data` reads back; atomic.

    Raises:
        RunError: The place cannot be written.
    """
    from fairlead.core.run import atomic_path

    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        for row in data.rows:
            line = json.dumps(row.as_record(), ensure_ascii=False) + "\n"
            handle.write(line.encode("utf-8", "backslashreplace"))
    return Path(path)


def _rows(
    numbered: Iterator[tuple[int, Any]], *, format: Format, source: str, max_records: int | None
) -> tuple[list[Row], str]:
    reader: Reader | None = None
    rows: list[Row] = []
    for line, record in itertools.islice(numbered, max_records):
        if reader is None:
            reader = choose_reader(record, format=format, source=source, line=line)
        check_record(record, source=source, line=line)
        rows.append(reader.read(record, line))
    if reader is None:
        raise DataError("holds no records. Next: check the file.", source=source)
    return rows, reader.format


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with 1-based numbers; text that is not UTF-8 is an error at its line."""
    with open(path, "rb") as handle:
        for number, raw in enumerate(handle, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"is not UTF-8 (byte {error.start + 1} of the line). Next: convert the file to UTF-8.",
                    source=str(path),
                    line=number,
                ) from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    for number, text in _lines(path):
        if text.strip():
            yield number, _json(text, path, number)


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """A list of records, or an object that holds one under `data`, `rows`, `records`, `examples`, `train`."""
    text = "".join(line for _, line in _lines(path))
    value = _json(text, path, None)
    if isinstance(value, dict):
        name = next(
            (n for n in ("data", "rows", "records", "examples", "train") if isinstance(value.get(n), list)),
            None,
        )
        value = [value] if name is None else value[name]
    if not isinstance(value, list):
        raise DataError("must hold a list of records.", source=str(path))
    yield from enumerate(value, start=1)


def _json(text: str, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DataError("broken JSON (nested too deeply).", source=str(path), line=line) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"broken JSON ({error.msg}, column {error.colno}). Next: mend or drop the line.",
            source=str(path),
            line=line if line is not None else error.lineno,
        ) from error


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a readable Parquet file ({error}).", source=str(path)) from error


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    text = io.StringIO("".join(line for _, line in _lines(path)), newline="")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            if names is None:
                names = [cell.strip() for cell in cells]
                if len(set(names)) != len(names):
                    raise DataError("the header names a column twice.", source=str(path), line=1)
            elif cells:
                if len(cells) != len(names):
                    raise DataError(
                        f"has {len(cells)} cells where the header names {len(names)}. Next: quote cells that "
                        "hold commas.",
                        source=str(path),
                        line=start,
                    )
                yield start, dict(zip(names, cells, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"broken CSV ({error}).", source=str(path), line=start) from error


def _read_text(path: Path, separator: str | None) -> Iterator[tuple[int, Any]]:
    """Blocks of a text file with the line on which each starts."""
    text = "".join(line for _, line in _lines(path)).replace("\r\n", "\n")
    if separator == "":
        raise ConfigError("separator is empty. Next: leave it out or name what stands between blocks.")
    if separator is None:
        separator = next((mark for mark in _SEPARATORS if mark in text), None)
    pattern = re.compile(re.escape(separator) if separator is not None else r"\n[ \t]*(?:\n[ \t]*)+")
    line, position = 1, 0
    for match in itertools.chain(pattern.finditer(text), [None]):
        end = len(text) if match is None else match.start()
        block = text[position:end]
        body = block.strip()
        if body:
            lead = block[: len(block) - len(block.lstrip())]
            yield line + lead.count("\n"), {"text": body}
        if match is not None:
            line += text.count("\n", position, match.end())
            position = match.end()


def _load_hub(name: str, *, format: Format, split: str, max_records: int | None) -> ChatData:
    """A data set by its Hugging Face name."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", name):
        raise DataError("neither a file nor the name of a data set. Next: check the path.", source=name)
    import datasets

    repo, _, config = name.partition(":")
    try:
        table = datasets.load_dataset(repo, config or None, split=split)
    except (
        Exception
    ) as error:  # datasets and huggingface_hub raise many kinds; the cause is chained and shown
        raise DataError(
            f"no such file, and no data set of this name could be loaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Next: check the path, or the "
            f"name, the split '{split}' and the network connection (HF_HUB_OFFLINE).",
            source=name,
        ) from error
    rows, found = _rows(
        enumerate(table, start=1), format=format, source=f"{name}[{split}]", max_records=max_records
    )
    return ChatData(rows=rows, source=f"{name}[{split}]", format=found)
