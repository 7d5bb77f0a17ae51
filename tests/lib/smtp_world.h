/* A backend of a SMTP kind, a scripted server, and deliveries between them on one loop, for unit
 * tests. Waits for events only; a watchdog aborts the program when one does not come. Everything is
 * static: a test includes this file once. */
#ifndef HEAVE_TESTS_LIB_SMTP_WORLD_H
#define HEAVE_TESTS_LIB_SMTP_WORLD_H

#include "backends/backend.h"
#include "queue/message.h"
#include "tests/lib/smtp_server.h"

#define WORLD_PATIENCE_MS 30000
#define WORLD_LOG_BYTES 4000

/* One delivery and what became of it. */
struct sent {
    struct delivery delivery;
    struct span recipients[BATCH_RECIPIENTS_MAX];
    struct answer answers[BATCH_RECIPIENTS_MAX];
    char account[100];
    unsigned starts;
    unsigned dones;
    bool start_fails;
    struct world *world;
};

struct world {
    struct loop *loop;
    struct server server;
    uv_timer_t pulse;
    int64_t deadline_ms;
    struct backend_conf conf;
    struct backend_env env;
    struct backend *backend;
    bool inside; /* a call into the backend is running: no callback may come */
    size_t done_count;
    bool closed;
    char health[WORLD_LOG_BYTES]; /* "account what|" each */
    char health_text[300];        /* of the last */
    char remedy[600];
};

static inline void world_on_pulse(uv_timer_t *timer)
{
    const struct world *world = timer->data;
    ASSERT(loop_now_ms(world->loop) < world->deadline_ms); /* the awaited event did not come */
}

#define RUN_UNTIL(world, condition)                                            \
    do {                                                                       \
        (world)->deadline_ms = loop_now_ms((world)->loop) + WORLD_PATIENCE_MS; \
        while (!(condition)) {                                                 \
            (void)uv_run(loop_uv((world)->loop), UV_RUN_ONCE);                 \
        }                                                                      \
    } while (0)

static inline void world_on_health(void *ctx, const char *backend, const char *account,
                                   const char *what, const char *text, const char *remedy)
{
    struct world *world = ctx;
    ASSERT(!world->inside);
    ASSERT(strcmp(backend, "test") == 0);
    size_t len = strlen(world->health);
    (void)snprintf(world->health + len, sizeof world->health - len, "%s %s|", account, what);
    (void)snprintf(world->health_text, sizeof world->health_text, "%s", text);
    (void)snprintf(world->remedy, sizeof world->remedy, "%s", remedy != NULL ? remedy : "");
}

static inline void world_init(struct world *world)
{
    memset(world, 0, sizeof *world);
    world->loop = loop_new("test");
    server_start(&world->server, world->loop);
    world->server.ctx = world;
    world->deadline_ms = INT64_MAX;
    ASSERT(uv_timer_init(loop_uv(world->loop), &world->pulse) == 0);
    world->pulse.data = world;
    ASSERT(uv_timer_start(&world->pulse, world_on_pulse, 5, 5) == 0);
    world->env = (struct backend_env){
        .loop = world->loop, .on_health = world_on_health, .ctx = world};
    world->conf = (struct backend_conf){
        .name = "test",
        .hostname = "gw.test",
        .host = "127.0.0.1",
        .port = world->server.port,
        .recipients_per_message = BATCH_RECIPIENTS_MAX,
        .connect_timeout_ms = 5000,
    };
}

static inline void world_open(struct world *world, const struct backend_ops *ops)
{
    struct err err;
    if (ops->open(&world->env, &world->conf, &world->backend, &err) != 0) {
        (void)fprintf(stderr, "open: %s\n", err.text);
        ASSERT(world->backend != NULL);
    }
}

static inline size_t world_room(const struct world *world)
{
    return world->backend->ops->room(world->backend);
}

static inline int sent_on_start(struct delivery *delivery)
{
    struct sent *sent = delivery->ctx;
    ASSERT(!sent->world->inside);
    ASSERT(sent->dones == 0);
    sent->starts++;
    return sent->start_fails ? ERR_STALE : 0;
}

static inline void sent_on_done(struct delivery *delivery, const struct answer *answers,
                                const char *account)
{
    struct sent *sent = delivery->ctx;
    ASSERT(!sent->world->inside);
    memcpy(sent->answers, answers, delivery->recipient_count * sizeof *answers);
    (void)snprintf(sent->account, sizeof sent->account, "%s", account);
    sent->dones++;
    sent->world->done_count++;
}

/* `to` is a list with commas, which lives as long as the sent. */
static inline void sent_init(struct world *world, struct sent *sent, const char *to,
                             struct span body)
{
    memset(sent, 0, sizeof *sent);
    sent->world = world;
    struct span rest = span_of(to);
    size_t count = 0;
    while (rest.len > 0) {
        sent->recipients[count++] = span_cut(&rest, ',');
    }
    sent->delivery = (struct delivery){
        .message_id = SPAN_LIT("01TEST"),
        .reverse_path = SPAN_LIT("sender@contoso.test"),
        .recipients = sent->recipients,
        .recipient_count = count,
        .body = body,
        .on_start = sent_on_start,
        .on_done = sent_on_done,
        .ctx = sent,
    };
}

static inline int world_deliver(struct world *world, struct sent *sent)
{
    world->inside = true;
    int rc = world->backend->ops->deliver(world->backend, &sent->delivery);
    world->inside = false;
    return rc;
}

/* Delivers and waits for the end. */
static inline void world_send(struct world *world, struct sent *sent, const char *to,
                              const char *body)
{
    sent_init(world, sent, to, span_of(body));
    ASSERT(world_deliver(world, sent) == 0);
    RUN_UNTIL(world, sent->dones > 0);
    ASSERT(sent->dones == 1);
}

static inline void world_on_closed(void *ctx)
{
    struct world *world = ctx;
    ASSERT(!world->inside);
    world->closed = true;
}

static inline void world_close_backend(struct world *world, int64_t grace_ms)
{
    struct backend *backend = world->backend;
    world->backend = NULL;
    world->inside = true;
    backend->ops->close(backend, grace_ms, world_on_closed, world);
    world->inside = false;
    RUN_UNTIL(world, world->closed);
}

static inline void world_release(struct world *world)
{
    if (world->backend != NULL) {
        world_close_backend(world, 0);
    }
    server_stop(&world->server);
    uv_close((uv_handle_t *)&world->pulse, NULL);
    loop_free(&world->loop);
}

#endif
