/* The command line of heave-queue-bench. Pure; thread: any. */
#ifndef HEAVE_BENCH_QUEUE_OPTIONS_H
#define HEAVE_BENCH_QUEUE_OPTIONS_H

#include "gateway/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WAITING_LEVELS_MAX 8

enum bench_mode {
    BENCH_COST,     /* each operation by itself, next to queues of different length */
    BENCH_TOGETHER, /* enqueue against claim, start and settle, at the same time */
    BENCH_ENQUEUE,  /* enqueue alone, as fast as it goes */
    BENCH_CLAIMS,   /* several handles claim from one Redis; nothing may be claimed twice */
};

struct bench_options {
    bool help;
    enum bench_mode mode;
    uint64_t messages; /* of a block, or of the run */
    uint64_t body_bytes;
    uint64_t recipients; /* of a batch */
    uint64_t batches;    /* of a message */
    uint64_t waiting[WAITING_LEVELS_MAX];
    size_t waiting_count;
    bool waiting_same; /* in the lane that is measured, ahead of it; otherwise in another */
    uint64_t in_flight;
    uint64_t claim; /* batches of a claim */
    uint64_t rounds;
    uint64_t shards;
    uint64_t claims;  /* of the whole run */
    uint64_t handles; /* each with its thread */
    bool fsync;       /* otherwise durability `memory` */
    const char *folder;
};

/* Errors: ERR_INVAL, with a sentence. */
MUST_USE int bench_options_read(int argc, char **argv, struct bench_options *options,
                                struct err *err);
void bench_options_help(void);

#endif
