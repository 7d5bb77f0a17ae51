/* How full the queue is, and the exact limit of bytes of each lane. */
#include "tests/unit/queue_harness.h"

struct seen {
    struct rig *rig;
    bool done;
    int status;
    struct queue_levels levels;
};

static void on_levels(void *ctx, int status, const struct queue_levels *levels)
{
    struct seen *seen = ctx;
    seen->done = true;
    seen->status = status;
    if (levels != NULL) {
        seen->levels = *levels;
    }
    loop_stop(seen->rig->loop);
}

static struct queue_levels levels_of(struct handle *handle)
{
    struct seen seen = {.rig = handle->rig};
    assert_int_equal(queue_levels(handle->queue, on_levels, &seen), 0);
    RIG_WAIT(handle->rig, seen.done);
    assert_int_equal(seen.status, 0);
    return seen.levels;
}

static int setup_with(void **state, uint64_t max_memory_bytes)
{
    struct rig *rig = mem_zero(sizeof(*rig));
    rig_init(rig);
    rig->embedded_conf.max_memory_bytes = max_memory_bytes;
    rig_start_server(rig);
    *state = rig;
    return 0;
}

static int setup(void **state)
{
    return setup_with(state, 0);
}

static int setup_small(void **state)
{
    return setup_with(state, (uint64_t)100 << 20);
}

static int teardown(void **state)
{
    rig_release(*state);
    mem_free(*state);
    return 0;
}

static int put(struct handle *handle, const char *lane)
{
    static struct draft draft;
    draft_fill(&draft, handle->queue, "erp", lane, 1, 1);
    return enqueue_wait(handle, &draft.message, 0, NULL, NULL);
}

/* Each lane is refused at its part of the bytes, exactly; the others go on. */
static void test_lane_limits(void **state)
{
    static const struct queue_lane_limit limits[] = {{.lane = "alert", .percent = 100},
                                                     {.lane = "normal", .percent = 60},
                                                     {.lane = "bulk", .percent = 30}};
    struct rig *rig = *state;
    struct handle handle;
    struct queue_conf conf = rig->conf;
    handle_open(rig, &handle, &conf);
    assert_int_equal(put(&handle, "bulk"), 0);
    uint64_t one = levels_of(&handle).bytes;
    assert_true(one > 0);
    handle_close(&handle);
    conf.max_bytes = 10 * one + 100;
    conf.lane_limits = limits;
    conf.lane_limit_count = 3;
    handle_open(rig, &handle, &conf);
    const struct {
        const char *lane;
        uint64_t fit;
    } rows[] = {{"bulk", 3}, {"normal", 6}, {"alert", 10}, {"another", 10}};
    uint64_t held = 1;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (; held < rows[i].fit; held++) {
            assert_int_equal(put(&handle, rows[i].lane), 0);
        }
        assert_int_equal(put(&handle, rows[i].lane), ERR_FULL);
    }
    struct queue_levels levels = levels_of(&handle);
    assert_int_equal(levels.messages, 10);
    assert_int_equal(levels.bytes, 10 * one);
    handle_close(&handle);
}

/* The fullest shard counts for all of them: it is the one that refuses. */
static void test_shards(void **state)
{
    struct rig *rig = *state;
    struct handle handle;
    static struct draft draft;
    struct queue_conf conf = rig->conf;
    conf.shards = 4;
    handle_open(rig, &handle, &conf);
    struct queue_idempotency key = {.scope = SPAN_LIT("erp"), .key = SPAN_LIT("k")};
    draft_fill_keyed(&draft, handle.queue, &key);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    uint64_t once = levels_of(&handle).bytes;
    draft_fill_keyed(&draft, handle.queue, &key); /* the same shard */
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    struct queue_levels levels = levels_of(&handle);
    assert_int_equal(levels.messages, 2);
    assert_int_equal(levels.bytes, 2 * once);
    assert_int_equal(once % 4, 0);
    handle_close(&handle);
}

static void test_memory(void **state)
{
    struct rig *rig = *state;
    struct handle handle;
    handle_open(rig, &handle, &rig->conf);
    uint32_t permille = levels_of(&handle).memory_permille;
    assert_in_range(permille, 1, 300); /* an empty server of 100 MiB */
    handle_close(&handle);
}

static void test_no_limit_of_memory(void **state)
{
    struct rig *rig = *state;
    struct handle handle;
    handle_open(rig, &handle, &rig->conf);
    assert_int_equal(levels_of(&handle).memory_permille, 0);
    rig_stop_server(rig);
    RIG_WAIT(rig, !handle.up);
    struct seen seen = {.rig = rig};
    assert_int_equal(queue_levels(handle.queue, on_levels, &seen), ERR_UNAVAILABLE);
    rig_start_server(rig);
    RIG_WAIT(rig, handle.up);
    handle_close(&handle);
    assert_false(seen.done);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lane_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shards, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory, setup_small, teardown),
        cmocka_unit_test_setup_teardown(test_no_limit_of_memory, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
