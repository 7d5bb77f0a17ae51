/* /v1/messages: submit, look up, list. Thread: the loop's.
 *
 * POST takes application/json (message_json.h) and message/rfc822. For the latter the envelope is
 * in the query (`from`, `to`; `to` may repeat and hold commas) or in the header (From or else
 * Sender; To, Cc, Bcc); `lane` may be given in the query; a bare LF or CR is made CR LF, because
 * programs hand over files. Answers 202 only when everything is durable.
 *
 * Idempotency-Key (1 to 255 bytes): the stored answer is the JSON body of the 202. A request with
 * the same key that comes while the first one is being made durable, by whatever gateway, gets 409.
 */
#ifndef HEAVE_GATEWAY_API_MESSAGES_H
#define HEAVE_GATEWAY_API_MESSAGES_H

#include "gateway/api/call.h"

void messages_post(struct api_call *call);
void messages_get(struct api_call *call);
/* Pages (messages_list.c): own messages; with the scope admin those of all clients. The query is a
 * queue_filter: q (any term or an id), address, message_id, sender, domain, tag, lane, backend,
 * client (who sees all), state, since, before, limit, cursor. */
void messages_list(struct api_call *call);
/* All clients. */
void messages_list_all(struct api_call *call);
/* The same of dead letters, the last that ended first. */
void messages_list_dead(struct api_call *call);

/* The object of product.md section 7 for one message. `*budget` is how many recipients may still be
 * named in this answer and is lowered; a message with more has an empty list and
 * recipients_omitted: true (its counts are there). */
json_t *message_object(const struct message *message, size_t *budget);
/* One word for the whole message: "queued" while any recipient is open; the state all recipients
 * share; "partial" when they ended differently. */
const char *message_state(const struct message *message);

#endif
