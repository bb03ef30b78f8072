"""The playground in a real browser: token, two streams side by side, probabilities, rewards, stop, small screens."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.browser import CHROMIUM, Page, browser
from tests.serving.test_games import GAME, first_free, played
from tests.serving.tiny_api import TinyApi, TinyModel
from troupe.config.rollout import ServedRewardModelConfig
from troupe.serving import playground
from troupe.serving.playground import LIBRARIES, playground_page, run_examples
from troupe.serving.scorer import ModelScorer

KEY = "sk-tiny/+=&#"
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium on PATH (Debian: apt install chromium)"
)

EXAMPLES = [
    {"prompt": "Tom has 3 pens and buys 5 more. How many pens now?", "gold": "8", "chat": True},
    {"prompt": "Once upon a time", "chat": False},
]


@pytest.fixture(scope="module")
def api(tiny_models: dict[str, str]) -> TinyApi:
    judge = ModelScorer(ServedRewardModelConfig(path=tiny_models["judge"], precision="fp32"))
    return TinyApi(
        models={name: TinyModel(tiny_models[name]) for name in ("tuned", "base")},
        scorers={"judge": judge.score},
        metadata={
            "base": {"base": True, "chat": True, "game": "tic_tac_toe"},
            "tuned": {"chat": True, "examples": EXAMPLES, "sampling": {"temperature": 0.6, "top_k": 20}},
        },
        games={"base": GAME},
        key=KEY,
    )


@pytest.fixture(scope="module")
def url(api: TinyApi) -> Iterator[str]:
    with api.running() as address:
        yield address


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def page(opened: Page, url: str, api: TinyApi) -> Page:
    """The playground, connected."""
    from urllib.parse import quote

    api.pause_s, api.endless = 0.0, False
    opened.size(1280, 900)
    opened.open(f"{url}/playground")
    opened.js("sessionStorage.removeItem('troupe-form')")
    opened.open(f"{url}/playground#token={quote(KEY, safe='')}")
    opened.until("answers[0].select.value")
    opened.errors.clear()
    return opened


def run(page: Page, **fields: Any) -> list[dict[str, Any]]:
    """Press Run and wait; what each side shows."""
    values = {"max_tokens": 16, "seed": 7, **fields}
    for name, value in values.items():
        page.js(f"$({name!r}).value = {json.dumps(str(value))}")
    page.js("$('run').click()")
    page.until("!running")
    return list(
        page.js(
            """answers.map(a => ({content: a.content, shown: [...a.text.childNodes].filter(n => !n.classList?.contains('special')).map(n => n.textContent).join(''),
                 tokens: [...a.text.querySelectorAll('.t')].flatMap(s => s.tokens.map(t => t.logprob)),
                 told: a.told.innerText, error: a.error.hidden ? null : a.error.textContent, score: a.score, reward: a.number.textContent}))"""
        )
    )


# -- the page alone ------------------------------------------------------------------------------------------------


def test_the_page_names_no_other_address_and_runs_no_script_but_its_own() -> None:
    page, policy = playground_page()
    # The libraries only parse and make elements: they name addresses in texts, and ask none.
    for name in LIBRARIES:
        library = (Path(playground.__file__).parent / "vendor" / name).read_text()
        assert library in page
        assert not re.search(
            r"XMLHttpRequest|WebSocket|sendBeacon|\bimport\(|[^.\w}]fetch\(|\beval\(|new Function", library
        )
        page = page.replace(library, "")
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|<link[^>]+href=\"(?!data:)|src=", page)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2


def test_examples_are_the_held_out_prompts_of_a_run(tmp_path: Path) -> None:
    rows = [
        {"prompt": "user: 3+5?", "gold": "8"},
        {"prompt": "user: 3+5?", "gold": "8"},  # a later evaluation
        {"prompt": "system: Be brief.\n\nuser: a\n\nb", "gold": None},
        {"prompt": "user: a\n\nassistant: b\n\nuser: c", "gold": "d"},
        {"prompt": "POST: ...\nTL;DR:", "gold": " short"},
        {"prompt": "x" * 5000, "gold": "long"},
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_examples(tmp_path) == [
        {"prompt": "3+5?", "chat": True, "gold": "8"},
        {"prompt": "a\n\nb", "system": "Be brief.", "chat": True},
        {"prompt": "POST: ...\nTL;DR:", "chat": False, "gold": " short"},
    ]
    assert run_examples(tmp_path, count=1) == [{"prompt": "3+5?", "chat": True, "gold": "8"}]
    assert run_examples(tmp_path / "elsewhere") == []


# -- in the browser ------------------------------------------------------------------------------------------------


@needs_browser
def test_the_token_is_asked_for_once_and_kept_out_of_addresses(opened: Page, url: str) -> None:
    opened.open(url)
    opened.js("sessionStorage.clear()")
    opened.open(url)
    opened.until("$('ask').open")
    assert opened.js("$('trouble').hidden && $('refused').hidden")  # nothing was done wrong yet
    opened.js("$('secret').value = 'wrong'; $('ask').querySelector('button').click()")
    opened.until("!$('refused').hidden && $('ask').open")
    opened.js(f"$('secret').value = {json.dumps(KEY)}; $('ask').querySelector('button').click()")
    opened.until("answers[0].select.value")
    opened.open(f"{url}/playground")
    opened.until("answers[0].select.value")
    assert opened.js("$('ask').open") is False
    assert opened.js("location.href") == f"{url}/playground"
    assert opened.js("document.cookie + JSON.stringify(localStorage)") == "{}"


@needs_browser
def test_a_token_in_the_fragment_is_taken_and_leaves_the_address_bar(page: Page, url: str) -> None:
    assert page.js("sessionStorage.getItem('troupe-token')") == KEY
    assert page.js("location.href") == f"{url}/playground"


@needs_browser
def test_the_settings_say_what_a_models_generation_config_adds_to_them(page: Page) -> None:
    said = "tuned samples with top_k 20 besides (its generation_config.json)."
    assert page.js("$('force').textContent") == said
    page.js("$('temperature').value = ''; $('form').dispatchEvent(new Event('input'))")
    assert page.js("$('force').textContent") == said.replace("top_k", "temperature 0.6, top_k")
    page.js("answers[1].select.value = 'base'; $('answers').dispatchEvent(new Event('change'))")
    assert page.js("$('force').hidden")


@needs_browser
def test_two_models_answer_side_by_side_as_the_api_does(page: Page, url: str, api: TinyApi) -> None:
    assert page.js("answers.map(a => a.select.value)") == ["base", "tuned"]
    assert page.js("$('prompt').value") == EXAMPLES[0]["prompt"]
    api.asked.clear()
    left, right = run(page)
    assert {body["model"] for body in api.asked} == {"base", "tuned"}
    assert {body["seed"] for body in api.asked} == {7}
    for name, side in (("base", left), ("tuned", right)):
        assert side["error"] is None
        assert side["shown"] == side["content"] != ""
        expected = [
            (token, logprob)
            for token, logprob, _ in api.models[name].sample(
                api.models[name].tokenizer.apply_chat_template(
                    [{"role": "user", "content": EXAMPLES[0]["prompt"]}], add_generation_prompt=True, return_dict=False
                ),
                {"seed": 7, "max_tokens": 16},
            )
        ]
        text = api.models[name].tokenizer.decode([token for token, _ in expected], skip_special_tokens=True)
        assert side["content"] == text.rstrip("�")
        # Every token is on the page once, those of a character that takes several together; but for one cut off at the
        # end.
        assert side["tokens"] == pytest.approx([logprob for _, logprob in expected], abs=1e-6)
        item = {"prompt": [{"role": "user", "content": EXAMPLES[0]["prompt"]}], "response": side["content"]}
        headers = {"Authorization": f"Bearer {KEY}"}
        scored = httpx.post(f"{url}/v1/score", json={"model": "judge", "input": [item]}, headers=headers, timeout=60)
        assert side["score"] == pytest.approx(scored.json()["data"][0]["score"], abs=1e-5)
    better = page.js("answers.map(a => a.better.textContent !== '')")
    assert better == [left["score"] > right["score"], right["score"] > left["score"]]
    assert page.errors == []


@needs_browser
def test_a_token_under_the_pointer_shows_its_probability_and_the_alternatives(page: Page) -> None:
    run(page, temperature=1)
    box = page.js(
        "(r => [r.left + r.width / 2, r.top + r.height / "
        "2])(answers[1].text.querySelector('.t').getBoundingClientRect())"
    )
    page.move(*box)
    shown = page.until("hint.style.visibility === 'visible' && hint.innerText")
    token = page.js("answers[1].text.querySelector('.t').tokens[0]")
    assert f"logprob {token['logprob']:.3f}".replace("-", "\u2212") in shown
    assert page.js("hint.querySelectorAll('.row').length") in (5, 6)
    page.move(2, 2)
    page.until("hint.style.visibility === 'hidden'")


@needs_browser
def test_plain_text_goes_to_completions_with_its_own_form_of_log_probabilities(page: Page, api: TinyApi) -> None:
    page.js("$('examples').value = '1'; $('examples').dispatchEvent(new Event('change'))")
    api.asked.clear()
    left, right = run(page)
    assert [body["prompt"] for body in api.asked] == ["Once upon a time"] * 2
    for side in (left, right):
        assert side["shown"] == side["content"] != ""
        assert len(side["tokens"]) == int(side["told"].split()[0])
    page.js(f"$('prompt').value = {json.dumps('word ' * 200)}")
    assert "this model takes 100" in run(page)[0]["error"]


@needs_browser
def test_stop_ends_the_work_on_the_server(page: Page, api: TinyApi) -> None:
    api.pause_s, api.endless = 0.05, True
    page.js("$('max_tokens').value = 2000; $('run').click()")
    page.until("answers.every(a => a.tokens > 2)")
    assert api.under_way == 2
    page.js("$('stop').click()")
    page.until("!running && answers.every(a => a.told.innerText.includes('stopped'))")
    deadline = time.monotonic() + 10
    while api.under_way and time.monotonic() < deadline:
        time.sleep(0.05)
    assert api.under_way == 0
    assert page.js("!$('run').disabled && $('stop').disabled")


@needs_browser
@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 900, False), (820, 1100, False), (360, 740, True)])
def test_nothing_is_wider_than_the_screen_and_nothing_comes_from_elsewhere(
    page: Page, url: str, width: int, height: int, phone: bool
) -> None:
    page.size(width, height, phone=phone)
    run(page, prompt="word" * 20, scorer="")
    assert page.js("document.documentElement.scrollWidth") <= width
    assert {
        resource.split("/v1/")[0] for resource in page.js("performance.getEntriesByType('resource').map(r => r.name)")
    } == {url}
    assert page.errors == []


@needs_browser
def test_enter_sends_shift_enter_begins_a_line_and_a_reload_keeps_what_was_written(
    page: Page, url: str, api: TinyApi
) -> None:
    api.asked.clear()
    page.js("$('prompt').value = ''; $('max_tokens').value = 3; $('prompt').focus()")
    for text in "3+5?":
        page.call("Input.dispatchKeyEvent", type="char", text=text)
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    page.call("Input.dispatchKeyEvent", type="keyDown", modifiers=8, **key)
    assert page.js("$('prompt').value") == "3+5?\n"
    assert api.asked == []
    page.call("Input.dispatchKeyEvent", type="keyDown", **key)
    page.until("!running && answers.every(a => a.reason)")
    assert [body["messages"][-1]["content"] for body in api.asked] == ["3+5?\n"] * 2
    page.open(f"{url}/playground")
    page.until("answers[0].select.value")
    assert page.js("[$('prompt').value, $('max_tokens').value]") == ["3+5?\n", "3"]


@needs_browser
def test_a_chat_goes_on_with_what_each_model_said_and_begins_anew_without_that(page: Page, api: TinyApi) -> None:
    first = run(page, prompt="One?", system="Be brief.")
    page.js("$('follow').click()")
    api.asked.clear()
    run(page, prompt="Two?")
    said = {body["model"]: body["messages"] for body in api.asked}
    for name, side in (("base", first[0]), ("tuned", first[1])):
        assert said[name] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": side["content"]},
            {"role": "user", "content": "Two?"},
        ]
    assert page.js("$('prompt').value") == ""
    assert page.js("[...answers[0].earlier.children].map(e => e.textContent)") == ["One?", first[0]["content"], "Two?"]
    page.js("$('follow').click()")
    api.asked.clear()
    run(page, prompt="Three?", system="")
    assert [body["messages"] for body in api.asked] == [[{"role": "user", "content": "Three?"}]] * 2
    assert page.js("answers[0].earlier.children.length") == 0
    assert page.errors == []


@needs_browser
def test_an_answer_can_be_copied(page: Page) -> None:
    assert page.js("answers[0].copy.disabled")
    page.js("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve(); }")
    left, _ = run(page)
    page.js("answers[0].copy.click()")
    assert page.until("window.copied") == left["content"]
    assert page.js("answers[0].copy.textContent") == "Copied"


SAID = r"""# Result

The **area** is $\frac{1}{2}$ of \(x^2\), and it costs $5 or $6.

1. one `code`
2. two

$$
\sum_{i=1}^n i = \frac{n(n+1)}{2}
$$

| a | b |
|---|---|
| 1 | 2 |

```python
print("<b>")
```

<img src=x onerror="window.broken = 1"> [here](javascript:alert(1)) [there](https://example.org/)
$\nonsense{$
"""


@needs_browser
def test_markdown_and_formulas_are_shown_and_nothing_of_an_answer_becomes_markup(page: Page) -> None:
    run(page)
    page.js("$('formatted').click()")
    page.js(f"answers[0].content = {json.dumps(SAID)}; answers[0].format()")
    page.until("answers[0].shown.querySelector('h1') !== null")
    shown = page.js(
        """(s => ({heading: s.querySelector('h1').textContent, bold: s.querySelector('strong').textContent,
          list: [...s.querySelectorAll('ol li')].map(e => e.textContent), code: s.querySelector('pre code').textContent,
          cells: [...s.querySelectorAll('td')].map(e => e.textContent), fractions: s.querySelectorAll('mfrac').length,
          block: s.querySelectorAll('math[display=block] munderover, math[display=block] msubsup, math[display=block] mo').length,
          links: [...s.querySelectorAll('a')].map(e => e.href), images: s.querySelectorAll('img').length,
          text: s.textContent}))(answers[0].shown)"""
    )
    assert (shown["heading"], shown["bold"]) == ("Result", "area")
    assert shown["list"] == ["one code", "two"]
    assert shown["cells"] == ["1", "2"]
    assert shown["code"] == 'print("<b>")'
    assert shown["fractions"] == 2
    assert shown["block"] > 0
    assert "it costs $5 or $6." in shown["text"]
    assert '<img src=x onerror="window.broken = 1"> here there' in shown["text"]
    assert (shown["links"], shown["images"]) == (["https://example.org/"], 0)
    assert page.js("window.broken") is None
    page.js("$('formatted').click()")
    assert page.js("getComputedStyle(answers[0].text.querySelector('.t')).display") != "none"
    assert page.errors == []


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_person_plays_an_environment_and_a_model_goes_on(page: Page, width: int) -> None:
    page.size(width, 900, phone=width < 700)
    assert page.js("$('games').offsetParent !== null && $('own_move').disabled")
    page.js("$('seed').value = '3'; $('new_game').click()")
    page.until("game?.messages && !running")
    while not page.js("game.over"):
        board = page.js("game.messages.at(-1).content")
        assert board in page.js("answers[0].earlier.textContent")
        page.js(f"$('prompt').value = {json.dumps(first_free(board))}; $('own_move').click()")
        page.until("!running")
    end = played(3, first_free)
    assert page.js("answers[0].number.textContent") == {1.0: "1", 0.5: "0.50", 0.0: "0"}[end.reward]
    assert f"win {end.parts['win']:g}" in page.js("answers[0].better.textContent")
    assert page.js("$('own_move').disabled && $('model_move').disabled && !$('new_game').disabled")

    page.js("$('seed').value = '4'; $('max_tokens').value = '5'; $('new_game').click()")
    page.until("game.messages && !game.over && !running")
    page.js("$('model_move').click()")
    page.until("game.answers.length === 1 && !running")
    said = page.js("game.answers[0]")  # a random model's, which names no cell
    assert page.js("game.over && game.parts.invalid_move") == 1
    assert page.js("answers[0].number.textContent") == "\u22121"
    assert said in page.js("answers[0].earlier.querySelector('.turn.assistant').textContent")
    assert page.js("answers[0].earlier.querySelectorAll('.turn.assistant .t').length") > 0  # with its probabilities
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.errors == []
    page.js("answers[0].select.value = 'tuned'; $('answers').dispatchEvent(new Event('change'))")
    assert page.js("$('games').hidden")
