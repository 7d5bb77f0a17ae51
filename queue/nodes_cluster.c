/* Cluster: who serves which shard, and what happens to commands while that changes.
 *
 * The map is asked for (CLUSTER SLOTS, of one node at a time: the guide) at start, when a node says
 * MOVED, and again and again while a shard is not up. MOVED is believed at once for its shard.
 *
 * Invariant: while a shard has parked commands, every new one is parked behind them (nodes.c), so
 * that scripts keep their order. They leave when the shard's node is up and the shard is not
 * moving; what has waited PARK_MAX_MS fails with ERR_UNAVAILABLE, which is true: it never ran. */
#include "queue/nodes_internal.h"

#include <stdio.h>

enum {
    TICK_BUSY_MS = 50,
    TICK_IDLE_MS = 1000,
    MAP_AGAIN_MS = 250,
    GUIDE_SLOW_MS = 1000,
    PARK_MAX_MS = 8000, /* below the connection's own deadline */
    HOPS_MAX = 200,
    UNUSED_MS = 10000,
};
#define PARKED_MAX_BYTES ((size_t)64 << 20)

static void tick(void *ctx);

static void tick_soon(struct nodes *nodes, int64_t delay_ms)
{
    int64_t due_ms = loop_now_ms(nodes->loop) + delay_ms;
    bool sooner = !loop_timer_active(&nodes->tick_timer) || nodes->tick_timer.due_ms > due_ms;
    if (!nodes->closing && sooner) {
        loop_timer_start(nodes->loop, &nodes->tick_timer, delay_ms, tick, nodes);
    }
}

/* Parking. */

static void park(struct shard *shard, struct redis_request *request)
{
    request->next = NULL;
    if (shard->last != NULL) {
        shard->last->next = request;
    } else {
        shard->first = request;
    }
    shard->last = request;
    shard->parked_bytes += redis_request_bytes(request);
}

static struct redis_request *unpark(struct shard *shard)
{
    struct redis_request *request = shard->first;
    shard->first = request->next;
    shard->last = shard->first == NULL ? NULL : shard->last;
    shard->parked_bytes -= redis_request_bytes(request);
    request->next = NULL;
    return request;
}

static void flush(struct shard *shard)
{
    while (shard->first != NULL && shard->node != NULL && !shard->moving &&
           redis_is_up(shard->node->redis)) {
        struct redis_request *request = unpark(shard);
        redis_cb cb = request->cb;
        void *ctx = request->ctx;
        int status = redis_request_submit(shard->node->redis, request);
        static const struct redis_value nothing = {.type = REDIS_NIL};
        if (status != 0 && cb != NULL) {
            cb(ctx, status == ERR_CLOSED ? ERR_CLOSED : ERR_UNAVAILABLE, &nothing);
        }
    }
}

int nodes_cluster_park(struct nodes *nodes, struct redis_request *request)
{
    struct shard *shard = &nodes->shards[request->shard];
    int status = request->head.status != 0 ? request->head.status : request->body.status;
    if (status == 0 && shard->parked_bytes + redis_request_bytes(request) > PARKED_MAX_BYTES) {
        status = ERR_LIMIT;
    }
    if (status != 0) {
        request->cb = NULL;
        redis_request_fail(request, status);
        return status;
    }
    request->parked_ms = loop_now_ms(nodes->loop);
    park(shard, request);
    return 0;
}

void nodes_cluster_fail(struct nodes *nodes, int status)
{
    for (uint32_t i = 0; i < nodes->shard_count; i++) {
        struct shard *shard = &nodes->shards[i];
        while (shard->first != NULL) {
            redis_request_fail(unpark(shard), status);
        }
        shard->moving = false;
    }
}

static void expire(struct nodes *nodes, struct shard *shard)
{
    int64_t now_ms = loop_now_ms(nodes->loop);
    /* All of them wait for the same thing; the first one is the oldest. */
    while (shard->first != NULL && now_ms - shard->first->parked_ms > PARK_MAX_MS) {
        redis_request_fail(unpark(shard), ERR_UNAVAILABLE);
    }
}

/* The map. */

static void assign(struct shard *shard, struct node *node)
{
    if (shard->node != node) {
        shard->node = node;
        shard->moving = false;
    }
    flush(shard);
}

static struct span host_or(struct span host, const char *fallback)
{
    return host.len > 0 ? host : span_of(fallback);
}

static void take_map(struct nodes *nodes, const struct redis_value *map)
{
    for (uint32_t i = 0; i < nodes->shard_count; i++) {
        struct shard *shard = &nodes->shards[i];
        struct cluster_address address;
        if (cluster_master(map, shard->slot, &address) == 0) {
            assign(shard,
                   nodes_node(nodes, host_or(address.host, nodes->guide_host), address.port));
        }
    }
    if (!nodes->map_known && nodes->shards[0].node != NULL) {
        nodes->map_known = true;
        nodes_listen_at(nodes, nodes->shards[0].node->host, nodes->shards[0].node->conf.port);
    }
}

static void on_map(void *ctx, int status, const struct redis_value *value)
{
    struct nodes *nodes = ctx;
    nodes->guide_asked = false;
    if (nodes->closing) {
        return;
    }
    if (status == 0) {
        take_map(nodes, value);
    } else if (value->type == REDIS_ERROR && !nodes_any_up(nodes)) {
        char why[300];
        (void)snprintf(why, sizeof(why),
                       "Redis refuses CLUSTER SLOTS: %.*s. Say cluster:// in "
                       "queue.redis for a Cluster only.",
                       SPAN_FMT(value->text));
        nodes_tell(nodes, NULL, why);
    }
}

static void ask_map(struct nodes *nodes)
{
    if (nodes->guide_asked || !redis_is_up(nodes->guide)) {
        return;
    }
    struct redis_args args;
    redis_args_init(&args);
    redis_args_text(&args, "CLUSTER");
    redis_args_text(&args, "SLOTS");
    nodes->guide_ms = loop_now_ms(nodes->loop);
    nodes->guide_asked = redis_call(nodes->guide, &args, on_map, nodes) == 0;
}

static void on_guide_state(void *ctx, bool up, const char *why)
{
    struct nodes *nodes = ctx;
    if (nodes->closing) {
        return;
    }
    if (up) {
        ask_map(nodes);
    } else if (!nodes_any_up(nodes)) {
        nodes_tell(nodes, NULL, why);
    }
}

/* Each attempt goes to the next of the configured nodes and those that serve shards. */
static void on_guide_away(void *ctx)
{
    struct nodes *nodes = ctx;
    const struct queue_conf *server = nodes->server;
    const char *host = NULL;
    uint16_t port = 0;
    size_t at = server->host_count;
    size_t count = server->host_count;
    for (const struct node *node = nodes->list; node != NULL; node = node->next) {
        count++;
    }
    size_t next = nodes->guide_next++ % count;
    if (next < server->host_count) {
        host = server->hosts[next].name;
        port = server->hosts[next].port;
    }
    for (const struct node *node = nodes->list; node != NULL && host == NULL; node = node->next) {
        if (at++ == next) {
            host = node->host;
            port = node->conf.port;
        }
    }
    (void)snprintf(nodes->guide_host, sizeof(nodes->guide_host), "%s", host);
    nodes->guide_conf.port = port;
}

static const struct redis_ops guide_ops = {.on_state = on_guide_state, .on_away = on_guide_away};

void nodes_cluster_open(struct nodes *nodes)
{
    for (uint32_t i = 0; i < nodes->shard_count; i++) {
        char tag[8];
        (void)snprintf(tag, sizeof(tag), "{h%u}", i % NODES_SHARDS_MAX);
        nodes->shards[i].slot = cluster_slot(span_of(tag));
    }
    nodes_guide_open(nodes, REDIS_GUIDE, &guide_ops);
    tick_soon(nodes, TICK_BUSY_MS);
}

void nodes_cluster_up(struct nodes *nodes, struct node *node)
{
    for (uint32_t i = 0; i < nodes->shard_count; i++) {
        if (nodes->shards[i].node == node) {
            flush(&nodes->shards[i]);
        }
    }
}

void nodes_cluster_away(struct nodes *nodes)
{
    tick_soon(nodes, TICK_BUSY_MS);
}

/* Redirects. */

/* A command with one key, once, where the key is or will be. */
static bool follow_ask(struct node *target, struct redis_request *request)
{
    struct redis_args args;
    if (!redis_is_up(target->redis)) {
        return false;
    }
    redis_args_init(&args);
    redis_args_text(&args, "ASKING");
    if (redis_call(target->redis, &args, NULL, NULL) != 0) {
        return false;
    }
    redis_cb cb = request->cb;
    void *ctx = request->ctx;
    if (redis_request_submit(target->redis, request) != 0 && cb != NULL) {
        static const struct redis_value nothing = {.type = REDIS_NIL};
        cb(ctx, ERR_UNAVAILABLE, &nothing);
    }
    return true;
}

bool nodes_cluster_redirect(struct node *node, struct redis_request *request, struct span text)
{
    struct nodes *nodes = node->nodes;
    struct shard *shard = &nodes->shards[request->shard];
    if (nodes->closing || request->hops >= HOPS_MAX) {
        return false;
    }
    request->hops++;
    request->parked_ms = request->parked_ms > 0 ? request->parked_ms : loop_now_ms(nodes->loop);
    struct cluster_address address;
    enum cluster_redirect kind = cluster_redirect(text, &address);
    struct node *target = kind != CLUSTER_LATER
                              ? nodes_node(nodes, host_or(address.host, node->host), address.port)
                              : NULL;
    tick_soon(nodes, TICK_BUSY_MS);
    switch (kind) {
    case CLUSTER_MOVED:
        /* From a node the shard has left already, this is no news. */
        if (shard->node == node || shard->node == NULL) {
            shard->node = target;
            shard->moving = false;
        }
        ask_map(nodes);
        break;
    case CLUSTER_ASK:
        target->used_ms = loop_now_ms(nodes->loop);
        /* Behind a parked script, it may need what that one does first. */
        if (request->script < 0 && shard->first == NULL && follow_ask(target, request)) {
            return true;
        }
        shard->moving = true;
        break;
    case CLUSTER_LATER:
        shard->moving = true;
        break;
    }
    park(shard, request);
    flush(shard);
    return true;
}

/* Asks with the one key of the shard that never exists: while its slot is on the move the answer is
 * ASK, when it has left MOVED, otherwise 0. */
struct probe {
    struct nodes *nodes;
    struct shard *shard;
    struct node *node;
};

static void on_probe(void *ctx, int status, const struct redis_value *value)
{
    struct probe *probe = ctx;
    struct nodes *nodes = probe->nodes;
    struct shard *shard = probe->shard;
    shard->probing = false;
    if (!nodes->closing && shard->node == probe->node) {
        struct cluster_address address;
        if (status == 0) {
            shard->moving = false;
            flush(shard);
        } else if (value->type == REDIS_ERROR &&
                   cluster_redirect(value->text, &address) == CLUSTER_MOVED) {
            assign(shard,
                   nodes_node(nodes, host_or(address.host, probe->node->host), address.port));
        }
    }
    mem_free(probe);
}

static void probe(struct nodes *nodes, uint32_t index)
{
    struct shard *shard = &nodes->shards[index];
    if (!shard->moving || shard->probing || shard->node == NULL ||
        !redis_is_up(shard->node->redis)) {
        return;
    }
    char tag[8];
    struct redis_args args;
    (void)snprintf(tag, sizeof(tag), "{h%u}", index % NODES_SHARDS_MAX);
    redis_args_init(&args);
    redis_args_text(&args, "EXISTS");
    redis_args_text(&args, tag);
    struct probe *asked = mem_zero(sizeof(*asked));
    *asked = (struct probe){.nodes = nodes, .shard = shard, .node = shard->node};
    shard->probing = redis_call(shard->node->redis, &args, on_probe, asked) == 0;
    if (!shard->probing) {
        mem_free(asked);
    }
}

/* Nodes that serve no shard any more are closed when nothing waits for them; one that serves none
 * and answers no more (an old master that died silently) is given up, so that what waits for it is
 * known to be lost and is said to the new one. */
static void sort_out_nodes(struct nodes *nodes)
{
    int64_t now_ms = loop_now_ms(nodes->loop);
    for (uint32_t i = 0; i < nodes->shard_count; i++) {
        if (nodes->shards[i].node != NULL) {
            nodes->shards[i].node->used_ms = now_ms;
        }
    }
    for (struct node *node = nodes->list; node != NULL; node = node->next) {
        if (node->closing || node->used_ms == now_ms) {
            continue;
        }
        bool is_up = redis_is_up(node->redis);
        if (is_up && redis_waiting_count(node->redis) > 0) {
            if (!redis_is_prompt(node->redis)) {
                redis_again(node->redis, "It serves no shard any more and does not answer.");
            }
        } else if (!is_up || now_ms - node->used_ms > UNUSED_MS) {
            nodes_node_close(node);
        }
    }
}

static void tick(void *ctx)
{
    struct nodes *nodes = ctx;
    int64_t now_ms = loop_now_ms(nodes->loop);
    bool is_busy = false;
    for (uint32_t i = 0; i < nodes->shard_count; i++) {
        struct shard *shard = &nodes->shards[i];
        expire(nodes, shard);
        flush(shard);
        probe(nodes, i);
        is_busy = is_busy || !nodes_is_up(nodes, i);
    }
    if (is_busy && now_ms - nodes->guide_ms >= MAP_AGAIN_MS) {
        if (nodes->guide_asked && now_ms - nodes->guide_ms > GUIDE_SLOW_MS) {
            redis_again(nodes->guide, "Another node is asked for the slot map.");
        }
        ask_map(nodes);
    }
    sort_out_nodes(nodes);
    if (!nodes->closing && !nodes->told_up && nodes_any_up(nodes)) {
        nodes_tell(nodes, NULL, ""); /* the Cluster has mended itself, and no connection was made */
    }
    tick_soon(nodes, is_busy ? TICK_BUSY_MS : TICK_IDLE_MS);
}
