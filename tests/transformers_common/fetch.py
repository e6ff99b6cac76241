"""Fetch the source distribution of the installed transformers release and unpack its common model tests into build/.

    python tests/transformers_common/fetch.py

pip takes it from where it takes packages; nothing of it is committed. A release already there is not fetched again.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


# Holds `tests/`, and `src/transformers` as the tests expect it beside them.
LIBRARY = Path(__file__).resolve().parents[2] / "build" / f"transformers-{transformers.__version__}"


def main() -> None:
    """Leave LIBRARY complete, or nothing of it."""
    if LIBRARY.is_dir():
        print(f"{LIBRARY} is there")
        return
    requirement = f"transformers=={transformers.__version__}"
    LIBRARY.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LIBRARY.parent) as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        if subprocess.run([*command, "--dest", directory, requirement], check=False).returncode:
            sys.exit(f"error: pip could not fetch the source distribution of {requirement}; see above")
        with tarfile.open(next(Path(directory).glob("*.tar.gz"))) as archive:
            archive.extractall(directory, filter="data")
        unpacked = Path(directory) / LIBRARY.name
        # The tests are to run against what is installed, not against a second copy of the library.
        shutil.rmtree(unpacked / "src" / "transformers")
        (unpacked / "src" / "transformers").symlink_to(Path(transformers.__file__).parent)
        (unpacked / "tests" / "__init__.py").touch()
        unpacked.rename(LIBRARY)
    print(f"{requirement}: {LIBRARY}")


if __name__ == "__main__":
    main()
