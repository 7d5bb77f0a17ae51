/* The HVE simulator: an SMTP server that behaves as services.md 1 and 5.1 say HVE does.
 *
 * STARTTLS before AUTH, AUTH LOGIN and XOAUTH2 (tokens of the token simulator), MAIL FROM and From:
 * must be the account, internal recipients only, 50 of them, 10 MB, PIPELINING, BDAT. What
 * services.md marks UNCONFIRMED has a flag (conf.h).
 *
 * Thread: the loop's. */
#ifndef HEAVE_BENCH_SIM_SIM_HVE_H
#define HEAVE_BENCH_SIM_SIM_HVE_H

#include "bench/sim/sim.h"

struct hve;
/* Listens on the configured port and stores the real one in `sim`. Errors: ERR_IO, ERR_INVAL with a
 * sentence. */
MUST_USE int hve_open(struct sim *sim, struct hve **out, struct err *err);
/* Drops all sessions and the listener; the loop must still turn for handles to go. */
void hve_close(struct hve **hve);

#endif
