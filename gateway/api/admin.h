/* /v1/admin: what the command line asks. Thread: the loop's. */
#ifndef HEAVE_GATEWAY_API_ADMIN_H
#define HEAVE_GATEWAY_API_ADMIN_H

#include "gateway/api/call.h"

/* Totals: batches by lane, backend and state, oldest age, bytes, recipients by state. */
void admin_queue(struct api_call *call);
/* [{lane, reason}] of the lanes whose new messages are put off. */
json_t *admin_lanes_refused(const struct admission *admission);
/* As GET /v1/messages, over all clients, with the further filter client. */
void admin_messages(struct api_call *call);

#endif
