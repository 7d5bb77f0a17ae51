/* Fairness between the clients of a lane, and age order inside a client, against a real server. */
#include "queue/work.h"
#include "tests/unit/queue_harness.h"

#define CLIENTS_MAX 200
#define IN_FLIGHT 64

static struct rig *rig_of(void **state)
{
    return *state;
}

/* Submits `messages` messages of `batches` batches, many at a time. */
static void submit_from(struct handle *handle, const char *client, const char *host,
                        const char *lane, int64_t accepted_ms, size_t messages, size_t batches,
                        struct span body)
{
    static struct draft draft;
    struct outcome outcome = {.rig = handle->rig};
    for (size_t i = 0; i < messages; i++) {
        draft_fill(&draft, handle->queue, client, lane, batches, 1);
        draft.message.body = body;
        draft.message.accepted_ms = accepted_ms;
        draft.message.source = span_of(host);
        draft.message.flags = host[0] != '\0' ? MESSAGE_BY_HOST : 0;
        RIG_WAIT(handle->rig, i - outcome.done < IN_FLIGHT);
        assert_int_equal(
            queue_enqueue(handle->queue, &draft.message, 0, NULL, on_enqueued, &outcome), 0);
    }
    RIG_WAIT(handle->rig, outcome.done == messages);
    assert_int_equal(outcome.ok, messages);
}

static void submit(struct handle *handle, const char *client, const char *lane, size_t messages,
                   size_t batches, struct span body)
{
    submit_from(handle, client, "", lane, clock_wall_ms(), messages, batches, body);
}

static struct span small_body(void)
{
    return SPAN_LIT("Subject: Disk full\r\n\r\nReally.\r\n");
}

/* Batches that each client got. */
struct tally {
    char names[CLIENTS_MAX][16];
    size_t counts[CLIENTS_MAX];
    size_t clients;
    size_t all;
};

static size_t *count_of(struct tally *tally, struct span client)
{
    size_t i = 0;
    while (i < tally->clients && !span_eq(client, span_of(tally->names[i]))) {
        i++;
    }
    if (i == tally->clients) {
        assert_true(i < CLIENTS_MAX);
        tally->clients++;
        (void)snprintf(tally->names[i], sizeof(tally->names[i]), "%.*s", SPAN_FMT(client));
    }
    return &tally->counts[i];
}

static size_t got(struct tally *tally, const char *client)
{
    return *count_of(tally, span_of(client));
}

/* One claim; the leases are forgotten. */
static size_t claim(struct handle *handle, const char *lane, uint32_t max, struct tally *tally)
{
    static struct claimed claimed;
    claim_wait(handle, lane, "hve", max, &claimed);
    assert_int_equal(claimed.status, 0);
    for (size_t i = 0; i < claimed.count; i++) {
        (*count_of(tally, claimed.leases[i]->message.client))++;
        queue_lease_free(&claimed.leases[i]);
    }
    tally->all += claimed.count;
    return claimed.count;
}

/* Claims of one batch each: the rotation moves on with every one. */
static void test_one_at_a_time(void **state)
{
    static struct tally tally;
    struct handle handle;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    submit(&handle, "a", "one", 1, 30, small_body());
    submit(&handle, "b", "one", 1, 10, small_body());
    submit(&handle, "c", "one", 1, 10, small_body());
    for (size_t i = 1; i <= 10; i++) {
        for (size_t j = 0; j < 3; j++) {
            assert_int_equal(claim(&handle, "one", 1, &tally), 1);
        }
        assert_int_equal(got(&tally, "a"), i);
        assert_int_equal(got(&tally, "b"), i);
        assert_int_equal(got(&tally, "c"), i);
    }
    while (claim(&handle, "one", 1, &tally) > 0) {
    }
    assert_int_equal(tally.all, 50);
    handle_close(&handle);
}

/* A part that does not divide is made good by the next claim. */
static void test_parts_that_do_not_divide(void **state)
{
    static struct tally tally;
    struct handle handle;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    submit(&handle, "a", "parts", 10, 40, small_body());
    submit(&handle, "b", "parts", 10, 40, small_body());
    submit(&handle, "c", "parts", 10, 40, small_body());
    for (size_t i = 0; i < 30; i++) {
        assert_int_equal(claim(&handle, "parts", 10, &tally), 10);
        for (size_t c = 0; c < tally.clients; c++) {
            /* At most one part apart. */
            assert_true(3 * tally.counts[c] <= tally.all + 12);
            assert_true(3 * tally.counts[c] + 12 >= tally.all);
        }
    }
    handle_close(&handle);
}

/* Each of many clients comes once before any comes twice. */
static void test_many_clients(void **state)
{
    static struct tally tally;
    struct handle handle;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    for (size_t i = 0; i < CLIENTS_MAX; i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "client-%zu", i);
        submit(&handle, name, "many", 1, 3, small_body());
    }
    for (size_t round = 1; round <= 3; round++) {
        while (tally.all < round * CLIENTS_MAX) {
            uint32_t left = (uint32_t)(round * CLIENTS_MAX - tally.all);
            uint32_t max = round == 1 ? 1 : 7;
            assert_true(claim(&handle, "many", max < left ? max : left, &tally) > 0);
        }
        assert_int_equal(tally.clients, CLIENTS_MAX);
        for (size_t i = 0; i < CLIENTS_MAX; i++) {
            assert_int_equal(tally.counts[i], round);
        }
    }
    handle_close(&handle);
}

/* 100,000 batches of one client wait; another's hundred leave at half of the rate of claiming. */
static void test_beside_a_great_run(void **state)
{
    static struct tally tally;
    struct handle handle;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    submit(&handle, "erp", "run", 2500, DRAFT_BATCHES, small_body());
    assert_int_equal(claim(&handle, "run", 20, &tally), 20);
    assert_int_equal(got(&tally, "erp"), 20);
    submit(&handle, "hr", "run", 100, 1, small_body());
    for (size_t i = 1; i <= 20; i++) {
        assert_int_equal(claim(&handle, "run", 10, &tally), 10);
        assert_int_equal(got(&tally, "hr"), 5 * i);
    }
    assert_int_equal(claim(&handle, "run", 10, &tally), 10); /* and then it is alone again */
    assert_int_equal(got(&tally, "hr"), 100);
    assert_int_equal(got(&tally, "erp"), 130);
    handle_close(&handle);
}

/* The same over several shards: each rotates by itself, and claims begin at each in turn. */
static void test_over_shards(void **state)
{
    static struct tally tally;
    struct handle handle;
    struct queue_conf conf = rig_of(state)->conf;
    conf.shards = 8;
    handle_open(rig_of(state), &handle, &conf);
    submit(&handle, "erp", "shards", 400, 20, small_body());
    submit(&handle, "hr", "shards", 160, 1, small_body());
    while (got(&tally, "hr") < 160) {
        assert_int_equal(claim(&handle, "shards", 4, &tally), 4);
        assert_true(tally.all < 2000);
    }
    /* The shard that got most of them is the last; 20 a shard are expected. */
    assert_true(got(&tally, "erp") <= 8 * 60);
    handle_close(&handle);
}

/* Large bodies end a claim early; that does not keep their client in front. */
static void test_large_bodies(void **state)
{
    enum { BODY = 9 << 20 }; /* more than a claim brings */
    static struct tally tally;
    struct handle handle;
    char *body = mem_alloc(BODY);
    memset(body, 'x', BODY);
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    submit(&handle, "scanner", "large", 4, 1, span_make(body, BODY));
    submit(&handle, "hr", "large", 8, 1, small_body());
    assert_int_equal(claim(&handle, "large", 4, &tally), 1);
    assert_int_equal(got(&tally, "scanner"), 1);
    assert_int_equal(claim(&handle, "large", 4, &tally), 3);
    assert_int_equal(got(&tally, "hr"), 2);
    mem_free(body);
    handle_close(&handle);
}

struct worked {
    struct rig *rig;
    bool done;
    int64_t messages;
};

static void on_worked(void *ctx, int status, const struct queue_worked *worked)
{
    struct worked *out = ctx;
    assert_int_equal(status, 0);
    out->done = true;
    out->messages = worked->messages;
    loop_stop(out->rig->loop);
}

/* How many messages an operator's selector finds. */
static int64_t count_of_client(struct handle *handle, const char *client)
{
    struct worked worked = {.rig = handle->rig};
    struct queue_order order = {.verb = QUEUE_HOLD,
                                .selector = {.client = span_of(client)},
                                .dry_run = true,
                                .limit = 1000};
    assert_int_equal(queue_work(handle->queue, &order, on_worked, &worked), 0);
    RIG_WAIT(handle->rig, worked.done);
    return worked.messages;
}

/* Hosts of one network are senders of their own; what comes back finds its list. */
static void test_hosts_of_a_network(void **state)
{
    static struct claimed claimed;
    struct handle handle;
    size_t of_printer = 0;
    size_t all = 0;
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    submit_from(&handle, "plant", "10.0.0.1 erp", "hosts", clock_wall_ms(), 10, 40, small_body());
    submit_from(&handle, "plant", "10.0.0.2 printer", "hosts", clock_wall_ms(), 20, 1,
                small_body());
    assert_int_equal(count_of_client(&handle, "plant"), 30);
    assert_int_equal(count_of_client(&handle, "plan"), 0);
    claim_wait(&handle, "hosts", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 10);
    for (size_t i = 0; i < claimed.count; i++) {
        struct queue_lease **lease = &claimed.leases[i];
        assert_true(span_eq((*lease)->message.client, SPAN_LIT("plant")));
        of_printer += span_eq((*lease)->message.source, SPAN_LIT("10.0.0.2 printer")) ? 1 : 0;
        if (i % 2 == 0) {
            assert_int_equal(settle_wait(&handle, lease, QUEUE_NEXT_READY, 0), 0);
        } else {
            queue_release(handle.queue, *lease);
            queue_lease_free(lease);
        }
    }
    assert_int_equal(of_printer, 5);
    while (all < 420) {
        claim_wait(&handle, "hosts", "hve", 10, &claimed);
        assert_true(claimed.count > 0);
        for (size_t i = 0; i < claimed.count; i++) {
            of_printer += span_eq(claimed.leases[i]->message.source, SPAN_LIT("10.0.0.2 printer"));
            queue_lease_free(&claimed.leases[i]);
        }
        all += claimed.count;
        assert_true(all > 40 || (of_printer - 5) * 2 == all);
    }
    assert_int_equal(of_printer, 25);
    claim_wait(&handle, "hosts", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 0);
    handle_close(&handle);
}

/* Inside a client the oldest goes first, also when claimed batches were given back. */
static void test_age_order(void **state)
{
    static struct claimed claimed;
    static struct shown shown;
    struct handle handle;
    char id[MESSAGE_ID_MAX + 1];
    handle_open(rig_of(state), &handle, &rig_of(state)->conf);
    for (size_t i = 0; i < 30; i++) {
        /* Age is told by the id, whose time is in milliseconds. */
        int64_t now_ms = clock_wall_ms();
        while (clock_wall_ms() == now_ms) {
        }
        submit_from(&handle, "a", "", "age", 1000 + (int64_t)i, 1, 1, small_body());
    }
    claim_wait(&handle, "age", "hve", 5, &claimed);
    assert_int_equal(claimed.count, 5);
    (void)snprintf(id, sizeof(id), "%.*s", SPAN_FMT(claimed.leases[0]->message.id));
    for (size_t i = claimed.count; i > 0; i--) {
        queue_release(handle.queue, claimed.leases[i - 1]);
        queue_lease_free(&claimed.leases[i - 1]);
    }
    do {
        assert_int_equal(show_wait(&handle, id, &shown), 0);
    } while (shown.batches[0].state != BATCH_READY);
    int64_t expected_ms = 1000;
    while (expected_ms < 1030) {
        claim_wait(&handle, "age", "hve", 7, &claimed);
        assert_true(claimed.count > 0);
        for (size_t i = 0; i < claimed.count; i++) {
            assert_int_equal(claimed.leases[i]->message.accepted_ms, expected_ms++);
            queue_lease_free(&claimed.leases[i]);
        }
    }
    handle_close(&handle);
}

static int setup(void **state)
{
    struct rig *rig = mem_zero(sizeof(*rig));
    rig_init(rig);
    rig->embedded_conf.durability = QUEUE_MEMORY;
    rig->conf.durability = QUEUE_MEMORY;
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
        cmocka_unit_test_setup_teardown(test_one_at_a_time, setup, teardown),
        cmocka_unit_test_setup_teardown(test_parts_that_do_not_divide, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_clients, setup, teardown),
        cmocka_unit_test_setup_teardown(test_over_shards, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_bodies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hosts_of_a_network, setup, teardown),
        cmocka_unit_test_setup_teardown(test_age_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_beside_a_great_run, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
