/* Collections, against a real redis-server. */
#include "queue/digest.h"

#include "tests/unit/queue_harness.h"

enum { KEPT = 4 };

struct taken {
    struct rig *rig;
    bool done, found;
    int status;
    char id[MESSAGE_ID_MAX + 1];
    char about[64];
    size_t count;
    char messages[KEPT][128];
    int64_t at_ms[KEPT];
    uint32_t place;
};

static void on_taken(void *ctx, int status, const struct digest *digest)
{
    struct taken *taken = ctx;
    taken->done = true;
    taken->status = status;
    taken->found = digest != NULL;
    if (digest != NULL) {
        (void)snprintf(taken->id, sizeof(taken->id), "%.*s", SPAN_FMT(digest->id));
        (void)snprintf(taken->about, sizeof(taken->about), "%.*s", SPAN_FMT(digest->about));
        taken->count = digest->count;
        taken->place = digest->place;
        for (size_t i = 0; i < digest->count && i < KEPT; i++) {
            (void)snprintf(taken->messages[i], sizeof(taken->messages[i]), "%.*s",
                           SPAN_FMT(digest->messages[i].bytes));
            taken->at_ms[i] = digest->messages[i].at_ms;
        }
    }
    loop_stop(taken->rig->loop);
}

static struct handle handle;

static struct taken take(int64_t hold_ms)
{
    struct taken taken = {.rig = handle.rig};
    assert_int_equal(digest_take(handle.queue, hold_ms, on_taken, &taken), 0);
    RIG_WAIT(handle.rig, taken.done);
    assert_int_equal(taken.status, 0);
    return taken;
}

/* Until one is due. */
static struct taken take_due(int64_t hold_ms)
{
    int64_t end_ms = clock_mono_ms() + 20000;
    struct taken taken;
    do {
        taken = take(hold_ms);
    } while (!taken.found && clock_mono_ms() < end_ms);
    assert_true(taken.found);
    return taken;
}

struct added {
    struct rig *rig;
    bool done;
    int status;
    char id[MESSAGE_ID_MAX + 1];
    size_t count;
};

static void on_added(void *ctx, int status, struct span id, size_t count)
{
    struct added *added = ctx;
    added->done = true;
    added->status = status;
    added->count = count;
    (void)snprintf(added->id, sizeof(added->id), "%.*s", SPAN_FMT(id));
    loop_stop(added->rig->loop);
}

static struct added add(const char *key, const char *about, const char *message, int64_t window_ms)
{
    char id[MESSAGE_ID_MAX + 1];
    struct added added = {.rig = handle.rig};
    queue_message_id(handle.queue, NULL, id);
    struct digest_item item = {
        .scope = SPAN_LIT("zabbix"),
        .key = span_of(key),
        .window_ms = window_ms,
        .id = span_of(id),
        .about = span_of(about),
        .first = SPAN_LIT("Received: x\r\n"),
        .second = span_of(message),
    };
    assert_int_equal(digest_add(handle.queue, &item, on_added, &added), 0);
    RIG_WAIT(handle.rig, added.done);
    assert_int_equal(added.status, 0);
    return added;
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

static void test_collect_and_take(void **state)
{
    (void)state;
    int64_t before_ms = queue_wall_ms(handle.queue);
    struct added first = add("a", "about a", "one", 2000);
    struct added second = add("a", "about nothing", "two", 2000);
    assert_string_equal(second.id, first.id);
    assert_int_equal(second.count, 2);
    assert_string_not_equal(add("b", "about b", "three", 60000).id, first.id);
    struct taken taken = take_due(60000);
    assert_string_equal(taken.id, first.id);
    assert_string_equal(taken.about, "about a");
    assert_int_equal(taken.count, 2);
    assert_string_equal(taken.messages[0], "Received: x\r\none");
    assert_string_equal(taken.messages[1], "Received: x\r\ntwo");
    assert_true(taken.at_ms[0] >= before_ms - 1000 && taken.at_ms[0] <= taken.at_ms[1]);
    assert_false(take(60000).found); /* it is held, and b is not due */
    /* What comes now is for another one. */
    assert_string_not_equal(add("a", "about a", "four", 60000).id, first.id);
    digest_done(handle.queue, taken.place, span_of(taken.id));
    assert_false(take(60000).found);
}

/* Who took it dies: it is handed out again, whole, until it is ended. */
static void test_handed_out_again(void **state)
{
    (void)state;
    struct added first = add("a", "about", "one", 1);
    for (int i = 0; i < 3; i++) {
        struct taken taken = take_due(1);
        assert_string_equal(taken.id, first.id);
        assert_int_equal(taken.count, 1);
    }
    struct taken taken = take_due(60000);
    digest_done(handle.queue, taken.place, span_of(taken.id));
    assert_false(take(1).found);
}

/* The server's clock goes back (or another server's is behind) after the collection was handed out:
 * what comes now would end with it, unsent. */
static void test_clock_set_back(void **state)
{
    (void)state;
    struct added first = add("a", "about", "one", 60000);
    char command[128];
    for (int shard = 0; shard < 4; shard++) { /* it is in that of its key */
        (void)snprintf(command, sizeof(command), "ZADD {h%d}:jd XX 1 %s", shard, first.id);
        redis_do(handle.rig, command);
    }
    struct taken taken = take_due(60000);
    assert_string_equal(taken.id, first.id);
    struct added second = add("a", "about", "two", 1);
    assert_string_not_equal(second.id, first.id);
    digest_done(handle.queue, taken.place, span_of(taken.id));
    taken = take_due(60000);
    assert_string_equal(taken.id, second.id);
    assert_string_equal(taken.messages[0], "Received: x\r\ntwo");
}

static void test_full(void **state)
{
    (void)state;
    struct added added = {0};
    char first[MESSAGE_ID_MAX + 1] = "";
    for (size_t i = 0; i < DIGEST_MESSAGES_MAX; i++) {
        added = add("a", "about", "x", 3600000);
        if (i == 0) {
            memcpy(first, added.id, sizeof(first));
        }
    }
    assert_string_equal(added.id, first);
    assert_int_equal(added.count, DIGEST_MESSAGES_MAX);
    assert_string_not_equal(add("a", "about", "x", 3600000).id, first);
    struct taken taken = take_due(60000);
    assert_string_equal(taken.id, first);
    assert_int_equal(taken.count, DIGEST_MESSAGES_MAX);
}

/* Bytes of messages count, not what is left of them packed: 22 of 48 KiB are above a MiB. */
static void test_full_of_bytes(void **state)
{
    (void)state;
    char *text = mem_zero(DIGEST_MESSAGE_MAX);
    memset(text, 'x', DIGEST_MESSAGE_MAX - 20);
    char first[MESSAGE_ID_MAX + 1] = "";
    size_t count = 0;
    for (size_t i = 0; i < 23; i++) {
        struct added added = add("a", "about", text, 3600000);
        if (i == 0) {
            memcpy(first, added.id, sizeof(first));
        }
        count = strcmp(added.id, first) == 0 ? added.count : count;
    }
    assert_int_equal(count, 22);
    struct taken taken = take_due(60000);
    assert_string_equal(taken.id, first);
    mem_free(text);
}

static void test_refusing(void **state)
{
    (void)state;
    struct added added = {0};
    struct digest_item item = {
        .scope = SPAN_LIT("zabbix"),
        .key = SPAN_LIT("a"),
        .window_ms = 1,
        .id = SPAN_LIT("01ARZ3NDEKTSV4RRFFQ69G5FAV-0"),
        .second = SPAN_LIT("x"),
    };
    queue_refuse(handle.queue, true);
    assert_int_equal(digest_add(handle.queue, &item, on_added, &added), ERR_FULL);
    queue_refuse(handle.queue, false);
    (void)add("a", "about", "x", 1);
}

static void test_arguments(void **state)
{
    (void)state;
    struct added added = {0};
    char *large = mem_alloc(DIGEST_MESSAGE_MAX + 1);
    memset(large, 'x', DIGEST_MESSAGE_MAX + 1);
    struct digest_item item = {
        .scope = SPAN_LIT("zabbix"),
        .key = SPAN_LIT("a"),
        .window_ms = 1,
        .id = SPAN_LIT("01ARZ3NDEKTSV4RRFFQ69G5FAV-0"),
        .second = span_make(large, DIGEST_MESSAGE_MAX + 1),
    };
    assert_int_equal(digest_add(handle.queue, &item, on_added, &added), ERR_LIMIT);
    item.second = SPAN_LIT("x");
    item.key = SPAN_LIT("");
    assert_int_equal(digest_add(handle.queue, &item, on_added, &added), ERR_INVAL);
    item.key = SPAN_LIT("a");
    item.window_ms = 0;
    assert_int_equal(digest_add(handle.queue, &item, on_added, &added), ERR_INVAL);
    assert_false(added.done);
    mem_free(large);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_collect_and_take, setup, teardown),
        cmocka_unit_test_setup_teardown(test_handed_out_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full, setup, teardown),
        cmocka_unit_test_setup_teardown(test_clock_set_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_of_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_arguments, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
