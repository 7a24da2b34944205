"""The Parquet files of a dataset: frames, episodes, tasks. The only user of pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from demos.footer import Leaf
from demos.layout import EPISODES, MOST, TASKS
from demos.native import WIDEST, Samples
from demos.statistics import Stats
from sinew.errors import DataError

OUTCOME_COLUMNS = {"success": pa.bool_(), "interrupted": pa.bool_(), "warnings": pa.list_(pa.string())}
SPARE_BYTES, MOST_UNFOLDED = 64 << 20, 500
"""A Parquet file may become this many bytes, and this many times its own size besides."""
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_frames(path: Path, values: Mapping[str, np.ndarray], pictures: Mapping[str, Sequence[bytes]]) -> None:
    """Write the frames of an episode.

    Args:
        path: Parquet file.
        values: {key: (n, D) or (n,)} columns; vectors of one element are written as plain columns, as LeRobot does.
        pictures: {camera: n encoded images}, for cameras that are not kept as video.
    """
    arrays: dict[str, pa.Array] = {}
    for key, column in values.items():
        if column.ndim == 1 or column.shape[1:] == (1,):
            arrays[key] = pa.array(column.reshape(-1))
        else:
            arrays[key] = pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column[0].size)
    for key, encoded in pictures.items():
        items = [{"bytes": data, "path": f"frame-{i:06d}.png"} for i, data in enumerate(encoded)]
        arrays[key] = pa.array(items, PICTURE)
    pq.write_table(pa.table(arrays), path, compression="snappy")


def write_episode(path: Path, row: Mapping[str, Any], stats: Mapping[str, Stats], like: pa.Schema | None = None) -> None:
    """Write the line of one episode, with its statistics.

    Args:
        path: Parquet file.
        row: plain columns.
        stats: {key: statistics}.
        like: schema of the other lines; LeRobot refuses lines that differ, so columns are left out or empty to fit it.
    """
    arrays = {}
    for name, value in row.items():
        arrays[name] = pa.array([value], OUTCOME_COLUMNS.get(name) or _kind(value))
    for key, parts in stats.items():
        for name, value in parts.items():
            plain = value.tolist()
            arrays[f"stats/{key}/{name}"] = pa.array([plain], _kind(plain))
    table = pa.table(arrays)
    if like is not None:
        have = set(table.column_names)
        fitted = [table[f.name].cast(f.type) if f.name in have else pa.chunked_array([pa.nulls(1, f.type)]) for f in like]
        table = pa.Table.from_arrays(fitted, names=like.names)
    pq.write_table(table, path, compression="snappy", use_dictionary=False, write_statistics=False)


def _kind(value: Any) -> pa.DataType:
    """Arrow type of a boolean, whole number, number, text, None, or of a list of these.

    Left to find it by itself, pyarrow looks for optional packages at every call, which is slow and swallows Ctrl-C.
    """
    if isinstance(value, list):
        return pa.list_(_kind(value[0]) if value else pa.null())
    if isinstance(value, (bool, np.bool_)):
        return pa.bool_()
    if isinstance(value, (int, np.integer)):
        return pa.int64()
    return pa.float64() if isinstance(value, (float, np.floating)) else pa.null() if value is None else pa.string()


def episode_schema(root: Path) -> pa.Schema | None:
    """Schema of the lines of episodes that are there; None where there are none."""
    files = episode_files(root)
    return pq.read_schema(files[0]).remove_metadata() if files else None


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Write the table of tasks as pandas would: the task is the index, task_index the only column."""
    index, text = "__index_level_0__", {"pandas_type": "unicode", "numpy_type": "object"}
    description = {
        "index_columns": [index],
        "column_indexes": [{"name": None, "field_name": None, **text, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
            {"name": None, "field_name": index, **text, "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(list(tasks), pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(description)}), path)


def write_native(path: Path, streams: Mapping[str, Samples], told: Mapping[str, Any]) -> None:
    """Write samples at their own rates, one row per sample, streams one after the other.

    Args:
        path: Parquet file.
        streams: by name.
        told: anything that JSON holds, kept with the file.
    """
    values = [np.ravel(s.values).astype(np.float32) for s in streams.values()]
    widths = np.concatenate([np.zeros(1, np.int64), *(np.full(len(s), s.values.shape[1]) for s in streams.values())])
    whole = list(streams.values())
    table = pa.table(
        {
            "stream": pa.array([name for name, s in streams.items() for _ in range(len(s))], pa.string()),
            "stamp_ns": pa.array(np.concatenate([np.zeros(0, np.int64), *(s.stamps_ns for s in whole)])),
            "receipt_ns": pa.array(np.concatenate([np.zeros(0, np.int64), *(s.receipts_ns for s in whole)])),
            "value": pa.ListArray.from_arrays(
                pa.array(np.cumsum(widths).astype(np.int32)), pa.array(np.concatenate([np.zeros(0, np.float32), *values]))
            ),
        }
    )
    encodings = {"stamp_ns": "DELTA_BINARY_PACKED", "receipt_ns": "DELTA_BINARY_PACKED", "value.list.element": "BYTE_STREAM_SPLIT"}
    pq.write_table(
        table.replace_schema_metadata({"sinew": json.dumps(dict(told))}), path, compression="zstd", use_dictionary=False,
        column_encoding=encodings,
    )  # fmt: skip


def read_native(path: Path) -> dict[str, Samples]:
    """Samples by stream, of a file that `write_native` made.

    Raises:
        DataError: the file is missing, damaged or something else.
    """
    table = read_table(path)
    if not {"stream", "stamp_ns", "receipt_ns", "value"} <= set(table.column_names):
        raise DataError(f"{path} holds no samples at their own rates: it has columns {', '.join(table.column_names)}")
    names = np.asarray(table["stream"].to_pylist(), dtype=object)
    streams = {}
    for name in dict.fromkeys(names.tolist()):
        part = rows_where(table, names == name)
        column = part["value"].combine_chunks()
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        width, left = divmod(len(column.flatten()), len(part))
        if left or width > WIDEST:
            raise DataError(f"{path}: the samples of {name!r} differ in their number of values")
        values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(part), width)
        streams[str(name)] = Samples(part["stamp_ns"].to_numpy(), part["receipt_ns"].to_numpy(), values)
    return streams


def native_account(path: Path) -> dict[str, Any]:
    """What was kept with the samples, from the file's footer; empty where there is no such file.

    Raises:
        DataError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        told = json.loads((pq.read_schema(path).metadata or {}).get(b"sinew", b"{}"))
    except (pa.ArrowException, OSError, ValueError) as e:
        raise DataError(f"{path} is truncated or damaged ({str(e).splitlines()[0][:100]}); run sinew data repair") from None
    return told if isinstance(told, dict) else {}


def read_tasks(root: Path) -> list[str]:
    """Task texts in the order of task_index.

    Raises:
        DataError: the file is missing or damaged.
    """
    table = read_table(root / TASKS)
    texts = next((n for n in table.column_names if n != "task_index"), None)
    if texts is None or "task_index" not in table.column_names:
        raise DataError(f"{root / TASKS} has columns {', '.join(table.column_names)}; expected task_index and the task")
    order = np.argsort(table["task_index"].to_numpy())
    found = table[texts].to_pylist()
    return [str(found[i]) for i in order]


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file.

    Raises:
        DataError: the file is missing, truncated or no Parquet.
    """
    try:
        parquet = pq.ParquetFile(path)
        _check_size(path, parquet.metadata)
        # Handing a small file to threads takes longer than reading it.
        return parquet.read(columns=list(columns) if columns is not None else None, use_threads=parquet.metadata.num_rows > 100_000)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run sinew data repair") from None
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path} is truncated or damaged ({str(e).splitlines()[0][:100]}); run sinew data repair") from None


def group_lengths(path: Path) -> list[int]:
    """Rows of each row group of a Parquet file that `read_table` could read."""
    footer = pq.ParquetFile(path).metadata
    return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def read_group(path: Path, group: int, columns: Sequence[str]) -> pa.Table:
    """One row group of a Parquet file.

    Raises:
        DataError: the file is damaged.
    """
    try:
        return pq.ParquetFile(path).read_row_group(group, columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path} is truncated or damaged ({str(e).splitlines()[0][:100]}); run sinew data repair") from None


def _check_size(path: Path, footer: pq.FileMetaData) -> None:
    """Refuse a file that unfolds into far more than it is: run lengths make billions of equal values out of a few bytes.

    Raises:
        DataError: it does.
    """
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    unfolded = max(sum(group.total_byte_size for group in groups), 8 * max(values, footer.num_rows))
    if unfolded > SPARE_BYTES + MOST_UNFOLDED * path.stat().st_size:
        raise DataError(f"{path} has {path.stat().st_size} bytes and would unfold into {unfolded}: it is damaged or a trap")


def count_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer.

    Raises:
        DataError: the file is missing or truncated.
    """
    try:
        return pq.ParquetFile(path).metadata.num_rows
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run sinew data repair") from None
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path} is truncated or damaged ({str(e).splitlines()[0][:100]}); run sinew data repair") from None


def is_readable(path: Path) -> bool:
    """Whether a Parquet file has its footer."""
    try:
        return count_rows(path) >= 0
    except DataError:
        return False


def template(info: Mapping[str, Any]) -> tuple[bytes, list[Leaf]]:
    """An empty data file with the schema that info.json tells, and its leaf columns."""
    fields, lengths = [], []
    for key, feature in info["features"].items():
        if feature["dtype"] == "video":
            continue
        length = int(np.prod(feature["shape"]))
        if feature["dtype"] == "image":
            fields.append(pa.field(key, PICTURE))
            lengths += [1, 1]
            continue
        kind = pa.string() if feature["dtype"] == "string" else pa.from_numpy_dtype(np.dtype(feature["dtype"]))
        fields.append(pa.field(key, kind if list(feature["shape"]) == [1] else pa.list_(kind, length)))
        lengths.append(length)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.schema(fields).empty_table(), sink, compression="snappy")
    data = sink.getvalue().to_pybytes()
    schema = pq.ParquetFile(pa.BufferReader(data)).schema
    kinds = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
    leaves = []
    for i, (field, length) in enumerate(zip(_leaf_fields(fields), lengths, strict=True)):
        column = schema.column(i)
        # A key holds dots itself, so the path is the key and what follows it.
        rest = column.path.removeprefix(field).strip(".")
        leaves.append(Leaf((field, *(rest.split(".") if rest else ())), kinds.index(column.physical_type), length))
    return data, leaves


def _leaf_fields(fields: Sequence[pa.Field]) -> list[str]:
    return [f.name for f in fields for _ in range(f.type.num_fields if pa.types.is_struct(f.type) else 1)]


def copy_rows(source: Path, target: Path, episode: int, rows: slice, values: Mapping[str, np.ndarray]) -> None:
    """Copy frames of one episode into a file of its own.

    Args:
        source: file that holds them, among others.
        target: file to write.
        episode: its number there.
        rows: frames of it that are taken.
        values: {column: (n,) values in place of those of before}; columns that are not there stay away.
    """
    table = read_table(source)
    table = rows_where(table, np.asarray(table["episode_index"].to_numpy()).reshape(-1) == episode)
    order = np.argsort(table["frame_index"].to_numpy(), kind="stable")
    table = table.take(pa.array(order[rows]))
    for name, column in values.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, pa.array(column))
    pq.write_table(table, target, compression="snappy")


def replace_columns(source: Path, target: Path, values: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
    """Copy a Parquet file with other values in some of its plain columns; types and everything else stay.

    Args:
        source: file.
        target: file to write.
        values: {column: one value for each row}.
    """
    table = read_table(source)
    for name, column in values.items():
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(list(column), table.schema.field(at).type))
    pq.write_table(table, target, compression="snappy")


def features_of(path: Path) -> dict[str, dict[str, Any]]:
    """Features of info.json as far as the columns of a data file tell them."""
    features: dict[str, dict[str, Any]] = {}
    for field in pq.read_schema(path):
        kind, shape = field.type, []
        if pa.types.is_struct(kind):
            features[field.name] = {"dtype": "image", "shape": [], "names": ["height", "width", "channels"]}
            continue
        while pa.types.is_nested(kind):
            shape.append(getattr(kind, "list_size", None) or len(pq.read_table(path, columns=[field.name])[field.name][0]))
            kind = kind.value_type
        dtype = {"float": "float32", "double": "float64"}.get(str(kind), str(kind))
        features[field.name] = {"dtype": dtype, "shape": shape or [1], "names": None}
    return features


def rows_where(table: pa.Table, chosen: np.ndarray) -> pa.Table:
    """The rows of a table where `chosen` (n,) bool is true."""
    return table.filter(pa.array(chosen))


def episode_files(root: Path) -> list[Path]:
    """Files that hold lines of episodes, in order."""
    return sorted((root / EPISODES.split("/chunk")[0]).glob("chunk-*/file-*.parquet"))


def read_episodes(root: Path, *, stats: bool = False, files: Iterable[Path] | None = None) -> list[dict[str, Any]]:
    """Lines of all episodes, in order of episode_index; with `stats` also the columns stats/….

    Raises:
        DataError: a file is damaged or lacks a column.
    """
    rows: list[dict[str, Any]] = []
    for path in files if files is not None else episode_files(root):
        try:
            parquet = pq.ParquetFile(path)
            _check_size(path, parquet.metadata)
            names = [n for n in parquet.schema_arrow.names if stats or not n.startswith("stats/")]
            rows += parquet.read(columns=names, use_threads=False).to_pylist()
        except (pa.ArrowException, OSError) as e:
            raise DataError(f"{path} is truncated or damaged ({str(e).splitlines()[0][:100]}); run sinew data repair {root}") from None
        for name in ("episode_index", "length", "data/chunk_index", "data/file_index"):
            if name not in names:
                raise DataError(f"{path} has no column {name!r}; run sinew data repair {root}")
    for row in rows:
        for name, value in row.items():
            counts = name in ("episode_index", "length") or name.endswith(("/chunk_index", "/file_index"))
            if counts and not (isinstance(value, int) and 0 <= value < MOST):
                raise DataError(f"{root}/meta/episodes: {name} is {str(value)[:40]!r}; run sinew data repair {root}")
    return sorted(rows, key=lambda r: r["episode_index"])


def row_stats(row: Mapping[str, Any]) -> dict[str, Stats]:
    """{key: statistics} of an episode's line that was read with `stats`."""
    result: dict[str, Stats] = {}
    for name, value in row.items():
        if name.startswith("stats/") and value is not None:
            key, part = name.removeprefix("stats/").rsplit("/", 1)
            result.setdefault(key, {})[part] = np.asarray(value)
    return result


def column_array(table: pa.Table, key: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A numeric column as (n, *shape).

    Raises:
        DataError: values are missing or do not have that shape.
    """
    column = table[key].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    while pa.types.is_nested(column.type):
        if column.null_count:
            raise DataError(f"column {key!r} has missing values")
        column = column.flatten()
    if column.null_count:
        raise DataError(f"column {key!r} has missing values")
    try:
        return np.asarray(column.to_numpy(zero_copy_only=False)).astype(dtype, copy=False).reshape(len(table), *shape)
    except (ValueError, TypeError) as e:
        raise DataError(f"column {key!r} cannot be read as {dtype} {shape}: {e}") from None


def picture_bytes(table: pa.Table, key: str) -> pa.Array | pa.ChunkedArray:
    """The encoded images of a camera that is kept in the Parquet files."""
    return pa.chunked_array([c.field("bytes") for c in table[key].chunks], pa.binary())
