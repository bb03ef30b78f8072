"""`make chaos`: faults in a few runs, a table, and the line "40 of 40".

    python -m tests.chaos [--faults 40] [--runs 6] [--seed 0] [--kinds kill,stop,starve,fill] [--roles generator,engine,...] [--ranks 2]

Every run must end by itself, with the weights of a run that nothing disturbed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.chaos.faults import KINDS, ROLES, draw
from tests.chaos.machine import Machine, Result

EVERY = 2
"""Steps between two faults."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--roles", default=",".join(ROLES))
    parser.add_argument("--ranks", type=int, default=1, help="of the policy")
    parser.add_argument("--zero-stage", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="directory of the runs, which then stays")
    options = parser.parse_args()
    directory = options.keep or Path(tempfile.mkdtemp(prefix="troupe-chaos-", dir="."))
    kinds = options.kinds.split(",")
    machine, started = Machine(directory.resolve(), own_disk="fill" in kinds and not options.keep), time.monotonic()
    if "fill" in kinds and not machine.has_disk:
        print("the disk is not filled: runs that are kept, or a user without root, have no disk of their own")
        kinds.remove("fill")
    faults = draw(options.faults, options.seed, kinds=kinds, roles=options.roles.split(","))
    runs = min(options.runs, options.faults)
    parts = [faults[index::runs] for index in range(runs)]
    steps = 2 + EVERY * max(map(len, parts))
    results = []
    print(f"an undisturbed run of {steps} steps, then {options.faults} faults in {runs} runs", flush=True)
    shape = {"ranks": options.ranks, "zero_stage": options.zero_stage}
    machine.run("undisturbed", [], steps=steps, **shape)
    for index, part in enumerate(parts):
        moved = [replace(fault, step=1 + EVERY * place) for place, fault in enumerate(part)]
        result = machine.run(f"run{index}", moved, steps=steps, **shape)
        result.equal = machine.equal(result.name, "undisturbed")
        results.append(result)
        show(result)
    good = sum(told.hit and told.survived and result.finished and result.equal for result in results for told in result.faults)  # fmt: skip
    left = [name for result in results for name in result.left]
    print(f"{time.monotonic() - started:.0f} s; left behind: {', '.join(left) or 'nothing'}")
    print(f"{good} of {options.faults}")
    machine.close(keep=bool(options.keep) or good < options.faults)
    return 0 if good == options.faults else 1


def show(result: Result) -> None:
    """Print what became of the faults of a run."""
    print(
        f"{result.name}: {'ended by itself' if result.finished else 'DID NOT END'}, weights {'equal' if result.equal else 'DIFFER'}"
    )
    for told in result.faults:
        noticed = "-" if told.noticed_s is None else f"{told.noticed_s:.1f}"
        print(
            f"  {told.fault.name:18} step {told.fault.step:2} {told.phase[:40]:40} "
            f"{'survived' if told.survived else 'DIED' if told.hit else 'NOT HIT':8} noticed {noticed:>6} s, next step {told.recovered_s:6.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
