"""Streams are contiguous and can be taken up again; readers name what is wrong in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbptt_fast.data import (
    DataError,
    SeriesStream,
    Stream,
    TextStream,
    Vocabulary,
    python_documentation,
    read_csv_column,
    read_text,
)


@given(batch=st.integers(1, 5), k1=st.integers(1, 7), extra=st.integers(0, 40), keep=st.booleans())
def test_windows_of_an_epoch_are_the_rows_in_order(
    batch: int, k1: int, extra: int, keep: bool
) -> None:
    ids = np.arange(batch * k1 + 1 + extra)
    stream = TextStream(ids, batch, k1, keep_last=keep)
    windows = list(stream)
    assert len(windows) == len(stream)
    assert stream.epoch == 1
    rows = np.concatenate([window.x for window in windows]).T
    steps = (len(ids) - 1) // batch
    length = steps if keep else steps // k1 * k1
    for row, found in enumerate(rows):
        assert found.tolist() == list(range(row * steps, row * steps + length))
    assert stream.items == rows.size
    for number, window in enumerate(windows):
        np.testing.assert_array_equal(window.y, window.x + 1)
        assert len(window.x) == k1 or (keep and number == len(windows) - 1)
        begins = window.is_init is not None and window.is_init.any()
        assert begins == (number == 0)
    first = windows[0].is_init
    assert first is not None
    assert first[0].all()
    assert not first[1:].any()


@pytest.mark.parametrize("passed", [0, 1, 4, 5, 9])
def test_position_is_saved_and_restored(passed: int) -> None:
    ids = np.arange(41)
    stream, other = TextStream(ids, 2, 4), TextStream(ids, 2, 4)
    for _ in range(passed):
        stream.next_window()
    other.load_state_dict(stream.state_dict())
    for _ in range(7):
        ours, theirs = stream.next_window(), other.next_window()
        np.testing.assert_array_equal(ours.x, theirs.x)
        assert (ours.is_init is None) == (theirs.is_init is None)
    assert stream.state_dict() == other.state_dict()


def test_iterating_goes_on_in_the_middle_of_an_epoch() -> None:
    stream = TextStream(np.arange(41), 2, 4)
    stream.next_window()
    assert len(list(stream)) == len(stream) - 1 == 4
    assert (stream.epoch, stream.position) == (1, 0)
    assert len(list(stream)) == 5


def test_a_place_in_another_stream_is_refused() -> None:
    state = TextStream(np.arange(41), 2, 4).state_dict()
    with pytest.raises(ValueError, match="steps: expected 30, got 20"):
        TextStream(np.arange(61), 2, 4).load_state_dict(state)
    with pytest.raises(ValueError, match="k1: expected 5, got 4"):
        TextStream(np.arange(41), 2, 5).load_state_dict(state)
    with pytest.raises(ValueError, match="no such place: epoch 0, position 20"):
        TextStream(np.arange(41), 2, 4).load_state_dict(state | {"position": 20})


def test_windows_are_contiguous_views_that_cannot_be_written() -> None:
    window = SeriesStream(np.zeros((50, 3), np.float32), None, 4, 5).next_window()
    assert window.x.shape == window.y.shape == (5, 4, 3)
    assert window.x.flags.c_contiguous
    assert not window.x.flags.writeable


def test_series_targets_are_the_next_values_or_given() -> None:
    values = np.arange(21.0)[:, None]
    window = SeriesStream(values, None, 2, 5).next_window()
    np.testing.assert_array_equal(window.y, window.x + 1)
    window = SeriesStream(values, values[:, [0, 0]] * 2, 2, 5).next_window()
    np.testing.assert_array_equal(window.y[..., 1], window.x[..., 0] * 2)


def test_streams_refuse_what_they_cannot_walk() -> None:
    with pytest.raises(DataError, match="31 items are too few: 4 rows with windows of 8 steps nee"):
        TextStream(np.arange(32), 4, 8)
    with pytest.raises(ValueError, match="at least 1, got 0 and 8"):
        TextStream(np.arange(32), 0, 8)
    with pytest.raises(ValueError, match="expected 1 dimension, got 2"):
        TextStream(np.zeros((3, 3)), 1, 1)
    with pytest.raises(ValueError, match="equally long, got 3 and 2"):
        Stream(np.arange(3), np.arange(2), 1, 1)
    with pytest.raises(ValueError, match="2 dimensions"):
        SeriesStream(np.arange(3), None, 1, 1)


@given(st.text())
def test_vocabulary_round_trip(text: str) -> None:
    vocabulary = Vocabulary(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    again = Vocabulary.from_state_dict(vocabulary.state_dict())
    np.testing.assert_array_equal(again.encode(text), vocabulary.encode(text))
    assert len(vocabulary) == len(set(text))
    assert all(symbol in vocabulary for symbol in text)


def test_vocabulary_names_an_unknown_character() -> None:
    vocabulary = Vocabulary("abc")
    assert "z" not in vocabulary
    with pytest.raises(DataError, match="character 'z' at position 2 is unknown"):
        vocabulary.encode("abz")
    with pytest.raises(DataError, match="'a' at position 0"):
        Vocabulary("").encode("a")


def test_documentation_text_is_there() -> None:
    text = python_documentation()
    assert len(text) > 300_000
    assert 'The "with" statement' in text


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def test_text_is_read_with_plain_line_ends(tmp_path: Path) -> None:
    assert read_text(write(tmp_path, b"\xef\xbb\xbfa\r\nb\xc3\xa9\n")) == "a\nb\xe9\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"ab\xff\xfe", r"not UTF-8 text \(byte 2\)"),
        (b"ab\0c", r"binary, not text \(a zero byte at 2\)"),
    ],
)
def test_unusable_text(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_text(write(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing: No such file or directory"):
        read_text(tmp_path / "nothing")
    with pytest.raises(DataError, match="Is a directory"):
        read_text(tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_column(separator: str, tmp_path: Path) -> None:
    lines = ["day,  temp ,wind", "1, 20.5,3", "", "2,-1e2,4"]
    path = write(tmp_path, "\n".join(lines).replace(",", separator).encode())
    assert read_csv_column(path, "temp").tolist() == [20.5, -100.0]


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("a,b\n1,2\n", "c", "no column 'c'; there are a, b"),
        ("a,b\n1,2\n3,x\n", "b", "line 3: column 'b' is not a number: 'x'"),
        ("a,b\n1,nan\n", "b", "line 2: column 'b' is not a number: 'nan'"),
        ("a,b\n1\n", "b", "line 2: column 'b' is not a number: ''"),
        ("a,b\n", "b", "no lines below the header"),
        ("", "b", "the file is empty"),
    ],
)
def test_unusable_csv(content: str, column: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_csv_column(write(tmp_path, content.encode()), column)


def test_errors_are_one_line(tmp_path: Path) -> None:
    raised: list[Any] = []
    for content in (b"", b"\xff", b"a\0"):
        with pytest.raises(DataError) as caught:
            read_text(write(tmp_path, content))
        raised.append(caught.value)
    assert all("\n" not in str(error) for error in raised)
