"""A Parquet file whose writer was killed has all its pages but no footer: walk the pages and write the footer that is missing.

Source: the Apache Parquet format (PageHeader, FileMetaData) and the Thrift compact protocol, as far as these need them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAGIC = b"PAR1"
I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
SNAPPY = 1
ENCODINGS = (0, 2, 3, 8)
"""Plain, both dictionary encodings and run lengths: what pyarrow writes by default."""


class TornError(Exception):
    """The bytes end, or are not what they should be."""


@dataclass(frozen=True)
class Leaf:
    """A leaf column as the footer describes it."""

    path: tuple[str, ...]
    physical_type: int
    per_row: int
    """Values in each row: the length of a vector, else 1."""


@dataclass(frozen=True)
class _Chunk:
    start: int
    data_start: int
    dictionary_start: int | None
    end: int
    values: int
    uncompressed: int


def complete(data: bytes, leaves: Sequence[Leaf], template: bytes) -> bytes | None:
    """The file up to its last whole row group, with a footer.

    Args:
        data: content of a file without a footer, compressed with snappy.
        leaves: its leaf columns in order.
        template: a whole Parquet file of the same schema, whose footer tells the schema.

    Returns:
        Content of a readable file, or None where not one row group is whole.
    """
    groups: list[tuple[int, list[_Chunk]]] = []
    at = len(MAGIC)
    while (group := _row_group(data, at, leaves)) is not None:
        groups.append(group)
        at = group[1][-1].end
    if not groups or not data.startswith(MAGIC):
        return None
    footer = _footer(groups, leaves, template)
    return data[:at] + footer + struct.pack("<I", len(footer)) + MAGIC


def _row_group(data: bytes, at: int, leaves: Sequence[Leaf]) -> tuple[int, list[_Chunk]] | None:
    """(rows, column chunks) of the row group that starts at `at`; None where none is whole.

    The number of rows is nowhere before the footer, so each number that the pages of the first column allow is tried.
    """
    values, pages = 0, 0
    cursor = at
    while True:
        try:
            kind, header, _, size, count = _page(data, cursor)
        except TornError:
            return None
        cursor += header + size
        if kind == DICTIONARY_PAGE and pages:
            return None
        pages += 1
        values += count if kind != DICTIONARY_PAGE else 0
        if values and values % leaves[0].per_row == 0:
            rows = values // leaves[0].per_row
            try:
                return rows, _chunks(data, at, leaves, rows)
            except TornError:
                continue


def _chunks(data: bytes, at: int, leaves: Sequence[Leaf], rows: int) -> list[_Chunk]:
    chunks = []
    for leaf in leaves:
        start, values, uncompressed = at, 0, 0
        dictionary_start, data_start = None, None
        while values < rows * leaf.per_row:
            kind, header, raw, size, count = _page(data, at)
            if kind == DICTIONARY_PAGE:
                if dictionary_start is not None or data_start is not None:
                    raise TornError
                dictionary_start = at
            else:
                data_start = at if data_start is None else data_start
                values += count
            uncompressed += header + raw
            at += header + size
        if values != rows * leaf.per_row or data_start is None:
            raise TornError
        chunks.append(_Chunk(start, data_start, dictionary_start, at, values, uncompressed))
    return chunks


def _page(data: bytes, at: int) -> tuple[int, int, int, int, int]:
    """(type, bytes of the header, uncompressed size, compressed size, values) of the page at `at`."""
    fields, end = _read_struct(data, at)
    kind, raw, size = fields.get(1), fields.get(2), fields.get(3)
    if not isinstance(kind, int):
        raise TornError
    details = fields.get({DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}.get(kind, -1))
    if not isinstance(details, dict) or not isinstance(size, int) or not isinstance(raw, int) or size < 0 or raw < 0:
        raise TornError
    count = details.get(1)
    if not isinstance(count, int) or count < 0 or end + size > len(data):
        raise TornError
    return kind, end - at, raw, size, count


def _read_struct(data: bytes, at: int, spans: dict[int, tuple[int, int, int]] | None = None) -> tuple[dict[int, Any], int]:
    """Fields of a Thrift compact struct and where it ends; `spans` receives {field: (type, start, end)}."""
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head = _byte(data, at)
        at += 1
        if head == 0:
            return fields, at
        delta, kind = head >> 4, head & 15
        if delta:
            number += delta
        else:
            number, at = _zigzag(data, at)
        start = at
        fields[number], at = _read_value(data, at, kind)
        if spans is not None:
            spans[number] = (kind, start, at)


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return _byte(data, at), at + 1
    if kind in (4, I32, I64):
        return _zigzag(data, at)
    if kind == 7:
        return None, at + 8
    if kind == BINARY:
        size, at = _varint(data, at)
        if at + size > len(data):
            raise TornError
        return data[at : at + size], at + size
    if kind in (LIST, 10):
        head = _byte(data, at)
        size, at = (head >> 4, at + 1) if head >> 4 != 15 else _varint(data, at + 1)
        items = []
        for _ in range(size):
            item, at = _read_value(data, at, head & 15)
            items.append(item)
        return items, at
    if kind == STRUCT:
        return _read_struct(data, at)
    raise TornError


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise TornError
    return data[at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = _byte(data, at)
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise TornError


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _footer(groups: Sequence[tuple[int, list[_Chunk]]], leaves: Sequence[Leaf], template: bytes) -> bytes:
    """FileMetaData: version, schema and key-value pairs of the template, rows and row groups of ours."""
    size = struct.unpack("<I", template[-8:-4])[0]
    old = template[-8 - size : -8]
    spans: dict[int, tuple[int, int, int]] = {}
    _read_struct(old, 0, spans)
    fields = {number: (kind, old[a:b]) for number, (kind, a, b) in spans.items()}
    fields[3] = (I64, _int(sum(rows for rows, _ in groups)))
    fields[4] = (LIST, _list(STRUCT, [_group(rows, chunks, leaves) for rows, chunks in groups]))
    return _struct(fields)


def _group(rows: int, chunks: Sequence[_Chunk], leaves: Sequence[Leaf]) -> bytes:
    columns = []
    for leaf, chunk in zip(leaves, chunks, strict=True):
        facts = {
            1: (I32, _int(leaf.physical_type)),
            2: (LIST, _list(I32, [_int(e) for e in ENCODINGS])),
            3: (LIST, _list(BINARY, [_binary(p.encode()) for p in leaf.path])),
            4: (I32, _int(SNAPPY)),
            5: (I64, _int(chunk.values)),
            6: (I64, _int(chunk.uncompressed)),
            7: (I64, _int(chunk.end - chunk.start)),
            9: (I64, _int(chunk.data_start)),
        }
        if chunk.dictionary_start is not None:
            facts[11] = (I64, _int(chunk.dictionary_start))
        columns.append(_struct({2: (I64, _int(chunk.end)), 3: (STRUCT, _struct(facts))}))
    total = sum(c.uncompressed for c in chunks)
    return _struct({1: (LIST, _list(STRUCT, columns)), 2: (I64, _int(total)), 3: (I64, _int(rows))})


def _struct(fields: dict[int, tuple[int, bytes]]) -> bytes:
    out, last = bytearray(), 0
    for number in sorted(fields):
        kind, value = fields[number]
        out.append((number - last) << 4 | kind)
        out += value
        last = number
    return bytes(out) + b"\0"


def _list(kind: int, items: Sequence[bytes]) -> bytes:
    head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + _unsigned(len(items))
    return head + b"".join(items)


def _binary(value: bytes) -> bytes:
    return _unsigned(len(value)) + value


def _int(value: int) -> bytes:
    return _unsigned(value << 1 if value >= 0 else (-value << 1) - 1)


def _unsigned(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])
