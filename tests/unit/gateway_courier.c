/* The courier between a real queue (embedded Redis) and a relay backend that talks to a scripted
 * SMTP server, all on one loop. */
#include "gateway/courier.h"

#include "gateway/base/log.h"
#include "tests/lib/smtp_server.h"
#include "tests/unit/queue_harness.h"

#define SECOND ((int64_t)1000)
#define TIMES_MAX 64

struct world {
    struct rig rig;
    struct handle producer; /* enqueues and looks */
    struct handle worker;   /* the courier's */
    struct server server;
    struct loop_timer tick; /* ends a turn now and then, so that conditions are looked at */
    struct events *events;
    struct courier_pace pace;
    struct lane_conf lanes[2];
    struct backend_conf backend;
    struct courier_backend_conf station;
    struct courier_conf conf;
    struct courier *courier;
    bool drained;
    struct server_peer *peer; /* of the last DATA or DOT */
    size_t dots;
    int64_t dot_ms[TIMES_MAX];
    struct draft draft;
    struct shown shown;
};

static const int64_t ladder[] = {200};

static NORETURN void waited_in_vain(const struct world *world, int line)
{
    (void)fprintf(stderr, "line %d: waited in vain; %zu mails begun\n", line, world->dots);
    for (size_t i = 0; i < world->shown.message.batch_count; i++) {
        (void)fprintf(stderr, "batch %zu: %s, first recipient %s\n", i,
                      batch_state_name(world->shown.batches[i].state),
                      recipient_state_name(world->shown.states[i][0]));
    }
    abort();
}

/* As RIG_WAIT, for conditions that wait themselves. */
#define WAIT(world, condition)                                        \
    do {                                                              \
        int64_t wait_end_ms = loop_now_ms((world)->rig.loop) + 30000; \
        while (!(condition)) {                                        \
            if (loop_now_ms((world)->rig.loop) > wait_end_ms) {       \
                waited_in_vain(world, __LINE__);                      \
            }                                                         \
            loop_run((world)->rig.loop);                              \
        }                                                             \
    } while (0)

static void on_tick(void *ctx)
{
    struct world *world = ctx;
    loop_stop(world->rig.loop);
    loop_timer_start(world->rig.loop, &world->tick, 20, on_tick, world);
}

/* Notes when messages come; passes on. */
static const char *note_dots(struct server *server, struct server_peer *peer, struct span line)
{
    struct world *world = server->ctx;
    if (span_eq(line, SPAN_LIT("DOT"))) {
        world->peer = peer;
        if (world->dots < TIMES_MAX) {
            world->dot_ms[world->dots] = loop_now_ms(world->rig.loop);
        }
        world->dots++;
    }
    return NULL;
}

static const char *silent_at_dot(struct server *server, struct server_peer *peer, struct span line)
{
    (void)note_dots(server, peer, line);
    return span_eq(line, SPAN_LIT("DOT")) ? SERVER_SILENT : NULL;
}

/* One transaction after the other, the first of which gets no answer until the test gives it. */
static void hang_at_dot(struct world *world)
{
    world->server.hook = silent_at_dot;
    world->server.no_pipelining = true;
    world->backend.concurrency = 1;
}

static int setup(void **state)
{
    static struct world world;
    memset(&world, 0, sizeof world);
    log_configure(LOG_ERROR, LOG_FORM_TEXT, false);
    rig_init(&world.rig);
    rig_start_server(&world.rig);
    server_start(&world.server, world.rig.loop);
    world.server.ctx = &world;
    world.server.hook = note_dots;
    world.events = events_new();
    world.lanes[0] = (struct lane_conf){.name = "alert",
                                        .share_percent = 70,
                                        .ladder_ms = ladder,
                                        .ladder_count = 1,
                                        .last_repeats = true,
                                        .expires_ms = 3600 * SECOND,
                                        .retry_unknown = true};
    world.lanes[1] = world.lanes[0];
    world.lanes[1].name = "bulk";
    world.lanes[1].share_percent = 30;
    world.lanes[1].retry_unknown = false;
    world.backend = (struct backend_conf){
        .name = "hve",
        .type = "smtp",
        .hostname = "gw.test",
        .host = "127.0.0.1",
        .port = world.server.port,
        .concurrency = 2,
        .recipients_per_message = BATCH_RECIPIENTS_MAX,
        .connect_timeout_ms = 5 * SECOND,
    };
    world.station.backend = &world.backend;
    world.conf = (struct courier_conf){
        .lanes = world.lanes, .lane_count = 2, .backends = &world.station, .backend_count = 1};
    handle_open(&world.rig, &world.producer, &world.rig.conf);
    handle_open(&world.rig, &world.worker, &world.rig.conf);
    on_tick(&world);
    *state = &world;
    return 0;
}

static void start(struct world *world)
{
    struct err err;
    if (courier_new(world->rig.loop, world->worker.queue, &world->conf, world->events, &world->pace,
                    &world->courier, &err) != ERR_OK) {
        fail_msg("courier_new: %s", err.text);
    }
}

static void on_drained(void *ctx)
{
    struct world *world = ctx;
    world->drained = true;
    world->courier = NULL;
}

static void drain(struct world *world, int64_t grace_ms)
{
    courier_drain(world->courier, grace_ms, on_drained, world);
}

static int teardown(void **state)
{
    struct world *world = *state;
    if (world->courier != NULL) {
        drain(world, 0);
        RIG_WAIT(&world->rig, world->drained);
    }
    handle_close(&world->worker);
    handle_close(&world->producer);
    loop_timer_stop(&world->tick);
    server_stop(&world->server);
    events_free(&world->events);
    rig_release(&world->rig);
    return 0;
}

/* Addresses of their own, so that a doubled one is seen. */
static void enqueue(struct world *world, const char *lane, size_t batches, size_t per_batch,
                    int64_t expires_in_ms)
{
    static char names[DRAFT_BATCHES][BATCH_RECIPIENTS_MAX][64];
    struct draft *draft = &world->draft;
    draft_fill(draft, world->producer.queue, "erp", lane, batches, per_batch);
    draft->message.expires_ms = clock_wall_ms() + expires_in_ms;
    for (size_t i = 0; i < batches; i++) {
        for (size_t j = 0; j < per_batch; j++) {
            (void)snprintf(names[i][j], sizeof names[i][j], "r%zu-%zu@contoso.com", i, j);
            draft->recipients[i][j].address = span_of(names[i][j]);
        }
    }
    assert_int_equal(enqueue_wait(&world->producer, &draft->message, 0, NULL, NULL), 0);
}

static size_t count_states(struct world *world, const char *id, enum recipient_state state)
{
    assert_int_equal(show_wait(&world->producer, id, &world->shown), 0);
    size_t count = 0;
    for (size_t i = 0; i < world->shown.message.batch_count; i++) {
        for (size_t j = 0; j < world->shown.batches[i].recipient_count; j++) {
            count += world->shown.states[i][j] == state ? 1 : 0;
        }
    }
    return count;
}

static enum batch_state state_of(struct world *world, const char *id)
{
    assert_int_equal(show_wait(&world->producer, id, &world->shown), 0);
    return world->shown.batches[0].state;
}

static size_t state_count(struct world *world, enum batch_state state)
{
    assert_int_equal(show_wait(&world->producer, world->draft.id, &world->shown), 0);
    size_t count = 0;
    for (size_t i = 0; i < world->shown.message.batch_count; i++) {
        count += world->shown.batches[i].state == state ? 1 : 0;
    }
    return count;
}

static bool mail_has(const struct server_mail *mail, const char *address)
{
    return span_search(buf_span(&mail->recipients), span_of(address)) < buf_len(&mail->recipients);
}

/* How many of the mails went to the address. */
static size_t copies(const struct world *world, const char *address)
{
    size_t count = 0;
    for (size_t i = 0; i < world->server.mail_count; i++) {
        count += mail_has(&world->server.mails[i], address) ? 1 : 0;
    }
    return count;
}

static void test_delivers(void **state)
{
    struct world *world = *state;
    enqueue(world, "alert", 5, 3, 3600 * SECOND);
    start(world);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) == 15);
    assert_int_equal(world->server.mail_count, 5);
    assert_int_equal(copies(world, "r4-2@"), 1);
    assert_int_equal(state_of(world, world->draft.id), BATCH_DONE);
    enqueue(world, "bulk", 1, 1, 3600 * SECOND); /* the hint wakes it */
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) == 1);
}

static void test_more_recipients_than_the_backend_takes(void **state)
{
    struct world *world = *state;
    world->backend.recipients_per_message = 2;
    enqueue(world, "alert", 1, 5, 3600 * SECOND);
    start(world);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) == 5);
    assert_int_equal(world->server.mail_count, 3);
    for (size_t i = 0; i < 5; i++) {
        char address[32];
        (void)snprintf(address, sizeof address, "r0-%zu@", i);
        assert_int_equal(copies(world, address), 1);
    }
}

static void test_a_gate_closes_for_its_time(void **state)
{
    struct world *world = *state;
    int64_t closed_ms = loop_now_ms(world->rig.loop);
    queue_gate_close(world->producer.queue, "hve", clock_wall_ms() + 1500, "throttled");
    enqueue(world, "alert", 1, 1, 3600 * SECOND);
    start(world);
    WAIT(world, world->dots == 1);
    assert_in_range(world->dot_ms[0] - closed_ms, 1490, 6000);
}

static const char *over_the_limit(struct server *server, struct server_peer *peer, struct span line)
{
    (void)note_dots(server, peer, line);
    return span_eq(line, SPAN_LIT("DOT"))
               ? "550 5.7.233 - tenant exceeded its daily limit for external recipients"
               : NULL;
}

/* What the service says closes the backend for all: nothing is tried again, no attempt is used, and
 * what expires meanwhile is settled through the closed gate. */
static void test_a_throttled_backend_waits_and_expires(void **state)
{
    struct world *world = *state;
    world->server.hook = over_the_limit;
    world->backend.concurrency = 1;
    start(world);
    enqueue(world, "alert", 1, 1, 3 * SECOND);
    WAIT(world, world->dots == 1);
    enqueue(world, "alert", 1, 2, 2 * SECOND);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_EXPIRED) == 2);
    assert_int_equal(world->dots, 1);
    assert_int_equal(world->shown.batches[0].attempts, 0);
    assert_true(atomic_load(&world->pace.closed_until_ms[0]) >
                loop_now_ms(world->rig.loop) + 3000 * SECOND);
}

/* No room, so nothing is claimed for sending; what expires comes to its end all the same. */
static void test_expires_without_room(void **state)
{
    struct world *world = *state;
    hang_at_dot(world);
    start(world);
    enqueue(world, "alert", 5, 1, 3600 * SECOND);
    WAIT(world, world->dots == 1);
    /* The room is taken when some of them have to wait in the queue. */
    WAIT(world, state_count(world, BATCH_READY) > 0);
    enqueue(world, "bulk", 3, 2, SECOND);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_EXPIRED) == 6);
    assert_int_equal(world->dots, 1);
}

static void test_message_rates(void **state)
{
    static const struct limiter_window windows[] = {{.units = 2, .window_ms = 1000}};
    struct world *world = *state;
    world->station.message_windows = windows;
    world->station.message_window_count = 1;
    enqueue(world, "alert", 7, 1, 3600 * SECOND);
    start(world);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) == 7);
    assert_int_equal(world->dots, 7);
    for (size_t i = 2; i < world->dots; i++) {
        /* Granted in Redis, seen at the server: a little may lie between. */
        assert_true(world->dot_ms[i] - world->dot_ms[i - 2] > 900);
    }
}

/* A quota that can never grant a whole batch: it goes in parts, at the quota's pace. */
static void test_recipient_rates_below_a_batch(void **state)
{
    static const struct limiter_window windows[] = {{.units = 3, .window_ms = 1000}};
    struct world *world = *state;
    world->station.recipient_windows = windows;
    world->station.recipient_window_count = 1;
    enqueue(world, "alert", 1, 7, 3600 * SECOND);
    start(world);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) == 7);
    assert_int_equal(world->server.mail_count, 3);
    for (size_t i = 0; i < 7; i++) {
        char address[32];
        (void)snprintf(address, sizeof address, "r0-%zu@", i);
        assert_int_equal(copies(world, address), 1);
    }
    assert_true(world->dot_ms[1] - world->dot_ms[0] > 900);
}

/* Bulk has all the slots it can borrow and hangs there; an alert begins all the same. */
static void test_an_alert_finds_a_reserved_slot(void **state)
{
    struct world *world = *state;
    hang_at_dot(world);
    world->backend.concurrency = 4;
    start(world);
    enqueue(world, "bulk", 20, 1, 3600 * SECOND);
    WAIT(world, world->dots == 3);
    enqueue(world, "alert", 1, 1, 3600 * SECOND);
    WAIT(world, world->dots == 4);
    server_reply(world->peer, "250 2.0.0 queued");
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) == 1);
}

/* One slot, and bulk claimed ahead for it: the alert that came later goes next. */
static void test_an_alert_overtakes_what_was_claimed_ahead(void **state)
{
    struct world *world = *state;
    hang_at_dot(world);
    start(world);
    enqueue(world, "bulk", 30, 1, 3600 * SECOND);
    for (size_t i = 1; i <= 10; i++) {
        WAIT(world, world->dots == i);
        server_reply(world->peer, "250 2.0.0 queued");
    }
    WAIT(world, world->dots == 11);
    enqueue(world, "alert", 1, 1, 3600 * SECOND);
    WAIT(world, state_of(world, world->draft.id) == BATCH_CLAIMED);
    /* Redis knows before the courier: its answer, and that with the body, come before these. */
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(show_wait(&world->worker, world->draft.id, &world->shown), 0);
    }
    server_reply(world->peer, "250 2.0.0 queued");
    WAIT(world, world->dots == 12);
    server_reply(world->peer, "250 2.0.0 queued");
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) == 1);
    assert_in_range(world->dots, 12, 13);
}

/* The same while another backend is asked for all the time: the slow one's alert is fetched. */
static void test_an_alert_is_fetched_beside_a_busy_backend(void **state)
{
    struct world *world = *state;
    hang_at_dot(world);
    static struct backend_conf other;
    static struct courier_backend_conf both[2];
    other = world->backend;
    other.name = "other";
    both[0] = world->station;
    both[1] = (struct courier_backend_conf){.backend = &other};
    world->conf.backends = both;
    world->conf.backend_count = 2;
    start(world);
    enqueue(world, "bulk", 1, 1, 3600 * SECOND);
    WAIT(world, world->dots == 1);
    enqueue(world, "alert", 1, 1, 3600 * SECOND);
    int64_t end_ms = loop_now_ms(world->rig.loop) + 5 * SECOND;
    while (state_of(world, world->draft.id) != BATCH_CLAIMED) {
        assert_true(loop_now_ms(world->rig.loop) < end_ms);
        courier_hint(world->courier);
        loop_run(world->rig.loop);
    }
    drain(world, 0);
    RIG_WAIT(&world->rig, world->drained);
}

/* A rate of 20 an hour: bulk may borrow, but never what the alerts are due. */
static void test_rates_are_shared(void **state)
{
    static const struct limiter_window windows[] = {{.units = 20, .window_ms = 3600 * SECOND}};
    struct world *world = *state;
    world->station.message_windows = windows;
    world->station.message_window_count = 1;
    enqueue(world, "bulk", 30, 1, 3600 * SECOND);
    start(world);
    WAIT(world, world->dots == 10); /* half of it; the next ones at the pace of the quota */
    enqueue(world, "alert", 10, 1, 3600 * SECOND);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) >= 9);
    assert_in_range(world->dots, 19, 20);
}

static void test_drain_waits_for_flights(void **state)
{
    struct world *world = *state;
    hang_at_dot(world);
    start(world);
    enqueue(world, "alert", 3, 1, 3600 * SECOND);
    WAIT(world, world->dots == 1);
    drain(world, 20 * SECOND);
    loop_run(world->rig.loop);
    assert_false(world->drained);
    server_reply(world->peer, "250 2.0.0 queued");
    WAIT(world, world->drained);
    assert_int_equal(count_states(world, world->draft.id, RECIPIENT_DELIVERED), 1);
    assert_int_equal(count_states(world, world->draft.id, RECIPIENT_QUEUED), 2);
    size_t ready = 0;
    for (size_t i = 0; i < 3; i++) {
        ready += world->shown.batches[i].state == BATCH_READY ? 1 : 0;
    }
    assert_int_equal(ready, 2);
}

/* The grace is over before the service has answered: the outcome is unknown. */
static void test_drain_ends_flights(void **state)
{
    struct world *world = *state;
    hang_at_dot(world);
    start(world);
    enqueue(world, "bulk", 1, 1, 3600 * SECOND);
    WAIT(world, world->dots == 1);
    drain(world, 100);
    WAIT(world, world->drained);
    assert_int_equal(count_states(world, world->draft.id, RECIPIENT_UNKNOWN), 1);
    assert_int_equal(world->shown.batches[0].state, BATCH_HELD);
}

/* Redis does not come back: the drain gives up, and closing the queue ends the rest. */
static void test_drain_without_redis(void **state)
{
    struct world *world = *state;
    hang_at_dot(world);
    start(world);
    enqueue(world, "bulk", 1, 1, 3600 * SECOND);
    WAIT(world, world->dots == 1);
    rig_stop_server(&world->rig);
    WAIT(world, !world->worker.up);
    drain(world, 100);
    WAIT(world, world->drained);
}

static const char *drop_first_dot(struct server *server, struct server_peer *peer, struct span line)
{
    (void)note_dots(server, peer, line);
    const struct world *world = server->ctx;
    return span_eq(line, SPAN_LIT("DOT")) && world->dots == 1 ? SERVER_DROP : NULL;
}

static void test_a_lost_answer_is_retried(void **state)
{
    struct world *world = *state;
    world->server.hook = drop_first_dot;
    start(world);
    enqueue(world, "alert", 1, 2, 3600 * SECOND);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) == 2);
    assert_int_equal(world->dots, 2);
}

static void test_a_lost_answer_is_held(void **state)
{
    struct world *world = *state;
    world->server.hook = drop_first_dot;
    start(world);
    enqueue(world, "bulk", 1, 2, 3600 * SECOND);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_UNKNOWN) == 2);
    assert_int_equal(world->shown.batches[0].state, BATCH_HELD);
    assert_int_equal(world->dots, 1);
}

/* Another gateway has started the batch and is never heard of again. */
static void start_and_forget(struct world *world, const char *lane)
{
    static struct claimed claimed;
    struct handle dead;
    struct queue_conf conf = world->rig.conf;
    conf.lease_ms = 500;
    handle_open(&world->rig, &dead, &conf);
    claim_wait(&dead, lane, "hve", 1, &claimed);
    assert_int_equal(claimed.count, 1);
    assert_int_equal(queue_start(dead.queue, claimed.leases[0]), 0);
    handle_close(&dead);
    queue_lease_free(&claimed.leases[0]);
}

static void test_a_started_batch_of_a_dead_gateway(void **state)
{
    struct world *world = *state;
    char first[MESSAGE_ID_MAX + 1];
    enqueue(world, "alert", 1, 1, 3600 * SECOND);
    memcpy(first, world->draft.id, sizeof first);
    start_and_forget(world, "alert");
    enqueue(world, "bulk", 1, 1, 3600 * SECOND);
    start_and_forget(world, "bulk");
    start(world);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_UNKNOWN) == 1);
    assert_int_equal(world->shown.batches[0].state, BATCH_HELD);
    WAIT(world, count_states(world, first, RECIPIENT_DELIVERED) == 1);
    assert_int_equal(world->shown.batches[0].flags, BATCH_MAYBE_SENT);
    assert_int_equal(world->server.mail_count, 1);
}

static const char *silent_at_data(struct server *server, struct server_peer *peer, struct span line)
{
    (void)note_dots(server, peer, line);
    struct world *world = server->ctx;
    if (!span_ieq(line, SPAN_LIT("DATA")) || world->peer != NULL) {
        return NULL;
    }
    world->peer = peer;
    return SERVER_SILENT;
}

/* Redis goes away between claim and start: nothing is sent, no attempt is used, and the batch is
 * delivered once when Redis is back. */
static void test_no_start_without_redis(void **state)
{
    struct world *world = *state;
    world->server.hook = silent_at_data;
    start(world);
    enqueue(world, "alert", 1, 1, 3600 * SECOND);
    WAIT(world, world->peer != NULL);
    rig_stop_server(&world->rig);
    WAIT(world, !world->worker.up);
    struct server_peer *peer = world->peer;
    peer->in_data = true;
    server_reply(peer, "354 go");
    WAIT(world, world->server.open == 0); /* the session is left before any content */
    assert_int_equal(world->dots, 0);
    rig_start_server(&world->rig);
    WAIT(world, world->producer.up);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) == 1);
    assert_int_equal(world->dots, 1);
    assert_int_equal(world->shown.batches[0].attempts, 1); /* the one that delivered */
    assert_int_equal(world->shown.batches[0].flags, 0);
}

/* What was settled while Redis was away is written when it is back. */
static void test_settles_when_redis_is_back(void **state)
{
    struct world *world = *state;
    hang_at_dot(world);
    start(world);
    enqueue(world, "alert", 1, 1, 3600 * SECOND);
    WAIT(world, world->dots == 1);
    rig_stop_server(&world->rig);
    WAIT(world, !world->worker.up);
    server_reply(world->peer, "250 2.0.0 queued");
    rig_start_server(&world->rig);
    WAIT(world, world->producer.up);
    WAIT(world, count_states(world, world->draft.id, RECIPIENT_DELIVERED) == 1);
    assert_int_equal(world->dots, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_delivers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_more_recipients_than_the_backend_takes, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_gate_closes_for_its_time, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_throttled_backend_waits_and_expires, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_expires_without_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_message_rates, setup, teardown),
        cmocka_unit_test_setup_teardown(test_recipient_rates_below_a_batch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_an_alert_finds_a_reserved_slot, setup, teardown),
        cmocka_unit_test_setup_teardown(test_an_alert_overtakes_what_was_claimed_ahead, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_an_alert_is_fetched_beside_a_busy_backend, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_rates_are_shared, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drain_waits_for_flights, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drain_ends_flights, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drain_without_redis, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_lost_answer_is_retried, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_lost_answer_is_held, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_started_batch_of_a_dead_gateway, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_start_without_redis, setup, teardown),
        cmocka_unit_test_setup_teardown(test_settles_when_redis_is_back, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
