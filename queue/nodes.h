/* The servers a queue's shards live on: which connection a shard's commands go to. Private to
 * queue/.
 *
 * Must not know: keys, messages, what a script does. Thread: the loop's. A shard's commands keep
 * their order as long as the shard stays on one node. Statuses given to callbacks and errors are
 * those of redis.h; ERR_UNAVAILABLE also means that the shard's node is away while others are up.
 */
#ifndef HEAVE_QUEUE_NODES_H
#define HEAVE_QUEUE_NODES_H

#include "queue/redis.h"

struct nodes;

/* Starts connecting. `conf` and what it points to must outlive the nodes. `ops->on_state` is called
 * at each change of nodes_is_up() of any shard: `up` says whether any shard can be used. */
struct nodes *nodes_open(struct loop *loop, const struct redis_conf *conf,
                         const struct redis_ops *ops, void *ctx);
/* As redis_close(), for all connections. */
void nodes_close(struct nodes *nodes, void (*on_closed)(void *ctx), void *ctx);
/* Whether commands for the shard are taken now. */
bool nodes_is_up(const struct nodes *nodes, uint32_t shard);
/* Whether any shard's are. */
bool nodes_any_up(const struct nodes *nodes);
/* redis_call() and redis_eval() on the shard's node. */
MUST_USE int nodes_call(struct nodes *nodes, uint32_t shard, struct redis_args *args, redis_cb cb,
                        void *ctx);
MUST_USE int nodes_eval(struct nodes *nodes, uint32_t shard, size_t script, size_t key_count,
                        struct redis_args *head, struct redis_args *args, redis_cb cb, void *ctx);
/* As redis_take_reply(); inside a callback of that shard's command. */
struct arena nodes_take_reply(struct nodes *nodes, uint32_t shard);
/* Bytes of commands for the shard's node that were not answered yet. */
size_t nodes_waiting_bytes(const struct nodes *nodes, uint32_t shard);
enum redis_wait nodes_wait_kind(const struct nodes *nodes, uint32_t shard);

#endif
