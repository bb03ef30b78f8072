import asyncio
from pathlib import Path

import pytest

from tests.data.packages import function, words
from troupe.config.made_data import DocstringsConfig
from troupe.data import DataSet, docstring_scan as harvest
from troupe.data.dataset import shorten
from troupe.data.docstrings import load_docstrings
from troupe.data.near_duplicates import NearDuplicates, plain
from troupe.errors import DataError
from troupe.records import Sample


def load(root: Path, *, num_heldout: int = 10, **settings: object) -> DataSet:
    config = DocstringsConfig(roots=[str(root)], num_heldout=num_heldout, **settings)
    return load_docstrings(config, cache=root.parent / "cache")


def text_of(sample: Sample) -> str:
    (message,) = sample.prompt
    return message["content"]


def harvested(tmp_path: Path, source: str) -> list[harvest.Pair]:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(source)
    return harvest.harvest([str(tmp_path)], tmp_path / "cache")


def test_a_docstring_becomes_its_text_and_its_summary(root: Path) -> None:
    sample = next(sample for sample in load(root).train if sample.sample_id.endswith("/module.py:2"))
    topic = sample.fields["package"]
    assert sample.sample_id == f"docstrings/{topic}/module.py:2"
    assert sample.gold == sample.fields["demonstration"] == f"Summarise {topic} by rule 0."
    assert text_of(sample) == f"{words(topic, 0)}\nsecond line about {topic}."


def test_no_package_is_on_both_sides_and_the_held_out_set_has_the_asked_size(root: Path) -> None:
    data = load(root)
    train, heldout = ({sample.fields["package"] for sample in side} for side in (data.train, data.heldout))
    assert not train & heldout
    # 10 of 6 a package need two packages; the other six stay whole.
    assert (len(data.heldout), len(heldout)) == (10, 2)
    assert (len(data.train), len(train)) == (36, 6)


def test_no_prompt_contains_its_gold(tmp_path: Path) -> None:
    repeated = (
        'def f():\n    """Close all the open files.\n\n    As said: close all *the* open files! '
        + "word " * 30
        + '\n    """\n'
    )
    assert harvested(tmp_path, repeated) == []
    standard_library = Path(asyncio.__file__).parent
    real = load_docstrings(DocstringsConfig(roots=[str(standard_library)], num_heldout=5), cache=tmp_path)
    assert len(real.train) >= 20
    for sample in (*real.train, *real.heldout):
        assert plain(sample.gold or "") not in plain(text_of(sample))


def test_the_split_depends_on_the_seed_and_the_pairs_alone(root: Path) -> None:
    def heldout_ids(seed: int) -> list[str]:
        return [sample.sample_id for sample in load(root, seed=seed).heldout]

    assert heldout_ids(0) == heldout_ids(0)
    assert len({tuple(heldout_ids(seed)) for seed in range(5)}) > 1


def test_one_large_package_does_not_fill_the_held_out_set(root: Path) -> None:
    (root / "matrices" / "more.py").write_text("".join(function("matrices", number) for number in range(6, 40)))
    for seed in range(8):
        assert "matrices" not in {sample.fields["package"] for sample in load(root, num_heldout=16, seed=seed).heldout}


def test_a_copy_in_another_package_is_left_out(root: Path) -> None:
    before = load(root)
    (root / "vendored").mkdir()
    (root / "vendored" / "copy.py").write_text(
        (root / "sockets" / "module.py").read_text().replace("second line", "2nd line")
    )
    after = load(root)
    assert len(after.train) == len(before.train)
    assert all("vendored" not in sample.sample_id for sample in (*after.train, *after.heldout))


def test_a_near_duplicate_shares_half_of_its_five_word_runs() -> None:
    numbers = [f"w{i}" for i in range(20)]  # 20 words, 16 runs of five
    seen = NearDuplicates()
    assert seen.is_new(" ".join(numbers))
    # The first 12 words keep 8 of 16 runs: a copy. The first 11 keep 7: a new text.
    assert not seen.is_new(" ".join([*numbers[:12], *(f"x{i}" for i in range(8))]))
    assert seen.is_new(" ".join([*numbers[:11], *(f"y{i}" for i in range(9))]))


def test_only_docstrings_are_harvested_and_read_as_python_reads_them(tmp_path: Path) -> None:
    text = "word " * 30
    source = (
        f'"""The summary of this module.\n\n{text}\n"""\n'
        f'x = """A text that is no docstring.\n\n{text}1\n"""\n'
        f"class A:\n    r'''A raw \\d in the summary.\n\n    {text}2 {'different ' * 9}\n    '''\n"
        f'    async def f(\n        self,\n    ) -> int:  # comment\n        """An escaped \\\\d in a summary.\n\n   '
        f'     {"another " * 20}\n        """\n'
    )
    pairs = harvested(tmp_path, source)
    assert [(pair.place, pair.summary) for pair in pairs] == [
        ("package/module.py:1", "The summary of this module."),
        ("package/module.py:10", "A raw \\d in the summary."),
        ("package/module.py:17", "An escaped \\d in a summary."),
    ]


@pytest.mark.parametrize("name", ["tests/module.py", "test_module.py", "conftest.py", ".hidden/module.py"])
def test_tests_are_not_harvested(root: Path, name: str) -> None:
    path = root / "sockets" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(function("other", 1))
    assert all("other" not in text_of(sample) for sample in load(root).train)


def test_the_cache_is_used_until_a_file_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(root)
    with monkeypatch.context() as patch:
        patch.setattr(harvest, "pairs_of", lambda file: pytest.fail("scanned again"))
        assert load(root) == first
    (root / "sockets" / "module.py").write_text(function("sockets", 77))
    assert load(root) != first


def test_long_texts_are_cut_at_a_lines_end() -> None:
    # Cut at 20: the line's end at 11 keeps more than half. At 30 the line's end would lose more: between words.
    text = "first line\nsecond and third words"
    assert shorten(text, 20) == "first line"
    assert shorten(text, 30) == "first line\nsecond and third"
    assert shorten(text, 100) == text


def test_summaries_beyond_the_limit_are_left_out(root: Path) -> None:
    (root / "sockets" / "long.py").write_text(function("sockets and much else that makes it long", 9))
    limit = len("Summarise calendars by rule 0.")
    assert all(len(sample.gold or "") <= limit for sample in load(root, max_summary_chars=limit).train)


def test_too_few_pairs_are_refused_with_the_remedy(root: Path) -> None:
    # One of the eight packages stays in training: at most 7 * 6 = 42 can be held out.
    assert len(load(root, num_heldout=42).heldout) == 42
    with pytest.raises(
        DataError, match=r"48 pairs of 8 packages are too few to hold out 43 .* lower data\.num_heldout"
    ):
        load(root, num_heldout=43)


def test_a_root_that_is_no_directory_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"there is no directory '.*nowhere'"):
        load(root / "nowhere")


def test_another_package_moves_no_other_to_the_other_side(root: Path) -> None:
    before = load(root)
    (root / "zebras").mkdir()
    (root / "zebras" / "module.py").write_text("".join(function("zebras", number) for number in range(6)))
    after = load(root)
    # At most the newcomer takes a place in the held-out set, and the package whose place it was goes to training.
    sides = [{sample.fields["package"] for sample in data.heldout} for data in (before, after)]
    assert sides[1] - sides[0] <= {"zebras"}
