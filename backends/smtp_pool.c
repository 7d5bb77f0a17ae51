#include "backends/smtp_pool.h"

#include "backends/smtp_client.h"
#include "gateway/base/stream.h"

#include <stdio.h>

/* Invariants:
 *
 *  - A job is in exactly one place: an account's waiting list, or inside one connection's machine.
 *  - account->load counts its jobs in both; account->connection_count its connections until
 * on_close.
 *  - No callback of a delivery runs inside a call from outside: smtp_pool_deliver and
 * smtp_pool_close only note what is to be done and defer `work`.
 *  - A connection is freed in on_close alone, which the stream never calls inside a call of ours.
 */

/* tls: optional: how long one failed handshake keeps an account on plain connections. */
#define TLS_AGAIN_MS 600000
#define IDLE_MS 30000
#define MESSAGES_PER_CONNECTION 1000
#define BACKOFF_FIRST_MS 1000
#define BACKOFF_MAX_MS 60000
/* How long a state lasts when the answer does not say (design.md 5). */
#define PARK_THROTTLED_MS 60000
#define PARK_BLOCKED_MS ((int64_t)3600 * 1000)
#define PARK_CONFIG_MS ((int64_t)300 * 1000)
/* Deliveries tried on connections that turn out to be dead before the delivery itself is answered.
 */
#define TRIES_MAX 2
/* What a rewritten header may be longer than the message it comes from. */
#define REWRITE_EXTRA_BYTES ((size_t)64 * 1024)

struct connection;

struct job {
    struct smtp_transaction transaction;
    struct delivery *delivery;
    struct job *next;
    struct buf header; /* rewritten; empty otherwise */
    unsigned tries;
    struct answer answers[]; /* one per recipient */
};

enum health {
    HEALTH_OK,
    HEALTH_PARKED,
    HEALTH_BLOCKED,
    HEALTH_CONFIG,
    HEALTH_UNREACHABLE, /* no connection could be made and none is left */
};

struct account {
    struct smtp_pool *pool;
    const char *name; /* for records: the user, or the host when there is none */
    struct span address;
    struct smtp_client_conf client;
    enum health health;
    int64_t until_ms;
    unsigned connect_failures; /* in a row */
    int64_t connect_after_ms;  /* no new connection before; the end of the back-off */
    bool pipelining;           /* the server offered it last time */
    bool tls_broken;           /* tls: optional, and the handshake failed lately */
    int64_t tls_again_ms;      /* loop time when TLS is tried again */
    struct job *waiting;
    struct job *waiting_last;
    size_t waiting_count;
    size_t load;
    struct connection **connections; /* pool->connections_max places */
    size_t connection_count;
    size_t connecting; /* of them not ready yet */
};

struct connection {
    struct account *account;
    struct stream *stream;
    struct smtp_client *client;
    struct smtp_client_conf conf; /* the account's, with tls_broken applied */
    unsigned given;               /* messages so far */
    bool starting_tls;
    bool counted_connecting;
};

/* `base` is first: the kinds know this object as a struct backend. */
struct smtp_pool {
    struct backend base;
    struct backend_env env;
    const struct backend_conf *conf;
    struct smtp_pool_conf pool_conf;
    struct tls_context *tls;
    struct account *accounts;
    size_t account_count;
    size_t next_account; /* round robin */
    struct loop_task work;
    struct loop_timer grace;
    bool closing;
    bool aborting;
    void (*on_closed)(void *ctx);
    void *closed_ctx;
};

static void work_later(struct smtp_pool *pool);
static void rearm(struct connection *connection);

/* ---- Health ---- */

static int64_t now_ms(const struct smtp_pool *pool)
{
    return loop_now_ms(pool->env.loop);
}

static void tell_health(const struct account *account, const char *what, const char *text,
                        const char *remedy)
{
    const struct smtp_pool *pool = account->pool;
    if (pool->env.on_health != NULL) {
        pool->env.on_health(pool->env.ctx, pool->conf->name, account->name, what, text, remedy);
    }
}

static void become_ok(struct account *account)
{
    if (account->health == HEALTH_OK) {
        return;
    }
    bool told = account->health != HEALTH_PARKED;
    account->health = HEALTH_OK;
    account->until_ms = 0;
    if (told) {
        tell_health(account, "ok", "", NULL);
    }
}

static bool is_resting(const struct account *account)
{
    return account->health != HEALTH_OK && now_ms(account->pool) < account->until_ms;
}

static size_t slots_per_connection(const struct account *account)
{
    return account->pipelining ? 2 : 1;
}

static size_t ready_connections(const struct account *account)
{
    return account->connection_count - account->connecting;
}

static bool may_connect(const struct account *account)
{
    return now_ms(account->pool) >= account->connect_after_ms;
}

static size_t account_room(const struct account *account)
{
    if (is_resting(account)) {
        return 0;
    }
    size_t slots = account->pool->pool_conf.connections * slots_per_connection(account);
    if (account->connect_failures > 0) {
        /* What is connected goes on working; one more tries whether it can be reached again. */
        slots = ready_connections(account) * slots_per_connection(account) +
                (may_connect(account) ? 1 : 0);
    }
    bool probing = account->health == HEALTH_BLOCKED || account->health == HEALTH_CONFIG;
    if (probing && slots > 1) {
        slots = 1;
    }
    return slots > account->load ? slots - account->load : 0;
}

size_t smtp_pool_room(const struct backend *backend)
{
    const struct smtp_pool *pool = (const struct smtp_pool *)backend;
    size_t room = 0;
    if (pool->closing) {
        return 0;
    }
    for (size_t i = 0; i < pool->account_count; i++) {
        room += account_room(&pool->accounts[i]);
    }
    return room;
}

/* ---- Jobs ---- */

static void waiting_add(struct account *account, struct job *job, bool first)
{
    if (first || account->waiting == NULL) {
        job->next = account->waiting;
        account->waiting = job;
        if (account->waiting_last == NULL) {
            account->waiting_last = job;
        }
    } else {
        job->next = NULL;
        account->waiting_last->next = job;
        account->waiting_last = job;
    }
    account->waiting_count++;
}

static struct job *waiting_take(struct account *account)
{
    struct job *job = account->waiting;
    if (job == NULL) {
        return NULL;
    }
    account->waiting = job->next;
    if (account->waiting == NULL) {
        account->waiting_last = NULL;
    }
    job->next = NULL;
    account->waiting_count--;
    return job;
}

/* Gives the delivery back and frees the job. `name` is "" when nobody sent it. */
static void finish(struct account *account, struct job *job, const char *name)
{
    ASSERT(account->load > 0);
    account->load--;
    struct delivery *delivery = job->delivery;
    delivery->backend_private = NULL;
    delivery->on_done(delivery, job->answers, name);
    buf_release(&job->header);
    mem_free(job);
}

static void finish_all_alike(struct account *account, struct job *job, const struct answer *answer)
{
    for (size_t i = 0; i < job->transaction.recipient_count; i++) {
        job->answers[i] = *answer;
    }
    finish(account, job, "");
}

static void finish_waiting(struct account *account, const struct answer *answer)
{
    /* What on_done brings in anew is not ours: the account has no room. */
    for (size_t left = account->waiting_count; left > 0; left--) {
        struct job *job = waiting_take(account);
        if (job == NULL) {
            break;
        }
        finish_all_alike(account, job, answer);
    }
}

/* ---- What answers do to accounts ---- */

static enum health health_for(enum verdict verdict)
{
    switch (verdict) {
    case VERDICT_THROTTLED:
        return HEALTH_PARKED;
    case VERDICT_ACCOUNT_BLOCKED:
        return HEALTH_BLOCKED;
    case VERDICT_CONFIG:
    case VERDICT_REFRESH:
        return HEALTH_CONFIG;
    case VERDICT_DELIVERED:
    case VERDICT_RECIPIENT_PERMANENT:
    case VERDICT_MESSAGE_PERMANENT:
    case VERDICT_TRANSIENT:
    case VERDICT_UNKNOWN:
        return HEALTH_OK;
    }
    UNREACHABLE();
}

static int64_t rest_ms(enum health health)
{
    switch (health) {
    case HEALTH_PARKED:
        return PARK_THROTTLED_MS;
    case HEALTH_BLOCKED:
        return PARK_BLOCKED_MS;
    case HEALTH_CONFIG:
        return PARK_CONFIG_MS;
    case HEALTH_OK:
    case HEALTH_UNREACHABLE:
        return 0;
    }
    UNREACHABLE();
}

static void park(struct account *account, enum health health, const struct answer *answer)
{
    int64_t wait_ms = answer->wait_ms > 0 ? answer->wait_ms : rest_ms(health);
    int64_t until_ms = now_ms(account->pool) + wait_ms;
    /* Answers of a burst say the same many times; the record is made once. */
    bool news = account->health != health || !is_resting(account);
    if (account->health == health && until_ms < account->until_ms) {
        return;
    }
    account->health = health;
    account->until_ms = until_ms;
    if (news && health != HEALTH_PARKED) {
        tell_health(account, health == HEALTH_BLOCKED ? "blocked" : "config", answer->text,
                    answer->remedy);
    }
    finish_waiting(account, answer);
}

static void apply_answer(struct account *account, const struct answer *answer)
{
    enum health health = health_for(answer->verdict);
    if (health == HEALTH_OK || answer->scope == SCOPE_NONE) {
        return;
    }
    struct smtp_pool *pool = account->pool;
    if (answer->scope == SCOPE_ACCOUNT) {
        park(account, health, answer);
        return;
    }
    for (size_t i = 0; i < pool->account_count; i++) {
        park(&pool->accounts[i], health, answer);
    }
}

/* A password cannot be renewed: where a token would be, this is a matter of configuration. */
static void settle_refresh(struct answer *answer)
{
    if (answer->verdict == VERDICT_REFRESH) {
        answer->verdict = VERDICT_CONFIG;
    }
}

/* Applies all answers of a job to the account's health. */
static void apply_answers(struct account *account, struct job *job)
{
    bool delivered = false;
    for (size_t i = 0; i < job->transaction.recipient_count; i++) {
        settle_refresh(&job->answers[i]);
        delivered = delivered || job->answers[i].verdict == VERDICT_DELIVERED;
    }
    if (delivered && !is_resting(account)) {
        become_ok(account);
    }
    for (size_t i = 0; i < job->transaction.recipient_count; i++) {
        apply_answer(account, &job->answers[i]);
    }
}

/* No session came about: none is tried for a while, longer each time. The server may only be short
 * of connections, so that is nobody's ill health while others work. */
static void connect_failed(struct account *account, const struct answer *answer)
{
    if (may_connect(account)) {
        unsigned shift = account->connect_failures < 6 ? account->connect_failures : 6;
        int64_t wait_ms = (int64_t)BACKOFF_FIRST_MS << shift;
        account->connect_failures++;
        account->connect_after_ms = now_ms(account->pool) +
                                    (wait_ms < BACKOFF_MAX_MS ? wait_ms : BACKOFF_MAX_MS);
    }
    bool was_well = account->health == HEALTH_OK || account->health == HEALTH_PARKED;
    if (was_well && account->connection_count == 0) {
        account->health = HEALTH_UNREACHABLE;
        account->until_ms = 0;
        tell_health(account, "unreachable", answer->text, answer->remedy);
    }
}

/* Ends what waits when no connection is left and none may be opened: nobody would come for it.
 * `reason` is why the last one went; whatever its verdict was (QUIT counts as success), for these
 * it is a matter of trying again. */
static void give_up_waiting(struct account *account, const struct answer *reason)
{
    if (account->connection_count > 0 || may_connect(account)) {
        return;
    }
    struct answer answer;
    verdict_own_answer(VERDICT_TRANSIENT, reason->text, &answer);
    answer.code = reason->code;
    answer.remedy = reason->remedy;
    finish_waiting(account, &answer);
}

/* ---- The machine's callbacks ---- */

static int on_write(void *ctx, struct span bytes)
{
    struct connection *connection = ctx;
    return connection->stream != NULL ? stream_write(connection->stream, bytes) : ERR_CLOSED;
}

static bool on_congested(void *ctx)
{
    const struct connection *connection = ctx;
    return stream_above_high_water(connection->stream);
}

static void on_start_tls(void *ctx)
{
    struct connection *connection = ctx;
    const struct smtp_pool *pool = connection->account->pool;
    connection->starting_tls = true;
    if (stream_start_tls(connection->stream, pool->tls, pool->conf->host) != 0) {
        stream_abort(connection->stream);
    }
}

static void leave_connecting(struct connection *connection)
{
    if (connection->counted_connecting) {
        connection->counted_connecting = false;
        ASSERT(connection->account->connecting > 0);
        connection->account->connecting--;
    }
}

static void on_ready(void *ctx)
{
    struct connection *connection = ctx;
    struct account *account = connection->account;
    leave_connecting(connection);
    account->connect_failures = 0;
    account->connect_after_ms = 0;
    account->pipelining = (smtp_client_extensions(connection->client) & SMTP_EXT_PIPELINING) != 0;
    if (account->health == HEALTH_UNREACHABLE) {
        become_ok(account);
    }
    work_later(account->pool);
}

static int on_start(void *ctx, struct smtp_transaction *transaction)
{
    (void)ctx;
    struct job *job = transaction->ctx;
    return job->delivery->on_start(job->delivery);
}

static void on_done(void *ctx, struct smtp_transaction *transaction)
{
    struct connection *connection = ctx;
    struct account *account = connection->account;
    struct job *job = transaction->ctx;
    work_later(account->pool);
    /* The session had worked before: the server ended it while it was idle. */
    bool stale = transaction->untried && connection->given > 1;
    if (stale && job->tries < TRIES_MAX && !account->pool->closing && !is_resting(account)) {
        waiting_add(account, job, true);
        return;
    }
    apply_answers(account, job);
    finish(account, job, transaction->started ? account->name : "");
}

static void on_end(void *ctx)
{
    struct connection *connection = ctx;
    if (connection->stream != NULL) {
        stream_close(connection->stream);
    }
}

static const struct smtp_client_ops client_ops = {
    .write = on_write,
    .congested = on_congested,
    .on_start_tls = on_start_tls,
    .on_ready = on_ready,
    .on_start = on_start,
    .on_done = on_done,
    .on_end = on_end,
};

/* ---- The stream's callbacks ---- */

static void on_open(void *ctx)
{
    struct connection *connection = ctx;
    if (connection->starting_tls) {
        connection->starting_tls = false;
        smtp_client_tls_done(connection->client);
    }
    rearm(connection);
}

static size_t on_data(void *ctx, struct span bytes)
{
    struct connection *connection = ctx;
    size_t used = smtp_client_feed(connection->client, bytes);
    rearm(connection);
    return used;
}

static void on_drain(void *ctx)
{
    struct connection *connection = ctx;
    smtp_client_pump(connection->client);
    rearm(connection);
}

static int64_t idle_ms(const struct connection *connection)
{
    int64_t wanted_ms = connection->account->pool->pool_conf.idle_ms;
    return wanted_ms > 0 ? wanted_ms : IDLE_MS;
}

/* One deadline serves the server's answers and the end of idle connections. */
static void rearm(struct connection *connection)
{
    if (smtp_client_ended(connection->client)) {
        return;
    }
    int64_t wait_ms = smtp_client_wait_ms(connection->client);
    stream_deadline(connection->stream, wait_ms > 0 ? wait_ms : idle_ms(connection));
}

static void on_deadline(void *ctx)
{
    struct connection *connection = ctx;
    int64_t wait_ms = smtp_client_wait_ms(connection->client);
    if (wait_ms == 0) {
        smtp_client_quit(connection->client);
        rearm(connection);
        return;
    }
    char why[120];
    (void)snprintf(why, sizeof why, "The server did not answer within %lld seconds.",
                   (long long)(wait_ms / 1000));
    smtp_client_lost(connection->client, why);
    stream_abort(connection->stream);
}

static void connection_forget(struct connection *connection)
{
    struct account *account = connection->account;
    leave_connecting(connection);
    for (size_t i = 0; i < account->connection_count; i++) {
        if (account->connections[i] == connection) {
            account->connections[i] = account->connections[--account->connection_count];
            return;
        }
    }
    UNREACHABLE();
}

/* A session that never became ready says something about the account or the service. */
static void judge_failure(struct account *account, const struct answer *reason)
{
    struct answer answer = *reason;
    settle_refresh(&answer);
    switch (health_for(answer.verdict)) {
    case HEALTH_PARKED:
    case HEALTH_BLOCKED:
    case HEALTH_CONFIG:
        if (answer.scope == SCOPE_NONE) {
            answer.scope = SCOPE_ACCOUNT;
        }
        apply_answer(account, &answer);
        return;
    case HEALTH_OK:
    case HEALTH_UNREACHABLE:
        answer.verdict = VERDICT_TRANSIENT;
        connect_failed(account, &answer);
        return;
    }
}

/* Why the session ended, for the account: a certificate that does not convince is nothing that time
 * mends. */
static void failure_of(const struct connection *connection, int status, struct answer *out)
{
    *out = *smtp_client_reason(connection->client);
    if (status == ERR_DENIED) {
        out->verdict = VERDICT_CONFIG;
        out->scope = SCOPE_BACKEND;
        out->remedy =
            "The server's certificate is not trusted: set ca_file to the authority that issued it, "
            "and host to the name it was issued for.";
    }
}

static void on_close(void *ctx, int status, const char *why)
{
    struct connection *connection = ctx;
    struct account *account = connection->account;
    struct smtp_pool *pool = account->pool;
    connection->stream = NULL;
    /* Opportunistic TLS: better plain than not at all, and at once. */
    bool plain_next = connection->starting_tls && status != 0 &&
                      pool->conf->tls == BACKEND_TLS_OPTIONAL && !account->tls_broken;
    if (plain_next) {
        account->tls_broken = true;
        account->tls_again_ms = loop_now_ms(pool->env.loop) + TLS_AGAIN_MS;
    }
    char text[400];
    (void)snprintf(text, sizeof text, "The connection to %s port %u was lost: %s", pool->conf->host,
                   (unsigned)pool->conf->port, why);
    smtp_client_lost(connection->client, text);
    connection_forget(connection);
    if (!smtp_client_was_ready(connection->client) && !plain_next && !pool->closing) {
        struct answer failure;
        failure_of(connection, status, &failure);
        judge_failure(account, &failure);
    }
    give_up_waiting(account, smtp_client_reason(connection->client));
    smtp_client_free(&connection->client);
    mem_free(connection);
    work_later(pool);
}

static const struct stream_ops stream_callbacks = {
    .on_open = on_open,
    .on_data = on_data,
    .on_drain = on_drain,
    .on_deadline = on_deadline,
    .on_close = on_close,
};

/* ---- Work ---- */

static void connection_open(struct account *account)
{
    struct smtp_pool *pool = account->pool;
    const struct backend_conf *conf = pool->conf;
    struct connection *connection = mem_zero(sizeof *connection);
    connection->account = account;
    connection->conf = account->client;
    account->tls_broken = account->tls_broken &&
                          loop_now_ms(pool->env.loop) < account->tls_again_ms;
    if (account->tls_broken) {
        connection->conf.starttls = SMTP_STARTTLS_NEVER;
    }
    connection->client = smtp_client_new(&connection->conf, &client_ops, connection);
    struct stream_target target = {
        .host = conf->host,
        .port = conf->port,
        .tls = conf->tls == BACKEND_TLS_IMPLICIT ? pool->tls : NULL,
        .connect_timeout_ms = conf->connect_timeout_ms,
    };
    int rc = stream_connect(pool->env.loop, &target, &stream_callbacks, connection, NULL,
                            &connection->stream);
    if (rc != 0) {
        struct answer answer;
        verdict_own_answer(VERDICT_TRANSIENT, "The connection could not be started.", &answer);
        smtp_client_lost(connection->client, answer.text);
        smtp_client_free(&connection->client);
        mem_free(connection);
        connect_failed(account, &answer);
        give_up_waiting(account, &answer);
        return;
    }
    connection->counted_connecting = true;
    account->connecting++;
    account->connections[account->connection_count++] = connection;
}

/* An idle connection if there is one, else one that takes a second delivery. */
static struct connection *pick_connection(struct account *account, bool idle_only)
{
    struct connection *best = NULL;
    for (size_t i = 0; i < account->connection_count; i++) {
        struct connection *connection = account->connections[i];
        if (connection->stream == NULL || smtp_client_room(connection->client) == 0) {
            continue;
        }
        if (smtp_client_load(connection->client) == 0) {
            return connection;
        }
        if (best == NULL) {
            best = connection;
        }
    }
    return idle_only ? NULL : best;
}

static int prepare(struct account *account, struct job *job)
{
    const struct smtp_pool_conf *conf = &account->pool->pool_conf;
    struct smtp_transaction *transaction = &job->transaction;
    if (conf->sender_is_account) {
        transaction->reverse_path = account->address;
    }
    if (conf->rewrite == NULL) {
        transaction->content[0] = job->delivery->body;
        return 0;
    }
    buf_reset(&job->header);
    int rc = conf->rewrite(job->delivery->body, account->address, &job->header,
                           &transaction->content[1]);
    transaction->content[0] = buf_span(&job->header);
    return rc;
}

static void give(struct connection *connection, struct job *job)
{
    struct account *account = connection->account;
    int rc = prepare(account, job);
    if (rc != 0) {
        struct answer answer;
        verdict_own_answer(VERDICT_TRANSIENT, "The message could not be prepared: out of memory.",
                           &answer);
        finish_all_alike(account, job, &answer);
        return;
    }
    job->tries++;
    connection->given++;
    smtp_client_give(connection->client, &job->transaction);
    if (connection->given >= MESSAGES_PER_CONNECTION) {
        smtp_client_quit(connection->client);
    }
    rearm(connection);
}

/* Brings waiting jobs and connections of one account together. */
static void work_account(struct account *account)
{
    size_t connections_max = account->pool->pool_conf.connections;
    while (account->waiting_count > 0) {
        struct connection *connection = pick_connection(account, true);
        bool may_open = account->connection_count < connections_max &&
                        account->connecting < account->waiting_count && may_connect(account);
        if (connection == NULL && may_open) {
            connection_open(account);
            continue;
        }
        if (connection == NULL) {
            connection = pick_connection(account, false);
        }
        if (connection == NULL) {
            break;
        }
        give(connection, waiting_take(account));
    }
}

static bool all_closed(const struct smtp_pool *pool)
{
    for (size_t i = 0; i < pool->account_count; i++) {
        if (pool->accounts[i].connection_count > 0 || pool->accounts[i].load > 0) {
            return false;
        }
    }
    return true;
}

static void pool_free(struct smtp_pool *pool)
{
    loop_task_cancel(&pool->work);
    loop_timer_stop(&pool->grace);
    for (size_t i = 0; i < pool->account_count; i++) {
        mem_free(pool->accounts[i].connections);
    }
    mem_free(pool->accounts);
    tls_context_unref(&pool->tls);
    mem_free(pool);
}

/* Ends what waits and what is idle; what runs may finish unless `aborting`. */
static void work_closing(struct smtp_pool *pool)
{
    struct answer answer;
    verdict_own_answer(VERDICT_TRANSIENT, "The gateway is stopping.", &answer);
    for (size_t i = 0; i < pool->account_count; i++) {
        struct account *account = &pool->accounts[i];
        finish_waiting(account, &answer);
        for (size_t c = account->connection_count; c > 0; c--) {
            struct connection *connection = account->connections[c - 1];
            if (pool->aborting) {
                smtp_client_lost(connection->client, "The gateway has stopped.");
                stream_abort(connection->stream);
            } else {
                smtp_client_quit(connection->client);
                rearm(connection);
            }
        }
    }
    if (all_closed(pool)) {
        void (*on_closed)(void *ctx) = pool->on_closed;
        void *ctx = pool->closed_ctx;
        pool_free(pool);
        on_closed(ctx);
    }
}

static void on_work(void *ctx)
{
    struct smtp_pool *pool = ctx;
    if (pool->closing) {
        work_closing(pool);
        return;
    }
    for (size_t i = 0; i < pool->account_count; i++) {
        work_account(&pool->accounts[i]);
    }
}

/* In the class that runs before streams write, so that what is given now leaves in this turn. */
static void work_later(struct smtp_pool *pool)
{
    loop_defer(pool->env.loop, &pool->work, LOOP_TASK_QUEUE, on_work, pool);
}

/* ---- The outside ---- */

static enum smtp_starttls starttls_for(enum backend_tls tls)
{
    switch (tls) {
    case BACKEND_TLS_OFF:
    case BACKEND_TLS_IMPLICIT:
        return SMTP_STARTTLS_NEVER;
    case BACKEND_TLS_OPTIONAL:
        return SMTP_STARTTLS_OFFERED;
    case BACKEND_TLS_STARTTLS:
        return SMTP_STARTTLS_REQUIRED;
    }
    UNREACHABLE();
}

static void account_init(struct smtp_pool *pool, struct account *account,
                         const struct backend_account *who)
{
    const struct backend_conf *conf = pool->conf;
    bool signs_in = who != NULL && conf->auth != BACKEND_AUTH_NONE;
    account->pool = pool;
    const char *user = who != NULL ? who->user : NULL;
    account->name = user != NULL ? user : conf->host;
    account->address = span_of(user);
    account->connections = mem_zero(pool->pool_conf.connections * sizeof *account->connections);
    account->client = (struct smtp_client_conf){
        .hostname = conf->hostname,
        .kind = pool->pool_conf.kind,
        .starttls = starttls_for(conf->tls),
        .tls_already = conf->tls == BACKEND_TLS_IMPLICIT,
        .user = signs_in ? who->user : NULL,
        .password = signs_in ? who->password : NULL,
        .password_needs_tls = conf->tls != BACKEND_TLS_OFF,
        .prefer_login = pool->pool_conf.prefer_login,
        .message_bytes = conf->message_bytes,
        .reply_timeout_ms = conf->reply_timeout_ms,
    };
}

int smtp_pool_open(const struct smtp_pool_conf *conf, const struct backend_ops *ops,
                   struct backend **out, struct err *err)
{
    ASSERT(conf->connections > 0);
    struct tls_context *tls = NULL;
    if (conf->conf->tls != BACKEND_TLS_OFF) {
        bool verify = conf->conf->tls != BACKEND_TLS_OPTIONAL;
        struct tls_client_conf tls_conf = {
            .ca_file = conf->conf->ca_file,
            .min_version = verify ? TLS_1_2 : TLS_1_0,
            .verify = verify,
        };
        int rc = tls_client_new(&tls_conf, &tls, err);
        if (rc != 0) {
            return rc;
        }
    }
    struct smtp_pool *pool = mem_zero(sizeof *pool);
    pool->base = (struct backend){.ops = ops, .conf = conf->conf};
    pool->env = *conf->env;
    pool->conf = conf->conf;
    pool->pool_conf = *conf;
    pool->tls = tls;
    pool->account_count = conf->conf->account_count > 0 ? conf->conf->account_count : 1;
    pool->accounts = mem_zero(pool->account_count * sizeof *pool->accounts);
    for (size_t i = 0; i < pool->account_count; i++) {
        account_init(pool, &pool->accounts[i],
                     conf->conf->account_count > 0 ? &conf->conf->accounts[i] : NULL);
    }
    *out = &pool->base;
    return 0;
}

/* The next account in turn that has room. */
static struct account *pick_account(struct smtp_pool *pool)
{
    for (size_t i = 0; i < pool->account_count; i++) {
        struct account *account = &pool->accounts[(pool->next_account + i) % pool->account_count];
        if (account_room(account) > 0) {
            pool->next_account = (pool->next_account + i + 1) % pool->account_count;
            return account;
        }
    }
    return NULL;
}

int smtp_pool_deliver(struct backend *backend, struct delivery *delivery)
{
    struct smtp_pool *pool = (struct smtp_pool *)backend;
    uint32_t limit = pool->conf->recipients_per_message;
    if (delivery->recipient_count == 0 || delivery->recipient_count > BATCH_RECIPIENTS_MAX ||
        (limit > 0 && delivery->recipient_count > limit)) {
        return ERR_INVAL;
    }
    struct account *account = pool->closing ? NULL : pick_account(pool);
    if (account == NULL) {
        return ERR_FULL;
    }
    struct job *job = mem_zero(sizeof *job + delivery->recipient_count * sizeof job->answers[0]);
    job->delivery = delivery;
    buf_init(&job->header, delivery->body.len + REWRITE_EXTRA_BYTES);
    job->transaction = (struct smtp_transaction){
        .reverse_path = delivery->reverse_path,
        .recipients = delivery->recipients,
        .recipient_count = delivery->recipient_count,
        .needs_8bitmime = delivery->needs_8bitmime,
        .needs_smtputf8 = delivery->needs_smtputf8,
        .answers = job->answers,
        .ctx = job,
    };
    delivery->backend_private = job;
    account->load++;
    waiting_add(account, job, false);
    work_later(pool);
    return 0;
}

static void on_grace(void *ctx)
{
    struct smtp_pool *pool = ctx;
    pool->aborting = true;
    work_later(pool);
}

void smtp_pool_close(struct backend *backend, int64_t grace_ms, void (*on_closed)(void *ctx),
                     void *ctx)
{
    struct smtp_pool *pool = (struct smtp_pool *)backend;
    pool->closing = true;
    pool->on_closed = on_closed;
    pool->closed_ctx = ctx;
    loop_timer_start(pool->env.loop, &pool->grace, grace_ms, on_grace, pool);
    work_later(pool);
}
