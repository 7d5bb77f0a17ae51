/* When Redis dies, forgets, refuses or is set up wrongly. */
#include "queue/redis.h"
#include "tests/unit/queue_harness.h"

struct link {
    struct rig *rig;
    struct redis_conf conf;
    struct redis *redis;
    bool up, closed;
    size_t changes, failures;
    char why[500];
};

static void link_on_state(void *ctx, bool up, const char *why)
{
    struct link *link = ctx;
    link->up = up;
    link->changes++;
    (void)snprintf(link->why, sizeof(link->why), "%s", why);
    loop_stop(link->rig->loop);
}

static void link_on_away(void *ctx)
{
    struct link *link = ctx;
    link->failures++;
    loop_stop(link->rig->loop);
}

static const struct redis_ops link_ops = {.on_state = link_on_state, .on_away = link_on_away};

static void link_open(struct rig *rig, struct link *link, const struct queue_conf *server)
{
    *link = (struct link){.rig = rig, .conf = {.server = server}};
    link->redis = redis_open(rig->loop, &link->conf, &link_ops, link);
    RIG_WAIT(rig, link->changes > 0);
}

static void link_on_closed(void *ctx)
{
    struct link *link = ctx;
    link->closed = true;
    loop_stop(link->rig->loop);
}

static void link_close(struct link *link)
{
    redis_close(link->redis, link_on_closed, link);
    RIG_WAIT(link->rig, link->closed);
}

struct answer {
    struct rig *rig;
    bool done;
    int status;
    char text[200];
    int64_t number;
};

static void on_answer(void *ctx, int status, const struct redis_value *value)
{
    struct answer *answer = ctx;
    answer->done = true;
    answer->status = status;
    answer->number = redis_integer(value);
    (void)snprintf(answer->text, sizeof(answer->text), "%.*s", SPAN_FMT(value->text));
    loop_stop(answer->rig->loop);
}

/* A command of words, and its answer. */
static struct answer call(struct link *link, const char *const *words)
{
    struct answer answer = {.rig = link->rig};
    struct redis_args args;
    redis_args_init(&args);
    for (size_t i = 0; words[i] != NULL; i++) {
        redis_args_text(&args, words[i]);
    }
    assert_int_equal(redis_call(link->redis, &args, on_answer, &answer), 0);
    RIG_WAIT(link->rig, answer.done);
    return answer;
}

#define CALL(link, ...) call(link, (const char *const[]){__VA_ARGS__, NULL})

static void on_nested(void *ctx, int status, const struct redis_value *value)
{
    struct answer *answer = ctx;
    assert_int_equal(status, 0);
    assert_int_equal(value->type, REDIS_ARRAY);
    assert_int_equal(value->count, 3);
    assert_int_equal(redis_integer(redis_item(value, 0)), 7);
    const struct redis_value *inner = redis_item(value, 1);
    assert_int_equal(inner->count, 2);
    assert_true(span_eq(redis_item(inner, 0)->text, SPAN_LIT("a")));
    assert_int_equal(redis_item(inner, 1)->count, 0);
    assert_int_equal(redis_item(value, 2)->type, REDIS_NIL);
    /* Nothing out of bounds, whatever is asked for. */
    assert_int_equal(redis_item(value, 99)->type, REDIS_NIL);
    assert_int_equal(redis_item(redis_item(inner, 0), 5)->type, REDIS_NIL);
    answer->done = true;
    loop_stop(answer->rig->loop);
}

static void test_replies(void **state)
{
    struct link link;
    struct rig *rig = *state;
    struct answer answer = {.rig = rig};
    link_open(rig, &link, &rig->conf);
    assert_true(link.up);
    struct redis_args args;
    redis_args_init(&args);
    redis_args_text(&args, "EVAL");
    redis_args_text(&args, "return {7, {'a', {}}, false}");
    redis_args_number(&args, 0);
    assert_int_equal(redis_call(link.redis, &args, on_nested, &answer), 0);
    RIG_WAIT(rig, answer.done);
    struct answer error = CALL(&link, "INCR", "a", "b");
    assert_int_equal(error.status, ERR_PROTO);
    assert_non_null(strstr(error.text, "wrong number of arguments"));
    link_close(&link);
}

/* Starts another look at the server's settings and returns the sentence. */
static void expect_refusal(struct rig *rig, const struct queue_conf *conf, const char *word)
{
    struct link link;
    link_open(rig, &link, conf);
    assert_false(link.up);
    if (strstr(link.why, word) == NULL) {
        fail_msg("expected '%s' in: %s", word, link.why);
    }
    link_close(&link);
}

static void test_wrong_settings(void **state)
{
    struct rig *rig = *state;
    struct link admin;
    struct queue_conf conf = rig->conf;
    struct queue_conf nowhere = rig->conf;
    conf.managed = false;
    link_open(rig, &admin, &rig->conf);
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "appendfsync", "everysec").status, 0);
    expect_refusal(rig, &conf, "CONFIG SET appendfsync always");
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "appendfsync", "always").status, 0);
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru").status, 0);
    expect_refusal(rig, &conf, "CONFIG SET maxmemory-policy noeviction");
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "maxmemory-policy", "noeviction").status, 0);
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "appendonly", "no").status, 0);
    expect_refusal(rig, &conf, "CONFIG SET appendonly yes");
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "appendonly", "yes").status, 0);
    assert_int_equal(CALL(&admin, "REPLICAOF", "127.0.0.1", "1").status, 0);
    expect_refusal(rig, &conf, "replica");
    assert_int_equal(CALL(&admin, "REPLICAOF", "NO", "ONE").status, 0);
    conf.database = 9999;
    expect_refusal(rig, &conf, "database");
    conf.database = 0;
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "requirepass", "secret").status, 0);
    conf.password = "wrong";
    expect_refusal(rig, &conf, "password");
    conf.password = "secret";
    struct link right;
    link_open(rig, &right, &conf);
    assert_true(right.up);
    link_close(&right);
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "requirepass", "").status, 0);
    link_close(&admin);
    nowhere.socket_path = "/tmp/heave-no-such-socket";
    expect_refusal(rig, &nowhere, "heave-no-such-socket");
}

/* Why a server that is expected to start is not up yet is kept back, but not for ever. */
static void test_start_is_quiet(void **state)
{
    struct rig *rig = *state;
    struct link admin;
    struct queue_conf conf = rig->conf;
    conf.managed = false;
    conf.start_ms = INT64_C(3600000);
    link_open(rig, &admin, &rig->conf);
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru").status, 0);
    struct link link = {.rig = rig, .conf = {.server = &conf}};
    link.redis = redis_open(rig->loop, &link.conf, &link_ops, &link);
    RIG_WAIT(rig, link.failures >= 2);
    assert_int_equal(link.changes, 0);
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "maxmemory-policy", "noeviction").status, 0);
    RIG_WAIT(rig, link.changes > 0);
    assert_true(link.up);
    /* Once it was up, nothing is kept back. */
    assert_int_equal(CALL(&admin, "CLIENT", "KILL", "SKIPME", "yes").status, 0);
    RIG_WAIT(rig, link.changes > 1);
    assert_false(link.up);
    link_close(&link);
    link_close(&admin);
    conf.socket_path = "/tmp/heave-no-such-socket";
    conf.start_ms = 1;
    expect_refusal(rig, &conf, "heave-no-such-socket");
}

static void test_script_flush(void **state)
{
    struct rig *rig = *state;
    struct link admin;
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    link_open(rig, &admin, &rig->conf);
    handle_open(rig, &handle, &rig->conf);
    struct outcome outcome = {.rig = rig};
    assert_int_equal(CALL(&admin, "SCRIPT", "FLUSH").status, 0);
    for (size_t i = 0; i < 200; i++) {
        draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
        assert_int_equal(
            queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcome), 0);
    }
    RIG_WAIT(rig, outcome.done == 200);
    assert_int_equal(outcome.ok, 200);
    assert_int_equal(CALL(&admin, "SCRIPT", "FLUSH").status, 0);
    claim_wait(&handle, "normal", "hve", 300, &claimed);
    assert_int_equal(claimed.count, 200);
    assert_int_equal(CALL(&admin, "SCRIPT", "FLUSH").status, 0);
    for (size_t i = 0; i < claimed.count; i++) {
        lease_finish(claimed.leases[i], RECIPIENT_DELIVERED);
        assert_int_equal(queue_start(handle.queue, claimed.leases[i]), 0);
        assert_int_equal(settle_wait(&handle, &claimed.leases[i], QUEUE_NEXT_DONE, 0), 0);
    }
    assert_int_equal(handle.state_changes, 1); /* never went away */
    handle_close(&handle);
    link_close(&admin);
}

/* Every yes is true: 2,000 enqueues on the wire, the server killed among them, three times. */
static void test_kill_during_enqueue(void **state)
{
    enum { COUNT = 2000 };
    struct rig *rig = *state;
    struct handle handle;
    static struct draft draft;
    static struct shown shown;
    static char ids[COUNT][MESSAGE_ID_MAX + 1];
    static struct outcome outcomes[COUNT];
    for (size_t round = 0; round < 3; round++) {
        handle_open(rig, &handle, &rig->conf);
        size_t sent = 0;
        for (size_t i = 0; i < COUNT; i++) {
            draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
            memcpy(ids[i], draft.id, sizeof(ids[i]));
            outcomes[i] = (struct outcome){.rig = rig};
            if (queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcomes[i]) ==
                0) {
                sent = i + 1;
            }
        }
        assert_int_equal(sent, COUNT);
        size_t wanted = 300 + 500 * round; /* a different place each time */
        RIG_WAIT(rig, outcomes[wanted].done == 1);
        size_t ups = rig->ups;
        assert_int_equal(kill(embedded_pid(rig->embedded), SIGKILL), 0);
        RIG_WAIT(rig, outcomes[COUNT - 1].done == 1 && rig->ups > ups && handle.up);
        size_t yes = 0;
        for (size_t i = 0; i < COUNT; i++) {
            assert_int_equal(outcomes[i].done, 1);
            assert_true(outcomes[i].status == 0 || outcomes[i].status == ERR_TIMEOUT ||
                        outcomes[i].status == ERR_UNAVAILABLE);
            yes += outcomes[i].ok;
            int found = show_wait(&handle, ids[i], &shown);
            if (outcomes[i].ok == 1) {
                assert_int_equal(found, 0);
                assert_int_equal(shown.batches[0].state, BATCH_READY);
            }
        }
        assert_true(yes > wanted);
        handle_close(&handle);
    }
}

/* Claimed before, delivered while Redis was away, written when it is back. */
static void test_settle_while_away(void **state)
{
    struct rig *rig = *state;
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    static struct shown shown;
    handle_open(rig, &handle, &rig->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 2);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    struct queue_lease *lease = claimed.leases[0];
    assert_int_equal(queue_start(handle.queue, lease), 0);
    size_t changes = handle.state_changes;
    assert_int_equal(kill(embedded_pid(rig->embedded), SIGKILL), 0);
    RIG_WAIT(rig, handle.state_changes > changes);
    assert_false(handle.up);
    assert_int_equal(queue_start(handle.queue, lease), ERR_UNAVAILABLE);
    assert_int_equal(queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, NULL),
                     ERR_UNAVAILABLE);
    lease_finish(lease, RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_DONE);
    assert_int_equal(shown.states[0][1], RECIPIENT_DELIVERED);
    handle_close(&handle);
}

/* A settlement whose answer was lost is written again: the second time is a success and changes
 * nothing; another settlement with the same token is refused. */
static void test_settle_twice(void **state)
{
    struct rig *rig = *state;
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    handle_open(rig, &handle, &rig->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 2, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    struct queue_lease *lease = claimed.leases[0];
    struct queue_settlement done = {.next = QUEUE_NEXT_DONE};
    struct outcome outcome = {.rig = rig};
    lease_finish(lease, RECIPIENT_DELIVERED);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(queue_settle(handle.queue, lease, &done, on_settled, &outcome), 0);
        RIG_WAIT(rig, outcome.done == i + 1);
        assert_int_equal(outcome.status, 0);
    }
    lease->batch.recipients[0].state = RECIPIENT_FAILED;
    assert_int_equal(queue_settle(handle.queue, lease, &done, on_settled, &outcome), 0);
    RIG_WAIT(rig, outcome.done == 3);
    assert_int_equal(outcome.status, ERR_STALE);
    queue_lease_free(&claimed.leases[0]);
    handle_close(&handle);
}

/* Records somebody else wrote over: an error for who looks, the batch held, the others go on. */
static void test_garbage_records(void **state)
{
    struct rig *rig = *state;
    struct link admin;
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    static struct shown shown;
    char key[100];
    link_open(rig, &admin, &rig->conf);
    handle_open(rig, &handle, &rig->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 3, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    (void)snprintf(key, sizeof(key), "{h0}:q:%s/0", draft.id);
    assert_int_equal(CALL(&admin, "SET", key, "R0000000 garbage").status, 0);
    (void)snprintf(key, sizeof(key), "{h0}:q:%s/1", draft.id);
    assert_int_equal(CALL(&admin, "SETRANGE", key, "40", "\x7f\x7f\x7f\x7f\x7f").status, 0);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.status, 0);
    assert_int_equal(claimed.count, 1);
    assert_int_equal(claimed.leases[0]->batch.number, 2);
    assert_int_equal(handle.swept_unreadable, 2);
    assert_int_not_equal(show_wait(&handle, draft.id, &shown), 0);
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0); /* held, not handed out again and again */

    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    (void)snprintf(key, sizeof(key), "{h0}:m:%s", draft.id);
    assert_int_equal(CALL(&admin, "SET", key, "not a message").status, 0);
    assert_int_not_equal(show_wait(&handle, draft.id, &shown), 0);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    assert_int_equal(handle.swept_unreadable, 3);

    /* A large body travels by itself: gone, its batch is held, too; shared by three batches, all
     * get it. */
    static char body[200000];
    memset(body, 'b', sizeof(body));
    for (size_t round = 0; round < 2; round++) {
        draft_fill(&draft, handle.queue, "erp", "normal", 3, 1);
        draft.message.body = span_make(body, sizeof(body));
        assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
        (void)snprintf(key, sizeof(key), "{h0}:b:%s", draft.id);
        assert_int_equal(CALL(&admin, "PTTL", key).number, -1); /* it stays */
        if (round == 1) {
            assert_int_equal(CALL(&admin, "DEL", key).status, 0);
        }
        claim_wait(&handle, "normal", "hve", 10, &claimed);
        assert_int_equal(claimed.count, round == 0 ? 3 : 0);
        for (size_t i = 0; i < claimed.count; i++) {
            assert_true(span_eq(claimed.leases[i]->message.body, draft.message.body));
            lease_finish(claimed.leases[i], RECIPIENT_DELIVERED);
            assert_int_equal(settle_wait(&handle, &claimed.leases[i], QUEUE_NEXT_DONE, 0), 0);
        }
    }
    assert_int_equal(CALL(&admin, "EXISTS", key).number, 0);
    assert_int_equal(handle.swept_unreadable, 6);
    assert_int_equal(show_wait(&handle, draft.id, &shown), 0);
    assert_int_equal(shown.batches[2].state, BATCH_HELD);
    assert_true(handle.up);
    handle_close(&handle);
    link_close(&admin);
}

/* Memory full: nothing new is taken, but what was accepted goes its way: only that makes room
 * again. */
static void test_out_of_memory(void **state)
{
    struct rig *rig = *state;
    struct link admin;
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    link_open(rig, &admin, &rig->conf);
    handle_open(rig, &handle, &rig->conf);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "maxmemory", "100kb").status, 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_int_equal(queue_start(handle.queue, claimed.leases[0]), 0);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), ERR_FULL);
    assert_non_null(strstr(handle.warning, "OOM"));
    assert_non_null(strstr(handle.warning, "maxmemory"));
    lease_finish(claimed.leases[0], RECIPIENT_DELIVERED);
    assert_int_equal(settle_wait(&handle, &claimed.leases[0], QUEUE_NEXT_DONE, 0), 0);
    assert_int_equal(CALL(&admin, "CONFIG", "SET", "maxmemory", "0").status, 0);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    handle_close(&handle);
    link_close(&admin);
}

/* Records and script are one transaction: the script forgotten, one of its commands refused. */
static void test_transaction(void **state)
{
    struct rig *rig = *state;
    struct link admin;
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    link_open(rig, &admin, &rig->conf);
    handle_open(rig, &handle, &rig->conf);
    assert_int_equal(CALL(&admin, "SCRIPT", "FLUSH").status, 0);
    draft_fill(&draft, handle.queue, "erp", "normal", 3, 2);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    assert_int_equal(CALL(&admin, "ACL", "SETUSER", "default", "-mset").status, 0);
    draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), ERR_UNAVAILABLE);
    assert_int_equal(CALL(&admin, "ACL", "SETUSER", "default", "+mset", "-evalsha").status, 0);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), ERR_UNAVAILABLE);
    assert_int_equal(CALL(&admin, "ACL", "SETUSER", "default", "+evalsha").status, 0);
    redis_do(rig, "--scan --pattern '{h0}:m:*' | wc -l | grep -qx 1");
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 3);
    for (size_t i = 0; i < claimed.count; i++) {
        lease_finish(claimed.leases[i], RECIPIENT_DELIVERED);
        assert_int_equal(settle_wait(&handle, &claimed.leases[i], QUEUE_NEXT_DONE, 0), 0);
    }
    handle_close(&handle);
    link_close(&admin);
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
        cmocka_unit_test_setup_teardown(test_replies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_settings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_start_is_quiet, setup, teardown),
        cmocka_unit_test_setup_teardown(test_script_flush, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kill_during_enqueue, setup, teardown),
        cmocka_unit_test_setup_teardown(test_settle_while_away, setup, teardown),
        cmocka_unit_test_setup_teardown(test_settle_twice, setup, teardown),
        cmocka_unit_test_setup_teardown(test_garbage_records, setup, teardown),
        cmocka_unit_test_setup_teardown(test_out_of_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_transaction, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
