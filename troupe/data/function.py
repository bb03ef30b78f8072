"""A data set of one's own: a function that yields rows or Samples, named by its address in the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from troupe.config.own_data import FunctionConfig
from troupe.data.dataset import DataSet
from troupe.data.mapping import Named, load_mapped
from troupe.data.messages import messages_of
from troupe.data.row_files import check_value
from troupe.errors import DataError, TroupeError
from troupe.records import Sample
from troupe.resolve import checked_arguments, find, signature_of, type_hints


def load_function(config: FunctionConfig) -> DataSet:
    function = find(config.fn, {}, section="data", noun="loader", form="module:function")
    heldout = None
    if config.heldout_args is not None:
        heldout = _rows(config.fn, "heldout", _call(config.fn, function, {**config.args, **config.heldout_args}))
    train = _rows(config.fn, "train", _call(config.fn, function, config.args))
    return load_mapped(config, train, heldout, config.fn)


def _call(name: str, function: Callable[..., Any], args: Mapping[str, Any]) -> Iterable[Any]:
    signature = signature_of(name, function, section="data")
    checked = checked_arguments(name, args, signature, type_hints(function), section="data")
    try:
        return iter(function(**checked))
    except TroupeError:
        raise
    except Exception as error:  # whatever the user's function does
        raise DataError(f"data: {name} failed ({type(error).__name__}: {error}); it must yield rows") from error


def _rows(name: str, side: str, made: Iterable[Any]) -> Iterator[Named]:
    """Yield what the function yields, each checked and with its number, from 1."""
    number, rows = 0, iter(made)
    while True:
        number += 1
        where = f"row {number} of {name}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except TroupeError:
            raise
        except Exception as error:  # whatever the user's function does
            raise DataError(f"{where}: the function failed ({type(error).__name__}: {error})") from error
        if isinstance(row, Sample):
            yield row.sample_id, where, _checked(row, where)
        elif isinstance(row, Mapping):
            for field, value in row.items():
                check_value(value, str(field), where)
            yield f"function/{side}/{number}", where, dict(row)
        else:
            raise DataError(f"{where} is of type {type(row).__name__}; yield mappings, or Samples of troupe.records")


def _checked(sample: Sample, where: str) -> Sample:
    if not isinstance(sample.sample_id, str) or not sample.sample_id:
        raise DataError(f"{where}: sample_id must be a text that is not empty, got {sample.sample_id!r:.60}")
    if not isinstance(sample.gold, str | None):
        raise DataError(f"{where}: gold must be a text or None, got {sample.gold!r:.60}")
    if not isinstance(sample.prompt, str):
        messages_of({"prompt": list(sample.prompt)}, "prompt", where)
    elif not sample.prompt.strip():
        raise DataError(f"{where}: the prompt is empty")
    return sample
