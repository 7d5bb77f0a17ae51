/* Errors of the API as application/problem+json (RFC 9457). Thread: the loop's. */
#ifndef HEAVE_GATEWAY_API_PROBLEM_H
#define HEAVE_GATEWAY_API_PROBLEM_H

#include "gateway/api/call.h"

/* At most this many members are complained about at once. */
#define PROBLEM_ERRORS_MAX 20

struct problem {
    int status;
    const char *name;   /* type is "urn:heave:problem:NAME"; NULL: about:blank */
    const char *detail; /* a sentence */
    json_t *errors;     /* array of {pointer, detail}; taken; may be NULL */
    const char *allow;  /* for 405 */
    int retry_after_s;  /* 0: no Retry-After */
};
/* Answers the call with the problem and lets go of it. 401 gets WWW-Authenticate. */
void api_problem(struct api_call *call, const struct problem *problem);
/* The common case. */
void api_refuse(struct api_call *call, int status, const char *detail);
/* 503 with Retry-After: the only 5xx there is. */
void api_unavailable(struct api_call *call, const char *detail);

/* Adds one complaint to `errors` unless it is full. `pointer` is a JSON Pointer (RFC 6901). */
void problem_add(json_t *errors, const char *pointer, const char *format, ...) PRINTF_LIKE(3, 4);

#endif
