/* The Redis Cluster protocol, as far as bytes go: hash slots, the slot map, redirects. Pure.
 * Private to queue/. Source:
 * https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/ */
#ifndef HEAVE_QUEUE_CLUSTER_H
#define HEAVE_QUEUE_CLUSTER_H

#include "queue/redis.h"

enum { CLUSTER_SLOTS = 16384 };

/* The slot of a key; of a key with a tag ("{h0}:k"), the tag's. */
uint32_t cluster_slot(struct span key);

/* An address in an answer. `host` is empty when the answer means the node that gave it. */
struct cluster_address {
    struct span host;
    uint16_t port;
};

/* Who serves the slot by the answer to CLUSTER SLOTS. Errors: ERR_NOTFOUND (nobody, or an answer
 * that makes no sense). */
MUST_USE int cluster_master(const struct redis_value *map, uint32_t slot,
                            struct cluster_address *out);

enum cluster_redirect {
    CLUSTER_MOVED, /* the slot is served by `address` from now on */
    CLUSTER_ASK,   /* it is on its way there: this command, once, behind ASKING */
    CLUSTER_LATER, /* TRYAGAIN, CLUSTERDOWN: here or elsewhere, but not now */
};
/* Reads an error reply. `out_address` is written for MOVED and ASK. */
enum cluster_redirect cluster_redirect(struct span text, struct cluster_address *out_address);

#endif
