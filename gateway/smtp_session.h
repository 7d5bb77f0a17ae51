/* SMTP sessions: joins a stream, the SMTP machine, policy and intake, and keeps the time.
 *
 * One smtp_server per loop and listener. Thread: the loop's. Must not know: Redis, routing, how a
 * message is stored.
 *
 * Who may send (not an open relay). A session has a client when it has authenticated, or, unless
 * auth is REQUIRED, when the peer's address is in a client's networks (policy_by_network), or in
 * the listener's own `networks`: then it is the client "network", which may use any sender and the
 * lane "normal". MAIL without a client gets 530 5.7.0 where AUTH is offered and 554 5.7.1 where it
 * is not.
 *
 * Life of a session: accepted -> (TLS) -> greeted -> ... -> closed. One whose message intake still
 * holds when the peer goes away lives until intake's verdict; the message is accepted or not, as if
 * the peer had stayed.
 *
 * Deadlines: `idle_timeout_ms` for each command line and for each silence inside DATA,
 * `data_timeout_ms` for all of DATA; 421 4.4.2 then. A session that waits for intake or for a
 * password has no deadline here: these two always answer.
 *
 * Draining: idle sessions get 421 4.3.2 at once, others when their transaction is over; new
 * connections get it instead of the greeting. */
#ifndef HEAVE_GATEWAY_SMTP_SESSION_H
#define HEAVE_GATEWAY_SMTP_SESSION_H

#include "gateway/base/loop.h"
#include "gateway/base/tls.h"
#include "gateway/events.h"
#include "gateway/intake.h"
#include "gateway/policy.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum smtp_tls_mode {
    SMTP_TLS_OFF,
    SMTP_TLS_STARTTLS,
    SMTP_TLS_IMPLICIT,
};
enum smtp_auth_mode {
    SMTP_AUTH_OFF,
    SMTP_AUTH_OPTIONAL,
    SMTP_AUTH_REQUIRED, /* networks do not help */
};

/* Everything is copied (tls_context and policy: a reference), so it need not outlive the call. 0
 * stands for the default in parentheses. */
struct smtp_server_conf {
    const char *hostname;
    enum smtp_tls_mode tls;
    struct tls_context *tls_context; /* needed unless tls is OFF */
    enum smtp_auth_mode auth;
    bool auth_without_tls;
    const char *const *networks; /* may send without AUTH; none: only clients' networks */
    size_t network_count;
    bool repair_line_endings;
    size_t max_recipients;              /* (10,000) of one message */
    size_t max_message_bytes;           /* (50 MiB) */
    size_t max_connections;             /* (10,000) */
    size_t max_connections_per_address; /* (max_connections) */
    size_t max_held_bytes; /* (256 MiB, at least twice max_message_bytes) messages being received or
                            * stored, all sessions together; above it 452 4.3.1 */
    int64_t idle_timeout_ms;    /* (300,000: RFC 5321 4.5.3.2.7) */
    int64_t data_timeout_ms;    /* (3,600,000) */
    uint32_t max_errors;        /* (20) of one session */
    uint32_t max_idle_commands; /* (1,000) see struct smtp_conf */
    struct policy *policy;
    atomic_size_t
        *connections; /* what max_connections counts, when several servers share it (one listener,
                       * many loops); must outlive the server. NULL: this server's own */
};

struct smtp_server;

/* `cache` (one per loop, may be shared with HTTP), `intake` and `events` must outlive every
 * session. Errors: ERR_INVAL (a network) with a sentence. */
MUST_USE int smtp_server_new(struct loop *loop, const struct smtp_server_conf *conf,
                             struct policy_cache *cache, struct intake *intake,
                             struct events *events, struct smtp_server **out, struct err *err);
/* Takes new settings; sessions that are open keep theirs until they end. Errors: as
 * smtp_server_new; nothing changes. */
MUST_USE int smtp_server_reconfigure(struct smtp_server *server,
                                     const struct smtp_server_conf *conf, struct err *err);
/* A listener_accept_fn; `ctx` is the server. Errors: as stream_accept. */
int smtp_server_accept(void *ctx, uv_stream_t *socket);
/* Sessions that are open, waiting for intake, or closing. */
size_t smtp_server_sessions(const struct smtp_server *server);
/* Starts the drain; for good. `on_drained` runs once, later, when no session is left. */
void smtp_server_drain(struct smtp_server *server, void (*on_drained)(void *ctx), void *ctx);
/* Ends all sessions without a word, for a drain that took too long. Messages intake holds still end
 * as they end. */
void smtp_server_abort(struct smtp_server *server);
/* Aborts what is left. Memory goes when the last session has ended; on_drained does not run any
 * more. */
void smtp_server_free(struct smtp_server **server);

#endif
