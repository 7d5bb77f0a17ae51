/* Why the embedded server ended, in words that say what to do. Pure. Private to queue/. */
#ifndef HEAVE_QUEUE_EMBEDDED_WORDS_H
#define HEAVE_QUEUE_EMBEDDED_WORDS_H

#include "gateway/base/buf.h"

#include <stdint.h>

struct embedded_end {
    struct span output;   /* the last it wrote */
    const char *how;      /* "ended with code 1" */
    const char *data_dir; /* absolute */
    uint64_t free_bytes;  /* of the disk that holds it */
    bool split_files;     /* appendonlydir/ (Redis 7), else one appendonly.aof */
};

/* A sentence or two: a full disk and a damaged append-only file are named, with the remedy; the
 * server's last words follow. */
void embedded_explain(const struct embedded_end *end, char *out, size_t out_bytes);

#endif
