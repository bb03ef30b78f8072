"""The built-in tool `python`: a program in the sandbox, whose output the model reads."""

from __future__ import annotations

from troupe.processes.sandbox import Limits, run_python_aside


async def python(code: str, *, seconds: float = 5.0, memory_mib: int = 512) -> str:
    """
    Run a Python program and read what it prints. It has the standard library, no network, and no files of yours.

    Args:
        code: The whole program; only what it prints is shown.
        seconds: The most that it may take, of the clock and of the processor.
        memory_mib: The most memory that each of its processes may take.
    """
    outcome = await run_python_aside(code, limits=Limits(seconds=seconds, memory_mib=memory_mib, output_bytes=1 << 16))
    if outcome.status == 0:
        return outcome.output or "(the program printed nothing)"
    killed = outcome.status is None or outcome.status < 0
    bounds = f"was killed; it may take {seconds:g} s and {memory_mib} MiB"
    ended = bounds if killed else f"ended with status {outcome.status}"
    raise RuntimeError(f"the program {ended}: {outcome.output[-1500:].strip()}")
