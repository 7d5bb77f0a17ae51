/* The Graph simulator: users/{mailbox}/sendMail in JSON and MIME form, and $batch (services.md 3).
 *
 * Thread: the loop's. */
#ifndef HEAVE_BENCH_SIM_SIM_GRAPH_H
#define HEAVE_BENCH_SIM_SIM_GRAPH_H

#include "bench/sim/sim.h"

struct graph;
/* Errors: as rest_open; ERR_INVAL also for a quota that cannot be read. */
MUST_USE int graph_open(struct sim *sim, struct graph **out, struct err *err);
void graph_close(struct graph **graph);
/* Forgets quotas and daily counts (POST /reset). */
void graph_reset(struct graph *graph);

#endif
