/* One look at the Redis a configuration names: can it be used, and what does it promise? For `heave
 * check`. Reads and loads scripts; touches no key.
 *
 * Thread: the loop's. */
#ifndef HEAVE_QUEUE_PROBE_H
#define HEAVE_QUEUE_PROBE_H

#include "queue/queue.h"

/* `report`: lines for a person, one for each server and one for the durability; lent until return.
 * `status`: 0; ERR_INVAL (reached, but it cannot be used as queue.* says: `why` names what mends
 * it); ERR_UNAVAILABLE (not reached, or not all of it, in time). */
typedef void (*queue_probe_cb)(void *ctx, int status, struct span report, const char *why);

/* Connects, waits at most `wait_ms`, disconnects, and calls `cb` once. `conf` must stay until then.
 */
void queue_probe(struct loop *loop, const struct queue_conf *conf, int64_t wait_ms,
                 queue_probe_cb cb, void *ctx);

#endif
