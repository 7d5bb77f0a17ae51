"""clang-format decides layout."""
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    rooms = ("gateway", "queue", "backends", "bench", "tests")
    files = sorted(p.relative_to(ROOT).as_posix() for room in rooms for p in (ROOT / room).rglob("*.[ch]")
                   if "node_modules" not in p.parts)
    done = subprocess.run(["clang-format", "--dry-run", "-Werror", *files], cwd=ROOT, capture_output=True, text=True)
    wrong = sorted({line.split(":")[0] for line in done.stderr.splitlines() if "-Wclang-format-violations" in line})
    print("\n".join(f"{f}: run clang-format -i on it" for f in wrong) or f"{len(files)} files are laid out")
    return 1 if done.returncode != 0 or not files else 0


sys.exit(main())
