/* What happens between "connected" and "up": greeting, checks of the server's settings, scripts.
 *
 * All commands are sent at once; the answers come in order, and the first one that will not do
 * drops the connection with a sentence. The last one, the SHA of the last script, makes the
 * connection ready. */
#include "queue/redis_internal.h"

#include <stdio.h>

enum {
    VERSION_NEEDED = 60200, /* ZMSCORE, LPOP with a count, COPY: 6.2 */
    VERSION_FLAGS = 70000,
    VERSION_WAITAOF = 70200,
};

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

/* Drops the connection when the answer is an error. True when it is one (or the connection is gone
 * already). */
static bool refused(struct redis *redis, int status, const struct redis_value *value,
                    const char *what)
{
    if (status == 0) {
        return redis->dropping;
    }
    if (value->type == REDIS_ERROR) {
        redis_drop(redis, "Redis refuses %s: %.*s.", what, SPAN_FMT(value->text));
    }
    return true;
}

static void on_auth(void *ctx, int status, const struct redis_value *value)
{
    (void)refused(ctx, status, value, "the user or password of queue.redis");
}

static void on_select(void *ctx, int status, const struct redis_value *value)
{
    (void)refused(ctx, status, value, "the database number of queue.redis");
}

/* The value of `name` in the "name:value" lines of INFO; empty when it is not there. */
static struct span info_value(struct span info, const char *name)
{
    while (info.len > 0) {
        struct span line = span_trim(span_cut(&info, '\n'));
        struct span key = span_cut(&line, ':');
        if (span_eq(key, span_of(name))) {
            return line;
        }
    }
    return (struct span){0};
}

static int parse_version(struct span text)
{
    int version = 0;
    for (int part = 0; part < 3; part++) {
        uint64_t number = 0;
        if (span_to_u64(span_cut(&text, '.'), 99, &number) != 0) {
            number = 0;
        }
        version = version * 100 + (int)number;
    }
    return version;
}

/* Lua's first line as Redis 7 reads it; older servers know no flags and would refuse it. */
static const char allow_oom_line[] = "#!lua flags=allow-oom\n";

int redis_load_script(struct redis *redis, size_t script, redis_cb cb, void *ctx)
{
    const struct redis_script *row = &redis->conf->scripts[script];
    size_t flags_len = row->allow_oom && redis->version >= VERSION_FLAGS
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

static void load_scripts(struct redis *redis)
{
    for (size_t i = 0; i < redis->conf->script_count; i++) {
        if (redis_load_script(redis, i, on_script, redis) != 0) {
            redis_drop(redis, "The scripts could not be sent to Redis.");
            return;
        }
    }
}

static void on_info_server(void *ctx, int status, const struct redis_value *value)
{
    struct redis *redis = ctx;
    if (refused(redis, status, value, "INFO")) {
        return;
    }
    struct span text = info_value(value->text, "redis_version");
    redis->version = parse_version(text);
    if (redis->version < VERSION_NEEDED) {
        redis_drop(redis, "Redis 6.2 or newer is needed, this server is %.*s.", SPAN_FMT(text));
        return;
    }
    /* The version says how; their answers come behind those of the checks, which may drop the
     * connection first. */
    load_scripts(redis);
}

static void on_info_replication(void *ctx, int status, const struct redis_value *value)
{
    struct redis *redis = ctx;
    if (refused(redis, status, value, "INFO")) {
        return;
    }
    struct span role = info_value(value->text, "role");
    if (!span_eq(role, SPAN_LIT("master"))) {
        redis_drop(redis,
                   "This Redis server is a replica (role:%.*s); queue.redis must name the master.",
                   SPAN_FMT(role));
    }
}

static void on_info_persistence(void *ctx, int status, const struct redis_value *value)
{
    struct redis *redis = ctx;
    if (refused(redis, status, value, "INFO")) {
        return;
    }
    redis->aof_on = span_eq(info_value(value->text, "aof_enabled"), SPAN_LIT("1"));
    if (!redis->aof_on && redis->conf->server->durability == QUEUE_FSYNC) {
        redis_drop(
            redis,
            "Redis keeps no append-only file, so queue.durability: fsync cannot be promised. "
            "Say: CONFIG SET appendonly yes");
    }
}

/* CONFIG may be forbidden (managed services, ACL): then what it would have told is believed. */
static void on_policy(void *ctx, int status, const struct redis_value *value)
{
    struct redis *redis = ctx;
    struct span policy = redis_item(value, 1)->text;
    if (status == 0 && policy.len > 0 && !span_eq(policy, SPAN_LIT("noeviction"))) {
        redis_drop(redis,
                   "Redis may throw accepted messages away (maxmemory-policy is %.*s). "
                   "Say: CONFIG SET maxmemory-policy noeviction",
                   SPAN_FMT(policy));
    }
}

static void on_fsync(void *ctx, int status, const struct redis_value *value)
{
    struct redis *redis = ctx;
    struct span policy = redis_item(value, 1)->text;
    bool always = status == 0 && span_eq(policy, SPAN_LIT("always"));
    redis->wait = REDIS_WAIT_NONE;
    switch (redis->conf->server->durability) {
    case QUEUE_FSYNC:
        if (!always && redis->version >= VERSION_WAITAOF) {
            redis->wait = REDIS_WAIT_AOF;
        } else if (status == 0 && !always) {
            redis_drop(
                redis,
                "Redis answers before its append-only file is on disk (appendfsync is %.*s), which "
                "queue.durability: fsync forbids. Say: CONFIG SET appendfsync always",
                SPAN_FMT(policy));
        }
        break;
    case QUEUE_REPLICATED:
        redis->wait = REDIS_WAIT_REPLICA;
        break;
    case QUEUE_MEMORY:
        break;
    }
}

static void become_ready(struct redis *redis)
{
    if (!redis->dropping && redis->phase == REDIS_SETUP) {
        redis_ready(redis);
    }
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

static void greet(struct redis *redis)
{
    const struct queue_conf *server = redis->conf->server;
    if (server->password != NULL && server->user != NULL) {
        SEND(redis, on_auth, "AUTH", server->user, server->password);
    } else if (server->password != NULL) {
        SEND(redis, on_auth, "AUTH", server->password);
    }
    if (server->database != 0) {
        char number[16];
        (void)snprintf(number, sizeof(number), "%d", server->database);
        SEND(redis, on_select, "SELECT", number);
    }
}

static void check(struct redis *redis)
{
    SEND(redis, on_info_server, "INFO", "server");
    SEND(redis, on_info_replication, "INFO", "replication");
    if (redis->conf->server->managed) {
        /* Ours: its configuration file says what we need. Per-command histograms are of no use to
         * anybody here and cost a few per cent; older servers do not know the option, which does no
         * harm. */
        SEND(redis, NULL, "CONFIG", "SET", "latency-tracking", "no");
        return;
    }
    SEND(redis, on_info_persistence, "INFO", "persistence");
    SEND(redis, on_policy, "CONFIG", "GET", "maxmemory-policy");
    SEND(redis, on_fsync, "CONFIG", "GET", "appendfsync");
}

void redis_setup_start(struct redis *redis)
{
    redis->scripts_loaded = 0;
    redis->wait = REDIS_WAIT_NONE;
    greet(redis);
    if (redis->conf->subscribe != NULL) {
        SEND(redis, on_subscribed, "SUBSCRIBE", redis->conf->subscribe);
        return;
    }
    check(redis);
    if (redis->conf->script_count == 0) {
        SEND(redis, on_ping, "PING");
    }
}
