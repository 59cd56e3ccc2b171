"""Tables as people write them: by pandas, by Hugging Face's layouts, by spreadsheets.

Judges: pandas writes the tables and says what is in them; the archives are made here.
"""

import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from adap.core.config.base import SPLITS
from adap.core.config.data import DatasetOptions
from adap.core.datasets import ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset
from adap.worker.intake.notes import Notes
from tests.worker.archives import pack, png, two_classes

NAMES = [f"{i}.png" for i in range(8)]
IMAGES = {f"images/{name}": png(i) for i, name in enumerate(NAMES)}
FRAME = pd.DataFrame({"file_name": list(IMAGES), "label": ["cat", "dog"] * 4})


def read(
    members: dict[str, bytes], folder: Path, notes: Notes | None = None, **options: Any
) -> ImageSet:
    path = folder / "upload"
    path.write_bytes(pack(members))
    return read_dataset(
        path,
        limits=IntakeLimits(),
        on_progress=lambda done, total: None,
        options=DatasetOptions.model_validate(options),
        notes=notes,
    )


def refusal(members: dict[str, bytes], folder: Path, **options: Any) -> str:
    with pytest.raises(Rejected) as caught:
        read(members, folder, **options)
    return caught.value.reasons[0]


def with_table(frame: pd.DataFrame, name: str = "metadata.csv", **how: Any) -> dict[str, bytes]:
    encoding = how.pop("encoding", "utf-8")
    return {**IMAGES, name: frame.to_csv(index=False, **how).encode(encoding)}


def labels(image_set: ImageSet) -> list[str]:
    return [image_set.label_of(i) for i in range(len(image_set))]


TABLES = {
    "semicolons": with_table(FRAME, sep=";"),
    "tabs": with_table(FRAME, sep="\t"),
    "a byte order mark": with_table(FRAME, encoding="utf-8-sig"),
    "a spreadsheet's Unicode text": with_table(FRAME, sep="\t", encoding="utf-16"),
    "more columns": with_table(FRAME.assign(caption="a photo, of a pet", age=3)),
    "the index of pandas": {**IMAGES, "metadata.csv": FRAME.to_csv().encode()},
    "./ before the paths": with_table(FRAME.assign(file_name="./" + FRAME.file_name)),
    "backslashes": with_table(FRAME.assign(file_name=FRAME.file_name.str.replace("/", "\\"))),
    "names without folders": with_table(FRAME.assign(file_name=NAMES)),
    "names without suffixes": with_table(
        FRAME.assign(file_name=[name[:-4] for name in NAMES]).rename(
            columns={"file_name": "image_id"}
        )
    ),
    "other names of columns": with_table(
        FRAME.rename(columns={"file_name": "Filename", "label": "class"})
    ),
    "another name of the table": with_table(FRAME, "labels.csv"),
    "bars between columns": with_table(FRAME, sep="|"),
    "the separator in a line of its own": {
        **IMAGES,
        "metadata.csv": b"sep=;\r\n" + FRAME.to_csv(index=False, sep=";").encode(),
    },
    "Unicode text without its mark": with_table(FRAME, encoding="utf-16-le"),
    "capitals and spaces in names of columns": with_table(
        FRAME.rename(columns={"file_name": "File Name", "label": "Label"})
    ),
    "paths of another machine": with_table(
        FRAME.assign(file_name="C:\\data\\" + FRAME.file_name.str.replace("/", "\\"))
    ),
    "addresses": with_table(
        FRAME.assign(file_name="https://a.example/" + FRAME.file_name + "?v=1")
    ),
    "another suffix": with_table(FRAME.assign(file_name=FRAME.file_name.str.replace("png", "JPG"))),
    "other capitals": with_table(FRAME.assign(file_name=FRAME.file_name.str.upper())),
    "each line twice": with_table(pd.concat([FRAME, FRAME])),
    "JSON Lines": {
        **IMAGES,
        "metadata.jsonl": FRAME.to_json(orient="records", lines=True).encode(),
    },
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_is_read_as_it_was_meant(case: str, tmp_path: Path) -> None:
    made = read(TABLES[case], tmp_path)
    assert list(made.example_ids) == list(IMAGES)
    assert labels(made) == FRAME.label.tolist()


def test_columns_that_mean_nothing_are_named(tmp_path: Path) -> None:
    notes = Notes()
    frame = FRAME.assign(caption="x", patient_id=[1, 1, 2, 2] * 2)
    assert read(with_table(frame), tmp_path, notes).clusters is None
    assert "columns not read: 'caption', 'patient_id'" in notes.steps
    (fact,) = (fact for fact in notes.facts if fact.code == "clusters_not_declared")
    assert "--cluster-column patient_id" in fact.message
    made = read(with_table(frame), tmp_path, cluster_column="patient_id")
    assert made.clusters == list("11221122")


def test_a_cluster_in_two_splits_is_named_and_one_in_each_is_not(tmp_path: Path) -> None:
    frame = FRAME.assign(split=["train"] * 4 + ["test"] * 4, cluster=list("abcdabef"))
    notes = Notes()
    read(with_table(frame), tmp_path, notes)
    (fact,) = (fact for fact in notes.facts if fact.code == "clusters_across_splits")
    assert fact.level == "caution"
    assert fact.message.startswith("2 of 6 clusters ('a', 'b') have images in more than one split")
    notes = Notes()
    read(with_table(frame.assign(cluster=list("aabbccdd"))), tmp_path, notes)
    assert "clusters_across_splits" not in {fact.code for fact in notes.facts}


def test_columns_can_be_named_and_must_be_where_two_could_be_meant(tmp_path: Path) -> None:
    frame = FRAME.rename(columns={"label": "class"}).assign(target=["x", "x", "y", "y"] * 2)
    told = refusal(with_table(frame), tmp_path)
    assert "got 'class', 'target': say which with `label_column` (--label-column)" in told
    assert labels(read(with_table(frame), tmp_path, label_column="target")) == list("xxyyxxyy")
    assert "'none' that was asked for" in refusal(with_table(frame), tmp_path, label_column="none")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_table_in_each_split_folder_is_read_with_its_split(name: str, tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for k, part in enumerate(("train", "test")):
        members |= {f"{part}/{file}": png(8 * k + i) for i, file in enumerate(NAMES)}
        frame = pd.DataFrame({"file_name": NAMES, "label": ["cat", "dog"] * 4})
        text = (
            frame.to_csv(index=False)
            if name.endswith("csv")
            else frame.to_json(orient="records", lines=True)
        )
        members[f"{part}/{name}"] = text.encode()
    made = read(members, tmp_path)
    assert made.splits is not None
    assert {made.example_ids[i].split("/")[0] for i in made.in_split("train")} == {"train"}
    assert (made.has_split("test"), len(made)) == (True, 16)
    assert "join them to one with a column `split`" in refusal(
        {**members, "metadata.csv": b"file_name,label\n"}, tmp_path
    )


SEVERAL = ["cat|dog", "cat", "dog", "cat|dog"] * 2
WANTED = [[1, 1], [1, 0], [0, 1], [1, 1]] * 2


@pytest.mark.parametrize(
    ("texts", "separator"),
    [
        (SEVERAL, "|"),
        ([text.replace("|", ",") for text in SEVERAL], ","),
        ([text.replace("|", " ") for text in SEVERAL], " "),
        ([str(text.split("|")) for text in SEVERAL], "|"),
        ([json.dumps(text.split("|")) for text in SEVERAL], "|"),
    ],
)
def test_what_could_be_several_labels_is_refused_until_it_is_said(
    texts: list[str], separator: str, tmp_path: Path
) -> None:
    members = with_table(FRAME.assign(label=texts))
    told = refusal(members, tmp_path)
    assert "`label_separator`" in told
    assert f"--label-separator '{separator}'" in told
    several = read(members, tmp_path, label_separator=separator)
    assert list(several.classes) == ["cat", "dog"]
    np.testing.assert_array_equal(several.labels, WANTED)
    single = read(members, tmp_path, label_separator="none")
    assert not single.multilabel
    assert labels(single) == texts


def test_a_column_of_labels_takes_lists_and_refuses_another_separator(tmp_path: Path) -> None:
    frame = FRAME.drop(columns="label")
    lists = frame.assign(labels=[str(text.split("|")) for text in SEVERAL])
    np.testing.assert_array_equal(read(with_table(lists), tmp_path).labels, WANTED)
    commas = frame.assign(labels=[text.replace("|", ", ") for text in SEVERAL])
    assert "--label-separator ','" in refusal(with_table(commas), tmp_path)
    lines = [{"file_name": f, "labels": t.split("|")} for f, t in zip(IMAGES, SEVERAL, strict=True)]
    table = "\n".join(map(json.dumps, lines)).encode()
    np.testing.assert_array_equal(
        read({**IMAGES, "metadata.jsonl": table}, tmp_path).labels, WANTED
    )


def test_whole_numbers_that_pandas_wrote_as_floats_are_whole(tmp_path: Path) -> None:
    frame = FRAME.assign(label=[0.0, 1.0] * 4)
    assert labels(read(with_table(frame), tmp_path)) == ["0", "1"] * 4
    numpy = frame.to_csv(index=False, float_format="%.18e").encode()  # as np.savetxt writes
    assert labels(read({**with_table(frame), "metadata.csv": numpy}, tmp_path)) == ["0", "1"] * 4
    commas = frame.to_csv(index=False, sep=";", decimal=",").encode()  # as where commas are used
    assert labels(read({**with_table(frame), "metadata.csv": commas}, tmp_path)) == ["0", "1"] * 4


def test_a_table_without_names_of_its_columns_is_refused_with_what_to_write(tmp_path: Path) -> None:
    bare = FRAME.to_csv(index=False, header=False).encode()
    with pytest.raises(Rejected, match="write their names in the first line"):
        read({**with_table(FRAME), "metadata.csv": bare}, tmp_path)


def test_lines_that_say_otherwise_of_the_same_image_are_refused_with_both_ways(
    tmp_path: Path,
) -> None:
    twice = pd.concat([FRAME, FRAME.assign(label="bird")])
    told = refusal(with_table(twice), tmp_path)
    assert "8 lines against an earlier one" in told
    assert "keep one" in told
    assert "cat|dog" in told
    short = FRAME.assign(file_name=["a/0.png", "b/0.png", *FRAME.file_name[2:]])  # one file, twice
    assert "where 'images/0.png' is 'a/0.png'" in refusal(with_table(short), tmp_path)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("file_name,label\nimages/0.png,\n", "leave the line and the image out"),
        ("file_name,label,split\nimages/0.png,cat,\n", "leave the line and the image out"),
        ("file_name,label\nimages/8.png,cat\n", "where images are called as 'images/0.png' is"),
        ("file_name,label\nimages/0.png,cat, small\n", "in quotes"),
        ("file_name label\nimages/0.png cat\n", "write commas between the columns"),
        ("# pets\nfile_name,label\nimages/0.png,cat\n", "names of the columns in the first line"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_with_what_to_do(
    table: str, told: str, tmp_path: Path
) -> None:
    assert told in refusal({**IMAGES, "metadata.csv": table.encode()}, tmp_path)


def test_labels_that_are_all_different_are_refused_once(tmp_path: Path) -> None:
    frame = FRAME.assign(label=[0.1, 0.7, 0.3, 0.9, 0.2, 0.6, 0.4, 0.8])
    with pytest.raises(Rejected) as caught:
        read(with_table(frame), tmp_path)
    (reason,) = caught.value.reasons
    assert "8 of 8 with one each" in reason
    assert "--label-column" in reason


def test_a_label_that_is_missing_in_words_is_told_as_such(tmp_path: Path) -> None:
    frame = FRAME.assign(label=["cat", "dog", "NaN", "cat", "dog", "cat", "dog", "cat"])
    with pytest.raises(Rejected, match=r"'NaN': .* looks like a missing value"):
        read(with_table(frame), tmp_path)


def test_names_of_numbers_are_taken_from_the_list_beside_the_table(tmp_path: Path) -> None:
    members = with_table(FRAME.assign(label=[0, 1] * 4))
    notes = Notes()
    made = read({**members, "classes.txt": b"zebra\nant\n"}, tmp_path, notes)
    assert labels(made) == ["zebra", "ant"] * 4
    assert any("'classes.txt'" in step for step in notes.steps)
    notes = Notes()
    assert labels(read({**members, "classes.txt": b"zebra\n"}, tmp_path, notes)) == ["0", "1"] * 4
    assert any("'classes.txt'" in fact.message for fact in notes.facts)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("labels.txt", b"0 zebra\n1 ant\n"),
        ("obj.names", b"zebra\nant\n"),
        ("class_to_idx.json", b'{"zebra": 0, "ant": 1}'),
        ("label_num_to_disease_map.json", b'{"0": "zebra", "1": "ant", "2": "bee"}'),
        ("names.json", b'["zebra", "ant"]'),
        ("classes.csv", b"class,index\nzebra,0\nant,1\n"),
        ("class_names.tsv", b"0\tzebra\n1\tant\n"),
    ],
)
def test_names_of_numbers_are_read_in_the_forms_that_people_write(
    file: str, content: bytes, tmp_path: Path
) -> None:
    members = with_table(FRAME.assign(label=[0, 1] * 4))
    notes = Notes()
    named = file.replace("obj", "classes")
    assert labels(read({**members, named: content}, tmp_path, notes)) == ["zebra", "ant"] * 4
    assert any(f"'{named}'" in step for step in notes.steps)
    notes = Notes()
    files = {"files.json": b'{"0": "0.png", "1": "1.png"}'}  # no names of classes
    assert labels(read({**members, named: content, **files}, tmp_path)) == ["zebra", "ant"] * 4
    two = {**members, named: content, "more.json": b'{"a": 0, "b": 1}'}  # which are meant?
    assert labels(read(two, tmp_path, notes)) == ["0", "1"] * 4
    assert any(f"'{named}'" in fact.message for fact in notes.facts)


def test_a_list_beside_a_table_without_a_label_names_nothing(tmp_path: Path) -> None:
    frame = FRAME.drop(columns="label").assign(labels="")
    said = refusal({**with_table(frame), "README.txt": b"Cards\n"}, tmp_path)
    assert said.startswith("expected 1 to 1000 different labels")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.csv", b"index,class\n0,zebra\n%s,ant\n"),
        ("classes.csv", b"%s,zebra\n1,ant\n"),
        ("classes.csv", b"class,index\nzebra,0\nant,%s\n"),
        ("class_to_idx.json", b'{"0": "zebra", "%s": "ant"}'),
        ("class_to_idx.json", b'{"zebra": 0, "ant": %s}'),
    ],
)
def test_a_number_of_thousands_of_digits_is_the_number_of_no_class(
    file: str, content: bytes, tmp_path: Path
) -> None:
    members = with_table(FRAME.assign(label=[0, 1] * 4))
    made = read({**members, file: content % (b"1" * 5000)}, tmp_path)
    assert labels(made) == ["0", "1"] * 4


@pytest.mark.parametrize("mark", [b"e", b'"', b" ", b"\\"])
def test_no_table_says_that_its_separator_is_a_letter_or_a_quote(
    mark: bytes, tmp_path: Path
) -> None:
    table = b"sep=%s\n" % mark + FRAME.to_csv(index=False).encode()
    assert "the names of the columns in the first line" in refusal(
        {**IMAGES, "metadata.csv": table}, tmp_path
    )


@pytest.mark.parametrize("prefix", ["./", "data\\", "./data/"])
def test_names_in_a_zip_are_read_as_other_archivers_write_them(prefix: str, tmp_path: Path) -> None:
    members = {
        f"{prefix}{name}/{i}.png": png(i + 4 * k) for k, name in enumerate("ab") for i in (0, 1)
    }
    assert list(read(members, tmp_path).classes) == ["a", "b"]


def test_a_column_that_holds_splits_by_another_name_is_not_dropped(tmp_path: Path) -> None:
    members = with_table(FRAME.assign(fold=["train", "train", "test", "test"] * 2))
    assert "(--split-column fold)" in refusal(members, tmp_path)
    made = read(members, tmp_path, split_column="fold")
    assert len(made.in_split("test")) == 4


@pytest.mark.parametrize("odd", ["nan", 0.5])
def test_labels_that_look_like_no_classes_are_a_caution(odd: Any, tmp_path: Path) -> None:
    notes = Notes()
    read(with_table(FRAME.assign(label=[str(odd), "dog"] * 4)), tmp_path, notes)
    assert [fact.code for fact in notes.reading().cautions] == ["odd_classes"]


def test_several_tables_by_other_names_are_refused_with_what_to_do(tmp_path: Path) -> None:
    text = FRAME.to_csv(index=False).encode()
    with pytest.raises(Rejected) as caught:
        read({**IMAGES, "first.csv": text, "second.csv": text}, tmp_path)
    assert "join them to a metadata.csv with a column `split`" in caught.value.reasons[0]
    made = read({**IMAGES, "train.csv": text, "sample_submission.csv": text}, tmp_path)
    assert labels(made) == FRAME.label.tolist()


@pytest.mark.parametrize("folders", [("train", "test"), ("images/Train_Images", "images/test")])
@pytest.mark.parametrize("suffix", [".png", ""])
def test_a_table_for_each_split_is_read_with_its_split(
    folders: tuple[str, str], suffix: str, tmp_path: Path
) -> None:
    """As competitions have them: names recur, and the test set may have no labels."""
    train, test = folders
    members = {f"{train}/{i}.png": png(i) for i in range(6)}
    members |= {f"{test}/{i}.png": png(50 + i) for i in range(4)}
    frame = pd.DataFrame({"id": [f"{i}{suffix}" for i in range(6)], "label": ["cat", "dog"] * 3})
    members["train.csv"] = frame.to_csv(index=False).encode()
    members["test.csv"] = frame[:4].assign(label=["dog", "cat"] * 2).to_csv(index=False).encode()
    members["sample_submission.csv"] = frame[:4].to_csv(index=False).encode()
    made = read(members, tmp_path)
    assert made.splits is not None
    found = {
        name: (made.label_of(i), SPLITS[made.splits[i]]) for i, name in enumerate(made.example_ids)
    }
    assert found == {f"{train}/{i}.png": (["cat", "dog"][i % 2], "train") for i in range(6)} | {
        f"{test}/{i}.png": (["dog", "cat"][i % 2], "test") for i in range(4)
    }
    bare = {**members, "test.csv": frame[:4].drop(columns="label").to_csv(index=False).encode()}
    assert "leave that folder out" in refusal(bare, tmp_path)
    alone = {name: content for name, content in bare.items() if not name.startswith(test)}
    assert labels(read(alone, tmp_path)) == frame.label.tolist()


def test_folders_that_hold_parts_of_a_collection_are_no_classes(tmp_path: Path) -> None:
    """As of skin lesions and X-rays: the images in parts, the labels in a table of another name."""
    members = {f"images_part_{1 + i // 4}/ISIC_{i}.png": png(i) for i in range(8)}
    frame = pd.DataFrame({"image_id": [f"ISIC_{i}" for i in range(8)], "dx": ["nv", "mel"] * 4})
    table = {"HAM_metadata.csv": frame.to_csv(index=False).encode()}
    told = refusal({**members, **table}, tmp_path)
    assert "'HAM_metadata.csv' says 'mel', 'nv'" in told
    assert "--folders class" in told
    made = read({**members, **table}, tmp_path, label_column="dx")
    assert labels(made) == ["nv", "mel"] * 4
    assert "look like parts of one collection" in refusal(members, tmp_path)
    assert len(read(members, tmp_path, folders="class").classes) == 2


def test_a_table_that_agrees_with_class_folders_or_says_nothing_changes_nothing(
    tmp_path: Path,
) -> None:
    members = {f"{'ab'[i // 4]}/{i}.png": png(i) for i in range(8)}
    frame = pd.DataFrame({"file": [*members], "class": [i // 4 for i in range(8)]})
    for table in (frame, frame.rename(columns={"class": "age"}), frame[:3].assign(**{"class": 7})):
        csv = table.to_csv(index=False).encode()
        assert labels(read({**members, "more.csv": csv}, tmp_path)) == list("aaaabbbb")
    other = frame.assign(**{"class": ["x", "y"] * 4}).to_csv(index=False).encode()
    assert "more than one way" in refusal({**members, "more.csv": other}, tmp_path)


def test_tables_of_split_folders_must_have_the_same_columns(tmp_path: Path) -> None:
    members = {f"{part}/{i}.png": png(i + 9 * k) for k, part in enumerate("ab") for i in range(4)}
    members = {
        name.replace("a/", "train/").replace("b/", "valid/"): c for name, c in members.items()
    }
    hot = pd.DataFrame({"filename": NAMES[:4], "cat": [0, 1] * 2, "dog": [1, 0] * 2})
    other = hot.rename(columns={"dog": "bird"})
    tables = {
        "train/_classes.csv": hot.to_csv(index=False).encode(),
        "valid/_classes.csv": other.to_csv(index=False).encode(),
    }
    told = refusal({**members, **tables}, tmp_path, label_columns="*")
    assert "the same columns in all tables, got 'bird', 'dog'" in told
    tables["valid/_classes.csv"] = hot[["dog", "cat", "filename"]].to_csv(index=False).encode()
    assert labels(read({**members, **tables}, tmp_path, label_columns="*")) == ["dog", "cat"] * 4


def test_a_table_against_the_folders_of_splits_is_followed_with_a_caution(tmp_path: Path) -> None:
    members = {
        f"{part}/{i}.png": png(i + 9 * k)
        for k, part in enumerate(("test", "train"))
        for i in range(4)
    }
    frame = pd.DataFrame({"file_name": [*members], "label": ["cat", "dog"] * 4})
    notes = Notes()
    kept = frame.assign(split=["test"] * 4 + ["train"] * 4).to_csv(index=False).encode()
    read({**members, "metadata.csv": kept}, tmp_path, notes)
    assert not notes.facts
    moved = frame.assign(split=["test"] * 2 + ["train"] * 6).to_csv(index=False).encode()
    made = read({**members, "metadata.csv": moved}, tmp_path, notes)
    assert made.splits is not None
    assert [SPLITS[split] for split in made.splits] == ["test"] * 2 + ["train"] * 6
    (fact,) = notes.facts
    assert (fact.level, fact.code, fact.figures) == (
        "caution",
        "split_against_folder",
        {"images": 2},
    )


CLASS_FOLDERS = {f"{name}/{i}.png": png(9 * k + i) for k, name in enumerate("ab") for i in (1, 2)}


@pytest.mark.parametrize("role", ["image", "label", "split", "group", "cluster"])
def test_a_column_that_was_asked_for_is_found_in_a_table_or_refused_by_its_name(
    role: str, tmp_path: Path
) -> None:
    said = refusal(CLASS_FOLDERS, tmp_path, **{f"{role}_column": "breed"})
    assert f"the {role} column 'breed'" in said
    assert "no table that has it" in said
    other = {"notes.csv": b"a,b\n1,2\n"}
    assert "beside 'notes.csv'" in refusal(
        CLASS_FOLDERS | other, tmp_path, **{f"{role}_column": "breed"}
    )


def test_a_separator_of_labels_without_a_table_is_refused(tmp_path: Path) -> None:
    assert "'|'" in refusal(CLASS_FOLDERS, tmp_path, label_separator="|")
    assert len(read(CLASS_FOLDERS, tmp_path, label_separator="none")) == 4


def test_columns_that_were_asked_for_choose_the_table_beside_class_folders(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "lesion_id": ["l0", "l0", "l1", "l1"],
            "image_id": [name[:-4].rpartition("/")[2] + name[0] for name in CLASS_FOLDERS],
            "dx": ["nv", "mel", "nv", "mel"],
        }
    )
    images = {
        f"{name[0]}/{key}.png": content
        for key, (name, content) in zip(frame.image_id, CLASS_FOLDERS.items(), strict=True)
    }
    tables = {
        "HAM10000_metadata.csv": frame.to_csv(index=False).encode(),
        "prices.csv": b"item,price\n1,2\n",
    }
    made = read(images | tables, tmp_path, label_column="dx", cluster_column="lesion_id")
    assert labels(made) == frame.dx.tolist()
    assert made.clusters == frame.lesion_id.tolist()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("is_valid", [False] * 6 + [True] * 2),
        ("is_train", [1] * 6 + [0] * 2),
        ("split", [0, 0, 0, 0, 1, 1, 2, 2]),
    ],
)
def test_codes_of_splits_are_refused_once_with_the_words_to_write(
    column: str, values: list[object], tmp_path: Path
) -> None:
    with pytest.raises(Rejected) as caught:
        read(with_table(FRAME.assign(**{column: values})), tmp_path)
    (said,) = caught.value.reasons
    assert f"the column '{column}' holds" in said
    assert "write train, validation, test" in said


def test_a_part_that_is_a_label_of_its_own_asks_for_the_separator(tmp_path: Path) -> None:
    frame = FRAME.drop(columns="label").assign(labels=["person", "car person"] * 4)
    assert "--label-separator ' '" in refusal(with_table(frame), tmp_path)
    made = read(with_table(frame), tmp_path, label_separator="none")
    assert list(made.classes) == ["car person", "person"]
    several = pd.concat([frame[:4], frame[4:].assign(labels=["", "tree"] * 2)])
    made = read(with_table(several), tmp_path, label_separator=" ")
    assert list(made.classes) == ["car", "person", "tree"]


@pytest.mark.parametrize(
    ("numbers", "classes", "code"),
    [
        ((0, 1), ["cat", "dog"], None),
        ((1, 2), ["cow", "dog"], "labels_from_one"),
        ((1, 3), ["cat", "cow"], None),
    ],
)
def test_names_of_labels_that_may_count_from_one_are_no_silent_guess(
    numbers: tuple[int, int], classes: list[str], code: str | None, tmp_path: Path
) -> None:
    notes = Notes()
    members = with_table(FRAME.assign(label=[*numbers] * 4))
    made = read(members | {"classes.txt": b"cat\ndog\ncow\n"}, tmp_path, notes)
    assert list(made.classes) == classes
    assert [fact.code for fact in notes.facts if fact.level == "caution"] == (
        [code] if code else []
    )


def test_a_long_table_beside_class_folders_is_read_line_by_line(tmp_path: Path) -> None:
    lines = [f"a/{i}.png,cat" + f",{i}" * 20 for i in range(10_000)]
    head = "file_name,label," + ",".join(f"c{i}" for i in range(20))
    table = "\n".join([head, *lines]).encode()
    path = tmp_path / "upload"
    path.write_bytes(pack({**two_classes(), "more.csv": table}, method=zipfile.ZIP_STORED))
    tracemalloc.start()
    try:
        made = read_dataset(
            path,
            limits=IntakeLimits(),
            on_progress=lambda done, total: None,
            options=DatasetOptions(),
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert list(made.classes) == ["cat", "dog"]
    assert peak < 12 * len(table)  # a dict of each line would be 22 times as much


def test_a_table_that_breaks_off_beside_class_folders_says_no_labels(tmp_path: Path) -> None:
    table = b"file_name,label\ncat/1.png,x\ncat/2.png,y\ndog/1.png,x\ndog/2.png,y\n"
    assert "more than one way" in refusal({**two_classes(), "more.csv": table}, tmp_path)
    broken = {**two_classes(), "more.csv": table + b'"cat/1.png,x\n'}
    assert set(labels(read(broken, tmp_path))) == {"cat", "dog"}


def test_a_folder_without_lines_is_refused_once(tmp_path: Path) -> None:
    members = with_table(FRAME, "train.csv")
    members |= {f"test/{i}.png": png(20 + i) for i in range(3)}
    said = refusal(members, tmp_path, label_column="label")
    assert "none for the 3 images of 'test': leave that folder out" in said


@pytest.mark.parametrize("kind", [int, float])
def test_a_column_for_each_class_is_refused_until_an_option_says_so(
    kind: type, tmp_path: Path
) -> None:
    hot = pd.get_dummies(FRAME.label, dtype=kind)
    frame = pd.concat(
        [FRAME.drop(columns="label").rename(columns={"file_name": "image"}), hot], axis=1
    )
    said = refusal(with_table(frame), tmp_path)
    assert "'cat', 'dog'" in said
    assert "--label-columns '*', or cat,dog" in said
    spaced = {**IMAGES, "metadata.csv": frame.to_csv(index=False).replace(",", ", ").encode()}
    assert refusal(spaced, tmp_path) == said
    assert labels(read(with_table(frame), tmp_path, label_column="dog")) == ["0", "1"] * 4
