#!/usr/bin/env python3
"""Turns Lua scripts into a C header: embed.py OUT_HEADER SCRIPT.lua...

Each script becomes `static const char lua_<name>[]`, written as bytes because ISO C limits string
literals to 4,095 characters. Lines that hold only a comment are left out: Redis keeps every script in
memory for as long as it runs, and comments are for readers of the source.

Redis lets no script call another: what several need stands once in part_<name>.lua, and the line
`-- part: <name>` of a script is where its code goes.
"""
import os
import re
import sys


PART = re.compile(r"-- part: (\w+)")


def code_lines(path):
    """The lines of a script that are code, those of its parts among them."""
    code = []
    with open(path, encoding="utf-8") as source:
        for line in map(str.rstrip, source):
            part = PART.fullmatch(line)
            if part:
                code += code_lines(os.path.join(os.path.dirname(path), f"part_{part[1]}.lua"))
            elif line and not line.lstrip().startswith("--"):
                code.append(line)
    if not code:
        raise SystemExit(f"embed.py: {path} holds no code")
    return code


def script_bytes(path):
    return ("\n".join(code_lines(path)) + "\n").encode("utf-8")


def main(arguments):
    if len(arguments) < 2:
        raise SystemExit("usage: embed.py OUT_HEADER SCRIPT.lua...")
    out_path, scripts = arguments[0], sorted(arguments[1:], key=os.path.basename)
    parts = ["/* Made by queue/embed.py from the Lua scripts beside it. */",
             "#ifndef HEAVE_QUEUE_SCRIPTS_GENERATED_H",
             "#define HEAVE_QUEUE_SCRIPTS_GENERATED_H"]
    seen = set()
    for path in scripts:
        name = os.path.splitext(os.path.basename(path))[0]
        if name.startswith("part_"):
            continue
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise SystemExit(f"embed.py: {path}: the name must be lower-case letters, digits and _")
        if name in seen:
            raise SystemExit(f"embed.py: {name}.lua was given twice")
        seen.add(name)
        data = script_bytes(path) + b"\0"
        rows = [", ".join(str(byte) for byte in data[i:i + 24]) for i in range(0, len(data), 24)]
        parts.append(f"\nstatic const char lua_{name}[] = {{\n    " + ",\n    ".join(rows) + ",\n};")
    parts.append("\n#endif\n")
    # Written aside and renamed, so that an interrupted build never leaves half a header.
    temporary = out_path + ".new"
    with open(temporary, "w", encoding="ascii") as out:
        out.write("\n".join(parts))
    os.replace(temporary, out_path)


if __name__ == "__main__":
    main(sys.argv[1:])
