/* What a Redis server says of itself, and whether the queue's promises can be kept with it. Pure.
 * Private to queue/. */
#ifndef HEAVE_QUEUE_REDIS_FACTS_H
#define HEAVE_QUEUE_REDIS_FACTS_H

#include "queue/redis.h"

enum {
    REDIS_VERSION_NEEDED = 60200, /* ZMSCORE, LPOP with a count, COPY: 6.2 */
    REDIS_VERSION_FLAGS = 70000,
    REDIS_VERSION_WAITAOF = 70200,
};

struct redis_facts {
    char version_text[40]; /* "7.0.15", "Valkey 8.0.1" */
    int version;           /* 70015; of Valkey, the Redis version it is compatible with */
    char mode[16];         /* standalone, cluster, sentinel */
    char role[16];         /* master, slave */
    uint32_t replicas;     /* those online */
    bool loading;
    int append_only;     /* 1, 0; -1: not said */
    char policy[32];     /* maxmemory-policy; "": not said */
    char fsync[16];      /* appendfsync; "": not said, CONFIG is forbidden */
    uint64_t max_memory; /* 0: no limit, or not said */
};

/* Takes what there is of the answer to INFO. */
void redis_facts_info(struct redis_facts *facts, struct span info);
/* The number of replicas in the answer to INFO replication that are online. */
uint32_t redis_facts_replicas(struct span info);

/* The sentences are whole; a mistake names the command or option that mends it, and all wrong
 * settings at once. `warning` is empty
 * when there is nothing to say: what a managed service does not let itself be asked is believed,
 * and said. Errors: ERR_UNAVAILABLE (loading), ERR_UNSUPPORTED (version, mode), ERR_DENIED (not a
 * master), ERR_INVAL (a setting). */
MUST_USE int redis_facts_judge(const struct redis_facts *facts, const struct queue_conf *conf,
                               enum redis_wait *out_wait, char warning[300], struct err *err);

/* An error reply that means "not now": nothing was written, and a repetition may succeed. */
struct redis_refusal {
    const char *prefix; /* how it begins, or stands in it for those raised in a script */
    bool anywhere;      /* may stand anywhere in the text */
    bool reconnect;     /* the server will not serve this connection any more */
    bool redirect;      /* Cluster: the shard is, or may be, elsewhere */
    const char *advice; /* a sentence for the log, or NULL */
};
/* NULL: none of these, a bug or data somebody else wrote. */
const struct redis_refusal *redis_refusal_find(struct span text);

#endif
