/* Windows in which repeats are not queued again, against a real redis-server. */
#include "queue/dedup.h"

#include "tests/unit/queue_harness.h"

struct found {
    struct rig *rig;
    bool done;
    int status;
    enum dedup_state state;
    uint64_t suppressed;
    char id[MESSAGE_ID_MAX + 1];
};

static void on_found(void *ctx, int status, const struct dedup_found *dedup)
{
    struct found *found = ctx;
    found->done = true;
    found->status = status;
    found->state = dedup->state;
    found->suppressed = dedup->suppressed;
    (void)snprintf(found->id, sizeof(found->id), "%.*s", SPAN_FMT(dedup->id));
    loop_stop(found->rig->loop);
}

static struct handle handle;

static struct found begin(const struct dedup_window *window, int64_t hold_ms)
{
    struct found found = {.rig = handle.rig};
    assert_int_equal(dedup_begin(handle.queue, window, hold_ms, on_found, &found), 0);
    RIG_WAIT(handle.rig, found.done);
    assert_int_equal(found.status, 0);
    return found;
}

static struct dedup_window window_of(const char *key, uint32_t limit, int64_t window_ms,
                                     const char *owner)
{
    return (struct dedup_window){
        .scope = SPAN_LIT("zabbix"),
        .key = span_of(key),
        .limit = limit,
        .window_ms = window_ms,
        .owner = span_of(owner),
    };
}

static int setup(void **state)
{
    struct rig *rig = mem_zero(sizeof(*rig));
    rig_init(rig);
    rig_start_server(rig);
    struct queue_conf conf = rig->conf;
    conf.shards = 4;
    handle_open(rig, &handle, &conf);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    handle_close(&handle);
    rig_release(*state);
    mem_free(*state);
    return 0;
}

/* Begins until the answer is not `state`; the answer. Bounded. */
static struct found begin_while(const struct dedup_window *window, enum dedup_state state)
{
    int64_t end_ms = clock_mono_ms() + 20000;
    struct found found;
    do {
        found = begin(window, 60000);
    } while (found.state == state && clock_mono_ms() < end_ms);
    return found;
}

static void test_simple(void **state)
{
    (void)state;
    struct dedup_window a = window_of("k", 1, 2500, "a");
    struct dedup_window b = window_of("k", 1, 2500, "b");
    assert_int_equal(begin(&a, 60000).state, DEDUP_PASS);
    assert_int_equal(begin(&b, 60000).state, DEDUP_BUSY); /* not known yet whether it is stored */
    assert_int_equal(begin(&a, 60000).state, DEDUP_PASS); /* its answer was lost */
    dedup_commit(handle.queue, &b, SPAN_LIT("wrong"), 0); /* not his to say */
    dedup_give_back(handle.queue, &b);
    assert_int_equal(begin(&b, 60000).state, DEDUP_BUSY);
    dedup_commit(handle.queue, &a, SPAN_LIT("first"), 0);
    struct found found = begin(&b, 60000);
    assert_int_equal(found.state, DEDUP_REPEAT);
    assert_string_equal(found.id, "first");
    struct dedup_window other = window_of("other", 1, 2500, "c");
    assert_int_equal(begin(&other, 60000).state, DEDUP_PASS);
    other = window_of("k", 1, 2500, "c");
    other.scope = SPAN_LIT("nagios");
    assert_int_equal(begin(&other, 60000).state, DEDUP_PASS);
    /* When the window is over, the next one is let through and told how many were not. */
    uint64_t last = found.suppressed;
    int64_t end_ms = clock_mono_ms() + 20000;
    while (found.state == DEDUP_REPEAT && clock_mono_ms() < end_ms) {
        last = found.suppressed;
        found = begin(&b, 60000);
    }
    assert_int_equal(found.state, DEDUP_PASS);
    assert_int_equal(found.suppressed, last);
    dedup_commit(handle.queue, &b, SPAN_LIT("second"), found.suppressed);
    found = begin(&a, 60000);
    assert_int_equal(found.state, DEDUP_REPEAT);
    assert_int_equal(found.suppressed, 1);
    assert_string_equal(found.id, "second");
}

static void test_not_stored(void **state)
{
    (void)state;
    struct dedup_window a = window_of("k", 1, 60000, "a");
    struct dedup_window b = window_of("k", 1, 60000, "b");
    assert_int_equal(begin(&a, 60000).state, DEDUP_PASS);
    dedup_give_back(handle.queue, &a);
    assert_int_equal(begin(&b, 300).state, DEDUP_PASS);
    /* b dies: a waits for a while, and is let through, for nothing was stored. */
    assert_int_equal(begin(&a, 60000).state, DEDUP_BUSY);
    assert_int_equal(begin_while(&a, DEDUP_BUSY).state, DEDUP_PASS);
    dedup_commit(handle.queue, &a, SPAN_LIT("first"), 0);
    assert_int_equal(begin(&b, 60000).state, DEDUP_REPEAT);
}

static void test_throttle(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        char id[2] = {(char)('0' + i), '\0'};
        struct dedup_window w = window_of("k", 3, 60000, id);
        assert_int_equal(begin(&w, 60000).state, DEDUP_PASS);
        dedup_commit(handle.queue, &w, span_of(id), 0);
    }
    struct dedup_window w = window_of("k", 3, 60000, "x");
    for (uint64_t i = 1; i <= 5; i++) {
        struct found found = begin(&w, 60000);
        assert_int_equal(found.state, DEDUP_REPEAT);
        assert_int_equal(found.suppressed, i);
        assert_string_equal(found.id, "2");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_simple, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_stored, setup, teardown),
        cmocka_unit_test_setup_teardown(test_throttle, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
