"""The arrows of design.md: gateway -> {queue, backends} -> gateway/base, plus backends -> queue's pure headers; one home
per outside library."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The pure part of queue/ that backends may see, and what of it the world may see.
QUEUE_FOR_BACKENDS = {"queue/message.h", "queue/fields.h"}
QUEUE_PUBLIC = QUEUE_FOR_BACKENDS | {"queue/dedup.h", "queue/digest.h", "queue/embedded.h", "queue/keyring.h",
                                     "queue/limiter.h", "queue/probe.h", "queue/queue.h", "queue/search.h", "queue/work.h"}

# Library header -> the files that may include it (prefixes).
HOMES = {
    "uv.h": ["gateway/base/loop", "gateway/base/stream", "gateway/listener", "gateway/serve", "queue/embedded",
             "backends/http_client"],
    "llhttp.h": ["gateway/http1"],
    "nghttp2/nghttp2.h": ["gateway/http2"],
    "openssl/": ["gateway/base/tls", "gateway/base/seal", "backends/token", "backends/acs", "bench/sim/"],
    "curl/curl.h": ["backends/http_client", "gateway/cli/client"],
    "hiredis": ["queue/redis"],
    "jansson.h": ["gateway/api/", "gateway/cli/", "gateway/conf_print", "backends/acs", "backends/graph", "backends/rest",
                  "backends/token", "bench/sim/"],
    "yaml.h": ["gateway/conf"],
    "gmime/": ["gateway/mime"],
    "glib": ["gateway/mime"],
    "crypt.h": ["gateway/policy"],
    "idn2.h": ["gateway/route"],
    "zstd.h": ["queue/body"],
}


def rooms_allowed(path, include):
    """Whether `path` may include the project header `include`."""
    if include.startswith("generated/") or include == "queue_scripts.h":
        return path.startswith("queue/")
    if include.startswith("gateway/base/"):
        return True
    if path.startswith("gateway/base/"):
        return False
    if path.startswith("queue/"):
        return include.startswith("queue/")
    if path.startswith("backends/"):
        return include.startswith("backends/") or include in QUEUE_FOR_BACKENDS
    if include.startswith("queue/"):
        return include in QUEUE_PUBLIC
    return include.startswith(("gateway/", "backends/", "bench/"))


def main():
    mistakes = []
    sources = [p for room in ("gateway", "queue", "backends", "bench") for p in (ROOT / room).rglob("*.[ch]")]
    for source in sorted(sources):
        path = source.relative_to(ROOT).as_posix()
        for number, line in enumerate(source.read_text().splitlines(), 1):
            match = re.match(r'\s*#\s*include\s+([<"])([^>"]+)[>"]', line)
            if not match:
                continue
            kind, include = match.groups()
            if kind == '"':
                if not rooms_allowed(path, include):
                    mistakes.append(f"{path}:{number}: may not include {include}")
                continue
            for library, homes in HOMES.items():
                if include.startswith(library) and not path.startswith(tuple(homes)):
                    mistakes.append(f"{path}:{number}: {include} has its home in {', '.join(homes)}")
    print("\n".join(mistakes) or f"{len(sources)} files keep the layers")
    return 1 if mistakes or not sources else 0


sys.exit(main())
