/* Sends collections (queue/digest.h) whose window is over as one mail each.
 *
 * One per ingress loop; which of them takes a collection is chance. Each mail is enqueued with the
 * collection's idempotency key, so that it is sent once though a gateway dies at any point. One
 * that cannot be sent (no route, a full queue, a message that cannot be read) is told in the log
 * and tried again a minute later; nothing of it is given up.
 *
 * Thread: the loop's. */
#ifndef HEAVE_GATEWAY_DIGESTER_H
#define HEAVE_GATEWAY_DIGESTER_H

#include "gateway/intake.h"

struct digester;

/* `conf` as for intake_new(). */
struct digester *digester_new(struct loop *loop, struct queue *queue,
                              const struct intake_conf *conf, struct events *events);
void digester_reconfigure(struct digester *digester, const struct intake_conf *conf);
/* No collection is taken any more; what runs goes on. */
void digester_stop(struct digester *digester);
/* Whether a collection is being sent: the digester may not be freed then. */
bool digester_busy(const struct digester *digester);
void digester_free(struct digester **digester);

#endif
