/* The connections of all topologies; what only Sentinel or Cluster needs stands in nodes_sentinel.c
 * and nodes_cluster.c. */
#include "queue/nodes_internal.h"

#include <stdio.h>

enum { GUIDE_CONNECT_TIMEOUT_MS = 1500 };

void nodes_tell(struct nodes *nodes, const struct node *node, const char *why)
{
    char line[600];
    bool named = why[0] != '\0' && node != NULL && node->conf.host != NULL;
    if (named) {
        (void)snprintf(line, sizeof(line), "%s:%u: %s", node->host, node->conf.port, why);
    }
    nodes->told_up = nodes_any_up(nodes);
    nodes->ops->on_state(nodes->ctx, nodes->told_up, named ? line : why);
}

static void on_node_state(void *ctx, bool up, const char *why)
{
    struct node *node = ctx;
    struct nodes *nodes = node->nodes;
    if (nodes->closing || node->closing) {
        return;
    }
    if (up && nodes->server->topology == QUEUE_CLUSTER) {
        nodes_cluster_up(nodes, node);
    } else if (up && nodes->server->topology == QUEUE_SENTINEL) {
        nodes_sentinel_up(nodes);
    }
    nodes_tell(nodes, node, why);
}

static void on_node_away(void *ctx)
{
    struct node *node = ctx;
    if (node->nodes->closing || node->closing) {
        return;
    }
    switch (node->nodes->server->topology) {
    case QUEUE_STANDALONE:
        break;
    case QUEUE_SENTINEL:
        nodes_sentinel_away(node->nodes);
        break;
    case QUEUE_CLUSTER:
        nodes_cluster_away(node->nodes);
        break;
    }
}

static void on_node_warning(void *ctx, const char *text)
{
    const struct node *node = ctx;
    node->nodes->ops->on_warning(node->nodes->ctx, text);
}

static bool on_node_redirect(void *ctx, struct redis_request *request, struct span text)
{
    return nodes_cluster_redirect(ctx, request, text);
}

static const struct redis_ops node_ops = {
    .on_state = on_node_state, .on_away = on_node_away, .on_warning = on_node_warning};
static const struct redis_ops cluster_node_ops = {.on_state = on_node_state,
                                                  .on_away = on_node_away,
                                                  .on_redirect = on_node_redirect,
                                                  .on_warning = on_node_warning};

/* `host` empty: where the configuration says. */
static struct node *node_open(struct nodes *nodes, struct span host, uint16_t port)
{
    struct node *node = mem_zero(sizeof(*node));
    node->nodes = nodes;
    node->conf = *nodes->conf;
    node->conf.kind = REDIS_DATA;
    node->conf.subscribe = NULL;
    node->conf.lines = &nodes->lines;
    node->conf.answering = &nodes->answering;
    if (host.len > 0) {
        (void)snprintf(node->host, sizeof(node->host), "%.*s", SPAN_FMT(host));
        node->conf.host = node->host;
        node->conf.port = port;
    }
    node->used_ms = loop_now_ms(nodes->loop);
    node->next = nodes->list;
    nodes->list = node;
    nodes->open_count++;
    bool is_cluster = nodes->server->topology == QUEUE_CLUSTER;
    node->redis = redis_open(nodes->loop, &node->conf, is_cluster ? &cluster_node_ops : &node_ops,
                             node);
    return node;
}

struct node *nodes_node(struct nodes *nodes, struct span host, uint16_t port)
{
    for (struct node *node = nodes->list; node != NULL; node = node->next) {
        if (!node->closing && node->conf.port == port && span_eq(span_of(node->host), host)) {
            return node;
        }
    }
    return node_open(nodes, host, port);
}

/* The listener. */

static void on_listener_state(void *ctx, bool up, const char *why)
{
    const struct nodes *nodes = ctx;
    (void)why; /* the command connection tells the same story */
    if (up && !nodes->closing) {
        nodes->ops->on_message(nodes->ctx, (struct span){0});
    }
}

static void on_listener_message(void *ctx, struct span payload)
{
    const struct nodes *nodes = ctx;
    nodes->ops->on_message(nodes->ctx, payload);
}

/* A Cluster passes messages on to all nodes, so any that is up will do. */
static void on_listener_away(void *ctx)
{
    struct nodes *nodes = ctx;
    for (const struct node *node = nodes->list; node != NULL; node = node->next) {
        if (nodes->server->topology == QUEUE_CLUSTER && redis_is_up(node->redis)) {
            (void)snprintf(nodes->listener_host, sizeof(nodes->listener_host), "%s", node->host);
            nodes->listener_conf.port = node->conf.port;
            return;
        }
    }
}

static const struct redis_ops listener_ops = {
    .on_state = on_listener_state, .on_message = on_listener_message, .on_away = on_listener_away};

static void listener_open(struct nodes *nodes, const char *host, uint16_t port)
{
    nodes->listener_conf = (struct redis_conf){
        .server = nodes->server, .kind = REDIS_LISTENER, .subscribe = nodes->conf->subscribe};
    if (host != NULL) {
        (void)snprintf(nodes->listener_host, sizeof(nodes->listener_host), "%s", host);
        nodes->listener_conf.host = nodes->listener_host;
        nodes->listener_conf.port = port;
    }
    nodes->open_count++;
    nodes->listener = redis_open(nodes->loop, &nodes->listener_conf, &listener_ops, nodes);
}

void nodes_listen_at(struct nodes *nodes, const char *host, uint16_t port)
{
    if (nodes->conf->subscribe == NULL || nodes->closing) {
        return;
    }
    if (nodes->listener == NULL) {
        listener_open(nodes, host, port);
        return;
    }
    if (strcmp(nodes->listener_host, host) != 0 || nodes->listener_conf.port != port) {
        (void)snprintf(nodes->listener_host, sizeof(nodes->listener_host), "%s", host);
        nodes->listener_conf.port = port;
        redis_again(nodes->listener, "The master is elsewhere now.");
    }
}

/* The guide. */

void nodes_guide_open(struct nodes *nodes, enum redis_kind kind, const struct redis_ops *ops)
{
    const struct queue_host *first = &nodes->server->hosts[0];
    (void)snprintf(nodes->guide_host, sizeof(nodes->guide_host), "%s", first->name);
    nodes->guide_conf = (struct redis_conf){
        .server = nodes->server,
        .kind = kind,
        .host = nodes->guide_host,
        .port = first->port,
        .connect_timeout_ms = GUIDE_CONNECT_TIMEOUT_MS,
    };
    nodes->guide_next = 1;
    nodes->open_count++;
    nodes->guide = redis_open(nodes->loop, &nodes->guide_conf, ops, nodes);
}

/* Opening and closing. */

struct nodes *nodes_open(struct loop *loop, const struct redis_conf *conf,
                         const struct nodes_ops *ops, void *ctx)
{
    struct nodes *nodes = mem_zero(sizeof(*nodes));
    nodes->loop = loop;
    nodes->conf = conf;
    nodes->server = conf->server;
    nodes->ops = ops;
    nodes->ctx = ctx;
    nodes->shard_count = conf->server->shards;
    ASSERT(nodes->shard_count >= 1 && nodes->shard_count <= NODES_SHARDS_MAX);
    switch (conf->server->topology) {
    case QUEUE_STANDALONE: {
        struct node *node = node_open(nodes, (struct span){0}, 0);
        for (uint32_t shard = 0; shard < nodes->shard_count; shard++) {
            nodes->shards[shard].node = node;
        }
        if (conf->subscribe != NULL) {
            listener_open(nodes, NULL, 0);
        }
        break;
    }
    case QUEUE_SENTINEL:
        nodes_sentinel_open(nodes);
        break;
    case QUEUE_CLUSTER:
        nodes_cluster_open(nodes);
        break;
    }
    return nodes;
}

static void nodes_free(struct nodes *nodes)
{
    void (*on_closed)(void *) = nodes->on_closed;
    void *closed_ctx = nodes->closed_ctx;
    loop_timer_stop(&nodes->tick_timer);
    while (nodes->list != NULL) {
        struct node *node = nodes->list;
        nodes->list = node->next;
        mem_free(node);
    }
    mem_free(nodes);
    on_closed(closed_ctx);
}

static void connection_closed(struct nodes *nodes)
{
    ASSERT(nodes->open_count > 0);
    nodes->open_count--;
    if (nodes->closing && nodes->open_count == 0) {
        nodes_free(nodes);
    }
}

static void on_node_closed(void *ctx)
{
    struct node *node = ctx;
    struct nodes *nodes = node->nodes;
    struct node **place = &nodes->list;
    while (*place != node) {
        place = &(*place)->next;
    }
    *place = node->next;
    /* At the end the nodes close one by one, and the last answers may still ask for any shard. */
    for (uint32_t shard = 0; shard < nodes->shard_count; shard++) {
        if (nodes->shards[shard].node == node) {
            nodes->shards[shard].node = NULL;
        }
    }
    mem_free(node);
    connection_closed(nodes);
}

static void on_connection_closed(void *ctx)
{
    connection_closed(ctx);
}

void nodes_node_close(struct node *node)
{
    node->closing = true;
    redis_close(node->redis, on_node_closed, node);
}

void nodes_close(struct nodes *nodes, void (*on_closed)(void *ctx), void *ctx)
{
    nodes->closing = true;
    nodes->on_closed = on_closed;
    nodes->closed_ctx = ctx;
    loop_timer_stop(&nodes->tick_timer);
    nodes_cluster_fail(nodes, ERR_CLOSED);
    ASSERT(nodes->open_count > 0);
    /* No callback runs inside redis_close(), so the list stays as it is. */
    for (struct node *node = nodes->list; node != NULL; node = node->next) {
        if (!node->closing) {
            nodes_node_close(node);
        }
    }
    if (nodes->guide != NULL) {
        redis_close(nodes->guide, on_connection_closed, nodes);
    }
    if (nodes->listener != NULL) {
        redis_close(nodes->listener, on_connection_closed, nodes);
    }
}

/* Commands. */

static const struct shard *shard_of(const struct nodes *nodes, uint32_t shard)
{
    ASSERT(shard < nodes->shard_count);
    return &nodes->shards[shard];
}

static bool is_parking(const struct shard *shard)
{
    return shard->moving || shard->first != NULL;
}

bool nodes_is_up(const struct nodes *nodes, uint32_t shard)
{
    const struct shard *row = shard_of(nodes, shard);
    return row->node != NULL && !is_parking(row) && redis_is_up(row->node->redis);
}

bool nodes_takes(const struct nodes *nodes, uint32_t shard)
{
    return !nodes->closing && (is_parking(shard_of(nodes, shard)) || nodes_is_up(nodes, shard));
}

bool nodes_is_prompt(const struct nodes *nodes, uint32_t shard)
{
    const struct shard *row = shard_of(nodes, shard);
    return nodes_is_up(nodes, shard) && redis_is_prompt(row->node->redis);
}

bool nodes_any_up(const struct nodes *nodes)
{
    for (uint32_t shard = 0; shard < nodes->shard_count; shard++) {
        if (nodes_is_up(nodes, shard)) {
            return true;
        }
    }
    return false;
}

bool nodes_any_prompt(const struct nodes *nodes)
{
    for (uint32_t shard = 0; shard < nodes->shard_count; shard++) {
        if (nodes_is_prompt(nodes, shard)) {
            return true;
        }
    }
    return false;
}

static int submit(struct nodes *nodes, uint32_t shard, struct redis_request *request)
{
    const struct shard *row = shard_of(nodes, shard);
    request->shard = shard;
    if (!nodes->closing && is_parking(row)) {
        return nodes_cluster_park(nodes, request);
    }
    if (row->node == NULL) {
        request->cb = NULL;
        redis_request_fail(request, ERR_UNAVAILABLE);
        return nodes->closing ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    return redis_request_submit(row->node->redis, request);
}

int nodes_call(struct nodes *nodes, uint32_t shard, struct redis_args *args, redis_cb cb, void *ctx)
{
    return submit(nodes, shard, redis_request_new(-1, 0, args, NULL, cb, ctx));
}

int nodes_eval(struct nodes *nodes, uint32_t shard, size_t script, size_t key_count,
               struct redis_args *head, struct redis_args *args, redis_cb cb, void *ctx)
{
    return submit(nodes, shard, redis_request_new((int)script, key_count, head, args, cb, ctx));
}

int nodes_eval_behind(struct nodes *nodes, uint32_t shard, struct redis_args *ahead, size_t script,
                      size_t key_count, struct redis_args *head, struct redis_args *args,
                      redis_cb cb, void *ctx)
{
    struct redis_request *request = redis_request_new((int)script, key_count, head, args, cb, ctx);
    redis_request_put_ahead(request, ahead);
    return submit(nodes, shard, request);
}

size_t nodes_waiting_bytes(const struct nodes *nodes, uint32_t shard)
{
    const struct shard *row = shard_of(nodes, shard);
    return row->parked_bytes + (row->node != NULL ? redis_waiting_bytes(row->node->redis) : 0);
}

enum redis_wait nodes_wait_kind(const struct nodes *nodes, uint32_t shard)
{
    const struct shard *row = shard_of(nodes, shard);
    return row->node != NULL ? redis_wait_kind(row->node->redis) : REDIS_WAIT_NONE;
}

uint64_t nodes_place(const struct nodes *nodes, uint32_t shard)
{
    return nodes_is_up(nodes, shard) ? redis_line(shard_of(nodes, shard)->node->redis) : 0;
}

uint64_t nodes_answering(const struct nodes *nodes)
{
    return nodes->answering;
}

static struct redis *at_place(const struct nodes *nodes, uint64_t place)
{
    for (const struct node *node = nodes->list; node != NULL && place > 0; node = node->next) {
        if (redis_line(node->redis) == place) {
            return node->redis;
        }
    }
    return NULL;
}

enum redis_wait nodes_place_wait(const struct nodes *nodes, uint64_t place)
{
    const struct redis *redis = at_place(nodes, place);
    return redis != NULL ? redis_wait_kind(redis) : REDIS_WAIT_NONE;
}

int nodes_call_place(struct nodes *nodes, uint64_t place, struct redis_args *args, redis_cb cb,
                     void *ctx)
{
    struct redis *redis = at_place(nodes, place);
    if (redis != NULL) {
        return redis_call(redis, args, cb, ctx);
    }
    redis_args_release(args);
    return ERR_UNAVAILABLE;
}

void nodes_each(const struct nodes *nodes,
                void (*fn)(void *ctx, const char *address, const struct redis *redis), void *ctx)
{
    char address[NODES_HOST_MAX + 16];
    const struct queue_conf *server = nodes->server;
    for (const struct node *node = nodes->list; node != NULL; node = node->next) {
        if (node->conf.host != NULL) {
            (void)snprintf(address, sizeof(address), "%s:%u", node->host, node->conf.port);
        } else if (server->socket_path != NULL) {
            (void)snprintf(address, sizeof(address), "%s", server->socket_path);
        } else {
            (void)snprintf(address, sizeof(address), "%s:%u", server->host, server->port);
        }
        fn(ctx, address, node->redis);
    }
}

bool nodes_heard(const struct nodes *nodes)
{
    bool heard = nodes->guide != NULL && redis_heard(nodes->guide);
    for (const struct node *node = nodes->list; node != NULL; node = node->next) {
        heard = heard || redis_heard(node->redis);
    }
    return heard;
}
