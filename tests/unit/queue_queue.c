/* The queue against a real redis-server. */
#include "tests/unit/queue_harness.h"

#include <time.h>

static struct rig *rig_of(void **state)
{
    return *state;
}

/* One message there and back, looked at on the way. */
static void test_life_of_a_message(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    static struct shown shown;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "zabbix", "alert", 1, 2);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_READY);
    assert_string_equal(shown.subject, "Disk full");

    claim_wait(&handle, "alert", "hve", 10, &claimed);
    assert_int_equal(claimed.status, 0);
    assert_int_equal(claimed.count, 1);
    struct queue_lease *lease = claimed.leases[0];
    assert_true(span_eq(lease->message.id, span_of(draft.id)));
    assert_true(span_eq(lease->message.body, draft.message.body));
    assert_true(span_eq(lease->message.client, SPAN_LIT("zabbix")));
    assert_int_equal(lease->batch.recipient_count, 2);
    assert_int_equal(lease->epoch, 1);
    assert_false(lease->was_started);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_CLAIMED);

    assert_int_equal(queue_start(handle.queue, lease), 0);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_STARTED);

    lease_finish(lease, RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_DONE);
    assert_int_equal(shown.states[0][0], RECIPIENT_DELIVERED);
    assert_int_equal(shown.states[0][1], RECIPIENT_DELIVERED);
    assert_string_equal(shown.last_reply, "250 2.0.0 OK");
    claim_wait(&handle, "alert", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    handle_close(&handle);
}

/* Two recipients done, one left: the rest comes back after the delay, with what is known. */
static void test_partial_settle_and_delay(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    static struct shown shown;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 2, 3);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    struct queue_lease *lease = claimed.leases[0];
    uint32_t number = lease->batch.number;
    lease->batch.recipients[0].state = RECIPIENT_DELIVERED;
    lease->batch.recipients[1].state = RECIPIENT_FAILED;
    lease->batch.recipients[1].last_reply = SPAN_LIT("550 5.1.10 unknown");
    lease->batch.attempts = 1;
    lease->batch.epoch = 1;
    lease->batch.flags = BATCH_MAYBE_SENT;
    lease->batch.account = SPAN_LIT("alerts@contoso.com");
    assert_int_equal(queue_start(handle.queue, lease), 0);
    int64_t due_ms = clock_wall_ms() + 300;
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DELAY, due_ms), 0);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[number].state, BATCH_DELAYED);
    assert_int_equal(shown.batches[number].due_ms, due_ms);
    assert_int_equal(shown.batches[1 - number].state, BATCH_READY);

    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_int_equal(claimed.leases[0]->batch.number, 1 - number);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);

    size_t hints = handle.hints;
    RIG_WAIT(handle.rig, handle.hints > hints); /* the sweeper made it ready */
    assert_true(clock_wall_ms() >= due_ms);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 1);
    lease = claimed.leases[0];
    assert_int_equal(lease->batch.number, number);
    assert_int_equal(lease->batch.recipients[0].state, RECIPIENT_DELIVERED);
    assert_int_equal(lease->batch.recipients[2].state, RECIPIENT_QUEUED);
    assert_int_equal(lease->batch.attempts, 1);
    assert_int_equal(lease->batch.epoch, 1);
    assert_int_equal(lease->batch.flags, BATCH_MAYBE_SENT);
    assert_true(span_eq(lease->batch.account, SPAN_LIT("alerts@contoso.com")));
    assert_int_equal(lease->open_mask, 4);
    assert_int_equal(lease->epoch, 2);
    assert_false(lease->was_started);
    lease_finish(lease, RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    handle_close(&handle);
}

static void test_send_at(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    int64_t due_ms = clock_wall_ms() + 200;
    assert_int_equal(enqueue_wait(&handle, &draft.message, due_ms, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    size_t hints = handle.hints;
    RIG_WAIT(handle.rig, handle.hints > hints);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 1);
    queue_lease_free(&claimed.leases[0]);
    handle_close(&handle);
}

/* A lease that ends gives the batch to the next; the one who slept may not settle any more. */
static void lease_ends(struct rig *rig, bool started)
{
    struct handle handle;
    struct queue_conf conf = rig->conf;
    static struct draft draft;
    static struct claimed first;
    static struct claimed second;
    conf.lease_ms = 100;
    handle_open(rig, &handle, &conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &first);
    assert_int_equal(first.count, 1);
    struct queue_lease *slept = first.leases[0];
    if (started) {
        assert_int_equal(queue_start(handle.queue, slept), 0);
    }
    /* Out of the heartbeat's ring, as if this process had been stopped. */
    slept->next->prev = slept->prev;
    slept->prev->next = slept->next;
    slept->next = NULL;
    RIG_WAIT(rig, handle.swept_ended == 1);
    assert_int_equal(handle.swept_started, started ? 1 : 0);

    claim_wait(&handle, "normal", "hve", 1, &second);
    assert_int_equal(second.count, 1);
    assert_int_equal(second.leases[0]->was_started, started);
    assert_int_equal(second.leases[0]->epoch, 2);
    assert_int_equal(second.leases[0]->batch.attempts, 0);
    lease_finish(slept, RECIPIENT_FAILED);
    assert_int_equal(settle_wait(&handle, &first.leases[0], QUEUE_NEXT_DONE, 0), ERR_STALE);
    lease_finish(second.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &second.leases[0], QUEUE_NEXT_DONE, 0), 0);
    static struct shown shown;
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.states[0][0], RECIPIENT_DELIVERED);
    handle_close(&handle);
}

static void test_lease_ends_claimed(void **state)
{
    lease_ends(rig_of(state), false);
}

static void test_lease_ends_started(void **state)
{
    lease_ends(rig_of(state), true);
}

static void stop_loop(void *ctx)
{
    loop_stop(ctx);
}

static void run_for(struct rig *rig, int64_t ms)
{
    struct loop_timer timer = {0};
    int64_t end_ms = clock_mono_ms() + ms;
    while (clock_mono_ms() < end_ms) {
        loop_timer_start(rig->loop, &timer, end_ms - clock_mono_ms(), stop_loop, rig->loop);
        loop_run(rig->loop);
    }
    loop_timer_stop(&timer);
}

/* The heartbeat keeps a lease for longer than it lasts. Time has to pass here, nothing else
 * happens. */
static void test_heartbeat(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    conf.lease_ms = 600;
    handle_open(rig_of(state), &handle, &conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    int64_t first_end_ms = claimed.leases[0]->lease_end_ms;
    run_for(handle.rig, 2500);
    assert_int_equal(handle.swept_ended, 0);
    assert_true(claimed.leases[0]->lease_end_ms > first_end_ms + 1000);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    handle_close(&handle);
}

/* When everything stood still for longer than a lease, the holder of one that is over gets to speak
 * before a sweeper ends it. */
static void test_standstill(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    conf.lease_ms = 600;
    handle_open(rig_of(state), &handle, &conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    run_for(handle.rig, 1500); /* beyond the time after the start when leases are spared anyway */
    struct queue_lease *lease = claimed.leases[0];
    lease->next->prev = lease->prev; /* no heartbeat saves it */
    lease->prev->next = lease->next;
    lease->next = NULL;
    struct timespec still = {.tv_sec = 2, .tv_nsec = 0};
    assert_int_equal(nanosleep(&still, NULL), 0);
    run_for(handle.rig, 300);
    assert_int_equal(handle.swept_ended, 0);
    lease_finish(lease, RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    handle_close(&handle);
}

static void test_release_and_close_give_back(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 3, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 3, &claimed);
    assert_int_equal(claimed.count, 3);
    queue_release(handle.queue, claimed.leases[0]);
    queue_lease_free(&claimed.leases[0]);
    assert_int_equal(queue_start(handle.queue, claimed.leases[1]), 0);
    handle_close(&handle);
    queue_lease_free(&claimed.leases[1]);
    queue_lease_free(&claimed.leases[2]);

    /* The released one and the one not started are there again; the started one is not. */
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 2);
    for (size_t i = 0; i < claimed.count; i++) {
        assert_int_equal(claimed.leases[i]->batch.attempts, 0);
        assert_false(claimed.leases[i]->was_started);
        queue_lease_free(&claimed.leases[i]);
    }
    handle_close(&handle);
}

static void test_hold_and_other_backend(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    static struct shown shown;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 2, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 2);
    struct outcome outcome = {.rig = handle.rig};
    struct queue_settlement hold = {.next = QUEUE_NEXT_HOLD,
                                    .reason = SPAN_LIT("answer lost\nlane holds")};
    struct queue_settlement move = {.next = QUEUE_NEXT_READY, .backend = SPAN_LIT("graph")};
    uint32_t held = claimed.leases[0]->batch.number;
    assert_int_equal(queue_settle(handle.queue, claimed.leases[0], &hold, on_settled, &outcome), 0);
    assert_int_equal(queue_settle(handle.queue, claimed.leases[1], &move, on_settled, &outcome), 0);
    queue_lease_free(&claimed.leases[0]);
    queue_lease_free(&claimed.leases[1]);
    RIG_WAIT(handle.rig, outcome.done == 2);
    assert_int_equal(outcome.ok, 2);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[held].state, BATCH_HELD);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    claim_wait(&handle, "normal", "graph", 10, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_true(span_eq(claimed.leases[0]->batch.backend, SPAN_LIT("graph")));
    queue_lease_free(&claimed.leases[0]);
    handle_close(&handle);
}

/* What is past its expiry is handed out, even through a closed gate, whether it was ready or
 * delayed. */
static void test_expiry(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    queue_gate_close(handle.queue, "hve", clock_wall_ms() + 60000, "432 slow down");
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    draft.message.expires_ms = clock_wall_ms() + 100;
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    static struct draft late;
    draft_fill(&late, handle.queue, "erp", "normal", 1, 1);
    late.message.expires_ms = clock_wall_ms() + 100;
    assert_int_equal(enqueue_wait(&handle, &late.message, clock_wall_ms() + 60000, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    assert_true(claimed.closed_until_ms > clock_wall_ms());
    RIG_WAIT(handle.rig, handle.swept_expired >= 2);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_true(claimed.leases[i]->message.expires_ms < clock_wall_ms());
        lease_finish(claimed.leases[i], RECIPIENT_EXPIRED);
        assert_int_equal(settle_wait(&handle, &claimed.leases[i], QUEUE_NEXT_DONE, 0), 0);
    }
    /* Its entry in the ordinary list is stale now and must not come out once more. */
    queue_gate_close(handle.queue, "hve", 0, NULL);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    assert_int_equal(claimed.closed_until_ms, 0);
    handle_close(&handle);
}

static void test_retention(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    static struct shown shown;
    conf.retention_ms = 100;
    handle_open(rig_of(state), &handle, &conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    RIG_WAIT(handle.rig, handle.swept_removed == 1);
    handle.rig->history_removed = true;
    assert_int_equal(show_wait(&handle, draft.id, &shown), ERR_NOTFOUND);
    handle_close(&handle);
}

/* A client with 300 messages does not make one with 10 wait. */
static void test_fair_between_clients(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    struct outcome outcome = {.rig = handle.rig};
    for (size_t i = 0; i < 310; i++) {
        draft_fill(&draft, handle.queue, i < 300 ? "erp" : "zabbix", "normal", 1, 1);
        assert_int_equal(
            queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcome), 0);
    }
    RIG_WAIT(handle.rig, outcome.done == 310);
    assert_int_equal(outcome.ok, 310);
    claim_wait(&handle, "normal", "hve", 20, &claimed);
    assert_int_equal(claimed.count, 20);
    size_t small = 0;
    for (size_t i = 0; i < claimed.count; i++) {
        small += span_eq(claimed.leases[i]->message.client, SPAN_LIT("zabbix")) ? 1 : 0;
        queue_lease_free(&claimed.leases[i]);
    }
    assert_int_equal(small, 10);
    handle_close(&handle);
}

static void test_oldest_first_and_two_handles(void **state)
{
    enum { MESSAGES = 500, BATCHES = 40 };
    struct rig *rig = rig_of(state);
    struct handle handles[2];
    static struct draft draft;
    static struct claimed claimed[2];
    handle_open(rig, &handles[0], &rig->conf);
    handle_open(rig, &handles[1], &rig->conf);
    struct outcome outcome = {.rig = rig};
    for (size_t i = 0; i < MESSAGES; i++) {
        draft_fill(&draft, handles[0].queue, "erp", "bulk", BATCHES, 1);
        (void)snprintf(draft.id, sizeof(draft.id), "M%05zu-0", i);
        draft.message.id = span_of(draft.id);
        assert_int_equal(
            queue_enqueue(handles[0].queue, &draft.message, 0, NULL, on_enqueued, &outcome), 0);
    }
    RIG_WAIT(rig, outcome.done == MESSAGES);
    assert_int_equal(outcome.ok, MESSAGES);
    unsigned char *seen = mem_zero((size_t)MESSAGES * BATCHES);
    size_t total = 0;
    size_t last[2] = {0};
    while (total < (size_t)MESSAGES * BATCHES) {
        struct queue_want want = {.lane = "bulk", .backend = "hve", .max_batches = 97};
        for (size_t h = 0; h < 2; h++) {
            claimed[h] = (struct claimed){.rig = rig};
            assert_int_equal(queue_claim(handles[h].queue, &want, 1, on_claimed, &claimed[h]), 0);
        }
        RIG_WAIT(rig, claimed[0].done && claimed[1].done);
        assert_true(claimed[0].count + claimed[1].count > 0);
        for (size_t h = 0; h < 2; h++) {
            for (size_t i = 0; i < claimed[h].count; i++) {
                struct queue_lease *lease = claimed[h].leases[i];
                size_t message = (size_t)strtoul(lease->message.id.data + 1, NULL, 10);
                size_t at = message * BATCHES + lease->batch.number;
                assert_int_equal(seen[at], 0);
                seen[at] = 1;
                assert_true(at >= last[h]);
                last[h] = at;
                total++;
                struct queue_settlement settlement = {.next = QUEUE_NEXT_DONE};
                lease_finish(lease, RECIPIENT_DELIVERED);
                outcome.done--;
                outcome.ok--;
                assert_int_equal(
                    queue_settle(handles[h].queue, lease, &settlement, on_settled, &outcome), 0);
                queue_lease_free(&claimed[h].leases[i]);
            }
        }
        RIG_WAIT(rig, outcome.done == MESSAGES);
        assert_int_equal(outcome.ok, MESSAGES);
    }
    mem_free(seen);
    handle_close(&handles[0]);
    handle_close(&handles[1]);
}

static void test_idempotency(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    struct outcome first;
    struct outcome second;
    conf.shards = 8; /* the key is found, though another message would go to another shard */
    handle_open(rig_of(state), &handle, &conf);
    struct queue_idempotency key = {
        .scope = SPAN_LIT("erp"),
        .key = SPAN_LIT("invoice-17"),
        .fingerprint = SPAN_LIT("abc"),
        .answer = SPAN_LIT("{\"accepted\":1}"),
    };
    draft_fill_keyed(&draft, handle.queue, &key);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, &key, &first), 0);
    assert_false(first.replayed);
    char first_id[MESSAGE_ID_MAX + 1];
    memcpy(first_id, draft.id, sizeof(first_id));
    draft_fill_keyed(&draft, handle.queue, &key);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, &key, &second), 0);
    assert_true(second.replayed);
    assert_string_equal(second.id, first_id);
    assert_string_equal(second.answer, "{\"accepted\":1}");
    static struct shown shown;
    assert_int_equal(show_wait(&handle, draft.id, &shown), ERR_NOTFOUND);
    /* One that is sent again under its own id (its first answer was lost) takes nothing away. */
    memcpy(draft.id, first_id, sizeof(first_id));
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, &key, &second), 0);
    assert_true(second.replayed);
    assert_int_equal(show_wait(&handle, first_id, &shown), 0);
    static struct claimed claimed;
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_true(claimed.leases[0]->message.body.len > 0);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    queue_message_id(handle.queue, &key, draft.id);
    key.fingerprint = SPAN_LIT("abd");
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, &key, NULL), ERR_CONFLICT);
    key.scope = SPAN_LIT("zabbix");
    draft_fill_keyed(&draft, handle.queue, &key);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, &key, &second), 0);
    assert_false(second.replayed);
    /* An id made for another key is refused: the script could not reach both shards. */
    size_t refused = 0;
    for (char at = '0'; at <= '9'; at++) {
        key.key = span_make(&at, 1);
        int status = enqueue_wait(&handle, &draft.message, 0, &key, NULL);
        assert_true(status == ERR_INVAL || status == 0);
        refused += status == ERR_INVAL ? 1 : 0;
    }
    assert_true(refused > 0);
    handle.rig->doubled = true;
    handle_close(&handle);
}

static void test_full_and_totals(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    conf.max_bytes = 4000;
    handle_open(rig_of(state), &handle, &conf);
    int64_t before_ms = clock_wall_ms();
    size_t accepted = 0;
    for (size_t i = 0; i < 10; i++) {
        draft_fill(&draft, handle.queue, "erp", "normal", 1, 2);
        int status = enqueue_wait(&handle, &draft.message, 0, NULL, NULL);
        assert_true(status == 0 || status == ERR_FULL);
        accepted += status == 0 ? 1 : 0;
    }
    assert_int_equal(accepted, 2);
    /* What was refused, the last one among it, was stored before the script said no. */
    char command[300];
    (void)snprintf(command, sizeof(command),
                   "EXISTS '{h0}:m:%s' '{h0}:b:%s' '{h0}:q:%s/0' | grep -qx 0", draft.id, draft.id,
                   draft.id);
    redis_do(handle.rig, command);
    struct totals_seen seen = totals_wait(&handle);
    assert_int_equal(seen.totals.messages_open, 2);
    assert_int_equal(seen.totals.recipients[RECIPIENT_QUEUED], 4);
    assert_true(seen.totals.bytes > 0 && seen.totals.bytes <= 4000);
    assert_int_equal(seen.totals.depth_count, 1);
    assert_int_equal(seen.depth.batches[BATCH_READY], 2);
    /* Ids carry the server's time, as well as it could be measured. */
    assert_true(seen.depth.since_ms[BATCH_READY] >= before_ms - 500 &&
                seen.depth.since_ms[BATCH_READY] <= clock_wall_ms() + 500);

    claim_wait(&handle, "normal", "hve", 2, &claimed);
    assert_int_equal(claimed.count, 2);
    assert_int_equal(queue_start(handle.queue, claimed.leases[1]), 0);
    seen = totals_wait(&handle);
    assert_int_equal(seen.depth.batches[BATCH_READY], 0);
    assert_int_equal(seen.depth.batches[BATCH_CLAIMED], 1);
    assert_int_equal(seen.depth.batches[BATCH_STARTED], 1);
    assert_int_equal(seen.depth.since_ms[BATCH_READY], 0);
    assert_in_range(seen.depth.since_ms[BATCH_CLAIMED], before_ms - 500, clock_wall_ms() + 500);
    assert_in_range(seen.depth.since_ms[BATCH_STARTED], before_ms - 500, clock_wall_ms() + 500);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    int64_t due_ms = clock_wall_ms() + 60000;
    assert_int_equal(settle_wait(&handle, &claimed.leases[1], QUEUE_NEXT_DELAY, due_ms), 0);
    seen = totals_wait(&handle);
    assert_int_equal(seen.depth.batches[BATCH_DELAYED], 1);
    assert_int_equal(seen.depth.since_ms[BATCH_DELAYED], due_ms);
    assert_int_equal(seen.depth.since_ms[BATCH_STARTED], 0);
    assert_int_equal(seen.depth.batches[BATCH_CLAIMED], 0);
    assert_int_equal(seen.totals.messages_open, 1);
    assert_int_equal(seen.totals.recipients[RECIPIENT_DELIVERED], 2);
    assert_int_equal(seen.totals.recipients[RECIPIENT_QUEUED], 2);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 2);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0); /* room again */
    handle_close(&handle);
}

static void test_gate(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    conf.shards = 3;
    handle_open(rig_of(state), &handle, &conf);
    for (size_t i = 0; i < 3; i++) {
        draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
        assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    }
    int64_t until_ms = clock_wall_ms() + 60000;
    queue_gate_close(handle.queue, "hve", until_ms, "432");
    queue_gate_close(handle.queue, "hve", until_ms - 30000, "earlier, ignored");
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    assert_int_equal(claimed.closed_until_ms, until_ms);
    queue_gate_close(handle.queue, "hve", 0, NULL);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 3); /* from all three shards */
    assert_int_equal(claimed.closed_until_ms, 0);
    for (size_t i = 0; i < claimed.count; i++) {
        queue_lease_free(&claimed.leases[i]);
    }
    handle_close(&handle);
}

struct listed {
    struct rig *rig;
    bool done;
    char ids[64][MESSAGE_ID_MAX + 1];
    size_t count;
    char cursor[256];
};

static void on_list(void *ctx, int status, const struct message *messages, size_t count,
                    struct span next)
{
    struct listed *listed = ctx;
    assert_int_equal(status, 0);
    for (size_t i = 0; i < count; i++) {
        (void)snprintf(listed->ids[listed->count++], MESSAGE_ID_MAX + 1, "%.*s",
                       SPAN_FMT(messages[i].id));
    }
    (void)snprintf(listed->cursor, sizeof(listed->cursor), "%.*s", SPAN_FMT(next));
    listed->done = true;
    loop_stop(listed->rig->loop);
}

/* All pages together hold every matching message once, newest first. */
static size_t list_all(struct handle *handle, struct queue_filter filter, struct listed *listed)
{
    *listed = (struct listed){.rig = handle->rig};
    do {
        listed->done = false;
        char cursor[256];
        memcpy(cursor, listed->cursor, sizeof(cursor));
        filter.cursor = span_of(cursor);
        assert_int_equal(queue_list(handle->queue, &filter, on_list, listed), 0);
        RIG_WAIT(handle->rig, listed->done);
    } while (listed->cursor[0] != '\0');
    return listed->count;
}

static void test_list(void **state)
{
    enum { COUNT = 30 };
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    static struct listed listed;
    static char ids[COUNT][MESSAGE_ID_MAX + 1];
    conf.shards = 4;
    handle_open(rig_of(state), &handle, &conf);
    for (size_t i = 0; i < COUNT; i++) {
        draft_fill(&draft, handle.queue, i % 3 == 0 ? "zabbix" : "erp", "normal", 1, 1);
        (void)snprintf(draft.id, sizeof(draft.id), "01M%023zu-%zu", i, i % 4);
        draft.message.id = span_of(draft.id);
        memcpy(ids[i], draft.id, sizeof(ids[i]));
        assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    }
    assert_int_equal(list_all(&handle, (struct queue_filter){.limit = 7}, &listed), COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        assert_string_equal(listed.ids[i], ids[COUNT - 1 - i]);
    }
    assert_int_equal(
        list_all(&handle, (struct queue_filter){.limit = 4, .client = SPAN_LIT("zabbix")}, &listed),
        10);
    assert_int_equal(
        list_all(&handle, (struct queue_filter){.limit = 4, .lane = SPAN_LIT("alert")}, &listed),
        0);
    assert_int_equal(
        list_all(&handle, (struct queue_filter){.limit = 50, .backend = SPAN_LIT("hve")}, &listed),
        COUNT);
    claim_wait(&handle, "normal", "hve", 5, &claimed);
    assert_int_equal(claimed.count, 5);
    for (size_t i = 0; i < 5; i++) {
        lease_finish(claimed.leases[i], RECIPIENT_DELIVERED);
        assert_int_equal(settle_wait(&handle, &claimed.leases[i], QUEUE_NEXT_DONE, 0), 0);
    }
    assert_int_equal(
        list_all(&handle, (struct queue_filter){.limit = 9, .unfinished_only = true}, &listed),
        COUNT - 5);
    struct queue_filter bad = {.limit = 5, .cursor = SPAN_LIT("1.x.2")};
    assert_int_equal(queue_list(handle.queue, &bad, on_list, &listed), ERR_INVAL);
    handle_close(&handle);
}

/* Bodies: a large one whole and unchanged, and no more than the budget at once. */
static void test_large_bodies(void **state)
{
    enum { BODY = 12 << 20, COUNT = 4 };
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    char *body = mem_alloc(BODY);
    for (size_t i = 0; i < BODY; i++) {
        body[i] = (char)(i * 2654435761u >> 13);
    }
    for (size_t i = 0; i < COUNT; i++) {
        draft_fill(&draft, handle.queue, "scanner", "normal", 1, 1);
        draft.message.body = span_make(body, BODY);
        assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    }
    size_t total = 0;
    while (total < COUNT) {
        claim_wait(&handle, "normal", "hve", 10, &claimed);
        assert_in_range(claimed.count, 1, 3);
        for (size_t i = 0; i < claimed.count; i++) {
            assert_int_equal(claimed.leases[i]->message.body.len, BODY);
            assert_memory_equal(claimed.leases[i]->message.body.data, body, BODY);
            lease_finish(claimed.leases[i], RECIPIENT_DELIVERED);
            assert_int_equal(settle_wait(&handle, &claimed.leases[i], QUEUE_NEXT_DONE, 0), 0);
            total++;
        }
    }
    mem_free(body);
    assert_int_equal(totals_wait(&handle).totals.bytes, 0);
    handle_close(&handle);
}

static void test_bad_arguments(void **state)
{
    struct handle handle;
    static struct draft draft;
    struct outcome outcome = {.rig = rig_of(state)};
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "erp", "nor|mal", 1, 1);
    assert_int_equal(queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcome),
                     ERR_INVAL);
    draft_fill(&draft, handle.queue, "erp\nx", "normal", 1, 1);
    assert_int_equal(queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcome),
                     ERR_INVAL);
    draft_fill(&draft, handle.queue, "erp", "normal", 0, 1);
    assert_int_equal(queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcome),
                     ERR_INVAL);
    handle_close(&handle);
    assert_int_equal(outcome.done, 0);
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
    if (!rig_of(state)->doubled) {
        recount(rig_of(state));
    }
    rig_release(*state);
    mem_free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_life_of_a_message, setup, teardown),
        cmocka_unit_test_setup_teardown(test_partial_settle_and_delay, setup, teardown),
        cmocka_unit_test_setup_teardown(test_send_at, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lease_ends_claimed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lease_ends_started, setup, teardown),
        cmocka_unit_test_setup_teardown(test_heartbeat, setup, teardown),
        cmocka_unit_test_setup_teardown(test_standstill, setup, teardown),
        cmocka_unit_test_setup_teardown(test_release_and_close_give_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hold_and_other_backend, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expiry, setup, teardown),
        cmocka_unit_test_setup_teardown(test_retention, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fair_between_clients, setup, teardown),
        cmocka_unit_test_setup_teardown(test_oldest_first_and_two_handles, setup, teardown),
        cmocka_unit_test_setup_teardown(test_idempotency, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_and_totals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gate, setup, teardown),
        cmocka_unit_test_setup_teardown(test_list, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_bodies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_arguments, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
