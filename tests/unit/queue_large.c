/* Large bodies: in and out in pieces, whole or not at all; and bodies that cannot be read. */
#include "tests/unit/queue_harness.h"

#include "queue/body.h"
#include "queue/queue_internal.h"

#define KEY_A "a:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
#define KEY_B "b:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n"

static struct rig *rig_of(void **state)
{
    return *state;
}

static void fill(char *out, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        out[i] = (char)((i / 64) * 2654435761u >> 13); /* some of it can be compressed */
    }
}

#define ANSWER_MAX 400

/* What redis-cli prints for a command, the first line of it. */
static PRINTF_LIKE(3, 4) void ask_redis(const struct rig *rig, char answer[ANSWER_MAX],
                                        const char *format, ...)
{
    char line[400];
    va_list args;
    int len = snprintf(line, sizeof(line), "redis-cli -s %s ", rig->socket_path);
    va_start(args, format);
    (void)vsnprintf(line + len, sizeof(line) - (size_t)len, format, args);
    va_end(args);
    FILE *pipe = popen(line, "r");
    assert_non_null(pipe);
    size_t got = fread(answer, 1, ANSWER_MAX - 1, pipe);
    assert_int_equal(pclose(pipe), 0);
    answer[got] = '\0';
    answer[strcspn(answer, "\n")] = '\0';
}

static void deliver(struct handle *handle, struct claimed *claimed)
{
    for (size_t i = 0; i < claimed->count; i++) {
        lease_finish(claimed->leases[i], RECIPIENT_DELIVERED);
        assert_int_equal(settle_wait(handle, &claimed->leases[i], QUEUE_NEXT_DONE, 0), 0);
    }
}

/* Sizes around every edge, cut between prefix and body at odd places, several batches. */
static void round_trips(struct rig *rig, const struct queue_conf *conf)
{
    static const size_t sizes[] = {1000,   65535,  65536,  65537,  262143,
                                   262144, 262145, 524288, 600000, 3000001};
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    char answer[ANSWER_MAX];
    char *body = mem_alloc(3000001);
    fill(body, 3000001);
    handle_open(rig, &handle, conf);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (size_t cut = 0; cut < sizes[i]; cut += sizes[i] / 2 + 1) {
            draft_fill(&draft, handle.queue, "erp", "normal", 3, 1);
            draft.message.prefix = span_make(body, cut);
            draft.message.body = span_make(body + cut, sizes[i] - cut);
            assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
            ask_redis(rig, answer, "TTL {h0}:b:%s", draft.id);
            assert_string_equal(answer, "-1");
            claim_wait(&handle, "normal", "hve", 10, &claimed);
            assert_int_equal(claimed.count, 3);
            for (size_t j = 0; j < 3; j++) {
                const struct message *message = &claimed.leases[j]->message;
                assert_int_equal(message->body.len, sizes[i]);
                assert_memory_equal(message->body.data, body, sizes[i]);
            }
            deliver(&handle, &claimed);
            ask_redis(rig, answer, "EXISTS {h0}:b:%s", draft.id);
            assert_string_equal(answer, "0");
        }
    }
    assert_int_equal(totals_wait(&handle).totals.bytes, 0);
    handle_close(&handle);
    mem_free(body);
}

static void test_round_trips(void **state)
{
    struct rig *rig = rig_of(state);
    struct queue_conf conf = rig->conf;
    round_trips(rig, &conf);
    conf.compression = true;
    conf.encryption_keys = KEY_A;
    round_trips(rig, &conf);
}

/* Redis stands still in the middle of a body: no more than a window waits in memory. Then it dies:
 * the answer is no, and nothing is left. */
static void test_broken_in_the_middle(void **state)
{
    enum { BODY = 12 << 20 };
    struct rig *rig = rig_of(state);
    struct handle handle;
    struct outcome outcome = {.rig = rig};
    static struct draft draft;
    static struct claimed claimed;
    char *body = mem_alloc(BODY);
    fill(body, BODY);
    handle_open(rig, &handle, &rig->conf);
    draft_fill(&draft, handle.queue, "scanner", "normal", 1, 1);
    draft.message.body = span_make(body, BODY);
    assert_int_equal(kill(embedded_pid(rig->embedded), SIGSTOP), 0);
    assert_int_equal(queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcome),
                     0);
    for (size_t i = 0; i < 20; i++) {
        loop_run_once(rig->loop);
        assert_true(nodes_waiting_bytes(handle.queue->nodes, 0) < (size_t)2 << 20);
    }
    assert_int_equal(handle.queue->upload_bytes, BODY);
    assert_int_equal(outcome.done, 0);
    size_t ups = rig->ups;
    assert_int_equal(kill(embedded_pid(rig->embedded), SIGKILL), 0);
    RIG_WAIT(rig, outcome.done == 1);
    assert_int_equal(outcome.status, ERR_UNAVAILABLE);
    assert_int_equal(handle.queue->upload_bytes, 0);
    RIG_WAIT(rig, rig->ups > ups && queue_is_up(handle.queue));
    struct shown shown;
    assert_int_equal(show_wait(&handle, draft.id, &shown), ERR_NOTFOUND);
    /* What did arrive has an end. */
    char ttl[ANSWER_MAX];
    ask_redis(rig, ttl, "TTL {h0}:b:%s", draft.id);
    assert_string_not_equal(ttl, "-1");
    /* The same message goes through now. */
    draft_fill(&draft, handle.queue, "scanner", "normal", 1, 1);
    draft.message.body = span_make(body, BODY);
    assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    claim_wait(&handle, "normal", "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_memory_equal(claimed.leases[0]->message.body.data, body, BODY);
    deliver(&handle, &claimed);
    assert_int_equal(totals_wait(&handle).totals.bytes, 0);
    handle_close(&handle);
    mem_free(body);
}

/* Bodies on their way in are bounded together, and a handle that is closed gives them up. */
static void test_bound_and_close(void **state)
{
    enum { BODY = 40 << 20, COUNT = 4 };
    struct rig *rig = rig_of(state);
    struct handle handle;
    struct outcome outcome = {.rig = rig};
    static struct draft drafts[COUNT];
    char *body = mem_zero(BODY);
    handle_open(rig, &handle, &rig->conf);
    for (size_t i = 0; i < COUNT; i++) {
        draft_fill(&drafts[i], handle.queue, "scanner", "normal", 1, 1);
        drafts[i].message.body = span_make(body, BODY);
        assert_int_equal(
            queue_enqueue(handle.queue, &drafts[i].message, 0, NULL, on_enqueued, &outcome),
            i < 3 ? 0 : ERR_LIMIT);
    }
    handle_close(&handle);
    assert_int_equal(outcome.done, 3);
    assert_int_equal(outcome.ok, 0);
    assert_int_equal(outcome.status, ERR_CLOSED);
    mem_free(body);
}

static void enqueue_text(struct handle *handle, struct draft *draft, const char *body, size_t len)
{
    draft_fill(draft, handle->queue, "erp", "normal", 1, 1);
    draft->message.body = span_make(body, len);
    assert_int_equal(enqueue_wait(handle, &draft->message, 0, NULL, NULL), 0);
}

/* A body that cannot be read holds its batch, says why, and loses nothing. */
static void test_unreadable_is_held(void **state)
{
    enum { BODY = 700000 };
    static const struct {
        const char *command, *arguments;
    } damage[] = {
        {"LSET", "2 nonsense"}, {"LTRIM", "0 1"}, {"LSET", "1 ''"}, {"DEL", ""},
        {"SETRANGE", "1 x"},
    };
    struct rig *rig = rig_of(state);
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    char answer[ANSWER_MAX];
    char *body = mem_alloc(BODY);
    fill(body, BODY);
    handle_open(rig, &handle, &rig->conf);
    int64_t held = totals_wait(&handle).depth.batches[BATCH_HELD];
    for (size_t i = 0; i < sizeof(damage) / sizeof(damage[0]); i++) {
        bool large = i < 4;
        enqueue_text(&handle, &draft, body, large ? BODY : 2000);
        ask_redis(rig, answer, "%s {h0}:b:%s %s", damage[i].command, draft.id, damage[i].arguments);
        claim_wait(&handle, "normal", "hve", 1, &claimed);
        assert_int_equal(claimed.count, 0);
        assert_int_equal(handle.swept_unreadable, (int64_t)i + 1);
        assert_int_equal(totals_wait(&handle).depth.batches[BATCH_HELD], held + (int64_t)i + 1);
        ask_redis(rig, answer, "GETRANGE {h0}:q:%s/0%s 0 200 | grep -a stored", draft.id,
                  large ? "'*684'" : "");
        assert_non_null(strstr(answer, "The stored body is"));
    }
    handle_close(&handle);
    mem_free(body);
}

/* A key that is gone holds the batch and names itself; with the key the batch is as it was. */
static void test_rotation(void **state)
{
    enum { BODY = 300000 };
    struct rig *rig = rig_of(state);
    struct handle handle;
    struct queue_conf conf = rig->conf;
    static struct draft small;
    static struct draft large;
    static struct claimed claimed;
    char answer[ANSWER_MAX];
    char *body = mem_alloc(BODY);
    fill(body, BODY);
    conf.encryption_keys = KEY_A;
    handle_open(rig, &handle, &conf);
    int64_t held = totals_wait(&handle).depth.batches[BATCH_HELD];
    enqueue_text(&handle, &small, body, 3000);
    enqueue_text(&handle, &large, body, BODY);
    handle_close(&handle);

    conf.encryption_keys = KEY_B; /* too early */
    handle_open(rig, &handle, &conf);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    assert_int_equal(totals_wait(&handle).depth.batches[BATCH_HELD], held + 2);
    ask_redis(rig, answer, "GETRANGE {h0}:q:%s/0 0 300 | grep -a sealed", small.id);
    assert_non_null(strstr(answer, "\"a\""));
    handle_close(&handle);

    /* As an operator releases them. */
    ask_redis(rig, answer, "SETRANGE {h0}:q:%s/0 0 R", small.id);
    ask_redis(rig, answer, "SETRANGE {h0}:q:%s/0'*293' 0 R", large.id);
    ask_redis(rig, answer, "RPUSH '{h0}:r:normal|hve|erp' '%s/0' '%s/0*293'", small.id, large.id);
    ask_redis(rig, answer, "RPUSH '{h0}:c:normal|hve' erp");
    conf.encryption_keys = KEY_B KEY_A;
    handle_open(rig, &handle, &conf);
    claim_wait(&handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 2);
    assert_int_equal(claimed.leases[0]->message.body.len, 3000);
    assert_int_equal(claimed.leases[1]->message.body.len, BODY);
    assert_memory_equal(claimed.leases[1]->message.body.data, body, BODY);
    deliver(&handle, &claimed);
    handle_close(&handle);
    mem_free(body);
}

/* What version 0.1 stored: the bytes as they are, a large body as one string. */
static void test_bodies_of_old(void **state)
{
    struct rig *rig = rig_of(state);
    struct handle handle;
    static struct draft draft;
    static struct claimed claimed;
    char answer[ANSWER_MAX];
    char *body = mem_alloc(100000);
    fill(body, 100000);
    handle_open(rig, &handle, &rig->conf);
    for (int large = 0; large < 2; large++) {
        size_t len = large != 0 ? 100000 : 2000;
        enqueue_text(&handle, &draft, body, len);
        ask_redis(rig, answer, "DEL {h0}:b:%s", draft.id);
        ask_redis(rig, answer,
                  "EVAL \"return redis.call('SET', KEYS[1], 'Received: ' .. "
                  "string.rep('x', ARGV[1] - 10))\" 1 {h0}:b:%s %zu",
                  draft.id, len);
        claim_wait(&handle, "normal", "hve", 1, &claimed);
        assert_int_equal(claimed.count, 1);
        struct span read = claimed.leases[0]->message.body;
        assert_int_equal(read.len, len);
        assert_true(span_starts(read, SPAN_LIT("Received: xxx")) && read.data[len - 1] == 'x');
        deliver(&handle, &claimed);
    }
    handle_close(&handle);
    mem_free(body);
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
        cmocka_unit_test(test_round_trips),     cmocka_unit_test(test_broken_in_the_middle),
        cmocka_unit_test(test_bound_and_close), cmocka_unit_test(test_bodies_of_old),
        cmocka_unit_test(test_rotation),        cmocka_unit_test(test_unreadable_is_held),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
