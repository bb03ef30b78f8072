"""`core` is what every process imports first, so it must be light."""

from __future__ import annotations

HEAVY = "ray deepspeed vllm torch transformers wandb tensorboard"


def test_run_program_checkpoint_and_report_import_no_heavy_library(start_python) -> None:
    process = start_python(
        "import sys, troupe.runs.run, troupe.config.program, troupe.runs.checkpoint, troupe.report.report, "
        "troupe.report.trackers, troupe.runs.model_check, troupe.jobs.report\n"
        "print(*(name for name in sys.argv[1].split() if name in sys.modules))",
        HEAVY,
    )
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out.split()) == (0, []), err
