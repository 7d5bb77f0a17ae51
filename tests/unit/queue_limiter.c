/* Quotas against a real server: the sum over handles never passes a limit in any window. */
#include "queue/limiter.h"
#include "tests/unit/queue_harness.h"

struct taken {
    struct rig *rig;
    bool done;
    int status;
    uint64_t granted;
    int64_t wait_ms;
    bool share_only;
};

static void on_taken(void *ctx, int status, uint64_t granted, int64_t wait_ms)
{
    struct taken *taken = ctx;
    *taken = (struct taken){
        .rig = taken->rig, .done = true, .status = status, .granted = granted, .wait_ms = wait_ms};
    loop_stop(taken->rig->loop);
}

static uint64_t take(struct handle *handle, const char *scope, const struct limiter_window *windows,
                     size_t count, uint64_t wanted, int64_t *out_wait_ms)
{
    struct taken taken = {.rig = handle->rig};
    assert_int_equal(limiter_take(handle->queue, scope, windows, count, wanted, on_taken, &taken),
                     0);
    RIG_WAIT(handle->rig, taken.done);
    assert_int_equal(taken.status, 0);
    if (out_wait_ms != NULL) {
        *out_wait_ms = taken.wait_ms;
    }
    return taken.granted;
}

static void test_smallest_window_wins(void **state)
{
    struct handle handle;
    int64_t wait_ms = 0;
    const struct limiter_window windows[] = {{.units = 30, .window_ms = 60000},
                                             {.units = 40, .window_ms = 3600000}};
    handle_open(*state, &handle, &((struct rig *)*state)->conf);
    assert_int_equal(take(&handle, "hve/a", windows, 2, 25, NULL), 25);
    assert_int_equal(take(&handle, "hve/a", windows, 2, 25, NULL), 5);
    assert_int_equal(take(&handle, "hve/a", windows, 2, 25, &wait_ms), 0);
    assert_in_range(wait_ms, 50000, 62000);
    assert_int_equal(take(&handle, "hve/b", windows, 2, 25, NULL), 25); /* another scope */
    limiter_return(handle.queue, "hve/a", windows, 2, 10);
    uint64_t again = take(&handle, "hve/a", windows, 2, 25, NULL);
    assert_true(again == 10 ||
                again == 0); /* 0 when the sub-bucket has just changed: units are never invented */
    handle_close(&handle);
}

/* Two handles take as much as they get for two seconds; no window of 400 ms may hold more than 50.
 */
static void test_never_above(void **state)
{
    enum { LIMIT = 50, WINDOW_MS = 400, RUN_MS = 2000, EVENTS_MAX = 100000 };
    struct rig *rig = *state;
    struct handle handles[2];
    const struct limiter_window window = {.units = LIMIT, .window_ms = WINDOW_MS};
    struct {
        int64_t before_ms, after_ms;
        uint64_t units;
    } *events = mem_zero(EVENTS_MAX * sizeof(*events));
    size_t count = 0;
    uint64_t total = 0;
    handle_open(rig, &handles[0], &rig->conf);
    handle_open(rig, &handles[1], &rig->conf);
    int64_t end_ms = clock_mono_ms() + RUN_MS;
    for (size_t i = 0; clock_mono_ms() < end_ms && count < EVENTS_MAX; i++) {
        int64_t before_ms = clock_mono_ms();
        uint64_t units = take(&handles[i % 2], "graph/mailbox", &window, 1, 1 + i % 7, NULL);
        if (units > 0) {
            events[count].before_ms = before_ms;
            events[count].after_ms = clock_mono_ms();
            events[count++].units = units;
            total += units;
        }
    }
    for (size_t first = 0; first < count; first++) {
        uint64_t sum = 0;
        /* A grant surely lies in the window when it was asked for after the first and answered
         * before the end. */
        for (size_t i = first;
             i < count && events[i].after_ms < events[first].before_ms + WINDOW_MS; i++) {
            sum += events[i].units;
        }
        assert_true(sum <= LIMIT);
    }
    /* And it is not far below: sub-buckets cost 1/32 of a window. */
    assert_true(total >= LIMIT * (RUN_MS / WINDOW_MS) * 7 / 10);
    mem_free(events);
    handle_close(&handles[0]);
    handle_close(&handles[1]);
}

static void on_share_taken(void *ctx, int status, uint64_t granted, int64_t wait_ms,
                           bool share_only)
{
    struct taken *taken = ctx;
    on_taken(ctx, status, granted, wait_ms);
    taken->share_only = share_only;
}

static struct taken take_share(struct handle *handle, const struct limiter_window *window,
                               const struct limiter_share *share, uint64_t wanted)
{
    struct taken taken = {.rig = handle->rig};
    assert_int_equal(limiter_take_share(handle->queue, "acs:messages", window, 1, share, wanted,
                                        on_share_taken, &taken),
                     0);
    RIG_WAIT(handle->rig, taken.done);
    assert_int_equal(taken.status, 0);
    return taken;
}

static const struct limiter_share first = {.name = "alert", .percent = 100};
static const struct limiter_share normal = {.name = "normal", .percent = 35};
static const struct limiter_share bulk = {.name = "bulk", .percent = 15};

/* A borrower takes half at once, then at the quota's pace; who is below its part gets what is left,
 * and the first lane everything. */
static void test_borrowing(void **state)
{
    struct handle handle;
    const struct limiter_window window = {.units = 30, .window_ms = 3600000};
    handle_open(*state, &handle, &((struct rig *)*state)->conf);
    for (size_t i = 0; i < 15; i++) {
        assert_int_equal(take_share(&handle, &window, &bulk, 1).granted, 1);
    }
    struct taken taken = take_share(&handle, &window, &bulk, 1);
    assert_int_equal(taken.granted, 0);
    assert_true(taken.share_only);
    assert_in_range(taken.wait_ms, 1, 112500);
    /* Below its part of 10, which no borrower could touch faster than the quota flows. */
    assert_int_equal(take_share(&handle, &window, &normal, 12).granted, 10);
    taken = take_share(&handle, &window, &normal, 1);
    assert_int_equal(taken.granted, 0);
    assert_true(taken.share_only);
    assert_int_equal(take_share(&handle, &window, &first, 9).granted, 5);
    taken = take_share(&handle, &window, &first, 1);
    assert_int_equal(taken.granted, 0);
    assert_false(taken.share_only);
    /* What a share returns is its own again (unless the sub-bucket has just changed). */
    limiter_return_share(handle.queue, "acs:messages", &window, 1, &normal, 3);
    uint64_t again = take_share(&handle, &window, &normal, 9).granted;
    assert_true(again == 3 || again == 0);
    handle_close(&handle);
}

/* However long bulk has taken all it gets: whoever comes below its part finds a tenth at once. */
static void test_reserve(void **state)
{
    enum { WINDOW_MS = 640, ROUNDS = 4 };
    struct handle handle;
    const struct limiter_window window = {.units = 40, .window_ms = WINDOW_MS};
    uint64_t total = 0;
    handle_open(*state, &handle, &((struct rig *)*state)->conf);
    for (size_t round = 1; round <= ROUNDS; round++) {
        int64_t begun_ms = clock_mono_ms();
        while (clock_mono_ms() < begun_ms + 2 * WINDOW_MS + (int64_t)round * 37) {
            total += take_share(&handle, &window, &bulk, 1).granted;
        }
        assert_int_equal(take_share(&handle, &window, &normal, 4).granted, 4);
    }
    /* Lent is nearly all: two windows a round. */
    assert_true(total >= (uint64_t)ROUNDS * 2 * 40 * 6 / 10);
    handle_close(&handle);
}

static void test_arguments(void **state)
{
    struct handle handle;
    struct taken taken = {.rig = *state};
    struct limiter_window window = {.units = 1, .window_ms = 1000};
    handle_open(*state, &handle, &((struct rig *)*state)->conf);
    assert_int_equal(limiter_take(handle.queue, "s", &window, 0, 1, on_taken, &taken), ERR_INVAL);
    assert_int_equal(limiter_take(handle.queue, "s", &window, 1, 0, on_taken, &taken), ERR_INVAL);
    window.window_ms = 0;
    assert_int_equal(limiter_take(handle.queue, "s", &window, 1, 1, on_taken, &taken), ERR_INVAL);
    handle_close(&handle);
    assert_false(taken.done);
}

static int setup(void **state)
{
    struct rig *rig = mem_zero(sizeof(*rig));
    rig_init(rig);
    rig_start_server(rig);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    rig_release(*state);
    mem_free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_smallest_window_wins),
        cmocka_unit_test(test_never_above),
        cmocka_unit_test(test_borrowing),
        cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
