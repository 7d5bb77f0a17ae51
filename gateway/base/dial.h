/* Connecting: from a host name, an address or a path to a connected socket. For base/stream.
 *
 * Must not know: what the socket is for. Thread: the loop's. The addresses of a name are tried in
 * turn, each with an equal share of the time that is left, so that one that swallows packets does
 * not use up the others' chance. */
#ifndef HEAVE_BASE_DIAL_H
#define HEAVE_BASE_DIAL_H

#include "gateway/base/err.h"
#include "gateway/base/loop.h"

#include <stdint.h>

struct dial;

/* The outcome. `status` 0: `fd` is connected and belongs to the callee, `why` is NULL. ERR_IO or
 * ERR_TIMEOUT: `why` is a sentence, good until return. The dial is gone. */
typedef void dial_fn(void *ctx, int status, int fd, const char *why);

/* Starts connecting, and calls fn exactly once, later, unless dial_cancel() comes first. `host` is
 * copied; `port` 0 makes it the path of a Unix socket. `due_ms` is on the clock of loop_now_ms().
 */
struct dial *dial_start(struct loop *loop, const char *host, uint16_t port, int64_t due_ms,
                        dial_fn *fn, void *ctx);
/* fn will not run. Accepts NULL inside. */
void dial_cancel(struct dial **dial);

#endif
