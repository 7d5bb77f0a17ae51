/* What heave-queue-bench can measure; each prints lines of JSON to standard output. */
#ifndef HEAVE_BENCH_QUEUE_MODES_H
#define HEAVE_BENCH_QUEUE_MODES_H

#include "bench/queue/options.h"

/* Rounds of blocks: in each, every operation by itself at every Redis (one for each number of
 * waiting batches), in turn. A line a block. */
void bench_cost(const struct bench_options *options);
/* Enqueue on one handle, claim, start and settle on another, at the same time. One line. */
void bench_together(const struct bench_options *options);
/* Enqueue alone. One line. */
void bench_enqueue(const struct bench_options *options);
/* Several handles in threads claim, give back, delay, lose and settle. One line; whether nothing
 * was claimed twice. */
bool bench_claims(const struct bench_options *options);

#endif
