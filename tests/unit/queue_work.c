/* What operators do to messages, against a real redis-server. Every step is followed by a recount
 * of everything (tests/lib/recount.lua). */
#include "tests/unit/queue_harness.h"

#include "queue/work.h"

static struct rig *rig_of(void **state)
{
    return *state;
}

struct worked {
    struct rig *rig;
    bool done;
    int status;
    struct queue_worked sums; /* `skips` points nowhere */
    char cursor[128];
    char reason[100]; /* of the first skip */
};

static void on_worked(void *ctx, int status, const struct queue_worked *sums)
{
    struct worked *worked = ctx;
    worked->done = true;
    worked->status = status;
    if (status == 0) {
        worked->sums = *sums;
        (void)snprintf(worked->cursor, sizeof(worked->cursor), "%.*s", SPAN_FMT(sums->next_cursor));
        if (sums->skip_count > 0) {
            (void)snprintf(worked->reason, sizeof(worked->reason), "%s", sums->skips[0].reason);
        }
    }
    loop_stop(worked->rig->loop);
}

static struct worked order_wait(struct handle *handle, struct queue_order order)
{
    struct worked worked = {.rig = handle->rig};
    order.limit = order.limit > 0 ? order.limit : 1000;
    assert_int_equal(queue_work(handle->queue, &order, on_worked, &worked), 0);
    RIG_WAIT(handle->rig, worked.done);
    assert_int_equal(worked.status, 0);
    recount(handle->rig);
    return worked;
}

/* One message by id; what there is to select is named in the order. */
static void enqueue_one(struct handle *handle, struct draft *draft, const char *client,
                        size_t batches, size_t per_batch)
{
    draft_fill(draft, handle->queue, client, "normal", batches, per_batch);
    assert_int_equal(enqueue_wait(handle, &draft->message, 0, NULL, NULL), 0);
}

static struct worked by_id(struct handle *handle, enum queue_verb verb, const char *id)
{
    struct span ids[] = {span_of(id)};
    return order_wait(handle, (struct queue_order){.verb = verb,
                                                   .ids = ids,
                                                   .id_count = 1,
                                                   .reason = SPAN_LIT("printer on fire"),
                                                   .to = SPAN_LIT("graph")});
}

static enum batch_state state_now(struct handle *handle, const char *id, struct shown *shown)
{
    assert_int_equal(show_wait(handle, id, shown), 0);
    return shown->batches[0].state;
}

static size_t claimable(struct handle *handle, const char *backend)
{
    static struct claimed claimed;
    claim_wait(handle, "normal", backend, 100, &claimed);
    for (size_t i = claimed.count; i > 0; i--) {
        queue_release(handle->queue, claimed.leases[i - 1]);
        queue_lease_free(&claimed.leases[i - 1]);
    }
    (void)totals_wait(handle); /* behind the releases */
    return claimed.count;
}

static void test_hold_and_release(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct shown shown;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    enqueue_one(&handle, &draft, "erp", 2, 3);
    struct worked worked = by_id(&handle, QUEUE_HOLD, draft.id);
    assert_int_equal(worked.sums.found, 1);
    assert_int_equal(worked.sums.messages, 1);
    assert_int_equal(worked.sums.batches, 2);
    assert_int_equal(worked.sums.recipients[RECIPIENT_QUEUED], 6);
    assert_int_equal(worked.sums.changed, 2);
    assert_string_equal(worked.cursor, "");
    assert_int_equal(state_now(&handle, draft.id, &shown), BATCH_HELD);
    assert_string_equal(shown.reason, "printer on fire");
    struct totals_seen seen = totals_wait(&handle);
    assert_int_equal(seen.depth.batches[BATCH_READY], 0);
    assert_int_equal(seen.depth.batches[BATCH_HELD], 2);
    assert_int_equal(claimable(&handle, "hve"), 0); /* drops the stale entries */
    recount(handle.rig);
    worked = by_id(&handle, QUEUE_HOLD, draft.id);
    assert_int_equal(worked.sums.changed, 0);
    assert_string_equal(worked.reason, "It is held: there is nothing to hold.");

    worked = by_id(&handle, QUEUE_RELEASE, draft.id);
    assert_int_equal(worked.sums.changed, 2);
    assert_int_equal(totals_wait(&handle).depth.batches[BATCH_READY], 2);
    /* Held and released with the stale entries still there: each batch comes out once. */
    assert_int_equal(by_id(&handle, QUEUE_HOLD, draft.id).sums.changed, 2);
    assert_int_equal(by_id(&handle, QUEUE_RELEASE, draft.id).sums.changed, 2);
    assert_int_equal(totals_wait(&handle).depth.batches[BATCH_READY], 2);
    assert_int_equal(claimable(&handle, "hve"), 2);
    recount(handle.rig);
    assert_int_equal(state_now(&handle, draft.id, &shown), BATCH_READY);
    assert_string_equal(shown.reason, "");
    handle_close(&handle);
}

static size_t state_count(struct handle *handle, enum batch_state state)
{
    return (size_t)totals_wait(handle).depth.batches[state];
}

/* Held while it waited for its time, released before that: it waits on. Retry does not wait. */
static void test_release_keeps_due(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct draft clock;
    static struct claimed claimed;
    static struct shown shown;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    int64_t due_ms = clock_wall_ms() + 1200000;
    draft_fill(&draft, handle.queue, "erp", "normal", 2, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, due_ms, NULL, NULL), 0);
    for (int round = 0; round < 2; round++) {
        assert_int_equal(by_id(&handle, QUEUE_HOLD, draft.id).sums.changed, 2);
        assert_int_equal(state_count(&handle, BATCH_HELD), 2);
        assert_int_equal(by_id(&handle, QUEUE_RELEASE, draft.id).sums.changed, 2);
        assert_int_equal(state_count(&handle, BATCH_DELAYED), 2);
        assert_int_equal(claimable(&handle, "hve"), 0);
        assert_int_equal(state_now(&handle, draft.id, &shown), BATCH_DELAYED);
        assert_int_equal(shown.batches[0].due_ms, due_ms);
    }
    assert_int_equal(by_id(&handle, QUEUE_HOLD, draft.id).sums.changed, 2);
    assert_int_equal(by_id(&handle, QUEUE_RETRY, draft.id).sums.changed, 2);
    claim_wait(&handle, "normal", "hve", 2, &claimed);
    assert_int_equal(claimed.count, 2);

    /* The same for a retry; one whose time came while it was held goes at once. */
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DELAY, due_ms), 0);
    assert_int_equal(settle_wait(&handle, &claimed.leases[1], QUEUE_NEXT_DELAY, due_ms), 0);
    assert_int_equal(by_id(&handle, QUEUE_HOLD, draft.id).sums.changed, 2);
    assert_int_equal(by_id(&handle, QUEUE_RELEASE, draft.id).sums.changed, 2);
    assert_int_equal(state_count(&handle, BATCH_DELAYED), 2);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    due_ms = clock_wall_ms() + 2000;
    assert_int_equal(enqueue_wait(&handle, &draft.message, due_ms, NULL, NULL), 0);
    assert_int_equal(by_id(&handle, QUEUE_HOLD, draft.id).sums.changed, 1);
    draft_fill(&clock, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &clock.message, due_ms, NULL, NULL), 0);
    while (state_count(&handle, BATCH_READY) == 0) { /* the sweeper moves it when its time comes */
    }
    assert_int_equal(by_id(&handle, QUEUE_RELEASE, draft.id).sums.changed, 1);
    assert_int_equal(state_count(&handle, BATCH_READY), 2);
    assert_int_equal(claimable(&handle, "hve"), 2);
    handle_close(&handle);
}

/* Held because its outcome is unknown: released, its recipients are open again. */
static void test_release_unknown(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    enqueue_one(&handle, &draft, "erp", 1, 2);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    lease_finish(claimed.leases[0], RECIPIENT_UNKNOWN);
    claimed.leases[0]->batch.flags |= BATCH_MAYBE_SENT;
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_HOLD, 0), 0);
    assert_int_equal(totals_wait(&handle).totals.recipients[RECIPIENT_UNKNOWN], 2);
    struct worked worked = by_id(&handle, QUEUE_RELEASE, draft.id);
    assert_int_equal(worked.sums.recipients[RECIPIENT_UNKNOWN], 2);
    assert_int_equal(totals_wait(&handle).totals.recipients[RECIPIENT_UNKNOWN], 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_int_equal(claimed.leases[0]->open_mask, 3);
    assert_int_equal(claimed.leases[0]->batch.flags, BATCH_MAYBE_SENT);
    queue_lease_free(&claimed.leases[0]);
    handle_close(&handle);
}

static void test_retry(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    for (int round = 0; round < 2; round++) {
        enqueue_one(&handle, &draft, "erp", 1, 1);
        claim_wait(&handle, "normal", "hve", 1, &claimed);
        claimed.leases[0]->batch.attempts = 3;
        assert_int_equal(
            settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DELAY, clock_wall_ms() + 600000),
            0);
        struct span ids[] = {span_of(draft.id)};
        struct worked worked = order_wait(
            &handle, (struct queue_order){
                         .verb = QUEUE_RETRY, .ids = ids, .id_count = 1, .reset = round == 1});
        assert_int_equal(worked.sums.changed, 1);
        claim_wait(&handle, "normal", "hve", 1, &claimed);
        assert_int_equal(claimed.count, 1);
        assert_int_equal(claimed.leases[0]->batch.attempts, round == 1 ? 0 : 3);
        lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
        assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    }
    handle_close(&handle);
}

/* What is claimed is busy, the rest ends; the message ends with its last batch. */
static void test_cancel(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    static struct shown shown;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    enqueue_one(&handle, &draft, "erp", 3, 2);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    struct worked worked = by_id(&handle, QUEUE_CANCEL, draft.id);
    assert_int_equal(worked.sums.batches, 3);
    assert_int_equal(worked.sums.changed, 2);
    assert_int_equal(worked.sums.busy, 1);
    struct totals_seen seen = totals_wait(&handle);
    assert_int_equal(seen.totals.messages_open, 1);
    assert_int_equal(seen.totals.recipients[RECIPIENT_CANCELLED], 4);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    seen = totals_wait(&handle);
    assert_int_equal(seen.totals.messages_open, 0);
    assert_int_equal(seen.totals.bytes, 0);
    assert_int_equal(seen.totals.dead_messages, 0);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_string_equal(shown.reason, "printer on fire");

    /* The last one cancelled ends the message, too. */
    enqueue_one(&handle, &draft, "erp", 1, 1);
    assert_int_equal(by_id(&handle, QUEUE_CANCEL, draft.id).sums.changed, 1);
    assert_int_equal(totals_wait(&handle).totals.messages_open, 0);
    assert_int_equal(claimable(&handle, "hve"), 0);
    handle_close(&handle);
}

/* Version 0.1 stored no charge in a message's head. */
static void test_cancel_of_old(void **state)
{
    struct handle handle;
    static struct draft draft;
    char command[400];
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    enqueue_one(&handle, &draft, "erp", 2, 1);
    (void)snprintf(command, sizeof(command),
                   "eval \"return redis.call('SET', KEYS[1], (string.gsub(redis.call('GET', "
                   "KEYS[1]), '^2 %%d+', '2')))\" 1 {h0}:m:%s",
                   draft.id);
    redis_do(handle.rig, command);
    struct span ids[] = {span_of(draft.id)};
    struct queue_order order = {.verb = QUEUE_CANCEL, .ids = ids, .id_count = 1, .limit = 1};
    struct worked worked = {.rig = handle.rig};
    assert_int_equal(queue_work(handle.queue, &order, on_worked, &worked), 0);
    RIG_WAIT(handle.rig, worked.done);
    assert_int_equal(worked.status, 0);
    assert_int_equal(worked.sums.changed, 2);
    struct totals_seen seen = totals_wait(&handle);
    assert_int_equal(seen.totals.messages_open, 0);
    assert_int_equal(seen.totals.bytes, 0);
    assert_int_equal(seen.totals.recipients[RECIPIENT_CANCELLED], 2);
    assert_int_equal(seen.depth.batches[BATCH_READY], 0);
    order.verb = QUEUE_PURGE; /* the recount wants a charge */
    worked.done = false;
    assert_int_equal(queue_work(handle.queue, &order, on_worked, &worked), 0);
    RIG_WAIT(handle.rig, worked.done);
    assert_int_equal(worked.sums.changed, 2);
    handle.rig->history_removed = true;
    handle_close(&handle);
}

/* What stands behind many batches that were taken out of their list is claimed at once. */
static void test_claim_behind_held(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    for (size_t i = 0; i < 25; i++) {
        enqueue_one(&handle, &draft, "erp", 4, 1);
    }
    assert_int_equal(order_wait(&handle, (struct queue_order){.verb = QUEUE_HOLD}).sums.changed,
                     100);
    enqueue_one(&handle, &draft, "erp", 4, 1);
    claim_wait(&handle, "normal", "hve", 3, &claimed);
    assert_int_equal(claimed.count, 3);
    for (size_t i = 0; i < claimed.count; i++) {
        assert_true(span_eq(claimed.leases[i]->message.id, span_of(draft.id)));
        queue_release(handle.queue, claimed.leases[i]);
        queue_lease_free(&claimed.leases[i]);
    }
    assert_int_equal(totals_wait(&handle).depth.batches[BATCH_READY], 4);
    recount(handle.rig);

    /* A call looks at no more than some, and says that there may be more behind them. */
    for (size_t i = 0; i < 30; i++) {
        enqueue_one(&handle, &draft, "erp", 40, 1);
    }
    assert_int_equal(order_wait(&handle, (struct queue_order){.verb = QUEUE_HOLD}).sums.changed,
                     1204);
    enqueue_one(&handle, &draft, "erp", 1, 1);
    handle.hints = 0;
    claim_wait(&handle, "normal", "hve", 3, &claimed);
    assert_int_equal(claimed.count, 0);
    RIG_WAIT(handle.rig, handle.hints > 0);
    claim_wait(&handle, "normal", "hve", 3, &claimed);
    assert_int_equal(claimed.count, 1);
    queue_release(handle.queue, claimed.leases[0]);
    queue_lease_free(&claimed.leases[0]);
    assert_int_equal(totals_wait(&handle).depth.batches[BATCH_READY], 1);
    recount(handle.rig);
    handle_close(&handle);
}

/* With a domain only its recipients are cancelled; the others go on. */
static void test_cancel_domain(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 3);
    draft.recipients[0][1].address = SPAN_LIT("bob@Fabrikam.example");
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    struct worked worked = order_wait(
        &handle, (struct queue_order){.verb = QUEUE_CANCEL,
                                      .selector = {.domain = SPAN_LIT("fabrikam.example")}});
    assert_int_equal(worked.sums.recipients[RECIPIENT_QUEUED], 1);
    assert_int_equal(worked.sums.changed, 1);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_int_equal(claimed.leases[0]->open_mask, 5);
    queue_lease_free(&claimed.leases[0]);
    handle_close(&handle);
}

/* What has expired and waits to be ended as that can still be cancelled, and only that. */
static void test_cancel_expired(void **state)
{
    struct handle handle;
    static struct draft draft;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 2, 1);
    draft.message.expires_ms = clock_wall_ms() + 100;
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    RIG_WAIT(handle.rig, handle.swept_expired >= 1);
    assert_int_equal(by_id(&handle, QUEUE_HOLD, draft.id).sums.changed, 0);
    assert_int_equal(by_id(&handle, QUEUE_CANCEL, draft.id).sums.changed, 2);
    assert_int_equal(totals_wait(&handle).depth.batches[BATCH_READY], 0);
    assert_int_equal(claimable(&handle, "hve"), 0);
    handle_close(&handle);
}

/* Set free by hand, a poison batch is sent again, as one that may have been sent already. */
static void test_release_poison(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    conf.lease_ms = 100;
    handle_open(rig_of(state), &handle, &conf);
    enqueue_one(&handle, &draft, "erp", 1, 1);
    for (int i = 0; i < 3; i++) {
        int64_t ended = handle.swept_ended;
        claim_wait(&handle, "normal", "hve", 1, &claimed);
        assert_int_equal(claimed.count, 1);
        assert_int_equal(queue_start(handle.queue, claimed.leases[0]), 0);
        queue_lease_free(&claimed.leases[0]); /* no heartbeat any more */
        RIG_WAIT(handle.rig, handle.swept_ended > ended);
    }
    assert_int_equal(handle.swept_poison, 1);
    assert_int_equal(by_id(&handle, QUEUE_RELEASE, draft.id).sums.changed, 1);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_false(claimed.leases[0]->was_started); /* the lane's on_unknown would hold it again */
    assert_int_equal(claimed.leases[0]->batch.flags, BATCH_MAYBE_SENT);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    handle_close(&handle);
}

static void test_move(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    static char body[600];
    memset(body, 'b', sizeof(body));
    draft_fill(&draft, handle.queue, "erp", "normal", 2, 5);
    draft.message.body = span_make(body, sizeof(body));
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    struct span ids[] = {span_of(draft.id)};
    struct queue_order order = {.verb = QUEUE_MOVE,
                                .ids = ids,
                                .id_count = 1,
                                .to = SPAN_LIT("graph"),
                                .to_recipients_max = 4};
    struct worked worked = order_wait(&handle, order);
    assert_int_equal(worked.sums.changed, 0);
    assert_int_equal(worked.sums.skipped, 2);
    assert_string_equal(worked.reason, "It has more recipients than that backend takes at once.");
    order.to_recipients_max = 0;
    order.to_bytes_max = sizeof(body) - 100;
    worked = order_wait(&handle, order);
    assert_int_equal(worked.sums.changed, 0);
    assert_string_equal(worked.reason, "It is larger than that backend takes.");
    order.to_bytes_max = sizeof(body);
    worked = order_wait(&handle, order);
    assert_int_equal(worked.sums.changed, 2);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    claim_wait(&handle, "normal", "graph", 10, &claimed);
    assert_int_equal(claimed.count, 2);
    assert_true(span_eq(claimed.leases[0]->batch.backend, SPAN_LIT("graph")));
    recount(handle.rig);
    for (size_t i = 0; i < 2; i++) {
        queue_lease_free(&claimed.leases[i]);
    }
    handle_close(&handle);
}

/* Ends all waiting batches with the states given to their recipients. */
static void end_all(struct handle *handle, enum recipient_state first, enum recipient_state others)
{
    static struct claimed claimed;
    claim_wait(handle, "normal", "hve", 100, &claimed);
    for (size_t i = 0; i < claimed.count; i++) {
        claimed.leases[i]->batch.attempts = 4;
        claimed.leases[i]->batch.recipients[0].state = first;
        lease_finish(claimed.leases[i], others);
        assert_int_equal(settle_wait(handle, &claimed.leases[i], QUEUE_NEXT_DONE, 0), 0);
    }
}

static void test_replay(void **state)
{
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    static const struct queue_lifetime lifetimes[] = {{.lane = "normal", .expires_ms = 7200000}};
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    enqueue_one(&handle, &draft, "erp", 2, 3);
    end_all(&handle, RECIPIENT_DELIVERED, RECIPIENT_FAILED);
    assert_int_equal(totals_wait(&handle).totals.bytes, 0);
    struct queue_order order = {
        .verb = QUEUE_REPLAY, .lifetimes = lifetimes, .lifetime_count = 1, .dry_run = true};
    struct worked worked = order_wait(&handle, order);
    assert_int_equal(worked.sums.changed, 0);
    assert_int_equal(worked.sums.recipients[RECIPIENT_FAILED], 4);
    order.dry_run = false;
    order.selector.states = QUEUE_SELECT_EXPIRED;
    assert_int_equal(order_wait(&handle, order).sums.batches, 0);
    order.selector.states = QUEUE_SELECT_FAILED;
    assert_int_equal(order_wait(&handle, order).sums.changed, 2);
    struct totals_seen seen = totals_wait(&handle);
    assert_int_equal(seen.totals.dead_messages, 0);
    assert_int_equal(seen.totals.messages_open, 1);
    assert_int_equal(seen.totals.recipients[RECIPIENT_FAILED], 0);

    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 2);
    assert_int_equal(claimed.leases[0]->batch.attempts, 0);
    assert_int_equal(claimed.leases[0]->batch.epoch, 1);
    assert_int_equal(claimed.leases[0]->open_mask, 6);
    assert_true(span_eq(claimed.leases[0]->message.body, draft.message.body));
    assert_true(claimed.leases[0]->message.expires_ms > clock_wall_ms() + 7100000);
    for (size_t i = 0; i < 2; i++) {
        lease_finish(claimed.leases[i], RECIPIENT_DELIVERED);
        assert_int_equal(settle_wait(&handle, &claimed.leases[i], QUEUE_NEXT_DONE, 0), 0);
    }
    recount(handle.rig);
    /* A single batch as well, and the second time it fails it is dead again. */
    enqueue_one(&handle, &draft, "erp", 1, 1);
    end_all(&handle, RECIPIENT_UNKNOWN, RECIPIENT_UNKNOWN);
    assert_int_equal(by_id(&handle, QUEUE_REPLAY, draft.id).sums.changed, 1);
    end_all(&handle, RECIPIENT_EXPIRED, RECIPIENT_EXPIRED);
    assert_int_equal(totals_wait(&handle).totals.dead_messages, 1);
    handle_close(&handle);

    /* A replayed message's history is kept from its second end on. */
    struct queue_conf conf = rig_of(state)->conf;
    conf.dead_letters_ms = 1;
    handle_open(rig_of(state), &handle, &conf);
    RIG_WAIT(handle.rig, handle.swept_dead == 1);
    struct worked gone = by_id(&handle, QUEUE_REPLAY, draft.id);
    assert_int_equal(gone.sums.changed, 0);
    assert_string_equal(gone.reason, "Its body is no longer kept.");
    handle_close(&handle);
    conf.retention_ms = 100;
    handle_open(rig_of(state), &handle, &conf);
    RIG_WAIT(handle.rig, handle.swept_removed == 4); /* two of these are of the first end */
    handle_close(&handle);
    handle.rig->history_removed = true;
}

/* A message that was replayed is not removed by the time of its first end. */
static void test_replayed_history(void **state)
{
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct shown shown;
    handle_open(rig_of(state), &handle, &conf);
    enqueue_one(&handle, &draft, "erp", 1, 1);
    end_all(&handle, RECIPIENT_FAILED, RECIPIENT_FAILED);
    assert_int_equal(by_id(&handle, QUEUE_REPLAY, draft.id).sums.changed, 1);
    handle_close(&handle);
    conf.retention_ms = 100;
    handle_open(rig_of(state), &handle, &conf);
    RIG_WAIT(handle.rig, handle.swept_removed == 1);
    recount(handle.rig);
    assert_int_equal(state_now(&handle, draft.id, &shown), BATCH_READY);
    end_all(&handle, RECIPIENT_DELIVERED, RECIPIENT_DELIVERED);
    RIG_WAIT(handle.rig, handle.swept_removed == 2);
    assert_int_equal(show_wait(&handle, draft.id, &shown), ERR_NOTFOUND);
    handle.rig->history_removed = true;
    handle_close(&handle);
}

static void test_purge(void **state)
{
    struct handle handle;
    static struct draft dead;
    static struct draft open;
    static struct shown shown;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    enqueue_one(&handle, &dead, "erp", 2, 1);
    end_all(&handle, RECIPIENT_FAILED, RECIPIENT_FAILED);
    enqueue_one(&handle, &open, "erp", 1, 1);
    end_all(&handle, RECIPIENT_DELIVERED, RECIPIENT_DELIVERED);
    enqueue_one(&handle, &open, "erp", 2, 1);
    rig_of(state)->history_removed = true; /* from here on: what is purged is in no counter */
    struct worked worked = order_wait(
        &handle,
        (struct queue_order){.verb = QUEUE_PURGE, .selector = {.states = QUEUE_SELECT_FAILED}});
    assert_int_equal(worked.sums.changed, 2);
    assert_int_equal(show_wait(&handle, dead.id, &shown), ERR_NOTFOUND);
    struct totals_seen seen = totals_wait(&handle);
    assert_int_equal(seen.totals.dead_messages, 0);
    assert_int_equal(seen.totals.messages_open, 1);
    worked = order_wait(&handle, (struct queue_order){.verb = QUEUE_PURGE});
    assert_int_equal(worked.sums.messages, 2); /* each once, though the open one has ended, too */
    assert_int_equal(worked.sums.changed, 3);
    seen = totals_wait(&handle);
    assert_int_equal(seen.totals.messages_open, 0);
    assert_int_equal(seen.totals.history_bytes, 0);
    assert_int_equal(show_wait(&handle, open.id, &shown), ERR_NOTFOUND);
    assert_int_equal(claimable(&handle, "hve"), 0);
    handle_close(&handle);
}

/* Each part of a selector, on eight messages in four shards. */
static void test_selectors(void **state)
{
    enum { COUNT = 8 };
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    conf.shards = 4;
    handle_open(rig_of(state), &handle, &conf);
    int64_t now_ms = clock_wall_ms();
    for (size_t i = 0; i < COUNT; i++) {
        draft_fill(&draft, handle.queue, i % 2 == 0 ? "erp" : "zabbix", i < 3 ? "alert" : "normal",
                   1, 1);
        (void)snprintf(draft.id, sizeof(draft.id), "01M%023zu-%zu", i, i % 4);
        draft.message.id = span_of(draft.id);
        draft.message.header_from = i == 5 ? SPAN_LIT("Boss@Fabrikam.example")
                                           : SPAN_LIT("sender@contoso.com");
        draft.message.tags = i == 6 ? SPAN_LIT("night\nrun-7\n") : (struct span){0};
        draft.message.accepted_ms = now_ms - (int64_t)i * 1000;
        draft.batches[0].backend = i == 7 ? SPAN_LIT("graph") : SPAN_LIT("hve");
        int64_t due_ms = i == 4 ? now_ms + 600000 : 0;
        assert_int_equal(enqueue_wait(&handle, &draft.message, due_ms, NULL, NULL), 0);
    }
    static const struct {
        struct queue_selector selector;
        int64_t matched;
    } rows[] = {
        {.matched = 8},
        {{.client = {.data = "zabbix", .len = 6}}, 4},
        {{.lane = {.data = "alert", .len = 5}}, 3},
        {{.backend = {.data = "graph", .len = 5}}, 1},
        {{.sender = {.data = "boss@fabrikam.example", .len = 21}}, 1},
        {{.sender = {.data = "*@fabrikam.example", .len = 18}}, 1},
        {{.sender = {.data = "*@contoso.com", .len = 13}}, 8}, /* the reverse-path, too */
        {{.domain = {.data = "contoso.com", .len = 11}}, 8},
        {{.domain = {.data = "toso.com", .len = 8}}, 0},
        {{.tag = {.data = "run-7", .len = 5}}, 1},
        {{.tag = {.data = "run", .len = 3}}, 0},
        {{.states = QUEUE_SELECT_DELAYED}, 1},
        {{.states = QUEUE_SELECT_READY}, 7},
        {{.client = {.data = "erp", .len = 3}, .lane = {.data = "alert", .len = 5}}, 2},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct worked worked = order_wait(
            &handle, (struct queue_order){
                         .verb = QUEUE_HOLD, .selector = rows[i].selector, .dry_run = true});
        if (worked.sums.batches != rows[i].matched) {
            fail_msg("row %zu: %lld matched", i, (long long)worked.sums.batches);
        }
        assert_int_equal(worked.sums.changed, 0);
    }
    struct worked worked = order_wait(
        &handle, (struct queue_order){.verb = QUEUE_HOLD,
                                      .selector = {.accepted_before_ms = now_ms - 4500}});
    assert_int_equal(worked.sums.changed, 3);
    struct span ids[] = {SPAN_LIT("01M00000000000000000000003-3/0"),
                         SPAN_LIT("01M00000000000000000000002-2"),
                         SPAN_LIT("01M00000000000000000000009-1"), SPAN_LIT("nonsense")};
    worked = order_wait(&handle,
                        (struct queue_order){.verb = QUEUE_HOLD, .ids = ids, .id_count = 4});
    assert_int_equal(worked.sums.changed, 2);
    assert_int_equal(worked.sums.found, 2);
    assert_int_equal(worked.sums.skipped, 2);
    assert_string_equal(worked.reason, "There is no such message.");
    handle_close(&handle);
}

/* In pages of a few messages, with batches above a page, the cursor leads through all once. */
static void test_pages(void **state)
{
    enum { MESSAGES = 30 };
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    conf.shards = 2;
    handle_open(rig_of(state), &handle, &conf);
    int64_t expires_ms = clock_wall_ms() + 3600000;
    int64_t batches = 0;
    for (size_t i = 0; i < MESSAGES; i++) {
        draft_fill(&draft, handle.queue, "erp", "normal", 1 + i, 1);
        draft.message.expires_ms = expires_ms; /* the same: the cursor goes by id then */
        assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
        batches += 1 + (int64_t)i;
    }
    static const enum queue_verb verbs[] = {QUEUE_HOLD, QUEUE_MOVE, QUEUE_RELEASE, QUEUE_CANCEL};
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
        char cursor[128] = "";
        int64_t changed = 0;
        size_t calls = 0;
        do {
            struct worked worked = order_wait(&handle,
                                              (struct queue_order){.verb = verbs[i],
                                                                   .to = SPAN_LIT("graph"),
                                                                   .limit = 4,
                                                                   .cursor = span_of(cursor)});
            changed += worked.sums.changed;
            memcpy(cursor, worked.cursor, sizeof(cursor));
            calls++;
        } while (cursor[0] != '\0');
        assert_int_equal(changed, batches);
        assert_true(calls > 4);
    }
    assert_int_equal(totals_wait(&handle).totals.messages_open, 0);
    struct worked worked = {.rig = handle.rig};
    struct queue_order bad = {.verb = QUEUE_HOLD, .limit = 1, .cursor = SPAN_LIT("x9:")};
    assert_int_equal(queue_work(handle.queue, &bad, on_worked, &worked), ERR_INVAL);
    bad.cursor = SPAN_LIT("z0:");
    assert_int_equal(queue_work(handle.queue, &bad, on_worked, &worked), ERR_INVAL);
    bad.cursor = (struct span){0};
    bad.limit = 0;
    assert_int_equal(queue_work(handle.queue, &bad, on_worked, &worked), ERR_INVAL);
    handle_close(&handle);
}

struct dead_list {
    struct rig *rig;
    bool done;
    size_t count;
    char ids[32][MESSAGE_ID_MAX + 1];
    char cursor[256];
};

static void on_dead(void *ctx, int status, const struct message *messages, size_t count,
                    struct span next)
{
    struct dead_list *list = ctx;
    assert_int_equal(status, 0);
    for (size_t i = 0; i < count; i++) {
        (void)snprintf(list->ids[list->count++], MESSAGE_ID_MAX + 1, "%.*s",
                       SPAN_FMT(messages[i].id));
    }
    (void)snprintf(list->cursor, sizeof(list->cursor), "%.*s", SPAN_FMT(next));
    list->done = true;
    loop_stop(list->rig->loop);
}

/* Dead letters in pages, each once, also those of one millisecond. */
static void test_dead_list(void **state)
{
    enum { COUNT = 20 };
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    static struct draft draft;
    static struct claimed claimed;
    static struct dead_list list;
    conf.shards = 2;
    handle_open(rig_of(state), &handle, &conf);
    for (size_t i = 0; i < COUNT; i++) {
        enqueue_one(&handle, &draft, i == 7 ? "zabbix" : "erp", 1, 1);
    }
    claim_wait(&handle, "normal", "hve", COUNT, &claimed);
    assert_int_equal(claimed.count, COUNT);
    struct outcome outcome = {.rig = handle.rig};
    struct queue_settlement settlement = {.next = QUEUE_NEXT_DONE};
    for (size_t i = 0; i < COUNT; i++) {
        lease_finish(claimed.leases[i], i < 3 ? RECIPIENT_DELIVERED : RECIPIENT_FAILED);
        assert_int_equal(
            queue_settle(handle.queue, claimed.leases[i], &settlement, on_settled, &outcome), 0);
        queue_lease_free(&claimed.leases[i]);
    }
    RIG_WAIT(handle.rig, outcome.ok == COUNT);
    list = (struct dead_list){.rig = handle.rig};
    do {
        char cursor[256];
        memcpy(cursor, list.cursor, sizeof(cursor));
        struct queue_filter filter = {.dead_only = true, .limit = 3, .cursor = span_of(cursor)};
        list.done = false;
        assert_int_equal(queue_list(handle.queue, &filter, on_dead, &list), 0);
        RIG_WAIT(handle.rig, list.done);
    } while (list.cursor[0] != '\0' && list.count < 28);
    assert_int_equal(list.count, COUNT - 3);
    for (size_t i = 0; i < list.count; i++) {
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(list.ids[i], list.ids[j]);
        }
    }
    handle_close(&handle);
}

/* Two handles deliver while operators do everything at once: whatever the order, nothing is lost or
 * doubled, and every sum is right at each stop. */

struct storm {
    struct rig *rig;
    struct handle handles[2];
    uint32_t random;
    size_t running; /* calls not answered yet */
    struct queue_lease *kept[64];
    size_t kept_handle[64];
    size_t kept_count;
};

static uint32_t storm_random(struct storm *storm, uint32_t below)
{
    storm->random = storm->random * 1664525u + 1013904223u;
    return (storm->random >> 8) % below;
}

static void storm_stop(struct storm *storm)
{
    storm->running--;
    loop_stop(storm->rig->loop);
}

static void storm_on_worked(void *ctx, int status, const struct queue_worked *worked)
{
    (void)worked;
    assert_int_equal(status, 0);
    storm_stop(ctx);
}

static void storm_on_settled(void *ctx, int status)
{
    assert_true(status == 0 || status == ERR_STALE);
    storm_stop(ctx);
}

static void storm_order(struct storm *storm)
{
    static const char *const clients[] = {"erp", "zabbix"};
    struct queue_order order = {
        .verb = (enum queue_verb)storm_random(storm, QUEUE_VERB_COUNT),
        .to = storm_random(storm, 2) == 0 ? SPAN_LIT("hve") : SPAN_LIT("graph"),
        .reason = SPAN_LIT("storm"),
        .selector.client = span_of(clients[storm_random(storm, 2)]),
        .limit = 1 + storm_random(storm, 40),
    };
    /* All at once would soon end the storm, and history that is removed is in no counter. */
    if (order.verb == QUEUE_CANCEL || order.verb == QUEUE_PURGE) {
        order.selector.states = QUEUE_SELECT_READY | QUEUE_SELECT_DELAYED | QUEUE_SELECT_HELD;
        order.selector.domain = SPAN_LIT("rare.example");
    }
    struct handle *handle = &storm->handles[storm_random(storm, 2)];
    assert_int_equal(queue_work(handle->queue, &order, storm_on_worked, storm), 0);
    storm->running++;
}

static void storm_settle(struct storm *storm, size_t handle, struct queue_lease *lease)
{
    struct queue_settlement settlement = {.next = (enum queue_next)storm_random(storm, 4),
                                          .due_ms = clock_wall_ms() + storm_random(storm, 400)};
    if (settlement.next == QUEUE_NEXT_DONE) {
        static const enum recipient_state ends[] = {RECIPIENT_DELIVERED, RECIPIENT_FAILED,
                                                    RECIPIENT_UNKNOWN, RECIPIENT_EXPIRED};
        lease_finish(lease, ends[storm_random(storm, 4)]);
    } else if (storm_random(storm, 3) == 0) {
        for (size_t i = 0; i < lease->batch.recipient_count; i++) {
            struct recipient *recipient = &lease->batch.recipients[i];
            bool open = recipient->state == RECIPIENT_QUEUED;
            if (open && batch_open_count(&lease->batch) > 1) {
                recipient->state = RECIPIENT_DELIVERED;
            }
        }
    }
    assert_int_equal(
        queue_settle(storm->handles[handle].queue, lease, &settlement, storm_on_settled, storm), 0);
    storm->running++;
    queue_lease_free(&lease);
}

static void storm_on_claimed(void *ctx, int status, struct queue_lease **leases, size_t count,
                             const int64_t *closed_until_ms)
{
    struct storm *storm = ctx;
    (void)closed_until_ms;
    assert_int_equal(status, 0);
    size_t handle = storm->kept_handle[63]; /* whose claim this is: one at a time */
    for (size_t i = 0; i < count; i++) {
        if (storm->kept_count < 60 && storm_random(storm, 2) == 0) {
            storm->kept_handle[storm->kept_count] = handle;
            storm->kept[storm->kept_count++] = leases[i];
        } else if (storm_random(storm, 8) == 0) {
            /* Its gateway is gone: the lease ends, and three times STARTED is poison. */
            if (storm_random(storm, 2) == 0) {
                assert_int_equal(queue_start(storm->handles[handle].queue, leases[i]), 0);
            }
            queue_lease_free(&leases[i]);
        } else if (storm_random(storm, 4) == 0) {
            queue_release(storm->handles[handle].queue, leases[i]);
            queue_lease_free(&leases[i]);
        } else {
            storm_settle(storm, handle, leases[i]);
        }
    }
    storm_stop(storm);
}

static void storm_claim(struct storm *storm, uint32_t max)
{
    struct queue_want wants[] = {{.lane = "normal", .backend = "hve", .max_batches = max},
                                 {.lane = "normal", .backend = "graph", .max_batches = max}};
    storm->kept_handle[63] = storm_random(storm, 2);
    assert_int_equal(queue_claim(storm->handles[storm->kept_handle[63]].queue, wants, 2,
                                 storm_on_claimed, storm),
                     0);
    storm->running++;
}

static void storm_round(struct storm *storm)
{
    storm_claim(storm, 1 + storm_random(storm, 12));
    storm_order(storm);
    storm_order(storm);
    while (storm->kept_count > 0 && storm_random(storm, 3) != 0) {
        storm->kept_count--;
        storm_settle(storm, storm->kept_handle[storm->kept_count], storm->kept[storm->kept_count]);
    }
    RIG_WAIT(storm->rig, storm->running == 0);
}

/* Everything that waits is set free and delivered, until leases that were left behind have ended,
 * too. */
static size_t storm_drain(struct storm *storm)
{
    static struct claimed claimed;
    size_t recipients = 0;
    while (totals_wait(&storm->handles[0]).totals.messages_open > 0) {
        (void)order_wait(&storm->handles[0], (struct queue_order){.verb = QUEUE_RETRY});
        for (size_t i = 0; i < 2; i++) {
            claim_wait(&storm->handles[0], "normal", i == 0 ? "hve" : "graph", 500, &claimed);
            for (size_t j = 0; j < claimed.count; j++) {
                recipients += batch_open_count(&claimed.leases[j]->batch);
                lease_finish(claimed.leases[j], RECIPIENT_DELIVERED);
                assert_int_equal(
                    settle_wait(&storm->handles[0], &claimed.leases[j], QUEUE_NEXT_DONE, 0), 0);
            }
        }
    }
    return recipients;
}

static void test_storm(void **state)
{
    enum { MESSAGES = 60, ROUNDS = 120 };
    static struct storm storm;
    static struct draft draft;
    storm = (struct storm){.rig = rig_of(state), .random = 12345};
    struct queue_conf conf = rig_of(state)->conf;
    conf.shards = 2;
    conf.lease_ms = 300;
    handle_open(storm.rig, &storm.handles[0], &conf);
    handle_open(storm.rig, &storm.handles[1], &conf);
    int64_t accepted = 0;
    for (size_t i = 0; i < MESSAGES; i++) {
        draft_fill(&draft, storm.handles[0].queue, i % 3 == 0 ? "zabbix" : "erp", "normal",
                   1 + i % 3, 1 + i % 4);
        if (i % 10 == 0) {
            draft.recipients[0][0].address = SPAN_LIT("x@rare.example");
        }
        assert_int_equal(enqueue_wait(&storm.handles[0], &draft.message, 0, NULL, NULL), 0);
        accepted += (int64_t)((1 + i % 3) * (1 + i % 4));
    }
    for (size_t i = 0; i < ROUNDS; i++) {
        storm_round(&storm);
        if (i % 20 == 19) {
            recount(storm.rig);
        }
    }
    while (storm.kept_count > 0) {
        storm.kept_count--;
        storm_settle(&storm, storm.kept_handle[storm.kept_count], storm.kept[storm.kept_count]);
    }
    RIG_WAIT(storm.rig, storm.running == 0);
    struct totals_seen seen = totals_wait(&storm.handles[0]);
    int64_t open = seen.totals.recipients[RECIPIENT_QUEUED];
    int64_t unknown = seen.totals.recipients[RECIPIENT_UNKNOWN];
    size_t delivered = storm_drain(&storm);
    seen = totals_wait(&storm.handles[0]);
    assert_in_range(delivered, open, open + unknown); /* held ones may come back as unknown */
    assert_int_equal(seen.totals.messages_open, 0);
    assert_int_equal(seen.totals.bytes, 0);
    assert_int_equal(seen.totals.recipients[RECIPIENT_QUEUED], 0);
    int64_t ended = 0;
    for (size_t i = 1; i < RECIPIENT_STATE_COUNT; i++) {
        ended += seen.totals.recipients[i];
    }
    assert_int_equal(ended, accepted);
    for (size_t i = 0; i < seen.totals.depth_count; i++) {
        assert_int_equal(seen.depth.batches[BATCH_READY], 0);
    }
    handle_close(&storm.handles[0]);
    handle_close(&storm.handles[1]);
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
        TEST(test_hold_and_release),
        TEST(test_release_keeps_due),
        TEST(test_release_unknown),
        TEST(test_retry),
        TEST(test_cancel),
        TEST(test_cancel_domain),
        TEST(test_cancel_of_old),
        TEST(test_claim_behind_held),
        TEST(test_move),
        TEST(test_replay),
        TEST(test_purge),
        TEST(test_selectors),
        TEST(test_pages),
        TEST(test_dead_list),
        TEST(test_storm),
        TEST(test_cancel_expired),
        TEST(test_release_poison),
        TEST(test_replayed_history),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
