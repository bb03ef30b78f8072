"""`troupe COMMAND ...`: the programs of jobs/ by one name, wherever the package is installed."""

from __future__ import annotations

import runpy
import signal
import sys

from troupe.project import CONSOLE_COMMAND

COMMANDS = {
    "train grpo": ("train_grpo", "train with groups of answers and their rewards"),
    "train rloo": ("train_rloo", "the same with a leave-one-out baseline"),
    "train ppo": ("train_ppo", "the same with a critic"),
    "train sft": ("train_sft", "train on demonstrations"),
    "train dpo": ("train_dpo", "train on preferences"),
    "train reward-model": ("train_reward_model", "train a model that scores answers"),
    "evaluate": ("evaluate", "answer held-out prompts and measure the answers"),
    "benchmark": ("benchmark", "compare checkpoints, base models and endpoints"),
    "score": ("score", "score a file of answers"),
    "serve": ("serve", "serve a run or a model behind an OpenAI-compatible endpoint"),
    "export": ("export", "write a checkpoint as a Hugging Face model"),
    "report": ("report", "build the report of a run, or of several"),
    "watch": ("watch", "look at a run that goes on"),
    "runs": ("runs", "list, push, pull and fork runs"),
    "pipeline": ("run_pipeline", "run jobs after one another"),
    "launch": ("launch", "start a cluster and submit jobs to it"),
    "prepare-data": ("prepare_data", "split a data set"),
    "distil": ("distil", "have a stronger model answer prompts"),
    "baseline": ("compute_baseline", "compute the baselines of a perplexity reward"),
    "doctor": ("doctor", "find what on this machine would stop or slow a run"),
}
"""Command -> its program in jobs/, and what it does."""


def main() -> None:
    """Run a command; its own `--help` documents it."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `troupe --help | head` is no error
    arguments = sys.argv[1:]
    command = next((name for name in COMMANDS if arguments[: len(name.split())] == name.split()), None)
    if command is None:
        asked = not arguments or arguments[0] in ("-h", "--help")
        wrong = "" if asked else f"error: there is no command {' '.join(arguments[:2])!r}\n\n"
        print(wrong + overview(), file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    CONSOLE_COMMAND.append(f"troupe {command}")
    sys.argv = [f"troupe {command}", *arguments[len(command.split()) :]]
    runpy.run_module(f"troupe.jobs.{COMMANDS[command][0]}", run_name="__main__", alter_sys=True)


def overview() -> str:
    """Describe every command in a line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: troupe COMMAND [config.yaml ...] [section.field=value ...]", "", *lines])


if __name__ == "__main__":
    main()
