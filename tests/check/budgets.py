"""Length of files and functions, and functions that must not be called (style.md)."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE_LINES = 1000
FUNCTION_LINES = 120

# Unbounded, not reentrant, or with a better one in gateway/base.
BANNED = {
    "strcpy": "memcpy after a length check", "strcat": "struct buf", "sprintf": "snprintf", "vsprintf": "vsnprintf",
    "gets": "fgets", "strtok": "span_cut", "atoi": "span_to_u64", "atol": "span_to_u64", "scanf": "a parser",
    "sscanf": "a parser", "alloca": "an arena", "localtime": "clock_*", "gmtime": "clock_*", "rand": "codec_random",
    "random": "codec_random", "srand": "codec_random", "system": "fork and exec", "popen": "fork and exec",
    "mktemp": "mkstemp", "strncpy": "memcpy after a length check", "usleep": "a loop timer",
}
# The floor alone may touch the C allocator and threads' locks; bench programs are not servers.
FLOOR_ONLY = {"malloc": "mem_alloc", "calloc": "mem_zero", "realloc": "mem_realloc_try", "free": "mem_free",
              "pthread_mutex_lock": "loop_post", "uv_mutex_lock": "loop_post"}


def strip(text):
    """Without comments and strings, keeping line numbers."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match[0])
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)


def functions(lines):
    """(first line, length) of each function body: braces in the first column, as clang-format lays them."""
    start = None
    for number, line in enumerate(lines, 1):
        if line.startswith("{"):
            start = number
        elif line.startswith("}") and start is not None:
            yield start, number - start + 1
            start = None


def calls(path, lines):
    banned = dict(BANNED)
    if not path.startswith(("gateway/base/", "tests/", "bench/")):
        banned.update(FLOOR_ONLY)
    pattern = re.compile(r"(?<![\w.>])(" + "|".join(banned) + r")\s*\(")
    for number, line in enumerate(lines, 1):
        for match in pattern.finditer(line):
            yield f"{path}:{number}: {match[1]}() is banned, use {banned[match[1]]}"


def main():
    mistakes, count = [], 0
    for room in ("gateway", "queue", "backends", "bench", "tests"):
        for source in sorted((ROOT / room).rglob("*.[ch]")):
            if "node_modules" in source.parts:
                continue
            count += 1
            path = source.relative_to(ROOT).as_posix()
            lines = strip(source.read_text()).splitlines()
            if len(lines) > FILE_LINES:
                mistakes.append(f"{path}: {len(lines)} lines, the limit is {FILE_LINES}")
            if source.suffix == ".c":
                mistakes += [f"{path}:{at}: a function of {size} lines, the limit is {FUNCTION_LINES}"
                             for at, size in functions(lines) if size > FUNCTION_LINES]
            if room != "tests":
                mistakes += calls(path, lines)
    print("\n".join(mistakes) or f"{count} files keep the budgets")
    return 1 if mistakes or not count else 0


sys.exit(main())
