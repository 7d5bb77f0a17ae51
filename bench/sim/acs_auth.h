/* Who calls ACS: the HMAC signature over the raw request, or a bearer token (services.md 2.4, 2.5).
 *
 * Thread: any; no state. */
#ifndef HEAVE_BENCH_SIM_ACS_AUTH_H
#define HEAVE_BENCH_SIM_ACS_AUTH_H

#include "bench/sim/rest.h"

/* `key` is the decoded access key. True when the request is signed with it, its content hash is
 * that of the body and its date is within the drift; or when its token is for ACS and in force. */
bool acs_auth_good(struct rest_call *call, struct span key);

#endif
