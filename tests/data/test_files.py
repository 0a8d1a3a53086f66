"""Reading rows: what comes out of good files, and what is said about bad ones."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adapters_pl.data.files import read_rows
from adapters_pl.data.published import find_file
from adapters_pl.inputs.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(content, name="rows.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def complaint(write):
    """What reading a file of this content says."""

    def complaint(content, name="rows.json"):
        with pytest.raises(UserError) as caught:
            read_rows(write(content, name))
        return str(caught.value)

    return complaint


TWO_ROWS = [
    {"instruction": "Add 1 and 2.", "input": None, "output": "3", "answer": "3"},
    {"instruction": "Add 2 and 2.", "input": None, "output": None, "answer": "4"},
]


@pytest.mark.parametrize("beginning", ["", "\ufeff"], ids=["plain", "bom"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "rows.json",
            '[{"instruction": "Add 1 and 2.", "output": "3", "answer": "3"},'
            ' {"instruction": "Add 2 and 2.", "answer": "4"}]',
        ),
        (
            "rows.jsonl",
            '{"instruction": "Add 1 and 2.", "output": "3", "answer": "3"}\n\n'
            '{"instruction": "Add 2 and 2.", "answer": "4"}\n  \n',
        ),
    ],
    ids=["json", "jsonl"],
)
def test_both_formats_give_the_same_rows_with_and_without_a_byte_order_mark(write, name, text, beginning):
    assert read_rows(write(beginning + text, name)) == TWO_ROWS


@pytest.mark.parametrize("field", ["input", "output", "answer"])
@pytest.mark.parametrize(
    ("value", "read"), [(5, "5"), (2.5, "2.5"), (-3, "-3"), ("5.0", "5.0"), ("", ""), (None, None)]
)
def test_scalars_become_text(write, field, value, read):
    [row] = read_rows(write(json.dumps([{"instruction": "Add.", field: value}])))
    assert row[field] == (read or None if field == "answer" else read)


def test_other_fields_are_kept_as_they_are(write):
    [row] = read_rows(write('[{"instruction": "Add.", "id": 7, "tags": ["a"]}]'))
    assert row == {"instruction": "Add.", "id": "7", "tags": ["a"], "input": None, "output": None, "answer": None}


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x7f"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_line_is_what_a_line_feed_ends(write, name, separator):
    row = json.dumps({"instruction": "left" + separator + "right"}, ensure_ascii=False)
    [read] = read_rows(write(f"[{row}]" if name == "rows.json" else f"{row}\r\n", name))
    assert read["instruction"] == f"left{separator}right"


@pytest.mark.parametrize(
    "rest",
    [
        '[{"instruction": "add", "answer": "4"}, {"instru',
        '[{"instruction": "add", "answer": "4"}, {"instruction": "ad',
        '[{"instruction": "add", "answer": "4"}, {"instruction"',
        '[{"instruction": "add", "answer": "4"}, {"instruction":',
        '[{"instruction": "add", "answer": "4"}, {"instruction": "add"',
        '[{"instruction": "add", "answer": "4"}, {"instruction": "add",\n ',
        '[{"instruction": "add", "answer": "4"}, {',
        '[{"instruction": "add", "answer": "4"},\n',
        '[{"instruction": "add", "answer": "4"}\n',
        '[{"instruction": "add", "answer": -',
        '[{"instruction": "add", "answer": nul',
        '[{"instruction": "add", "answer": "\\u22',
        "[",
    ],
)
def test_a_file_that_stops_early_is_said_to_be_cut(complaint, rest):
    message = complaint(rest)
    assert "rows.json: no valid JSON at line" in message
    assert "cut; copy or download it again" in message


def test_a_fault_in_the_middle_is_located_and_not_called_a_cut(complaint):
    message = complaint('[{"instruction": "add"},\n {"instruction" "add"},\n {"instruction": "add"}]')
    assert "line 2" in message
    assert "mend the file there" in message
    assert "cut" not in message


def test_a_bad_line_is_counted_with_the_blank_ones(complaint):
    message = complaint('{"instruction": "add"}\n\n{"instruction": "ad\n', "rows.jsonl")
    assert "rows.jsonl: line 3 is no valid JSON" in message
    assert "cut; copy or download it again" in message
    message = complaint('{"instruction": "ad\n{"instruction": "add"}\n', "rows.jsonl")
    assert "rows.jsonl: line 1 is no valid JSON" in message
    assert "mend the file there" in message


@pytest.mark.parametrize(
    ("text", "kind"), [('{"instruction": "add"}', "dict"), ('"add"', "str"), ("3", "int"), ("null", "NoneType")]
)
def test_a_json_file_must_hold_a_list(complaint, text, kind):
    message = complaint(text)
    assert "should hold a list of rows" in message
    assert f"not {kind}; files of one object a line end in .jsonl" in message


@pytest.mark.parametrize("text", ["", "\ufeff", "\n \n"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv"])
def test_an_empty_file_is_an_error(complaint, text, name):
    assert complaint(text, name).endswith(f"{name}: the file is empty; copy or download it again.")


@pytest.mark.parametrize(("text", "name"), [("[]", "rows.json"), ("instruction,answer\n", "rows.csv")])
def test_a_file_without_rows_is_an_error(complaint, text, name):
    assert complaint(text, name).endswith(f"{name}: holds no rows; name a file that has some.")


def test_two_rows_with_one_id_are_named(complaint):
    rows = [{"instruction": "a", "id": 7}, {"instruction": "b"}, {"instruction": "c"}, {"instruction": "d", "id": "7"}]
    assert "rows.json: rows 1 and 4 have the same id '7'; give each row its own" in complaint(json.dumps(rows))


@pytest.mark.parametrize(("row", "kind"), [("3", "int"), ('"add"', "str"), ("[]", "list"), ("null", "NoneType")])
def test_a_row_must_be_an_object(complaint, row, kind):
    assert f"row 2 should be an object, not {kind}" in complaint(f'[{{"instruction": "add"}}, {row}]')


@pytest.mark.parametrize(
    "row", [{"question": "add"}, {"instruction": None}, {"instruction": "  "}, {"instruction": 5}, {}]
)
def test_a_row_without_an_instruction_is_named_by_its_number(complaint, row):
    message = complaint(json.dumps([{"instruction": "a"}, {"instruction": "b"}, row]))
    assert "rows.json: row 3 has no 'instruction'" in message
    assert "end the row" in message


def test_the_fields_that_a_row_does_have_are_listed(complaint):
    assert "it has 'question', 'target'" in complaint('[{"question": "add", "target": "3"}]')
    assert "it has nothing" in complaint("[{}]")


@pytest.mark.parametrize("field", ["input", "output", "answer"])
@pytest.mark.parametrize(("value", "kind"), [(["3"], "list"), ({"value": 3}, "dict")])
def test_a_field_that_is_no_text_names_row_field_and_type(complaint, field, value, kind):
    message = complaint(json.dumps([{"instruction": "a"}, {"instruction": "b", field: value}]))
    assert f"row 2: '{field}' should be text, not {kind}; mend the row." in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        read_rows(tmp_path / "absent.json")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="is a folder; give the JSON file itself"):
        read_rows(tmp_path)


@pytest.mark.parametrize("content", [b'[{"instruction": "caf\xe9"}]', '[{"instruction": "a"}]'.encode("utf-16")])
def test_bytes_that_are_no_utf8_are_an_error(complaint, content):
    assert "rows.json: cannot be read as text" in complaint(content)


# ---- tables


@pytest.fixture
def parquet(tmp_path):
    def parquet(rows):
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path

    return parquet


def test_a_csv_file_gives_the_same_rows(write):
    text = 'instruction,output,answer\nAdd 1 and 2.,3,3\n"Add 2 and 2.",,4\n'
    assert read_rows(write(text, "rows.csv")) == TWO_ROWS
    [row] = read_rows(write('instruction,answer\r\n"Say ""a, b"".\nNow.",x\r\n', "rows.csv"))
    assert row["instruction"] == 'Say "a, b".\nNow.'


def test_a_parquet_file_gives_the_same_rows(parquet):
    rows = [{"instruction": "Add 1 and 2.", "output": "3", "answer": 3}, {"instruction": "Add 2 and 2.", "answer": 4}]
    assert read_rows(parquet(rows)) == TWO_ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question\nAdd.\n", "rows.csv: row 1 has no 'instruction'; it has 'question'."),
        ("instruction,answer\nAdd.,1\nAdd 1, 2.,3\n", "rows.csv: row 2 has 3 fields, the header has 2; quote the"),
        ('instruction,answer\nAdd.,1\n"Add.,2\n', "rows.csv: no valid CSV at line 3"),
    ],
)
def test_a_bad_csv_file_is_located(complaint, text, message):
    assert message in complaint(text, "rows.csv")


@pytest.mark.parametrize("keep", [0, 4, 200])
def test_a_cut_parquet_file_is_no_parquet_file(parquet, keep):
    path = parquet([{"instruction": "Add.", "answer": "1"}])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        UserError, match=r"rows\.parquet: cannot be read as Parquet \(.+\); copy or download it again"
    ) as e:
        read_rows(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["absent.json", "absent.csv", "absent.parquet"])
def test_a_missing_table_is_named(tmp_path, name):
    with pytest.raises(UserError, match="no such file"):
        read_rows(tmp_path / name)


def test_columns_of_other_names_are_read(write):
    path = write('[{"question": "Add.", "rationale": "1 and 1", "answer": 2, "output": "old"}]')
    [row] = read_rows(path, {"instruction": "question", "output": "rationale"})
    assert (row["instruction"], row["output"], row["answer"]) == ("Add.", "1 and 1", "2")
    with pytest.raises(UserError, match="row 1 has no 'asked' to read 'instruction' from; it has 'question', 'rati"):
        read_rows(path, {"instruction": "asked"})


# ---- the data root


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three folders that hold the file: given as root, named by the variable, and the current one."""
    for name in ("given", "variable", "current"):
        (tmp_path / name / "dataset").mkdir(parents=True)
        (tmp_path / name / "dataset" / "test.json").write_text("[]")
    monkeypatch.setenv("ADAPTERS_PL_DATA", str(tmp_path / "variable"))
    monkeypatch.chdir(tmp_path / "current")
    return tmp_path


def test_a_given_root_comes_before_the_variable(folders):
    found = find_file(str(folders / "given"), "dataset/test.json", "gsm8k")
    assert found.resolve() == folders / "given" / "dataset" / "test.json"


def test_the_variable_comes_before_the_current_folder(folders):
    found = find_file(None, "dataset/test.json", "gsm8k")
    assert found.resolve() == folders / "variable" / "dataset" / "test.json"


@pytest.mark.parametrize("value", [None, ""])
def test_the_current_folder_is_the_last_resort(folders, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("ADAPTERS_PL_DATA")
    else:
        monkeypatch.setenv("ADAPTERS_PL_DATA", value)
    found = find_file(None, "dataset/test.json", "gsm8k")
    assert found.resolve() == folders / "current" / "dataset" / "test.json"


def test_a_root_may_begin_with_the_home_folder(folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders))
    assert find_file("~/given", "dataset/test.json", "gsm8k") == folders / "given" / "dataset" / "test.json"


def test_a_missing_file_says_who_wants_it_where_it_was_looked_for_and_what_to_set(tmp_path):
    with pytest.raises(UserError) as caught:
        find_file(str(tmp_path), "dataset/gsm8k/test.json", "gsm8k")
    message = str(caught.value)
    assert message.startswith(f"gsm8k: no file {tmp_path}/dataset/gsm8k/test.json.")
    assert "--data.root" in message
    assert "ADAPTERS_PL_DATA" in message
    assert "'dataset/gsm8k/test.json'" in message


def test_a_folder_in_place_of_the_file_does_not_count(tmp_path):
    (tmp_path / "test.json").mkdir()
    with pytest.raises(UserError, match="no file"):
        find_file(str(tmp_path), "test.json", "gsm8k")
