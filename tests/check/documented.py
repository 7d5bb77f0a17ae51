"""Every option and every metric of the tables stands in the documentation, and nothing else does."""
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("HEAVE_BUILD", ROOT / "build"))


def option_mistakes():
    """gateway/OPTIONS.md is what `heave config --reference` prints."""
    printed = subprocess.run([BUILD / "heave", "config", "--reference"], capture_output=True, text=True, check=True)
    page = (ROOT / "gateway/OPTIONS.md").read_text()
    if page != printed.stdout:
        return ["gateway/OPTIONS.md is not what `heave config --reference` prints: write it anew"]
    return []


def metric_mistakes():
    table = set(re.findall(r'\.name = "(heave_\w+)"', (ROOT / "gateway/events.c").read_text()))
    page = set(re.findall(r"`(heave_\w+)`", (ROOT / "gateway/README.md").read_text()))
    missing = [f"gateway/README.md lacks the metric {name}" for name in sorted(table - page)]
    return missing + [f"gateway/README.md names the metric {name}, which is in no table" for name in sorted(page - table)]


def main():
    mistakes = option_mistakes() + metric_mistakes()
    print("\n".join(mistakes) or "options and metrics are documented")
    return 1 if mistakes else 0


sys.exit(main())
