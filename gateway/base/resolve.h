/* Host names to socket addresses, and socket addresses to text. For base/stream.
 *
 * Must not know: connections. Thread: the loop's; the look-up itself runs on the libuv pool. */
#ifndef HEAVE_BASE_RESOLVE_H
#define HEAVE_BASE_RESOLVE_H

#include "gateway/base/err.h"
#include "gateway/base/loop.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

union resolve_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* Addresses of a name beyond these are not looked at. */
#define RESOLVE_MAX 16

/* Reads "192.0.2.1" or "2001:db8::1" (no brackets). False when `host` is neither. */
bool resolve_literal(const char *host, uint16_t port, union resolve_address *out);

struct resolve;
/* `why` is NULL and `count` at least 1, or `why` is the reason as part of a sentence. */
typedef void resolve_fn(void *ctx, const union resolve_address *addresses, size_t count,
                        const char *why);

/* Looks `host` up and calls fn once, later, unless resolve_cancel() comes first.
 * Errors: ERR_IO (the system refuses; fn is not called). */
MUST_USE int resolve_start(struct loop *loop, const char *host, uint16_t port, resolve_fn *fn,
                           void *ctx, struct resolve **out);
/* fn will not run. A look-up the system is busy with goes on unseen. Accepts NULL inside. */
void resolve_cancel(struct resolve **resolve);

#define RESOLVE_TEXT_MAX 64
/* "192.0.2.1:25" or "[2001:db8::1]:25", and the address alone. An IPv4 address mapped into IPv6, as
 * a socket for both shows it, is an IPv4 address. */
void resolve_text(const union resolve_address *address, char out[RESOLVE_TEXT_MAX],
                  char out_address[INET6_ADDRSTRLEN]);

#endif
