/* What the HTTP simulators have in common: a listener, faults, latency, closed periods, replies.
 *
 * A service gives its `struct rest_ops`; rest.c calls them when a request has come and no fault
 * took it. Every call is answered exactly once by rest_reply() or rest_drop(), at once or later;
 * afterwards the call is gone.
 *
 *     head -> begin() -> body -> closed? -> faults at "request" -> handle()
 *             handle() -> [recorded: rest_accepted(), faults at "accepted"] -> rest_reply()
 *
 * Thread: the loop's. */
#ifndef HEAVE_BENCH_SIM_REST_H
#define HEAVE_BENCH_SIM_REST_H

#include "bench/sim/sim.h"
#include "gateway/http.h"

#include <jansson.h>

#define REST_HEADERS_MAX 12

struct rest;
struct rest_call {
    struct rest *rest;
    struct sim *sim;
    struct http_request *request;
    struct loop_timer timer;
    int64_t delay_ms;
    uint32_t *gauge; /* counted down when the call ends; NULL: none */
    bool too_large;  /* the body passed the limit and is not there */
    bool expired;    /* a token_expired fault struck */
    int status;
    struct http_header headers[REST_HEADERS_MAX];
    size_t header_count;
    struct span body;
};

/* What an error says; NULL fields are left to the service. */
struct rest_error {
    int status;
    const char *code;
    const char *message;
    int64_t retry_after_s; /* negative: no header */
};

struct rest_ops {
    enum sim_service service;
    /* The most bytes of a body; the head has come. May set call->gauge. */
    size_t (*begin)(void *ctx, struct rest_call *call);
    /* Everything has come (or call->too_large). Must lead to rest_reply() or rest_drop(). */
    void (*handle)(void *ctx, struct rest_call *call);
    /* Puts an error in the service's own words into the call's reply (status, headers, body). */
    void (*refuse)(void *ctx, struct rest_call *call, const struct rest_error *error);
    /* The scope a throttle fault closes for this call, into `room`. */
    struct span (*scope)(void *ctx, struct rest_call *call, char *room, size_t room_bytes);
};

/* Listens on the service's port. Errors: ERR_IO, ERR_INVAL with a sentence. */
MUST_USE int rest_open(struct sim *sim, const struct rest_ops *ops, void *ctx, struct rest **out,
                       struct err *err);
void rest_close(struct rest **rest);

/* Adds a header to the coming reply; name is static text, value is copied. */
void rest_header(struct rest_call *call, const char *name, struct span value);
/* Sets status and JSON body (the reference is taken) of the coming reply. */
void rest_json(struct rest_call *call, int status, json_t *take);
/* Answers with what was set, after the latency. */
void rest_reply(struct rest_call *call);
/* Counts the error by its status, lets the service put it into words, and answers. A status of 429
 * or 503 with retry_after_s closes the call's scope for that time, on the honour of the client. */
void rest_refuse(struct rest_call *call, const struct rest_error *error);
/* Drops the connection without an answer. */
void rest_drop(struct rest_call *call);
/* The message of this call was recorded. Returns false when a fault has taken the answer over. */
bool rest_accepted(struct rest_call *call, struct span subject);
/* The bearer token of the call, or an empty span. */
struct span rest_bearer(const struct rest_call *call);
/* Random bytes as "xxxxxxxx-xxxx-4xxx-...": request ids. */
#define REST_UUID_LEN 36
void rest_uuid(char out[REST_UUID_LEN + 1]);

#endif
