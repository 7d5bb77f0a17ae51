"""The fail points in the code, in the table of gateway/base/failpoint.h and in tests/chaos/points.py are the same, and each
has one place in the code."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = ROOT / "gateway/base/failpoint.h"
SUITE = ROOT / "tests/chaos/points.py"
FEWEST = 20


def code_points():
    """name -> places"""
    places = {}
    sources = [p for room in ("gateway", "queue", "backends") for p in (ROOT / room).rglob("*.c")]
    for source in sources:
        for number, line in enumerate(source.read_text().splitlines(), 1):
            for name in re.findall(r'\bFAILPOINT(?:_ERROR)?\("([^"]*)"\)', line):
                places.setdefault(name, []).append(f"{source.relative_to(ROOT)}:{number}")
    return places


def main():
    table = re.findall(r'POINT\("([^"]+)",', HEADER.read_text())
    suite = set(re.findall(r'^    "([a-z-]+)": ', SUITE.read_text(), re.M))
    code = code_points()
    mistakes = [f"{places[0]}: {name} is not in gateway/base/failpoint.h" for name, places in code.items() if name not in table]
    mistakes += [f"{', '.join(places)}: {name} has more than one place" for name, places in code.items() if len(places) > 1]
    mistakes += [f"gateway/base/failpoint.h: {name} is nowhere in the code" for name in table if name not in code]
    mistakes += [f"gateway/base/failpoint.h: {name} stands twice" for name in set(table) if table.count(name) > 1]
    mistakes += [f"tests/chaos/points.py does not use {name}" for name in table if name not in suite]
    mistakes += [f"tests/chaos/points.py: {name} is not in gateway/base/failpoint.h" for name in suite - set(table)]
    if len(table) < FEWEST:
        mistakes.append(f"gateway/base/failpoint.h has {len(table)} points, fewer than {FEWEST}")
    print("\n".join(mistakes) or f"{len(table)} fail points: in the code, in the table, in the suite")
    return 1 if mistakes else 0


sys.exit(main())
