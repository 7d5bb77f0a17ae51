/* One pipelined connection to one Redis server, over base/stream (Unix socket, TCP, TLS). Private
 * to queue/.
 *
 * Must not know: keys, messages, what a script does. Thread: the loop's. The only user of hiredis,
 * of which only the reply reader and nothing of its sockets is used (Debian 12's 0.14 has no TLS).
 *
 * States: AWAY -> (connect, AUTH, SELECT, checks, SCRIPT LOAD) -> UP -> AWAY. Lost connections are
 * made again with a back-off of 50 ms to 2 s until redis_close(). Commands are taken only while UP;
 * those written in one turn of the loop leave in one system call, and their callbacks run in the
 * order of writing.
 *
 * Statuses given to callbacks:
 *   0                the server answered with a value
 *   ERR_TIMEOUT      the connection was lost, or no answer came for 10 s: whether the command ran
 * is not known ERR_UNAVAILABLE  the server refused for now (LOADING, READONLY, OOM, MISCONF, BUSY,
 * NOREPLICAS, CLUSTERDOWN ...); nothing was written. NOSCRIPT is handled here: the script is loaded
 * and the command repeated once ERR_PROTO        any other error reply (`value->text` has it): a
 * bug, or data somebody else wrote ERR_CLOSED       the connection was closed by us before an
 * answer */
#ifndef HEAVE_QUEUE_REDIS_H
#define HEAVE_QUEUE_REDIS_H

#include "gateway/base/buf.h"
#include "gateway/base/loop.h"
#include "queue/queue.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct redis;
struct redis_facts;

/* One reply, or a part of one. Lent to the callback until it returns. */
enum redis_type {
    REDIS_NIL,
    REDIS_INTEGER,
    REDIS_TEXT, /* bulk and status strings */
    REDIS_ERROR,
    REDIS_ARRAY,
};
struct redis_value {
    enum redis_type type;
    int64_t integer;
    struct span text;
    struct redis_value *items;
    size_t count;
};

/* Shorthands for reading replies; a value of another type reads as empty, 0 or nil, so that a reply
 * nobody expected never leads out of bounds. */
const struct redis_value *redis_item(const struct redis_value *value, size_t index);
int64_t redis_integer(const struct redis_value *value); /* integers, and texts of decimal digits */

/* Arguments of a command, encoded as they will be sent. */
struct redis_args {
    struct buf bytes;
    size_t count;
    int status; /* the first failure to append (ERR_LIMIT, ERR_NOMEM); the call then reports it */
};
void redis_args_init(struct redis_args *args);
void redis_args_release(struct redis_args *args);
void redis_args_add(struct redis_args *args, struct span value);
/* One argument that stands in two pieces. */
void redis_args_join(struct redis_args *args, struct span first, struct span second);
void redis_args_text(struct redis_args *args, const char *value);
void redis_args_number(struct redis_args *args, int64_t value);

struct redis_script {
    const char *name;
    struct span source;
    bool allow_oom; /* may write above maxmemory (Redis 7 and later): what frees memory in the end
                       must not be refused */
};

/* What a connection is for, which decides what is asked before it is up. */
enum redis_kind {
    REDIS_DATA,     /* commands and scripts: login, database, all checks */
    REDIS_LISTENER, /* login and SUBSCRIBE; no command may be called */
    REDIS_SENTINEL, /* the sentinels' login, the master's address, then +switch-master */
    REDIS_GUIDE,    /* login alone: a node of a Cluster, asked for the slot map */
};

struct redis_conf {
    const struct queue_conf *server;
    enum redis_kind kind;
    /* Where to, when not where `server` says. Read at each attempt: see on_away. */
    const char *host;
    uint16_t port;
    int64_t connect_timeout_ms; /* 0: 5 s */
    const struct redis_script *scripts;
    size_t script_count;
    const char *subscribe; /* LISTENER: the channel */
    uint64_t *lines;     /* NULL, or what counts the connections that were made: see redis_line() */
    uint64_t *answering; /* NULL, or where to write which of them a callback runs for */
};

struct redis_request;

/* All but on_state may be NULL. */
struct redis_ops {
    /* Each change; when a connection cannot be made, each new reason. */
    void (*on_state)(void *ctx, bool up, const char *why);
    /* A message on the subscribed channel. */
    void (*on_message)(void *ctx, struct span payload);
    /* SENTINEL: where the master is, as this sentinel sees it, and the epoch of that knowledge,
     * which grows with each fail-over; before on_state says up. */
    void (*on_master)(void *ctx, struct span host, uint16_t port, int64_t epoch);
    /* A connection ended or could not be made; another attempt follows, to where host and port of
     * the redis_conf say then. */
    void (*on_away)(void *ctx);
    /* The server answered MOVED, ASK, TRYAGAIN or CLUSTERDOWN. True: the request was taken over, to
     * be sent again with redis_request_submit(). */
    bool (*on_redirect)(void *ctx, struct redis_request *request, struct span text);
    /* Something a person should read though the connection goes on: a sentence, said once and, when
     * it goes on, every minute with how often it happened. */
    void (*on_warning)(void *ctx, const char *text);
};

/* Starts connecting. `conf` and what it points to must outlive the connection. */
struct redis *redis_open(struct loop *loop, const struct redis_conf *conf,
                         const struct redis_ops *ops, void *ctx);
/* Takes no more commands, waits at most 5 s for answers, then calls `on_closed` and frees. */
void redis_close(struct redis *redis, void (*on_closed)(void *ctx), void *ctx);
bool redis_is_up(const struct redis *redis);
/* Up, no command has waited longer than a second for its answer, and as many replicas are there as
 * the durability needs: new messages may be promised. A connection that has nothing to wait for
 * asks by PING, so a server that stopped answering is known within two seconds. */
bool redis_is_prompt(const struct redis *redis);
/* Ends the connection, if there is one, and makes the next attempt without back-off. */
void redis_again(struct redis *redis, const char *why);
/* Bytes of commands that were not answered yet. */
size_t redis_waiting_bytes(const struct redis *redis);
size_t redis_waiting_count(const struct redis *redis);

/* The command that has to follow a group of writes before a yes may be said, at the configured
 * durability. */
enum redis_wait {
    REDIS_WAIT_NONE,
    REDIS_WAIT_AOF,     /* WAITAOF 1 0: appendfsync is not `always`, Redis >= 7.2 */
    REDIS_WAIT_REPLICA, /* WAIT n */
};
enum redis_wait redis_wait_kind(const struct redis *redis);
/* The number of the connection that there is now, which no other one of `lines` ever had; 0: none.
 * A WAIT vouches only for what ran before it on the same one: to Redis, one that is made anew has
 * written nothing, and any replica has all of that. */
uint64_t redis_line(const struct redis *redis);
/* Whether it ever answered anything. */
bool redis_heard(const struct redis *redis);
/* What the server said of itself when the connection was made (redis_facts.h). */
const struct redis_facts *redis_facts(const struct redis *redis);

typedef void (*redis_cb)(void *ctx, int status, const struct redis_value *value);

/* Sends a command (`args`: name and arguments) or runs a script (`head`: its keys first, then
 * leading arguments; `args`, which may be NULL: more). The arguments are taken over in every case;
 * init them before using them again. `cb` may be NULL. Errors (no callback then): ERR_UNAVAILABLE
 * (not up), ERR_LIMIT (above 192 MiB waiting), ERR_NOMEM, ERR_CLOSED. */
MUST_USE int redis_call(struct redis *redis, struct redis_args *args, redis_cb cb, void *ctx);
MUST_USE int redis_eval(struct redis *redis, size_t script, size_t key_count,
                        struct redis_args *head, struct redis_args *args, redis_cb cb, void *ctx);

#endif
