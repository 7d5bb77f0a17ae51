/* A routing plan as the queue's batches. Pure. Thread: any. */
#ifndef HEAVE_GATEWAY_INTAKE_BATCHES_H
#define HEAVE_GATEWAY_INTAKE_BATCHES_H

#include "gateway/route.h"
#include "queue/message.h"

/* `plan->batch_count` batches, all in `arena` but for the addresses and `lane`; the names of
 * backends are copied, so that they outlive the configuration. NULL: no memory. */
struct batch *intake_batches(const struct route_conf *route, const struct route_plan *plan,
                             struct span lane, struct arena *arena);

#endif
