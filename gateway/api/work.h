/* Operator work over HTTP: POST /v1/admin/queue/{verb}, and the cancelling of one's own message.
 * Thread: the loop's. */
#ifndef HEAVE_GATEWAY_API_WORK_H
#define HEAVE_GATEWAY_API_WORK_H

#include "gateway/api/call.h"

/* The verb is the path's last segment; the body says what is meant: {ids, selector, all, reason,
 * to, reset, dry_run, limit, cursor}. Without ids and selector nothing is selected, unless `all` is
 * true. Answers what matched and what was done, and a cursor when there is more. */
void work_post(struct api_call *call);
/* DELETE /v1/messages/{id}: cancels what has not left. 404 when the client has no such message, 409
 * when nothing could be cancelled. */
void work_delete(struct api_call *call);

#endif
