import re

from troupe.config.made_data import ShortStoriesConfig
from troupe.data.short_stories import load_short_stories, right_coins
from troupe.records import Branch, Sample

GAINS = ("sells", "finds", "earns", "wins")


def text(sample: Sample) -> str:
    return sample.prompt[0]["content"]  # type: ignore[index,return-value]


def foreseen(sample: Sample) -> tuple[int, bool]:
    """(coins left, whether they suffice), worked out from the prompt by its words alone."""
    first, deeds, wish = (text(sample).split("###")[part] for part in (1, 2, 3))
    coins = int(re.findall(r"\d+", first)[0])
    for sentence in deeds.split(".")[:2]:
        amount = int(re.findall(r"\d+", sentence)[0])
        coins += amount if any(f" {deed} " in sentence for deed in GAINS) else -amount
    return coins, coins >= int(re.findall(r"\d+", wish)[0])


def test_the_chapter_follows_from_the_sections_and_a_worked_plan_says_how() -> None:
    for sample in load_short_stories(ShortStoriesConfig(num_train=300, guessed_fraction=0)).train:
        coins, suffices = foreseen(sample)
        plural = "coin" if coins == 1 else "coins"
        assert f" counts {coins} {plural}. " in str(sample.gold)
        assert ("That is enough for" in str(sample.gold)) == suffices
        *calculations, comparison, plan = sample.fields["demonstration"].splitlines()
        for line in calculations:
            left, right = line.split("=")
            assert eval(left) == int(right)
        assert eval(comparison)
        assert (">=" in comparison) == suffices
        assert plan == f"In summary: {coins} {plural}, {'enough' if suffices else 'not enough'}"


def test_held_out_stories_are_distinct_and_not_trained_on() -> None:
    data = load_short_stories(ShortStoriesConfig(num_train=3000, num_heldout=200))
    heldout = {text(sample) for sample in data.heldout}
    assert len(heldout) == 200
    assert heldout.isdisjoint(text(sample) for sample in data.train)
    assert not any("demonstration" in sample.fields for sample in data.heldout)


def test_a_share_of_the_demonstrations_guesses_and_guesses_are_mostly_wrong() -> None:
    train = load_short_stories(ShortStoriesConfig(num_train=2000, guessed_fraction=0.75)).train
    guesses = [sample for sample in train if "\n" not in sample.fields["demonstration"]]
    assert 0.7 < len(guesses) / len(train) < 0.8
    right = [sample.fields["demonstration"].startswith(f"In summary: {foreseen(sample)[0]} coin") for sample in guesses]
    assert sum(right) / len(guesses) < 0.15


def test_the_right_number_of_coins_is_recognised_in_plans_and_chapters() -> None:
    for sample in load_short_stories(ShortStoriesConfig(num_train=50, guessed_fraction=0)).train:
        for text in (sample.fields["demonstration"], str(sample.gold)):
            assert right_coins(sample, Branch(token_ids=(), text=text)) == 1
            assert right_coins(sample, Branch(token_ids=(), text=text + " No, 99 coins.")) == 0
        assert right_coins(sample, Branch(token_ids=(), text="7+5=12")) == 0


def test_both_tasks_tell_the_same_stories() -> None:
    plan = load_short_stories(ShortStoriesConfig(num_train=50))
    chapter = load_short_stories(ShortStoriesConfig(num_train=50, task="chapter", plan_share=0))
    for one, other in zip((*plan.train, *plan.heldout), (*chapter.train, *chapter.heldout), strict=True):
        assert (one.sample_id, one.gold) == (other.sample_id, other.gold)
        assert one.fields["scorer_prompt"] == other.fields["scorer_prompt"] == other.prompt
        assert other.fields["demonstration"] == other.gold


def test_plans_stand_in_training_prompts_alone_where_the_frozen_model_will_find_them_and_some_are_wrong() -> None:
    data = load_short_stories(ShortStoriesConfig(num_train=1000, task="chapter", wrong_plan_fraction=0.5))
    shown, right = 0, 0
    for sample in data.train:
        scorer = sample.fields["scorer_prompt"][0]["content"]
        before, _, after = sample.fields["context_template"].partition("{context}")
        if text(sample) != scorer:
            plan = text(sample).removeprefix(scorer + before).removesuffix(after)
            number, _, verdict = plan.partition(", ")
            shown += 1
            right += f"counts {number}." in str(sample.gold) and (verdict == "enough") == (
                "for the" in str(sample.gold)
            )
    assert 450 < shown < 550
    assert 0.45 < right / shown < 0.65  # half are the story's own, and a few of the others fit by chance
    assert all(sample.prompt == sample.fields["scorer_prompt"] for sample in data.heldout)
