/* The JSON form of a message, in: product.md section 7 to a mail_view and an envelope. Pure.
 *
 * Every member is a row of a table; unknown members are refused with the nearest name, wrong ones
 * with their JSON Pointer, all complaints at once. Nothing that ends in a header may hold a control
 * character (header injection).
 *
 * Must not know: HTTP, the queue. Thread: any. */
#ifndef HEAVE_GATEWAY_API_MESSAGE_JSON_H
#define HEAVE_GATEWAY_API_MESSAGE_JSON_H

#include "backends/mail_view.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define MESSAGE_JSON_ATTACHMENTS_MAX 500
#define MESSAGE_JSON_HEADERS_MAX 100
#define MESSAGE_JSON_TAGS_MAX 10

struct message_json {
    struct mail_view view;   /* tags are in its headers as X-Heave-Tag */
    struct span from;        /* the reverse-path */
    struct span *recipients; /* to, cc, bcc in this order, as given */
    size_t recipient_count;
    bool smtputf8; /* an address of the envelope is not ASCII */
    struct span lane;
    int64_t send_at_ms;    /* wall; 0: now */
    int64_t expires_in_ms; /* 0: the lane's */
};

/* Whether the JSON text holds no more values than a message can have. A parser takes some 80 bytes
 * for a value of two, so this is asked before it runs. */
bool message_json_affordable(struct span text, size_t max_recipients);

/* Reads `root` into `out`, everything in `arena`; complaints are added to `errors` (see
 * problem_add). `max_recipients` bounds to + cc + bcc. Errors: ERR_INVAL (errors is not empty
 * then), ERR_NOMEM (the arena). */
MUST_USE int message_json_read(const json_t *root, size_t max_recipients, struct arena *arena,
                               struct message_json *out, json_t *errors);

/* "5s", "15m", "6h", "3d", or a plain number of seconds. Errors: ERR_INVAL (also 0 and above 30
 * days). */
MUST_USE int message_duration(struct span text, int64_t *out_ms);

#endif
