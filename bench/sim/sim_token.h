/* The token service: client credentials with a secret, and what MSAL asks of an authority
 * (services.md 4.1, 4.6, 4.8).
 *
 * Thread: the loop's. */
#ifndef HEAVE_BENCH_SIM_SIM_TOKEN_H
#define HEAVE_BENCH_SIM_SIM_TOKEN_H

#include "bench/sim/sim.h"

struct token_service;
/* Errors: as rest_open. */
MUST_USE int token_open(struct sim *sim, struct token_service **out, struct err *err);
void token_close(struct token_service **service);

#endif
