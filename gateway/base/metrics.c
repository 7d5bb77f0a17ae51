#include "gateway/base/metrics.h"

#include "gateway/base/codec.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define SERIES_MAX 10000
/* Longer label values are cut: a label names a class of things, not one thing. */
#define LABEL_BYTES 200

/* The numbers are relaxed atomics of any thread; everything else is written under the registry's
 * mutex before the series can be found, and not changed after. */
struct metric {
    const struct metric_def *def;
    _Atomic int64_t value;     /* counter, gauge */
    _Atomic double sum;        /* histogram */
    _Atomic uint64_t *buckets; /* histogram: bucket_count + 1, each for itself; the last is +Inf */
    uint64_t hash;
    char *labels[METRIC_LABELS_MAX];
};

/* The series of one definition: in order of creation, and in a table of open addressing. */
struct family {
    struct metric **series;
    size_t count;
    size_t cap;
    struct metric **slots;
    size_t slot_count; /* a power of two, at least twice `count` */
};

struct metrics {
    const struct metric_def *defs;
    struct family *families;
    size_t count;
    pthread_mutex_t lock;
};

static size_t label_count(const struct metric_def *def)
{
    size_t count = 0;
    while (count < METRIC_LABELS_MAX && def->labels[count] != NULL) {
        count++;
    }
    return count;
}

/* ---- Finding and making series ---- */

/* Label values as they are kept: cut at a whole character, and readable to Prometheus, which
 * refuses the whole page over a byte that is no UTF-8. */
struct label_values {
    char text[METRIC_LABELS_MAX][LABEL_BYTES + 1];
    size_t count;
    uint64_t hash;
};

static void clean_label(const char *value, char out[LABEL_BYTES + 1])
{
    struct span text = span_of(value);
    if (text.len > LABEL_BYTES) {
        text.len = LABEL_BYTES;
        while (text.len > 0 && ((unsigned char)value[text.len] & 0xC0) == 0x80) {
            text.len--;
        }
    }
    bool valid = codec_utf8_valid(text);
    for (size_t i = 0; i < text.len; i++) {
        out[i] = valid || (unsigned char)value[i] < 0x80 ? value[i] : '?';
    }
    out[text.len] = '\0';
}

static void clean_labels(const char *const *values, size_t count, struct label_values *out)
{
    out->count = count;
    out->hash = 0;
    for (size_t i = 0; i < count; i++) {
        clean_label(values[i], out->text[i]);
        out->hash = out->hash * 31 + codec_fnv1a(span_of(out->text[i]));
    }
}

static bool same_labels(const struct metric *metric, const struct label_values *values)
{
    for (size_t i = 0; i < values->count; i++) {
        if (strcmp(metric->labels[i], values->text[i]) != 0) {
            return false;
        }
    }
    return metric->hash == values->hash;
}

static struct metric *family_find(const struct family *family, const struct label_values *values)
{
    if (family->slot_count == 0) {
        return NULL;
    }
    size_t mask = family->slot_count - 1;
    for (size_t i = values->hash & mask; family->slots[i] != NULL; i = (i + 1) & mask) {
        if (same_labels(family->slots[i], values)) {
            return family->slots[i];
        }
    }
    return NULL;
}

static void slot_put(struct metric **slots, size_t slot_count, struct metric *metric)
{
    size_t mask = slot_count - 1;
    size_t i = metric->hash & mask;
    while (slots[i] != NULL) {
        i = (i + 1) & mask;
    }
    slots[i] = metric;
}

static void family_grow(struct family *family)
{
    size_t cap = family->cap > 0 ? family->cap * 2 : 4;
    family->series = mem_realloc_try(family->series, cap * sizeof(family->series[0]));
    ASSERT(family->series != NULL);
    family->cap = cap;
    mem_free(family->slots);
    family->slot_count = cap * 2;
    family->slots = mem_zero(family->slot_count * sizeof(family->slots[0]));
    for (size_t i = 0; i < family->count; i++) {
        slot_put(family->slots, family->slot_count, family->series[i]);
    }
}

static struct metric *family_add(struct family *family, const struct metric_def *def,
                                 const struct label_values *values)
{
    if (family->count == family->cap) {
        family_grow(family);
    }
    struct metric *metric = mem_zero(sizeof(*metric));
    metric->def = def;
    metric->hash = values->hash;
    for (size_t i = 0; i < values->count; i++) {
        metric->labels[i] = mem_dup(span_of(values->text[i]));
    }
    if (def->kind == METRIC_HISTOGRAM) {
        metric->buckets = mem_zero((def->bucket_count + 1) * sizeof(metric->buckets[0]));
    }
    family->series[family->count++] = metric;
    slot_put(family->slots, family->slot_count, metric);
    return metric;
}

static struct metric *family_get(struct family *family, const struct metric_def *def,
                                 struct label_values *values)
{
    static const char *const others[METRIC_LABELS_MAX] = {"other", "other", "other", "other"};
    struct metric *metric = family_find(family, values);
    if (metric == NULL && family->count >= SERIES_MAX) {
        clean_labels(others, values->count, values);
        metric = family_find(family, values);
    }
    return metric != NULL ? metric : family_add(family, def, values);
}

struct metric *metrics_get(struct metrics *metrics, size_t row, const char *const *label_values)
{
    ASSERT(row < metrics->count);
    const struct metric_def *def = &metrics->defs[row];
    struct label_values values;
    clean_labels(label_values, label_count(def), &values);
    ASSERT(pthread_mutex_lock(&metrics->lock) == 0);
    struct metric *metric = family_get(&metrics->families[row], def, &values);
    ASSERT(pthread_mutex_unlock(&metrics->lock) == 0);
    return metric;
}

static void check_def(const struct metric_def *def)
{
    ASSERT(def->name != NULL && def->help != NULL);
    ASSERT(def->bucket_count <= METRIC_BUCKETS_MAX);
    ASSERT(def->kind == METRIC_HISTOGRAM || def->bucket_count == 0);
    for (size_t i = 1; i < def->bucket_count; i++) {
        ASSERT(def->buckets[i - 1] < def->buckets[i]);
    }
}

struct metrics *metrics_new(const struct metric_def *defs, size_t count)
{
    struct metrics *metrics = mem_zero(sizeof(*metrics));
    metrics->defs = defs;
    metrics->count = count;
    metrics->families = mem_zero(count * sizeof(metrics->families[0]));
    ASSERT(pthread_mutex_init(&metrics->lock, NULL) == 0);
    for (size_t i = 0; i < count; i++) {
        check_def(&defs[i]);
        if (label_count(&defs[i]) == 0) {
            (void)metrics_get(metrics, i, NULL); /* only so that it exists */
        }
    }
    return metrics;
}

static void metric_free(struct metric *metric)
{
    for (size_t i = 0; i < METRIC_LABELS_MAX; i++) {
        mem_free(metric->labels[i]);
    }
    mem_free((void *)metric->buckets);
    mem_free(metric);
}

void metrics_free(struct metrics **metrics_ptr)
{
    struct metrics *metrics = *metrics_ptr;
    if (metrics == NULL) {
        return;
    }
    for (size_t i = 0; i < metrics->count; i++) {
        struct family *family = &metrics->families[i];
        for (size_t k = 0; k < family->count; k++) {
            metric_free(family->series[k]);
        }
        mem_free(family->series);
        mem_free(family->slots);
    }
    ASSERT(pthread_mutex_destroy(&metrics->lock) == 0);
    mem_free(metrics->families);
    mem_free(metrics);
    *metrics_ptr = NULL;
}

/* ---- Updating ---- */

void metric_add(struct metric *metric, int64_t by)
{
    ASSERT(metric->def->kind != METRIC_HISTOGRAM);
    (void)atomic_fetch_add_explicit(&metric->value, by, memory_order_relaxed);
}

void metric_set(struct metric *metric, int64_t value)
{
    ASSERT(metric->def->kind == METRIC_GAUGE);
    atomic_store_explicit(&metric->value, value, memory_order_relaxed);
}

void metric_observe(struct metric *metric, double value)
{
    const struct metric_def *def = metric->def;
    ASSERT(def->kind == METRIC_HISTOGRAM);
    size_t bucket = 0;
    while (bucket < def->bucket_count && value > def->buckets[bucket]) {
        bucket++;
    }
    (void)atomic_fetch_add_explicit(&metric->buckets[bucket], 1, memory_order_relaxed);
    double sum = atomic_load_explicit(&metric->sum, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&metric->sum, &sum, sum + value,
                                                  memory_order_relaxed, memory_order_relaxed)) {
    }
}

static uint64_t bucket_value(const struct metric *metric, size_t bucket)
{
    return atomic_load_explicit(&metric->buckets[bucket], memory_order_relaxed);
}

int64_t metric_value(const struct metric *metric)
{
    if (metric->def->kind != METRIC_HISTOGRAM) {
        return atomic_load_explicit(&metric->value, memory_order_relaxed);
    }
    uint64_t count = 0;
    for (size_t i = 0; i <= metric->def->bucket_count; i++) {
        count += bucket_value(metric, i);
    }
    return (int64_t)count;
}

/* ---- Exposing ---- */

/* https://prometheus.io/docs/instrumenting/exposition_formats/: help escapes backslash and newline,
 * label values the quote as well. */
static int put_text(struct buf *out, const char *text, bool quotes)
{
    int rc = ERR_OK;
    for (const char *c = text; *c != '\0' && rc == ERR_OK; c++) {
        if (*c == '\n') {
            rc = buf_append(out, SPAN_LIT("\\n"));
        } else if (*c == '\\') {
            rc = buf_append(out, SPAN_LIT("\\\\"));
        } else if (*c == '"' && quotes) {
            rc = buf_append(out, SPAN_LIT("\\\""));
        } else {
            rc = buf_append_byte(out, *c);
        }
    }
    return rc;
}

/* The shortest of two precisions that reads back as the same number: 0.1, not 0.10000000000000001.
 */
static void number_text(double value, char out[32])
{
    if (isinf(value)) {
        (void)snprintf(out, 32, value > 0 ? "+Inf" : "-Inf");
        return;
    }
    (void)snprintf(out, 32, "%.15g", value);
    if (strtod(out, NULL) != value) {
        (void)snprintf(out, 32, "%.17g", value);
    }
}

/* `{a="b",le="0.1"}`; nothing at all without labels. `le` may be NULL. */
static int put_labels(struct buf *out, const struct metric *metric, const char *le)
{
    size_t count = label_count(metric->def);
    if (count == 0 && le == NULL) {
        return ERR_OK;
    }
    int rc = ERR_OK;
    for (size_t i = 0; i < count && rc == ERR_OK; i++) {
        rc = buf_printf(out, "%s%s=\"", i == 0 ? "{" : ",", metric->def->labels[i]);
        if (rc == ERR_OK) {
            rc = put_text(out, metric->labels[i], true);
        }
        if (rc == ERR_OK) {
            rc = buf_append_byte(out, '"');
        }
    }
    if (le != NULL && rc == ERR_OK) {
        rc = buf_printf(out, "%sle=\"%s\"", count == 0 ? "{" : ",", le);
    }
    return rc == ERR_OK ? buf_append_byte(out, '}') : rc;
}

/* One line: name, suffix, labels, value. */
static int put_sample(struct buf *out, const struct metric *metric, const char *suffix,
                      const char *le, const char *value)
{
    int rc = buf_printf(out, "%s%s", metric->def->name, suffix);
    if (rc == ERR_OK) {
        rc = put_labels(out, metric, le);
    }
    return rc == ERR_OK ? buf_printf(out, " %s\n", value) : rc;
}

/* The count is the sum of the buckets read here, so that it always equals the +Inf bucket. */
static int put_histogram(struct buf *out, const struct metric *metric)
{
    const struct metric_def *def = metric->def;
    char value[32];
    uint64_t total = 0;
    int rc = ERR_OK;
    for (size_t i = 0; i <= def->bucket_count && rc == ERR_OK; i++) {
        char le[32];
        number_text(i < def->bucket_count ? def->buckets[i] : (double)INFINITY, le);
        total += bucket_value(metric, i);
        (void)snprintf(value, sizeof(value), "%" PRIu64, total);
        rc = put_sample(out, metric, "_bucket", le, value);
    }
    if (rc == ERR_OK) {
        char sum[32];
        number_text(atomic_load_explicit(&metric->sum, memory_order_relaxed), sum);
        rc = put_sample(out, metric, "_sum", NULL, sum);
    }
    return rc == ERR_OK ? put_sample(out, metric, "_count", NULL, value) : rc;
}

static int put_family(struct buf *out, const struct metric_def *def, const struct family *family)
{
    static const char *const kinds[] = {
        [METRIC_COUNTER] = "counter",
        [METRIC_GAUGE] = "gauge",
        [METRIC_HISTOGRAM] = "histogram",
    };
    int rc = buf_printf(out, "# HELP %s ", def->name);
    if (rc == ERR_OK) {
        rc = put_text(out, def->help, false);
    }
    if (rc == ERR_OK) {
        rc = buf_printf(out, "\n# TYPE %s %s\n", def->name, kinds[def->kind]);
    }
    for (size_t i = 0; i < family->count && rc == ERR_OK; i++) {
        const struct metric *metric = family->series[i];
        if (def->kind == METRIC_HISTOGRAM) {
            rc = put_histogram(out, metric);
            continue;
        }
        char value[32];
        (void)snprintf(value, sizeof(value), "%" PRId64, metric_value(metric));
        rc = put_sample(out, metric, "", NULL, value);
    }
    return rc;
}

int metrics_expose(struct metrics *metrics, struct buf *out)
{
    size_t before = buf_len(out);
    int rc = ERR_OK;
    ASSERT(pthread_mutex_lock(&metrics->lock) == 0);
    for (size_t i = 0; i < metrics->count && rc == ERR_OK; i++) {
        rc = put_family(out, &metrics->defs[i], &metrics->families[i]);
    }
    ASSERT(pthread_mutex_unlock(&metrics->lock) == 0);
    if (rc != ERR_OK) {
        buf_truncate(out, before);
    }
    return rc;
}
