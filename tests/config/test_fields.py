"""What the fields of a recipe are: names, sections, kinds in words, flat values; each answer written out by hand."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_origin

import pytest
from pydantic import Field

from tests.job_configs import JOB_CONFIGS
from troupe.config.fields import (
    changed_keys,
    dotted_fields,
    flat_values,
    is_under,
    kind_of,
    sections_of,
    tag_of,
    type_at,
)
from troupe.config.loader import Section


class Inner(Section):
    """A section without a type."""

    depth: int = 1
    """How deep."""


class Cat(Section):
    """One type."""

    type: Literal["cat"] = "cat"
    lives: int = 9
    """Lives."""


class Dog(Section):
    """Another type, with a section of its own."""

    type: Literal["dog"] = "dog"
    inner: Inner = Inner()
    """Below."""


class Either(Section):
    """A section that stands for several types at once."""

    type: Literal["cat", "dog"] = "cat"


Animal = Annotated[Cat | Dog, Field(discriminator="type")]


class Zoo(Section):
    """Everything that a field can hold."""

    name: str = "zoo"
    """Its name."""
    animals: list[Animal] = Field(default=[])
    """A list of sections."""
    by_name: dict[str, Animal] = Field(default={})
    """Sections by names."""
    pet: Animal = Cat()
    """One of two."""
    place: Inner | None = None
    """A section or none."""
    size: tuple[int, int] = Field(default=(1, 2), strict=False)
    """Two numbers."""


# -- sections and their types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "sections"),
    [
        (Inner, [Inner]),
        (Inner | None, [Inner]),
        (list[Inner], [Inner]),
        (dict[str, Cat | Dog], [Cat, Dog]),
        (Animal, [Cat, Dog]),
        (list[Annotated[Dog, "note"]] | Inner, [Dog, Inner]),
        (list[int] | str | None, []),
        (Any, []),
    ],
)
def test_sections_are_found_inside_lists_names_and_unions(annotation: Any, sections: list[type]) -> None:
    assert sections_of(annotation) == sections


def test_a_tag_is_the_one_value_of_type() -> None:
    assert (tag_of(Cat), tag_of(Dog)) == ("cat", "dog")
    assert tag_of(Inner) is None  # it has no type
    assert tag_of(Either) is None  # its type chooses nothing


def test_dotted_names_come_in_the_order_of_the_fields_with_each_sections_fields_behind_it() -> None:
    assert [name for name, _ in dotted_fields(Zoo)] == [
        "name",
        "animals",
        "animals.type",
        "animals.lives",
        "animals.type",
        "animals.inner",
        "animals.inner.depth",
        "by_name",
        "by_name.type",
        "by_name.lives",
        "by_name.type",
        "by_name.inner",
        "by_name.inner.depth",
        "pet",
        "pet.type",
        "pet.lives",
        "pet.type",
        "pet.inner",
        "pet.inner.depth",
        "place",
        "place.depth",
        "size",
    ]


@pytest.mark.parametrize("job", JOB_CONFIGS)
def test_a_field_and_a_tag_lead_to_the_same_section_as_the_annotation(job: str) -> None:
    for name, info in JOB_CONFIGS[job].model_fields.items():
        assert type_at(JOB_CONFIGS[job], name) == info.annotation
        for section in sections_of(info.annotation):
            if tag_of(section) is not None and get_origin(info.annotation) is not list:
                assert section in sections_of(type_at(info.annotation, tag_of(section)))


@pytest.mark.parametrize(
    ("annotation", "part", "found"),
    [
        (Zoo, "name", str),
        (Zoo, "nothing", None),
        (list[int], 3, int),
        (list[int], "x", None),
        (dict[str, float], "any", float),
        (dict[str, float], "[key]", None),  # pydantic's word for a mistake in a name itself
        (Animal, "dog", Dog),
        (Animal, "lives", int),  # a field of one of them
        (tuple[int, int], 1, int),
        (int, "x", None),
    ],
)
def test_a_part_of_a_type_is_a_field_an_index_a_name_or_a_tag(annotation: Any, part: Any, found: Any) -> None:
    at = type_at(annotation, part)
    assert at == found or sections_of(at) == [found]


# -- kinds in words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (bool, "true or false"),
        (list[str], "a list of texts"),
        (list[str] | Literal["all-linear"], "a list of texts or all-linear"),
        (list[list[int]], "a list of (a list of whole numbers)"),
        (tuple[float, float], "a list of 2 numbers"),
        (dict[str, str], "a section of names, each with text"),
        (dict[str, Any], "a section of names, each with any value"),
        (Inner | None, "a section or null"),
        (list[Animal], "a list of sections"),
        (Annotated[int, Field(ge=1)], "a whole number"),
        (Literal["a", "b"] | None, "one of a, b or null"),
        (int | Literal["first", "last"], "a whole number or one of first, last"),
    ],
)
def test_a_kind_in_words(annotation: Any, words: str) -> None:
    assert kind_of(annotation) == words


@pytest.mark.parametrize("job", JOB_CONFIGS)
def test_every_field_of_every_job_has_a_kind_in_words(job: str) -> None:
    for name, info in dotted_fields(JOB_CONFIGS[job]):
        words = kind_of(info.annotation)
        assert not any(sign in words for sign in ("<", "[", "typing", "troupe")), f"{name}: {words}"


# -- flat values -------------------------------------------------------------------------------------------------------


def test_nested_values_become_dotted_ones_and_lists_stay_whole() -> None:
    values = {"a": 1, "b": {"c": [1, {"x": 2}], "d": {}}, "e": {"f": {"g": None}}}
    assert flat_values(values) == {"a": 1, "b.c": [1, {"x": 2}], "b.d": {}, "e.f.g": None}
    assert flat_values({}) == {"": {}}


def test_flat_values_are_flat_already() -> None:
    flat = flat_values({"a": {"b": {"c": 1}}, "d": 2})
    assert flat_values(flat) == flat


def test_changed_keys_are_those_that_differ_or_are_on_one_side_alone() -> None:
    before = {"a": 1, "b.c": 2, "b.d": 3, "gone": None, "same": [1]}
    after = {"a": 1, "b.c": 2.5, "b.d": 4, "new": 0, "same": [1]}
    # A key that is missing counts as null, so `gone` (null before) has not changed.
    assert changed_keys(before, after) == ["b.c", "b.d", "new"]
    assert changed_keys(before, after, besides=["b.c", "new"]) == ["b.d"]
    assert changed_keys(before, after, besides=["b"]) == ["new"]
    assert changed_keys(before, before) == []


def test_a_key_is_under_its_section_and_not_under_one_that_begins_alike() -> None:
    assert is_under("run.name", ["run"])
    assert is_under("run", ["run"])
    assert not is_under("runner.name", ["run"])
    assert not is_under("run", ["run.name"])
    assert not is_under("run", [])
