"""Spans, and the trace that they become."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from tests.traces import assert_nested_and_covering
from troupe.config.run import WatchConfig
from troupe.report.observers import open_run
from troupe.report.watching import request_timeline
from troupe.runs.run import Run
from troupe.timeline import RECORDER, REQUEST_FILE, TRACK, Counter, InFlight, Recorder, Span, lanes, write_step

MS = 1_000_000


def span(track: str, name: str, begin_ms: float, end_ms: float) -> Span:
    return Span(track=track, name=name, begun_ns=int(begin_ms * MS), ended_ns=int(end_ms * MS))


def written(path: Path) -> list[dict]:
    return json.loads(path.read_text())["traceEvents"]


def test_a_step_is_written_as_chrome_trace_events_in_microseconds_cut_to_the_step(tmp_path: Path) -> None:
    found = [span("policy 0", "read", 90, 130), Counter(track="policy 0", name="in flight", at_ns=120 * MS, count=3)]
    outside = [span("policy 0", "read", 10, 90), Counter(track="policy 0", name="in flight", at_ns=90 * MS, count=1)]
    write_step(tmp_path / "t.json", 4, span("driver", "step 4", 100, 200), found + outside)
    assert written(tmp_path / "t.json") == [
        {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "driver"}},
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "policy 0"}},
        {"ph": "X", "name": "step 4", "cat": "troupe", "pid": 0, "tid": 0, "ts": 100_000, "dur": 100_000, "step": 4},
        {"ph": "X", "name": "read", "cat": "troupe", "pid": 1, "tid": 0, "ts": 100_000, "dur": 30_000, "step": 4},
        {"ph": "C", "name": "in flight", "cat": "troupe", "pid": 1, "ts": 120_000, "args": {"in flight": 3}, "step": 4},
    ]


def test_a_step_that_is_made_again_takes_the_place_of_itself_and_of_later_ones_and_tracks_keep_their_numbers(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.json"
    for step, track in ((1, "policy 0"), (2, "generator 0"), (3, "generator 1"), (2, "generator 0")):
        begin = 100 * step
        write_step(path, step, span("driver", f"step {step}", begin, begin + 100), [span(track, "x", begin, begin + 1)])
    steps = [event["step"] for event in written(path) if event["ph"] == "X" and event["name"].startswith("step")]
    assert steps == [1, 2]
    names = {event["pid"]: event["args"]["name"] for event in written(path) if event["ph"] == "M"}
    assert names == {0: "driver", 1: "policy 0", 2: "generator 0", 3: "generator 1"}
    pids = {event["step"]: event["pid"] for event in written(path) if event["name"] == "x"}
    assert pids == {1: 1, 2: 2}


def test_within_a_lane_spans_follow_or_contain_one_another() -> None:
    spans = [
        span("a", "outer", 0, 10),
        span("a", "inner", 2, 4),
        span("a", "crossing", 8, 12),
        span("a", "next", 12, 13),
    ]
    dealt = {found.name: lane for lane, found in lanes(spans)}
    assert dealt == {"outer": 0, "inner": 0, "crossing": 1, "next": 0}


def test_what_still_goes_on_is_told_up_to_now_and_whole_when_it_has_ended() -> None:
    recorder = Recorder()
    before = time.time_ns()
    key = recorder.begin("long")
    (going,) = [entry for entry in recorder.since(before) if isinstance(entry, Span) and entry.name == "long"]
    assert going.ended_ns >= going.begun_ns >= before
    recorder.end(key)
    (ended,) = [entry for entry in recorder.since(before) if isinstance(entry, Span) and entry.name == "long"]
    assert ended.begun_ns == going.begun_ns
    assert ended.ended_ns >= going.ended_ns
    assert [entry for entry in recorder.since(time.time_ns()) if isinstance(entry, Span)] == []


def test_requests_in_flight_are_one_span_from_the_first_to_the_last_and_a_level_at_each_change() -> None:
    before = time.time_ns()
    token = TRACK.set("generator 7")
    flight = InFlight("generate")
    assert [flight.change(by) for by in (2, 1, -1, -2)] == [2, 3, 2, 0]
    TRACK.reset(token)
    mine = [entry for entry in RECORDER.since(before) if entry.track == "generator 7"]
    assert [entry.count for entry in mine if isinstance(entry, Counter)] == [2, 3, 2, 0]
    assert [entry.name for entry in mine if isinstance(entry, Span)] == ["generate"]


def test_a_flight_counts_rightly_from_many_threads() -> None:
    flight = InFlight("generate")
    threads = [threading.Thread(target=lambda: [flight.change(by) for by in (1, -1) * 200]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert flight.count == 0


def run_steps(config, steps: range) -> Run:
    with open_run(config) as run:
        for step in run.steps(steps[0], steps[-1]):
            with run.timed("rollout"):
                time.sleep(0.002)
            with run.timed("outer"), run.timed("inner"):
                time.sleep(0.002)
            if step == 5:
                request_timeline(run.directory)
            run.end_step(step)
    return run


def test_a_run_writes_the_chosen_steps_every_nth_and_the_one_that_was_asked_for(recipe) -> None:
    config = recipe(steps=9)
    watch = WatchConfig(timeline_steps=[1, 2], timeline_every=4)
    config = config.model_copy(update={"run": config.run.model_copy(update={"watch": watch})})
    run = run_steps(config, range(1, 10))
    events = [event for event in written(run.directory / "timeline.json") if event["ph"] == "X"]
    assert sorted({event["step"] for event in events}) == [1, 2, 4, 5, 8]
    assert not (run.directory / REQUEST_FILE).exists()
    assert_nested_and_covering(run.directory)
    assert {event["name"] for event in events} >= {"rollout", "outer", "inner", "step 1"}
    assert 'class="strip"' in (run.directory / "report.html").read_text()


def test_a_source_of_spans_that_fails_does_not_stop_the_run(recipe) -> None:
    def broken(since_ns: int) -> list:
        raise ConnectionError("no route")

    with open_run(recipe()) as run:
        run.add_spans(broken)
        for step in run.steps(1, 3):
            run.end_step(step)
    assert [event["kind"] for event in map(json.loads, (run.directory / "events.jsonl").open())][-1] == "finished"
