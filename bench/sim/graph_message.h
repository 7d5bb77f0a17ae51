/* Reading what sendMail is given: the JSON form and the MIME form (services.md 3.1, 3.2, 3.6).
 *
 * Thread: any; no state. */
#ifndef HEAVE_BENCH_SIM_GRAPH_MESSAGE_H
#define HEAVE_BENCH_SIM_GRAPH_MESSAGE_H

#include "bench/sim/conf.h"
#include "gateway/base/buf.h"

#include <jansson.h>

/* Why a request is refused. All static text. `status` 0: none. */
struct graph_problem {
    int status;
    const char *code;
    const char *message;
};

/* A message with its own copy of everything. */
struct graph_message {
    struct buf text; /* addresses, From and Message-ID, one after the other */
    struct buf mime; /* the decoded message (MIME form), else empty */
    struct span *recipients;
    size_t recipient_count;
    struct span from;       /* empty: not given */
    struct span message_id; /* empty: not given */
};

/* `json` is the whole request body, {"message":...,"saveToSentItems":...}. Returns NULL and a
 * message to release, or the problem (nothing to release). */
const struct graph_problem *graph_message_json(const struct sim_conf *conf, const json_t *json,
                                               struct graph_message *out);
/* `body` is the base64 of a message. Likewise. */
const struct graph_problem *graph_message_mime(const struct sim_conf *conf, struct span body,
                                               struct graph_message *out);
void graph_message_release(struct graph_message *message);

#endif
