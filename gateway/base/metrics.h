/* Counters, gauges and histograms with labels, and their Prometheus text form.
 *
 * Must not know: which metrics there are; the table comes from the caller. Thread: metrics_get()
 * takes the registry's mutex, so look a series up once and keep the handle; the update functions
 * are relaxed atomics and may be called from any thread; handles live as long as the registry. */
#ifndef HEAVE_BASE_METRICS_H
#define HEAVE_BASE_METRICS_H

#include "gateway/base/buf.h"

#include <stddef.h>
#include <stdint.h>

enum metric_kind {
    METRIC_COUNTER,
    METRIC_GAUGE,
    METRIC_HISTOGRAM,
};

#define METRIC_LABELS_MAX 4
#define METRIC_BUCKETS_MAX 20

/* One row of the table. `name` without unit suffix mistakes: counters end in _total, times in
 * _seconds, sizes in _bytes. */
struct metric_def {
    const char *name;
    enum metric_kind kind;
    const char *help;
    const char *labels[METRIC_LABELS_MAX]; /* NULL after the last */
    const double *buckets;                 /* histograms: upper bounds, ascending */
    size_t bucket_count;                   /* at most METRIC_BUCKETS_MAX; +Inf is added */
};

struct metrics;
struct metric;

/* `defs` must outlive the registry. Series without labels exist from the start, at 0. */
struct metrics *metrics_new(const struct metric_def *defs, size_t count);
void metrics_free(struct metrics **metrics);

/* The series of row `row` with these label values (as many as the row has labels; copied). Creates
 * it at 0 when new. Never NULL: past 10,000 series of one row, the series whose label values are
 * all "other" is returned. Any thread. */
struct metric *metrics_get(struct metrics *metrics, size_t row, const char *const *label_values);

/* Any thread. */
void metric_add(struct metric *metric, int64_t by);
void metric_set(struct metric *metric, int64_t value);
void metric_observe(struct metric *metric, double value);
int64_t metric_value(const struct metric *metric);

/* Appends the text exposition format 0.0.4 of all series. Any thread.
 * Errors: ERR_LIMIT, ERR_NOMEM (the buf). */
MUST_USE int metrics_expose(struct metrics *metrics, struct buf *out);

#endif
