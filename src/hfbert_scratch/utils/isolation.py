"""Run code in a new process, as someone does who has a checkpoint but not this package."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path


# None in sys.modules makes the import fail however the package is installed.
_WITHOUT_PACKAGE = "import sys\nsys.modules['hfbert_scratch'] = None\n"


def run_without_package(
    code: str,
    *arguments: str,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process that can neither import this package nor use the network.

    Args:
        code: the program.
        arguments: its `sys.argv[1:]`. Relative paths in them refer to `directory`.
        directory: the working directory, which also gets the Hugging Face cache; default: a temporary one.
        environment: variables to add to this process's own.
        timeout: seconds until the process is killed.

    Returns:
        The finished process with its exit code and its output as text.
    """
    return run_offline(
        _WITHOUT_PACKAGE + code, *arguments, directory=directory, environment=environment, timeout=timeout
    )


def run_offline(
    code: str,
    *arguments: str,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process like `run_without_package`, but with this package.

    Args:
        code: the program.
        *arguments: its `sys.argv[1:]`. Relative paths in them refer to `directory`.
        directory: the working directory, which also gets the Hugging Face cache. None: a temporary one.
        environment: variables to add. Of this process's own, those that begin with HF_ are left out.
        timeout: seconds until the process is killed. None: no limit.

    Returns:
        The finished process with its exit code and its output as text.

    Raises:
        subprocess.TimeoutExpired: if the process was killed.
    """
    if directory is None:
        with tempfile.TemporaryDirectory() as temporary:
            return run_offline(code, *arguments, directory=Path(temporary), environment=environment, timeout=timeout)
    # A token, an endpoint or a cache of the user's must not decide whether the code works.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {
        "HF_HOME": str(directory / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=directory,
        env=variables | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
