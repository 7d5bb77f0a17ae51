/* What redis.c (connection, pipeline) and redis_setup.c (greeting, checks, scripts) share. */
#ifndef HEAVE_QUEUE_REDIS_INTERNAL_H
#define HEAVE_QUEUE_REDIS_INTERNAL_H

#include "gateway/base/stream.h"
#include "queue/redis.h"
#include "queue/redis_facts.h"

struct redisReader;

#define REDIS_SCRIPTS_MAX 32
#define REDIS_SHA_LEN 40
#define REDIS_NO_SHARD UINT32_MAX
#define REDIS_WARNINGS_MAX 8

/* A command on its way. The arguments of a script are kept until the answer so that it can be
 * repeated after NOSCRIPT; in a Cluster, those of every command that has a shard, which may have to
 * go elsewhere. */
struct redis_request {
    struct redis_request *next;
    struct redis_args
        head; /* the whole command; or, for a script, its keys and leading arguments */
    struct redis_args body; /* a script's other arguments */
    /* A command that runs just before the script, both in one transaction; count 0: none. Such a
     * request has four answers: to MULTI, to the two that are queued, and what EXEC says. */
    struct redis_args ahead;
    unsigned answers; /* that have come */
    char *refusal;    /* the first error among the first three, or NULL */
    redis_cb cb;
    void *ctx;
    int64_t sent_ms;
    int script; /* index, or -1 for a plain command */
    size_t key_count;
    bool repeated;
    /* For nodes.c alone: */
    uint32_t shard;    /* REDIS_NO_SHARD: of the connection, not of a shard */
    uint32_t hops;     /* how often it was sent elsewhere */
    int64_t parked_ms; /* loop time of the first redirect; 0: none */
};

/* A sentence for the log that may come again. */
struct redis_warning {
    char text[200]; /* empty: free */
    uint64_t more;  /* how often it came since it was said */
    int64_t said_ms;
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
    struct loop_timer watch_timer; /* running while there is a stream */
    int64_t backoff_ms;
    struct err why; /* why the connection is being dropped */
    char told[500]; /* what on_state was last told */
    enum redis_wait wait;
    uint64_t line; /* redis_line() */
    struct redis_facts facts;
    size_t scripts_loaded;
    bool heard;          /* anything, ever */
    bool was_up;         /* once, since it was opened */
    int64_t opened_ms;   /* loop time */
    int64_t watched_ms;  /* when the watch last looked */
    int64_t heard_ms;    /* when the last answer came */
    int64_t stalled_ms;  /* since when a command has waited too long; 0: none does */
    bool stall_told;     /* on_warning was told of it */
    bool short_replicas; /* fewer are online than queue.replicas wants */
    int64_t replicas_ms; /* when they were counted */
    struct redis_warning warnings[REDIS_WARNINGS_MAX];
    bool closing;
    void (*on_closed)(void *ctx);
    void *closed_ctx;
};

/* Sends a plain command whatever the phase. Takes `args`. */
MUST_USE int redis_submit(struct redis *redis, struct redis_args *args, redis_cb cb, void *ctx);
/* For nodes.c: a request made, sent, thrown away. */
struct redis_request *redis_request_new(int script, size_t key_count, struct redis_args *head,
                                        struct redis_args *args, redis_cb cb, void *ctx);
/* Puts a plain command in front of a script's request. Takes `ahead`. */
void redis_request_put_ahead(struct redis_request *request, struct redis_args *ahead);
/* Takes the request whatever the result. Errors as redis_call(); its callback does not run then. */
MUST_USE int redis_request_submit(struct redis *redis, struct redis_request *request);
size_t redis_request_bytes(const struct redis_request *request);
/* Calls back with `status` and frees. */
void redis_request_fail(struct redis_request *request, int status);
/* Tells on_warning, or counts, or says how often. */
void redis_warn(struct redis *redis, const char *text);
/* How many replicas are online. */
void redis_replicas_seen(struct redis *redis, uint32_t count);
/* Ends the connection with a reason; a new one is tried later. */
void redis_drop(struct redis *redis, const char *format, ...) PRINTF_LIKE(2, 3);
/* SCRIPT LOAD of a script. Errors as redis_call. */
MUST_USE int redis_load_script(struct redis *redis, size_t script, redis_cb cb, void *ctx);
/* Sends greeting, checks and script loads; ends in redis_ready() or redis_drop(). */
void redis_setup_start(struct redis *redis);
void redis_ready(struct redis *redis);

#endif
