/* One API request between its head and its answer. Private to gateway/api.
 *
 * A call outlives its request when the peer goes while intake or queue still work for it: `request`
 * is NULL then, and the call is freed when the last of them has reported.
 *
 * States:  headed -> (authorising ->) handling -> (waiting ->) answered;   any -> gone
 *
 * Thread: the loop's. */
#ifndef HEAVE_GATEWAY_API_CALL_H
#define HEAVE_GATEWAY_API_CALL_H

#include "gateway/api/api.h"

#include <jansson.h>

#define API_PARAM_MAX 64
#define API_FULL_RETRY_S 30 /* Retry-After while a lane is closed */
#define API_SMALL_BODY_BYTES (64u * 1024u)
#define API_JSON_EXTRA_BYTES (1024u * 1024u)

struct api {
    struct api_conf conf;
    const struct conf *settings; /* api_set_settings() */
    struct api_call *first;      /* all calls */
    size_t count;
    bool draining;
};

struct api_call {
    struct api_call *next;
    struct api_call *prev;
    struct api *api;
    struct http_request *request; /* NULL: answered, or the peer has gone */
    const struct api_route *route;
    struct policy *policy;              /* reference of this call */
    const struct policy_client *client; /* NULL: nobody, or the operator on the admin listener */
    uint32_t scopes;                    /* what the caller may do, enum policy_scope */
    bool operator_keyless;              /* on the loopback of the admin listener, without a key */
    struct policy_auth *auth;           /* a check that runs */
    bool waiting;                       /* intake or queue will call back */
    char param[API_PARAM_MAX + 1];      /* what stood for {id} */
    /* POST /v1/messages: */
    struct submission submission;
    struct buf body;    /* the request's, taken over when intake works on it */
    struct buf message; /* composed or repaired */
    bool submitted;     /* submission.arena is in use */
};

/* Marks that a callback will come; api_call_resume() is that callback's first act. It returns false
 * when the call was given up meanwhile (and is freed now). */
void api_call_wait(struct api_call *call);
bool api_call_resume(struct api_call *call);
/* Answers and lets go of the call: no use of it after this. Takes `body`'s reference. */
void api_call_json(struct api_call *call, int status, const struct http_header *headers,
                   size_t header_count, json_t *body);
void api_call_bytes(struct api_call *call, int status, const char *content_type, struct span body);

/* Appends the value as one line. Errors: ERR_NOMEM (also the buf's limit). */
MUST_USE int api_json_write(const json_t *value, struct buf *out);

/* Text for JSON: bytes that are not UTF-8 become U+FFFD. */
json_t *api_text(struct span text);
/* RFC 3339, or null for 0. */
json_t *api_time(int64_t wall_ms);

#endif
