/* The queue when things go wrong around it: leases that end behind their holder's back, bodies that
 * must not be mixed up, expiry through closed gates, scripts that Redis has forgotten. */
#include "tests/unit/queue_harness.h"

static struct rig *rig_of(void **state)
{
    return *state;
}

/* Gives all back, the last one first, and waits until Redis has heard of it. */
static void release_all_backwards(struct handle *handle, struct claimed *claimed)
{
    static struct shown shown;
    char id[MESSAGE_ID_MAX + 1];
    (void)snprintf(id, sizeof id, "%.*s", SPAN_FMT(claimed->leases[0]->message.id));
    while (claimed->count > 0) {
        claimed->count--;
        queue_release(handle->queue, claimed->leases[claimed->count]);
        queue_lease_free(&claimed->leases[claimed->count]);
    }
    assert_int_equal(show_wait(handle, id, &shown), 0);
}

/* A small message stands between two batches of a large one in the answer of one claim: everybody
 * gets their own body. */
static void test_bodies_are_not_mixed_up(void **state)
{
    struct handle handle;
    static struct draft large;
    static struct draft small;
    static struct claimed claimed;
    static char bytes[200 * 1024];
    memset(bytes, 'x', sizeof bytes);
    memcpy(bytes, "Subject: large\r\n\r\n", 18);
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&large, handle.queue, "erp", "normal", 2, 1);
    large.message.body = span_make(bytes, sizeof bytes);
    large.batches[1].backend = SPAN_LIT("acs");
    assert_int_equal(enqueue_wait(&handle, &large.message, 0, NULL, NULL), 0);
    draft_fill(&small, handle.queue, "erp", "normal", 1, 1);
    small.message.body = SPAN_LIT("Subject: small\r\n\r\nSecret.\r\n");
    assert_int_equal(enqueue_wait(&handle, &small.message, 0, NULL, NULL), 0);

    const struct queue_want wants[] = {
        {.lane = "normal", .backend = "hve", .max_batches = 10},
        {.lane = "normal", .backend = "acs", .max_batches = 10},
    };
    claimed = (struct claimed){.rig = handle.rig};
    assert_int_equal(queue_claim(handle.queue, wants, 2, on_claimed, &claimed), 0);
    RIG_WAIT(handle.rig, claimed.done);
    assert_int_equal(claimed.count, 3);
    for (size_t i = 0; i < claimed.count; i++) {
        const struct queue_lease *lease = claimed.leases[i];
        bool is_large = span_eq(lease->message.id, span_of(large.id));
        assert_true(
            span_eq(lease->message.body, is_large ? large.message.body : small.message.body));
    }
    release_all_backwards(&handle, &claimed);
    handle_close(&handle);
}

/* Given back, the last one first: they come again in their order. */
static void test_releases_keep_the_order(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 5, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    for (int round = 0; round < 2; round++) {
        claim_wait(&handle, "normal", "hve", 4, &claimed);
        assert_int_equal(claimed.count, 4);
        for (size_t i = 0; i < claimed.count; i++) {
            assert_int_equal(claimed.leases[i]->batch.number, i);
        }
        release_all_backwards(&handle, &claimed);
    }
    claim_wait(&handle, "normal", "hve", 4, &claimed);
    /* The handle does it itself when it is closed. */
    handle_close(&handle);
    for (size_t i = 0; i < claimed.count; i++) {
        queue_lease_free(&claimed.leases[i]);
    }
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    claim_wait(&handle, "normal", "hve", 5, &claimed);
    assert_int_equal(claimed.count, 5);
    for (size_t i = 0; i < claimed.count; i++) {
        assert_int_equal(claimed.leases[i]->batch.number, i);
    }
    release_all_backwards(&handle, &claimed);
    handle_close(&handle);
}

static void enqueue_expired(struct handle *handle, struct draft *draft)
{
    draft_fill(draft, handle->queue, "erp", "normal", 1, 1);
    draft->message.expires_ms = clock_wall_ms() - 5000;
    int64_t before = handle->swept_expired;
    assert_int_equal(enqueue_wait(handle, &draft->message, 0, NULL, NULL), 0);
    RIG_WAIT(handle->rig, handle->swept_expired > before);
}

/* An expired batch that is given back, or whose holder goes away, is still handed out through a
 * closed gate; nothing else is. */
static void test_expired_ones_stay_claimable(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft expired;
    static struct draft fresh;
    static struct claimed claimed;
    conf.lease_ms = 900;
    handle_open(rig_of(state), &handle, &conf);
    queue_gate_close(handle.queue, "hve", clock_wall_ms() + 600000, "throttled");
    enqueue_expired(&handle, &expired);
    draft_fill(&fresh, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &fresh.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 1);
    release_all_backwards(&handle, &claimed);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_true(span_eq(claimed.leases[0]->message.id, span_of(expired.id)));
    /* Forgotten: no heartbeat, the lease ends. */
    int64_t ended = handle.swept_ended;
    queue_lease_free(&claimed.leases[0]);
    RIG_WAIT(handle.rig, handle.swept_ended > ended);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 1);
    lease_finish(claimed.leases[0], RECIPIENT_EXPIRED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    handle_close(&handle);
}

/* `expired_only` leaves what could be sent alone even when the gate is open. */
static void test_expired_only(void **state)
{
    struct handle handle;
    static struct draft expired;
    static struct draft fresh;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    enqueue_expired(&handle, &expired);
    draft_fill(&fresh, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &fresh.message, 0, NULL, NULL), 0);
    struct claimed claimed = {.rig = handle.rig};
    struct queue_want want = {
        .lane = "normal", .backend = "hve", .max_batches = 10, .expired_only = true};
    assert_int_equal(queue_claim(handle.queue, &want, 1, on_claimed, &claimed), 0);
    RIG_WAIT(handle.rig, claimed.done);
    assert_int_equal(claimed.count, 1);
    assert_true(span_eq(claimed.leases[0]->message.id, span_of(expired.id)));
    lease_finish(claimed.leases[0], RECIPIENT_EXPIRED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    want.expired_only = false;
    claimed = (struct claimed){.rig = handle.rig};
    assert_int_equal(queue_claim(handle.queue, &want, 1, on_claimed, &claimed), 0);
    RIG_WAIT(handle.rig, claimed.done);
    assert_int_equal(claimed.count, 1);
    release_all_backwards(&handle, &claimed);
    handle_close(&handle);
}

/* Redis is away for longer than a lease: a batch claimed before must not be started after. */
static void test_no_start_after_the_lease(void **state)
{
    struct rig *rig = rig_of(state);
    struct handle handle;
    struct queue_conf conf = rig->conf;
    static struct draft draft;
    static struct claimed claimed;
    conf.lease_ms = 600;
    handle_open(rig, &handle, &conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    struct queue_lease *lease = claimed.leases[0];
    rig_stop_server(rig);
    RIG_WAIT(rig, !handle.up);
    assert_int_equal(queue_start(handle.queue, lease), ERR_UNAVAILABLE);
    /* The lease has to end while nobody can extend it. */
    while (loop_now_ms(rig->loop) < lease->lease_end_ms) {
        loop_run_once(rig->loop);
        usleep(10000);
    }
    rig_start_server(rig);
    RIG_WAIT(rig, handle.up);
    assert_int_equal(queue_start(handle.queue, lease), ERR_STALE);
    assert_false(lease->started);
    /* The sweeper lets the holder speak first: the heartbeat gets the lease back. */
    static struct shown shown;
    while (lease->lease_end_ms < loop_now_ms(rig->loop)) {
        assert_int_not_equal(lease->lease_end_ms, INT64_MIN);
        assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    }
    assert_int_equal(handle.swept_ended, 0);
    assert_int_equal(queue_start(handle.queue, lease), 0);
    lease_finish(lease, RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    handle_close(&handle);
}

/* A retry with another backend, settled while Redis was away, is found when it is due. */
static void test_retry_elsewhere_after_an_outage(void **state)
{
    struct rig *rig = rig_of(state);
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig, &handle, &rig->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    rig_stop_server(rig);
    RIG_WAIT(rig, !handle.up);
    struct outcome outcome = {.rig = rig};
    struct queue_settlement later = {.next = QUEUE_NEXT_DELAY,
                                     .backend = SPAN_LIT("graph"),
                                     .due_ms = queue_wall_ms(handle.queue) + 1};
    assert_int_equal(queue_settle(handle.queue, claimed.leases[0], &later, on_settled, &outcome),
                     0);
    queue_lease_free(&claimed.leases[0]);
    rig_start_server(rig);
    RIG_WAIT(rig, outcome.done == 1);
    assert_int_equal(outcome.status, 0);
    /* The hint may come before the listening connection is back. */
    int64_t end_ms = clock_mono_ms() + 20000;
    do {
        claim_wait(&handle, "normal", "graph", 1, &claimed);
    } while (claimed.count == 0 && clock_mono_ms() < end_ms);
    assert_int_equal(claimed.count, 1);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    handle_close(&handle);
}

/* Somebody else has the batch: the heartbeat finds out, and the start is refused. */
static void test_no_start_of_a_lost_lease(void **state)
{
    struct rig *rig = rig_of(state);
    struct handle handle;
    struct queue_conf conf = rig->conf;
    static struct draft draft;
    static struct claimed claimed;
    conf.lease_ms = 900;
    handle_open(rig, &handle, &conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    struct queue_lease *lease = claimed.leases[0];
    lease->token[0] = lease->token[0] == 'x' ? 'y' : 'x'; /* as if it had been claimed again */
    int64_t ended = handle.swept_ended;
    RIG_WAIT(rig, handle.swept_ended > ended);
    assert_int_equal(queue_start(handle.queue, lease), ERR_STALE);
    queue_release(handle.queue, lease);
    queue_lease_free(&claimed.leases[0]);
    handle_close(&handle);
}

/* Without the replicas that were asked for, nothing is taken, and nobody waits to hear that; what
 * was taken before goes its way. */
static void test_no_replica(void **state)
{
    struct rig *rig = rig_of(state);
    struct handle handle;
    struct queue_conf conf = rig->conf;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig, &handle, &conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    handle_close(&handle);
    conf.durability = QUEUE_REPLICATED;
    conf.replicas = 2;
    conf.managed = false;
    handle_open(rig, &handle, &conf);
    assert_false(queue_is_up(handle.queue));
    assert_non_null(strstr(handle.warning, "Redis has 0 of the 2 replicas"));
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), ERR_UNAVAILABLE);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(queue_start(handle.queue, claimed.leases[0]), 0);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    handle_close(&handle);
}

/* Waits, in real time, until the handle says so. */
static void wait_accepting(struct rig *rig, struct handle *handle, bool wanted)
{
    loop_timer_start(rig->loop, &rig->guard, 30000, rig_overdue, (void *)"accepting");
    while (queue_is_up(handle->queue) != wanted) {
        loop_run_once(rig->loop);
        (void)usleep(1000);
    }
    loop_timer_stop(&rig->guard);
}

/* A server that is there and does not answer: new messages are put off about a second later, though
 * nothing was being done; what was on its way gets its answer when the server goes on, and then new
 * ones are taken again. The connection stays. */
static void test_stalled_server(void **state)
{
    struct rig *rig = rig_of(state);
    struct handle handle;
    static struct draft draft;
    handle_open(rig, &handle, &rig->conf);
    assert_int_equal(kill(embedded_pid(rig->embedded), SIGSTOP), 0);
    struct outcome outcome = {.rig = rig};
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcome),
                     0);
    wait_accepting(rig, &handle, false);
    assert_true(handle.up);
    assert_int_equal(outcome.done, 0);
    static struct draft second;
    draft_fill(&second, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(queue_enqueue(handle.queue, &second.message, 0, NULL, on_enqueued, &outcome),
                     ERR_UNAVAILABLE);
    RIG_WAIT(rig, handle.warnings == 1);
    assert_non_null(strstr(handle.warning, "not answered"));
    assert_int_equal(kill(embedded_pid(rig->embedded), SIGCONT), 0);
    RIG_WAIT(rig, outcome.done == 1);
    assert_int_equal(outcome.status, 0);
    wait_accepting(rig, &handle, true);
    assert_int_equal(handle.state_changes, 1);
    assert_int_equal(enqueue_wait(&handle, &second.message, 0, NULL, NULL), 0);
    handle_close(&handle);
}

/* It was us who stood still: the answer is there, and Redis is not blamed. */
static void test_our_own_pause(void **state)
{
    struct rig *rig = rig_of(state);
    struct handle handle;
    static struct draft draft;
    handle_open(rig, &handle, &rig->conf);
    struct outcome outcome = {.rig = rig};
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcome),
                     0);
    loop_run_once(rig->loop);
    (void)usleep(1800 * 1000);
    RIG_WAIT(rig, outcome.done == 1);
    assert_int_equal(outcome.status, 0);
    assert_true(queue_is_up(handle.queue));
    assert_int_equal(handle.warnings, 0);
    handle_close(&handle);
}

static int setup(void **state)
{
    static struct rig rig;
    rig_init(&rig);
    rig_start_server(&rig);
    *state = &rig;
    return 0;
}

static int teardown(void **state)
{
    rig_release(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_bodies_are_not_mixed_up, setup, teardown),
        cmocka_unit_test_setup_teardown(test_releases_keep_the_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expired_ones_stay_claimable, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expired_only, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_start_after_the_lease, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_start_of_a_lost_lease, setup, teardown),
        cmocka_unit_test_setup_teardown(test_retry_elsewhere_after_an_outage, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_replica, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stalled_server, setup, teardown),
        cmocka_unit_test_setup_teardown(test_our_own_pause, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
