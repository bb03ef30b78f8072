"""The `data` section of every config: one class per data set, chosen by its `type`.

The loader of the same name lies in `troupe/data/`; each gives a training side and a held-out side. A sample of a task
whose
reward is a perplexity has two prompts: the policy's, which asks for reasoning, and in `fields["scorer_prompt"]` the
frozen
model's, which asks for the gold text itself. `fields["context_template"]` says how the policy's plan joins the latter.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from troupe.config.loader import Section, with_type


class PublishedConfig(Section):
    """A data set of the Hugging Face hub, or local JSONL files with the same fields; docs/data.md states how they
    lie.
    """

    type: str
    path: str
    """Hub name, or a directory with one JSONL file per split, or one JSONL file (then some of its rows are held out).
    """
    num_train: int | None = Field(default=None, ge=1)
    """First n training rows that pass the filters; all of them when unset. Pairs found equal are missing from the n."""
    num_heldout: int | None = Field(default=None, ge=1)
    """First n held-out rows that pass the filters; all of them when unset (of one file a tenth, at most 256)."""


class HarvestConfig(Section):
    """Settings that the data sets from docstrings share: where to harvest, and how the packages are split."""

    type: str
    roots: list[str] = []
    """Directories to harvest; empty: the standard library and site-packages."""
    max_prompt_chars: int = Field(default=600, ge=100)
    """Longest text in characters; longer ones are cut at a line's end."""
    max_summary_chars: int = Field(default=120, ge=20)
    """Longest summary in characters; pairs beyond it are left out."""
    num_heldout: int = Field(default=256, ge=1)
    """Held-out texts, from packages that occur nowhere in training."""
    seed: int = 0
    """Seed of the split by package; independent of the run's seed."""


CONTEXT = "{context}"
"""What stands for the plan in a context template; replaced, never formatted, since plans may hold braces."""

StorySection = Literal[
    "story_text",
    "high_level_plot_summary",
    "prior_plot_summary",
    "character_sheets",
    "last_n_chapters",
    "next_chapter_synopsis",
    "next_chapter_header",
]


class NextChapterConfig(PublishedConfig):
    """Stories and the chapter that follows (Gurung and Lapata 2025, 2503.22828): one row for each chapter to
    foresee.
    """

    type: Literal["next_chapter"] = "next_chapter"
    path: str
    """Hub name, or a directory with train.jsonl and the held-out split's file, or one JSONL file (then split at its
    end).
    """
    heldout_split: Literal["val", "validation", "test"] = "val"
    """Split that is held out; on the hub, files called val.jsonl are the split validation."""
    task: Literal["plan", "chapter"] = "plan"
    """plan: the policy reasons and ends with a plan; chapter: it writes the chapter, which is then also the
    demonstration.
    """
    sections: list[StorySection] = [
        "last_n_chapters",
        "prior_plot_summary",
        "high_level_plot_summary",
        "character_sheets",
        "next_chapter_synopsis",
        "next_chapter_header",
    ]
    """Fields that the prompt shows, in this order, each under a heading; one that is empty in a row is passed over."""
    system_prompt: str = (
        "You are an experienced novelist who plans with care and writes in the voice of the story at hand."
    )
    """What the model is told to be."""
    system_role: bool = True
    """Whether that is a system message; false: it opens the user's turn, for models without such a role."""
    marker: str = Field(default="In summary:", min_length=1)
    """What the policy is asked to put before its plan."""
    min_chapter_words: int = Field(default=201, ge=1)
    """Rows whose next chapter has fewer words are left out."""
    max_chapter_words: int = Field(default=4999, ge=1)
    """Rows whose next chapter has more words are left out."""
    max_story_words: int = Field(default=4999, ge=1)
    """Rows whose story_text has more words are left out."""
    max_prompt_words: int = Field(default=9999, ge=1)
    """Rows whose prompt has more words, over all its turns, are left out."""
    first_chapter_index: int = 2
    """Rows with a smaller chapter_index are left out: too little has happened."""

    @field_validator("sections")
    @classmethod
    def _sections_are_distinct(cls, sections: list[StorySection]) -> list[StorySection]:
        if not sections or len(set(sections)) < len(sections):
            raise ValueError("name each section once, and at least one; without them there is nothing to reason about")
        return sections

    @model_validator(mode="after")
    def _lengths_fit(self) -> NextChapterConfig:
        if self.min_chapter_words > self.max_chapter_words:
            raise ValueError(
                f"min_chapter_words ({self.min_chapter_words}) must be at most max_chapter_words "
                f"({self.max_chapter_words})"
            )
        return self


class MessagesConfig(Section):
    """Chats as JSONL, `{"messages": [...]}` on each line: the assistant's last turn is the gold answer."""

    type: Literal["messages"] = "messages"
    path: str
    """Training file."""
    heldout_path: str | None = None
    """Held-out file; unset: lines of the training file are held out, whichever their content and the seed say."""
    num_heldout: int | None = Field(default=None, ge=1)
    """Held-out samples when no file is given; unset: a tenth of the file, at most 256."""
    id_field: str | None = None
    """Field with a stable id; unset: the file's name and line number."""
    instruction: str | None = None
    """Put behind the last user turn of the policy's prompt, and of it alone, such as a request for reasoning that ends
    in
    `In summary:`. With it the gold answer is no demonstration any more.
    """
    context_template: str = "\n\nNotes for your answer:\n{context}"
    """How a plan is put behind the last user turn of the frozen model's prompt."""
    seed: int = 0
    """Seed of the split."""

    @field_validator("context_template")
    @classmethod
    def _has_a_place_for_the_plan(cls, template: str) -> str:
        if CONTEXT not in template:
            raise ValueError(f"the template needs {CONTEXT} where the plan goes")
        return template


class ShortStoriesConfig(Section):
    """Stories of three sentences, made from a seed, whose next chapter follows from a calculation over their
    sections.
    """

    type: Literal["short_stories"] = "short_stories"
    task: Literal["plan", "chapter"] = "plan"
    """plan: the policy says what the next chapter will tell; chapter: it writes the chapter, which is then also the
    demonstration.
    """
    num_train: int = Field(default=20_000, ge=1)
    """Training stories."""
    num_heldout: int = Field(default=256, ge=1)
    """Held-out stories."""
    marker: str = Field(default="In summary:", min_length=1)
    """What stands before the plan in demonstrations."""
    guessed_fraction: float = Field(default=0.75, ge=0, le=1)
    """Task plan: share of the demonstrations whose plan is a guess; the others work it out first."""
    plan_share: float = Field(default=0.5, ge=0, le=1)
    """Task chapter: share of the training prompts that end with a plan, so that a frozen model learns what plans are
    for.
    """
    wrong_plan_fraction: float = Field(default=0.15, ge=0, le=1)
    """Task chapter: share of these plans that are guesses, so that it learns how far to trust one."""
    seed: int = 0
    """Seed of the generator; independent of the run's seed so that runs share their data."""


class DocstringSectionsConfig(HarvestConfig):
    """Real text to foresee without a download: the next paragraph of a docstring, from its earlier ones."""

    type: Literal["docstring_sections"] = "docstring_sections"
    task: Literal["plan", "section"] = "plan"
    """plan: the policy names what comes next; section: it writes the next paragraph, which is then also the
    demonstration.
    """
    min_gold_chars: int = Field(default=60, ge=10)
    """Shortest next paragraph in characters."""
    max_gold_chars: int = Field(default=200, ge=20)
    """Longest next paragraph in characters."""
    marker: str = Field(default="In summary:", min_length=1)
    """What stands before the plan in demonstrations, and what the policy is asked for."""
    plan_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the training texts with a plan made of words of the gold paragraph. Task plan: only these have a
    demonstration. Task section: only these show that plan in their prompt, so that a frozen model learns what plans are
    for.
    """
    plan_words: int = Field(default=5, ge=1)
    """Most words in such a plan."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> DocstringSectionsConfig:
        if self.min_gold_chars > self.max_gold_chars:
            raise ValueError(
                f"min_gold_chars ({self.min_gold_chars}) must be at most max_gold_chars ({self.max_gold_chars})"
            )
        return self


class WordProblemsConfig(Section):
    """One-step arithmetic stories, generated from a seed; the held-out problems occur nowhere in training."""

    type: Literal["word_problems"] = "word_problems"
    num_train: int = Field(default=20_000, ge=1)
    """Training problems."""
    num_heldout: int = Field(default=256, ge=1)
    """Held-out problems."""
    largest: int = Field(default=12, ge=4)
    """Largest number in sums and differences; factors go up to half of it."""
    unformatted_fraction: float = Field(default=0.75, ge=0, le=1)
    """Share of demonstrations that lack the `#### n` line."""
    seed: int = 0
    """Seed of the generator; independent of the run's seed so that runs share their data."""


class GSM8KConfig(PublishedConfig):
    """Grade-school mathematics (Cobbe et al. 2021): question, worked answer, gold number after `####`."""

    type: Literal["gsm8k"] = "gsm8k"
    path: str = "openai/gsm8k"
    """Hub name, or a directory with train.jsonl and test.jsonl of the same fields, or one JSONL file (then split)."""
    system_prompt: str | None = "Solve the problem step by step. End with a line '#### ' followed by the number alone."
    """System message; null leaves it out."""


class SmolTalkConfig(PublishedConfig):
    """Conversations for supervised training (Allal et al. 2025): `messages`, `source`."""

    type: Literal["smoltalk"] = "smoltalk"
    path: str = "HuggingFaceTB/smol-smoltalk"
    """Hub name, or a directory with train.jsonl and test.jsonl of the same fields, or one JSONL file (then split)."""
    num_heldout: int | None = Field(default=1000, ge=1)
    """First n held-out rows that pass the filters; all 24,229 when null."""
    single_turn: bool = False
    """Keep only conversations of exactly two messages, the user's and the assistant's."""
    max_prompt_chars: int | None = Field(default=None, ge=1)
    """Leave out conversations whose turns before the last answer have more characters than this."""


class UltraFeedbackConfig(PublishedConfig):
    """Prompts with a better and a worse answer (Cui et al. 2023, binarized): `chosen`, `rejected`, their scores."""

    type: Literal["ultrafeedback"] = "ultrafeedback"
    path: str = "HuggingFaceH4/ultrafeedback_binarized"
    """Hub name, or a directory with train_prefs.jsonl and test_prefs.jsonl, or one JSONL file (then split)."""
    max_prompt_chars: int | None = Field(default=None, ge=1)
    """Leave out pairs whose prompt has more characters than this."""
    margin_scale: float | None = Field(default=None, gt=0)
    """Margin of a pair in reward units: this times (score_chosen - score_rejected); null gives no margins."""


class TldrConfig(PublishedConfig):
    """Reddit posts and their authors' summaries (Völske et al. 2017, Stiennon et al. 2020): `prompt`, `label`."""

    type: Literal["tldr"] = "tldr"
    path: str = "CarperAI/openai_summarize_tldr"
    """Hub name, or a directory with train.jsonl and the held-out split's file, or one JSONL file (then split)."""
    num_heldout: int | None = Field(default=1000, ge=1)
    """First n held-out posts; all when null (valid 6,447, test 6,553)."""
    heldout_split: Literal["valid", "test"] = "valid"
    """Split that is held out: valid while choosing, test for a table."""
    max_prompt_chars: int = Field(default=2000, ge=100)
    """Longest prompt in characters; a longer post is cut, and `TL;DR:` still ends the prompt."""


class TldrComparisonsConfig(PublishedConfig):
    """Pairs of summaries compared by people (Stiennon et al. 2020): `prompt`, `chosen`, `rejected`."""

    type: Literal["tldr_comparisons"] = "tldr_comparisons"
    path: str = "CarperAI/openai_summarize_comparisons"
    """Hub name, or a directory with train.jsonl and the held-out split's file, or one JSONL file (then split)."""
    num_heldout: int | None = Field(default=5000, ge=1)
    """First n held-out pairs that pass the filters; all when null."""
    heldout_split: Literal["valid1", "valid2", "test"] = "valid1"
    """Split that is held out: valid1 or valid2 while choosing, test for a table."""
    max_prompt_chars: int = Field(default=2000, ge=100)
    """Longest prompt in characters; the same cut as that of `tldr`, so that a policy's posts and a reward model's
    agree.
    """
    min_answer_words: int = Field(default=5, ge=1)
    """Pairs with fewer words than this in either summary are left out; `TL;DR:` does not count."""


class DocstringsConfig(HarvestConfig):
    """Human-written text to its one-line summary: docstrings of the installed Python packages and standard library."""

    type: Literal["docstrings"] = "docstrings"


Damage = Literal["corrupted", "truncated", "wrong"]


class DocstringPairsConfig(HarvestConfig):
    """Preferences for real text without a download: the human summary of a docstring against damaged ones."""

    type: Literal["docstring_pairs"] = "docstring_pairs"
    kinds: list[Damage] = ["corrupted", "truncated", "wrong"]
    """Kinds of damage to draw from: words moved, doubled or lost; cut in mid-sentence; the summary of another text."""
    pairs_per_text: int = Field(default=1, ge=1)
    """Damaged summaries per text, each ranked below the human one; several of them tie with each other."""
    half: Literal["all", "first", "second"] = "all"
    """Training texts to use: all, or one of two disjoint halves by `seed`, so that two reward models can share no text.
    """
    damage_seed: int = 0
    """Seed of the damage; `seed` alone decides what is held out, as for `docstrings`."""

    @field_validator("kinds")
    @classmethod
    def _kinds_are_distinct(cls, kinds: list[Damage]) -> list[Damage]:
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError("name each kind of damage once, and at least one: corrupted, truncated, wrong")
        return kinds


class DocumentsConfig(HarvestConfig):
    """Documents with questions and answers without a download: docstrings, asked what their parameters are."""

    type: Literal["documents"] = "documents"
    form: Literal["text", "lines"] = "text"
    """What a summary is: text of its own; or the numbers of the lines that it consists of, which a model too small to
    copy can learn to choose (give judge_qa `extract: true`).
    """
    limit_chars: int = Field(default=160, ge=40)
    """Length of a summary, in characters, that the prompt asks for and demonstrations keep; give the reward the same.
    """
    min_questions: int = Field(default=3, ge=1)
    """Documents with fewer questions are left out."""
    max_questions: int = Field(default=5, ge=1)
    """Questions per document at most."""
    unanswerable_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of the questions that ask for what another document tells, as RepLiQA has them."""

    @model_validator(mode="after")
    def _questions_have_a_range(self) -> DocumentsConfig:
        if self.min_questions > self.max_questions:
            raise ValueError(
                f"min_questions ({self.min_questions}) must be at most max_questions ({self.max_questions})"
            )
        return self


class RepliqaConfig(Section):
    """Documents about invented people and places, five questions each (Monteiro et al. 2024, 2406.11811)."""

    type: Literal["repliqa"] = "repliqa"
    path: str = "ServiceNow/repliqa"
    """Hub name, or a directory with `<split>.jsonl` of the same fields, or one JSONL file."""
    split: str = "repliqa_0"
    """Split of the data set, repliqa_0 to repliqa_4."""
    num_train: int | None = Field(default=None, ge=1)
    """First n training documents in seeded order; all of them when unset."""
    num_heldout: int = Field(default=91, ge=1)
    """Documents held out, the first ones in seeded order."""
    seed: int = 80
    """Seed of the order of documents; the original's."""
    max_document_chars: int | None = Field(default=20_000, ge=200)
    """Longest document in characters; null: no limit."""
    long_documents: Literal["cut", "drop"] = "drop"
    """What happens to longer ones: dropped and counted, or cut at a line's end, after which questions about the rest
    have no answer.
    """
    limit: int | None = Field(default=3000, ge=1)
    """Length of a summary that the prompt asks for; null: none is told, as in the original, whose reward had a limit
    all the same.
    """
    limit_unit: Literal["characters", "words"] = "characters"
    """Unit of that length."""
    unanswerable: str = r"(?i)not (found|contained|mentioned|provided|available|given|stated) in the (document|text)"
    """Regular expression of the gold answers that say that the document holds no answer."""
    demonstrations: str | None = None
    """JSONL file with summaries by another model (`sample_id`, and `prediction`, `answer` or `text`), which SFT
    imitates; documents without one are left out, on both sides. jobs/distil.py writes it.
    """

    @field_validator("unanswerable")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"it must be a regular expression ({error})") from None
        return pattern


class TicTacToeConfig(Section):
    """Games of tic-tac-toe for the environment of that name: the agent's symbol, the opponent's opening, a seed."""

    type: Literal["tic_tac_toe"] = "tic_tac_toe"
    num_train: int = Field(default=5_000, ge=1)
    """Training games."""
    num_heldout: int = Field(default=48, ge=1)
    """Held-out games."""
    board: Literal["grid", "line", "names"] = "grid"
    """How boards are written: a grid, after a prompt that explains the rules; or, without a word, for models that are
    taught by demonstrations, a line of cells, or of cells in which a free one stands as its name.
    """
    tag: str | None = Field(default="move", pattern=r"^\w+$")
    """Tag that a move is written in, `<move>B2</move>`; null: the answer is the cell alone."""
    seed: int = 0
    """Seed of the games; independent of the run's seed."""


class RowFilterConfig(Section):
    """Bounds on one field of a row; a row outside them is left out and counted. All bounds are inclusive."""

    field: str
    """Field of the row; of one that holds several texts (messages, lists, texts by name) all words count."""
    min_words: int | None = Field(default=None, ge=0)
    """Fewest words."""
    max_words: int | None = Field(default=None, ge=0)
    """Most words."""
    at_least: float | None = None
    """Smallest number."""
    at_most: float | None = None
    """Largest number."""
    one_of: list[str | float | bool] | None = None
    """Values that stay, such as `[maths, code]`."""

    @model_validator(mode="after")
    def _bounds_something(self) -> RowFilterConfig:
        words, numbers = (self.min_words, self.max_words), (self.at_least, self.at_most)
        if not any(bound is not None for bound in (*words, *numbers, self.one_of)):
            raise ValueError(
                f"the filter of {self.field!r} bounds nothing; set min_words, max_words, at_least, at_most or one_of"
            )
        for low, high in (words, numbers):
            if low is not None and high is not None and low > high:
                raise ValueError(f"the filter of {self.field!r} lets nothing through: {low} is above {high}")
        return self


Format = Literal["auto", "fields", "messages", "completion", "pairs", "hh", "sharegpt", "alpaca"]


class MappedConfig(Section):
    """Rows of one's own, wherever they are read from, and how they become samples."""

    type: str
    format: Format = "auto"
    """Shape of the rows. fields: as the `..._field` below say; messages: a column of that name; completion: `prompt`
    and `completion`; pairs: `chosen` and `rejected`, texts or whole dialogues; hh: the same as strings of hh-rlhf;
    sharegpt: `conversations`; alpaca: `instruction`, `input`, `output`. auto: as the columns show, and fields where the
    recipe names one of the prompt or the answers.
    """
    filters: list[RowFilterConfig] = []
    """Rows to leave out; they are counted."""
    num_heldout: int | None = Field(default=None, ge=1)
    """Held-out samples where no held-out side is named; unset: a tenth of the rows, at most 256."""
    prompt_field: str = "prompt"
    """Field with the prompt: a string, or a list of messages."""
    gold_field: str | None = None
    """Field with the reference answer."""
    id_field: str | None = None
    """Field with a stable id; unset: the file's name and line number."""
    demonstration_field: str | None = None
    """Field with the text that supervised training imitates; unset: a field called `demonstration` (null: none), else
    the gold answer.
    """
    chosen_field: str | None = None
    """Field with the better of two answers: a text, or messages whose last is the assistant's."""
    rejected_field: str | None = None
    """Field with the worse of two answers, of the same form."""
    answers_field: str | None = None
    """Field with a list of two or more answers, in place of chosen and rejected; best first, unless ranks say
    otherwise.
    Unset: a field called `answers` is taken for that.
    """
    ranks_field: str | None = None
    """Field with a list of whole numbers, one per answer: smaller is better, equal is a tie."""
    margin_field: str | None = None
    """Field with a number: by how much, in reward units, the better of two answers is better."""
    tools_field: str = "tools"
    """Field with descriptions of the tools that the model may call, in OpenAI's form; a row may lack it."""
    continue_final_message: bool | None = None
    """Whether the model goes on from an assistant's turn that ends a prompt. false: that turn is the answer; unset: the
    same, and refused where gold_field names another answer.
    """
    system_prompt: str | None = None
    """System message put before every prompt; a string prompt then becomes a user message."""
    system_prompt_wins: bool = False
    """Whether it replaces the system message that a prompt of messages has of its own."""
    seed: int = 0
    """Seed of the split."""

    @model_validator(mode="after")
    def _preferences_are_named_one_way(self) -> MappedConfig:
        if (self.chosen_field is None) != (self.rejected_field is None):
            raise ValueError("chosen_field and rejected_field belong together; name both or neither")
        if self.chosen_field is not None and self.answers_field is not None:
            raise ValueError("name answers_field, or chosen_field and rejected_field, not both")
        if self.ranks_field is not None and self.answers_field is None:
            raise ValueError("ranks_field ranks the answers of answers_field; name that too")
        if self.margin_field is not None and self.answers_field is None and self.chosen_field is None:
            raise ValueError(
                "margin_field needs the answers it is about; name answers_field, or chosen_field and rejected_field"
            )
        return self


class JsonlConfig(MappedConfig):
    """A file of rows: JSONL, a JSON array, CSV or parquet, also packed with gzip."""

    type: Literal["jsonl"] = "jsonl"
    path: str
    """Training file."""
    heldout_path: str | None = None
    """Held-out file; unset: rows of the training file are held out, whichever their content and the seed say."""


class HubConfig(MappedConfig):
    """Any data set that the `datasets` library loads: of the Hugging Face hub, or a local directory of files."""

    type: Literal["hub"] = "hub"
    path: str
    """Hub name, or a directory or file of parquet, CSV, JSON or Arrow."""
    subset: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
    """Training split; `train[:1000]` is its beginning."""
    heldout_split: str | None = None
    """Held-out split; unset: rows of the training split are held out."""


class FunctionConfig(MappedConfig):
    """A data set of one's own: a function that yields rows as mappings, or Samples."""

    type: Literal["function"] = "function"
    fn: str
    """The function, as `module:function`; it must be importable from the directory the job is started in."""
    args: dict[str, Any] = {}
    """Keyword arguments handed to it."""
    heldout_args: dict[str, Any] | None = None
    """Arguments that differ for the held-out side, such as `{split: test}`; unset: some of what it yields is held out.
    """


# The last one is the general one: what `data.path=my.jsonl` alone means.
Source: TypeAlias = (
    WordProblemsConfig
    | GSM8KConfig
    | SmolTalkConfig
    | UltraFeedbackConfig
    | TldrConfig
    | TldrComparisonsConfig
    | DocstringsConfig
    | DocstringPairsConfig
    | DocumentsConfig
    | RepliqaConfig
    | TicTacToeConfig
    | NextChapterConfig
    | MessagesConfig
    | ShortStoriesConfig
    | DocstringSectionsConfig
    | FunctionConfig
    | HubConfig
    | JsonlConfig
)
SourceConfig = Annotated[Source, Field(discriminator="type")]


def _typed(sources: Any) -> Any:
    """Return sections of data sets, each with the `type` that its fields mean."""
    if not isinstance(sources, dict):
        return sources
    return {name: with_type(get_args(Source), None, given) for name, given in sources.items()}


Sources = Annotated[dict[str, SourceConfig], BeforeValidator(_typed)]
"""Data sets by names of one's own."""


class MixtureConfig(Section):
    """Several data sets in one run, drawn from by weight."""

    type: Literal["mixture"] = "mixture"
    sources: Sources = Field(min_length=2)
    """Data sets by name; the name is in each sample's `fields["source"]` and in metrics."""
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """How often each source is drawn from, in proportion: `{maths: 3, chats: 1}`; unset: by their samples."""

    @model_validator(mode="after")
    def _every_source_has_a_weight(self) -> MixtureConfig:
        if self.weights and self.weights.keys() != self.sources.keys():
            raise ValueError(
                f"weights names {', '.join(self.weights)}, and the sources are {', '.join(self.sources)}; give each a "
                "weight, or none"
            )
        return self


DataConfig = Annotated[MixtureConfig | Source, Field(discriminator="type")]
