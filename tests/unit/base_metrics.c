/* Series, their updates from many threads, and the exposition text. */
#include "gateway/base/metrics.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

static const double bounds[] = {0.1, 0.25, 1, 10};

enum {
    ROW_ACCEPTED,
    ROW_OPEN,
    ROW_TIME,
    ROW_UP,
};

static const struct metric_def defs[] = {
    [ROW_ACCEPTED] = {.name = "heave_accepted_total",
                      .kind = METRIC_COUNTER,
                      .help = "Messages accepted.\nBack\\slash.",
                      .labels = {"protocol", "client"}},
    [ROW_OPEN] = {.name = "heave_open", .kind = METRIC_GAUGE, .help = "Open sessions."},
    [ROW_TIME] = {.name = "heave_time_seconds",
                  .kind = METRIC_HISTOGRAM,
                  .help = "Time.",
                  .labels = {"backend"},
                  .buckets = bounds,
                  .bucket_count = 4},
    [ROW_UP] = {.name = "heave_up_seconds",
                .kind = METRIC_HISTOGRAM,
                .help = "Up.",
                .buckets = bounds,
                .bucket_count = 1},
};

static struct metrics *make(void)
{
    return metrics_new(defs, sizeof(defs) / sizeof(defs[0]));
}

static void test_exposition(void **state)
{
    (void)state;
    struct metrics *metrics = make();
    const char *const smtp[] = {"smtp", "a\"b\\c\nd"};
    const char *const http[] = {"http", ""};
    metric_add(metrics_get(metrics, ROW_ACCEPTED, smtp), 3);
    metric_add(metrics_get(metrics, ROW_ACCEPTED, http), INT64_C(10000000000));
    metric_set(metrics_get(metrics, ROW_OPEN, NULL), 7);
    metric_add(metrics_get(metrics, ROW_OPEN, NULL), -9);
    struct metric *time = metrics_get(metrics, ROW_TIME, (const char *const[]){"hve"});
    static const double values[] = {0.1, 0.05, 0.2, 0.25, 0.5, 100};
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        metric_observe(time, values[i]);
    }
    assert_true(metric_value(time) == 6);
    struct buf out;
    buf_init(&out, 100000);
    assert_int_equal(metrics_expose(metrics, &out), ERR_OK);
    assert_string_equal(buf_text(&out),
                        "# HELP heave_accepted_total Messages accepted.\\nBack\\\\slash.\n"
                        "# TYPE heave_accepted_total counter\n"
                        "heave_accepted_total{protocol=\"smtp\",client=\"a\\\"b\\\\c\\nd\"} 3\n"
                        "heave_accepted_total{protocol=\"http\",client=\"\"} 10000000000\n"
                        "# HELP heave_open Open sessions.\n"
                        "# TYPE heave_open gauge\n"
                        "heave_open -2\n"
                        "# HELP heave_time_seconds Time.\n"
                        "# TYPE heave_time_seconds histogram\n"
                        "heave_time_seconds_bucket{backend=\"hve\",le=\"0.1\"} 2\n"
                        "heave_time_seconds_bucket{backend=\"hve\",le=\"0.25\"} 4\n"
                        "heave_time_seconds_bucket{backend=\"hve\",le=\"1\"} 5\n"
                        "heave_time_seconds_bucket{backend=\"hve\",le=\"10\"} 5\n"
                        "heave_time_seconds_bucket{backend=\"hve\",le=\"+Inf\"} 6\n"
                        "heave_time_seconds_sum{backend=\"hve\"} 101.1\n"
                        "heave_time_seconds_count{backend=\"hve\"} 6\n"
                        "# HELP heave_up_seconds Up.\n"
                        "# TYPE heave_up_seconds histogram\n"
                        "heave_up_seconds_bucket{le=\"0.1\"} 0\n"
                        "heave_up_seconds_bucket{le=\"+Inf\"} 0\n"
                        "heave_up_seconds_sum 0\n"
                        "heave_up_seconds_count 0\n");
    struct buf small;
    buf_init(&small, 100);
    assert_int_equal(buf_append(&small, SPAN_LIT("x")), ERR_OK);
    assert_int_equal(metrics_expose(metrics, &small), ERR_LIMIT);
    assert_int_equal(buf_len(&small), 1);
    buf_release(&small);
    buf_release(&out);
    metrics_free(&metrics);
    assert_null(metrics);
}

static void test_same_series(void **state)
{
    (void)state;
    struct metrics *metrics = make();
    char value[20] = "one";
    struct metric *first = metrics_get(metrics, ROW_TIME, (const char *const[]){value});
    value[0] = 'x';
    assert_ptr_equal(first, metrics_get(metrics, ROW_TIME, (const char *const[]){"one"}));
    assert_ptr_not_equal(first, metrics_get(metrics, ROW_TIME, (const char *const[]){"two"}));
    const char *const ab_c[] = {"ab", "c"};
    const char *const a_bc[] = {"a", "bc"};
    assert_ptr_not_equal(metrics_get(metrics, ROW_ACCEPTED, ab_c),
                         metrics_get(metrics, ROW_ACCEPTED, a_bc));
    metrics_free(&metrics);
}

/* Peers choose some label values: their number, length and bytes are bounded. */
static void test_hostile_labels(void **state)
{
    (void)state;
    struct metrics *metrics = make();
    char value[500];
    struct metric *last = NULL;
    for (int i = 0; i < 10000; i++) {
        (void)snprintf(value, sizeof(value), "client-%d", i);
        struct metric *metric = metrics_get(metrics, ROW_TIME, (const char *const[]){value});
        assert_ptr_not_equal(metric, last);
        last = metric;
    }
    struct metric *other = metrics_get(metrics, ROW_TIME, (const char *const[]){"one more"});
    assert_ptr_equal(other, metrics_get(metrics, ROW_TIME, (const char *const[]){"two more"}));
    assert_ptr_equal(other, metrics_get(metrics, ROW_TIME, (const char *const[]){"other"}));
    assert_ptr_equal(last, metrics_get(metrics, ROW_TIME, (const char *const[]){"client-9999"}));
    metrics_free(&metrics);

    metrics = make();
    memset(value, 'v', sizeof(value) - 1);
    value[sizeof(value) - 1] = '\0';
    memcpy(value + 199, "\xe2\x82\xac", 3);
    (void)metrics_get(metrics, ROW_TIME, (const char *const[]){value});
    struct metric *bad = metrics_get(metrics, ROW_TIME, (const char *const[]){"\xff\xfex"});
    assert_ptr_equal(bad, metrics_get(metrics, ROW_TIME, (const char *const[]){"\xff\xfex"}));
    struct buf out;
    buf_init(&out, 100000);
    assert_int_equal(metrics_expose(metrics, &out), ERR_OK);
    const char *text = buf_text(&out);
    assert_non_null(strstr(text, "backend=\"?\?x\""));
    const char *cut = strstr(text, "backend=\"vvv");
    assert_non_null(cut);
    assert_int_equal(strspn(cut + 9, "v"), 199);
    assert_int_equal(cut[9 + 199], '"');
    buf_release(&out);
    metrics_free(&metrics);
}

#define ROUNDS 20000

static void *count(void *ctx)
{
    struct metrics *metrics = ctx;
    struct metric *time = metrics_get(metrics, ROW_TIME, (const char *const[]){"hve"});
    struct metric *open = metrics_get(metrics, ROW_OPEN, NULL);
    for (int i = 0; i < ROUNDS; i++) {
        metric_add(open, 1);
        metric_observe(time, 0.5);
        if (i % 1000 == 0) {
            char value[20];
            (void)snprintf(value, sizeof(value), "%d", i);
            (void)metrics_get(metrics, ROW_TIME, (const char *const[]){value});
        }
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct metrics *metrics = make();
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, count, metrics), 0);
    }
    struct buf out;
    buf_init(&out, 1000000);
    for (int i = 0; i < 20; i++) {
        buf_reset(&out);
        assert_int_equal(metrics_expose(metrics, &out), ERR_OK);
    }
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    assert_true(metric_value(metrics_get(metrics, ROW_OPEN, NULL)) == 4 * ROUNDS);
    struct metric *time = metrics_get(metrics, ROW_TIME, (const char *const[]){"hve"});
    assert_true(metric_value(time) == 4 * ROUNDS);
    buf_reset(&out);
    assert_int_equal(metrics_expose(metrics, &out), ERR_OK);
    assert_non_null(strstr(buf_text(&out), "heave_time_seconds_sum{backend=\"hve\"} 40000\n"));
    buf_release(&out);
    metrics_free(&metrics);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exposition),
        cmocka_unit_test(test_same_series),
        cmocka_unit_test(test_hostile_labels),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
