"""Files survive writers that are killed."""

from __future__ import annotations

import math
import threading
from pathlib import Path

from troupe.files import JsonLines, keep_lines, read_lines, to_json


def test_a_line_that_a_killed_writer_left_unfinished_is_passed_over_and_not_glued_to_the_next(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "rew')
    JsonLines(file).append({"step": 3})
    assert [line["step"] for line in read_lines(file)] == [1, 3]


def test_numbers_that_json_cannot_write_become_null() -> None:
    assert to_json({"a": math.nan, "b": [math.inf, 1.5]}) == '{"a": null, "b": [null, 1.5]}'


def test_unusual_line_separators_in_a_text_do_not_split_its_record(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    JsonLines(file).append({"text": "one\u2028two\x85three\nfour"})
    assert read_lines(file) == [{"text": "one\u2028two\x85three\nfour"}]


def test_keeping_lines_drops_the_others(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    JsonLines(file).append(*({"step": step} for step in range(5)))
    keep_lines(file, lambda line: line["step"] <= 2)
    assert [line["step"] for line in read_lines(file)] == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_records_of_several_threads_are_all_there_and_whole(tmp_path: Path) -> None:
    events = JsonLines(tmp_path / "events.jsonl")
    threads = [
        threading.Thread(target=lambda n=n: [events.append({"thread": n, "i": i}) for i in range(50)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_lines(events.path)) == 200
