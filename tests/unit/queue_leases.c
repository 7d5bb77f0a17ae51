/* Leases that end badly, order in the lists, dead letters, orphans, against a real redis-server.
 * Every test ends with a recount of everything (tests/lib/recount.lua). */
#include "tests/unit/queue_harness.h"

static struct rig *rig_of(void **state)
{
    return *state;
}

/* Takes a claim out of the heartbeat's ring, as if its process had been stopped, and waits until
 * the sweeper has given the batch back. */
static void let_lease_end(struct handle *handle, struct queue_lease **lease)
{
    int64_t ended = handle->swept_ended;
    (*lease)->next->prev = (*lease)->prev;
    (*lease)->prev->next = (*lease)->next;
    (*lease)->next = NULL;
    RIG_WAIT(handle->rig, handle->swept_ended == ended + 1);
    queue_lease_free(lease);
}

/* One claim of the only waiting batch that ends in STARTED or CLAIMED. */
static void crash(struct handle *handle, bool started)
{
    static struct claimed claimed;
    claim_wait(handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    if (started) {
        assert_int_equal(queue_start(handle->queue, claimed.leases[0]), 0);
    }
    let_lease_end(handle, &claimed.leases[0]);
}

/* Three leases in a row that end in STARTED set the batch aside; one that ends in CLAIMED neither
 * counts nor breaks the row. */
static void test_poison(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    static struct shown shown;
    conf.lease_ms = 100;
    handle_open(rig_of(state), &handle, &conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 2);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    crash(&handle, true);
    crash(&handle, false);
    crash(&handle, true);
    assert_int_equal(handle.swept_poison, 0);
    crash(&handle, true);
    assert_int_equal(handle.swept_poison, 1);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_HELD);
    assert_int_equal(shown.states[0][0], RECIPIENT_QUEUED);
    assert_string_equal(shown.reason,
                        "Three gateways in a row ended while they were sending this batch.");
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 0);
    handle_close(&handle);
}

/* A settlement between crashes ends the row. */
static void test_settle_ends_the_row(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    conf.lease_ms = 100;
    handle_open(rig_of(state), &handle, &conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    crash(&handle, true);
    crash(&handle, true);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_true(claimed.leases[0]->was_started);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_READY, 0), 0);
    crash(&handle, true);
    crash(&handle, true);
    assert_int_equal(handle.swept_poison, 0);
    crash(&handle, true);
    assert_int_equal(handle.swept_poison, 1);
    handle_close(&handle);
}

/* A message whose id says when it was accepted: "01M...7-0". */
static void enqueue_numbered(struct handle *handle, size_t number, size_t batches, int64_t due_ms)
{
    static struct draft draft;
    draft_fill(&draft, handle->queue, "erp", "normal", batches, 1);
    (void)snprintf(draft.id, sizeof(draft.id), "01M%023zu-0", number);
    draft.message.id = span_of(draft.id);
    assert_int_equal(enqueue_wait(handle, &draft.message, due_ms, NULL, NULL), 0);
}

static size_t number_of(const struct queue_lease *lease)
{
    return (size_t)strtoul(lease->message.id.data + 3, NULL, 10) * 100 + lease->batch.number;
}

/* Claims all and checks that they come as `expected` says: message * 100 + batch. */
static void expect_order(struct handle *handle, struct claimed *claimed, const size_t *expected,
                         size_t count)
{
    claim_wait(handle, "normal", "hve", CLAIM_MAX, claimed);
    assert_int_equal(claimed->count, count);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(number_of(claimed->leases[i]), expected[i]);
    }
}

/* What comes back stands where its age puts it, not in front of older ones. */
static void test_age_order(void **state)
{
    struct handle handle;
    static struct claimed first;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    int64_t due_ms = clock_wall_ms() + 300;
    enqueue_numbered(&handle, 1, 1, 0);
    enqueue_numbered(&handle, 2, 12, 0);
    enqueue_numbered(&handle, 4, 1, 0);
    enqueue_numbered(&handle, 3, 1, due_ms);
    enqueue_numbered(&handle, 0, 1, due_ms);
    enqueue_numbered(&handle, 5, 1, due_ms);
    size_t hints = handle.hints;
    claim_wait(&handle, "normal", "hve", 13, &first);
    assert_int_equal(first.count, 13);
    for (size_t i = 0; i < 13; i++) { /* the first one given back first */
        queue_release(handle.queue, first.leases[i]);
        queue_lease_free(&first.leases[i]);
    }
    RIG_WAIT(handle.rig, handle.hints > hints && clock_wall_ms() > due_ms);
    static const size_t expected[] = {0,   100, 200, 201, 202, 203, 204, 205, 206,
                                      207, 208, 209, 210, 211, 300, 400, 500};
    size_t count = sizeof(expected) / sizeof(expected[0]);
    struct totals_seen seen = {0};
    do { /* the hint may be that of the release */
        seen = totals_wait(&handle);
    } while (seen.depth.batches[BATCH_DELAYED] > 0);
    expect_order(&handle, &claimed, expected, count);

    /* Settled READY again, in two groups, the younger ones first. */
    struct outcome outcome = {.rig = handle.rig};
    struct queue_settlement again = {.next = QUEUE_NEXT_READY};
    for (size_t i = count; i > 0; i--) {
        assert_int_equal(
            queue_settle(handle.queue, claimed.leases[i - 1], &again, on_settled, &outcome), 0);
        queue_lease_free(&claimed.leases[i - 1]);
        if (i == 8) {
            RIG_WAIT(handle.rig, outcome.done == count - 7);
        }
    }
    RIG_WAIT(handle.rig, outcome.ok == count);
    recount(handle.rig);
    expect_order(&handle, &claimed, expected, count);
    for (size_t i = 0; i < count; i++) {
        queue_lease_free(&claimed.leases[i]);
    }
    handle_close(&handle);
}

/* A batch that expired while READY stands in two lists; it counts once, and the second entry goes
 * when it is met. */
static void test_expired_counts_once(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 2, 1);
    draft.message.expires_ms = clock_wall_ms() + 100;
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    RIG_WAIT(handle.rig, handle.swept_expired == 1);
    assert_int_equal(totals_wait(&handle).depth.batches[BATCH_READY], 2);
    recount(handle.rig);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_int_equal(totals_wait(&handle).depth.batches[BATCH_READY], 1);
    recount(handle.rig);
    lease_finish(claimed.leases[0], RECIPIENT_EXPIRED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_int_equal(totals_wait(&handle).depth.batches[BATCH_READY], 0);
    recount(handle.rig);
    lease_finish(claimed.leases[0], RECIPIENT_EXPIRED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    handle_close(&handle);
}

/* Dead letters keep their body for their time, and go from the oldest when they are too many. */
static void finish_one(struct handle *handle, enum recipient_state end)
{
    static struct draft draft;
    static struct claimed claimed;
    draft_fill(&draft, handle->queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    lease_finish(claimed.leases[0], end);
    assert_int_equal(settle_wait(handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
}

static void test_dead_letters(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &conf);
    finish_one(&handle, RECIPIENT_DELIVERED);
    finish_one(&handle, RECIPIENT_FAILED);
    finish_one(&handle, RECIPIENT_UNKNOWN);
    struct totals_seen seen = totals_wait(&handle);
    assert_int_equal(seen.totals.dead_messages, 2);
    assert_true(seen.totals.dead_bytes > 3000 && seen.totals.history_bytes > 3 * 800);
    /* One dead batch of two: the body stays when the other one is delivered. */
    draft_fill(&draft, handle.queue, "erp", "normal", 2, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 2, &claimed);
    lease_finish(claimed.leases[0], RECIPIENT_FAILED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    recount(handle.rig);
    lease_finish(claimed.leases[1], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[1], QUEUE_NEXT_DONE, 0), 0);
    assert_int_equal(totals_wait(&handle).totals.dead_messages, 3);
    recount(handle.rig);
    handle_close(&handle);

    conf.dead_letter_bytes = 4000; /* room for two of three */
    handle_open(rig_of(state), &handle, &conf);
    RIG_WAIT(handle.rig, handle.swept_dead == 1);
    assert_int_equal(totals_wait(&handle).totals.dead_messages, 2);
    recount(handle.rig);
    handle_close(&handle);
    conf.dead_letters_ms = 1;
    handle_open(rig_of(state), &handle, &conf);
    RIG_WAIT(handle.rig, handle.swept_dead == 2);
    seen = totals_wait(&handle);
    assert_int_equal(seen.totals.dead_messages, 0);
    assert_int_equal(seen.totals.dead_bytes, 0);
    handle_close(&handle);
}

/* The history's budget lets the oldest go before its time, a dead letter with it. */
static void test_history_budget(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    handle_open(rig_of(state), &handle, &conf);
    finish_one(&handle, RECIPIENT_FAILED);
    finish_one(&handle, RECIPIENT_DELIVERED);
    finish_one(&handle, RECIPIENT_FAILED);
    int64_t before = totals_wait(&handle).totals.history_bytes;
    handle_close(&handle);
    conf.history_bytes = (uint64_t)before - 1;
    handle_open(rig_of(state), &handle, &conf);
    RIG_WAIT(handle.rig, handle.swept_removed == 1);
    struct totals_seen seen = totals_wait(&handle);
    assert_int_equal(seen.totals.dead_messages, 1);
    assert_int_equal(seen.totals.history_bytes, before * 2 / 3);
    handle_close(&handle);
    handle.rig->history_removed = true;
}

/* Deletes what `arguments` say behind the queue's back and waits until the walk has mended as many
 * things, and until everything is as it was. */
static void lose(struct handle *handle, const char *arguments, int64_t count)
{
    int64_t before = handle->swept_orphan;
    redis_do(handle->rig, arguments);
    redis_do(handle->rig, "DEL {h0}:walk"); /* begin anew, not after the pause */
    RIG_WAIT(handle->rig, handle->swept_orphan >= before + count);
    assert_int_equal(handle->swept_orphan, before + count);
    recount(handle->rig);
}

static void test_orphans(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    char command[300];
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    enqueue_numbered(&handle, 1, 3, 0);
    enqueue_numbered(&handle, 2, 1, 0);
    enqueue_numbered(&handle, 3, 1, clock_wall_ms() + 600000);
    recount(handle.rig);
    lose(&handle, "DEL '{h0}:r:normal|hve|erp'", 4);
    lose(&handle, "LREM '{h0}:r:normal|hve|erp' 1 01M00000000000000000000002-0/0", 1);
    lose(&handle, "LPOP '{h0}:r:normal|hve|erp'", 1);
    lose(&handle, "DEL '{h0}:c:normal|hve'", 1);
    lose(&handle, "DEL '{h0}:d:normal|hve'", 1);
    lose(&handle, "DEL {h0}:o:01M00000000000000000000001-0", 1);
    static const size_t expected[] = {100, 101, 102, 200};
    expect_order(&handle, &claimed, expected, 4);
    lose(&handle, "ZREM {h0}:l 01M00000000000000000000001-0/0", 1);
    lose(&handle, "HDEL {h0}:t 01M00000000000000000000001-0/1", 2); /* the lease's end, its place */
    struct queue_settlement hold = {.next = QUEUE_NEXT_HOLD, .reason = SPAN_LIT("wait")};
    struct outcome outcome = {.rig = handle.rig};
    assert_int_equal(queue_settle(handle.queue, claimed.leases[3], &hold, on_settled, &outcome), 0);
    RIG_WAIT(handle.rig, outcome.ok == 1);
    lose(&handle, "DEL '{h0}:h:normal|hve'", 1);
    lease_finish(claimed.leases[1], RECIPIENT_DELIVERED); /* whose lease was deleted */
    assert_int_equal(settle_wait(&handle, &claimed.leases[1], QUEUE_NEXT_DONE, 0), ERR_STALE);

    /* A finished message that stands among the open ones. */
    int64_t bytes_before = totals_wait(&handle).totals.bytes;
    draft_fill(&draft, handle.queue, "erp", "alert", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    int64_t charge = totals_wait(&handle).totals.bytes - bytes_before;
    static struct claimed other;
    claim_wait(&handle, "alert", "hve", 1, &other);
    lease_finish(other.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &other.leases[0], QUEUE_NEXT_DONE, 0), 0);
    (void)snprintf(command, sizeof(command), "HINCRBY {h0}:k bytes %lld", (long long)charge);
    redis_do(handle.rig, command);
    redis_do(handle.rig, "HINCRBY {h0}:k history -600");
    (void)snprintf(command, sizeof(command), "ZADD {h0}:x 99999999999999 %s", draft.id);
    lose(&handle, command, 1);
    for (size_t i = 0; i < 4; i++) {
        queue_lease_free(&claimed.leases[i]);
    }
    handle_close(&handle);
}

/* More messages and batches than one step looks at: the walk goes on where it was, also in the
 * middle of a message. */
static void test_orphans_in_steps(void **state)
{
    enum { MESSAGES = 150, BATCHES = 40, ALL = 12 * BATCHES + MESSAGES - 12 };
    struct handle handle;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    for (size_t i = 0; i < MESSAGES; i++) {
        enqueue_numbered(&handle, i, i < 12 ? BATCHES : 1, 0);
    }
    lose(&handle, "DEL '{h0}:r:normal|hve|erp'", ALL);
    assert_int_equal(totals_wait(&handle).depth.batches[BATCH_READY], ALL);
    handle_close(&handle);
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
    recount(rig_of(state));
    rig_release(*state);
    mem_free(*state);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_poison),       TEST(test_settle_ends_the_row),
        TEST(test_age_order),    TEST(test_expired_counts_once),
        TEST(test_dead_letters), TEST(test_history_budget),
        TEST(test_orphans),      TEST(test_orphans_in_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
