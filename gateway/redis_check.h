/* Looks at the external Redis of a configuration and waits for what it says: for `heave check`.
 *
 * Thread: main, blocking for at most a few seconds; makes a loop of its own. */
#ifndef HEAVE_GATEWAY_REDIS_CHECK_H
#define HEAVE_GATEWAY_REDIS_CHECK_H

#include "gateway/conf.h"

/* Lines for a person in `out`: servers, durability, warnings. 0 at once when the server is the
 * embedded one. Errors: ERR_INVAL (it cannot be used as queue.* says), ERR_UNAVAILABLE (it could
 * not be reached), with a sentence. */
MUST_USE int redis_check(const struct conf *conf, struct buf *out, struct err *err);

/* The context for TLS to Redis; NULL without. Errors: as tls_client_new(). */
MUST_USE int redis_check_tls(const struct conf_queue *conf, struct tls_context **out,
                             struct err *err);

#endif
