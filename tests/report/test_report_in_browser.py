"""The report in a real browser: values by pointer and keyboard, from a point to its samples, hostile text, a phone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_run import fake_run
from tests.serving.browser import CHROMIUM, Page, browser
from troupe.files import JsonLines, read_lines
from troupe.records import Branch, Group, Sample, Score
from troupe.report.live_page import LiveServer
from troupe.report.report import build_comparison, build_report
from troupe.runs.run_records import group_record

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

ATTACK = "</script><script>hit=1</script><img src=x onerror=hit=1><svg onload=hit=1>\u2028'\"`${hit=1}"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs"), name="first", steps=60)


def opened(page: Page, address: Path | str, *, width: int = 1280, phone: bool = False) -> Page:
    page.errors.clear()
    page.size(width, 900, phone=phone)
    page.call("Page.navigate", url="about:blank")
    page.call("Page.navigate", url=f"file://{address}" if isinstance(address, Path) else address)
    page.until("document.readyState === 'complete' && typeof charts !== 'undefined'")
    page.until("charts.length > 0 && charts.every(one => one.plot || one.figure.hidden)")
    return page


def chart(metric: str) -> str:
    return f"charts.find(one => one.chart.metrics[0] === {json.dumps(metric)})"


def point(page: Page, metric: str, x: float) -> tuple[float, float]:
    """The place in the window of a chart's middle at an x value."""
    place = page.js(
        f"""(() => {{ const one = {chart(metric)}; one.figure.scrollIntoView({{block: 'center', behavior: 'instant'}});
        const box = one.plot.over.getBoundingClientRect();
        return [box.left + one.plot.valToPos({x}, 'x'), box.top + box.height / 2]; }})()"""
    )
    return place[0], place[1]


def press(page: Page, key: str) -> None:
    page.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)
    page.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)


def mouse(page: Page, kind: str, x: float, y: float) -> None:
    page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


def legend(page: Page, metric: str) -> str:
    return str(page.js(f"{chart(metric)}.figure.querySelector('.u-legend').innerText"))


def rewards(run: Path) -> dict[int, float]:
    return {line["step"]: line["reward/mean"] for line in read_lines(run / "metrics.jsonl") if line["step"]}


def test_the_pointer_reads_exact_values_of_all_charts_at_that_step(page: Page, run: Path) -> None:
    opened(page, run / "report.html")
    page.move(*point(page, "reward/mean", 20))
    page.until(f"{chart('reward/mean')}.plot.cursor.idx === 19")
    assert str(rewards(run)[20]) in legend(page, "reward/mean")
    entropy = next(line["policy/entropy"] for line in read_lines(run / "metrics.jsonl") if line["step"] == 20)
    assert str(entropy) in legend(page, "policy/entropy")
    assert page.errors == []


def test_the_keyboard_reads_exact_values_and_opens_the_samples_of_a_step(page: Page, run: Path) -> None:
    opened(page, run / "report.html")
    page.js(f"{chart('reward/mean')}.figure.focus()")
    press(page, "Home")
    assert str(rewards(run)[1]) in legend(page, "reward/mean")
    for _ in range(4):
        press(page, "ArrowRight")
    assert str(rewards(run)[5]) in legend(page, "reward/mean")
    press(page, "Enter")
    assert page.js("filter.elements.step.value") == "5"


def test_a_click_on_a_point_shows_the_samples_of_its_step(page: Page, run: Path) -> None:
    opened(page, run / "report.html")
    place = point(page, "reward/mean", 12)
    page.move(*place)
    mouse(page, "mousePressed", *place)
    mouse(page, "mouseReleased", *place)
    assert page.js("filter.elements.step.value") == "12"
    page.js("document.querySelectorAll('.group').forEach(card => card.open = true)")
    page.until("document.querySelectorAll('.group .answer').length === 16")
    shown = page.js("[...document.querySelectorAll('.group .answer .text')].map(one => one.textContent)")
    lines = [line for line in read_lines(run / "rollouts.jsonl") if line["step"] == 12]
    assert shown == [branch["text"] for line in lines for branch in line["branches"]]
    page.move(*(place := point(page, "eval/heldout/accuracy", 30)))
    mouse(page, "mousePressed", *place)
    mouse(page, "mouseReleased", *place)
    assert page.js("filter.elements.set.value + filter.elements.step.value") == "heldout30"
    assert page.js("document.querySelectorAll('.group').length") == 20  # and the others behind a button


def test_dragging_zooms_into_all_charts_and_escape_out(page: Page, run: Path) -> None:
    opened(page, run / "report.html")
    begin, end = point(page, "reward/mean", 20), point(page, "reward/mean", 40)
    page.move(*begin)
    mouse(page, "mousePressed", *begin)
    mouse(page, "mouseMoved", *end)
    mouse(page, "mouseReleased", *end)
    for metric in ("reward/mean", "policy/kl"):
        low, high = page.until(f"(s => s.max < 50 && [s.min, s.max])({chart(metric)}.plot.scales.x)")
        assert (low, high) == (pytest.approx(20, abs=1), pytest.approx(40, abs=1))
    page.js(f"{chart('policy/kl')}.figure.focus()")
    press(page, "Escape")
    page.until(f"{chart('reward/mean')}.plot.scales.x.max === 60")


def test_the_axis_the_search_and_the_smoothing_can_be_chosen(page: Page, run: Path) -> None:
    opened(page, run / "report.html")
    page.js("controls.elements.x.value = 'time'; controls.dispatchEvent(new Event('input'))")
    lines = read_lines(run / "metrics.jsonl")
    assert page.js(f"{chart('reward/mean')}.plot.data[0].at(-1)") == lines[-1]["wall_s"]
    page.js("controls.elements.smooth.value = '0'; controls.dispatchEvent(new Event('input'))")
    assert page.js(f"{chart('reward/mean')}.plot.data.length") == 2
    assert page.js(f"{chart('reward/mean')}.plot.data[1]") == list(rewards(run).values())
    page.js("controls.elements.find.value = 'Clip_frac'; find()")
    shown = "charts.filter(one => one.figure.dataset.chart && one.figure.offsetParent).map(one => one.chart.metrics[0])"
    assert page.js(shown) == ["policy/clip_fraction"]


def test_samples_are_chosen_by_prompt_and_reward_with_their_histogram_and_curve(page: Page, run: Path) -> None:
    opened(page, run / "report.html")
    lines = read_lines(run / "rollouts.jsonl")
    page.js("filter.elements.low.value = '1'; filter.dispatchEvent(new Event('input'))")
    best = [line for line in lines if any(branch["score"] >= 1 for branch in line["branches"])]
    assert f"{len(best)} groups chosen" in page.js("document.querySelector('#samples-count').textContent")
    scores = [branch["score"] for line in best for branch in line["branches"]]
    assert page.js("histogram.plot.data[1].reduce((a, b) => a + b)") == len(scores)
    assert page.js("histogram.plot.data[1].at(-1)") == sum(score == 1 for score in scores)
    held_out = read_lines(run / "answers.jsonl")
    sample_id = held_out[0]["sample_id"]
    page.js(
        f"filter.elements.low.value = ''; filter.elements.set.value = 'heldout'; fillFilter(); "
        f"filter.elements.prompt.value = {json.dumps(sample_id)}; filter.dispatchEvent(new Event('input'))"
    )
    mine = [row for row in held_out if row["sample_id"] == sample_id]
    assert page.js("[...perPrompt.plot.data]") == [
        [row["step"] for row in mine], [row["metrics"]["accuracy"] for row in mine]
    ]  # fmt: skip


def test_what_a_model_wrote_does_nothing_in_the_page(page: Page, tmp_path: Path) -> None:
    directory = fake_run(tmp_path, name="attacked", steps=2)
    JsonLines(directory / "rollouts.jsonl").append(
        {"step": ATTACK, "sample_id": ATTACK, "prompt": ATTACK, "gold": ATTACK,
         "branches": [{"text": ATTACK, "score": 1.0, "parts": {ATTACK: ATTACK}, "finish_reason": ATTACK}]}
    )  # fmt: skip
    JsonLines(directory / "answers.jsonl").append(
        {"step": 0, "set": ATTACK, "sample_id": ATTACK, "prompt": ATTACK, "gold": ATTACK, "text": ATTACK,
         "metrics": {ATTACK: 1.0}}
    )  # fmt: skip
    JsonLines(directory / "events.jsonl").append({"at": ATTACK, "kind": ATTACK, "step": 1, ATTACK: ATTACK})
    JsonLines(directory / "metrics.jsonl").append({"step": 3, f"eval/{ATTACK}": 1.0, f"time/{ATTACK}_s": 1.0})
    JsonLines(directory / "metrics.jsonl").append({"step": 4, f"eval/{ATTACK}": 2.0, f"time/{ATTACK}_s": 2.0})
    opened(page, build_report(directory))
    page.js("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.until(f"document.querySelector('#groups').textContent.includes({json.dumps(ATTACK)})")
    assert page.js("typeof hit") == "undefined"
    assert page.js("document.images.length + document.querySelectorAll('main svg, main script').length") == 0
    assert page.errors == []


def spelled(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_an_episode_is_shown_turn_by_turn_with_its_mask_probabilities_and_the_sum_of_its_score(
    page: Page, tmp_path: Path, width: int, phone: bool
) -> None:
    """Of a run whose other groups were written without turns, as runs of before have them."""
    said = ["Let me see. <call>48/2</call>" + "long" * 40, f"<|tool|>24 {ATTACK}", "24"]
    logprobs = [-3.0] + [-0.01] * (len(said[0]) - 1) + [0.0] * len(said[1]) + [-0.7, -0.01]
    branch = Branch(
        token_ids=spelled("".join(said)),
        logprobs=logprobs,
        loss_mask=[True] * len(said[0]) + [False] * len(said[1]) + [True] * 2,
        turns=[("assistant", len(said[0])), ("tool calculator", len(said[1])), ("assistant", 2)],
    )
    group = Group(sample=Sample(sample_id="tools/1", prompt="48/2?"), prompt_ids=[1], branches=[branch])
    parts = {"environment": 0.5, "math_answer": 1.0, "tools/calls": 2.0}
    record = group_record(group.with_scores([Score(value=1.5, parts=parts)]), lambda ids: "".join(map(chr, ids)))
    directory = fake_run(tmp_path, name="tools", steps=3)
    JsonLines(directory / "rollouts.jsonl").append({"step": 3, **record})
    opened(page, build_report(directory), width=width, phone=phone)
    page.js("filter.elements.text.value = '<|tool|>24'; filter.dispatchEvent(new Event('input'))")
    assert "1 groups chosen" in page.js("document.querySelector('#samples-count').textContent")
    page.js("document.querySelector('.group').open = true")
    page.until("document.querySelectorAll('.turn').length === 3")
    assert page.js("[...document.querySelectorAll('.turn .text')].map(one => one.textContent)") == said
    heads = page.js("[...document.querySelectorAll('.turn header')].map(one => one.innerText.split('\\n').join(' '))")
    assert [head.split() for head in heads] == [
        ["assistant", "trained"], ["tool", "calculator", "read,", "not", "trained"], ["assistant", "trained"]
    ]  # fmt: skip
    score = page.js("document.querySelector('.group .answer > header').textContent")
    assert "score 1.5 = environment 0.5 + math_answer 1" in score
    assert "tools/calls 2" in score
    page.js("document.querySelector('.turn .text span').click()")
    assert "probability 0.04979" in page.js("document.querySelector('.turn header').innerText")  # exp(-3)
    marked = "[...document.querySelectorAll('.turn span[title]')].filter(one => one.style.length).length"
    assert page.js(marked) == 2  # of -3 and -0.7
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js("typeof hit") == "undefined"
    page.js("filter.elements.text.value = ''; filter.dispatchEvent(new Event('input'))")
    page.js("document.querySelectorAll('.group').forEach(card => card.open = true)")
    page.until("document.querySelectorAll('.group .answer').length > 40")
    assert page.errors == []


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_a_page_is_no_wider_than_its_window(page: Page, run: Path, tmp_path: Path, width: int, phone: bool) -> None:
    others = [fake_run(tmp_path, name=f"a_run_with_a_long_name_{number}", steps=4) for number in range(3)]
    for file in (run / "report.html", build_comparison([run, *others], tmp_path / "compare.html")):
        opened(page, file, width=width, phone=phone)
        assert page.js("document.documentElement.scrollWidth") <= width
        plots = page.js(
            "charts.filter(one => !one.figure.hidden).map(one => one.plot.root.scrollWidth - one.figure.clientWidth)"
        )
        assert plots
        assert max(plots) <= 0


def test_a_live_page_reloads_when_its_run_goes_on_and_keeps_what_was_chosen(page: Page, tmp_path: Path) -> None:
    run = fake_run(tmp_path, name="going", steps=4)
    with LiveServer(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened(page, server.url("going"))
        page.js("controls.elements.smooth.value = '5'; filter.elements.order.value = 'oldest'; beforeReload = 1")
        JsonLines(run / "metrics.jsonl").append({"step": 5, "wall_s": 99.0, "reward/mean": 0.987})
        page.until(
            "typeof beforeReload === 'undefined' && document.readyState === 'complete' && typeof charts !== 'undefined'"
        )
        assert page.js("data.runs[0].metrics['reward/mean'].values.at(-1)") == 0.987
        assert page.js("controls.elements.smooth.value + filter.elements.order.value") == "5oldest"
        page.call("Page.navigate", url="about:blank")
        server.shutdown()
