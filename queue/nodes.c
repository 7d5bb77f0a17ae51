/* One server for all shards. */
#include "queue/nodes.h"

struct nodes {
    struct redis *redis;
    void (*on_closed)(void *ctx);
    void *closed_ctx;
};

struct nodes *nodes_open(struct loop *loop, const struct redis_conf *conf,
                         const struct redis_ops *ops, void *ctx)
{
    struct nodes *nodes = mem_zero(sizeof(*nodes));
    nodes->redis = redis_open(loop, conf, ops, ctx);
    return nodes;
}

static void on_redis_closed(void *ctx)
{
    struct nodes *nodes = ctx;
    void (*on_closed)(void *) = nodes->on_closed;
    void *closed_ctx = nodes->closed_ctx;
    mem_free(nodes);
    on_closed(closed_ctx);
}

void nodes_close(struct nodes *nodes, void (*on_closed)(void *ctx), void *ctx)
{
    nodes->on_closed = on_closed;
    nodes->closed_ctx = ctx;
    redis_close(nodes->redis, on_redis_closed, nodes);
}

bool nodes_is_up(const struct nodes *nodes, uint32_t shard)
{
    (void)shard; /* all shards are on one server */
    return redis_is_up(nodes->redis);
}

bool nodes_any_up(const struct nodes *nodes)
{
    return redis_is_up(nodes->redis);
}

int nodes_call(struct nodes *nodes, uint32_t shard, struct redis_args *args, redis_cb cb, void *ctx)
{
    (void)shard;
    return redis_call(nodes->redis, args, cb, ctx);
}

int nodes_eval(struct nodes *nodes, uint32_t shard, size_t script, size_t key_count,
               struct redis_args *head, struct redis_args *args, redis_cb cb, void *ctx)
{
    (void)shard;
    return redis_eval(nodes->redis, script, key_count, head, args, cb, ctx);
}

struct arena nodes_take_reply(struct nodes *nodes, uint32_t shard)
{
    (void)shard;
    return redis_take_reply(nodes->redis);
}

size_t nodes_waiting_bytes(const struct nodes *nodes, uint32_t shard)
{
    (void)shard;
    return redis_waiting_bytes(nodes->redis);
}

enum redis_wait nodes_wait_kind(const struct nodes *nodes, uint32_t shard)
{
    (void)shard;
    return redis_wait_kind(nodes->redis);
}
