/* Sentinel: https://redis.io/docs/latest/develop/reference/sentinel-clients/
 *
 * One connection to one sentinel at a time, which tells the master's address when it is made and
 * then every change. While the master is away, one sentinel after the other is asked: the one we
 * talk to may have been cut off together with the old master. A server that says it is a replica
 * (the old master, back and reconfigured) drops its connection in the checks of redis_setup.c and
 * so comes here too. */
#include "queue/nodes_internal.h"

#include <stdio.h>

enum {
    ASK_AGAIN_MS = 500,
    SENTINEL_SLOW_MS = 2000,
    TRUST_ANY_MS = 10000, /* sentinels that were set up anew count their epochs from 0 */
};

static void take_master(struct nodes *nodes, struct span host, uint16_t port)
{
    struct node *node = nodes->list;
    if (node == NULL) {
        node = nodes_node(nodes, host, port);
        for (uint32_t shard = 0; shard < nodes->shard_count; shard++) {
            nodes->shards[shard].node = node;
        }
    } else if (!span_eq(span_of(node->host), host) || node->conf.port != port) {
        (void)snprintf(node->host, sizeof(node->host), "%.*s", SPAN_FMT(host));
        node->conf.port = port;
        char why[NODES_HOST_MAX + 80];
        (void)snprintf(why, sizeof(why), "The sentinels name another master: %s:%u.", node->host,
                       port);
        redis_again(node->redis, why);
    }
    nodes_listen_at(nodes, node->host, port);
}

/* A sentinel that has not heard of the last fail-over yet names the old master: its epoch is lower.
 */
static void on_master(void *ctx, struct span host, uint16_t port, int64_t epoch)
{
    struct nodes *nodes = ctx;
    bool trusts_any = nodes->away_ms > 0 &&
                      loop_now_ms(nodes->loop) - nodes->away_ms > TRUST_ANY_MS;
    if (nodes->closing || (epoch < nodes->epoch && !trusts_any)) {
        return;
    }
    nodes->epoch = epoch;
    take_master(nodes, host, port);
}

/* +switch-master: "NAME OLD-HOST OLD-PORT NEW-HOST NEW-PORT" */
static void on_switch(void *ctx, struct span payload)
{
    struct nodes *nodes = ctx;
    struct span rest = payload;
    struct span name = span_cut(&rest, ' ');
    (void)span_cut(&rest, ' ');
    (void)span_cut(&rest, ' ');
    struct span host = span_cut(&rest, ' ');
    uint64_t port = 0;
    if (!nodes->closing && span_eq(name, span_of(nodes->server->master_name)) && host.len > 0 &&
        span_to_u64(rest, UINT16_MAX, &port) == 0 && port > 0) {
        nodes->epoch++; /* by one at least */
        take_master(nodes, host, (uint16_t)port);
    }
}

/* Each attempt goes to the next sentinel. */
static void on_guide_away(void *ctx)
{
    struct nodes *nodes = ctx;
    const struct queue_host *next =
        &nodes->server->hosts[nodes->guide_next++ % nodes->server->host_count];
    (void)snprintf(nodes->guide_host, sizeof(nodes->guide_host), "%s", next->name);
    nodes->guide_conf.port = next->port;
    nodes->guide_ms = loop_now_ms(nodes->loop);
}

static void on_guide_state(void *ctx, bool up, const char *why)
{
    struct nodes *nodes = ctx;
    bool was_ours = nodes->guide_asked; /* we went on to another, which is no news */
    nodes->guide_asked = false;
    if (!up && !was_ours && !nodes->closing && !nodes_any_up(nodes)) {
        nodes_tell(nodes, NULL, why);
    }
}

static const struct redis_ops guide_ops = {.on_state = on_guide_state,
                                           .on_away = on_guide_away,
                                           .on_master = on_master,
                                           .on_message = on_switch};

void nodes_sentinel_open(struct nodes *nodes)
{
    nodes_guide_open(nodes, REDIS_SENTINEL, &guide_ops);
}

static void ask_again(void *ctx)
{
    struct nodes *nodes = ctx;
    if (nodes_any_up(nodes)) {
        return;
    }
    /* One that is being asked gets its time. */
    if (redis_is_up(nodes->guide) ||
        loop_now_ms(nodes->loop) - nodes->guide_ms > SENTINEL_SLOW_MS) {
        nodes->guide_asked = redis_is_up(nodes->guide);
        redis_again(nodes->guide, "Another sentinel is asked where the master is.");
    }
    loop_timer_start(nodes->loop, &nodes->tick_timer, ASK_AGAIN_MS, ask_again, nodes);
}

void nodes_sentinel_up(struct nodes *nodes)
{
    nodes->away_ms = 0;
}

void nodes_sentinel_away(struct nodes *nodes)
{
    nodes->away_ms = nodes->away_ms > 0 ? nodes->away_ms : loop_now_ms(nodes->loop);
    if (!loop_timer_active(&nodes->tick_timer)) {
        /* The sentinel we listen to will tell as soon as any. */
        loop_timer_start(nodes->loop, &nodes->tick_timer, ASK_AGAIN_MS, ask_again, nodes);
    }
}
