/* What a run has seen: counts, errors by kind, and latencies in a histogram of fixed size. Pure;
 * thread: any, one at a time.
 *
 * The histogram is log-linear: exact below 128 µs, above that 64 steps for every doubling, so a
 * percentile is at most 1.6 % above the true value, however long the run. */
#ifndef HEAVE_BENCH_LOAD_TALLY_H
#define HEAVE_BENCH_LOAD_TALLY_H

#include "gateway/base/buf.h"

#include <stddef.h>
#include <stdint.h>

/* Latencies up to 2^40 µs, 12 days; longer ones count as that. */
#define HISTOGRAM_BITS 40
#define HISTOGRAM_CELLS ((HISTOGRAM_BITS - 7) * 64 + 128)

struct histogram {
    uint64_t cells[HISTOGRAM_CELLS];
    uint64_t count;
    uint64_t max_us;
};
void histogram_add(struct histogram *histogram, uint64_t us);
/* The latency that `per_mille` of 1000 do not exceed; 0 when nothing was added. */
uint64_t histogram_quantile(const struct histogram *histogram, unsigned per_mille);

#define TALLY_KINDS_MAX 64
#define TALLY_KIND_MAX 32

struct tally_kind {
    char name[TALLY_KIND_MAX];
    uint64_t count;
};

struct tally {
    uint64_t accepted;   /* messages */
    uint64_t recipients; /* accepted ones */
    uint64_t bytes;      /* content written for accepted messages: smtp DATA, http request */
    uint64_t failed;     /* messages given up */
    uint64_t retried;    /* times a message was sent again */
    struct tally_kind kinds[TALLY_KINDS_MAX];
    size_t kind_count;
    struct histogram latency;
};

/* Counts an error. `kind` is cut to what fits; kinds beyond the last place are counted as "other".
 * Returns how often this kind has come now. */
uint64_t tally_error(struct tally *tally, const char *kind);
/* One line of JSON, without the line end, as product.md section 8 has it. Errors: as the buf. */
MUST_USE int tally_json(const struct tally *tally, int64_t elapsed_us, struct buf *out);

#endif
