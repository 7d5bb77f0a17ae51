/* Idempotency keys while their submissions are being taken. */
#include "tests/unit/queue_harness.h"

struct found {
    struct rig *rig;
    bool done;
    int status;
    enum queue_key_state state;
    int64_t held_ms;
    char id[MESSAGE_ID_MAX + 1];
    char answer[64];
};

static void on_key(void *ctx, int status, const struct queue_key_found *key)
{
    struct found *found = ctx;
    found->done = true;
    found->status = status;
    found->state = key->state;
    found->held_ms = key->held_ms;
    (void)snprintf(found->id, sizeof(found->id), "%.*s", SPAN_FMT(key->id));
    (void)snprintf(found->answer, sizeof(found->answer), "%.*s", SPAN_FMT(key->answer));
    loop_stop(found->rig->loop);
}

static struct found begin(struct handle *handle, const struct queue_idempotency *key,
                          int64_t hold_ms)
{
    struct found found = {.rig = handle->rig};
    assert_int_equal(queue_key_begin(handle->queue, key, hold_ms, on_key, &found), 0);
    RIG_WAIT(handle->rig, found.done);
    assert_int_equal(found.status, 0);
    return found;
}

static struct queue_idempotency key_of(const char *scope, const char *name, const char *owner)
{
    return (struct queue_idempotency){
        .scope = span_of(scope),
        .key = span_of(name),
        .fingerprint = SPAN_LIT("abc"),
        .answer = SPAN_LIT("{\"accepted\":1}"),
        .owner = span_of(owner),
    };
}

/* Milliseconds that the record of the key has left, as the server says. */
static long ttl_ms(const struct rig *rig, const char *name)
{
    char command[300];
    char line[64] = "";
    (void)snprintf(command, sizeof(command), "redis-cli -s '%s' --raw PTTL '%s'", rig->socket_path,
                   name);
    FILE *out = popen(command, "r");
    assert_non_null(out);
    assert_non_null(fgets(line, sizeof(line), out));
    assert_int_equal(pclose(out), 0);
    return strtol(line, NULL, 10);
}

static struct handle handles[2];

static int setup(void **state)
{
    struct rig *rig = mem_zero(sizeof(*rig));
    rig_init(rig);
    rig_start_server(rig);
    handle_open(rig, &handles[0], &rig->conf);
    handle_open(rig, &handles[1], &rig->conf);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    handle_close(&handles[0]);
    handle_close(&handles[1]);
    rig_release(*state);
    mem_free(*state);
    return 0;
}

static void test_reserve_store_replay(void **state)
{
    static struct draft draft;
    struct queue_idempotency mine = key_of("erp", "k", "me");
    struct queue_idempotency other = key_of("erp", "k", "you");
    struct outcome outcome;
    assert_int_equal(begin(&handles[0], &mine, 60000).state, QUEUE_KEY_FRESH);
    struct found found = begin(&handles[1], &other, 60000);
    assert_int_equal(found.state, QUEUE_KEY_RUNNING);
    assert_in_range(found.held_ms, 1, 60000);
    assert_in_range(ttl_ms(*state, "{h0}:i:erp:k"), 1, 60000);
    /* Said twice because the first answer was lost. */
    assert_int_equal(begin(&handles[0], &mine, 60000).state, QUEUE_KEY_FRESH);
    /* Another client's key of the same name is another key. */
    struct queue_idempotency foreign = key_of("crm", "k", "you");
    assert_int_equal(begin(&handles[1], &foreign, 60000).state, QUEUE_KEY_FRESH);
    /* Nobody else may store under it meanwhile, nor give it back. */
    draft_fill_keyed(&draft, handles[1].queue, &other);
    assert_int_equal(enqueue_wait(&handles[1], &draft.message, 0, &other, &outcome), ERR_BUSY);
    queue_key_give_back(handles[1].queue, &other);
    assert_int_equal(begin(&handles[1], &other, 60000).state, QUEUE_KEY_RUNNING);

    draft_fill_keyed(&draft, handles[0].queue, &mine);
    assert_int_equal(enqueue_wait(&handles[0], &draft.message, 0, &mine, &outcome), 0);
    assert_in_range(ttl_ms(*state, "{h0}:i:erp:k"), 23 * 3600 * 1000, 24 * 3600 * 1000);
    found = begin(&handles[1], &other, 60000);
    assert_int_equal(found.state, QUEUE_KEY_REPLAY);
    assert_string_equal(found.id, draft.id);
    assert_string_equal(found.answer, "{\"accepted\":1}");
    other.fingerprint = SPAN_LIT("abd");
    assert_int_equal(begin(&handles[1], &other, 60000).state, QUEUE_KEY_CONFLICT);
    queue_key_give_back(handles[0].queue, &mine); /* too late: it is known */
    assert_int_equal(begin(&handles[0], &mine, 60000).state, QUEUE_KEY_REPLAY);
}

static void test_give_back(void **state)
{
    (void)state;
    struct queue_idempotency mine = key_of("erp", "k", "me");
    struct queue_idempotency other = key_of("erp", "k", "you");
    assert_int_equal(begin(&handles[0], &mine, 60000).state, QUEUE_KEY_FRESH);
    queue_key_give_back(handles[0].queue, &mine);
    assert_int_equal(begin(&handles[0], &other, 60000).state, QUEUE_KEY_FRESH);
}

/* The owner dies; after a while the key is free, and what its late enqueue brings is not stored
 * beside what was stored meanwhile. */
static void test_owner_dies(void **state)
{
    (void)state;
    static struct draft draft;
    static struct draft late;
    struct queue_idempotency dead = key_of("erp", "k", "dead");
    struct queue_idempotency mine = key_of("erp", "k", "me");
    struct outcome outcome;
    assert_int_equal(begin(&handles[0], &dead, 300).state, QUEUE_KEY_FRESH);
    size_t running = 0;
    int64_t end_ms = clock_mono_ms() + 20000;
    while (begin(&handles[1], &mine, 60000).state == QUEUE_KEY_RUNNING &&
           clock_mono_ms() < end_ms) {
        running++;
    }
    assert_true(running > 0);
    draft_fill_keyed(&late, handles[0].queue, &dead);
    assert_int_equal(enqueue_wait(&handles[0], &late.message, 0, &dead, &outcome), ERR_BUSY);
    draft_fill_keyed(&draft, handles[1].queue, &mine);
    assert_int_equal(enqueue_wait(&handles[1], &draft.message, 0, &mine, &outcome), 0);
    assert_int_equal(enqueue_wait(&handles[0], &late.message, 0, &dead, &outcome), 0);
    assert_true(outcome.replayed);
    assert_string_equal(outcome.id, draft.id);
}

/* A reservation that ended unnoticed is no harm when nobody else came. */
static void test_reservation_lapses(void **state)
{
    static struct draft draft;
    struct queue_idempotency mine = key_of("erp", "k", "me");
    struct outcome outcome;
    assert_int_equal(begin(&handles[0], &mine, 1).state, QUEUE_KEY_FRESH);
    int64_t end_ms = clock_mono_ms() + 20000;
    while (ttl_ms(*state, "{h0}:i:erp:k") != -2 && clock_mono_ms() < end_ms) {
    }
    draft_fill_keyed(&draft, handles[0].queue, &mine);
    assert_int_equal(enqueue_wait(&handles[0], &draft.message, 0, &mine, &outcome), 0);
    assert_false(outcome.replayed);
}

static void test_arguments(void **state)
{
    (void)state;
    char owner[QUEUE_OWNER_MAX];
    char second[QUEUE_OWNER_MAX];
    struct found found = {0};
    queue_key_owner(handles[0].queue, owner);
    queue_key_owner(handles[0].queue, second);
    assert_string_not_equal(owner, second);
    struct queue_idempotency nobody = key_of("erp", "k", "");
    assert_int_equal(queue_key_begin(handles[0].queue, &nobody, 1, on_key, &found), ERR_INVAL);
    char long_key[QUEUE_KEY_MAX + 2] = "";
    memset(long_key, 'k', QUEUE_KEY_MAX + 1);
    struct queue_idempotency longer = key_of("erp", long_key, owner);
    assert_int_equal(queue_key_begin(handles[0].queue, &longer, 1, on_key, &found), ERR_INVAL);
    assert_false(found.done);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_reserve_store_replay, setup, teardown),
        cmocka_unit_test_setup_teardown(test_give_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_owner_dies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reservation_lapses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_arguments, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
