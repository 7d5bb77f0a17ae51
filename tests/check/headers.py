"""Every header compiles alone, with a guard named after its path."""
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ["libuv", "openssl", "libnghttp2", "libcurl", "hiredis", "jansson", "gmime-3.0"]


def compile_alone(header, flags):
    done = subprocess.run(["gcc", "-std=c17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *flags,
                           "-I", ROOT, "-x", "c", header], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{header.relative_to(ROOT)} does not compile alone:\n{done.stderr}"


def guard(header):
    path = header.relative_to(ROOT).as_posix()
    name = re.sub(r"[^A-Za-z0-9]", "_", path.replace("gateway/base", "base")).upper()
    wanted = {f"HEAVE_{name}", "HEAVE_" + re.sub(r"[^A-Za-z0-9]", "_", path).upper()}
    match = re.search(r"^#ifndef (\w+)\n#define (\w+)", header.read_text(), re.M)
    if match is None or match[1] != match[2] or match[1] not in wanted:
        return f"{path}: the include guard should be {sorted(wanted)[0]}"
    return ""


def main():
    flags = subprocess.run(["pkg-config", "--cflags", *PACKAGES], capture_output=True, text=True, check=True).stdout.split()
    headers = sorted(p for room in ("gateway", "queue", "backends", "bench") for p in (ROOT / room).rglob("*.h"))
    with ThreadPoolExecutor(2) as pool:
        mistakes = list(pool.map(lambda h: compile_alone(h, flags), headers)) + [guard(h) for h in headers]
    mistakes = [m for m in mistakes if m]
    print("\n".join(mistakes) or f"{len(headers)} headers compile alone")
    return 1 if mistakes or not headers else 0


sys.exit(main())
