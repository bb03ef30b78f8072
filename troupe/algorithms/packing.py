"""Groups as flat tensors, and flat tensors as packed rows: a prompt once, then the branches that continue it.

`Batch` is what travels between driver and ranks: every branch token of a batch, in canonical order (group,
branch, token), is the axis N, and each per-token quantity is a column [N]. `pack` turns a batch into rows for
the model. Only this file knows rows, and only it shifts by one (`Row.read_positions`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from troupe.records import Branch, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """G groups with B branches and N branch tokens, flat; columns are per-token quantities [N].

    Example: prompt `[5, 6]` with branches `[7]` and `[8, 9]` has prompt_lengths [2], branch_counts [2],
    branch_lengths [1, 2], token_ids [7, 8, 9].
    """

    prompt_ids: torch.Tensor
    """[sum of prompt lengths] int64."""
    prompt_lengths: torch.Tensor
    """[G] int64."""
    branch_counts: torch.Tensor
    """[G] int64: branches of each group."""
    branch_lengths: torch.Tensor
    """[B] int64."""
    token_ids: torch.Tensor
    """[N] int64."""
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """[N] each: loss_mask, rollout_logprobs, old_logprobs, ref_logprobs, advantages, ... as stages add them."""

    @staticmethod
    def from_groups(groups: Sequence[Group]) -> Batch:
        """Return the batch of `groups`; columns: loss_mask, and rollout_logprobs when every branch has them."""
        branches = [branch for group in groups for branch in group.branches]
        for group in groups:
            if not group.prompt_ids or not all(len(branch.token_ids) for branch in group.branches):
                raise ValueError(f"{group.sample.sample_id}: a prompt and each of its branches need at least one token")
        columns = {"loss_mask": torch.tensor([flag for branch in branches for flag in _mask(branch)], dtype=torch.bool)}
        if branches and all(branch.logprobs is not None for branch in branches):
            logprobs = [value for branch in branches for value in branch.logprobs or ()]
            columns["rollout_logprobs"] = torch.tensor(logprobs, dtype=torch.float32)
        return Batch(
            prompt_ids=torch.tensor([token for group in groups for token in group.prompt_ids], dtype=torch.int64),
            prompt_lengths=torch.tensor([len(group.prompt_ids) for group in groups], dtype=torch.int64),
            branch_counts=torch.tensor([len(group.branches) for group in groups], dtype=torch.int64),
            branch_lengths=torch.tensor([len(branch.token_ids) for branch in branches], dtype=torch.int64),
            token_ids=torch.tensor([token for branch in branches for token in branch.token_ids], dtype=torch.int64),
            columns=columns,
        )

    @property
    def num_groups(self) -> int:
        return len(self.prompt_lengths)

    @property
    def num_branches(self) -> int:
        return len(self.branch_lengths)

    @property
    def num_tokens(self) -> int:
        """N, the branch tokens."""
        return len(self.token_ids)

    @property
    def branch_ids(self) -> torch.Tensor:
        """[N]: the branch of each token."""
        return torch.repeat_interleave(torch.arange(self.num_branches), self.branch_lengths)

    @property
    def group_ids(self) -> torch.Tensor:
        """[B]: the group of each branch."""
        return torch.repeat_interleave(torch.arange(self.num_groups), self.branch_counts)

    @property
    def packed_sizes(self) -> torch.Tensor:
        """[G]: tokens of each packed group, the prompt once and every branch."""
        sizes = self.prompt_lengths.clone()
        return sizes.index_add_(0, self.group_ids, self.branch_lengths)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.columns:
            raise KeyError(f"the batch has no column {name!r} yet; it has {sorted(self.columns)}")
        return self.columns[name]

    def with_columns(self, **columns: torch.Tensor) -> Batch:
        """Return a batch with further (or replaced) columns; each must be [N]."""
        for name, column in columns.items():
            if column.shape != (self.num_tokens,):
                raise ValueError(f"column {name!r} has shape {tuple(column.shape)}, expected ({self.num_tokens},)")
        return dataclasses.replace(self, columns={**self.columns, **columns})

    def without_columns(self) -> Batch:
        """Return what a forward pass reads, and nothing else."""
        return dataclasses.replace(self, columns={})

    def select(self, groups: Sequence[int]) -> Batch:
        """Return the batch of the groups with these indices, in this order."""
        chosen = torch.as_tensor(groups, dtype=torch.int64)
        branches = _ranges(_starts(self.branch_counts)[chosen], self.branch_counts[chosen])
        tokens = self.tokens_of(chosen)
        return Batch(
            prompt_ids=self.prompt_ids[_ranges(_starts(self.prompt_lengths)[chosen], self.prompt_lengths[chosen])],
            prompt_lengths=self.prompt_lengths[chosen],
            branch_counts=self.branch_counts[chosen],
            branch_lengths=self.branch_lengths[branches],
            token_ids=self.token_ids[tokens],
            columns={name: column[tokens] for name, column in self.columns.items()},
        )

    def tokens_of(self, groups: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Indices on the axis N of the tokens of these groups, in this order."""
        chosen = torch.as_tensor(groups, dtype=torch.int64)
        lengths = torch.zeros(self.num_groups, dtype=torch.int64).index_add_(0, self.group_ids, self.branch_lengths)
        return _ranges(_starts(lengths)[chosen], lengths[chosen])

    def split(self, parts: int) -> list[list[int]]:
        """Group indices for `parts` shards, balanced by packed tokens (longest first, to the lightest shard)."""
        shards: list[list[int]] = [[] for _ in range(parts)]
        loads = [0] * parts
        sizes = self.packed_sizes.tolist()
        for group in sorted(range(self.num_groups), key=lambda index: -sizes[index]):
            lightest = loads.index(min(loads))
            shards[lightest].append(group)
            loads[lightest] += sizes[group]
        return [sorted(shard) for shard in shards]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The place of a packed group in its row: prompt [start, start + prompt_length), then its branches."""

    start: int
    prompt_length: int
    branch_lengths: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.prompt_length + sum(self.branch_lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One forward pass of the model: input, and where its log-probabilities are read.

    With branches, R = 1 and `spans` names which tokens see each other. Without (models whose attention cannot
    take branches) each of the R right-padded rows holds one sequence, prompt and one branch, and `spans` is empty.
    """

    input_ids: torch.Tensor
    """[R, S] int64."""
    position_ids: torch.Tensor
    """[R, S] int64; positions restart at the prompt's end for each branch."""
    attention_mask: torch.Tensor | None
    """[R, S] bool padding mask of sequence rows; None with branches."""
    spans: tuple[Span, ...]
    read_positions: torch.Tensor
    """[n] int64 into the flattened R x S: the position whose hidden state predicts the token."""
    token_positions: torch.Tensor
    """[n] int64 into the flattened R x S: the token's own position, whose hidden state has seen it."""
    target_ids: torch.Tensor
    """[n] int64: the tokens whose log-probabilities are read."""
    token_index: torch.Tensor
    """[n] int64 into the batch's axis N: where these tokens stand in the batch."""

    def reading(self, wanted: torch.Tensor) -> Row:
        """Return the same forward pass, read only at the tokens where `wanted`, bool [N], is true."""
        keep = wanted[self.token_index]  # [N] -> [n]
        names = ("read_positions", "token_positions", "target_ids", "token_index")
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in names})


def pack(batch: Batch, row_tokens: int, *, branches: bool = True) -> list[Row]:
    """Rows of at most `row_tokens` tokens that hold every group of `batch` whole; a larger group has its own row.

    Groups of similar size share a row (the attention works on them together); no token is padding. With
    `branches=False` the fallback layout: one sequence per row, the prompt repeated.
    """
    sizes = batch.packed_sizes.tolist()
    if not branches:
        longest = _sequence_sizes(batch)
        rows = _fill(range(batch.num_groups), sizes=longest, budget=row_tokens)
        return [_sequence_row(batch, groups) for groups in rows]
    rows = _fill(sorted(range(batch.num_groups), key=lambda group: -sizes[group]), sizes=sizes, budget=row_tokens)
    return [_branch_row(batch, groups) for groups in rows]


def last_tokens(branch_ids: torch.Tensor) -> torch.Tensor:
    """Return where each branch ends; [n] of whole, contiguous branches -> [b] indices, in order."""
    ends = torch.ones_like(branch_ids, dtype=torch.bool)
    ends[:-1] = branch_ids[1:] != branch_ids[:-1]
    return ends.nonzero().flatten()


def branch_scores(values: torch.Tensor, branch_ids: torch.Tensor) -> torch.Tensor:
    """Return a scalar head's output behind each token of whole branches, [n], -> [b]: that at each one's last token."""
    return values[last_tokens(branch_ids)]


def _fill(order: Sequence[int], *, sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    row: list[int] = []
    used = 0
    for group in order:
        if row and used + sizes[group] > budget:
            yield row
            row, used = [], 0
        row.append(group)
        used += sizes[group]
    if row:
        yield row


def _branch_row(batch: Batch, groups: Sequence[int]) -> Row:
    """Return one row [1, S] of the packed `groups`."""
    part = batch.select(groups)
    counts = part.branch_counts.tolist()
    lengths = part.branch_lengths.tolist()
    prompts = part.prompt_lengths.tolist()
    spans: list[Span] = []
    start = branch = 0
    for prompt, count in zip(prompts, counts, strict=True):
        spans.append(Span(start=start, prompt_length=prompt, branch_lengths=tuple(lengths[branch : branch + count])))
        start += spans[-1].size
        branch += count

    span_starts = torch.tensor([span.start for span in spans])
    prompt_slots = _ranges(span_starts, part.prompt_lengths)  # [sum P] row slots of the prompt tokens
    group_of_branch = part.group_ids  # [B]
    within_group = (
        _starts(part.branch_lengths) - _starts(part.branch_lengths)[_starts(part.branch_counts)][group_of_branch]
    )
    branch_slots = span_starts[group_of_branch] + part.prompt_lengths[group_of_branch] + within_group  # [B]
    token_slots = _ranges(branch_slots, part.branch_lengths)  # [n]

    input_ids = torch.empty(start, dtype=torch.int64)
    input_ids[prompt_slots] = part.prompt_ids
    input_ids[token_slots] = part.token_ids
    position_ids = torch.empty(start, dtype=torch.int64)
    position_ids[prompt_slots] = _ranges(torch.zeros_like(part.prompt_lengths), part.prompt_lengths)
    position_ids[token_slots] = _ranges(part.prompt_lengths[group_of_branch], part.branch_lengths)

    # A token is predicted by the position before it; a branch's first token by the prompt's last.
    read_positions = token_slots - 1
    first_tokens = _starts(part.branch_lengths)
    read_positions[first_tokens] = (span_starts + part.prompt_lengths - 1)[group_of_branch]
    return Row(
        input_ids=input_ids[None],
        position_ids=position_ids[None],
        attention_mask=None,
        spans=tuple(spans),
        read_positions=read_positions,
        token_positions=token_slots,
        target_ids=part.token_ids,
        token_index=batch.tokens_of(groups),
    )


def _sequence_row(batch: Batch, groups: Sequence[int]) -> Row:
    """R right-padded rows, one for each branch of `groups`: its prompt and itself."""
    part = batch.select(groups)
    prompts = torch.split(part.prompt_ids, part.prompt_lengths.tolist())
    answers = torch.split(part.token_ids, part.branch_lengths.tolist())
    group_of_branch = part.group_ids.tolist()
    sequences = [torch.cat((prompts[group], answer)) for group, answer in zip(group_of_branch, answers, strict=True)]
    input_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)  # [R, S]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    prompt_of_branch = part.prompt_lengths[part.group_ids]
    first_read = torch.arange(len(sequences)) * input_ids.shape[1] + prompt_of_branch - 1
    read_positions = _ranges(first_read, part.branch_lengths)
    return Row(
        input_ids=input_ids,
        position_ids=torch.arange(input_ids.shape[1]).expand_as(input_ids),
        attention_mask=torch.arange(input_ids.shape[1])[None] < lengths[:, None],
        spans=(),
        read_positions=read_positions,
        token_positions=read_positions + 1,
        target_ids=part.token_ids,
        token_index=batch.tokens_of(groups),
    )


def _sequence_sizes(batch: Batch) -> list[int]:
    sizes = torch.zeros(batch.num_groups, dtype=torch.int64)
    sizes.index_add_(0, batch.group_ids, batch.branch_lengths + batch.prompt_lengths[batch.group_ids])
    return sizes.tolist()


def _mask(branch: Branch) -> Sequence[bool]:
    return branch.loss_mask if branch.loss_mask is not None else [True] * len(branch.token_ids)


def _starts(lengths: torch.Tensor) -> torch.Tensor:
    """Return [k]: where each of k consecutive pieces of these lengths starts."""
    return torch.cumsum(lengths, 0) - lengths


def _ranges(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return [sum of lengths]: start, start + 1, ... of each piece, one after the other."""
    offsets = torch.arange(int(lengths.sum())) - torch.repeat_interleave(_starts(lengths), lengths)
    return torch.repeat_interleave(starts, lengths) + offsets
