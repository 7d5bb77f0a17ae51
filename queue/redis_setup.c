/* What happens between "connected" and "up": greeting, checks of the server's settings, scripts.
 *
 * The commands of each part are sent at once and answered in order; the first answer that will not
 * do drops the connection with a sentence. What the server says of itself is judged when all of it
 * is there (redis_facts.c), then the scripts are loaded. The last answer, the SHA of the last
 * script, makes the connection ready. */
#include "queue/redis_facts.h"
#include "queue/redis_internal.h"

#include <stdio.h>

static void send_words(struct redis *redis, const char *const *words, redis_cb cb)
{
    struct redis_args args;
    redis_args_init(&args);
    for (size_t i = 0; words[i] != NULL; i++) {
        redis_args_text(&args, words[i]);
    }
    if (redis_submit(redis, &args, cb, redis) != 0) {
        redis_drop(redis, "The greeting could not be sent to Redis.");
    }
}

#define SEND(redis, cb, ...) send_words(redis, (const char *const[]){__VA_ARGS__, NULL}, cb)

static void on_script(void *ctx, int status, const struct redis_value *value);

static const char *login_hint(const struct redis *redis, struct span said)
{
    if (!span_starts(said, SPAN_LIT("NOAUTH"))) {
        return "";
    }
    return redis->conf->kind == REDIS_SENTINEL
               ? " Give the sentinels' password with queue.sentinel_password."
               : " Give its password with queue.password or queue.password_file (and the name of an "
                 "ACL user with queue.user).";
}

/* Drops the connection when the answer is an error. True when it is one (or the connection is gone
 * already). */
static bool refused(struct redis *redis, int status, const struct redis_value *value,
                    const char *what)
{
    if (status == 0) {
        return redis->dropping;
    }
    if (value->type == REDIS_ERROR) {
        /* Some of its errors are sentences with a full stop, some are not. */
        struct span said = value->text;
        bool stopped = said.len > 0 && said.data[said.len - 1] == '.';
        redis_drop(redis, "Redis refuses %s: %.*s%s%s", what, SPAN_FMT(said), stopped ? "" : ".",
                   login_hint(redis, said));
    }
    return true;
}

static void on_auth(void *ctx, int status, const struct redis_value *value)
{
    const struct redis *redis = ctx;
    (void)refused(ctx, status, value,
                  redis->conf->kind == REDIS_SENTINEL
                      ? "the user or password of the sentinels (queue.sentinel_user)"
                      : "the user or password of queue.redis");
}

static void on_select(void *ctx, int status, const struct redis_value *value)
{
    (void)refused(ctx, status, value, "the database number of queue.redis");
}

/* Lua's first line as Redis 7 reads it; older servers know no flags and would refuse it. */
static const char allow_oom_line[] = "#!lua flags=allow-oom\n";

int redis_load_script(struct redis *redis, size_t script, redis_cb cb, void *ctx)
{
    const struct redis_script *row = &redis->conf->scripts[script];
    size_t flags_len = row->allow_oom && redis->facts.version >= REDIS_VERSION_FLAGS
                           ? sizeof(allow_oom_line) - 1
                           : 0;
    char *text = mem_alloc(flags_len + row->source.len + 1);
    memcpy(text, allow_oom_line, flags_len);
    memcpy(text + flags_len, row->source.data, row->source.len);
    struct redis_args load;
    redis_args_init(&load);
    redis_args_text(&load, "SCRIPT");
    redis_args_text(&load, "LOAD");
    redis_args_add(&load, span_make(text, flags_len + row->source.len));
    mem_free(text);
    return redis_submit(redis, &load, cb, ctx);
}

static void become_ready(struct redis *redis)
{
    if (!redis->dropping && redis->phase == REDIS_SETUP) {
        redis_ready(redis);
    }
}

static void load_scripts(struct redis *redis)
{
    for (size_t i = 0; i < redis->conf->script_count; i++) {
        if (redis_load_script(redis, i, on_script, redis) != 0) {
            redis_drop(redis, "The scripts could not be sent to Redis.");
            return;
        }
    }
    if (redis->conf->script_count == 0) {
        become_ready(redis);
    }
}

static void judge(struct redis *redis)
{
    struct err err = {0};
    char warning[300];
    if (redis_facts_judge(&redis->facts, redis->conf->server, &redis->wait, warning, &err) != 0) {
        redis_drop(redis, "%s", err.text);
        return;
    }
    if (warning[0] != '\0') {
        redis_warn(redis, warning);
    }
    redis_replicas_seen(redis, redis->facts.replicas);
    load_scripts(redis);
}

static void on_info(void *ctx, int status, const struct redis_value *value)
{
    struct redis *redis = ctx;
    if (refused(redis, status, value, "INFO")) {
        return;
    }
    redis_facts_info(&redis->facts, value->text);
    if (redis->conf->server->managed) {
        /* Ours: its configuration file says what we need. */
        load_scripts(redis);
    }
}

/* CONFIG may be forbidden (managed services, ACL): then INFO has told the policy, and the rest is
 * believed. */
static void on_policy(void *ctx, int status, const struct redis_value *value)
{
    struct redis *redis = ctx;
    struct span policy = redis_item(value, 1)->text;
    if (status == 0 && policy.len > 0) {
        (void)snprintf(redis->facts.policy, sizeof(redis->facts.policy), "%.*s", SPAN_FMT(policy));
    }
}

static void on_fsync(void *ctx, int status, const struct redis_value *value)
{
    struct redis *redis = ctx;
    if (redis->dropping || status == ERR_TIMEOUT || status == ERR_CLOSED) {
        return;
    }
    struct span policy = redis_item(value, 1)->text;
    if (status == 0) {
        (void)snprintf(redis->facts.fsync, sizeof(redis->facts.fsync), "%.*s", SPAN_FMT(policy));
    }
    judge(redis);
}

static void on_script(void *ctx, int status, const struct redis_value *value)
{
    struct redis *redis = ctx;
    if (refused(redis, status, value, "to load a script")) {
        return;
    }
    ASSERT(redis->scripts_loaded < redis->conf->script_count);
    if (value->text.len != REDIS_SHA_LEN) {
        redis_drop(redis, "Redis did not answer SCRIPT LOAD with a hash.");
        return;
    }
    memcpy(redis->shas[redis->scripts_loaded], value->text.data, REDIS_SHA_LEN);
    redis->scripts_loaded++;
    if (redis->scripts_loaded == redis->conf->script_count) {
        become_ready(redis);
    }
}

static void on_subscribed(void *ctx, int status, const struct redis_value *value)
{
    if (!refused(ctx, status, value, "SUBSCRIBE")) {
        become_ready(ctx);
    }
}

static void on_ping(void *ctx, int status, const struct redis_value *value)
{
    if (!refused(ctx, status, value, "PING")) {
        become_ready(ctx);
    }
}

/* The value behind `name` in a flat list of names and values; nil when it is not there. */
static const struct redis_value *pair_value(const struct redis_value *list, const char *name)
{
    for (size_t i = 0; list->type == REDIS_ARRAY && i + 1 < list->count; i += 2) {
        if (span_eq(list->items[i].text, span_of(name))) {
            return &list->items[i + 1];
        }
    }
    return redis_item(NULL, 0);
}

static void on_master(void *ctx, int status, const struct redis_value *value)
{
    struct redis *redis = ctx;
    /* "ERR No such master with that name" */
    bool is_unknown = value->type == REDIS_ERROR &&
                      span_search(value->text, SPAN_LIT("No such master")) < value->text.len;
    if (!is_unknown && refused(redis, status, value, "SENTINEL")) {
        return;
    }
    struct span host = pair_value(value, "ip")->text;
    int64_t port = redis_integer(pair_value(value, "port"));
    if (host.len == 0 || port <= 0 || port > UINT16_MAX) {
        redis_drop(redis, "The sentinel at %s:%u knows no master \"%s\" (queue.redis names it).",
                   redis->conf->host, redis->conf->port, redis->conf->server->master_name);
        return;
    }
    redis->ops->on_master(redis->ctx, host, (uint16_t)port,
                          redis_integer(pair_value(value, "config-epoch")));
}

static void greet(struct redis *redis, const char *user, const char *password)
{
    if (password != NULL && user != NULL) {
        SEND(redis, on_auth, "AUTH", user, password);
    } else if (password != NULL) {
        SEND(redis, on_auth, "AUTH", password);
    }
}

static void greet_server(struct redis *redis)
{
    const struct queue_conf *server = redis->conf->server;
    greet(redis, server->user, server->password);
    if (server->database != 0) {
        char number[16];
        (void)snprintf(number, sizeof(number), "%d", server->database);
        SEND(redis, on_select, "SELECT", number);
    }
}

static void check(struct redis *redis)
{
    redis->facts = (struct redis_facts){.append_only = -1};
    SEND(redis, on_info, "INFO");
    if (redis->conf->server->managed) {
        /* Per-command histograms are of no use to anybody here and cost a few per cent; older
         * servers do not know the option, which does no harm. */
        SEND(redis, NULL, "CONFIG", "SET", "latency-tracking", "no");
        return;
    }
    SEND(redis, on_policy, "CONFIG", "GET", "maxmemory-policy");
    SEND(redis, on_fsync, "CONFIG", "GET", "appendfsync");
}

void redis_setup_start(struct redis *redis)
{
    const struct queue_conf *server = redis->conf->server;
    redis->scripts_loaded = 0;
    redis->wait = REDIS_WAIT_NONE;
    switch (redis->conf->kind) {
    case REDIS_DATA:
        greet_server(redis);
        check(redis);
        break;
    case REDIS_LISTENER:
        greet_server(redis);
        SEND(redis, on_subscribed, "SUBSCRIBE", redis->conf->subscribe);
        break;
    case REDIS_SENTINEL:
        greet(redis, server->sentinel_user, server->sentinel_password);
        SEND(redis, on_master, "SENTINEL", "MASTER", server->master_name);
        SEND(redis, on_subscribed, "SUBSCRIBE", "+switch-master");
        break;
    case REDIS_GUIDE:
        greet(redis, server->user, server->password);
        SEND(redis, on_ping, "PING");
        break;
    }
}
