/* The control port: plain HTTP for tests (product.md section 8), on loopback only.
 *
 *     GET /summary      counters of every service
 *     GET /deliveries   NDJSON; filters ?service= &message_id= &recipient=, pages &offset= &limit=
 *                       (250000); x-next-offset says where to go on when more follow
 *     GET /bodies       ?service=hve&transaction=1, or ?message_id=..&index=0: a stored message
 *                       (--keep-bodies)
 *     GET /fault        the faults with their hits; POST adds, DELETE removes all
 *     POST /reset       empties ledger, quotas, closed periods, operations; faults stay
 *     GET /livez        200
 *
 * Thread: the loop's. */
#ifndef HEAVE_BENCH_SIM_CONTROL_H
#define HEAVE_BENCH_SIM_CONTROL_H

#include "bench/sim/sim.h"
#include "bench/sim/sim_acs.h"
#include "bench/sim/sim_graph.h"

struct control;
/* `acs` and `graph` are lent, for POST /reset. Errors: ERR_IO, ERR_INVAL with a sentence. */
MUST_USE int control_open(struct sim *sim, struct acs *acs, struct graph *graph,
                          struct control **out, struct err *err);
void control_close(struct control **control);

#endif
