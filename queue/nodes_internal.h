/* What nodes.c (connections), nodes_sentinel.c (who is the master) and nodes_cluster.c (who serves
 * which shard) share. */
#ifndef HEAVE_QUEUE_NODES_INTERNAL_H
#define HEAVE_QUEUE_NODES_INTERNAL_H

#include "queue/cluster.h"
#include "queue/nodes.h"
#include "queue/queue.h"
#include "queue/redis_internal.h"

#define NODES_SHARDS_MAX 32
#define NODES_HOST_MAX 256

/* One server and the connection to it. */
struct node {
    struct node *next;
    struct nodes *nodes;
    struct redis *redis;
    struct redis_conf conf;
    char host[NODES_HOST_MAX]; /* what conf.host points to */
    int64_t used_ms;           /* Cluster: when it last served a shard */
    bool closing;
};

struct shard {
    struct node *node; /* NULL: not known, or nobody's */
    uint32_t slot;
    bool moving;  /* commands are parked until a probe says that they may run */
    bool probing; /* one is on its way */
    struct redis_request *first, *last; /* parked, in order */
    size_t parked_bytes;
};

struct nodes {
    struct loop *loop;
    const struct redis_conf *conf;
    const struct queue_conf *server;
    const struct nodes_ops *ops;
    void *ctx;
    struct node *list;
    struct shard shards[NODES_SHARDS_MAX];
    uint32_t shard_count;
    uint64_t lines, answering; /* as in redis_conf */
    bool told_up;              /* what the owner was last told */
    /* Sentinel and Cluster: the one that is asked where the servers are. */
    struct redis *guide;
    struct redis_conf guide_conf;
    char guide_host[NODES_HOST_MAX];
    size_t guide_next; /* which of server->hosts (and known nodes) is tried next */
    bool guide_asked;  /* Cluster: an answer is awaited. Sentinel: another one is being asked */
    int64_t guide_ms;  /* when it was asked last */
    int64_t epoch;     /* Sentinel: of what is known */
    int64_t away_ms;   /* Sentinel: since when the master is away; 0: it is up */
    bool map_known;    /* Cluster: there was a map once */
    struct redis *listener;
    struct redis_conf listener_conf;
    char listener_host[NODES_HOST_MAX];
    struct loop_timer tick_timer;
    bool closing;
    size_t open_count; /* connections that are not closed */
    void (*on_closed)(void *ctx);
    void *closed_ctx;
};

/* nodes.c */
/* The node with that address, opened when there is none. */
struct node *nodes_node(struct nodes *nodes, struct span host, uint16_t port);
void nodes_node_close(struct node *node);
/* Opens the connection that is asked where the servers are, at the first of server->hosts. */
void nodes_guide_open(struct nodes *nodes, enum redis_kind kind, const struct redis_ops *ops);
/* Lets the listener, if there is one, connect to that address. */
void nodes_listen_at(struct nodes *nodes, const char *host, uint16_t port);
/* Tells the owner. */
void nodes_tell(struct nodes *nodes, const struct node *node, const char *why);

/* nodes_sentinel.c */
void nodes_sentinel_open(struct nodes *nodes);
/* The master came up; was lost. */
void nodes_sentinel_up(struct nodes *nodes);
void nodes_sentinel_away(struct nodes *nodes);

/* nodes_cluster.c */
void nodes_cluster_open(struct nodes *nodes);
void nodes_cluster_up(struct nodes *nodes, struct node *node);
void nodes_cluster_away(struct nodes *nodes);
bool nodes_cluster_redirect(struct node *node, struct redis_request *request, struct span text);
/* Parks a new command of a shard that is on the move. Errors: ERR_LIMIT. */
MUST_USE int nodes_cluster_park(struct nodes *nodes, struct redis_request *request);
/* Fails all that is parked. */
void nodes_cluster_fail(struct nodes *nodes, int status);

#endif
