/* The ACS Email simulator: emails:send and the operations it starts (services.md 2).
 *
 * Thread: the loop's. */
#ifndef HEAVE_BENCH_SIM_SIM_ACS_H
#define HEAVE_BENCH_SIM_SIM_ACS_H

#include "bench/sim/sim.h"

struct acs;
/* Errors: as rest_open; ERR_INVAL also for a quota or key that cannot be read. */
MUST_USE int acs_open(struct sim *sim, struct acs **out, struct err *err);
void acs_close(struct acs **acs);
/* Forgets quotas and operations (POST /reset). */
void acs_reset(struct acs *acs);

#endif
