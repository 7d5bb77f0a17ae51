#include "bench/load/tally.h"

#include <inttypes.h>
#include <stdio.h>

static size_t cell_of(uint64_t us)
{
    if (us >> HISTOGRAM_BITS != 0) {
        us = (UINT64_C(1) << HISTOGRAM_BITS) - 1;
    }
    unsigned shift = 0;
    while (us >> shift > 127) {
        shift++;
    }
    return (size_t)shift * 64 + (size_t)(us >> shift);
}

/* The largest latency that is counted in `cell`. */
static uint64_t cell_top(size_t cell)
{
    size_t shift = cell < 128 ? 0 : cell / 64 - 1;
    uint64_t mantissa = cell - shift * 64;
    return ((mantissa + 1) << shift) - 1;
}

void histogram_add(struct histogram *histogram, uint64_t us)
{
    histogram->cells[cell_of(us)]++;
    histogram->count++;
    histogram->max_us = us > histogram->max_us ? us : histogram->max_us;
}

uint64_t histogram_quantile(const struct histogram *histogram, unsigned per_mille)
{
    /* Nearest rank: the smallest value with at least this many at or below it. */
    uint64_t rank = (histogram->count * per_mille + 999) / 1000;
    uint64_t seen = 0;
    for (size_t cell = 0; rank > 0 && cell < HISTOGRAM_CELLS; cell++) {
        seen += histogram->cells[cell];
        if (seen >= rank) {
            uint64_t top = cell_top(cell);
            return top < histogram->max_us ? top : histogram->max_us;
        }
    }
    return 0;
}

uint64_t tally_error(struct tally *tally, const char *kind)
{
    for (size_t i = 0; i < tally->kind_count; i++) {
        if (strncmp(tally->kinds[i].name, kind, TALLY_KIND_MAX - 1) == 0) {
            return ++tally->kinds[i].count;
        }
    }
    if (tally->kind_count == TALLY_KINDS_MAX) {
        return ++tally->kinds[TALLY_KINDS_MAX - 1].count;
    }
    struct tally_kind *added = &tally->kinds[tally->kind_count++];
    const char *name = tally->kind_count == TALLY_KINDS_MAX ? "other" : kind;
    (void)snprintf(added->name, sizeof(added->name), "%s", name);
    added->count = 1;
    return 1;
}

/* Kinds are made of letters, digits, dots and spaces, so they need no escapes. */
static int put_errors(const struct tally *tally, struct buf *out)
{
    int rc = buf_append(out, SPAN_LIT("\"errors\":{"));
    for (size_t i = 0; rc == 0 && i < tally->kind_count; i++) {
        rc = buf_printf(out, "%s\"%s\":%" PRIu64, i > 0 ? "," : "", tally->kinds[i].name,
                        tally->kinds[i].count);
    }
    return rc == 0 ? buf_append(out, SPAN_LIT("}")) : rc;
}

static int put_latency(const struct histogram *latency, struct buf *out)
{
    return buf_printf(out,
                      "\"p50_ms\":%.3f,\"p95_ms\":%.3f,\"p99_ms\":%.3f,\"p999_ms\":%.3f,"
                      "\"max_ms\":%.3f,",
                      (double)histogram_quantile(latency, 500) / 1e3,
                      (double)histogram_quantile(latency, 950) / 1e3,
                      (double)histogram_quantile(latency, 990) / 1e3,
                      (double)histogram_quantile(latency, 999) / 1e3,
                      (double)latency->max_us / 1e3);
}

int tally_json(const struct tally *tally, int64_t elapsed_us, struct buf *out)
{
    double seconds = (double)elapsed_us / 1e6;
    double per_s = elapsed_us > 0 ? 1 / seconds : 0;
    int rc = buf_printf(out,
                        "{\"accepted\":%" PRIu64 ",\"accepted_per_s\":%.1f,\"recipients\":%" PRIu64
                        ",\"recipients_per_s\":%.1f,\"failed\":%" PRIu64 ",\"retried\":%" PRIu64
                        ",",
                        tally->accepted, (double)tally->accepted * per_s, tally->recipients,
                        (double)tally->recipients * per_s, tally->failed, tally->retried);
    if (rc == 0) {
        rc = put_latency(&tally->latency, out);
    }
    if (rc == 0) {
        rc = put_errors(tally, out);
    }
    return rc == 0
               ? buf_printf(out, ",\"seconds\":%.6f,\"bytes\":%" PRIu64 "}", seconds, tally->bytes)
               : rc;
}
