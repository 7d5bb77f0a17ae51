"""Prints "PASSED FAILED" of a JUnit file; skipped tests count as neither. Exit 1 when there is no result."""
import sys
import xml.etree.ElementTree as xml

try:
    root = xml.parse(sys.argv[1]).getroot()
except (OSError, xml.ParseError):
    sys.exit(1)
cases = list(root.iter("testcase"))
skipped = [c for c in cases if c.find("skipped") is not None or c.get("status") == "notrun"]
failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
print(len(cases) - len(skipped) - len(failed), len(failed))
sys.exit(0 if cases else 1)
