/* Reading the JSON of an emails:send request: the checks of services.md 2.1, 2.6, 2.7 and 2.10.
 *
 * Thread: any; no state. */
#ifndef HEAVE_BENCH_SIM_ACS_MESSAGE_H
#define HEAVE_BENCH_SIM_ACS_MESSAGE_H

#include "bench/sim/conf.h"
#include "gateway/base/buf.h"

#include <jansson.h>

struct acs_message {
    struct span sender;
    struct span message_id; /* of the headers map; empty when there is none */
    struct span *recipients;
    size_t recipient_count;
};

/* Why a message is refused. All static text. */
struct acs_problem {
    int status;
    const char *code;
    const char *message;
};

/* Checks `body` and fills `out`, whose spans point into `body`; acs_message_release gives the array
 * back. Returns NULL when the message is good, else the problem (nothing to release). */
const struct acs_problem *acs_message_read(const struct sim_conf *conf, const json_t *body,
                                           struct acs_message *out);
void acs_message_release(struct acs_message *message);

#endif
