/* Listeners: a bound SO_REUSEPORT socket per ingress loop that hands accepted connections on.
 *
 * Must not know: protocols. Thread: the loop's. */
#ifndef HEAVE_GATEWAY_LISTENER_H
#define HEAVE_GATEWAY_LISTENER_H

#include "gateway/base/err.h"
#include "gateway/base/loop.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct listener;

/* A connection waits on `socket`: the callback must accept it (stream_accept, http_session_accept)
 * and returns 0, or an error when it could not. */
typedef int (*listener_accept_fn)(void *ctx, uv_stream_t *socket);

/* Binds "host:port", "[v6]:port", "*:port" with SO_REUSEPORT (so each ingress loop has its own
 * queue of connections) and listens. Errors: ERR_INVAL (bind text), ERR_IO (in use, not allowed),
 * with a sentence. When descriptors run out, accepting pauses 100 ms and goes on. */
MUST_USE int listener_open(struct loop *loop, const char *bind_text, listener_accept_fn accept,
                           void *ctx, struct listener **out, struct err *err);
/* The port really bound (for port 0). */
uint16_t listener_port(const struct listener *listener);
/* Stops accepting; connections waiting in the kernel are refused. Frees the listener (later,
 * safely). */
void listener_close(struct listener **listener);

#endif
