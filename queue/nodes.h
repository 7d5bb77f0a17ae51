/* The servers a queue's shards live on: which connection a shard's commands go to. Private to
 * queue/.
 *
 * Standalone: one server. Sentinel: one server, whose address the sentinels are asked for at start,
 * when they announce another, and whenever it is lost; what is not a master is refused and asked
 * for again. Cluster: one connection to each master that serves a shard; MOVED, ASK, TRYAGAIN and
 * CLUSTERDOWN are dealt with here.
 *
 * A slot that is being moved from one node to another (ASK): the scripts of its shard use more keys
 * than those they name, and for some time half of them are here and half there. So no script runs
 * then: it is *parked*, in order, until the slot has arrived, for at most 8 s. Commands with one
 * key go where ASK says.
 *
 * Must not know: keys, messages, what a script does. Thread: the loop's. A shard's commands keep
 * their order as long as the shard stays on one node, and scripts always. Statuses given to
 * callbacks and errors are those of redis.h; ERR_UNAVAILABLE also means that the shard's node is
 * away while others are up.
 */
#ifndef HEAVE_QUEUE_NODES_H
#define HEAVE_QUEUE_NODES_H

#include "queue/redis.h"

struct nodes;

struct nodes_ops {
    /* A node came up (`why` is empty) or went away. `up` says whether any shard can be used now. */
    void (*on_state)(void *ctx, bool up, const char *why);
    /* A message on the channel; empty when some may have been missed. NULL: nobody listens. */
    void (*on_message)(void *ctx, struct span payload);
    void (*on_warning)(void *ctx, const char *text);
};

/* Starts connecting. `conf` (server, scripts, subscribe) and what it points to must outlive the
 * nodes. The listening connection, if any, is the nodes'. */
struct nodes *nodes_open(struct loop *loop, const struct redis_conf *conf,
                         const struct nodes_ops *ops, void *ctx);
/* As redis_close(), for all connections. */
void nodes_close(struct nodes *nodes, void (*on_closed)(void *ctx), void *ctx);
/* Whether the shard's node is up and the shard is on no move. */
bool nodes_is_up(const struct nodes *nodes, uint32_t shard);
/* Whether commands for the shard are taken: it is up, or on the move and they will be parked. */
bool nodes_takes(const struct nodes *nodes, uint32_t shard);
/* Whether new messages may be given to the shard: see redis_is_prompt(). */
bool nodes_is_prompt(const struct nodes *nodes, uint32_t shard);
/* Whether any shard is up, or prompt. */
bool nodes_any_up(const struct nodes *nodes);
bool nodes_any_prompt(const struct nodes *nodes);
/* redis_call() and redis_eval() on the shard's node. */
MUST_USE int nodes_call(struct nodes *nodes, uint32_t shard, struct redis_args *args, redis_cb cb,
                        void *ctx);
MUST_USE int nodes_eval(struct nodes *nodes, uint32_t shard, size_t script, size_t key_count,
                        struct redis_args *head, struct redis_args *args, redis_cb cb, void *ctx);
/* The same behind a plain command on keys of the shard: one transaction, of which the callback gets
 * the script's answer. Takes `ahead` too. */
MUST_USE int nodes_eval_behind(struct nodes *nodes, uint32_t shard, struct redis_args *ahead,
                               size_t script, size_t key_count, struct redis_args *head,
                               struct redis_args *args, redis_cb cb, void *ctx);
/* Bytes of commands for the shard that were not answered yet. */
size_t nodes_waiting_bytes(const struct nodes *nodes, uint32_t shard);
enum redis_wait nodes_wait_kind(const struct nodes *nodes, uint32_t shard);

/* All servers. `address`: host and port, or the socket's path. */
void nodes_each(const struct nodes *nodes,
                void (*fn)(void *ctx, const char *address, const struct redis *redis), void *ctx);
/* Whether any server ever answered anything. */
bool nodes_heard(const struct nodes *nodes);

/* Which connection a shard's commands go to now (redis_line()); 0 while they are parked or not
 * taken. A WAIT vouches only for what ran before it on the same connection. */
uint64_t nodes_place(const struct nodes *nodes, uint32_t shard);
/* The connection a callback runs for; inside one. */
uint64_t nodes_answering(const struct nodes *nodes);
/* What has to follow writes that ran on such a connection. NONE when it has been lost. */
enum redis_wait nodes_place_wait(const struct nodes *nodes, uint64_t place);
/* redis_call() on such a connection: ERR_UNAVAILABLE when it has been lost. */
MUST_USE int nodes_call_place(struct nodes *nodes, uint64_t place, struct redis_args *args,
                              redis_cb cb, void *ctx);

#endif
