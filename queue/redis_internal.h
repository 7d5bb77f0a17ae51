/* What redis.c (connection, pipeline) and redis_setup.c (greeting, checks, scripts) share. */
#ifndef HEAVE_QUEUE_REDIS_INTERNAL_H
#define HEAVE_QUEUE_REDIS_INTERNAL_H

#include "gateway/base/stream.h"
#include "queue/redis.h"

struct redisReader;

#define REDIS_SCRIPTS_MAX 16
#define REDIS_SHA_LEN 40

/* A command on its way; the arguments of a script are kept until the answer so that it can be
 * repeated after NOSCRIPT. */
struct redis_request {
    struct redis_request *next;
    struct redis_args
        head; /* the whole command; or, for a script, its keys and leading arguments */
    struct redis_args body; /* a script's other arguments */
    redis_cb cb;
    void *ctx;
    int64_t sent_ms;
    int script; /* index, or -1 for a plain command */
    size_t key_count;
    bool repeated;
};

enum redis_phase {
    REDIS_AWAY,
    REDIS_CONNECTING,
    REDIS_SETUP,
    REDIS_UP,
};

struct redis {
    struct loop *loop;
    const struct redis_conf *conf;
    const struct redis_ops *ops;
    void *ctx;
    enum redis_phase phase;
    struct stream *stream; /* NULL while AWAY */
    bool dropping;         /* stream_abort was called; on_close is on its way */
    struct redisReader *reader;
    struct arena reply_arena;
    struct redis_request *first, *last;
    size_t request_count;
    size_t waiting_bytes;
    char shas[REDIS_SCRIPTS_MAX][REDIS_SHA_LEN + 1];
    struct loop_timer retry_timer;
    struct loop_timer deadline_timer;
    int64_t backoff_ms;
    struct err why; /* why the connection is being dropped */
    char told[500]; /* what on_state was last told */
    enum redis_wait wait;
    int version; /* 70015 for 7.0.15 */
    bool aof_on;
    char fsync_policy[16];
    size_t scripts_loaded;
    bool closing;
    void (*on_closed)(void *ctx);
    void *closed_ctx;
};

/* Sends a plain command whatever the phase. Takes `args`. */
MUST_USE int redis_submit(struct redis *redis, struct redis_args *args, redis_cb cb, void *ctx);
/* Ends the connection with a reason; a new one is tried later. */
void redis_drop(struct redis *redis, const char *format, ...) PRINTF_LIKE(2, 3);
/* SCRIPT LOAD of a script. Errors as redis_call. */
MUST_USE int redis_load_script(struct redis *redis, size_t script, redis_cb cb, void *ctx);
/* Sends greeting, checks and script loads; ends in redis_ready() or redis_drop(). */
void redis_setup_start(struct redis *redis);
void redis_ready(struct redis *redis);

#endif
