/* What ACS and Graph share: reading an error body, turning an HTTP result into an answer, and
 * sending a batch in pieces.
 *
 * Must not know: either service's requests. Thread: the backend's loop; no state of its own. */
#ifndef HEAVE_BACKENDS_REST_H
#define HEAVE_BACKENDS_REST_H

#include "backends/backend.h"
#include "backends/http_client.h"
#include "backends/verdicts.h"
#include "queue/message.h"

/* The service's words about a failure; empty where it said nothing. NUL-terminated, cut. */
struct rest_error {
    char code[80];     /* error.code, or the first AADSTS number */
    char message[260]; /* error.message, or `error` and error_description */
};
/* Reads {"error":{"code","message"}} and the token service's
 * {"error","error_description","error_codes"}. */
void rest_error_read(struct span body, struct rest_error *out);

/* The answer a result means by the verdict table; HTTP_NOT_SENT is TRANSIENT, HTTP_LOST is UNKNOWN
 * (for a question or a token, where nothing can be accepted, TRANSIENT). */
void rest_answer(enum verdict_http_kind kind, const struct http_result *result, struct answer *out);

/* Recipients of a delivery that are sent together: from .. from + count - 1. */
struct rest_range {
    size_t from;
    size_t count;
};
/* Ranges still to be sent, the next on top. A service that refuses a request because of one
 * recipient without naming it is asked again with halves, so at most log2(50) + 1 are ever kept. */
struct rest_ranges {
    struct rest_range items[16];
    size_t count;
};
void rest_ranges_push(struct rest_ranges *ranges, size_t from, size_t count);
bool rest_ranges_pop(struct rest_ranges *ranges, struct rest_range *out);
/* Pushes both halves of a range of two or more. */
void rest_ranges_split(struct rest_ranges *ranges, struct rest_range range);

#endif
